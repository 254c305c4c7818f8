"""sh-expire --blobs: what sh-pull keeps goes when no image needs it, and never from under a pull."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from fixtures.images import image, push, tar
from fixtures.registry import canned, registry, serve
from fixtures.steps import at_each_step, interleaved

from shoebox import blobs, pull

__all__ = ["registry"]  # a fixture
BASE = tar({"base": b"base" * 5000})
APP, LIB = image(BASE, tar({"app": b"app" * 5000})), image(BASE, tar({"lib": b"lib" * 5000}))


def age(cache: Path, days: float = 2) -> None:
    """Let everything in a cache be older."""
    when = time.time() - days * 86400
    for path in cache.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)


def there(cache: Path) -> set[str]:
    return {path.name for path in (cache / "oci/blobs/sha256").iterdir()}


def of(made) -> set[str]:
    return {digest[7:] for digest in (made.digest, *made.blobs)}


def whole(cache: Path) -> list[str]:
    """Check that every layout has all its blobs, and every blob is what its name says; return the layouts' names."""
    names = []
    for name in there(cache):
        assert hashlib.sha256((cache / "oci/blobs/sha256" / name).read_bytes()).hexdigest() == name
    for path in (cache / "oci").rglob("index.json"):
        [entry] = json.loads(path.read_text())["manifests"]
        manifest = json.loads((path.parent / "blobs/sha256" / entry["digest"][7:]).read_text())
        assert {one["digest"][7:] for one in [manifest["config"], *manifest["layers"]]} <= there(cache)
        assert (path.parent / "oci-layout").exists()
        names.append(entry["annotations"]["org.opencontainers.image.ref.name"])
    return sorted(names)


@pytest.fixture
def hub(registry):
    push(registry.url, "app", "1", APP)
    push(registry.url, "lib", "1", LIB)
    return registry.host


def test_the_blobs_of_an_image_go_after_it_and_what_others_share_stays(cmd, hub, tmp_path):
    cache = tmp_path / "cache"
    cmd.ok("bash", "-c", f"sh-pull {hub}/app:1 {hub}/lib:1 | sh-flatten")
    age(cache)
    assert cmd("sh-expire", "--blobs").stderr == ""
    assert there(cache) == of(APP) | of(LIB)
    cmd.ok("sh-rm", f"{hub}/app:1")
    told = cmd("sh-expire", "--blobs", "-n")
    assert (told.returncode, told.stdout) == (0, "")
    assert f"would delete {len(of(APP) - of(LIB))} blobs" in told.stderr
    assert there(cache) == of(APP) | of(LIB)
    assert f"deleted {len(of(APP) - of(LIB))} blobs" in cmd("sh-expire", "--blobs").stderr
    assert there(cache) == of(LIB)
    assert whole(cache) == [f"{hub}/lib:1"]
    assert cmd.ok("bash", "-c", f"sh-pull {hub}/app:1 | sh-flatten").endswith(".sqfs")


def test_what_was_pulled_today_stays_until_it_can_have_been_flattened(cmd, hub, tmp_path):
    cache = tmp_path / "cache"
    cmd.ok("sh-pull", f"{hub}/app:1")
    cmd.ok("sh-expire", "--blobs", "--age", "0")
    assert whole(cache) == [f"{hub}/app:1"]
    age(cache)
    cmd.ok("sh-pull", f"{hub}/app:1")  # again, without a byte of its blobs
    cmd.ok("sh-expire", "--blobs")
    assert whole(cache) == [f"{hub}/app:1"]
    age(cache)
    cmd.ok("sh-expire", "--blobs")
    assert there(cache) == set()


def test_with_an_age_what_was_not_pulled_for_so_long_goes_though_its_image_stays(cmd, hub, tmp_path):
    cache = tmp_path / "cache"
    image = cmd.ok("bash", "-c", f"sh-pull {hub}/app:1 | sh-flatten")
    age(cache / "oci", 20)
    cmd.ok("sh-expire", "--blobs", "--age", "30d")
    assert there(cache) == of(APP)
    cmd.ok("sh-expire", "--blobs", "--age", "10d")
    assert there(cache) == set()
    assert Path(image).exists()


