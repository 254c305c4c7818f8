"""Looks around a node, for sh-doctor: what checkup judges. Changes nothing but for the trials' children. Python 3.9."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import sys
from glob import escape, glob
from typing import TYPE_CHECKING

from . import host, mountconf, nodecache, paths, superblock, trials
from .checkup import COMPRESSORS, SYSCTLS, USUAL
from .fail import Fail
from .node import MODULES, Helper, Mounted, Node, mount_of, network, read_blocks, read_mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .site import Site

_TOOLS = ("squashfuse_ll", "squashfuse", "unsquashfs")
_MODPROBE = (
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/run/modprobe.d",
    "/etc/modprobe.d",
)
_MOST = 100  # images of a store that are looked into


def around(env: dict[str, str], site: Site | None) -> Node:
    """Look at everything, and try everything. site: what it prefers."""
    release = os.uname().release
    mounts = read_mounts(_text("/proc/self/mountinfo"))
    tools = {name: path for name in _TOOLS for path in [host.tool((name,), env)] if path}
    tried = {"namespaces": trials.namespaces()}
    device = trials.device()
    fuse: dict[str, str] = {}
    if not tried["namespaces"]:
        tried["overlay"] = trials.overlay()
    server = tools.get("squashfuse_ll", tools.get("squashfuse", ""))
    if not tried["namespaces"] and not device and server:
        fuse = _try_all(lambda path: trials.fuse(server, path))
    active = _active()
    helper = _helper(paths.HELPER)
    return Node(
        release,
        sysctls={name: text for name, _, _ in SYSCTLS for text in [_sysctl(name)] if text},
        tried=tried,
        fuse_device=device,
        fuse=fuse,
        unpack=_try_all(lambda path: trials.unpack(tools["unsquashfs"], path)) if "unsquashfs" in tools else {},
        tools={name: (path, trials.version(path)) for name, path in tools.items()},
        modules=active | _loadable(release),
        blocks=read_blocks(_modprobe(), active),
        config=_config(release),
        mounts=mounts,
        selinux={"1": "enforcing", "0": "permissive"}.get(_text("/sys/fs/selinux/enforce").strip(), ""),
        seccomp="\nSeccomp:\t2\n" in _text("/proc/self/status"),
        helper_path=paths.HELPER,
        helper=helper,
        asked={path: trials.helper(paths.HELPER, path) for path in _samples(env)}
        if helper and helper.executable
        else {},
        caches=_caches() if helper and helper.executable else {},
        python={
            "Python": os.path.realpath(sys.executable),
            "Python's library": os.path.realpath(os.path.dirname(os.__file__)),
            "Shoebox": os.path.dirname(os.path.realpath(__file__)),
        },
        places=tuple(dict.fromkeys(os.path.realpath(path) for path in (env.get("HOME", ""), *_temporary(env)) if path)),
        states={path: _state(path, mounts) for path in paths.node_local(env)},
        needs=_needs(env),
        preferred=site.way if site else "",
    )


def _caches() -> dict[str, str]:
    """Try the smallest node cache in each place that mount.conf has for them."""
    kernel = mountconf.parse(host.text(f"{paths.SITE}/{mountconf.FILE}") or "")
    fs, (least, most) = kernel.cache_formats[0], kernel.cache_sizes
    size = max(least, min(most, nodecache.SMALLEST[fs]))
    return {place: trials.cache(paths.HELPER, fs, size, place) for place in kernel.caches}


def _try_all(trial: Callable[[str], str]) -> dict[str, str]:
    """Try an image of each compressor."""
    found = {}
    for compressor in COMPRESSORS:
        fd = os.memfd_create("sh-doctor")  # no place on the node has to be writable
        os.write(fd, trials.image(compressor))
        os.set_inheritable(fd, True)
        found[compressor] = trial(f"/proc/self/fd/{fd}")
        os.close(fd)
    return found


def _text(path: str) -> str:
    """Return a file's text, "" if it cannot be read."""
    try:
        return host.text(path) or ""
    except Fail:
        return ""


def _sysctl(name: str) -> str:
    return _text("/proc/sys/" + name.replace(".", "/")).strip()


def _active() -> frozenset[str]:
    """Return those of MODULES that the kernel has now."""
    systems = {line.split()[-1] for line in _text("/proc/filesystems").splitlines() if line.strip()}
    found = {name for name in MODULES if name in systems or os.path.exists(f"/sys/module/{name}")}
    return frozenset(found | ({"loop"} if glob("/sys/block/loop*") or os.path.exists("/dev/loop-control") else set()))


def _loadable(release: str) -> frozenset[str]:
    """Return those of MODULES that modprobe could find."""
    text = "".join(_text(f"/lib/modules/{release}/modules.{kind}") for kind in ("dep", "builtin"))
    return frozenset(name for name in MODULES if f"/{name}.ko" in text)


def _modprobe() -> dict[str, str]:
    """Return the files of modprobe.d(5), by their paths without links: /lib is /usr/lib on most machines."""
    found = [path for place in _MODPROBE for path in sorted(glob(f"{place}/*.conf"))]
    return {path: _text(path) for path in map(os.path.realpath, found)}


def _config(release: str) -> str:
    """Return the kernel's configuration, "" if there is no way to know it."""
    for path in (f"/boot/config-{release}", f"/lib/modules/{release}/config"):
        if text := _text(path):
            return text
    try:
        with gzip.open("/proc/config.gz", "rt", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _helper(path: str) -> Helper | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return Helper(about.st_uid, stat.S_IMODE(about.st_mode), os.access(path, os.X_OK))


def _temporary(env: Mapping[str, str]) -> tuple[str, ...]:
    return (env.get("TMPDIR", ""), "/tmp")  # noqa: S108


def _state(path: str, mounts: tuple[Mounted, ...]) -> str:
    """Return why a place cannot have node-local state, or ""."""
    try:
        about = os.stat(path)
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(about.st_mode):
        return "it is no directory"
    if about.st_uid not in (0, os.getuid()):
        return "it belongs to another user"
    if about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX:
        return "others may write there, and it has no sticky bit"
    if not os.access(path, os.W_OK | os.X_OK):
        return "you may not write there"
    kind = mount_of(os.path.realpath(path), mounts).kind
    return f"it lies on {kind}" if network(kind) else ""


def _samples(env: Mapping[str, str]) -> list[str]:
    """Return an image of each store."""
    found = (sorted(glob(f"{escape(store)}/sha256-*.sqfs"))[:1] for store in paths.stores(env))
    return [path for paths_ in found for path in paths_]


def _needs(env: Mapping[str, str]) -> dict[str, str]:
    """Return the compressors that images in the stores have, with one of these for each; and sh-flatten's own."""
    found: dict[str, str] = {}
    for store in paths.stores(env):
        for path in sorted(glob(f"{escape(store)}/sha256-*.sqfs"))[:_MOST]:
            with contextlib.suppress(OSError, Fail), open(path, "rb") as file:
                about = superblock.check(file.read(superblock.HEAD), os.fstat(file.fileno()).st_size, path)
                found.setdefault(about.compressor, path)
    found.setdefault(USUAL, "what sh-flatten makes")
    return found
