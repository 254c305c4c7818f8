"""Runs programs, ours and others', and measures them: time side by side, memory of a family, bytes written."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Literal

from fixtures.installed import TREE
from pytest_benchmark.fixture import BenchmarkFixture

Command = Sequence[str | Path]
Work = Callable[[Path], object]

SH_RUN = TREE / "bin" / "sh-run"
STARTS = 60  # rounds of what takes milliseconds
TICK = 0.01  # seconds between two looks at the memory
_WRITES = "write,writev,pwrite64,pwritev,pwritev2,sendfile,splice,copy_file_range"
_WROTE = re.compile(r"(\w+)\((.*)\) += (\d+)$")
_TO_SECOND = ("splice", "copy_file_range")  # the calls whose target is the second descriptor
_NO_FILE = ("/dev/null", "/dev/tty", "/proc/", "/memfd:")


def remove(tree: Path) -> None:
    """Remove a tree, whatever the modes in it."""
    if tree.exists():
        subprocess.run(["chmod", "-R", "u+rwX", tree], check=True)
        subprocess.run(["rm", "-rf", tree], check=True)


@dataclass(frozen=True)
class Row:
    """One line of the table. value, low, high: in unit, which is x where it is one way divided by the other.

    target: the most that value should be, or the least (sense "≥"), or None where it is only told. ours, theirs: the
    seconds of each round, in their order. gate: it is counted exactly, and the bench fails where the target is not met.
    """

    work: str
    target: float | None
    unit: str
    value: float
    low: float
    high: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    sense: Literal["≤", "≥"] = "≤"
    gate: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met, None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.sense == "≤" else self.value >= self.target


@dataclass(frozen=True)
class Table:
    """Plain figures, all in one unit: a line for each name, a column for each word; None where there is none."""

    title: str
    unit: str
    columns: tuple[str, ...]
    lines: dict[str, list[float | None]]


Record = Callable[[Row], None]


@dataclass(frozen=True)
class Room:
    """A directory of our own, and the environment that programs get in it."""

    path: Path
    env: dict[str, str]

    def fresh(self) -> Path:
        """Return an empty directory; what was in the last one goes, and nothing is left for the disk to write."""
        place = self.path / "fresh"
        if place.exists():
            remove(place)
            os.sync()
        place.mkdir()
        return place

    def pause(self) -> Path:
        """Wait until the server of a container that has ended must have ended too, for programs that leave no files."""
        time.sleep(0.03)
        return self.path

    def run(self, *commands: Command, stdin: Path | None = None, stdout: Path | None = None, **env: str) -> str:
        """Run commands as a pipeline, to their end; each must do well. Return what the last one prints."""
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
            last = stack.enter_context(stdout.open("wb")) if stdout else subprocess.PIPE
            running: list[subprocess.Popen[bytes]] = []
            for command in commands:
                out = last if command is commands[-1] else subprocess.PIPE
                process = subprocess.Popen(command, stdin=source, stdout=out, env={**self.env, **env}, cwd=self.path)
                stack.enter_context(process)
                stack.callback(process.kill)  # does nothing to one that has ended
                running.append(process)
                source = process.stdout
            for process in running[:-1]:
                process.stdout.close()
            said = (running[-1].communicate()[0] or b"").decode().strip()
            for process in running:
                assert process.wait() == 0, f"{process.args} ended with {process.returncode}"
        return said

    def start(self, *command: str | Path) -> None:
        """Run one short command in the shortest way there is: subprocess would add half a millisecond to it."""
        status = os.waitpid(os.posix_spawn(command[0], command, self.env), 0)[1]
        assert status == 0, f"{command} ended with {os.waitstatus_to_exitcode(status)}"


def side_by_side(
    benchmark: BenchmarkFixture, ours: Work, theirs: Work, place: Callable[[], Path], rounds: int
) -> tuple[list[float], list[float]]:
    """Run theirs, ours, theirs, ours …, each in a place of its own; return the seconds that each took, ours first.

    pytest-benchmark times ours; theirs is what it calls to set up a round. Of many rounds the first does not count.
    """
    seconds: list[float] = []

    def set_up() -> tuple[tuple[Path], dict[str, object]]:
        where = place()
        start = time.perf_counter()
        theirs(where)
        seconds.append(time.perf_counter() - start)
        return (place(),), {}

    warm = 0 if rounds < 5 else 1
    benchmark.pedantic(ours, setup=set_up, rounds=rounds, warmup_rounds=warm)
    return list(benchmark.stats.stats.data), seconds[warm:]


def ratio(work: str, target: float | None, ours: list[float], theirs: list[float]) -> Row:
    """Return the ratio of the medians, ours to theirs, and the smallest and largest of the rounds' ratios."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(work, target, "x", median(ours) / median(theirs), min(each), max(each), ours, theirs)


def gain(work: str, target: float | None, ours: list[float], theirs: list[float]) -> Row:
    """Return how many times faster ours is: as ratio(), theirs to ours, and the target is the least."""
    return replace(ratio(work, target, theirs, ours), ours=ours, theirs=theirs, sense="≥")


def peak(command: Command, room: Room) -> int:
    """Return the most bytes of memory that a command and all its descendants have at once: PSS, proc(5)."""
    with subprocess.Popen(command, env=room.env, cwd=room.path, stdout=subprocess.DEVNULL) as process:
        most = 0
        while process.poll() is None:
            most = max(most, sum(map(pss, _family(process.pid))))
            time.sleep(TICK)
    assert process.returncode == 0
    return most


def _family(pid: int) -> list[int]:
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            found += [one for child in path.read_text().split() for one in _family(int(child))]
    return found


def pss(pid: int) -> int:
    """Return the bytes of memory of a process, its share of what it shares: PSS, proc(5); 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0


def written(command: Command, room: Room) -> dict[str, int]:
    """Return how many bytes a command and all its descendants write to each file, under the name it had then."""
    traces = room.fresh()
    options = ["-ff", "--seccomp-bpf", "-qq", "-y", "-s", "0", "-e", f"trace={_WRITES}", "-e", "signal=none"]
    room.run(["strace", *options, "-o", traces / "trace", *command])
    total: dict[str, int] = {}
    for line in (line for trace in traces.iterdir() for line in trace.read_text(errors="replace").splitlines()):
        if found := _WROTE.match(line):
            call, arguments, count = found.groups()
            path = re.findall(r"(?<!\w)\d+<([^>]*)>", arguments)[1 if call in _TO_SECOND else 0]
            if path.startswith("/") and not path.startswith(_NO_FILE):
                total[path] = total.get(path, 0) + int(count)
    return total
