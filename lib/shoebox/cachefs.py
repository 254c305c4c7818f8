"""A node cache without any privilege: mount it, and start the daemon that serves it. Effects; Python 3.9."""

from __future__ import annotations

import _signal
import errno
import os
import sys

from . import enter, linux
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_IGNORED = (
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM),
    *(_signal.SIGQUIT, _signal.SIGPIPE, _signal.SIGXCPU, _signal.SIGTTIN, _signal.SIGTTOU, _signal.SIGTSTP),
)
_NAME = b"sh-node-cache"  # for ps(1)
_LONGEST = 4096  # bytes of what a daemon says that cannot begin
BYTES_A_FILE, FILES = 4096, 1_000_000  # a cache has an inode for so many bytes, and never more than FILES


class Server:
    """A daemon on its way up: the process that starts it, and a pipe on which it says that it serves, or why not."""

    __slots__ = ("_pid", "_place", "_said")

    def __init__(self, pid: int, said: int, place: str) -> None:
        """Hold the parts. place: where the data are, for people."""
        self._pid, self._said, self._place = pid, said, place

    def wait(self) -> None:
        """Wait until it serves. Raises Fail if it does not."""
        try:
            os.waitpid(self._pid, 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD: nobody has to
            self._pid = 0
        said = os.read(self._said, _LONGEST)
        os.close(self._said)
        if said != b"\n":
            why = said.decode(errors="replace").strip() or "its daemon has died"
            raise Fail(f"cannot serve the node cache in {self._place!r}", why, "try on=tmpfs")


def mount(device: int, place: str, size: int, held: int = -1) -> tuple[int, Server]:
    """Return the mount of a new, empty file system, attached nowhere, and its daemon.

    device: /dev/fuse, opened in the user namespace that owns the mount, in which 0 is the user; it is closed here.
    place: a directory to which the user may write, for the backing file. size: bytes. held: what the daemon has open
    until its end, for somebody who waits for that, or -1. Raises OSError.
    """
    backing = nameless(place)
    try:
        os.ftruncate(backing, size)
        mounted = enter.served(device, "shoebox", "shoebox", 0o700, linux.NOSUID | linux.NODEV)
        server = _start(device, backing, place, size, held)
    finally:
        os.close(backing)
        os.close(device)  # the daemon's is the last one: when it dies, the kernel refuses requests instead of waiting
    return mounted, server


def nameless(place: str) -> int:
    """Return a new file in a directory that has no name and is the user's alone. Raises OSError.

    Where a file cannot be made without a name, it has one that nobody foresees, for a moment.
    """
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _nameless(directory)
    finally:
        os.close(directory)


def _nameless(directory: int) -> int:
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(".", flags | linux.O_TMPFILE, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    name = f".shoebox-{os.urandom(16).hex()}"
    fd = os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        os.unlink(name, dir_fd=directory)
        if os.fstat(fd).st_nlink:  # whose directory it is gave it another name meanwhile
            raise OSError(errno.EPERM, "somebody else changes names there")
    except OSError:
        os.close(fd)
        raise
    return fd


def _start(device: int, backing: int, place: str, size: int, held: int) -> Server:
    """Start the daemon: nobody's child, in a session of its own, with nothing of ours but these."""
    said, says = os.pipe()
    pid = os.fork()
    if pid:
        os.close(says)
        return Server(pid, said, place)
    try:
        os.dup2(says, 2)
        os.setsid()
        if not os.fork():
            _serve(device, backing, size, held)
    finally:
        _end()


def _serve(device: int, backing: int, size: int, held: int) -> None:
    """Be the daemon. Raises OSError."""
    device, backing, *_ = _detach([device, backing, *([held] if held >= 0 else [])])
    from . import cachedaemon  # noqa: PLC0415 - who mounts needs none of it

    def ready() -> None:
        os.write(2, b"\n")
        os.dup2(1, 2)  # nobody listens any more: what goes wrong from here on is said nowhere, programs get errors

    cachedaemon.serve(device, backing, size, min(size // BYTES_A_FILE + 16, FILES), ready)


def _end() -> NoReturn:
    """End, whatever was raised: there must be no second sh-run. What it was is said to whoever waits for the daemon."""
    wrong = sys.exc_info()[1]
    try:
        if wrong:
            said = wrong.strerror if isinstance(wrong, OSError) else f"{type(wrong).__name__}: {wrong}"
            os.write(2, (said or str(wrong)).encode(errors="replace"))
    finally:
        os._exit(1 if wrong else 0)


def _detach(kept: list[int]) -> list[int]:
    """Let go of everything but 2 and some descriptors, which become 3, 4 and so on.

    Batch systems' signals are not for us: they come before the job's end, and its programs may still want to write. The
    kernel tells us when to end.
    """
    comm = os.open("/proc/self/comm", os.O_WRONLY)
    os.write(comm, _NAME)
    null = os.open("/dev/null", os.O_RDWR)
    top = max(*kept, null) + 8
    moved = [_dup_to(fd, top + index) for index, fd in enumerate(kept)]
    for fd in (0, 1):
        os.dup2(null, fd)
    placed = [_dup_to(fd, 3 + index) for index, fd in enumerate(moved)]
    linux.close_range(3 + len(kept), 0xFFFFFFFF)
    for signum in _IGNORED:
        _signal.signal(signum, _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    os.chdir("/")
    os.umask(0o077)
    return placed


def _dup_to(fd: int, wanted: int) -> int:
    return os.dup2(fd, wanted, inheritable=False)
