"""Images on the nodes of a Slurm job: sbcast copies them, and a task on each node checks and keeps the copy (keep.py).

The tasks are a step of the job's own, begun here and left to it: they end with the job, and their copies with them.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from . import keep, linux, near
from .fail import LATER, USAGE, Fail, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .image import Image

_LIB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TASK = f"import sys; sys.path.insert(0, {_LIB!r}); from shoebox import keep; sys.exit(keep.run())"
# Of Slurm's variables: the others would be options of our srun, which is not the job's own.
_PASSED = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
_OTHERS = ("SLURM", "SRUN_", "SBATCH_", "SALLOC_", "PMI", "OMPI_")
_STEPS = 0xFFFFFFF0  # a number from here on is the batch script's, or that of a shell of salloc's


_PATIENCE = 5  # seconds in which tasks end by themselves


@dataclass(frozen=True)
class Part:
    """A job, or a component of a heterogeneous one: srun's option for it, sbcast's name, and how many nodes it has."""

    option: str
    job: str
    nodes: int


def parts(env: Mapping[str, str]) -> list[Part]:
    """Return what the job that we are in consists of. Raises Fail if we are in none."""
    step = env.get("SLURM_STEP_ID", "")
    if not env.get("SLURM_JOB_ID"):
        todo = "use it in a job script, or in the shell that salloc gives"
        raise Fail("--nodes is for jobs of Slurm, and SLURM_JOB_ID is not set", todo=todo, status=USAGE)
    if step.isdigit() and int(step) < _STEPS:
        why = "a step cannot leave copies behind for others"
        raise Fail("cannot use --nodes in a job step", why, "call sh-stage without srun", USAGE)
    size = env.get("SLURM_HET_SIZE", "")
    option = f"--jobid={env['SLURM_JOB_ID']}"
    if not size.isdigit():
        return [Part(option, env["SLURM_JOB_ID"], int(env.get("SLURM_JOB_NUM_NODES", "1")))]
    return [
        Part(
            f"{option} --het-group={at}", f"{env['SLURM_JOB_ID']}+{at}", int(env[f"SLURM_JOB_NUM_NODES_HET_GROUP_{at}"])
        )
        for at in range(int(size))
    ]


def stage(source: Image, directory: str, env: Mapping[str, str]) -> None:
    """Copy an image to all nodes of the job, and have it kept there until the job ends. directory: "" for RAM.

    Raises Fail, naming a node, if any node cannot have it; then none has.
    """
    begun = []
    try:
        for part in parts(env):
            begun.append(_Step(part, source, env))
            begun[-1].begin(directory)
        missing = [step for step in begun if step.ask("", "ready", "have") != {"have"}]
        for step in missing:
            step.copy()
        for step in missing:
            step.ask("check", "good")
        for step in missing:
            if "unseen" in step.ask("keep", "kept", "unseen"):
                say(f"warning: not every node sees {source.path!r} as it is here: sh-run will not use its copy there")
        for step in missing:
            step.stays = True
    finally:
        for step in begun:
            step.end()


class _Step:
    """A step of keep.py's tasks, one on each node of a part."""

    def __init__(self, part: Part, source: Image, env: Mapping[str, str]) -> None:
        self.part = part
        self.source = source
        self.stays = False
        self.link = ""
        self.env = {name: value for name, value in env.items() if name in _PASSED or not name.startswith(_OTHERS)}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe: srun outlives us
        count = part.nodes
        options = f"-Q {part.option} -N{count} -n{count} --ntasks-per-node=1 -c1 --overlap --mem=0 --gres=none -D / -K0"
        others = "-W0 --mpi=none --cpu-bind=none --input=all --output=all --error=all --job-name=sh-stage"
        words = ["srun", *options.split(), *others.split(), sys.executable, "-IS", "-c", _TASK]
        pipe = subprocess.PIPE
        try:
            # In a session of its own: what the user types is not for it.
            self.srun = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=self.errors, env=self.env, bufsize=0, start_new_session=True
            )
        except OSError as error:
            raise Fail("cannot start srun", error, "is Slurm installed here?") from error

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self.srun.stdin is None or self.srun.stdout is None:
            raise AssertionError("both are pipes")
        return self.srun.stdin, self.srun.stdout

    def begin(self, directory: str) -> None:
        """Send the request."""
        source, about = self.source, os.fstat(self.source.fd)
        _, path, size, mtime = near.words("", source.path, about)
        given = {"directory": directory, "token": secrets.token_hex(8), "path": path, "size": size, "mtime": mtime}
        given |= {"sha256": source.known.sha256, "offset": str(source.offset), "length": str(source.size)}
        self._send(keep.request(given, source.sidecar))

    def ask(self, line: str, *good: str) -> set[str]:
        """Send a line, if there is one, and return the words that the nodes answer, all of them good. Raises Fail."""
        if line:
            self._send(line.encode() + b"\n")
        found: set[str] = set()
        failed: list[Fail] = []
        for _ in range(self.part.nodes):
            answer = self._answer()
            node, _, rest = answer.decode(errors="replace").rstrip("\n").partition(" ")
            word, _, text = rest.partition(" ")
            if not answer.endswith(b"\n"):
                raise failed[0] if failed else self._lost()
            if word not in good:
                failed.append(Fail(f"cannot stage {self.source.path!r} on node {node}", text or rest, status=LATER))
            elif text and text != (self.link or text):
                failed.append(Fail(f"node {node} has another place for files than others", text, self.link))
            found.add(word)
            self.link = self.link or text
        if failed:
            raise failed[0]
        return found

    def _answer(self) -> bytes:
        """Return the next line of a task, b"" if there will be none. Raises Fail if a task was killed."""
        while not select.select([self.pipes[1]], [], [], 1)[0]:
            if (said := self._said()) and ": task " in said:
                raise self._failed(said)
        return self.pipes[1].readline()

    def copy(self) -> None:
        """Have Slurm copy the image to where the tasks take it in. Raises Fail."""
        words = ["sbcast", "-f", f"--jobid={self.part.job}", self.source.path, self.link]
        try:
            done = subprocess.run(
                words,
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                preexec_fn=_with_us,  # there are no threads here
            )
        except OSError as error:
            raise Fail("cannot start sbcast", error) from error
        if done.returncode:
            why = _error(done.stderr) or f"sbcast ended with status {done.returncode}"
            todo = "see that it is up and has room, and try again"
            raise Fail(f"cannot copy {self.source.path!r} to the nodes", why, todo, LATER)

    def end(self) -> None:
        """Leave the step to the job, or end it."""
        for pipe in self.pipes:
            pipe.close()
        self.errors.close()
        if self.stays:
            return
        try:
            self.srun.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.srun.terminate()
            self.srun.wait()

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.pipes[0].fileno(), rest) :]
        except BrokenPipeError:
            raise self._lost() from None

    def _lost(self) -> Fail:
        """Return why srun ended."""
        self.srun.wait()
        return self._failed(self._said() or f"srun ended with status {self.srun.returncode}")

    def _failed(self, why: str) -> Fail:
        return Fail(f"cannot stage {self.source.path!r} on the nodes of job {self.part.job}", why, status=LATER)

    def _said(self) -> str:
        return _error(os.pread(self.errors.fileno(), 1 << 16, 0))


def _with_us() -> None:
    """End when sh-stage is killed: else Slurm would make a file of what no task takes in any more."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _error(said: bytes) -> str:
    """Return the error in what a program of Slurm's said, with the node's name if one has it; else its first line."""
    text = said.decode(errors="replace").strip()
    found = re.search(r"error: [A-Z_]+\((\S+)\): (.*)", text)
    if found:
        return f"node {found[1]}: {found[2]}"
    return text.partition("\n")[0].rpartition("error: ")[2]
