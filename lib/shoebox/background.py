"""Commands that go on when nobody waits for them, known by a log: who still holds its lock is at work."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import time
from typing import IO, TYPE_CHECKING

from . import publish

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORGOTTEN = 86400  # seconds after which nobody asks for a log any more


def log(directory: str, key: str, argv: Sequence[str], fresh: float) -> tuple[list[str], bool]:
    """Return what a command has said so far, and whether it is at work; if there is none, start it.

    key: what tells it from others. fresh: seconds in which one that has come to its end, which an empty line tells, is
    not started again. Its lock is on what it writes to, so that the kernel takes it back, however it ends.
    """
    os.makedirs(directory, 0o700, exist_ok=True)
    path = os.path.join(directory, f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.log")
    _sweep(directory)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as file:
        if not _lock(file):
            return _lines(file), True
        said = _lines(file)
        if said[-1:] == [""] and time.time() - os.fstat(file.fileno()).st_mtime < fresh:
            return said, False
        file.truncate(0)
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        return [], True


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return os.fsdecode(file.read()).splitlines()


def _sweep(directory: str) -> None:
    """Remove the logs of what ended long ago."""
    for path in (os.path.join(directory, name) for name in os.listdir(directory)):
        if time.time() - os.stat(path).st_mtime > _FORGOTTEN:
            with open(path, "r+b") as file:
                if _lock(file):
                    publish.discard(path)
