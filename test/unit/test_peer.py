"""Who speaks with the image account: lines, and streams that do not last for ever."""

from __future__ import annotations

import subprocess
import sys
import time

from fixtures.installed import TREE

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from shoebox import fail, peer
peer._PATIENCE = 1.0
who = peer.Peer()
print(who.line(), flush=True)
try:
    print(b"".join(who.stream(1000, "it")), flush=True)
    print(who.line(), flush=True)
except fail.Fail as error:
    print(error, flush=True)
"""


def start() -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", SCRIPT, str(TREE / "lib")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(words, bufsize=0, **pipes)


def test_a_line_a_stream_and_a_line_come_as_they_were_sent_however_they_are_cut() -> None:
    with start() as talk:
        for byte in b"hello\n\0\0\0\2ab\0\0\0\1c\0\0\0\0bye\n":
            talk.stdin.write(bytes([byte]))
        assert [talk.stdout.readline() for _ in range(3)] == [b"b'hello'\n", b"b'abc'\n", b"b'bye'\n"]


def test_a_trickle_has_an_end() -> None:
    with start() as talk:
        talk.stdin.write(b"hello\n")
        assert talk.stdout.readline() == b"b'hello'\n"
        begun = time.monotonic()
        while not select(talk):
            talk.stdin.write(b"\0\0\0\1x")
            assert time.monotonic() - begun < 60
            time.sleep(0.1)
        assert b"too little came" in talk.stdout.read()


def select(talk: subprocess.Popen[bytes]) -> bool:
    """Tell whether it has said something, or ended."""
    import select as system

    return bool(system.select([talk.stdout], [], [], 0)[0])


def test_what_is_larger_than_allowed_is_refused_before_it_is_read() -> None:
    for sent in (b"\x7f\0\0\0", b"\0\0\3\0" + bytes(0x300) + b"\0\0\3\0"):
        with start() as talk:
            talk.stdin.write(b"\n" + sent)
            assert talk.stdout.readline() == b"b''\n"
            assert talk.stdout.read() == b"refused it: it is larger than the site allows\n"
