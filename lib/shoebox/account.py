"""The image account, from its users' side: by sudo or ssh, in lines, called again when the connection breaks off."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from . import credentials, paths, platforms, reference, registries, request, site, siteconf, ssh
from .fail import FAILED, LATER, USAGE, Fail, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .platforms import Platform
    from .registries import Table
    from .request import Request

_PAUSES = (0.2, 0.5, 1, 2, 4, 8, 16, 0)  # seconds after a connection for one request that broke
_STRANGERS = 3  # connections in which nobody answers, until we give up
_DOES = {"pull": "fetching", "send": "sending", "flatten": "flattening", "stage": "staging"}
_FINAL = (FAILED, USAGE, 126, 127)  # sudo refuses, or a bug has shown its traceback; no words for it; no such command
_LINGER = 5.0  # seconds for what has said its last word to end


def which() -> str:
    """Return the site's account: a user of this host, or USER@HOST. Raises Fail if there is none."""
    found = siteconf.one("account")
    if not found:
        raise Fail(
            "this site has no image account",
            f"'{paths.SITE}/{site.FILE}' names none",
            "use a store of your own",
        )
    return found


def ask(
    account: str,
    asked: Request,
    hear: Callable[[str, str], None],
    find: Callable[[str], credentials.Credentials | None] = lambda _reference: None,
    send: Callable[[], Iterable[bytes | memoryview]] = tuple,
) -> list[str]:
    """Put a request to the account; return the words behind its `made`: paths. Raises Fail.

    hear: is told of progress, a word and its words; find: credentials for a reference of the request; send: what
    belongs to the request, from its beginning. A connection that breaks off is made again: what was fetched by then is
    there, what was sent is sent anew.
    """
    met = 0
    for number, pause in enumerate(_PAUSES, 1):
        talk = _Talk(asked, hear, find, send)
        done = talk.held(account)
        if done is not None:
            return done
        met += talk.met
        if number == _STRANGERS and not met:
            raise Fail(f"cannot reach the image account {account!r}", todo="try again later", status=LATER)
        if pause:
            hear("again", "")
            time.sleep(pause)
    raise Fail(f"the image account {account!r} breaks off again and again", todo="try again later", status=LATER)


def image(
    text: str,
    wanted: Platform | None,
    users: Iterable[str],
    groups: Iterable[str],
    hear: Callable[[str, str], None],
) -> list[str]:
    """Have the site's account make an image, for these to read, too; return its paths. Raises Fail.

    text: a reference, perhaps a short one; wanted: None for this machine's platform.
    """
    table = registries.read(os.environ)
    references = tuple(str(reference) for reference in registries.resolve(text, table))
    # This machine's own is said, too: the account may be on a host of another kind.
    platform = str(wanted or platforms.native(os.uname().machine))
    readers = tuple(map(request.check_name, users)), tuple(map(request.check_name, groups))
    asked = request.Request(request.PULL, references, platform, *readers)
    return ask(which(), asked, hear, _finder(table, os.environ))


def show(name: str, word: str, rest: str) -> None:
    """Tell people how far the account is with what they call so."""
    place, _, many = rest.partition(" ")
    shown = {"queue": f"in line, place {place} of {many}", "again": "the connection broke: once more"} | _DOES
    if word in shown:
        say(f"{name}: {shown[word]}")


def ignore(_word: str, _rest: str) -> None:
    """Tell nothing."""


def _finder(table: Table, env: Mapping[str, str]) -> Callable[[str], credentials.Credentials | None]:
    """Return how to find the credentials for a reference. table: knows where the registry keeps them."""

    def find(text: str) -> credentials.Credentials | None:
        meant = reference.parse(text)
        place = table.place(meant.registry)
        if place.authentication == "none":
            return None
        return credentials.find(place.netloc, place.prefix + meant.repository, env)

    return find


def _words(account: str) -> list[str]:
    if "@" in account:
        return ["ssh", "-T", "-a", "-x", *ssh.ALIVE, "--", account, "sh-gateway"]
    return ["sudo", "-n", "-u", account, "--", os.path.join(paths.BIN, "sh-gateway")]


class _Talk:
    """One connection."""

    def __init__(
        self,
        asked: Request,
        hear: Callable[[str, str], None],
        find: Callable[[str], credentials.Credentials | None],
        send: Callable[[], Iterable[bytes | memoryview]],
    ) -> None:
        self._asked = asked
        self._hear = hear
        self._find = find
        self._send = send
        self.met = False  # has it said who it is?
        self._made: list[str] = []

    def held(self, account: str) -> list[str] | None:
        """Talk; return what was made, None if it broke off. Raises Fail."""
        by_sudo = "@" not in account
        # By sudo nothing of the account's gets near our terminal; ssh may have to ask for a passphrase there.
        talk = subprocess.Popen(
            _words(account),
            start_new_session=by_sudo,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if talk.stdin is None or talk.stdout is None or talk.stderr is None:
            raise AssertionError("all are pipes")
        errors = threading.Thread(target=_relay, args=(talk.stderr,), daemon=True)
        errors.start()
        try:
            done = self._lines(talk.stdin, talk.stdout)
        finally:
            _end(talk, errors)
        if done is None and talk.returncode in _FINAL:
            why = "it failed" if self.met else "it does not let us in"
            raise Fail(f"the image account {account!r} cannot help", why, "ask those who run this site")
        return done

    def _lines(self, stdin: IO[bytes], stdout: IO[bytes]) -> list[str] | None:
        with suppress(BrokenPipeError):
            stdin.write(request.dump(self._asked))
            stdin.flush()
            while (line := stdout.readline(request.REPLY)).endswith(b"\n"):
                word, _, rest = os.fsdecode(line[:-1]).partition(" ")
                if not self.met:  # what a login shell's start files may print is passed over
                    self.met = word == "shoebox"
                elif word == "done":
                    return self._made
                elif word == "fail":
                    status, _, why = rest.partition(" ")
                    failure = Fail(why, status=int(status) if status in ("1", "2", "75") else FAILED)
                    failure.made = tuple(self._made)  # not all of a site's systems are up
                    raise failure
                elif word == "made":
                    self._made.append(rest)
                elif word == "credentials":
                    found = self._find(rest) if rest in self._asked.references else None
                    stdin.write(request.dump_credentials(found))
                    stdin.flush()
                else:
                    self._hear(word, rest)
                    if word == "send":
                        self._pour(stdin)
        return None

    def _pour(self, stdin: IO[bytes]) -> None:
        """Send what belongs to the request. An account that wants no more of it says why."""
        with suppress(BrokenPipeError):
            for piece in self._send():
                stdin.write(piece)
            stdin.flush()


def _relay(stderr: IO[bytes]) -> None:
    """Show what comes on stderr, and obey nothing in it."""
    for line in iter(lambda: stderr.readline(request.REPLY), b""):
        say(os.fsdecode(line).rstrip("\r\n"))


def _end(talk: subprocess.Popen[bytes], errors: threading.Thread) -> None:
    """Hang up: that withdraws a request that is not done."""
    for pipe in (talk.stdin, talk.stdout):
        with suppress(BrokenPipeError):
            if pipe:
                pipe.close()
    try:
        talk.wait(_LINGER)
    except subprocess.TimeoutExpired:  # something that outlives its master holds the connection
        with suppress(PermissionError):  # sudo's, which ends by itself
            talk.kill()
            talk.wait()
    errors.join(_LINGER / 5)
