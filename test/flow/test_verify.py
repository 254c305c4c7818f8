"""sh-verify, and the site's policy on signatures: at pull, flatten and stage, against a real registry."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from fixtures.images import ARCHITECTURE, Image, digest_of, image, index, push, tar
from fixtures.installed import Shell
from fixtures.registry import Answer, Place, Seen, docker_registry, front, registry
from fixtures.signing import (
    ARTIFACT,
    Key,
    attach,
    keys,
    payload,
    signatures,
)

__all__ = ["keys", "registry"]  # fixtures
LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {lib!r})
from shoebox import launch, paths
launch.ready()
paths.SITE = {site!r}
from shoebox.fail import main
from shoebox.{module} import run
main(run)
"""
ACCEPT = [{"type": "insecureAcceptAnything"}]


class Desk:
    """A user whose site has a policy: its directory, and what the commands of this machine then say."""

    def __init__(self, cmd: Shell, site: Path, place: Place) -> None:
        self.cmd, self.site, self.place = cmd, site, place

    def policy(self, scope: str = "app", **requirement: object) -> None:
        """Let the site want signatures of one repository, and nothing of others."""
        required = [{"type": "sigstoreSigned", **requirement}]
        docker = {f"{self.place.host}/{scope}": required}
        self.write({"default": ACCEPT, "transports": {"docker": docker}})

    def write(self, document: object) -> None:
        (self.site / "policy.json").write_text(document if isinstance(document, str) else json.dumps(document))

    def ref(self, tag: str) -> str:
        return f"{self.place.host}/app:{tag}"

    def refused(self, *words: str | Path, by: str) -> None:
        """Run a command that must be refused, in one line, and make nothing."""
        done = self.cmd(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert by in done.stderr

    def blobs(self) -> set[str]:
        return {path.name for path in Path(self.cmd.env["SHOEBOX_CACHE"], "oci/blobs/sha256").glob("[0-9a-f]*")}


@pytest.fixture
def desk(cmd: Shell, prefix: Path, tmp_path: Path, registry: Place) -> Desk:
    (site := tmp_path / "site").mkdir()
    (tmp_path / "bin").mkdir()
    lib = str(next(prefix.glob("lib/shoebox/*/lib")))
    for name in ("pull", "flatten", "stage", "verify"):
        launcher = tmp_path / f"bin/sh-{name}"
        launcher.write_text(LAUNCHER.format(lib=lib, site=str(site), module=name))
        launcher.chmod(0o755)
    cmd.env["PATH"] = f"{tmp_path}/bin:{cmd.env['PATH']}"
    return Desk(cmd, site, registry)


def pushed(desk: Desk, tag: str, text: str = "") -> Image:
    """Push an image of its own for each test."""
    made = image(tar({"hello": (text or tag).encode()}))
    push(desk.place.url, "app", tag, made)
    return made


def signed(desk: Desk, tag: str, key: Key, room: Path, name: str = "", digest: str = "") -> Image:
    """Push an image, signed."""
    made = pushed(desk, tag)
    text = payload(digest or made.digest, name or desk.ref(tag))
    attach(desk.place, "app", made.digest, signatures((text, key.sign(text, room))))
    return made


@pytest.mark.parametrize("kind", ["ec", "ed25519", "rsa"])
def test_what_is_signed_is_pulled_flattened_staged_and_verified(
    desk: Desk, keys: dict[str, Key], tmp_path: Path, kind: str
) -> None:
    tag, public = f"by-{kind}", keys[kind].public
    desk.policy(keyPath=str(public))
    made = signed(desk, tag, keys[kind], tmp_path)
    path = desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", desk.ref(tag)))
    staged = desk.cmd.ok("sh-stage", "-d", tmp_path / "store", path)
    assert made.digest.removeprefix("sha256:") in staged
    known = json.loads(Path(staged.replace(".sqfs", ".json")).read_text())
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], check=True, capture_output=True
    )
    signer = {"key": repr(str(public)), "sha256": digest_of(der.stdout)[7:], "identity": desk.ref(tag)}
    assert known["signed"]["verified"] == [signer]
    assert desk.cmd.ok("sh-verify", staged) == f"{staged}: good: as its sidecar says, signed by '{public}'"
    desk.policy(keyData=base64.b64encode(keys["other"].public.read_bytes()).decode())
    desk.refused("sh-pull", desk.ref(tag), by="it is signed by none of the key sha256:")
    desk.refused("sh-stage", "-d", tmp_path / "another", staged, by="it is signed by none of the key sha256:")


