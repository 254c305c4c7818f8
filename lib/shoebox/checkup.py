"""What a node's health comes to, for sh-doctor. Pure: what was looked at and tried in, checks with remedies out.

Runs on Python 3.9, as sh-run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import source
from .fail import Fail
from .node import MODULES, mount_of, network, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .node import Node

COMPRESSORS = ("zstd", "gzip", "xz", "lz4", "lzo")  # those of images; lzma is for squashfs 3
USUAL = "zstd"  # what sh-flatten writes unless told otherwise
# (name, value that is bad, value to set): what restricts user namespaces.
SYSCTLS = (
    ("user.max_user_namespaces", "0", "15000"),
    ("user.max_mnt_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)
_OPTIONS = {"gzip": "ZLIB", "zstd": "ZSTD", "xz": "XZ", "lz4": "LZ4", "lzo": "LZO"}  # CONFIG_SQUASHFS_*
_OLDEST = (5, 12)  # Linux: mount_setattr(2)
_THREADS = (0, 2)  # squashfuse
_SETUID, _OTHERS_WRITE = 0o4000, 0o022  # of st_mode
_NO_NAMESPACES = "it needs user namespaces"


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it is as it should be, why we say so, and the one line that mends it."""

    name: str
    ok: bool
    why: str
    mend: str = ""


@dataclass(frozen=True)
class Verdict:
    """Which way sh-run will take, "" for none, and why."""

    way: str
    why: str


def checks(node: Node) -> Iterator[Check]:
    """Yield all there is to say of a node, the gravest first."""
    yield _kernel(node)
    yield _namespaces(node)
    yield from _sysctls(node)
    yield from _restrictions(node)
    yield from _fuse(node)
    yield _unpack(node)
    yield _overlay(node)
    yield from _modules(node)
    yield from _kernel_reads(node)
    yield _helper(node)
    yield from _asked(node)
    yield from _caches(node)
    yield from _places(node)
    yield _states(node)


def verdict(node: Node) -> Verdict:
    """Decide as sh-run does; see source.choose."""
    refused = node.tried.get("namespaces", "")
    helper = _helper(node)
    kernel = "" if helper.ok else helper.why if node.helper is None else f"sh-mount: {helper.why}"
    if refused:
        if not helper.ok:
            return Verdict("", f"no user namespaces: {refused}; and {kernel}")
        return Verdict(
            "setuid", f"no user namespaces: {refused}; sh-mount is installed, if its mount.conf allows this way"
        )
    try:
        lacks = {"fuse": _why_not_fuse(node), "kernel": kernel, "unpack": _why_not_unpack(node), "setuid": kernel}
        way, why = source.choose("", lacks, node.preferred)
    except Fail as error:
        return Verdict("", str(error))
    return Verdict(way, why)


def _kernel(node: Node) -> Check:
    ok = numbers(node.release) >= _OLDEST
    why = f"Linux {node.release}"
    return Check("kernel", ok, why if ok else f"{why} has no mount_setattr", "" if ok else "boot Linux 5.12 or newer")


def _namespaces(node: Node) -> Check:
    refused = node.tried.get("namespaces", "")
    if not refused:
        return Check("user namespaces", True, "made two, one in the other, with a mount namespace")
    bad = next((check for check in _sysctls(node) if not check.ok), None)
    if bad:
        return Check("user namespaces", False, f"{refused}: see {bad.name}", bad.mend)
    if node.seccomp:
        return Check(
            "user namespaces", False, refused, "run outside this container, or give it a wider seccomp profile"
        )
    if node.selinux == "enforcing":
        return Check("user namespaces", False, refused, "see what SELinux refuses: ausearch -m avc -ts recent")
    return Check("user namespaces", False, refused, "use a kernel with CONFIG_USER_NS=y")


def _sysctls(node: Node) -> Iterator[Check]:
    for name, bad, good in SYSCTLS:
        if name in node.sysctls:
            ok = node.sysctls[name] != bad
            line = f"echo {name}={good} >/etc/sysctl.d/90-shoebox.conf && sysctl --system"
            if not ok and name.startswith("kernel.apparmor"):
                line += ", or give sh-run an AppArmor profile with userns"
            yield Check(name, ok, f"it is {node.sysctls[name]}", "" if ok else line)


