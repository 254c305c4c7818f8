"""What crosses between a user and the image account: lines, and what they may say. Pure; nothing in them is believed.

A request is one line of words without blanks in them, each written in one way only; credentials are a line of JSON.
The bytes of an import come in frames: four bytes of length, the most significant first, and so many bytes; a frame of
none is the end, so that a connection that broke off is not taken for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import platforms, reference
from .credentials import Credentials
from .fail import USAGE, Fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PULL, PENDING, IMPORT, REMOVE = "pull", "pending", "import", "remove"
MOST = 8192  # bytes of a line
REPLY = 65536  # bytes of a line that comes back
FRAME = 1 << 20  # bytes: no frame has more
_HELLO = ("shoebox", "1")  # the version of what is spoken
_MANY = 64  # names of readers, of each kind
_SEARCHED = 8  # references, in a search order
_YES = "yes"
# What each kind says, and how many references it has.
_WORDS = {
    PULL: (("reference", "platform", "user", "group"), range(1, _SEARCHED + 1)),
    PENDING: ((), range(1)),
    IMPORT: (("reference", "user", "group", "private"), range(1, 2)),
    REMOVE: (("reference",), range(1, 2)),
}
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_SIGNS = frozenset("-.@+$\\")  # within a name: of another realm, a machine's, a domain's
_LONGEST = 256  # characters of a name


@dataclass(frozen=True)
class Request:
    """What somebody wants: to have an image (the first of its references that a registry has), or a list; to bring in a
    file of theirs by this reference, for some only (private), or to have such an image removed.
    """

    kind: str
    references: tuple[str, ...] = ()
    platform: str = ""
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    private: bool = False


def dump(request: Request) -> bytes:
    """Return a request's line."""
    words = [*_HELLO, request.kind, *(f"reference={text}" for text in request.references)]
    words += [f"platform={request.platform}"] if request.platform else []
    words += [f"user={name}" for name in request.users] + [f"group={name}" for name in request.groups]
    words += [f"private={_YES}"] if request.private else []
    return " ".join(words).encode("ascii", "backslashreplace") + b"\n"


def parse(line: bytes) -> Request:
    """Read a request's line, without its newline. Raises Fail for all that dump would not have written."""
    if len(line) > MOST:
        raise _wrong(f"it has more than {MOST} bytes")
    if not line.isascii() or not (text := line.decode("ascii")).isprintable():
        raise _wrong("it has characters that cannot stand in one")
    words = text.split(" ")
    if tuple(words[:2]) != _HELLO:
        raise Fail(
            "cannot understand the request", "it is of another version", "install the same shoebox on both sides"
        )
    kind, *rest = words[2:] or [""]
    if kind not in _WORDS:
        raise _wrong(f"there is no {kind[:40]!r}")
    known, many = _WORDS[kind]
    said: dict[str, list[str]] = {}
    for word in rest:
        key, _, value = word.partition("=")
        said.setdefault(key, []).append(value)
    unknown = next((key for key in said if key not in known), None)
    if unknown is not None:
        raise _wrong(f"there is no {unknown[:40]!r}")
    request = Request(
        kind,
        tuple(map(check_reference, said.get("reference", ()))),
        _platform(said.get("platform", ())),
        tuple(map(check_name, said.get("user", ()))),
        tuple(map(check_name, said.get("group", ()))),
        "private" in said,
    )
    if said.get("private", [_YES]) != [_YES]:
        raise _wrong(f"'private' is not {_YES!r}")
    if len(request.references) not in many:
        raise _wrong(f"it names {len(request.references)} images")
    if max(len(request.users), len(request.groups)) > _MANY:
        raise _wrong(f"it names more than {_MANY} readers")
    return request


def check_reference(text: str) -> str:
    """Return a reference that is written in full, in the one way that there is. Raises Fail."""
    if str(reference.parse(text)) != text:
        raise _wrong(f"{text[:100]!r} is not a reference in full")
    return text


def check_name(name: str) -> str:
    """Return the name of a user or group, if it can be one. Raises Fail (USAGE)."""
    if not 0 < len(name) <= _LONGEST or name[0] not in _LETTERS or set(name) - _LETTERS - _SIGNS:
        raise Fail(f"not the name of a user or a group: {name[:100]!r}", status=USAGE)
    return name


def dump_credentials(found: Credentials | None) -> bytes:
    """Return the line that answers who asks for credentials."""
    return json.dumps({key: value for key, value in vars(found).items() if value} if found else {}).encode() + b"\n"


def parse_credentials(line: bytes) -> Credentials | None:
    """Read that line; None if there are none. Raises Fail, which says nothing of what was in it."""
    try:
        document: object = json.loads(line) if len(line) <= MOST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _bad() from None
    if not document:
        return None
    known = set(vars(Credentials()))
    if not all(key in known and isinstance(value, str) and value.isprintable() for key, value in document.items()):
        raise _bad()
    found = Credentials(**document)
    token = found.registry_token  # it becomes a header as it is
    if not (token.isascii() and " " not in token) or not any((found.password, found.identity_token, token)):
        raise _bad()
    return found


def frames(streams: Iterable[Iterable[bytes | memoryview]]) -> Iterator[bytes | memoryview]:
    """Yield what has to be sent for these streams, one after the other."""
    for stream in streams:
        for piece in stream:
            for at in range(0, len(piece), FRAME):
                part = memoryview(piece)[at : at + FRAME]
                yield len(part).to_bytes(4, "big")
                yield part
        yield bytes(4)


def _platform(said: list[str] | tuple[str, ...]) -> str:
    if len(said) > 1:
        raise _wrong("it names several platforms")
    for text in said:
        if len(text) > _LONGEST or str(platforms.parse_platform(text)) != text:
            raise _wrong(f"{text[:100]!r} is not a platform in full")
    return said[0] if said else ""


def _wrong(why: str) -> Fail:
    return Fail("cannot understand the request", why, status=USAGE)


def _bad() -> Fail:
    return Fail("cannot understand the credentials that came", todo="log in again with sh-login")