def test_a_wrong_key_another_digest_or_another_name_is_refused_before_a_blob_is_fetched(
    desk: Desk, keys: dict[str, Key], tmp_path: Path
) -> None:
    desk.policy(keyPath=str(keys["ec"].public))
    signed(desk, "wrong-key", keys["other"], tmp_path)
    signed(desk, "wrong-digest", keys["ec"], tmp_path, digest=digest_of(b"another"))
    signed(desk, "wrong-name", keys["ec"], tmp_path, name=desk.ref("another"))
    signed(desk, "bare-name", keys["ec"], tmp_path, name=f"{desk.place.host}/app")
    pushed(desk, "unsigned")
    for tag, by in (
        ("wrong-key", "it is signed by none of"),
        ("wrong-digest", "is another image, sha256:"),
        ("wrong-name", "and the policy says 'matchRepoDigestOrExact'"),
        ("bare-name", "and the policy says 'matchRepoDigestOrExact'"),
        ("unsigned", "it has no signature"),
    ):
        desk.refused("sh-pull", desk.ref(tag), by=by)
    assert desk.blobs() == set()
    desk.policy(keyPath=str(keys["ec"].public), signedIdentity={"type": "matchRepository"})
    assert desk.cmd.ok("sh-pull", desk.ref("bare-name"), desk.ref("wrong-name")).count("\n") == 1


