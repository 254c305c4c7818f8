"""sh-stage: copy images into a store, by digest."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from . import (
    account,
    fail,
    fleet,
    image,
    offer,
    paths,
    publish,
    readers,
    reference,
    rsync,
    scp,
    signatures,
    ssh,
    store,
    systems,
    trust,
    usage,
)
from . import nodes as on_nodes
from .fail import Fail
from .meter import meter

if TYPE_CHECKING:
    from .image import Image
    from .readers import Readers
    from .systems import Place, System

USAGE = """
usage: sh-stage [-q] [-d DIR | -d HOST:DIR] [--user NAME[,NAME...]]
                [--group NAME[,NAME...]] [--mode MODE] [IMAGE...]
       sh-stage [--user NAME[,NAME...]] [--group NAME[,NAME...]] [--mode MODE]
                --system NAME... | --all-systems [IMAGE...]
       sh-stage [-q] --nodes[=DIR] [IMAGE...]
       sh-stage [-q] --for-site [--name REFERENCE] [--user NAME[,NAME...]]
                [--group NAME[,NAME...]] [IMAGE...]

Copy images into a store, each by its digest with its names as symlinks, and print
the path of each there. An IMAGE is what sh-run takes: a path, a name or sha256:HEX.
Without IMAGEs, read them from standard input, one a line.

  -d, --store DIR      copy into this store, or by ssh into HOST:DIR (default: the first
                       of SHOEBOX_PATH that you can write to, but for your own cache;
                       if there is none, print the path unchanged)
      --user NAME      let the owner and these users only read the image (may be repeated)
      --group NAME     let the owner and these groups only read it; with --user, both
      --mode MODE      permissions of what is made, as octal digits, for its one --group
      --system NAME... copy into all stores of this system, as systems.toml names them
      --all-systems    copy into all stores of all systems that take the image
      --nodes[=DIR]    in a job of Slurm: copy to its nodes, into memory or the directory
                       DIR of each, for as long as the job lasts; sh-run finds the copy
      --for-site       have the site's image account put it into its store, written anew
                       and called localhost/USER/NAME[:TAG], as it is already, or by
      --name REFERENCE this name, for one IMAGE
  -q, --quiet          show no progress
