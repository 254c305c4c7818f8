"""Hand a container over to Slurm's plugin, instead of executing the command in it. Effects; no policy.

The plugin has each task execute sh-join (lib/c/sh-join.c), which enters the namespaces and does as the record says. No
process of ours stays: the plugin's descriptors keep the container until its step ends.
"""

from __future__ import annotations

import os
import sys
from _socket import SCM_RIGHTS, SOL_SOCKET, socket  # what the module socket adds is an import of milliseconds

from . import environment, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .plan import Plan


def record(plan: Plan, env: Mapping[str, str], typing: bytes) -> bytes:
    """Return what each task is to do; env: ours, which the tasks have but for what is each one's own.

    typing: a seccomp filter for those with a terminal.
    """
    command = plan.command
    unset, changed = environment.changes(env, command.variables)
    lists = (command.words, [command.cwd[0]], unset, changed, plan.warnings)
    return b"".join(map(step.packed, lists)) + typing


def spaces(proc: int, *names: str) -> list[int]:
    """Open the namespaces that we are in, of these kinds. proc: the host's /proc/self, a directory. Raises OSError."""
    return [os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc) for name in names]


def give(fd: int, data: bytes, spaces: Sequence[int]) -> None:
    """Send the record, and the namespaces in the order to enter them, by a socket. Raises OSError."""
    memory = os.memfd_create("step")
    os.write(memory, data)
    rights = b"".join(given.to_bytes(4, sys.byteorder) for given in (memory, *spaces))
    socket(fileno=fd).sendmsg([b"."], [(SOL_SOCKET, SCM_RIGHTS, rights)])
