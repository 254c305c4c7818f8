"""The SFTP protocol, version 3, as a client at the end of an ssh connection: a function for each request.

draft-ietf-secsh-filexfer-02, and for what ends in @openssh.com, and for the order of a symlink's arguments, OpenSSH's
file PROTOCOL. Unlike sftp(1) it tells errors apart, renames over what is there, and sends what was hashed on the way.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from . import ssh

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 32768  # bytes of a write that every server takes
_AHEAD = 64  # writes that may be unanswered: 2 MiB under way
_MOST = 1 << 20  # bytes of an answer
_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE = 1, 2, 3, 4, 5, 6
_FSTAT, _SETSTAT, _OPENDIR, _READDIR, _REMOVE, _MKDIR, _STAT, _READLINK, _SYMLINK = 8, 9, 11, 12, 13, 14, 17, 19, 20
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED = 101, 102, 103, 104, 105, 200
_TO_READ, _TO_MAKE = 0x01, 0x02 | 0x08 | 0x20  # of an open: WRITE, CREAT, EXCL
_HAS_SIZE, _HAS_IDS, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 1, 2, 4, 8, 0x80000000
_OK, _EOF = 0, 1
_ERRORS = {2: errno.ENOENT, 3: errno.EACCES, 8: errno.ENOSYS}


class Sftp:
    """A connection. What a request cannot do raises OSError; a connection that is lost, ConnectionError."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Begin to talk."""
        self._stdin, self._stdout = stdin, stdout
        self._number = 0
        self._open = 0  # requests without an answer
        self._cut = False  # in the midst of a packet, which a signal may have us leave: nothing can follow then
        self._packet(struct.pack(">BI", _INIT, 3))
        answer = self._answer()
        if answer[0] != _VERSION:
            raise ConnectionError("it speaks no SFTP")
        self.extensions: set[bytes] = set()
        at = 5
        while at < len(answer):
            name, at = _string(answer, at)
            _, at = _string(answer, at)
            self.extensions.add(name)

    def stat(self, path: str) -> tuple[int, int]:
        """Return size and mode of a file, symlinks followed."""
        return _attributes(self._ask(_STAT, _text(path), wants=_ATTRS), 0)[:2]

    def read(self, path: str, most: int) -> bytes:
        """Return the first bytes of a file, no more than most."""
        handle = self._ask(_OPEN, _text(path) + struct.pack(">II", _TO_READ, 0), wants=_HANDLE)
        data = b""
        try:
            while len(data) < most:
                where = struct.pack(">QI", len(data), min(PIECE, most - len(data)))
                data += _string(self._ask(_READ, handle + where, wants=_DATA), 0)[0]
        except EOFError:
            pass
        finally:
            self._ask(_CLOSE, handle)
        return data

    def list(self, path: str) -> list[tuple[str, int]]:
        """Return (name, mtime) of all in a directory."""
        handle = self._ask(_OPENDIR, _text(path), wants=_HANDLE)
        found = []
        try:
            while True:
                answer = self._ask(_READDIR, handle, wants=_NAME)
                at = 4
                for _ in range(int.from_bytes(answer[:4], "big")):
                    name, at = _string(answer, at)
                    _, at = _string(answer, at)
                    _, _, mtime, at = _attributes(answer, at)
                    found.append((name.decode(errors="surrogateescape"), mtime))
        except EOFError:
            return found
        finally:
            self._ask(_CLOSE, handle)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory, of that mode less the umask there."""
        self._ask(_MKDIR, _text(path) + struct.pack(">II", _HAS_MODE, mode))

    def chmod(self, path: str, mode: int) -> None:
        """Change a mode, whatever the umask there."""
        self._ask(_SETSTAT, _text(path) + struct.pack(">II", _HAS_MODE, mode))

    def touch(self, path: str) -> None:
        """Let a file be of now, by our clock."""
        now = int(time.time())
        self._ask(_SETSTAT, _text(path) + struct.pack(">III", _HAS_TIMES, now, now))

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._ask(_REMOVE, _text(path))

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, and replace what has it already."""
        self._ask(_EXTENDED, _text("posix-rename@openssh.com") + _text(old) + _text(new))

    def readlink(self, path: str) -> str:
        """Return what a symlink says."""
        answer = self._ask(_READLINK, _text(path), wants=_NAME)
        return _string(answer, 4)[0].decode(errors="surrogateescape")

    def symlink(self, meant: str, path: str) -> None:
        """Make a symlink."""
        self._ask(_SYMLINK, _text(meant) + _text(path))

    @contextmanager
    def create(self, path: str, mode: int) -> Iterator[File]:
        """Make a file that is not there, of that mode less the umask there; yield it, to be written from its start."""
        handle = self._ask(_OPEN, _text(path) + struct.pack(">III", _TO_MAKE, _HAS_MODE, mode), wants=_HANDLE)
        yield File(self, handle)
        self._ask(_CLOSE, handle)

    def _ask(self, kind: int, body: bytes, *, wants: int = _STATUS) -> bytes:
        """Send a request and return its answer, less kind and number. Raises OSError, EOFError."""
        self.send(kind, body)
        while self._open > 1:  # of a file whose writing has failed
            with suppress(OSError):
                self.take()
        return self.take(wants)

    def send(self, kind: int, body: bytes) -> None:
        """Send a request; take has its answer."""
        self._number += 1
        self._packet(struct.pack(">BI", kind, self._number & 0xFFFFFFFF) + body)
        self._open += 1  # never more than there are, or we would wait for ever

    def take(self, wants: int = _STATUS) -> bytes:
        """Return the next answer: servers keep the order, within one file at least. Raises OSError, EOFError."""
        self._open -= 1
        answer = self._answer()
        if answer[0] == wants != _STATUS:
            return answer[5:]
        if answer[0] != _STATUS or len(answer) < 9:
            raise ConnectionError("it answers what was not asked")
        code = int.from_bytes(answer[5:9], "big")
        if code == _EOF:
            raise EOFError
        if code != _OK:
            told = _string(answer, 9)[0].decode(errors="replace") if len(answer) > 13 else ""
            raise OSError(_ERRORS.get(code, errno.EIO), told or f"status {code}")
        return b""

    def _packet(self, data: bytes) -> None:
        self._begin()
        rest = memoryview(struct.pack(">I", len(data)) + data)
        try:
            while rest:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
        except BrokenPipeError:
            raise ConnectionError("the connection is lost") from None
        self._cut = False

    def _answer(self) -> bytes:
        self._begin()
        head = self._stdout.read(4)
        size = int.from_bytes(head, "big")
        if head and not 5 <= size <= _MOST:  # what a login shell's start files print comes here, too
            raise ConnectionError(f"it speaks no SFTP: {head.decode(errors='replace')!r}")
        data = self._stdout.read(size) if len(head) == 4 else b""
        if not head or len(data) < size:
            raise ConnectionError("the connection is lost")
        self._cut = False
        return data

    def _begin(self) -> None:
        if self._cut:
            raise ConnectionError("the connection is lost")
        self._cut = True


