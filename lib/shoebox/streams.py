"""Streams of bytes to read: what a program writes, and a stretch of a file."""

from __future__ import annotations

import io
import os
import subprocess
from typing import TYPE_CHECKING

from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Piped(io.RawIOBase):
    """The stream of a running program. Reading its end raises Fail if it did not do well."""

    def __init__(
        self, command: Sequence[str], what: str, kept: Sequence[int] = (), done: Callable[[], object] = lambda: None
    ) -> None:
        """Start it. what: it could not read all of, for the error. kept: descriptors that it gets. done: for the end.

        Raises Fail if there is no such program.
        """
        self._what, self._name, self._done = what, command[0], done
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=kept)
        except OSError as error:
            done()
            raise Fail(f"cannot read {what}", f"{command[0]}: {error.strerror}", "install it") from error

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # BufferedReader gives memoryviews
        """Read some more."""
        if self._process.stdout is None:
            return 0
        count = self._process.stdout.readinto(buffer)  # type: ignore[attr-defined] # typeshed: IO lacks readinto
        if not count and self._process.wait():
            raise Fail(f"cannot read all of {self._what}", f"{self._name} ended with status {self._process.returncode}")
        return int(count)

    def close(self) -> None:
        """End the program, wherever it is."""
        if not self.closed:
            self._process.kill()
            if self._process.stdout:
                self._process.stdout.close()
            self._process.wait()
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
