"""sh-stage: images enter a store whole, by digest, with their names, here and on another host."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
import signal
import stat
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import pytest
from fixtures.stores import DEBIAN, MANIFEST, OTHER, contents, lfs, publish_in, squashfs, whole

USERNS = subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def cache(cmd):
    """Return the user's own store."""
    return Path(cmd.env["SHOEBOX_CACHE"]) / "images"


@pytest.fixture
def there(tmp_path):
    """Return a store to be, at a path that a shell had better not look into."""
    return tmp_path / "a 'store' of $HOME \"and\" `more`; *"


# Into a directory


def test_an_image_is_staged_by_digest_with_its_sidecar_and_its_name(cmd, cache, there):
    image = publish_in(cache)
    assert cmd.ok("sh-stage", "-d", there, image) == str(there / f"sha256-{MANIFEST}.sqfs")
    assert contents(there) == contents(cache)
    assert whole(there) == [f"{DEBIAN}/12.sqfs"]


@pytest.mark.parametrize("name", ["debian:12", "docker://debian:12", f"sha256:{MANIFEST[:12]}", f"sha256:{MANIFEST}"])
def test_what_sh_run_takes_sh_stage_takes(cmd, cache, there, name):
    publish_in(cache)
    assert cmd.ok("sh-stage", "-d", there, name) == str(there / f"sha256-{MANIFEST}.sqfs")
    assert whole(there) == [f"{DEBIAN}/12.sqfs"]


def test_names_come_from_stdin_and_a_wrong_one_does_not_stop_the_rest(cmd, cache, there):
    first = publish_in(cache)
    second = publish_in(cache, ["quay.io/a/b/1"], b"b", OTHER)
    done = cmd("sh-stage", "-d", there, stdin=f"{first}\nabsent:1\n{second}\n")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [str(there / first.name), str(there / second.name)]
    assert done.stderr.count("\n") == 1
    assert "sh-pull absent:1 | sh-flatten | sh-stage" in done.stderr
    assert whole(there) == [f"{DEBIAN}/12.sqfs", "quay.io/a/b/1.sqfs"]


def test_nothing_to_stage_is_wrong_usage(cmd):
    assert cmd("sh-stage").returncode == 2


def test_the_first_other_writable_store_of_the_path_is_the_default(cmd, cache, tmp_path):
    image = publish_in(cache)
    (tmp_path / "file").touch()
    path = f"{cache}:{tmp_path}/file:{tmp_path}/group:{tmp_path}/site"
    assert cmd.ok("sh-stage", image, SHOEBOX_PATH=path) == f"{tmp_path}/group/{image.name}"
    assert not (tmp_path / "site").exists()


def test_without_another_store_the_path_comes_back_unchanged(cmd, cache):
    image = publish_in(cache)
    assert cmd.ok("sh-stage", image) == str(image)
    assert cmd.ok("sh-stage", "debian:12") == str(image)
    assert cmd.ok("sh-stage", f"images/{image.name}", cwd=cache.parent) == f"images/{image.name}"
    done = cmd("sh-stage", "absent.sqfs")
    assert (done.returncode, done.stdout) == (1, "")


def test_the_same_content_is_not_copied_again_and_lost_names_are_mended(cmd, cache, there, tmp_path):
    image = publish_in(cache)
    staged = Path(cmd.ok("sh-stage", "-d", there, image))
    inode = staged.stat().st_ino
    (there / DEBIAN / "12.sqfs").unlink()
    path = f"{lfs(tmp_path, '')}:{cmd.env['PATH']}"
    assert cmd.ok("sh-stage", "-d", there, image, PATH=path) == str(staged)
    assert not (tmp_path / "lfs.log").exists()  # no file was begun
    assert staged.stat().st_ino == inode
    assert contents(there) == contents(cache)


def test_an_image_that_is_in_the_store_stays_there(cmd, cache):
    image = publish_in(cache)
    before = contents(cache)
    assert cmd.ok("sh-stage", "-d", cache, image) == str(image)
    assert contents(cache) == before


def test_a_tag_that_moved_moves_in_the_store_and_a_running_job_keeps_its_image(cmd, cache, there):
    old = Path(cmd.ok("sh-stage", "-d", there, publish_in(cache)))
    content = old.read_bytes()
    new = Path(cmd.ok("sh-stage", "-d", there, publish_in(cache, content=b"new", manifest=OTHER)))
    assert old != new
    assert old.read_bytes() == content
    assert (there / DEBIAN / "12.sqfs").resolve() == new


def test_staging_the_old_image_of_a_tag_does_not_move_it_back(cmd, cache, there):
    old = publish_in(cache)
    new = publish_in(cache, content=b"new", manifest=OTHER)
    cmd.ok("sh-stage", "-d", there, new, old)
    assert (there / DEBIAN / "12.sqfs").resolve().name == new.name


