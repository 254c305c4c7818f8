"""The image as a file, and the way in which it gets mounted: the least privilege that works. Pure."""

from __future__ import annotations

from .fail import USAGE, Fail

_WHY = {
    "fuse": "user namespaces, /dev/fuse and squashfuse are there",
    "kernel": "sh-mount is installed",
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


def choose(
    asked: str, *, fuse: str, unpack: str, kernel: str = "sh-mount is not installed", preferred: str = ""
) -> tuple[str, str]:
    """Return how to mount a squashfs, and why.

    asked: by the user, or "". preferred: by the site, or "". fuse, unpack, kernel: what that way lacks on this machine,
    "" if nothing. Raises Fail.
    """
    lacks = {"fuse": fuse, "kernel": kernel, "unpack": unpack}
    if asked == "setuid":
        raise Fail(f"cannot mount with --mount={asked}", "sh-mount is not installed", "use --mount=fuse")
    if asked and asked not in lacks:
        raise Fail(f"no such way to mount: {asked!r}", "there are fuse, unpack, kernel and setuid", status=USAGE)
    if asked:
        if lacks[asked]:
            todo = "use --mount=fuse" if asked == "kernel" else ""
            raise Fail(f"cannot mount with --mount={asked}", lacks[asked], todo)
        return asked, "--mount says so"
    passed_over: list[str] = []
    for way in sorted(lacks, key=lambda way: way != preferred):  # the preferred one first, the others as they stand
        if not lacks[way]:
            why = "the site prefers it" if way == preferred else _WHY[way]
            return way, "; ".join(part for part in (why, *passed_over) if part)
        passed_over.append(f"not {way}: {lacks[way]}")
    raise Fail("cannot mount a squashfs", f"{fuse}; {unpack}", "install squashfuse, or squashfs-tools")
