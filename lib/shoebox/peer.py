"""Who speaks with the image account: lines, and the bytes of an import, through standard input and output."""

from __future__ import annotations

import os
import queue as queues
import signal
import threading
import time
from typing import TYPE_CHECKING

from . import request
from .fail import LATER, Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .credentials import Credentials
    from .reference import Reference

_PATIENCE = 90.0  # seconds for a line, or a frame, that we wait for; a credential helper has 60 of them
_PIECE = 65536  # bytes


class Peer:
    """Who speaks with us; when he hangs up we end, as by SIGTERM."""

    def __init__(self) -> None:
        """Begin to listen."""
        self._came: queues.Queue[bytes] = queues.Queue(1)
        self._rest = bytearray()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while piece := os.read(0, _PIECE):
            self._came.put(piece)
        os.kill(os.getpid(), signal.SIGTERM)

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
        """Say a line."""
        text = " ".join(words).replace("\n", " ")
        data = os.fsencode(text) + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def credentials(self, wanted: Reference) -> Credentials | None:
        """Ask for credentials for a reference's repository."""
        self.tell("credentials", str(wanted))
        return request.parse_credentials(self.line())
