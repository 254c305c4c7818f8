"""sh-stage --for-site: users' own files enter the store of the site's account, written anew. Real sudo, real users."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures import layers as odd
from fixtures.gateway import Site, keys, site, until
from fixtures.images import image, tar
from fixtures.installed import own_bin
from fixtures.rootfs import make_tree, sif

from shoebox import request

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
CONFIG = {"architecture": "amd64", "os": "linux", "config": {"Env": ["OWN=a b"], "WorkingDir": "/usr"}}
PATIENCE = 30.0  # seconds


@pytest.fixture(scope="module")
def there(prefix: Path) -> Iterator[Site]:
    with site(prefix) as made:
        yield made


@pytest.fixture
def jane(there: Site) -> Iterator[Jane]:
    """Return the first of the people, whose files in her home are her own."""
    yield Jane(there)
    until(lambda: not there.processes())
    assert not list((there.home / ".cache/shoebox/queue").glob("*"))
    assert not list((there.home / ".cache/shoebox/imports").glob("*"))


class Jane:
    def __init__(self, there: Site) -> None:
        self.there, self.name = there, there.people[0]
        self.home = there.top / self.name

    def __call__(self, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
        return self.there.run(self.name, *words, **more)

    def ok(self, *words: str, **more: object) -> str:
        done = self(*words, **more)
        assert done.returncode == 0, done
        return done.stdout.removesuffix("\n")

    def fails(self, *words: str, status: int = 1, **more: object) -> str:
        done = self(*words, **more)
        assert (done.returncode, done.stdout) == (status, ""), done
        assert "Traceback" not in done.stderr
        return done.stderr

    def called(self, name: str) -> str:
        return f"localhost/{self.name}/{name}"

    def file(self, name: str, data: bytes) -> Path:
        path = self.home / name
        path.write_bytes(data)
        shutil.chown(path, self.name, self.name)
        return path

    def squashfs(self, name: str, word: str = "", maker: str = "gzip") -> Path:
        """Make a squashfs as another tool makes them."""
        path = self.home / name
        words = ["tar2sqfs", "-q", "-f", "-c", maker, str(path)]
        members = {"hello": (word or secrets.token_hex(8)).encode(), "usr/more": b"x" * 10_000}
        subprocess.run(words, input=tar(members), check=True)
        shutil.chown(path, self.name, self.name)
        return path


def images(there: Site) -> set[str]:
    return {path.name for path in there.store.glob("sha256-*")}


def known(path: str) -> dict[str, object]:
    return json.loads(Path(path).with_suffix(".json").read_text())


def test_a_file_of_ones_own_gets_into_the_store_under_ones_own_name_and_runs_from_there(there: Site, jane: Jane):
    _, bob = there.people
    tree = make_tree(there.top / "tree")
    subprocess.run(["chown", "-R", f"{jane.name}:", tree], check=True)
    config = jane.file("config.json", json.dumps({**CONFIG, "rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}).encode())
    made = jane.ok("sh-flatten", "--name", jane.called("box:1"), f"--config={config}", str(tree))
    staged = jane.ok("sh-stage", "--for-site", stdin=f"{made}\n".encode())
    assert Path(staged).parent == there.store
    assert Path(staged).stat().st_uid == there.uid
    assert (there.store / f"localhost/{jane.name}/box/1.sqfs").resolve() == Path(staged)
    sidecar = known(staged)
    assert (sidecar["reference"], sidecar["manifest"], sidecar["config"]) == (jane.called("box:1"), None, CONFIG)
    assert sidecar["writer"]["program"] == "tar2sqfs"
    env = {"SHOEBOX_PATH": str(there.store), "SHOEBOX_CACHE": str(there.top / bob / "cache")}
    done = there.run(bob, "sh-run", jane.called("box:1"), "sh", "-c", "echo $OWN", **env)
    assert done.stdout == "a b\n", done
    rows = json.loads(there.run(bob, "sh-images", "--json", **env).stdout)
    assert [(row["name"], row["private"]) for row in rows] == [(jane.called("box:1"), False)]


def test_what_somebody_else_packed_is_written_anew_and_once(there: Site, jane: Jane):
    source = jane.squashfs("odd.sqfs", "anew")
    staged = jane.ok("sh-stage", "--for-site", f"--name={jane.called('odd:1')}", "./odd.sqfs")
    assert Path(staged).read_bytes() != source.read_bytes()
    assert known(staged)["writer"]["compressor"] == "zstd"
    assert odd.names(odd.tree(staged)) == {"hello", "usr", "usr/more"}
    before = Path(staged).stat().st_ino
    sif(source, jane.home / "odd.sif")
    shutil.chown(jane.home / "odd.sif", jane.name)
    again = jane.ok("sh-stage", "-q", "--for-site", f"--name={jane.called('odd:2')}", "./odd.sif")
    assert (again, Path(again).stat().st_ino) == (staged, before)
    links = [(there.store / f"localhost/{jane.name}/odd/{tag}.sqfs").resolve() for tag in (1, 2)]
    assert links == [Path(staged)] * 2
    # A tar, a directory, an archive: by way of sh-flatten.
    jane.file("x.tar", tar({"hello": b"anew", "usr/more": b"x" * 10_000}))
    made = jane.ok("sh-flatten", "--name", jane.called("tar"), "x.tar")
    assert jane.ok("sh-stage", "--for-site", made) == staged


def test_an_image_that_has_no_name_of_ones_own_needs_one(there: Site, jane: Jane):
    _, bob = there.people
    layout = jane.home / "layout"
    archive = jane.home / "x.tar"
    made = image(tar({"hello": b"x"}))
    odd_name = "docker.io/library/debian:12"
    with contextlib.suppress(FileExistsError):
        layout.mkdir()
    write_docker_archive(archive, made, odd_name)
    flat = jane.ok("sh-flatten", f"docker-archive:{archive}")
    assert known(flat)["reference"] == odd_name
    before = images(there)
    said = jane.fails("sh-stage", "--for-site", flat, status=2)
    assert said.endswith(f"give one with --name localhost/{jane.name}/NAME[:TAG]\n")
    for name in (odd_name, f"localhost/{bob}/x:1", "debian:12", f"localhost/{jane.name}/x@sha256:{'0' * 64}"):
        said = jane.fails("sh-stage", "--for-site", "--name", name, flat, status=2)
        assert said.endswith(f"write localhost/{jane.name}/NAME[:TAG]\n"), said
    assert images(there) == before
    assert Path(jane.ok("sh-stage", "--for-site", "--name", jane.called("debian:12"), flat)).parent == there.store
    assert not (there.store / "docker.io").exists()


def write_docker_archive(path: Path, made: object, name: str) -> None:
    config = json.dumps(CONFIG).encode()
    listed = [{"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]}]
    path.write_bytes(tar({"manifest.json": json.dumps(listed).encode(), "c.json": config, "l.tar": tar({"a": b"a"})}))


def hello(kind: str, name: str, *more: str) -> bytes:
    return " ".join(["shoebox 1", kind, f"reference={name}", *more]).encode() + b"\n"


def framed(*streams: bytes) -> bytes:
    return b"".join(map(bytes, request.frames([[stream] if stream else [] for stream in streams])))


@pytest.mark.parametrize("kind", ["import", "remove"])
def test_whoever_speaks_to_the_account_himself_gets_no_further(there: Site, jane: Jane, kind: str):
    _, bob = there.people
    before = images(there)
    for name in ("docker.io/library/debian:12", f"localhost/{bob}/x:1", "localhost/x:1", "localhost:5000/x/y:1"):
        done = jane(*there.sudo, stdin=hello(kind, name) + framed(b"", tar({"a": b"a"})), hold=True)
        assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["shoebox", "fail"], done
        assert f"write localhost/{jane.name}/NAME[:TAG]" in done.stdout
    assert images(there) == before


HOSTILE = {
    "a name that leads out": framed(b"", tar({"../../x": b"x"})),
    "no tar": framed(b"", b"x" * 3000),
    "nothing": framed(b"", b""),
    "half a tar": framed(b"", tar({"a": b"x" * 5000})[:3000]),
    "a damaged squashfs": framed(b"", b"hsqs" + b"\xff" * 3000),
    "a config that is none": framed(b"[1]", tar({"a": b"a"})),
    "a config as a program": framed(b'{"config": {"Env": 1}}', tar({"a": b"a"})),
    "a config without end": b"\x00\x10\x00\x00" * 1_500_000,
    "frames that are too large": b"\xff" * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bytes_are_refused_and_leave_nothing(there: Site, jane: Jane, kind: str):
    before = images(there)
    done = jane(*there.sudo, stdin=hello("import", jane.called("evil:1")) + HOSTILE[kind], hold=True)
    assert "Traceback" not in done.stderr, done
    assert done.stdout.splitlines()[-1].startswith("fail "), done
    assert images(there) == before
    assert not (there.store / f"localhost/{jane.name}/evil").exists()


@pytest.mark.parametrize("cut", ["in the config", "in a frame", "between frames"])
def test_a_connection_that_breaks_off_is_no_end(there: Site, jane: Jane, cut: str):
    whole = tar({"a": b"x" * 100_000})
    sent = {"in the config": b"\x00\x00\x10\x00{", "in a frame": framed(b"", whole)[:50_000]}
    sent["between frames"] = framed(b"", whole)[:-4]  # all of it, but nobody has said so
    before = images(there)
    talk = there.start(jane.name, *there.sudo, text=False, stderr=subprocess.DEVNULL)
    talk.stdin.write(hello("import", jane.called("cut:1")) + sent[cut])
    talk.stdin.flush()
    assert [talk.stdout.readline() for _ in range(2)] == [b"shoebox 1\n", b"send\n"]
    talk.stdin.close()
    assert talk.stdout.read() == b""
    talk.wait(PATIENCE)
    talk.stdout.close()
    until(lambda: not there.processes())
    assert images(there) == before
    assert not list((there.home / ".cache/shoebox/imports").iterdir())


def test_a_transfer_whose_account_is_killed_begins_again(there: Site, jane: Jane):
    jane.file("tools", b"").unlink()
    tools = jane.home / "tools"
    tools.mkdir()
    half, go = jane.home / "half", jane.home / "go"
    script = f'{shutil.which("sqfs2tar")} "$@" | {{ head -c 1500000; touch {half}\n'
    script += f"while [ ! -e {go} ]; do sleep 0.05; done; cat; }}\n"
    (tools / "sqfs2tar").write_text(f"#!/bin/sh\n{script}")
    (tools / "sqfs2tar").chmod(0o755)
    path = jane.home / "large.sqfs"
    large = os.urandom(5_000_000)
    subprocess.run(["tar2sqfs", "-q", "-f", path], input=tar({"large": large}), check=True)
    words = ["sh-stage", "--for-site", f"--name={jane.called('large:1')}", str(path)]
    env = {**there.words(jane.name)["env"]}
    env["PATH"] = f"{tools}:{env['PATH']}"
    pull = there.start(jane.name, *words, env=env)
    until(half.exists)
    assert len(list((there.home / ".cache/shoebox/imports").iterdir())) == 1
    mine = json.loads(there.run(jane.name, "sh-images", "--pending", "--json").stdout)
    assert [(row["state"], row["reference"]) for row in mine] == [("receive", jane.called("large:1"))]
    victims = there.processes()
    assert victims
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    go.touch()
    out, err = pull.communicate(timeout=120)
    assert pull.returncode == 0, err
    assert "the connection broke: once more" in err
    assert err.count(": sending") == 2
    assert (there.store / f"localhost/{jane.name}/large/1.sqfs").resolve() == Path(out.strip())
    assert odd.tree(out.strip())["large"].content == large


def test_what_is_private_stays_so_and_readers_may_be_named(there: Site, jane: Jane):
    _, bob = there.people
    source = jane.squashfs("secret.sqfs")
    source.chmod(0o600)
    name = jane.called("secret:1")
    staged = jane.ok("sh-stage", "--for-site", f"--name={name}", str(source))

    def readers() -> list[bool]:
        return [there.run(who, "cat", staged).returncode == 0 for who in there.people]

    assert readers() == [True, False]
    assert there.run(bob, "cat", staged.replace(".sqfs", ".json")).returncode == 1
    subprocess.run(["setfacl", "-m", f"u:{bob}:r", source], check=True)  # the source's own readers go with it
    assert jane.ok("sh-stage", "--for-site", f"--name={name}", str(source)) == staged
    assert readers() == [True, True]
    assert there.run("nobody", "cat", staged, group="nogroup").returncode == 1
    other = jane.squashfs("other.sqfs")  # for everybody, but named are some
    staged = jane.ok("sh-stage", "--for-site", f"--name={jane.called('other:1')}", "--user", bob, str(other))
    assert readers() == [True, True]
    assert there.run("nobody", "cat", staged, group="nogroup").returncode == 1
    assert jane("sh-stage", "--for-site", "--mode=644", str(other)).returncode == 2


def test_the_site_says_who_may_bring_in_what(there: Site, jane: Jane, prefix: Path):
    _, bob = there.people
    source = str(jane.squashfs("may.sqfs"))
    words = ["sh-stage", "--for-site", f"--name={jane.called('may:1')}", source]
    large = jane.squashfs("large.sqfs", "x" * 200_000)
    policy = prefix / "etc/policy.json"
    accept, reject = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
    before = images(there)
    group = pwd.getpwnam(jane.name).pw_name  # useradd gives one of that name
    try:
        for rule in ("none", bob, f"{bob}, @{bob}"):
            there.conf(f"account = {there.account}\nimport = {rule}")
            said = jane.fails(*words)
            assert said.endswith(
                f"{jane.name!r} may not bring in files of their own: site.conf says who may: "
                "ask those who run this site\n"
            )
            assert said.count("\n") == 1
        there.conf(f"account = {there.account}\nimport-size = 100K")
        said = jane.fails("sh-stage", "-q", "--for-site", f"--name={jane.called('l')}", str(large))
        assert said == f"sh-stage: refused '{jane.called('l:latest')}': it is larger than the site allows\n"
        there.conf(f"account = {there.account}")
        policy.write_text(json.dumps({"default": accept, "transports": {"docker": {"localhost": reject}}}))
        assert f"'{jane.called('may:1')}' is refused by '{policy}'" in jane.fails(*words)
        policy.unlink()
        assert images(there) == before
        there.conf(f"account = {there.account}\nimport = @{group}")
        assert jane.ok(*words)
    finally:
        policy.unlink(missing_ok=True)
        there.conf(f"account = {there.account}")


def test_one_removes_what_one_has_brought_in_and_nothing_else(there: Site, jane: Jane):
    _, bob = there.people
    source = jane.squashfs("gone.sqfs")
    names = [jane.called("gone:1"), jane.called("gone:2")]
    for name in names:
        staged = jane.ok("sh-stage", "--for-site", f"--name={name}", str(source))
    source.chmod(0o644)
    bobs = f"localhost/{bob}/gone:1"
    jane.home.chmod(0o755)
    done = there.run(bob, "sh-stage", "--for-site", f"--name={bobs}", str(source))
    assert done.stdout.strip() == staged
    assert "write localhost/" in jane.fails("sh-rm", "--for-site", bobs, status=2)
    assert jane("sh-rm", "--for-site", "--pin", names[0]).returncode == 2
    for name in (*names, bobs):
        assert Path(staged).exists()
        link = there.store / f"{name.replace(':', '/')}.sqfs"
        assert link.is_symlink()
        who = bob if name == bobs else jane.name
        done = there.run(who, "sh-rm", "--for-site", name)
        assert done.returncode == 0, done
        assert not link.is_symlink()
    assert done.stdout.strip() == staged
    assert not Path(staged).exists()
    said = jane.fails("sh-rm", "--for-site", names[0])
    assert f"no image '{names[0]}'" in said


def test_a_site_of_several_systems_and_a_kernel_that_mounts_them(there: Site, jane: Jane, prefix: Path):
    other = there.top / "other"
    other.mkdir()
    shutil.chown(other, there.account, there.account)
    (prefix / "etc/mount.conf").write_text(f"store {there.store}\nstore {other}\nowner {there.uid}\n")
    table = prefix / "etc/systems.toml"
    here = f'[system.a]\nstore = "{there.store}"\n[system.b]\nstore = "{other}"\n'
    try:
        table.write_text(here)
        name = jane.called("systems:1")
        source = str(jane.squashfs("systems.sqfs"))
        made = jane.ok("sh-stage", "--for-site", f"--name={name}", source).splitlines()
        assert {Path(path).parent for path in made} == {there.store, other}
        assert sorted(jane.ok("sh-rm", "--for-site", name).splitlines()) == sorted(made)
        assert not any(os.path.exists(path) for path in made)
        assert f"no image '{name}' in " in jane.fails("sh-rm", "--for-site", name)
        table.write_text(here + '[system.c]\nstore = "far.site.org:/images"\n')
        assert f"'{name}' may still be in far.site.org:/images: " in jane.fails("sh-rm", "--for-site", name)
    finally:
        (prefix / "etc/mount.conf").unlink()
        table.unlink()


def test_names_of_imports_are_no_registrys(there: Site, jane: Jane, prefix: Path):
    _, bob = there.people
    shifterimg = f"{own_bin(prefix)}/shifterimg"
    for words in (["sh-pull"], ["sh-pull", "--for-site"], [shifterimg, "pull"]):
        done = jane(*words, f"localhost/{bob}/x")
        assert done.returncode == 1, done
        assert "no registry has this: names below localhost/ are of users' own files" in done.stderr
        assert done.stderr.count("\n") == 1
    config = jane.home / ".config/shoebox"
    config.mkdir(parents=True, exist_ok=True)
    (config / "registries.toml").write_text(f'[registry.localhost]\nurl = "http://{there.host}"\n')
    assert "no registry has this" in jane.fails("sh-pull", f"localhost/{bob}/x")
    (config / "registries.toml").unlink()


def test_by_ssh_the_key_says_whose_names_they_are(there: Site, jane: Jane, tmp_path: Path):
    _, bob = there.people
    line = f'restrict,command="{there.gateway} --for {jane.name}" {keys(tmp_path)}\n'
    (there.top / "authorized").write_text(line)
    path = there.ssh(tmp_path, jane.name, f"AuthorizedKeysFile {there.top}/authorized\n")
    source = str(jane.squashfs("ssh.sqfs", os.urandom(300_000).hex()))
    there.conf(f"account = {there.account}@far\nimport = {jane.name}")
    try:
        name = jane.called("ssh:1")
        staged = jane.ok("sh-stage", "--for-site", f"--name={name}", source, PATH=path)
        assert (there.store / f"localhost/{jane.name}/ssh/1.sqfs").resolve() == Path(staged)
        said = jane.fails("sh-stage", "--for-site", "-q", f"--name=localhost/{bob}/x", source, PATH=path, status=2)
        assert said.count("\n") == 1
        assert jane.ok("sh-rm", "--for-site", name, PATH=path) == staged
    finally:
        there.conf(f"account = {there.account}")


def test_one_import_of_a_user_at_a_time_takes_a_turn(there: Site, jane: Jane):
    """So many connections as he likes that send nothing do not keep the others waiting."""
    _, bob = there.people
    talks = []
    try:
        for n in range(3):
            talk = there.start(jane.name, *there.sudo, text=False)
            talk.stdin.write(hello("import", jane.called(f"idle:{n}")))
            talk.stdin.flush()
            talk.stdout.readline()
            talks.append(talk)
            until(lambda n=n: len(list((there.home / ".cache/shoebox/queue").glob("[0-9]*"))) > n)
        begun = time.monotonic()
        jane.home.chmod(0o755)
        source = jane.squashfs("bobs.sqfs")
        done = there.run(bob, "sh-stage", "--for-site", f"--name=localhost/{bob}/x", str(source))
        assert done.returncode == 0, done
        assert time.monotonic() - begun < PATIENCE
    finally:
        for talk in talks:
            talk.stdin.close()
            talk.stdout.read()
            talk.stderr.read()
            talk.wait(PATIENCE)
            talk.stdout.close()
            talk.stderr.close()
