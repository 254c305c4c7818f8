"""What the image account does for whatever it is asked: who may read it, a turn, our own commands, the stores."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from . import amounts, launch, paths, siteconf, store, systems
from .fail import FAILED, LATER, Fail
from .queue import Turns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .peer import Peer
    from .request import Request
    from .systems import System

_TURNS, _LIMIT = "2", "6h"  # images at once, time for each step, unless site.conf says otherwise
_LEAST = 60  # seconds: who waits touches his ticket more often than that


def check_stores() -> None:
    """Raise Fail if there is no store to put an image into."""
    if not (_systems() or store.target(os.environ)):
        todo = "it needs SHOEBOX_PATH, see sh-gateway(8)"
        raise Fail("the image account has no store that it can write to", todo=todo)


def readers(asked: Request, who: str, *, private: bool) -> list[str]:
    """Return the words that say who may read the image."""
    if not (private or asked.users or asked.groups):
        return []
    return [f"--user={name}" for name in dict.fromkeys((who, *asked.users))] + [f"--group={n}" for n in asked.groups]


def do(
    words: list[str],
    env: Mapping[str, str],
    ticket: int | None = None,
    stdin: int = subprocess.DEVNULL,
    names: Sequence[str] = (),
) -> tuple[list[str], int]:
    """Run a command of ours, which holds the ticket as long as it lives; return the lines of its stdout, its status.

    names: what it is to read from its stdin, for everybody sees its words.
    """
    with subprocess.Popen(
        [launch.command(words[0]), *words[1:]],
        env=env,
        stdin=subprocess.PIPE if names else stdin,
        stdout=subprocess.PIPE,
        umask=0o022,
        pass_fds=() if ticket is None else (ticket,),
    ) as child:
        try:
            out, _ = child.communicate(b"".join(os.fsencode(name) + b"\n" for name in names) or None)
        except BaseException:
            child.terminate()
            raise
    return [os.fsdecode(line) for line in out.splitlines()], child.returncode


def checked(command: str, lines: list[str], status: int) -> list[str]:
    """Return the lines of a command that did not fail; why it did, it has said on stderr. Raises Fail."""
    if status:
        raise Fail(f"{command!r} ended with status {status}", status=LATER if status == LATER else FAILED)
    return lines


def stage(peer: Peer, flat: list[str], readers: list[str], who: str, env: Mapping[str, str], ticket: int) -> None:
    """Stage images, and tell where they are. readers: words for them; none: all, or those who are and who, too."""
    if not readers and _closed(flat):  # it was private once, and those who had it then keep it from others
        readers = [f"--user={who}"]
    words = ["sh-stage", "-q", *_systems()]
    made, status = do([*words, *readers], env, ticket, names=flat)
    if not readers and _closed(made):  # whoever asked for it first has said who may read it
        made, status = do([*words, f"--user={who}"], env, ticket, names=flat)
    for path in made:  # also if not all systems have it
        peer.tell("made", path)
    checked("sh-stage", made, status)


def _closed(made: list[str]) -> bool:
    """Tell whether one of these images is not for everybody to read; of those on other hosts we do not know."""
    return any(os.path.isfile(path) and not os.stat(path).st_mode & 0o004 for path in made)


def _systems() -> list[str]:
    """Return the words for stores of several systems, if the site has a table of them."""
    return ["--all-systems"] if table() else []


def table() -> Mapping[str, System]:
    """Return the systems that images go to, by name; none if the site has no table of them. Raises Fail."""
    return systems.read(os.environ) if os.path.exists(os.path.join(paths.SITE, systems.FILE)) else {}


def setting(key: str) -> str:
    """Return a setting of site.conf, "" if it is not made."""
    return siteconf.one(key)


def turns() -> Turns:
    """Return how many images may be made at once, and how long a step of that may take."""
    return Turns(
        int(setting("conversions") or _TURNS), max(_LEAST, amounts.parse_span(setting("turn-limit") or _LIMIT))
    )


def line() -> str:
    """Return the directory of the queue."""
    return os.path.join(paths.cache(os.environ), "queue")
