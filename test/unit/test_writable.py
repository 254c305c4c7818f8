"""writable: the kinds of --writable, and who has a directory."""

from __future__ import annotations

import pytest

from shoebox import writable
from shoebox.fail import Fail
from shoebox.writable import FREE, HELD, MEMORY, OVERLAY, TAR, UNKNOWN, Owner

HERE = ("n1", "boot", "4026531836")


@pytest.mark.parametrize("size", ["1", "64m", "2G", "50%", ""])
def test_a_size_is_what_tmpfs_takes(size):
    for text, directory in ((size, ""), (f"./d:{size}" if size else "./d", "./d")):
        made = writable.asked(text)
        assert (made.form, made.directory, made.size) == ("" if directory else MEMORY, directory, size)


@pytest.mark.parametrize("text", ["m", "1x", "-1", "1,nr_inodes=1", "1k2", "much", "./d:", "./d:1x", "d:1m"])
def test_a_wrong_size_is_refused(text):
    with pytest.raises(Fail, match="a size is a number"):
        writable.asked(text)


@pytest.mark.parametrize("text", ["./a:b:1m", "/a:/b", "./a:1m/"])
def test_a_directory_with_a_colon_is_refused(text):
    with pytest.raises(Fail, match="may have no ':'"):
        writable.asked(text)


def test_what_a_directory_has_stays_as_it_is_and_only_for_a_new_one_overlay_is_asked():
    def never():
        pytest.fail("asked")

    assert writable.form({"upper", "work", "image"}, never)[0] == OVERLAY
    assert writable.form({"changes.tar", "image"}, never)[0] == TAR
    assert writable.form({"image"}, lambda: "") == (OVERLAY, "overlay takes its file system")
    assert writable.form(set(), lambda: "no") == (TAR, "overlay refuses its file system: no")
    with pytest.raises(Fail, match="move one of them away"):
        writable.form({"upper", "changes.tar"}, never)


def test_a_lock_says_who_has_the_directory():
    owner = writable.read_lock(Owner(HERE, (42, "1000"), 5, TAR, "ab").pack())
    assert (owner.place, owner.pid, owner.start, owner.since, owner.form, owner.step) == (
        HERE,
        42,
        "1000",
        5,
        TAR,
        "ab",
    )
    for text in ("", " ", "a:b", "n1:boot:1:x:1:5:tar:", "n1:boot:1:4:1:now:tar:", "x" * 5000):
        assert writable.read_lock(text) is None


@pytest.mark.parametrize(
    ("place", "born", "verdict"),
    [
        (HERE, "1000", HELD),
        (HERE, "", FREE),
        (HERE, "2000", FREE),  # another process has its pid
        (("n1", "another boot", "1"), "1000", FREE),
        (("n2", "boot", "1"), "", UNKNOWN),
        (("n1", "boot", "another pid namespace"), "", UNKNOWN),
    ],
)
def test_a_lock_counts_as_long_as_its_owner_lives_or_may(place, born, verdict):
    assert writable.judge(Owner(place, (42, "1000"), 5, TAR), HERE, lambda _: born) == verdict


def test_changes_belong_to_the_image_of_the_same_digest_or_else_shape():
    known = writable.record("sha256:a", "00", "/x y\nz.sqfs")
    assert writable.recorded_path(known) == "/x y\nz.sqfs"
    assert writable.belongs(known, "sha256:a", "11")
    assert not writable.belongs(known, "sha256:b", "00")
    assert writable.belongs(known, "", "00")
    assert not writable.belongs(known, "", "11")
    assert writable.belongs(writable.record("", "00", "/x"), "sha256:a", "00")
    assert not writable.belongs("", "sha256:a", "00")
    assert not writable.belongs(writable.record("", "", "/x\nshape 00\n"), "", "00")
