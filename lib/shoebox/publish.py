"""Publishing: how images, sidecars and names enter a store, so that whatever bears a real name is whole.

It holds on NFS and Lustre, and whenever we are killed: a temporary name, fsync, rename(2) within the store; no locks,
no hard links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from .fail import Fail, say
from .readers import UMASK, Readers, add, both, change, foreign, give, of
from .sidecar import load
from .store import holds, image_file, sidecar_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RETIRED = ".retired"
_PART = ".part-"
_RSYNCS = (".sha256-", ".~tmp~")  # what rsync calls files that come from another host
_STALE = 2 * 86400  # seconds after which a temporary file of another host is nobody's


def prepare(store: str, readers: Readers = UMASK) -> None:
    """Make the store if there is none, and remove what killed processes left in it."""
    _make(store, readers)
    sweep(store)


def sweep(directory: str) -> None:
    """Remove the temporary files of this host whose process is gone, and those of any host that are two days old."""
    for file in os.listdir(directory):
        if not file.startswith((_PART, *_RSYNCS)):
            continue
        path = os.path.join(directory, file)
        # Another sweeper may be quicker, or it is another user's.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if abandoned(file, os.lstat(path).st_mtime):
                _remove(path)


def abandoned(file: str, mtime: float) -> bool:
    """Tell whether a file's name is that of a temporary one that nobody works on any more."""
    if not file.startswith((_PART, *_RSYNCS)):
        return False
    host, _, pid = file[len(_PART) :].rpartition("-")[0].rpartition("-")
    return (host == os.uname().nodename and _gone(pid)) or time.time() - mtime > _STALE


def temporary(store: str) -> str:
    """Return a path in the store for a file to be, which image will give its name. No file is made.

    The path names our host and process, so that prepare knows when nobody works on it any more.
    """
    return os.path.join(store, f"{_PART}{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}")


def create(part: str, size: int, readers: Readers = UMASK) -> int:
    """Make a temporary file for size bytes and return a descriptor to write to.

    On Lustre it is spread over several targets: one file that many nodes read at once must not be one server's work.
    """
    where = os.path.dirname(part)
    stripe = ("setstripe", "-c", str(stripes(size)), part)
    if shutil.which("lfs") and not _lfs("getstripe", "-d", where) and _lfs(*stripe, umask=0o777 & ~readers.begin):
        say(f"cannot stripe {part!r}: it gets the stripes that {where!r} has")
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, readers.begin)


def stripes(size: int) -> int:
    """Return how many Lustre targets a file of size bytes gets: one for each 128 MiB, 16 at most."""
    return max(1, min(16, size >> 27))


def pin_file(image: str) -> str:
    """Return the path or name of the file that keeps an image, which ends in .sqfs, from sh-expire and sh-rm."""
    return f"{image[: -len('.sqfs')]}.pin"


def directory_mode(mode: int) -> int:
    """Return the mode of a directory for files of a mode: who may read them may search it, all may never write."""
    return 0o700 | mode & 0o774 | (mode & 0o444) >> 2


def discard(path: str) -> None:
    """Remove a temporary file, if it has not been given a name."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def image(store: str, part: str, sidecar: bytes, stems: Iterable[str] = (), readers: Readers = UMASK) -> str:
    """Give a finished temporary file in the store its name, with its sidecar and its names; return the image's path.

    stems: of the references, Reference.stem. readers: of what is made; who may read what it takes the place of stays.
    At every moment an image that bears its name is whole, and the sidecar beside it is its own. If the store has the
    same content already, part is removed; if it has another file of this digest (other settings), that one is retired.
    """
    known = load(sidecar, "the image's sidecar")
    path = os.path.join(store, image_file(known.hex))
    beside = temporary(store)
    try:
        readers = heirs(store, known.hex, readers)
        _finish(part, readers, known.size)
        _write(beside, sidecar, readers)
        # Only now: in all that time, somebody else may have been quicker with the same. Renewed first: sh-expire puts
        # back what it finds renewed, or it has taken it before, and we see that.
        renew(path)
        if not holds(store, known):
            retire(store, known.hex, readers)
            # The sidecar first: the image's name is what says that both are there.
            os.rename(beside, sidecar_file(path))
            os.rename(part, path)
            if not os.path.lexists(sidecar_file(path)):  # see retire
                _write(beside, sidecar, readers)
                os.rename(beside, sidecar_file(path))
            sync(store)
    finally:
        discard(beside)
        discard(part)
    for stem in stems:
        name(store, stem, known.hex, readers)
    return path


def refresh(image: str, sidecar: bytes) -> None:
    """Replace the sidecar of an image by one of the same content that knows more; who may read it stays as it is.

    If sh-expire has just taken it away, nothing happens: whoever asks for this looks again afterwards.
    """
    known = sidecar_file(image)
    part = temporary(os.path.dirname(image))
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(sidecar)
        was = os.stat(known)
        with contextlib.suppress(PermissionError):  # another's image, in a group of his
            os.chown(part, -1, was.st_gid)
        shutil.copystat(known, part)  # its ACL too
        _finish(part, UMASK, len(sidecar))
        os.rename(part, known)
        sync(os.path.dirname(image))
    except FileNotFoundError:
        return
    finally:
        discard(part)


def name(store: str, stem: str, digits: str, readers: Readers = UMASK) -> None:
    """Let a name in the store mean the image of this digest from now on."""
    path = os.path.join(store, f"{stem}.sqfs")
    meant = "../" * stem.count("/") + image_file(digits)
    with contextlib.suppress(OSError):  # there is none, or it is no link
        if os.readlink(path) == meant:
            return
    _make(os.path.dirname(path), readers)
    new = temporary(store)
    os.symlink(meant, new)
    try:
        os.rename(new, path)
    finally:
        discard(new)
    sync(os.path.dirname(path))


def heirs(store: str, digits: str, readers: Readers) -> Readers:
    """Return who is to read what may take the place of a store's image: its readers if it is private, and who was asked
    for. Raises Fail if that is another's, and not for us; OSError.
    """
    path = os.path.join(store, image_file(digits))
    with contextlib.suppress(FileNotFoundError):
        there = of(path)
        if there.private and not os.access(path, os.R_OK):
            raise foreign(path)
        return both(there, readers)
    return readers


def admit(image: str, readers: Readers) -> None:
    """Let these read an image that is there already, if they were asked for: see readers.add. Raises Fail, OSError."""
    files = sidecar_file(image), pin_file(image), image  # the image last: without it, the others say nothing
    add(filter(os.path.lexists, files), readers)


def narrow(image: str, readers: Readers) -> None:
    """Let only these read an image of ours that is there, and of which we have learnt that it is not for everybody."""
    if readers.private and not of(image).private:
        try:
            for path in filter(os.path.lexists, (image, pin_file(image), sidecar_file(image))):
                change(path, readers)
        except PermissionError:
            say(f"{image!r} is another's, and stays for everybody to read, though the registry has it so no more")


def renew(path: str) -> None:
    """Let an image that is there count as staged now, if it is ours: its sidecar tells when that was."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.utime(sidecar_file(path))


