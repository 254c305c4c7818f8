"""Disks that are full at any moment of pull, flatten and stage; with room, the same command completes."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
from fixtures import drills, watch
from fixtures.images import push
from fixtures.installed import Shell
from fixtures.registry import Place

pytestmark = pytest.mark.skipif(not drills.namespaces(), reason="no user namespaces here")
SIZE = 300_000
MADE = drills.build(0, SIZE)
PAGE = 4096
# A tmpfs that is small, then large; the same command in both; a word, its status and what lies there, of each.
SCRIPT = """
mount -t tmpfs -o "$1" none "$2" || exit
for turn in 1 2; do
    (cd "$2" && eval "$3") >"$4/out$turn" 2>"$4/err$turn"
    echo $? >"$4/status$turn"
    python3 -IS "$5" / "$2/cache" "$2/store" >"$4/seen$turn"
    mount -o remount,size=1g,nr_inodes=99999 none "$2" || exit # both named: not with its own uid=, which is not mapped
done
df --output=iused,used -k "$2" | tail -1 >"$4/used"
"""


def fill(cmd: Shell, tmp_path: Path, command: str, options: str, figures: drills.Figures) -> tuple[int, int, int]:
    """Run a command where the disk is full sooner or later, and once more where it is not.

    Returns the first status, and the inodes and KiB that are used in the end. options: the tmpfs's.
    """
    small, notes = tmp_path / "small", tmp_path / "notes"
    small.mkdir(exist_ok=True)
    notes.mkdir(exist_ok=True)
    cmd.ok("unshare", "-rm", "sh", "-c", SCRIPT, "sh", options, small, command, notes, watch.__file__)
    said = [(notes / f"err{turn}").read_text() for turn in (1, 2)]
    status = [int((notes / f"status{turn}").read_text()) for turn in (1, 2)]
    drills.one_line(status[0], said[0])
    assert status[0] == 0 or "No space left on device" in said[0], said[0]
    assert status[0] == 0 or str(small) in said[0], f"where? {said[0]}"
    assert (status[1], said[1]) == (0, "")
    for turn in (1, 2):
        seen = drills.Seen(**json.loads((notes / f"seen{turn}").read_text()))
        assert not seen.wrong, seen.wrong
    assert seen.temporary == []
    figures.rounds += 1
    figures.failures += status[0] != 0
    figures.saw(seen)
    inodes, used = map(int, (notes / "used").read_text().split())
    return status[0], inodes, used


def fill_at_each_step(cmd: Shell, tmp_path: Path, command: str, drill: drills.Drill) -> None:
    """Let every file, directory and link that is made be the one too many, then pages, the last ones each."""
    status, inodes, used = fill(cmd, tmp_path, command, "size=1g", drill.figures)
    assert status == 0
    dice = drill.dice
    counts = list(range(2, inodes + 1))  # the first is the root's
    sizes = [used * 1024 - page * PAGE for page in range(1, 13)]
    sizes += [size * PAGE for size in range(1, used // 4 - 12, max(1, used // 4 // drill.length(1, 60)))]
    for count in counts if drill.full else dice.sample(counts, min(3, len(counts))):
        assert fill(cmd, tmp_path, command, f"nr_inodes={count}", drill.figures)[0] in (0, 75)
    for size in sizes if drill.full else dice.sample(sizes, 3):
        assert fill(cmd, tmp_path, command, f"size={size}", drill.figures)[0] in (0, 75)


def test_the_disk_is_full_in_a_pull(cmd: Shell, registry: Place, tmp_path: Path, drill: drills.Drill) -> None:
    ref = push(registry.url, "full", "1", MADE)
    fill_at_each_step(cmd, tmp_path, f"SHOEBOX_CACHE=$PWD/cache sh-pull {ref}", drill)


def test_the_disk_is_full_in_a_flatten(cmd: Shell, registry: Place, tmp_path: Path, drill: drills.Drill) -> None:
    name = cmd.ok("sh-pull", push(registry.url, "full", "1", MADE))
    fill_at_each_step(cmd, tmp_path, f"sh-flatten -d $PWD/store {shlex.quote(name)}", drill)


def test_the_disk_is_full_in_a_stage(cmd: Shell, registry: Place, tmp_path: Path, drill: drills.Drill) -> None:
    name = cmd.ok("sh-pull", push(registry.url, "full", "1", MADE))
    path = cmd.ok("sh-flatten", name)
    fill_at_each_step(cmd, tmp_path, f"sh-stage -d $PWD/store {path}", drill)


def test_the_disk_is_full_where_an_archive_is_spooled(cmd: Shell, tmp_path: Path, drill: drills.Drill) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "own").write_bytes(os.urandom(SIZE))
    archive = tmp_path / "a.tar"
    cmd.ok("tar", "-cf", archive, "-C", tree, ".")
    fill_at_each_step(cmd, tmp_path, f"cat {archive} | sh-flatten -d $PWD/store -", drill)
