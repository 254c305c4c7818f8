"""make check-evil: what its report says, and that every hostile case has a test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.evil import CASES
from fixtures.installed import TREE

CONFTEST = """
import pytest
from fixtures.evil import Report
def pytest_configure(config):
    config.addinivalue_line("markers", "evil(number): x")
    config.addinivalue_line("markers", "root: x")
    config.pluginmanager.register(Report())
@pytest.fixture
def lacking():
    raise RuntimeError("no such thing")
@pytest.fixture
def littering():
    yield
    assert False
"""
SAFE = """
import subprocess, pytest
@pytest.mark.evil(60)
@pytest.mark.parametrize("n", [1, 2])
def test_all_is_well(n): pass
@pytest.mark.evil(61)
@pytest.mark.parametrize("n", [1, 2])
def test_half_is_tried(n):
    if n == 2: pytest.skip("odd")
@pytest.mark.evil(62)
def test_a_tool_is_missing(): subprocess.run(["no-such-tool"])
@pytest.mark.evil(63)
def test_cannot_begin(lacking): pass
def test_not_hostile(): assert False
"""
UNSAFE = """
@pytest.mark.evil(64)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_some_fail(n): assert n == 2
@pytest.mark.evil(65)
def test_leaves_something(littering): pass
"""


def report(tmp_path: Path, text: str) -> tuple[int, list[str]]:
    """Return the status and the lines of a run over these tests."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(text)
    words = [
        "-qq",
        "-rN",
        "--tb=no",
        "-o",
        "console_output_style=classic",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(TREE / "test"), "PATH": "/usr/bin:/bin"},
    )
    return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_safe_and_untried_cases_are_told_apart_and_the_status_is_0(tmp_path):
    status, lines = report(tmp_path, SAFE)
    assert status == 0, lines
    assert lines[:5] == [
        "SAFE 60 all is well",
        "SAFE 61 half is tried",
        "NOT TRIED 61 half is tried (1 of 2): odd",
        "NOT TRIED 62 a tool is missing: there is no no-such-tool",
        "NOT TRIED 63 cannot be set up: RuntimeError: no such thing".replace("63 ", "63 cannot begin: "),
    ]
    assert f"NOT TRIED 75 nothing of: {CASES[75]}" in lines
    assert lines[-1].endswith("2 SAFE, 0 UNSAFE, 3 NOT TRIED or not all of it")


def test_one_unsafe_case_makes_the_status_1(tmp_path):
    status, lines = report(tmp_path, SAFE + UNSAFE)
    assert status == 1, lines
    assert "UNSAFE 64 some fail [1, 3]" in lines
    assert "UNSAFE 65 leaves something" in lines
    assert lines[-1].endswith("2 SAFE, 2 UNSAFE, 3 NOT TRIED or not all of it")


@pytest.mark.parametrize("number", CASES)
def test_every_hostile_case_has_a_test(number):
    text = "".join(path.read_text() for path in (TREE / "test/flow").glob("test_*.py") if path.name != "test_evil.py")
    assert number in {int(one) for found in re.findall(r"evil\(([\d, ]+)\)", text) for one in found.split(",")}
