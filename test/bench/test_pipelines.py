"""Pull, flatten, stage, from a registry onto a distributed file system, beside others' pipelines to the same end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import pipelines
from bench.measure import Record, Room, Row, peak, ratio, written
from bench.pipelines import Pipeline, Registry
from fixtures.dfs import System

Ways = Callable[..., list[Pipeline]]

TEXT = "pull, flatten, stage onto GlusterFS"
UMOCI = "skopeo, umoci, mksquashfs, cp"
OTHERS = ("ch-image pull, ch-convert, cp", "podman pull")
TARGET = 0.25
MOST_FILES = 12  # of ours there: image, sidecar, the name and its directories, what a store has


@pytest.fixture(scope="module")
def small_registry(room: Room, small_layout: Path) -> Iterator[Registry]:
    """Return a registry with the small image, that of the short form."""
    with pipelines.registry(room, small_layout, room.path / "registry-small") as made:
        yield made


@pytest.fixture(scope="module")
def app_registry(room: Room, layout: Path, small_layout: Path, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """Return a registry with the image: in the short form the small one."""
    if layout == small_layout:
        yield request.getfixturevalue("small_registry")
        return
    with pipelines.registry(room, layout, room.path / "registry-app") as made:
        yield made


@pytest.fixture
def ways(room: Room, gluster: System) -> Iterator[Ways]:
    """Return what makes ours and others' pipelines, which know nothing yet."""
    made: list[Pipeline] = []
    with tempfile.TemporaryDirectory(prefix="shoebox-") as short:

        def make(registry: Registry, *names: str) -> list[Pipeline]:
            for number, name in enumerate(("", *names)):
                places = room.path / f"pipeline-{number}", gluster.mounted / f"store-{number}"
                made.append(Pipeline(name, room, *places, registry, Path(short)))
                made[-1].forget()
            return made

        yield make
        for pipeline in made:
            pipeline.forget()


def timed(pipeline: Pipeline) -> float:
    """Return the seconds that a run takes."""
    start = time.perf_counter()
    pipeline.run()
    return time.perf_counter() - start


def compare(record: Record, pipes: list[Pipeline], text: str, target: float | None, rounds: int) -> None:
    """Measure all in turns, cold, and then with another top layer each time; record rows of both.

    What the last round left is removed before any of them begins, and each round takes them in the other order: what
    follows a large removal is slower here.
    """
    for nth, (what, begin) in enumerate((("", Pipeline.forget), (", the top layer changed", Pipeline.clear))):
        seconds: dict[str, list[float]] = {pipe.name: [] for pipe in pipes}
        for number in range(rounds):
            pipes[0].registry.change(nth * rounds + number)
            for pipe in pipes:
                begin(pipe)
            for pipe in pipes if number % 2 else reversed(pipes):
                seconds[pipe.name].append(timed(pipe))
        for name, theirs in seconds.items():
            if name:
                record(ratio(f"{text}{what} : {name}", target, seconds[""], theirs))


def test_pipeline_beside_unpacking(record: Record, ways: Ways, app_registry: Registry, *, short: bool) -> None:
    rounds = 1 if short else 2
    compare(record, ways(app_registry, UMOCI), TEXT, TARGET, rounds)


def test_pipeline_beside_charliecloud_and_podman(
    record: Record, ways: Ways, small_registry: Registry, *, short: bool
) -> None:
    others = OTHERS[1:] if short else OTHERS  # ch-convert compresses with gzip: half a minute
    compare(record, ways(small_registry, *others), f"{TEXT}, a small image", None, 1 if short else 2)


def test_memory_of_the_pipelines(record: Record, ways: Ways, app_registry: Registry, *, short: bool) -> None:
    app_registry.change(0)
    pipes = ways(app_registry, UMOCI)
    ours = peak(pipes[0].command, pipes[0].inside) / 1e6
    record(Row(f"{TEXT}, peak memory of all processes", None, "MB", ours, ours, ours))
    if not short:
        share = ours / (peak(pipes[1].command, pipes[1].inside) / 1e6)
        record(Row(f"{TEXT}, peak memory : {UMOCI}", None, "x", share, share, share))


def test_what_the_pipelines_write(
    record: Record, ways: Ways, small_registry: Registry, gluster: System, *, short: bool
) -> None:
    def share(what: str, ours: int, theirs: int) -> None:
        name = f"{TEXT}, a small image, {what} : {UMOCI}"
        record(Row(name, None, "x", ours / theirs, ours / theirs, ours / theirs))

    small_registry.change(0)
    pipes = ways(small_registry, UMOCI)
    requests = []
    for pipe in pipes:
        before = gluster.statistics()
        pipe.run()
        requests.append(gluster.requests(before))
    files = len(list(pipes[0].store.rglob("*")))
    record(Row(f"{TEXT}, files and directories there", MOST_FILES, "", files, files, files, gate=True))
    share("requests to GlusterFS", *requests)
    if not short:
        for pipe in pipes:
            pipe.forget()
        share("bytes written anywhere", *(sum(written(pipe.command, pipe.inside).values()) for pipe in pipes))
