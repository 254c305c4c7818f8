"""The tour with Slurm says what happens: every example in it is run on a cluster, and its output compared."""

from __future__ import annotations

import re
import shutil

import pytest
from fixtures import slurm as real
from fixtures.installed import TREE

pytestmark = pytest.mark.root


@pytest.fixture
def site(prefix, box):
    """Return a cluster with the plugin, and an image of this name in its store."""
    if why := real.why_not():
        pytest.skip(why)

    def more(where):
        (where / "plugstack.conf").write_text(f"required {real.plugin(where)}\n")
        shutil.copy(box, where / f"store/sha256-{'1' * 64}.sqfs")
        link = where / "store/docker.io/library/app/1.1.sqfs"
        link.parent.mkdir(parents=True)
        link.symlink_to(f"../../../sha256-{'1' * 64}.sqfs")

    with real.cluster(prefix, ("n1", "n2"), more=more, PrologFlags="NoHold") as made:
        yield made


def test_the_tour_does_what_it_says(site):
    assert real.does_what_it_says(site, (TREE / "doc/slurm.md").read_text()) == 16


def test_the_commands_for_the_site_are_those_of_the_makefile_and_the_manual_page():
    text = (TREE / "doc/slurm.md").read_text()
    assert re.search(r"^install-spank", (TREE / "Makefile").read_text(), re.MULTILINE)
    page = (TREE / "doc/spank_shoebox.8").read_text()
    for word in ("containers=", "shifter", "pyxis"):
        assert f"`{word}`" in text
        assert f"Cm {word}" in page
