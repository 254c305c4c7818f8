"""The image's mount: the way is chosen, sh-mount begins if it has a part, the outer namespaces are entered. Effects.

What no privilege can do is tried first; where a way turns out to be refused, another one is taken.
"""

from __future__ import annotations

import errno
import os

from . import enter, helper, host, paths
from .facts import DIRECTORY
from .fail import Fail
from .source import NO_HELPER, Source, choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .facts import Host, Request
    from .near import Copy

_TREE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Begun:
    """A way that was chosen, by whom, and what is there for each; sh-mount, if it has begun; this node's own copy.

    caches: those that sh-mount is to make, whatever the way, as (file system, bytes, directory); made: their mounts.
    """

    __slots__ = ("asked", "caches", "copy", "lacks", "made", "preferred", "server", "started", "unpacker", "way")

    def __init__(self, asked: str, preferred: str, lacks: dict[str, str], server: str, unpacker: str) -> None:
        """Hold the parts."""
        self.asked = asked
        self.preferred = preferred
        self.lacks = lacks
        self.server = server
        self.unpacker = unpacker
        self.started: helper.Started | None = None
        self.copy: Copy | None = None
        self.caches: list[tuple[str, int, str]] = []
        self.made: list[int] = []
        self.way = ("", "")

    def choose(self) -> tuple[str, str]:
        """Return the way and its reason. Raises Fail."""
        return choose(self.asked, self.lacks, self.preferred)

    def start(self, path: str) -> None:
        """Have sh-mount begin with its part, if it has one: it takes some 3 ms. Raises OSError."""
        kernel = self.way[0] == "kernel"
        if kernel or self.caches:
            self.started = helper.start(paths.HELPER, path if kernel else "", self.caches)

    def join(self, path: str) -> int:
        """Enter the namespaces that sh-mount makes, if it does; return its mount of the image, -1 if that is not its.

        If it refuses the image, another way is chosen; the caches are its part then too. Raises Fail or OSError.
        """
        while self.started:
            root, self.made, why = helper.join(self.started)
            if not why:
                return root
            self.started = None
            if self.way[0] != "kernel":
                raise self._refused(why)
            self.lacks["kernel"] = why
            self.way = self.choose()
            self.start(path)
        return -1

    def _refused(self, why: str) -> Fail:
        where = ", ".join(dict.fromkeys(repr(directory) for _, _, directory in self.caches))
        return Fail(f"cannot make a node cache in {where}", why)


def begin(request: Request, env: dict[str, str], path: str, kind: str, copy: Copy | None) -> Begun:
    """Choose a way, and have sh-mount begin with its part. Raises Fail or OSError."""
    server, unpacker = host.tool(("squashfuse_ll", "squashfuse"), env), host.tool(("unsquashfs",), env)
    no_helper = "" if os.access(paths.HELPER, os.X_OK) else NO_HELPER
    lacks = {
        "fuse": host.why_no_device("/dev/fuse") if server else "squashfuse is not installed",
        "kernel": no_helper or ("sh-mount takes no copy that sh-stage --nodes made" if copy else ""),
        "unpack": "" if unpacker else "unsquashfs is not installed",
        "setuid": no_helper,
    }
    begun = Begun(request.options.one("mount"), request.site.way if request.site else "", lacks, server, unpacker)
    begun.copy = copy
    begun.way = ("bind", "a directory") if kind == DIRECTORY and begun.asked != "setuid" else begun.choose()
    if request.caches:
        from . import caches  # noqa: PLC0415 - see holder.prepare

        begun.caches = (
            [] if request.options.flag("explain") else caches.of_kernel(dict.fromkeys(request.caches.values()))
        )
        if begun.way[0] == "setuid":
            what = "cannot have a node cache in the way setuid"
            raise Fail(what, f"nobody could share it; {begun.way[1]}", "run without --node-cache")
    begun.start(path)
    return begun


def mount(
    begun: Begun, outside: Host, path: str, kind: str, offset: int, *, alone: bool
) -> tuple[Source, int, enter.Server | None]:
    """Mount the image, attached nowhere yet; return what it is, its mount, and who serves it.

    alone: each rank may mount it for itself. In the way setuid, sh-mount does it later: we stay outside, a directory
    stands for its mount, -1 for that of a squashfs. Raises Fail.
    """
    try:
        if begun.started:
            from . import plan, probe  # noqa: F401, PLC0415 - wanted next, and sh-mount is not ready

            root = begun.join(path)
            if root >= 0:
                return Source(path, kind, offset, *begun.way), root, None
        inside = begun.started or begun.way[0] == "setuid"
        refused = None if inside else _outer(outside.person.uid, outside.person.gid)
        if refused and (begun.asked or begun.lacks["setuid"] or not alone):
            raise refused
        if refused:
            begun.way = ("setuid", str(refused))
        source = Source(path, kind, offset, *begun.way)
        file = path
        if begun.copy and source.way != "setuid":
            source.why += "; from this node's own copy"
            file = begun.copy.file
            os.set_inheritable(begun.copy.fd, True)  # until it is mounted
        if source.way == "setuid":
            return source, os.open(path, _TREE) if kind == DIRECTORY else -1, None
        if source.way == "bind":
            return source, enter.directory(path), None
        if source.way == "fuse":  # the kernel wants the device opened in the user namespace of the mount
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            return source, *enter.fuse(device, begun.server, file, offset, outside.descriptors, path)
        from . import extract  # noqa: PLC0415 - the last resort

        return source, extract.extract(begun.unpacker, file, offset), None
    except OSError as error:
        raise Fail(f"cannot mount image {path!r}", error, "try another way with --mount") from error
    finally:
        if begun.copy:
            os.close(begun.copy.fd)


def _outer(uid: int, gid: int) -> Fail | None:
    """Enter the outer namespaces; return why this machine refuses. Raises OSError if something else is wrong."""
    try:
        enter.outer(uid, gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.EUSERS):
            raise
        why, todo = host.why_no_namespaces()
        return Fail("cannot make a user namespace", why or error, todo)
    return None
