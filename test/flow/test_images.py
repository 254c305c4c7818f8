"""sh-images: what the stores hold, and a line for each thing that is broken or does not belong there."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from fixtures.stores import DEBIAN, MANIFEST, OTHER, publish_in


def rows(text: str) -> list[list[str]]:
    """Return the table's cells, its header left out."""
    head, *lines = [line.split() for line in text.splitlines()]
    assert head == ["NAME", "DIGEST", "SIZE", "AGE"]
    return lines


def age(image: Path, seconds: float) -> None:
    """Let an image be so old."""
    os.utime(image, (time.time() - seconds,) * 2)


def test_names_digests_sizes_and_ages_are_listed_in_aligned_columns(cmd, tmp_path):
    age(publish_in(tmp_path / "s", [f"{DEBIAN}/12", f"{DEBIAN}/latest", "host:5000/a/1"]), 150)
    age(publish_in(tmp_path / "s", [], b"unnamed", OTHER), 3 * 86400 + 5)
    table = cmd.ok("sh-images", tmp_path / "s")
    assert rows(table) == [
        ["docker.io/library/debian:12", MANIFEST[:12], "4.0K", "2min"],
        ["docker.io/library/debian:latest", MANIFEST[:12], "4.0K", "2min"],
        ["host:5000/a:1", MANIFEST[:12], "4.0K", "2min"],
        ["-", OTHER[:12], "4.0K", "3d"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert len({line.index(MANIFEST[:12]) for line in table.splitlines()[1:4]}) == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-100, "0s"),
        (150, "2min"),
        (7110, "118min"),
        (7300, "2h"),
        (13.5 * 86400, "13d"),
        (15 * 86400, "2w"),
        (800 * 86400, "2y"),
    ],
)
def test_ages_are_short(cmd, tmp_path, seconds, shown):
    age(publish_in(tmp_path), seconds)
    (row,) = rows(cmd.ok("sh-images", tmp_path))
    assert row[3] == shown


def test_the_stores_of_the_path_are_listed_in_one_and_missing_ones_are_empty(cmd, tmp_path):
    publish_in(tmp_path / "b", ["docker.io/library/b/1"])
    publish_in(tmp_path / "a", ["docker.io/library/a/1"])
    table = cmd("sh-images", SHOEBOX_PATH=f"{tmp_path}/b:{tmp_path}/none:{tmp_path}/a")
    assert [row[0] for row in rows(table.stdout)] == ["docker.io/library/a:1", "docker.io/library/b:1"]
    assert (table.returncode, table.stderr) == (0, "")
    assert rows(cmd.ok("sh-images")) == []


def test_a_directory_that_is_named_but_not_there_is_an_error_that_does_not_stop_the_rest(cmd, tmp_path):
    publish_in(tmp_path / "s")
    done = cmd("sh-images", tmp_path / "none", tmp_path / "s")
    assert (done.returncode, len(rows(done.stdout))) == (1, 1)
    assert done.stderr == f"sh-images: cannot list '{tmp_path}/none': No such file or directory\n"


def test_json_has_everything_in_full(cmd, tmp_path):
    image = publish_in(tmp_path / "s", [f"{DEBIAN}/@sha256-{OTHER}"])
    age(image, 1000)
    (row,) = json.loads(cmd.ok("sh-images", "--json", tmp_path / "s"))
    assert row == {
        "name": f"docker.io/library/debian@sha256:{OTHER}",
        "digest": f"sha256:{MANIFEST}",
        "size": image.stat().st_size,
        "created": int(image.stat().st_mtime),
        "platform": "",
        "path": str(image),
        "pinned": False,
        "private": False,
        "users": [],
        "groups": [],
    }
    assert json.loads(cmd.ok("sh-images", "--json", tmp_path)) == []


def test_a_name_that_is_listed_is_a_name_that_is_found(cmd, tmp_path):
    image = publish_in(tmp_path / "s", [f"{DEBIAN}/12", f"{DEBIAN}/@sha256-{OTHER}"])
    for row in rows(cmd.ok("sh-images", tmp_path / "s")):
        for name in (row[0], f"sha256:{row[1]}"):
            assert cmd.ok("sh-stage", name, SHOEBOX_PATH=str(tmp_path / "s"), SHOEBOX_CACHE=str(tmp_path)) == str(image)


def test_each_broken_or_foreign_thing_is_a_line_and_the_rest_is_listed(cmd, tmp_path):
    where = tmp_path / "s"
    good = publish_in(where)
    broken = {n: publish_in(where, [f"x.org/{n}/1"], str(n).encode(), f"{n:064x}") for n in range(7)}
    broken[0].write_bytes(b"")
    broken[1].write_bytes(b"\x7fELF" + bytes(5000))
    broken[2].with_suffix(".json").unlink()
    broken[3].with_suffix(".json").write_text('{"schema":1')
    broken[4].unlink()
    broken[5].write_bytes(broken[5].read_bytes() + b"x")
    broken[6].unlink()
    os.mkfifo(broken[6])
    (where / "notes.txt").touch()
    (where / f"sha256-{OTHER}.json").touch()
    (where / DEBIAN / "13.sqfs").symlink_to("../../../../elsewhere.sqfs")
    (where / DEBIAN / "no\x1b[31mname.sqfs").symlink_to(f"../../../{good.name}")
    (where / DEBIAN / "copy.sqfs").touch()
    (where / ".part-host-1-1").touch()
    (where / ".retired").mkdir()
    (where / "x.org/.snapshot").mkdir()
    (where / "x.org/.snapshot/1.sqfs").touch()
    done = cmd("sh-images", where)
    assert [row[0] for row in rows(done.stdout)] == ["docker.io/library/debian:12"]
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert all(re.fullmatch(r"sh-images: [ -~]+", line) for line in told)
    for path, why in [
        (broken[0], "it is empty"),
        (broken[1], "it is not a squashfs but an ELF program"),
        (broken[2], "it has no sidecar"),
        (broken[3].with_suffix(".json"), "it is not JSON"),
        (where / "x.org/4/1.sqfs", "is a name without an image"),
        (broken[4].with_suffix(".json"), "does not belong in a store"),
        (broken[5], "its sidecar says"),
        (broken[6], "it is not a file"),
        (where / "notes.txt", "does not belong in a store"),
        (where / f"sha256-{OTHER}.json", "does not belong in a store"),
        (where / DEBIAN / "13.sqfs", "is a name without an image"),
        (where / DEBIAN / "no", "does not belong in a store"),
        (where / DEBIAN / "copy.sqfs", "does not belong in a store"),
    ]:
        (line,) = [line for line in told if str(path) in line]
        assert why in line
        told.remove(line)
    assert told == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_line_each(cmd, tmp_path):
    where = tmp_path / "s"
    publish_in(where, ["a.org/a/1"], b"a", OTHER).chmod(0)
    publish_in(where, [f"{DEBIAN}/12", "b.org/b/1"])
    (where / "b.org").chmod(0)
    done = cmd("sh-images", where)
    (where / "b.org").chmod(0o700)
    assert len(rows(done.stdout)) == 1
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == ["Permission denied"] * 2


def test_a_reader_that_goes_away_is_no_traceback(cmd, tmp_path):
    publish_in(tmp_path / "s")
    done = cmd("sh", "-c", 'sh-images "$0" | true', tmp_path / "s")
    assert done.stderr == ""
