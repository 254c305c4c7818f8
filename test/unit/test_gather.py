"""Small writes, gathered: whenever somebody looks, the backing file has what was written, in its order."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import fuse
from shoebox.gather import SMALL, Gathered, write
from shoebox.inodes import Inode

END = 3 * fuse.LARGEST // 2
ACTS = ["add", "add", "add", "next", "next", "try", "large", "read", "flush"]
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, END), st.integers(1, SMALL)), max_size=40)


def file():
    return Inode(2, 0o100644, 0, 0, 0)


def nothing_is_lost(*_):
    pytest.fail("something was lost")


@given(STEPS)
def test_who_settles_a_range_first_finds_what_was_written_there(steps):
    with tempfile.TemporaryFile() as stream:
        fd, inode, after = stream.fileno(), file(), 0
        gathered = Gathered(fd, nothing_is_lost)
        model = bytearray(END + 3 * SMALL)
        os.truncate(fd, len(model))
        for number, (act, place, size) in enumerate(steps):
            at = min(after, END) if act == "next" else place
            data = memoryview(bytes([number % 255 + 1]) * size)
            if act == "flush":
                gathered.flush()
                assert os.pread(fd, len(model), 0) == model
                continue
            if act == "read":
                gathered.settle(at, size)
                assert os.pread(fd, size, at) == model[at : at + size]
                continue
            if act == "large":
                gathered.settle(at, size)
                write(fd, [data], at)
            elif not gathered.add(inode, [data[:1], data[1:]], at, may_wait=act != "try"):
                assert act == "try"
                continue
            model[at : at + size] = data
            after = at + size
        gathered.flush()
        assert os.pread(fd, len(model), 0) == model


def test_one_write_after_another_becomes_one_and_another_place_waits_for_it(tmp_path):
    with (tmp_path / "f").open("w+b") as stream:
        gathered, inode = Gathered(stream.fileno(), nothing_is_lost), file()
        for at in range(0, fuse.LARGEST, SMALL):
            assert gathered.add(inode, [memoryview(b"x" * SMALL)], at, may_wait=False)
            assert os.fstat(stream.fileno()).st_size == 0
        assert gathered.add(inode, [memoryview(b"y")], 7, may_wait=False)
        for at in (fuse.LARGEST, fuse.LARGEST + SMALL):  # there is no room; it is elsewhere
            assert not gathered.add(inode, [memoryview(b"z")], at, may_wait=False)
        assert gathered.add(inode, [memoryview(b"z")], fuse.LARGEST, may_wait=True)
        assert os.fstat(stream.fileno()).st_size == fuse.LARGEST


def test_what_cannot_be_written_is_told_once_with_whose_it_was_and_where(tmp_path):
    (tmp_path / "f").touch()
    told = []
    with (tmp_path / "f").open("rb") as stream:  # so writing is EBADF
        gathered, one, other = Gathered(stream.fileno(), lambda *words: told.append(words[1:])), file(), file()
        for inode, at in ((one, 4096), (other, 4099), (one, 4097)):
            gathered.add(inode, [memoryview(b"abc")], at, may_wait=True)
        gathered.settle(0, 4096)
        assert told == []
        gathered.settle(4101, 1)
        gathered.flush()
    assert told == [({one, other}, 4096, 6)]
