"""Who speaks with the image account: lines, and the bytes of an import, through standard input and output.

Nothing waits for ever for somebody who neither reads nor hangs up: he may have a turn, and others wait for it.
"""

from __future__ import annotations

import errno
import os
import queue as queues
import select
import signal
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from . import request
from .fail import LATER, Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .credentials import Credentials
    from .reference import Reference

_PATIENCE = 90.0  # seconds for a line, or a frame, that we wait for; a credential helper has 60 of them
_DEAF = 20.0  # seconds for what we say to be read
_LAST = 1.0  # seconds for the last words of children, of whom some may live on
_PIECE = 65536  # bytes


class Peer:
    """Who speaks with us; when he hangs up we end, as by SIGTERM."""

    def __init__(self) -> None:
        """Begin to listen."""
        self._came: queues.Queue[bytes] = queues.Queue(1)
        self._rest = bytearray()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        some = select.poll()
        some.register(0, select.POLLIN | select.POLLRDHUP)
        with suppress(OSError):  # of a terminal that has gone
            while True:
                some.poll()
                with suppress(BlockingIOError):
                    piece = os.read(0, _PIECE)
                    if not (piece and self._put(piece)):
                        break
        os.kill(os.getpid(), signal.SIGTERM)

    def _put(self, piece: bytes) -> bool:
        """Hand over what came; tell whether somebody is still there if nobody wants it."""
        gone = select.poll()
        gone.register(0, select.POLLRDHUP)  # and POLLHUP, whatever lies unread before it
        while True:
            try:
                self._came.put(piece, timeout=1)
            except queues.Full:
                if gone.poll(0):
                    return False
            else:
                return True

    def _more(self, until: float) -> None:
        """Wait for some more. Raises Fail when none comes until then, as time.monotonic tells it."""
        try:
            self._rest += self._came.get(timeout=max(until - time.monotonic(), 0))
        except queues.Empty:
            raise Fail("too little came", f"we waited for {_PATIENCE:.0f} s", status=LATER) from None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken

    def line(self) -> bytes:
        """Return the next line, or too much for one. Raises Fail when none comes in time."""
        until = time.monotonic() + _PATIENCE
        while (end := self._rest.find(b"\n")) < 0 and len(self._rest) <= request.MOST:
            self._more(until)
        return self._take(end + 1)[:-1] if end >= 0 else self._take(request.MOST + 1)

    def stream(self, most: int, what: str) -> Iterator[bytes]:
        """Yield the pieces of a stream. most: bytes of it; each FRAME of them has its time. Raises Fail."""
        begun, came = time.monotonic(), 0
        while size := int.from_bytes(self._exactly(4, begun, came), "big"):
            if size > request.FRAME or came + size > most:
                raise Fail(f"refused {what}", "it is larger than the site allows")
            yield self._exactly(size, begun, came)
            came += size

    def _exactly(self, size: int, begun: float, came: int) -> bytes:
        until = begun + _PATIENCE * (1 + came / request.FRAME)
        while len(self._rest) < size:
            self._more(until)
        return self._take(size)

    def tell(self, *words: str) -> None:
        """Say a line. Raises BrokenPipeError if nobody reads it."""
        text = " ".join(words).replace("\n", " ")
        _write(1, os.fsencode(text) + b"\n")

    def credentials(self, wanted: Reference) -> Credentials | None:
        """Ask for credentials for a reference's repository."""
        self.tell("credentials", str(wanted))
        return request.parse_credentials(self.line())


def _write(fd: int, data: bytes) -> None:
    """Write to what may be read or not. Raises BrokenPipeError when it is not, for so long."""
    while data:
        if not select.select([], [fd], [], _DEAF)[1]:
            raise BrokenPipeError(errno.EPIPE, "nobody reads")
        with suppress(BlockingIOError):
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]


@contextmanager
def relayed() -> Iterator[None]:
    """Pass on meanwhile what we and our children say on stderr, as long as it is read: else it is dropped."""
    theirs = os.dup(2)
    ours, said = os.pipe()
    os.dup2(said, 2)
    os.close(said)
    thread = threading.Thread(target=_relay, args=(ours, theirs), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(theirs, 2)
        thread.join(_LAST)


def _relay(ours: int, theirs: int) -> None:
    heard = True
    while piece := os.read(ours, _PIECE):
        try:
            if heard:
                _write(theirs, piece)
        except OSError:
            heard = False
