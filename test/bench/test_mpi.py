"""Messages between two ranks of a node, inside beside outside: what the program itself measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.measure import SH_RUN, Record, Room, Row
from fixtures import mpi

TARGET = 1 / 0.95  # of the time that it takes outside
ROUNDS = 9
STARTERS = {
    "openmpi": ["mpirun.openmpi", "--bind-to", "core", "-n", "2"],
    "mpich": ["mpirun.mpich", "-bind-to", "core", "-n", "2"],
}
ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@pytest.fixture(scope="module", params=mpi.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Return a family of MPIs."""
    return request.param


@pytest.fixture(scope="module")
def image_of(room: Room, family: str) -> Path:
    """Return an image with that MPI."""
    if why := mpi.why_not():
        pytest.fail(why)
    return mpi.image(room.path / family, family, room.path / f"{family}.sqfs")


@pytest.mark.parametrize("what", ["latency", "bandwidth"])
def test_two_ranks_inside_beside_outside(
    room: Room, record: Record, family: str, image_of: Path, what: str, *, short: bool
) -> None:
    names = {"latency": "8 B ping-pong", "bandwidth": "64 KB messages"}
    program = room.path / family / mpi.PROGRAM[1:]
    inside: list[float] = []
    outside: list[float] = []
    for _ in range(3 if short else ROUNDS):
        for words, seconds in (([program], outside), ([SH_RUN, image_of, mpi.PROGRAM], inside)):
            said = room.run([*STARTERS[family], *words, what], **ENV)
            name, value, _, size = said.split()
            assert (name, size) == (what, "2"), said
            # microseconds a message, or nanoseconds a byte: less is better in both
            seconds.append(float(value) * 1e-6 if what == "latency" else 1e-9 / float(value))
    each = [a / b for a, b in zip(inside, outside, strict=True)]
    # The best of each: the ranks poll, and whatever else gets a processor makes one of them wait.
    share = min(inside) / min(outside)
    record(Row(f"{names[what]}, {family}, inside : outside", TARGET, "x", share, min(each), max(each), inside, outside))
