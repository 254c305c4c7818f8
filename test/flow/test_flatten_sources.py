"""What sh-flatten reads: layouts and archives made by other tools, tars, directories, pipes; and what it refuses."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import pyzstd
from fixtures import images
from fixtures import layers as odd
from fixtures.layers import directory, file, layer, link, symlink, whiteout

STACK = [layer(directory("d"), file("d/a"), file("gone"), link("h", "d/a")), layer(whiteout("gone"), file("d/b"))]
NAMES = {"d", "d/a", "d/b", "h"}


@pytest.fixture
def flatten(cmd, tmp_path):
    return odd.Flatten(cmd, tmp_path)


@pytest.fixture
def name(tmp_path) -> str:
    """Make a layout of two layers."""
    return odd.layout(tmp_path / "layout", *STACK)


def skopeo(cmd, source: str, target: str) -> None:
    """Copy an image."""
    cmd.ok("skopeo", "--insecure-policy", "copy", "-q", source, target)


def sidecar(image: str) -> dict[str, object]:
    """Read the JSON beside an image."""
    return json.loads(Path(image).with_suffix(".json").read_text())


def piped(cmd, source: Path, *words: str, packed=lambda data: data) -> subprocess.CompletedProcess[bytes]:
    """Run sh-flatten with a file's bytes coming through a pipe."""
    data = packed(source.read_bytes())
    return subprocess.run(
        ["sh-flatten", *words], input=data, env=cmd.env, cwd=cmd.home, capture_output=True, check=False
    )


# Layouts


def test_layouts_that_skopeo_and_umoci_made_are_read(cmd, tmp_path, name):
    skopeo(cmd, name, f"oci:{tmp_path}/by-skopeo:tag")
    cmd.ok("umoci", "init", "--layout", tmp_path / "by-umoci")
    cmd.ok("umoci", "new", "--image", f"{tmp_path}/by-umoci:tag")
    (tmp_path / "layer.tar").write_bytes(STACK[0])
    cmd.ok("umoci", "raw", "add-layer", "--image", f"{tmp_path}/by-umoci:tag", tmp_path / "layer.tar")
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"oci:{tmp_path}/by-skopeo:tag"))) == NAMES
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"oci:{tmp_path}/by-umoci:tag"))) == {"d", "d/a", "gone", "h"}


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("buildah"), reason="no buildah on this machine")
def test_a_layout_that_buildah_made_is_read(cmd, tmp_path):
    buildah = ["buildah", "--storage-driver", "vfs", "--root", tmp_path / "root", "--runroot", tmp_path / "run"]
    (tmp_path / "f").write_text("x")
    made = cmd.ok(*buildah, "from", "scratch")
    cmd.ok(*buildah, "copy", made, tmp_path / "f", "/etc/f")
    cmd.ok(*buildah, "commit", made, f"oci:{tmp_path}/layout:tag")
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"oci:{tmp_path}/layout:tag"))) == {"etc", "etc/f"}


def test_the_only_image_of_a_layout_needs_no_name_and_of_several_one_is_named(cmd, tmp_path, name):
    where = name.removeprefix("oci:").partition(":")[0]
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"oci:{where}"))) == NAMES
    two = images.to_layout(tmp_path / "two", one=odd.image(STACK[0]), other=odd.image(STACK[1]))
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"oci:{two}:other"))) == {"d", "d/b"}
    done = cmd("sh-flatten", f"oci:{two}:third")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "has no image 'third': it has one, other" in done.stderr


def test_the_same_image_has_the_same_digest_from_a_layout_and_from_an_oci_archive(cmd, tmp_path, name):
    skopeo(cmd, name, f"oci-archive:{tmp_path}/a.tar:odd:1")
    one = cmd.ok("sh-flatten", name)
    assert cmd.ok("sh-flatten", f"oci-archive:{tmp_path}/a.tar:odd:1") == one
    assert cmd.ok("sh-flatten", f"oci-archive:{tmp_path}/a.tar") == one
    assert odd.names(odd.tree(one)) == NAMES


# docker save


