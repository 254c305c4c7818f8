"""Layers as changesets (OCI image-spec, layer.md): which entries of a stack of layers make up the image. Pure.

Two ways to the same answer. TopDown decides each entry as it streams by, from the top layer down, and remembers names
only; it raises NeedsIndex at the first thing that this order cannot decide. Tree applies the layers from the bottom up,
as the spec words it, to a tree of names in memory, and can say everything. The rules, where the spec leaves room:

- Whiteouts of a layer act on the layers below it, before any entry of their own layer, wherever they stand in it.
  A directory that the same layer makes is meant as it stands: where it replaces a symlink, nothing is hidden.
- Entries apply in the order of the archive; of two with one name the last wins. A directory over a directory merges.
- The parent of an entry or a whiteout is resolved within the image, symlinks followed (umoci does so too); a name under
  something that is no directory, or is missing, makes a directory there. The last component is never followed.
- A hard link is to what its target is at that point of the layer; where that comes later, at the layer's end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .fail import Fail
from .tarstream import DIRECTORY, LINK, SYMLINK
from .whiteout import OPAQUE, WHITEOUT

if TYPE_CHECKING:
    from .tarstream import Entry


AUFS = b".wh..wh."  # aufs' own files: never part of an image
_MAX_COMPONENT = 255  # bytes, squashfs
_MAX_PATH = 4095  # bytes, PATH_MAX less the NUL
_MAX_SYMLINKS = 40  # as Linux, path_resolution(7)


class NeedsIndex(Exception):
    """The entry cannot be decided from the top down: start again, with a Tree."""


def judge(name: bytes, what: str) -> bytes:
    """Return a name as the path within the image, `usr/bin/env`; b"" is the root.

    Raises Fail for a name that climbs (`..`), or that squashfs cannot hold. what: the archive, for the error.
    """
    if name[:2] == b"./":
        name = name[2:]
    if name[:1] in b"/." or b"//" in name or b"/." in name:
        components = [c for c in name.split(b"/") if c not in (b"", b".")]
        if b".." in components:
            raise Fail(f"refused {what}", f"{_shown(name)} climbs out of its place", "do not trust this image")
        path = b"/".join(components)
    else:  # nearly always
        path = name.rstrip(b"/")
    if len(path) > _MAX_COMPONENT:
        if max(map(len, path.split(b"/"))) > _MAX_COMPONENT:
            raise Fail(f"cannot store {what}", f"{_shown(name)} has a component over {_MAX_COMPONENT} bytes")
        if len(path) > _MAX_PATH:
            raise Fail(f"cannot store {what}", f"{_shown(name)} is longer than {_MAX_PATH} bytes")
    return path


def _shown(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "…")


def split(path: bytes) -> tuple[bytes, bytes]:
    """Split a path into its parent (b"" for the root) and its last component."""
    parent, _, base = path.rpartition(b"/")
    return parent, base


def whiteout(base: bytes, what: str) -> bytes:
    """Return the name that a whiteout `.wh.NAME` hides; b"" for aufs' own files. Raises Fail for a bare `.wh.`."""
    if base.startswith(AUFS):
        return b""
    hidden = base[len(WHITEOUT) :]
    if hidden in (b"", b".", b".."):
        raise Fail(f"refused {what}", f"the whiteout {_shown(base)} names nothing", "do not trust this image")
    return hidden


def ignored(path: bytes) -> bool:
    """Tell whether a path lies below a whiteout name, where nothing can be: `.wh..wh.plnk/x`."""
    return any(c.startswith(WHITEOUT) for c in path.split(b"/")[:-1])


