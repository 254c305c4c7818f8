"""Squashfs writers: what may be asked of them, and how each is told."""

from __future__ import annotations

import os

import pytest

from shoebox import squashfs
from shoebox.fail import USAGE, Fail
from shoebox.squashfs import Root, Settings, Writer


def test_each_compressor_has_its_usual_level():
    usual = {name: squashfs.settings(name, "", "1").level for name in squashfs.COMPRESSORS}
    assert usual == {"zstd": 3, "gzip": 6, "lz4": 0, "xz": 0, "lzo": 8}
    assert squashfs.settings("zstd", "", "").jobs == len(os.sched_getaffinity(0))
    assert squashfs.settings("zstd", "22", "7") == Settings("zstd", 22, 7)


@pytest.mark.parametrize(
    "words",
    [
        ("lzma", "", ""),
        ("zstd", "0", ""),
        ("zstd", "23", ""),
        ("gzip", "10", ""),
        ("lz4", "1", ""),
        ("xz", "6", ""),
        ("zstd", "x", ""),
        ("zstd", "²", ""),
        ("zstd", "", "0"),
        ("zstd", "", "-1"),
        ("zstd", "", "²"),
        ("zstd", "", "99999"),
    ],
)
def test_a_wrong_compressor_level_or_number_of_jobs_is_wrong_usage(words):
    with pytest.raises(Fail) as caught:
        squashfs.settings(*words)
    assert caught.value.status == USAGE


def test_tar2sqfs_is_told_to_stop_at_what_it_cannot_read_and_to_leave_symlinks_alone():
    writer = Writer(squashfs.TAR2SQFS, "/bin/tar2sqfs", "1.2.0")
    words = squashfs._command(writer, Settings("zstd", 3, 5), "o.sqfs", Root())
    assert {"-s", "-S", "-q", "-f"} <= set(words)
    assert words[-1] == "o.sqfs"
    pairs = dict(zip(words, words[1:]))
    assert (pairs["-b"], pairs["-j"], pairs["-c"], pairs["-X"]) == ("131072", "5", "zstd", "level=3")


def test_mksquashfs_is_told_the_roots_mode_and_to_take_errors_for_errors():
    writer = Writer(squashfs.MKSQUASHFS_TAR, "/bin/mksquashfs", "4.5.1")
    words = squashfs._command(writer, Settings("gzip", 9, 2), "o.sqfs", Root(mode=0o1711, mtime=5))
    assert words[:4] == ["/bin/mksquashfs", "-", "o.sqfs", "-tar"]
    assert "-exit-on-error" in words
    pairs = dict(zip(words, words[1:]))
    assert (pairs["-root-mode"], pairs["-comp"], pairs["-Xcompression-level"]) == ("1711", "gzip", "9")


def test_writers_get_neither_the_time_of_day_nor_the_users_language(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "99")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert {k: squashfs._environment(5)[k] for k in ("SOURCE_DATE_EPOCH", "LC_ALL")} == {
        "SOURCE_DATE_EPOCH": "5",
        "LC_ALL": "C",
    }


def test_a_record_holds_all_that_the_bytes_depend_on_but_not_the_jobs():
    writer = Writer(squashfs.TAR2SQFS, "/nowhere/tar2sqfs", "1.2.0")
    record = writer.record(Settings("zstd", 3, 5))
    assert record == writer.record(Settings("zstd", 3, 8))
    assert record != writer.record(Settings("zstd", 4, 5))
    assert {"program", "version", "compressor", "level", "block_size", "library"} == set(record)
