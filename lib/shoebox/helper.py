"""The ways through sh-mount: `kernel`, whose mount we join, and `setuid`, where it becomes the command. Effects.

What it takes and says is in sh-mount(8). It is privileged and trusts nothing of ours; we are its caller, and no more.
"""

from __future__ import annotations

import os

from . import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from .plan import Plan

_NAME = "sh-mount"
_FILES = "account-"  # and our pid: files that are to be shown inside


class Started:
    """sh-mount on its way: its process, the pipes to and from it, what it says to people, and what it is to mount."""

    __slots__ = ("caches", "has_image", "pid", "stderr", "stdin", "stdout")

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, caches: int, *, has_image: bool) -> None:
        """Hold the parts. caches: how many."""
        self.caches = caches
        self.has_image = has_image
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr


def start(program: str, path: str, caches: Sequence[tuple[str, int, str]] = ()) -> Started:
    """Have an image mounted by the kernel, and node caches made.

    path: the image, or "" for none. caches: for each its file system, size in bytes, and the directory, as mount.conf
    names it. Raises OSError.
    """
    (stdin, ours), (theirs, stdout) = os.pipe(), os.pipe()
    stderr = os.memfd_create("stderr")
    pairs = ((stdin, 0), (stdout, 1), (stderr, 2))
    words = [_NAME, "kernel", path]
    for fs, size, directory in caches:
        words += [fs, str(size), directory]
    pid = os.posix_spawn(program, words, {}, file_actions=[(os.POSIX_SPAWN_DUP2, *pair) for pair in pairs])
    os.close(stdin)
    os.close(stdout)
    return Started(pid, ours, theirs, stderr, len(caches), has_image=bool(path))


def join(started: Started) -> tuple[int, list[int], str]:
    """Enter the namespaces that sh-mount made, and let it end.

    Returns mounts of the image, -1 if there is none, and of the caches, attached nowhere; or -1, none, and why. The
    user namespace is as that of enter.outer. Raises OSError.
    """
    said = b""
    while not said.endswith(b"\n"):
        more = os.read(started.stdout, 4096)
        if not more:
            return -1, [], _refusal(started)
        said += more
    spaces = [os.open(f"/proc/{started.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "mnt")]
    for fd in spaces:
        linux.setns(fd)
    point = os.fsdecode(said[:-1])
    caches = [linux.clone_tree(f"{point}/{number}") for number in range(1, started.caches + 1)]
    image = linux.clone_tree(f"{point}/0" if caches else point) if started.has_image else -1
    for fd in (*spaces, started.stdin, started.stdout, started.stderr):
        os.close(fd)
    _wait(started.pid)
    return image, caches, ""


def _refusal(started: Started) -> str:
    """Return why it ended instead of mounting."""
    status = _wait(started.pid)
    text = os.pread(started.stderr, 4096, 0).decode(errors="replace").strip()
    for fd in (started.stdin, started.stdout, started.stderr):
        os.close(fd)
    _, quoted, why = text.rpartition("': ")
    return (why if quoted else text.partition(": ")[2]) or f"{_NAME} ended with status {status}"


def _wait(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # whoever started us ignores SIGCHLD
        return 0


def become(program: str, plan: Plan, place: str) -> NoReturn:
    """Have sh-mount mount all of a plan and become its command. Raises OSError.

    place: a directory for files of ours, which sh-mount removes.
    """
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sweep(directory)
    os.close(directory)
    files = {}
    for mount in plan.mounts:
        if mount.content:
            path = files[mount.target] = f"{place}/{_FILES}{os.getpid()}-{os.path.basename(mount.target)}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.fchmod(fd, 0o644)
            os.write(fd, mount.content)
            os.close(fd)
    text = os.memfd_create("plan", 0)
    os.write(text, packed(plan, files))
    os.execve(program, [_NAME, "setuid", str(text), plan.source.path], {})  # noqa: S606 - no shell is what we want


def sweep(directory: int) -> None:
    """Remove the files of processes that were killed before sh-mount did; one of them may have had our pid.

    Raises OSError.
    """
    for name in os.listdir(directory):
        pid = name[len(_FILES) :].partition("-")[0]
        if name.startswith(_FILES) and (pid == str(os.getpid()) or not os.path.exists(f"/proc/{pid}")):
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:  # another rank was quicker
                continue


def packed(plan: Plan, files: dict[str, str]) -> bytes:
    """Return a plan as sh-mount(8) reads it. files: the path of each file of ours, by its target."""
    strings = []
    for mount in plan.mounts:
        kind = "u" if mount.content else "r" if mount.readonly else "w"
        strings += [f"m{kind.upper() if mount.optional else kind}{files.get(mount.target, mount.source)}"]
        strings += [f"t{mount.target}"]
    command = plan.command
    # Without looking into the image we cannot know which directories it has.
    strings += [f"c{command.cwd[0]}"] + (["c/"] if command.cwd[1] != "--workdir" else [])
    strings += [f"a{word}" for word in command.words]
    strings += [f"e{variable.name}={variable.value}" for variable in command.variables if variable.value is not None]
    strings += [f"d{fd}" for fd in plan.descriptors]
    text = b"".join(os.fsencode(string) + b"\0" for string in strings) + b"\0"
    return text + (linux.typing_filter() if plan.filtered else b"")
