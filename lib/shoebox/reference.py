"""Image references: how people name images, and the names that stores give them.

Grammar: distribution-spec and github.com/distribution/reference; a hand-written parser, because it can say at
which character a name goes wrong, and because sh-run reads references too and `re` would cost it 6 ms.
"""

from __future__ import annotations

from .fail import USAGE, Fail

DOCKER_HUB = "docker.io"
IMPORTS = "localhost"  # what stands in place of a registry in names of users' own files: see imports.py
_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORD = _LOWER + "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_HEX = "0123456789abcdef"
_MAX_NAME, _MAX_TAG = 255, 128


class Reference:
    """A normalised reference: registry host[:port], repository, and a tag or a digest (digest wins)."""

    __slots__ = ("digest", "registry", "repository", "short", "tag")

    def __init__(self, registry: str, repository: str, tag: str, digest: str, *, short: bool = False) -> None:
        """Hold the parts. short: no registry was written, so a search order may apply."""
        self.registry = registry
        self.repository = repository
        self.tag = tag
        self.digest = digest
        self.short = short

    def __str__(self) -> str:
        """Return the full reference: `docker.io/library/debian:12`, `host:5000/app@sha256:…`."""
        return f"{self.registry}/{self.repository}{'@' + self.digest if self.digest else ':' + self.tag}"

    def __eq__(self, other: object) -> bool:
        """Compare by what is named."""
        return isinstance(other, Reference) and str(self) == str(other)

    def __hash__(self) -> int:
        """Hash by what is named."""
        return hash(str(self))

    @property
    def stem(self) -> str:
        """The name in a store, less its ending: `docker.io/library/debian/12`, or `…/@sha256-HEX` for a digest.

        Raises Fail (USAGE) for one that would put a directory in the place of another name, or of a store's own file.
        """
        if self.registry.startswith("sha256-") or any(part.endswith(".sqfs") for part in self.repository.split("/")):
            why = "in a store, no part before the last may look like a file there"
            raise Fail(f"cannot call an image {str(self)!r}", why, "give it another name", USAGE)
        last = "@" + self.digest.replace(":", "-") if self.digest else self.tag
        return f"{self.registry}/{self.repository}/{last}"


def parse(text: str) -> Reference:
    """Read a reference as docker does: `debian` is docker.io/library/debian:latest.

    `docker://REF` and pyxis' `HOST#REPO` are accepted spellings. Raises Fail (USAGE) with the position of the first
    character that is wrong; nothing is ever rewritten in silence.
    """
    start = len("docker://") if text.startswith("docker://") else 0
    body = text[start:]
    if "#" in body:
        host, _, rest = body.partition("#")
        if "/" not in host:
            body = f"{host}/{rest}"
    name, at, digest = body.partition("@")
    if at:
        check_digest(digest, text, start + len(name) + 1)
    tag = ""
    colon = name.rfind(":")
    if colon > name.rfind("/"):
        name, tag = name[:colon], name[colon + 1 :]
        _check_tag(tag, text, start + colon + 1)
    host, slash, path = name.partition("/")
    if slash and (host == "localhost" or any(c in host for c in ".:[") or host.lower() != host):
        _check_host(host, text, start)
        registry, repository, short, offset = host, path, False, start + len(host) + 1
    else:
        registry, repository, short, offset = DOCKER_HUB, name, True, start
    _check_repository(repository, text, offset)
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if len(registry) + 1 + len(repository) > _MAX_NAME:
        raise _wrong(text, 0, f"the name is longer than {_MAX_NAME} characters")
    return Reference(registry, repository, tag if tag or digest else "latest", digest, short=short)


def check_digest(digest: str, text: str = "", offset: int = 0) -> str:
    """Return the digest if it is `sha256:` and 64 lower-case hex digits, the one algorithm that every registry has."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256":
        raise _wrong(text or digest, offset, "a digest begins with 'sha256:'")
    if len(value) != 64 or any(c not in _HEX for c in value):
        raise _wrong(text or digest, offset + len("sha256:"), "a sha256 digest is 64 lower-case hex digits")
    return digest


def _wrong(text: str, position: int, why: str) -> Fail:
    shown = text if len(text) <= 300 else text[:300] + "…"
    return Fail(f"not an image reference: {shown!r}", f"character {position + 1}", why, status=USAGE)


def _check_tag(tag: str, text: str, offset: int) -> None:
    for i, c in enumerate(tag):
        if c not in (_WORD + ".-" if i else _WORD):
            raise _wrong(text, offset + i, f"{c!r} cannot stand here in a tag")
    if not tag:
        raise _wrong(text, offset, "the tag is empty")
    if len(tag) > _MAX_TAG:
        raise _wrong(text, offset + _MAX_TAG, f"a tag has at most {_MAX_TAG} characters")


def _check_host(host: str, text: str, offset: int) -> None:
    name, bracket, rest = host.partition("]") if host.startswith("[") else host.partition(":")
    port = rest[1:] if bracket == "]" else rest
    if bracket == "]":
        bad = next((i for i, c in enumerate(name[1:], 1) if c not in _HEX + "ABCDEF:."), -1)
        if rest and not rest.startswith(":"):
            bad = len(name) + 1
    else:
        bad = next((i for i, c in enumerate(name) if c not in _WORD.replace("_", "") + ".-"), -1)
        for i, label in enumerate(name.split(".")):
            if bad < 0 and (not label or label[0] == "-" or label[-1] == "-"):
                bad = len(".".join(name.split(".")[:i]))
    if bad >= 0:
        raise _wrong(text, offset + bad, "this cannot stand in a registry's host name")
    has_port = bracket == ":" or rest.startswith(":")
    if has_port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise _wrong(text, offset + len(host) - len(port), "a port is a number up to 65535")


def _check_repository(repository: str, text: str, offset: int) -> None:
    if not repository:
        raise _wrong(text, offset, "the repository is empty")
    position = offset
    for component in repository.split("/"):
        i = 0
        while i < len(component):
            if component[i] in _LOWER:
                i += 1
                continue
            separator = i
            while i < len(component) and component[i] in "._-":
                i += 1
            run = component[separator:i]
            if separator == 0 or i == len(component) or not (run in (".", "_", "__") or set(run) == {"-"}):
                c = component[separator]
                hint = "; repositories are lower case" if c.isupper() else ""
                raise _wrong(text, position + separator, f"{c!r} cannot stand here in a repository{hint}")
        if not component:
            raise _wrong(text, position, "an empty path component")
        position += len(component) + 1
