"""A process that starts others: near to nothing of its own in the times that it tells; and a site that has sh-mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import SH_RUN, Command
from fixtures.helper import USER
from fixtures.installed import TREE
from fixtures.rootfs import until

STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}  # by which ranks find each other
# Reads a verb, commands and an environment, a line each time; starts the commands, all at once; answers in a line.
SOURCE = """
import json, os, sys, time
null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
held = []
for line in sys.stdin:
    verb, commands, env = json.loads(line)
    begun = time.perf_counter()
    pids = [os.posix_spawn(words[0], words, env, file_actions=null) for words in commands]
    if verb == "hold":
        held += pids
        print(json.dumps(pids[0]), flush=True)
        continue
    if verb == "end":  # what was held last
        pids = [held.pop()]
        os.kill(pids[0], 9)
    ended = [os.wait4(pid, 0) for pid in pids]
    wall, used = time.perf_counter() - begun, sum(used.ru_utime + used.ru_stime for _, _, used in ended)
    print(json.dumps([max(status for _, status, _ in ended), wall, used]), flush=True)
"""
# crun does not know the layout of control groups that has both versions: show it version 2 alone.
WITH_CGROUPS = 'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'


@dataclass(frozen=True)
class Starter:
    """Starts commands in env, as whoever it is itself."""

    process: subprocess.Popen[str]
    env: dict[str, str]

    def _ask(self, verb: str, commands: Iterable[Command], **env: str) -> list[float] | int:
        said = [verb, [list(map(str, words)) for words in commands], {**self.env, **env}]
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def together(self, commands: Sequence[Command], **env: str) -> tuple[float, float]:
        """Run commands, all at once, to their end; return the seconds, and those of processor time, that they took."""
        status, wall, used = self._ask("run", commands, **env)
        assert status == 0, commands[0]
        return wall, used

    def start(self, *words: object) -> tuple[float, float]:
        """Run one command."""
        return self.together([list(map(str, words))])

    @contextmanager
    def holding(self, words: Command, **env: str) -> Iterator[int]:
        """Have a command that runs meanwhile; yield its pid."""
        pid = self._ask("hold", [words], **env)
        try:
            yield pid
        finally:
            self._ask("end", [])


@contextmanager
def starter(cwd: Path, env: dict[str, str], *, cgroups: bool = False, user: int | None = None) -> Iterator[Starter]:
    """Have such a process. cgroups: where it can be had, version 2 of them only; user: an id, as root."""
    python = SH_RUN.read_text().split()[0].removeprefix("#!")
    words = [python, "-IS", "-c", SOURCE]
    if cgroups and os.geteuid() == 0 and Path("/sys/fs/cgroup/unified").exists():
        words = ["unshare", "-m", "sh", "-c", WITH_CGROUPS, "-", *words]
    who = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, text=True, cwd=cwd, env=env, **who) as process:
        try:
            yield Starter(process, env)
        finally:
            process.stdin.close()


@contextmanager
def container(started: Starter, image: Path, ready: Path) -> Iterator[None]:
    """Have a container of the step's that ranks can join. ready: a file in it and outside, made and removed."""
    words = [SH_RUN, "--image", image, "sh", "-c", f"echo >{ready}; exec sleep 600"]
    with started.holding(words, **STEP):
        try:
            assert until(ready.exists, 60)
            yield
        finally:
            ready.unlink(missing_ok=True)


@dataclass(frozen=True)
class Site:
    """An ordinary user of a site that has sh-mount, and a copy of sh-run that knows it; image: in the site's store."""

    where: Path
    started: Starter

    @property
    def helper(self) -> Path:
        return self.where / "sh-mount"

    @property
    def sh_run(self) -> Path:
        return self.where / "bin/sh-run"

    @property
    def image(self) -> Path:
        return self.where / "store/image.sqfs"

    @property
    def empty(self) -> Path:
        """A directory of the user's to mount on."""
        return self.where / "mnt-of-ch-run"

    def start(self, *words: object) -> float:
        """Run a command to its end as the user; return the seconds of processor time that it took."""
        return self.started.start(*words)[1]


@contextmanager
def site(where: Path, image: Path) -> Iterator[Site]:
    """Install sh-mount, as root, in an empty directory."""
    helper = where / "sh-mount"
    words = ["make", "-s", "install-setuid", f"HELPER={helper}", f"SYSCONFDIR={where}"]
    subprocess.run(words, cwd=TREE, check=True, stderr=subprocess.DEVNULL)
    (where / "mount.conf").write_text(f"store {where}/store\nsetuid yes\n")
    (where / "store").mkdir()
    shutil.copy(image, where / "store/image.sqfs")
    shutil.copytree(TREE / "lib/shoebox", where / "lib/shoebox", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TREE / "bin", where / "bin")
    paths = where / "lib/shoebox/paths.py"
    paths.write_text(paths.read_text() + f'HELPER = "{helper}"\nSITE = "{where}"\n')
    python = SH_RUN.read_text().split()[0].removeprefix("#!")
    subprocess.run([python, "-m", "compileall", "-q", where / "lib"], check=True)
    subprocess.run(["chmod", "-R", "a+rX,go-w", where], check=True)
    for name in ("home", "mnt-of-ch-run"):
        (where / name).mkdir()
        os.chown(where / name, USER, USER)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(where / "home"), "USER": "somebody"}
    with starter(where / "home", env, user=USER) as started:
        yield Site(where, started)
