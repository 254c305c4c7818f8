"""Stores: names are found in them, and what was found stays what it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fixtures.stores import DEBIAN, MANIFEST, OTHER, put

from shoebox import paths, sidecar, store
from shoebox.fail import USAGE, Fail


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
    put(tmp_path / "a")
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
    with pytest.raises(Fail, match=r"may be any of 2 images: sha256-a1b2c3d4e5f60.*give more digits"):
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
    assert store.find("absent.sqsh", env) == str(tmp_path / "absent.sqsh")
    assert store.find("absent.squashfs", env) == str(tmp_path / "absent.squashfs")
    assert store.find("link.sqfs", env) == str(tmp_path / "a" / store.image_file(MANIFEST))
    assert store.find(f"a/{DEBIAN}/12.sqfs", env) == str(tmp_path / "a" / store.image_file(MANIFEST))


def test_an_image_of_shifters_is_found_by_its_id(env, tmp_path):
    (tmp_path / "b").mkdir()
    image = tmp_path / "b" / f"{MANIFEST}.squashfs"
    image.touch()
    for name in (f"id:{MANIFEST}", f"id:{MANIFEST[:12]}", f"sha256:{MANIFEST}", f"sha256:{MANIFEST[:20]}"):
        assert store.find(name, env) == str(image)
    with pytest.raises(Fail, match="no image 'id:abcdefabcdef'"):
        store.find("id:abcdefabcdef", env)
    with pytest.raises(Fail, match="sh-pull id:latest"):  # a reference like any other
        store.find("id:latest", env)


def test_a_meta_lies_beside_an_image_of_shifters_or_is_somebody_elses(tmp_path):
    (tmp_path / "x.meta").write_text("ENV: A=b\nFORMAT: squashfs\n")
    (tmp_path / "y.meta").write_text("our notes\n")
    os.mkfifo(tmp_path / "z.meta")
    assert store.shifter_text(str(tmp_path / "x.squashfs")) == b"ENV: A=b\nFORMAT: squashfs\n"
    for name in ("x.sqfs", "y.squashfs", "z.squashfs", "absent.squashfs"):
        assert store.shifter_text(str(tmp_path / name)) is None


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
        (f"{tmp_path}/file:{tmp_path}/file/x:{tmp_path}/new/deep:{tmp_path}/b", f"{tmp_path}/new/deep"),
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
