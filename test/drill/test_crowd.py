"""Many pulls at once by several users, and their processes killed at random."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures import drills
from fixtures.front import Fault, misbehaving
from fixtures.images import push
from fixtures.installed import Shell
from fixtures.registry import Place
from fixtures.writers import session

PIPELINE = 'sh-pull "$1" 2>>"$2" | sh-flatten 2>>"$2" | sh-stage -d "$3" 2>>"$2"'
SIZE = 250_000
GROUP = 61000
PATIENCE = 240.0  # seconds for all to end


@dataclass(frozen=True)
class Crowd:
    """Users with their caches, and the store that they share. shared: they share a cache, too."""

    cmd: Shell
    users: list[int]
    top: Path
    shared: bool

    @property
    def store(self) -> Path:
        return self.top / "store"

    def cache(self, uid: int) -> Path:
        return self.top / ("cache" if self.shared else f"cache-{uid}")

    @property
    def caches(self) -> list[Path]:
        return sorted({self.cache(uid) for uid in self.users})

    def start(self, uid: int, ref: str) -> subprocess.Popen[str]:
        """Start to pull, flatten and stage an image, as a user, in a session of its own."""
        said = self.top / f"said-{uid}" / f"{time.monotonic_ns()}"
        who = {"user": uid, "group": GROUP, "extra_groups": []} if os.getuid() == 0 else {}
        return subprocess.Popen(
            ["sh", "-c", PIPELINE, "sh", ref, said, self.store],
            env=self.cmd.env | {"SHOEBOX_CACHE": str(self.cache(uid)), "HOME": str(self.top / f"said-{uid}")},
            cwd=self.top,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            umask=0o002,
            start_new_session=True,
            **who,
        )

    def said(self) -> list[str]:
        """Return all lines that commands have said, and forget them."""
        lines: list[str] = []
        for path in sorted(self.top.glob("said-*/*")):
            lines += path.read_text().splitlines()
            path.unlink()
        return lines


@pytest.fixture
def crowd(cmd: Shell, tmp_path: Path) -> Iterator[Callable[..., Crowd]]:
    """Return what makes a crowd: for root, of four users with a group; else of ourselves."""
    made: list[Path] = []

    def make(shared: bool) -> Crowd:
        top = Path("/tmp" if os.getuid() == 0 else tmp_path) / f"shoebox-crowd-{os.getpid()}-{len(made)}"
        users = [GROUP + n for n in range(1, 5)] if os.getuid() == 0 else [os.getuid()]
        found = Crowd(cmd, users, top, shared)
        top.mkdir(mode=0o755)
        made.append(top)
        for path in [found.store, *(found.caches if shared else [])]:
            path.mkdir()
            if os.getuid() == 0:
                os.chown(path, 0, GROUP)
            path.chmod(0o2775)
        for uid in users:
            for path in [top / f"said-{uid}", *([] if shared else [found.cache(uid)])]:
                path.mkdir(mode=0o755)
                if os.getuid() == 0:
                    os.chown(path, uid, GROUP)
        return found

    yield make
    for path in made:
        shutil.rmtree(path)


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for pipelines to end; return status and stdout of each."""
    until = time.monotonic() + PATIENCE
    return [(one.wait(), out) for one in processes for out, _ in [one.communicate(timeout=until - time.monotonic())]]


def check_store(crowd: Crowd, refs: list[str], family: int = 0) -> None:
    """Check that the store has these images under their names, all that is in them, and nothing else."""
    names = [path for path in crowd.store.rglob("*") if path.is_symlink()]
    assert len(names) == len(refs), names
    for number, _ in enumerate(refs):
        [found] = [path for path in names if path.parts[-2:] == (f"image{number}", "1.sqfs")]
        drills.check_image(found.resolve(), number, SIZE, family=family)
    assert len(list(crowd.store.glob("sha256-*"))) == 2 * len(refs)


