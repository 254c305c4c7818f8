"""sh-stats: report what was run, from the lines that runs leave."""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from . import charts, fail, host, paths, reference, site, store, usage, uses
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .uses import Use

USAGE = """
usage: sh-stats [--json|--html] [DIR...|-]

Report how often images were run, by month, image and user, from the lines that
runs leave in these directories, or in the one that site.conf names; with -, from
what `journalctl -t sh-run -o json` prints. A step of a job counts once a node.

      --json           write an object with the lists months, images, users and uses
      --html           write a page with charts, in one file
"""
_NOBODY = "(files of their own)"


@dataclass
class Row:
    """A month, an image or a user: name for people, id as lines have it; last in seconds since 1970."""

    name: str
    id: str
    uses: int = 0
    users: int = 0
    images: int = 0
    last: int = 0


@dataclass
class Report:
    """What was counted: uses by (month, image's digest or "", uid), and when each image and user was last seen."""

    counted: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    last: dict[str | int, int] = field(default_factory=dict)

    def add(self, found: Iterable[Use]) -> None:
        """Count."""
        months: dict[int, str] = {}  # by quarter of an hour: to ask for each line costs more than to read it
        for use in found:
            quarter = use.time // 900  # by which zones differ
            if quarter not in months:
                months[quarter] = time.strftime("%Y-%m", time.localtime(use.time))
            self.counted[months[quarter], use.image, use.uid] += 1
            self.last[use.image] = max(self.last.get(use.image, 0), use.time)
            self.last[use.uid] = max(self.last.get(use.uid, 0), use.time)

    def rows(self, column: int, names: dict[str, str]) -> list[Row]:
        """Return a row for each month (0) in order, image (1) or user (2), the most used first."""
        found: dict[str | int, Row] = {}
        images: dict[str | int, set[str]] = {}
        users: dict[str | int, set[int]] = {}
        for key, count in self.counted.items():
            row = found.setdefault(key[column], Row(_name(key[column], names), str(key[column])))
            row.uses += count
            images.setdefault(key[column], set()).add(key[1])
            users.setdefault(key[column], set()).add(key[2])
        for about, row in found.items():
            row.images, row.users = len(images[about] - {""}), len(users[about])
            row.last = self.last.get(about, 0)
        if not column:
            return sorted(found.values(), key=lambda row: row.name)
        return sorted(found.values(), key=lambda row: (-row.uses, row.name))


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    if options.flag("json") and options.flag("html"):
        raise Fail("cannot use --json with --html", "there is one output", status=fail.USAGE)
    report = Report()
    for where in options.operands or [_own()]:
        report.add(uses.journal(sys.stdin.buffer) if where == "-" else uses.read(where))
    names = _names()
    months, images, users = (report.rows(column, names) for column in range(3))
    if options.flag("json"):
        print(json.dumps(_object(report, months, images, users), indent=1))
    elif options.flag("html"):
        print(_page(months, images, users), end="")
    else:
        _tables(months, images, users)
    return 0


def _own() -> str:
    """Return the directory that site.conf names. Raises Fail."""
    found = site.load(paths.SITE, site.NONE, host.text)
    where = found.usage if found else ""
    if where and not where.startswith("/"):
        raise Fail("no DIR given", f"runs leave their lines in syslog, {where}", "see sh-stats(1) for -", fail.USAGE)
    if not where:
        raise Fail("no DIR given", f"{paths.SITE}/{site.FILE} has no usage = DIR", "see site.conf(5)", fail.USAGE)
    return where


def _names() -> dict[str, str]:
    """Return the names that images have in our stores, by digest: tags rather than digests."""
    found: dict[str, str] = {}
    for where in paths.stores(os.environ):
        for link, file in store.names(where, lambda _: None):
            digest = f"sha256:{file[7:71]}"
            if digest in found or not file.startswith("sha256-") or "@" in link:
                continue
            try:
                found[digest] = str(reference.parse(store.called(link.removesuffix(".sqfs"))))
            except Fail:  # no name as we write them
                continue
    return found


def _name(about: str | int, names: dict[str, str]) -> str:
    if isinstance(about, str):
        return names.get(about, about) if about else _NOBODY
    try:
        return pwd.getpwuid(about).pw_name
    except (KeyError, OverflowError):
        return str(about)


def _object(report: Report, months: list[Row], images: list[Row], users: list[Row]) -> dict[str, object]:
    return {
        "months": [{"month": row.id, "uses": row.uses, "users": row.users, "images": row.images} for row in months],
        "images": [_less(row, "images") for row in images],
        "users": [_less(row, "users") for row in users],
        "uses": [
            {"month": month, "image": image, "uid": uid, "uses": count}
            for (month, image, uid), count in sorted(report.counted.items())
        ],
    }


def _less(row: Row, without: str) -> dict[str, object]:
    return {name: value for name, value in asdict(row).items() if name != without}


def _page(months: list[Row], images: list[Row], users: list[Row]) -> str:
    people = f"{len(users)} user{'s' * (len(users) != 1)}"
    note = f"{sum(row.uses for row in months)} runs, of {people}; a step of a job counts once a node."
    return charts.page(
        "Use of images",
        f"{note} {time.strftime('%Y-%m-%d %H:%M')}",
        [
            charts.Chart("By month", [(row.name, f"{row.users} users", row.uses) for row in months], columns=True),
            charts.Chart("By image", [(_short(row), row.id, row.uses) for row in images]),
            charts.Chart("By user", [(row.name, f"{row.images} images", row.uses) for row in users]),
        ],
    )


def _short(row: Row) -> str:
    """Return an image's name, or as much of its digest as sh-images shows."""
    kind, _, digits = row.id.partition(":")
    return row.name if row.name != row.id else f"{kind}:{digits[:12]}"


def _tables(months: list[Row], images: list[Row], users: list[Row]) -> None:
    """Print the report for people."""
    _table(("MONTH", "USES", "USERS", "IMAGES"), [(row.name, row.uses, row.users, row.images) for row in months])
    print()
    _table(("IMAGE", "USES", "USERS", "LAST"), [(row.name, row.uses, row.users, _day(row.last)) for row in images])
    print()
    _table(("USER", "USES", "IMAGES", "LAST"), [(row.name, row.uses, row.images, _day(row.last)) for row in users])


def _table(head: tuple[str, ...], rows: list[tuple[str | int, ...]]) -> None:
    cells = [head, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    for name, *others in cells:
        print("  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]))


def _day(when: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(when))
