"""Tar streams: copied faithfully however they are cut, rewritten as asked, and nothing but Fail for what is no tar."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from fixtures import layers as odd
from fixtures.layers import END, extension, padded, raw_header, record
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoebox import tarstream
from shoebox.fail import Fail

FORMS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}
KINDS = [
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
]
COMPONENT = st.binary(min_size=1, max_size=60).map(lambda b: os.fsdecode(b.replace(b"/", b"_").replace(b"\0", b"_")))
NAME = st.lists(COMPONENT, min_size=1, max_size=6).map("/".join).filter(lambda n: n.strip("./"))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """Cut data into chunks at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[a:b] for a, b in zip(places, places[1:])]


def copied(chunks: list[bytes], change=lambda entry: None) -> tuple[bytes, list[tarstream.Entry]]:
    """Run a stream through, all entries kept; return what was written, and the entries."""
    out, seen = io.BytesIO(), []
    for entry in tarstream.entries(iter(chunks), out.write, "the test"):
        entry.keep = True
        change(entry)
        seen.append(entry)
    return out.getvalue(), seen


def reread(data: bytes) -> list[tarfile.TarInfo]:
    """Read with Python's tarfile."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        return archive.getmembers()


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Make archives of all formats and kinds, with long names, large ids, sizes around whole blocks."""
    form = draw(st.sampled_from(sorted(FORMS)))
    members = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(KINDS))
        name = draw(NAME)
        if form == "ustar":
            name = os.fsdecode(os.fsencode(name)[:80].strip(b"/")) or "x"
        data = bytes(draw(st.sampled_from([0, 1, 511, 512, 513, 5000]))) if kind == tarfile.REGTYPE else b""
        link = draw(NAME) if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        fields = {"linkname": link[:80] if form == "ustar" else link, "mode": draw(st.integers(0, 0o7777))}
        fields["uid"] = draw(st.sampled_from([0, 1000] if form == "ustar" else [0, 4_000_000_000]))
        members.append(odd.member(name, kind, data, **fields))
    return odd.layer(*members, form=FORMS[form])


@given(archives(), st.lists(st.integers(0, 1 << 20), max_size=30))
@settings(deadline=None, max_examples=150)
def test_what_is_kept_is_copied_byte_for_byte_however_the_stream_is_cut(data, at):
    written, seen = copied(cut(data, at))
    assert data.startswith(written)
    assert not data[len(written) :].strip(b"\0")
    want = [(os.fsencode(m.name), m.type, os.fsencode(m.linkname), m.size) for m in reread(data)]
    kinds = [(entry.name.rstrip(b"/"), entry.kind, entry.link, entry.size) for entry in seen]
    assert kinds == want


def test_every_single_cut_of_an_archive_gives_the_same():
    data = odd.pax(
        odd.file("a" * 150, b"x" * 700, pax_headers={"SCHILY.xattr.user.a": "b"}), odd.symlink("s", "t" * 120)
    )
    data = copied([data])[0] + END
    for place in range(1, len(data)):
        assert copied([data[:place], data[place:]])[0] == data[: -len(END)]


@given(archives(), st.lists(st.integers(0, 1 << 20), max_size=10), st.integers(0, 1023))
@settings(deadline=None, max_examples=100)
def test_only_what_is_kept_is_written(data, at, kept):
    out, want = io.BytesIO(), []
    for number, entry in enumerate(tarstream.entries(iter(cut(data, at)), out.write, "the test")):
        entry.keep = bool(kept >> number & 1)
        want += [(entry.name.rstrip(b"/"), entry.size)] if entry.keep else []
    assert [(os.fsencode(member.name), member.size) for member in reread(out.getvalue() + END)] == want


