"""sh-run with sh-mount: the ways kernel and setuid, and which way is taken when."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import time

import pytest
from fixtures.caller import user
from fixtures.helper import NO_SPACES, USER, loops
from fixtures.rootfs import PLACES, one_line, until

__all__ = ["user"]  # a fixture

pytestmark = pytest.mark.root
WAYS = ("fuse", "kernel", "unpack", "setuid")
SPACES = "readlink /proc/self/ns/user && readlink /proc/self/ns/mnt"
# Words of root's around the user's: where /dev/fuse is root's alone.
HIDE = "mount -t tmpfs none /mnt && mknod -m 600 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse"
NO_FUSE = ("unshare", "-m", "sh", "-c", f'{HIDE} && exec "$@"', "-")


def way(user, *words, **more):
    """Return the way that sh-run takes, and why."""
    (line,) = [line for line in user.ok("--explain", *words, **more).splitlines() if line.startswith("way ")]
    name, _, why = line[4:].partition("#")
    return name.strip(), why.strip()


@pytest.mark.parametrize("name", WAYS)
def test_every_way_runs_the_command_as_the_user_in_the_image(user, name):
    text = user.ok(f"--mount={name}", user.site.image, "sh", "-c", "id -u; id -g; id -un; cat /etc/os-release; pwd")
    assert text.split("\n")[:-1] == [str(USER), str(USER), f"uid{USER}", "NAME=box", str(user.home)]


def test_the_environment_is_the_same_by_every_way(user):
    odd = {"ODD": "a\nb 'c' \"d\" $HOME\\", "EMPTY": "", "TMPDIR": "/tmp"}
    seen = {name: user.ok(f"--mount={name}", user.site.image, "env", "-0", **odd) for name in WAYS}
    assert len({tuple(sorted(text.split("\0"))) for text in seen.values()}) == 1, seen
    assert "FROM=the image" in seen["setuid"].split("\0")


def test_access_is_answered_the_same_by_the_ways_that_have_user_namespaces(user):
    # Tried, not asked: busybox's test thinks for itself, and takes the groups that show as 65534 for one.
    script = 'for p; do if test -d "$p"; then ls "$p"; else head -c 1 "$p"; fi >/dev/null 2>&1; echo "$? $p"; done'
    seen = {name: user.ok(f"--mount={name}", user.site.image, "sh", "-c", script, "sh", *PLACES) for name in WAYS[:3]}
    assert seen["kernel"] == seen["fuse"]
    assert seen["unpack"] == seen["fuse"]


@pytest.mark.parametrize("name", WAYS)
def test_statuses_signals_and_stdin_are_the_commands_own_by_every_way(user, name):
    words = (f"--mount={name}", user.site.image)
    assert user.run(*words, "sh", "-c", "exit 77").returncode == 77
    assert user.run(*words, "sh", "-c", "kill -9 $$").returncode == -9
    assert user.run(*words, "nosuch").returncode == 127
    assert user.run(*words, "plain").returncode == 126
    assert user.run(*words, "sh", "-c", "yes | head -1; kill -PIPE $$").returncode == -13
    with user.start(*words, "cat") as process:
        assert process.communicate("through\n", timeout=30)[0] == "through\n"


def test_without_dev_fuse_the_kernel_mounts_what_the_site_trusts_and_the_rest_is_unpacked(user, box):
    assert way(user, user.site.image)[0] == "fuse"
    name, why = way(user, user.site.image, wrap=NO_FUSE)
    assert (name, why) == ("kernel", "sh-mount mounts it; not fuse: /dev/fuse: Permission denied")
    mine = user.home / "box.sqfs"
    shutil.copy(box, mine)
    mine.chmod(0o644)
    name, why = way(user, mine, wrap=NO_FUSE)
    assert name == "unpack"
    assert "not kernel: it lies in no store" in why
    assert user.ok(mine, "cat", "/etc/os-release", wrap=NO_FUSE) == "NAME=box\n"


def test_a_site_may_prefer_kernel(user):
    (user.site.where / "etc/site.conf").write_text("[settings]\nway = kernel\n")
    assert way(user, user.site.image) == ("kernel", "the site prefers it")
    assert way(user, "--mount=fuse", user.site.image) == ("fuse", "--mount says so")


def test_who_insists_on_a_way_gets_it_or_the_reason(user, box):
    mine = user.home / "box.sqfs"
    shutil.copy(box, mine)
    mine.chmod(0o644)
    assert one_line(
        user.run("--mount=kernel", mine, "true"), "--mount=kernel: it lies in no store", "leave --mount out"
    )
    assert one_line(user.run("--mount=fuse", user.site.image, "true", wrap=NO_FUSE), "/dev/fuse: Permission denied")
    user.site.conf("store STORE\n")
    done = user.run("--mount=setuid", user.site.image, "true")
    assert done.returncode == 125
    assert "does not allow the setuid way" in done.stderr


def test_where_user_namespaces_are_refused_the_setuid_way_is_taken(user):
    name, why = way(user, user.site.image, wrap=NO_SPACES)
    assert name == "setuid"
    assert "cannot make a user namespace" in why
    assert user.ok(user.site.image, "cat", "/etc/os-release", wrap=NO_SPACES) == "NAME=box\n"
    for insisted in ("fuse", "kernel", "unpack"):
        assert one_line(user.run(f"--mount={insisted}", user.site.image, "true", wrap=NO_SPACES), "user namespace")


def test_the_setuid_way_makes_volumes_and_refuses_what_the_image_lacks(user):
    (user.home / "data").mkdir()
    (user.home / "data/file").write_text("data\n")
    words = ("--mount=setuid", "-v", f"{user.home}/data:/var/tmp:ro")
    script = "cat /var/tmp/file; touch /var/tmp/new; echo $?"
    assert user.ok(*words, user.site.image, "sh", "-c", script) == "data\n1\n"
    done = user.run("--mount=setuid", "-v", "/usr:/no/such", user.site.image, "true")
    assert done.returncode == 125
    assert "'/no/such'" in done.stderr
    assert one_line(user.run("--mount=setuid", "--writable", user.site.image, "true"), "that takes a user namespace")


def test_the_setuid_way_works_in_directories_that_mount_conf_names(user, tree):
    copy = user.site.where / "store/tree"
    shutil.copytree(tree, copy, symlinks=True)
    user.site.conf("directory STORE/tree\nsetuid yes\n")
    assert way(user, copy, wrap=NO_SPACES)[0] == "setuid"
    assert user.ok(copy, "cat", "/etc/os-release", wrap=NO_SPACES) == "NAME=box\n"
    assert one_line(user.run("--mount=setuid", "-v", "/usr:/no/such", copy, "true"), "the image lacks it")


def test_the_setuid_way_leaves_no_file_of_ours(user):
    (user.home / f"shoebox-{USER}").mkdir(mode=0o700)
    os.chown(user.home / f"shoebox-{USER}", USER, USER)
    left = user.home / f"shoebox-{USER}/account-999999999-passwd"  # of somebody who was killed
    left.write_text("")
    assert f"uid{USER}" in user.ok("--mount=setuid", user.site.image, "cat", "/etc/passwd")
    assert list((user.home / f"shoebox-{USER}").iterdir()) == []


def test_ranks_share_what_the_kernel_mounted_and_it_goes_with_the_last(user):
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
    words = ("--mount=kernel", user.site.image, "sh", "-c")
    first = user.start(*words, f"{SPACES} && exec sleep 60", **step)
    there = first.stdout.readline() + first.stdout.readline()
    assert there
    (loop,) = loops(user.site.image)
    assert user.ok(*words, SPACES, **step) == there
    assert loops(user.site.image) == [loop]
    first.kill()
    first.communicate()
    assert until(lambda: not loops(user.site.image))


@pytest.mark.parametrize("name", ["kernel", "setuid"])
def test_nothing_stays_when_sh_run_is_killed_at_any_time(user, name):
    for round_ in range(25):
        with user.start(f"--mount={name}", user.site.image, "sleep", "60") as process:
            time.sleep(0.002 * round_)
            process.kill()
    assert until(lambda: not loops(user.site.image))


def test_the_doctor_tells_what_sh_mount_says_to_the_images_of_each_store(user, box):
    mine = user.home / "images"
    mine.mkdir(mode=0o755)
    for where in (mine, user.site.store):
        shutil.copy(box, where / f"sha256-{'0' * 64}.sqfs")
        (where / f"sha256-{'0' * 64}.sqfs").chmod(0o644)
    done = user.site.run(user.site.where / "sh-doctor", env=user.env | {"SHOEBOX_PATH": f"{mine}:{user.site.store}"})
    said = [line for line in done.stdout.splitlines() if "sh-mount's policy" in line]
    assert re.match(r"ok +sh-mount's policy +.*/images/.*: it lies in no store", said[0])
    assert re.match(r"ok +sh-mount's policy +.*/store/.*: it mounts it", said[1])
    assert re.search("^way +fuse ", done.stdout, re.MULTILINE)


# Words of root's: an automounter in a mount namespace of its own, where mounts are shared, as systemd has them.
AUTOMOUNTER = """
set -e
mount --make-rshared /
setsid automount -f --pid-file "$1/pid" "$1/master" 2>"$1/log" & automounter=$!
until grep -q " $1/homes autofs" /proc/self/mounts; do sleep 0.05; done
where=$1; shift
status=0
"$@" || status=$?
for round in $(seq 100); do # it does not keep the host from unmounting
    grep -q " $where/homes/" /proc/self/mounts || break
    sleep 0.1
