"""What was pulled with credentials is private, from the registry to the store; pulling again never opens it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.images import image, push, tar
from fixtures.registry import (
    PASSWORD,
    USER,
    Answer,
    Place,
    Seen,
    Server,
    docker_registry,
    front,
    htpasswd,
    locked_registry,
    registry,
    token_registry,
)

from shoebox import parts, writable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fixtures.installed import Shell

__all__ = ["locked_registry", "registry", "token_registry"]  # fixtures
LAYER = tar({"noise": bytes(range(256)) * 400})
BASIC = "Basic amFuZTpzM2NyZXQ6cGFzcyB3b3Jk"  # USER:PASSWORD


def log_in(cmd: Shell, host: str) -> None:
    """Give the user a password for a registry, and let him reach it by http."""
    (cmd.home / ".docker").mkdir(exist_ok=True)
    (cmd.home / ".docker/config.json").write_text(json.dumps({"auths": {host: {"auth": BASIC.split()[1]}}}))


def private(line: str) -> bool:
    """Tell whether the layout that sh-pull printed says that it is private."""
    (entry,) = json.loads((Path(line.split(":")[1]) / "index.json").read_text())["manifests"]
    return "shoebox.private" in entry["annotations"]


def bits(where: Path) -> set[int]:
    """Return the permissions of the files in a directory."""
    return {stat.S_IMODE(path.stat().st_mode) for path in where.iterdir() if path.is_file()}


def blobs(cmd: Shell) -> Path:
    return Path(cmd.env["SHOEBOX_CACHE"]) / "oci/blobs/sha256"


class Gate:
    """Stands before an open registry; when it is closed, it wants a password."""

    closed = False

    def __call__(self, seen: Seen, ask: object) -> Answer:
        if self.closed and seen.authorization != BASIC:
            return Answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})
        return ask()


@pytest.fixture
def gate(cmd: Shell, registry: Place) -> Iterator[tuple[Gate, str]]:
    """Return a gate, and the reference of an image behind it."""
    made = Gate()
    with front(registry, made) as server:
        push(registry.url, "gated", "1", image(LAYER))
        log_in(cmd, server.host)
        yield made, f"{server.host}/gated:1"


def test_what_a_locked_registry_gave_is_private_all_the_way(cmd: Shell, locked_registry: Place, tmp_path: Path) -> None:
    host, ca = locked_registry.host, locked_registry.ca
    ref = push(locked_registry.url, "mine", "1", image(LAYER), auth=(USER, PASSWORD), verify=str(ca))
    (cmd.home / ".config/shoebox").mkdir(parents=True)
    (cmd.home / ".config/shoebox/registries.toml").write_text(f'[registry."{host}"]\nca = "{ca}"\n')
    log_in(cmd, host)
    layout = cmd.ok("sh-pull", ref)
    assert private(layout)
    assert bits(blobs(cmd)) == {0o600}
    made = Path(cmd.ok("sh-flatten", layout))
    assert bits(made.parent) == {0o600}
    staged = Path(cmd.ok("sh-stage", "-d", tmp_path / "store", made))
    assert bits(staged.parent) == {0o600}
    (tmp_path / "out").mkdir()
    cmd.ok("sh-flatten", "-o", tmp_path / "out/app.sqfs", layout)
    assert bits(tmp_path / "out") == {0o600}
    # and so is what is built on it
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / writable.CHANGES).write_bytes(tar({"new": b"new"}))
    changed = Path(cmd.ok("sh-flatten", f"--changes={tmp_path}/kept", made))
    assert changed != made
    assert bits(made.parent) == {0o600}


@pytest.mark.parametrize("repository", ["open/app", "private/app"])
def test_with_tokens_an_image_is_private_if_nobody_gets_one_without_a_password(
    cmd: Shell, token_registry: tuple[Place, Server], repository: str
) -> None:
    place, tokens = token_registry
    scope = f"repository:{repository}:pull,push"
    answer = tokens.answer(Seen("GET", f"/token?scope={scope}", {"Authorization": BASIC}))

    def sign(request: object) -> object:
        request.headers["Authorization"] = f"Bearer {json.loads(answer.body)['token']}"
        return request

    ref = push(place.url, repository, "1", image(LAYER), auth=sign)
    log_in(cmd, place.host)
    assert private(cmd.ok("sh-pull", ref)) == (repository == "private/app")


def test_who_needs_no_password_asks_once_and_nothing_is_private(cmd: Shell, gate: tuple[Gate, str]) -> None:
    layout = cmd.ok("sh-pull", gate[1])
    assert not private(layout)
    assert 0o600 not in bits(blobs(cmd))
    assert stat.S_IMODE(Path(cmd.ok("sh-flatten", layout)).stat().st_mode) & 0o004


def test_pulling_again_makes_what_was_public_private_and_never_the_other_way(
    cmd: Shell, gate: tuple[Gate, str], tmp_path: Path
) -> None:
    door, ref = gate
    made = Path(cmd.ok("sh-flatten", cmd.ok("sh-pull", ref)))
    assert bits(made.parent) != {0o600}
    door.closed = True
    layout = cmd.ok("sh-pull", ref)
    assert private(layout)
    assert bits(blobs(cmd)) == {0o600}
    assert cmd.ok("sh-flatten", layout) == str(made)
    assert bits(made.parent) == {0o600}
    door.closed = False
    assert cmd.ok("sh-pull", ref) == layout
    assert private(layout)
    assert bits(blobs(cmd)) == {0o600}
    (Path(layout.split(":")[1]) / "index.json").unlink()  # all of it gone, it is as if new
    assert not private(cmd.ok("sh-pull", ref))
    for words in ((), ("-l", "5")):  # the image that is there, and one in its place
        assert cmd.ok("sh-flatten", *words, layout) == str(made)
        assert bits(made.parent) == {0o600}
    assert bits(made.parent / ".retired") == {0o600}


def test_when_nobody_says_whether_it_is_for_all_it_is_private(cmd: Shell, gate: tuple[Gate, str]) -> None:
    door, ref = gate
    door.closed = True

    def once(seen: Seen, ask: object) -> Answer:
        if seen.method == "HEAD":
            return Answer(429, b"{}")
        return Gate.__call__(door, seen, ask)

    door.__class__ = type("Busy", (Gate,), {"__call__": staticmethod(once)})
    done = cmd("sh-pull", ref)
    assert done.returncode == 0, done.stderr
    assert private(done.stdout.strip())
    assert "so it is kept private: too many requests" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_cookie_is_no_key_that_everybody_has(cmd: Shell, gate: tuple[Gate, str]) -> None:
    door, ref = gate

    def with_cookies(seen: Seen, ask: object) -> Answer:
        if seen.authorization != BASIC and "Cookie" not in seen.headers:
            return Answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})
        said = ask()
        said.headers["Set-Cookie"] = "session=1; Path=/"
        return said

    door.__class__ = type("Cookies", (Gate,), {"__call__": staticmethod(with_cookies)})
    assert private(cmd.ok("sh-pull", ref))


def test_a_part_that_was_for_all_to_read_is_hidden_before_more_comes(cmd: Shell, gate: tuple[Gate, str]) -> None:
    door, ref = gate
    door.closed = True
    cmd.ok("sh-pull", ref)
    for blob in blobs(cmd).iterdir():
        if blob.stat().st_size > 50_000:
            part = blob.with_name(f".{blob.name}.{parts.kernel()}-{blob.stat().st_uid}.part")
            part.write_bytes(blob.read_bytes()[:20_000])
            part.chmod(0o644)
            blob.unlink()
    cmd.ok("sh-pull", ref)
    assert bits(blobs(cmd)) == {0o600}


def test_of_what_an_open_mirror_gives_the_registry_says_whose_it_is(cmd: Shell, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with (
        docker_registry(tmp_path / "own", htpasswd(tmp_path / "own")) as own,
        docker_registry(tmp_path / "m") as mirror,
    ):
        made = image(LAYER)
        ref = push(own.url, "app", "1", made, auth=(USER, PASSWORD))
        push(mirror.url, "app", "1", made)
        (cmd.home / ".config/shoebox").mkdir(parents=True)
        (cmd.home / ".config/shoebox/registries.toml").write_text(
            f'[registry."{own.host}"]\nmirrors = ["{mirror.url}"]\n'
        )
        log_in(cmd, own.host)
        assert private(cmd.ok("sh-pull", ref))


class Half(Gate):
    """Wants a password for what is below private/."""

    def __call__(self, seen: Seen, ask: object) -> Answer:
        self.closed = "/private/" in seen.path
        return super().__call__(seen, ask)


@pytest.mark.root
@pytest.mark.parametrize("first", [("public", "private"), ("private",)], ids=["public first", "private first"])
def test_who_shares_a_cache_gets_a_public_image_whatever_private_one_has_the_same_content(
    cmd: Shell, gate: tuple[Gate, str], registry: Place, first: tuple[str, ...]
) -> None:
    door, ref = gate
    door.__class__ = Half
    for kind in ("public", "private"):
        push(registry.url, f"{kind}/base", "1", image(LAYER))
    host, (jane, bob), group = ref.split("/")[0], (61501, 61502), 61510
    room = Path(tempfile.mkdtemp(prefix="shoebox-shared-", dir="/tmp"))
    room.chmod(0o755)

    def run(uid: int, *words: str) -> str:
        become = ("setpriv", f"--reuid={uid}", f"--regid={group}", "--clear-groups", "--")
        own = {"HOME": f"{room}/{uid}", "SHOEBOX_CACHE": f"{room}/cache", "TMPDIR": "/tmp", "XDG_RUNTIME_DIR": None}
        done = cmd(*become, "sh", "-c", 'umask 002; exec "$@"', "sh", *words, cwd=room, **own)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.strip()

    def have(uid: int, kind: str) -> None:
        line = run(uid, "sh-pull", "-q", f"{host}/{kind}/base:1")
        assert private(line) == (kind == "private")
        run(uid, "sh-flatten", "-q", "-o", f"{room}/{uid}/{kind}.sqfs", line)

    try:
        for uid, name in ((0, "cache"), (jane, str(jane)), (bob, str(bob))):
            (room / name).mkdir()
            os.chown(room / name, uid, group)
            (room / name).chmod(0o2775)
        shutil.copytree(cmd.home / ".docker", room / str(jane) / ".docker")
        for kind in first:
            have(jane, kind)
        assert (0o600 in bits(room / "cache/oci/blobs/sha256")) == (first == ("private",))
        have(bob, "public")
        have(jane, "private")
        have(bob, "public")
    finally:
        shutil.rmtree(room)