def test_a_docker_archive_is_read_with_its_config_and_its_name(cmd, tmp_path, name):
    skopeo(cmd, name, f"docker-archive:{tmp_path}/a.tar:quay.io/some/app:7")
    made = cmd.ok("sh-flatten", f"docker-archive:{tmp_path}/a.tar")
    assert odd.names(odd.tree(made)) == NAMES
    known = sidecar(made)
    assert known["reference"] == "quay.io/some/app:7"
    assert known["config"]["config"]["Cmd"] == ["sh"]
    assert known["manifest"] is None
    assert os.path.basename(made) == f"sha256-{odd.sha256(made)}.sqfs"
    store = Path(made).parent
    assert (store / "quay.io/some/app/7.sqfs").resolve() == Path(made)


def archive(*parts: tuple[str, bytes]) -> bytes:
    """Make a tar of files."""
    return layer(*(file(name, data) for name, data in parts))


def saved(*names: str) -> bytes:
    """Make what `docker save` writes for several images; each has one layer with a file of its name's number."""
    parts, manifest = [], []
    for number, tag in enumerate(names):
        plain = layer(file(str(number)))
        config = json.dumps({"rootfs": {"diff_ids": [images.digest_of(plain)]}}).encode()
        parts += [(f"{number}/layer.tar", plain), (f"{number}.json", config)]
        manifest.append(
            {"Config": f"{number}.json", "RepoTags": [tag] if tag else None, "Layers": [f"{number}/layer.tar"]}
        )
    return archive(*parts, ("manifest.json", json.dumps(manifest).encode()))


def test_of_several_images_in_a_docker_archive_one_is_named(cmd, tmp_path):
    (tmp_path / "a.tar").write_bytes(saved("app:1", "docker.io/library/app:2", ""))
    made = cmd.ok("sh-flatten", f"docker-archive:{tmp_path}/a.tar:app:2")
    assert odd.names(odd.tree(made)) == {"1"}
    for name in (f"docker-archive:{tmp_path}/a.tar", f"docker-archive:{tmp_path}/a.tar:app:3"):
        done = cmd("sh-flatten", name)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "name one: docker-archive:FILE:NAME; it has app:1, docker.io/library/app:2" in done.stderr


@pytest.mark.parametrize("pack", [bytes, gzip.compress, pyzstd.compress], ids=["plain", "gzip", "zstd"])
def test_archives_come_through_pipes_compressed_or_not(cmd, tmp_path, name, pack):
    skopeo(cmd, name, f"docker-archive:{tmp_path}/d.tar:app:1")
    skopeo(cmd, name, f"oci-archive:{tmp_path}/o.tar:app:1")
    for scheme, path in (("docker-archive", "d.tar"), ("oci-archive", "o.tar")):
        done = piped(cmd, tmp_path / path, "-o", f"{tmp_path}/{scheme}.sqfs", f"{scheme}:/dev/stdin", packed=pack)
        assert done.returncode == 0, done.stderr
        assert odd.names(odd.tree(done.stdout.decode().strip())) == NAMES


def test_a_piped_archive_is_spooled_where_the_image_goes_and_leaves_nothing(cmd, tmp_path):
    (tmp_path / "a.tar").write_bytes(saved("app:1"))
    (tmp_path / "no-tmp").touch()
    done = subprocess.run(
        ["sh-flatten", "docker-archive:/dev/stdin"],
        input=(tmp_path / "a.tar").read_bytes(),
        env=cmd.env | {"TMPDIR": f"{tmp_path}/no-tmp"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.decode().strip())
    left = {path.name for path in made.parent.iterdir()}
    assert left == {made.name, made.with_suffix(".json").name, "docker.io"}


def test_docker_save_of_today_which_is_a_layout_too_is_read(cmd, tmp_path):
    plain = layer(file("a"))
    config = json.dumps({"rootfs": {"diff_ids": [images.digest_of(plain)]}}).encode()
    layer_path, config_path = (f"blobs/sha256/{hashlib.sha256(data).hexdigest()}" for data in (plain, config))
    manifest = [{"Config": config_path, "RepoTags": ["app:1"], "Layers": [layer_path]}]
    parts = [(layer_path, plain), (config_path, config), ("manifest.json", json.dumps(manifest).encode())]
    (tmp_path / "a.tar").write_bytes(archive(*parts))
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"docker-archive:{tmp_path}/a.tar"))) == {"a"}


