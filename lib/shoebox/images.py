"""sh-images: list what the stores hold."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from . import account, amounts, fail, paths, publish, readers, reference, request, store, superblock, usage
from .fail import FAILED, Fail, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sidecar import Sidecar

USAGE = """
usage: sh-images [--json] [--own] [--base IMAGE] [DIR...]
       sh-images --pending [--json]

List the images in these stores, or in those of SHOEBOX_PATH: name, digest, size, age.
What is broken or does not belong there is told on standard error, a line each.

      --json           write an array of objects: name, digest, size in bytes, created
                       (when it came into the store, seconds since 1970), platform, path,
                       pinned (whether sh-rm --pin keeps it), private (not for everybody),
                       users and groups (by name, who may read it besides its owner)
      --own            only those that are yours, which you can remove
      --base IMAGE     only those whose first layers are all of IMAGE's
      --pending        what you have asked the site's image account for, and is not there
                       yet: state, place in line, name, and since when
"""

_SHIFTER = ".squashfs"


@dataclass(frozen=True)
class Row:
    """One name of one image; name is "" if it has none, platform if nobody knows. size in bytes, created as time().

    users, groups: who may read it besides its owner, if it is private.
    """

    name: str
    digest: str
    size: int
    created: int
    platform: str
    path: str
    pinned: bool
    private: bool
    users: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Which images to list: whose (a uid, None for anybody's), and the diff_ids that theirs begin with."""

    uid: int | None
    base: tuple[str, ...]


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    if options.flag("pending"):
        return _pending(options)
    base = _diff_ids(_base(options.one("base"))) if options.flag("base") else ()
    wanted = Wanted(os.geteuid() if options.flag("own") else None, base)
    status = 0
    rows: list[Row] = []
    for where in options.operands or filter(os.path.isdir, paths.stores(os.environ)):
        try:
            rows += _rows(os.path.abspath(where), wanted)
        except OSError as error:
            say(f"cannot list {where!r}: {error.strerror}")
            status = FAILED
    rows.sort(key=lambda row: (not row.name, row.name, row.path))
    if options.flag("json"):
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _table(rows, time.time())
    return status


def _pending(options: usage.Options) -> int:
    """Ask the image account what we are waiting for, and print it."""
    if options.operands or options.flag("own") or options.flag("base"):
        raise Fail("'--pending' goes with '--json' only", todo="see -h", status=fail.USAGE)
    rows: list[tuple[str, ...]] = []

    def hear(word: str, rest: str) -> None:
        fields = rest.split(" ")
        if word == "again":
            rows.clear()
        if word == "pending" and len(fields) == 4 and fields[1].isdigit() and fields[3].isdigit():
            rows.append(tuple(fields))

    account.ask(account.which(), request.Request(request.PENDING), hear)
    if options.flag("json"):
        keys = ("state", "place", "reference", "since")
        named = [dict(zip(keys, (state, int(place), name, int(since)))) for state, place, name, since in rows]
        print(json.dumps(named, indent=1))
    else:
        now = time.time()
        cells = [("STATE", "PLACE", "NAME", "SINCE")]
        cells += [(state, place, name, amounts.told_span(now - int(since))) for state, place, name, since in rows]
        for state, place, name, since in cells:
            print(f"{state:8}  {place:>5}  {name:{max(len(cell[2]) for cell in cells)}}  {since:>5}")
    return 0


def _base(name: str) -> Sidecar:
    """Return the sidecar of the image that others are to be based on. Raises Fail if its layers are not known."""
    known = store.read_sidecar(store.find(name, os.environ))
    if known is None or not _diff_ids(known):
        raise Fail(f"cannot tell what is based on {name!r}", "nobody knows its layers")
    return known


def _diff_ids(known: Sidecar) -> tuple[str, ...]:
    """Return the digests of an image's layers, the lowest first; () if its config does not say."""
    rootfs = known.config.get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    return tuple(str(digest) for digest in listed) if isinstance(listed, list) else ()


