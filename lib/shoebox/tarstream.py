"""Tar as a stream: entries out of chunks of bytes, payloads copied through untouched, headers rewritten on request.

Formats: POSIX.1-2001 pax(1), ustar, GNU tar (base-256 numbers, long names, sparse files). Everything is bytes; a
header that stays as it is costs one parse and no copy, which is why this is not the tarfile module (10 x slower).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from zlib import adler32

from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BLOCK = 512
REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_GNU_SPARSE = b"S"
_KINDS = {b"\0": REGULAR, b"7": REGULAR, _GNU_SPARSE: REGULAR} | {
    k: k for k in (REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO)
}
_MAX_EXTENSION = 1 << 20  # bytes of pax records or of a long name: an xattr has at most 64 KiB
_MAX_COMMON = 1 << 14  # bytes of pax records for all: each is written to every member
_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")  # GNU's sparse format 0.0: again and again
_SIZES = (b"size", b"GNU.sparse.realsize", b"GNU.sparse.size")
_ZEROS = bytes(BLOCK)


class Entry:
    """One member: what it is, and, set by whoever reads it, what becomes of it.

    name, link: bytes as the archive has them. kind: one of REGULAR … FIFO. size: bytes of the file once unpacked.
    records: its pax records. keep: copy it to the output. header: write these bytes in place of its own header.
    """

    __slots__ = ("block", "header", "keep", "kind", "link", "name", "records", "size")

    def __init__(self, name: bytes, kind: bytes, link: bytes, size: int, block: bytes, records: Records) -> None:
        """Hold what the header says; block is its last 512 bytes, the one that every format has."""
        self.name = name
        self.kind = kind
        self.link = link
        self.size = size
        self.block = block
        self.records = records
        self.keep = False
        self.header = b""

    def rewritten(self, name: bytes, link: bytes = b"", kind: bytes = b"", drop: Iterable[bytes] = ()) -> bytes:
        """Return header blocks that give this entry another name, link or kind, and lack the pax records in drop."""
        records = {k: v for k, v in self.records.items() if k not in drop and k not in (b"path", b"linkpath")}
        if b"GNU.sparse.name" in records:
            records[b"GNU.sparse.name"] = name
        kind = kind or (self.block[156:157] if self.block[156:157] == _GNU_SPARSE else self.kind)
        if kind not in (REGULAR, _GNU_SPARSE):
            records.pop(b"size", None)
        size = b"00000000000\0" if kind not in (REGULAR, _GNU_SPARSE) else self.block[124:136]
        return _blocks(name, link, kind, records, self.block[100:124] + size + self.block[136:148], self.block[265:])


Records = dict[bytes, bytes]


def made(name: bytes, kind: bytes, *, link: bytes = b"", mode: int = 0o755, size: int = 0) -> bytes:
    """Return the header of an entry of our own making: root's, of time 0."""
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, 0)
    return _blocks(name, link, kind, {}, numbers, b"")


def padding(size: int) -> bytes:
    """Return the zeros that fill size bytes up to a whole block."""
    return bytes(-size % BLOCK)


def mode(entry: Entry) -> int:
    """Return an entry's permission bits; 0 if what it says is no mode."""
    try:
        return number(entry.block[100:108]) & 0o7777
    except ValueError:
        return 0


def seconds(entry: Entry) -> int:
    """Return an entry's time in whole seconds since 1970; -1 if what it says is no time."""
    text = entry.records.get(b"mtime")
    try:
        return int(text.partition(b".")[0][:20]) if text is not None else number(entry.block[136:148])
    except ValueError:
        return -1


def _blocks(name: bytes, link: bytes, kind: bytes, records: Records, numbers: bytes, tail: bytes) -> bytes:
    """Put a header together; names that do not fit go into pax records.

    numbers: mode, uid, gid, size, mtime as they stand at offset 100; tail: what follows `version`, GNU's included.
    """
    out = dict(records)
    if len(name) > 100:
        out[b"path"] = name
    if len(link) > 100:
        out[b"linkpath"] = link
    sparse = kind == _GNU_SPARSE
    # The prefix field (345) is ours only in ustar; in GNU's old sparse header the map stands there.
    rest = tail if sparse else tail[:80] + bytes(155)
    magic = b"ustar  \0" if sparse else b"ustar\x0000"
    block = bytearray(BLOCK)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:148] = numbers
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic
    block[265 : 265 + len(rest)] = rest[: BLOCK - 265]
    block[148:156] = b"%06o\0 " % sum(block)
    return (_pax(out) if out else b"") + bytes(block)


def _pax(records: Records) -> bytes:
    """Return an extended header (pax(1), typeflag x) with these records."""
    body = b""
    for key, value in records.items():
        length = len(key) + len(value) + 3
        digits = len(str(length))
        while len(str(length + digits)) != digits:
            digits = len(str(length + digits))
        body += b"%d %s=%s\n" % (length + digits, key, value)
    return made(b"././@PaxHeader", b"x", mode=0o644, size=len(body)) + body + padding(len(body))


