"""Node caches: what is asked for, and which file system it becomes, decided from where it is to lie. Pure; Python 3.9.

A cache is a file system of a container's own on one node: of a fixed size, empty at first, shared by all ranks of the
container, gone with the container.
"""

from __future__ import annotations

import os

from .amounts import parse_size, told_size
from .fail import USAGE, Fail
from .paths import plain_target, under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .mountconf import Kernel

KERNEL, FUSE, TMPFS = "kernel", "fuse", "tmpfs"  # what makes it
FORMATS = ("ext4", "xfs")
_LIMITS = (1 << 20, 0)  # bytes, where the site sets none
SMALLEST = {"ext4": 1 << 20, "xfs": 300 << 20}  # bytes; xfs: mkfs.xfs(8)
_SHIFTER = "pernodecache="
_SHIFTER_KEYS = {"fstype": "fs", "bs": "", "method": ""}  # of Shifter's; those that say nothing to us


class Wanted:
    """What was asked for, in which words: the target inside, bytes, `ext4`, `xfs` or "", where it is to lie or ""."""

    __slots__ = ("fs", "place", "size", "target", "words")

    def __init__(self, words: str, target: str, size: int, fs: str, place: str) -> None:
        """Hold the parts."""
        self.words = words
        self.target = target
        self.size = size
        self.fs = fs
        self.place = place


class Cache:
    """What a cache will be: by KERNEL, FUSE or TMPFS; its place is a directory, or "" for memory. fs: as mounted."""

    __slots__ = ("by", "fs", "place", "size", "target", "why")

    def __init__(self, wanted: Wanted, by: str, fs: str, place: str, why: str) -> None:
        """Take over what was wanted."""
        self.target = wanted.target
        self.size = wanted.size
        self.by = by
        self.fs = fs
        self.place = place
        self.why = why


class Node:
    """What there is to decide by: what mount.conf says, None without sh-mount; why FUSE cannot be, or ""; what the site
    allows: places with its variables replaced, the first of them the default, and the least and most bytes, 0 for any.
    """

    __slots__ = ("kernel", "limits", "no_fuse", "places")

    def __init__(
        self, kernel: Kernel | None, no_fuse: str, places: Sequence[str] = (), limits: tuple[int, int] = _LIMITS
    ) -> None:
        """Hold the parts."""
        self.kernel = kernel
        self.no_fuse = no_fuse
        self.places = places
        self.limits = limits


def is_one(volume: str) -> bool:
    """Tell whether a volume is a node cache, in Shifter's words: SRC:DST:perNodeCache=size=SIZE[,...]."""
    return any(flag.lower().startswith(_SHIFTER) for flag in volume.split(":", 2)[2:])


def places(caches: Iterable[str]) -> list[str]:
    """Return the directories that these --node-cache name, as they name them, whatever else is wrong with them."""
    words = [found for text in caches for found in _pairs(text.partition(":")[2])]
    return [value for key, value in words if key == "on" and value != TMPFS]


def asked(caches: Iterable[str], volumes: Iterable[str], cwd: str) -> Iterator[Wanted]:
    """Yield the caches that are asked for, by --node-cache and by --volume. cwd: the current directory. Raises Fail."""
    for text in caches:
        target, colon, rest = text.partition(":")
        if not colon:
            raise _wrong(text, "it is not DST:size=SIZE[,fs=ext4|xfs][,on=DIR|tmpfs]")
        yield _read(text, target, rest, "", cwd)
    for text in filter(is_one, volumes):
        place, target, rest = text.split(":", 2)
        yield _read(text, target, rest[len(_SHIFTER) :], place, cwd)


def _pairs(rest: str) -> list[tuple[str, str]]:
    """Return (key, value) of what stands behind the target."""
    return [(key.lower(), value) for key, _, value in (word.partition("=") for word in rest.split(","))]


