"""A node cache without any privilege: mount it, and start the daemon that serves it. Effects; Python 3.9."""

from __future__ import annotations

import _signal
import errno
import os

from . import linux
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_ATTRIBUTES = linux.NOSUID | linux.NODEV
_TMPFILE = 0o20000000 | os.O_DIRECTORY  # O_TMPFILE; os has it, but not under a name that mypy knows everywhere
_IGNORED = (
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM),
    *(_signal.SIGQUIT, _signal.SIGPIPE, _signal.SIGXCPU, _signal.SIGTTIN, _signal.SIGTTOU, _signal.SIGTSTP),
)
_NAME = b"sh-node-cache"  # for ps(1)
_WRONG = 4096  # bytes of what a daemon says that cannot begin
BYTES_A_FILE, FILES = 4096, 1_000_000  # a cache has an inode for so many bytes, and never more than FILES


class Server:
    """A daemon on its way up: the process that starts it, and a pipe on which it says that it serves."""

    __slots__ = ("_pid", "_said")

    def __init__(self, pid: int, said: int) -> None:
        """Hold the parts."""
        self._pid, self._said = pid, said

    def wait(self) -> None:
        """Wait until it serves. Raises Fail if it does not."""
        try:
            os.waitpid(self._pid, 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD
            pass
        said = os.read(self._said, _WRONG)
        os.close(self._said)
        if said != b"\n":
            raise Fail("cannot serve the node cache", said.decode(errors="replace").strip() or "its daemon has died")


def mount(device: int, place: str, size: int, held: int = -1) -> tuple[int, Server]:
    """Return the mount of a new, empty file system, attached nowhere, and its daemon.

    device: /dev/fuse, opened in the user namespace that owns the mount, in which 0 is the user; it is closed here.
    place: a directory to which the user may write, for the backing file. size: bytes. held: what the daemon has open
    until its end, for somebody who waits for that, or -1. Raises OSError.
    """
    backing = nameless(place)
    try:
        os.ftruncate(backing, size)
        options = {"source": "shoebox", "subtype": "shoebox", "fd": str(device), "rootmode": "40700", "user_id": "0"}
        options.update({"group_id": "0", "default_permissions": "", "allow_other": ""})
        mounted = linux.new_mount("fuse", options, _ATTRIBUTES)
        server = _start(device, backing, size, held)
    finally:
        os.close(backing)
        os.close(device)  # the daemon's is the last one: when it dies, the kernel refuses requests instead of waiting
    return mounted, server


def nameless(place: str) -> int:
    """Return a new file in a directory that has no name and is the user's alone. Raises OSError.

    Where a file cannot be made without a name, it has one that nobody foresees, for a moment.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(place, flags | _TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    path = os.path.join(place, f".shoebox-{os.urandom(16).hex()}")
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.unlink(path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _start(device: int, backing: int, size: int, held: int) -> Server:
    """Start the daemon: nobody's child, in a session of its own, with nothing of ours but these."""
    said, says = os.pipe()
    pid = os.fork()
    if pid:
        os.close(says)
        return Server(pid, said)
    status = 1
    try:
        os.setsid()
        if not os.fork():
            _serve(device, backing, size, says, held)
        status = 0
    finally:
        os._exit(status)


def _serve(device: int, backing: int, size: int, says: int, held: int) -> NoReturn:
    """Be the daemon."""
    status = 1
    try:
        device, backing, says, *_ = _alone([device, backing, says, *([held] if held >= 0 else [])])
        from . import cachedaemon  # noqa: PLC0415 - who mounts needs none of it

        def ready() -> None:
            os.write(says, b"\n")
            os.close(says)

        cachedaemon.serve(device, backing, size, min(size // BYTES_A_FILE + 16, FILES), ready)
        status = 0
    except OSError as error:
        try:
            os.write(says, (error.strerror or str(error)).encode())
        except OSError:
            pass
    finally:
        os._exit(status)


def _alone(kept: list[int]) -> list[int]:
    """Let go of everything but some descriptors, which become 3, 4 and so on. Batch systems' signals are not for us.

    They come before the job's end, in which its programs may still want to write; the kernel tells us when to end.
    """
    comm = os.open("/proc/self/comm", os.O_WRONLY)
    os.write(comm, _NAME)
    null = os.open("/dev/null", os.O_RDWR)
    top = max(*kept, null) + 8
    moved = [_dup_to(fd, top + index) for index, fd in enumerate(kept)]
    for fd in (0, 1, 2):
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
