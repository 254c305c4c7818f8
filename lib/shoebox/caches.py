"""Node caches: looks at what decides about them, and makes those that sh-mount does not. Effects; Python 3.9."""

from __future__ import annotations

import errno
import os

from . import host, linux, mountconf, nodecache, paths
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .cachefs import Server
    from .identity import Person
    from .nodecache import Cache
    from .site import Site
    from .usage import Options


_MOST = 8  # of sh-mount's in a container
_ELSEWHERE = "say on= with another place"


def look(options: Options, site: Site | None, person: Person, cwd: str) -> dict[str, Cache]:
    """Return what the caches asked for will be, by their words: of several at one target, all the last. Raises Fail."""
    kernel = None
    if os.access(paths.HELPER, os.X_OK):
        kernel = mountconf.parse(host.text(f"{paths.SITE}/{mountconf.FILE}") or "")
    places, sizes = site.node_caches(person) if site else ((), ("", ""))
    node = nodecache.Node(kernel, host.why_no_device("/dev/fuse"), places, nodecache.limits(*sizes))
    wanted = list(nodecache.asked(options.all("node-cache"), options.all("volume"), cwd))
    last = {one.target: one for one in wanted}
    found = {target: nodecache.decide(one, node, os.path.realpath) for target, one in last.items()}
    for cache in found.values():
        if cache.by == nodecache.FUSE and (why := _why_not(cache.place)):
            raise Fail(f"cannot make node cache {cache.target!r} in {cache.place!r}", why, _ELSEWHERE)
    if len(of_kernel(found.values())) > _MOST:
        raise Fail("cannot have so many node caches", f"sh-mount makes {_MOST} at most", "say on= with another place")
    return {one.words: found[one.target] for one in wanted}


def _why_not(place: str) -> str:
    """Tell why no file can be made in a directory, "" if nothing is known against it."""
    try:
        os.stat(f"{place}/.")
    except OSError as error:
        return error.strerror or str(error)
    return "" if os.access(place, os.W_OK | os.X_OK) else "you may not write there"


def of_kernel(caches: Iterable[Cache]) -> list[tuple[str, int, str]]:
    """Return those that sh-mount is to make, as (file system, bytes, directory)."""
    return [(cache.fs, cache.size, cache.place) for cache in caches if cache.by == nodecache.KERNEL]


def make(caches: Iterable[Cache], made: Sequence[int], held: int = -1) -> tuple[list[int], list[Server]]:
    """Return the mount of each cache, attached nowhere, and the servers that are on their way up. Raises Fail.

    made: the mounts of sh-mount's, in their order. held: see cachefs.mount.
    """
    left = iter(made)
    mounts: list[int] = []
    servers: list[Server] = []
    for cache in caches:
        try:
            mounts.append(next(left) if cache.by == nodecache.KERNEL else _make(cache, servers, held))
        except OSError as error:
            where = repr(cache.place) if cache.place else "memory"
            todo = _ELSEWHERE if error.errno != errno.EFBIG else "ask for less"
            raise Fail(f"cannot make node cache {cache.target!r} in {where}", error, todo) from error
    return mounts, servers


def _make(cache: Cache, servers: list[Server], held: int) -> int:
    if cache.by == nodecache.TMPFS:
        options = {"source": "shoebox", "mode": "700", "size": str(cache.size)}
        return linux.new_mount("tmpfs", options, linux.NOSUID | linux.NODEV)
    from . import cachefs  # noqa: PLC0415 - sh-mount's and those in memory need none

    mount, server = cachefs.mount(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC), cache.place, cache.size, held)
    servers.append(server)
    return mount
