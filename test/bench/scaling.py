"""Start-up at sizes that nobody has here: a small simulation of queues, fed with counted requests and published limits.

usage: python test/bench/scaling.py     from the root of the tree: renews doc/scaling.{md,svg} from doc/scaling.json

A program starts in three ways: from an image that was broadcast to the nodes, from one on the parallel file system
that each node reads, and from a plain tree there that each rank reads. A client does its work in steps; a step waits
for round trips, and then in the queue of each server it needs, first come, first served, for a time that varies as an
exponential.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SEED = 6
STEPS = 30  # of each client: finer changes results by less than a tenth
CLIENTS = 800  # simulated; of more, several are one that needs so many times as much
SIZES = ((1_600, 32), (9_600, 68), (100_000, 68))  # nodes, and ranks of each
CURVE = (1, 4, 16, 64, 256, 1_024, 1_600, 4_096, 9_600, 32_768, 100_000)
WAYS = {
    "broadcast": "image, broadcast at the network's speed",
    "relayed": "image, broadcast at the speed seen here",
    "image": "image, read by each node",
    "tree": "plain tree, read by each rank",
}
COLORS = {"broadcast": "#2a8", "relayed": "#8b4", "image": "#36c", "tree": "#d52"}
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
MIB = 1 << 20


@dataclass(frozen=True)
class Counts:
    """What was counted and measured: of one node, and of a program that imports so many modules.

    first, more: requests to the file system of a node's first rank, and of each further one, that reads a tree; data:
    the bytes that a node reads of it; image_requests, image_bytes: of a node that reads an image of size bytes;
    compute: seconds that the start takes with all files in memory.
    """

    modules: int
    first: float
    more: float
    data: float
    image_requests: float
    image_bytes: float
    size: float
    compute: float


@dataclass(frozen=True)
class Limits:
    """What servers and networks can do, as published: doc/scaling.md has the sources. Rates are per second."""

    round_trip: float = 0.5e-3  # seconds of one request on an idle system
    metadata: float = 200e3  # requests to one metadata server
    opens: int = 10  # requests to it of a node that opens an image
    server: float = 5e12 / 274  # bytes from one storage server
    servers: int = 274
    network: float = 8e9  # bytes into or out of one node
    relay: float = 2 * 273e6 / 1.65  # bytes that sbcast passes on, by hand, here
    fanout: int = 8  # nodes to which a node passes a broadcast on
    stripe: int = 128 * MIB  # sh-stage(1) spreads an image over a server for each so many bytes
    stripes: int = 16  # and over so many at most


@dataclass(frozen=True)
class Queue:
    """A server, or several as one: what it does per second, and what each client wants of it."""

    rate: float
    work: float


def last(clients: int, alone: float, queues: list[Queue], seed: int = SEED) -> float:
    """Return the seconds until the last of so many clients is done. alone: the seconds of each besides the queues."""
    rng = random.Random(seed)
    lumps = min(clients, CLIENTS)
    each = clients / lumps
    free = [0.0] * len(queues)
    begun = [(rng.random() * alone / STEPS, number, 0, 0) for number in range(lumps)]
    heapq.heapify(begun)
    end = 0.0
    while begun:
        now, number, step, at = heapq.heappop(begun)
        if at < len(queues):
            queue = queues[at]
            free[at] = max(free[at], now) + rng.expovariate(1) * each * queue.work / STEPS / queue.rate
            heapq.heappush(begun, (free[at], number, step, at + 1))
        elif step + 1 < STEPS:
            heapq.heappush(begun, (now + alone / STEPS, number, step + 1, 0))
        else:
            end = max(end, now + alone / STEPS)
    return end


def tree(counts: Counts, limits: Limits, nodes: int, ranks: int) -> float:
    """Return the seconds for a plain tree on the parallel file system, read by every rank."""
    requests = counts.first + (ranks - 1) * counts.more
    alone = counts.compute + counts.first * limits.round_trip + counts.data / limits.network
    # One tree is one metadata server's; its files lie on all storage servers.
    queues = [Queue(limits.metadata, requests), Queue(limits.server * limits.servers, counts.data)]
    return last(nodes, alone, queues)


def image(counts: Counts, limits: Limits, nodes: int) -> float:
    """Return the seconds for an image on the parallel file system, read once by each node."""
    spread = min(limits.stripes, max(1, math.ceil(counts.size / limits.stripe)))
    alone = counts.compute + counts.image_requests * limits.round_trip + counts.image_bytes / limits.network
    return last(nodes, alone, [Queue(limits.metadata, limits.opens), Queue(limits.server * spread, counts.image_bytes)])


def broadcast(counts: Counts, limits: Limits, nodes: int, rate: float) -> float:
    """Return the seconds for an image that goes from node to node, at so many bytes per second, and is read locally.

    Level by level; a node passes it on to as many as the fan-out, one after the other, once it has all of it.
    """
    levels = math.ceil(math.log(nodes, limits.fanout) - 1e-9)
    read = counts.size / min(limits.network, limits.server)
    return read + levels * (limits.fanout * counts.size / rate + limits.round_trip) + counts.compute


def all_ways(counts: Counts, limits: Limits, nodes: int, ranks: int) -> dict[str, float]:
    """Return the seconds of each way."""
    return {
        "broadcast": broadcast(counts, limits, nodes, limits.network),
        "relayed": broadcast(counts, limits, nodes, min(limits.relay, limits.network)),
        "image": image(counts, limits, nodes),
        "tree": tree(counts, limits, nodes, ranks),
    }


def here(readers: int, processors: int, compute: float, requests: float, latency: float, capacity: float) -> float:
    """Return the seconds that readers need on one machine, each a node with a client of its own.

    latency: seconds of a request when nothing else is asked; capacity: requests per second of the whole machine.
    """
    alone = max(requests * (latency - 1 / capacity), 0)
    return last(readers, alone, [Queue(capacity, requests)]) + compute * max(1, readers / processors)


def seconds(value: float) -> str:
    """Return a time as people say it."""
    steps = ((100, 1, ".1f", "s"), (600, 1, ".0f", "s"), (7_200, 60, ".0f", "min"), (36_000, 3_600, ".1f", "h"))
    for below, unit, digits, name in steps:
        if value < below:
            return f"{value / unit:,{digits}} {name}"
    return f"{value / 3_600:,.0f} h"


def text(counts: Counts, limits: Limits) -> str:
    """Return the page's table, and what it was made from."""
    lines = ["| nodes, ranks of each | " + " | ".join(WAYS.values()) + " |", "| --- |" + " --- |" * len(WAYS)]
    for nodes, ranks in SIZES:
        found = all_ways(counts, limits, nodes, ranks)
        lines.append(f"| {nodes:,}, {ranks} | " + " | ".join(seconds(found[way]) for way in WAYS) + " |")
    about = {
        "modules that a rank imports": f"{counts.modules:,}",
        "requests of a node's first rank, tree": f"{counts.first:,.0f}",
        "requests of each further rank, tree": f"{counts.more:,.0f}",
        "bytes that a node reads, tree": f"{counts.data / 1e6:,.0f} MB",
        "requests of a node, image": f"{counts.image_requests:,.0f}, whatever the number of its ranks",
        "bytes that a node reads, image": f"{counts.image_bytes / 1e6:,.0f} MB of {counts.size / 1e6:,.0f} MB",
        "the start with all files in memory": f"{counts.compute:.2f} s",
        "what sbcast passes on here, by hand": f"{limits.relay / 1e6:,.0f} MB/s",
    }
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in about.items())]) + "\n"


