"""Mirrors, limits and blocks of the table of registries, as sh-pull obeys them."""

from __future__ import annotations

import json
import random
import threading
import time
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
    docker_registry,
    free_port,
    front,
    htpasswd,
    locked_registry,
    registry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fixtures.installed import Shell

__all__ = ["locked_registry", "registry"]  # fixtures
LAYERS = [tar({"noise": random.Random(n).randbytes(40_000)}) for n in range(6)]
MADE = image(*LAYERS)


def entry(host: str, *lines: str) -> str:
    """Return what a table says of a registry."""
    return "\n".join([f'[registry."{host}"]', *lines, ""])


def table(cmd: Shell, *entries: str) -> None:
    """Write the user's table of registries."""
    path = cmd.home / ".config/shoebox/registries.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(entries))


def straight(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
    """Meddle with nothing."""
    return ask()


def digest_in_layout(line: str) -> str:
    """Return the digest of what sh-pull has printed."""
    index = json.loads((Path(line.split(":")[1]) / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def test_a_mirror_is_asked_for_content_and_the_registry_for_what_a_tag_means(cmd: Shell, registry: Place) -> None:
    push(registry.url, "near/a", "1", MADE)
    push(registry.url, "a", "1", MADE)
    with front(registry, straight) as mirror, front(registry, straight) as own:
        table(cmd, entry(own.host, f'mirrors = ["{mirror.url}/near"]'))
        line = cmd.ok("sh-pull", f"{own.host}/a:1")
        assert digest_in_layout(line) == MADE.digest
        assert own.paths() == ["/v2/a/manifests/1"]
        assert sorted(mirror.paths()) == sorted(f"/v2/near/a/blobs/{digest}" for digest in MADE.blobs)
        own.seen.clear()
        cmd.ok("sh-pull", f"{own.host}/a@{MADE.digest}")
        assert own.paths() == []
        assert mirror.paths("/manifests/") == [f"/v2/near/a/manifests/{MADE.digest}"]


def test_a_mirror_that_is_believed_in_tags_serves_when_the_registry_is_down(cmd: Shell, registry: Place) -> None:
    push(registry.url, "tags", "1", MADE)
    host = f"127.0.0.1:{free_port()}"
    with front(registry, straight) as mirror:
        table(cmd, entry(host, f'mirrors = ["{mirror.url}"]'))
        done = cmd("sh-pull", f"{host}/tags:1")
        assert (done.returncode, mirror.paths()) == (75, [])
        table(cmd, entry(host, f'mirrors = ["{mirror.url}"]', "mirror-tags = true"))
        assert digest_in_layout(cmd.ok("sh-pull", f"{host}/tags:1")) == MADE.digest


def test_mirrors_are_asked_in_order_and_one_that_lacks_something_is_no_worse_for_it(
    cmd: Shell, registry: Place
) -> None:
    push(registry.url, "order", "1", MADE)
    missing = MADE.layers[2]

    def lacks(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        return Answer(404) if seen.path.endswith(missing) else ask()

    with front(registry, lacks) as first, front(registry, straight) as second, front(registry, straight) as own:
        table(cmd, entry(own.host, f'mirrors = ["{first.url}", "{second.url}"]'))
        done = cmd("sh-pull", f"{own.host}/order:1")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(first.paths("/blobs/")) == len(MADE.blobs)
        assert second.paths("/blobs/") == [f"/v2/order/blobs/{missing}"]
        assert own.paths("/blobs/") == []


def evil_bytes(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
    said = ask()
    said.body = bytes(len(said.body))
    return said


def evil_length(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
    said = ask()
    said.body += b"more"
    return said


def cut(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
    said = ask()
    said.cut = 1000
    return said


def busy(_seen: Seen, _ask: Callable[[], Answer]) -> Answer:
    return Answer(429, headers={"Retry-After": "100"})


@pytest.mark.parametrize("meddle", [evil_bytes, evil_length, cut, busy])
@pytest.mark.evil(60)
def test_a_mirror_is_believed_by_digest_only_and_a_bad_one_is_left_with_one_line(
    cmd: Shell, registry: Place, meddle: Callable[[Seen, Callable[[], Answer]], Answer]
) -> None:
    push(registry.url, "bad", "1", MADE)
    started = time.monotonic()
    with front(registry, meddle) as mirror, front(registry, straight) as own:
        table(cmd, entry(own.host, f'mirrors = ["{mirror.url}"]'))
        done = cmd("sh-pull", "-j1", f"{own.host}/bad@{MADE.digest}", f"{own.host}/bad:1")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"sh-pull: going on without the mirror '{mirror.host}': ")
        assert sorted(own.paths("/blobs/")) == sorted(f"/v2/bad/blobs/{digest}" for digest in MADE.blobs)
    assert time.monotonic() - started < 60  # not Retry-After's hundred seconds
    blobs = Path(cmd.env["SHOEBOX_CACHE"]) / "oci/blobs/sha256"
    assert {path.name for path in blobs.iterdir()} == {digest[7:] for digest in [*MADE.blobs, MADE.digest]}


def test_the_next_mirror_goes_on_where_another_broke_off(cmd: Shell, registry: Place) -> None:
    big = image(tar({"noise": random.Random(9).randbytes(1_500_000)}))
    push(registry.url, "resume", "1", big)

    def breaks(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        if "Range" in seen.headers:
            return Answer(500)
        said = ask()
        said.cut = 700_000 if "/blobs/" in seen.path else None
        return said

    with front(registry, breaks) as mirror, front(registry, straight) as own:
        table(cmd, entry(own.host, f'mirrors = ["{mirror.url}"]'))
        cmd.ok("sh-pull", "-j1", f"{own.host}/resume:1")
        ranges = [seen.headers.get("Range") for seen in own.seen if big.layers[0] in seen.path]
        assert len(ranges) == 1
        assert int(str(ranges[0]).removeprefix("bytes=").rstrip("-")) > 0


def test_a_mirror_that_is_down_costs_one_line_and_little_time(cmd: Shell, registry: Place) -> None:
    push(registry.url, "down", "1", MADE)
    with front(registry, straight) as own:
        table(cmd, entry(own.host, f'mirrors = ["http://127.0.0.1:{free_port()}"]'))
        done = cmd("sh-pull", f"{own.host}/down:1")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert "Connection refused" in done.stderr


@pytest.mark.evil(61)
def test_a_mirror_sees_its_own_credentials_and_never_the_registrys(
    cmd: Shell, registry: Place, locked_registry: Place, tmp_path: Path
) -> None:
    with docker_registry(tmp_path / "mirror", htpasswd(tmp_path)) as behind, front(behind, straight) as mirror:
        push(behind.url, "private", "1", MADE, auth=(USER, PASSWORD))
        push(locked_registry.url, "private", "1", MADE, auth=(USER, PASSWORD), verify=str(locked_registry.ca))
        trust = f'ca = "{locked_registry.ca}"'
        table(cmd, entry(locked_registry.host, trust, f'mirrors = ["{mirror.url}"]'))
        config = cmd.home / ".docker/config.json"
        config.parent.mkdir()
        login = {"username": USER, "password": PASSWORD}
        config.write_text(json.dumps({"auths": {locked_registry.host: login}}))
        cmd.ok("sh-pull", f"{locked_registry.host}/private:1")
        assert mirror.seen
        assert {seen.authorization for seen in mirror.seen} == {""}
        config.write_text(json.dumps({"auths": {locked_registry.host: login, mirror.host: login}}))
        cmd.ok("sh-pull", f"{locked_registry.host}/private:1", SHOEBOX_CACHE=f"{tmp_path}/other")
        assert {seen.authorization[:6] for seen in mirror.seen} == {"", "Basic "}


def test_the_table_limits_how_many_blobs_are_fetched_at_once(cmd: Shell, registry: Place) -> None:
    push(registry.url, "limit", "1", MADE)
    lock, now, most, pause = threading.Lock(), 0, 0, 0.1

    def count(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        nonlocal now, most
        with lock:
            now += "/blobs/" in seen.path
            most = max(most, now)
        time.sleep(pause)
        said = ask()
        with lock:
            now -= "/blobs/" in seen.path
        return said

    with front(registry, count) as own:
        table(cmd, entry(own.host, "jobs = 2"))
        cmd.ok("sh-pull", "-j6", f"{own.host}/limit:1")
        assert 1 <= most <= 2
        table(cmd)
        pause = 0.5
        cmd.ok("sh-pull", "-j6", f"{own.host}/limit:1", SHOEBOX_CACHE=str(cmd.home / "other"))
        assert most > 2


@pytest.mark.parametrize("how", ["token", "none"])
def test_a_password_is_sent_only_as_the_table_allows(cmd: Shell, locked_registry: Place, how: str) -> None:
    push(locked_registry.url, "kind", "1", MADE, auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    config = cmd.home / ".docker/config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"auths": {locked_registry.host: {"username": USER, "password": PASSWORD}}}))
    for kind, status in (("basic", 0), (how, 1)):
        table(cmd, entry(locked_registry.host, f'ca = "{locked_registry.ca}"', f'authentication = "{kind}"'))
        done = cmd("sh-pull", f"{locked_registry.host}/kind:1", SHOEBOX_CACHE=str(cmd.home / kind))
        assert done.returncode == status, done.stderr


def test_a_blocked_mirror_is_refused_and_all_others_can_be_blocked(cmd: Shell, registry: Place) -> None:
    ref = push(registry.url, "block", "1", MADE)
    table(cmd, entry(registry.host, 'mirrors = ["https://M.evil.org:443/x"]'), entry("m.evil.org", "blocked = true"))
    done = cmd("sh-pull", ref)
    assert done.returncode == 1
    assert "the registry 'm.evil.org' is blocked: by '" in done.stderr
    table(cmd, entry("*", "blocked = true"))
    assert "is blocked" in cmd("sh-pull", ref).stderr
    table(cmd, entry("*", "blocked = true"), entry(registry.host))
    cmd.ok("sh-pull", ref)
