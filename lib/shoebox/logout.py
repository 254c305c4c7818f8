"""sh-logout: forget what logs in at a registry, as docker logout does."""

from __future__ import annotations

import os

from . import credentials, credstore, fail, registries, usage
from .fail import Fail, say
from .reference import DOCKER_HUB

USAGE = """
usage: sh-logout [REGISTRY...]

Forget the credentials for registries, Docker Hub's without any: in docker's config.json and in the credential helper
that it names.
"""


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    hosts = [credstore.registry(word) for word in options.operands or [DOCKER_HUB]]
    table = registries.read(os.environ)
    status = 0
    for host in hosts:
        try:
            _forget(table.locate(host).netloc)
        except Fail as error:
            say(str(error))
            status = fail.worst(status, error.status)
    return status


def _forget(host: str) -> None:
    """Forget what logs in at a host; say what came of it. Raises Fail when credentials are still found."""
    there = credstore.erase(host, os.environ)
    found, path = credentials.locate(host, "", os.environ)
    if found:
        raise Fail(f"still logged in at {host!r}", f"another tool's {path!r} knows how", "log out with that, too")
    say(f"logged out at {host!r}" if there else f"not logged in at {host!r}")
