"""The table of registries: how each is reached, short names, and where a name without a registry is looked for.

Two files of one format, registries.toml in /etc/shoebox and in ~/.config/shoebox; see sh-pull(1), FILES:

    search = ["registry.site.org", "docker.io"]
    [aliases]
    numpy = "registry.site.org/hpc/numpy"
    [registry."registry.site.org"]
    url = "https://mirror.site.org/proxy"   # a path goes before the repository
    mirrors = ["https://near.site.org"]     # asked first, for what has a digest
    mirror-tags = true                      # for tags too
    ca = "/etc/ssl/site.pem"
    authentication = "token"                # basic, none: how credentials may be sent
    auth = "login.site.org"                 # another host that may see the credentials
    jobs = 2                                # blobs at once
    insecure-http = true
    blocked = true

The user's file adds to the site's and overrides it, but a block stays, and the smaller of two jobs counts. An entry "*"
that is blocked blocks all registries that its file does not name. sh-run imports this when there is a table.
"""

from __future__ import annotations

import os

from . import paths
from .fail import Fail
from .reference import DOCKER_HUB, IMPORTS, Reference, parse
from .toml import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE = "registries.toml"
OTHERS = "*"  # the entry for all registries that have none
AUTHENTICATION = ("", "token", "basic", "none")
_HUB = "https://registry-1.docker.io"
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_MOST_JOBS = 64
_SEE = "see sh-pull(1), FILES"
_KEYS: dict[str, type] = {
    "url": str,
    "mirrors": list,
    "mirror-tags": bool,
    "ca": str,
    "authentication": str,
    "auth": str,
    "jobs": int,
    "insecure-http": bool,
    "blocked": bool,
}


class Place:
    """How a registry or mirror is reached: its URL without a path, what goes before repositories, who may log in where.

    auth: the token server that may see credentials. authentication: one of AUTHENTICATION, "" for what it asks for.
    """

    __slots__ = ("auth", "authentication", "prefix", "url")

    def __init__(self, url: str, prefix: str, auth: str, authentication: str = "") -> None:
        """Hold the parts; auth may be empty, prefix is empty or ends in a slash."""
        self.url = url
        self.prefix = prefix
        self.auth = auth
        self.authentication = authentication

    @property
    def netloc(self) -> str:
        """`host[:port]`, under which its credentials are kept."""
        return self.url.partition("://")[2]


class Table:
    """What both files say."""

    __slots__ = ("_blocked", "_entries", "_others", "aliases", "search")

    def __init__(
        self,
        search: list[str],
        aliases: dict[str, str],
        entries: Mapping[str, Mapping[str, object]],
        blocked: dict[str, str],
        others: Sequence[tuple[str, frozenset[str]]] = (),
    ) -> None:
        """Hold the parts. blocked: from a registry's host to the file that blocks it.

        others: the files that block all registries but those in the set; hosts in both as known() writes them.
        """
        self.search = search
        self.aliases = aliases
        self._entries = entries
        self._blocked = blocked
        self._others = others

    def locate(self, host: str) -> Place:
        """Tell how to reach a registry, blocked or not. Raises Fail for a url that is none."""
        entry = self._entries.get(host, {})
        plain = entry.get("insecure-http", is_loopback(host) and not entry.get("ca"))
        own = _HUB if host == DOCKER_HUB else f"http{'' if plain else 's'}://{host}"
        return _place(host, str(entry.get("url", own)), entry)

    def place(self, host: str) -> Place:
        """Tell how to reach a registry. Raises Fail when it is blocked, or none: what users call their own files."""
        if host.lower().rstrip(".") == IMPORTS:
            why = f"names below {IMPORTS}/ are of users' own files"
            raise Fail("no registry has this", why, f"a registry on this host has a port: {IMPORTS}:5000/NAME")
        place = self.locate(host)
        for name in (host, place.netloc):
            self._refuse(name)
        return place

    def mirrors(self, host: str) -> list[Place]:
        """Tell how to reach a registry's mirrors, in the order to ask them. Raises Fail when one is blocked.

        What a mirror's own entry says of logging in counts there, not what the registry's says.
        """
        places = []
        for url in _texts(self._entries.get(host, {}).get("mirrors")):
            netloc = url.partition("://")[2].partition("/")[0]
            self._refuse(netloc)
            places.append(_place(host, url, self._entries.get(netloc, {})))
        return places

    def mirrors_tags(self, host: str) -> bool:
        """Tell whether a registry's mirrors are believed about what a tag means."""
        return bool(self._entries.get(host, {}).get("mirror-tags"))

    def jobs(self, host: str, wanted: int) -> int:
        """Return how many blobs may be fetched at once from a registry: so many as wanted, or fewer."""
        limit = self._entries.get(host, {}).get("jobs")
        return min(wanted, limit) if isinstance(limit, int) else wanted

    def ca(self, netloc: str) -> str:
        """Return the CA file to trust for a `host[:port]`, that of a registry, a mirror or a token server beside it.

        Returns "" for the system's.
        """
        exact = self._entries.get(netloc, {}).get("ca")
        for host, entry in self._entries.items():
            if not exact and "ca" in entry and _name(netloc) in map(_name, _reached(host, entry)):
                exact = entry["ca"]
        return str(exact or "")

    def hosts(self) -> list[str]:
        """Return every registry that the table knows and does not block, Docker Hub included."""
        named = [*self.search, *self._entries, DOCKER_HUB]
        return [host for host in dict.fromkeys(named) if host != OTHERS and not self.blocks(host)]

    def names(self, host: str) -> bool:
        """Tell whether a registry has an entry of its own."""
        return host in self._entries

    def blocks(self, host: str) -> bool:
        """Tell whether a registry is blocked."""
        return bool(self._blocker(host))

    def _blocker(self, host: str) -> str:
        """Return the file that blocks a host, or ""."""
        name = known(host)
        for path, allowed in self._others:
            if name not in allowed:
                return path
        return self._blocked.get(name, "")

    def _refuse(self, host: str) -> None:
        """Raise Fail when a host is blocked."""
        path = self._blocker(host)
        if path:
            raise Fail(f"the registry {known(host)!r} is blocked", f"by {path!r}", "ask those who keep it")


