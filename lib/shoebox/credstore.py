"""Credentials that are kept and forgotten, as docker does both: in config.json, or by a helper that it names.

Follows docs.docker.com/reference/cli/docker/login and github.com/docker/docker-credential-helpers. Where a helper is
configured, nothing is ever written in clear; the file is its owner's alone, appears whole, and keeps what else it has.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from functools import partial
from typing import TYPE_CHECKING

from . import credentials
from .fail import LATER, USAGE, Fail
from .reference import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .credentials import Credentials

_TRIES = 5
_BY_TOKEN = "<token>"  # noqa: S105 - the name under which helpers keep identity tokens


def registry(word: str) -> str:
    """Return the registry that a word on the command line means, as references write it. Raises Fail (USAGE)."""
    host = credentials.hostname(word)
    try:
        known = parse(f"{host}/x").registry
    except Fail:
        known = ""
    if not known or host not in (known, "index.docker.io", "registry-1.docker.io"):
        raise Fail(f"not a registry: {word!r}", todo="write HOST.DOMAIN or HOST:PORT", status=USAGE)
    return known


def store(host: str, kept: Credentials, env: Mapping[str, str]) -> tuple[str, bool]:
    """Keep what logs in at a host (`host[:port]`); return where, and whether that is in clear. Raises Fail."""
    path = credentials.docker_file(env)
    name = credentials.key(host)
    helper = credentials.helper(credentials.load(path), path, host)
    entry: dict[str, str] = {}
    if helper:
        username = _BY_TOKEN if kept.identity_token else kept.username
        secret = kept.identity_token or kept.password
        said = json.dumps({"ServerURL": name, "Username": username, "Secret": secret})
        _check(helper, *credentials.speak(helper, "store", said), secret)
    else:
        entry["auth"] = base64.b64encode(f"{kept.username}:{kept.password}".encode()).decode()
        if kept.identity_token:
            entry["identitytoken"] = kept.identity_token
    _change(path, partial(_put, host, path, {name: entry}))
    return (f"docker-credential-{helper}", False) if helper else (path, True)


def erase(host: str, env: Mapping[str, str]) -> bool:
    """Forget what logs in at a host; tell whether there was anything. Raises Fail."""
    path = credentials.docker_file(env)
    document = credentials.load(path)
    helper = credentials.helper(document, path, host)
    there = False
    for name in dict.fromkeys((credentials.key(host), *credentials.spellings(host, _auths(document, path)))):
        if helper:
            status, out = credentials.speak(helper, "get", name)
            if not (status and b"not found" in out):
                _check(helper, *credentials.speak(helper, "erase", name))
                there = True
    if credentials.spellings(host, _auths(document, path)):
        _change(path, partial(_put, host, path, {}))
        there = True
    return there


def _auths(document: dict[str, object], path: str) -> dict[str, object]:
    return credentials.table(document.get("auths"), path)


def _check(helper: str, status: int, out: bytes, secret: str = "") -> None:
    """Raise Fail when a helper did not do what it was told; what it says is shown, unless the secret is in it."""
    if status:
        said = " ".join(out.decode(errors="replace").split())[:200]
        why = said if said and (not secret or secret not in said) else f"it ended with status {status}"
        raise Fail(f"cannot use 'docker-credential-{helper}'", why, "mend it, or its name in config.json")


def _put(host: str, path: str, entries: dict[str, dict[str, str]], document: dict[str, object]) -> None:
    """Put entries into `auths`, in the place of all that mean the same host."""
    auths = _auths(document, path)
    for name in credentials.spellings(host, list(auths)):
        del auths[name]
    document["auths"] = auths | entries


def _change(path: str, edit: Callable[[dict[str, object]], None]) -> None:
    """Read a JSON file, edit it, and put the new one in its place, unless another program has changed it meanwhile.

    Who makes it a link (dotfiles) keeps the link. Raises Fail.
    """
    real = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(real), mode=0o700, exist_ok=True)
        for _ in range(_TRIES):
            before = _stamp(real)
            document = credentials.load(real)
            edit(document)
            if _replace(real, json.dumps(document, indent="\t") + "\n", before):
                return
    except OSError as error:
        raise Fail(f"cannot write {path!r}", error) from error
    raise Fail(f"cannot write {path!r}", "other programs keep changing it", "try again", LATER)


def _replace(path: str, text: str, before: tuple[int, ...]) -> bool:
    """Write a file whole and for its owner alone, if the one in its place is still as before; tell."""
    fd, temporary = tempfile.mkstemp(prefix=".config-", dir=os.path.dirname(path))  # 0600
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        if _stamp(path) != before:
            return False
        os.rename(temporary, path)
        temporary = ""
    finally:
        if temporary:
            os.unlink(temporary)
    return True


def _stamp(path: str) -> tuple[int, ...]:
    """Return what changes when a file does; nothing for none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
