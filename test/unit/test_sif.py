"""SIF files: the squashfs in one is found, and nothing that one says of itself is believed beyond its end."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import sif
from shoebox.fail import Fail

# As Go's encoding/binary writes the structs of github.com/apptainer/sif, pkg/sif: little-endian, unpadded.
HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
PARTITION = struct.Struct("<2i3s")
DEFFILE, FS, SIGNATURE = 0x4001, 0x4004, 0x4005
TABLE = 4096


def descriptor(kind=FS, *, used=True, offset=32768, size=1000, fs=1, part=2):
    extra = PARTITION.pack(fs, part, b"02\0") if kind == FS else b""
    return DESCRIPTOR.pack(kind, used, 1, 0xF0000001, 0, offset, size, size, 0, 0, 0, 0, b"name", extra)


def file(*descriptors, magic=b"SIF_MAGIC", version=b"01", count=None, start=TABLE, total=33768):
    launch = b"#!/usr/bin/env run-singularity\n"
    count = 48 if count is None else count
    head = HEADER.pack(launch, magic, version, b"02", b"i" * 16, 0, 0, count, count, start, 48 * 585, 32768, 1000)
    return (head.ljust(TABLE, b"\0") + b"".join(descriptors)).ljust(total, b"\0")


def locate(data):
    return sif.locate(lambda offset, length: data[offset : offset + length], len(data), "x.sif")


def wrong(data):
    with pytest.raises(Fail) as caught:
        locate(data)
    return str(caught.value)


def test_the_primary_system_partition_is_found_among_others():
    others = [descriptor(DEFFILE), descriptor(used=False, offset=1), descriptor(part=3, offset=2), descriptor(part=4)]
    assert locate(file(*others, descriptor(offset=32768, size=900), descriptor(SIGNATURE))) == (32768, 900)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it is not a SIF file"),
        (file(magic=b"SIF_TRAGIC"), "it is not a SIF file"),
        (file(version=b"02"), "version '02', not '01'"),
        (file(version=b"\xff\x00"), "version '\ufffd', not '01'"),
        (file(), "no primary system partition"),
        (
            file(descriptor(0x400B), descriptor(0x400A)),
            "an OCI-SIF: layers, and no file system of the whole: sh-pull it",
        ),
        (file(descriptor(0x400B, used=False)), "no primary system partition"),
        (file(descriptor(part=1)), "no primary system partition"),
        (file(descriptor(fs=2)), "ext3, not a squashfs"),
        (file(descriptor(fs=5)), "an encrypted squashfs, not a squashfs"),
        (file(descriptor(fs=6)), "an encrypted squashfs, not a squashfs"),
        (file(descriptor(fs=-1)), "of unknown kind"),
        (file(descriptor(size=1001)), "cut off: 1001 bytes at byte 32768, and it has 33768"),
        (file(descriptor(size=95)), "cut off"),
        (file(descriptor(offset=-1)), "cut off"),
        (file(descriptor(size=-1)), "cut off"),
        (file(descriptor(offset=0)), "cut off"),
        (file(descriptor(), count=-1), "damaged: 18446744073709551615 descriptors"),
        (file(descriptor(), count=1 << 40), "damaged"),
        (file(descriptor(), start=0), "damaged"),
        (file(descriptor(), start=-1), "damaged"),
        (file(descriptor(), start=33700), "damaged: 48 descriptors at byte 33700 of 33768"),
    ],
)
def test_what_is_wrong_is_told_apart(data, told):
    assert told in wrong(data)


@given(st.binary(max_size=600), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8))
def test_no_bytes_break_it(data, numbers):
    made = HEADER.pack(b"", b"SIF_MAGIC", b"01", b"02", b"", *numbers) + data
    with contextlib.suppress(Fail):
        offset, size = locate(made)
        assert 128 <= offset <= offset + size <= len(made)
