"""What the image account does for a user who asks: has the registry let him have an image, makes it, stages it."""

from __future__ import annotations

import os
import queue as queues
import signal
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING

from . import (
    credentials,
    fetch,
    host,
    lookup,
    paths,
    platforms,
    queue,
    reference,
    request,
    site,
    squashfs,
    store,
    superblock,
)
from .access import Absent
from .fail import FAILED, LATER, Fail
from .mirrors import Sources

if TYPE_CHECKING:
    from .credentials import Credentials
    from .lookup import Found
    from .reference import Reference
    from .request import Request

_PATIENCE = 90.0  # seconds for a line that we wait for; a credential helper has 60 of them
_JOBS = 4  # blobs at once
_TURNS = "2"  # images at once, unless site.conf says otherwise
_SYSTEMS = "systems.toml"


def user(who: str) -> int:
    """Do what a user asks for through our standard input and output; return the exit status."""
    caller = _User()
    try:
        caller.tell("shoebox", "1")
        asked = request.parse(caller.line())
        (_pull if asked.kind == request.PULL else _pending)(caller, asked, who)
    except BrokenPipeError:
        raise
    except (Fail, OSError) as error:
        failed = Fail("the image account cannot go on", error) if isinstance(error, OSError) else error
        caller.tell("fail", str(failed.status), str(failed))
        return failed.status
    caller.tell("done")
    return 0


class _User:
    """Who speaks with us; when he hangs up we end, as by SIGTERM."""

    def __init__(self) -> None:
        self._lines: queues.Queue[bytes] = queues.Queue(1)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        while piece := os.read(0, request.MOST):
            *lines, rest = (rest + piece).split(b"\n")
            for line in [*lines, rest] if len(rest) > request.MOST else lines:
                self._lines.put(line)
        os.kill(os.getpid(), signal.SIGTERM)

    def line(self) -> bytes:
        """Return the next line. Raises Fail when none comes in time."""
        try:
            return self._lines.get(timeout=_PATIENCE)
        except queues.Empty:
            raise Fail("nothing was asked", f"no line came within {_PATIENCE:.0f} s", status=LATER) from None

    def tell(self, *words: str) -> None:
        """Say a line."""
        text = " ".join(words).replace("\n", " ")
        data = os.fsencode(text) + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def credentials(self, wanted: Reference) -> Credentials | None:
        """Ask for credentials for a reference's repository."""
        self.tell("credentials", str(wanted))
        return request.parse_credentials(self.line())


def _pending(caller: _User, _asked: Request, who: str) -> None:
    """List what a user has asked for and does not have yet."""
    for entry in queue.look(_queue(), _turns()):
        if entry.about.who == who:
            caller.tell("pending", entry.about.state, str(entry.place), entry.about.reference, str(int(entry.since)))


def _pull(caller: _User, asked: Request, who: str) -> None:
    """Fetch, flatten and stage an image. The registry lets this user have it first, whatever we have already."""
    if not (_systems() or store.target(os.environ)):
        todo = "it needs SHOEBOX_PATH, see sh-gateway(8)"
        raise Fail("the image account has no store that it can write to", todo=todo)
    named = reference.parse(asked.references[0])
    wanted = platforms.parse_platform(asked.platform) if asked.platform else None
    try:
        _make(caller, asked, who, wanted)
    except Fail as error:
        raise Fail(f"cannot have {str(named)!r}", str(error), status=error.status) from error


def _make(caller: _User, asked: Request, who: str, wanted: platforms.Platform | None) -> None:
    settings, meant, sources, found, private = _find(caller, asked, wanted)
    made_before = _made_before(os.path.join(settings.cache, "images"), found.descriptor.hex)
    state = queue.READY if made_before else queue.WAITING
    about = queue.About(who, str(meant), f"{meant.registry} {found.descriptor.digest}", state)
    readers = _readers(asked, who, private=private)
    with queue.stand(_queue(), about) as ticket:
        if state == queue.WAITING:
            ticket.wait(_turns(), lambda place, many: caller.tell("queue", str(place), str(many)))
        env = {**os.environ, "SHOEBOX_CACHE": settings.cache}

        def begin(word: str) -> None:
            caller.tell(word)
            if state == queue.WAITING:
                ticket.state(word)

        begin("pull")
        name = fetch.get(settings, meant, sources, found)
        begin("flatten")
        flat = _checked("sh-flatten", *_do(["sh-flatten", "-q", name], env, ticket.fd))
        begin("stage")
        if not readers and _closed(flat):  # it was private once, and those who had it then keep it from others
            readers = [f"--user={who}"]
        words = ["sh-stage", "-q", *_systems()]
        made, status = _do([*words, *readers, *flat], env, ticket.fd)
        if not readers and _closed(made):  # whoever asked for it first has said who may read it
            made, status = _do([*words, f"--user={who}", *flat], env, ticket.fd)
    for path in made:  # also if not all systems have it
        caller.tell("made", path)
    _checked("sh-stage", made, status)


