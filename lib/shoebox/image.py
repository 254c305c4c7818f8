"""An image opened for reading: where its squashfs lies, what is known of it, and its bytes, hashed as they go."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import reference, sidecar, sif, store, superblock
from .fail import LATER, Fail, say
from .meter import meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .sidecar import Sidecar

_BLOCK = 1 << 20  # bytes; with 4 MiB the hash finds its data no longer in the cache, and takes longer


@dataclass(frozen=True)
class Image:
    """A squashfs in an open file, offset and size in bytes; its sidecar, as text and read; the stems of its names."""

    path: str
    fd: int
    offset: int
    size: int
    sidecar: bytes
    known: Sidecar
    stems: list[str]

    @property
    def label(self) -> str:
        """What people call it."""
        return store.called(self.stems[0]) if self.stems else os.path.basename(self.path)

    def uncopied(self, place: object, why: str | OSError, todo: str = "", status: int = 0) -> Fail:
        """Return what to say when it cannot be copied to a store."""
        return Fail(f"cannot copy {self.path!r} to {str(place)!r}", why, todo, status)

    def check(self, sha256: str) -> None:
        """Raise Fail if this is not the sha256 that the sidecar says."""
        if sha256 != self.known.sha256:
            why = f"its sha256 is {sha256}, its sidecar says {self.known.sha256}"
            raise Fail(f"cannot use {self.path!r}", why, "make it again with sh-flatten")


@contextmanager
def opened(path: str, *, quiet: bool, made: bytes = b"") -> Iterator[Image]:
    """Open the image at a path that store.find returned: a squashfs, or a SIF file for the squashfs in it.

    Its superblock is checked. Without a sidecar, one is made that knows its sha256 and size only; made: that, when it
    has been made before. Raises Fail.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Fail(f"cannot open {path!r}", error) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise Fail(f"cannot use {path!r}", "it is a directory", "make an image of it with sh-flatten")
        if not stat.S_ISREG(mode):
            raise Fail(f"cannot use {path!r}", "it is not a file")
        offset, size = _squashfs(fd, path)
        text = store.sidecar_text(path) or made
        if not text:
            with meter(size, "hash", quiet) as advance:
                text = sidecar.dump(sha256=pour(fd, offset, size, None, advance), size=size)
        known = sidecar.load(text, store.sidecar_file(path))
        if known.size != size:
            why = f"it has {size} bytes, its sidecar says {known.size}"
            raise Fail(f"cannot use {path!r}", why, "make it again with sh-flatten")
        yield Image(path, fd, offset, size, text, known, _stems(path, known))
    finally:
        os.close(fd)


def whole(path: str) -> bool:
    """Tell whether there is a squashfs that begins well and is not cut off."""
    try:
        with open(path, "rb") as file:
            _squashfs(file.fileno(), path)
    except (Fail, FileNotFoundError):
        return False
    return True


def blocks(fd: int, offset: int, size: int) -> Iterator[bytes]:
    """Yield size bytes of an image's file, from offset on. Raises Fail, also if it ends before."""
    os.posix_fadvise(fd, offset, size, os.POSIX_FADV_SEQUENTIAL)
    end = offset + size
    while offset < end:
        try:
            block = os.pread(fd, min(_BLOCK, end - offset), offset)
        except OSError as error:
            path = os.readlink(f"/proc/self/fd/{fd}")
            raise Fail(f"cannot read {path!r}", error) from error
        if not block:
            raise Fail("the image became shorter while it was read", todo="try again", status=LATER)
        offset += len(block)
        yield block


def pour(fd: int, offset: int, size: int, sink: int | None, advance: Callable[[int], None]) -> str:
    """Write size bytes of a file, from offset on, to a descriptor, if there is one, and return their sha256 in hex.

    advance: called with the count of bytes, as they go. Raises Fail for what cannot be read, OSError.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as pool:  # one block is hashed while it is written and the next one read
        hashed = pool.submit(digest.update, b"")
        for block in blocks(fd, offset, size):
            hashed.result()
            hashed = pool.submit(digest.update, block)
            rest = memoryview(block)
            while sink is not None and rest:
                rest = rest[os.write(sink, rest) :]
            advance(len(block))
    return digest.hexdigest()


def _squashfs(fd: int, path: str) -> tuple[int, int]:
    """Return (offset, size) of the squashfs in an open file. Raises Fail if there is none, or it is not whole."""
    offset, size = 0, os.fstat(fd).st_size
    head = os.pread(fd, superblock.HEAD, 0)
    if path.endswith(".sif") or superblock.seems(head) == superblock.SIF:
        offset, size = sif.locate(lambda at, length: os.pread(fd, length, at), size, path)
        head = os.pread(fd, superblock.HEAD, offset)
    superblock.check(head, size, path)
    return offset, size


def _stems(path: str, known: Sidecar) -> list[str]:
    """Return the stems of all names that the image has in the store it lies in, else of its reference.

    But not of a reference that means another image there by now: a tag that moved must not move back elsewhere.
    """
    where, file = os.path.split(path)
    own = f"{reference.parse(known.reference).stem}.sqfs" if known.reference else ""
    if file == store.image_file(known.hex):
        found = store.names(where, lambda error: say(f"cannot read {error.filename!r}: {error.strerror}"))
        linked = [name[: -len(".sqfs")] for name, meant in found if meant == file and name.endswith(".sqfs")]
        if linked or os.path.lexists(os.path.join(where, own)):
            return linked
    return [own[: -len(".sqfs")]] if own else []
