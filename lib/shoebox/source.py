"""The image as a file, and the way in which it gets mounted: the least privilege that works. Pure."""

from __future__ import annotations

from .fail import USAGE, Fail


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


def choose(asked: str, *, fuse: str, unpack: str) -> tuple[str, str]:
    """Return how to mount a squashfs, and why.

    asked: by the user, or "". fuse, unpack: what that way lacks on this machine, "" if nothing. Raises Fail.
    """
    lacks = {"fuse": fuse, "unpack": unpack}
    if asked in ("kernel", "setuid"):
        raise Fail(f"cannot mount with --mount={asked}", "sh-mount is not installed", "use --mount=fuse")
    if asked and asked not in lacks:
        raise Fail(f"no such way to mount: {asked!r}", "there are fuse, unpack, kernel and setuid", status=USAGE)
    if asked:
        if lacks[asked]:
            raise Fail(f"cannot mount with --mount={asked}", lacks[asked])
        return asked, "--mount says so"
    if not fuse:
        return "fuse", "user namespaces, /dev/fuse and squashfuse are there"
    if not unpack:
        return "unpack", f"not fuse: {fuse}"
    raise Fail("cannot mount a squashfs", f"{fuse}; {unpack}", "install squashfuse, or squashfs-tools")
