"""Publishing: what bears a name in a store is whole, wherever we were cut off, and keeps to modes and groups."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.steps import killed
from fixtures.stores import DEBIAN, MANIFEST, OTHER, put, whole

from shoebox import publish, sidecar, store
from shoebox.fail import FAILED, LATER, Fail
from shoebox.readers import Readers


def gone_pid():
    """Return the pid of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_publishing_puts_image_sidecar_and_relative_names(tmp_path):
    image = put(tmp_path / "s", stems=[f"{DEBIAN}/12", "host:5000/app/1"])
    assert image == str(tmp_path / "s" / f"sha256-{MANIFEST}.sqfs")
    assert os.readlink(tmp_path / "s" / DEBIAN / "12.sqfs") == f"../../../sha256-{MANIFEST}.sqfs"
    assert os.readlink(tmp_path / "s" / "host:5000/app/1.sqfs") == f"../../sha256-{MANIFEST}.sqfs"
    assert whole(tmp_path / "s") == ["docker.io/library/debian/12.sqfs", "host:5000/app/1.sqfs"]
    assert sorted(os.listdir(tmp_path / "s")) == [
        "docker.io",
        "host:5000",
        f"sha256-{MANIFEST}.json",
        f"sha256-{MANIFEST}.sqfs",
    ]


def test_a_store_may_move_as_a_whole(tmp_path):
    put(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "t")
    assert whole(tmp_path / "t") == [f"{DEBIAN}/12.sqfs"]


def test_without_a_manifest_the_image_has_its_own_digest(tmp_path):
    digits = hashlib.sha256(b"image").hexdigest()
    assert put(tmp_path, manifest=None) == str(tmp_path / f"sha256-{digits}.sqfs")


def test_the_same_content_again_keeps_the_file_and_mends_the_name(tmp_path):
    inode = os.stat(put(tmp_path)).st_ino
    (tmp_path / DEBIAN / "12.sqfs").unlink()
    assert os.stat(put(tmp_path)).st_ino == inode
    assert whole(tmp_path) == [f"{DEBIAN}/12.sqfs"]
    assert not (tmp_path / publish.RETIRED).exists()


def test_a_name_that_means_another_image_by_now_moves(tmp_path):
    old, new = put(tmp_path, b"old"), put(tmp_path, b"new", manifest=OTHER)
    assert (tmp_path / DEBIAN / "12.sqfs").resolve() == Path(new)
    assert Path(old).read_bytes() == b"old"


def test_other_content_of_the_same_digest_retires_the_old_pair(tmp_path):
    with open(put(tmp_path, b"old"), "rb") as running:
        put(tmp_path, b"new")
        assert running.read() == b"old"
    assert Path(put(tmp_path, b"new")).read_bytes() == b"new"
    retired = sorted((tmp_path / publish.RETIRED).iterdir(), key=lambda path: path.suffix)
    assert [path.suffix for path in retired] == [".json", ".sqfs"]
    assert retired[0].stem == retired[1].stem
    assert retired[1].read_bytes() == b"old"
    assert sidecar.load(retired[0].read_bytes(), "x").size == 3
    put(tmp_path, b"newer")
    assert len(list((tmp_path / publish.RETIRED).iterdir())) == 4


@pytest.mark.parametrize("damage", ["no sidecar", "a foreign sidecar", "a damaged sidecar", "another size", "no image"])
def test_half_a_pair_is_made_anew(tmp_path, damage):
    image = Path(put(tmp_path))
    beside = image.with_suffix(".json")
    if damage == "no sidecar":
        beside.unlink()
    elif damage == "a foreign sidecar":
        beside.write_text("{}")
    elif damage == "a damaged sidecar":
        beside.write_bytes(beside.read_bytes()[:-3])
    elif damage == "another size":
        image.write_bytes(b"imag")
    else:
        image.unlink()
    assert Path(put(tmp_path)).read_bytes() == b"image"
    whole(tmp_path)


