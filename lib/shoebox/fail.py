"""Errors: the one class, and the one place that tells people of them.

sh-run imports this, so nothing here may import more than os and sys (style.md, "Start-up").
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

FAILED, USAGE, LATER = 1, 2, 75  # will fail again; wrong usage; may work later (sysexits.h EX_TEMPFAIL)
NOT_RUN, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127  # sh-run's own, as env(1) and docker-run(1) have them

_TEMPORARY = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ESTALE,
)
_SEVERITY = (0, LATER, FAILED, USAGE)  # of several failures, the last of these is the one to tell


class Fail(Exception):
    """Something that a person can mend, told in one line: `what: why: todo`.

    what: lower case, the subject in single quotes (`cannot read '/x.sqfs'`). why: a phrase, or the OSError itself.
    todo: the remedy, always last. status: the exit status. made: what there is in spite of it.
    """

    made: tuple[str, ...] = ()

    def __init__(self, what: str, why: str | OSError = "", todo: str = "", status: int = 0) -> None:
        """Make a failure; without a status it is LATER for full disks and lost networks, else FAILED."""
        reason = (why.strerror or str(why)) if isinstance(why, OSError) else why
        super().__init__(": ".join(part for part in (what, reason, todo) if part))
        self.todo = todo
        self.status = status or (LATER if isinstance(why, OSError) and why.errno in _TEMPORARY else FAILED)


class Stopped(BaseException):
    """A signal asked us to end: raised so that temporary files are removed on the way out."""

    def __init__(self, signum: int) -> None:
        """Remember which signal, to die of it in the end."""
        super().__init__(signum)
        self.signum = signum


def say(line: str) -> None:
    """Print one line for people, to stderr; a line's own newlines and escapes are shown, not obeyed."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    try:
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {text}\n")
        sys.stderr.flush()
    except (OSError, AttributeError, ValueError):  # stderr is closed or full: the exit status must do
        return


def worst(first: int, second: int) -> int:
    """Return the graver of two exit statuses."""
    return max(first, second, key=lambda s: _SEVERITY.index(s) if s in _SEVERITY else len(_SEVERITY))


def each(names: Iterable[str], act: Callable[[str], str]) -> int:
    """Do act for every name and print what it made, one a line; a name that fails does not stop the rest.

    Returns the worst status.
    """
    status = 0
    for name in names:
        try:
            made: tuple[str, ...] = (act(name),)
        except (Fail, OSError) as error:
            failure = error if isinstance(error, Fail) else told(error)
            made = failure.made
            say(str(failure))
            status = worst(status, failure.status)
        for line in made:
            sys.stdout.buffer.write(os.fsencode(line) + b"\n")  # names of files may be any bytes, whatever the locale
            sys.stdout.buffer.flush()
    return status


def told(error: OSError) -> Fail:
    """Turn an OSError that nobody knew better about into one line."""
    names = (error.filename2, error.filename)  # of symlink(2), the second is the link; of fstat(2), a number
    path = next((name for name in names if isinstance(name, (str, bytes))), None)
    return Fail(f"cannot use {os.fsdecode(path)!r}" if path else "the system says", error)


def main(act: Callable[[list[str]], int], own: int = 0) -> NoReturn:
    """Run a command's act(argv) and end the process with its status.

    own: for sh-run, the status of every failure of ours that is not NOT_EXECUTABLE or NOT_FOUND.
    """
    try:
        status = act(sys.argv[1:])
        sys.stdout.flush()
    except Fail as error:
        say(str(error))
        status = error.status if not own or error.status in (NOT_EXECUTABLE, NOT_FOUND) else own
    except KeyboardInterrupt:
        _die_of(2)
    except Stopped as stop:
        _die_of(stop.signum)
    except BrokenPipeError:  # whoever reads our stdout has gone: end as other filters do
        _die_of(13)
    except OSError as error:
        say(str(told(error)))
        status = own or told(error).status
    # Not sys.exit: that would flush a stdout that may be broken, and spend milliseconds on tidying.
    os._exit(status)


def _die_of(signum: int) -> NoReturn:
    """End as that signal ends a process, so that the shell sees it."""
    import _signal  # noqa: PLC0415 - signal itself would import enum: 4 ms

    _signal.signal(signum, _signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)


def stop_on_signals() -> None:
    """Let TERM and HUP unwind the stack (Stopped) instead of ending us where we stand; for the login-node commands."""
    import signal  # noqa: PLC0415 - sh-run never calls this

    def stop(signum: int, _frame: object) -> NoReturn:
        raise Stopped(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, stop)
