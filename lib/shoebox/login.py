"""sh-login: try a name and a password at a registry, and keep them where docker, podman and skopeo find them."""

from __future__ import annotations

import getpass
import os
import sys

from . import credentials, credstore, fail, registries, usage
from .access import Access
from .credentials import Credentials
from .fail import Fail, say
from .reference import DOCKER_HUB
from .web import SMALL, Web

USAGE = """
usage: sh-login [-u NAME] [--password-stdin] [REGISTRY]

Try a name and a password at a registry, Docker Hub without one, and keep them for sh-pull, docker, podman and
skopeo: by the credential helper that docker's config.json names, else in that file.

  -u, --username NAME     the name; without it, it is asked for
      --password-stdin    read the password, or a token, from standard input instead of asking for it
"""


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    if len(options.operands) > 1:
        raise Fail("more than one REGISTRY", todo="log in at one after the other", status=fail.USAGE)
    fail.stop_on_signals()
    host = credstore.registry(options.operands[0]) if options.operands else DOCKER_HUB
    table = registries.read(os.environ)
    place = table.place(host)
    given = _ask(host, options)
    kept = Access(Web(table, os.environ, 1), place, credentials.nobody).login(given)
    where, clear = credstore.store(place.netloc, kept, os.environ)
    found, first = credentials.locate(place.netloc, "", os.environ)
    if found is None:
        raise Fail(f"cannot log in at {place.netloc!r}", f"{where!r} was given it to keep, and does not have it")
    what = "identity token" if kept.identity_token else "password"
    hint = f", the {what} in clear: a credential helper, 'credsStore' in that file, would hide it" if clear else ""
    say(f"logged in at {place.netloc!r} as {given.username!r}: kept {'in' if clear else 'by'} {where!r}{hint}")
    if (found.password, found.identity_token) != (kept.password, kept.identity_token):
        raise Fail(f"what {where!r} keeps is not what will be used", f"{first!r} goes first", "log out with that tool")
    return 0


def _ask(host: str, options: usage.Options) -> Credentials:
    """Return the name and the password, typed or from stdin. Raises Fail."""
    name = options.one("username")
    if options.flag("password-stdin"):
        if not name:
            raise Fail("--password-stdin needs --username", todo="see -h", status=fail.USAGE)
        password = sys.stdin.buffer.read(SMALL).decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
    else:
        if sys.stdin is None or not sys.stdin.isatty():
            todo = "give -u NAME --password-stdin, and the password on standard input"
            raise Fail("no terminal to ask for the password at", todo=todo, status=fail.USAGE)
        if not name:
            sys.stderr.write(f"{host} username: ")
            sys.stderr.flush()
            name = sys.stdin.readline().strip()
        password = getpass.getpass(f"{host} password: ")
    if not name or ":" in name or not password:
        raise Fail("no name and password", "a name has no colon, and neither is empty")
    try:
        (name + password).encode()
    except UnicodeEncodeError as error:
        raise Fail("no name and password", "they are not UTF-8") from error
    return Credentials(name, password)
