"""The site's policy: which references must be signed, by whom, and as what. Pure: text and names in, requirements out.

Follows containers-policy.json(5): its file, read as strictly as there, with what of it makes sense here; see
policy.json(5). Whatever cannot be understood is a Fail: nobody may take a word left out for a permission.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fail import Fail
from .reference import Reference, parse
from .registries import known
from .signatures import unique

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "policy.json"
MOST = 1 << 20  # bytes of a policy
ACCEPT, REJECT, SIGNED = "insecureAcceptAnything", "reject", "sigstoreSigned"
_KEYS = ("keyPath", "keyPaths", "keyData", "keyDatas")
_KEYLESS = ("fulcio", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas", "pki")
_IDENTITIES = {  # the words that go with each
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


@dataclass(frozen=True)
class Identity:
    """What a signature has to call the image: one of containers-policy.json(5)'s ways, with its words."""

    kind: str = "matchRepoDigestOrExact"
    words: tuple[str, ...] = ()

    def accepts(self, reference: Reference | None, signed: str) -> bool:
        """Tell whether an image of this reference (None: it has none) may be signed as `signed`."""
        try:
            claim = _plain(parse(signed))
        except Fail:
            return False
        if claim.short:  # only what is written in full is sure
            return False
        reference = reference and _plain(reference)
        same = reference is not None and _repository(reference) == _repository(claim)
        whole = "@" in signed or signed.rfind(":") > signed.rfind("/")  # else it says no tag, and "latest" is a guess
        if self.kind == "matchRepository":
            return same
        if self.kind == "exactRepository":
            return _repository(claim) == _repository(_plain(parse(self.words[0])))
        if self.kind == "exactReference":
            return whole and claim == _plain(parse(self.words[0]))
        if reference is None or not whole:
            return False
        wanted = reference
        if self.kind == "remapIdentity":
            wanted = self._remapped(reference)
        if self.kind != "matchExact" and wanted.digest:
            return _repository(wanted) == _repository(claim)
        return wanted == claim

    def _remapped(self, reference: Reference) -> Reference:
        prefix, instead = _scope(self.words[0]), self.words[1]
        name = _repository(reference)
        if name != prefix and not name.startswith(f"{prefix}/"):
            return reference
        return _plain(parse(f"{instead}{str(reference)[len(prefix) :]}"))


@dataclass(frozen=True)
class Key:
    """A public key that the policy names: the file, or its PEM text where the policy has it itself."""

    path: str = ""
    pem: bytes = b""


@dataclass(frozen=True)
class Requirement:
    """One thing that an image must satisfy. kind: ACCEPT, REJECT or SIGNED; the rest is for the last."""

    kind: str
    keys: tuple[Key, ...] = ()
    identity: Identity = Identity()


@dataclass(frozen=True)
class Policy:
    """What a policy's file says. scopes: of its `docker` transport, "" for its default."""

    name: str
    default: tuple[Requirement, ...]
    scopes: Mapping[str, tuple[Requirement, ...]]

    def requirements(self, reference: Reference | None) -> tuple[Requirement, ...]:
        """Return what images of a reference must satisfy, all of it; those without one fall under the default."""
        if reference is None:
            return self.default
        for scope in _scopes(reference):
            if scope in self.scopes:
                return self.scopes[scope]
        return self.default

    def all_keys(self) -> list[Key]:
        """Return every key that is named."""
        lists = [self.default, *self.scopes.values()]
        return list(dict.fromkeys(key for listed in lists for one in listed for key in one.keys))


def asks(requirements: tuple[Requirement, ...]) -> bool:
    """Tell whether signatures are wanted."""
    return any(one.kind == SIGNED for one in requirements)


def load(data: bytes, name: str) -> Policy:
    """Read a policy; name: its path, for errors. Raises Fail."""
    if len(data) > MOST:
        raise _wrong(name, "it is too long")
    try:
        document: object = json.loads(data.decode(), object_pairs_hook=unique)
    except RecursionError as error:
        raise _wrong(name, "it is nested too deeply") from error
    except ValueError as error:
        raise _wrong(name, f"not JSON ({error})") from error
    top = _object(name, document, "the policy", ("default", "transports"))
    if "default" not in top:
        raise _wrong(name, "it has no 'default'")
    transports = _object(name, top.get("transports", {}), "'transports'")
    docker = _object(name, transports.get("docker", {}), "'docker'")  # the others are not ours to know
    scopes: dict[str, tuple[Requirement, ...]] = {}
    for scope, listed in docker.items():
        if scope.startswith(("http:", "https:", "docker:")) or scope.endswith("/") or scope != scope.strip():
            raise _wrong(name, f"{scope!r} is no scope: write HOST[:PORT][/REPOSITORY[:TAG]]")
        if _scope(scope) in scopes:
            raise _wrong(name, f"{scope!r} is there twice, spelled in two ways")
        scopes[_scope(scope)] = _requirements(name, listed, scope)
    return Policy(name, _requirements(name, top["default"], "default"), scopes)


