"""sh-stage -d HOST:DIR: the same files on another host, and the same guarantees."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.far import SSHD, Far, host
from fixtures.stores import DEBIAN, OTHER, contents, lfs, publish_in, whole

from shoebox import publish, ssh

USERNS = subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def cache(cmd):
    """Return the user's own store."""
    return Path(cmd.env["SHOEBOX_CACHE"]) / "images"


@pytest.fixture
def there(tmp_path):
    """Return a store to be, at a path that a shell had better not look into."""
    return tmp_path / "a 'store' of $HOME \"and\" `more`; *"


@pytest.fixture
def far(cmd, tmp_path):
    """Return another host, which sh-stage reaches by ssh."""
    if not SSHD or Path(pwd.getpwuid(os.getuid()).pw_shell).name in ("nologin", "false"):
        pytest.skip("no sshd, or no shell to log in to")
    made = host(tmp_path / "far", cmd.env["PATH"])
    cmd.env["PATH"] = made.path
    return made


BUSYBOX = shutil.which("busybox") or "/bin/busybox"


def over_there(far: Far, script: str, interpreter: str = "/bin/sh") -> None:
    """Let logins run a script, which finds in SSH_ORIGINAL_COMMAND what ssh gave to run."""
    shell = far.top / "shell"
    shell.write_text(f"#!{interpreter}\n{script}\n")
    shell.chmod(0o755)
    far.login(str(shell))


@pytest.mark.parametrize("kind", ["bash", "dash", "busybox", "talkative"])
def test_another_host_gets_the_same_files(cmd, cache, there, far, kind):
    if not shutil.which(kind if kind != "talkative" else "sh"):
        pytest.skip(f"no {kind}")
    if kind == "busybox":  # nothing but its tools
        (far.top / "tools").mkdir()
        subprocess.run([BUSYBOX, "--install", "-s", far.top / "tools"], check=True)
        over_there(far, f'PATH={far.top}/tools\nexec sh -c "$SSH_ORIGINAL_COMMAND"', f"{BUSYBOX} sh")
    elif kind == "talkative":
        over_there(far, 'echo Welcome; printf "to far"; exec sh -c "$SSH_ORIGINAL_COMMAND"')
    else:
        over_there(far, f'sh() {{ {kind} "$@"; }}; eval "$SSH_ORIGINAL_COMMAND"')
    image = publish_in(cache, [f"{DEBIAN}/12", "host:5000/a/1"], os.urandom(3 << 20))
    assert cmd.ok("sh-stage", "-d", f"far:{there}", image) == f"far:{there}/{image.name}"
    assert contents(there) == contents(cache)
    inode = (there / image.name).stat().st_ino
    (there / DEBIAN / "12.sqfs").unlink()
    assert cmd.ok("sh-stage", "-d", f"far:{there}/", image) == f"far:{there}/{image.name}"
    assert (there / image.name).stat().st_ino == inode
    assert contents(there) == contents(cache)


def test_another_hosts_old_pair_is_retired_and_the_tag_moves(cmd, cache, there, far, tmp_path):
    other = publish_in(tmp_path / "other", content=b"other settings")
    publish_in(there, content=b"old")
    image = publish_in(cache)
    for source in (other, image):
        cmd.ok("sh-stage", "-d", f"far:{there}", source)
    assert (there / image.name).read_bytes() == image.read_bytes()
    retired = sorted((there / publish.RETIRED).iterdir())
    assert [path.suffix for path in retired] == [".json", ".sqfs"] * 2
    assert (there / publish.RETIRED / retired[0].with_suffix(".sqfs").name).exists()
    new = publish_in(cache, content=b"new", manifest=OTHER)
    cmd.ok("sh-stage", "-d", f"far:{there}", new)
    assert (there / DEBIAN / "12.sqfs").resolve().name == new.name
    whole(there)


def test_a_list_goes_to_another_host(cmd, cache, there, far):
    images = [publish_in(cache, [f"{DEBIAN}/{n}"], str(n).encode(), f"{n:064x}") for n in range(3)]
    done = cmd("sh-stage", "-d", f"far:{there}", stdin="".join(f"{image}\n" for image in images))
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"far:{there}/{image.name}" for image in images]
    assert contents(there) == contents(cache)


def test_a_relative_directory_is_under_the_home_over_there(cmd, cache, far, tmp_path):
    over_there(far, f'cd {tmp_path}; eval "$SSH_ORIGINAL_COMMAND"')
    image = publish_in(cache)
    assert cmd.ok("sh-stage", "-d", "far:new/images", image) == f"far:new/images/{image.name}"
    assert cmd.ok("sh-stage", "-d", "far:~/new/images", image) == f"far:~/new/images/{image.name}"
    assert contents(tmp_path / "new/images") == contents(cache)


