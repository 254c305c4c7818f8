"""What the measurements share: a place, an image, a registry that has it; in the end the report."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
from bench import report, scaling, starter
from bench.measure import BenchmarkFixture, Room, Row, Table, Work, ratio, remove, side_by_side
from bench.starter import Site, Starter
from fixtures import glusterfs, images, moosefs
from fixtures.dfs import System
from fixtures.installed import TREE
from fixtures.registry import docker_registry
from fixtures.rootfs import make_tree

BUILD = TREE / "build" / "bench"
ROWS = pytest.StashKey[list[Row]]()
TABLES = pytest.StashKey[list[Table]]()
COUNTS = pytest.StashKey[scaling.Counts]()
FACTS = pytest.StashKey[dict[str, str]]()
LDD = ("ldd", "/usr/bin/python3")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --short."""
    parser.addoption("--short", action="store_true", help="a small image, few rounds: minutes")


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no rows."""
    config.stash[ROWS], config.stash[TABLES], config.stash[FACTS] = [], [], {}


def whole(reporter: pytest.TerminalReporter, config: pytest.Config) -> bool:
    """Tell whether this was all of the long form, and went well: else the page keeps its figures."""
    amiss = ("failed", "error", "skipped", "deselected", "xfailed")
    files = {test.location[0] for test in reporter.stats.get("passed", [])}
    everything = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    done = not any(reporter.stats.get(what) for what in amiss) and {Path(file).name for file in files} == everything
    return done and not config.getoption("--short")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table and write it; the long form also renews the page's figures."""
    found = config.stash[ROWS], config.stash[TABLES], config.stash[FACTS] | report.machine(TREE)
    if found[0] or found[1]:
        report.write(BUILD / "results", *found)
        terminalreporter.write_line("\n" + report.text(*found[:2]))
    left_out: dict[str, set[str]] = {}
    for skipped in terminalreporter.stats.get("skipped", []):
        name = skipped.location[2].partition("[")[0].removeprefix("test_").replace("_", " ")
        left_out.setdefault(skipped.longrepr[2].removeprefix("Skipped: "), set()).add(name)
    for why, names in left_out.items():
        terminalreporter.write_line(f"left out ({why}): {'; '.join(sorted(names))}")
    if whole(terminalreporter, config):
        report.write(TREE / "doc" / "performance", *found)
        report.renew(TREE / "doc" / "performance.md", *found)
        scaling.write(TREE / "doc" / "scaling", config.stash[COUNTS])


@pytest.fixture(scope="session")
def short(pytestconfig: pytest.Config) -> bool:
    """Return whether this is the short form."""
    return bool(pytestconfig.getoption("--short"))


@pytest.fixture(scope="session")
def room() -> Iterator[Room]:
    """Return a place for everything that is made to be thrown away."""
    where = BUILD / "work"
    remove(where)
    (where / "home").mkdir(parents=True)
    env = {
        "PATH": f"{TREE}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": f"{where}/home",
        "USER": getpass.getuser(),
        "SHOEBOX_CACHE": f"{where}/cache",
        "TMPDIR": str(where),
        "LANG": "C.UTF-8",
    }
    yield Room(where, env)
    remove(where)


@pytest.fixture(scope="session")
def tree(room: Room) -> Path:
    """Return a small root file system as a directory."""
    made = make_tree(room.path / "tree")
    for name in ("hosts", "resolv.conf"):
        (made / "etc" / name).unlink()
        (made / "etc" / name).touch()
    return made


@pytest.fixture(scope="session")
def small_layout(room: Room, tree: Path) -> Path:
    """Return a layout with an image `real:1` of busybox and the machine's Python."""
    packed = ["tar", "-c", "--owner=0", "--group=0", "-C"]
    python = [str(path)[1:] for path in Path("/usr/lib").glob("python3*")]
    interpreter = ["usr/bin/python3", *re.findall(r"/(\S+\.so\S*)", subprocess.check_output(LDD, text=True))]
    # ch-image refuses an image with a link out of it
    parts = ((tree, "--exclude=./away", "."), ("/", *python), ("/", "--dereference", *interpreter))
    layers = [subprocess.check_output([*packed, *what]) for what in parts]
    made = images.image(*layers, images.tar({"etc/motd": b"Hello\n"}))
    return images.to_layout(room.path / "layout", **{"real:1": made})


