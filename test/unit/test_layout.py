"""Layouts: blobs appear whole or not at all, and layouts that others made are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.images import MANIFEST, Image, descriptor, image, index, to_layout

from shoebox import layout, oci, parts, platforms
from shoebox.fail import LATER, USAGE, Fail
from shoebox.reference import parse

DATA = b"some bytes of a layer" * 1000
BLOB = oci.Descriptor("x", "sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA))
AMD64, ARM64 = platforms.Platform("linux", "amd64"), platforms.Platform("linux", "arm64")


@pytest.fixture
def blobs(tmp_path: Path) -> str:
    return layout.prepare(str(tmp_path / "cache"))


def never() -> None:
    raise AssertionError("nobody else is at this blob")


def download(blobs: str, data: bytes) -> bool:
    """Write a blob through a part, and publish it."""
    with parts.take(blobs, BLOB, never) as part:
        part.write(data)
        return part.publish()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("debian:12", "docker.io/library/debian/_12"),
        ("host:5000/a/b:1", "host+5000/a/b/_1"),
        ("host:5000/a@sha256:" + "0" * 64, "host+5000/a/_@sha256-" + "0" * 64),
    ],
)
def test_each_reference_has_a_directory_whose_name_skopeo_can_take(text: str, where: str) -> None:
    assert layout.directory("/c", parse(text)) == f"/c/oci/{where}"
    assert layout.directory("/c", parse(text), "+linux-arm64") == f"/c/oci/{where}+linux-arm64"


@pytest.mark.parametrize("name", ["a:b", "a\nb"])
def test_a_cache_that_cannot_be_named_in_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Fail, match="set SHOEBOX_CACHE") as caught:
        layout.prepare(str(tmp_path / name))
    assert caught.value.status == USAGE
    assert not list(tmp_path.iterdir())


def test_parts_that_nobody_has_touched_for_a_day_are_removed(tmp_path: Path, blobs: str) -> None:
    for name, age in {".a.k.part": 25, ".b.k.part": 1, "c.part": 25, ".d": 25}.items():
        path = Path(blobs, name)
        path.touch()
        os.utime(path, (0, time.time() - age * 3600))
    layout.prepare(str(tmp_path / "cache"))
    assert sorted(os.listdir(blobs)) == [".b.k.part", ".d", "c.part"]


def test_small_files_of_killed_processes_are_removed_at_once(tmp_path: Path, blobs: str) -> None:
    dead = subprocess.run(["sh", "-c", "echo $$"], check=True, capture_output=True, text=True).stdout.strip()
    live, far = f".a.{parts.kernel()}-{os.getpid()}.new", f".a.elsewhere-{dead}.new"
    for name in (f".a.{parts.kernel()}-{dead}.new", live, far):
        Path(blobs, name).touch()
    layout.prepare(str(tmp_path / "cache"))
    assert sorted(os.listdir(blobs)) == sorted([live, far])


def test_a_full_disk_is_told_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = str(tmp_path / "cache")
    blobs = layout.prepare(cache)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Fail, match=f"cannot write to '{blobs}': No space left on device") as caught:
        layout.publish(cache, str(tmp_path / "a"), "a", oci.Descriptor(MANIFEST, image().digest, 1), image().manifest)
    assert caught.value.status == LATER
    assert os.listdir(blobs) == []


@pytest.mark.parametrize("kind", ["other bytes", "shorter", "directory", "fifo", "symlink"])
def test_a_blob_that_was_tampered_with_is_noticed(blobs: str, tmp_path: Path, kind: str) -> None:
    path = Path(blobs, BLOB.hex)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        (tmp_path / "copy").write_bytes(DATA)
        path.symlink_to(tmp_path / "copy")
    else:
        path.write_bytes(DATA[:-1] + b"x" * (kind == "other bytes"))
    assert layout.check_blob(blobs, BLOB) == "damaged"
    with pytest.raises(Fail):
        layout.read_document(blobs, BLOB)


def test_a_layout_of_ours_holds_one_manifest_by_its_full_name(tmp_path: Path, blobs: str) -> None:
    made = image()
    where = str(tmp_path / "cache/oci/docker.io/library/debian/_12")
    entry = oci.Descriptor(MANIFEST, made.digest, len(made.manifest), AMD64)
    for _ in range(2):
        layout.publish(str(tmp_path / "cache"), where, "docker.io/library/debian:12", entry, made.manifest)
    assert sorted(os.listdir(where)) == ["blobs", "index.json", "oci-layout"]
    assert os.readlink(f"{where}/blobs") == "../../../../blobs"
    index = json.loads(Path(where, "index.json").read_text())
    assert [entry["platform"] for entry in index["manifests"]] == [{"os": "linux", "architecture": "amd64"}]
    found, data = layout.read_layout(where, "docker.io/library/debian:12")
    assert (found.digest, data) == (made.digest, made.manifest)


def test_a_docker_manifest_is_found_as_the_registry_has_it(tmp_path: Path, blobs: str) -> None:
    made = image(docker=True)
    where = str(tmp_path / "cache/oci/h/a/_1")
    entry = oci.Descriptor(made.media_type, made.digest, len(made.manifest), ARM64)
    layout.publish(str(tmp_path / "cache"), where, "h/a:1", entry, made.manifest)
    found, data = layout.read_layout(where, "h/a:1")
    assert (found.digest, found.media_type, found.platform, data) == (
        made.digest,
        made.media_type,
        ARM64,
        made.manifest,
    )
    [shown] = json.loads(Path(where, "index.json").read_text())["manifests"]
    assert shown["mediaType"] == MANIFEST


def test_what_stands_in_the_way_of_a_layouts_blobs_is_replaced(tmp_path: Path, blobs: str) -> None:
    where = tmp_path / "cache/oci/h/a/_1"
    where.mkdir(parents=True)
    (where / "blobs").symlink_to("/elsewhere")
    layout.publish(str(tmp_path / "cache"), str(where), "h/a:1", BLOB, DATA)
    assert os.path.samefile(where / "blobs" / "sha256", blobs)


def two(tmp_path: Path) -> tuple[Path, Image, Image]:
    """Make a layout with two images."""
    first, second = image(), image(b"other")
    return to_layout(tmp_path / "layout", one=first, two=second), first, second


def test_an_image_is_found_by_its_name(tmp_path: Path) -> None:
    where, _, second = two(tmp_path)
    assert layout.read_layout(str(where), "two")[1] == second.manifest


def test_a_name_that_a_layout_has_not_is_told_with_those_it_has(tmp_path: Path) -> None:
    where, _, _ = two(tmp_path)
    with pytest.raises(Fail, match="no image 'three': it has one, two"):
        layout.read_layout(str(where), "three")


def test_the_only_image_needs_no_name(tmp_path: Path) -> None:
    made = image()
    assert layout.read_layout(str(to_layout(tmp_path / "l", _=made)))[1] == made.manifest


def test_an_index_in_a_layout_is_followed_to_the_platform(tmp_path: Path) -> None:
    amd64, arm64 = image(), image(b"other", architecture="arm64")
    outer = index((amd64, {"os": "linux", "architecture": "amd64"}), (arm64, {"os": "linux", "architecture": "arm64"}))
    where = str(to_layout(tmp_path / "l", multi=index((outer, None))))
    assert layout.read_layout(where, "multi", ARM64)[1] == arm64.manifest
    assert layout.read_layout(where, "", AMD64)[1] == amd64.manifest
    with pytest.raises(Fail, match="it offers linux/amd64, linux/arm64"):
        layout.read_layout(where, "", platforms.Platform("linux", "s390x"))


def test_an_index_of_one_other_platform_is_not_taken_for_ours(tmp_path: Path) -> None:
    outer = index((image(architecture="arm64"), {"os": "linux", "architecture": "arm64"}))
    where = str(to_layout(tmp_path / "l", multi=outer))
    with pytest.raises(Fail, match="no image for 'linux/amd64'"):
        layout.read_layout(where, "multi", AMD64)


def test_indexes_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    made = image()
    for _ in range(4):
        made = index((made, None))
    with pytest.raises(Fail, match="nested"):
        layout.read_layout(str(to_layout(tmp_path / "l", deep=made)), "deep")


@pytest.mark.parametrize("missing", ["oci-layout", "index.json"])
def test_a_directory_that_is_no_layout_is_refused(tmp_path: Path, missing: str) -> None:
    where = to_layout(tmp_path / "l", _=image())
    (where / missing).unlink()
    with pytest.raises(Fail, match=f"not an OCI layout: '{where}': no '{missing}'"):
        layout.read_layout(str(where))
    os.mkfifo(where / missing)
    with pytest.raises(Fail, match="is no file"):
        layout.read_layout(str(where))


def test_a_damaged_or_missing_manifest_in_a_layout_is_noticed(tmp_path: Path) -> None:
    made = image()
    where = to_layout(tmp_path / "l", _=made)
    path = where / "blobs" / "sha256" / made.digest.partition(":")[2]
    path.write_bytes(made.manifest[:-1] + b" ")
    with pytest.raises(Fail, match="is damaged"):
        layout.read_layout(str(where))
    path.unlink()
    with pytest.raises(Fail, match="lacks the blob"):
        layout.read_layout(str(where))


def test_an_image_read_as_an_index_is_refused(tmp_path: Path) -> None:
    made = image()
    wrong = json.loads(index((made, None)).manifest)
    wrong["manifests"] = [descriptor(made.manifest, oci.OCI_INDEX)]
    outer = Image(json.dumps(wrong).encode(), oci.OCI_INDEX, manifests=[made])
    with pytest.raises(Fail, match="said to be"):
        layout.read_layout(str(to_layout(tmp_path / "l", _=outer)))


def test_a_blob_is_opened_when_its_size_is_right(tmp_path: Path) -> None:
    made = image()
    where = str(to_layout(tmp_path / "l", _=made))
    manifest = oci.parse_manifest(made.manifest)
    assert isinstance(manifest, oci.Manifest)
    with layout.open_blob(where, manifest.layers[0]) as blob:
        assert blob.read() == made.blobs[manifest.layers[0].digest]
    wrong = oci.Descriptor("x", manifest.layers[0].digest, 5)
    with pytest.raises(Fail, match="and 5 are expected"):
        layout.open_blob(where, wrong)
    with pytest.raises(Fail, match="lacks the blob"):
        layout.open_blob(where, BLOB)


def test_with_a_umask_of_0_no_file_is_writable_by_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        blobs = layout.prepare(str(tmp_path / "cache"))
        assert download(blobs, DATA)
        layout.publish(str(tmp_path / "cache"), str(tmp_path / "cache/oci/h/a/_1"), "h/a:1", BLOB, DATA)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
