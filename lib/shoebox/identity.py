"""Accounts: who the user is inside, as lines of passwd(5) and group(5). Pure: the image's files in, ours out."""

from __future__ import annotations

import os

PATHS = ("/etc/passwd", "/etc/group")
SHADOW = "/etc/shadow"
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
    line = _line(person, _SHELL)
    found = []
    if not _has(passwd, person.name, person.uid):
        content = _with(line, passwd, "root:x:0:0:root:/root:/bin/sh")
        found.append((PATHS[0], content, f"the image's, with {person.name} first"))
    if not _has(group, person.group, person.gid):
        content = _with(f"{person.group}:x:{person.gid}:", group, "root:x:0:")
        found.append((PATHS[1], content, f"the image's, with {person.group} first"))
    return found


def for_sshd(person: Person, passwd: bytes, group: bytes, shell: str) -> list[tuple[str, bytes, str]]:
    """Return the like for an sshd, which looks closer: at the shell, at locked accounts, and at the group `tty`.

    To that group it wants to give a session's terminal, and ends if it cannot; its number means nothing inside.
    """
    groups = b"\n".join(line for line in group.split(b"\n") if not line.startswith(b"tty:"))
    why = f"sshd is to know {person.name} alone"
    return [
        (PATHS[0], _with(_line(person, shell), passwd, "root:x:0:0:root:/root:/bin/sh"), why),
        (PATHS[1], _with(f"{person.group}:x:{person.gid}:", groups, "root:x:0:"), "sshd is to give a tty to no group"),
        (SHADOW, os.fsencode(f"{person.name}:*:::::::\n"), why),
    ]


def _line(person: Person, shell: str) -> str:
    return ":".join(
        (person.name, "x", str(person.uid), str(person.gid), _clean(person.gecos), _clean(person.home), shell)
    )


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
