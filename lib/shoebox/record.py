"""The line that a run leaves where site.conf's `usage` says: once for a step and a node. Effects; Python 3.9.

    TIME UID IMAGE JOB NODE WAY     e.g. 1795400230 1000 sha256:HEX 4711.0 n12 fuse

Nobody waits for it, and no failure counts: these are figures. syslog gets a datagram, which is lost if its buffer is
full. A file may lie on a file system that hangs, where nothing that we do ends before that does: open(2) does not heed
O_NONBLOCK, and who is stuck there cannot exec. So a process that nobody waits for writes it, which ends with its write,
or by its own alarm: the waits of NFS, Lustre and FUSE end for a deadly signal.
"""

from __future__ import annotations

import _signal
import os
import time

from . import host, linux, paths, step, store
from .fail import Fail
from .site import FACILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = "/dev/log"  # where syslogd listens
MOST = 16 << 20  # bytes of a file; then it becomes the older of two
KEPT = "kept"  # the way of a step that uses the container which Slurm's plugin has kept from an earlier one
_INFO = 6  # a severity of syslog(3)
_PATIENCE = 10  # seconds
_LONGEST = 128  # characters of a field that has no other limit
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;_+@/[]()=-")
_TYPE, _IS_FILE = 0o170000, 0o100000  # of st_mode
_SETGID = 0o2000
# What tells ranks of a node apart where each makes a container of its own.
_RANKS = ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "FLUX_TASK_LOCAL_ID")


def is_first(env: Mapping[str, str]) -> bool:
    """Tell whether a rank that shares its container with nobody is the one of its node to leave a line."""
    return all(env.get(name, "0") == "0" for name in _RANKS)


def leave(where: str, image: str, way: str, env: Mapping[str, str], uid: int) -> None:
    """Leave a line. where: an absolute directory, or a facility. image: as given, or its path. uid: as outside."""
    named = step.names(env)
    text = line(time.time(), uid, _digest(image, env), named[0] if named else "", os.uname().nodename, way)
    if where in FACILITIES:
        _send(where, text)
    else:
        _behind(where, text, uid)


def again(image: str, env: Mapping[str, str]) -> None:
    """Leave a line of a step that uses a container which was kept for the job, if the site wants one."""
    from . import site  # noqa: PLC0415 - the other way in has read it

    try:
        found = site.load(paths.SITE, site.NONE, host.text)
    except Fail:  # it was right when the container was made
        return
    if found and found.usage:
        leave(found.usage, image, KEPT, env, os.getuid())


def line(now: float, uid: int, image: str, job: str, node: str, way: str) -> str:
    """Return a line without its newline: fields without blanks, `-` for one that is empty, %XX for odd bytes."""
    return " ".join(map(_field, (str(int(now)), str(uid), image, job, node, way)))


def _field(text: str) -> str:
    text = text[:_LONGEST]
    if text in ("", "-"):
        return "%2D" if text else "-"
    if not set(text) - _PLAIN:
        return text
    return "".join(c if c in _PLAIN else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c in text)


def _digest(image: str, env: Mapping[str, str]) -> str:
    """Return what a store calls an image, "" for a user's own file or directory that nothing is known of."""
    try:
        path = store.find(image, env)
        name, _, kind = os.path.basename(path).rpartition(".")
        if kind == "sqfs" and name.startswith("sha256-") and len(name) == 71:
            return f"sha256:{name[7:]}"
        if kind == "squashfs":
            return f"id:{name}"
        known = store.read_sidecar(path)
    except (Fail, OSError):
        return ""
    return f"sha256:{known.hex}" if known else ""


def _send(facility: str, text: str) -> None:
    """Send a line to syslog, as syslog(3) does, but never wait."""
    from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_DGRAM, socket  # noqa: PLC0415 - see handover

    now = time.strftime("%b %e %H:%M:%S")
    data = f"<{FACILITIES[facility] << 3 | _INFO}>{now} sh-run[{os.getpid()}]: {text}".encode()
    try:
        wire = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        wire.setblocking(False)
        wire.connect(LOG)
        wire.send(data, MSG_DONTWAIT)
        wire.close()
    except OSError:  # nobody listens, or not fast enough
        return


def _behind(directory: str, text: str, uid: int) -> None:
    """Have a process write the line that is nobody's child, has nothing of ours open, and soon ends."""
    try:
        child = os.fork()
    except OSError:  # too many processes
        return
    if child:
        try:
            os.waitpid(child, 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD
            return
        return
    try:
        if not os.fork():
            _alone()
            write(directory, text, uid)
    finally:
        os._exit(0)


def _alone() -> None:
    """Let go of what the run has, and of its terminal; end in time."""
    os.setsid()
    linux.close_range(0, 0xFFFFFFFF)
    os.open("/dev/null", os.O_RDWR)
    for fd in (1, 2):
        os.dup2(0, fd)
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.alarm(_PATIENCE)
    os.chdir("/")


def write(directory: str, text: str, uid: int) -> None:
    """Append a line to DIRECTORY/UID.log; one that is too long becomes UID.log.1. Raises OSError.

    Others may write to the directory: what is not a plain file of the user's own, with this one name, is left alone.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_PATH)
    name = f"{uid}.log"
    # In a set-group-ID directory the group is one that the site has chosen, to read what users leave.
    mode = 0o640 if os.fstat(top).st_mode & _SETGID else 0o600
    for _ in range(2):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, mode, dir_fd=top)
        about = os.fstat(fd)
        if about.st_mode & _TYPE != _IS_FILE or about.st_uid != os.getuid() or about.st_nlink != 1:
            return
        if about.st_size < MOST:
            break
        # Two may see it at once; who comes second would have the new file replace the older: so look again.
        if os.stat(name, dir_fd=top, follow_symlinks=False).st_ino == about.st_ino:
            os.rename(name, f"{name}.1", src_dir_fd=top, dst_dir_fd=top)
        os.close(fd)
    os.write(fd, text.encode() + b"\n")
