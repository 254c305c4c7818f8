"""The image as a file, and the way in which it gets mounted: the least privilege that works. Pure."""

from __future__ import annotations

from .fail import USAGE, Fail

WAYS = ("fuse", "kernel", "unpack", "setuid")
NO_HELPER = "sh-mount is not installed"
_WHY = {
    "fuse": "user namespaces, /dev/fuse and squashfuse are there",
    "kernel": "sh-mount mounts it",
    "unpack": "",
}


class Source:
    """An image: kind is `directory` or `squashfs`; offset, the bytes before that in the file; why, the way's reason."""

    __slots__ = ("kind", "offset", "path", "way", "why")

    def __init__(self, path: str, kind: str, offset: int, way: str, why: str) -> None:
        """Hold the parts."""
        self.path = path
        self.kind = kind
        self.offset = offset
        self.way = way
        self.why = why


def choose(asked: str, lacks: dict[str, str], preferred: str = "") -> tuple[str, str]:
    """Return how to mount a squashfs, and why.

    asked: by the user, or "". preferred: by the site, or "". lacks: what each way lacks on this machine, "" if nothing;
    the ways in the order of the privilege that they take. Raises Fail.
    """
    if asked and asked not in WAYS:
        raise Fail(f"no such way to mount: {asked!r}", f"there are {', '.join(WAYS)}", status=USAGE)
    if asked:
        if lacks[asked]:
            todo = "leave --mount out" if not all(lacks.values()) else ""
            raise Fail(f"cannot mount with --mount={asked}", lacks[asked], todo)
        return asked, "--mount says so"
    passed_over: list[str] = []
    ways = [way for way in lacks if way != "setuid"]  # which is for where there are no user namespaces
    for way in sorted(ways, key=lambda way: way != preferred):  # the preferred one first, the others as they stand
        if not lacks[way]:
            why = "the site prefers it" if way == preferred else _WHY[way]
            return way, "; ".join(part for part in (why, *passed_over) if part)
        passed_over.append(f"not {way}: {lacks[way]}")
    raise Fail("cannot mount a squashfs", "; ".join(passed_over), "install squashfuse, or squashfs-tools")
