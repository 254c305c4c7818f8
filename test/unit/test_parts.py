"""Blobs on their way: they get their name when they are the right ones, and are taken up where they were left."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import layout, oci, parts
from shoebox.fail import LATER, Fail

DATA = b"some bytes of a layer" * 1000
BLOB = oci.Descriptor("x", "sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA))


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


def test_a_blob_gets_its_name_when_it_is_the_right_one(blobs: str) -> None:
    assert layout.check_blob(blobs, BLOB) == "absent"
    assert download(blobs, DATA)
    assert layout.check_blob(blobs, BLOB) == "good"
    assert os.listdir(blobs) == [BLOB.hex]


@pytest.mark.parametrize("wrong", [b"", DATA[:-1], DATA[:-1] + b"x", DATA + b"x"])
def test_a_wrong_blob_gets_no_name_and_leaves_nothing(blobs: str, wrong: bytes) -> None:
    assert not download(blobs, wrong)
    assert os.listdir(blobs) == []


def test_what_a_killed_pull_left_is_taken_up(blobs: str) -> None:
    with parts.take(blobs, BLOB, never) as part:
        part.write(DATA[:5000])
    assert [name.startswith(".") for name in os.listdir(blobs)] == [True]
    with parts.take(blobs, BLOB, never) as part:
        assert part.size == 5000
        part.write(DATA[5000:])
        assert part.publish()


@given(st.lists(st.integers(0, len(DATA)), max_size=5))
def test_a_blob_in_any_pieces_and_sittings_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    blobs = layout.prepare(str(tmp_path_factory.mktemp("cache")))
    edges = sorted({0, len(DATA), *cuts})
    for start, end in zip(edges, edges[1:]):
        with parts.take(blobs, BLOB, never) as part:
            assert part.size == start
            part.write(DATA[start:end])
            if end == len(DATA):
                assert part.publish()


def test_more_than_belongs_there_is_forgotten(blobs: str) -> None:
    with parts.take(blobs, BLOB, never) as part:
        part.write(DATA + b"x")
    with parts.take(blobs, BLOB, never) as part:
        assert part.size == 0


def test_two_at_the_same_blob_take_turns(blobs: str) -> None:
    turns = []

    def waiting() -> None:
        turns.append(1)
        if len(turns) == 3:
            outer.write(DATA)
            assert outer.publish()
            fcntl.flock(outer._fd, fcntl.LOCK_UN)

    with parts.take(blobs, BLOB, never) as outer, parts.take(blobs, BLOB, waiting) as inner:
        assert (len(turns), inner.size) == (3, 0)
        assert layout.check_blob(blobs, BLOB) == "good"
    assert os.listdir(blobs) == [BLOB.hex]


def test_where_locks_do_not_work_each_writes_a_file_of_its_own(blobs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with parts.take(blobs, BLOB, never) as part:
        assert f"-{os.getpid()}.part" in part._path
        part.write(DATA)
        assert part.publish()
    assert [name for name in os.listdir(blobs) if not name.startswith(".")] == [BLOB.hex]


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_is_told_and_gets_its_space_back(blobs: str, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = pytest.raises(Fail, match="No space left on device: free space")
    with told as caught, parts.take(blobs, BLOB, never) as part:
        part.write(DATA[:100])
        monkeypatch.setattr(os, where, full)
        part.write(DATA[100:])
        part.publish()
    monkeypatch.undo()
    assert caught.value.status == LATER
    assert os.listdir(blobs) == []


def test_a_part_that_is_a_symlink_is_not_followed(blobs: str, tmp_path: Path) -> None:
    with parts.take(blobs, BLOB, never) as part:
        path = Path(part._path)
    victim = tmp_path / "victim"
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"), parts.take(blobs, BLOB, never):
        raise AssertionError
    assert not victim.exists()


def other_part(blobs: str, data: bytes) -> Path:
    """Leave what another user on this machine has fetched, in a cache that a group shares."""
    os.chmod(blobs, 0o2775)
    path = Path(blobs, f".{BLOB.hex}.{parts.kernel()}-{os.geteuid() + 1}.part")
    path.write_bytes(data)
    return path


def test_who_shares_a_cache_waits_while_another_user_fetches_the_same_blob(blobs: str) -> None:
    turns = []
    with open(other_part(blobs, DATA[:5000]), "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def waiting() -> None:
            turns.append(sorted(os.listdir(blobs)))
            if len(turns) == 3:
                os.rename(other.name, os.path.join(blobs, BLOB.hex))

        with parts.take(blobs, BLOB, waiting) as part:
            assert part.size == 0
    assert turns == [[os.path.basename(other.name)]] * 3
    assert os.listdir(blobs) == [BLOB.hex]


def test_what_another_user_was_killed_at_goes_when_the_blob_is_there(blobs: str) -> None:
    other_part(blobs, DATA[:5000])
    assert download(blobs, DATA)
    assert os.listdir(blobs) == [BLOB.hex]


def test_what_we_were_killed_at_is_forgotten_when_the_blob_is_there_unless_somebody_is_at_it(blobs: str) -> None:
    with parts.take(blobs, BLOB, never) as part:
        part.write(DATA[:10])
        parts.forget(blobs, BLOB)
    assert len(os.listdir(blobs)) == 1
    parts.forget(blobs, BLOB)
    assert os.listdir(blobs) == []
    parts.forget(blobs, BLOB)


def test_in_a_cache_of_ones_own_nobody_is_waited_for(blobs: str) -> None:
    path = other_part(blobs, DATA[:5000])
    os.chmod(blobs, 0o755)
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert download(blobs, DATA)
