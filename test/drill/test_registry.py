"""Pulls from a registry that fails in every way that registries have."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fixtures import drills
from fixtures.front import FINE, Asked, Fault, misbehaving
from fixtures.images import push
from fixtures.installed import Shell
from fixtures.registry import Place, docker_registry, free_port

SIZE = 1_500_000
IMAGES = [drills.build(number, SIZE) for number in range(2)]
TRIES = 60
LOSS = 1 << 20  # bytes: who gives up, since one blob cannot be had, may lose what is on its way for three others

Makes = Callable[[random.Random], Callable[[Asked], Fault]]


def sometimes(chance: float, make: Callable[[random.Random, Asked], Fault], *, blobs: bool = True) -> Makes:
    """Misbehave in so many cases, for blobs or for manifests."""

    def start(dice: random.Random) -> Callable[[Asked], Fault]:
        lock = threading.Lock()

        def fault(asked: Asked) -> Fault:
            with lock:
                hit = bool(asked.blob) == blobs and dice.random() < chance
                return make(dice, asked) if hit else FINE

        return fault

    return start


def for_a_while(make: Fault, seconds: float) -> Makes:
    """Misbehave always, but only for some seconds."""

    def start(_dice: random.Random) -> Callable[[Asked], Fault]:
        began = time.monotonic()
        return lambda _asked: make if time.monotonic() - began < seconds else FINE

    return start


def first(times: int, make: Fault) -> Makes:
    """Misbehave when a path is asked for the first few times."""
    return lambda _dice: lambda asked: make if asked.before < times else FINE


# name: (how the front misbehaves, statuses that may be)
FAULTS: dict[str, tuple[Makes, tuple[int, ...]]] = {
    "cuts in blobs": (sometimes(0.7, lambda dice, _: Fault(cut=dice.randrange(SIZE))), (0, 75)),
    "resets in blobs": (sometimes(0.7, lambda dice, _: Fault(cut=dice.randrange(SIZE), reset=True)), (0, 75)),
    "cuts in manifests": (sometimes(0.5, lambda dice, _: Fault(cut=dice.randrange(500)), blobs=False), (0, 75)),
    "resets in manifests": (
        sometimes(0.5, lambda dice, _: Fault(cut=dice.randrange(500), reset=True), blobs=False),
        (0, 75),
    ),
    "stalls": (sometimes(0.5, lambda dice, _: Fault(cut=dice.randrange(SIZE), stall=1.5)), (0,)),
    "wrong bytes in blobs": (sometimes(0.3, lambda dice, _: Fault(flip=dice.randrange(800_000))), (0, 1)),
    "wrong bytes and cuts": (
        sometimes(0.4, lambda dice, _: Fault(flip=dice.randrange(SIZE), cut=dice.randrange(SIZE))),
        (0, 1, 75),
    ),
    "wrong bytes in manifests": (
        sometimes(0.5, lambda dice, _: Fault(flip=dice.randrange(500)), blobs=False),
        (0, 1),
    ),
    "429 and Retry-After": (first(1, Fault(status=429, headers=(("Retry-After", "1"),))), (0,)),
    "429 without end": (for_a_while(Fault(status=429), 3), (0, 75)),
    "503": (for_a_while(Fault(status=503), 3), (0, 75)),
    "500 sometimes": (sometimes(0.6, lambda _dice, _: Fault(status=500)), (0, 75)),
}
FULL = {  # what takes more than a minute to be noticed
    "stalls for good": (first(1, Fault(cut=400_000, stall=90)), (0, 75)),
    "says nothing": (first(1, Fault(silent=70)), (0, 75)),
}


def test_a_registry_that_misbehaves(cmd: Shell, registry: Place, tmp_path: Path, drill: drills.Drill) -> None:
    for number, made in enumerate(IMAGES):
        push(registry.url, f"image{number}", "1", made)
    dice = drill.dice
    todo = [(what, tmp_path / f"{n} {turn}") for turn in range(drill.length(1, 25)) for n, what in enumerate(FAULTS)]
    if drill.full:
        todo += [(what, tmp_path / what) for what in FULL]
    with ThreadPoolExecutor(6) as pool:  # most of the time is waiting
        rounds = [
            pool.submit(misbehave, cmd, registry, where, drill.row(what), what, random.Random(dice.random()))
            for what, where in todo
        ]
    assert [str(error) for error in (one.exception() for one in rounds) if error] == []


def misbehave(
    cmd: Shell, registry: Place, where: Path, figures: drills.Figures, what: str, dice: random.Random
) -> None:
    """Pull two images from a registry that fails in one way, until they are there."""
    makes, may = (FAULTS | FULL)[what]
    cache = where / "cache"
    cache.mkdir(parents=True)
    try:
        with misbehaving(registry.url, makes(dice)) as front, drills.watching(where / "stop", cache) as seen:
            front.on_ask = rest = drills.Rest(lambda _uid: cache, front)
            for number in range(len(IMAGES)):
                ref = f"{front.host}/image{number}:1"
                made = drills.until_done(cmd, ["sh-pull", ref], figures, TRIES, may, SHOEBOX_CACHE=str(cache))
                assert made.endswith(f":{ref}\n")
        drills.has_blobs(cache, *IMAGES)
        assert rest.again == []
        assert seen[0].temporary == []
        assert front.twice() <= front.may_be_lost + figures.failures * LOSS
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    figures.rounds += 1
    figures.count(front)
    figures.saw(seen[0])


def test_a_registry_that_dies_and_comes_back(cmd: Shell, tmp_path: Path, drill: drills.Drill) -> None:
    port, root, dice = free_port(), tmp_path / "registry", drill.dice
    with docker_registry(root, port=port) as place:
        for number, made in enumerate(IMAGES):
            push(place.url, f"image{number}", "1", made)
    over = threading.Event()

    def live_and_die() -> None:
        while not over.is_set():
            with docker_registry(root, port=port):
                drill.figures.kills += 1
                over.wait(dice.uniform(0.1, 0.8))
            over.wait(dice.uniform(0.1, 0.8))

    life = threading.Thread(target=live_and_die)
    life.start()
    try:
        for turn in range(drill.length(2, 25)):
            cache = tmp_path / f"cache{turn}"
            cache.mkdir()
            with (
                misbehaving(f"http://127.0.0.1:{port}", lambda _: Fault(pace=0.005)) as front,
                drills.watching(tmp_path / "stop", cache) as seen,
            ):
                front.on_ask = rest = drills.Rest(lambda _uid, cache=cache: cache, front)
                for number in range(len(IMAGES)):
                    words = ["sh-pull", f"{front.host}/image{number}:1"]
                    drills.until_done(cmd, words, drill.figures, TRIES, SHOEBOX_CACHE=str(cache))
            drills.has_blobs(cache, *IMAGES)
            assert rest.again == []
            assert seen[0].temporary == []
            # A registry that is killed ends its connections in order.
            assert front.twice() <= drill.figures.failures * LOSS
            drill.figures.rounds += 1
            drill.figures.count(front)
            drill.figures.saw(seen[0])
    finally:
        over.set()
        life.join()
