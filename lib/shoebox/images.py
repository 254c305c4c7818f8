"""sh-images: list what the stores hold."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from . import paths, reference, store, superblock, usage
from .fail import FAILED, Fail, say

if TYPE_CHECKING:
    from collections.abc import Iterator

USAGE = """
usage: sh-images [--json] [DIR...]

List the images in these stores, or in those of SHOEBOX_PATH: name, digest, size, age.
What is broken or does not belong there is told on standard error, a line each.

      --json           write an array of objects: name, digest, size in bytes, created
                       (when it came into the store, seconds since 1970), platform, path
"""

_AGES = ((365 * 86400, "y"), (7 * 86400, "w"), (86400, "d"), (3600, "h"), (60, "min"))
_SHIFTER = ".squashfs"
_SIZES = ("", "K", "M", "G", "T")


@dataclass(frozen=True)
class Row:
    """One name of one image; name is "" if it has none, platform if nobody knows. size in bytes, created as time()."""

    name: str
    digest: str
    size: int
    created: int
    platform: str
    path: str


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    status = 0
    rows: list[Row] = []
    for where in options.operands or filter(os.path.isdir, paths.stores(os.environ)):
        try:
            rows += _rows(os.path.abspath(where))
        except OSError as error:
            say(f"cannot list {where!r}: {error.strerror}")
            status = FAILED
    rows.sort(key=lambda row: (not row.name, row.name, row.path))
    if options.flag("json"):
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _table(rows, time.time())
    return status


def _rows(where: str) -> Iterator[Row]:
    """Yield a row for each name of each sound image in a store, and say what else lies there."""
    files = sorted(os.listdir(where))
    images: dict[str, Row] = {}
    for file in files:
        path = os.path.join(where, file)
        digest = file.startswith("sha256-")
        if (digest and file.endswith(".sqfs")) or file.endswith(_SHIFTER):
            try:
                images[file] = _image(path)
            except Fail as error:
                say(str(error))
            except OSError as error:
                say(f"cannot read {path!r}: {error.strerror}")
        elif not (
            file.startswith(".")
            or os.path.isdir(path)
            or (digest and f"{file.removesuffix('.json')}.sqfs" in files)
            or f"{file.removesuffix('.meta')}{_SHIFTER}" in files
        ):
            say(f"{path!r} does not belong in a store")
    named = set()
    for link, file in store.names(where, lambda error: say(f"cannot list {error.filename!r}: {error.strerror}")):
        name = _name(link)
        if file in images and name:
            named.add(file)
            yield replace(images[file], name=name)
        elif not file or not name:
            say(f"{os.path.join(where, link)!r} does not belong in a store")
        elif file not in files:
            say(f"{os.path.join(where, link)!r} is a name without an image")
    yield from (row for file, row in images.items() if file not in named)


def _image(path: str) -> Row:
    """Return the row of an image, but for its name. Raises Fail and OSError if it is broken."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Fail(f"cannot use image {path!r}", "it is not a file")
        superblock.check(os.pread(fd, superblock.HEAD, 0), found.st_size, path)
    finally:
        os.close(fd)
    if path.endswith(_SHIFTER):
        return Row(
            "", f"id:{os.path.basename(path).removesuffix(_SHIFTER)}", found.st_size, int(found.st_mtime), "", path
        )
    known = store.read_sidecar(path)
    if known is None:
        raise Fail(f"cannot use image {path!r}", "it has no sidecar", "stage it again")
    if known.size != found.st_size:
        raise Fail(f"cannot use image {path!r}", f"it has {found.st_size} bytes, its sidecar says {known.size}")
    return Row("", f"sha256:{known.hex}", found.st_size, int(found.st_mtime), known.platform or "", path)


def _name(link: str) -> str:
    """Return the reference that a path in a store stands for, "" if it is no name as we write them."""
    stem = link.removesuffix(".sqfs")
    try:
        known = reference.parse(store.called(stem))
    except Fail:
        return ""
    return str(known) if f"{known.stem}.sqfs" == link else ""


def _table(rows: list[Row], now: float) -> None:
    """Print the rows for people, the columns aligned."""
    cells = [("NAME", "DIGEST", "SIZE", "AGE")]
    for row in rows:
        kind, _, digits = row.digest.partition(":")
        short = digits[:12] if kind == "sha256" else f"{kind}:{digits[:12]}"
        cells.append((row.name or "-", short, _size(row.size), _age(now - row.created)))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    for name, digest, size, age in cells:
        print(f"{name:{widths[0]}}  {digest:{widths[1]}}  {size:>{widths[2]}}  {age:>{widths[3]}}")


def _size(count: float) -> str:
    """Write a size as ls -h does: three digits at most, in powers of 1024."""
    unit = 0
    while round(count) >= 1000 and unit < len(_SIZES) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f}{_SIZES[unit]}" if count >= 10 or not unit else f"{count:.1f}{_SIZES[unit]}"


def _age(seconds: float) -> str:
    """Write an age in the largest unit of which it has at least two, `2d` to `13d` and then weeks."""
    for length, unit in _AGES:
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