done
! grep " $where/homes/" /proc/self/mounts
kill $automounter
wait $automounter
exit $status
"""


@pytest.mark.parametrize("name", ["fuse", "kernel", "setuid"])
def test_a_home_that_is_mounted_when_it_is_touched_works_inside_and_is_unmounted_again(user, name):
    where = user.site.store / "automount"
    for person in ("ann", "bob"):
        (where / "real" / person).mkdir(parents=True)
        (where / "real" / person / "file").write_text(f"{person}'s\n")
    (where / "homes").mkdir()
    (where / "master").write_text(f"{where}/homes {where}/map --timeout=1\n")
    (where / "map").write_text(f"* -fstype=bind :{where}/real/&\n")
    wait = "for n in $(seq 100); do grep -q /homes/ann /proc/self/mounts || break; sleep 0.2; done"
    script = f"cat $1/ann/file /var/tmp/bob/file; {wait}; grep -c /homes/ann /proc/self/mounts"
    words = (f"--mount={name}", "-v", f"{where}/homes:/tmp", "-v", f"{where}/homes:/var/tmp", user.site.image)
    done = user.run(
        *words, "sh", "-c", script, "sh", "/tmp", wrap=("unshare", "-m", "sh", "-c", AUTOMOUNTER, "-", where)
    )
    assert (done.stdout, done.stderr) == ("ann's\nbob's\n0\n", "")


@pytest.mark.parametrize("way", ["kernel", "fuse", "unpack"])
@pytest.mark.parametrize("form", ["upper", "changes.tar"])
def test_changes_are_kept_by_every_way_that_has_a_user_namespace(user, way, form):
    (user.home / "kept").mkdir()
    if form == "changes.tar":
        tarfile.open(user.home / "kept/changes.tar", "w").close()
    for path in (user.home / "kept", *(user.home / "kept").iterdir()):
        os.chown(path, USER, USER)
    words = (f"--mount={way}", "--writable=./kept", user.site.image, "sh", "-c")
    user.ok(*words, "echo new >/etc/new; rm /etc/os-release")
    assert user.ok(*words, "cat /etc/new; ls /etc/os-release 2>&1; exit 0").startswith(
        "new\nls: /etc/os-release: No such file"
    )
    assert {"image", form} <= set(os.listdir(user.home / "kept")) <= {"image", form, "work", "lock"}
    assert (user.home / "kept" / form).stat().st_uid == USER


def test_the_way_setuid_keeps_no_changes(user):
    done = user.run("--mount=setuid", "--writable=./kept", user.site.image, "true")
    assert one_line(done, "that takes a user namespace")
    assert not (user.home / "kept").exists()


def test_a_container_of_the_way_kernel_is_entered_and_one_of_setuid_cannot_be(user):
    for way in ("kernel", "setuid"):
        with user.start(f"--mount={way}", user.site.image, "sh", "-c", "echo in; exec sleep 60") as process:
            assert process.stdout.readline() == "in\n"
            words = ("--enter", str(process.pid), "cat", "/etc/os-release")
            if way == "kernel":
                assert user.ok(*words) == "NAME=box\n"
            else:
                assert one_line(user.run(*words), "runs in the way setuid, where nobody can join")
            process.kill()