def retire(store: str, digits: str, readers: Readers = UMASK, *, stays: Callable[[], bool] | None = None) -> bool:
    """Move an image and its sidecar to .retired/, if they are there: who runs from it, by NFS too, keeps its inode.

    stays: asked when nobody can find the image any more, whether it has to come back, which then is tried; what it
    looks at may have changed until then. Returns whether we have moved an image, and it did not come back.
    """
    image = os.path.join(store, image_file(digits))
    beside = sidecar_file(image)
    away = os.path.join(store, RETIRED, f"sha256-{digits}.{int(time.time())}-{os.urandom(4).hex()}")
    was = _identity(image), _identity(beside)
    if was == (None, None):
        return False
    _make(os.path.join(store, RETIRED), readers)
    # The image first: without it, its sidecar says nothing.
    moved = _move(image, f"{away}.sqfs")
    newer = moved and _identity(f"{away}.sqfs") != was[0]  # somebody has replaced it a moment ago
    if newer or (moved and stays and stays() and _identity(beside) == was[1]):
        if not os.path.lexists(image):
            _move(f"{away}.sqfs", image)
        return False
    # Somebody may be staging the same image at this moment; his sidecar is not to be moved. If it was after all, either
    # he sees that it has gone, once his image is there, or we see his image.
    if _identity(beside) == was[1]:
        _move(beside, f"{away}.json")
    if os.path.lexists(image) and not os.path.lexists(beside):
        _move(f"{away}.json", beside)
    return moved


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _move(path: str, new: str) -> bool:
    """Rename, and tell; False if another one was quicker."""
    try:
        os.rename(path, new)
    except FileNotFoundError:
        return False
    return True


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):  # where sh-flatten unpacked an image
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _gone(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError, OverflowError):
        return False
    return False


def _make(path: str, readers: Readers) -> None:
    """Make a directory and those above it that lack. None is for everybody to write, whatever the umask."""
    if os.path.isdir(path):
        return
    _make(os.path.dirname(path), readers)
    try:
        os.mkdir(path, 0o775)
    except FileExistsError:
        return
    if readers.mode is not None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            setgid = os.fstat(fd).st_mode & 0o2000
            give(fd, replace(readers, mode=setgid | directory_mode(readers.mode)))
        finally:
            os.close(fd)


def _lfs(*words: str, umask: int = -1) -> int:
    quiet = subprocess.DEVNULL  # its stdin too: ours may be the list of names
    run = subprocess.run(["lfs", *words], stdin=quiet, stdout=quiet, stderr=quiet, check=False, umask=umask)
    return run.returncode


def _write(path: str, data: bytes, readers: Readers) -> None:
    """Make a small file that is not there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, readers.begin)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except OSError as error:  # of write(2), which names no file
        raise OSError(error.errno, error.strerror, os.path.dirname(path)) from error
    _finish(path, readers, len(data))


def _finish(path: str, readers: Readers, size: int) -> None:
    """Give a temporary file to its readers, and see it on the disk. Raises Fail if it is not size bytes long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_size != size:
            raise Fail(f"cannot keep {path!r}", f"it has {os.fstat(fd).st_size} bytes, not {size}", "try again")
        give(fd, readers)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(directory: str) -> None:
    """See a directory's new names on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some FUSE file systems have no fsync of directories
            raise
    finally:
        os.close(fd)
