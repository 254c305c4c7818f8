"""The documents say what happens: every example in them is run, and its output compared."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.docimage import debian
from fixtures.images import push
from fixtures.registry import registry  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fixtures.installed import Shell
    from fixtures.registry import Place

DOC = Path(__file__).parent.parent.parent / "doc"


@pytest.fixture(scope="module")
def hub(registry: Place) -> Place:  # noqa: F811
    """Return a registry that has what the examples pull."""
    push(registry.url, "library/debian", "12", debian())
    return registry


@pytest.fixture
def desk(hub: Place, cmd: Shell, tmp_path: Path) -> Shell:
    """Return a user's shell whose Docker Hub is the registry; /scratch is below the test's own directory."""
    config = cmd.home / ".config" / "shoebox"
    config.mkdir(parents=True)
    (config / "registries.toml").write_text(f'[registry."docker.io"]\nurl = "{hub.url}"\ninsecure-http = true\n')
    (tmp_path / "scratch" / "images").mkdir(parents=True)
    (cmd.home / "refs.txt").write_text("debian:12\nno/such:image\n")
    return cmd


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield (command, expected output) of the console blocks of a page."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, want = part.partition("\n")
            yield command, want


def test_the_tutorial_does_what_it_says(desk: Shell, tmp_path: Path) -> None:
    checker = doctest.OutputChecker()
    room = str(tmp_path / "scratch")
    env = dict(desk.env)
    count = 0
    for command, want in steps((DOC / "tutorial.md").read_text()):
        count += 1
        typed = command.replace("/scratch", room)
        script = f"set -o pipefail\n{typed}\nstatus=$?\nexport -p > {tmp_path}/exported\nexit $status"
        if os.path.exists(tmp_path / "exported"):
            script = f". {tmp_path}/exported\n{script}"
        done = subprocess.run(
            ["bash", "-c", script],
            env=env,
            cwd=desk.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        got = done.stdout.replace(room, "/scratch")
        assert done.returncode == 0, f"$ {command}\n{got}"
        assert checker.check_output(want, got, doctest.ELLIPSIS), f"$ {command}\n{got}--- expected:\n{want}"
    assert count > 20