def _read(text: str, target: str, rest: str, place: str, cwd: str) -> Wanted:
    found = {"on": place} if place else {}
    for key, value in _pairs(rest):
        word = f"{key}={value}"
        key = _SHIFTER_KEYS.get(key, key) if place else key  # noqa: PLW2901
        if key and (key not in ("size", "fs", "on") or not value or key in found):
            raise _wrong(text, f"{word!r} is none of size=SIZE, fs=ext4|xfs, on=DIR|tmpfs, once each")
        found[key] = value
    target = plain_target(target, _what(text))
    if "size" not in found:
        raise _wrong(text, "it has no size=SIZE")
    try:
        size = parse_size(found["size"])
    except Fail as error:
        raise _wrong(text, str(error)) from error
    if size >> 63:
        raise _wrong(text, f"no file can have {told_size(size)}")
    fs = found.get("fs", "").lower()
    if fs and fs not in FORMATS:
        raise _wrong(text, f"there is no {fs!r} for caches, but {' and '.join(FORMATS)}")
    where = found.get("on", "")
    return Wanted(text, target, size, fs, where if where in ("", TMPFS) else os.path.normpath(os.path.join(cwd, where)))


def limits(text: str, where: str) -> tuple[int, int]:
    """Read site.conf's node-cache-size, in bytes; where: `FILE:LINE`. Without one, there is no largest. Raises Fail."""
    if not text:
        return _LIMITS
    try:
        least, most = map(parse_size, text.replace(",", " ").split())
    except (Fail, ValueError) as error:
        raise Fail(f"cannot use {where!r}", f"{text!r} is not LEAST MOST, two sizes as 1G") from error
    if least > most:
        raise Fail(f"cannot use {where!r}", f"{text!r}: the first is the larger one")
    return least, most


def decide(wanted: Wanted, node: Node, real: Callable[[str], str]) -> Cache:
    """Return what a cache will be. real: follows symbolic links in a path of the host's. Raises Fail."""
    place, why = _place(wanted, node)
    _fits(wanted, node.limits, "this site")
    lies = place if place == TMPFS else real(place)
    if node.places and not any(lies == one if TMPFS in (lies, one) else under(lies, real(one)) for one in node.places):
        raise _refused(wanted, f"this site has none on {place!r}", f"say on= with one of {', '.join(node.places)}")
    if place == TMPFS:
        return Cache(wanted, TMPFS, TMPFS, "", f"{why}; in memory, which counts as the job's")
    named = next((line for line in node.kernel.caches if lies in (line, real(line))), "") if node.kernel else ""
    if node.kernel and named:
        formats = node.kernel.cache_formats
        fs = wanted.fs or formats[0]
        if fs not in formats:
            raise _refused(wanted, f"mount.conf has no {fs} for caches", f"say fs={formats[0]}")
        _fits(wanted, node.kernel.cache_sizes, "mount.conf")
        if wanted.size < SMALLEST[fs]:
            raise _refused(wanted, f"an {fs} has {told_size(SMALLEST[fs])} at least", "ask for more, or say fs=ext4")
        return Cache(wanted, KERNEL, fs, named, f"{why}; sh-mount makes it, mount.conf has that place for caches")
    because = "sh-mount is not installed" if node.kernel is None else "mount.conf does not have that place for caches"
    if node.no_fuse:
        raise _refused(wanted, f"{because}, and {node.no_fuse}", "say on=tmpfs, or ask this machine's administrator")
    lost = f"; {wanted.fs} would be sh-mount's" if wanted.fs else ""
    return Cache(wanted, FUSE, FUSE, lies, f"{why}; served by a process of yours: {because}{lost}")


def _fits(wanted: Wanted, sizes: tuple[int, int], who: str) -> None:
    """Refuse a size outside the limits that somebody sets; a most of 0 is none. Raises Fail."""
    least, most = sizes
    if wanted.size < least:
        raise _refused(wanted, f"it has less than {told_size(least)}, the least that {who} gives", "ask for more")
    if most and wanted.size > most:
        raise _refused(wanted, f"{who} gives {told_size(most)} at most", "ask for less")


def _place(wanted: Wanted, node: Node) -> tuple[str, str]:
    """Return where a cache is to lie, and why. Raises Fail."""
    if wanted.place:
        return wanted.place, "on= says so" if not is_one(wanted.words) else "the volume says so"
    if node.places:
        return node.places[0], "site.conf says so"
    if node.kernel and node.kernel.caches:
        return node.kernel.caches[0], "mount.conf says so"
    raise _refused(wanted, "nobody says where it is to lie", "add on=DIR, a directory of yours with space, or on=tmpfs")


def _wrong(text: str, why: str) -> Fail:
    return Fail(_what(text), why, status=USAGE)


def _what(text: str) -> str:
    return f"cannot use node cache {text!r}"


def _refused(wanted: Wanted, why: str, todo: str) -> Fail:
    return Fail(f"cannot have node cache {wanted.words!r}", why, todo)
