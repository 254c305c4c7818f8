"""Squashfs images, alone or in a SIF file, as tar streams: read as the user, by squashfs-tools-ng, within limits.

Nothing is mounted and nothing unpacked: what a file says of itself meets a program without privilege, bound in memory
and time, and then the same checks as any layer's names.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from . import foreign, oci, readers, sif, store, superblock
from .facts import FILE, MISSING
from .fail import Fail, say
from .merge import Layer
from .streams import Limits, Piped

if TYPE_CHECKING:
    from collections.abc import Callable

MAGICS = ((0, b"hsqs"), (32, b"SIF_MAGIC"))  # offset, bytes there
CONFIG = "/.shoebox/config.json"  # where sh-flatten puts a copy of an image's config
_PACKAGE = "squashfs-tools-ng"
_BLOCK = 1 << 20  # bytes
# sqfs2tar holds the whole tree: some 150 bytes for each file. A crafted tree, directories in place of directories, has
# more names than any memory; a crafted count of inodes shall not help it.
_MEMORY, _FOR_INODE, _MOST_MEMORY = 512 << 20, 1024, 8 << 30
# The slowest honest ones (xz) give 40 MB a second, of some four times their size; crafted fragments take for ever.
_SECONDS, _FOR_SECOND = 120, 1 << 20


@dataclass(frozen=True)
class Squashfs:
    """One in an open file, from its first byte on. what: its name in errors; private: not everybody may read it."""

    what: str
    file: BinaryIO
    limits: Limits
    private: bool

    def layer(self) -> Layer:
        """Return all that is in it, the root's own entry too."""
        told: set[str] = set()

        def tell(line: str) -> None:
            if line not in told:  # it may be read twice
                say(f"warning: sqfs2tar has left something out of {self.what}: {line}")
            told.add(line)

        return Layer(self.what, partial(self._piped, ["sqfs2tar", "--root-becomes", "."], tell))

    def text(self, name: str) -> bytes:
        """Return a small file of it; b"" if there is none at this path. Raises Fail if nobody can tell."""
        with self._piped(["rdsquashfs", "--cat", name], lambda _: None, absent=1) as stream:
            data = stream.read(oci.MAX_DOCUMENT + 1)
        return data if len(data) <= oci.MAX_DOCUMENT else b""

    def _piped(self, command: list[str], told: Callable[[str], object], absent: int = 0) -> BinaryIO:
        fd = self.file.fileno()
        words = [*command, f"/proc/self/fd/{fd}"]
        piped = Piped(words, self.what, [fd], limits=self.limits, package=_PACKAGE, absent=absent, told=told)
        return io.BufferedReader(piped, 1 << 17)


def opened(path: str, spool: str, limit: int) -> Squashfs:
    """Open a squashfs or a SIF file. What does not begin with it, or cannot seek, is copied to an unlinked file.

    spool: the directory for that; limit: most bytes of it. Raises Fail.
    """
    what = repr(path)
    try:
        file: BinaryIO = open(path, "rb")  # noqa: SIM115 - it stays open as long as the image is read
    except OSError as error:
        raise Fail(f"cannot read {what}", error) from error
    regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    private = regular and readers.of(file.fileno()).private
    if not regular:
        file = _copied(file, limit, spool, what)
    fd = file.fileno()
    size = os.fstat(fd).st_size
    head = os.pread(fd, superblock.HEAD, 0)
    if superblock.seems(head) == superblock.SIF:
        offset, size = sif.locate(lambda at, length: os.pread(fd, length, at), size, path)
        os.lseek(fd, offset, os.SEEK_SET)
        file = _copied(file, size, spool, what)
        head = os.pread(file.fileno(), superblock.HEAD, 0)
    about = superblock.check(head, size, path)
    memory = min(_MEMORY + _FOR_INODE * about.inodes, _MOST_MEMORY)
    return Squashfs(what, file, Limits(memory, _SECONDS + size // _FOR_SECOND), private)


def config(image: Squashfs, path: str) -> bytes | None:
    """Return the OCI config of the image at a path; None where it has none, or says all in another tool's files.

    What lies beside it comes first, as for sh-run: its sidecar, Shifter's .meta. Raises Fail.
    """
    known = store.read_sidecar(path)
    text: bytes | None = image.text(CONFIG)
    try:
        oci.parse_config(text or b"")
    except Fail:  # it has none, or none of use
        text = None
    if known and known.config:
        return (
            text
            if text and json.loads(text) == known.config
            else json.dumps(known.config, separators=(",", ":")).encode()
        )
    meta = store.shifter_text(path)
    if meta is not None:
        return foreign.as_oci(foreign.shifter(meta, path, os.getuid(), [os.getgid(), *os.getgroups()]))
    if text is None and foreign.is_enroot(path, lambda name: FILE if image.text(name) else MISSING):
        said, left = foreign.enroot_config(os.fsdecode(image.text("/etc/environment")))
        if left:
            say(f"warning: {image.what} makes variables of the host's, which are left out: {', '.join(left)}")
        return foreign.as_oci(said)
    return text


def listed(path: str) -> bool:
    """Tell whether Shifter's .meta beside an image says who may use it: then nobody else may."""
    meta = store.shifter_text(path)
    return meta is not None and foreign.shifter_lists(meta)


def _copied(file: BinaryIO, size: int, spool: str, what: str) -> BinaryIO:
    """Return an unlinked copy of up to size bytes of a file from where it is; it is closed. Raises Fail if it has more.

    A regular file is not asked for what follows them.
    """
    regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    copy = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - likewise
    try:
        with file:
            left = size
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                copy.write(block)
            if not regular and file.read(1):
                raise Fail(f"refused {what}", "it is larger than --max-size allows", "raise it if it is meant to")
        copy.flush()
    except OSError as error:
        raise Fail(f"cannot copy {what} to {spool!r}", error) from error
    return copy