def number(field: bytes) -> int:
    """Read a numeric field: octal, or GNU's base 256."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    digits = field.rstrip(b" \0").lstrip(b" ") or b"0"
    if not digits.isdigit():  # int() takes more than other readers do: 1_0, +10
        raise ValueError(field)
    return int(digits, 8)


def pax_records(data: bytes) -> Records:
    """Read the records of an extended header; ValueError where the lengths do not add up.

    The pairs of GNU's sparse format 0.0, keys that come again and again, become the one record of its format 0.1.
    """
    records: Records = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(data) and data[at] != 0:
        blank = data.index(b" ", at, at + 20)
        length = int(data[at:blank])
        key, equals, value = data[blank + 1 : at + length - 1].partition(b"=")
        if length <= blank - at or not equals or data[at + length - 1 : at + length] != b"\n":
            raise ValueError(at)
        if key in _SPARSE_PAIR:
            pairs.append(value)
        else:
            records[key] = value
        at += length
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


def _checksum_holds(block: bytes) -> bool:
    """Tell whether the header's checksum is right.

    The low half of Adler-32 is the byte sum plus one, modulo 65521: as good a check as the sum, at the speed of C.
    """
    try:
        want = number(block[148:156]) - 8 * 32 + sum(block[148:156])
    except ValueError:
        return False
    return adler32(block) & 0xFFFF == (want + 1) % 65521


class _Window:
    """The stretch of the archive at hand: a chunk, where we read in it, and from where on it is to be copied."""

    __slots__ = ("_chunks", "_write", "buf", "pos", "start", "what")

    def __init__(self, chunks: Iterator[bytes], write: Callable[[memoryview | bytes], object], what: str) -> None:
        self._chunks = chunks
        self._write = write
        self.what = what
        self.buf, self.pos, self.start = b"", 0, 0

    def corrupt(self, why: str) -> Fail:
        return Fail(f"cannot read {self.what}", f"not a valid tar archive: {why}", "pull or make it again")

    def flush(self) -> None:
        """Copy what is to be copied up to here."""
        if self.start < self.pos:
            self._write(memoryview(self.buf)[self.start : self.pos])
        self.start = self.pos

    def more(self) -> bool:
        """Go on to the next chunk; the one at hand has been dealt with."""
        self.buf, self.pos, self.start = next(self._chunks, b""), 0, 0
        return bool(self.buf)

    def take(self, length: int, *, at_end: bool = False) -> bytes:
        """Take so many bytes out of the stream, not to be copied; at_end: none at all is fine."""
        data = self.buf[self.pos : self.pos + length]
        self.pos += len(data)
        while len(data) < length and self.more():
            self.pos = min(length - len(data), len(self.buf))
            data += self.buf[: self.pos]
        self.start = self.pos
        if len(data) < length and not (at_end and not data.strip(b"\0")):
            raise self.corrupt("it ends too early")
        return data

    def payload(self, stored: int, *, keep: bool) -> None:
        """Pass over a payload and its padding: copied or dropped."""
        left = stored + -stored % BLOCK
        while left > len(self.buf) - self.pos:
            left -= len(self.buf) - self.pos
            self.pos = len(self.buf)
            if keep:
                self.flush()
            if not self.more():
                if left <= -stored % BLOCK:  # the very last padding is missing: tolerated, but not handed on
                    if keep:
                        self._write(bytes(left))
                    return
                raise self.corrupt("it ends too early")
        self.pos += left
        if not keep:
            self.start = self.pos

    def rest(self) -> None:
        """Read to the end, whatever follows: a digest is over all of it."""
        while self.more():
            continue


def entries(
    chunks: Iterator[bytes], write: Callable[[memoryview | bytes], object], what: str, common: Records | None = None
) -> Iterator[Entry]:
    """Yield the entries of an archive that comes in chunks; those the caller marks keep are written, payload and all.

    The caller sets entry.keep (and entry.header) before it asks for the next one. Entries that stand side by side and
    stay as they are go out in one write; the end-of-archive blocks are not handed on. what names the archive in
    errors. Raises Fail on anything that is not tar.
    """
    window = _Window(chunks, write, what)
    common = {} if common is None else common  # of pax global headers
    while True:
        block = window.buf[window.pos : window.pos + BLOCK]
        group = None  # the header as it came, when it is more than this one block in this one chunk
        if len(block) < BLOCK or block[156] in b"xgLKXS\0" or common:
            window.flush()
            group = _group(window, common)
            if group is None:
                window.rest()
                return
            block = group.block
        elif not _checksum_holds(block):
            raise window.corrupt("wrong header checksum")
        entry, stored = _entry(block, group.records if group else {}, window)
        if _ambiguous(entry, group, common):
            entry.header = entry.rewritten(entry.name, entry.link)
        yield entry
        if group:
            if entry.keep:
                write(entry.header + group.sparse_map if entry.header else group.head)
        elif entry.keep and not entry.header:
            window.pos += BLOCK
        else:
            window.flush()
            if entry.keep:
                write(entry.header)
            window.pos = window.start = window.pos + BLOCK
        window.payload(stored, keep=entry.keep)


class _Group(NamedTuple):
    """A member's header blocks: all as they came, the one that every format has, and what the others say."""

    head: bytes
    block: bytes
    records: Records
    sparse_map: bytes  # old GNU: the blocks after block
    extensions: int


