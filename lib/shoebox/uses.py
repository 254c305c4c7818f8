"""What runs have left (see record): lines read back, each believed for what it is.

Who wrote a line is the owner of its file, or who the journal says sent it, never what it says itself: anybody can write
anything into a file of his own. So a user can tell lies about what he himself uses, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fail import Fail, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LINE = re.compile(rb"(\d{1,11}) \d{1,10} (sha256:[0-9a-f]{64}|id:[0-9a-f]{12,64}|-) ([!-~]+) ([!-~]+) ([!-~]+)")
_NAME = re.compile(r"(\d{1,10})\.log(\.[\w.-]+)?")  # UID.log, and what a rotation makes of it
_MOST = 64 << 20  # bytes of a file that are read: of its end; sh-run keeps below it
_LONGEST = 4096  # bytes of a line
_JOURNALED = 1 << 20  # bytes of a line of journalctl's
_AHEAD = 86400  # seconds by which a node's clock may be wrong
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Use:
    """A run on a node: when, in seconds since 1970; whose; the image's digest, "" for a file of the user's own."""

    time: int
    uid: int
    image: str


def parse(line: bytes, uid: int, now: float) -> Use | None:
    """Read a line of this user's; None if it is none, or says that it will be."""
    found = _LINE.fullmatch(line)
    if not found or int(found[1]) > now + _AHEAD:
        return None
    image = found[2].decode()
    return Use(int(found[1]), uid, "" if image == "-" else image)


def last_uses(directory: str) -> dict[str, float]:
    """Return for each image's digest (`sha256:HEX`, Shifter's `id:ID`) when it was last used, in seconds since 1970.

    directory: that of site.conf's `usage`. Raises Fail or OSError if it cannot be read: then nothing is known.
    """
    last: dict[str, float] = {}
    for use in read(directory):
        if use.image:
            last[use.image] = max(last.get(use.image, 0), use.time)
    return last


def read(directory: str) -> Iterator[Use]:
    """Yield what users have left in a directory, or, if we may not list it, what we have; and say what is strange.

    Raises Fail if there are files and none can be read, OSError if the directory cannot.
    """
    names = {name: _NAME.fullmatch(name) for name in _names(directory)}
    strange = [name for name, known in names.items() if not known]
    if strange:  # anybody can make any number of them
        say(
            f"{os.path.join(directory, strange[0])!r} does not belong there"
            + f", and {len(strange) - 1} more" * (len(strange) > 1)
        )
    now = time.time()
    refused: OSError | None = None
    count = 0
    for name, known in names.items():
        path = os.path.join(directory, name)
        if not known:
            continue
        try:
            fd = os.open(path, _OPEN)
        except FileNotFoundError:
            continue
        except OSError as error:  # of one user, that is his loss
            refused = error
            say(f"cannot read {path!r}: {error.strerror}")
            continue
        count += 1
        yield from _file(fd, path, int(known[1]), now)
    if refused and not count:
        raise Fail(f"cannot read what lies in {directory!r}", refused, "see 'usage' in site.conf(5) for who can")


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except PermissionError:
        own = [f"{os.getuid()}.log.1", f"{os.getuid()}.log"]
        if not any(os.path.lexists(os.path.join(directory, name)) for name in own):
            raise
        return own


def _file(fd: int, path: str, uid: int, now: float) -> Iterator[Use]:
    """Yield what a file says, if it is a plain one of this user's; closes it."""
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != uid:
            say(f"{path!r} is not a plain file of user {uid}: left out")
            return
        if about.st_size > _MOST:
            say(f"{path!r} is too long: only its end is read")
            file.seek(about.st_size - _MOST)
        wrong = 0
        for line in iter(lambda: file.readline(_LONGEST), b""):
            use = parse(line.rstrip(b"\n"), uid, now)
            if use:
                yield use
            wrong += not use
        if wrong:
            say(f"{path!r} has {wrong} line{'s' * (wrong > 1)} that no run leaves")


def journal(lines: Iterable[bytes]) -> Iterator[Use]:
    """Yield what syslog has, from `journalctl -t sh-run -o json`: journald tells who sent a line, as _UID.

    See systemd.journal-fields(7).
    """
    now = time.time()
    for line in lines:
        try:
            entry = json.loads(line[:_JOURNALED])
            uid, text = int(entry["_UID"]), entry["MESSAGE"].encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # what is not text is an array there
            continue
        use = parse(text, uid, now)
        if use:
            yield use
