"""A directory that keeps the changes of --writable: looked at, taken for one run at a time, and let go. Effects.

All this happens in the outer user namespace, in which 0 is the user.
"""

from __future__ import annotations

import errno
import os
import time

from . import linux, writable
from .fail import Fail, say
from .host import kind, text
from .join import born
from .paths import under
from .writable import CHANGES, FREE, HELD, IMAGE, LOCK, NEXT, OVERLAY, TAR, UNKNOWN, UPPER, WORK, Owner, Writable

_TRIES = 5
_PAUSE = 0.05  # seconds
_SUPERBLOCK = 96  # bytes
_XATTR = "user.shoebox"
_TRIAL = ("lower", UPPER, WORK)


class Image:
    """The image that changes belong to: see writable.record."""

    __slots__ = ("digest", "mode", "path", "shape")

    def __init__(self, path: str, digest: str, mode: int, offset: int, *, is_directory: bool) -> None:
        """Look at it. digest: "" if it is not known; mode: of its root directory; offset: of its squashfs, bytes.

        Raises OSError.
        """
        self.path = path
        self.digest = digest
        self.mode = mode
        self.shape = os.fsencode(path).hex() if is_directory else superblock(path, offset)


class Taken:
    """A directory that is ours for this run: open, its path, and what its lock says."""

    __slots__ = ("fd", "owner", "path")

    def __init__(self, fd: int, path: str, owner: Owner) -> None:
        """Hold the parts."""
        self.fd = fd
        self.path = path
        self.owner = owner