@pytest.mark.root
@pytest.mark.parametrize("shared", [False, True], ids=["a cache each", "one cache"])
def test_many_pulls_at_once_by_four_users(
    crowd: Callable[..., Crowd], registry: Place, tmp_path: Path, drill: drills.Drill, shared: bool
) -> None:
    people = crowd(shared)
    count, pulls = drill.length(4, 12), drill.length(12, 40)
    made = [drills.build(number, SIZE) for number in range(count)]
    dice = drill.dice
    for turn in range(drill.length(1, 5)):
        if turn:
            people = crowd(shared)
        with (
            misbehaving(registry.url, lambda asked: Fault(pace=0.01 if asked.blob else 0)) as front,
            drills.watching(tmp_path / "stop", *people.caches, people.store) as seen,
        ):
            front.on_ask = rest = drills.Rest(people.cache, front)
            refs = [f"{front.host}/image{number}:1" for number in range(count)]
            for number, one in enumerate(made):
                push(registry.url, f"image{number}", "1", one)
            jobs = [(people.users[n % 4], refs[n % count]) for n in range(pulls)]
            jobs += [(dice.choice(people.users), dice.choice(refs)) for _ in range(pulls - len(jobs))]
            dice.shuffle(jobs)
            done = ended([people.start(uid, ref) for uid, ref in jobs])
            assert people.said() == []
            assert [status for status, _ in done] == [0] * len(jobs)
            assert all(Path(out.strip()).parent == people.store for _, out in done)
            ended([people.start(uid, ref) for uid, ref in {uid: (uid, ref) for uid, ref in jobs}.values()])
        check_store(people, refs)
        if shared:
            drills.has_blobs(people.cache(0), *made)
        assert rest.again == []
        assert front.twice(among_all=shared) == 0
        assert seen[0].temporary == []
        drill.figures.rounds += len(jobs)
        drill.figures.count(front, among_all=shared)
        drill.figures.saw(seen[0])


def victims(processes: list[subprocess.Popen[str]]) -> list[int]:
    """Return all processes of these pipelines."""
    return [pid for one in processes for pid in session(one.pid)]


def harmless(line: str) -> bool:
    """Tell whether a line is what a command says when the one before it, or its writer, was killed."""
    return "nothing came in on stdin" in line or "killed by signal 9" in line


def of_writer(line: str) -> bool:
    """Tell whether a line is what a writer says when the command that fed it was killed."""
    return ".part-" in line or line.endswith(": unexpected end-of-file")


@pytest.mark.parametrize(
    "shared", [False, pytest.param(True, marks=pytest.mark.root)], ids=["a cache each", "one cache"]
)
def test_kill_9_of_anything_at_any_time(
    crowd: Callable[..., Crowd], registry: Place, tmp_path: Path, drill: drills.Drill, shared: bool
) -> None:
    dice = drill.dice
    for family in range(drill.length(1, 30)):
        people = crowd(shared)
        numbers = range(4)
        made = [drills.build(number, SIZE, family=family) for number in numbers]
        for number, one in enumerate(made):
            push(registry.url, f"family{family}/image{number}", "1", one)
        with (
            misbehaving(registry.url, lambda asked: Fault(pace=0.01 if asked.blob else 0)) as front,
            drills.watching(tmp_path / "stop", *people.caches, people.store) as seen,
        ):
            front.on_ask = rest = drills.Rest(people.cache, front)
            refs = [f"{front.host}/family{family}/image{number}:1" for number in numbers]
            kill_for(drill.length(3, 5), people, refs, dice, drill.figures)
            said = people.said()
            assert [line for line in said if not line.startswith(drills.COMMANDS) and not of_writer(line)] == []
            assert [line for line in said if line.startswith(drills.COMMANDS) and not harmless(line)] == []
            done = ended([people.start(uid, ref) for uid in people.users for ref in refs])
            assert (people.said(), [status for status, _ in done]) == ([], [0] * len(done))
            ended([people.start(uid, refs[0]) for uid in people.users])
        check_store(people, refs, family)
        for uid in people.users:
            drills.has_blobs(people.cache(uid), *made)
        assert rest.again == []
        assert seen[0].temporary == []
        drill.figures.count(front, among_all=shared)
        drill.figures.saw(seen[0])


def kill_for(seconds: float, people: Crowd, refs: list[str], dice: random.Random, figures: drills.Figures) -> None:
    """Keep four pipelines running and kill one process after the other, of whichever command."""
    over = time.monotonic() + seconds
    running: list[subprocess.Popen[str]] = []
    while time.monotonic() < over:
        while len(running) < 4:
            running.append(people.start(dice.choice(people.users), dice.choice(refs)))
        time.sleep(dice.uniform(0, 0.3))
        found = victims(running)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
                figures.kills += 1
        for one in [one for one in running if one.poll() is not None and not session(one.pid)]:
            running.remove(one)
            one.communicate()
            figures.rounds += 1
            figures.failures += one.returncode != 0
    figures.rounds += len(running)
    ended(running)
    until = time.monotonic() + PATIENCE
    while victims(running) and time.monotonic() < until:
        time.sleep(0.02)
