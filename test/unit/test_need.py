""".ci/need, with a package manager and an id(1) of the test's own."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from fixtures.installed import TREE


@pytest.fixture
def need(tmp_path):
    """Return a function that runs .ci/need with these fakes on PATH, a table of two packages, as this uid."""

    def run(manager: str, uid: int, *present: str) -> subprocess.CompletedProcess[str]:
        shutil.copy(TREE / ".ci/need", tmp_path)
        (tmp_path / "packages").write_text("# a comment\none a-one d-one demo test\n/nowhere/t*o|/no a-two - test\n")
        fakes = {"id": f"echo {uid}", manager: 'echo "$0 $*" >>"$0.log"'} | dict.fromkeys(present, "")
        for name, line in fakes.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
        words = ["/bin/sh", tmp_path / "need"]
        return lambda target: subprocess.run(
            [*words, target], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )

    return run


def test_who_is_not_root_is_told_the_packages_in_one_line(need):
    done = need("apt-get", 1000)("test")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "make test: please have these packages installed: a-one a-two\n"


def test_root_gets_them_installed_by_dnf(need, tmp_path):
    assert need("dnf", 0)("demo").returncode == 0
    assert (tmp_path / "dnf.log").read_text().endswith("/dnf install -y -q d-one\n")


def test_a_package_that_the_distribution_lacks_is_named(need, tmp_path):
    done = need("dnf", 0)("test")
    assert (done.returncode, (tmp_path / "dnf.log").exists()) == (1, False)
    assert "no package of this distribution has /nowhere/t*o|/no" in done.stderr


def test_nothing_happens_when_all_is_there(need, tmp_path):
    done = need("dnf", 0, "one")("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "dnf.log").exists()
