"""Streams of bytes to read: what a program writes, and a stretch of a file."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

_NO_MEMORY = ("out of memory", "Cannot allocate memory")  # libsquashfs's and strerror(3)'s words for it
_TAIL = 4096  # bytes: what is kept of a limited program's stderr, the last of it


@dataclass(frozen=True)
class Limits:
    """What a program may take: memory in bytes of addresses, seconds of processor time."""

    memory: int
    seconds: int

    def bind(self, pid: int) -> None:
        """Bind a process of ours to them, and to what binds it already."""
        grace = 5  # at the hard limit of time it would be SIGKILL, which says nothing
        for kind, most in ((resource.RLIMIT_AS, self.memory), (resource.RLIMIT_CPU, self.seconds)):
            hard = resource.prlimit(pid, kind)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            more = limit + grace if hard == resource.RLIM_INFINITY else hard
            resource.prlimit(pid, kind, (limit, more))


class Piped(io.RawIOBase):
    """The stream of a running program. Reading its end raises Fail if it did not do well."""

    def __init__(
        self,
        command: Sequence[str],
        what: str,
        kept: Sequence[int] = (),
        done: Callable[[], object] = lambda: None,
        *,
        limits: Limits | None = None,
        package: str = "",
        absent: int = 0,
        told: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Start it. what: it could not read all of, for the error. kept: descriptors that it gets. done: for the end.

        limits: of a program that may be given anything to read, whose stderr then is nothing to show as it is; told
        gets the last line of it, if all went well. package: to install. absent: a status by which it says that there
        is nothing to read. Raises Fail if there is no such program.
        """
        self._what, self._name, self._done = what, command[0], done
        self._limits, self._told, self._tail = limits, told, b""
        self._absent, self._begun = absent, False
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if limits else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if limits else None,
                pass_fds=kept,
            )
        except OSError as error:
            done()
            todo = f"install {package or 'it'}"
            raise Fail(f"cannot read {what}", f"{command[0]}: {error.strerror}", todo) from error
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        if limits:
            limits.bind(self._process.pid)
            self._listener.start()

    def _listen(self, stderr: IO[bytes]) -> None:
        """Keep the end of what the program says."""
        while chunk := os.read(stderr.fileno(), _TAIL):
            self._tail = (self._tail + chunk)[-_TAIL:]
        stderr.close()

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # BufferedReader gives memoryviews
        """Read some more."""
        if self._process.stdout is None:
            return 0
        count = self._process.stdout.readinto(buffer)  # type: ignore[attr-defined] # typeshed: IO lacks readinto
        self._begun = self._begun or count > 0
        if not count:
            self._end()
        return int(count)

    def _end(self) -> None:
        """Look at how the program ended. Raises Fail."""
        status = self._process.wait()
        if self._limits:
            self._listener.join()
        lines = self._tail.decode(errors="backslashreplace").strip().splitlines()
        said = lines[-1].strip()[:300] if lines else ""
        if self._limits and status and any(words in said for words in _NO_MEMORY):
            why = f"{self._name} needs more than {self._limits.memory >> 20} MiB of memory for it"
            raise Fail(f"refused {self._what}", why)
        if self._limits and status == -signal.SIGXCPU:
            why = f"{self._name} took more than {self._limits.seconds} seconds of processor time for it"
            raise Fail(f"refused {self._what}", why)
        if status and (status != self._absent or self._begun):
            why = f"{self._name} ended with status {status}" + (f": {said}" if said else "")
            raise Fail(f"cannot read all of {self._what}", why)
        if said:
            self._told(said)

    def close(self) -> None:
        """End the program, wherever it is."""
        if not self.closed:
            self._process.kill()
            if self._process.stdout:
                self._process.stdout.close()
            self._process.wait()
            if self._limits:
                self._listener.join()
            self._done()
        super().close()


class Slice(io.RawIOBase):
    """A stretch of an open file, read without moving its offset, so that several may be read at once."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        """Take a file; start and size in bytes."""
        self._fd, self._at, self._end = fd, start, start + size

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # BufferedReader gives memoryviews
        """Read some more."""
        data = os.pread(self._fd, min(len(buffer), self._end - self._at), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
