"""Who has which part of a backing file: free space, and what the parts of each file are. Pure; counted in blocks.

A file's parts are a sorted list of (start, count, place, state): count blocks of the file from start on lie at place.
What no part covers is a hole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Part = tuple[int, int, int, int]
    Run = tuple[int, int]

BLOCK = 4096  # bytes
ZEROS = memoryview(bytes(BLOCK))
WRITTEN, RESERVED, LOST, HOLE = 0, 1, 2, 3  # RESERVED: has a place, reads as zeros; LOST: not written, no place
_NOWHERE = -1
_WHILE = 1 << 14  # blocks after which what has become free is looked at
_USEFUL = 1 << 8  # blocks of a run in which to begin


class Space:
    """Free space: runs of free blocks, merged, known by where they start and by the power of two that they reach."""

    __slots__ = ("_classes", "_follow", "_left", "_lengths", "_starts", "free")

    def __init__(self, total: int) -> None:
        """Begin with all of it free. total: blocks."""
        self.free = self._left = 0
        self._follow = _NOWHERE
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}
        self._classes: list[set[int]] = [set() for _ in range(total.bit_length() + 1)]
        if total:
            self.give(0, total)

    def take(self, count: int, goal: int = _NOWHERE) -> list[Run]:
        """Return free runs (place, count), now taken, of count blocks in all; none if there is not so much.

        goal: where the first had best begin, so that what follows in a file follows here. Else it follows what was
        taken last, for a while: small files made one after another lie so; then what has become free is used again.
        Only if no run suffices are several taken, the longest first.
        """
        if count > self.free:
            return []
        if goal < 0:
            goal = self._next(count)
        taken = []
        self.free -= count
        while count:
            start, place = self._holding(goal) if goal >= 0 else (_NOWHERE, _NOWHERE)
            if start < 0:
                start = place = self._fitting(count)
            length = self._lengths[start]
            got = min(count, start + length - place)
            self._remove(start, length)
            if place > start:
                self._add(start, place - start)
            if place + got < start + length:
                self._add(place + got, start + length - place - got)
            taken.append((place, got))
            count -= got
            goal = _NOWHERE
        self._follow, self._left = place + got, self._left - sum(length for _, length in taken)
        return taken

    def give(self, place: int, count: int) -> None:
        """Make a run free again."""
        self.free += count
        at = bisect_left(self._starts, place)
        if at < len(self._starts) and self._starts[at] == place + count:
            after = self._lengths[place + count]
            self._remove(place + count, after)
            count += after
        if at:
            before = self._starts[at - 1]
            length = self._lengths[before]
            if before + length == place:
                self._remove(before, length)
                place, count = before, length + count
        self._add(place, count)

    def runs(self) -> list[Run]:
        """Return all free runs (place, count), sorted."""
        return [(start, self._lengths[start]) for start in self._starts]

    def _next(self, count: int) -> int:
        """Return where a file had best begin."""
        if self._left <= 0 or self._holding(self._follow)[0] < 0:
            self._left = _WHILE
            least = max(count, _USEFUL)
            return next((start for start in self._starts if self._lengths[start] >= least), _NOWHERE)
        return self._follow

    def _holding(self, goal: int) -> Run:
        at = bisect_right(self._starts, goal) - 1
        if at >= 0 and goal < self._starts[at] + self._lengths[self._starts[at]]:
            return self._starts[at], goal
        return _NOWHERE, _NOWHERE

    def _fitting(self, count: int) -> int:
        for runs in self._classes[(count - 1).bit_length() :]:
            if runs:
                return next(iter(runs))
        longest = next(runs for runs in reversed(self._classes) if runs)
        return max(longest, key=self._lengths.__getitem__) if len(longest) < 64 else next(iter(longest))

    def _add(self, start: int, length: int) -> None:
        insort(self._starts, start)
        self._lengths[start] = length
        self._classes[length.bit_length() - 1].add(start)

    def _remove(self, start: int, length: int) -> None:
        del self._starts[bisect_left(self._starts, start)]
        del self._lengths[start]
        self._classes[length.bit_length() - 1].discard(start)


def pieces(parts: list[Part], start: int, count: int) -> Iterator[Part]:
    """Give what a range of a file consists of, in order and without gaps; holes have the state HOLE."""
    end = start + count
    at = max(bisect_right(parts, (start + 1,)) - 1, 0)  # a shorter tuple sorts before
    while start < end:
        if at == len(parts) or parts[at][0] >= end:
            yield start, end - start, _NOWHERE, HOLE
            return
        first, length, place, state = parts[at]
        at += 1
        if first + length <= start:
            continue
        if first > start:
            yield start, first - start, _NOWHERE, HOLE
            start = first
        stop = min(first + length, end)
        yield start, stop - start, place + start - first if place >= 0 else place, state
        start = stop


def put(parts: list[Part], start: int, count: int, place: int, state: int) -> None:
    """Add a part where there is a hole, merged with its neighbours."""
    at = bisect_left(parts, (start,))
    if at:
        first, length, where, kind = parts[at - 1]
        if first + length == start and kind == state and (place < 0 or where + length == place):
            at -= 1
            del parts[at]
            start, count, place = first, length + count, where
    if at < len(parts):
        first, length, where, kind = parts[at]
        if start + count == first and kind == state and (place < 0 or place + count == where):
            del parts[at]
            count += length
    parts.insert(at, (start, count, place, state))


def cut(parts: list[Part], start: int, count: int) -> list[Run]:
    """Make a range a hole; return the runs (place, count) that it had."""
    end, runs = start + count, []
    at = max(bisect_right(parts, (start + 1,)) - 1, 0)
    while at < len(parts) and parts[at][0] < end:
        first, length, place, state = parts[at]
        left, right = max(first, start), min(first + length, end)
        if left >= right:
            at += 1
            continue
        del parts[at]
        if first < left:
            parts.insert(at, (first, left - first, place, state))
            at += 1
        if right < first + length:
            moved = place + right - first if place >= 0 else place
            parts.insert(at, (right, first + length - right, moved, state))
        if place >= 0:
            runs.append((place + left - first, right - left))
    return runs


def fill(parts: list[Part], start: int, runs: list[Run]) -> None:
    """Have runs, which a file got from block start on, be WRITTEN, where it still has them."""
    for place, count in runs:
        for first, length, where, state in list(pieces(parts, start, count)):
            if state == RESERVED and where - place == first - start:
                cut(parts, first, length)
                put(parts, first, length, where, WRITTEN)
        start += count


def end(parts: list[Part]) -> int:
    """Return the block behind the last part."""
    return parts[-1][0] + parts[-1][1] if parts else 0


def goal(parts: list[Part], start: int) -> int:
    """Return where a hole's place had best be, given what lies before it in the file; -1 if there is nothing."""
    at = bisect_left(parts, (start,)) - 1
    if at < 0 or parts[at][2] < 0:
        return _NOWHERE
    return parts[at][2] + start - parts[at][0]


def jobs(
    runs: list[Run], fresh: tuple[bool, bool], offset: int, data: memoryview
) -> list[tuple[list[memoryview], int]]:
    """Return what is to be written where, with zeros around the data where a block was a hole."""
    found, skip, done = [], offset % BLOCK, 0
    for place, count in runs:
        at, room = place * BLOCK + skip, count * BLOCK - skip
        vector = [data[done : done + room]]
        if skip and fresh[0]:
            vector.insert(0, ZEROS[:skip])
            at -= skip
        done += room
        if done > len(data) and fresh[1]:
            vector.append(ZEROS[: done - len(data)])
        found.append((vector, at))
        skip = 0
    return found