def _requirements(name: str, value: object, scope: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong(name, f"{scope!r} is no list of requirements, or an empty one")
    return tuple(_requirement(name, one, scope) for one in value)


def _requirement(name: str, value: object, scope: str) -> Requirement:
    said = _object(name, value, f"a requirement of {scope!r}")
    kind = said.get("type")
    if kind in (ACCEPT, REJECT):
        _object(name, value, f"{kind!r} of {scope!r}", ("type",))
        return Requirement(str(kind))
    if kind == "signedBy":
        raise _wrong(name, f"{scope!r} wants 'signedBy', GPG's signatures, which Shoebox does not read")
    if kind != SIGNED:
        raise _wrong(name, f"{scope!r} has a requirement of the unknown type {str(kind)[:60]!r}")
    if any(word in said for word in _KEYLESS):
        raise _wrong(name, f"{scope!r} wants keyless signatures, which Shoebox does not check: name a key")
    _object(name, value, f"{kind!r} of {scope!r}", ("type", *_KEYS, "signedIdentity"))
    identity = _identity(name, said["signedIdentity"], scope) if "signedIdentity" in said else Identity()
    return Requirement(SIGNED, _keys(name, said, scope), identity)


def _keys(name: str, said: Mapping[str, object], scope: str) -> tuple[Key, ...]:
    """Read the one word that names keys."""
    words = [word for word in _KEYS if word in said]
    if len(words) != 1:
        raise _wrong(name, f"{scope!r} needs one of {', '.join(_KEYS)}")
    value = said[words[0]]
    several = words[0].endswith("s")
    listed = value if several and isinstance(value, list) else [] if several else [value]
    texts = [text for text in listed if isinstance(text, str) and text]
    if not texts or len(texts) != len(listed):
        raise _wrong(name, f"{words[0]!r} of {scope!r} is of the wrong type, or empty")
    if words[0].startswith("keyPath"):
        for path in texts:
            if not path.startswith("/") or "\0" in path:
                raise _wrong(name, f"the key {path!r} of {scope!r} is no absolute path")
        return tuple(Key(path=path) for path in texts)
    try:
        return tuple(Key(pem=base64.b64decode(text, validate=True)) for text in texts)
    except ValueError as error:
        raise _wrong(name, f"{words[0]!r} of {scope!r} is not base64") from error


def _identity(name: str, value: object, scope: str) -> Identity:
    said = _object(name, value, f"'signedIdentity' of {scope!r}")
    kind = said.get("type")
    if not isinstance(kind, str) or kind not in _IDENTITIES:
        raise _wrong(name, f"{scope!r} has a signedIdentity of the unknown type {str(kind)[:60]!r}")
    names = _IDENTITIES[kind]
    _object(name, value, f"'signedIdentity' of {scope!r}", ("type", *names))
    words = [said.get(word) for word in names]
    texts = tuple(word for word in words if isinstance(word, str) and word)
    if len(texts) != len(names):
        raise _wrong(name, f"{kind!r} of {scope!r} needs {' and '.join(names)}")
    if kind.startswith("exact"):
        try:
            parse(texts[0])
        except Fail as error:
            raise _wrong(name, str(error)) from error
    return Identity(kind, texts)


def _scopes(reference: Reference) -> list[str]:
    """Return the scopes that a reference lies in, the narrowest first: itself, its repository, … `*.org`, ""."""
    reference = _plain(reference)
    found = [str(reference)]
    name = _repository(reference)
    while name:
        found.append(name)
        name = name.rpartition("/")[0]
    labels = reference.registry.split(".")
    return [*found, *("*." + ".".join(labels[n:]) for n in range(1, len(labels))), ""]


def _plain(reference: Reference) -> Reference:
    """Return a reference with its registry spelled in one way, so that no scope can be got round by another."""
    host = known(reference.registry)
    return Reference(host, reference.repository, reference.tag, reference.digest, short=reference.short)


def _scope(text: str) -> str:
    """Return a scope, or the beginning of a reference, spelled in the same way."""
    host, slash, rest = text.partition("/")
    star = "*." if host.startswith("*.") else ""
    return f"{star}{known(host.removeprefix(star))}{slash}{rest}"


def _repository(reference: Reference) -> str:
    return f"{reference.registry}/{reference.repository}"


def _object(name: str, value: object, what: str, words: tuple[str, ...] | None = None) -> dict[str, object]:
    """Return a JSON object, none of whose names is another than words."""
    if not isinstance(value, dict):
        raise _wrong(name, f"{what} is no object")
    unknown = sorted(value.keys() - set(words)) if words is not None else []
    if unknown:
        raise _wrong(name, f"{what} has the unknown word {unknown[0][:60]!r}")
    return value


def _wrong(name: str, why: str) -> Fail:
    return Fail(f"cannot use {name!r}", why, "see policy.json(5)")
