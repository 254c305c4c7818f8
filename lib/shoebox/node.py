"""A node as sh-doctor sees it: records, and the kernel's own texts read into them. Pure; Python 3.9."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MODULES = {  # kernel modules, and what of ours needs them
    "fuse": "the way fuse",
    "overlay": "--writable, and targets that an image lacks",
    "squashfs": "the ways kernel and setuid",
    "loop": "the ways kernel and setuid",
}
# Type names in /proc/self/mountinfo, up to a dot: fuse.sshfs and its like are on the network too.
_NETWORK = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "panfs",
        "smb3",
    )
)


@dataclass(frozen=True)
class Mounted:
    """A line of /proc/self/mountinfo: where, what type, which options."""

    point: str
    kind: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Helper:
    """The file that is sh-mount; uid and mode as stat(2) has them; executable: by us."""

    uid: int
    mode: int
    executable: bool


@dataclass(frozen=True)
class Node:
    """What was seen and tried. A `why not` is "" where nothing is wrong.

    tried: trial to its why not (`namespaces`, `overlay`; absent: not tried). fuse, unpack: the same by compressor.
    tools: program to (path, version). modules: those that the kernel has or could load. blocks: module to the
    FILE:LINE of modprobe.d(5) that keeps it away. config: the kernel's, if it can be read. mounts: in the
    kernel's order. asked: image to sh-mount's why not; caches: a place of mount.conf's likewise. python: what all
    ranks read, label to path. places: where people keep programs. states: candidates for node-local state, path to its
    why not, in order. needs: compressor to an image that has it. preferred: the site's way.
    """

    release: str
    sysctls: dict[str, str] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)
    fuse_device: str = ""
    fuse: dict[str, str] = field(default_factory=dict)
    unpack: dict[str, str] = field(default_factory=dict)
    tools: dict[str, tuple[str, str]] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    blocks: dict[str, str] = field(default_factory=dict)
    config: str = ""
    mounts: tuple[Mounted, ...] = ()
    selinux: str = ""
    seccomp: bool = False
    helper_path: str = ""
    helper: Helper | None = None
    asked: dict[str, str] = field(default_factory=dict)
    caches: dict[str, str] = field(default_factory=dict)
    python: dict[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    states: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    preferred: str = ""


def network(kind: str) -> bool:
    """Tell whether a type of file system is of the network, or may be."""
    return kind.partition(".")[0] in _NETWORK


def mount_of(path: str, mounts: tuple[Mounted, ...]) -> Mounted:
    """Return the mount that a path without symbolic links lies in: the last of those with the longest name."""
    found = Mounted("/", "unknown", ())
    for mount in mounts:
        above = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if above and len(mount.point) >= len(found.point):
            found = mount
    return found


def read_mounts(text: str) -> tuple[Mounted, ...]:
    """Read /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    found = []
    for line in text.splitlines():
        words = line.split(" ")
        if "-" in words[6:]:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            found.append(Mounted(point, words[words.index("-", 6) + 1], tuple(words[5].split(","))))
    return tuple(found)


def read_blocks(files: dict[str, str], active: frozenset[str]) -> dict[str, str]:
    """Read files of modprobe.d(5), path to text; return what keeps each of MODULES away, as `FILE:LINE`.

    active: modules that the kernel has already, so that nothing keeps them away.
    """
    found: dict[str, str] = {}
    for path, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            blacklisted = len(words) > 1 and words[0] == "blacklist"
            diverted = len(words) > 2 and words[0] == "install" and words[2].endswith(("/true", "/false", "/nologin"))
            if (blacklisted or diverted) and words[1] in MODULES and words[1] not in active:
                found[words[1]] = f"{path}:{number}"
    return found


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: `5.14.0-362.el9` is (5, 14, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(word) for word in match[0].split(".")) if match else ()
