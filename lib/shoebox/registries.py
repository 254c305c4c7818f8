"""The table of registries: how each is reached, short names, and where a name without a registry is looked for.

Two files of one format, registries.toml in /etc/shoebox and in ~/.config/shoebox; see sh-pull(1), FILES:

    search = ["registry.site.org", "docker.io"]
    [aliases]
    numpy = "registry.site.org/hpc/numpy"
    [registry."registry.site.org"]
    url = "https://mirror.site.org/proxy"   # a path goes before the repository
    ca = "/etc/ssl/site.pem"
    auth = "login.site.org"                 # another host that may see the credentials
    insecure-http = true
    blocked = true

The user's file adds to the site's and overrides it, but a block stays. sh-run imports this when there is a table.
"""

from __future__ import annotations

import os
import sys

from . import paths
from .fail import Fail
from .reference import DOCKER_HUB, Reference, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "registries.toml"
_HUB = "https://registry-1.docker.io"
_KEYS: dict[str, type] = {"url": str, "ca": str, "auth": str, "insecure-http": bool, "blocked": bool}


class Place:
    """How a registry is reached: its URL without a path, what goes before repositories, its login host."""

    __slots__ = ("auth", "prefix", "url")

    def __init__(self, url: str, prefix: str, auth: str) -> None:
        """Hold the parts; auth may be empty, prefix is empty or ends in a slash."""
        self.url = url
        self.prefix = prefix
        self.auth = auth


class Table:
    """What both files say."""

    __slots__ = ("_blocked", "_entries", "aliases", "search")

    def __init__(
        self,
        search: list[str],
        aliases: dict[str, str],
        entries: dict[str, dict[str, str | bool]],
        blocked: dict[str, str],
    ) -> None:
        """Hold the parts. blocked: from a registry's host to the file that blocks it."""
        self.search = search
        self.aliases = aliases
        self._entries = entries
        self._blocked = blocked

    def place(self, host: str) -> Place:
        """Tell how to reach a registry. Raises Fail when it is blocked."""
        entry = self._entries.get(host, {})
        plain = entry.get("insecure-http", is_loopback(host) and not entry.get("ca"))
        own = _HUB if host == DOCKER_HUB else f"http{'' if plain else 's'}://{host}"
        scheme, colon, rest = str(entry.get("url", own)).partition("://")
        netloc, _, prefix = rest.partition("/")
        if scheme not in ("http", "https") or not colon or not netloc or any(c in rest for c in "@?#"):
            raise Fail(f"cannot use the url of the registry {host!r}", f"in {FILE!r}", "write https://HOST[/PATH]")
        for name in (host, netloc, DOCKER_HUB if f"https://{netloc}" == _HUB else host):
            if name in self._blocked:
                raise Fail(f"the registry {name!r} is blocked", f"by {self._blocked[name]!r}", "ask those who keep it")
        prefix = prefix.strip("/") and prefix.strip("/") + "/"
        return Place(f"{scheme}://{netloc}", prefix, str(entry.get("auth", "")))

    def ca(self, netloc: str) -> str:
        """Return the CA file to trust for a `host[:port]`, that of a registry, a mirror or a token server beside it.

        Returns "" for the system's.
        """
        exact = self._entries.get(netloc, {}).get("ca")
        for host, entry in self._entries.items():
            named = (host, str(entry.get("url", "")).partition("://")[2].partition("/")[0])
            if not exact and "ca" in entry and _name(netloc) in map(_name, named):
                exact = entry["ca"]
        return str(exact or "")

    def hosts(self) -> list[str]:
        """Return every registry that the table knows and does not block, Docker Hub included."""
        named = [*self.search, *self._entries, DOCKER_HUB]
        return [host for host in dict.fromkeys(named) if host not in self._blocked]

    def blocks(self, host: str) -> bool:
        """Tell whether a registry is blocked."""
        return host in self._blocked


