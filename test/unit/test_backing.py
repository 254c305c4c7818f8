"""The bytes of files in one backing file, against plain bytes."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import fuse
from shoebox.backing import Backing
from shoebox.extents import BLOCK
from shoebox.inodes import Inode

TOTAL = 24  # blocks
PLACES = st.integers(0, 8 * BLOCK)
SIZES = st.integers(1, 3 * BLOCK)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["write", "truncate", "reserve", "punch", "zero", "clear"]), PLACES, SIZES
    )
)


def file():
    return Inode(2, 0o100644, 0, 0, 0)


def whole(backing, inode):
    into = memoryview(bytearray(inode.size + 10))
    return bytes(into[: backing.read(inode, 0, into)])


def resized(data, size):
    return data[:size].ljust(size, b"\0")


@given(STEPS)
def test_files_have_what_was_written_and_zeros_and_nothing_of_each_other(steps):
    with tempfile.TemporaryFile() as stream:
        backing = Backing(stream.fileno(), TOTAL * BLOCK)
        files, models = [file() for _ in range(3)], [b""] * 3
        for number, (which, what, offset, size) in enumerate(steps):
            inode, model = files[which], models[which]
            data = bytes([number % 255 + 1]) * size
            end = offset + size
            try:
                if what == "write":
                    backing.write(inode, offset, memoryview(data), cached=False)
                    model = resized(model, max(len(model), end))
                    model = model[:offset] + data + model[end:]
                elif what == "truncate":
                    backing.truncate(inode, offset)
                    model = resized(model, offset)
                elif what == "clear":
                    backing.clear(inode)
                    inode.size, model = 0, b""
                elif what == "reserve":
                    backing.allocate(inode, 0, offset, size)
                    model = resized(model, max(len(model), end))
                else:
                    mode = fuse.PUNCH_HOLE | fuse.KEEP_SIZE if what == "punch" else fuse.ZERO_RANGE | fuse.KEEP_SIZE
                    backing.allocate(inode, mode, offset, size)
                    model = resized(model[:offset] + b"\0" * size + model[end:], len(model))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                model = whole(backing, inode) if what == "zero" else model
            models[which] = model
            for one, expected in zip(files, models):
                assert one.size == len(expected)
                assert whole(backing, one) == expected
            for one in files:
                assert one.blocks == sum(count for _, count, place, _ in one.parts or [] if place >= 0)
            assert backing.space.free == TOTAL - sum(one.blocks for one in files)


def test_what_a_program_believes_written_and_is_not_is_an_error_to_read(tmp_path):
    with (tmp_path / "backing").open("w+b") as stream:
        backing = Backing(stream.fileno(), 2 * BLOCK)
        inode, other = file(), file()
        backing.write(other, 0, memoryview(b"x" * 2 * BLOCK), cached=True)
        with pytest.raises(OSError, match="No space"):
            backing.write(inode, 0, memoryview(b"y"), cached=True)
        assert inode.size == 1
        with pytest.raises(OSError, match="Input/output"):
            whole(backing, inode)
        backing.clear(other)
        backing.write(inode, 0, memoryview(b"z"), cached=True)
        assert whole(backing, inode) == b"z"


@pytest.fixture
def unwritable(tmp_path):
    path = tmp_path / "backing"
    path.write_bytes(bytes(40 * BLOCK))
    with path.open("rb") as stream:  # so writing is EBADF
        yield Backing(stream.fileno(), 40 * BLOCK)


def test_a_write_that_fails_below_is_an_error_to_read_and_then_nothing_is_believed(unwritable):
    inode = file()
    with pytest.raises(OSError, match="Bad file"):
        unwritable.write(inode, 0, memoryview(b"y" * 20 * BLOCK), cached=True)
    for act in (lambda: whole(unwritable, inode), lambda: unwritable.sync(inode)):
        with pytest.raises(OSError, match="Input/output"):
            act()


def test_when_what_waited_is_lost_all_that_follows_is_an_error(unwritable):
    inode, other = file(), file()
    unwritable.write(inode, 0, memoryview(b"y"), cached=True)
    unwritable.write(other, 0, memoryview(b"z"), cached=True)
    with pytest.raises(OSError, match="Bad file"):
        unwritable.sync(other)
    for act in (
        lambda: unwritable.write(other, 0, memoryview(b"z"), cached=True),
        lambda: unwritable.truncate(other, 0),
        lambda: unwritable.allocate(other, 0, 0, 1),
        lambda: whole(unwritable, inode),
        lambda: unwritable.sync(inode),
    ):
        with pytest.raises(OSError, match="Input/output"):
            act()


def test_a_failed_fsync_is_remembered():
    fd, writes = os.pipe()  # which nobody can fsync
    backing = Backing(fd, BLOCK)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            backing.sync(file())
    with pytest.raises(OSError, match="Input/output"):
        backing.write(file(), 0, memoryview(b"x"), cached=False)
    os.close(fd)
    os.close(writes)


def test_a_backing_file_that_somebody_cut_is_an_error_to_read(tmp_path):
    with (tmp_path / "backing").open("w+b") as stream:
        backing, inode = Backing(stream.fileno(), BLOCK), file()
        backing.write(inode, 0, memoryview(b"x"), cached=True)
        backing.sync(inode)
        stream.truncate(0)
        with pytest.raises(OSError, match="Input/output"):
            whole(backing, inode)


def test_blocks_that_are_being_read_go_to_nobody_else(tmp_path):
    with (tmp_path / "backing").open("w+b") as stream:
        backing, inode = Backing(stream.fileno(), 2 * BLOCK), file()
        backing.write(inode, 0, memoryview(b"x"), cached=True)
        inode.busy += 1
        backing.clear(inode)
        assert backing.space.free == 1
        backing._done(inode)
        assert backing.space.free == 2


def test_who_reads_what_is_being_written_sees_zeros_and_not_what_another_file_left_there(tmp_path):
    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
    backing = Backing(fd, TOTAL * BLOCK)
    secret, later, seen = file(), file(), []
    backing.write(secret, 0, memoryview(b"s" * TOTAL * BLOCK), cached=False)
    with backing.lock:
        backing.clear(secret)
    data = memoryview(b"d" * (TOTAL - 1) * BLOCK)
    backing.write(later, 7, data, cached=False, before_waiting=lambda: seen.append(whole(backing, later)))
    assert seen == [bytes(len(data) + 7)]
    assert whole(backing, later) == bytes(7) + data
    os.close(fd)


def test_what_was_lost_cannot_be_reserved_as_if_it_were_a_hole(tmp_path):
    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
    backing, inode = Backing(fd, TOTAL * BLOCK), file()
    with pytest.raises(OSError, match="No space left"):
        backing.write(inode, 0, memoryview(bytes((TOTAL + 1) * BLOCK)), cached=True)
    with pytest.raises(OSError, match="Input/output error"):
        backing.allocate(inode, 0, 0, BLOCK)
    os.close(fd)
