"""Hand a container over to Slurm's plugin, instead of executing the command in it. Effects; no policy.

The plugin has each task execute sh-join (lib/c/sh-join.c), which enters the namespaces and does as the record says. No
process of ours stays: the plugin's descriptors keep the container until its step ends. If the container is as good for
other steps, what its maker left goes along, for the plugin to keep both until the job ends.
"""

from __future__ import annotations

import os
import stat
import sys
from _socket import SCM_RIGHTS, SOL_SOCKET, socket  # what the module socket adds is an import of milliseconds

from . import environment, linux, step
from .host import slurp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .command import Command
    from .plan import Plan
    from .step import Holder


def record(command: Command, env: Mapping[str, str], warnings: list[str], refused: int) -> bytes:
    """Return what each task is to do; env: ours, which the tasks have but for what is each one's own.

    refused: the status of a task whose command is there and cannot be executed. A seccomp filter ends it, for those
    with a terminal.
    """
    unset, changed = environment.changes(env, command.variables)
    lists = (command.words, [command.cwd[0], str(refused)], unset, changed, warnings)
    return b"".join(map(step.packed, lists))


def spaces(proc: int, *names: str) -> list[int]:
    """Open the namespaces that we are in, of these kinds. proc: the host's /proc/self, a directory. Raises OSError."""
    return [os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc) for name in names]


def left(plan: Plan, words: list[str], holder: Holder, *, grouped: bool) -> bytes:
    """Return what is left for the job's later steps, b"" if the container is this step's alone.

    grouped: a step has a control group, which what serves an image or a cache would hold when that is to go. What will
    be mounted, later steps must find unchanged.
    """
    served = plan.source.way == "fuse" or any(cache.by == "fuse" for cache in plan.caches)
    if plan.writable or (served and grouped):
        return b""
    paths = [plan.source.path, *(mount.source for mount in plan.mounts if mount.source)]
    return step.packed([_identity(path) for path in paths]) + step.pack(words, ("", ""), holder)


def _identity(path: str) -> str:
    """Return what tells whether a path still leads to the same; what is in a directory may change."""
    try:
        about = os.stat(path)
    except OSError:
        return f"- {path}"
    of_file = f":{about.st_size}:{about.st_mtime_ns}" if stat.S_ISREG(about.st_mode) else ""
    return f"{about.st_dev}:{about.st_ino}{of_file} {path}"


def found(kept: Sequence[int], words: list[str]) -> Holder | None:
    """Return what the maker of our job's container left, if that is for this request.

    kept: what it left, the mount and the user namespace, or nothing.
    """
    if len(kept) != 3:
        return None
    try:
        seen, rest = step.first(slurp(f"/proc/self/fd/{kept[0]}"))
        known = step.unpack(rest)
    except ValueError:
        return None
    same = known.words == words and all(line == _identity(line.partition(" ")[2]) for line in seen)
    return known.holder if same else None


def enter(kept: Sequence[int]) -> list[int]:
    """Enter the container of our job; return its namespaces. Raises OSError, also if what served the image is dead."""
    outer = linux.owner(kept[1])
    linux.follow(kept[2], kept[1])
    os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    return [outer, *kept[1:]]


def give(fd: int, data: bytes, spaces: Sequence[int], left: bytes) -> None:
    """Send the record, the namespaces in the order to enter them, and what is left for the job. Raises OSError.

    left: b"" if the container is for this step alone.
    """
    rights = [_memory(data), *spaces, *([_memory(left)] if left else [])]
    packed = b"".join(given.to_bytes(4, sys.byteorder) for given in rights)
    socket(fileno=fd).sendmsg([b"."], [(SOL_SOCKET, SCM_RIGHTS, packed)])


def _memory(data: bytes) -> int:
    fd = os.memfd_create("shoebox")
    os.write(fd, data)
    return fd