def read(env: Mapping[str, str]) -> Table:
    """Read the site's table and the user's; either may be absent. Raises Fail for what cannot be understood."""
    search: list[str] = []
    aliases: dict[str, str] = {}
    entries: dict[str, dict[str, str | bool]] = {}
    blocked: dict[str, str] = {}
    for path in (os.path.join(paths.SITE, FILE), os.path.join(paths.user_config(env), FILE)):
        document = _load(path)
        unknown = sorted(document.keys() - {"search", "aliases", "registry"})
        if unknown:
            raise _wrong(path, f"unknown key {unknown[0]!r}")
        said = document.get("search", [])
        if not isinstance(said, list) or not all(isinstance(host, str) for host in said):
            raise _wrong(path, "'search' is no list of hosts")
        search = said or search
        for name, target in _table(path, document.get("aliases", {}), "aliases").items():
            if not isinstance(target, str):
                raise _wrong(path, f"the alias {name!r} is no string")
            aliases[name] = target
        for host, entry in _table(path, document.get("registry", {}), "registry").items():
            known = entries.setdefault(host, {})
            for key, value in _table(path, entry, f'registry."{host}"').items():
                if key not in _KEYS or not isinstance(value, _KEYS[key]) or not isinstance(value, (str, bool)):
                    raise _wrong(path, f"{key!r} of {host!r} is unknown or of a wrong type")
                known[key] = value
            if known.pop("blocked", False):
                blocked.setdefault(host, path)
    return Table(search, aliases, entries, blocked)


def candidates(text: str, env: Mapping[str, str]) -> list[Reference]:
    """Return what a name may mean, in the order to try: one, or several by a search order.

    Raises Fail, of status USAGE for a name that is none.
    """
    reference = parse(text)
    return resolve(text, read(env)) if reference.short else [reference]


def resolve(text: str, table: Table) -> list[Reference]:
    """Do what candidates does, with a table already read."""
    reference = parse(text)
    if not reference.short:
        return [reference]
    body = text.removeprefix("docker://")
    name = body.partition("@")[0]
    if name.rfind(":") > name.rfind("/"):
        name = name[: name.rfind(":")]
    rest = body[len(name) :]
    if name in table.aliases:
        target = table.aliases[name]
        if rest:  # the tag that was asked for, not the alias's own
            target = target.partition("@")[0]
            target = target[: target.rfind(":")] if target.rfind(":") > target.rfind("/") else target
        return [parse(target + rest)]
    return [parse(f"{host}/{body}") for host in table.search] or [reference]


def is_loopback(host: str) -> bool:
    """Tell whether a registry's `host[:port]` is this machine, so that plain http tells nobody anything."""
    name = _name(host)
    numbers = name.split(".")
    return (
        host == "::1"
        or name in ("localhost", "[::1]")
        or (len(numbers) == 4 and numbers[0] == "127" and all(number.isdigit() for number in numbers))
    )


def _name(netloc: str) -> str:
    """Return `host` of `host:port`; an address of IPv6 keeps its brackets."""
    return netloc[: netloc.rindex("]") + 1] if netloc.startswith("[") and "]" in netloc else netloc.partition(":")[0]


def _load(path: str) -> dict[str, object]:
    """Read a TOML file; {} when it is not there."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 # novm - costs sh-run 10 ms, and only a table needs it
    else:
        try:
            import tomli as tomllib  # noqa: PLC0415
        except ImportError as error:
            todo = "write names with their registry, or install tomli"
            raise Fail(f"cannot read {path!r}", "Python before 3.11 knows no TOML", todo) from error
    try:
        document: dict[str, object] = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _wrong(path, str(error)) from error
    return document


def _table(path: str, value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(path, f"{what!r} is no table")
    return value


def _wrong(path: str, why: str) -> Fail:
    return Fail(f"cannot use {path!r}", why, "see sh-pull(1), FILES")