@given(archives(), NAME, st.lists(st.integers(0, 1 << 20), max_size=10))
@settings(deadline=None, max_examples=150)
@example(odd.pax(odd.file("a" * 200, b"data")), "b", [])
@example(odd.layer(odd.symlink("s", "t" * 200)), "n" * 300, [])
def test_a_rewritten_header_reads_back_as_it_was_asked(data, name, at):
    def rename(entry: tarstream.Entry) -> None:
        entry.header = entry.rewritten(os.fsencode(name), entry.link)

    old = reread(data)
    written, _ = copied(cut(data, at), rename)
    new = reread(written + END)
    assert [member.name.rstrip("/") for member in new] == [name.rstrip("/")] * len(old)
    for before, after in zip(old, new):
        for key in ("type", "mode", "uid", "gid", "size", "mtime", "linkname", "devmajor", "devminor"):
            assert getattr(after, key) == getattr(before, key), key


def test_a_rewritten_header_lacks_the_records_dropped_and_keeps_the_others():
    data = odd.pax(odd.file("f", pax_headers={"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.selinux": "x"}))

    def change(entry: tarstream.Entry) -> None:
        entry.header = entry.rewritten(b"g", drop=[b"SCHILY.xattr.security.selinux"])

    (member,) = reread(copied([data], change)[0] + END)
    assert (member.name, member.pax_headers) == ("g", {"SCHILY.xattr.user.a": "1"})