def test_all_names_of_an_image_go_with_it(cmd, cache, there):
    image = publish_in(cache, [f"{DEBIAN}/12", f"{DEBIAN}/bookworm", "quay.io/a/1"])
    cmd.ok("sh-stage", "-d", there, image)
    assert whole(there) == [f"{DEBIAN}/12.sqfs", f"{DEBIAN}/bookworm.sqfs", "quay.io/a/1.sqfs"]


def test_a_mailed_pair_brings_its_name_from_the_sidecar(cmd, cache, there, tmp_path):
    image = publish_in(cache)
    shutil.copy(image, tmp_path / "app.sqfs")
    shutil.copy(image.with_suffix(".json"), tmp_path / "app.json")
    assert cmd.ok("sh-stage", "-d", there, tmp_path / "app.sqfs") == str(there / image.name)
    assert contents(there) == contents(cache)


@pytest.mark.parametrize("tool", ["mksquashfs", "tar2sqfs"])
def test_a_squashfs_without_a_sidecar_gets_one_and_its_own_digest(cmd, there, tmp_path, tool):
    image = squashfs(tmp_path / "app.sqfs", tool=tool)
    (tmp_path / "app.json").write_text('{"name": "somebody else\'s"}')
    digits = sha256(image.read_bytes()).hexdigest()
    staged = Path(cmd.ok("sh-stage", "-d", there, image))
    assert staged == there / f"sha256-{digits}.sqfs"
    assert staged.read_bytes() == image.read_bytes()
    known = json.loads(staged.with_suffix(".json").read_text())
    assert (known["manifest"], known["reference"], known["config"]) == (None, None, None)
    assert known["squashfs"] == {"sha256": digits, "size": image.stat().st_size}
    assert whole(there) == []


def test_of_a_sif_file_the_squashfs_is_staged(cmd, there, tmp_path):
    data = squashfs(tmp_path / "app.sqfs").read_bytes()
    table = bytearray(585)
    for offset, size, value in [
        (0, 4, 0x4004),
        (4, 1, 1),
        (17, 8, 32768),
        (25, 8, len(data)),
        (201, 4, 1),
        (205, 4, 2),
    ]:
        table[offset : offset + size] = value.to_bytes(size, "little")
    header = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + b"01\0" + b"02\0" + bytes(32)
    header += (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + (4096).to_bytes(8, "little") + bytes(24)
    sif = header.ljust(4096, b"\0") + bytes(table)
    (tmp_path / "app.sif").write_bytes(sif.ljust(32768, b"\0") + data + b"signature")
    staged = Path(cmd.ok("sh-stage", "-d", there, tmp_path / "app.sif"))
    assert staged.read_bytes() == data


def test_several_at_once_into_one_store_all_succeed(cmd, cache, there):
    shared = publish_in(cache, content=os.urandom(8 << 20))
    images = [publish_in(cache, [f"{DEBIAN}/{n}"], str(n).encode(), f"{n:064x}") for n in range(2)]
    running = [cmd.start("sh-stage", "-d", there, image, shared) for image in images * 2]
    for process, image in zip(running, images * 2):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert out.decode().splitlines() == [str(there / image.name), str(there / shared.name)]
    assert contents(there) == contents(cache)


# What is wrong


@pytest.mark.evil(60)
def test_a_damaged_image_is_noticed_while_it_is_copied(cmd, cache, there):
    image = publish_in(cache)
    with image.open("r+b") as file:
        file.seek(200)
        file.write(b"bad")
    done = cmd("sh-stage", "-d", there, image)
    assert (done.returncode, done.stdout) == (1, "")
    assert "its sidecar says" in done.stderr
    assert contents(there) == {}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\x7fELF" + bytes(5000)), "it is not a squashfs but an ELF program"),
        (lambda path: os.truncate(path, 200), "it is cut off"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "it is a directory: make an image of it with sh-flatten"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is not a file"),
        (lambda path: path.with_suffix(".json").write_text('{"schema":1'), "it is not JSON"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "its sidecar says"),
    ],
)
@pytest.mark.evil(60)
def test_what_is_no_image_is_told_in_one_line_and_leaves_nothing(cmd, cache, there, damage, told):
    image = publish_in(cache)
    damage(image)
    done = cmd("sh-stage", "-d", there, image)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert told in done.stderr
    assert contents(there) == {}


@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "999"],
        ["--mode", "0"],
        ["--mode", "rw"],
        ["--mode", "4755"],
        ["--mode", "200"],
        ["--group", "no such"],
        ["-d", ""],
        ["-d", ":/x"],
        ["-d", "far:"],
        ["-d", "-oProxyCommand=x:/y"],
        ["--no"],
    ],
)
def test_wrong_words_are_wrong_usage(cmd, cache, words):
    done = cmd("sh-stage", *words, publish_in(cache))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_store_that_cannot_be_made_is_told_in_one_line(cmd, cache, tmp_path):
    (tmp_path / "file").touch()
    done = cmd("sh-stage", "-d", tmp_path / "file" / "x", publish_in(cache))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"cannot use the store '{tmp_path}/file/x'" in done.stderr


