"""The daemon of a node cache: it answers the kernel's requests on /dev/fuse. Effects; Python 3.9.

OPEN, CREATE, FLUSH and GETXATTR are answered ENOSYS, after which the kernel asks no more: what it needs to know of a
file it knows, and what a program wrote has come to us before its close(2) returns, with or without FLUSH.
"""

from __future__ import annotations

import errno
import os
import time
from _thread import start_new_thread
from mmap import mmap

from . import fuse
from .backing import Backing
from .extents import BLOCK
from .inodes import Inode, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[int, Inode, int, int, memoryview], bytes]

THREADS = 4
_RETRY = (errno.ENOENT, errno.EINTR, errno.EAGAIN)  # read(2) of the device: that request was withdrawn
_SECOND = 1_000_000_000  # ns
_NAME_MAX = 255
_HEAD = fuse.HEAD.size
_BEFORE = fuse.REPLY.size


def serve(device: int, backing: int, size: int, limit: int, ready: Callable[[], None]) -> None:
    """Answer until the file system is unmounted. size: bytes; limit: inodes; ready: called when the kernel has greeted.

    Raises OSError.
    """
    service = Service(device, Backing(backing, size), limit)
    buffer = _buffer(fuse.REQUEST)
    os.readv(device, [buffer])
    _, opcode, unique, *_ = fuse.HEAD.unpack_from(buffer)
    major, minor, readahead, offered = fuse.INIT_IN.unpack_from(buffer, _HEAD)
    if opcode != fuse.INIT or major != fuse.MAJOR:
        raise OSError(errno.EPROTO, "the kernel speaks another FUSE")
    os.write(device, fuse.init(unique, minor, offered, readahead))
    ready()
    for _ in range(THREADS - 1):
        start_new_thread(_alone, (service,))
    service.run()


def _alone(service: Service) -> None:
    """Answer in a thread. However it ends, all of us end: then the kernel gives errors, and nobody waits for ever."""
    try:
        service.run()
        os._exit(0)
    finally:
        os._exit(1)


def _buffer(size: int) -> memoryview:
    """Return memory whose byte DATA, where a request's data begins, begins a page, too."""
    return memoryview(mmap(-1, fuse.PAGE + size))[fuse.PAGE - fuse.DATA :][:size]


