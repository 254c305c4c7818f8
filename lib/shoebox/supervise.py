"""Changes kept in memory and saved as one tar: who stays outside the container for that. Effects; Python 3.9.

    sh-run --- fork --- the command, in the container
      `- stays in the outer namespaces: passes signals on, saves when the container has ended, ends as the command did

What is written lies in a tmpfs of which we hold a descriptor. The container's scratch tmpfs we only watch: when the
last process has left, the kernel unmounts it and tells. Nothing of ours is in the container, and nobody counts.
"""

from __future__ import annotations

import _signal
import errno
import fcntl
import os
import sys
import time

from . import changes, enter, linux, upper
from .fail import NOT_RUN, Fail, say
from .join import born
from .writable import CHANGES, UPPER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .changes import Taken
    from .holder import Prepared
    from .join import Key

_PASSED = {
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM),
    *(_signal.SIGTERM, _signal.SIGXCPU, _signal.SIGVTALRM, _signal.SIGPROF, _signal.SIGWINCH, _signal.SIGPWR),
    *range(_signal.SIGRTMIN, _signal.SIGRTMAX + 1),
}
_ENDING = (_signal.SIGTERM, _signal.SIGHUP)
_GRACE = 5.0  # seconds from TERM until what is there is saved, come what may: batch systems kill after 10 to 30
_PAUSE = 1.0  # seconds in which what the command leaves behind may end too
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Run:
    """What we hold of a run: the directory, the tmpfs with the changes, the command's process."""

    __slots__ = ("child", "memory", "taken", "watch")

    def __init__(self, taken: Taken, memory: int, watch: int) -> None:
        self.taken = taken
        self.memory = memory
        self.watch = watch
        self.child = 0


def begin(prepared: Prepared, key: Key | None) -> None:
    """Fork. Return in the child, which is to make the container; who stays ends with the command's status.

    Raises Fail or OSError before that.
    """
    wanted = prepared.plan.writable
    if not wanted:
        return
    taken = changes.take(wanted, prepared.identity, prepared.step)
    try:
        prepared.memory = _memory(wanted.size)
        _restore(taken, prepared.memory, wanted.size)
        changes.make_upper(prepared.memory, prepared.identity.mode)
        prepared.scratch = enter.scratch("")
        run = _Run(taken, prepared.memory, linux.watch_unmount(f"/proc/self/fd/{prepared.scratch}"))
    except (Fail, OSError):
        changes.release(taken)
        raise
    made, there = os.pipe()
    for fd in (run.watch, made):  # SIGIO when either has something to say
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK | os.O_ASYNC)
    ours = _PASSED | {_signal.SIGCHLD, _signal.SIGIO}
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ours)
    about_children = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    us = os.getpid()
    run.child = os.fork()
    if not run.child:
        linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)
        if os.getppid() != us:  # we have died before that
            os._exit(1)
        _signal.signal(_signal.SIGCHLD, about_children)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        for fd in (run.watch, made, taken.fd):
            os.close(fd)
        if key:
            key.me = (os.getpid(), born("self"))
        return
    for fd in (prepared.image, prepared.scratch, there):
        os.close(fd)
    _stay(run, made, key, ours)


def _memory(size: str) -> int:
    """Return the tmpfs for the changes."""
    options = {"source": "shoebox", "mode": "755", **({"size": size} if size else {})}
    return linux.new_mount("tmpfs", options, linux.NOSUID | linux.NODEV)


