"""A cluster for all tests of this folder, which nothing may be left on."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from fixtures import slurm as real
from fixtures.nodes import need
from fixtures.rootfs import box, tree  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def up(prefix: Path, box: Path) -> Iterator[real.Cluster]:  # noqa: F811 - the fixture
    """Return a cluster with an image in its store: for all tests."""
    need(real.why_not())
    with real.cluster(prefix) as made:
        shutil.copy(box, made.where / "store/box.sqfs")
        yield made


@pytest.fixture
def slurm(up: real.Cluster) -> Iterator[real.Cluster]:
    """Return the cluster; what a test leaves in the queue is cancelled, what it leaves on a node fails it."""
    yield up
    up("scancel", "-u", up.user)
    assert up.clean(), f"left behind: {up.left()}"
    (up.where / "plugstack.conf").write_text("")


@pytest.fixture
def image(slurm: real.Cluster) -> str:
    """Return the path of an image that all nodes see."""
    return str(slurm.where / "store/box.sqfs")


@pytest.fixture(scope="session")
def built(up: real.Cluster) -> Path:
    """Compile the plugin where all nodes have it; return its path there."""
    return real.plugin(up.where)


@pytest.fixture
def plugged(slurm: real.Cluster, built: Path) -> real.Cluster:
    """Return the cluster with the plugin in use."""
    (slurm.where / "plugstack.conf").write_text(f"required {built}\n")
    return slurm
