"""A Grid Engine for all tests of this folder, on whose nodes nothing may be left."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from fixtures import gridengine as real
from fixtures.nodes import need
from fixtures.rootfs import box, tree  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def up(prefix: Path, box: Path) -> Iterator[real.Grid]:  # noqa: F811 - the fixture
    """Return a Grid Engine with an image in its store: for all tests."""
    need(real.why_not())
    with real.grid(prefix) as made:
        shutil.copy(box, made.where / "store/box.sqfs")
        yield made


@pytest.fixture
def grid(up: real.Grid) -> Iterator[real.Grid]:
    """Return it; what a test leaves in the queue is cancelled, what it leaves on a node fails it."""
    yield up
    up("qdel", "-u", up.user)
    assert up.clean(30), f"left behind: {up.left()}"


@pytest.fixture
def image(grid: real.Grid) -> str:
    """Return the path of an image that all nodes see."""
    return str(grid.where / "store/box.sqfs")
