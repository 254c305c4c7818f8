"""What sh-stage --nodes starts on each node: a task that takes a copy of an image in, and keeps it while the job lasts.

It has the copy open and no name for it, so the kernel removes it with the last process that has it open. Talks with
nodes.py: a request comes in on stdin, then lines; each is answered by a line, `NODE WORD TEXT`.

    request -> ready LINK    sbcast writes to LINK, which leads to our descriptor; `have LINK` if a copy is here already
    check   -> good          it is what was sent
    keep    -> kept          sh-run finds it from now on; `unseen` if the image is not, or not the same, on this node
    (or)    -> fail WHY      and we end, as we do at the end of stdin before `keep`
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time

from . import join, linux, near
from .fail import Fail, Stopped, stop_on_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_BLOCK = 1 << 20  # bytes
_LINK = "incoming-"
_GIVEN = ("directory", "token", "path", "size", "mtime", "sha256", "offset", "length")


def request(given: Mapping[str, str], sidecar: bytes) -> bytes:
    """Return what run reads first.

    given: a value for each of directory ("": the user's own), token (this copy's), path, size and mtime (of the image's
    file, in bytes and ns), sha256, offset and length (of the squashfs in it).
    """
    body = b"".join(os.fsencode(given[name]) + b"\0" for name in _GIVEN) + sidecar
    return b"%d\n" % len(body) + body


def run() -> int:
    """Do it all; return the exit status, when the job ends. Raises nothing that was not foreseen."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)  # slurmstepd's death is the step's end
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)  # those a job's steps are sent for other reasons than its end
    stop_on_signals()
    try:
        _serve()
    except (Fail, OSError, ValueError) as error:
        _say("fail", error.strerror or str(error) if isinstance(error, OSError) else str(error))
        return 1
    except (EOFError, Stopped):
        return 0
    return 0


def sweep(directory: int) -> None:
    """Remove what those left who were killed while a copy came in, and what came in after they were. Raises OSError."""
    for name in os.listdir(directory):
        incoming, part = name.startswith(_LINK), name.startswith(near.PART)
        if (incoming and not _leads(name, directory)) or (
            part and not os.path.exists(f"/proc/{name[len(near.PART) :]}")
        ):
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:  # another task was quicker
                continue


def _leads(name: str, directory: int) -> bool:
    """Tell whether a link leads to a file that a process has open."""
    try:
        os.readlink(name, dir_fd=directory)
        os.stat(name, dir_fd=directory)
    except OSError:
        return False
    return True


def _serve() -> None:
    body = _read(int(_line() or b"0"))
    *values, sidecar = body.split(b"\0", len(_GIVEN))
    given = {name: os.fsdecode(value) for name, value in zip(_GIVEN, values)}
    words = [os.environ.get("SLURM_JOB_ID", ""), given["path"], given["size"], given["mtime"]]
    directory, own = join.opened()
    join.sweep(directory)
    sweep(directory)
    held = _has(near.read(directory, words))
    fd = _nameless(given["directory"] or own, given["token"], int(given["size"]))
    link = _LINK + given["token"]
    os.symlink(f"/proc/{os.getpid()}/fd/{fd}", link, dir_fd=directory)
    try:
        _say("have" if held else "ready", os.path.join(own, link))
        _line()
        _check(fd, given)
        _say("good")
        _line()
        kept = near.publish(directory, words, near.note(words, fd, sidecar))
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # at a job's end, stdin's end comes first, then the signal
        if not held:
            _drop(fd)
        raise
    finally:
        os.unlink(link, dir_fd=directory)
    try:
        _say("kept" if _has(near.find(given["path"], os.environ)) else "unseen")
        while True:
            signal.pause()
    finally:
        near.withdraw(directory, words, kept)


def _has(copy: near.Copy | None) -> bool:
    if copy:
        os.close(copy.fd)
    return copy is not None


def _nameless(where: str, token: str, size: int) -> int:
    """Return a new file that has no name any more, where size bytes have room. Raises Fail, OSError."""
    try:
        path = os.path.join(where, f".shoebox-{token}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        room = os.fstatvfs(fd)
    except OSError as error:
        raise Fail(f"cannot use {where!r}", error, "name another directory: --nodes=DIR") from error
    free = room.f_bavail * room.f_frsize
    if free < size:
        why = f"the image needs {size >> 20} MiB, and {free >> 20} are free"
        raise Fail(f"no space in {where!r}", why, "name another directory: --nodes=DIR")
    return fd


def _check(fd: int, given: Mapping[str, str]) -> None:
    """Raise Fail if the copy is not the image."""
    if str(os.fstat(fd).st_size) != given["size"]:
        raise Fail("the copy is not whole", f"it has {os.fstat(fd).st_size} bytes, not {given['size']}", "try again")
    digest = hashlib.sha256()
    at, end = int(given["offset"]), int(given["offset"]) + int(given["length"])
    while at < end and (block := os.pread(fd, min(_BLOCK, end - at), at)):
        digest.update(block)
        at += len(block)
    if digest.hexdigest() != given["sha256"]:
        raise Fail("the copy is damaged", f"its sha256 is {digest.hexdigest()}, not {given['sha256']}", "try again")


def _drop(fd: int) -> None:
    """Free what a copy takes that nobody wants. Slurmd has it open for minutes yet, if its sbcast was cut off."""
    for _ in range(40):  # a block may be on its way
        os.ftruncate(fd, 0)
        time.sleep(0.05)


def _line() -> bytes:
    """Read a line, byte by byte: what follows is not ours to take yet. Raises EOFError."""
    line = b""
    while not line.endswith(b"\n"):
        line += _read(1)
    return line[:-1]


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _say(word: str, text: str = "") -> None:
    """Answer. Nobody may be there to read it."""
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    line = "".join(c if c.isprintable() else "?" for c in f"{node} {word} {text}")
    try:
        os.write(1, line.encode(errors="replace") + b"\n")
    except OSError:
        sys.exit(1)
