"""What writes many small things, in containers and outside: the same programs, which tell how long they took."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.starter import Site
from bench.storms import PYTHON, interpreter
from fixtures.helper import USER
from fixtures.rootfs import make_tree, until

BLOCK = 512  # bytes
NONE = "none"  # what is asked for a container without a cache
BUSYBOX, FIO = "/bin/busybox", "/usr/bin/fio"
# Arguments: a directory, what to do, numbers. Says a list of seconds.
PROGRAM = """
import os, sys, time
where, what, *numbers = sys.argv[1:]
numbers = [int(n) for n in numbers]
clock = time.perf_counter

def dd(writers, count, fsync):
    words = ["busybox", "dd", "if=/dev/zero", "bs=512", f"count={count}"] + ["conv=fsync"] * fsync
    null = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    begun = clock()
    pids = [os.posix_spawn(BUSYBOX, [*words, f"of={where}/dd{n}"], {}, file_actions=null) for n in range(writers)]
    found = []
    for _ in pids:
        assert os.wait()[1] == 0, "dd failed"
        found.append(clock() - begun)
    for n in range(writers):
        os.unlink(f"{where}/dd{n}")
    return found

def files(count):
    content, times = b"x" * 1000, [clock()]
    names = [f"{where}/d{n % 100}/f{n}" for n in range(count)]
    for n in range(100):
        os.mkdir(f"{where}/d{n}")
    for name in names:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, content)
        os.close(fd)
    times.append(clock())
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        assert len(os.read(fd, 4096)) == 1000
        os.close(fd)
    times.append(clock())
    for name in names:
        os.unlink(name)
    for n in range(100):
        os.rmdir(f"{where}/d{n}")
    times.append(clock())
    return [after - before for before, after in zip(times, times[1:])]

def ready():
    return [time.clock_gettime(time.CLOCK_MONOTONIC)]

print({"dd": dd, "files": files, "ready": ready}[what](*numbers))
""".replace("BUSYBOX", repr(BUSYBOX))


def image_tree(where: Path) -> Path:
    """Make a root file system with busybox, Python and fio."""
    tree = make_tree(where)
    interpreter(tree)
    libraries = re.findall(r"(/\S+\.so\S*)", subprocess.check_output(["ldd", FIO], text=True))
    for path in (FIO, *libraries):
        target = tree / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return tree


@dataclass(frozen=True)
class Place:
    """Where a user writes: a directory outside, or a node cache. asked: what --node-cache says, "" outside."""

    site: Site
    path: str
    asked: str = ""

    def words(self, *program: str) -> list[str]:
        """Return the words of a program that works here."""
        if not self.asked:
            return [*program]
        cache = [] if self.asked == NONE else ["--node-cache", f"{self.path}:{self.asked}"]
        return [str(self.site.sh_run), *cache, str(self.site.image), *program]

    def begin(self, *program: str, step: int = 0) -> subprocess.Popen[str]:
        """Start a program as the user."""
        env = self.site.started.env | {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": str(step)}
        who = {"user": USER, "group": USER, "extra_groups": [], "cwd": self.site.where / "home"}
        return subprocess.Popen(self.words(*program), env=env, stdout=subprocess.PIPE, text=True, **who)

    def say(self, *program: str) -> str:
        """Run a program as the user; return what it prints, when the cache and what was written has gone."""
        with self.begin(*program) as process:
            said, _ = process.communicate()
        assert process.returncode == 0, program[-4:]
        self.settle()
        return said

    def settle(self) -> None:
        """Wait until no cache of ours is left, and all disks rest."""
        assert until(lambda: not caches() and not daemons(), 120)
        os.sync()

    def run(self, what: str, *numbers: int) -> list[float]:
        """Run a part of PROGRAM; return the seconds."""
        found = json.loads(self.say(PYTHON, "-IS", "-c", PROGRAM, self.path, what, *map(str, numbers)))
        return [float(seconds) for seconds in found]

    def rate(self, writers: int, bytes_: int, *, fsync: bool = False) -> float:
        """Return the MB/s of each of some writers, in the mean."""
        found = self.run("dd", writers, bytes_ // BLOCK, int(fsync))
        return sum(bytes_ / seconds for seconds in found) / len(found) / 1e6

    def fio(self, *options: str) -> float:
        """Return the MB/s of a fio."""
        return told(self.say(*fio(self.path, *options)))

    def set_up(self) -> tuple[float, float]:
        """Return the seconds until a program runs here, and from then until it has ended and the cache is gone."""
        begun = time.clock_gettime(time.CLOCK_MONOTONIC)
        with self.begin(PYTHON, "-IS", "-c", PROGRAM, self.path, "ready") as process:
            said, _ = process.communicate()
        assert process.returncode == 0
        assert until(lambda: not caches() and not daemons(), 60)
        (there,) = json.loads(said)
        return there - begun, time.clock_gettime(time.CLOCK_MONOTONIC) - there


def caches() -> list[str]:
    """Return the loop devices of node caches, whose files have no names any more."""
    return [name for name in (path.name for path in Path("/sys/block").glob("loop*")) if _cache(name)]


def daemons() -> list[str]:
    """Return the processes of the user that serve node caches."""
    return [process.name for process in Path("/proc").glob("[0-9]*") if _serves(process)]


def _serves(process: Path) -> bool:
    try:
        said = (process / "status").read_text()
    except OSError:  # it has ended
        return False
    # What is only not waited for yet (Z) has nothing open any more.
    return said.startswith("Name:\tsh-node-cache\n") and f"\nUid:\t{USER}\t" in said and "\nState:\tZ" not in said


def rotated(places: Iterable[str], number: int) -> list[str]:
    """Return places in another order for each round, so that none always follows the same one."""
    names = list(places)
    at = number % len(names)
    return names[at:] + names[:at]


def _cache(loop: str) -> bool:
    try:
        return "/.cache-" in Path(f"/sys/block/{loop}/loop/backing_file").read_text()
    except OSError:  # none, or detached meanwhile
        return False


def fio(path: str, *options: str, name: str = "w") -> list[str]:
    """Return the words of a fio whose writers have a file each."""
    usual = (f"--name={name}", "--ioengine=psync", "--fallocate=none", "--output-format=json", "--group_reporting")
    return [FIO, f"--directory={path}", *usual, *options]


def told(said: str) -> float:
    """Return the MB/s that a fio has told."""
    return json.loads(said[said.index("{") :])["jobs"][0]["write"]["bw_bytes"] / 1e6


def together(places: Sequence[Place], *options: str) -> float:
    """Run a fio in each of some places at once, as on so many nodes; return the MB/s of all."""
    begin = ((place, step, fio(place.path, *options, name=f"node{step}")) for step, place in enumerate(places))
    running = [place.begin(*words, step=step) for place, step, words in begin]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    places[0].settle()
    return sum(map(told, said))
