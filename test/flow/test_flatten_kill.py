"""sh-flatten killed, terminated, out of space, bereft of its writer: nothing half made bears a real name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures import layers as odd
from fixtures.layers import file, layer, whiteout
from fixtures.writers import WRITERS, path_for, session

ROUNDS = {"tar2sqfs": 50, "mksquashfs -tar": 10, "mksquashfs": 15}


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    """Make a layout that takes some tenths of a second to flatten."""
    stack = []
    for number in range(2):
        small = [file(f"s{number}/{m}") for m in range(1500)]
        stack.append(layer(*(file(f"d{number}/f{m}", os.urandom(1 << 20)) for m in range(8)), *small))
    return odd.layout(tmp_path_factory.mktemp("image") / "layout", *stack, layer(whiteout("d0/f0")), name="app:1")


def check(store: Path) -> None:
    """See to it that whatever bears a real name is whole."""
    for path in store.rglob("*"):
        if path.suffix == ".sqfs" and ".part-" not in path.name and ".retired" not in path.parts:
            known = json.loads(path.resolve().with_suffix(".json").read_text())
            assert known["squashfs"] == {"sha256": odd.sha256(path), "size": path.stat().st_size}


def parts(store: Path) -> list[str]:
    """Return the temporary files in a store."""
    return [path.name for path in store.glob(".part-*")]


def closed(process: subprocess.Popen[bytes]) -> bytes:
    """Close the pipes of an ended process, and return what it said on stderr."""
    said = process.stderr.read()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    return said


def alone(pid: int, patience: float) -> bool:
    """Wait until no process of a session is left."""
    until = time.monotonic() + patience
    while session(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("writer", WRITERS)
def test_kill_9_at_any_moment_leaves_nothing_half_made_and_nothing_running(cmd, tmp_path, name, writer):
    env = cmd.env | {"PATH": path_for(writer, cmd, tmp_path)}
    store = Path(env["SHOEBOX_CACHE"]) / "images"
    began = time.monotonic()
    made = cmd.ok("sh-flatten", name, **env)
    lasts = time.monotonic() - began
    dice = random.Random(writer)
    for _ in range(ROUNDS[writer]):
        for path in store.glob("sha256-*"):
            path.unlink()
        process = cmd.start("sh-flatten", name, env=env, start_new_session=True)
        time.sleep(dice.uniform(0, 1.1 * lasts))
        process.kill()
        process.wait()
        assert alone(process.pid, 5), "a process stays"
        closed(process)
        for path in store.glob("sha256-*.sqfs"):
            check(store)
            assert path == Path(made)
    assert cmd.ok("sh-flatten", name, **env) == made
    check(store)
    assert parts(store) == []


def test_kill_9_with_a_file_as_output_leaves_what_the_next_run_sweeps(cmd, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    for wait in (0.1, 0.15, 0.2, 0.25):
        process = cmd.start("sh-flatten", "-o", out / "a.sqfs", name, start_new_session=True)
        time.sleep(wait)
        process.kill()
        process.wait()
        assert alone(process.pid, 5)
        closed(process)
    cmd.ok("sh-flatten", "-o", out / "a.sqfs", name)
    assert {path.name for path in out.iterdir()} == {"a.sqfs", "a.json"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_signal_that_asks_leaves_nothing_at_once(cmd, tmp_path, name, writer, signum):
    env = cmd.env | {"PATH": path_for(writer, cmd, tmp_path)}
    store = Path(env["SHOEBOX_CACHE"]) / "images"
    for _ in range(3):
        process = cmd.start("sh-flatten", name, env=env, start_new_session=True)
        until = time.monotonic() + 20
        while not parts(store) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.05)
        process.send_signal(signum)
        assert process.wait(20) == -signum
        assert alone(process.pid, 0.5)
        assert closed(process) == b""
        assert [path.name for path in store.iterdir()] == []


# No space


def within_tmpfs(cmd, size: str, where: Path, command: str, **env: str) -> tuple[int, list[str], list[str]]:
    """Run a shell command with a small tmpfs at where; return its status, what it said, and what lies there after."""
    where.mkdir()
    script = (
        f'mount -t tmpfs -o size={size} none "$1" && {{ {command}; status=$?; cd "$1"; find . -type f; exit $status; }}'
    )
    done = cmd("unshare", "-rm", "sh", "-c", script, "sh", where, **env)
    return done.returncode, done.stderr.splitlines(), done.stdout.splitlines()


def namespaces() -> bool:
    """Tell whether we may have user namespaces."""
    return subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not namespaces(), reason="no user namespaces here")
@pytest.mark.parametrize("size", ["1m", "8m", "10m"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_may_work_later_and_leaves_nothing(cmd, tmp_path, name, writer, size):
    path = path_for(writer, cmd, tmp_path)
    status, said, left = within_tmpfs(cmd, size, tmp_path / "small", f'sh-flatten -d "$1/store" {name}', PATH=path)
    assert status == 75, said
    ours = [line for line in said if line.startswith("sh-flatten: ")]
    assert len(ours) == 1
    assert "space" in ours[0]
    assert left == []


@pytest.mark.skipif(not namespaces(), reason="no user namespaces here")
def test_a_disk_too_small_for_a_piped_archive_may_work_later(cmd, tmp_path):
    plain = tmp_path / "root.tar"
    plain.write_bytes(layer(file("a", os.urandom(3 << 20))))
    command = f'cat {plain} | sh-flatten -d "$1/store" -'
    status, said, left = within_tmpfs(cmd, "1m", tmp_path / "small", command)
    assert (status, len(said), left) == (75, 1, []), said
    assert re.search(r"cannot write to '/.*/store': No space left on device: free some space", said[0])


# The writer


def test_a_writer_that_is_killed_is_told_in_one_line(cmd, tmp_path, name):
    store = Path(cmd.env["SHOEBOX_CACHE"]) / "images"
    process = cmd.start("sh-flatten", name, start_new_session=True)
    until = time.monotonic() + 20
    while not (found := writers(process.pid)) and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(found[0], signal.SIGKILL)
    assert process.wait(20) == 1
    assert closed(process) == b"sh-flatten: tar2sqfs failed: killed by signal 9: see what it says above\n"
    assert list(store.iterdir()) == []


def writers(leader: int) -> list[int]:
    """Return the running writers of a session."""
    found = []
    for pid in session(leader):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # not the one that is asked for its version
            if words[0].endswith(b"tar2sqfs") and b"-c" in words and Path(f"/proc/{pid}/fd/0").exists():
                found.append(pid)
    return found


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "exit status 3"),
        ("exit 0", "it stopped reading"),
        ("echo nonsense >&2; exit 1", "exit status 1"),
        ("head -c 100000 >/dev/null; exit 5", "exit status 5"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_a_writer_that_gives_up_is_told_in_one_line(cmd, tmp_path, name, script, told):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tar2sqfs").write_text(f"#!/bin/sh\ncase $1 in --version) echo tar2sqfs 1.2.0; exit;; esac\n{script}\n")
    (folder / "tar2sqfs").chmod(0o755)
    done = cmd("sh-flatten", name, PATH=f"{folder}:{cmd.env['PATH']}")
    assert (done.returncode, done.stdout) == (1, "")
    assert [line for line in done.stderr.splitlines() if line.startswith("sh-flatten: ")] == done.stderr.splitlines()[
        -1:
    ]
    assert f"tar2sqfs failed: {told}" in done.stderr
    assert list((Path(cmd.env["SHOEBOX_CACHE"]) / "images").iterdir()) == []


def test_a_machine_without_any_writer_is_told_what_to_install(cmd, tmp_path, name):
    farm = Path(path_for("mksquashfs", cmd, tmp_path).rpartition(":")[2])
    (farm / "mksquashfs").unlink()
    done = cmd("sh-flatten", name, PATH=f"{cmd.env['PATH'].partition(':')[0]}:{farm}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "install squashfs-tools-ng" in done.stderr
    (farm / "mksquashfs").write_text("#!/bin/sh\necho what\n")
    (farm / "mksquashfs").chmod(0o755)
    done = cmd("sh-flatten", name, PATH=f"{cmd.env['PATH'].partition(':')[0]}:{farm}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it tells no version" in done.stderr