def in_a_small_store(cmd, there: Path, *words) -> subprocess.CompletedProcess[str]:
    """Run a command that finds a disk of 1 MiB at the store, then print how many files it left."""
    there.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$0" && cd / && "$@"; status=$?; ls -A "$0" | wc -l; exit $status'
    return cmd("unshare", "-Urm", "sh", "-c", script, there, *words)


@pytest.mark.skipif(not USERNS, reason="no user namespaces: no small disk without root")
def test_a_full_disk_is_one_line_and_may_work_later_and_nothing_stays(cmd, cache, there):
    image = publish_in(cache, content=os.urandom(2 << 20))
    done = in_a_small_store(cmd, there, "sh-stage", "-d", there, image)
    assert (done.returncode, done.stdout.strip(), done.stderr.count("\n")) == (75, "0", 1)
    assert "No space left on device" in done.stderr


# Modes, groups, stripes


def test_mode_and_group_are_given_to_all_that_is_made(cmd, cache, there):
    gid = os.getgid()
    image = publish_in(cache)
    staged = Path(cmd.ok("sh-stage", "-d", there, "--mode", "640", "--group", str(gid), image))
    for path, mode in [(staged, 0o640), (staged.with_suffix(".json"), 0o640), (there, 0o750), (there / DEBIAN, 0o750)]:
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (mode, gid)


@pytest.mark.parametrize(
    ("script", "logged", "said"),
    [
        ('case $1 in setstripe) : >"$4";; esac', 2, ""),
        ('case $1 in setstripe) : >"$4"; exit 1;; esac', 2, "cannot stripe"),
        ("case $1 in setstripe) exit 1;; esac", 2, "cannot stripe"),
        ("exit 1", 1, ""),
    ],
    ids=["Lustre", "refused after the file was made", "refused", "not Lustre"],
)
def test_on_lustre_the_temporary_file_is_striped(cmd, cache, tmp_path, script, logged, said):
    path = lfs(tmp_path, script)
    done = cmd("sh-stage", "-d", tmp_path / "s", PATH=f"{path}:{cmd.env['PATH']}", stdin=f"{publish_in(cache)}\n")
    assert done.returncode == 0
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)
    log = (tmp_path / "lfs.log").read_text().splitlines()
    assert log[0] == f"getstripe -d {tmp_path}/s"
    assert len(log) == logged
    if logged == 2:
        assert log[1].startswith(f"setstripe -c 1 {tmp_path}/s/.part-")
    assert whole(tmp_path / "s") == [f"{DEBIAN}/12.sqfs"]


# Signals


def test_killed_at_any_moment_nothing_half_made_bears_a_name(cmd, cache, there):
    image = publish_in(cache, content=os.urandom(24 << 20))

    def seconds():
        shutil.rmtree(there, ignore_errors=True)
        start = time.monotonic()
        cmd.ok("sh-stage", "-d", there, image)
        return time.monotonic() - start

    whole_time = min(seconds() for _ in range(3))  # one may take unusually long
    rng = random.Random(1)
    killed = 0
    for _ in range(50):
        shutil.rmtree(there, ignore_errors=True)
        with cmd.start("sh-stage", "-d", there, image) as process:
            time.sleep(rng.uniform(0.1, 1) * whole_time)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        for half in there.glob("*.sqfs"):
            assert half.read_bytes() == image.read_bytes()
            assert half.with_suffix(".json").read_bytes() == image.with_suffix(".json").read_bytes()
        assert all(name.exists() for name in there.rglob("12.sqfs"))
    assert killed > 10
    cmd.ok("sh-stage", "-d", there, image)
    assert contents(there) == contents(cache)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ended_by_a_signal_it_leaves_nothing(cmd, cache, there, tmp_path, signum):
    image = publish_in(cache)
    names = tmp_path / "names"
    os.mkfifo(names)
    slow = lfs(tmp_path, f'case $1 in setstripe) : >"$4"; echo >{names}; sleep 1;; esac')
    env = cmd.env | {"PATH": f"{slow}:{cmd.env['PATH']}"}
    with cmd.start("sh-stage", "-d", there, image, env=env) as process:
        names.read_text()  # now its temporary file is there
        assert contents(there)
        process.send_signal(signum)
        assert process.wait(20) == -signum
    assert contents(there) == {}


# Progress


def test_progress_is_shown_on_a_terminal_only_and_not_when_quiet(cmd, cache, tmp_path):
    image = publish_in(cache, content=os.urandom(1 << 20))
    shown = []
    for number, quiet in enumerate([[], ["-q"]]):
        main, side = pty.openpty()
        words = ["sh-stage", *quiet, "-d", tmp_path / str(number), image]
        with cmd.start(*words, stderr=side, env=cmd.env | {"TERM": "xterm"}) as process:
            os.close(side)
            seen = b""
            while True:
                try:
                    seen += os.read(main, 65536)
                except OSError:  # EIO: nobody has the other side any more
                    break
        os.close(main)
        assert process.returncode == 0
        shown.append(seen)
    assert b"docker.io/library/debian:12" in shown[0]
    assert shown[1] == b""
    assert cmd("sh-stage", "-d", tmp_path / "2", image).stderr == ""