def test_mode_group_and_stripes_over_there(cmd, cache, there, far, tmp_path):
    path = lfs(tmp_path, 'case $1 in setstripe) : >"$4";; esac')
    over_there(far, f'umask 077; PATH={path}:$PATH; eval "$SSH_ORIGINAL_COMMAND"')
    image = publish_in(cache)
    cmd.ok("sh-stage", "-d", f"far:{there}", "--mode", "640", "--group", str(os.getgid()), image)
    staged = there / image.name
    for made, mode in [(staged, 0o640), (staged.with_suffix(".json"), 0o640), (there, 0o750), (there / DEBIAN, 0o750)]:
        assert (stat.S_IMODE(made.stat().st_mode), made.stat().st_gid) == (mode, os.getgid())
    log = (tmp_path / "lfs.log").read_text().splitlines()
    assert log[0] == "getstripe -d ."
    assert log[1].startswith("setstripe -c 1 .part-")


def test_a_damaged_image_does_not_arrive(cmd, cache, there, far):
    image = publish_in(cache)
    with image.open("r+b") as file:
        file.seek(200)
        file.write(b"bad")
    done = cmd("sh-stage", "-d", f"far:{there}", image)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "its sidecar says" in done.stderr
    assert contents(there) == {}


def test_a_host_that_cannot_be_reached_may_be_later(cmd, cache, far):
    done = cmd("sh-stage", "-d", "unreachable:/x", publish_in(cache))
    assert (done.returncode, done.stdout) == (75, "")
    assert "the ssh connection failed: try: ssh unreachable true" in done.stderr.splitlines()[-1]


def test_a_directory_that_cannot_be_made_over_there_is_told(cmd, cache, far, tmp_path):
    (tmp_path / "file").touch()
    done = cmd("sh-stage", "-d", f"far:{tmp_path}/file/x", publish_in(cache))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("sh-stage: cannot copy")


@pytest.mark.skipif(not USERNS, reason="no user namespaces: no small disk without root")
def test_a_full_disk_over_there_may_have_room_later(cmd, cache, far, tmp_path):
    image = publish_in(cache, content=os.urandom(2 << 20))
    (tmp_path / "small").mkdir()
    inner = f'mount -t tmpfs -o size=1m none {tmp_path}/small; sh -c "$SSH_ORIGINAL_COMMAND"; status=$?'
    over_there(far, f"exec unshare -Urm sh -c '{inner}; ls -A {tmp_path}/small >{tmp_path}/left; exit $status'")
    done = cmd("sh-stage", "-d", f"far:{tmp_path}/small", image)
    assert (done.returncode, done.stdout) == (75, "")
    assert "make room, and try again" in done.stderr.splitlines()[-1]
    assert (tmp_path / "left").read_text() == ""


@pytest.mark.parametrize("whom", ["sh-stage", "ssh"])
def test_a_connection_that_dies_leaves_nothing_half_made_over_there(cmd, cache, there, far, whom):
    image = publish_in(cache, content=os.urandom(24 << 20))
    start = time.monotonic()
    cmd.ok("sh-stage", "-d", f"far:{there}", image)
    whole_time = time.monotonic() - start
    rng = random.Random(2)
    for nth in range(8):
        where = there.with_name(str(nth))  # what a dead connection left running over there is slow to notice
        with cmd.start("sh-stage", "-d", f"far:{where}", image) as process:
            time.sleep(rng.uniform(0.2, 1) * whole_time)
            if whom == "sh-stage":
                process.kill()
            else:
                subprocess.run(["kill", "-9", *children(process.pid)], check=False, capture_output=True)
        until = time.monotonic() + 20
        while list(where.glob(".part-*")) and time.monotonic() < until:
            time.sleep(0.02)
        assert not list(where.glob(".part-*"))
        for half in where.glob("*.sqfs"):
            assert half.read_bytes() == image.read_bytes()
            assert half.with_suffix(".json").exists()
    cmd.ok("sh-stage", "-d", f"far:{where}", image)
    assert contents(where) == contents(cache)


def children(pid: int) -> list[str]:
    """Return the pids of a process's children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_what_dead_processes_left_over_there_is_swept(cmd, cache, there, far):
    node = os.uname().nodename
    with subprocess.Popen(["true"]) as process:
        process.wait()
    there.mkdir()
    old = time.time() - 4 * 86400
    for file in (f".part-{node}-{process.pid}-1", f".part-{node}-{os.getpid()}-1", ".part-x-1-1", ".part-y-1-1"):
        (there / file).touch()
    os.utime(there / ".part-y-1-1", (old, old))
    cmd.ok("sh-stage", "-d", f"far:{there}", publish_in(cache))
    assert {path.name for path in there.glob(".part-*")} == {f".part-{node}-{os.getpid()}-1", ".part-x-1-1"}


def test_the_script_for_the_other_host_is_plain_sh():
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck")
    words = ["shellcheck", "-s", "sh", "-e", "SC2154", "-"]  # the variables that it does not set stand before it
    done = subprocess.run(words, input=ssh._SCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
