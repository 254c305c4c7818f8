"""The table of systems: the stores of each, how they are reached, what images must be like there. Pure, but for files.

Two files of one format, systems.toml in /etc/shoebox and in ~/.config/shoebox; see systems.toml(5):

    [system.alps]
    store = "alps.site.org:/scratch/images"   # or a directory here, or a list of both kinds
    by = "ssh"                                # or scp, rsync
    platform = "linux/arm64"
    compressor = "gzip"

The user's file adds systems; one of the same name takes the place of the site's.
"""

from __future__ import annotations

import os

from . import paths
from .fail import USAGE, Fail
from .platforms import parse_platform
from .superblock import COMPRESSORS
from .toml import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .platforms import Platform
    from .usage import Options

FILE = "systems.toml"
SSH, SCP, RSYNC = "ssh", "scp", "rsync"
WAYS = (SSH, SCP, RSYNC)
_KEYS = ("store", "by", "platform", "compressor")
_SEE = "see systems.toml(5)"


class Place:
    """A store: host is "" for a directory of this one; directory as it is to be used there."""

    __slots__ = ("directory", "host")

    def __init__(self, host: str, directory: str) -> None:
        """Hold the parts."""
        self.host = host
        self.directory = directory

    def __str__(self) -> str:
        """Return it as sh-stage -d takes it."""
        return f"{self.host}:{self.directory}" if self.host else self.directory

    def path(self, file: str) -> str:
        """Return what a file there is called."""
        return f"{str(self).rstrip('/')}/{file}"


class System:
    """What a table says of one system. by: one of WAYS. platform: None for any. compressor: "" for any."""

    __slots__ = ("by", "compressor", "name", "places", "platform")

    def __init__(self, name: str, places: list[Place], by: str, platform: Platform | None, compressor: str) -> None:
        """Hold the parts."""
        self.name = name
        self.places = places
        self.by = by
        self.platform = platform
        self.compressor = compressor


def read(env: Mapping[str, str]) -> dict[str, System]:
    """Read the site's table and the user's; either may be absent. Raises Fail for what cannot be understood."""
    found: dict[str, System] = {}
    for where in (paths.SITE, paths.user_config(env)):
        path = os.path.join(where, FILE)
        document = load(path, _SEE)
        systems = document.pop("system", {})
        if document or not isinstance(systems, dict):
            raise _wrong(path, f"unknown key {min(document)!r}" if document else "'system' is no table")
        for name, entry in systems.items():
            found[name] = _system(path, name, entry)
    return found


def choose(table: Mapping[str, System], names: list[str]) -> list[System]:
    """Return the systems of these names, each once; all if there are no names. Raises Fail (USAGE)."""
    for name in names:
        if name not in table:
            known = f"there are {', '.join(table)}" if table else f"there is no {FILE} that names any"
            raise Fail(f"no system {name!r}", known, _SEE, USAGE)
    if not table:
        raise Fail("no system is named anywhere", todo=_SEE, status=USAGE)
    return [table[name] for name in dict.fromkeys(names or table)]


def asked(options: Options, instead: str, env: Mapping[str, str]) -> System | None:
    """Return the system that --system names, None without it. instead: the option that it stands for. Raises Fail."""
    if not options.flag("system"):
        return None
    if options.flag(instead):
        raise Fail(f"--system and --{instead} do not go together", todo="see -h", status=USAGE)
    return choose(read(env), [options.one("system")])[0]


def place(text: str) -> Place | None:
    """Read `DIR` or `HOST:DIR`, None if it is neither. After a slash, a colon is part of the directory."""
    host, colon, where = text.partition(":")
    if not colon or "/" in host:
        host, where = "", text
    if not where or (colon and not host and where != text) or host.startswith("-"):
        return None
    return Place(host, where)


def _system(path: str, name: str, entry: object) -> System:
    """Return what a file says of one system. Raises Fail."""
    if not name or name.startswith(("-", ".")) or not all(c.isalnum() or c in "-_." for c in name):
        raise _wrong(path, f"{name!r} can be no system's name")
    if not isinstance(entry, dict):
        raise _wrong(path, f"{name!r} is no table")
    unknown = sorted(entry.keys() - set(_KEYS))
    if unknown:
        raise _wrong(path, f"{name!r} has the unknown key {unknown[0]!r}")
    said = {key: value for key, value in entry.items() if key != "store"}
    for key, value in said.items():
        if not isinstance(value, str) or not value:
            raise _wrong(path, f"{key!r} of {name!r} is no text")
    by, compressor = said.get("by", SSH), said.get("compressor", "")
    if by not in WAYS:
        raise _wrong(path, f"'by' of {name!r} is none of {', '.join(WAYS)}")
    if compressor and compressor not in COMPRESSORS:
        raise _wrong(path, f"'compressor' of {name!r} is none of {', '.join(COMPRESSORS)}")
    try:
        platform = parse_platform(said["platform"]) if "platform" in said else None
    except Fail as error:
        raise _wrong(path, f"'platform' of {name!r}: {error}") from error
    return System(name, _places(path, name, by, entry.get("store")), by, platform, compressor)


def _places(path: str, name: str, by: str, said: object) -> list[Place]:
    texts = said if isinstance(said, list) else [said]
    places = [place(text) if isinstance(text, str) else None for text in texts]
    good = [found for found in places if found]
    if not good or len(good) != len(places):
        raise _wrong(path, f"'store' of {name!r} is no DIR or HOST:DIR, and no list of them")
    for found in good:
        # rsync's server may be one that takes a directory of its own for the root: only from there is a path the same.
        if not found.directory.startswith("/") and (not found.host or by == RSYNC):
            raise _wrong(path, f"the store {str(found)!r} of {name!r} does not begin with a slash")
    return good


def _wrong(path: str, why: str) -> Fail:
    return Fail(f"cannot use {path!r}", why, _SEE)