def test_a_layer_that_docker_save_wrote_as_a_symlink_is_followed(cmd, tmp_path):
    plain = layer(file("a"))
    config = json.dumps({"rootfs": {"diff_ids": [images.digest_of(plain)] * 2}}).encode()
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}]
    members = [file("1/layer.tar", plain), symlink("2/layer.tar", "../1/layer.tar"), file("c.json", config)]
    (tmp_path / "a.tar").write_bytes(layer(*members, file("manifest.json", json.dumps(manifest))))
    assert odd.names(odd.tree(cmd.ok("sh-flatten", f"docker-archive:{tmp_path}/a.tar"))) == {"a"}


# Tars and directories


@pytest.mark.parametrize("pack", [bytes, gzip.compress, pyzstd.compress], ids=["plain", "gzip", "zstd"])
def test_a_root_file_system_is_read_as_a_tar_from_a_file_and_from_a_pipe(cmd, tmp_path, pack):
    (tmp_path / "root.tar").write_bytes(pack(STACK[0]))
    made = cmd.ok("sh-flatten", tmp_path / "root.tar")
    assert odd.names(odd.tree(made)) == {"d", "d/a", "gone", "h"}
    assert ".shoebox" not in odd.tree(made, config=True)
    assert {key: sidecar(made)[key] for key in ("manifest", "reference", "config")} == dict.fromkeys(
        ("manifest", "reference", "config")
    )
    done = piped(cmd, tmp_path / "root.tar", "-")
    assert done.stdout.decode().strip() == made, done.stderr


def grown(where: Path) -> Path:
    """Make a directory with a little of everything that an ordinary user can make."""
    root = where / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/conf").write_text("x")
    (root / "etc/conf").chmod(0o640)
    os.utime(root / "etc/conf", (1, 1_234_567_890.5))
    os.link(root / "etc/conf", root / "hard")
    (root / "link").symlink_to("/etc/conf")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"odd\xff\nname")).touch()
    (root / "etc").chmod(0o2750)
    return root


@pytest.mark.parametrize("index", [False, True])
def test_a_directory_is_read_and_what_is_ours_becomes_roots(cmd, tmp_path, index):
    root = grown(tmp_path)
    if index:
        tree = odd.tree_of_tar(
            subprocess.run(["sh-flatten", "--tar", root], env=cmd.env, capture_output=True, check=True).stdout
        )
    else:
        tree = odd.tree(cmd.ok("sh-flatten", root))
    assert {node.uid for node in tree.values()} == {0}
    assert {node.gid for node in tree.values()} == {0}
    conf = tree["etc/conf"]
    assert (conf.mode, conf.mtime, conf.content, tree["etc"].mode) == (0o640, 1_234_567_890, b"x", 0o2750)
    assert odd.groups(tree) >= {frozenset({"etc/conf", "hard"})}
    assert (tree["link"].link, tree["pipe"].kind) == ("/etc/conf", "fifo")
    assert os.fsdecode(b"odd\xff\nname") in tree


@pytest.mark.root
def test_a_directory_read_by_root_keeps_owners_and_devices(cmd, tmp_path):
    root = grown(tmp_path)
    os.chown(root / "etc/conf", 5, 6)
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    tree = odd.tree(cmd.ok("sh-flatten", root))
    assert (tree["etc/conf"].uid, tree["etc/conf"].gid) == (5, 6)
    assert (tree["null"].kind, tree["null"].device) == ("character", (1, 3))


def test_a_directory_that_came_from_an_image_brings_its_config_along(cmd, tmp_path):
    root = grown(tmp_path)
    (root / ".shoebox").mkdir()
    (root / ".shoebox/config.json").write_text('{"config": {"Cmd": ["x"]}}')
    assert sidecar(cmd.ok("sh-flatten", root))["config"] == {"config": {"Cmd": ["x"]}}


