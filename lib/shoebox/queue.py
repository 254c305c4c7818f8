"""Who waits for a turn: a file each, locked by its live processes, in the order of arrival.

flock(2) ends with the last process that has the file open, however it ends, so there is nothing to repair: a ticket
that nobody holds is no ticket. Places count within one running kernel, where that can be relied on.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import parts
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAITING, READY = "waiting", "ready"  # in line; not in line, as what it wants is there already
_PAUSE = 0.2  # seconds between two looks
_OLD = 24 * 3600  # seconds after which the tickets of another kernel, or one before a restart, go


@dataclass(frozen=True)
class About:
    """What a ticket says: who wants which image (reference, and the digest of its manifest), and how far it is."""

    who: str
    reference: str
    digest: str
    state: str = WAITING


@dataclass(frozen=True)
class Entry:
    """A ticket of somebody who is there: since when (seconds since 1970), and its place in line, 0 for none."""

    name: str
    since: float
    about: About
    place: int


class Ticket:
    """A ticket of ours. What inherits its descriptor holds it, too."""

    def __init__(self, where: str, about: About) -> None:
        """Stand in line, last. where: the directory of the queue. Raises Fail where there are no locks."""
        os.makedirs(where, mode=0o700, exist_ok=True)
        self._where = where
        self._about = about
        temporary = os.path.join(where, f".{parts.kernel()}-{os.getpid()}.part")
        self.fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.unlink(temporary)
            raise Fail(f"cannot lock files in {where!r}", error, "set SHOEBOX_CACHE to a local disk") from error
        self.state(about.state)
        self.name = f"{time.time_ns():020d}-{os.getpid()}.{parts.kernel()}"
        os.rename(temporary, os.path.join(where, self.name))

    def state(self, word: str) -> None:
        """Say how far it is."""
        text = json.dumps({**asdict(self._about), "state": word}).encode()
        os.pwrite(self.fd, text.ljust(os.fstat(self.fd).st_size), 0)  # in one go: a reader sees the one or the other

    def wait(self, most: int, tell: Callable[[int, int], None]) -> None:
        """Return when it is our turn; tell(place, of how many) when the place has changed. most: turns at once."""
        told = (0, 0)
        while True:
            entries = look(self._where, most)
            place = next((entry.place for entry in entries if entry.name == self.name), 0)
            if not place:
                return
            now = (place, sum(entry.place > 0 for entry in entries))
            if now != told:
                tell(*now)
                told = now
            time.sleep(_PAUSE)

    def close(self) -> None:
        """Leave."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._where, self.name))
        os.close(self.fd)


@contextmanager
def stand(where: str, about: About) -> Iterator[Ticket]:
    """Have a ticket."""
    ticket = Ticket(where, about)
    try:
        yield ticket
    finally:
        ticket.close()


def look(where: str, most: int) -> list[Entry]:
    """Return the tickets of those who are there, in order; the dead's go.

    The first `most` have their turn; but of those who want the same image, only one at a time.
    """
    digests: set[str] = set()
    line = 0
    found = []
    for name, about in _live(where):
        since = int(name.partition("-")[0]) / 1e9
        if about.state == READY:
            found.append(Entry(name, since, about, 0))
            continue
        first = about.digest not in digests
        turn = first and len(digests) < most
        digests.add(about.digest)
        line += not turn
        found.append(Entry(name, since, about, 0 if turn else line))
    return found


def _live(where: str) -> Iterator[tuple[str, About]]:
    own = f".{parts.kernel()}"
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(where)):
            path = os.path.join(where, name)
            with suppress(FileNotFoundError):
                if name.startswith(".") or not name.endswith(own):
                    if os.stat(path).st_mtime < time.time() - _OLD:
                        os.unlink(path)
                elif about := _read(path):
                    yield name, about


def _read(path: str) -> About | None:
    """Read a ticket that is held; remove one that is not."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return About(**json.loads(os.read(fd, 65536)))
    else:
        os.unlink(path)  # no name is used twice
        return None
    finally:
        os.close(fd)
