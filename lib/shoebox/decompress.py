"""Layers as chunks of plain bytes: decompression, ahead of the reader, and the digest of what comes out."""

from __future__ import annotations

import bz2
import lzma
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 1 << 20  # bytes of output at a time, at most
_AHEAD = 8  # chunks that may wait for the reader
_READ = 1 << 17
GZIP, ZSTD, BZIP2, XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0"
_SKIPPABLE_ZSTD = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))


class _Decompressor(Protocol):
    """What the bz2, lzma, isal and pyzstd modules agree on."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int = ...) -> bytes: ...


_Maker = tuple["Callable[[], _Decompressor]", tuple[type[Exception], ...]]


def _maker(start: bytes) -> _Maker | None:
    """Return what decompresses data that starts so, and the errors it raises; None where it is not compressed."""
    if start[257:262] == b"ustar":  # whatever its first member is called
        return None
    if start.startswith(GZIP):
        from isal import igzip_lib  # noqa: PLC0415 - each is loaded only where such a layer comes

        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), (igzip_lib.IsalError,)  # type: ignore[return-value] # its stub has the error as a value
    if start.startswith((ZSTD, *_SKIPPABLE_ZSTD)):
        import pyzstd  # noqa: PLC0415

        return pyzstd.ZstdDecompressor, (pyzstd.ZstdError,)
    if start.startswith(BZIP2):
        return bz2.BZ2Decompressor, (OSError, EOFError)
    if start.startswith(XZ):
        return lzma.LZMADecompressor, (lzma.LZMAError,)
    return None


def plain(source: BinaryIO, read: Callable[[int], object], what: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of source, chunk by chunk; read(n) is told of n bytes taken from it."""
    data = source.read(_READ)
    read(len(data))
    maker = _maker(data)
    if maker is None:
        while data:
            yield data
            data = source.read(CHUNK)
            read(len(data))
        return
    make, errors = maker
    worker = make()
    try:
        while True:
            if worker.eof:  # a further member or frame may follow; zeros after the last are padding
                data = worker.unused_data.lstrip(b"\0")
                while not data:
                    data = source.read(_READ)
                    read(len(data))
                    if not data:
                        return
                    data = data.lstrip(b"\0")
                worker = make()
            elif worker.needs_input and not data:
                data = source.read(_READ)
                read(len(data))
                if not data:
                    raise Fail(f"cannot decompress {what}", "it ends too early", "pull it again")
            out = worker.decompress(data, CHUNK)
            data = b""
            if out:
                yield out
    except errors as error:
        raise Fail(f"cannot decompress {what}", str(error), "pull it again") from error


class Chunks:
    """An iterator over decompressed chunks, made by a thread that runs ahead; another one hashes them.

    digest: `sha256:…` of all that came out, known once the iterator has ended. limit: most bytes that may come out.
    """

    def __init__(self, source: BinaryIO, what: str, limit: int, read: Callable[[int], object]) -> None:
        """Start on source, which is closed in the end."""
        self.digest = ""
        self._source, self._what, self._limit, self._read = source, what, limit, read
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stop = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        sha, total = sha256(), 0
        last: bytes | BaseException = b""
        try:
            with ThreadPoolExecutor(1) as pool:  # one chunk is hashed while the next one is decompressed
                hashed = pool.submit(sha.update, b"")
                for chunk in plain(self._source, self._read, self._what):
                    hashed.result()
                    hashed = pool.submit(sha.update, chunk)
                    total += len(chunk)
                    if total > self._limit:
                        why = f"it unpacks to more than {self._limit} bytes"
                        raise Fail(f"refused {self._what}", why, "raise --max-size if it is meant to")
                    self._queue.put(chunk)
                    if self._stop:
                        return
            self.digest = f"sha256:{sha.hexdigest()}"
        except BaseException as error:  # noqa: BLE001 - handed to the reader, who raises it
            last = error
        finally:
            self._source.close()
        self._queue.put(last)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate."""
        return self

    def __next__(self) -> bytes:
        """Return the next chunk."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(b"")
            raise item
        if not item:
            self._queue.put(b"")  # so that asking again ends again
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop before the end."""
        self._stop = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