def _restrictions(node: Node) -> Iterator[Check]:
    if node.selinux:
        yield Check("SELinux", True, f"it is {node.selinux}; whether it lets us work is what the tries show")
    if node.seccomp:
        yield Check("seccomp", True, "a filter is on us already: this is a container, or a service with one")


def _why_not_fuse(node: Node) -> str:
    """Say what the way fuse lacks; the words are sh-run's own where it has some."""
    if not any(name in node.tools for name in ("squashfuse_ll", "squashfuse")):
        return "squashfuse is not installed"
    if node.fuse_device:
        return f"/dev/fuse: {node.fuse_device}"
    refused = [why for why in node.fuse.values() if why]
    return refused[0] if node.fuse and len(refused) == len(node.fuse) else ""


def _why_not_unpack(node: Node) -> str:
    if "unsquashfs" not in node.tools:
        return "unsquashfs is not installed"
    refused = [why for why in node.unpack.values() if why]
    return refused[0] if node.unpack and len(refused) == len(node.unpack) else ""


def _fuse(node: Node) -> Iterator[Check]:
    yield Check("/dev/fuse", not node.fuse_device, node.fuse_device or "it opens", _fuse_mend(node))
    name = next((name for name in ("squashfuse_ll", "squashfuse") if name in node.tools), "")
    if not name:
        yield Check("squashfuse", False, "it is not installed", "install the package squashfuse, 0.2.0 or newer")
        return
    path, version = node.tools[name]
    low = name == "squashfuse_ll"
    why = f"{path}, {version or 'of unknown version'}" + ("" if low else ": without squashfuse_ll, the faster one")
    yield Check("squashfuse", low, why, "" if low else "install a squashfuse with squashfuse_ll")
    if version:
        threads = numbers(version) >= _THREADS
        why = "several" if threads else f"{version} has one: all ranks of a node wait for it"
        yield Check(
            "squashfuse's threads", threads, why, "" if threads else "for speed, install squashfuse 0.2.0 or newer"
        )
    if node.tried.get("namespaces"):
        yield Check("FUSE mount", False, _NO_NAMESPACES, "mend the user namespaces first")
    elif node.fuse:
        yield _reads("FUSE mount", node.fuse, node.needs, "install a squashfuse built with it")


def _fuse_mend(node: Node) -> str:
    if not node.fuse_device:
        return ""
    if "fuse" in node.blocks:
        return f"remove the line {node.blocks['fuse']}, then modprobe fuse"
    return "chmod 666 /dev/fuse" if "ermission" in node.fuse_device else "modprobe fuse"


def _reads(name: str, tried: dict[str, str], needs: dict[str, str], mend: str) -> Check:
    """Judge which compressors something reads, against those that images have."""
    good = [compressor for compressor, why in tried.items() if not why]
    if not good:
        return Check(name, False, next(iter(tried.values())), "see that line; then try sh-run with --mount=unpack")
    missing = [compressor for compressor in tried if compressor not in good and compressor in needs]
    if missing:
        why = f"not {missing[0]}, which {needs[missing[0]]} has: {tried[missing[0]]}"
        return Check(name, False, why, f"{mend}: {missing[0]}, or make the image again with sh-flatten -c {good[0]}")
    return Check(name, True, f"reads {', '.join(good)}")


def _unpack(node: Node) -> Check:
    if "unsquashfs" not in node.tools:
        return Check("unsquashfs", False, "it is not installed", "install the package squashfs-tools")
    return _reads("unsquashfs", node.unpack, node.needs, "install squashfs-tools built with it")


def _overlay(node: Node) -> Check:
    if node.tried.get("namespaces"):
        return Check("overlay", False, _NO_NAMESPACES, "mend the user namespaces first")
    refused = node.tried.get("overlay", "")
    if not refused:
        return Check("overlay", True, "mounted one in a user namespace and wrote to it")
    block = node.blocks.get("overlay")
    mend = f"remove the line {block}, then modprobe overlay" if block else "modprobe overlay"
    return Check("overlay", False, refused, mend)


