"""Who waits for a turn: order, places, and what the dead leave."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from shoebox import queue
from shoebox.queue import About


def places(where: Path, most: int) -> list[tuple[str, int]]:
    return [(entry.about.digest, entry.place) for entry in queue.look(str(where), most)]


def test_the_first_have_their_turn_and_of_one_image_only_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stands = [stack.enter_context(queue.stand(str(tmp_path), About("a", "r/x:1", digest))) for digest in "xxyzy"]
        assert places(tmp_path, 2) == [("x", 0), ("x", 1), ("y", 0), ("z", 2), ("y", 3)]
        assert places(tmp_path, 1) == [("x", 0), ("x", 1), ("y", 2), ("z", 3), ("y", 4)]
        stands[2].state("flatten")
        assert queue.look(str(tmp_path), 2)[2].about.state == "flatten"
        stands[2].state("pull")
        assert queue.look(str(tmp_path), 2)[2].about.state == "pull"
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

        second.wait(1, tell)
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