def svg(counts: Counts, limits: Limits, ranks: int = 68) -> str:
    """Return a picture: seconds over nodes, both logarithmic, a line for each way."""
    curves = {way: [] for way in WAYS}
    for nodes in CURVE:
        for way, value in all_ways(counts, limits, nodes, ranks).items():
            curves[way].append((nodes, value))
    top = math.ceil(math.log10(max(value for curve in curves.values() for _, value in curve)))
    bottom = math.floor(math.log10(min(value for curve in curves.values() for _, value in curve)))
    x = lambda nodes: 70 + 110 * math.log10(nodes)  # noqa: E731
    y = lambda value: 30 + 320 * (top - math.log10(value)) / (top - bottom)  # noqa: E731
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="930" height="400" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="70" y="18">time until the last rank has started, {ranks} ranks on each node</text>',
    ]
    for power in range(bottom, top + 1):
        level = y(10**power)
        parts.append(f'<path d="M70 {level:.0f}H{x(1e5):.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="62" y="{level + 4:.0f}" text-anchor="end">{seconds(10**power)}</text>')
    for power in range(6):
        parts.append(f'<path d="M{x(10**power):.0f} 30V350" stroke="#ddd"/>')
        parts.append(f'<text x="{x(10**power):.0f}" y="368" text-anchor="middle">{10**power:,}</text>')
    parts.append(f'<text x="{x(1e5):.0f}" y="388" text-anchor="end">nodes</text>')
    for number, (way, curve) in enumerate(curves.items()):
        path = " ".join(f"{x(nodes):.1f},{y(value):.1f}" for nodes, value in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[way]}" stroke-width="2"/>')
        parts.append(f'<text x="{x(1e5) + 10:.0f}" y="{60 + 22 * number}" fill="{COLORS[way]}">{WAYS[way]}</text>')
    return "\n".join([*parts, "</svg>\n"])


def write(where: Path, counts: Counts) -> None:
    """Write where.json and where.svg, and renew the figures between the marks of where.md."""
    limits = Limits()
    document: Mapping[str, object] = {"counts": asdict(counts), "limits": asdict(limits)}
    where.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    where.with_suffix(".svg").write_text(svg(counts, limits))
    page = where.with_suffix(".md")
    head, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{head}{BEGIN}{text(counts, limits)}{END}{rest.partition(END)[2]}")


def read(path: Path) -> Counts:
    """Return the counts that write() left."""
    return Counts(**json.loads(path.read_text())["counts"])


if __name__ == "__main__":
    write(Path("doc/scaling"), read(Path("doc/scaling.json")))
