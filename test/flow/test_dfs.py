"""The distributed file systems that tests and benchmarks have are real ones, do not meet, and leave nothing."""

from __future__ import annotations

import subprocess

import pytest
from fixtures import dfs, glusterfs, moosefs
from fixtures.helper import USER
from fixtures.nodes import need

pytestmark = pytest.mark.root
WORDS = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]


def works(system: dfs.System) -> None:
    """Check that a user's file arrives at the bricks and at another client, and that the servers count it."""
    mine, other = system.directory(USER), system.where / "other"
    before = system.statistics()
    assert system.requests(before) <= 4, "what asks for the figures costs next to nothing itself"
    words = [*WORDS, "dd", "if=/dev/urandom", f"of={mine}/file", "bs=64k", "count=16", "status=none", "conv=fsync"]
    subprocess.run(words, check=True)
    after = system.statistics()
    assert 2 <= system.requests(before) < 200
    assert after["bytes"] - before["bytes"] > 1 << 20
    assert sum(path.stat().st_size for path in system.where.glob("brick*/**/*") if path.is_file()) > 1 << 20
    system.mount(other)
    there = subprocess.check_output([*WORDS, "cat", other / mine.name / "file"])
    assert there == subprocess.check_output([*WORDS, "cat", mine / "file"])
    assert len(there) == 1 << 20
    assert system.statistics()["bytes"] - after["bytes"] > 1 << 20
    system.remount()
    assert (system.mounted / mine.name).is_dir()


def test_a_glusterfs_that_squashes_root_comes_and_goes() -> None:
    need(glusterfs.why_not())
    with glusterfs.volume("server.root-squash=on") as system:
        system.directory(USER)
        with pytest.raises(PermissionError):
            (system.mounted / "file").touch()
    assert not system.where.exists()


def test_a_moosefs_comes_and_goes() -> None:
    need(moosefs.why_not())
    with moosefs.volume() as system:
        works(system)
    assert not system.where.exists()
