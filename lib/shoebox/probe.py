"""Looks into the image, through a descriptor of its root: no link in it leads out. Changes nothing."""

from __future__ import annotations

import errno
import os
from stat import S_ISDIR, S_ISREG

from . import host, linux
from .facts import DIRECTORY, FILE, MISSING, Facts, Look
from .identity import PATHS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .facts import Wish

CONFIG = "/.shoebox/config.json"
GONE = (errno.ENOTCONN, errno.ECONNABORTED)  # what the kernel says of a FUSE server that ended
_CONFIG_MOST = 16 << 20  # bytes
_ACCOUNTS_MOST = 1 << 20  # bytes of passwd(5) that we copy
_LINKS_MOST = 40  # as many as the kernel follows
_INSIDE = linux.IN_ROOT | linux.NO_MAGICLINKS


def looks(root: int, paths: Iterable[str]) -> dict[str, Look]:
    """Look at each of these paths in the image. Raises OSError if there is no telling what it has."""
    try:
        os.fstat(root)
    except FileNotFoundError as error:  # what squashfuse says of an inode that it cannot read
        raise OSError(errno.EIO, "it is damaged: its root directory cannot be read") from error
    return {path: _look(root, path) for path in paths}


def guesses(paths: Iterable[str], wanted: Iterable[Wish]) -> dict[str, Look]:
    """Return what we take an image to have that we cannot look into: directories, and all that mounts need."""
    found = {path: Look(path, FILE if path in PATHS else DIRECTORY) for path in paths}
    return {**found, **{wish.target: Look(wish.target, host.kind(wish.source)) for wish in wanted}}


def facts(root: int, seen: dict[str, Look], host_paths: Iterable[str], notes: list[str]) -> Facts:
    """Return all that plan wants to know: what was seen, what the host has, and the image's accounts.

    root: -1 if there is no looking into the image. Here and in config, what cannot be read is as if it were not there,
    and gets a note. Raises OSError if the image's server is gone.
    """
    passwd, group = (_read_or_note(root, path, _ACCOUNTS_MOST, notes) if root >= 0 else b"" for path in PATHS)
    return Facts(seen, {path: host.kind(path) for path in host_paths}, passwd, group, notes)


def config(root: int, notes: list[str]) -> bytes:
    """Return the OCI config that travels in the image, b"" if there is none."""
    return _read_or_note(root, CONFIG, _CONFIG_MOST, notes)


def kind(root: int, path: str) -> str:
    """Return the kind of what the image has at a path. Raises OSError if there is no telling."""
    return looks(root, [path])[path].kind


def text(root: int, path: str, notes: list[str]) -> bytes:
    """Return a file of the image, b"" if it is not there or, with a note, cannot be read."""
    return _read_or_note(root, path, _CONFIG_MOST, notes)


def _look(root: int, path: str) -> Look:
    wanted = path
    for _ in range(_LINKS_MOST):
        try:
            fd = linux.openat2(root, wanted, os.O_PATH, _INSIDE)
        except FileNotFoundError:
            wanted, missing = _lead(root, wanted)
            if missing:
                return Look(wanted, MISSING)
            continue
        except NotADirectoryError:
            return Look(wanted, MISSING, "in the image, something on the way to it is not a directory")
        except OSError as error:
            if error.errno == errno.ELOOP:
                break
            if error.errno == errno.ENOSYS:
                raise
            return Look(wanted, MISSING, f"in the image: {error.strerror}")
        try:
            kind = DIRECTORY if S_ISDIR(os.fstat(fd).st_mode) else FILE
            return Look(os.readlink(f"/proc/self/fd/{fd}"), kind)
        finally:
            os.close(fd)
    return Look(path, MISSING, "in the image, its symbolic links lead nowhere")


def _lead(root: int, path: str) -> tuple[str, bool]:
    """Return where a path leads that does not exist, with the links in what exists of it followed.

    The second value says whether that is the end; if not, the next link on the way was dangling and has been replaced.
    """
    head, rest = path, ""
    while True:
        head, _, name = head.rpartition("/")
        try:
            fd = linux.openat2(root, head or "/", os.O_PATH, _INSIDE)
        except FileNotFoundError:
            rest = f"/{name}{rest}"
            continue
        try:
            real = os.readlink(f"/proc/self/fd/{fd}").rstrip("/")
            try:
                link = os.readlink(name, dir_fd=fd)
            except OSError:  # nothing has that name
                return f"{real}/{name}{rest}", True
            return "/" + os.path.normpath(os.path.join(f"{real}/", link) + rest).lstrip("/"), False
        finally:
            os.close(fd)


def _read_or_note(root: int, path: str, most: int, notes: list[str]) -> bytes:
    try:
        return _read(root, path, most)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno in GONE:
            raise
        notes.append(f"cannot read the image's {path!r}: {error.strerror}")
        return b""


def _read(root: int, path: str, most: int) -> bytes:
    """Read a file of the image. Raises OSError, also if it is not a regular file or has more bytes than most."""
    fd = linux.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, _INSIDE)
    try:
        about = os.fstat(fd)
        if not S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", path)
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    finally:
        os.close(fd)
