"""Layers of every compression come out whole and hashed, or fail in one line; nothing comes out past the limit."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma

import pytest
import pyzstd
from hypothesis import given, settings
from hypothesis import strategies as st

from shoebox.decompress import Chunks, plain
from shoebox.fail import Fail

SKIPPABLE = bytes.fromhex("552a4d18") + (3).to_bytes(4, "little") + b"abc"
HOW = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": pyzstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
DATA = b"".join(b"%d: some text that is not all the same\n" % n for n in range(60_000))


def unpacked(data: bytes) -> bytes:
    """Return what comes out."""
    return b"".join(plain(io.BytesIO(data), lambda _: None, "the layer"))


@pytest.mark.parametrize("how", HOW)
def test_what_was_packed_comes_out_and_its_digest_is_known(how):
    counted = []
    packed = HOW[how](DATA)
    chunks = Chunks(io.BytesIO(packed), "the layer", 1 << 30, counted.append)
    assert b"".join(chunks) == DATA
    assert next(chunks, b"") == b""
    assert chunks.digest == "sha256:" + hashlib.sha256(DATA).hexdigest()
    assert sum(counted) == len(packed)


@pytest.mark.parametrize("how", HOW)
def test_an_empty_layer_has_the_digest_of_nothing(how):
    chunks = Chunks(io.BytesIO(HOW[how](b"")), "the layer", 1 << 30, lambda _: None)
    assert b"".join(chunks) == b""
    assert chunks.digest == "sha256:" + hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("how", ["gzip", "zstd", "bzip2", "xz"])
def test_members_and_frames_one_after_the_other_are_one_layer_and_zeros_after_it_are_padding(how):
    pack = HOW[how]
    many = b"".join(pack(DATA[at : at + 100_000]) for at in range(0, len(DATA), 100_000))
    assert unpacked(many) == DATA
    assert unpacked(pack(b"") + many + pack(b"") + bytes(300_000)) == DATA
    assert unpacked(pack(DATA) + bytes(300_000) + pack(b"more")) == DATA + b"more"


def test_skippable_zstd_frames_are_skipped_wherever_they_stand():
    packed = pyzstd.compress
    assert unpacked(SKIPPABLE + packed(b"a") + SKIPPABLE + SKIPPABLE + packed(b"b") + SKIPPABLE) == b"ab"


@pytest.mark.parametrize("how", ["gzip", "zstd", "bzip2", "xz"])
def test_a_truncated_layer_ends_too_early(how):
    packed = HOW[how](DATA)
    for length in (len(packed) - 1, len(packed) // 2, 8):
        with pytest.raises(Fail, match=r"^cannot decompress the layer: [^\n]*$"):
            unpacked(packed[:length])


@pytest.mark.parametrize("how", ["gzip", "zstd", "bzip2", "xz"])
def test_garbage_after_the_end_is_an_error(how):
    with pytest.raises(Fail, match=r"^cannot decompress the layer: "):
        unpacked(HOW[how](b"abc") + b"garbage that is nothing")


@given(st.sampled_from(["gzip", "zstd", "bzip2", "xz"]), st.integers(0, 1 << 20), st.integers(1, 255))
@settings(deadline=None, max_examples=150)
def test_a_damaged_layer_fails_or_comes_out_as_it_was(how, at, change):
    data = DATA[:20_000]
    packed = bytearray(HOW[how](data))
    packed[at % len(packed)] ^= change
    try:
        found = unpacked(bytes(packed))
    except Fail:
        return
    # a plain layer, once its magic is gone; fields that mean nothing; zstd as it comes has no checksum
    assert found in (data, bytes(packed)) or how == "zstd"


def test_a_tar_whose_first_name_looks_like_a_magic_is_a_tar():
    start = b"BZh91AY&SY".ljust(257, b"\0") + b"ustar\0".ljust(255, b"\0")
    assert unpacked(start) == start


@pytest.mark.parametrize("how", HOW)
def test_nothing_comes_out_past_the_limit(how):
    bomb = HOW[how](bytes(30 << 20))
    got = []
    with pytest.raises(Fail, match="it unpacks to more than 10485760 bytes: raise --max-size"):
        got.extend(map(len, Chunks(io.BytesIO(bomb), "the layer", 10 << 20, lambda _: None)))
    assert sum(got) <= 10 << 20


def test_closing_before_the_end_ends_the_thread_and_closes_the_source():
    source = io.BytesIO(gzip.compress(bytes(200 << 20), 1))
    chunks = Chunks(source, "the layer", 1 << 30, lambda _: None)
    next(chunks)
    chunks.close()
    assert not chunks._thread.is_alive()
    assert source.closed


def test_an_error_of_the_source_reaches_the_reader():
    class Broken(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        list(Chunks(Broken(), "the layer", 1 << 30, lambda _: None))
