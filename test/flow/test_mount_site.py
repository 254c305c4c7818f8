"""The sh-mount and the mount.conf that this very system has, if it has them (behaviours 70-74): are they safe here?"""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from fixtures.helper import PYTHON, RUNNER, USER, plan

pytestmark = pytest.mark.evil(70)


@pytest.fixture(scope="module")
def helper(prefix):
    """Return the sh-mount that the installed commands look for, or that the environment names."""
    (paths,) = prefix.glob("lib/shoebox/*/lib/shoebox/paths.py")
    known = {
        node.targets[0].id: node.value for node in ast.parse(paths.read_text()).body if isinstance(node, ast.Assign)
    }
    path = Path(os.environ.get("SHOEBOX_TEST_HELPER") or ast.literal_eval(known["HELPER"]))
    if not path.exists():
        pytest.skip(f"there is no {path}")
    if not os.access(path, os.R_OK | os.X_OK):
        pytest.skip(f"{path} is for a group that you are not in")
    return path


@pytest.fixture(scope="module")
def conf(helper):
    """Return where the site's mount.conf is: it stands in the program."""
    return Path(re.search(rb"/[^\0 ]*/mount\.conf", helper.read_bytes())[0].decode())


@pytest.fixture(scope="module")
def become(helper):
    """Return words to put before a command, so that an ordinary user of the program's group runs it."""
    if os.getuid():
        return []
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={helper.stat().st_gid or USER}", "--"]


@pytest.fixture
def mine(box, become, tmp_path):
    """Return an image of the user's own."""
    image = tmp_path / "mine.sqfs"
    shutil.copy(box, image)
    image.chmod(0o644)
    for folder in [tmp_path, *tmp_path.parents[:2]]:
        if become:
            folder.chmod(0o755)
    if become:
        os.chown(image, USER, USER)
    return image


def roots_alone(path):
    """Check that a path and all above it belong to root, and that nobody else can write there; no link leads there."""
    assert os.path.realpath(path) == str(path)
    for one in (path, *path.parents):
        seen = one.lstat()
        assert seen.st_uid == 0, one
        assert not seen.st_mode & 0o022 or (seen.st_mode & stat.S_ISVTX and one != path.parent), one
        assert os.getuid() == 0 or not os.access(one, os.W_OK) or seen.st_mode & stat.S_ISVTX, one


def refused(done):
    assert done.returncode == 125, done
    assert done.stdout == ""
    assert done.stderr.startswith("sh-mount: cannot ")


def test_the_sites_sh_mount_is_roots_and_can_be_replaced_by_root_only(helper):
    roots_alone(helper)
    mode = stat.S_IMODE(helper.stat().st_mode)
    assert mode in (0o4755, 0o4750, 0o4555, 0o4550, 0o4711, 0o4710), oct(mode)
    roots_alone(helper.parent / "mnt")
    assert list((helper.parent / "mnt").iterdir()) == []
    assert "system.posix_acl_access" not in os.listxattr(helper)


def test_the_sites_mount_conf_is_roots_and_can_be_changed_by_root_only(conf):
    if not conf.exists():
        pytest.skip(f"there is no {conf}, so nothing is mounted")
    roots_alone(conf)


def test_the_stores_that_the_site_names_can_be_changed_by_trusted_owners_only(conf):
    if not conf.exists():
        pytest.skip(f"there is no {conf}, so nothing is mounted")
    lines = [line.split(None, 1) for line in conf.read_text().splitlines()]
    trusted = {0, *(int(words[1]) for words in lines if words and words[0] == "owner")}
    for store in (Path(words[1]) for words in lines if words and words[0] == "store"):
        for one in (store, *store.parents) if store.exists() else ():
            seen = one.lstat()
            assert seen.st_uid in trusted, one
            assert not seen.st_mode & 0o022 or (seen.st_mode & stat.S_ISVTX and one != store), one


@pytest.mark.evil(76)
def test_the_directories_that_the_site_names_for_caches_are_their_accounts_alone(conf):
    if not conf.exists():
        pytest.skip(f"there is no {conf}, so nothing is mounted")
    lines = [line.split(None, 2) for line in conf.read_text().splitlines()]
    for _, uid, name in (words for words in lines if words[:1] == ["cache"]):
        place = Path(name)
        seen = place.lstat()
        assert (seen.st_uid, oct(seen.st_mode)) == (int(uid), "0o40700"), place
        for one in place.parents:
            above = one.lstat()
            assert above.st_uid in (0, int(uid)), one
            assert not above.st_mode & 0o022 or above.st_mode & stat.S_ISVTX, one


