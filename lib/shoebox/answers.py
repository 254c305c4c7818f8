"""What the daemon of a node cache answers where it needs no data. Effects, for it reads the clock; Python 3.9.

FLUSH, OPENDIR and GETXATTR are answered ENOSYS, after which the kernel asks no more: what a program wrote has come to
us before its close(2) returns, with or without FLUSH. Not so OPEN, though there is nothing to do: once we are dead, it
is the one request in which a program learns that what it writes goes nowhere.
"""

from __future__ import annotations

import errno
import time
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_IMODE

from . import fuse
from .extents import BLOCK
from .inodes import NAME_MAX, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .backing import Backing
    from .inodes import Inode

    Owner = tuple[int, int]
    Handler = Callable[[int, Inode, Owner, memoryview], bytes]

_SECOND = 1_000_000_000  # ns


class Names:
    """Who answers, by opcode. All want the lock of the backing file to be their caller's."""

    __slots__ = ("_backing", "by_opcode", "tree")

    def __init__(self, backing: Backing, limit: int) -> None:
        """Begin with an empty file system. limit: inodes."""
        self._backing = backing
        self.tree = Tree(limit, 0o700, time.time_ns())
        known: dict[int, Handler] = {
            fuse.LOOKUP: self._lookup,
            fuse.FORGET: self._forget,
            fuse.BATCH_FORGET: self._forget_many,
            fuse.GETATTR: self._getattr,
            fuse.SETATTR: self._setattr,
            fuse.READLINK: self._readlink,
            fuse.SYMLINK: self._symlink,
            fuse.MKNOD: self._mknod,
            fuse.MKDIR: self._mkdir,
            fuse.TMPFILE: self._tmpfile,
            fuse.UNLINK: self._unlink,
            fuse.RMDIR: self._rmdir,
            fuse.LINK: self._link,
            fuse.RENAME: self._rename,
            fuse.RENAME2: self._rename2,
            fuse.READDIR: self._readdir,
            fuse.STATFS: self._statfs,
            fuse.OPEN: self._open,
            fuse.CREATE: self._create,
            fuse.RELEASE: self._nothing,
            fuse.RELEASEDIR: self._nothing,
        }
        self.by_opcode = [known.get(opcode, self._unknown) for opcode in range(fuse.LAST + 2)]

    def _forget(self, _unique: int, inode: Inode, _owner: Owner, body: memoryview) -> bytes:
        self._let_go(inode, *fuse.FORGET_IN.unpack_from(body))
        return b""

    def _forget_many(self, _unique: int, _inode: Inode, _owner: Owner, body: memoryview) -> bytes:
        count, _ = fuse.BATCH_IN.unpack_from(body)
        start = fuse.BATCH_IN.size
        for number, times in fuse.FORGET_ONE.iter_unpack(body[start : start + count * fuse.FORGET_ONE.size]):
            self._let_go(self.tree[number], times)
        return b""

    def _let_go(self, inode: Inode, times: int = 0) -> None:
        if self.tree.forget(inode, times):
            self._backing.clear(inode)

    def _lookup(self, unique: int, parent: Inode, _owner: Owner, body: memoryview) -> bytes:
        inode = self.tree.find(parent, bytes(body[:-1]))
        if not inode:  # that there is none may be remembered as well
            return fuse.ENTRY.pack(fuse.ENTRY.size, 0, unique, 0, 0, fuse.FOREVER, *(0,) * 19)
        return self._entry(unique, inode)

    def _getattr(self, unique: int, inode: Inode, _owner: Owner, _body: memoryview) -> bytes:
        return fuse.ATTR.pack(fuse.ATTR.size, 0, unique, fuse.FOREVER, 0, 0, *_attributes(inode))

    def _setattr(self, unique: int, inode: Inode, _owner: Owner, body: memoryview) -> bytes:
        valid, _, _, _, _, *rest = fuse.SETATTR_IN.unpack_from(body)
        _set(inode, valid, rest)
        return self._getattr(unique, inode, _owner, body)

    def _readlink(self, unique: int, inode: Inode, _owner: Owner, _body: memoryview) -> bytes:
        return fuse.whole(unique, inode.target)

    def _symlink(self, unique: int, parent: Inode, owner: Owner, body: memoryview) -> bytes:
        name, target = bytes(body[:-1]).split(b"\0")
        inode = self.tree.make(parent, name, S_IFLNK | 0o777, owner, time.time_ns())
        inode.target, inode.size = target, len(target)
        return self._entry(unique, inode)

    def _mknod(self, unique: int, parent: Inode, owner: Owner, body: memoryview) -> bytes:
        mode, *_ = fuse.MKNOD_IN.unpack_from(body)
        name = bytes(body[fuse.MKNOD_IN.size : -1])
        return self._entry(unique, self.tree.make(parent, name, mode, owner, time.time_ns()))

    def _mkdir(self, unique: int, parent: Inode, owner: Owner, body: memoryview) -> bytes:
        mode, _ = fuse.MKDIR_IN.unpack_from(body)
        name = bytes(body[fuse.MKDIR_IN.size : -1])
        mode = S_IFDIR | S_IMODE(mode)
        return self._entry(unique, self.tree.make(parent, name, mode, owner, time.time_ns()))

    def _tmpfile(self, unique: int, parent: Inode, owner: Owner, body: memoryview) -> bytes:
        _, mode, _, _ = fuse.CREATE_IN.unpack_from(body)
        inode = self.tree.nameless(parent, S_IFREG | S_IMODE(mode), owner, time.time_ns())
        return self._opened(unique, inode)

    def _open(self, unique: int, _inode: Inode, _owner: Owner, _body: memoryview) -> bytes:
        return fuse.OPENED.pack(fuse.OPENED.size, 0, unique, 0, fuse.KEEP_CACHE, 0)

    def _create(self, unique: int, parent: Inode, owner: Owner, body: memoryview) -> bytes:
        _, mode, _, _ = fuse.CREATE_IN.unpack_from(body)
        name = bytes(body[fuse.CREATE_IN.size : -1])
        return self._opened(unique, self.tree.make(parent, name, S_IFREG | mode & 0o7777, owner, time.time_ns()))

    def _unlink(self, unique: int, parent: Inode, _owner: Owner, body: memoryview) -> bytes:
        self._let_go(self.tree.remove(parent, bytes(body[:-1]), time.time_ns(), directory=False))
        return fuse.error(unique, 0)

    def _rmdir(self, unique: int, parent: Inode, _owner: Owner, body: memoryview) -> bytes:
        self._let_go(self.tree.remove(parent, bytes(body[:-1]), time.time_ns(), directory=True))
        return fuse.error(unique, 0)

    def _link(self, unique: int, parent: Inode, _owner: Owner, body: memoryview) -> bytes:
        (number,) = fuse.LINK_IN.unpack_from(body)
        inode = self.tree[number]
        self.tree.link(inode, parent, bytes(body[fuse.LINK_IN.size : -1]), time.time_ns())
        return self._entry(unique, inode)

    def _rename(self, unique: int, parent: Inode, _owner: Owner, body: memoryview) -> bytes:
        (number,) = fuse.RENAME_IN.unpack_from(body)
        return self._move(unique, parent, number, 0, body[fuse.RENAME_IN.size :])

    def _rename2(self, unique: int, parent: Inode, _owner: Owner, body: memoryview) -> bytes:
        number, flags, _ = fuse.RENAME2_IN.unpack_from(body)
        return self._move(unique, parent, number, flags, body[fuse.RENAME2_IN.size :])

    def _move(self, unique: int, parent: Inode, number: int, flags: int, names: memoryview) -> bytes:
        old, new = bytes(names[:-1]).split(b"\0")
        source, target, now = (parent, old), (self.tree[number], new), time.time_ns()
        if flags & ~(fuse.NOREPLACE | fuse.EXCHANGE):
            return fuse.error(unique, errno.EINVAL)
        if flags & fuse.EXCHANGE:
            self.tree.exchange(source, target, now)
        else:
            gone = self.tree.rename(source, target, now, replace=not flags & fuse.NOREPLACE)
            if gone:
                self._let_go(gone)
        return fuse.error(unique, 0)

    def _readdir(self, unique: int, inode: Inode, _owner: Owner, body: memoryview) -> bytes:
        _, cookie, room, *_ = fuse.READ_IN.unpack_from(body)
        entries, listed = inode.entries, []
        if entries is None:
            return fuse.error(unique, errno.ENOTDIR)
        if cookie < 1:
            listed.append(fuse.dirent(inode.number, 1, S_IFDIR, b"."))
        if cookie < 2:
            listed.append(fuse.dirent((entries.parent or inode).number, 2, S_IFDIR, b".."))
        room -= sum(map(len, listed))
        for at, name, child in entries.behind(cookie):
            one = fuse.dirent(child.number, at, child.mode, name)
            room -= len(one)
            if room < 0:
                break
            listed.append(one)
        return fuse.whole(unique, b"".join(listed))

    def _statfs(self, unique: int, _inode: Inode, _owner: Owner, _body: memoryview) -> bytes:
        total, free = self._backing.total, self._backing.space.free
        files, limit = len(self.tree.inodes), self.tree.limit
        numbers = (total, free, free, limit, limit - files, BLOCK, NAME_MAX, BLOCK, 0)
        return fuse.STATFS_OUT.pack(fuse.STATFS_OUT.size, 0, unique, *numbers)

    def _unknown(self, unique: int, _inode: Inode, _owner: Owner, _body: memoryview) -> bytes:
        return fuse.error(unique, errno.ENOSYS)

    def _nothing(self, unique: int, _inode: Inode, _owner: Owner, _body: memoryview) -> bytes:
        return fuse.error(unique, 0)

    def _opened(self, unique: int, inode: Inode) -> bytes:
        inode.known += 1
        numbers = (inode.number, 0, fuse.FOREVER, fuse.FOREVER, 0, 0, *_attributes(inode), 0, fuse.KEEP_CACHE, 0)
        return fuse.ENTRY_OPEN.pack(fuse.ENTRY_OPEN.size, 0, unique, *numbers)

    def _entry(self, unique: int, inode: Inode) -> bytes:
        inode.known += 1
        numbers = (inode.number, 0, fuse.FOREVER, fuse.FOREVER, 0, 0, *_attributes(inode))
        return fuse.ENTRY.pack(fuse.ENTRY.size, 0, unique, *numbers)