@pytest.mark.parametrize("version", ["old", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("rename", [False, True])
def test_sparse_files_of_every_format_keep_their_holes_and_content(version, rename):
    data = sparse(version)
    change = (
        (lambda entry: setattr(entry, "header", entry.rewritten(b"new/" + b"n" * 120))) if rename else lambda _: None
    )
    written, (entry,) = copied(cut(data, [600, 1500]), change)
    assert (entry.name, entry.size) == (b"hole", 100_003)
    with tarfile.open(fileobj=io.BytesIO(written + END)) as archive:
        (member,) = archive.getmembers()
        assert member.name == ("new/" + "n" * 120 if rename else "hole")
        assert archive.extractfile(member).read() == bytes(50_000) + b"abc" + bytes(50_000)


def sparse(version: str) -> bytes:
    """Make an archive of a file of 100,003 bytes, `abc` in its middle, in one of GNU's formats."""
    pairs = [(50_000, 3), (100_003, 0)]
    if version == "old":
        numbers = b"".join(b"%011o\0" % n for pair in pairs for n in pair)
        rest = bytes(41) + numbers + bytes(96 - len(numbers)) + b"\0" + b"%011o\0" % 100_003
        return raw_header(b"hole", b"S", size=b"%011o\0" % 3, magic=b"ustar  \0", rest=rest) + padded(b"abc") + END
    if version == "0.0":
        records = record("GNU.sparse.size", b"100003") + record("GNU.sparse.numblocks", b"2")
        for offset, count in pairs:
            records += record("GNU.sparse.offset", b"%d" % offset) + record("GNU.sparse.numbytes", b"%d" % count)
        return extension(b"x", records) + raw_header(b"hole", size=b"%011o\0" % 3) + padded(b"abc") + END
    if version == "0.1":
        records = record("GNU.sparse.size", b"100003") + record("GNU.sparse.numblocks", b"2")
        records += record("GNU.sparse.name", b"hole") + record("GNU.sparse.map", b"50000,3,100003,0")
        return extension(b"x", records) + raw_header(b"GNUSparse.1/hole", size=b"%011o\0" % 3) + padded(b"abc") + END
    records = record("GNU.sparse.major", b"1") + record("GNU.sparse.minor", b"0")
    records += record("GNU.sparse.name", b"hole") + record("GNU.sparse.realsize", b"100003")
    content = padded(b"2\n50000\n3\n100003\n0\n") + padded(b"abc")
    return extension(b"x", records) + raw_header(b"GNUSparse.1/hole", size=b"%011o\0" % (512 + 3)) + content + END


def test_an_old_sparse_map_goes_on_in_blocks_of_its_own_also_after_a_global_header():
    more = b"".join(b"%011o\0" % n for pair in [(1000 * n, 1) for n in range(4, 25)] for n in pair)
    first = b"".join(b"%011o\0" % n for pair in [(1000 * n, 1) for n in range(4)] for n in pair)
    rest = bytes(41) + first + b"\1" + b"%011o\0" % 24_001
    one = raw_header(b"hole", b"S", size=b"%011o\0" % 25, magic=b"ustar  \0", rest=rest) + more.ljust(512, b"\0")
    data = one + padded(b"x" * 25)
    for start in (b"", extension(b"g", record("mtime", b"5"))):
        written, _ = copied(cut(start + data + END, [700, 1100]))
        with tarfile.open(fileobj=io.BytesIO(written + END)) as archive:
            (member,) = archive.getmembers()
            assert archive.extractfile(member).read() == b"".join(b"x" + bytes(999) for _ in range(24)) + b"x"


def test_pax_records_for_all_members_become_each_ones_own():
    data = extension(b"g", record("SCHILY.xattr.user.all", b"1") + record("comment", b"a commit"))
    data += odd.layer(odd.file("a"), odd.file("b"))
    members = reread(copied([data])[0] + END)
    assert [(m.name, m.pax_headers) for m in members] == [(n, {"SCHILY.xattr.user.all": "1"}) for n in "ab"]


def test_sizes_and_ids_beyond_octal_are_read():
    header = raw_header(
        b"big", size=b"\x80" + (9 << 30).to_bytes(11, "big"), uid=b"\x80" + (4_000_000_000).to_bytes(7, "big")
    )
    entries = tarstream.entries(iter([header]), lambda _: None, "the test")
    assert next(entries).size == 9 << 30
    assert tarstream.number(header[108:116]) == 4_000_000_000
    assert tarstream.number(b"\xff" * 7 + b"\xfb") == -5
    header = extension(b"x", record("size", b"%d" % (10 << 30))) + raw_header(b"big", size=b"\0")
    assert next(tarstream.entries(iter([header]), lambda _: None, "the test")).size == 10 << 30


# Two readers that read one header differently are how a name that nobody judged gets into a tree.
DOUBTFUL = {
    "a long name, then a path": extension(b"L", b"../evil\0")
    + extension(b"x", record("path", b"good"))
    + raw_header(b"x"),
    "a path, then a long name": extension(b"x", record("path", b"../evil"))
    + extension(b"L", b"good\0")
    + raw_header(b"x"),
    "two paths": extension(b"x", record("path", b"../evil"))
    + extension(b"x", record("path", b"good"))
    + raw_header(b"x"),
    "a sparse name, then a path": extension(b"x", record("GNU.sparse.name", b"good") + record("path", b"../evil"))
    + raw_header(b"x"),
    "the front of a name in a GNU header": raw_header(b"good", magic=b"ustar  \0", prefix=b"../evil"),
    "the front of a name in a v7 header": raw_header(b"good", magic=b"", prefix=b"../evil"),
    "a size for a directory": extension(b"x", record("size", b"512")) + raw_header(b"good", b"5"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_doubtful_header_is_written_so_that_every_reader_sees_the_name_that_was_judged(case):
    follower = raw_header(b"next", size=b"%011o\0" % 3) + padded(b"abc")
    written, (entry, _) = copied([DOUBTFUL[case] + follower + END])
    assert entry.name == b"good"
    assert [member.name for member in reread(written + END)] == ["good", "next"]
    assert b" size=" not in written


def test_a_sparse_map_that_looks_like_its_own_header_hides_no_members():
    block = bytearray(raw_header(b"s", b"S", magic=b"ustar  \0", rest=bytes(41) + bytes(96) + b"\1" + b"%011o\0" % 512))
    block[124:136] = b"%011o\0" % 1024
    block[504] = 1  # as a map: there is more
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytes(block) + bytes(block) + bytes(512) + raw_header(b"../evil") + bytes(512) + raw_header(b"good") + END
    header, rest = None, None

    def rename(entry: tarstream.Entry) -> None:
        nonlocal header, rest
        if entry.kind == tarstream.REGULAR and entry.name == b"s":
            header = entry.header = entry.rewritten(b"t")

    written, seen = copied([data], rename)
    assert [entry.name for entry in seen] == [b"s", b"good"]
    assert written == header + data[512:-1024]


def opened(data: bytes) -> None:
    """Read all of a stream, and have every header written anew."""
    copied([data], lambda entry: setattr(entry, "header", entry.rewritten(entry.name, entry.link)))


WRONG = {
    "text": b"This is not a tar. " * 100,
    "short text": b"no",
    "a wrong checksum": raw_header(b"a").replace(b"ustar", b"uztar") + END,
    "cut in a header": raw_header(b"a")[:300],
    "cut in a payload": raw_header(b"a", size=b"%011o\0" % 2000) + bytes(700),
    "cut after an extended header": extension(b"x", record("path", b"a")),
    "an extended header before the end": extension(b"x", record("path", b"a")) + END,
    "an extended header of 1 GiB": raw_header(b"x", b"x", size=b"%011o\0" % (1 << 30)) + bytes(4096),
    "extended headers without end": extension(b"x", record("a", b"b" * 900_000)) * 4 + raw_header(b"a") + END,
    "a sparse map without end": raw_header(b"s", b"S", magic=b"ustar  \0", rest=bytes(137) + b"\1")
    + b"\1" * (3 << 20)
    + END
    + END,
    "records for all of a megabyte": extension(b"g", record("a", b"b" * 900_000)) + raw_header(b"a") + END,
    "a negative size": raw_header(b"a", size=b"\xff" * 12) + END,
    "a size of letters": raw_header(b"a", size=b"abcdefghijk\0") + END,
    "a size that only Python reads": raw_header(b"a", size=b"0000001_000\0") + bytes(512) + END,
    "a pax size that only Python reads": extension(b"x", record("size", b"1_0")) + raw_header(b"a") + END,
    "a negative pax size": extension(b"x", record("size", b"-1")) + raw_header(b"a") + END,
    "a pax size of 5,000 digits": extension(b"x", record("size", b"1" * 5000)) + raw_header(b"a") + END,
    "records whose lengths do not add up": extension(b"x", b"99 path=a\n") + raw_header(b"a") + END,
    "a record without end": extension(b"x", b"9 path=ab") + raw_header(b"a") + END,
    "a NUL in a name": extension(b"x", record("path", b"a\0b")) + raw_header(b"a") + END,
    "an unknown type": raw_header(b"a", b"Z") + END,
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_tar_is_told_in_one_line(case):
    with pytest.raises(Fail, match=r"^cannot read the test: not a valid tar archive: [^\n]*$"):
        opened(WRONG[case])


@given(
    archives(), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8), st.booleans()
)
@settings(deadline=None, max_examples=200)
def test_damaged_archives_give_entries_or_a_failure_and_never_a_traceback(data, changes, mend):
    broken = bytearray(data)
    for at, value in changes:
        broken[at % len(broken)] = value
    if mend:  # so that not every change ends at the checksum
        for at in range(0, len(broken), 512):
            block = broken[at : at + 512]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                broken[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    try:
        opened(bytes(broken))
    except Fail:
        return


@given(st.binary(max_size=3000))
@settings(deadline=None, max_examples=100)
def test_random_bytes_give_a_failure_and_never_a_traceback(data):
    try:
        opened(data)
    except Fail:
        return
    assert not data.strip(b"\0")


def test_an_empty_file_zeros_only_or_a_missing_last_padding_are_archives():
    assert copied([])[1] == []
    assert copied([bytes(100)])[1] == []
    assert copied([END])[1] == []
    written, (entry,) = copied([raw_header(b"a", size=b"%011o\0" % 3) + b"abc"])
    assert (entry.name, written[512:]) == (b"a", padded(b"abc"))


def test_a_file_whose_name_ends_in_a_slash_is_a_directory_as_v7_wrote_them():
    (entry,) = copied([raw_header(b"d/", b"\0", magic=b"") + END])[1]
    assert (entry.name, entry.kind, entry.size) == (b"d/", tarstream.DIRECTORY, 0)


def test_what_follows_the_end_is_read_but_is_no_entry():
    taken = []
    chunks = [raw_header(b"a") + END, raw_header(b"b"), b"garbage"]
    names = [
        entry.name for entry in tarstream.entries((taken.append(c) or c for c in chunks), lambda _: None, "the test")
    ]
    assert names == [b"a"]
    assert taken == chunks