@pytest.fixture(scope="session")
def layout(request: pytest.FixtureRequest, *, short: bool) -> Path:
    """Return the layout that has `real:1`: the real one, or, in the short form, the small one."""
    if short:
        return request.getfixturevalue("small_layout")
    return Path(os.environ.get("SHOEBOX_BENCH_LAYOUT") or TREE / "build" / "real")


@pytest.fixture(scope="session")
def image(pytestconfig: pytest.Config, room: Room, layout: Path) -> Path:
    """Return the image as a squashfs."""
    path = room.path / "image.sqfs"
    room.run(["sh-flatten", "-o", path, f"oci:{layout}:real:1"])
    with path.open("rb") as file:
        inodes = int.from_bytes(file.read(8)[4:], "little")
    layers = sum(f.stat().st_size for f in (layout / "blobs" / "sha256").iterdir()) / 1e6
    fact = f"{inodes:,} inodes, {layers:,.0f} MB of layers, {path.stat().st_size / 1e6:,.0f} MB as squashfs"
    pytestconfig.stash[FACTS]["image"] = fact
    return path


@pytest.fixture(scope="session")
def pushed(room: Room, layout: Path) -> Iterator[str]:
    """Return the reference of the image in a registry on loopback."""
    with docker_registry(room.path / "registry") as place:
        copy = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
        room.run([*copy, f"oci:{layout}:real:1", f"docker://{place.host}/real:1"])
        yield f"{place.host}/real:1"


@pytest.fixture(scope="session")
def started(room: Room) -> Iterator[Starter]:
    """Return what starts commands, where a user does."""
    with starter.starter(room.path / "home", room.env) as made:
        yield made


@pytest.fixture(scope="session")
def site(image: Path) -> Iterator[Site]:
    """Return an ordinary user of a site that has sh-mount, and the image."""
    if os.geteuid():
        pytest.skip("only root can install sh-mount for a while")
    with tempfile.TemporaryDirectory(prefix="shoebox-bench-") as where, starter.site(Path(where), image) as made:
        yield made


@pytest.fixture
def record(pytestconfig: pytest.Config) -> Callable[[Row], None]:
    """Return what takes a row into the table; one that is a gate must meet its target."""

    def take(row: Row) -> None:
        pytestconfig.stash[ROWS].append(row)
        assert row.met or not row.gate, f"{row.work}: {row.value:,} {row.unit}, must be {row.sense} {row.target:,}"

    return take


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Callable[[Table], None]:
    """Return what takes a table of plain figures."""
    return pytestconfig.stash[TABLES].append


@pytest.fixture
def counts(pytestconfig: pytest.Config) -> Callable[[scaling.Counts], None]:
    """Return what takes the counts that doc/scaling.md is made from."""
    return lambda found: pytestconfig.stash.__setitem__(COUNTS, found)


@pytest.fixture
def beside(
    benchmark: BenchmarkFixture, room: Room, record: Callable[[Row], None], *, short: bool
) -> Callable[..., None]:
    """Return what measures two works side by side, and records the row. judge: ratio, or gain."""

    def compare(
        work: str,
        target: float | None,
        ours: Work,
        theirs: Work,
        rounds: int,
        place: Callable[[], Path] = room.fresh,
        judge: Callable[..., Row] = ratio,
    ) -> None:
        if short:
            rounds = min(rounds, max(2, rounds // 4))
        row = judge(work, target, *side_by_side(benchmark, ours, theirs, place, rounds))
        benchmark.extra_info.update(asdict(row))
        record(row)

    return compare


@pytest.fixture(scope="session")
def systems(short: bool) -> Iterator[dict[str, System]]:
    """Return distributed file systems by kind; in the short form there is GlusterFS only."""
    if os.geteuid():
        pytest.skip("only root can start a distributed file system")
    with ExitStack() as up:
        kinds = [glusterfs] if short else [glusterfs, moosefs]
        for kind in kinds:
            if why := kind.why_not():
                pytest.fail(why)
        made = [up.enter_context(kind.volume()) for kind in kinds]
        yield {system.kind: system for system in made}


@pytest.fixture(scope="session")
def gluster(systems: dict[str, System]) -> System:
    """Return the GlusterFS."""
    return systems["GlusterFS"]
