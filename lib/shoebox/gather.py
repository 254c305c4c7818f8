"""Small writes to the backing file, gathered in memory. Effects; Python 3.9.

Small files get places one after another, and a distributed file system takes nearly as long for 4 KiB as for 1 MiB. So
what is written next to what came before waits for more, until it is 1 MiB, or something else is written, or wanted.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

from . import fuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .inodes import Inode

    Lost = Callable[[OSError, set[Inode], int, int], None]

SMALL = 1 << 16  # bytes; larger writes go straight to the file


class Gathered:
    """What waits: bytes that belong at one place of the file."""

    __slots__ = ("_at", "_buffer", "_fd", "_length", "_lock", "_lost", "_whose")

    def __init__(self, fd: int, lost: Lost) -> None:
        """Begin with nothing. lost: called with what could not be written: why, whose it was, and where, at and size.

        It may raise OSError, for whoever found out.
        """
        self._fd = fd
        self._lost = lost
        self._whose: set[Inode] = set()
        self._buffer = memoryview(bytearray(fuse.LARGEST))
        self._at = self._length = 0
        self._lock = allocate_lock()

    def add(self, inode: Inode, vector: Sequence[memoryview], at: int, *, may_wait: bool) -> bool:
        """Take a small write of a file's; return False if it would have to wait, and may not. Raises OSError."""
        if not self._lock.acquire(may_wait):
            return False
        try:
            end = at + sum(map(len, vector))
            if self._length and not (self._at <= at <= self._at + self._length and end <= self._at + len(self._buffer)):
                if not may_wait:
                    return False
                self._flush()
            if not self._length:
                self._at = at
            self._whose.add(inode)
            at -= self._at
            for part in vector:
                self._buffer[at : at + len(part)] = part
                at += len(part)
            self._length = max(self._length, at)
        finally:
            self._lock.release()
        return True

    def settle(self, at: int, size: int) -> None:
        """Have nothing waiting that belongs to a range of the file. Raises OSError."""
        with self._lock:
            if at < self._at + self._length and self._at < at + size:
                self._flush()

    def flush(self) -> None:
        """Have nothing waiting. Raises OSError."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._length:
            length, self._length = self._length, 0
            whose, self._whose = self._whose, set()
            try:
                write(self._fd, [self._buffer[:length]], self._at)
            except OSError as error:
                self._lost(error, whose, self._at, length)


def write(fd: int, vector: Sequence[memoryview], at: int) -> None:
    """Write all of it at a place of a file. Raises OSError."""
    left = sum(map(len, vector))
    while True:
        done = os.pwritev(fd, vector, at)
        left -= done
        if not left:
            return
        vector, at = [memoryview(b"".join(vector))[done:]], at + done