@pytest.mark.parametrize("link_is", ["directory", "file"])
@pytest.mark.evil(62)
def test_no_config_is_read_through_a_symlink(cmd, tmp_path, link_is):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "config.json").write_text('{"auths": {"example.org": {"auth": "c2VjcmV0"}}}')
    root = grown(tmp_path)
    if link_is == "directory":
        (root / ".shoebox").symlink_to(secret)
    else:
        (root / ".shoebox").mkdir()
        (root / ".shoebox/config.json").symlink_to(secret / "config.json")
    made = cmd.ok("sh-flatten", "-c", "gzip", root)
    assert sidecar(made)["config"] is None
    assert not any(b"c2VjcmV0" in node.content for node in odd.tree(made, config=True).values())


# What is refused


def bad(where: Path, kind: str) -> str:
    """Make something that is none of the sources, and return its name."""
    (where / "text").write_text("hello\n" * 1000)
    (where / "empty-folder").mkdir()
    (where / "not-docker.tar").write_bytes(archive(("a", b"x")))
    (where / "list.tar").write_bytes(archive(("manifest.json", b'{"a": 1}')))
    (where / "json.tar").write_bytes(archive(("manifest.json", b"[" * 100_000)))
    (where / "no-config.tar").write_bytes(archive(("manifest.json", b'[{"Layers": []}]')))
    (where / "huge-manifest.tar").write_bytes(archive(("manifest.json", b" " * (5 << 20))))
    lost = json.dumps([{"Config": "c", "Layers": ["gone.tar"]}]).encode()
    (where / "lost-layer.tar").write_bytes(archive(("c", b"{}"), ("manifest.json", lost)))
    (where / "cut.tar").write_bytes(saved("app:1")[:2500])
    nested = odd.extension(b"x", odd.record("comment", b"x")) * 3000 + odd.raw_header(b"a") + odd.END
    (where / "nested.tar").write_bytes(nested)
    (where / "circle.tar").write_bytes(layer(symlink("manifest.json", "m"), symlink("m", "manifest.json")))
    return kind.replace("HERE", str(where))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("debian:12", "sh-pull debian:12 | sh-flatten"),
        ("HERE/nothing", "No such file"),
        ("HERE/text", "not a valid tar archive"),
        ("oci:HERE/nothing", "not an OCI layout"),
        ("oci:HERE/empty-folder", "not an OCI layout"),
        ("oci:HERE/text", "not an OCI layout"),
        ("oci-archive:HERE/nothing", "No such file"),
        ("oci-archive:HERE/text", "not a tar archive"),
        ("oci-archive:HERE/not-docker.tar", "it has no 'oci-layout'"),
        ("oci-archive:HERE/empty-folder", "Is a directory"),
        ("docker-archive:HERE/not-docker.tar", "it has no 'manifest.json'"),
        ("docker-archive:HERE/text", "not a tar archive"),
        ("docker-archive:HERE/list.tar", "0 match"),
        ("docker-archive:HERE/json.tar", "not JSON"),
        ("docker-archive:HERE/no-config.tar", "it has no 'None'"),
        ("docker-archive:HERE/huge-manifest.tar", "too large"),
        ("docker-archive:HERE/lost-layer.tar", "it has no 'gone.tar'"),
        ("docker-archive:HERE/cut.tar", ""),
        ("docker-archive:HERE/nested.tar", "not a tar archive"),
        ("docker-archive:HERE/circle.tar", "it has no 'manifest.json'"),
        ("docker-archive:HERE/a.tar:UPPER", ""),
    ],
)
def test_wrong_things_are_refused_in_one_line(flatten, tmp_path, kind, told):
    name = bad(tmp_path, kind)
    assert told in flatten.refuse_name(name, status=2 if kind == "debian:12" else 1)


def test_names_from_stdin_go_on_after_one_that_fails(cmd, tmp_path, name):
    done = cmd("sh-flatten", stdin=f"{tmp_path}/nothing\n{name}\n")
    assert done.returncode == 1
    assert odd.names(odd.tree(done.stdout.strip())) == NAMES
    assert done.stderr.count("\n") == 1


def test_no_names_at_all_are_wrong_usage(cmd):
    done = cmd("sh-flatten")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_an_unreadable_directory_is_told(flatten, tmp_path):
    root = grown(tmp_path)
    (root / "etc/conf").chmod(0)
    if os.access(root / "etc/conf", os.R_OK):
        pytest.skip("root reads everything")
    assert "cannot read all of" in flatten.refuse_name(str(root))