class File:
    """A file being written."""

    def __init__(self, there: Sftp, handle: bytes) -> None:
        """Hold the parts."""
        self._there, self._handle = there, handle
        self._at = self._ahead = 0

    def write(self, data: memoryview | bytes) -> None:
        """Write on; the answer may come later, with its error."""
        for begin in range(0, len(data), PIECE):
            piece = data[begin : begin + PIECE]
            self._there.send(_WRITE, b"".join((self._handle, struct.pack(">QI", self._at, len(piece)), piece)))
            self._at += len(piece)
            self._ahead += 1
            if self._ahead > _AHEAD:
                self._there.take()
                self._ahead -= 1

    def finish(self) -> int:
        """See it all on the disk, where the server can; return its size there."""
        while self._ahead:
            self._there.take()
            self._ahead -= 1
        if b"fsync@openssh.com" in self._there.extensions:
            self._there._ask(_EXTENDED, _text("fsync@openssh.com") + self._handle)  # noqa: SLF001 - of one kind with it
        return _attributes(self._there._ask(_FSTAT, self._handle, wants=_ATTRS), 0)[0]  # noqa: SLF001


@contextmanager
def connected(host: str) -> Iterator[Sftp]:
    """Connect, by ssh(1), unattended. Raises ConnectionError, Fail."""
    with ssh.started(*ssh.UNATTENDED, "-s", "--", host, "sftp") as (process, stdin, stdout):
        try:
            yield Sftp(stdin, stdout)
        finally:
            process.kill()  # all is answered; and it says nothing of it


def _text(text: str) -> bytes:
    data = text.encode(errors="surrogateescape")
    return struct.pack(">I", len(data)) + data


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the string at an offset, and where it ends."""
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    return data[at + 4 : end], end


def _attributes(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Return size, mode and mtime, 0 where there is none, of the attributes at an offset, and where they end."""
    flags = int.from_bytes(data[at : at + 4], "big")
    at += 4
    size = mode = mtime = 0
    if flags & _HAS_SIZE:
        size, at = int.from_bytes(data[at : at + 8], "big"), at + 8
    at += 8 * bool(flags & _HAS_IDS)
    if flags & _HAS_MODE:
        mode, at = int.from_bytes(data[at : at + 4], "big"), at + 4
    if flags & _HAS_TIMES:
        mtime, at = int.from_bytes(data[at + 4 : at + 8], "big"), at + 8
    if flags & _HAS_MORE:
        count, at = int.from_bytes(data[at : at + 4], "big"), at + 4
        for _ in range(2 * count):
            _, at = _string(data, at)
    return size, mode, mtime, at
