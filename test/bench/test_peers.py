"""Starts beside all others that do the same: a directory and an image, alone, as a rank that joins, 64 at once."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from bench import peers
from bench.measure import SH_RUN, Command, Record, Room, ratio
from bench.starter import STEP, Site, Starter, container
from fixtures.rootfs import squash, until

Others = tuple[Starter, dict[str, peers.Peer]]
Rounds = Callable[[int], int]
Works = Mapping[str, Callable[[], float]]

RANKS = 64
SLOW = ("podman", "udocker")  # tenths of a second each: few rounds


@pytest.fixture(scope="module")
def others(room: Room, tree: Path) -> Iterator[Others]:
    """Return what starts commands, and who else runs them."""
    with peers.all_of_them(room, tree) as made:
        yield made


@pytest.fixture(scope="module")
def small(room: Room, tree: Path) -> Path:
    """Return the small tree as an image."""
    return squash(tree, room.path / "small.sqfs")


@pytest.fixture
def rounds(*, short: bool) -> Rounds:
    """Return how many rounds there shall be of what has so many in the long form."""
    return lambda count: max(2, count // 5) if short else count


def in_turns(room: Room, works: Works, rounds: int) -> dict[str, list[float]]:
    """Do all works, one after the other, again and again; return the seconds of each. The first round is for warmth."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            room.pause()
            seconds[name].append(work())
    return {name: each[1:] for name, each in seconds.items()}


def report(record: Record, text: str, seconds: dict[str, list[float]]) -> None:
    """Record a row for each of the others beside ours, "". text: has %s where the other one's name belongs."""
    for name, theirs in seconds.items():
        if name:
            record(ratio(text % name, None, seconds[""], theirs))


def alone(started: Starter, *words: object, **env: str) -> Callable[[], float]:
    """Return the work of one command: its seconds."""
    return lambda: started.together([[str(word) for word in words]], **env)[0]


def many(ranks: int, started: Starter, words: Callable[[int], Command], **env: str) -> Callable[[], float]:
    """Return the work of as many commands as there are ranks."""
    return lambda: started.together([words(rank) for rank in range(ranks)], **env)[0]


def test_a_directory_beside_all_others(record: Record, room: Room, tree: Path, others: Others, rounds: Rounds) -> None:
    started, them = others
    works = {"": alone(started, SH_RUN, tree, "--", "true")}
    works |= {name: alone(started, *peer.run(0)) for name, peer in them.items()}
    fast = {name: work for name, work in works.items() if name not in SLOW}
    report(record, "sh-run DIR true : %s", in_turns(room, fast, rounds(30)))
    slow = {name: works[name] for name in ("", *SLOW) if name in works}
    report(record, "sh-run DIR true : %s", in_turns(room, slow, rounds(10)))


def test_an_image_beside_squashfuse_and_bubblewrap(
    record: Record, room: Room, image: Path, others: Others, rounds: Rounds
) -> None:
    started, _ = others
    at = room.path / "served"
    at.mkdir()
    served = alone(started, *peers.served(image, at, [*peers.bubblewrap(at), "true"]))

    def theirs() -> float:
        try:
            return served()
        finally:
            started.start(*peers.unserved(at))  # not in the time: sh-run's server, too, ends after its command

    works = {"": alone(started, SH_RUN, image, "--", "true"), "bwrap": theirs}
    report(record, "sh-run IMG.sqfs true : squashfuse_ll, %s", in_turns(room, works, rounds(30)))


def test_an_image_unpacked_beside_unsquashfs_and_ch_run(
    record: Record, room: Room, small: Path, others: Others, rounds: Rounds
) -> None:
    started, _ = others
    unpacked = '"$@" >/dev/null && "$CH_RUN" "$AT" -- true && rm -rf "$AT"'
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shoebox-bench-") as memory:
        at = f"{memory}/tree"
        words = ["/bin/sh", "-c", unpacked, "-", "unsquashfs", "-q", "-n", "-d", at, small]
        works = {
            "": alone(started, SH_RUN, "--mount=unpack", small, "--", "true"),
            "ch-run": alone(started, *words, CH_RUN=peers.ch_run(room)[0], AT=at),
        }
        seconds = in_turns(room, works, rounds(30))
    report(record, "sh-run --mount=unpack SMALL.sqfs true : unsquashfs, %s", seconds)


