"""Users' own images, at the image account's end: received whole, written anew, staged under the user's name."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from contextlib import contextmanager
from grp import getgrgid
from typing import TYPE_CHECKING

from . import amounts, imports, oci, paths, publish, queue, systems, work
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .peer import Peer
    from .reference import Reference
    from .request import Request

_MOST = "500G"  # bytes of an image, unless site.conf says otherwise
_RECEIVING = "receive"


def image(peer: Peer, asked: Request, who: str) -> None:
    """Receive a config and a tar, make an image of them and stage it."""
    rule = work.setting("import")
    if not imports.may(rule, who, _groups(who)):
        raise Fail(
            f"{who!r} may not bring in files of their own", "site.conf says who may", "ask those who run this site"
        )
    work.check_stores()
    named = _named(asked, who)
    most = work.setting("import-size") or _MOST
    readers = work.readers(asked, who, private=asked.private)
    # One at a time for each user: what is received takes the account's disk, and a turn.
    about = queue.About(who, str(named), f"import {who}")
    with _room() as room, queue.stand(work.line(), about) as ticket:
        ticket.wait(work.turns(), lambda place, many: peer.tell("queue", str(place), str(many)))
        ticket.state(_RECEIVING)
        peer.tell("send")
        words = ["sh-flatten", "-q", f"--name={named}", f"--max-size={most}", f"--output={room}/image.sqfs"]
        config = b"".join(peer.stream(oci.MAX_DOCUMENT, "the config"))
        if config:
            with open(os.path.join(room, "config.json"), "wb") as file:
                file.write(config)
            words.append(f"--config={file.name}")
        # Whole before sh-flatten sees it: what a killed gateway leaves behind is never taken for the end.
        with tempfile.TemporaryFile(dir=room) as tree:
            for piece in peer.stream(amounts.parse_size(most), repr(str(named))):
                tree.write(piece)
            if not tree.tell():
                raise Fail(f"refused {str(named)!r}", "there is nothing in it")
            tree.seek(0)
            ticket.state("flatten")
            peer.tell("flatten")
            flat = work.checked("sh-flatten", *work.do([*words, "-"], os.environ, ticket.fd, tree.fileno()))
        ticket.state("stage")
        peer.tell("stage")
        work.stage(peer, flat, readers, who, os.environ, ticket.fd)


def remove(peer: Peer, asked: Request, who: str) -> None:
    """Remove an image that this user has brought in, by its name, from all stores of this host. Raises Fail."""
    named = _named(asked, who)
    table = systems.read(os.environ) if os.path.exists(os.path.join(paths.SITE, systems.FILE)) else {}
    places = [place for system in table.values() for place in system.places]
    stores = dict.fromkeys((*paths.stores(os.environ), *(place.directory for place in places if not place.host)))
    there = [where for where in stores if os.path.lexists(os.path.join(where, f"{named.stem}.sqfs"))]
    for where in there:
        env = {**os.environ, "SHOEBOX_PATH": where}
        made = work.checked("sh-rm", *work.do(["sh-rm"], env, names=[str(named)]))
        for path in made:
            peer.tell("made", path)
    away = [str(place) for place in places if place.host]
    if away:
        raise Fail(f"{str(named)!r} may still be in {', '.join(away)}", "the account removes nothing on other hosts")
    if not there:
        raise Fail(f"no image {str(named)!r} in {', '.join(map(repr, stores))}")


def _named(asked: Request, who: str) -> Reference:
    """Return the name in a request. Raises Fail if it is not one of this user's."""
    try:
        uid = pwd.getpwnam(who).pw_uid
    except KeyError:  # by ssh, on a host that knows no users: a login name that can stand in a reference will do
        uid = -1
    return imports.name(asked.references[0], who, uid)


def _groups(who: str) -> list[str]:
    """Return the groups of a user, by name, as this host knows them."""
    found = []
    try:
        numbers = os.getgrouplist(who, pwd.getpwnam(who).pw_gid)
    except KeyError:
        numbers = []
    for number in numbers:
        try:
            found.append(getgrgid(number).gr_name)
        except KeyError:
            continue
    return found


@contextmanager
def _room() -> Iterator[str]:
    """Have a directory for one image in the making; what a kill leaves of it, the next import removes."""
    place = os.path.join(paths.cache(os.environ), "imports")
    os.makedirs(place, mode=0o700, exist_ok=True)
    publish.sweep(place)
    room = publish.temporary(place)
    os.mkdir(room, 0o700)
    try:
        yield room
    finally:
        shutil.rmtree(room)