def _find(
    caller: _User, asked: Request, wanted: platforms.Platform | None
) -> tuple[fetch.Settings, Reference, Sources, Found, bool]:
    """Have the registry give its manifest: to anybody, else to this user. Tell whether it was the latter.

    Each registry has a cache of its own, for what another one serves under the same digest is no proof that a user
    may have what this one let others have.
    """
    for text in asked.references:
        meant = reference.parse(text)
        cache = os.path.join(paths.cache(os.environ), "from", meant.registry.replace(":", "+"))
        settings = fetch.prepare(cache, os.environ, credentials.nobody, wanted, _JOBS, quiet=True, prove=True)
        if settings.table.blocks(meant.registry) and text != asked.references[-1]:
            continue
        find, private = credentials.nobody, False
        while True:
            sources = Sources(settings.web, settings.table, meant, find, settings.given_up)
            try:
                return settings, meant, sources, lookup.resolve(sources.authority, meant, settings.wanted), private
            except Absent as error:
                refused = error
            given = None if private else caller.credentials(meant)
            if not given:
                break
            find, private = partial(_given, settings.table.place(meant.registry).netloc, given), True
    raise refused


def _given(netloc: str, given: Credentials, asking: str, _repository: str) -> Credentials | None:
    """Find what a user has given for one registry."""
    return given if asking == netloc else None


def _made_before(images: str, digits: str) -> bool:
    """Tell whether sh-flatten will find that it has made this image, with what it is made with today."""
    try:
        known = store.read_sidecar(os.path.join(images, store.image_file(digits)))
    except Fail:
        return False
    usual = squashfs.find().record(squashfs.settings(superblock.COMPRESSORS[0], "", ""))
    return known is not None and known.writer == usual and bool(store.holds(images, known))


def _readers(asked: Request, who: str, *, private: bool) -> list[str]:
    """Return the words that say who may read the image."""
    if not (private or asked.users or asked.groups):
        return []
    return [f"--user={name}" for name in dict.fromkeys((who, *asked.users))] + [f"--group={n}" for n in asked.groups]


def _do(words: list[str], env: dict[str, str], ticket: int) -> tuple[list[str], int]:
    """Run a command of ours, which holds the ticket as long as it lives; return the lines of its stdout, its status."""
    with subprocess.Popen(
        [_beside(words[0]), *words[1:]],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        umask=0o022,
        pass_fds=(ticket,),
    ) as child:
        try:
            out, _ = child.communicate()
        except BaseException:
            child.terminate()
            raise
    return [os.fsdecode(line) for line in out.splitlines()], child.returncode


def _checked(command: str, lines: list[str], status: int) -> list[str]:
    """Return the lines of a command that did not fail; why it did, it has said on stderr. Raises Fail."""
    if status:
        raise Fail(f"{command!r} ended with status {status}", status=LATER if status == LATER else FAILED)
    return lines


def _closed(made: list[str]) -> bool:
    """Tell whether one of these images is not for everybody to read; of those on other hosts we do not know."""
    return any(os.path.isfile(path) and not os.stat(path).st_mode & 0o004 for path in made)


def _systems() -> list[str]:
    """Return the words for stores of several systems, if the site has a table of them."""
    return ["--all-systems"] if os.path.exists(os.path.join(paths.SITE, _SYSTEMS)) else []


def _setting(key: str) -> str:
    path = f"{paths.SITE}/{site.FILE}"
    return site.parse(host.text(path) or "", path).one(key)


def _turns() -> int:
    return int(_setting("conversions") or _TURNS)


def _queue() -> str:
    return os.path.join(paths.cache(os.environ), "queue")


def _beside(command: str) -> str:
    """Return the path of a command of ours."""
    return os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../bin", command)
