"""Where sh-flatten puts what it makes: stores, files, a tar on stdout; and what --readable changes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from fixtures import images
from fixtures import layers as odd
from fixtures.layers import directory, file, layer, link, symlink, whiteout

STACK = [
    layer(directory("d", mode=0o700), file("d/a", mode=0o600), file("gone")),
    layer(whiteout("gone"), link("h", "d/a")),
]


@pytest.fixture
def flatten(cmd, tmp_path):
    return odd.Flatten(cmd, tmp_path)


@pytest.fixture
def name(tmp_path) -> str:
    """Make a layout of two layers."""
    return odd.layout(tmp_path / "layout", *STACK, name="docker.io/library/app:1")


def state(store: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and time of all that lies in a directory."""
    return {
        str(p.relative_to(store)): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in store.rglob("*") if not p.is_dir()
    }


# The store


def test_an_image_lies_in_the_store_by_digest_with_its_sidecar_and_its_name(cmd, flatten, name):
    made = Path(cmd.ok("sh-flatten", name))
    layout = Path(name.removeprefix("oci:").partition(":")[0])
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    assert made == flatten.store / f"sha256-{digest[7:]}.sqfs"
    known = json.loads(made.with_suffix(".json").read_text())
    assert known["squashfs"] == {"sha256": odd.sha256(made), "size": made.stat().st_size}
    assert (known["manifest"], known["reference"]) == (digest, "docker.io/library/app:1")
    assert known["platform"] == f"linux/{images.ARCHITECTURE}"
    assert (known["settings"], known["lost"]) == ({"readable": False}, [])
    assert known["config"]["config"]["Env"] == ["PATH=/bin"]
    named = flatten.store / "docker.io/library/app/1.sqfs"
    assert os.readlink(named) == f"../../../{made.name}"
    assert flatten.files() == {made.name, made.with_suffix(".json").name, "docker.io/library/app/1.sqfs"}


def test_a_second_run_does_nothing_but_print_the_path_and_renew_the_sidecars_time(cmd, flatten, name):
    first = cmd.ok("sh-flatten", name)
    before = state(flatten.store)
    assert cmd.ok("sh-flatten", "--jobs", "1", name) == first
    after = state(flatten.store)
    sidecar = Path(first).with_suffix(".json").name
    (inode, then), (same, now) = before.pop(sidecar), after.pop(sidecar)
    assert (same, after) == (inode, before)
    assert now > then, "sh-expire takes it for used"


@pytest.mark.parametrize("words", [["--readable"], ["-c", "gzip"], ["-l", "9"]])
def test_other_settings_replace_the_image_and_retire_the_old_one(cmd, flatten, name, words):
    made = Path(cmd.ok("sh-flatten", name))
    old, sidecar = made.read_bytes(), made.with_suffix(".json").read_bytes()
    assert cmd.ok("sh-flatten", *words, name) == str(made)
    assert made.with_suffix(".json").read_bytes() != sidecar
    retired = {path.suffix: path.read_bytes() for path in (flatten.store / ".retired").iterdir()}
    assert retired == {".sqfs": old, ".json": sidecar}
    assert odd.names(odd.tree(made)) == {"d", "d/a", "h"}


def test_a_tag_that_moved_names_the_new_image_and_the_old_one_stays(cmd, flatten, tmp_path, name):
    old = cmd.ok("sh-flatten", name)
    new = cmd.ok("sh-flatten", odd.layout(tmp_path / "layout", STACK[0], name="docker.io/library/app:1"))
    assert new != old
    assert odd.names(odd.tree(old)) == {"d", "d/a", "h"}
    assert (flatten.store / "docker.io/library/app/1.sqfs").resolve() == Path(new)


def test_a_damaged_or_missing_part_of_an_image_is_made_anew(cmd, flatten, name):
    made = Path(cmd.ok("sh-flatten", name))
    whole = made.read_bytes()
    for harm in (
        made.unlink,
        lambda: made.with_suffix(".json").unlink(),
        lambda: made.with_suffix(".json").write_text("{"),
        lambda: made.write_bytes(whole[:1000]),
    ):
        harm()
        assert cmd.ok("sh-flatten", name) == str(made)
        assert made.read_bytes() == whole
        assert json.loads(made.with_suffix(".json").read_text())["squashfs"]["sha256"] == odd.sha256(made)


def test_a_store_of_ones_choice_is_made_with_its_parents(cmd, flatten, tmp_path, name):
    made = cmd.ok("sh-flatten", "-d", "some/store", name)
    assert made.startswith(f"{cmd.home}/some/store/sha256-")
    assert (cmd.home / "some/store/docker.io/library/app/1.sqfs").resolve() == Path(made)
    assert not flatten.store.exists()