def test_the_sites_sh_mount_refuses_what_is_the_users(helper, become, mine):
    fd = os.memfd_create("plan")
    os.write(fd, plan(["true"]))
    for image in (mine, mine.parent, "/etc/passwd", "/dev/zero", "/", f"/proc/self/root{mine}"):
        for words in (("kernel", image), ("setuid", fd, image)):
            done = subprocess.run(
                [*become, helper, *map(str, words)], pass_fds=(fd,), capture_output=True, text=True, check=False
            )
            refused(done)
    os.close(fd)


@pytest.mark.evil(74)
@pytest.mark.parametrize(
    "words", [[], ["kernel"], ["kernel", ""], ["setuid", "0", "/"], ["setuid", "-1", "/"], ["%n%n", "x"], ["-h"]]
)
def test_the_sites_sh_mount_refuses_hostile_words(helper, become, words):
    done = subprocess.run(
        [*become, helper, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    refused(done)
    assert done.stderr.count("\n") == 1


@pytest.fixture
def image(conf, become):
    """Return an image of the site's that the user may read."""
    return find(conf, become, readable=True)


def find(conf, become, *, readable):
    """Return an image in a store of the site's."""
    for line in conf.read_text().splitlines() if conf.exists() else ():
        if line.split()[:1] == ["store"]:
            for found in Path(line.split(None, 1)[1]).rglob("*.sqfs"):
                if (subprocess.run([*become, "test", "-r", found], check=False).returncode == 0) == readable:
                    return found
    pytest.skip(f"{conf} names no store with an image that an ordinary user {'may' if readable else 'may not'} read")


@pytest.mark.evil(69)
def test_the_sites_sh_mount_opens_no_image_that_the_user_may_not_read(helper, conf, become):
    private = find(conf, become, readable=False)
    done = subprocess.run([*become, helper, "kernel", private], capture_output=True, text=True, check=False)
    refused(done)


@pytest.mark.evil(71)
def test_the_sites_sh_mount_is_the_user_when_it_has_mounted(helper, become, image):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*become, helper, "kernel", image], text=True, **pipes) as process:
        where = process.stdout.readline().strip()
        if not where:
            pytest.skip(process.stderr.read().strip())
        proc = Path(f"/proc/{process.pid}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        user = str(os.getuid() or USER)
        assert status["Uid"].split() == [user] * 4
        assert status["NoNewPrivs"] == "1"
        assert sorted(path.name for path in (proc / "fd").iterdir()) == ["0", "1", "2"]
        assert (proc / "ns/user").stat().st_ino != Path("/proc/self/ns/user").stat().st_ino
        (mounted,) = [line.split() for line in (proc / "mountinfo").read_text().splitlines() if f" {where} " in line]
        assert mounted[5].startswith("ro,nosuid,nodev")
        process.communicate()
    assert process.returncode == 0


@pytest.mark.evil(73)
def test_no_trick_strips_a_flag_of_an_image_that_the_sites_sh_mount_mounted(helper, become, image, tmp_path):
    outcomes = run(become, "tricks", helper, image, tmp_path)
    assert {what: how for what, how in outcomes.items() if how == "done"} == {}
    for what in ("remount the mount", "strip ro", "strip nosuid", "strip nodev", "unmount"):
        assert outcomes[what] in ("EPERM", "EACCES", "EINVAL")


@pytest.mark.evil(72)
def test_nothing_is_got_from_the_sites_sh_mount_wherever_it_is_stopped(helper, become, image, tmp_path):
    assert run(become, "attack", helper, image, tmp_path) == []


def run(become, mode, helper, image, tmp_path):
    """Run test/c/runner.py as the user, and return what it prints."""
    runner = tmp_path / "runner.py"
    shutil.copy(RUNNER, runner)
    for path in (runner, tmp_path, *tmp_path.parents[:2]):
        if become:
            path.chmod(0o755)
    words = [*become, *PYTHON, runner, mode, helper, image]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode == 125:
        pytest.skip(done.stderr.strip())
    assert done.stdout, done.stderr
    return ast.literal_eval(done.stdout)