class Service:
    """A mounted node cache, as the daemon has it."""

    __slots__ = ("_backing", "_device", "_handlers", "_tree")

    def __init__(self, device: int, backing: Backing, limit: int) -> None:
        """Begin with an empty one."""
        self._device, self._backing = device, backing
        self._tree = Tree(limit, 0o700, time.time_ns())
        handlers: dict[int, Handler] = {
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: self._getattr,
            fuse.READLINK: self._readlink,
            fuse.SYMLINK: self._symlink,
            fuse.MKNOD: self._mknod,
            fuse.MKDIR: self._mkdir,
            fuse.UNLINK: self._unlink,
            fuse.RMDIR: self._rmdir,
            fuse.LINK: self._link,
            fuse.RENAME: self._rename,
            fuse.RENAME2: self._rename2,
            fuse.TMPFILE: self._tmpfile,
            fuse.READDIR: self._readdir,
            fuse.STATFS: self._statfs,
            fuse.RELEASE: self._nothing,
            fuse.RELEASEDIR: self._nothing,
        }
        self._handlers = [handlers.get(opcode) for opcode in range(fuse.LAST + 1)]

    def run(self) -> None:
        """Answer until the file system is unmounted. Raises OSError."""
        device, lock, handlers, tree = self._device, self._backing.lock, self._handlers, self._tree
        request, reply = _buffer(fuse.REQUEST), _buffer(_BEFORE + fuse.LARGEST)
        while True:
            try:
                os.readv(device, [request])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in _RETRY:
                    continue
                raise
            length, opcode, unique, node, uid, gid, _, _, _ = fuse.HEAD.unpack_from(request)
            body = request[_HEAD:length]
            handler = handlers[opcode] if opcode <= fuse.LAST else None
            try:
                if handler:
                    with lock:
                        answer: bytes | memoryview = handler(unique, tree[node], uid, gid, body)
                elif opcode == fuse.READ:
                    answer = self._read(unique, tree[node], body, reply)
                else:
                    answer = self._data(opcode, unique, node, body)
            except OSError as error:
                answer = fuse.error(unique, error.errno or errno.EIO)
            if answer:
                self._say(answer)

    def _say(self, answer: bytes | memoryview) -> None:
        try:
            os.write(self._device, answer)
        except FileNotFoundError:  # whoever asked waits no more
            return

    def _data(self, opcode: int, unique: int, node: int, body: memoryview) -> bytes:
        """Answer what may have to wait for the backing file, and is done without the lock."""
        if opcode == fuse.WRITE:
            return self._write(unique, self._tree[node], body)
        if opcode in (fuse.FORGET, fuse.BATCH_FORGET):
            self._forget(opcode, node, body)
            return b""
        if opcode == fuse.SETATTR:
            return self._setattr(unique, self._tree[node], body)
        if opcode in (fuse.FSYNC, fuse.FSYNCDIR):
            self._backing.sync()
            return fuse.error(unique, 0)
        if opcode == fuse.FALLOCATE:
            inode = self._tree[node]
            _, offset, size, mode, _ = fuse.FALLOCATE_IN.unpack_from(body)
            self._backing.allocate(inode, mode, offset, size)
            return fuse.error(unique, 0)
        return fuse.error(unique, errno.ENOSYS)

    def _read(self, unique: int, inode: Inode, body: memoryview, reply: memoryview) -> memoryview:
        _, offset, size, *_ = fuse.READ_IN.unpack_from(body)
        got = self._backing.read(inode, offset, reply[_BEFORE : _BEFORE + size])
        fuse.REPLY.pack_into(reply, 0, _BEFORE + got, 0, unique)
        return reply[: _BEFORE + got]

    def _write(self, unique: int, inode: Inode, body: memoryview) -> bytes:
        _, offset, size, flags, *_ = fuse.WRITE_IN.unpack_from(body)
        start = fuse.WRITE_IN.size
        self._backing.write(inode, offset, body[start : start + size], cached=bool(flags & fuse.WRITE_CACHE))
        if flags & fuse.WRITE_KILL_SUIDGID:
            inode.drop_privilege()
        return fuse.WRITTEN.pack(fuse.WRITTEN.size, 0, unique, size, 0)

    def _forget(self, opcode: int, node: int, body: memoryview) -> None:
        if opcode == fuse.FORGET:
            forgotten = [(node, *fuse.FORGET_IN.unpack_from(body))]
        else:
            count, _ = fuse.BATCH_IN.unpack_from(body)
            start = fuse.BATCH_IN.size
            forgotten = list(fuse.FORGET_ONE.iter_unpack(body[start : start + count * fuse.FORGET_ONE.size]))
        with self._backing.lock:
            for number, times in forgotten:
                inode = self._tree.inodes.get(number)
                if inode:
                    self._let_go(inode, times)

    def _let_go(self, inode: Inode, times: int = 0) -> None:
        if self._tree.forget(inode, times):
            self._backing.clear(inode)

    def _lookup(self, unique: int, parent: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        inode = self._tree.find(parent, bytes(body[:-1]))
        if not inode:  # that there is none may be remembered as well
            return fuse.ENTRY.pack(fuse.ENTRY.size, 0, unique, 0, 0, fuse.FOREVER, *(0,) * 19)
        return self._entry(unique, inode)

    def _getattr(self, unique: int, inode: Inode, _uid: int, _gid: int, _body: memoryview) -> bytes:
        return fuse.ATTR.pack(fuse.ATTR.size, 0, unique, fuse.FOREVER, 0, 0, *_attributes(inode))

    def _setattr(self, unique: int, inode: Inode, body: memoryview) -> bytes:
        valid, _, _, size, _, *rest = fuse.SETATTR_IN.unpack_from(body)
        if valid & fuse.SIZE:
            self._backing.truncate(inode, size)
        with self._backing.lock:
            _set(inode, valid, rest)
            return self._getattr(unique, inode, 0, 0, body)

    def _readlink(self, unique: int, inode: Inode, _uid: int, _gid: int, _body: memoryview) -> bytes:
        return fuse.whole(unique, inode.target)

    def _symlink(self, unique: int, parent: Inode, uid: int, gid: int, body: memoryview) -> bytes:
        name, target = bytes(body[:-1]).split(b"\0")
        inode = self._tree.make(parent, name, 0o120777, (uid, gid), time.time_ns())
        inode.target, inode.size = target, len(target)
        return self._entry(unique, inode)

    def _mknod(self, unique: int, parent: Inode, uid: int, gid: int, body: memoryview) -> bytes:
        mode, *_ = fuse.MKNOD_IN.unpack_from(body)
        name = bytes(body[fuse.MKNOD_IN.size : -1])
        return self._entry(unique, self._tree.make(parent, name, mode, (uid, gid), time.time_ns()))

    def _mkdir(self, unique: int, parent: Inode, uid: int, gid: int, body: memoryview) -> bytes:
        mode, _ = fuse.MKDIR_IN.unpack_from(body)
        name = bytes(body[fuse.MKDIR_IN.size : -1])
        mode = 0o040000 | mode & 0o7777
        return self._entry(unique, self._tree.make(parent, name, mode, (uid, gid), time.time_ns()))

    def _tmpfile(self, unique: int, parent: Inode, uid: int, gid: int, body: memoryview) -> bytes:
        _, mode, _, _ = fuse.CREATE_IN.unpack_from(body)
        inode = self._tree.nameless(parent, 0o100000 | mode & 0o7777, (uid, gid), time.time_ns())
        inode.known += 1
        numbers = (inode.number, 0, fuse.FOREVER, fuse.FOREVER, 0, 0, *_attributes(inode), 0, fuse.KEEP_CACHE, 0)
        return fuse.ENTRY_OPEN.pack(fuse.ENTRY_OPEN.size, 0, unique, *numbers)

    def _unlink(self, unique: int, parent: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        self._let_go(self._tree.remove(parent, bytes(body[:-1]), time.time_ns(), directory=False))
        return fuse.error(unique, 0)

    def _rmdir(self, unique: int, parent: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        self._let_go(self._tree.remove(parent, bytes(body[:-1]), time.time_ns(), directory=True))
        return fuse.error(unique, 0)

    def _link(self, unique: int, parent: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        (number,) = fuse.LINK_IN.unpack_from(body)
        inode = self._tree[number]
        self._tree.link(inode, parent, bytes(body[fuse.LINK_IN.size : -1]), time.time_ns())
        return self._entry(unique, inode)

    def _rename(self, unique: int, parent: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        (number,) = fuse.RENAME_IN.unpack_from(body)
        return self._move(unique, parent, number, 0, body[fuse.RENAME_IN.size :])

    def _rename2(self, unique: int, parent: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        number, flags, _ = fuse.RENAME2_IN.unpack_from(body)
        return self._move(unique, parent, number, flags, body[fuse.RENAME2_IN.size :])

    def _move(self, unique: int, parent: Inode, number: int, flags: int, names: memoryview) -> bytes:
        old, new = bytes(names[:-1]).split(b"\0")
        source, target, now = (parent, old), (self._tree[number], new), time.time_ns()
        if flags & ~(fuse.NOREPLACE | fuse.EXCHANGE):
            return fuse.error(unique, errno.EINVAL)
        if flags & fuse.EXCHANGE:
            self._tree.exchange(source, target, now)
        else:
            gone = self._tree.rename(source, target, now, replace=not flags & fuse.NOREPLACE)
            if gone:
                self._let_go(gone)
        return fuse.error(unique, 0)

    def _readdir(self, unique: int, inode: Inode, _uid: int, _gid: int, body: memoryview) -> bytes:
        _, cookie, room, *_ = fuse.READ_IN.unpack_from(body)
        entries, listed = inode.entries, []
        if entries is None:
            return fuse.error(unique, errno.ENOTDIR)
        if cookie < 1:
            listed.append(fuse.dirent(inode.number, 1, 4, b"."))
        if cookie < 2:
            listed.append(fuse.dirent((entries.parent or inode).number, 2, 4, b".."))
        room -= sum(map(len, listed))
        for at, name, child in entries.behind(cookie):
            one = fuse.dirent(child.number, at, child.mode >> 12, name)
            room -= len(one)
            if room < 0:
                break
            listed.append(one)
        return fuse.whole(unique, b"".join(listed))

    def _statfs(self, unique: int, _inode: Inode, _uid: int, _gid: int, _body: memoryview) -> bytes:
        total, free = self._backing.total, self._backing.space.free
        files, limit = len(self._tree.inodes), self._tree.limit
        numbers = (total, free, free, limit, limit - files, BLOCK, _NAME_MAX, BLOCK, 0)
        return fuse.STATFS_OUT.pack(fuse.STATFS_OUT.size, 0, unique, *numbers)

    def _nothing(self, unique: int, _inode: Inode, _uid: int, _gid: int, _body: memoryview) -> bytes:
        return fuse.error(unique, 0)

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
    if inode.is_file and valid & (fuse.UID | fuse.GID | fuse.KILL_SUIDGID):
        inode.drop_privilege()
    if valid & fuse.MODE:
        inode.mode = inode.mode & ~0o7777 | mode & 0o7777
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
