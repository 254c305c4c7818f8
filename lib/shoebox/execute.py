"""The last step of sh-run: descriptors tidied, then the command in our place. Effects; no policy."""

from __future__ import annotations

import errno
import os

from . import linux
from .fail import NOT_EXECUTABLE, NOT_FOUND, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from .command import Command


def tidy_descriptors(kept: Sequence[int]) -> None:
    """Close what we inherited, less those kept and 0, 1, 2; if one of the latter is closed it becomes /dev/null.

    Raises Fail.
    """
    first = 3
    try:
        for fd in sorted(fd for fd in kept if fd >= first):
            linux.close_range(first, fd - 1)
            first = fd + 1
        linux.close_range(first, 0xFFFFFFFF)
    except OSError as error:
        raise Fail("cannot close descriptors", error) from error
    for fd in range(3):  # what is closed would be filled by something of ours
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)


def usual_signals() -> None:
    """Heed the signals that Python ignores: what is ignored stays so over exec."""
    import _signal  # noqa: PLC0415 - signal itself would import enum

    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)


def execute(command: Command, *, filtered: bool) -> NoReturn:
    """Become the command. filtered: it may not type for our caller. Raises Fail."""
    try:
        cwd = linux.openat2(linux.AT_FDCWD, command.cwd[0], os.O_PATH | os.O_DIRECTORY, linux.NO_MAGICLINKS)
        os.fchdir(cwd)
    except OSError as error:
        raise Fail(f"cannot work in {command.cwd[0]!r}", error, "choose another directory with --workdir") from error
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if filtered:
        linux.deny_typing()
    usual_signals()
    env = {v.name: v.value for v in command.variables if v.value is not None}
    words = command.words
    if not words[0]:  # which is no error to Python but a wrong call
        raise _why_not("", None, "")
    places = (
        [""] if "/" in words[0] or not words[0] else [directory or "." for directory in env.get("PATH", "").split(":")]
    )
    paths = [os.path.join(directory, words[0]) for directory in places]
    refused: OSError | None = None
    for path in paths:
        try:
            os.execve(path, words, env)  # noqa: S606 - no shell is what we want
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = error
            if error.errno != errno.EACCES:
                break
    raise _why_not(words[0], refused, next((path for path in paths if os.path.exists(path)), ""))


def _why_not(name: str, refused: OSError | None, there: str) -> Fail:
    """Say why nothing was executed: what refused, if not that there is nothing; there: a file of that name, or ""."""
    what = f"cannot run {name!r}"
    if not refused and not there:
        return Fail(what, "there is no such command inside", status=NOT_FOUND)
    if not refused:  # the file is there, but not what it begins with: execve(2) has one errno for both
        with open(there, "rb") as file:
            line = file.read(256).partition(b"\n")[0]
        named = line[2:].split()[:1] if line.startswith(b"#!") else []
        wants = repr(os.fsdecode(named[0])) if named else "the loader that it names"
        return Fail(what, f"{wants}, which is to run it, is not inside", status=NOT_EXECUTABLE)
    if refused.errno == errno.EACCES and not (os.path.isfile(there) and os.stat(there).st_mode & 0o111):
        return Fail(what, "it is not an executable file", status=NOT_EXECUTABLE)
    if refused.errno == errno.EACCES:
        todo = "if its mode in the image bars you, sh-flatten --readable may help"
        return Fail(what, refused, todo, status=NOT_EXECUTABLE)
    if refused.errno == errno.ENOEXEC:
        return Fail(what, "it is for another kind of machine, or a script without a #! line", status=NOT_EXECUTABLE)
    return Fail(what, refused, status=NOT_EXECUTABLE)
