"""Removal: images and names leave a store, so that whoever runs from one goes on, and nothing half is ever seen.

What is removed waits in .retired/ (publish.retire); nothing counts who uses it, so time decides when it is deleted. As
for publishing, there are no locks: whatever is taken away is renamed first, looked at again, and put back if it has
come to be wanted meanwhile. What a kill leaves, the next `tidy` finishes.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import publish, readers, store
from .fail import Fail, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IMAGE = re.compile(r"sha256-([0-9a-f]{64})\.sqfs")
# publish.retire's, ssh's and scp's; rsync's, which can write only at the end of a name.
_RETIRED = re.compile(r"sha256-([0-9a-f]{64})(?:\.(sqfs|json))?\.(\d{1,12}-[0-9a-f]{1,16})(?:\.(sqfs|json))?")


@dataclass(frozen=True)
class Found:
    """An image in a store: its digest's hex digits; of the file size in bytes, owner's uid and atime; staged: when.

    links: the paths of its names, from the store.
    """

    digits: str
    size: int
    uid: int
    atime: float
    staged: float
    links: tuple[str, ...]
    pinned: bool


def digits_of(file: str) -> str:
    """Return the digits in an image's file name, "" if it is none of a store."""
    known = _IMAGE.fullmatch(file)
    return known[1] if known else ""


def look(where: str) -> list[Found]:
    """Return the images in a store, whole or not. Raises OSError if it cannot be listed."""
    links: dict[str, list[str]] = {}
    files = os.listdir(where)
    for link, meant in store.names(where, lambda error: say(f"cannot list {error.filename!r}: {error.strerror}")):
        links.setdefault(meant, []).append(link)
    return [
        found for file in sorted(files) if digits_of(file) and (found := _look(where, file, tuple(links.get(file, ()))))
    ]


def _look(where: str, file: str, links: tuple[str, ...]) -> Found | None:
    path = os.path.join(where, file)
    try:
        about = os.lstat(path)
    except FileNotFoundError:  # another one has removed it
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    staged = max(about.st_mtime, _mtime(store.sidecar_file(path)))
    pinned = os.path.lexists(publish.pin_file(path))
    return Found(digits_of(file), about.st_size, about.st_uid, about.st_atime, staged, links, pinned)


def check_own(path: str, what: str) -> None:
    """Raise Fail if a file, or a name, is somebody else's, and we are not root."""
    uid = os.lstat(path).st_uid
    if os.geteuid() not in (0, uid):
        import pwd  # noqa: PLC0415 - for this line only

        with contextlib.suppress(KeyError):
            raise Fail(f"cannot remove {what!r}", f"it belongs to {pwd.getpwuid(uid).pw_name}", "ask them to")
        raise Fail(f"cannot remove {what!r}", f"it belongs to user {uid}")


def remove(where: str, image: Found, *, unless_wanted: bool = False) -> bool:
    """Retire an image, and remove its names; tell whether it was we who did. Raises OSError.

    unless_wanted: not if it has been pinned, or staged again, since it was looked at.
    """
    path = os.path.join(where, store.image_file(image.digits))
    beside = store.sidecar_file(path)

    def wanted() -> bool:
        return os.path.lexists(publish.pin_file(path)) or _mtime(beside) > image.staged

    gone = publish.retire(where, image.digits, stays=wanted if unless_wanted else None)
    if gone:
        for link in image.links:
            unname(where, link, lambda meant: meant == os.path.basename(path) and not os.path.lexists(path))
        publish.sync(where)
    return gone


def unname(where: str, link: str, unwanted: Callable[[str], bool]) -> bool:
    """Remove a name, a path from the store, if what it means, a path from there too, is unwanted; tell. Raises OSError.

    Its meaning is looked at again when nobody can find the name any more: it may have moved until then.
    """
    path, away = os.path.join(where, link), publish.temporary(where)
    try:
        if not unwanted(_meant(path, link)):
            return False
        os.rename(path, away)
    except FileNotFoundError:
        return False
    if unwanted(_meant(away, link)):
        os.unlink(away)
        return True
    if os.path.lexists(path):
        os.unlink(away)
    else:
        os.rename(away, path)
    return False


