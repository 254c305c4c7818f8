"""What every test has at hand: the installed commands, and a home of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.evil import Report
from fixtures.installed import Shell, make_install
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# The tree may be read-only, and the machine busy.
settings.register_profile("shoebox", database=None, deadline=None)
settings.load_profile("shoebox")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --evil, and what test/drill has."""
    parser.addoption("--evil", action="store_true", help="the hostile cases only: SAFE or UNSAFE")
    parser.addoption("--drill", choices=("short", "full"), help="length of the failure drills, and show their figures")
    parser.addoption("--seed", type=int, default=0, help="let the dice of the drills fall as they did for this number")


def pytest_configure(config: pytest.Config) -> None:
    """Undo what shells do to background jobs, and nohup(1) to all: what the tests start ignores no signal."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    if config.getoption("--evil"):
        config.pluginmanager.register(Report())


@pytest.fixture(scope="session")
def prefix() -> Iterator[Path]:
    """Return where a copy of the commands is installed; `make test` names one that its two runs share."""
    if "SHOEBOX_TEST_PREFIX" in os.environ:
        yield Path(os.environ["SHOEBOX_TEST_PREFIX"])
        return
    with tempfile.TemporaryDirectory(prefix="shoebox-prefix-") as made:
        os.chmod(made, 0o755)  # for the users that tests become
        make_install(Path(made))
        yield Path(made)


@pytest.fixture
def cmd(prefix: Path, tmp_path: Path) -> Shell:
    """Return a shell of the test's own."""
    home = tmp_path / "home"
    (home / ".run").mkdir(parents=True, mode=0o700)
    (home / ".run").chmod(0o700)
    env = {
        "PATH": f"{prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / ".run"),
        "SHOEBOX_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "LANG": "C.UTF-8",
    }
    return Shell(home, env)
