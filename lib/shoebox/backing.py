"""The bytes of all files of a node cache, in one backing file. Effects; Python 3.9.

Every block that a file has is written whole: what a program did not write is zeros, behind the end of the file too. So
nothing that another file left there is ever read. The lock is for whoever changes inodes or free space; no read or
write waits with it held: a slow file system stops nobody who wants a name. A block that a read or a write may still
be using goes to nobody else (Inode.busy).
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock

from . import extents, fuse
from .extents import BLOCK, HOLE, LOST, RESERVED, WRITTEN
from .gather import SMALL, Gathered, write
from .inodes import refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .extents import Part, Run
    from .inodes import Inode

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Backing:
    """A backing file, open, who has which part of it, and whether what was written to it can be relied on."""

    __slots__ = ("_fd", "_gathered", "_late", "_losses", "broken", "lock", "space", "total")

    def __init__(self, fd: int, size: int) -> None:
        """Begin with an empty one. size: bytes."""
        self._fd = fd
        self._gathered = Gathered(fd, self._lose_late)
        self._late: dict[Inode, int] = {}  # files that lost what programs believe written, and the errno
        self._losses = 0  # of that kind, so far
        self.total = size // BLOCK
        self.space = extents.Space(self.total)
        self.lock = allocate_lock()
        self.broken = False

    def read(self, inode: Inode, offset: int, into: memoryview) -> int:
        """Read; return how many bytes, fewer at the end of the file. Raises OSError, too, where something was lost."""
        with self.lock:
            self._whole()
            size = min(len(into), inode.size - offset)
            if size <= 0:
                return 0
            first = offset // BLOCK
            found = list(extents.pieces(inode.parts or [], first, -(-(offset + size) // BLOCK) - first))
            if any(state == LOST for *_, state in found):
                refuse(errno.EIO)
            inode.busy += 1
            losses = self._losses
        try:
            for start, count, place, state in found:
                left, right = max(start * BLOCK, offset), min((start + count) * BLOCK, offset + size)
                part = into[left - offset : right - offset]
                if state == WRITTEN:
                    self._read(part, place * BLOCK + left - start * BLOCK)
                else:
                    part[:] = bytes(right - left)
        finally:
            self._done(inode)
        # What was lost meanwhile may be ours, read where it never came.
        return size if losses == self._losses else self.read(inode, offset, into)

    def write(
        self,
        inode: Inode,
        offset: int,
        data: memoryview,
        *,
        cached: bool,
        before_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Write. Raises OSError.

        cached: the program believes it written already; if it cannot be, it is lost. before_waiting: called before it
        may have to wait for the backing file, if it does.
        """
        first, end = offset // BLOCK, offset + len(data)
        count = -(-end // BLOCK) - first
        with self.lock:
            try:
                runs, fresh = self._room(inode, offset, end)
            except OSError:
                if cached:
                    self._lose(inode, first, count)
                    inode.size = max(inode.size, end)
                raise
            inode.size = max(inode.size, end)
            inode.busy += 1
        try:
            jobs = extents.jobs(runs, fresh, offset, data)
            small = len(data) <= SMALL
            if not (small and len(jobs) == 1 and self._gathered.add(inode, *jobs[0], may_wait=False)):
                before_waiting()
                for vector, at in jobs:
                    self._write(inode, vector, at, small=small)
        except OSError as error:
            with self.lock:
                self._lose(inode, first, count)
            self._doubt(error)
            raise
        else:
            if any(fresh) or len(runs) > 1:
                with self.lock:
                    extents.fill(inode.parts or [], first, runs)
        finally:
            self._done(inode)

    def truncate(self, inode: Inode, size: int) -> None:
        """Cut a file, or have it end with a hole. Raises OSError."""
        edge = self._edge(inode, size, -(-size // BLOCK) * BLOCK) if size < inode.size else []
        self._erase(inode, edge)
        with self.lock:
            self._whole()
            if not size:
                self._late.pop(inode, None)
            if size <= inode.size and inode.parts:
                last = -(-size // BLOCK)
                self._give(inode, extents.cut(inode.parts, last, max(extents.end(inode.parts) - last, 0)))
            inode.size = size

    def allocate(self, inode: Inode, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does, in its modes 0, PUNCH_HOLE and ZERO_RANGE. Raises OSError."""
        end = offset + length
        first, last = -(-offset // BLOCK), end // BLOCK
        if mode & (fuse.PUNCH_HOLE | fuse.ZERO_RANGE):
            edges = self._edge(inode, offset, min(first * BLOCK, end))
            if last >= first:
                edges += self._edge(inode, last * BLOCK, end)
            self._erase(inode, edges)
        with self.lock:
            self._whole()
            if inode.parts is None:
                inode.parts = []
            if mode & (fuse.PUNCH_HOLE | fuse.ZERO_RANGE):
                self._give(inode, extents.cut(inode.parts, first, max(last - first, 0)))
            if mode & fuse.PUNCH_HOLE:
                return
            self._reserve(inode, inode.parts, offset // BLOCK, -(-end // BLOCK))
            if not mode & fuse.KEEP_SIZE:
                inode.size = max(inode.size, end)

    def clear(self, inode: Inode) -> None:
        """Take back what a file has that is gone. The lock is the caller's."""
        self._late.pop(inode, None)
        if inode.parts:
            self._give(inode, extents.cut(inode.parts, 0, extents.end(inode.parts)))

    def sync(self, inode: Inode) -> None:
        """Have everything on disk, as fsync(2) of a file. Raises OSError, too, if that file has lost something.

        If it is fsync(2) below that fails, anything may be lost, and all goes wrong.
        """
        self._whole()
        self._gathered.flush()
        with self.lock:
            self._whole()
            if inode in self._late:
                refuse(self._late[inode])
        if not self._is_synced():
            self.broken = True
            refuse(errno.EIO)

    def _whole(self) -> None:
        if self.broken:
            refuse(errno.EIO)

    def _room(self, inode: Inode, offset: int, end: int) -> tuple[list[Run], tuple[bool, bool]]:
        """Return where a range is to be written, and whether its first and its last block were holes."""
        self._whole()
        if inode.parts is None:
            inode.parts = []
        first = offset // BLOCK
        found = list(extents.pieces(inode.parts, first, -(-end // BLOCK) - first))
        head, tail = found[0][3], found[-1][3]
        if (head == LOST and offset % BLOCK) or (tail == LOST and end % BLOCK and end < inode.size):
            refuse(errno.EIO)
        if head == tail == WRITTEN and len(found) == 1:
            return [(found[0][2], found[0][1])], (False, False)
        if sum(count for _, count, _, state in found if state in (HOLE, LOST)) > self.space.free:
            refuse(errno.ENOSPC)
        runs: list[Run] = []
        for start, count, place, state in found:
            goal = sum(runs[-1]) if runs else extents.goal(inode.parts, start)
            got = [(place, count)] if place >= 0 else self._take(inode, count, goal)
            if state != WRITTEN:
                extents.cut(inode.parts, start, count)
                for where, length in got:
                    extents.put(inode.parts, start, length, where, RESERVED)  # zeros, until it is written
                    start += length  # noqa: PLW2901
            runs += got
        return runs, (head != WRITTEN, tail != WRITTEN)

    def _reserve(self, inode: Inode, parts: list[Part], first: int, last: int) -> None:
        """Give a file places for its holes in a range of blocks, or none if there are not enough."""
        found = list(extents.pieces(parts, first, last - first))
        if any(state == LOST for *_, state in found):
            refuse(errno.EIO)
        holes = [(start, count) for start, count, _, state in found if state == HOLE]
        if sum(count for _, count in holes) > self.space.free:
            refuse(errno.ENOSPC)
        for start, count in holes:
            for place, length in self._take(inode, count, extents.goal(parts, start)):
                extents.put(parts, start, length, place, RESERVED)
                start += length  # noqa: PLW2901

    def _take(self, inode: Inode, count: int, goal: int) -> list[Run]:
        inode.blocks += count
        return self.space.take(count, goal)

    def _give(self, inode: Inode, runs: list[Run]) -> None:
        """Take runs from a file, when nobody reads or writes them any more."""
        inode.blocks -= sum(count for _, count in runs)
        if inode.busy:
            inode.freed = (inode.freed or []) + runs
            return
        for place, count in runs:
            self.space.give(place, count)

    def _done(self, inode: Inode) -> None:
        with self.lock:
            inode.busy -= 1
            if not inode.busy and inode.freed:
                for place, count in inode.freed:
                    self.space.give(place, count)
                inode.freed = None

    def _lose(self, inode: Inode, first: int, count: int) -> None:
        """Remember that a range was to be written and is not: to read it is an error until it is written again."""
        if inode.parts is None:
            inode.parts = []
        self._give(inode, extents.cut(inode.parts, first, count))
        extents.put(inode.parts, first, count, -1, LOST)

    def _doubt(self, error: OSError) -> None:
        """Ask after a failed write whether earlier ones have failed as well; without good news, trust nothing more."""
        if error.errno not in _FULL or not self._is_synced():
            self.broken = True

    def _is_synced(self) -> bool:
        try:
            os.fsync(self._fd)
        except OSError:
            return False
        return True

    def _lose_late(self, error: OSError, whose: set[Inode], at: int, size: int) -> None:
        """Remember that what these files wrote into a part of the backing file is lost. Raises OSError if all may be.

        By its place: what they have given back since, or wrote elsewhere, is as it was.
        """
        if error.errno not in _FULL:
            self.broken = True
            raise error
        first, end = at // BLOCK, -(-(at + size) // BLOCK)
        with self.lock:
            self._losses += 1
            for inode in whose:
                for start, count, place, state in tuple(inode.parts or ()):
                    left, right = max(place, first), min(place + count, end)
                    if state in (WRITTEN, RESERVED) and left < right:  # or about to be WRITTEN
                        self._late[inode] = error.errno
                        self._lose(inode, start + left - place, right - left)
        self._doubt(error)

    def _edge(self, inode: Inode, offset: int, end: int) -> list[tuple[int, int]]:
        """Return what is to be zeroed, (byte in the backing file, bytes), for a range within one block of a file."""
        if offset >= end or not inode.parts:
            return []
        with self.lock:
            ((start, _, place, state),) = extents.pieces(inode.parts, offset // BLOCK, 1)
        return [(place * BLOCK + offset - start * BLOCK, end - offset)] if state == WRITTEN else []

    def _erase(self, inode: Inode, edges: list[tuple[int, int]]) -> None:
        if not edges:
            return
        with self.lock:
            self._whole()
            inode.busy += 1
        try:
            for at, size in edges:
                self._write(inode, [extents.ZEROS[:size]], at, small=True)
        except OSError as error:
            self._doubt(error)
            raise
        finally:
            self._done(inode)

    def _write(self, inode: Inode, vector: list[memoryview], at: int, *, small: bool) -> None:
        if small:
            self._gathered.add(inode, vector, at, may_wait=True)
            return
        self._gathered.settle(at, sum(map(len, vector)))
        write(self._fd, vector, at)

    def _read(self, into: memoryview, at: int) -> None:
        self._gathered.settle(at, len(into))
        while into:
            done = os.preadv(self._fd, [into], at)
            if not done:  # somebody has cut the backing file
                refuse(errno.EIO)
            into, at = into[done:], at + done