class TopDown:
    """Decides entries from the top layer down. Call begin(layer) for each layer, then visit() for each entry."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.layer = 0
        self._seen: dict[bytes, int] = {}  # path -> layer * 2 + (1 for a directory), of what was let through
        self._hidden: set[bytes] = set()  # whited out, or replaced, by the layers above
        self._opaque: set[bytes] = set()
        self._implied: set[bytes] = set()  # directories that layers above rely on and did not make themselves
        self._bare: set[bytes] = set()  # directories that are part of the image, and had no entry of their own so far
        self._visible: dict[bytes, bool] = {}  # of directories, for the layer at hand: may its children be seen
        self._made: set[bytes] = {b""}  # directories that this layer makes
        self._relied: set[bytes] = set()  # those it relies on
        self._shadowed: set[bytes] = set()  # what this layer has that is no directory and was not let through
        self._hides: set[bytes] = set()
        self._blanks: set[bytes] = set()
        self.links: list[tuple[bytes, bytes, int]] = []  # (path, target, layer) of the hard links let through

    def begin(self, layer: int) -> None:
        """Go down to the next layer (numbers fall); what the last one hides is hidden from here on."""
        self.layer = layer
        self._hidden |= self._hides
        self._opaque |= self._blanks
        self._implied -= self._made
        self._implied |= self._relied
        self._visible = {}
        self._made, self._relied, self._shadowed, self._hides, self._blanks = {b""}, set(), set(), set(), set()

    def visit(self, path: bytes, kind: bytes, link: bytes, what: str) -> bool:
        """Tell whether the entry is part of the image; a hard link that is goes to self.links instead, and is False.

        path and link are judged paths. Raises NeedsIndex.
        """
        parent, base = split(path)
        if parent not in self._made and parent not in self._relied:
            self._rely_on(parent)
        if WHITEOUT in path and (base.startswith(WHITEOUT) or ignored(path)):
            self._whiteout(path, parent, base, what)
            return False
        if kind != DIRECTORY:
            if not path:
                raise Fail(f"refused {what}", "it makes the root something else than a directory")
            if path in self._implied or path in self._relied or path in self._made:
                raise NeedsIndex
        seen = self._seen.get(path)
        if seen is not None and seen >> 1 == self.layer:
            raise NeedsIndex  # twice in one layer
        visible = self._visible.get(parent)
        if visible is None:
            visible = self._look(parent)
        if kind == DIRECTORY:
            if path not in self._relied:
                self._made.add(path)
            if not visible or seen is not None or path in self._hidden:
                return False
            self._seen[path] = self.layer * 2 + 1
            return True
        if seen is not None and seen & 1:
            self._hides.add(path)  # a directory above replaced it, so it cut off what lies below
        if not visible or seen is not None or path in self._hidden:
            self._shadowed.add(path)
            return False
        self._seen[path] = self.layer * 2
        if kind == LINK:
            self._link(path, link)
            return False
        return True

    def _rely_on(self, directory: bytes) -> None:
        while directory not in self._made and directory not in self._relied:
            if self._seen.get(directory) == self.layer * 2 or directory in self._shadowed:
                raise NeedsIndex  # its parent is a symlink or a file of the same layer
            self._relied.add(directory)
            directory, _ = split(directory)

    def _whiteout(self, path: bytes, parent: bytes, base: bytes, what: str) -> None:
        if ignored(path):
            return
        if base == OPAQUE:
            self._blanks.add(parent)
            return
        hidden = whiteout(base, what)
        if hidden:
            self._hides.add(parent + b"/" + hidden if parent else hidden)

    def _look(self, directory: bytes) -> bool:
        """Work out whether what a directory of this layer holds can be seen past the layers above."""
        trail = []
        while directory not in self._visible and directory:
            trail.append(directory)
            directory, _ = split(directory)
        visible = self._visible.setdefault(directory, directory not in self._opaque)
        for directory in reversed(trail):
            seen = self._seen.get(directory)
            replaced = seen is not None and not seen & 1 and seen >> 1 > self.layer
            there = visible and not replaced and directory not in self._hidden
            if there and seen is None:
                self._bare.add(directory)
            visible = self._visible[directory] = there and directory not in self._opaque
        return visible

    def bare(self) -> list[bytes]:
        """Return the directories of the image that only names below them imply; all of these may be hidden."""
        return sorted(self._bare - self._seen.keys())

    def _link(self, path: bytes, target: bytes) -> None:
        seen = self._seen.get(target)
        if path == target or (seen is not None and (seen & 1 or seen >> 1 > self.layer)):
            raise NeedsIndex  # itself, a directory, or content that a layer above replaced
        # Not seen yet: whether it lies in a layer below, untouched by this one, shows at the end.
        self.links.append((path, target, -1 if seen is None else self.layer))

    def targets(self) -> list[tuple[bytes, bytes]]:
        """Return (path, target) for every hard link, targets that are links themselves resolved. Raises NeedsIndex."""
        final: dict[bytes, bytes] = {}
        for path, target, known in self.links:
            seen = self._seen.get(target)
            own = self._seen[path] >> 1
            if seen is None or seen & 1 or (known < 0 and seen >> 1 >= own):
                raise NeedsIndex
            final[path] = target
        return [(path, _follow(path, final)) for path in final]


def _follow(path: bytes, final: dict[bytes, bytes]) -> bytes:
    for _ in range(len(final) + 1):
        if path not in final:
            return path
        path = final[path]
    raise NeedsIndex  # links in a circle


@dataclass(eq=False, slots=True)
class Inode:
    """Something in the image, by the entry that described it last.

    source: (layer, number of the entry within the layer); None for a directory that only other names imply.
    link: where a symlink leads. entry: a directory's, to be written first. children: a directory's, by name.
    """

    kind: bytes
    source: tuple[int, int] | None
    link: bytes = b""
    entry: Entry | None = None
    children: dict[bytes, Inode] | None = None


Member = tuple[
    bytes, bytes, bytes, "Entry | None"
]  # judged path, kind, link (a hard link's judged), a directory's entry


@dataclass(slots=True)
class Tree:
    """The image as a tree of names. Call apply() for each layer from the bottom up."""

    root: Inode = field(default_factory=lambda: Inode(DIRECTORY, None, children={}))

    def apply(self, layer: int, members: list[Member], what: str) -> None:
        """Apply one layer, its members in order. what: the layer, for errors. Raises Fail."""
        made = {path for path, kind, _, _ in members if kind == DIRECTORY}
        for path, _, _, _ in members:
            parent, base = split(path)
            if base.startswith(WHITEOUT) and not ignored(path) and not self._replaced(parent, made, what):
                self._whiteout(parent, base, what)
        later: list[tuple[bytes, bytes]] = []
        for number, (path, kind, link, entry) in enumerate(members):
            if WHITEOUT in path and (split(path)[1].startswith(WHITEOUT) or ignored(path)):
                continue
            if kind == LINK:
                if not self._link(path, link, what):
                    later.append((path, link))
                continue
            children: dict[bytes, Inode] | None = {} if kind == DIRECTORY else None
            self._place(path, Inode(kind, (layer, number), link, entry, children), what)
        for path, link in later:
            if not self._link(path, link, what):
                why = f"the hard link {_shown(path)} is to {_shown(link)}, which is not there, or no file"
                raise Fail(f"refused {what}", why)

    def _replaced(self, directory: bytes, made: set[bytes], what: str) -> bool:
        """Tell whether the way to a directory leads through a symlink that a directory of this layer replaces."""
        components = directory.split(b"/")
        for depth in range(1, len(components) + 1):
            above = b"/".join(components[:depth])
            inode = self._find(above, what) if above in made else None
            if inode is not None and inode.kind == SYMLINK:
                return True
        return False

    def _whiteout(self, parent: bytes, base: bytes, what: str) -> None:
        hidden = b"" if base == OPAQUE else whiteout(base, what)
        directory = self._directory(parent, what, make=False)
        if directory is None or directory.children is None:
            return
        if base == OPAQUE:
            directory.children.clear()
        elif hidden:
            directory.children.pop(hidden, None)

    def _place(self, path: bytes, inode: Inode, what: str) -> None:
        if not path:
            if inode.kind != DIRECTORY:
                raise Fail(f"refused {what}", "it makes the root something else than a directory")
            inode.children = self.root.children
            self.root = inode
            return
        parent, base = split(path)
        children = self._children(parent, what)
        old = children.get(base)
        if inode.kind == DIRECTORY and old is not None and old.kind == DIRECTORY:
            inode.children = old.children
        children[base] = inode

    def _link(self, path: bytes, target: bytes, what: str) -> bool:
        inode = self._find(target, what)
        if inode is None or inode.kind == DIRECTORY:
            return False
        parent, base = split(path)
        self._children(parent, what)[base] = inode
        return True

    def _find(self, path: bytes, what: str) -> Inode | None:
        """Return what a path names, the last component not followed."""
        parent, base = split(path)
        directory = self._directory(parent, what, make=False)
        return (directory.children or {}).get(base) if directory else None

    def _children(self, path: bytes, what: str) -> dict[bytes, Inode]:
        directory = self._directory(path, what, make=True)
        if directory is None or directory.children is None:  # never: make=True makes it
            raise Fail(f"cannot place {_shown(path)}", what)
        return directory.children

    def _directory(self, path: bytes, what: str, *, make: bool) -> Inode | None:
        """Return the directory that a path leads to, symlinks followed within the root; None where there is none."""
        todo = path.split(b"/")[::-1] if path else []
        trail = [self.root]
        followed = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                trail = trail[:-1] or trail
                continue
            children = trail[-1].children
            if children is None:
                return None
            child = children.get(name)
            if child is not None and child.kind == SYMLINK:
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise Fail(f"refused {what}", f"too many symlinks on the way to {_shown(path)}")
                if child.link.startswith(b"/"):
                    trail = [self.root]
                todo += child.link.split(b"/")[::-1]
                continue
            if child is None or child.kind != DIRECTORY:
                if not make:
                    return None
                child = children[name] = Inode(DIRECTORY, None, children={})
            trail.append(child)
        return trail[-1]

    def names(self) -> list[tuple[bytes, Inode]]:
        """Return every name below the root with what it names, parents before their children, sorted."""
        out: list[tuple[bytes, Inode]] = []
        todo: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while todo:
            path, inode = todo.pop()
            if len(path) > _MAX_PATH:  # through symlinks
                raise Fail("cannot store the image", f"{_shown(path)} is longer than {_MAX_PATH} bytes")
            if path:
                out.append((path, inode))
            for base, child in sorted((inode.children or {}).items(), reverse=True):
                todo.append((path + b"/" + base if path else base, child))
        return out
