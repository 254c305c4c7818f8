"""Credentials that people have: docker's config.json, podman's auth.json, credential helpers.

Follows docs.docker.com/reference/cli/docker/login and containers-auth.json(5). A secret is never printed, logged, or
put into a command line.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from .fail import Fail, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Finder = Callable[[str, str], "Credentials | None"]  # host[:port], repository; it may raise Fail

_HUB = "registry-1.docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "docker.io", "index.docker.io", _HUB)
_HELPER_SECONDS = 60


@dataclass(frozen=True)
class Credentials:
    """A user's name and password, or an identity token (OAuth 2 refresh token), or a token for the registry itself."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617); "" without a password."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}" if self.password else ""


def finder(env: Mapping[str, str]) -> Finder:
    """Return how to find the credentials of whoever has this environment."""
    return partial(find, env=env)


def nobody(_host: str, _repository: str) -> Credentials | None:
    """Find no credentials: ask as anybody may."""
    return None


def find(host: str, repository: str, env: Mapping[str, str]) -> Credentials | None:
    """Return what logs in at a registry (`host[:port]`), or None.

    In each file, the one closest to the repository; a helper goes before the file's own words. Raises Fail for a file
    that cannot be understood; a helper that does not work is said, and passed over.
    """
    return locate(host, repository, env)[0]


def locate(host: str, repository: str, env: Mapping[str, str]) -> tuple[Credentials | None, str]:
    """Do what find does, and tell in which file it was, or which file names its helper; "" for neither."""
    parts = [part for part in f"{host}/{repository}".split("/") if part]
    keys = _HUB_KEYS if host == _HUB else tuple("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    for path in _files(env):
        document = load(path)
        found = _from_helper(document, path, keys) or _from_auths(document, path, keys)
        if found:
            return found, path
    return None, ""


def key(host: str) -> str:
    """Return under which name docker keeps what logs in at a host."""
    return _HUB_KEYS[0] if host == _HUB else host


def spellings(host: str, names: Iterable[str]) -> list[str]:
    """Return those keys of `auths` that mean a host."""
    wanted = {hostname(name) for name in (_HUB_KEYS if host == _HUB else (host,))}
    return [name for name in names if hostname(name) in wanted]


def helper(document: dict[str, object], path: str, host: str) -> str:
    """Return the name of the helper that keeps what logs in at a host, "" for the file itself."""
    helpers = table(document.get("credHelpers"), path)
    own = [_text(helpers, name) for name in (_HUB_KEYS if host == _HUB else (host,))]
    return next(filter(None, own), "") or _text(document, "credsStore")


def docker_file(env: Mapping[str, str]) -> str:
    """Return the path of docker's config.json."""
    return os.path.join(env.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")


def _files(env: Mapping[str, str]) -> Iterator[str]:
    if env.get("REGISTRY_AUTH_FILE"):
        yield env["REGISTRY_AUTH_FILE"]
    elif env.get("XDG_RUNTIME_DIR"):
        yield os.path.join(env["XDG_RUNTIME_DIR"], "containers", "auth.json")
    yield docker_file(env)


def load(path: str) -> dict[str, object]:
    """Read a file of credentials; {} when it is not there. Raises Fail."""
    try:
        with open(path, encoding="utf-8") as file:
            document: object = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise Fail(f"cannot read the credentials in {path!r}", error) from error
    except (ValueError, RecursionError) as error:
        raise Fail(f"cannot read the credentials in {path!r}", "not JSON", "mend it, or log in again") from error
    return table(document, path)


def table(value: object, path: str) -> dict[str, object]:
    """Return a JSON object, {} for none. Raises Fail for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Fail(f"cannot read the credentials in {path!r}", "no JSON object where one belongs", "log in again")
    return value


def _text(table: dict[str, object], key: str) -> str:
    value = table.get(key)
    return value if isinstance(value, str) else ""


def hostname(name: str) -> str:
    """Return a key of `auths` as podman writes it: `https://host/v1/` is `host`."""
    name = name.partition("://")[2] or name
    for ending in ("/v1/", "/v2/", "/v1", "/v2", "/"):
        name = name.removesuffix(ending)
    return name


def _from_auths(document: dict[str, object], path: str, keys: tuple[str, ...]) -> Credentials | None:
    auths = table(document.get("auths"), path)
    by_host = {hostname(key): value for key, value in auths.items()}
    for key in keys:
        entry = table(auths.get(key) or by_host.get(hostname(key)), path)
        username, password = _text(entry, "username"), _text(entry, "password")
        if _text(entry, "auth"):
            try:
                decoded = base64.b64decode(_text(entry, "auth"), validate=True).decode()
            except ValueError as error:
                raise Fail(f"cannot read the credentials for {key!r}", f"in {path!r}", "log in again") from error
            username, _, password = decoded.partition(":")
            password = password.rstrip("\0")
        found = Credentials(username, password, _text(entry, "identitytoken"), _text(entry, "registrytoken"))
        if found.password or found.identity_token or found.registry_token:
            return found
    return None


def _from_helper(document: dict[str, object], path: str, keys: tuple[str, ...]) -> Credentials | None:
    helpers = table(document.get("credHelpers"), path)
    for key in keys:
        if _text(helpers, key):
            return _ask(_text(helpers, key), key)
    store = _text(document, "credsStore")
    return _ask(store, keys[0] if keys == _HUB_KEYS else keys[-1]) if store else None


def _ask(helper: str, server: str) -> Credentials | None:
    """Run `docker-credential-HELPER get` (github.com/docker/docker-credential-helpers): server in, JSON out."""
    status, out = speak(helper, "get", server)
    if status and b"not found" in out:
        return None
    answer: object = None
    why = out.decode(errors="replace") if status < 0 else f"it ended with status {status}"
    if not status:
        why = "its answer is not as agreed"
        try:
            answer = json.loads(out.decode())
        except (ValueError, RecursionError):
            why = "its answer is not JSON"
    if not isinstance(answer, dict):
        say(f"no credentials from 'docker-credential-{helper}': {why}: going on without them")
        return None
    username, secret = _text(answer, "Username"), _text(answer, "Secret")
    return Credentials(identity_token=secret) if username == "<token>" else Credentials(username, secret)


def speak(helper: str, verb: str, words: str) -> tuple[int, bytes]:
    """Run `docker-credential-HELPER VERB` with words on its stdin; return its status and what it says.

    A status below 0 is ours, with why it has none of its own.
    """
    try:
        if "/" in helper:
            raise FileNotFoundError
        done = subprocess.run(
            [f"docker-credential-{helper}", verb],
            input=words.encode(),
            stdout=subprocess.PIPE,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except OSError:
        return -1, b"it cannot be run"
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {_HELPER_SECONDS} s".encode()
    if done.returncode < 0:
        return -1, f"it ended by signal {-done.returncode}".encode()
    return done.returncode, done.stdout
