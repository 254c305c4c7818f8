"""Layers in, one tar stream out: the entries that changeset lets through, in an order that squashfs writers take."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from . import tarstream
from .changeset import Member, NeedsIndex, TopDown, Tree, judge
from .decompress import Chunks
from .fail import LATER, Fail
from .tarstream import DIRECTORY, LINK, REGULAR, SYMLINK, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[[memoryview | bytes], object]

_MOST_ENTRIES = 20_000_000  # names cost memory, some 200 bytes each
_LATEST = (1 << 32) - 1  # seconds: the last time that squashfs knows; eleven octal digits up to it begin with 0 to 3
_MAX_TARGET = 4096  # bytes: PATH_MAX, which a symlink's target must stay below
_KEPT_XATTRS = (b"user.", b"security.")
_DROPPED_XATTRS = (b"security.selinux", b"security.ima", b"security.evm", b"user.overlay.")
_XATTR = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
_ACL = (b"SCHILY.acl.", b"SCHILY.xattr.system.posix_acl", b"LIBARCHIVE.xattr.system.posix_acl")
_READ_ALL, _SEARCH_ALL = 0o444, 0o111


@dataclass(frozen=True)
class Layer:
    """One changeset. what: its name in errors; open: gives its bytes anew; diff_id: of its plain tar, "" if unknown."""

    what: str
    open: Callable[[], BinaryIO]
    diff_id: str = ""


@dataclass
class Merge:
    """What a merge is told and what it tells: limit (bytes), readable (52a), read(n) for progress; lost, entries."""

    limit: int
    readable: bool = False
    read: Callable[[int], object] = lambda _: None
    lost: set[str] = field(default_factory=set)
    entries: int = 0
    newest: int = 0  # seconds: the latest time of any entry that is not to come, known after index
    _left: int = 0
    _done: int = 0
    _digests: dict[str, str] = field(default_factory=dict)  # of the layers, as they were when first read

    def _begin(self) -> None:
        """Begin a pass over the layers: with the whole limit, and progress from nothing."""
        self.read(-self._done)
        self._left, self._done, self.entries = self.limit, 0, 0

    def _count(self, read: int) -> None:
        self._done += read
        self.read(read)

    def one_pass(self, layers: list[Layer], write: Write) -> None:
        """Write the merged tar in one pass from the top layer down, hard links last. Raises NeedsIndex, Fail."""
        self._begin()
        decide = TopDown()
        for number in reversed(range(len(layers))):
            decide.begin(number)
            what = layers[number].what
            for entry in self._stream(layers[number], write):
                path = judge(entry.name, what)
                link = judge(entry.link, what) if entry.kind == LINK else b""
                if decide.visit(path, entry.kind, link, what):
                    self._keep(entry, path, what)
        for path in decide.bare():
            write(tarstream.made(path + b"/", DIRECTORY))
        self._links(decide.targets(), write)

    def with_index(self, layers: list[Layer], write: Write) -> None:
        """Write the merged tar in two passes: directories, then files from the lowest layer up, then hard links."""
        tree = self.index(layers)
        write(self._directory(tree.root.entry, b""))
        self.by_index(tree, layers, write)

    def index(self, layers: list[Layer]) -> Tree:
        """Read all headers, and return the image that the layers make. Raises Fail."""
        self._begin()
        tree = Tree()
        for number, layer in enumerate(layers):
            tree.apply(number, list(self._members(layer)), layer.what)
        return tree

    def root_mode(self, tree: Tree) -> int:
        """Return the mode that the image's top directory is to have."""
        self._directory(tree.root.entry, b"")
        return tarstream.mode(tree.root.entry) if tree.root.entry else 0o755

    def by_index(self, tree: Tree, layers: list[Layer], write: Write) -> None:
        """Write the merged tar, less the header of the root. Raises Fail."""
        self._begin()
        first: dict[tuple[int, int], bytes] = {}
        links: list[tuple[bytes, bytes]] = []
        for path, inode in tree.names():
            if inode.kind == DIRECTORY:
                write(self._directory(inode.entry, path))
            elif inode.source in first:
                links.append((path, first[inode.source]))
            elif inode.source is not None:
                first[inode.source] = path
        used = {source[0] for source in first}
        for number, layer in enumerate(layers):
            if number not in used:
                continue
            for n, entry in enumerate(self._stream(layer, write)):
                final = first.get((number, n))
                if final is not None:
                    self._keep(entry, final, layer.what)
        self._links(links, write)

    def _members(self, layer: Layer) -> Iterator[Member]:
        now = time.time()
        for entry in self._stream(layer, lambda _: None):
            mtime = tarstream.seconds(entry)
            if self.newest < mtime <= now:
                self.newest = mtime
            link = judge(entry.link, layer.what) if entry.kind == LINK else entry.link[:_MAX_TARGET]
            yield judge(entry.name, layer.what), entry.kind, link, entry if entry.kind == DIRECTORY else None

    def _directory(self, entry: Entry | None, path: bytes) -> bytes:
        """Return a directory's header; its path is not the entry's name where that led through a symlink."""
        name = path + b"/" if path else b"./"
        if entry is None:
            return tarstream.made(name, DIRECTORY)
        self._keep(entry, path, "the image")
        return entry.header or entry.rewritten(name)

    def _stream(self, layer: Layer, write: Write) -> Iterator[Entry]:
        """Yield a layer's entries, count them, and check the digest of all when they are through."""
        with closing(Chunks(layer.open(), layer.what, self.limit, self._count)) as chunks:
            for entry in tarstream.entries(chunks, write, layer.what):
                self.entries += 1
                self._left -= entry.size
                if self._left < 0 or self.entries > _MOST_ENTRIES:
                    limit = f"{self.limit} bytes" if self._left < 0 else f"{_MOST_ENTRIES} entries"
                    raise Fail(f"refused {layer.what}", f"it holds more than {limit}", "see --max-size")
                yield entry
            if layer.diff_id and chunks.digest != layer.diff_id:
                why = f"its content is {chunks.digest}, and the image's config promises {layer.diff_id}"
                raise Fail(f"refused {layer.what}", why, "pull it again")
            if self._digests.setdefault(layer.what, chunks.digest) != chunks.digest:
                raise Fail(f"cannot read {layer.what}", "it changed while it was read", "try again", LATER)

    def _keep(self, entry: Entry, path: bytes, what: str) -> None:
        """Let an entry through under this path, and see to it that its header says just that."""
        entry.keep = True
        if entry.kind == SYMLINK and not 0 < len(entry.link) < _MAX_TARGET:
            shown = path.decode(errors="backslashreplace")
            raise Fail(f"cannot store {what}", f"the symlink {shown!r} has a target of {len(entry.link)} bytes")
        drop = self._dropped(entry) if entry.records else ()
        if (b"mtime" in entry.records or entry.block[136:137] > b"3") and not 0 <= tarstream.seconds(entry) <= _LATEST:
            drop += (b"mtime",)
            limit = b"%011o\0" % min(max(tarstream.seconds(entry), 0), _LATEST)
            entry.block = entry.block[:136] + limit + entry.block[148:]
        letter = entry.block[156:157]
        name = entry.name[2:] if entry.name[:2] == b"./" else entry.name
        clean = (name if entry.kind != DIRECTORY else name.rstrip(b"/")) == path and not drop
        if clean and letter == entry.kind and (letter == REGULAR or not entry.block[124:135].strip(b"0 ")):
            if self.readable and entry.kind in (REGULAR, DIRECTORY):
                self._open_up(entry, path)
            return
        if clean and letter == b"S" and not self.readable:
            return
        written = path + b"/" if entry.kind == DIRECTORY and path else path or b"./"
        entry.header = entry.rewritten(written, entry.link if entry.kind == SYMLINK else b"", drop=drop)
        if self.readable and entry.kind in (REGULAR, DIRECTORY):
            self._open_up(entry, path)

    def _open_up(self, entry: Entry, path: bytes) -> None:
        """Give everyone the owner's right to read and to search or execute (behaviours.md 52a)."""
        mode = tarstream.mode(entry)
        more = mode | (_READ_ALL if mode & 0o400 else 0) | (_SEARCH_ALL if mode & 0o100 else 0)
        if more != mode:
            name = path + b"/" if entry.kind == DIRECTORY and path else path or b"./"
            entry.block = entry.block[:100] + b"%07o\0" % more + entry.block[108:]
            entry.header = entry.rewritten(name, drop=self._dropped(entry))

    def _dropped(self, entry: Entry) -> tuple[bytes, ...]:
        """Return the pax records that must not get into the image: another host's labels, what squashfs lacks."""
        drop = []
        for key in entry.records:
            if key.startswith(_ACL):
                self.lost.add("POSIX ACLs")
                drop.append(key)
            elif key.startswith(_XATTR):
                name = key.split(b".", 2)[2]
                odd = key.startswith(_XATTR[1]) and b"%" in name  # percent-encoded: it may become any name
                if not name.startswith(_KEPT_XATTRS) or name.startswith(_DROPPED_XATTRS) or odd:
                    drop.append(key)
        return tuple(drop)

    def _links(self, links: list[tuple[bytes, bytes]], write: Write) -> None:
        for path, target in links:
            write(tarstream.made(path, LINK, link=target))
        write(bytes(2 * tarstream.BLOCK))


def note(files: dict[str, bytes], what: str) -> Layer:
    """Return a layer of our own, to lie on top: files by path, root's and readable."""
    directories = sorted({path.rpartition("/")[0] for path in files})
    parts = [tarstream.made(directory.encode() + b"/", DIRECTORY) for directory in directories]
    for path, data in files.items():
        header = tarstream.made(path.encode(), REGULAR, mode=0o644, size=len(data))
        parts += [header, data, tarstream.padding(len(data))]
    archive = b"".join(parts) + bytes(2 * tarstream.BLOCK)
    return Layer(what, lambda: BytesIO(archive))


__all__ = ["Layer", "Merge", "NeedsIndex", "note"]
