"""No test with real commands may leave anything behind on the machine."""

from __future__ import annotations

from fixtures.helper import installed, log, site
from fixtures.residue import no_residue
from fixtures.rootfs import bare, box, tree

__all__ = ["bare", "box", "installed", "log", "no_residue", "site", "tree"]  # fixtures
