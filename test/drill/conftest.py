"""How long the drills are, and the table of their figures."""

from __future__ import annotations

import random

import pytest
from fixtures import drills
from fixtures.registry import registry  # noqa: F401 - a fixture
from fixtures.residue import no_residue  # noqa: F401 - a fixture

ROWS = pytest.StashKey[list[drills.Figures]]()


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> drills.Drill:
    """Return this test's length, dice and row of figures; what fails says how the dice fell."""
    full, seed = request.config.getoption("--drill") == "full", request.config.getoption("--seed")
    rows = request.config.stash.setdefault(ROWS, [])
    name = request.node.name.removeprefix("test_").replace("_", " ")
    made = drills.Drill(full, seed or random.SystemRandom().randrange(1 << 32), name, rows)
    print(f"again with --seed={made.seed}")
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    rows = config.stash.get(ROWS, [])
    if rows and config.getoption("--drill"):
        terminalreporter.section("drills")
        for line in drills.table(rows):
            terminalreporter.write_line(line)