def _restore(taken: Taken, memory: int, size: str) -> None:
    """Fill the tmpfs with what was saved. Raises Fail or OSError."""
    path = os.path.join(taken.path, CHANGES)
    try:
        file = open(os.open(CHANGES, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=taken.fd), "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    os.mkdir("work", 0o700, dir_fd=memory)
    os.mkdir(UPPER, 0o755, dir_fd=memory)
    into = os.open(UPPER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=memory)
    try:
        upper.unpack(file, into, repr(path))
    except OSError as error:
        why = f"they do not fit into {size or 'half of the memory'}" if error.errno in _FULL else error
        raise Fail(f"cannot restore the changes in {path!r}", why, "allow more with --writable=DIR:SIZE") from error
    finally:
        os.close(into)
        file.close()


def _stay(run: _Run, made: int, key: Key | None, ours: set[int]) -> NoReturn:
    """Do our part until the end."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):  # whoever reads what the command writes must not wait for us
        os.dup2(null, fd)
    status, wait = None, _Wait(run)
    try:
        while not wait.over:
            if key and _ended(made):  # executed, or given up: now others may follow
                os.close(key.fd)
                key = None
            wait.next(ours)
        status = wait.status
        _save(run)
    finally:
        changes.release(run.taken)
    _end(status or 0)


def _ended(pipe: int) -> bool:
    try:
        return not os.read(pipe, 1)
    except BlockingIOError:
        return False


class _Wait:
    """The command and what it leaves behind, until it is time to save."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.status: int | None = None  # as waitstatus_to_exitcode has it
        self.over = False
        self._asked = False  # to end, by TERM or HUP
        self._deadline: float | None = None
        self._told = False

    def next(self, ours: set[int]) -> None:
        """Wait for one thing to happen, and deal with it. Raises Fail if it is saving and cannot."""
        if self._deadline is None:
            happened = _signal.sigwaitinfo(ours)
        else:
            happened = _signal.sigtimedwait(ours, max(0.0, self._deadline - time.monotonic()))
        if happened is None:
            self._time_is_up()
        elif happened.si_signo == _signal.SIGCHLD:
            self._reap()
        elif happened.si_signo != _signal.SIGIO:
            self._signalled(happened.si_signo, by_terminal=happened.si_code == linux.SI_KERNEL)
        if self.status is not None and linux.was_unmounted(self.run.watch):
            self.over = True

    def _reap(self) -> None:
        pid, status = os.waitpid(self.run.child, os.WNOHANG | os.WUNTRACED)
        if not pid:
            return
        if os.WIFSTOPPED(status):  # so are we, for our caller to see; whoever wakes us wakes it
            os.kill(os.getpid(), _signal.SIGSTOP)
            os.kill(self.run.child, _signal.SIGCONT)
            return
        self.status = os.waitstatus_to_exitcode(status)
        self._deadline = time.monotonic() + _PAUSE

    def _signalled(self, number: int, *, by_terminal: bool) -> None:
        if self.status is not None:
            if number in (*_ENDING, _signal.SIGINT, _signal.SIGQUIT):
                self._asked = True
                self._deadline = time.monotonic()
            return
        if not by_terminal:
            os.kill(self.run.child, number)
        if number in _ENDING and not self._asked:
            self._asked = True
            self._deadline = time.monotonic() + _GRACE

    def _time_is_up(self) -> None:
        self._deadline = None
        where = repr(self.run.taken.path)
        if self.status is None:
            say(f"warning: the command goes on after TERM: saving to {where} what is there now")
            try:
                _save(self.run)
            except Fail as error:  # there will be another chance, at the end
                say(str(error))
        elif self._asked:
            say(f"warning: something inside still runs: what it changes from now on is not saved to {where}")
            self.over = True
        elif not self._told:
            self._told = True
            say(f"waiting for what still runs inside, to save the changes to {where}")


def _save(run: _Run) -> None:
    """Write the tar, in place of the old one. Raises Fail if that cannot be."""
    tree = os.open(UPPER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=run.memory)
    about = os.statvfs(f"/proc/self/fd/{run.memory}")
    path = os.path.join(run.taken.path, CHANGES)
    if not about.f_bavail or not about.f_ffree:
        say("warning: the changes fill all the memory that they may have: allow more with --writable=DIR:SIZE")
    part = f".{CHANGES}.part"
    try:
        odd = _write(tree, run.taken.fd, part)
        os.rename(part, CHANGES, src_dir_fd=run.taken.fd, dst_dir_fd=run.taken.fd)
        _sync(run.taken.fd)
    except OSError as error:
        _forget(run.taken.fd, part)
        raise _lost(tree, path, error) from error
    finally:
        os.close(tree)
    if odd:
        say(f"warning: cannot save {odd[0]!r} and all else whose name begins with '.wh.', {len(odd)} in all")


def _write(tree: int, directory: int, name: str, more: int = 0) -> list[str]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | more
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb", buffering=1 << 20) as file:
        odd = upper.pack(tree, file, (os.getuid(), os.getgid()))
        file.flush()
        os.fsync(file.fileno())
    return odd


def _sync(directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some FUSE file systems have no fsync of directories
            raise


def _forget(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:  # that may be what is wrong with the directory
        return


def _lost(tree: int, path: str, error: OSError) -> Fail:
    """Save to another place what cannot be saved where it belongs; return what to tell."""
    what = f"cannot save the changes as {path!r}"
    where = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - a name that nobody can foresee, made by O_EXCL
    name = f"shoebox-changes-{os.getpid()}-{os.urandom(4).hex()}.tar"
    try:
        directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return Fail(what, error, "what this run changed is lost; what was saved before is still there")
    try:
        _write(tree, directory, name, os.O_EXCL)
    except OSError:
        _forget(directory, name)
        return Fail(what, error, "what this run changed is lost; what was saved before is still there")
    finally:
        os.close(directory)
    return Fail(what, error, f"the changes are in {os.path.join(where, name)!r} instead: move it there in time")


def _end(status: int) -> NoReturn:
    """End as the command did."""
    if status < 0:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)  # its core is the one of interest
        if -status not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(-status, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    sys.stderr.flush()
    os._exit(status if status >= 0 else NOT_RUN)
