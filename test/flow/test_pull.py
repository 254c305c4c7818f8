"""sh-pull against real registries, and against ones that misbehave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pty
import random
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.images import (
    ARCHITECTURE,
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Image,
    descriptor,
    digest_of,
    image,
    index,
    push,
    tar,
)
from fixtures.installed import Shell
from fixtures.registry import (
    IDENTITY,
    PASSWORD,
    USER,
    Answer,
    Place,
    Seen,
    Server,
    canned,
    certificates,
    docker_registry,
    free_port,
    front,
    locked_registry,
    proxy,
    registry,
    serve,
    token_registry,
)

__all__ = ["locked_registry", "registry", "token_registry"]  # fixtures
OURS = {"os": "linux", "architecture": ARCHITECTURE}
OTHER = "arm64" if ARCHITECTURE != "arm64" else "amd64"
ROUNDS = 50


def noise(count: int, seed: int = 0) -> bytes:
    """Return a layer that does not compress, of about so many bytes."""
    return tar({"noise": random.Random(seed).randbytes(count)})


BIG = image(noise(3_000_000, 1), noise(2_000_000, 2), noise(1_000_000, 3))


def cache(cmd: Shell) -> Path:
    """Return where this test's blobs and layouts are."""
    return Path(cmd.env["SHOEBOX_CACHE"]) / "oci"


def where(line: str) -> Path:
    """Return the layout directory that sh-pull has printed."""
    kind, directory, _name = line.split(":", 2)
    assert kind == "oci"
    return Path(directory)


def sound(cmd: Shell) -> list[str]:
    """Check that every blob is what its name says and every layout is whole; return the layouts' image names."""
    blobs = cache(cmd) / "blobs" / "sha256"
    there = {path.name for path in blobs.iterdir() if not path.name.startswith(".")} if blobs.exists() else set()
    for name in there:
        assert hashlib.sha256((blobs / name).read_bytes()).hexdigest() == name
    names = []
    for path in cache(cmd).rglob("index.json"):
        [entry] = json.loads(path.read_text())["manifests"]
        manifest = json.loads((path.parent / "blobs/sha256" / entry["digest"][7:]).read_text())
        assert {one["digest"][7:] for one in [manifest["config"], *manifest["layers"]]} <= there
        assert (path.parent / "oci-layout").read_text() == '{"imageLayoutVersion":"1.0.0"}'
        names.append(entry["annotations"]["org.opencontainers.image.ref.name"])
    return sorted(names)


def leftovers(cmd: Shell) -> list[Path]:
    """Return files with temporary names."""
    return [path for path in cache(cmd).rglob(".*") if path.is_file()]


