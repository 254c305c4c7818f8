"""Stores: names are found and stay what they were, and whatever bears a name is whole, wherever publishing was cut off."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from shoebox import paths, publish, sidecar, store
from shoebox.fail import FAILED, LATER, USAGE, Fail

DEBIAN = "docker.io/library/debian"
MANIFEST = "a1b2c3d4e5f6" + "0" * 52
OTHER = "a1b2c3d4e5f6" + "1" * 52


def put(where, content=b"image", stems=(f"{DEBIAN}/12",), manifest=MANIFEST, **more):
    """Publish a file of this content in a store, as sh-flatten and sh-stage do."""
    publish.prepare(str(where))
    part = publish.temporary(str(where))
    Path(part).write_bytes(content)
    known = sidecar.dump(
        sha256=hashlib.sha256(content).hexdigest(), size=len(content), manifest=manifest and f"sha256:{manifest}"
    )
    return publish.image(str(where), part, known, stems, **more)


def whole(where):
    """Check that everything with a real name is whole, and return the names' paths."""
    for image in Path(where).glob("*.sqfs"):
        known = store.read_sidecar(str(image))
        content = image.read_bytes()
        assert (known.sha256, known.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert image.name == store.image_file(known.hex)
    names = list(store.names(str(where), pytest.fail))
    for _, meant in names:
        assert (Path(where) / meant).exists()
    return sorted(name for name, _ in names)


def gone_pid():
    """Return the pid of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def env(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SITE", str(tmp_path / "etc"))
    monkeypatch.chdir(tmp_path)
    return {"SHOEBOX_PATH": f"{tmp_path}/a:{tmp_path}/b", "SHOEBOX_CACHE": str(tmp_path / "c"), "HOME": str(tmp_path)}


# What sh-run does


@pytest.mark.parametrize(
    "name", ["debian:12", "docker://debian:12", "docker.io/library/debian:12", "docker.io#debian:12"]
)
def test_every_spelling_of_a_name_finds_its_digest(env, tmp_path, name):
    assert store.find(name, env | {"SHOEBOX_PATH": f"{tmp_path}/none:{tmp_path}/a"}) if put(tmp_path / "a") else None
    assert store.find(name, env) == str(tmp_path / "a" / store.image_file(MANIFEST))


def test_the_first_store_of_the_path_wins(env, tmp_path):
    put(tmp_path / "b", b"second", manifest=OTHER)
    assert store.find("debian:12", env) == str(tmp_path / "b" / store.image_file(OTHER))
    put(tmp_path / "a", b"first")
    assert store.find("debian:12", env) == str(tmp_path / "a" / store.image_file(MANIFEST))


def test_a_name_that_moves_does_not_move_what_was_found(env, tmp_path):
    put(tmp_path / "a", b"old")
    found = store.find("debian:12", env)
    put(tmp_path / "a", b"new", manifest=OTHER)
    assert Path(found).read_bytes() == b"old"
    assert Path(store.find("debian:12", env)).read_bytes() == b"new"


def test_a_dangling_name_is_passed_over(env, tmp_path):
    Path(put(tmp_path / "a")).unlink()
    put(tmp_path / "b")
    assert store.find("debian:12", env).startswith(str(tmp_path / "b"))


def test_a_reference_with_a_digest_is_found_by_name_or_by_digest(env, tmp_path):
    put(tmp_path / "a", stems=[f"{DEBIAN}/@sha256-{OTHER}"])  # the digest of an index: only the name knows it
    put(tmp_path / "b")
    assert store.find(f"debian@sha256:{OTHER}", env).startswith(str(tmp_path / "a"))
    assert store.find(f"debian@sha256:{MANIFEST}", env).startswith(str(tmp_path / "a"))


def test_a_digest_or_enough_of_it_is_found_in_any_store(env, tmp_path):
    put(tmp_path / "b", stems=())
    for digits in (MANIFEST, MANIFEST[:12], MANIFEST[:40]):
        assert store.find(f"sha256:{digits}", env) == str(tmp_path / "b" / store.image_file(MANIFEST))


def test_the_same_digest_in_two_stores_is_not_ambiguous_but_two_digests_are(env, tmp_path):
    put(tmp_path / "b", stems=())
    put(tmp_path / "a", stems=())
    assert store.find(f"sha256:{MANIFEST[:12]}", env).startswith(str(tmp_path / "a"))
    put(tmp_path / "b", b"other", stems=(), manifest=OTHER)
    with pytest.raises(Fail, match="may be any of 2 images: sha256-a1b2c3d4e5f60.*give more digits"):
        store.find(f"sha256:{MANIFEST[:12]}", env)


@pytest.mark.parametrize("digits", ["", "a1b2c3d4e5f", MANIFEST + "0", MANIFEST.upper(), "../../../etc/x"])
def test_what_is_no_digest_is_wrong_usage(env, digits):
    with pytest.raises(Fail, match="not a digest") as caught:
        store.find(f"sha256:{digits}", env)
    assert caught.value.status == USAGE


def test_an_unknown_digest_says_where_it_was_looked_for(env, tmp_path):
    with pytest.raises(Fail, match=f"no image 'sha256:{MANIFEST}' in '{tmp_path}/a', '{tmp_path}/b': sh-images"):
        store.find(f"sha256:{MANIFEST}", env)


def test_paths_are_paths(env, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "x.img").touch()
    (tmp_path / "link.sqfs").symlink_to(put(tmp_path / "a"))
    for name in ("./tree", "tree/", str(tmp_path / "tree")):
        assert store.find(name, env) == str(tmp_path / "tree")
    assert store.find("./x.img", env) == str(tmp_path / "x.img")
    assert store.find("absent.sqfs", env) == str(tmp_path / "absent.sqfs")
    assert store.find("absent.sif", env) == str(tmp_path / "absent.sif")
    assert store.find("link.sqfs", env) == str(tmp_path / "a" / store.image_file(MANIFEST))
    assert store.find(f"a/{DEBIAN}/12.sqfs", env) == str(tmp_path / "a" / store.image_file(MANIFEST))


def test_an_absent_image_comes_with_the_line_to_paste(env, tmp_path):
    with pytest.raises(Fail) as caught:
        store.find("debian:12", env)
    line = "sh-pull debian:12 | sh-flatten | sh-stage"
    assert str(caught.value) == f"no image 'debian:12' in '{tmp_path}/a', '{tmp_path}/b': {line}"
    with pytest.raises(Fail) as caught:
        store.find("debian:12", {"SHOEBOX_CACHE": "/c"})
    assert str(caught.value) == f"no image 'debian:12' in '/c/images': {line}"


def test_a_directory_without_a_slash_is_pointed_out(env, tmp_path):
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(Fail, match=r"write '\./rootfs' if you mean what is here, or sh-pull rootfs"):
        store.find("rootfs", env)


def test_what_is_no_name_is_wrong_usage(env):
    with pytest.raises(Fail, match="not an image reference: 'Debian'") as caught:
        store.find("Debian", env)
    assert caught.value.status == USAGE


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_store_that_we_may_not_read_is_told_only_if_no_other_has_it(env, tmp_path):
    put(tmp_path / "a")
    (tmp_path / "a").chmod(0)
    with pytest.raises(Fail, match=f"cannot use '{tmp_path}/a/{DEBIAN}/12.sqfs': Permission denied"):
        store.find("debian:12", env)
    put(tmp_path / "b")
    assert store.find("debian:12", env).startswith(str(tmp_path / "b"))
    (tmp_path / "a").chmod(0o700)


def test_a_table_of_registries_gives_more_names_to_look_for(env, tmp_path):
    table = tmp_path / "etc"
    table.mkdir()
    (table / "registries.toml").write_text('search = ["site.org", "docker.io"]\n')
    put(tmp_path / "a", stems=["docker.io/library/app/latest"])
    assert store.find("app", env).startswith(str(tmp_path / "a"))
    put(tmp_path / "b", stems=["site.org/app/latest"])
    assert store.find("app", env).startswith(str(tmp_path / "b"))
    assert store.find("docker.io/app", env).startswith(str(tmp_path / "a"))


def test_a_sidecar_is_read_if_it_is_one(tmp_path):
    image = put(tmp_path)
    assert store.read_sidecar(image).hex == MANIFEST
    assert store.read_sidecar(str(tmp_path)) is None
    (tmp_path / "app.json").write_text('{"name": "app", "schema": 1}')
    assert store.read_sidecar(str(tmp_path / "app.sqfs")) is None
    assert store.read_sidecar(str(tmp_path / "none.sqfs")) is None
    os.mkfifo(tmp_path / "pipe.json")
    assert store.read_sidecar(str(tmp_path / "pipe.sqfs")) is None
    (tmp_path / "cut.json").write_bytes(store.sidecar_text(image)[:-2])
    with pytest.raises(Fail, match=r"cut\.json': it is not JSON"):
        store.read_sidecar(str(tmp_path / "cut.sqfs"))
    (tmp_path / "long.json").write_bytes(sidecar.BEGINNING.ljust(sidecar.MOST + 2))
    with pytest.raises(Fail, match="longer than 16 MiB"):
        store.read_sidecar(str(tmp_path / "long.sqfs"))


def test_names_are_read_back_as_references(tmp_path):
    put(tmp_path, stems=[f"{DEBIAN}/12", f"{DEBIAN}/@sha256-{OTHER}", "host:5000/a/b/c_d"])
    assert [store.called(name.removesuffix(".sqfs")) for name, _ in store.names(str(tmp_path), pytest.fail)] == [
        "docker.io/library/debian:12",
        f"docker.io/library/debian@sha256:{OTHER}",
        "host:5000/a/b:c_d",
    ]
    assert {meant for _, meant in store.names(str(tmp_path), pytest.fail)} == {store.image_file(MANIFEST)}


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_names_that_cannot_be_listed_are_told_and_do_not_stop_the_rest(tmp_path):
    put(tmp_path, stems=[f"{DEBIAN}/12", "z.org/a/1"])
    (tmp_path / "docker.io").chmod(0)
    told = []
    assert [name for name, _ in store.names(str(tmp_path), told.append)] == ["z.org/a/1.sqfs"]
    assert [error.filename for error in told] == [str(tmp_path / "docker.io")]
    (tmp_path / "docker.io").chmod(0o700)


# Where sh-stage puts things


def test_the_target_is_the_first_writable_store_but_our_own(env, tmp_path):
    own = paths.images(env)
    (tmp_path / "file").touch()
    for path, target in [
        ("", ""),
        (own, ""),
        (f"{own}:{tmp_path}/b", f"{tmp_path}/b"),
        (f"{tmp_path}/file:{tmp_path}/file/x:/proc/none:{tmp_path}/new/deep:{tmp_path}/b", f"{tmp_path}/new/deep"),
    ]:
        assert store.target(env | {"SHOEBOX_PATH": path}) == target
    os.makedirs(own)
    (tmp_path / "same").symlink_to(own)
    assert store.target(env | {"SHOEBOX_PATH": f"{tmp_path}/same"}) == ""


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_store_without_write_permission_is_no_target(env, tmp_path):
    (tmp_path / "a").mkdir(mode=0o555)
    assert store.target(env) == str(tmp_path / "b")
    assert not store.writable(str(tmp_path / "a" / "new"))


# Publishing


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


class Cut(BaseException):
    """We were killed here."""


@pytest.mark.parametrize("call", ["rename", "symlink", "fsync", "mkdir"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("old", [None, b"old"], ids=["first", "replacing"])
def test_wherever_it_is_cut_off_what_bears_a_name_is_whole_and_the_next_one_works(
    tmp_path, monkeypatch, call, before, old
):
    real = getattr(os, call)
    for nth in range(20):
        where = tmp_path / str(nth)
        if old:
            put(where, old)
        left = nth

        def cut(*words, **more):
            nonlocal left
            left -= 1
            if left == -1 and before:
                raise Cut
            made = real(*words, **more)
            if left == -1:
                raise Cut
            return made

        with monkeypatch.context() as patched:
            patched.setattr(os, call, cut)
            try:
                put(where, b"new")
            except Cut:
                assert not [link for link in where.rglob("*.part*") if link.is_symlink()]
        if left >= 0:
            break
        for image in where.glob("*.sqfs"):
            assert store.read_sidecar(str(image)).sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
        assert Path(put(where, b"new")).read_bytes() == b"new"
        assert whole(where) == [f"{DEBIAN}/12.sqfs"]
    assert nth or (call == "mkdir" and old)


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
        publish.prepare(where, mode=mode)
        part = publish.temporary(where)
        os.close(publish.create(part, 5))
        Path(part).write_bytes(b"image")
        known = sidecar.dump(sha256=hashlib.sha256(b"image").hexdigest(), size=5)
        image = Path(publish.image(where, part, known, [f"{DEBIAN}/12"], mode=mode))
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (image, image.with_suffix(".json"))] == [file, file]
    made = [tmp_path / "s", *(tmp_path / "s" / DEBIAN).parents[:2], tmp_path / "s" / DEBIAN]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {directory}


def test_the_group_is_given_to_all_that_is_made(tmp_path):
    gid = os.getgroups()[-1] if os.getgroups() else os.getgid()
    image = put(tmp_path / "s", gid=gid)
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
