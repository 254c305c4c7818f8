"""Into a container that runs: found by its job or by a process in it, and entered. Effects.

Only the user's own processes are looked at, each through one descriptor of its /proc/PID, which as a pidfd means this
process, whoever has its number next. The namespaces are opened, then judged, then entered: those opened, wherever the
process has gone meanwhile. What its environment says of its job is believed: who could write there acts as the user
already, and a lie leads to another container of the user's, at most.
"""

from __future__ import annotations

import os

from . import linux, step
from .fail import Fail
from .host import slurp, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Spaces = tuple[int, int]  # a user and a mount namespace: by their inodes, or open

_MARK = "SHOEBOX_RUNTIME"  # sh-run sets it in every container
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_CLOEXEC
_LISTED = 8  # containers in an error


class _Process:
    """A process: its pid, when it began, its environment; the namespaces of its container, or why it has none."""

    __slots__ = ("began", "env", "pid", "spaces", "why")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.began = 0
        self.env: dict[str, str] = {}
        self.spaces = (0, 0)
        self.why = ""


def enter(asked: str) -> dict[str, str]:
    """Enter the container of a job, JOB[.STEP], or of a process; return the environment of one that is in it.

    That is the process asked for, or of those asked for, and then of all, the one that began first. Raises Fail.
    """
    what = f"cannot enter {asked!r}"
    ours = (os.stat("/proc/self/ns/user").st_ino, os.stat("/proc/self/ns/mnt").st_ino)
    opened: dict[Spaces, Spaces] = {}
    seen = [_look(int(name), ours, opened) for name in os.listdir("/proc") if name.isdecimal()]
    seen.sort(key=lambda process: process.began)
    named = [process for process in seen if step.is_called(asked, step.names(process.env))]
    named += [process for process in seen if str(process.pid) == asked]
    found = [process for process in named if not process.why]
    if not found:
        raise Fail(what, _why_none(asked, named))
    containers = {process.spaces: process for process in reversed(found)}
    if len(containers) > 1:
        raise Fail(what, f"there are several: {_listed(list(containers.values()))}", "name one of these processes")
    spaces = found[0].spaces
    found += [process for process in seen if process.spaces == spaces]
    env = next((process.env for process in found if process.env.get(_MARK)), None)
    if env is None:
        raise Fail(what, "no process in it has the environment that sh-run gives")
    try:
        linux.follow(*opened[spaces])
    except OSError as error:
        raise Fail(what, error) from error
    for user, mounts in opened.values():
        os.close(user)
        os.close(mounts)
    return env


def _look(pid: int, ours: Spaces, opened: dict[Spaces, Spaces]) -> _Process:
    """Look at a process; if it is in a container that is not among those opened, open its namespaces."""
    found = _Process(pid)
    folder = -1
    try:
        folder = os.open(f"/proc/{pid}", _FOLDER)
        if os.fstat(folder).st_uid != os.getuid():
            found.why = "is another user's, or cannot be looked at"
            return found
        found.env = _environment(folder)
        found.began = int(stat("stat", folder)[19])
        user = os.open("ns/user", _FILE, dir_fd=folder)
        mounts = os.open("ns/mnt", _FILE, dir_fd=folder)
    except (FileNotFoundError, ProcessLookupError, IndexError):
        found.why = "has ended"
        return found
    except PermissionError:
        found.why = "cannot be looked at from here"
        return found
    finally:
        if folder >= 0:
            os.close(folder)
    found.spaces = (os.fstat(user).st_ino, os.fstat(mounts).st_ino)
    if found.spaces not in opened:
        found.why = _why_not(found, user, mounts, ours)
        if not found.why:
            opened[found.spaces] = (user, mounts)
            return found
    os.close(user)
    os.close(mounts)
    return found


def _environment(folder: int) -> dict[str, str]:
    """Return the environment that a process was executed with. folder: its /proc/PID."""
    fd = os.open("environ", _FILE, dir_fd=folder)
    try:
        data = b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    finally:
        os.close(fd)
    pairs = (field.partition("=") for field in os.fsdecode(data).split("\0"))
    return {name: value for name, equals, value in pairs if name and equals}


def _why_not(process: _Process, user: int, mounts: int, ours: Spaces) -> str:
    """Return why a process is in no container to enter, "" if it is.

    One of sh-run's has its mount namespace in a user namespace made from ours, and the processes in another, made from
    that; see enter.py.
    """
    if process.spaces == ours:
        return "is in no container, or in this one"
    if process.spaces[0] == ours[0]:
        return "runs in the way setuid, where nobody can join" if process.env.get(_MARK) else "is in no container"
    above: list[int] = []
    try:
        above = [linux.owner(mounts), linux.above(user)]
        above.append(linux.above(above[0]))
        outer, made_from, base = (os.fstat(fd).st_ino for fd in above)
    except PermissionError:
        return "is in namespaces that are not sh-run's"
    finally:
        for fd in above:
            os.close(fd)
    return "" if outer == made_from and base == ours[0] else "is in namespaces that are not sh-run's"


def _why_none(asked: str, named: Sequence[_Process]) -> str:
    """Return why nothing was found. named: the job's processes, then the one that has this number."""
    if not named:
        return "no job or process of this name has a container on this node"
    told = next((process for process in named if process.env.get(_MARK)), named[0])
    why = f"process {told.pid} {told.why}"
    return why if str(told.pid) != asked else f"{why}, and no job of this name has a container on this node"


def _listed(first: Sequence[_Process]) -> str:
    """Describe containers, by the first process of each."""
    told = []
    for process in first[:_LISTED]:
        names = step.names(process.env)
        comm = os.fsdecode(slurp(f"/proc/{process.pid}/comm")).strip()
        told.append(f"process {process.pid} ({' '.join([*names[:1], comm])})")
    return ", ".join(told + (["..."] if len(first) > _LISTED else []))
