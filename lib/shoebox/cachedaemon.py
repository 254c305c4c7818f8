"""The daemon of a node cache: it takes the kernel's requests from /dev/fuse, and answers them. Effects; Python 3.9."""

from __future__ import annotations

import errno
import os
import select
from _thread import allocate_lock, start_new_thread
from mmap import PAGESIZE, mmap

from . import fuse
from .answers import Names
from .backing import Backing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .inodes import Inode

LOOKS = range(20)  # at the device, some 30 us, before we sleep: the next request is often there by then
THREADS = 32  # as many requests for data at once; each has 1 MiB
_SLOW = frozenset((fuse.READ, fuse.WRITE, fuse.FSYNC, fuse.FSYNCDIR, fuse.FALLOCATE))  # and SETATTR of a size
_RETRY = (errno.ENOENT, errno.EINTR)  # read(2) of the device: that request was withdrawn
_HEAD, _BEFORE = fuse.HEAD.size, fuse.REPLY.size


def serve(device: int, backing: int, size: int, limit: int, ready: Callable[[], None]) -> None:
    """Answer until the file system is unmounted. size: bytes; limit: inodes; ready: called when the kernel has greeted.

    Raises OSError.
    """
    daemon = Daemon(device, Backing(backing, size), limit)
    buffer = _buffer()
    if not daemon.take([buffer]):
        return
    _, opcode, unique, *_ = fuse.HEAD.unpack_from(buffer)
    major, minor, readahead, offered = fuse.INIT_IN.unpack_from(buffer, _HEAD)
    if opcode != fuse.INIT or major != fuse.MAJOR:
        raise OSError(errno.EPROTO, "the kernel speaks another FUSE")
    os.write(device, fuse.init(unique, minor, offered, readahead, PAGESIZE))
    ready()
    daemon.run()


def _answer(daemon: Daemon) -> None:
    """Answer in a thread. However it ends, all of us end: then the kernel gives errors, and nobody waits for ever."""
    try:
        daemon.run()
        os._exit(0)
    finally:
        os._exit(1)


def _buffer() -> memoryview:
    """Return memory for a request, in which the data of a WRITE begins a page; a READ is answered from it, too."""
    return memoryview(mmap(-1, PAGESIZE + fuse.REQUEST))[PAGESIZE - fuse.DATA :][: fuse.REQUEST]


class Daemon:
    """A mounted node cache, as the daemon has it."""

    __slots__ = ("_backing", "_device", "_idle", "_leader", "_names", "_threads", "_turn", "_waiting")

    def __init__(self, device: int, backing: Backing, limit: int) -> None:
        """Begin with an empty one. limit: inodes."""
        self._device, self._backing = device, backing
        self._waiting = select.poll()
        self._waiting.register(device, select.POLLIN)
        os.set_blocking(device, False)
        self._names = Names(backing, limit)
        self._turn = allocate_lock()
        self._leader: object = None  # who has the turn
        self._idle, self._threads = 0, 1  # _idle: about to wait for the turn

    def run(self) -> None:
        """Answer until the file system is unmounted. Raises OSError.

        One thread has its turn: it takes requests and answers them. With one that may have to wait for the backing file
        it passes the turn on first, so that names and attributes never wait.
        """
        lock, handlers, tree = self._backing.lock, self._names.by_opcode, self._names.tree
        request, me = _buffer(), object()
        self._turn.acquire()
        self._leader = me
        while True:
            if not self.take([request]):
                return
            length, opcode, unique, node, uid, gid, _, _, _ = fuse.HEAD.unpack_from(request)
            body, inode = request[_HEAD:length], tree[node or fuse.ROOT]  # what asks many at once has no node
            slow = opcode in _SLOW or (opcode == fuse.SETATTR and body[0] & fuse.SIZE)
            if slow and opcode != fuse.WRITE:
                self._pass()
            try:
                if slow:
                    answer = self._data(opcode, unique, inode, request, body)
                else:
                    with lock:
                        answer = handlers[min(opcode, fuse.LAST + 1)](unique, inode, (uid, gid), body)
            except OSError as error:
                answer = fuse.error(unique, error.errno or errno.EIO)
            if answer:
                self._say(answer)
            if self._leader is not me:
                with lock:
                    self._idle += 1
                self._turn.acquire()
                self._leader = me

    def take(self, request: list[memoryview]) -> bool:
        """Read a request; return False if the file system was unmounted.

        Small files, created one after the other, take half the time if the daemon does not sleep between requests, and
        less of the processors too: neither it nor the program has to be woken on one that went idle.
        """
        while True:
            for _ in LOOKS:
                try:
                    os.readv(self._device, request)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return False
                    if error.errno not in _RETRY:
                        raise
                else:
                    return True
            self._waiting.poll()

    def _pass(self) -> None:
        """Let another thread have the turn; there is one, unless too many wait for the backing file."""
        with self._backing.lock:
            waits = self._idle > 0
            self._idle -= waits
            starts = not waits and self._threads < THREADS
            self._threads += starts
        if starts:
            try:
                start_new_thread(_answer, (self,))
            except RuntimeError:  # the user may have no more: names wait for us
                with self._backing.lock:
                    self._threads -= 1
        self._leader = None
        self._turn.release()

    def _say(self, answer: bytes | memoryview) -> None:
        try:
            os.write(self._device, answer)
        except FileNotFoundError:  # whoever asked waits no more
            return

    def _data(
        self, opcode: int, unique: int, inode: Inode, request: memoryview, body: memoryview
    ) -> bytes | memoryview:
        """Answer what may have to wait for the backing file, without the lock."""
        backing = self._backing
        if opcode == fuse.READ:
            _, offset, size, *_ = fuse.READ_IN.unpack_from(body)
            got = backing.read(inode, offset, request[_BEFORE : _BEFORE + size])
            fuse.REPLY.pack_into(request, 0, _BEFORE + got, 0, unique)
            return request[: _BEFORE + got]
        if opcode == fuse.WRITE:
            _, offset, size, flags, *_ = fuse.WRITE_IN.unpack_from(body)
            start = fuse.WRITE_IN.size
            cached = bool(flags & fuse.WRITE_CACHE)
            backing.write(inode, offset, body[start : start + size], cached=cached, before_waiting=self._pass)
            return fuse.WRITTEN.pack(fuse.WRITTEN.size, 0, unique, size, 0)
        if opcode == fuse.SETATTR:
            _, _, _, size, *_ = fuse.SETATTR_IN.unpack_from(body)
            backing.truncate(inode, size)
            with backing.lock:
                return self._names.by_opcode[opcode](unique, inode, (0, 0), body)
        if opcode == fuse.FALLOCATE:
            _, offset, size, mode, _ = fuse.FALLOCATE_IN.unpack_from(body)
            backing.allocate(inode, mode, offset, size)
        else:
            backing.sync(inode)
        return fuse.error(unique, 0)
