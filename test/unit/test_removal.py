"""removal: images leave a store beside others who stage, remove and pin, at every step of theirs, and of ours."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fixtures.steps import at_each_step, interleaved, killed
from fixtures.stores import DEBIAN, MANIFEST, OTHER, put, whole

from shoebox import publish, removal, store

NAME, OTHER_NAME = f"{DEBIAN}/12", f"{DEBIAN}/13"


def image_of(where, digits=MANIFEST) -> Path:
    return Path(where) / store.image_file(digits)


def age(where, seconds=3600) -> None:
    """Let everything in a store be older."""
    for path in [p for p in Path(where).rglob("*") if p.is_symlink() or p.is_file()]:
        os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)


def found(where, digits=MANIFEST) -> removal.Found:
    return next(one for one in removal.look(str(where)) if one.digits == digits)


def sound(where) -> None:
    """Check that every image has its own sidecar, and that no name leads nowhere."""
    whole(where)
    assert not list(Path(where).glob(".part-*"))


def held(tmp_path, nth) -> str:
    """Return a store with an image of two names, staged an hour ago, and another image."""
    where = tmp_path / str(nth)
    put(where, stems=(NAME, OTHER_NAME))
    put(where, b"other", stems=(f"{DEBIAN}/o",), manifest=OTHER)
    age(where)
    return str(where)


def expire(where) -> None:
    """Do to the first image as sh-expire does, if it has not been staged for a minute."""
    for one in removal.look(where):
        if one.digits == MANIFEST and one.staged < time.time() - 60:
            removal.remove(where, one, unless_wanted=True)


def test_what_is_removed_waits_and_whoever_has_it_open_reads_on(tmp_path):
    where = held(tmp_path, 1)
    with image_of(where).open("rb") as running:
        assert removal.remove(where, found(where))
        assert running.read() == b"image"
        assert whole(where) == [f"{DEBIAN}/o.sqfs"]
        assert sorted(p.suffix for p in (Path(where) / publish.RETIRED).iterdir()) == [".json", ".sqfs"]
        assert removal.delete(where, time.time() - 60, dry=False) == (0, 0)
        assert removal.delete(where, time.time(), dry=True)[0] == 1
        assert removal.delete(where, time.time(), dry=False)[0] == 1
        assert os.fstat(running.fileno()).st_nlink == 0
    assert not list((Path(where) / publish.RETIRED).iterdir())


def test_what_is_staged_again_at_any_step_of_an_expiry_is_there_afterwards(tmp_path, monkeypatch):
    for where in at_each_step(
        monkeypatch, lambda n: held(tmp_path, n), expire, lambda where: put(where, stems=(NAME, OTHER_NAME))
    ):
        sound(where)
        if image_of(where).exists():
            assert whole(where) == sorted(f"{n}.sqfs" for n in (NAME, OTHER_NAME, f"{DEBIAN}/o"))
        else:  # only the last: nobody came
            last = where
    assert whole(last) == [f"{DEBIAN}/o.sqfs"]


def test_what_is_staged_anew_with_other_settings_at_any_step_of_an_expiry_is_there_afterwards(tmp_path, monkeypatch):
    seen = []
    for where in at_each_step(
        monkeypatch,
        lambda n: held(tmp_path, n),
        expire,
        lambda where: put(where, b"new settings", stems=(NAME, OTHER_NAME)),
    ):
        sound(where)
        seen.append(image_of(where).exists() and image_of(where).read_bytes() == b"new settings")
    assert seen == [True] * (len(seen) - 1) + [False]


@pytest.mark.parametrize("content", [b"image", b"new settings"])
@pytest.mark.parametrize("expiry_first", [True, False])
def test_an_expiry_and_a_staging_in_the_midst_of_each_other_leave_nothing_half(
    tmp_path, monkeypatch, content, expiry_first
):
    def stage(where):
        put(where, content, stems=(NAME, OTHER_NAME))

    both = (expire, stage) if expiry_first else (stage, expire)
    for where in interleaved(monkeypatch, lambda n: held(tmp_path, n), *both):
        sound(where)
        beside = image_of(where).with_suffix(".json")
        assert image_of(where).exists() == beside.exists()


@pytest.mark.parametrize("content", [b"image", b"new settings"])
def test_an_expiry_at_any_step_of_a_staging_leaves_nothing_half(tmp_path, monkeypatch, content):
    for where in at_each_step(
        monkeypatch, lambda n: held(tmp_path, n), lambda where: put(where, content, stems=(NAME, OTHER_NAME)), expire
    ):
        for image in Path(where).glob("*.sqfs"):
            assert store.read_sidecar(str(image)).size == image.stat().st_size
        # It expired after it was staged: then names that were given to it meanwhile are left for tidy.
        removal.tidy(where)
        assert not list(Path(where).glob(".part-*"))


def test_two_expiries_at_every_step_of_each_other_are_one(tmp_path, monkeypatch):
    for where in at_each_step(monkeypatch, lambda n: held(tmp_path, n), expire, expire):
        assert whole(where) == [f"{DEBIAN}/o.sqfs"]
        assert len(list((Path(where) / publish.RETIRED).glob("*.sqfs"))) == 1
        assert not image_of(where).with_suffix(".json").exists()
        sound(where)


def test_what_is_pinned_at_any_step_stays_or_the_pin_is_refused(tmp_path, monkeypatch):
    def pin(where):
        Path(publish.pin_file(str(image_of(where)))).touch()  # what removal.pin does before it looks for the image

    kept = []
    for where in at_each_step(
        monkeypatch,
        lambda n: held(tmp_path, n),
        lambda where: next(one.pinned for one in removal.look(where)) or expire(where),
        pin,
    ):
        sound(where)
        kept.append(image_of(where).exists())
        assert len(whole(where)) == (3 if kept[-1] else 1)
    assert kept[0]
    assert kept == sorted(kept, reverse=True), "from some step on it was too late"


def test_a_pin_for_what_has_just_gone_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(removal.Fail, match="just been removed"):
        removal.pin(str(tmp_path), MANIFEST)
    assert os.listdir(tmp_path) == []


def test_a_name_that_moves_at_any_step_of_its_removal_has_its_new_meaning(tmp_path, monkeypatch):
    moved = []
    for where in at_each_step(
        monkeypatch,
        lambda n: held(tmp_path, n),
        lambda where: removal.remove(where, found(where)),
        lambda where: publish.name(where, NAME, OTHER),
    ):
        sound(where)
        path = Path(where) / f"{NAME}.sqfs"
        moved.append(path.is_symlink() and os.readlink(path).endswith(f"{OTHER}.sqfs"))
    assert moved == [True] * (len(moved) - 1) + [False]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("call", ["rename", "unlink", "mkdir", "open"])
def test_killed_anywhere_no_image_is_half_and_the_next_one_finishes(tmp_path, call, before):
    nth = 0
    while True:
        nth += 1
        where = held(tmp_path, nth)
        died = killed(where, lambda where: removal.remove(where, found(where), unless_wanted=True), call, nth, before)
        for image in Path(where).glob("*.sqfs"):
            assert store.read_sidecar(str(image)).size == image.stat().st_size
        removal.tidy(where)
        for image in removal.look(where):
            if image.digits == MANIFEST:
                removal.remove(where, image, unless_wanted=True)
        assert whole(where) == [f"{DEBIAN}/o.sqfs"]
        assert not list(Path(where).glob(".part-*"))
        assert not image_of(where).with_suffix(".json").exists()
        assert removal.delete(where, time.time() + 1, dry=False)[0] == 1
        assert not list((Path(where) / publish.RETIRED).iterdir())
        if not died:
            break


def test_a_sidecar_that_a_killed_removal_took_from_a_new_image_comes_back(tmp_path):
    where = held(tmp_path, 1)
    beside = image_of(where).with_suffix(".json")
    (Path(where) / publish.RETIRED).mkdir()
    beside.rename(Path(where) / publish.RETIRED / f"sha256-{MANIFEST}.1700000000-0123abcd.json")
    removal.tidy(where)
    assert beside.exists()
    sound(where)


def test_what_a_stager_of_another_host_is_doing_is_left_alone_by_tidy(tmp_path):
    where = held(tmp_path, 1)
    removal.remove(where, found(where))
    time.sleep(1.1)  # stamps are of seconds
    beside = image_of(where).with_suffix(".json")
    beside.write_bytes(next((Path(where) / publish.RETIRED).glob("*.json")).read_bytes())
    publish.name(where, NAME, MANIFEST)
    removal.tidy(where)
    assert beside.exists()
    assert os.path.islink(Path(where) / f"{NAME}.sqfs")


def test_what_does_not_look_retired_is_never_deleted(tmp_path):
    where = held(tmp_path, 1)
    removal.remove(where, found(where))
    for name in ("notes", "sha256-12.1-1.sqfs", f"sha256-{MANIFEST}.sqfs"):
        (Path(where) / publish.RETIRED / name).touch()
    removal.delete(where, time.time() + 1, dry=False)
    assert len(list((Path(where) / publish.RETIRED).iterdir())) == 3
