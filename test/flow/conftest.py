"""No test with real commands may leave anything behind on the machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.helper import installed, site  # noqa: F401 - fixtures
from fixtures.rootfs import bare, box, tree  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0  # seconds: a FUSE server ends when the kernel tells it that its mount has gone


def traces() -> set[str]:
    """Return what commands could leave: mounts, loop devices, our servers."""
    found = {f"mount {line}" for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.add(f"{backing.parts[3]} of {backing.read_text().strip()}")
        except OSError:  # detached meanwhile
            continue
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            ours = name.startswith(("squashfuse", "sh-")) and process.stat().st_uid == os.getuid()
            if ours and (process / "cmdline").read_bytes():  # else it has ended, and its parent is slow to ask
                found.add(f"process {process.name} {name}")
        except OSError:  # ended meanwhile
            continue
    return found


@pytest.fixture(autouse=True)
def no_residue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test after which a mount, a loop device or a process stays that was not there before.

    On a system where others work at the same time (make check-evil), only of what bears a name of the tests'.
    """
    names = (
        ("process ", "shoebox-", str(tmp_path_factory.getbasetemp())) if request.config.getoption("--evil") else ("",)
    )

    def left() -> set[str]:
        return {trace for trace in traces() - before if any(name in trace for name in names)}

    before = traces()
    yield
    until = time.monotonic() + PATIENCE
    while left() and time.monotonic() < until:
        time.sleep(0.05)
    assert not left(), f"left behind: {sorted(left())}"
