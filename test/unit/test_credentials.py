"""Credentials: found where docker and podman leave them, and shown to nobody."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from shoebox import credentials
from shoebox.fail import Fail

HUB = "registry-1.docker.io"


def encoded(pair: str) -> dict[str, str]:
    """Return an entry of `auths`."""
    return {"auth": base64.b64encode(pair.encode()).decode()}


class Home:
    """A user's files, and helpers on PATH."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.docker = root / "docker" / "config.json"
        self.podman = root / "run" / "containers" / "auth.json"
        self.bin = root / "bin"
        self.env = {"DOCKER_CONFIG": str(self.docker.parent), "XDG_RUNTIME_DIR": str(root / "run")}
        for directory in (self.docker.parent, self.podman.parent, self.bin):
            directory.mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")

    def helper(self, name: str, script: str) -> None:
        """Install a credential helper."""
        path = self.bin / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def find(self, host: str, repository: str = "a/b", **config: object) -> credentials.Credentials | None:
        """Write config.json, and look."""
        if config:
            self.docker.write_text(json.dumps(config))
        return credentials.find(host, repository, self.env)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


def test_nobody_is_somebody_without_files(home: Home) -> None:
    assert home.find("r.org") is None


@pytest.mark.parametrize("key", ["r.org:5000", "https://r.org:5000", "https://r.org:5000/v1/", "http://r.org:5000/v2/"])
def test_dockers_auths_are_read_however_the_host_is_written(home: Home, key: str) -> None:
    found = home.find("r.org:5000", auths={key: encoded("jane:pass:word")})
    assert found == credentials.Credentials("jane", "pass:word")
    assert home.find("r.org") is None


def test_docker_hub_has_names_of_its_own(home: Home) -> None:
    for key in ("https://index.docker.io/v1/", "docker.io", "index.docker.io"):
        found = home.find(HUB, auths={key: encoded("a:b")})
        assert found == credentials.Credentials("a", "b")


def test_the_entry_closest_to_the_repository_is_taken(home: Home) -> None:
    auths = {
        "r.org": encoded("all:1"),
        "r.org/a": encoded("a:2"),
        "r.org/a/b": encoded("b:3"),
        "r.org/a/c": encoded("c:4"),
    }
    assert [home.find("r.org", name, auths=auths).username for name in ("a/b", "a/x", "x")] == ["b", "a", "all"]


def test_tokens_and_plain_fields_are_read(home: Home) -> None:
    found = home.find("r.org", auths={"r.org": {**encoded("jane:"), "identitytoken": "id"}})
    assert (found.identity_token, found.basic) == ("id", "")
    assert home.find("r.org", auths={"r.org": {"registrytoken": "rt"}}).registry_token == "rt"
    assert home.find("r.org", auths={"r.org": {"username": "u", "password": "p"}}).basic == "Basic dTpw"


def test_podmans_file_goes_first_and_an_explicit_one_replaces_it(home: Home, tmp_path: Path) -> None:
    home.podman.write_text(json.dumps({"auths": {"r.org": encoded("podman:1")}}))
    assert home.find("r.org", auths={"r.org": encoded("docker:1"), "s.org": encoded("docker:2")}).username == "podman"
    assert home.find("s.org").username == "docker"
    (tmp_path / "mine.json").write_text(json.dumps({"auths": {"r.org": encoded("mine:1")}}))
    home.env["REGISTRY_AUTH_FILE"] = str(tmp_path / "mine.json")
    assert home.find("r.org").username == "mine"


def test_a_helper_is_asked_by_stdin_not_by_arguments(home: Home) -> None:
    home.helper("x", """read host; test "$*" = get && printf '{"Username": "%s", "Secret": "s"}' "$host" """)
    found = home.find("r.org", credHelpers={"r.org": "x"}, auths={"r.org": encoded("file:1")})
    assert found == credentials.Credentials("r.org", "s")
    assert home.find("s.org") is None


def test_a_store_is_asked_for_all_registries(home: Home) -> None:
    home.helper("store", """read host; printf '{"Username": "%s", "Secret": "s"}' "$host" """)
    assert home.find("r.org", credsStore="store").username == "r.org"
    assert home.find(HUB).username == "https://index.docker.io/v1/"


def test_a_helper_may_know_an_identity_token(home: Home) -> None:
    home.helper("x", """printf '{"Username": "<token>", "Secret": "id"}'""")
    assert home.find("r.org", credsStore="x") == credentials.Credentials(identity_token="id")


def test_a_store_that_does_not_know_the_registry_is_passed_over(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.helper("x", "echo 'credentials not found in native keychain'; exit 1")
    assert home.find("r.org", credsStore="x", auths={"r.org": encoded("file:1")}).username == "file"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "ended with status 3"),
        ("echo no json", "not JSON"),
        ("echo '[]'", "not as agreed"),
        (None, "cannot be run"),
    ],
)
def test_a_helper_that_does_not_work_is_said_and_passed_over(
    home: Home, capsys: pytest.CaptureFixture[str], script: str | None, why: str
) -> None:
    if script:
        home.helper("x", script)
    assert home.find("r.org", credsStore="x", auths={"r.org": encoded("file:1")}).username == "file"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"no credentials from 'docker-credential-x': {'it ' if script == 'exit 3' or not script else ''}" in said
    assert why in said


def test_a_helper_is_a_name_not_a_path(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.helper("x", f"touch {tmp_path}/ran")
    assert home.find("r.org", credsStore="x/../docker-credential-x") is None
    assert not (tmp_path / "ran").exists()
    assert "cannot be run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"auths": []}', '{"auths": {"r.org": 1}}', '{"auths": {"r.org": {"auth": "%"}}}', '{"credHelpers": 1}'],
)
def test_a_file_that_cannot_be_understood_is_told(home: Home, text: str) -> None:
    home.docker.write_text(text)
    with pytest.raises(Fail, match="cannot read the credentials"):
        home.find("r.org")


def test_a_secret_is_not_shown(home: Home) -> None:
    found = home.find(
        "r.org", auths={"r.org": {**encoded("jane:s3cret"), "identitytoken": "s3cret", "registrytoken": "s3cret"}}
    )
    assert "s3cret" not in repr(found)