def test_one_good_signature_among_hostile_ones_is_enough(desk: Desk, keys: dict[str, Key], tmp_path: Path) -> None:
    made = pushed(desk, "crowd")
    desk.policy(keyPaths=[str(keys["ec"].public), str(keys["ed25519"].public)])
    good, name = payload(made.digest, desk.ref("crowd")), desk.ref("crowd")

    def by(text: bytes) -> tuple[bytes, bytes]:
        return text, keys["ec"].sign(text, tmp_path)

    twice = good.replace(b'"image":', b'"image": {"docker-manifest-digest": "%b"}, "image":' % made.digest.encode())
    hostile = [
        (good, b"no signature"),
        by(payload(digest_of(b"another"), name)),
        by(twice),
        by(b"[" * 10_000),
        by(b"\xff"),
        by(good.replace(b"cosign container", b"atomic container")),
        by(good.replace(b'"optional"', b'"more": 1, "optional"')),
        by(payload("sha256:../../x", name)),
        by(good + b" " * 20_000),
    ]
    attach(desk.place, "app", made.digest, signatures(*hostile))
    done = desk.cmd("sh-pull", desk.ref("crowd"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    attach(desk.place, "app", made.digest, signatures(*hostile[:4], by(good), *hostile[4:]))
    assert desk.cmd.ok("sh-pull", desk.ref("crowd"))
    attach(desk.place, "app", made.digest, signatures(by(good), kind="application/x-unknown"))
    desk.refused("sh-pull", desk.ref("crowd"), by="it has no signature")
    push(desk.place.url, "app", made.digest.replace(":", "-") + ".sig", index((made, None)))
    desk.refused("sh-pull", desk.ref("crowd"), by="it has no signature")


def test_who_signs_an_index_signs_what_it_lists(desk: Desk, keys: dict[str, Key], tmp_path: Path) -> None:
    desk.policy(keyPath=str(keys["ec"].public))
    made = image(tar({"hello": b"in an index"}))
    outer = index((made, {"os": "linux", "architecture": ARCHITECTURE}))
    push(desk.place.url, "app", "index", outer)
    text = payload(outer.digest, desk.ref("index"))
    attach(desk.place, "app", outer.digest, signatures((text, keys["ec"].sign(text, tmp_path))))
    path = desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", desk.ref("index")))
    assert "signed by" in desk.cmd.ok("sh-verify", path)
    push(desk.place.url, "app", "index", index((pushed(desk, "unlisted"), None)))
    desk.refused("sh-pull", desk.ref("index"), by="it has no signature")


@pytest.mark.parametrize("api", [True, False], ids=["asked for", "by the tag for registries that keep none"])
def test_signatures_that_refer_to_the_image_are_found(
    desk: Desk, keys: dict[str, Key], tmp_path: Path, api: bool
) -> None:
    made = pushed(desk, f"referred{api}")
    name = f"{desk.place.host}/app:referred{api}"
    text = payload(made.digest, name)
    sig = signatures((text, keys["ec"].sign(text, tmp_path)), config=ARTIFACT, subject={"digest": made.digest})
    push(desk.place.url, "app", sig.digest, sig)
    entries = json.loads(index((sig, None)).manifest)
    entries["manifests"][0]["artifactType"] = ARTIFACT
    listing = json.dumps(entries).encode()
    if not api:  # Debian's docker-registry knows no referrers
        push(desk.place.url, "app", made.digest.replace(":", "-"), Image(listing, entries["mediaType"]))

    def meddle(seen: Seen, ask: object) -> Answer:
        if api and "/referrers/" in seen.path:
            return Answer(200, listing, {"Content-Type": entries["mediaType"]})
        return ask()

    desk.policy(keyPath=str(keys["ec"].public))
    with front(desk.place, meddle) as server:
        config = desk.cmd.home / ".config/shoebox"
        config.mkdir(parents=True)
        (config / "registries.toml").write_text(f'[registry."{desk.place.host}"]\nurl = "{server.url}"\n')
        assert desk.cmd.ok("sh-pull", name)
        assert server.paths(f"/referrers/{made.digest}")


def test_flatten_and_stage_check_what_came_without_the_policy(desk: Desk, keys: dict[str, Key], tmp_path: Path) -> None:
    pushed(desk, "early")
    name = desk.cmd.ok("sh-pull", desk.ref("early"))
    path = desk.cmd.ok("sh-flatten", name)
    desk.policy(keyPath=str(keys["ec"].public))
    desk.refused("sh-flatten", name, by="it has no signature")
    desk.refused("sh-flatten", "-o", tmp_path / "x.sqfs", name, by="it has no signature")
    desk.refused("sh-flatten", "--tar", name, by="it has no signature")
    desk.refused("sh-stage", "-d", tmp_path / "store", path, by="it has no signature")
    assert list((tmp_path / "store").rglob("*.sqfs")) == []
    done = desk.cmd("sh-verify", path)
    assert done.returncode == 1
    assert "is refused by" in done.stdout
    signed(desk, "early", keys["ec"], tmp_path)
    assert desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", desk.ref("early"))) == path  # the sidecar learns of it
    assert desk.cmd.ok("sh-stage", "-d", tmp_path / "store", path)


def test_a_name_that_the_policy_refuses_does_not_come_along(desk: Desk, keys: dict[str, Key], tmp_path: Path) -> None:
    made = pushed(desk, "two-names")
    push(desk.place.url, "free", "1", made)
    desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", desk.ref("two-names")))
    path = desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", f"{desk.place.host}/free:1"))
    desk.policy(keyPath=str(keys["ec"].public))
    desk.refused("sh-stage", "-d", tmp_path / "store", path, by=f"'{desk.ref('two-names')}' is refused")
    desk.write({"default": [{"type": "reject"}]})
    (tmp_path / "tree").mkdir()
    desk.refused("sh-flatten", tmp_path / "tree", by="an image without a name")


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("{", "not JSON"),
        ('{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}', "said twice"),
        ("{}", "it has no 'default'"),
        ('{"default": []}', "an empty one"),
        ('{"default": [{"type": "maybe"}]}', "unknown type 'maybe'"),
        ('{"default": [{"type": "sigstoreSigned"}]}', "needs one of keyPath"),
        ('{"default": [{"type": "sigstoreSigned", "keyPath": "/nonexistent/key"}]}', "there is no key"),
        ('{"default": [{"type": "sigstoreSigned", "keyPath": "/etc/passwd"}]}', "not a public key"),
        ('{"default": [{"type": "sigstoreSigned", "keyData": "eA==", "fulcio": {}}]}', "keyless"),
        ('{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]}', "GPG"),
    ],
)
def test_a_policy_that_nobody_understands_lets_nothing_in(desk: Desk, text: str, by: str) -> None:
    pushed(desk, "any")
    desk.write(text)
    for words in (["sh-pull", desk.ref("any")], ["sh-flatten", "."], ["sh-stage", "x.sqfs"], ["sh-verify", "x.sqfs"]):
        desk.refused(*words, by=by)
    assert desk.blobs() == set()


