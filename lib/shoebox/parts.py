"""Blobs on their way: bytes under a temporary name, hashed as they come, renamed when they are the right ones.

A part outlives its process, so that the next pull goes on where it stopped; layout.prepare sweeps old ones.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .oci import Descriptor

_BUFFER = 1 << 20  # bytes read, hashed and written at once
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # Lustre without -o flock, some NFS
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Part:
    """A blob on its way: bytes, hashed as they are written, under a temporary name that outlives us for a resume."""

    def __init__(self, path: str, fd: int, descriptor: Descriptor) -> None:
        """Take an open file, and hash what an earlier pull has left in it."""
        self._path = path
        self._fd = fd
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self.size = os.fstat(fd).st_size
        if self.size > descriptor.size:
            self.restart()
        with open(fd, "rb", buffering=0, closefd=False) as left:
            hash_file(left, self._sha256)

    def write(self, data: bytes | memoryview) -> None:
        """Append and hash. A full disk gives its space back, and is a Fail."""
        self._sha256.update(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise self._full(error) from error
        self.size += len(data)

    def restart(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._sha256 = hashlib.sha256()
        self.size = 0

    def publish(self) -> bool:
        """Give the blob its name if it is the right one, and tell; a wrong one is forgotten."""
        if self.size != self._descriptor.size or self._sha256.hexdigest() != self._descriptor.hex:
            self.restart()
            return False
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._full(error) from error
        os.rename(self._path, os.path.join(os.path.dirname(self._path), self._descriptor.hex))
        return True

    def _full(self, error: OSError) -> Fail:
        if error.errno in _FULL:
            self.restart()
        return Fail(f"cannot write to {os.path.dirname(self._path)!r}", error, "free space, or set SHOEBOX_CACHE")


@contextmanager
def take(blobs: str, descriptor: Descriptor, waiting: Callable[[], None]) -> Iterator[Part]:
    """Open a blob's temporary file for us alone.

    When another pull on this machine is at the same blob, be it another user's in a cache that a group shares, wait for
    it, calling waiting() every now and then (it may raise): check_blob then says whether anything is left to do. In the
    end an empty file is removed, and what killed pulls of other users left of a blob that is there; ours stays.
    """
    beginning = f".{descriptor.hex}.{kernel()}-"
    own = f"{beginning}{os.geteuid()}.part"
    shared = bool(os.stat(blobs).st_mode & 0o022)
    fd, path = _alone(blobs, own, beginning if shared else "", waiting)
    try:
        yield Part(path, fd, descriptor)
    finally:
        _leave(path, fd)
    if shared and os.path.lexists(os.path.join(blobs, descriptor.hex)):
        for other, busy in _others(blobs, beginning, own):  # of those who were killed
            with suppress(FileNotFoundError, PermissionError):
                if not busy:
                    os.unlink(other)


def forget(blobs: str, descriptor: Descriptor) -> None:
    """Remove our temporary file of a blob that is there, if nobody is at it: what a killed pull of ours has left."""
    path = os.path.join(blobs, f".{descriptor.hex}.{kernel()}-{os.geteuid()}.part")
    with suppress(OSError):  # there is none, somebody is at it, or there are no locks here
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(fd)


def _alone(blobs: str, own: str, beginning: str, waiting: Callable[[], None]) -> tuple[int, str]:
    """Open and lock our own file for a blob, when no other user is at the same one. beginning: of others' names, or "".

    Looked at before and after: of two who come at the same moment, both step back, each for a time of his own.
    """

    def free() -> bool:
        return not beginning or not any(busy for _, busy in _others(blobs, beginning, own))

    while True:
        if free():
            fd, path = _lock(os.path.join(blobs, own), waiting)
            if free():
                return fd, path
            _leave(path, fd)
        waiting()
        time.sleep(0.02 + os.urandom(1)[0] / 2000)


def _leave(path: str, fd: int) -> None:
    if os.fstat(fd).st_size == 0 and _same(path, fd):
        os.unlink(path)
    os.close(fd)


def _others(blobs: str, beginning: str, own: str) -> Iterator[tuple[str, bool]]:
    """Yield other users' files for a blob, and whether they are at work there, as far as we can see."""
    for name in os.listdir(blobs):
        if not name.startswith(beginning) or name == own:
            continue
        path = os.path.join(blobs, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # he has just finished; or it is private, and so is what comes of it
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield path, True
        except OSError:  # no locks here
            continue
        else:
            yield path, False
        finally:
            os.close(fd)


def hash_file(file: BinaryIO, sha256: hashlib._Hash) -> hashlib._Hash:
    """Feed a file to a hash, to its end."""
    buffer = memoryview(bytearray(_BUFFER))
    while count := file.readinto(buffer):  # type: ignore[attr-defined] # typeshed: BinaryIO lacks readinto
        sha256.update(buffer[:count])
    return sha256


def _lock(path: str, waiting: Callable[[], None]) -> tuple[int, str]:
    """Open and lock the file at path; where locks do not work, a file of our own with another name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        fd = os.open(path, flags, 0o644)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise Fail(f"cannot use {path!r}", "it belongs to somebody else", "remove it")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(path, fd):
                return fd, path
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
            waiting()
            time.sleep(0.05)
        except OSError as error:
            os.close(fd)
            if error.errno not in _NO_LOCKS:
                raise
            path = f"{path.removesuffix('.part')}-{threading.get_native_id()}.part"
            return os.open(path, flags | os.O_TRUNC, 0o644), path
        except Fail:
            os.close(fd)
            raise


def _same(path: str, fd: int) -> bool:
    """Tell whether the name still means the open file; its maker may have renamed it meanwhile."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def kernel() -> str:
    """Return what tells this running kernel from all others: within it, and only there, flock can be relied on."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()[:13]
    except OSError:
        return os.uname().nodename
