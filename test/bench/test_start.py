"""Starts beside ch-run's and Python's own: alone, as a rank that joins, many at once; a storm of imports."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.measure import SH_RUN, STARTS, Room, Row, pss
from bench.starter import Site
from fixtures.rootfs import until, words_of

Beside = Callable[..., None]
Record = Callable[[Row], None]

RANKS, IMPORTERS = 64, 16
STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
IMPORTS = {False: "numpy, scipy.linalg, pandas", True: "asyncio, decimal, email.message, http.client, xml.dom.minidom"}
HOLD = "print(flush=True); import sys; sys.stdin.read()"
SERVERS = {b"sh-run": b"squashfuse", b"ch-run": b"ch-run"}  # who serves images to whom


@pytest.fixture
def ch_run(room: Room) -> list[str]:
    """Return the words that begin a command of ch-run's."""
    (room.path / "mnt").mkdir(exist_ok=True)
    return [shutil.which("ch-run") or pytest.fail("ch-run is not installed"), f"--mount={room.path}/mnt"]


@pytest.fixture(autouse=True)
def at_home(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where a user does."""
    monkeypatch.chdir(room.path / "home")


def together(room: Room, count: int, words: list[object], **env: str) -> None:
    """Start a command so many times at once, and wait for all of them; each must do well."""
    environ = {**room.env, **env}
    pids = [os.posix_spawn(words[0], words, environ) for _ in range(count)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


@contextmanager
def container(room: Room, image: Path) -> Iterator[None]:
    """Have a container of the step's that ranks can join."""
    ready = room.path / "home/ready"
    words = [SH_RUN, "--image", image, "sh", "-c", f"echo >{ready}; exec sleep 600"]
    first = os.posix_spawn(SH_RUN, words, {**room.env, **STEP})
    try:
        assert until(ready.exists)
        yield
    finally:
        os.kill(first, 9)
        os.waitpid(first, 0)
        ready.unlink(missing_ok=True)


def test_a_rank_that_joins_beside_python_alone(beside: Beside, room: Room, image: Path) -> None:
    python = SH_RUN.read_text().split()[0].removeprefix("#!")
    joiner = Room(room.path, {**room.env, **STEP})
    with container(room, image):
        beside(
            "sh-run IMG.sqfs true, joining : python3 -I -S -c pass",
            1.6,
            lambda _: joiner.start(SH_RUN, "--image", image, "true"),
            lambda _: room.start(python, "-I", "-S", "-c", "pass"),
            STARTS,
            room.pause,
        )


def test_many_ranks_at_once_beside_ch_run(beside: Beside, room: Room, image: Path, ch_run: list[str]) -> None:
    beside(
        f"{RANKS} ranks of sh-run IMG.sqfs true : {RANKS} of ch-run",
        0.5,
        lambda _: together(room, RANKS, [SH_RUN, "--image", image, "true"], **STEP),
        lambda _: together(room, RANKS, [*ch_run, image, "--", "true"]),
        6,
        room.pause,
    )


def test_a_storm_of_imports_beside_ch_run(
    beside: Beside, record: Record, room: Room, image: Path, ch_run: list[str], pytestconfig: pytest.Config
) -> None:
    code = f"import {IMPORTS[pytestconfig.getoption('--short')]}"
    ours, theirs = [SH_RUN, "--image", image], [*ch_run, image, "--"]
    name = f"{IMPORTERS} ranks of sh-run, {code[7:]}, cold"

    def cold() -> Path:
        """Drop the image from the page cache; each mount of it has a cache of its own, and begins with none."""
        room.pause()
        with image.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return room.path

    def run(words: list[object]) -> Callable[[Path], None]:
        return lambda _: together(room, IMPORTERS, [*words, "/usr/bin/python3", "-c", code], **STEP)

    beside(f"{name} : ch-run", 0.8, run(ours), run(theirs), 4, cold)
    memory = [serving(room, [*words, "/usr/bin/python3", "-c", f"{code}; {HOLD}"], cold) for words in (ours, theirs)]
    share = memory[0] / memory[1]
    record(Row("memory of what serves the image to them : ch-run", 1 / 8, "x", share, share, share))


def serving(room: Room, words: list[object], cold: Callable[[], object]) -> int:
    """Return the bytes of memory that all FUSE servers have together while ranks hold what they have imported."""
    cold()
    name = SERVERS[Path(words[0]).name.encode()]
    before = set(words_of())
    here, there = os.pipe()
    said, say = os.pipe()
    os.set_inheritable(here, True)
    actions = [(os.POSIX_SPAWN_DUP2, here, 0), (os.POSIX_SPAWN_CLOSE, there), (os.POSIX_SPAWN_DUP2, say, 1)]
    pids = [os.posix_spawn(words[0], words, {**room.env, **STEP}, file_actions=actions) for _ in range(IMPORTERS)]
    os.close(say)
    os.close(here)
    got = b""
    while got.count(b"\n") < IMPORTERS:
        more = os.read(said, 4096)
        assert more, "a rank has ended"
        got += more
    found = [pid for pid, argv in words_of().items() if pid not in before and name in os.path.basename(argv[0])]
    total = sum(map(pss, found))
    assert total, f"nothing called {name.decode()} serves"
    os.close(there)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * IMPORTERS
    os.close(said)
    time.sleep(0.1)
    return total


def test_run_by_the_kernel_beside_ch_run(beside: Beside, room: Room, site: Site) -> None:
    ch_run = shutil.which("ch-run") or pytest.fail("ch-run is not installed")
    other = [ch_run, f"--mount={site.empty}"]
    beside(
        "sh-run --mount=kernel IMG.sqfs true : ch-run",
        0.8,
        lambda _: site.start(site.sh_run, "--mount=kernel", site.image, "true"),
        lambda _: site.start(*other, site.image, "--", "true"),
        STARTS,
        room.pause,
    )


def test_sh_mount_takes_little_time(record: Record, site: Site) -> None:
    used = sorted(site.start(site.helper, "kernel", site.image) * 1e3 for _ in range(STARTS))
    record(Row("sh-mount, processor time", 3, "ms", used[len(used) // 2], used[0], used[-1]))