def test_a_file_that_is_not_as_long_as_its_sidecar_says_is_not_published(tmp_path):
    publish.prepare(str(tmp_path))
    part = publish.temporary(str(tmp_path))
    Path(part).write_bytes(b"imag")
    known = sidecar.dump(sha256=hashlib.sha256(b"image").hexdigest(), size=5)
    with pytest.raises(Fail, match="it has 4 bytes, not 5"):
        publish.image(str(tmp_path), part, known, [f"{DEBIAN}/12"])
    publish.discard(part)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("old", "call", "calls"),
    [
        (None, "mkdir", 4),
        (None, "fsync", 4),
        (None, "rename", 3),
        (None, "symlink", 1),
        (b"old", "mkdir", 1),
        (b"old", "fsync", 3),
        (b"old", "rename", 4),
    ],
)
def test_killed_anywhere_what_bears_a_name_is_whole_and_the_next_one_works(tmp_path, old, call, calls, before):
    for nth in range(1, calls + 2):
        where = tmp_path / str(nth)
        if old:
            put(where, old)
        assert killed(where, lambda where: put(where, b"new"), call, nth, before) is (nth <= calls)
        for image in where.glob("*.sqfs"):
            assert store.read_sidecar(str(image)).sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
        for name in where.glob(f"{DEBIAN}/*"):
            assert os.path.exists(name) or old  # while the old one is being retired there is none
        assert Path(put(where, b"new")).read_bytes() == b"new"
        assert whole(where) == [f"{DEBIAN}/12.sqfs"]
        assert not list(where.glob(".part-*"))


@pytest.mark.parametrize(
    ("umask", "mode", "file", "directory"),
    [
        (0o022, None, 0o644, 0o755),
        (0o002, None, 0o644, 0o775),
        (0o000, None, 0o644, 0o775),
        (0o077, None, 0o600, 0o700),
        (0o077, 0o640, 0o640, 0o750),
        (0o077, 0o644, 0o644, 0o755),
        (0o022, 0o660, 0o660, 0o770),
        (0o022, 0o600, 0o600, 0o700),
        (0o022, 0o666, 0o666, 0o775),
    ],
)
def test_modes_are_the_umasks_or_as_asked_for_and_no_directory_is_for_all_to_write(
    tmp_path, umask, mode, file, directory
):
    old = os.umask(umask)
    try:
        where = str(tmp_path / "s")
        who = Readers(mode=mode)
        publish.prepare(where, who)
        part = publish.temporary(where)
        os.close(publish.create(part, 5))
        Path(part).write_bytes(b"image")
        known = sidecar.dump(sha256=hashlib.sha256(b"image").hexdigest(), size=5)
        image = Path(publish.image(where, part, known, [f"{DEBIAN}/12"], who))
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (image, image.with_suffix(".json"))] == [file, file]
    made = [tmp_path / "s", *(tmp_path / "s" / DEBIAN).parents[:2], tmp_path / "s" / DEBIAN]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {directory}


def test_the_group_is_given_to_all_that_is_made(tmp_path):
    gid = os.getgroups()[-1] if os.getgroups() else os.getgid()
    image = put(tmp_path / "s", readers=Readers(mode=0o640, groups=(str(gid),)))
    assert {
        path.lstat().st_gid for path in (Path(image), Path(image).with_suffix(".json"), tmp_path / "s" / DEBIAN)
    } == {gid}


# What killed processes leave


def test_what_dead_processes_of_this_host_left_is_swept_and_what_may_be_in_use_is_not(tmp_path):
    host, old = os.uname().nodename, time.time() - 3 * 86400
    dead = [f".part-{host}-{gone_pid()}-12345678"]
    stale = [".part-elsewhere-1-12345678", ".part-", f".part-{host}-x-1", f".part-{host}-{os.getpid()}-9"]
    kept = [
        f".part-{host}-{os.getpid()}-1",
        f".part-{host}-1-1",
        ".part-elsewhere-1-1",
        f".part-{host}-{10**30}-1",
        "sha256-x",
    ]
    for file in dead + stale + kept:
        (tmp_path / file).touch()
    for file in [*stale, "sha256-x"]:
        os.utime(tmp_path / file, (old, old))
    (tmp_path / f"{dead[0]}9").symlink_to("nowhere")
    publish.prepare(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_our_own_temporary_names_are_known_as_ours(tmp_path):
    publish.prepare(str(tmp_path))
    part = publish.temporary(str(tmp_path))
    Path(part).touch()
    publish.prepare(str(tmp_path))
    assert os.path.exists(part)
    assert publish.temporary(str(tmp_path)) != part
    publish.discard(part)
    publish.discard(part)
    assert not os.path.exists(part)


def test_a_full_disk_may_work_later(tmp_path, monkeypatch):
    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        put(tmp_path)
    assert Fail("x", caught.value).status == LATER
    assert Fail("x", PermissionError(13, "Permission denied")).status == FAILED
    assert whole(tmp_path) == []


@pytest.mark.parametrize(
    ("mebibytes", "count"), [(0, 1), (1, 1), (255, 1), (256, 2), (437, 3), (4096, 16), (1 << 20, 16)]
)
def test_large_files_get_more_stripes(mebibytes, count):
    assert publish.stripes(mebibytes << 20) == count
