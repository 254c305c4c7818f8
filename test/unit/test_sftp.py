"""The SFTP client, where a real server would not go."""

from __future__ import annotations

import os
import signal

import pytest

from shoebox.fail import Stopped
from shoebox.sftp import Sftp


def test_after_a_packet_that_a_signal_cut_short_nothing_is_sent_or_waited_for():
    requests, answers = os.pipe(), os.pipe()
    os.write(answers[1], b"\0\0\0\x05\x02\0\0\0\x03")  # version 3, no extensions

    def stop(signum: int, _frame: object) -> None:
        raise Stopped(signum)

    old = signal.signal(signal.SIGALRM, stop)
    try:
        with os.fdopen(requests[1], "wb") as stdin, os.fdopen(answers[0], "rb") as stdout:
            there = Sftp(stdin, stdout)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Stopped):
                there.send(6, bytes(1 << 20))  # nobody reads it
            with pytest.raises(ConnectionError, match="the connection is lost"):
                there.remove("/x")
    finally:
        signal.signal(signal.SIGALRM, old)
        os.close(requests[0])
        os.close(answers[1])