def test_a_layout_that_cannot_be_read_keeps_all_blobs_and_is_named(cmd, hub, tmp_path):
    cache = tmp_path / "cache"
    layout = cmd.ok("sh-pull", f"{hub}/app:1").split(":")[1]
    (cache / "oci/blobs/sha256" / APP.digest[7:]).write_bytes(b"{}")
    age(cache)
    done = cmd("sh-expire", "--blobs")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert layout in done.stderr
    assert "no blob goes" in done.stderr
    assert there(cache) == of(APP)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Return what makes a cache with an old pull of app and of lib; its registry is at hand for pulls in here."""
    documents = {}
    for name, made in (("app", APP), ("lib", LIB)):
        documents |= {f"/v2/{name}/blobs/{d}": (data, "application/octet-stream") for d, data in made.blobs.items()}
        documents |= {f"/v2/{name}/manifests/{tag}": (made.manifest, made.media_type) for tag in ("1", made.digest)}
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(canned(documents)) as server:

        def fetch(where, *names: str) -> None:
            with monkeypatch.context() as patch, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
                patch.setenv("SHOEBOX_CACHE", str(where))
                assert pull.run(["-q", *(f"{server.host}/{name}:1" for name in names)]) == 0

        def make(nth: int) -> Path:
            fetch(tmp_path / str(nth), "app", "lib")
            age(tmp_path / str(nth))
            return tmp_path / str(nth)

        make.fetch = fetch
        make.app, make.lib = f"{server.host}/app:1", f"{server.host}/lib:1"
        yield make


def drop(where: Path) -> None:
    blobs.drop(str(where), set(), None, dry=False)


def test_a_pull_at_any_step_of_an_expiry_has_its_blobs(cached, monkeypatch):
    seen = []
    for where in at_each_step(monkeypatch, cached, drop, lambda where: cached.fetch(where, "app")):
        seen.append(whole(where))
        drop(where)
        assert not [path for path in (where / "oci").rglob(".*") if "away" in path.name]
        assert whole(where) == seen[-1]
    assert seen == [[cached.app]] * (len(seen) - 1) + [[]]


def test_an_expiry_at_any_step_of_a_pull_takes_nothing_that_it_needs(cached, monkeypatch):
    for where in at_each_step(monkeypatch, cached, lambda where: cached.fetch(where, "app"), drop):
        assert whole(where) in ([cached.app], [cached.app, cached.lib])


def test_an_expiry_and_a_pull_in_the_midst_of_each_other_take_nothing_from_it(cached, monkeypatch):
    for where in interleaved(monkeypatch, cached, drop, lambda where: cached.fetch(where, "app")):
        assert whole(where) in ([cached.app], [cached.app, cached.lib])


def test_a_pull_in_a_cache_whose_files_it_cannot_renew_has_its_blobs_or_no_layout(cached, monkeypatch):
    def refused(*_words, **_more):
        raise PermissionError(1, "Operation not permitted")

    def fetch(where):
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", refused)  # as for another user's files
            cached.fetch(where, "app")

    for where in interleaved(monkeypatch, cached, drop, fetch):
        assert set(whole(where)) <= {cached.app, cached.lib}


def test_two_expiries_at_any_step_of_each_other_are_one(cached, monkeypatch):
    for where in at_each_step(monkeypatch, cached, drop, drop):
        assert there(where) == set()
        assert whole(where) == []


def _drop_and_die(where: Path, call: str, nth: int) -> None:
    real, left = getattr(os, call), nth

    def cut(*words, **more):
        nonlocal left
        left -= 1
        if not left:
            os._exit(9)
        return real(*words, **more)

    setattr(os, call, cut)
    drop(where)
    os._exit(0)


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir"])
def test_killed_anywhere_the_next_one_finishes_and_a_pull_works(cached, call):
    nth = 0
    died = True
    while died:
        nth += 1
        where = cached(nth)
        pid = os.fork()
        if pid == 0:
            _drop_and_die(where, call, nth)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        if nth % 2:
            cached.fetch(where, "app")
            drop(where)
            assert whole(where) == [cached.app]
        else:
            drop(where)
            assert there(where) == set()
        assert not [path for path in (where / "oci").rglob(".*") if "away" in path.name]
    assert nth > 2


def test_a_flatten_at_any_step_of_an_expiry_makes_its_image_or_says_to_pull_again(cmd, hub, tmp_path):
    cache = tmp_path / "cache"
    name = cmd.ok("sh-pull", f"{hub}/app:1")
    for seconds in (0, 0.02, 0.05, 0.1, 0.2):
        age(cache)
        flatten = cmd.start("sh-flatten", name)
        time.sleep(seconds)
        cmd.ok("sh-expire", "--blobs")
        out, told = flatten.communicate()
        if flatten.returncode:
            assert b"pull it again" in told or b"sh-pull" in told or b"not an OCI layout" in told, told
            assert name == cmd.ok("sh-pull", f"{hub}/app:1")
        else:
            cmd.ok("sh-rm", out.decode().strip())