def test_an_image_by_setuid_beside_ch_run(record: Record, room: Room, site: Site, rounds: Rounds) -> None:
    theirs = [*peers.ch_run(room)[:1], f"--mount={site.empty}", site.image, "--", "true"]
    works = {
        "": alone(site.started, site.sh_run, "--mount=setuid", site.image, "true"),
        "ch-run": alone(site.started, *theirs),
    }
    report(record, "sh-run --mount=setuid IMG.sqfs true : %s", in_turns(room, works, rounds(30)))


def test_a_rank_that_joins_beside_all_others(
    record: Record, room: Room, image: Path, others: Others, rounds: Rounds
) -> None:
    started, them = others
    with ExitStack() as stack:
        stack.enter_context(container(started, image, room.path / "home/ready"))
        works = {"": alone(started, SH_RUN, "--image", image, "true", **STEP)}
        for name, peer in them.items():
            if peer.join:
                pid = stack.enter_context(started.holding(peer.hold))
                stack.callback(lambda peer=peer: peer.end and started.start(*peer.end))
                works[name] = alone(started, *peer.join(pid))
                assert until(lambda work=works[name]: joined(work), 60), name
        seconds = in_turns(room, works, rounds(20))
    names = {"ch-run": "ch-run --join-pid", "unshare": "nsenter", "crun": "crun exec", "podman": "podman exec"}
    report(
        record, "sh-run IMG.sqfs true, joining : %s", {names.get(name, name): each for name, each in seconds.items()}
    )


def joined(work: Callable[[], float]) -> bool:
    """Tell whether a container can be joined already."""
    try:
        work()
    except AssertionError:
        return False
    return True


def test_many_ranks_beside_all_others(
    record: Record,
    room: Room,
    tree: Path,
    others: Others,
    rounds: Rounds,
    *,
    short: bool,
) -> None:
    started, them = others
    ranks = 16 if short else RANKS
    at_once = partial(many, ranks)
    works = {"": at_once(started, lambda _: [SH_RUN, "--image", tree, "true"], **STEP)}
    works |= {name: at_once(started, peer.run) for name, peer in them.items() if name not in SLOW}
    text = f"{ranks} ranks of sh-run DIR true : {ranks} of %s"
    report(record, text, in_turns(room, works, rounds(10)))
    if not short:
        slow = {name: at_once(started, them[name].run) for name in SLOW if name in them}
        report(record, text, in_turns(room, {"": works[""]} | slow, 1))


@pytest.mark.parametrize("what", ["DIR", "IMG.sqfs"])
def test_many_ranks_that_join_beside_ch_run(
    record: Record,
    room: Room,
    tree: Path,
    image: Path,
    others: Others,
    rounds: Rounds,
    what: str,
    *,
    short: bool,
) -> None:
    """Both have a container that is there: of `ch-run --join`, ranks fail where the first one's command ends early."""
    started, them = others
    ranks = 16 if short else RANKS
    root = tree if what == "DIR" else image
    hold = [*peers.ch_run(room), str(root), "--", "sleep", "600"]
    with container(started, root, room.path / "home/ready"), started.holding(hold) as pid:
        assert until(lambda: joined(alone(started, *them["ch-run"].join(pid))), 60), "ch-run"
        works = {
            "": many(ranks, started, lambda _: [SH_RUN, "--image", root, "true"], **STEP),
            "ch-run --join-pid": many(ranks, started, lambda _: them["ch-run"].join(pid)),
        }
        seconds = in_turns(room, works, rounds(10))
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)  # which would outlive ch-run, here the server of its image
    report(record, f"{ranks} ranks of sh-run {what} true, joining : {ranks} of %s", seconds)


@pytest.mark.parametrize("way", ["kernel", "setuid"])
def test_many_ranks_by_sh_mount_beside_ch_run(
    record: Record, room: Room, site: Site, way: str, rounds: Rounds, *, short: bool
) -> None:
    ranks = 16 if short else RANKS
    at_once = partial(many, ranks)
    charlie = [*peers.ch_run(room)[:1], f"--mount={site.empty}"]
    works = {
        "": at_once(site.started, lambda _: [site.sh_run, f"--mount={way}", "--image", site.image, "true"], **STEP),
        "ch-run": at_once(site.started, lambda _: [*charlie, site.image, "--", "true"]),
    }
    text = f"{ranks} ranks of sh-run --mount={way} IMG.sqfs true : {ranks} of %s"
    report(record, text, in_turns(room, works, rounds(6)))
