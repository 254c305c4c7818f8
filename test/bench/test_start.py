"""Starts beside ch-run's and Python's own: alone, as a rank that joins, many at once; a storm of imports."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import peers
from bench.measure import SH_RUN, STARTS, Record, Room, Row, pss
from bench.starter import STEP, Site, Starter, container
from fixtures.rootfs import words_of

Beside = Callable[..., None]

RANKS, IMPORTERS = 64, 16
IMPORTS = {False: "numpy, scipy.linalg, pandas", True: "asyncio, decimal, email.message, http.client, xml.dom.minidom"}
HOLD = "print(flush=True); import sys; sys.stdin.read()"
SERVERS = {b"sh-run": b"squashfuse", b"ch-run": b"ch-run"}  # who serves images to whom


@pytest.fixture
def ch_run(room: Room) -> list[str]:
    """Return the words that begin a command of ch-run's."""
    return peers.ch_run(room)


@pytest.fixture(autouse=True)
def at_home(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where a user does."""
    monkeypatch.chdir(room.path / "home")


def test_a_rank_that_joins_beside_python_alone(beside: Beside, room: Room, image: Path, started: Starter) -> None:
    python = SH_RUN.read_text().split()[0].removeprefix("#!")
    joiner = Room(room.path, {**room.env, **STEP})
    with container(started, image, room.path / "home/ready"):
        beside(
            "sh-run IMG.sqfs true, joining : python3 -I -S -c pass",
            1.6,
            lambda _: joiner.start(SH_RUN, "--image", image, "true"),
            lambda _: room.start(python, "-I", "-S", "-c", "pass"),
            STARTS,
            room.pause,
        )


def test_many_ranks_at_once_beside_ch_run(
    beside: Beside, room: Room, image: Path, started: Starter, ch_run: list[str]
) -> None:
    beside(
        f"{RANKS} ranks of sh-run IMG.sqfs true : {RANKS} of ch-run",
        0.5,
        lambda _: started.together([[SH_RUN, "--image", image, "true"]] * RANKS, **STEP),
        lambda _: started.together([[*ch_run, image, "--", "true"]] * RANKS),
        6,
        room.pause,
    )


def test_a_storm_of_imports_beside_ch_run(
    beside: Beside, record: Record, room: Room, image: Path, started: Starter, ch_run: list[str], *, short: bool
) -> None:
    code = f"import {IMPORTS[short]}"
    ours, theirs = [SH_RUN, "--image", image], [*ch_run, image, "--"]
    name = f"{IMPORTERS} ranks of sh-run, {code[7:]}, cold"

    def cold() -> Path:
        """Drop the image from the page cache; each mount of it has a cache of its own, and begins with none."""
        room.pause()
        with image.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return room.path

    def run(words: list[str | Path]) -> Callable[[Path], object]:
        return lambda _: started.together([[*words, "/usr/bin/python3", "-c", code]] * IMPORTERS, **STEP)

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
    other = [*peers.ch_run(room)[:1], f"--mount={site.empty}"]
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
