"""Who waits for a turn: order, places, and what the dead leave."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from shoebox import queue
from shoebox.fail import Fail
from shoebox.queue import About, Turns


def places(where: Path, most: int) -> list[tuple[str, int]]:
    return [(entry.about.digest, entry.place) for entry in queue.look(str(where), Turns(most))]


def test_the_first_have_their_turn_and_of_one_image_only_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stands = [
            stack.enter_context(queue.stand(str(tmp_path), About(who, "r/x:1", digest)))
            for who, digest in zip("abcde", "xxyzy", strict=True)
        ]
        assert places(tmp_path, 2) == [("x", 0), ("x", 1), ("y", 0), ("z", 2), ("y", 3)]
        assert places(tmp_path, 1) == [("x", 0), ("x", 1), ("y", 2), ("z", 3), ("y", 4)]
        stands[2].state("flatten")
        assert queue.look(str(tmp_path), Turns(2))[2].about.state == "flatten"
        stands[2].state("pull")
        assert queue.look(str(tmp_path), Turns(2))[2].about.state == "pull"
        stack.enter_context(queue.stand(str(tmp_path), About("b", "r/x:1", "w", queue.READY)))
        assert places(tmp_path, 1)[-1] == ("w", 0)
    assert places(tmp_path, 2) == []
    assert not list(tmp_path.iterdir())


def test_who_waits_is_told_of_places_and_goes_on_when_it_is_the_turn(tmp_path: Path) -> None:
    told = []
    with (
        queue.stand(str(tmp_path), About("b", "r/y:1", "0")) as first,
        queue.stand(str(tmp_path), About("b", "r/y:1", "1")) as second,
    ):

        def tell(place: int, many: int) -> None:
            told.append((place, many))
            os.unlink(tmp_path / first.name)

        second.wait(Turns(1), tell)
    assert told == [(1, 1)]


def test_the_ticket_of_a_killed_process_is_none_but_counts_as_long_as_a_child_holds_it(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys; from shoebox import queue\n"
        "t = queue.Ticket(sys.argv[1], queue.About('a', 'b', 'c'))\n"
        "child = subprocess.Popen(['sleep', '60'], pass_fds=[t.fd], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "PYTHONPATH": "lib"}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=env, stdout=subprocess.PIPE, check=False)
    try:
        assert done.returncode == -9
        assert places(tmp_path, 1) == [("c", 0)]
    finally:
        os.kill(int(done.stdout), 9)
    while places(tmp_path, 1):  # the kernel is not done with it at once
        pass
    assert not list(tmp_path.iterdir())


def test_no_user_has_all_turns_nor_a_second_before_anothers_first(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = {
            name: stack.enter_context(queue.stand(str(tmp_path), About(name[0], "r/x:1", name)))
            for name in ("a1", "a2", "a3", "b1", "b2")
        }
        assert places(tmp_path, 2) == [("a1", 0), ("a2", 1), ("a3", 2), ("b1", 0), ("b2", 3)]
        assert places(tmp_path, 3) == [("a1", 0), ("a2", 0), ("a3", 1), ("b1", 0), ("b2", 2)]
        for name in ("b1", "b2"):
            made[name].state("pull")
        assert places(tmp_path, 3) == [("a1", 0), ("a2", 1), ("a3", 2), ("b1", 0), ("b2", 0)]


def test_a_user_has_so_many_tickets_and_no_more(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(32):
            stack.enter_context(queue.stand(str(tmp_path), About("a", "r/x:1", str(number))))
        with (
            pytest.raises(Fail, match="'a' waits for 32 others already"),
            queue.stand(str(tmp_path), About("a", "", "")),
        ):
            pass
        stack.enter_context(queue.stand(str(tmp_path), About("b", "r/x:1", "0")))


def test_a_ticket_that_cannot_be_written_is_none_and_one_that_cannot_be_read_has_its_turn(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with queue.stand(str(tmp_path), About("a", "r/x:1", "1")) as old, queue.stand(str(tmp_path), About("b", "r", "2")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))  # as a disk that gets full
        try:
            with pytest.raises(OSError, match="No space left"):
                queue.Ticket(str(tmp_path), About("c", "r/x:1", "3" * 60))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(list(tmp_path.iterdir())) == 2
        for text in (b'{"who": "a", "refe', b'{"of": "another version"}', b"[]"):
            os.pwrite(old.fd, text.ljust(os.fstat(old.fd).st_size), 0)
            assert [(entry.about.who, entry.place) for entry in queue.look(str(tmp_path), Turns(1))] == [
                ("", 0),
                ("b", 1),
            ]


def test_who_does_not_move_for_too_long_is_killed_with_all_that_he_started(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; from shoebox import queue\n"
        "t = queue.Ticket(sys.argv[1], queue.About('a', 'b', 'c'))\n"
        "child = subprocess.Popen(['sleep', '60'], pass_fds=[t.fd], stdin=subprocess.DEVNULL)\n"
        "print(t.name, flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": "lib"}, start_new_session=True, **pipes) as child:
        ticket = tmp_path / child.stdout.readline().decode().strip()
        assert len(queue.look(str(tmp_path), Turns(1, 60))) == 1
        os.utime(ticket, (0, time.time() - 100))
        assert queue.look(str(tmp_path), Turns(1, 60)) == []
        assert child.wait(60) == -9
        assert child.stdout.read() == b"", "sleep has it, too"
