"""Accounts: who the user is inside, as lines of passwd(5) and group(5). Pure: the image's files in, ours out."""

from __future__ import annotations

import os

PATHS = ("/etc/passwd", "/etc/group")
_SHELL = "/bin/sh"  # the host's may not be in the image


class Person:
    """A user as the host knows them; a uid without a name gets one made up."""

    __slots__ = ("gecos", "gid", "group", "home", "name", "uid")

    def __init__(self, uid: int, gid: int, name: str = "", group: str = "", home: str = "", gecos: str = "") -> None:
        """Hold the parts."""
        self.uid = uid
        self.gid = gid
        self.name = name or f"uid{uid}"
        self.group = group or f"gid{gid}"
        self.home = home or "/"
        self.gecos = gecos


def files(person: Person, passwd: bytes, group: bytes) -> list[tuple[str, bytes, str]]:
    """Return (path, content, why) of the account files that the image needs instead of its own."""
    line = ":".join(
        (person.name, "x", str(person.uid), str(person.gid), _clean(person.gecos), _clean(person.home), _SHELL)
    )
    found = []
    if not _has(passwd, person.name, person.uid):
        content = _with(line, passwd, "root:x:0:0:root:/root:/bin/sh")
        found.append((PATHS[0], content, f"the image's, with {person.name} first"))
    if not _has(group, person.group, person.gid):
        content = _with(f"{person.group}:x:{person.gid}:", group, "root:x:0:")
        found.append((PATHS[1], content, f"the image's, with {person.group} first"))
    return found


def _has(text: bytes, name: str, number: int) -> bool:
    """Tell whether the first line for this number has this name, so that looking up either finds the other."""
    lines = [line.split(b":") for line in text.splitlines()]
    first = next((line[0] for line in lines if len(line) > 2 and line[2] == b"%d" % number), None)
    return first == os.fsencode(name)


def _with(line: str, text: bytes, root: str) -> bytes:
    """Put a line before those of the image; the first one for a name or number is the one that counts."""
    if not text and not line.startswith("root:"):
        text = root.encode() + b"\n"
    return os.fsencode(line) + b"\n" + text


def _clean(text: str) -> str:
    return text.replace(":", " ").replace("\n", " ")