def _rows(where: str, wanted: Wanted) -> Iterator[Row]:
    """Yield a row for each name of each sound image in a store that is wanted, and say what else lies there."""
    files = sorted(os.listdir(where))
    images: dict[str, Row | None] = {}
    for file in files:
        path = os.path.join(where, file)
        digest = file.startswith("sha256-")
        if (digest and file.endswith(".sqfs")) or file.endswith(_SHIFTER):
            try:
                images[file] = _image(path, wanted)
            except Fail as error:
                say(str(error))
            except OSError as error:
                say(f"cannot read {path!r}: {error.strerror}")
        elif not (
            file.startswith(".")
            or os.path.isdir(path)
            or (digest and f"{file.removesuffix('.json').removesuffix('.pin')}.sqfs" in files)
            or f"{file.removesuffix('.meta')}{_SHIFTER}" in files
        ):
            say(f"{path!r} does not belong in a store")
    named = set()
    for link, file in store.names(where, lambda error: say(f"cannot list {error.filename!r}: {error.strerror}")):
        name = _name(link)
        if file in images and name:
            named.add(file)
            row = images[file]
            if row:
                yield replace(row, name=name)
        elif not file or not name:
            say(f"{os.path.join(where, link)!r} does not belong in a store")
        elif file not in files:
            say(f"{os.path.join(where, link)!r} is a name without an image")
    yield from (row for file, row in images.items() if row and file not in named)


def _image(path: str, wanted: Wanted) -> Row | None:
    """Return the row of an image, but for its name; None if it is not wanted, or private and not for us.

    Raises Fail and OSError if it is broken. Its time of access stays, if it is ours: to list it is not to use it.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        if not os.access(path, os.R_OK) and os.stat(path).st_uid != os.geteuid():  # private, and not for us
            return None
        fd = os.open(path, flags)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Fail(f"cannot use image {path!r}", "it is not a file")
        superblock.check(os.pread(fd, superblock.HEAD, 0), found.st_size, path)
        who = readers.of(fd)
    finally:
        os.close(fd)
    may = who.private, who.users, who.groups
    if path.endswith(_SHIFTER):
        stem = os.path.basename(path).removesuffix(_SHIFTER)
        row = Row("", f"id:{stem}", found.st_size, int(found.st_mtime), "", path, False, *may)
        return row if wanted.uid in (None, found.st_uid) and not wanted.base else None
    known = store.read_sidecar(path)
    if known is None:
        raise Fail(f"cannot use image {path!r}", "it has no sidecar", "stage it again")
    if known.size != found.st_size:
        raise Fail(f"cannot use image {path!r}", f"it has {found.st_size} bytes, its sidecar says {known.size}")
    if wanted.uid not in (None, found.st_uid) or _diff_ids(known)[: len(wanted.base)] != wanted.base:
        return None
    pinned = os.path.lexists(publish.pin_file(path))
    return Row("", f"sha256:{known.hex}", found.st_size, int(found.st_mtime), known.platform or "", path, pinned, *may)


def _name(link: str) -> str:
    """Return the reference that a path in a store stands for, "" if it is no name as we write them."""
    stem = link.removesuffix(".sqfs")
    try:
        known = reference.parse(store.called(stem))
        return str(known) if f"{known.stem}.sqfs" == link else ""
    except Fail:
        return ""


def _table(rows: list[Row], now: float) -> None:
    """Print the rows for people, the columns aligned."""
    cells = [("NAME", "DIGEST", "SIZE", "AGE", "READERS" if any(row.private for row in rows) else "")]
    for row in rows:
        kind, _, digits = row.digest.partition(":")
        short = digits[:12] if kind == "sha256" else f"{kind}:{digits[:12]}"
        span = amounts.told_span(now - row.created)
        may = ["owner", *row.users, *(f"@{group}" for group in row.groups)] if row.private else []
        cells.append((row.name or "-", short, amounts.told_size(row.size), span, ",".join(may)))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    for name, digest, size, age, who in cells:
        line = f"{name:{widths[0]}}  {digest:{widths[1]}}  {size:>{widths[2]}}  {age:>{widths[3]}}"
        print(f"{line}  {who}" if who else line)