def fails(cmd: Shell, *words: str, status: int = 1, **env: str | None) -> str:
    """Run sh-pull, which must fail with one line and publish nothing new; return what it says."""
    before = sound(cmd)
    done = cmd("sh-pull", *words, **env)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("sh-pull: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert sound(cmd) == before
    return done.stderr


def table(cmd: Shell, text: str) -> None:
    """Write the user's table of registries."""
    path = cmd.home / ".config/shoebox/registries.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def docker_config(cmd: Shell, **document: object) -> None:
    """Write docker's config.json."""
    path = cmd.home / ".docker/config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def secret(password: str = PASSWORD) -> dict[str, str]:
    """Return an entry of config.json's `auths`."""
    return {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}


@contextlib.contextmanager
def mirrored(made: Image, meddle: Callable[[Seen, Callable[[], Answer]], Answer] | None = None) -> Iterator[Server]:
    """Serve an image as `a:1`, with whatever it says, through someone who may meddle."""
    documents = {f"/v2/a/blobs/{digest}": (data, "application/octet-stream") for digest, data in made.blobs.items()}
    for one in (made, *made.manifests):
        documents[f"/v2/a/manifests/{one.digest}"] = (one.manifest, one.media_type)
        for digest, data in one.blobs.items():
            documents[f"/v2/a/blobs/{digest}"] = (data, "application/octet-stream")
    documents["/v2/a/manifests/1"] = (made.manifest, made.media_type)
    answer = canned(documents)
    with serve(lambda seen: meddle(seen, lambda: answer(seen)) if meddle else answer(seen)) as server:
        yield server


# 26


def test_what_is_printed_is_a_layout_that_skopeo_reads(cmd: Shell, registry: Place) -> None:
    ref = push(registry.url, "lib/app", "1.0", BIG)
    line = cmd.ok("sh-pull", ref)
    assert line == f"oci:{cache(cmd)}/{registry.host.replace(':', '+')}/lib/app/_1.0:{ref}"
    found = json.loads(cmd.ok("skopeo", "inspect", line))
    assert (found["Digest"], found["Layers"]) == (BIG.digest, BIG.layers)
    assert os.readlink(where(line) / "blobs") == "../../../../blobs"
    assert sound(cmd) == [ref]
    assert leftovers(cmd) == []


def test_a_digest_and_a_tag_with_a_digest_name_the_image_by_its_digest(cmd: Shell, registry: Place) -> None:
    push(registry.url, "app", "1", BIG)
    for name in (
        f"{registry.host}/app@{BIG.digest}",
        f"{registry.host}/app:1@{BIG.digest}",
        f"docker://{registry.host}/app@{BIG.digest}",
    ):
        line = cmd.ok("sh-pull", name)
        assert line.endswith(f"/app/_@{BIG.digest.replace(':', '-')}:{registry.host}/app@{BIG.digest}")


@pytest.mark.parametrize("name", ["", "App", "a:", "a b", "a/../b", "../a", "a@sha256:../../x", "-", "a\nb"])
def test_a_wrong_reference_is_wrong_usage_with_the_position_named(cmd: Shell, name: str) -> None:
    assert re.search(r"not an image reference: .*: character \d+: ", fails(cmd, "--", name, status=2))


def test_names_come_from_stdin_and_one_that_fails_does_not_stop_the_rest(cmd: Shell, registry: Place) -> None:
    refs = [push(registry.url, f"list/{n}", "1", image(noise(1000, n))) for n in range(3)]
    names = [refs[0], f"{registry.host}/absent:1", refs[1], "", "WRONG", refs[2]]
    done = cmd("sh-pull", stdin="\n".join(names))
    assert [line.split(":", 2)[2] for line in done.stdout.splitlines()] == refs
    assert done.stderr.count("\n") == 2
    assert done.returncode == 2


def test_no_name_at_all_is_wrong_usage(cmd: Shell) -> None:
    assert "no REF given: nothing came in on stdin" in fails(cmd, status=2)


def test_each_name_is_printed_as_soon_as_it_is_there(cmd: Shell, registry: Place) -> None:
    ref = push(registry.url, "one", "1", image())
    process = cmd.start("sh-pull")
    process.stdin.write(f"{ref}\n".encode())
    process.stdin.flush()
    assert process.stdout.readline().endswith(f"{ref}\n".encode())
    assert process.poll() is None
    process.communicate()


def test_a_tag_that_moves_is_followed_and_the_old_blobs_stay(cmd: Shell, registry: Place) -> None:
    old, new = image(noise(1000, 1)), image(noise(1000, 2))
    ref = push(registry.url, "moving", "1", old)
    line = cmd.ok("sh-pull", ref)
    push(registry.url, "moving", "1", new)
    assert cmd.ok("sh-pull", ref) == line
    assert json.loads(cmd.ok("skopeo", "inspect", line))["Digest"] == new.digest
    assert (cache(cmd) / "blobs/sha256" / old.digest[7:]).exists()


# 27


def test_of_an_index_this_machines_image_is_pulled_or_the_one_asked_for(cmd: Shell, registry: Place) -> None:
    ours, other = image(noise(1000, 1)), image(noise(1000, 2), architecture=OTHER)
    attestation = image(b"", config={"architecture": "unknown", "os": "unknown"})
    made = index(
        (attestation, {"os": "unknown", "architecture": "unknown"}),
        (other, {"os": "linux", "architecture": OTHER}),
        (ours, OURS),
    )
    ref = push(registry.url, "multi", "1", made)
    line = cmd.ok("sh-pull", ref)
    assert json.loads((where(line) / "index.json").read_text())["manifests"][0]["platform"] == OURS
    assert json.loads(cmd.ok("skopeo", "inspect", line))["Digest"] == ours.digest
    line = cmd.ok("sh-pull", f"--platform=linux/{OTHER}", ref)
    assert where(line).name == f"_1+linux-{OTHER}"
    assert json.loads(cmd.ok("skopeo", "inspect", line))["Digest"] == other.digest
    assert "it offers linux/" in fails(cmd, "-p", "linux/s390x", ref)
    assert where(cmd.ok("sh-pull", f"--platform=linux/{ARCHITECTURE}", ref)).name == "_1"


def test_an_image_of_another_platform_is_refused_unless_meant(cmd: Shell, registry: Place) -> None:
    ref = push(registry.url, "other", "1", image(architecture=OTHER))
    assert f"it is for linux/{OTHER}, not for linux/{ARCHITECTURE}: pull it with --platform" in fails(cmd, ref)
    cmd.ok("sh-pull", "--platform", f"linux/{OTHER}", ref)


def test_an_index_without_platforms_is_an_image_or_a_clear_error(cmd: Shell, registry: Place) -> None:
    one = push(registry.url, "bare", "1", index((image(), None)))
    two = push(registry.url, "bare", "2", index((image(), None), (image(noise(10)), None)))
    cmd.ok("sh-pull", one)
    assert "entries without a platform" in fails(cmd, two)


# 28


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_docker_and_oci_types_mix(cmd: Shell, registry: Place, outer: bool, inner: bool) -> None:
    made = image(docker=inner)
    ref = push(registry.url, "mixed", f"{outer}.{inner}", index((made, OURS), docker=outer))
    line = cmd.ok("sh-pull", ref)
    assert json.loads(cmd.ok("skopeo", "inspect", line))["Layers"] == made.layers
    cmd.ok("umoci", "unpack", "--rootless", "--image", f"{where(line)}:{ref}", cmd.home / "bundle")
    assert (cmd.home / "bundle/rootfs/hello").read_text() == "hello\n"
    assert (cache(cmd) / "blobs/sha256" / made.digest[7:]).read_bytes() == made.manifest


def test_schema_1_is_refused_by_its_name(cmd: Shell) -> None:
    old = Image(b'{"schemaVersion": 1, "fsLayers": []}', "application/vnd.docker.distribution.manifest.v1+prettyjws")
    with mirrored(old) as server:
        assert "schema 1" in fails(cmd, f"{server.host}/a:1")


@pytest.mark.evil(60)
def test_what_is_no_image_is_refused_by_its_type(cmd: Shell, registry: Place) -> None:
    config = b"{}"
    chart = image(config=None)
    document = json.loads(chart.manifest) | {"config": descriptor(config, "application/vnd.cncf.helm.config.v1+json")}
    chart = Image(json.dumps(document).encode(), MANIFEST, chart.blobs | {digest_of(config): config})
    assert "'application/vnd.cncf.helm.config.v1+json'" in fails(cmd, push(registry.url, "chart", "1", chart))


# 29


@pytest.mark.parametrize(
    "config", [{}, {"config": None, "history": None}, {"config": {"Env": ["NOVALUE", "A=1"], "Labels": None}}]
)
def test_a_config_that_says_little_is_usable(cmd: Shell, registry: Place, config: dict[str, object]) -> None:
    cmd.ok("sh-pull", push(registry.url, "little", "1", image(config=config)))


# 30


def test_layers_come_in_parallel(cmd: Shell) -> None:
    made = image(*(noise(300_000, n) for n in range(4)))
    changed, now, most, expected = threading.Condition(), [0], [0], 0

    def counting(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        if "/blobs/" in seen.path:
            with changed:
                now[0] += 1
                most[0] = max(most[0], now[0])
                changed.notify_all()
                changed.wait_for(lambda: most[0] >= expected, 20)
            time.sleep(0.3)  # one too many would come now
            with changed:
                now[0] -= 1
        return ask()

    for words, expected in (([], 4), (["--jobs=1"], 1), (["-j", "2"], 2)):
        most[0] = 0
        subprocess.run(["rm", "-rf", cache(cmd)], check=True)
        with mirrored(made, counting) as server:
            cmd.ok("sh-pull", *words, f"{server.host}/a:1")
        assert most[0] == expected


def test_a_broken_connection_resumes_where_it_stopped(cmd: Shell, registry: Place) -> None:
    push(registry.url, "broken", "1", BIG)
    cut = set()

    def cutting(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        said = ask()
        if seen.path.endswith(BIG.layers[0]) and len(cut) < 2:
            said.cut = 700_000 * (len(cut) + 1)
            cut.add(said.cut)
        return said

    with front(registry, cutting) as server:
        cmd.ok("sh-pull", f"{server.host}/broken:1")
    ranges = [seen.headers.get("Range") for seen in server.seen if seen.path.endswith(BIG.layers[0])]
    assert len(ranges) == 3
    starts = [int(said[len("bytes=") : -1]) for said in ranges[1:]]
    assert 0 < starts[0] <= 700_000 < starts[1] <= 700_000 + 1_400_000


def test_a_pull_that_was_killed_is_resumed_by_the_next(cmd: Shell) -> None:
    made = image(noise(4_000_000))
    seen_range = []

    def slow(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        said = ask()
        if seen.path.endswith(made.layers[0]):
            seen_range.append(seen.headers.get("Range"))
            said.pace = 0 if seen_range[0] != seen_range[-1] else 0.02
        return said

    with mirrored(made, slow) as server:
        process = cmd.start("sh-pull", f"{server.host}/a:1")
        until = time.monotonic() + 20
        part = f".{made.layers[0][len('sha256:') :]}.*"  # the config's may go between two looks
        while not any(path.stat().st_size > 2_000_000 for path in cache(cmd).rglob(part)) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert sound(cmd) == []
        cmd.ok("sh-pull", f"{server.host}/a:1")
    assert seen_range[0] is None
    assert int(seen_range[1][len("bytes=") : -1]) > 2_000_000
    assert sound(cmd) == [f"{server.host}/a:1"]
    assert leftovers(cmd) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_registry_is_waited_for_as_it_asks(cmd: Shell, status: int) -> None:
    busy = [Answer(status, headers={"Retry-After": "1"})]
    with mirrored(image(), lambda _seen, ask: busy.pop() if busy else ask()) as server:
        started = time.monotonic()
        cmd.ok("sh-pull", f"{server.host}/a:1")
    assert time.monotonic() - started > 1


def test_after_three_tries_the_status_is_75(cmd: Shell) -> None:
    with mirrored(image(), lambda seen, ask: Answer(503) if "/blobs/" in seen.path else ask()) as server:
        assert "answers 503: try again later" in fails(cmd, f"{server.host}/a:1", status=75)
    counts = [server.paths("/blobs/").count(path) for path in set(server.paths("/blobs/"))]
    assert max(counts) == 3


# 31


def changed(data: bytes, how: str) -> Answer:
    """Return a blob gone wrong."""
    return {
        "corrupt": Answer(200, data[:-5] + b"wrong"),
        "empty": Answer(200, b""),
        "truncated": Answer(200, data[: len(data) // 2]),
        "oversized": Answer(200, data + b"more"),
        "length too large": Answer(200, data, length=len(data) + 10),
        "length too small": Answer(200, data, length=len(data) - 10),
        "a page": Answer(200, b"<html>Log in to the wireless network</html>", {"Content-Type": "text/html"}),
    }[how]


@pytest.mark.parametrize(
    "how", ["corrupt", "empty", "truncated", "oversized", "length too large", "length too small", "a page"]
)
@pytest.mark.parametrize("what", ["config", "layer", "manifest"])
@pytest.mark.evil(60)
def test_a_wrong_blob_is_never_published_and_a_later_pull_works(cmd: Shell, how: str, what: str) -> None:
    made = image(noise(100_000))
    wrong = [True]
    paths = {"config": json.loads(made.manifest)["config"]["digest"], "layer": made.layers[0], "manifest": made.digest}

    def bad(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        said = ask()
        return changed(said.body, how) if wrong[0] and seen.path.endswith(paths[what]) else said

    with mirrored(made, bad) as server:
        ref = f"{server.host}/a@{made.digest}"
        done = cmd("sh-pull", ref)
        assert done.returncode in (1, 75)
        assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr
        assert sound(cmd) == []
        wrong[0] = False
        cmd.ok("sh-pull", ref)


@pytest.mark.parametrize(
    "digest", ["sha256:../../../../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "", 5, None, "/etc/passwd"]
)
@pytest.mark.evil(60)
def test_a_digest_that_is_a_path_is_refused(cmd: Shell, tmp_path: Path, digest: object) -> None:
    document = json.loads(image().manifest)
    document["layers"][0]["digest"] = digest
    with mirrored(Image(json.dumps(document).encode(), MANIFEST)) as server:
        assert "cannot read the digest" in fails(cmd, f"{server.host}/a:1") or digest == 5
    assert not list(tmp_path.rglob("x"))


def test_a_blob_that_the_registry_has_lost_is_told(cmd: Shell) -> None:
    with mirrored(image(), lambda seen, ask: Answer(404) if "/blobs/" in seen.path else ask()) as server:
        assert re.search(
            r"does not have the blob 'sha256:\w*': push the image again$", fails(cmd, f"{server.host}/a:1")
        )


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], check=False).returncode != 0, reason="no user namespaces"
)
def test_a_full_disk_is_one_line_and_status_75(cmd: Shell, registry: Place, tmp_path: Path) -> None:
    ref = push(registry.url, "big", "1", BIG)
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=2m none "$1" && sh-pull "$2"; status=$?; ls -A "$1"/oci; exit $status'
    done = cmd("unshare", "-Urm", "sh", "-c", script, "sh", small, ref, SHOEBOX_CACHE=str(small))
    assert done.returncode == 75
    expected = r"sh-pull: cannot pull .*: cannot write to .*: No space left on device: free space, .*\n"
    assert re.fullmatch(expected, done.stderr), done.stderr
    assert registry.host.replace(":", "+") not in done.stdout


# 32


def test_an_image_or_repository_that_is_not_there_is_told(cmd: Shell, registry: Place) -> None:
    push(registry.url, "there", "1", image())
    for name in ("there:2", "nowhere:1", f"there@sha256:{'0' * 64}"):
        said = fails(cmd, f"{registry.host}/{name}")
        assert (
            f"cannot pull '{registry.host}/{name}': '{registry.host}' does not have it: check the name and the tag"
            in said
        )


def test_who_may_not_pull_is_told_to_log_in(cmd: Shell, locked_registry: Place) -> None:
    table(cmd, f'[registry."{locked_registry.host}"]\nca = "{locked_registry.ca}"\n')
    said = fails(cmd, f"{locked_registry.host}/a:1")
    assert (
        f"answers 401, not allowed or not there: check the name, or log in with 'sh-login {locked_registry.host}'"
        in said
    )
    docker_config(cmd, auths={locked_registry.host: secret("wrong")})
    assert "log in" in fails(cmd, f"{locked_registry.host}/a:1")


def test_too_many_requests_are_told(cmd: Shell) -> None:
    with mirrored(image(), lambda _seen, _ask: Answer(429, headers={"Retry-After": "21600"})) as server:
        said = fails(cmd, f"{server.host}/a:1", status=75)
    assert "too many requests for '127.0.0.1:" in said
    assert "log in, or try again later" in said


def test_a_registry_that_is_down_may_be_up_later(cmd: Shell) -> None:
    assert "Connection refused: check that it runs" in fails(cmd, f"127.0.0.1:{free_port()}/a", status=75)


def test_a_host_that_is_not_there_is_told(cmd: Shell) -> None:
    assert "no such host: check the name" in fails(cmd, "registry.invalid/a", status=75)


def test_http_where_https_is_expected_names_the_remedy(cmd: Shell, registry: Place) -> None:
    table(cmd, f'[registry."{registry.host}"]\nurl = "https://{registry.host}"\n')
    said = fails(cmd, f"{registry.host}/a")
    assert "it speaks plain http, not https: if you trust the network, write insecure-http = true under" in said


def test_https_where_http_is_expected_names_the_remedy(cmd: Shell, locked_registry: Place) -> None:
    said = fails(cmd, f"{locked_registry.host}/a")
    assert f'it speaks https, not plain http: write url = "https://{locked_registry.host}" under' in said


def test_an_unknown_ca_names_the_remedy(cmd: Shell, locked_registry: Place) -> None:
    table(cmd, f'[registry."{locked_registry.host}"]\ninsecure-http = false\n')
    said = fails(cmd, f"{locked_registry.host}/a")
    assert f"cannot trust '{locked_registry.host}': " in said
    assert f'write ca = "/path/ca.pem" under [registry."{locked_registry.host}"] in registries.toml' in said


# 33


def test_a_password_opens_a_locked_registry(cmd: Shell, locked_registry: Place) -> None:
    host = locked_registry.host
    made = image(noise(1000, 33))
    ref = push(locked_registry.url, "mine", "1", made, auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    table(cmd, f'[registry."{host}"]\nca = "{locked_registry.ca}"\n')
    docker_config(cmd, auths={host: secret()})
    cmd.ok("sh-pull", ref)
    assert sound(cmd) == [ref]


def test_tokens_of_a_token_server_open_a_registry(cmd: Shell, token_registry: tuple[Place, Server]) -> None:
    place, tokens = token_registry
    pushing = {"scope": "repository:private/app:pull,push"}
    basic = "Basic " + secret()["auth"]
    answer = tokens.answer(Seen("GET", f"/token?scope={pushing['scope']}", {"Authorization": basic}))
    bearer = {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}
    ref = push_with(place, "private/app", bearer)
    said = fails(cmd, ref)
    assert "answers 401, not allowed or not there" in said
    docker_config(cmd, auths={place.host: secret("wrong")})
    assert "log in" in fails(cmd, ref)
    for auths in ({place.host: secret()}, {place.host: {"identitytoken": IDENTITY}}):
        docker_config(cmd, auths=auths)
        tokens.seen.clear()
        cmd.ok("sh-pull", ref)
        (known,) = [seen for seen in tokens.seen if seen.authorization or seen.body]  # and once as anybody, at first
        assert "repository%3Aprivate%2Fapp%3Apull" in known.path + known.body.decode()


def push_with(place: Place, repository: str, headers: dict[str, str]) -> str:
    """Push an image with a token."""

    def sign(request: object) -> object:
        request.headers.update(headers)
        return request

    return push(place.url, repository, "1", image(), auth=sign)


@pytest.mark.parametrize("how", ["credHelpers", "credsStore"])
@pytest.mark.evil(61)
def test_credentials_come_from_helpers_and_stay_out_of_logs_and_process_lists(
    cmd: Shell, locked_registry: Place, how: str
) -> None:
    host = locked_registry.host
    ref = push(locked_registry.url, "helped", "1", image(), auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    table(cmd, f'[registry."{host}"]\nca = "{locked_registry.ca}"\n')
    docker_config(cmd, **({"credHelpers": {host: "test"}} if how == "credHelpers" else {"credsStore": "test"}))
    directory = cmd.home / "bin"
    directory.mkdir()
    helper = directory / "docker-credential-test"
    answer = json.dumps({"Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\nread host; cat /proc/$PPID/cmdline /proc/$$/cmdline >seen; echo '{answer}'\n")
    helper.chmod(0o755)
    process = cmd.start("sh-pull", ref, env={**cmd.env, "PATH": f"{directory}:{cmd.env['PATH']}"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    encoded = secret()["auth"]
    for text in ((cmd.home / "seen").read_bytes(), out, err):
        assert PASSWORD.encode() not in text
        assert encoded.encode() not in text


@pytest.mark.evil(61)
def test_a_secret_appears_in_no_file_of_the_cache(cmd: Shell, locked_registry: Place) -> None:
    ref = push(locked_registry.url, "quiet", "1", image(), auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    table(cmd, f'[registry."{locked_registry.host}"]\nca = "{locked_registry.ca}"\n')
    docker_config(cmd, auths={locked_registry.host: secret()})
    cmd.ok("sh-pull", ref)
    for path in cache(cmd).rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()


# 34


def test_two_pulls_of_one_image_at_once_fetch_each_layer_once(cmd: Shell) -> None:
    def slow(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
        said = ask()
        said.pace = 0.02
        return said

    with mirrored(BIG, slow) as server:
        pulls = [cmd.start("sh-pull", f"{server.host}/a:1") for _ in range(3)]
        for process in pulls:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert out.decode().endswith(f"{server.host}/a:1\n")
    for layer in BIG.layers:
        assert len(server.paths(layer)) == 1
    assert sound(cmd) == [f"{server.host}/a:1"]
    assert leftovers(cmd) == []


def test_images_that_share_layers_are_pulled_at_once_into_one_cache(cmd: Shell, registry: Place) -> None:
    base = noise(500_000, 7)
    refs = [push(registry.url, f"shared/{n}", "1", image(base, noise(10_000, n))) for n in range(6)]
    pulls = [cmd.start("sh-pull", *refs[n:], *refs[:n]) for n in range(4)]
    for process in pulls:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert len(out.splitlines()) == 6
    assert sound(cmd) == sorted(refs)


# 35


def test_a_pull_killed_at_any_moment_leaves_nothing_half_made(cmd: Shell, registry: Place) -> None:
    ref = push(registry.url, "kill", "1", BIG)
    started = time.monotonic()
    cmd.ok("sh-pull", ref)
    length = time.monotonic() - started
    dice = random.Random(35)
    for turn in range(ROUNDS):
        if turn % 5 == 0:
            subprocess.run(["rm", "-rf", cache(cmd)], check=True)
        process = cmd.start("sh-pull", ref)
        time.sleep(dice.uniform(0, length * 1.1))
        process.kill()
        process.communicate()
        sound(cmd)
    cmd.ok("sh-pull", ref)
    assert sound(cmd) == [ref]
    old = time.time() - 2 * 86400
    for path in leftovers(cmd):
        os.utime(path, (old, old))
    cmd.ok("sh-pull", ref)
    assert leftovers(cmd) == []


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_pull_that_is_told_to_stop_ends_at_once_by_that_signal(cmd: Shell, which: int) -> None:
    made = image(noise(4_000_000))

    def slow(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
        said = ask()
        said.pace = 0.1
        return said

    with mirrored(made, slow) as server:
        process = cmd.start("sh-pull", f"{server.host}/a:1")
        while not server.paths("/blobs/"):
            time.sleep(0.01)
        time.sleep(0.2)
        told = time.monotonic()
        process.send_signal(which)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - told < 3
    assert process.returncode == -which
    assert err == b""
    assert sound(cmd) == []


# 36, 60


@pytest.mark.parametrize("how", ["changed", "truncated", "unlinked", "a link"])
@pytest.mark.evil(60)
def test_a_cached_blob_that_was_tampered_with_is_noticed_and_fetched_again(
    cmd: Shell, registry: Place, tmp_path: Path, how: str
) -> None:
    ref = push(registry.url, "tamper", "1", BIG)
    cmd.ok("sh-pull", ref)
    blob = cache(cmd) / "blobs/sha256" / BIG.layers[1][7:]
    data = blob.read_bytes()
    blob.unlink()
    if how == "a link":
        (tmp_path / "copy").write_bytes(data)
        blob.symlink_to(tmp_path / "copy")
    elif how != "unlinked":
        blob.write_bytes(data[:-1] + (b"?" if how == "changed" else b""))
    done = cmd("sh-pull", ref)
    assert done.returncode == 0
    expected = (
        "" if how == "unlinked" else f"sh-pull: the cached blob '{BIG.layers[1]}' is damaged: fetching it again\n"
    )
    assert done.stderr == expected
    assert sound(cmd) == [ref]
    assert not blob.is_symlink()


def test_what_is_there_is_not_fetched_again(cmd: Shell, registry: Place) -> None:
    push(registry.url, "again", "1", BIG)
    with front(registry, lambda _seen, ask: ask()) as server:
        cmd.ok("sh-pull", f"{server.host}/again:1")
        server.seen.clear()
        cmd.ok("sh-pull", f"{server.host}/again:1")
    assert [seen.path for seen in server.seen] == ["/v2/again/manifests/1"]


@pytest.mark.evil(60)
def test_a_manifest_read_as_an_index_or_the_other_way_is_refused(cmd: Shell) -> None:
    inner = image()
    outer = index((inner, OURS))
    both = json.loads(inner.manifest) | {"manifests": json.loads(outer.manifest)["manifests"]}
    named = json.loads(outer.manifest)
    named["manifests"][0]["mediaType"] = INDEX
    for document, kind in (
        (inner.manifest, INDEX),
        (outer.manifest, MANIFEST),
        (json.dumps(both).encode(), MANIFEST),
        (json.dumps(both).encode(), INDEX),
        (json.dumps(named).encode(), INDEX),
        (next(iter(inner.blobs.values())), CONFIG),
        (inner.manifest, LAYER),
    ):
        with mirrored(Image(document, kind, inner.blobs, [inner])) as server:
            assert "cannot read the manifest" in fails(cmd, f"{server.host}/a:1")


@pytest.mark.evil(60)
def test_an_index_entry_that_is_answered_with_another_image_is_refused(cmd: Shell) -> None:
    inner, evil = image(), image(noise(10))

    def swap(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        return Answer(200, evil.manifest, {"Content-Type": MANIFEST}) if seen.path.endswith(inner.digest) else ask()

    with mirrored(index((inner, OURS)), swap) as server:
        assert "the registry sent something else" in fails(cmd, f"{server.host}/a:1")


# 37


def test_a_proxy_carries_http_and_https_but_not_what_no_proxy_names(
    cmd: Shell, registry: Place, locked_registry: Place
) -> None:
    push(registry.url, "proxied", "1", image())
    push(locked_registry.url, "proxied", "1", image(), auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    with proxy(
        {"plain.test": registry.host, "localhost": locked_registry.host, "tls.test": locked_registry.host}
    ) as through:
        table(
            cmd,
            f'[registry."plain.test"]\ninsecure-http = true\n[registry."tls.test"]\nca = "{locked_registry.ca}"\n',
        )
        proxies = {"HTTP_PROXY": through.url, "HTTPS_PROXY": through.url, "http_proxy": through.url}
        cmd.ok("sh-pull", "plain.test/proxied:1", **proxies)
        assert through.seen
        assert through.seen[0].path == "http://plain.test/v2/proxied/manifests/1"
        said = fails(cmd, "tls.test/proxied:1", **proxies)
        assert "cannot trust 'tls.test'" in said  # the certificate is localhost's; so TLS reached the registry
        assert ("CONNECT", "tls.test:443") in [(seen.method, seen.path) for seen in through.seen]
        through.seen.clear()
        assert "no such host" in fails(cmd, "plain.test/proxied:1", status=75, **proxies, NO_PROXY="plain.test")
        cmd.ok("sh-pull", f"{registry.host}/proxied:1", **proxies)
        assert through.seen == []


def test_a_proxy_that_is_down_is_told(cmd: Shell) -> None:
    said = fails(cmd, "quay.io/a", status=75, HTTPS_PROXY=f"http://127.0.0.1:{free_port()}")
    assert "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY" in said


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", ""])
def test_a_ca_of_the_sites_own_is_trusted_by_table_or_environment(
    cmd: Shell, locked_registry: Place, variable: str
) -> None:
    ref = push(locked_registry.url, "ca", "1", image(), auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    docker_config(cmd, auths={locked_registry.host: secret()})
    line = "insecure-http = false" if variable else f'ca = "{locked_registry.ca}"'
    table(cmd, f'[registry."{locked_registry.host}"]\n{line}\n')
    cmd.ok("sh-pull", ref, **({variable: str(locked_registry.ca)} if variable else {}))


# 38


def test_progress_is_shown_on_a_terminal_only(cmd: Shell) -> None:
    def slow(_seen: Seen, ask: Callable[[], Answer]) -> Answer:
        said = ask()
        said.pace = 0.03
        return said

    for words, shown in (([], True), (["--quiet"], False)):
        subprocess.run(["rm", "-rf", cache(cmd)], check=True)
        with mirrored(image(noise(2_000_000)), slow) as server:
            ours, theirs = pty.openpty()
            env = {**cmd.env, "TERM": "xterm", "COLUMNS": "120"}
            process = cmd.start("sh-pull", *words, f"{server.host}/a:1", stderr=theirs, env=env)
            os.close(theirs)
            text = b""
            with contextlib.suppress(OSError):  # EIO: the terminal's other side has been closed
                while piece := os.read(ours, 4096):
                    text += piece
            os.close(ours)
            process.communicate()
        assert process.returncode == 0
        assert (b"MB/s" in text, f"{server.host}/a:1".encode() in text) == (shown, shown), text
    with mirrored(image(noise(200_000)), slow) as server:
        assert cmd("sh-pull", f"{server.host}/a:1").stderr == ""


# 59


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"schemaVersion": 2}',
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        b" " * 5_000_000,
        b'{"schemaVersion": 2, "config": null, "layers": null}',
        b'{"schemaVersion": 2, "config": {"digest": {}, "size": "1"}, "layers": 5}',
    ],
    ids=range(11),
)
@pytest.mark.evil(60)
def test_a_hostile_manifest_is_one_line(cmd: Shell, document: bytes) -> None:
    with mirrored(Image(document, MANIFEST)) as server:
        fails(cmd, f"{server.host}/a:1")


@pytest.mark.parametrize(
    "config", [b"", b"[]", b'{"config": 1}', b"[" * 100_000, b'{"config": {"Env": ["\\u0000"]}}'], ids=range(5)
)
@pytest.mark.evil(60)
def test_a_hostile_config_is_one_line(cmd: Shell, config: bytes) -> None:
    made = image()
    document = json.loads(made.manifest) | {"config": descriptor(config, CONFIG)}
    with mirrored(Image(json.dumps(document).encode(), MANIFEST, made.blobs | {digest_of(config): config})) as server:
        fails(cmd, f"{server.host}/a:1")


@pytest.mark.evil(60)
def test_a_size_beyond_all_disks_is_refused(cmd: Shell) -> None:
    document = json.loads(image().manifest)
    for size in (-1, 1 << 61, 1 << 80, 1.5, True):
        document["layers"][0]["size"] = size
        made = Image(json.dumps(document).encode(), MANIFEST, image().blobs)
        with mirrored(made) as server:
            fails(cmd, f"{server.host}/a:1")


@pytest.mark.evil(68)
def test_with_a_umask_of_0_nothing_in_the_cache_is_writable_by_all(cmd: Shell, registry: Place) -> None:
    ref = push(registry.url, "umask", "1", image())
    cmd.ok("sh", "-c", "umask 0; exec sh-pull $0", ref)
    for path in [cache(cmd).parent, *cache(cmd).rglob("*")]:
        assert path.is_symlink() or not stat.S_IMODE(path.stat().st_mode) & 0o002


# 61


@pytest.mark.evil(61)
def test_a_blob_host_that_the_registry_sends_us_to_sees_no_authorization(
    cmd: Shell, token_registry: tuple[Place, Server]
) -> None:
    place, tokens = token_registry
    answer = tokens.answer(
        Seen("GET", "/token?scope=repository:away:pull,push", {"Authorization": "Basic " + secret()["auth"]})
    )
    push_with(place, "away", {"Authorization": f"Bearer {json.loads(answer.body)['token']}"})
    docker_config(cmd, auths={place.host: secret()})
    with front(place, lambda _seen, ask: ask()) as store:
        stored = canned({f"/{digest}": (data, "") for digest, data in image().blobs.items()})
        store.answer = lambda seen: stored(Seen(seen.method, seen.path.partition("?")[0], seen.headers))

        def away(seen: Seen, ask: Callable[[], Answer]) -> Answer:
            digest = seen.path.rpartition("/")[2]
            if "/blobs/" in seen.path and seen.authorization:
                return Answer(307, headers={"Location": f"{store.url}/{digest}?signature=s3cret"})
            return ask()

        with front(place, away) as server:
            docker_config(cmd, auths={server.host: secret()})
            cmd.ok("sh-pull", f"{server.host}/away:1")
    assert {seen.authorization[:6] for seen in server.seen} == {"", "Bearer"}
    assert len(store.seen) == 2
    assert {seen.authorization for seen in store.seen} == {""}


@pytest.mark.evil(61)
def test_a_token_server_of_an_unrelated_host_sees_no_password(cmd: Shell) -> None:
    with proxy({}) as through:

        def challenge(_seen: Seen, _ask: Callable[[], Answer]) -> Answer:
            return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="http://tokens.evil.test/t",service="x"'})

        with mirrored(image(), challenge) as server:
            docker_config(cmd, auths={server.host: secret()})
            through.answer = lambda _seen: Answer(200, b'{"token": "T"}')
            said = fails(cmd, f"{server.host}/a:1", HTTP_PROXY=through.url, http_proxy=through.url)
    assert 'write auth = "tokens.evil.test" under' in said
    assert [seen.authorization for seen in through.seen] == [""]


# The table of registries


def test_a_short_name_is_looked_for_in_the_order_of_the_table(
    cmd: Shell, registry: Place, locked_registry: Place
) -> None:
    ref = push(registry.url, "lab/tool", "2", image())
    table(
        cmd,
        f'search = ["{locked_registry.host}", "blocked.org", "{registry.host}"]\n'
        f'[aliases]\ntool = "{registry.host}/lab/tool:2"\n'
        f'[registry."{locked_registry.host}"]\nca = "{locked_registry.ca}"\n'
        '[registry."blocked.org"]\nblocked = true\n',
    )
    for name in ("lab/tool:2", "tool"):
        assert cmd.ok("sh-pull", name).endswith(f":{ref}")
    assert "does not have it" in fails(cmd, "absent:1")
    assert "'blocked.org' is blocked: by '" in fails(cmd, "blocked.org/a")


def test_a_table_with_a_mistake_is_one_line(cmd: Shell) -> None:
    table(cmd, '[registry."a.org"]\nblock = true\n')
    assert "'block' of 'a.org' is unknown" in fails(cmd, "a.org/a")


@pytest.mark.evil(61)
def test_another_self_signed_certificate_is_not_trusted(cmd: Shell, tmp_path: Path) -> None:
    ca = certificates(tmp_path / "one")
    other = certificates(tmp_path / "two")
    with docker_registry(tmp_path / "r", ca=ca) as place:
        ref = push(place.url, "a", "1", image(), verify=str(ca))
        table(cmd, f'[registry."{place.host}"]\nca = "{other}"\n')
        assert "cannot trust" in fails(cmd, ref)
        table(cmd, f'[registry."{place.host}"]\nca = "{ca}"\n')
        cmd.ok("sh-pull", ref)