def tidy(where: str) -> None:
    """Finish what killed processes have begun: names and sidecars without their images. Others' are left to them."""
    with contextlib.suppress(PermissionError):
        _tidy(where)


def _tidy(where: str) -> None:
    publish.sweep(where)
    retired = list(_retired(where))
    gone: dict[str, int] = {}
    for one in retired:
        if one.kind == "sqfs" and not os.path.lexists(os.path.join(where, store.image_file(one.digits))):
            gone[one.digits] = max(one.time, gone.get(one.digits, 0))
    # What came later than its image went is of somebody who is staging the image again.
    for digits, when in gone.items():
        if 0 < _mtime(os.path.join(where, store.sidecar_file(store.image_file(digits)))) < when:
            publish.retire(where, digits)
    for link, meant in store.names(where, lambda error: say(f"cannot list {error.filename!r}: {error.strerror}")):
        if _mtime(os.path.join(where, link)) < gone.get(digits_of(meant), 0):
            unname(where, link, lambda meant: not os.path.lexists(os.path.join(where, meant)))
    images = {one.pair for one in retired if one.kind == "sqfs"}
    for one in retired:  # publish.retire would have put this one back
        path = os.path.join(where, store.image_file(one.digits))
        alone = one.kind == "json" and one.pair not in images
        if alone and os.path.lexists(path) and not os.path.lexists(store.sidecar_file(path)):
            os.rename(os.path.join(where, publish.RETIRED, one.file), store.sidecar_file(path))


def delete(where: str, until: float, *, dry: bool) -> tuple[int, int]:
    """Delete what is ours in .retired/ and came there until a time; return how many images that were, and the bytes."""
    count = size = 0
    for one in _retired(where):
        path = os.path.join(where, publish.RETIRED, one.file)
        with contextlib.suppress(FileNotFoundError, PermissionError):  # another one was quicker; it is not ours
            about = os.lstat(path)
            if one.time <= until and os.geteuid() in (0, about.st_uid):
                if not dry:
                    os.unlink(path)
                count += one.kind == "sqfs"
                size += about.st_size
    return count, size


@dataclass(frozen=True)
class _Retired:
    """A file in .retired/; stamp: when it came there, and what tells it from others; kind: sqfs or json."""

    file: str
    digits: str
    stamp: str
    kind: str

    @property
    def time(self) -> int:
        return int(self.stamp.partition("-")[0])

    @property
    def pair(self) -> tuple[str, str]:
        return self.digits, self.stamp


def _retired(where: str) -> Iterator[_Retired]:
    try:
        files = os.listdir(os.path.join(where, publish.RETIRED))
    except FileNotFoundError:
        return
    for file in files:
        known = _RETIRED.fullmatch(file)
        if known and bool(known[2]) != bool(known[4]):
            yield _Retired(file, known[1], known[3], known[2] or known[4])


def pin(where: str, digits: str) -> None:
    """Keep an image: an empty file beside it, whose owner and time say who wanted it and when. Raises Fail, OSError."""
    path = os.path.join(where, store.image_file(digits))
    who = readers.OWNER  # if it is away at this moment, and comes back
    with contextlib.suppress(FileNotFoundError):
        who = readers.of(path)
    fd = os.open(publish.pin_file(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, who.begin)
    if who.private and os.fstat(fd).st_uid == os.geteuid():
        readers.give(fd, who)
    os.close(fd)
    publish.sync(where)
    until = time.monotonic() + 2  # who has just retired it sees the pin now, and puts it back
    while not os.path.lexists(path):
        if time.monotonic() > until:
            publish.discard(publish.pin_file(path))
            raise Fail(f"cannot keep {path!r}", "it has just been removed", "stage it again")
        time.sleep(0.05)


def _mtime(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0


def _meant(path: str, link: str) -> str:
    """Return what the name at this path means as one of the store; "" if it is no symlink."""
    try:
        return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(path)))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return ""
