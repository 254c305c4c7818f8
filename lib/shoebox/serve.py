"""What the image account does for a user who asks: has the registry let him have an image, makes it, stages it."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import (
    credentials,
    fetch,
    image,
    limits,
    lookup,
    paths,
    platforms,
    queue,
    receive,
    reference,
    request,
    squashfs,
    store,
    superblock,
    work,
)
from .access import Absent
from .fail import LATER, Fail
from .mirrors import Sources
from .peer import Peer

if TYPE_CHECKING:
    from .credentials import Credentials
    from .lookup import Found
    from .reference import Reference
    from .request import Request

_JOBS = 4  # blobs at once


def user(who: str) -> int:
    """Do what a user asks for through our standard input and output; return the exit status."""
    caller = Peer()
    acts = {
        request.PULL: _pull,
        request.PENDING: _pending,
        request.IMPORT: receive.image,
        request.REMOVE: receive.remove,
    }
    try:
        caller.tell("shoebox", "1")
        asked = request.parse(caller.line())
        acts[asked.kind](caller, asked, who)
    except BrokenPipeError:
        raise
    except (Fail, OSError) as error:
        failed = Fail("the image account cannot go on", error) if isinstance(error, OSError) else error
        caller.tell("fail", str(failed.status), str(failed))
        return failed.status
    caller.tell("done")
    return 0


def _pending(caller: Peer, _asked: Request, who: str) -> None:
    """List what a user has asked for and does not have yet."""
    for entry in queue.look(work.line(), work.turns()):
        if entry.about.who == who:
            caller.tell("pending", entry.about.state, str(entry.place), entry.about.reference, str(int(entry.since)))


def _pull(caller: Peer, asked: Request, who: str) -> None:
    """Fetch, flatten and stage an image. The registry lets this user have it first, whatever we have already."""
    work.check_stores()
    named = reference.parse(asked.references[0])
    wanted = platforms.parse_platform(asked.platform) if asked.platform else None
    try:
        native = platforms.native(os.uname().machine)
        limits.platform(wanted or native, native, work.table())
        _make(caller, asked, who, wanted)
    except Fail as error:
        raise Fail(f"cannot have {str(named)!r}", str(error), status=error.status) from error


def _make(caller: Peer, asked: Request, who: str, wanted: platforms.Platform | None) -> None:
    settings, meant, sources, found, private = _find(caller, asked, wanted)
    limits.readers((*asked.users, *asked.groups), private=private)
    most = work.setting("pull-size") or limits.MOST
    images = os.path.join(settings.cache, "images")
    env = {**os.environ, "SHOEBOX_CACHE": settings.cache}
    with queue.stand(work.line(), _about(who, meant, found, images)) as ticket:
        while True:
            limits.size(found.manifest, most)
            if ticket.about.state == queue.WAITING:
                ticket.wait(work.turns(), lambda place, many: caller.tell("queue", str(place), str(many)))
            _begin(caller, ticket, "pull")
            # A layout for this manifest alone: that of the tag may be another one's by the time we read it.
            own = replace(settings, suffix=f"@{found.descriptor.digest.replace(':', '-')}")
            name = fetch.get(own, meant, sources, found)
            _begin(caller, ticket, "flatten")
            words = ["sh-flatten", "-q", f"--max-size={most}"]
            flat = work.checked("sh-flatten", *work.do(words, env, ticket.fd, names=[name]))
            now = lookup.anew(sources.authority, meant, found, settings.wanted)
            if now.descriptor.digest == found.descriptor.digest:
                break
            found = now  # who asked after us may have staged it already: we take it back for nobody
            private = private or sources.private(found.descriptor.digest)
            ticket.write(_about(who, meant, found, images))
        _begin(caller, ticket, "stage")
        work.stage(caller, flat, work.readers(asked, who, private=private), who, env, ticket.fd)


def _about(who: str, meant: Reference, found: Found, images: str) -> queue.About:
    """Return what a ticket says; who wants what is there already needs no turn."""
    state = queue.READY if _made_before(images, found.descriptor.hex) else queue.WAITING
    return queue.About(who, str(meant), f"{meant.registry} {found.descriptor.digest}", state)


def _begin(caller: Peer, ticket: queue.Ticket, word: str) -> None:
    """Begin a step of a turn, and say so."""
    if ticket.about.state != queue.READY:
        ticket.state(word)
    caller.tell(word)


def _find(
    caller: Peer, asked: Request, wanted: platforms.Platform | None
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
        _ = meant.stem  # there can be such a name
        limits.registry(settings.table, meant.registry)
        try:
            return settings, meant, *_answer(caller, settings, meant)
        except Absent as error:
            refused = error
    raise refused


def _answer(caller: Peer, settings: fetch.Settings, meant: Reference) -> tuple[Sources, Found, bool]:
    find, refused = credentials.nobody, None
    while True:
        sources = Sources(settings.web, settings.table, meant, find, settings.given_up)
        try:
            found = lookup.resolve(sources.authority, meant, settings.wanted)
        except Fail as error:
            ask = not refused and (isinstance(error, Absent) or error.status == LATER)
            given = caller.credentials(meant) if ask else None
            if not given:
                raise
            find, refused = partial(_given, settings.table.place(meant.registry).netloc, given), error
        else:
            # Of who is not let in without credentials we know; of who has to come later we do not.
            private = isinstance(refused, Absent) or bool(refused and sources.private(found.descriptor.digest))
            return sources, found, private


def _given(netloc: str, given: Credentials, asking: str, _repository: str) -> Credentials | None:
    """Find what a user has given for one registry."""
    return given if asking == netloc else None


def _made_before(images: str, digits: str) -> bool:
    """Tell whether sh-flatten will find that it has made this image, with what it is made with today."""
    path = os.path.join(images, store.image_file(digits))
    try:
        known = store.read_sidecar(path)
    except Fail:
        return False
    usual = squashfs.find().record(squashfs.settings(superblock.COMPRESSORS[0], "", ""))
    return known is not None and known.writer == usual and bool(store.holds(images, known)) and image.whole(path)