def read(env: Mapping[str, str]) -> Table:
    """Read the site's table and the user's; either may be absent. Raises Fail for what cannot be understood."""
    search: list[str] = []
    aliases: dict[str, str] = {}
    entries: dict[str, dict[str, object]] = {}
    blocked: dict[str, str] = {}
    others = []
    for path in (os.path.join(paths.SITE, FILE), os.path.join(paths.user_config(env), FILE)):
        document = load(path, _SEE)
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
        named: set[str] = set()
        for host, value in _table(path, document.get("registry", {}), "registry").items():
            entry = _entry(path, host, value)
            if entry.pop("blocked", False):
                blocked.setdefault(known(host), path)
            if host == OTHERS:
                continue
            named |= {known(name) for name in _reached(host, entry)}
            old = entries.setdefault(host, {})
            jobs = [limit for limit in (old.get("jobs"), entry.get("jobs")) if isinstance(limit, int)]
            old.update({**entry, "jobs": min(jobs)} if jobs else entry)
        if blocked.pop(OTHERS, ""):
            others.append((path, frozenset(named)))
    return Table(search, aliases, entries, blocked, others)


def _entry(path: str, host: str, value: object) -> dict[str, object]:
    """Return what a file says of one registry. Raises Fail for what it cannot mean."""
    entry = dict(_table(path, value, f'registry."{host}"'))
    for key, said in entry.items():
        kind = _KEYS.get(key) if host != OTHERS or key == "blocked" else None
        if kind is None or type(said) is not kind or _texts(said) != (said if kind is list else []):
            raise _wrong(path, f"{key!r} of {host!r} is unknown or of a wrong type")
    if entry.get("authentication", "") not in AUTHENTICATION:
        raise _wrong(path, f"'authentication' of {host!r} is none of {', '.join(AUTHENTICATION[1:])}")
    jobs = entry.get("jobs")
    if isinstance(jobs, int) and not 1 <= jobs <= _MOST_JOBS:
        raise _wrong(path, f"'jobs' of {host!r} is no number from 1 to {_MOST_JOBS}")
    return entry


def _reached(host: str, entry: Mapping[str, object]) -> list[str]:
    """Return the hosts that an entry allows: the registry itself, and those that are asked in its place."""
    urls = [str(entry.get("url", "")), *_texts(entry.get("mirrors"))]
    return [host, *(url.partition("://")[2].partition("/")[0] for url in urls if url)]


def _texts(value: object) -> list[str]:
    """Return the strings of a list; nothing for what is no list."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _place(host: str, url: str, entry: Mapping[str, object]) -> Place:
    """Take a URL apart. host: the registry whose it is. Raises Fail."""
    scheme, colon, rest = url.partition("://")
    netloc, _, prefix = rest.partition("/")
    if scheme not in ("http", "https") or not colon or not netloc or any(c in rest for c in "@?#"):
        raise Fail(f"cannot use the url of the registry {host!r}", f"in {FILE!r}", "write https://HOST[/PATH]")
    prefix = prefix.strip("/") and prefix.strip("/") + "/"
    return Place(f"{scheme}://{netloc}", prefix, str(entry.get("auth", "")), str(entry.get("authentication", "")))


def known(host: str) -> str:
    """Return a host as blocks and policies know it: none is got round by another spelling of the same."""
    name = _name(host).lower()
    port = host[len(name) + 1 :].lstrip("0")
    name = name.rstrip(".")
    whole = name + ("" if port in ("", "80", "443") else f":{port}")
    return DOCKER_HUB if whole in _HUB_NAMES else whole


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


def _table(path: str, value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(path, f"{what!r} is no table")
    return value


def _wrong(path: str, why: str) -> Fail:
    return Fail(f"cannot use {path!r}", why, _SEE)
