"""Storms of imports: many ranks, many modules; from distributed file systems, as tree and as image, and locally."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bench import starter, storms
from bench.measure import Record, Room, Row, Table
from bench.storms import Cost, Source, Stack
from fixtures.dfs import System
from fixtures.rootfs import make_tree

Beside = Callable[..., None]
Systems = dict[str, System]
Sources = dict[str, Source]
Figures = Callable[[Table], None]

SHORT, LONG = 80, 300  # generated packages in the short form and in the long one
FEW, SOME, MANY = 1, 8, 32  # ranks
COLD, WARM = 0.4, 1.15  # the targets, for an image on GlusterFS, warm by the kernel
STACK = ", ".join(storms.IMPORTS)
GROWTH = {"kernel": 1.05, "fuse": 1.25}  # by FUSE: squashfuse reads in the order in which ranks ask


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """In the short form there is GlusterFS only."""
    if "kind" in metafunc.fixturenames:
        short = metafunc.config.getoption("--short")
        metafunc.parametrize("kind", ["GlusterFS"] if short else ["GlusterFS", "MooseFS"])


@contextmanager
def ready(systems: Systems, make: Callable[[Path], Stack]) -> Iterator[Sources]:
    """Make a stack, put it everywhere, and give all ways to read it."""
    with ExitStack() as at_end:
        where = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="shoebox-storm-")))
        where.chmod(0o755)
        stack = make(where / "tree")
        places = [(system, system.mounted / where.name) for system in systems.values()]
        for _, place in places:
            storms.put(stack, place)
        (where / "site").mkdir()
        site = at_end.enter_context(starter.site(where / "site", stack.image))
        with (site.where / "mount.conf").open("a") as conf:
            conf.writelines(f"store {place}/store\n" for _, place in places)
        root = at_end.enter_context(starter.starter(where, site.started.env))
        yield storms.sources(stack, site, root, places)


@pytest.fixture(scope="module")
def generated(systems: Systems, room: Room, short: bool) -> Iterator[Sources]:
    """Return all ways to read a stack of generated packages."""
    with ready(systems, lambda tree: storms.generated(room, make_tree(tree), SHORT if short else LONG)) as found:
        yield found


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, systems: Systems, room: Room, short: bool) -> Iterator[Sources]:
    """Return all ways to read what IMPORTS needs of the real image."""
    if short:
        pytest.skip("in the long form only")
    image = request.getfixturevalue("image")
    with ready(systems, lambda tree: storms.real(room, image, tree)) as found:
        yield found


def test_a_cold_image_by_the_kernel_beside_a_plain_tree(
    beside: Beside, generated: Sources, kind: str, *, short: bool
) -> None:
    ours, theirs = generated[f"{kind}, image by kernel"], generated[f"{kind}, tree"]
    name = f"{SOME} ranks import, cold, image on {kind} by kernel : tree on {kind}"
    target = COLD if kind == "GlusterFS" else None
    beside(name, target, ours.work(SOME), theirs.work(SOME), 2 if short else 3, ours.cold)


def test_a_cold_image_by_fuse_beside_a_plain_tree(beside: Beside, generated: Sources, *, short: bool) -> None:
    ours, theirs = generated["GlusterFS, image by fuse"], generated["GlusterFS, tree"]
    name = f"{SOME} ranks import, cold, image on GlusterFS by fuse : tree on GlusterFS"
    beside(name, COLD, ours.work(SOME), theirs.work(SOME), 1 if short else 3, ours.cold)


def test_a_warm_image_by_the_kernel_beside_local_disk(
    beside: Beside, generated: Sources, room: Room, kind: str, *, short: bool
) -> None:
    ours, theirs = generated[f"{kind}, image by kernel"], generated[storms.LOCAL]
    name = f"{SOME} ranks import, warm, image on {kind} by kernel : tree on local disk"
    target = WARM if kind == "GlusterFS" else None
    with ours.warm(), theirs.warm():
        beside(name, target, ours.work(SOME), theirs.work(SOME), 4 if short else 9, room.pause)


@pytest.mark.parametrize("way", ["kernel", "fuse"])
def test_requests_do_not_grow_with_ranks(
    record: Record, generated: Sources, kind: str, way: str, *, short: bool
) -> None:
    source = generated[f"{kind}, image by {way}"]
    tries = range(2 if short else 3)
    asked = {ranks: [source.first(ranks).requests for _ in tries] for ranks in (FEW, MANY)}
    few, many = ([count for count in asked[ranks] if count] for ranks in (FEW, MANY))
    assert few, asked
    assert many, asked
    each = [more / less for less in few for more in many]
    # The least, for what clients and servers do for themselves comes on top, now and then.
    share = min(many) / min(few)
    name = f"requests to {kind}, {MANY} ranks : {FEW} rank, image by {way}"
    record(Row(name, GROWTH[way], "x", share, min(each), max(each), gate=True))


def takes_long(source: Source, ranks: int) -> bool:
    """Tell whether a storm takes a minute: each of many ranks asks the file system for all of a tree."""
    return ranks == MANY and source.system is not None and not source.ours


def from_everywhere(figures: Figures, sources: Sources, what: str, ranks: tuple[int, ...], *, warm: bool) -> None:
    """Make tables of what a storm on one node takes, cold and perhaps warm, and of what it asks of the file systems."""
    none = Cost(None)
    costs = {
        name: [none if takes_long(source, count) else source.first(count) for count in ranks]
        for name, source in sources.items()
    }
    lines: dict[str, list[float | None]] = {name: [cost.seconds for cost in all_] for name, all_ in costs.items()}
    words = [f"{count} rank{'s' * (count > 1)}" for count in ranks]
    for name, source in sources.items() if warm else ():
        with source.warm():
            lines[name] += [None if takes_long(source, count) else source.run(count) for count in ranks]
    columns = (*(f"{word}, cold" for word in words), *(f"{word}, warm" for word in words if warm))
    figures(Table(f"imports of {what} on one node", "s", columns, lines))
    asked = {name: all_ for name, all_ in costs.items() if sources[name].system}
    title = f"what a node asks of the file system, imports of {what}, cold"
    figures(Table(title, "requests", tuple(words), {name: [cost.requests for cost in asked[name]] for name in asked}))
    figures(Table(title, "bytes", tuple(words), {name: [cost.bytes for cost in asked[name]] for name in asked}))


def test_generated_packages_from_everywhere(figures: Figures, generated: Sources, *, short: bool) -> None:
    what, ranks = f"{SHORT if short else LONG} generated packages", (FEW, 2) if short else (FEW, SOME, MANY)
    from_everywhere(figures, generated, what, ranks, warm=not short)


def test_a_cold_image_of_a_real_stack_beside_a_plain_tree(beside: Beside, real: Sources) -> None:
    ours, theirs = real["GlusterFS, image by kernel"], real["GlusterFS, tree"]
    name = f"{SOME} ranks import {STACK}, cold, image on GlusterFS by kernel : tree on GlusterFS"
    beside(name, COLD, ours.work(SOME), theirs.work(SOME), 3, ours.cold)


def test_a_warm_image_of_a_real_stack_beside_local_disk(beside: Beside, real: Sources, room: Room) -> None:
    ours, theirs = real["GlusterFS, image by kernel"], real[storms.LOCAL]
    name = f"{SOME} ranks import {STACK}, warm, image on GlusterFS by kernel : tree on local disk"
    with ours.warm(), theirs.warm():
        beside(name, WARM, ours.work(SOME), theirs.work(SOME), 9, room.pause)


def test_a_real_stack_from_everywhere(figures: Figures, real: Sources) -> None:
    from_everywhere(figures, real, STACK, (SOME,), warm=True)