"""


@dataclass(frozen=True)
class Settings:
    """What holds for every image of one command line; store is "" if there is none to copy to.

    nodes: the directory on the nodes, "" for memory, None if they are not to have copies.
    readers: those who were asked for, None for the source's own.
    """

    nodes: str | None
    host: str
    store: str
    readers: readers.Readers | None
    quiet: bool
    site: trust.Site | None


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    if options.flag("for-site") or options.flag("name"):
        return _for_site(options)
    wanted = _systems(options)
    nodes = _nodes(options) if options.flag("nodes") else None
    host, where = _place(options.one("store")) if options.flag("store") else ("", store.target(os.environ))
    asked = readers.asked(options.all("user"), options.all("group"), options.all("mode"))
    if asked and not where and not wanted:
        raise Fail("there is no store to copy to", todo="name one with -d", status=fail.USAGE)
    if asked and not host and not wanted:
        asked.check()
    settings = Settings(nodes, host, where, asked, options.flag("quiet"), trust.site())
    os.umask(os.umask(0o022) | 0o002)  # a store that anybody may write to is nobody's
    fail.stop_on_signals()
    names = usage.names(options, "IMAGE")
    if wanted:
        copy = partial(_to_system, settings)
        return fleet.stage(names, wanted, partial(_admit, settings.site), copy, options.flag("system"))
    if where and not host and nodes is None:
        _prepare(where, asked or readers.UMASK)
    return fail.each(names, lambda word: _stage(word, settings))


def _systems(options: usage.Options) -> list[System]:
    """Read --system and --all-systems; [] without them."""
    if not options.flag("system") and not options.flag("all-systems"):
        return []
    for one, other in (("system", "all-systems"), ("system", "store"), ("all-systems", "store")):
        if options.flag(one) and options.flag(other):
            raise Fail(f"--{one} and --{other} do not go together", todo="see -h", status=fail.USAGE)
    return systems.choose(systems.read(os.environ), options.all("system"))


def _for_site(options: usage.Options) -> int:
    """Have the image account do it."""
    for other in ("store", "mode", "nodes", "system", "all-systems"):
        if options.flag(other):
            raise Fail(f"--for-site and --{other} do not go together", todo="see -h", status=fail.USAGE)
    if not options.flag("for-site"):
        raise Fail("'--name' goes with '--for-site'", todo="else say it to sh-flatten", status=fail.USAGE)
    if options.flag("name") and len(options.operands) != 1:
        raise Fail("'--name' takes exactly one IMAGE", f"{len(options.operands)} given", status=fail.USAGE)
    account.which()
    users, groups = (readers.names(options.all(key)) for key in ("user", "group"))
    quiet = options.flag("quiet")
    fail.stop_on_signals()

    def ask(word: str) -> str:
        hear = account.ignore if quiet else partial(account.show, word)
        return "\n".join(offer.stage(word, options.one("name"), users, groups, hear, quiet=quiet))

    return fail.each(usage.names(options, "IMAGE"), ask)


def _nodes(options: usage.Options) -> str:
    """Read --nodes; not outside of a job."""
    where = options.one("nodes")
    for other in ("store", "mode", "group", "user", "system", "all-systems"):
        if options.flag(other):
            raise Fail(f"--nodes and --{other} do not go together", todo="see -h", status=fail.USAGE)
    if options.all("nodes") and not where.startswith("/"):
        raise Fail(f"not a directory for nodes: {where!r}", "it must begin with a slash", status=fail.USAGE)
    on_nodes.parts(os.environ)
    return where


def _place(text: str) -> tuple[str, str]:
    """Read -d: (host, directory), host "" for a directory here."""
    found = systems.place(text)
    if not found:
        raise Fail(f"not a store: {text!r}", todo="give DIR or HOST:DIR", status=fail.USAGE)
    return found.host, found.directory if found.host else os.path.abspath(found.directory)


def _prepare(where: str, who: Readers) -> None:
    try:
        publish.prepare(where, who)
    except OSError as error:
        raise Fail(f"cannot use the store {where!r}", error, "name another with -d") from error


def _to_system(settings: Settings, source: Image, system: System, place: Place) -> str:
    """Copy an image into a store of a system, in a way that asks nothing. Raises Fail."""
    if not place.host:
        _prepare(place.directory, settings.readers or readers.UMASK)
        return _copy(source, replace(settings, store=place.directory, quiet=True))
    who = settings.readers or readers.of(source.fd)
    if system.by == systems.SSH:
        return ssh.send(place, source, who, quiet=True, options=ssh.UNATTENDED)
    if who.users or who.groups:
        what = f"cannot let some only read what goes to {str(place)!r}"
        raise Fail(what, f"{system.by} knows no users and groups", "have by = 'ssh' for it, or give --mode")
    send = scp.send if system.by == systems.SCP else rsync.send
    return send(place, source, who)


def _stage(word: str, settings: Settings) -> str:
    path = store.find(word, os.environ)
    if settings.nodes is not None:
        with image.opened(path, quiet=settings.quiet) as source:
            on_nodes.stage(source, settings.nodes, os.environ)
        return path
    if not settings.store:
        os.stat(path)
        return word if os.path.realpath(word) == path else path
    with image.opened(path, quiet=settings.quiet) as source:
        _admit(settings.site, source)
        if settings.host:
            who = settings.readers or readers.of(source.fd)
            return ssh.send(systems.Place(settings.host, settings.store), source, who, settings.quiet)
        return _copy(source, settings)


def _admit(site: trust.Site | None, source: Image) -> None:
    """Ask the site's policy, if there is one, for every name that the image would have there. Raises Fail."""
    if not site:
        return
    known = source.known
    named = [known.reference] if known.reference else []
    for name in dict.fromkeys([*named, *map(store.called, source.stems)]) or [None]:
        site.admit(reference.parse(name) if name else None, known.manifest, signatures.read(known.signed))


def _copy(source: Image, settings: Settings) -> str:
    """Copy an image into a store of this host, unless its content is there, and let its names mean it."""
    trust.check_bytes(source, settings.store)
    part = publish.temporary(settings.store)
    own = os.path.dirname(source.path) == os.path.realpath(paths.images(os.environ))
    try:
        # What our umask closed to others in our own cache it closes in the copy, too, which has its directory's group.
        by_umask = own and readers.by_umask(source.fd)
        who = settings.readers or (readers.UMASK if by_umask else readers.of(source.fd))
        who = publish.heirs(settings.store, source.known.hex, who)
        held = store.holds(settings.store, source.known)
        if held:
            there = store.read_sidecar(held)
            if there and source.known.signed and there.signed != source.known.signed:
                publish.refresh(held, source.sidecar)
            publish.admit(held, settings.readers or readers.UMASK)
            publish.renew(held)
            for stem in source.stems:
                publish.name(settings.store, stem, source.known.hex, who)
            if store.holds(settings.store, source.known):  # sh-expire may have been retiring it
                return held
        fd = publish.create(part, source.size, who)
        try:
            with meter(source.size, source.label, settings.quiet) as advance:
                source.check(image.pour(source.fd, source.offset, source.size, fd, advance))
        finally:
            os.close(fd)
        return publish.image(settings.store, part, source.sidecar, source.stems, who)
    except OSError as error:
        raise source.uncopied(settings.store, error) from error
    finally:
        publish.discard(part)
