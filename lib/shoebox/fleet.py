"""Images to several stores at the same time: a process for each store, so that one that hangs holds up none.

Each goes through the list at its own pace, and takes its next image from a pipe.
"""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from . import fail, image, linux, platforms, store, superblock
from .fail import FAILED, LATER, Fail, say, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .image import Image
    from .systems import Place, System

    Copy = Callable[[Image, System, Place], str]

_PIPE = 1 << 20  # bytes of paths that a store may lag behind before the others wait
_PATIENCE = 3.0  # seconds for processes to end that were told to


def stage(words: Iterable[str], systems: list[System], admit: Callable[[Image], None], copy: Copy, named: bool) -> int:
    """Copy images to all stores of systems, and print the path of each there; return the worst status.

    admit: raises Fail for an image that may not go anywhere. copy: from an image to its path in a store; raises Fail.
    named: whether the user has named the systems, so that an image that one of them does not take is a failure.
    A store that fails for now gets nothing more by this command.
    """
    workers: list[_Worker] = []
    status = 0
    try:
        for system in systems:
            workers += [_Worker(system, place, copy, workers) for place in system.places]
        for word in words:
            try:
                status = worst(status, _offer(store.find(word, os.environ), workers, admit, named))
            except (Fail, OSError) as error:
                known = _known(error)
                say(str(known))
                status = worst(status, known.status)
        for worker in workers:
            worker.close()
        ends = [worker.wait() for worker in workers]
    finally:
        _stop(workers)
    if -signal.SIGPIPE in ends:  # whoever reads our stdout has gone
        raise BrokenPipeError
    return functools.reduce(worst, ends, status)


def _offer(path: str, workers: list[_Worker], admit: Callable[[Image], None], named: bool) -> int:
    """Give an image to those whose system takes it; return a status. Raises Fail, OSError."""
    with image.opened(path, quiet=True) as source:
        admit(source)
        made = b"" if store.sidecar_text(path) else source.sidecar
        wrong = {worker.system.name: _unfit(worker.system, source) for worker in workers}
    for why in filter(None, wrong.values()):
        say(f"{why}: it is not copied there")
    taking = [worker for worker in workers if not wrong[worker.system.name]]
    for worker in taking:
        worker.give(path, made)
    return FAILED if not taking or (named and any(wrong.values())) else 0


def _unfit(system: System, source: Image) -> str:
    """Tell why a system does not take an image, "" if it does; what nobody knows of an image is no reason."""
    known = source.known.platform
    what = f"the system {system.name!r} does not take {source.label!r}"
    if known and system.platform and not platforms.runs_on(platforms.parse_platform(known), system.platform):
        return f"{what}, which is for {known}, not for {system.platform}"
    head = os.pread(source.fd, superblock.HEAD, source.offset)
    compressor = superblock.check(head, source.size, source.path).compressor
    if system.compressor not in ("", compressor):
        return f"{what}, which is compressed with {compressor}, not with {system.compressor}"
    return ""


class _Worker:
    """A process that copies images to one store."""

    def __init__(self, system: System, place: Place, copy: Copy, others: list[_Worker]) -> None:
        """Start it. others: those that run already."""
        self.system, self.place, self._copy = system, place, copy
        read, self._pipe = os.pipe()
        with suppress(OSError):  # a small one does, for fewer images
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            self.close()
            for other in others:  # or theirs would never end
                other.close()
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(LATER)
            fail.main(lambda _argv: self._work(read))
        os.close(read)

    def give(self, path: str, made: bytes) -> None:
        """Let it copy an image, when it has done those before. made: a sidecar for one that has none."""
        try:
            rest = memoryview(os.fsencode(path) + b"\0" + made + b"\0")
            while rest:
                rest = rest[os.write(self._pipe, rest) :]
        except BrokenPipeError:  # it has been killed: its status tells
            return

    def close(self) -> None:
        """Tell it that there is no more."""
        os.close(self._pipe)
        self._pipe = -1

    def wait(self) -> int:
        """Wait for its end, and return the status of that: -SIGPIPE, or a usual one."""
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code < 0 and code != -signal.SIGPIPE:
            say(f"{self.system.name}: killed by signal {-code} while it copied to {str(self.place)!r}: try again")
            return LATER
        return code

    def stop(self, signum: int) -> None:
        """Send it a signal, if it is still there."""
        if self._pipe >= 0:
            self.close()
        if self._pid:
            os.kill(self._pid, signum)

    def bury(self, until: float) -> None:
        """Give it time to end, until the monotonic clock says this."""
        while self._pid and time.monotonic() < until:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                self._pid = 0
            else:
                time.sleep(0.01)

    def _work(self, fd: int) -> int:
        """Be the process: copy what comes, and return the worst status."""
        os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)  # the names that come there are not for us
        status = missed = 0
        down = False
        for path, made in _images(fd):
            if down:
                missed += 1
                continue
            try:
                with image.opened(path, quiet=True, made=made) as source:
                    there = self._copy(source, self.system, self.place)
            except (Fail, OSError) as error:
                known = _known(error)
                down = known.status == LATER
                say(f"{self.system.name}: {known}")
                status = worst(status, known.status)
            else:
                sys.stdout.buffer.write(os.fsencode(there) + b"\n")
                sys.stdout.buffer.flush()
        if missed:
            say(
                f"{self.system.name}: {missed} more were not tried at {str(self.place)!r}: the same command brings them"
            )
        return status


def _images(fd: int) -> Iterator[tuple[str, bytes]]:
    """Yield what was given: a path, and a sidecar or b"", each with a NUL behind it."""
    with open(fd, "rb", buffering=0) as pipe:
        rest = b""
        while data := pipe.read(1 << 16):
            *whole, rest = (rest + data).split(b"\0")
            if len(whole) % 2:
                rest = whole.pop() + b"\0" + rest
            yield from zip(map(os.fsdecode, whole[::2]), whole[1::2])


def _stop(workers: list[_Worker]) -> None:
    """End those that are still there: what one does when its host hangs may not end by itself."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            worker.stop(signum)
        until = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.bury(until)


def _known(error: Fail | OSError) -> Fail:
    return error if isinstance(error, Fail) else fail.told(error)