def test_a_store_that_cannot_be_written_is_told_in_one_line(cmd, tmp_path, name):
    (tmp_path / "file").touch()
    done = cmd("sh-flatten", "-d", tmp_path / "file", name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


# A file


def test_a_file_of_ones_choice_gets_a_sidecar_and_no_store_is_touched(cmd, flatten, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    assert cmd.ok("sh-flatten", "-o", out / "app.sqfs", name) == str(out / "app.sqfs")
    assert {path.name for path in out.iterdir()} == {"app.sqfs", "app.json"}
    known = json.loads((out / "app.json").read_text())
    assert known["squashfs"]["sha256"] == odd.sha256(out / "app.sqfs")
    assert not flatten.store.exists()
    cmd.ok("sh-flatten", "--readable", "-o", "../out/app.sqfs", name)
    assert json.loads((out / "app.json").read_text())["settings"] == {"readable": True}
    assert {path.name for path in out.iterdir()} == {"app.sqfs", "app.json"}


@pytest.mark.parametrize("output", ["no/such/folder/app.sqfs", "app.img", "app"])
def test_a_file_that_cannot_be_is_wrong_usage(cmd, output, name):
    done = cmd("sh-flatten", "-o", output, name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_failure_leaves_the_file_that_was_there(cmd, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    cmd.ok("sh-flatten", "-o", out / "app.sqfs", name)
    before = state(out)
    assert cmd("sh-flatten", "-o", out / "app.sqfs", odd.layout(tmp_path / "bad", layer(file("..")))).returncode == 1
    assert state(out) == before


# A tar


def tar_of(cmd, name: str, *words: str) -> bytes:
    """Return what --tar writes."""
    return subprocess.run(["sh-flatten", "--tar", *words, name], env=cmd.env, capture_output=True, check=True).stdout


def test_a_merged_tar_has_parents_first_and_hard_links_last_and_is_the_same_every_time(cmd, tmp_path, name):
    name = odd.layout(
        tmp_path / "layout",
        layer(
            file("b/c/d"),
            file("z"),
            link("a", "z"),
            symlink("s", "b"),
            directory("b", mode=0o711),
            file("big", "x" * 70_000),
        ),
        layer(file("s/through"), file("twice"), file("twice"), whiteout("big")),
    )
    made = tar_of(cmd, name)
    names = odd.listed(made)
    assert names[0] == "."
    for place, path in enumerate(names):
        assert os.path.dirname(path) in ["", *names[:place]]
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        kinds = [member.islnk() for member in archive]
    assert kinds == sorted(kinds)
    assert any(kinds)
    assert len(names) == len(set(names))
    assert tar_of(cmd, name) == made
    tree = odd.tree(cmd.ok("sh-flatten", name), config=True)
    assert odd.alike(odd.tree_of_tar(made)) == odd.alike(tree)


def test_gnu_tar_reads_a_merged_tar(cmd, tmp_path, name):
    into = tmp_path / "into"
    into.mkdir()
    done = subprocess.run(["tar", "-x", "-C", into], input=tar_of(cmd, name), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (into / "d/a").stat().st_nlink == 2
    assert (into / ".shoebox/config.json").exists()


def test_a_merged_tar_may_be_flattened_again(cmd, tmp_path, name):
    (tmp_path / "merged.tar").write_bytes(tar_of(cmd, name))
    again = odd.tree(cmd.ok("sh-flatten", tmp_path / "merged.tar"))
    assert again == odd.tree(cmd.ok("sh-flatten", name))


def test_a_reader_that_goes_away_ends_the_command_as_it_ends_cat(cmd, tmp_path):
    name = odd.layout(tmp_path / "layout", layer(file("big", "x" * 3_000_000)))
    process = cmd.start("sh-flatten", "--tar", name)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(20) in (-13, 141)
    assert process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()


# --readable


def test_readable_opens_up_what_the_owner_may_read_and_says_so(cmd, name):
    closed = odd.tree(cmd.ok("sh-flatten", name))
    made = cmd.ok("sh-flatten", "--readable", name)
    opened = odd.tree(made)
    assert (closed["d"].mode, closed["d/a"].mode) == (0o700, 0o600)
    assert (opened["d"].mode, opened["d/a"].mode, opened["h"].mode) == (0o755, 0o644, 0o644)
    assert json.loads(Path(made).with_suffix(".json").read_text())["settings"] == {"readable": True}
    assert odd.tree_of_tar(tar_of(cmd, name, "--readable"))["d/a"].mode == 0o644


# Several at once


def test_several_flattens_of_one_image_at_once_all_succeed(cmd, flatten, name):
    running = [cmd.start("sh-flatten", name) for _ in range(4)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert [status for _, status in ended] == [0] * 4, ended
    assert len({out for (out, _), _ in ended}) == 1
    made = Path(ended[0][0][0].decode().strip())
    assert json.loads(made.with_suffix(".json").read_text())["squashfs"]["sha256"] == odd.sha256(made)
    assert not [path for path in flatten.files() if ".part-" in path]


def test_the_words_of_the_command_and_its_version_are_told(cmd):
    assert "--max-size SIZE" in cmd.ok("sh-flatten", "--help")
    done = cmd("sh-flatten", "--nonsense")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.evil(68)
def test_a_json_file_that_is_no_sidecar_is_never_replaced(cmd):
    (cmd.home / "rootfs").mkdir()
    (cmd.home / "model.json").write_text('{"weights": 7}')
    done = cmd("sh-flatten", "-o", "model.sqfs", "./rootfs")
    assert done.returncode == 1
    assert "'model.json', which is something else" in done.stderr
    assert (cmd.home / "model.json").read_text() == '{"weights": 7}'
    assert not (cmd.home / "model.sqfs").exists()
