"""Superblocks: a whole squashfs is recognised, and what is wrong with any other file is told apart."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import superblock
from shoebox.fail import FAILED, Fail

FIELDS = {
    "inodes": (4, 4, 12),
    "mkfs_time": (8, 4, 1_700_000_000),
    "block_size": (12, 4, 1 << 17),
    "compressor": (20, 2, 6),
    "log": (22, 2, 17),
    "ids": (26, 2, 1),
    "major": (28, 2, 4),
    "minor": (30, 2, 0),
    "root": (32, 8, 0),
    "bytes_used": (40, 8, 5000),
    "inode_table": (64, 8, 4000),
    "directory_table": (72, 8, 4500),
}


def header(magic=b"hsqs", **changed):
    """Return a superblock, as mksquashfs writes it but for the changed fields."""
    made = bytearray(magic.ljust(superblock.SIZE, b"\0"))
    for name, (offset, size, value) in FIELDS.items():
        made[offset : offset + size] = changed.get(name, value).to_bytes(size, "little")
    return bytes(made)


def at(offset, magic):
    """Return a file's first bytes with something at an offset."""
    return bytes(offset) + magic + bytes(2048)


def wrong(data, size):
    """Return what is said of a file with these first bytes, of this size."""
    with pytest.raises(Fail) as caught:
        superblock.check(data, size, "x.sqfs")
    assert caught.value.status == FAILED
    assert str(caught.value).startswith("cannot use image 'x.sqfs': ")
    return str(caught.value).split(": ", 1)[1]


def test_a_squashfs_tells_its_compressor_sizes_and_time():
    found = superblock.check(header(), 8192, "x.sqfs")
    assert (found.compressor, found.block_size, found.inodes) == ("zstd", 131072, 12)
    assert (found.bytes_used, found.mkfs_time) == (5000, 1_700_000_000)


@pytest.mark.parametrize(("number", "name"), [(1, "gzip"), (4, "xz"), (5, "lz4"), (6, "zstd")])
def test_compressors_have_their_names(number, name):
    assert superblock.check(header(compressor=number), 8192, "x").compressor == name


@pytest.mark.parametrize(("log"), [12, 17, 20])
def test_every_block_size_of_the_kernel_is_accepted(log):
    assert superblock.check(header(log=log, block_size=1 << log), 8192, "x").block_size == 1 << log


@pytest.mark.parametrize(
    ("data", "size", "told"),
    [
        (b"", 0, "it is empty"),
        (b"hsqs" + bytes(40), 44, "cut off in the superblock, after 44 bytes"),
        (header(), 4999, "cut off: 4999 bytes, but its superblock says 5000"),
        (header(b"sqsh"), 8192, "big-endian"),
        (header(major=3), 8192, "version 3.0, not 4.0"),
        (header(minor=1), 8192, "version 4.1, not 4.0"),
        (header(block_size=100), 8192, "damaged: a block size of 100 bytes, its logarithm 17"),
        (header(log=16), 8192, "damaged: a block size of 131072 bytes, its logarithm 16"),
        (header(log=21, block_size=1 << 21), 8192, "damaged: a block size"),
        (header(log=0, block_size=1), 8192, "damaged: a block size"),
        (header(compressor=0), 8192, "damaged: compressor 0 does not exist"),
        (header(ids=0), 8192, "damaged: its tables lie outside it"),
        (header(inode_table=90), 8192, "damaged: its tables lie outside it"),
        (header(inode_table=4600), 8192, "damaged: its tables lie outside it"),
        (header(directory_table=5000), 8192, "damaged: its tables lie outside it"),
        (header(root=8193), 8192, "damaged: its tables lie outside it"),
    ],
)
def test_what_is_wrong_with_a_squashfs_is_told_apart(data, size, told):
    assert told in wrong(data, size)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (at(0, b"\x1f\x8b\x08"), "gzip data"),
        (at(0, b"\x28\xb5\x2f\xfd"), "zstd data"),
        (at(0, b"\x7fELF"), "an ELF program"),
        (at(0, b"QFI\xfb"), "a qcow disk image"),
        (at(257, b"ustar\x0000"), "a tar archive"),
        (at(1080, b"\x53\xef"), "an ext file system"),
        (at(1024, b"\xe2\xe1\xf5\xe0"), "an EROFS image"),
        (b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + bytes(200), "a SIF file"),
        (b"#!/bin/sh\necho\n", "a script"),
        (b'{"schemaVersion":2}', "JSON text"),
    ],
)
def test_a_foreign_file_is_named(data, what):
    assert wrong(data, len(data)).startswith(f"it is not a squashfs but {what}")


def test_a_file_of_nothing_known_is_said_to_be_no_squashfs():
    assert wrong(b"hello, world\n", 13).startswith("it is not a squashfs: ")


@given(st.binary(max_size=200), st.integers(0, 1 << 64))
def test_no_bytes_break_it(data, size):
    for head in (data, b"hsqs" + data):
        with contextlib.suppress(Fail):
            superblock.check(head, size, "x")
