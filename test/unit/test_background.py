"""Commands in the background and their logs, with real processes."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from fixtures.rootfs import until

from shoebox import background

SAYS = "import os, sys, time; print(os.getpid(), flush=True); "
ENDS = [sys.executable, "-c", SAYS + "print()"]
STAYS = [sys.executable, "-c", SAYS + "time.sleep(60)"]


@pytest.fixture(autouse=True)
def _reap():
    yield
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return


def ask(where, argv, fresh=300):
    return background.log(str(where), argv[-1], argv, fresh)


def said(where, argv, fresh=300):
    """Ask until it has said something; return that, and whether it is at work."""
    found = []
    assert until(lambda: found.append(ask(where, argv, fresh)) or found[-1][0], 20)
    return found[-1]


def test_a_command_is_started_once_and_tells_how_far_it_is(tmp_path):
    assert ask(tmp_path / "logs", STAYS) == ([], True)
    (pid,), at_work = said(tmp_path / "logs", STAYS)
    assert at_work
    assert ask(tmp_path / "logs", STAYS) == ([pid], True)
    assert os.getsid(int(pid)) == int(pid)  # a hangup of our terminal is none of its business
    os.kill(int(pid), signal.SIGKILL)


def test_one_that_was_killed_is_started_again(tmp_path):
    ask(tmp_path, STAYS)
    (pid,), _ = said(tmp_path, STAYS)
    os.kill(int(pid), signal.SIGKILL)
    os.waitpid(int(pid), 0)
    assert ask(tmp_path, STAYS) == ([], True)
    (other,), _ = said(tmp_path, STAYS)
    assert other != pid
    os.kill(int(other), signal.SIGKILL)


def test_one_that_has_ended_is_started_again_only_after_a_while(tmp_path):
    ask(tmp_path, ENDS)
    assert until(lambda: not ask(tmp_path, ENDS)[1], 20)
    lines, _ = ask(tmp_path, ENDS)
    assert len(lines) == 2
    assert ask(tmp_path, ENDS) == (lines, False)
    assert ask(tmp_path, ENDS, fresh=0) == ([], True)


def test_two_commands_do_not_meet_and_what_they_say_is_private(tmp_path):
    ask(tmp_path / "logs", ENDS)
    ask(tmp_path / "logs", [*ENDS[:2], ENDS[2] + " "])
    assert len(list((tmp_path / "logs").iterdir())) == 2
    assert {path.stat().st_mode & 0o777 for path in [tmp_path / "logs", *(tmp_path / "logs").iterdir()]} == {
        0o700,
        0o600,
    }


def test_logs_that_nobody_asks_for_any_more_are_removed_but_never_one_at_work(tmp_path):
    ask(tmp_path, STAYS)
    (pid,), _ = said(tmp_path, STAYS)
    (tmp_path / "old.log").touch()
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    ask(tmp_path, ENDS)
    assert not (tmp_path / "old.log").exists()
    assert ask(tmp_path, STAYS) == ([pid], True)
    os.kill(int(pid), signal.SIGKILL)
