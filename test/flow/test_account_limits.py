"""sh-pull --for-site: what the image account does for nobody, and what it shows to nobody."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.gateway import Site, site
from fixtures.images import image, index, tar
from fixtures.registry import Answer, Seen, canned, free_port, serve

from shoebox import platforms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root
NATIVE = str(platforms.native(os.uname().machine))
OTHER = "linux/arm64" if NATIVE != "linux/arm64" else "linux/amd64"


@pytest.fixture(scope="module")
def there(prefix: Path) -> Iterator[Site]:
    with site(prefix) as made:
        yield made


def content(word: str, **more: str):
    return image(tar({"hello": word.encode(), "more": b"x" * 100_000}), **more)


def link(where: Path, name: str) -> Path:
    (found,) = [path for path in where.rglob("1.sqfs") if path.parent.name == name]
    return found


def test_a_name_means_an_image_for_the_sites_machines_whoever_asks_for_which(there: Site) -> None:
    jane, bob = there.people
    parts = [content(one, architecture=one.partition("/")[2]) for one in (NATIVE, OTHER)]
    said = [dict(zip(("os", "architecture"), one.split("/"), strict=False)) for one in (NATIVE, OTHER)]
    for one in parts:
        there.push("public/multi", one)
    name = there.push("public/multi", index(*zip(parts, said, strict=True)))
    path = there.pull(jane, name).stdout.strip()
    done = there.pull(bob, "-p", OTHER, name)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no machine of this site runs {OTHER}: they are {NATIVE}" in done.stderr
    assert str(link(there.store, "multi").resolve()) == path
    with contextlib.ExitStack() as stack:
        second = there.top / "second"
        second.mkdir()
        shutil.chown(second, there.account)
        table = there.prefix / "etc/systems.toml"
        stack.callback(table.unlink)
        both = ((there.store, NATIVE), (second, OTHER))
        table.write_text(
            "".join(f'[system.{where.name}]\nstore = "{where}"\nplatform = "{one}"\n' for where, one in both)
        )
        done = there.pull(bob, "-p", OTHER, name)
        assert done.returncode == 0, done.stderr
        assert str(link(second, "multi").resolve()) == done.stdout.strip()
    assert str(link(there.store, "multi").resolve()) == path


def test_nobody_keeps_for_some_what_the_registry_gives_to_everybody(there: Site) -> None:
    jane, bob = there.people
    name = there.push("public/all", content("all 1"))
    assert there.pull(jane, name).returncode == 0
    there.push("public/all", content("all 2"))
    done = there.pull(bob, "--user", bob, name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "everybody may have it: leave --user and --group out" in done.stderr
    assert there.pull(jane, name).returncode == 0
    assert there.run("nobody", "cat", str(link(there.store, "all")), group="nogroup").returncode == 0


def test_a_port_of_this_host_is_asked_only_if_the_account_knows_it(there: Site) -> None:
    with serve(canned({})) as server:
        done = there.pull(there.people[0], f"{server.host}/a:1")
        assert (done.returncode, server.seen) == (1, [])
        assert "registries.toml does not name it" in done.stderr


def test_an_image_that_is_too_large_is_not_begun(there: Site) -> None:
    name = there.push("public/large", image(tar({"data": os.urandom(20_000)}), tar({"zeros": bytes(200_000)})))
    there.gate.server.seen.clear()
    try:
        for most, why in (("20K", "this site makes images of 20K at most"), ("100K", "sh-flatten")):
            there.conf(f"account = {there.account}\npull-size = {most}")
            done = there.pull(there.people[0], name)
            assert (done.returncode, done.stdout) == (1, "")
            assert why in done.stderr
            assert bool(there.gate.got("public/large")) == (most == "100K")
    finally:
        there.conf(f"account = {there.account}")
    assert there.pull(there.people[0], name).returncode == 0


@pytest.mark.parametrize("kind", ["public", "private"])
def test_who_may_log_in_is_served_though_those_who_do_not_are_too_many(there: Site, kind: str) -> None:
    """As Docker Hub does it: who has a token without a name is told to come later."""
    jane, bob = there.people
    there.log_in(jane)
    name = there.push(f"{kind}/many", content(f"many {kind}"))

    def lie(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        claims = seen.authorization.split(".")[1:2]
        nobody = bool(claims) and not json.loads(base64.urlsafe_b64decode(claims[0] + "=="))["sub"]
        return Answer(429, b"{}") if nobody and seen.path.endswith("/manifests/1") else ask()

    with there.gate.lying(lie):
        done = there.pull(jane, name)
        late = there.pull(bob, name)
    assert done.returncode == 0, done.stderr
    assert late.returncode == 75, late
    assert "too many requests" in late.stderr
    assert there.run(bob, "cat", done.stdout.strip()).returncode == (kind == "private")


def test_no_image_is_called_like_a_file_of_the_store(there: Site) -> None:
    jane, bob = there.people
    done = there.pull(bob, there.push("public/seven/1.sqfs", content("directory")))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no part before the last may look like a file there" in done.stderr
    assert there.pull(jane, there.push("public/seven", content("file"))).returncode == 0


def test_names_of_images_are_in_nobodys_list_of_processes(there: Site) -> None:
    jane, _ = there.people
    there.log_in(jane)
    pull = there.start(jane, "sh-pull", "--for-site", "-q", there.push("private/hush", content("hush")))
    seen = set()
    while pull.poll() is None:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"/proc/{pull.pid}/" not in str(file):
                    seen |= {words} if "sh-flatten" in words or "sh-stage" in words else set()
    assert pull.communicate()[0]
    assert pull.returncode == 0
    assert {word for words in seen for word in ("sh-flatten", "sh-stage") if word in words} == {
        "sh-flatten",
        "sh-stage",
    }
    assert not [words for words in seen if "hush" in words]


def test_a_host_that_is_not_there_leaves_nothing_in_the_cache(there: Site) -> None:
    host = f"127.0.0.1:{free_port()}"
    there.know(host)
    assert there.pull(there.people[0], f"{host}/a:1").returncode == 75
    assert not (there.home / ".cache/shoebox/from" / host.replace(":", "+")).exists()
