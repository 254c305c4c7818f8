"""Names and attributes of a file system in memory: the tree, link counts, who still knows an inode. Pure.

All raise OSError for what cannot be. Times are in ns. Modes, permissions and sticky bits are the kernel's to check
(default_permissions); what only the one who has the names can know is checked here.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_ISGID

from .fuse import ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from .extents import Part

_FIRST = 3  # the cookie of a directory's first name; 1 and 2 are those of . and ..
_MADE = (S_IFREG, S_IFIFO, S_IFSOCK)  # not devices: who may not make them elsewhere may not here
NAME_MAX = 255
_DENSE = 64  # names up to which a directory's list may be half empty


class Entries:
    """The names in a directory. Each has a growing number, its cookie: a reader goes on behind one, whatever went."""

    __slots__ = ("_cookies", "_gone", "_names", "_next", "by_name", "parent")

    def __init__(self, parent: Inode | None) -> None:
        """Begin empty. parent: None for the root."""
        self.by_name: dict[bytes, tuple[int, Inode]] = {}
        self.parent = parent
        self._cookies: list[int] = []
        self._names: list[bytes | None] = []
        self._next, self._gone = _FIRST, 0

    def add(self, name: bytes, inode: Inode) -> None:
        """Add a name that is not there."""
        self.by_name[name] = self._next, inode
        self._cookies.append(self._next)
        self._names.append(name)
        self._next += 1

    def swap(self, name: bytes, inode: Inode) -> None:
        """Have a name lead elsewhere."""
        self.by_name[name] = self.by_name[name][0], inode

    def remove(self, name: bytes) -> None:
        """Remove a name."""
        cookie, _ = self.by_name.pop(name)
        self._names[bisect_left(self._cookies, cookie)] = None
        self._gone += 1
        if self._gone > _DENSE and self._gone * 2 > len(self._names):
            left = [(cookie, name) for cookie, name in zip(self._cookies, self._names) if name is not None]
            self._cookies, self._names = [cookie for cookie, _ in left], [name for _, name in left]
            self._gone = 0

    def behind(self, cookie: int) -> Iterator[tuple[int, bytes, Inode]]:
        """Give (cookie, name, inode) of all names behind a cookie."""
        for at in range(bisect_right(self._cookies, cookie), len(self._cookies)):
            name = self._names[at]
            if name is not None:
                yield self._cookies[at], name, self.by_name[name][1]


class Inode:
    """A file: its attributes, what it has, and how often the kernel was told of it (see FUSE_FORGET)."""

    __slots__ = (
        *("atime", "blocks", "busy", "ctime", "entries", "freed", "gid", "known", "mode", "mtime", "nlink", "number"),
        *("parts", "size", "target", "uid"),
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, now: int) -> None:
        """Make one without a name. blocks: those it has. busy: how many read or write it; freed: what they keep."""
        self.number, self.mode, self.uid, self.gid = number, mode, uid, gid
        self.atime = self.mtime = self.ctime = now
        self.nlink = self.known = self.size = self.blocks = self.busy = 0
        self.parts: list[Part] | None = None
        self.freed: list[tuple[int, int]] | None = None
        self.entries: Entries | None = None
        self.target = b""


class Tree:
    """All names and inodes, by number. Numbers are never used twice."""

    __slots__ = ("_next", "inodes", "limit")

    def __init__(self, limit: int, mode: int, now: int) -> None:
        """Begin with a root of that mode that belongs to 0. limit: how many inodes there may be."""
        self.limit = limit
        self.inodes: dict[int, Inode] = {}
        self._next = ROOT
        root = self._new(S_IFDIR | mode, 0, 0, now)
        root.entries, root.nlink, root.known = Entries(None), 2, 1

    def __getitem__(self, number: int) -> Inode:
        """Return an inode that the kernel knows, so there is one."""
        return self.inodes[number]

    def find(self, parent: Inode, name: bytes) -> Inode | None:
        """Return what a name leads to, or None."""
        if len(name) > NAME_MAX:
            refuse(errno.ENAMETOOLONG)
        found = _entries(parent).by_name.get(name)
        return found[1] if found else None

    def make(self, parent: Inode, name: bytes, mode: int, owner: tuple[int, int], now: int) -> Inode:
        """Make a file, FIFO, socket, symbolic link or directory."""
        self._fresh(parent, name)
        if S_IFMT(mode) not in (*_MADE, S_IFDIR, S_IFLNK):
            refuse(errno.EPERM)
        made = self.nameless(parent, mode, owner, now)
        if S_IFMT(mode) == S_IFDIR:
            made.entries, made.nlink = Entries(parent), 1
            parent.nlink += 1
        made.nlink += 1
        _entries(parent).add(name, made)
        parent.mtime = parent.ctime = now
        return made

    def nameless(self, parent: Inode, mode: int, owner: tuple[int, int], now: int) -> Inode:
        """Make a file that has no name yet, as if in a directory: group and set-group-ID are its, if it says so."""
        uid, gid = owner
        if parent.mode & S_ISGID:
            gid = parent.gid
            mode |= S_ISGID if S_IFMT(mode) == S_IFDIR else 0
        return self._new(mode, uid, gid, now)

    def link(self, inode: Inode, parent: Inode, name: bytes, now: int) -> None:
        """Give a file one more name."""
        self._fresh(parent, name)
        if inode.entries is not None:
            refuse(errno.EPERM)
        inode.nlink += 1
        inode.ctime = parent.mtime = parent.ctime = now
        _entries(parent).add(name, inode)

    def remove(self, parent: Inode, name: bytes, now: int, *, directory: bool) -> Inode:
        """Remove a name; return what it led to, which may still be known."""
        inode = self._there(parent, name)
        if (inode.entries is not None) != directory:
            refuse(errno.ENOTDIR if directory else errno.EISDIR)
        self._unlink(parent, inode, now)
        _entries(parent).remove(name)
        parent.mtime = parent.ctime = now
        return inode

    def rename(
        self, source: tuple[Inode, bytes], target: tuple[Inode, bytes], now: int, *, replace: bool = True
    ) -> Inode | None:
        """Move a name; return what the new one led to before, if anything. Loops are the kernel's to refuse."""
        (old, name), (new, wanted) = source, target
        inode, there = self._there(old, name), self.find(new, wanted)
        if there is inode:
            return None
        if there:
            if not replace:
                refuse(errno.EEXIST)
            if (there.entries is None) != (inode.entries is None):
                refuse(errno.ENOTDIR if there.entries is None else errno.EISDIR)
            self._unlink(new, there, now)
            _entries(new).swap(wanted, inode)
        else:
            self._fresh(new, wanted)
            _entries(new).add(wanted, inode)
        _entries(old).remove(name)
        self._moved(inode, old, new)
        inode.ctime = old.mtime = old.ctime = new.mtime = new.ctime = now
        return there

    def exchange(self, first: tuple[Inode, bytes], second: tuple[Inode, bytes], now: int) -> None:
        """Exchange what two names lead to."""
        one, other = self._there(*first), self._there(*second)
        _entries(first[0]).swap(first[1], other)
        _entries(second[0]).swap(second[1], one)
        self._moved(one, first[0], second[0])
        self._moved(other, second[0], first[0])
        for inode in (one, other):
            inode.ctime = now
        for parent in (first[0], second[0]):
            parent.mtime = parent.ctime = now

    def forget(self, inode: Inode, times: int) -> bool:
        """Count down how often the kernel knows it; return whether nobody does any more, and it is gone."""
        inode.known -= times
        if inode.known > 0 or inode.nlink or inode.number == ROOT:
            return False
        return self.inodes.pop(inode.number, None) is not None

    def _new(self, mode: int, uid: int, gid: int, now: int) -> Inode:
        if len(self.inodes) >= self.limit:
            refuse(errno.ENOSPC)
        inode = self.inodes[self._next] = Inode(self._next, mode, uid, gid, now)
        self._next += 1
        return inode

    def _fresh(self, parent: Inode, name: bytes) -> None:
        """Refuse a name that is taken, and one in a directory that has been removed."""
        if self.find(parent, name):
            refuse(errno.EEXIST)
        if not parent.nlink:
            refuse(errno.ENOENT)

    def _there(self, parent: Inode, name: bytes) -> Inode:
        return self.find(parent, name) or refuse(errno.ENOENT)

    def _unlink(self, parent: Inode, inode: Inode, now: int) -> None:
        """Count one name less of what is in parent."""
        if inode.entries is not None:
            if inode.entries.by_name:
                refuse(errno.ENOTEMPTY)
            inode.nlink = 0
            parent.nlink -= 1
        else:
            inode.nlink -= 1
        inode.ctime = now

    def _moved(self, inode: Inode, old: Inode, new: Inode) -> None:
        """Have a directory know its parent, and both parents count it."""
        if inode.entries is not None and old is not new:
            inode.entries.parent = new
            old.nlink -= 1
            new.nlink += 1


def _entries(inode: Inode) -> Entries:
    if inode.entries is None:
        refuse(errno.ENOTDIR)
    return inode.entries


def refuse(number: int) -> NoReturn:
    """Raise an OSError with this errno."""
    raise OSError(number, os.strerror(number))
