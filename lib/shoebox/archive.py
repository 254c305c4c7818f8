"""Archives of images: a tar of its parts, each to be opened on its own, from wherever it comes."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
import tempfile
from typing import IO, BinaryIO

from . import oci
from .decompress import plain
from .fail import Fail
from .streams import Slice

_MOST_PARTS = 100_000  # of an archive of images: layers, and three files for each as docker save used to write them


class Archive:
    """A tar of an image's parts: its members by name, each to be opened on its own."""

    def __init__(self, path: str, spool: str, limit: int) -> None:
        """Open it, and find what is in it. spool, limit: see seekable. Raises Fail."""
        self.what = repr(path)
        self._file = seekable(path, spool, limit)
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                for member in archive:
                    self._members[posixpath.normpath(member.name)] = member
                    if len(self._members) > _MOST_PARTS:
                        raise Fail(f"cannot read {self.what}", f"more than {_MOST_PARTS} parts are no image's")
        except (tarfile.TarError, ValueError, RecursionError) as error:
            raise Fail(f"cannot read {self.what}", f"not a tar archive ({error})") from error

    def open(self, name: str) -> BinaryIO:
        """Open a member, links to others followed. Raises Fail."""
        member = self._find(name)
        return io.BufferedReader(Slice(self._file.fileno(), member.offset_data, member.size), 1 << 17)

    def size(self, name: str) -> int:
        """Return a member's size in bytes."""
        return self._find(name).size

    def read(self, name: str) -> bytes:
        """Return a small member. Raises Fail."""
        if self.size(name) > oci.MAX_DOCUMENT:
            raise Fail(f"cannot read {self.what}", f"{name!r} is too large for a document")
        with self.open(name) as file:
            return file.read()

    def _find(self, name: str) -> tarfile.TarInfo:
        path = posixpath.normpath(name)
        for _ in range(8):  # docker save used to write a layer twice as a symlink
            member = self._members.get(path)
            if member is None or member.isreg():
                break
            start = posixpath.dirname(path) if member.issym() else ""
            path = posixpath.normpath(posixpath.join(start, member.linkname))
        if member is None or not member.isreg():
            raise Fail(f"cannot read {self.what}", f"it has no {name!r}")
        return member


def seekable(path: str, spool: str, limit: int) -> BinaryIO:
    """Open an archive so that it can seek and is not compressed: as it is, or as an unlinked copy.

    spool: the directory for that; limit: most bytes of it. Raises Fail.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - it stays open as long as the image is read
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        start = os.pread(file.fileno(), 262, 0)
        if start[257:262] == b"ustar" or not start:
            return file
    copy = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - likewise
    with file:
        for chunk in plain(file, lambda _: None, repr(path)):
            limit -= len(chunk)
            if limit < 0:
                raise Fail(
                    f"refused {path!r}", "it unpacks to more than --max-size allows", "raise it if it is meant to"
                )
            _spool(copy, chunk, spool)
    copy.seek(0)
    return copy


def _spool(copy: IO[bytes], chunk: bytes | memoryview, spool: str) -> None:
    """Write to a file without a name. Raises Fail."""
    try:
        copy.write(chunk)
        copy.flush()
    except OSError as error:
        todo = "free some space, or choose another place with -d or -o"
        raise Fail(f"cannot write to {spool!r}", error, todo) from error
