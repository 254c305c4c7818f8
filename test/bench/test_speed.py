"""The commands beside what else does their work: ratios are reported, what is counted must hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import peers
from bench.measure import SH_RUN, STARTS, Record, Room, Row, peak, written
from fixtures import images

Beside = Callable[..., None]

JOBS = str(len(os.sched_getaffinity(0)))
MOST_MEMORY = 120  # MB


def flattened(room: Room, name: str) -> Callable[[Path], object]:
    """Return the work of flattening an image into a fresh store."""
    return lambda place: room.run(["sh-flatten", "-d", place, name])


def test_flatten_beside_unpacking(beside: Beside, room: Room, layout: Path, image: Path) -> None:
    rootless = ["--rootless"] if os.geteuid() else []
    options = ["-noappend", "-quiet", "-no-progress", "-b", "131072", "-processors", JOBS]

    def unpack(place: Path) -> None:
        room.run(["umoci", "unpack", *rootless, "--image", f"{layout}:real:1", place / "bundle"])
        tree, zstd = place / "bundle/rootfs", ["-comp", "zstd", "-Xcompression-level", "3"]
        room.run(["mksquashfs", tree, place / "image.sqfs", *options, *zstd])

    beside("sh-flatten : umoci unpack, mksquashfs", 0.22, flattened(room, f"oci:{layout}:real:1"), unpack, 4)


def test_flatten_beside_its_writer_alone(beside: Beside, room: Room, layout: Path, image: Path) -> None:
    merged = room.path / "merged.tar"
    room.run(["sh-flatten", "--tar", f"oci:{layout}:real:1"], stdout=merged)
    settings = ["-q", "-s", "-S", "-f", "-b", "131072", "-j", JOBS, "-c", "zstd", "-X", "level=3"]

    def tar2sqfs(place: Path) -> None:
        room.run(["tar2sqfs", *settings, place / "image.sqfs"], stdin=merged)

    beside("sh-flatten : tar2sqfs of the merged tar", 1.5, flattened(room, f"oci:{layout}:real:1"), tar2sqfs, 10)
    merged.unlink()


def test_pull_and_flatten_beside_flatten_of_what_was_pulled(beside: Beside, room: Room, pushed: str) -> None:
    pulled = room.run(["sh-pull", pushed])

    def both(place: Path) -> None:
        room.run(["sh-pull", pushed], ["sh-flatten"], SHOEBOX_CACHE=str(place))

    beside("sh-pull into sh-flatten : sh-flatten, pulled before", 1.3, both, flattened(room, pulled), 6)


def test_pull_beside_skopeo(beside: Beside, room: Room, pushed: str) -> None:
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{pushed}"]

    def pull(place: Path) -> None:
        room.run(["sh-pull", pushed], SHOEBOX_CACHE=str(place))

    beside("sh-pull : skopeo copy to dir:", 0.6, pull, lambda place: room.run([*copy, f"dir:{place}"]), 10)


def test_flatten_needs_little_memory(room: Room, layout: Path, image: Path, record: Record) -> None:
    most = max(peak(["sh-flatten", "-d", room.fresh(), f"oci:{layout}:real:1"], room) / 1e6 for _ in range(2))
    record(Row("sh-flatten, peak memory of all processes", MOST_MEMORY, "MB", most, most, most, gate=True))


def test_flatten_writes_nothing_but_the_image(room: Room, layout: Path, image: Path, record: Record) -> None:
    place = room.path / "store"
    files = written(["sh-flatten", "-d", place, f"oci:{layout}:real:1"], room)
    made = [path for path in files if path.startswith(f"{place}/") and not path.endswith("(deleted)")]
    besides = sum(size for path, size in files.items() if path not in made)
    record(Row("sh-flatten, bytes written besides the image", 0, "bytes", besides, besides, besides, gate=True))
    assert len(made) == 2, "an image and its sidecar"
    assert sum(files[path] for path in made) > image.stat().st_size


def test_run_of_an_image_beside_ch_run(
    beside: Beside, room: Room, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room.path / "home")
    other = peers.ch_run(room)

    def ours(_: Path) -> None:
        room.start(SH_RUN, image, "--", "true")

    def theirs(_: Path) -> None:
        room.start(*other, image, "--", "true")

    beside("sh-run IMG.sqfs true : ch-run", 1.0, ours, theirs, STARTS, room.pause)


def test_run_of_a_directory_beside_python_alone(
    beside: Beside, room: Room, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room.path / "home")
    python = SH_RUN.read_text().split()[0].removeprefix("#!")

    def ours(_: Path) -> None:
        room.start(SH_RUN, tree, "--", "true")

    def theirs(_: Path) -> None:
        room.start(python, "-I", "-S", "-c", "pass")

    beside("sh-run DIR true : python3 -I -S -c pass", 2.0, ours, theirs, STARTS, room.pause)


def test_whiteouts_cost_little(beside: Beside, room: Room) -> None:
    files = [f"d{n % 200}/f{n}" for n in range(20_000)]
    below = images.tar({name: name.encode() * 100 for name in files})
    hidden = {os.path.join(os.path.dirname(name), f".wh.{os.path.basename(name)}"): b"" for name in files[::10]}
    top = {"top": b"top\n"}
    with_them, without = images.image(below, images.tar(top | hidden)), images.image(below, images.tar(top))
    layout = images.to_layout(room.path / "whiteouts", yes=with_them, no=without)
    ours, theirs = (flattened(room, f"oci:{layout}:{name}") for name in ("yes", "no"))
    beside("2,000 whiteouts over 20,000 files : without", 1.1, ours, theirs, 20)
