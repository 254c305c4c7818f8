"""Copies of images on a node: how sh-run finds the one that a task of sh-stage --nodes keeps open. Effects.

The copy has no name: it is a file that a process of the job's has open (keep.py), so it is gone when that process and
all who run in it are, however they end. What has a name is a note of some kilobytes in the user's own directory on the
node, which says whose descriptor it is: fields that each end in NUL, then the sidecar. The process has the note locked,
and what looks for files of containers that have ended (join.sweep) takes it for one if nobody has.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from . import join, linux, step
from .fail import Fail, Stopped
from .host import slurp, stat
from .sidecar import MOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PART = "part-"  # and our pid: a note that has no name yet
_NOTE = b"copy"  # no number, as join's files begin with
_FIELDS = 10  # before the sidecar
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Copy:
    """An open copy of an image, and its sidecar."""

    __slots__ = ("fd", "sidecar")

    def __init__(self, fd: int, sidecar: bytes) -> None:
        """Hold the parts."""
        self.fd = fd
        self.sidecar = sidecar

    @property
    def file(self) -> str:
        """A path by which we, and programs that we start, open the copy again."""
        return f"/proc/self/fd/{self.fd}"


def find(path: str, env: Mapping[str, str]) -> Copy | None:
    """Return this node's copy of the image at a path, None if the job has none here. Makes nothing, raises nothing.

    path: as store.find returned it. A file that was replaced since is another image.
    """
    job = env.get("SLURM_JOB_ID", "")
    if not job:
        return None
    try:
        about = os.stat(path)
        directory, _ = join.opened(make=False)
        return read(directory, words(job, path, about)) if directory >= 0 else None
    except (Fail, OSError, ValueError):  # then the image itself has to do
        return None


def words(job: str, path: str, about: os.stat_result) -> list[str]:
    """Return what tells a copy from others. about: of the image that was copied."""
    return [job, path, str(about.st_size), str(about.st_mtime_ns)]


def read(directory: int, wanted: list[str]) -> Copy | None:
    """Return the copy with these words, None if there is none. Raises OSError, ValueError.

    directory: the user's own, where the note would be.
    """
    try:
        file = os.open(step.file_name(wanted), _OPEN, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        about = os.fstat(file)
        data = os.pread(file, about.st_size, 0) if about.st_size <= MOST + (1 << 16) else b""
    finally:
        os.close(file)
    fields = data.split(b"\0", _FIELDS)
    if about.st_uid != os.getuid() or len(fields) <= _FIELDS:
        return None
    kind, *told, boot, space, pid, start, number = fields[:_FIELDS]
    if kind != _NOTE or [os.fsdecode(word) for word in told] != wanted or [boot, space] != _here():
        return None
    # Once it is open, this directory is of no process that may get the same pid later.
    process = os.open(b"/proc/" + pid, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if stat("stat", process)[19:20] != [start.decode()]:
            return None
        fd = os.open(b"fd/" + number, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    finally:
        os.close(process)
    about = os.fstat(fd)
    if S_ISREG(about.st_mode) and about.st_uid == os.getuid() and str(about.st_size) == wanted[2]:
        return Copy(fd, fields[_FIELDS])
    os.close(fd)
    return None


def note(wanted: list[str], fd: int, sidecar: bytes) -> bytes:
    """Return the note that says that we have a copy with these words open at a descriptor."""
    ours = [str(os.getpid()), join.born("self"), str(fd)]
    fields = [_NOTE, *map(os.fsencode, wanted), *_here(), *map(str.encode, ours)]
    return b"".join(field + b"\0" for field in fields) + sidecar


def publish(directory: int, wanted: list[str], data: bytes) -> int:
    """Give a note its name, and return its descriptor, which has it locked. Raises OSError."""
    name = step.file_name(wanted)
    part = f"{PART}{os.getpid()}"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        linux.flock(fd, linux.LOCK_EX)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
    except (OSError, Stopped):
        os.unlink(part, dir_fd=directory)
        os.close(fd)
        raise
    return fd


def withdraw(directory: int, wanted: list[str], fd: int) -> None:
    """Remove a note of ours, unless its name has become another's. fd: as publish returned it. Raises OSError."""
    name = step.file_name(wanted)
    about, ours = os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(fd)
    if (about.st_dev, about.st_ino) == (ours.st_dev, ours.st_ino):
        os.unlink(name, dir_fd=directory)


def _here() -> list[bytes]:
    """Return what pids are good for: since when, and among which processes."""
    return [slurp("/proc/sys/kernel/random/boot_id").strip(), os.fsencode(os.readlink("/proc/self/ns/pid"))]