def _modules(node: Node) -> Iterator[Check]:
    for name, need in MODULES.items():
        if name in node.modules and name not in node.blocks:
            yield Check(f"kernel's {name}", True, f"it is there, for {need}")
        elif name in node.blocks:
            why = f"{node.blocks[name]} keeps it away from {need}"
            mend = f"remove the line {node.blocks[name]}, then modprobe {name}"
            yield Check(f"kernel's {name}", False, why, mend)
        else:
            why = f"this kernel has no such module, for {need}"
            yield Check(f"kernel's {name}", False, why, f"modprobe {name}, of the package with the kernel's modules")


def _kernel_reads(node: Node) -> Iterator[Check]:
    if not node.config or "CONFIG_SQUASHFS=" not in node.config:
        return
    lines = node.config.splitlines()
    there = {
        name: "" if f"CONFIG_SQUASHFS_{option}=y" in lines else f"this kernel has no CONFIG_SQUASHFS_{option}"
        for name, option in _OPTIONS.items()
    }
    yield _reads("kernel's decompressors", there, node.needs, "use a kernel with it")


def _helper(node: Node) -> Check:
    path, helper = node.helper_path, node.helper
    if helper is None:
        return Check("sh-mount", False, "sh-mount is not installed", "for kernel mounts, as root: make install-setuid")
    if helper.uid or not helper.mode & _SETUID:
        return Check("sh-mount", False, "it is not root's and set-user-ID", f"chown root {path} && chmod u+s {path}")
    if helper.mode & _OTHERS_WRITE:
        return Check("sh-mount", False, "others than root may write it", f"chmod go-w {path}")
    if not helper.executable:
        return Check(
            "sh-mount", False, "it is for a group that you are not in", f"usermod -aG $(stat -c %G {path}) USER"
        )
    where = mount_of(path, node.mounts)
    if "nosuid" in where.options:
        return Check("sh-mount", False, f"{where.point} is mounted nosuid", "install it elsewhere: make install-setuid")
    return Check("sh-mount", True, f"{path} is set-user-ID root, on a file system that allows that")


def _asked(node: Node) -> Iterator[Check]:
    for path, why in node.asked.items():
        ok = not why or "it lies in no store" in why  # as with a user's own
        mend = "" if ok else "see sh-mount(8) for what it trusts"
        yield Check("sh-mount's policy", ok, f"{path}: {why or 'it mounts it'}", mend)


def _caches(node: Node) -> Iterator[Check]:
    for place, why in node.caches.items():
        mend = "see NODE CACHES in sh-mount(8)" if why else ""
        yield Check("node caches", not why, f"{place}: {why or 'sh-mount makes them'}", mend)


def _places(node: Node) -> Iterator[Check]:
    for label, path in node.python.items():
        where = mount_of(path, node.mounts)
        far = network(where.kind)
        why = f"{path} lies on {where.kind}" + (", and every rank's start reads it there" if far else "")
        yield Check(label, not far, why, "install on a disk of the node: make install PREFIX= PYTHON=" if far else "")
    for path in node.places:
        where = mount_of(path, node.mounts)
        bad = "noexec" in where.options
        why = f"{where.point} is mounted noexec: programs there cannot be executed, nor inside" if bad else "no noexec"
        yield Check(f"directory {path}", not bad, why, f"mount -o remount,exec {where.point}" if bad else "")


def _states(node: Node) -> Check:
    name = "node-local state"
    first, *others = [*node.states.items()] or [("", "there is no place for it")]
    if not first[1]:
        return Check(name, True, first[0])
    second = next((path for path, why in others if not why), "")
    why = f"{first[0]}: {first[1]}" if first[0] else first[1]
    if second:
        return Check(name, True, f"{second}, as {why}")
    return Check(name, False, why, "chmod 1777 /dev/shm /tmp")
