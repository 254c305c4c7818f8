"""Node caches beside writing directly: small writes, small files; on distributed file systems and on local disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from bench import starter, writing
from bench.measure import Record, Room, Row, Table, gain
from bench.writing import Place
from fixtures.dfs import System
from fixtures.helper import OWNER, USER

Figures = Callable[[Table], None]
Places = dict[str, Place]
Systems = dict[str, System]

MB = 1 << 20
CORES = len(os.sched_getaffinity(0))
WRITERS = (1, 2, 4)
ON = "GlusterFS"  # which the targets are for
KERNEL, FUSE = f"{ON}, cache by sh-mount", f"{ON}, cache without privilege"
LOCAL = "local disk"


@pytest.fixture(scope="module")
def site(systems: Systems, room: Room) -> Iterator[starter.Site]:
    """Return an ordinary user of a site that has sh-mount."""
    with ExitStack() as at_end:
        where = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="shoebox-cache-")))
        where.chmod(0o755)
        image = room.path / "writing.sqfs"
        room.run(["sh-flatten", "-o", image, writing.image_tree(room.path / "writing")])
        (where / "site").mkdir()
        yield at_end.enter_context(starter.site(where / "site", image))


def own(site: starter.Site, kind: str, mine: Path, ours: Path, size: str) -> Places:
    """Return the places on a file system. mine: a directory of the user's there; ours: one of the site's account."""
    with (site.where / "mount.conf").open("a") as conf:
        conf.write(f"cache {OWNER} {ours}\n")
    return {
        kind: Place(site, str(mine)),
        f"{kind}, cache by sh-mount": Place(site, "/cache", f"size={size},on={ours}"),
        f"{kind}, cache without privilege": Place(site, "/cache", f"size={size},on={mine}"),
    }


@pytest.fixture(scope="module")
def places(site: starter.Site, systems: Systems) -> Places:
    """Return all places to write to."""
    with (site.where / "mount.conf").open("a") as conf:
        conf.write("cache-size 1M 300G\n")
    found: Places = {}
    for system in systems.values():
        found |= own(site, system.kind, system.directory(USER), system.directory(OWNER), "2G")
    for name, uid in (("mine", USER), ("caches", OWNER)):
        (site.where.parent / name).mkdir(mode=0o700)
        os.chown(site.where.parent / name, uid, uid)
    found |= own(site, LOCAL, site.where.parent / "mine", site.where.parent / "caches", "2G")
    return found | {"memory, cache": Place(site, "/cache", "size=2G,on=tmpfs")}


def is_direct(name: str) -> bool:
    """Tell whether a place is a distributed file system itself, which is slow."""
    return name in ("GlusterFS", "MooseFS")


def amount(name: str, *, short: bool) -> int:
    """Return the bytes that a writer writes there: of a slow place fewer, for else a round takes half a minute."""
    direct, else_ = (4, 32) if short else (16, 128)
    return (direct if is_direct(name) else else_) * MB


@pytest.fixture(scope="module")
def rates(places: Places, *, short: bool) -> dict[str, dict[int, list[float]]]:
    """Return the MB/s of each writer of `dd bs=512`, a figure a round, by place and number of writers."""
    rounds = {1: 2, 2: 1, 4: 2} if short else {1: 5, 2: 3, 4: 3}
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in WRITERS} for name in places}
    for writers in WRITERS:
        for number in range(rounds[writers]):
            for name in writing.rotated(places, number):
                found[name][writers].append(places[name].rate(writers, amount(name, short=short)))
    return found


def each(rates: list[float]) -> list[float]:
    """Return seconds for a GB."""
    return [1e3 / rate for rate in rates]


@pytest.mark.parametrize(
    ("ours", "theirs", "target"),
    [(KERNEL, ON, 30), (FUSE, ON, 25), (KERNEL, LOCAL, 1), (FUSE, LOCAL, None)],
)
def test_small_writes(
    record: Record, rates: dict[str, dict[int, list[float]]], ours: str, theirs: str, target: float | None
) -> None:
    name = f"dd bs=512, faster: {ours} : {'' if theirs == ON else theirs + ', '}directly"
    record(gain(name, target, each(rates[ours][1]), each(rates[theirs][1])))


@pytest.mark.parametrize("ours", [KERNEL, FUSE])
def test_writers_do_not_slow_each_other_down(
    record: Record, figures: Figures, rates: dict[str, dict[int, list[float]]], ours: str
) -> None:
    most = max(WRITERS)
    one = median(rates[ours][1]) * min(1, CORES / most)
    shares = [rate / one for rate in rates[ours][most]]
    name = f"rate of each of {most} writers : of 1 with its share of the cores, {ours}"
    record(Row(name, None, "x", median(shares), min(shares), max(shares), sense="≥"))
    if ours == KERNEL:
        columns = tuple(f"{n} writer{'s' * (n > 1)}" for n in WRITERS)
        lines = {name: [median(by[n]) for n in WRITERS] for name, by in rates.items()}
        figures(Table("dd bs=512, of each writer", "MB/s", columns, lines))


def test_small_writes_with_fsync(record: Record, places: Places, *, short: bool) -> None:
    found: dict[str, list[float]] = {ON: [], KERNEL: [], FUSE: []}
    for number in range(2 if short else 5):
        for name in writing.rotated(found, number):
            found[name].append(1e3 / places[name].rate(1, amount(name, short=short), fsync=True))
    for ours in (KERNEL, FUSE):
        record(gain(f"dd bs=512 conv=fsync, faster: {ours} : directly", None, found[ours], found[ON]))


def test_random_writes(figures: Figures, places: Places, *, short: bool) -> None:
    found: dict[str, list[float | None]] = {}
    for name, place in places.items():
        options = ("--rw=randwrite", "--size=128m", f"--io_size={amount(name, short=short) // 4}", "--end_fsync=1")
        found[name] = [place.fio(*options, f"--bs={size}") for size in ("512", "4k")]
    figures(Table("fio, random writes", "MB/s", ("512 B", "4 KiB"), found))


def test_many_small_files(record: Record, figures: Figures, places: Places, *, short: bool) -> None:
    count, rounds = (2_000, 2) if short else (20_000, 3)  # which take more than a minute directly
    names = [name for name in places if short or name != "MooseFS"]
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in writing.rotated(names if number == 0 else (ON, KERNEL, FUSE), number):
            found[name].append(places[name].run("files", count))
    for ours, target in ((KERNEL, 30), (FUSE, 10)):
        name = f"{count:,} files created, read, removed, faster: {ours} : directly"
        record(gain(name, target, *([sum(took) for took in found[place]] for place in (ours, ON))))
    lines: dict[str, list[float | None]] = {
        name: [median(took[part] for took in all_) for part in range(3)] for name, all_ in found.items()
    }
    figures(Table(f"{count:,} files of 1,000 bytes", "s", ("created", "read", "removed"), lines))


@pytest.fixture(scope="module")
def nodes(site: starter.Site, systems: Systems, places: Places) -> list[Places]:
    """Return the places of two nodes: the second is another client of the same file system."""
    system = systems[ON]
    system.mount(system.where / "other")
    mine, ours = (system.where / "other" / f"user-{uid}" for uid in (USER, OWNER))
    return [places, own(site, ON, mine, ours, "2G")]


def test_a_file_for_each_process_on_two_nodes(record: Record, nodes: list[Places], *, short: bool) -> None:
    size, rounds, longest = (16, 1, 2) if short else (2048, 3, 20)
    options = ("--rw=write", "--bs=512", "--numjobs=2", f"--size={size}m", f"--runtime={longest}")
    found: dict[str, list[float]] = {ON: [], KERNEL: [], FUSE: []}
    for number in range(rounds):
        for name in writing.rotated(found, number):
            both = [replace(node[name], asked=node[name].asked.replace("size=2G", "size=5G")) for node in nodes]
            found[name].append(1e3 / writing.together(both, *options))
    for ours in (KERNEL, FUSE):
        name = f"fio, 2 nodes, 2 writers each, 512 B of {size} MB, faster: {ours} : directly"
        record(gain(name, None, found[ours], found[ON]))


@pytest.mark.parametrize("ours", [KERNEL, FUSE])
def test_a_large_cache_is_there_at_once(
    record: Record, site: starter.Site, places: Places, ours: str, *, short: bool
) -> None:
    place = places[ours]
    large = Place(site, place.path, place.asked.replace("size=2G", "size=200G"))
    none = Place(site, "/", writing.NONE)
    with_, without = [], []
    for _ in range(3 if short else 10):
        without.append(none.set_up())
        with_.append(large.set_up())
    more = [(there - alone) * 1e3 for (there, _), (alone, _) in zip(with_, without, strict=True)]
    gone = [after * 1e3 for _, after in with_]
    record(Row(f"setting up a cache of 200 GB: {ours}", 100, "ms", median(more), min(more), max(more)))
    record(Row(f"removing it: {ours}", None, "ms", median(gone), min(gone), max(gone)))