def superblock(path: str, offset: int) -> str:
    """Return what tells one squashfs from another, if no digest is known, in hex. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, _SUPERBLOCK, offset).hex()
    finally:
        os.close(fd)


def look(wanted: Writable, image: str) -> Writable:
    """Return the same with the form, the directory's real path, and why. Nothing that is made for it stays.

    image: its real path. Raises Fail.
    """
    path = os.path.realpath(wanted.directory)
    try:
        there = set(os.listdir(path))
        mine = os.stat(path).st_uid == os.getuid()
    except FileNotFoundError:
        there, mine = set(), True
    except OSError as error:
        raise _cannot(path, error) from error
    if not mine:
        raise _cannot(path, "it is not yours", "make a directory of your own")
    if under(path, image) or (under(image, path) and os.path.isdir(image)):
        raise _cannot(path, f"it and the image {image!r} lie in each other", "choose another directory")
    form, why = writable.form(there, lambda: _trial(path if kind(path) else os.path.dirname(path)))
    return Writable(form, path, wanted.size, why)


def take(wanted: Writable, image: Image, step: str) -> Taken:
    """Take a directory that `look` has seen, and make what it lacks. Raises Fail.

    step: a name of it, or "": where the container of the same step has it, and could not be joined, it is about to end.
    """
    path = wanted.directory
    try:
        _make(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        process = (os.getpid(), born(os.getpid()))
        taken = Taken(fd, path, Owner(here(), process, int(time.time()), wanted.form, step))
        before = _lock(taken)
    except OSError as error:
        raise _cannot(path, error) from error
    try:
        _record(taken, image)
        if wanted.form == OVERLAY:
            make_upper(fd, image.mode)
    except OSError as error:
        release(taken)
        raise _cannot(path, error) from error
    except Fail:
        release(taken)
        raise
    if before and before.form == TAR:
        since = _when(before.since)
        say(
            f"warning: the run by process {before.pid}, since {since}, could not save to {path!r}: its changes are lost"
        )
    return taken


def release(taken: Taken) -> None:
    """Let others take the directory."""
    try:
        if os.readlink(LOCK, dir_fd=taken.fd) == taken.owner.pack():
            os.unlink(LOCK, dir_fd=taken.fd)
    except OSError:  # somebody was told to remove it, and did; or what is wrong with the directory is told already
        return


def make_upper(directory: int, mode: int) -> None:
    """Make what overlay writes to, if it is not there; the image's root gets this mode, and the user's own group.

    Raises OSError.
    """
    for name in (WORK, UPPER):  # the one that counts last
        if not _make(name, 0o700, directory):
            continue
        # A directory that hands down its group would give one to files that nobody has inside.
        os.chown(name, -1, os.getgid(), dir_fd=directory)
        os.chmod(name, mode & 0o7777 if name == UPPER else 0o700, dir_fd=directory)


def _make(path: str, mode: int, at: int | None = None) -> bool:
    """Make a directory, unless there is something; return whether we have."""
    try:
        os.mkdir(path, mode, dir_fd=at)
    except FileExistsError:
        return False
    return True


def _cannot(path: str, why: str | OSError, todo: str = "") -> Fail:
    return Fail(f"cannot keep changes in {path!r}", why, todo)


def _trial(where: str) -> str:
    """Mount an overlay over directories made for it, as --writable would; return why it cannot be. Raises Fail."""
    prefix = f".shoebox-{os.uname().nodename}-"
    top = os.path.join(where, f"{prefix}{os.getpid()}")
    try:
        for name in os.listdir(where):
            if name.startswith(prefix) and name[len(prefix) :].isdecimal() and not born(int(name[len(prefix) :])):
                _remove_trial(os.path.join(where, name))  # of one who was killed
        os.mkdir(top, 0o700)
    except OSError as error:
        raise _cannot(where, error) from error
    paths = {name: f"{top}/{name}" for name in _TRIAL}
    try:
        for path in paths.values():
            os.mkdir(path)
        os.setxattr(paths[UPPER], _XATTR, b"y")
        at = os.open(top, os.O_PATH | os.O_CLOEXEC)
        try:
            options = {f"{name}dir": f"/proc/self/fd/{at}/{name}" for name in paths}
            mount = linux.new_mount("overlay", {"source": "shoebox", **options, "userxattr": ""}, linux.NOSUID)
            os.close(mount)
        finally:
            os.close(at)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        _remove_trial(top)
    return ""


def _remove_trial(top: str) -> None:
    for name in (f"{WORK}/work", *_TRIAL, ""):
        try:
            os.rmdir(f"{top}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            continue


def here() -> tuple[str, str, str]:
    """Return what a lock says of the place that we are in: node, boot, pid namespace."""
    boot = (text("/proc/sys/kernel/random/boot_id") or "").strip()
    return os.uname().nodename, boot, os.readlink("/proc/self/ns/pid")[len("pid:[") : -1]


def _lock(taken: Taken) -> Owner | None:
    """Take the lock; return who had it and ended without letting it go. Raises Fail or OSError.

    Who takes one over holds `lock.next` meanwhile, which becomes the lock: so two cannot replace each other's.
    """
    fd, ours = taken.fd, taken.owner.pack()
    tries = _TRIES
    while tries:
        tries -= 1
        try:
            os.symlink(ours, LOCK, dir_fd=fd)
        except FileExistsError:
            said, owner = _ended(taken, LOCK)
        else:
            return None
        if not owner:
            if said:  # our own step's: it is saving
                tries = _TRIES
                time.sleep(_PAUSE)
            continue
        try:
            os.symlink(ours, NEXT, dir_fd=fd)
        except FileExistsError:
            if _ended(taken, NEXT)[1]:
                os.unlink(NEXT, dir_fd=fd)
            continue
        if _said(fd, LOCK) == said:
            os.rename(NEXT, LOCK, src_dir_fd=fd, dst_dir_fd=fd)
            return owner
        os.unlink(NEXT, dir_fd=fd)
    raise _cannot(taken.path, "others are taking it at this moment", "try again")


def _ended(taken: Taken, name: str) -> tuple[str, Owner | None]:
    """Return what a lock says, and its owner, who has ended; no text if the lock has gone, nobody if we are to wait.

    Raises Fail if it counts.
    """
    said = _said(taken.fd, name)
    if not said:
        return "", None
    owner = writable.read_lock(said)
    place = os.path.join(taken.path, name)
    if not owner:
        raise _cannot(taken.path, f"{place!r} is not ours", "remove it")
    here = taken.owner.place
    verdict = writable.judge(owner, here, born)
    if verdict == UNKNOWN and owner.form == taken.owner.form == OVERLAY and owner.place[:2] == here[:2]:
        verdict = FREE  # our kernel knows: it refuses an upper directory that is in use
    if verdict == FREE:
        return said, owner
    if verdict == HELD and owner.step and owner.step == taken.owner.step:
        return said, None
    why = f"process {owner.pid} on {owner.place[0]} has it, since {_when(owner.since)}"
    seen = verdict != UNKNOWN
    todo = "wait for its end, or choose another directory" if seen else f"if it has ended, remove {place!r}"
    raise _cannot(taken.path, why, todo)


def _said(fd: int, name: str) -> str:
    """Return a lock's text, "" if there is none, a blank if it is no symbolic link."""
    try:
        return os.readlink(name, dir_fd=fd)
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return " "


def _when(since: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))


def _record(taken: Taken, image: Image) -> None:
    """Note which image the changes belong to. Raises Fail if they are another's, OSError."""
    known = text(os.path.join(taken.path, IMAGE))
    there = os.listdir(taken.fd)
    if known is not None and writable.belongs(known, image.digest, image.shape):
        return
    if known is not None and (UPPER in there or CHANGES in there):
        why = f"they are those of another image, {writable.recorded_path(known)!r}"
        raise _cannot(taken.path, why, "run that one, or choose another directory")
    part = f".{IMAGE}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=taken.fd)
    try:
        os.write(fd, os.fsencode(writable.record(image.digest, image.shape, image.path)))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(part, IMAGE, src_dir_fd=taken.fd, dst_dir_fd=taken.fd)
