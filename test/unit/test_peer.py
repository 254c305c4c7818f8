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


DEAF = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from shoebox import peer
peer._DEAF = peer._LAST = 0.2
os.set_blocking(2, False)
with peer.relayed():
    for _ in range(20):
        os.write(2, b"x" * 65536)
os.write(2, b"")
who = peer.Peer()
try:
    while True:
        who.tell("x" * 5000)
except BrokenPipeError:
    os._exit(7)
"""


def test_nobody_is_held_up_by_who_does_not_read() -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", DEAF, str(TREE / "lib")], bufsize=0, **pipes) as talk:
        assert talk.wait(60) == 7, talk.stderr.read()


def test_what_is_said_on_stderr_comes_through_to_its_end() -> None:
    script = DEAF.partition("peer._DEAF")[0] + (
        "import subprocess\n"
        "with peer.relayed():\n"
        "    subprocess.run(['sh', '-c', 'seq 100000 >&2'])\n"
        "os.write(2, b'end')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(TREE / "lib")], stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"".join(b"%d\n" % n for n in range(1, 100_001)) + b"end"
