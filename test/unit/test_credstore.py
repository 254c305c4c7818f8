"""Credentials kept: what others write meanwhile is not lost, and what a word means as a registry."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from shoebox import credstore
from shoebox.credentials import Credentials, find
from shoebox.fail import LATER, USAGE, Fail

JANE = Credentials("jane", "s3cret:ü")


def test_what_another_program_writes_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"auths": {"a": {}}}')
    others = [{"auths": {"a": {}, "b": {}}, "x": 1}]

    def edit(document: dict[str, object]) -> None:
        if others:
            path.write_text(json.dumps(others.pop()))
        document["ours"] = 2

    credstore._change(str(path), edit)
    assert json.loads(path.read_text()) == {"auths": {"a": {}, "b": {}}, "x": 1, "ours": 2}
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_never_stays_is_left_for_later(tmp_path: Path) -> None:
    path, count = tmp_path / "config.json", 0

    def edit(_document: dict[str, object]) -> None:
        nonlocal count
        count += 1
        path.write_text(json.dumps({"x": "y" * count}))

    with pytest.raises(Fail, match="other programs keep changing it") as caught:
        credstore._change(str(path), edit)
    assert caught.value.status == LATER
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("host", ["r.org", "r.org:5000", "[::1]:5000", "registry-1.docker.io"])
def test_what_is_stored_is_found_and_what_is_erased_is_not(tmp_path: Path, host: str) -> None:
    env = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    assert not credstore.erase(host, env)
    assert credstore.store(host, JANE, env) == (str(tmp_path / "docker/config.json"), True)
    assert find(host, "a/b", env) == JANE
    assert credstore.erase(host, env)
    assert find(host, "a/b", env) is None


@pytest.mark.parametrize(
    ("word", "host"),
    [
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("quay.io", "quay.io"),
        ("https://r.org:5000/v2/", "r.org:5000"),
        ("localhost", "localhost"),
        ("", None),
        ("r.org/a", None),
        ("a@b.org", None),
        ("-x.org", None),
        ("word", None),
    ],
)
def test_a_word_is_a_registry_as_references_write_it_or_wrong(word: str, host: str | None) -> None:
    if host:
        assert credstore.registry(word) == host
    else:
        with pytest.raises(Fail, match="not a registry") as caught:
            credstore.registry(word)
        assert caught.value.status == USAGE