def test_an_image_is_held_against_its_sidecar(desk: Desk, tmp_path: Path) -> None:
    pushed(desk, "file")
    path = Path(desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", desk.ref("file"))))
    assert desk.cmd.ok("sh-verify", desk.ref("file")) == f"{path}: good: as its sidecar says"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    (tmp_path / "odd.sqfs").write_bytes(path.read_bytes())
    path.write_bytes(data)
    done = desk.cmd("sh-verify", stdin=f"{path}\n{tmp_path}/odd.sqfs\n{tmp_path}/absent.sqfs\n")
    assert (done.returncode, done.stderr) == (1, "")
    damaged, odd, absent = done.stdout.splitlines()
    assert damaged.startswith(f"{path}: failed: cannot use")
    assert "its sidecar says" in damaged
    assert odd.startswith(f"{tmp_path}/odd.sqfs: unknown: no sidecar lies beside it")
    assert absent.startswith(f"{tmp_path}/absent.sqfs: failed: ")


def test_the_registry_is_asked_where_the_name_leads(desk: Desk, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as place:
        desk.place = place
        made = pushed(desk, "1")
        path = desk.cmd.ok("sh-flatten", desk.cmd.ok("sh-pull", desk.ref("1")))
        assert desk.cmd.ok("sh-verify", "--registry", path).endswith(f"says, '{desk.ref('1')}' leads to it")
        later = pushed(desk, "1", "later")
        done = desk.cmd("sh-verify", "--registry", path)
        assert (done.returncode, done.stdout) == (1, f"{path}: moved: '{desk.ref('1')}' is {later.digest} by now\n")
        subprocess.run(
            ["skopeo", "delete", "--tls-verify=false", f"docker://{place.host}/app@{made.digest}"], check=True
        )
        done = desk.cmd("sh-verify", "--registry", path)
        assert (done.returncode, done.stdout.partition(": ")[2].partition(":")[0]) == (1, "gone")
    done = desk.cmd("sh-verify", "--registry", path)
    assert (done.returncode, done.stdout.partition(": ")[2].partition(":")[0]) == (75, "unknown")


def test_an_image_is_made_again_bit_for_bit(desk: Desk) -> None:
    pushed(desk, "again")
    name = desk.cmd.ok("sh-pull", desk.ref("again"))
    path = Path(desk.cmd.ok("sh-flatten", "-c", "gzip", "-l", "9", "--readable", name))
    assert desk.cmd.ok("sh-verify", "--rebuild", path).endswith("says, rebuilt bit for bit")
    known = path.with_suffix(".json")
    text = known.read_text()
    writer = json.loads(text)["writer"]
    known.write_text(text.replace(f'"version":"{writer["version"]}"', '"version":"0.1"'))
    done = desk.cmd("sh-verify", "--rebuild", path)
    assert done.returncode == 1
    assert ": unknown: it cannot be rebuilt here: its writer is another: version '0.1', here " in done.stdout
    # Another file than the manifest's, with a sidecar that fits it: only making it again can tell.
    pushed(desk, "swapped", "swapped")
    other = Path(desk.cmd.ok("sh-flatten", "-c", "gzip", "-l", "9", desk.cmd.ok("sh-pull", desk.ref("swapped"))))
    there = json.loads(other.with_suffix(".json").read_text())["squashfs"]
    mine = json.loads(text)["squashfs"]
    assert there["sha256"] != mine["sha256"]
    first, newline, rest = text.partition("\n")
    path.write_bytes(other.read_bytes())
    beside = first.replace(mine["sha256"], there["sha256"]).replace(f":{mine['size']}}}", f":{there['size']}}}")
    known.write_text(beside + newline + rest)
    done = desk.cmd("sh-verify", "--rebuild", path)
    assert done.returncode == 1
    assert ": differs: rebuilt from sha256:" in done.stdout