def _set(inode: Inode, valid: int, rest: list[int]) -> None:
    """Set attributes as SETATTR says. rest: what struct fuse_setattr_in has from atime on."""
    atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, _ = rest
    now = time.time_ns()
    if valid & (fuse.UID | fuse.GID):
        inode.uid, inode.gid = uid if valid & fuse.UID else inode.uid, gid if valid & fuse.GID else inode.gid
    if valid & fuse.MODE:
        inode.mode = S_IFMT(inode.mode) | S_IMODE(mode)
    if valid & fuse.ATIME:
        inode.atime = now if valid & fuse.ATIME_NOW else atime * _SECOND + atime_ns
    if valid & fuse.MTIME:
        inode.mtime = now if valid & fuse.MTIME_NOW else mtime * _SECOND + mtime_ns
    elif valid & fuse.SIZE:
        inode.mtime = now
    inode.ctime = ctime * _SECOND + ctime_ns if valid & fuse.CTIME else now


def _attributes(inode: Inode) -> tuple[int, ...]:
    """Return the members of a struct fuse_attr."""
    atime, atime_ns = divmod(inode.atime, _SECOND)
    mtime, mtime_ns = divmod(inode.mtime, _SECOND)
    ctime, ctime_ns = divmod(inode.ctime, _SECOND)
    head = (inode.number, inode.size, inode.blocks * (BLOCK // 512), atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns)
    return (*head, inode.mode, inode.nlink, inode.uid, inode.gid, 0, BLOCK, 0)