def _group(window: _Window, common: Records) -> _Group | None:
    """Take one member's header off the stream; None at the end."""
    head, local, extensions = b"", Records(), 0
    while True:
        block = window.take(BLOCK, at_end=not head)
        if len(block) < BLOCK or block == _ZEROS:
            if head:
                raise window.corrupt("it ends after an extended header")
            return None
        if not _checksum_holds(block):
            raise window.corrupt("wrong header checksum")
        kind = block[156:157]
        head += block
        if kind not in (b"x", b"g", b"L", b"K", b"X"):
            break
        extensions += 1
        size = _size(block, window)
        if size > _MAX_EXTENSION or len(head) > 2 * _MAX_EXTENSION:
            raise window.corrupt(f"extended headers of {len(head) + size} bytes; the limit is {_MAX_EXTENSION}")
        data = window.take(size + -size % BLOCK)
        head += data
        try:
            if kind == b"g":
                common |= {k: v for k, v in pax_records(data[:size]).items() if k != b"comment"}
                head = b""
            elif kind in b"LK":
                local[b"path" if kind == b"L" else b"linkpath"] = data[:size].rstrip(b"\0")
            else:
                local |= pax_records(data[:size])
        except ValueError:
            raise window.corrupt("malformed pax records") from None
        if common and sum(len(key) + len(value) for key, value in common.items()) > _MAX_COMMON:
            raise window.corrupt(f"more than {_MAX_COMMON} bytes of pax records for every member")
    sparse_map: list[bytes] = []
    if kind == _GNU_SPARSE and block[482] != 0:  # the map goes on in blocks of its own
        sparse_map.append(window.take(BLOCK))
        while sparse_map[-1][504] != 0:
            if len(sparse_map) * BLOCK > _MAX_EXTENSION:
                raise window.corrupt(f"a sparse map of more than {_MAX_EXTENSION} bytes")
            sparse_map.append(window.take(BLOCK))
    rest = b"".join(sparse_map)
    return _Group(head + rest, block, {**common, **local} if common else local, rest, extensions)


def _ambiguous(entry: Entry, group: _Group | None, common: Records) -> bool:
    """Tell whether another reader may take the header for something else than we do, so that it must not be copied."""
    block, records = entry.block, entry.records
    if block[345] and block[257:263] != b"ustar\0" and block[156:157] != _GNU_SPARSE:
        return True  # GNU's times, or anything, where others see the front of the name
    if group is None:
        return False
    renamed = b"path" in records and b"GNU.sparse.name" in records
    return bool(common) or group.extensions > 1 or renamed or (b"size" in records and entry.kind != REGULAR)


def _size(block: bytes, window: _Window, at: int = 124) -> int:
    """Return a size field of a header."""
    try:
        size = number(block[at : at + 12])
    except ValueError:
        raise window.corrupt("a size that is no number") from None
    if size < 0:
        raise window.corrupt("a negative size")
    return size


def _entry(block: bytes, records: Records, window: _Window) -> tuple[Entry, int]:
    """Return the entry that a header describes, and the bytes of payload that follow it."""
    name, _, _ = block[:100].partition(b"\0")
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    letter = block[156:157]
    link = block[157:257].partition(b"\0")[0] if letter in b"12" else b""
    size = real = _size(block, window)
    if letter == _GNU_SPARSE:
        real = _size(block, window, 483)
    if records:
        name = records.get(b"GNU.sparse.name", records.get(b"path", name))
        link = records.get(b"linkpath", link)
        sizes = [records[key] for key in _SIZES if key in records]
        if not all(0 < len(digits) < 20 and digits.isdigit() for digits in sizes):
            raise window.corrupt("a size that is no number")
        size = int(records.get(b"size", size))
        real = int(records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size", max(real, size))))
        if b"\0" in name or b"\0" in link:
            raise window.corrupt("a name with NUL")
    kind = _KINDS.get(letter)
    if kind is None:
        shown = name.decode(errors="backslashreplace")
        raise window.corrupt(f"{shown!r} is of type {letter.decode(errors='backslashreplace')!r}, unknown to POSIX")
    if kind != REGULAR:
        return Entry(name, kind, link, 0, block, records), 0
    if name.endswith(b"/"):  # as v7 tar wrote directories
        return Entry(name, DIRECTORY, link, 0, block, records), 0
    return Entry(name, kind, link, real, block, records), size
