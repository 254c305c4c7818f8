"""Who waits for a turn: a file each, locked by its live processes, in the order of arrival.

flock(2) ends with the last process that has the file open, however it ends, so there is nothing to repair: a ticket
that nobody holds is no ticket. Places count within one running kernel, where that can be relied on. Who waits touches
his ticket, and who has a turn writes to it with each step: who has not for too long has stopped, or been stopped, and
is killed by whoever looks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from . import parts
from .fail import LATER, Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAITING, READY = "waiting", "ready"  # in line; not in line, as what it wants is there already
_PAUSE = 0.2  # seconds between two looks
_OLD = 24 * 3600  # seconds after which the tickets of another kernel, or one before a restart, go
_EACH = 32  # tickets of one user


@dataclass(frozen=True)
class Turns:
    """How many have a turn at once, and how long a step of one may take, in seconds."""

    many: int
    limit: float = math.inf


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
        self.about = about
        temporary = os.path.join(where, f".{parts.kernel()}-{os.getpid()}.part")
        self.fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.unlink(temporary)
            raise Fail(f"cannot lock files in {where!r}", error, "set SHOEBOX_CACHE to a local disk") from error
        try:
            self.write(about)
        except OSError:
            os.unlink(temporary)
            raise
        self.name = f"{time.time_ns():020d}-{os.getpid()}.{parts.kernel()}"
        os.rename(temporary, os.path.join(where, self.name))

    def state(self, word: str) -> None:
        """Say how far it is."""
        self.write(replace(self.about, state=word))

    def write(self, about: About) -> None:
        """Say what it is for by now. Raises OSError."""
        self.about = about
        text = json.dumps(asdict(about)).encode()
        text = text.ljust(os.fstat(self.fd).st_size)
        if os.pwrite(self.fd, text, 0) != len(text):  # in one go: a reader sees the one or the other
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wait(self, turns: Turns, tell: Callable[[int, int], None]) -> None:
        """Return when it is our turn; tell(place, of how many) when the place has changed."""
        told = (0, 0)
        while True:
            os.utime(self.fd)
            entries = look(self._where, turns)
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
    """Have a ticket. Raises Fail for a user who has enough of them."""
    if sum(other.who == about.who for _, other in _live(where, math.inf)) >= _EACH:
        why = f"{about.who!r} waits for {_EACH} others already"
        raise Fail("cannot take another request", why, "try again later", LATER)
    ticket = Ticket(where, about)
    try:
        yield ticket
    finally:
        ticket.close()


def look(where: str, turns: Turns) -> list[Entry]:
    """Return the tickets of those who are there, in order; the dead's go.

    The first have their turn: of those who want the same image, only one at a time; and no user all turns, nor a second
    one before somebody else has the first.
    """
    there = list(_live(where, turns.limit))
    line = [(name, about) for name, about in there if about.state != READY]
    having = {name for name, about in line if about.state != WAITING}
    digests = {about.digest for name, about in line if name in having}
    shares = Counter(about.who for name, about in line if name in having)
    for share in (1, turns.many - 1):
        for name, about in line:
            if len(having) < turns.many and about.digest not in digests and shares[about.who] < share:
                having.add(name)
                digests.add(about.digest)
                shares[about.who] += 1
    places = {name: place for place, name in enumerate((name for name, _ in line if name not in having), 1)}
    return [Entry(name, int(name.partition("-")[0]) / 1e9, about, places.get(name, 0)) for name, about in there]


def _live(where: str, limit: float) -> Iterator[tuple[str, About]]:
    own = f".{parts.kernel()}"
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(where)):
            path = os.path.join(where, name)
            with suppress(FileNotFoundError):
                if name.startswith(".") or not name.endswith(own):
                    if os.stat(path).st_mtime < time.time() - _OLD:
                        os.unlink(path)
                elif about := _read(path, limit):
                    yield name, about


def _read(path: str, limit: float) -> About | None:
    """Read a ticket that is held; remove one that is not, or has not been written to for so long (seconds)."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if time.time() - os.fstat(fd).st_mtime <= limit:
            try:
                return About(**json.loads(os.read(fd, 65536)))
            except (ValueError, TypeError):  # of another version, or the disk is full
                return About("", "", path)
        # The group of a process that is alive, or has children that are: its number means nothing else yet.
        with suppress(ProcessLookupError):
            os.killpg(int(os.path.basename(path).partition("-")[2].partition(".")[0]), signal.SIGKILL)
    finally:
        os.close(fd)
    os.unlink(path)  # no name is used twice
    return None
