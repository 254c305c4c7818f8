"""The simulation's small end beside what is measured here, and the counts that its large end is made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from bench import scaling
from bench.measure import SH_RUN, Room, Row, Table
from bench.scaling import Counts
from bench.starter import Starter
from bench.storms import Source
from fixtures.dfs import System

READERS = (1, 2, 4)
PACKAGES = {True: 40, False: 200}  # in the short form and in the long one; each has two modules
FACTOR = 3  # within which prediction and measurement should be
REAL = "numpy, scipy.linalg, pandas"
PROBES = 30  # directories, each with two files and two bytecodes
PYTHON = ("/usr/bin/python3", "-IS", "-B", "-c")
PROBE = """
import os, pathlib
for n in range({count}):
    os.path.exists('{at}/probe/absent%s' % n)
    for path in pathlib.Path('{at}/probe/p%s' % n).rglob('*.py*'):
        path.read_bytes()
"""


@dataclass(frozen=True)
class Cluster:
    """A GlusterFS with a tree, the same as an image, and some small files; and nodes, each a client of its own."""

    system: System
    nodes: list[Path]
    started: Starter
    packages: int
    local: Path

    def cold(self) -> None:
        """Let no client, and not the kernel, have anything in memory."""
        for node in self.nodes:
            self.system.remount(node)
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def code(self, tree: Path) -> list[str]:
        """Return what imports all packages of a tree."""
        names = ", ".join(f"p{number}" for number in range(self.packages))
        return [*PYTHON, f"import sys; sys.path.insert(0, '{tree}'); import {names}"]

    def run(self, commands: list[list[str]]) -> tuple[float, int, int]:
        """Run commands at once; return the seconds, the requests and the bytes that they took."""
        before = self.system.statistics()
        wall, _ = self.started.together(commands)
        after = self.system.statistics()
        return wall, self.system.requests(before), after["bytes"] - before["bytes"]

    def read_trees(self, readers: int) -> tuple[float, int, int]:
        """Import from the tree on so many nodes, cold."""
        self.cold()
        return self.run([self.code(node / "tree") for node in self.nodes[:readers]])

    def read_images(self, readers: int) -> tuple[float, int, int]:
        """Import from the image on so many nodes, cold: mounted by FUSE, as sh-run does it."""
        self.cold()
        with mounted(
            [(node / "image.sqfs", node.parent / f"{node.name}-image") for node in self.nodes[:readers]]
        ) as at:
            return self.run([self.code(place) for place in at])

    def locally(self, name: str) -> float:
        """Import from a copy on this machine's disk, in memory by then: the seconds of what is no file system's."""
        if name == "tree":
            return self.started.start(*self.code(self.local))[0]
        with mounted([(self.local.with_suffix(".sqfs"), self.local.parent / "local-image")]) as at:
            return self.started.start(*self.code(at[0]))[0]

    def probe(self, readers: int) -> tuple[float, int, int]:
        """Walk and read some files, one after the other, on so many nodes, cold: another work, which tells rates."""
        self.cold()
        return self.run([[*PYTHON, PROBE.format(count=PROBES, at=node)] for node in self.nodes[:readers]])


@contextmanager
def mounted(images: list[tuple[Path, Path]]) -> Iterator[list[Path]]:
    """Have images served at new directories."""
    with ExitStack() as at_end:
        for image, at in images:
            at.mkdir()
            at_end.callback(at.rmdir)
            subprocess.run(["squashfuse_ll", image, at], check=True)
            at_end.callback(subprocess.run, ["umount", at], check=True)
        yield [at for _, at in images]


@pytest.fixture(scope="module")
def cluster(gluster: System, room: Room, started: Starter, *, short: bool) -> Iterator[Cluster]:
    """Return as many nodes as there may be readers."""
    count = PACKAGES[short]
    local = room.path / "modules"
    for number in range(count):
        (local / f"p{number}").mkdir(parents=True)
        (local / f"p{number}/__init__.py").write_text("from . import part\n")
        lines = "".join(f"def f{n}(x):\n    return x + {number + n}\n" for n in range(40))
        (local / f"p{number}/part.py").write_text(lines)
    subprocess.run([PYTHON[0], "-m", "compileall", "-q", local], check=True)
    subprocess.run(["cp", "-r", local, gluster.mounted / "tree"], check=True)
    (gluster.mounted / "probe").mkdir()
    some = [local / f"p{number}" for number in range(PROBES)]
    subprocess.run(["cp", "-r", *some, gluster.mounted / "probe"], check=True)
    room.run(["sh-flatten", "-o", room.path / "modules.sqfs", local])
    subprocess.run(["cp", room.path / "modules.sqfs", gluster.mounted / "image.sqfs"], check=True)
    nodes = [room.path / f"node{number}" for number in range(max(READERS))]
    for node in nodes:
        gluster.mount(node)
    yield Cluster(gluster, nodes, started, count, local)
    for node in nodes:
        gluster.unmount(node)


def test_the_simulation_beside_what_is_measured(
    record: Callable[[Row], None], figures: Callable[[Table], None], cluster: Cluster, *, short: bool
) -> None:
    most, cores = max(READERS), len(os.sched_getaffinity(0))
    works = {"tree": cluster.read_trees, "image": cluster.read_images}
    found: dict[tuple[str, int], list[tuple[float, int, int]]] = {}
    compute: dict[str, list[float]] = {"": [], "tree": [], "image": []}
    for _ in range(1 if short else 3):  # all of it, and again: others' load drifts
        compute[""] += [cluster.started.start(*PYTHON, "import pathlib")[0] for _ in range(3)]
        for name, work in {"probe": cluster.probe, **works}.items():
            for readers in READERS:
                found.setdefault((name, readers), []).append(work(readers))
        for name in works:
            cluster.locally(name)
            compute[name] += [cluster.locally(name) for _ in range(3)]
    bare = median(compute[""])
    latency = median((wall - bare) / requests for wall, requests, _ in found["probe", 1])
    capacity = median(requests / (wall - bare) for wall, requests, _ in found["probe", most])
    table: dict[str, list[float | None]] = {}
    for name in works:
        requests = median(one[1] for one in found[name, 1])
        walls = {readers: median(one[0] for one in found[name, readers]) for readers in READERS}
        alone = median(compute[name])
        said = {readers: scaling.here(readers, cores, alone, requests, latency, capacity) for readers in READERS}
        table[f"{name}, measured"] = list(walls.values())
        table[f"{name}, predicted"] = list(said.values())
        off = [max(walls[readers] / said[readers], said[readers] / walls[readers]) for readers in READERS]
        text = f"start of 1, 2, 4 readers of GlusterFS, {name}, predicted and measured: the worst ratio"
        record(Row(text, FACTOR, "x", max(off), min(off), max(off)))
    figures(Table("Start of readers, cold, each a client of GlusterFS", "seconds", tuple(map(str, READERS)), table))


def test_what_the_large_end_is_made_from(
    cluster: Cluster,
    room: Room,
    counts: Callable[[Counts], None],
    request: pytest.FixtureRequest,
    *,
    short: bool,
) -> None:
    if short:
        pytest.skip("of the real image, which is in the long form only")
    image = request.getfixturevalue("image")
    _, first, _ = cluster.read_trees(1)
    cluster.cold()
    _, several, _ = cluster.run([cluster.code(cluster.nodes[0] / "tree")] * 4)
    there = cluster.system.mounted / "real.sqfs"
    shutil.copyfile(image, there)
    code = f"import sys; sys.path.append('/usr/lib/python3/dist-packages'); import {REAL}"
    asked = Source(
        [str(SH_RUN), "--mount=fuse", "--image", str(there)], cluster.started, code, cluster.system, ours=True
    )
    cost = asked.first(1)
    there.unlink()
    words = [SH_RUN, "--mount=fuse", image, "--", *PYTHON, f"{code}; print(len(sys.modules))"]
    modules = int(room.run(words))
    start = time.perf_counter()
    room.run(words)
    compute = time.perf_counter() - start
    share = modules / (2 * cluster.packages)
    counts(
        Counts(
            modules=modules,
            first=first * share,
            more=max(several - first, 0) / 3 * share,
            data=cost.bytes,
            image_requests=cost.requests,
            image_bytes=cost.bytes,
            size=image.stat().st_size,
            compute=compute,
        )
    )
