"""Storms of imports: many ranks, many modules; from distributed file systems, as tree and as image, and locally."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import pytest
from bench import starter, storms
from bench.measure import Room, Row, Table
from bench.storms import Source, Stack
from fixtures import glusterfs, moosefs
from fixtures.dfs import System
from fixtures.rootfs import make_tree

Beside = Callable[..., None]
Record = Callable[[Row], None]
Systems = dict[str, System]
Sources = dict[str, Source]

SHORT, LONG = 80, 300  # generated packages in the short form and in the long one
FEW, SOME, MANY = 1, 8, 32  # ranks
COLD, WARM = 0.4, 1.15  # the targets, for an image on GlusterFS by the kernel
GROWTH = 1.05


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """In the short form there is GlusterFS only."""
    if "kind" in metafunc.fixturenames:
        short = metafunc.config.getoption("--short")
        metafunc.parametrize("kind", ["GlusterFS"] if short else ["GlusterFS", "MooseFS"])


@pytest.fixture(scope="module")
def short(pytestconfig: pytest.Config) -> bool:
    """Return whether this is the short form."""
    return bool(pytestconfig.getoption("--short"))


@pytest.fixture(scope="module")
def systems(short: bool) -> Iterator[Systems]:
    """Return the file systems."""
    if os.getuid():
        pytest.skip("only root can start a distributed file system")
    with ExitStack() as up:
        kinds = [glusterfs] if short else [glusterfs, moosefs]
        for kind in kinds:
            if why := kind.why_not():
                pytest.fail(why)
        made = [up.enter_context(kind.volume()) for kind in kinds]
        yield {system.kind: system for system in made}


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


def test_a_cold_image_by_the_kernel_beside_a_plain_tree(
    beside: Beside, generated: Sources, kind: str, short: bool
) -> None:
    ours, theirs = generated[f"{kind}, image by kernel"], generated[f"{kind}, tree"]
    name = f"{SOME} ranks import, cold, image on {kind} by kernel : tree on {kind}"
    target = COLD if kind == "GlusterFS" else None
    beside(name, target, ours.work(SOME), theirs.work(SOME), 2 if short else 5, ours.cold)


def test_a_cold_image_by_fuse_beside_a_plain_tree(beside: Beside, generated: Sources, kind: str, short: bool) -> None:
    ours, theirs = generated[f"{kind}, image by fuse"], generated[f"{kind}, tree"]
    name = f"{SOME} ranks import, cold, image on {kind} by fuse : tree on {kind}"
    beside(name, None, ours.work(SOME), theirs.work(SOME), 1 if short else 5, ours.cold)


def test_a_warm_image_by_the_kernel_beside_local_disk(
    beside: Beside, generated: Sources, room: Room, kind: str, short: bool
) -> None:
    ours, theirs = generated[f"{kind}, image by kernel"], generated["local disk, tree"]
    name = f"{SOME} ranks import, warm, image on {kind} by kernel : tree on local disk"
    target = WARM if kind == "GlusterFS" else None
    with ours.warm(), theirs.warm():
        beside(name, target, ours.work(SOME), theirs.work(SOME), 4 if short else 9, room.pause)


@pytest.mark.parametrize("way", ["kernel", "fuse"])
def test_requests_do_not_grow_with_ranks(
    record: Record,
    figures: Callable[[Table], None],
    generated: Sources,
    systems: Systems,
    kind: str,
    way: str,
    short: bool,
) -> None:
    """By the kernel it is a gate. squashfuse reads in the order in which ranks ask, and read-ahead differs with it."""
    source = generated[f"{kind}, image by {way}"]
    counted = {ranks: [source.cost(ranks, systems[kind]) for _ in range(1 if short else 3)] for ranks in (FEW, MANY)}
    each = [many[0] / few[0] for few, many in zip(counted[FEW], counted[MANY], strict=True)]
    name = f"requests to {kind}, {MANY} ranks : {FEW} rank, image by {way}"
    gate = way == "kernel"
    record(Row(name, GROWTH, "x", median(each), min(each), max(each), gate=gate))


def test_what_one_node_asks_of_the_file_system(
    figures: Callable[[Table], None], generated: Sources, systems: Systems, kind: str, short: bool
) -> None:
    sources = {name.split(", ")[1]: source for name, source in generated.items() if name.startswith(kind)}
    ranks = (FEW, 2) if short else (FEW, SOME, MANY)
    costs = {name: [source.cost(count, systems[kind]) for count in ranks] for name, source in sources.items()}
    columns = tuple(f"{count} rank{'s' * (count > 1)}" for count in ranks)
    for place, unit in enumerate(("requests", "bytes")):
        title = f"what a node asks of {kind} for a cold storm of imports"
        figures(Table(title, unit, columns, {name: [cost[place] for cost in all_] for name, all_ in costs.items()}))


def seconds(sources: Sources, ranks: tuple[int, ...]) -> dict[str, list[float | None]]:
    """Return the seconds that ranks take, cold and warm, from everywhere."""
    found: dict[str, list[float | None]] = {}
    for name, source in sources.items():
        cold = [source.first(count) for count in ranks]
        with source.warm():
            found[name] = [*cold, *(source.run(count) for count in ranks)]
    return found


def test_storms_from_everywhere(figures: Callable[[Table], None], generated: Sources, short: bool) -> None:
    if short:
        pytest.skip("in the long form only")
    ranks = (FEW, SOME, MANY)
    columns = tuple(f"{count}, {how}" for how in ("cold", "warm") for count in ranks)
    figures(Table(f"storm of {LONG} generated packages, by ranks", "s", columns, seconds(generated, ranks)))


def test_storms_of_a_real_stack_from_everywhere(
    figures: Callable[[Table], None], request: pytest.FixtureRequest, room: Room, systems: Systems, short: bool
) -> None:
    if short:
        pytest.skip("in the long form only")
    image = request.getfixturevalue("image")
    with ready(systems, lambda tree: storms.real(room, image, tree)) as sources:
        title = f"storm of {', '.join(storms.IMPORTS)}, by ranks"
        figures(Table(title, "s", tuple(f"{SOME}, {how}" for how in ("cold", "warm")), seconds(sources, (SOME,))))
