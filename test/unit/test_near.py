"""A node's own copy of an image: what a note must say to be believed."""

from __future__ import annotations

import os
import subprocess

import pytest

from shoebox import join, linux, near, nodes, step
from shoebox.fail import Fail


@pytest.fixture
def place(tmp_path):
    """Return the words of a copy that we keep, an open directory with its note, and the note's path and descriptor."""
    image = tmp_path / "app.sqfs"
    image.write_bytes(b"content")
    words = near.words("7", str(image), image.stat())
    fd = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    os.unlink(tmp_path / "copy")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    lock = near.publish(directory, words, near.note(words, fd, b'{"schema":\0}'))
    yield words, directory, tmp_path / step.file_name(words), lock
    for opened in (fd, directory, lock):
        os.close(opened)


def changed(path, at, value):
    """Replace a field of a note."""
    fields = path.read_bytes().split(b"\0", 10)
    fields[at] = value
    path.write_bytes(b"\0".join(fields))


def test_a_copy_is_read_by_its_keepers_descriptor(place):
    words, directory, _, _ = place
    copy = near.read(directory, words)
    assert (os.pread(copy.fd, 99, 0), copy.sidecar) == (b"content", b'{"schema":\0}')
    with open(copy.file, "rb") as file:
        assert file.read() == b"content"
    os.close(copy.fd)


@pytest.mark.parametrize("at", range(5))
def test_other_words_are_another_copy(place, at):
    words, directory, path, _ = place
    if at < 4:
        words[at] += "0"
        assert near.read(directory, words) is None
    changed(path, at, b"other")
    assert near.read(directory, place[0]) is None


@pytest.mark.parametrize(
    ("at", "value"),
    [(5, b"other boot"), (6, b"pid:[1]"), (7, b"1"), (8, b"1"), (9, b"999"), (9, b"../stat"), (7, b"x")],
)
def test_a_keeper_that_is_gone_or_another_process_is_none(place, at, value):
    words, directory, path, _ = place
    changed(path, at, value)
    try:
        found = near.read(directory, words)
    except (OSError, ValueError):  # which find takes for none
        found = None
    assert found is None


def test_a_descriptor_that_is_not_a_file_of_that_size_is_none(place):
    words, directory, path, lock = place
    for fd in (directory, lock, *os.pipe()):
        changed(path, 9, str(fd).encode())
        try:
            assert near.read(directory, words) is None
        except OSError:
            continue


@pytest.mark.parametrize("content", [b"", b"copy\0", b"copy" + b"\0" * 9, b"\0" * 20, b"x" * 100])
def test_a_note_that_is_cut_off_is_none(place, content):
    words, directory, path, _ = place
    path.write_bytes(content)
    assert near.read(directory, words) is None


def test_a_fifo_or_a_link_in_the_way_does_not_hang(place):
    words, directory, path, _ = place
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="seek"):
        near.read(directory, words)
    path.unlink()
    path.symlink_to("app.sqfs")
    with pytest.raises(OSError, match="symbolic"):
        near.read(directory, words)


def test_without_a_job_nothing_is_looked_at(place, monkeypatch):
    monkeypatch.setattr(os, "stat", None)
    assert near.find(place[0][1], {}) is None


def test_a_note_is_swept_when_nobody_has_it_locked(place):
    _, directory, path, lock = place
    other = ["sh", "-c", f"flock -n {path} true"]
    assert subprocess.run(other, check=False).returncode == 1
    join.sweep(directory)
    assert path.exists()
    linux.flock(lock, linux.LOCK_UN)
    join.sweep(directory)
    assert not path.exists()


def test_a_note_is_withdrawn_by_its_maker_only(place):
    words, directory, path, lock = place
    again = near.publish(directory, words, b"copy of another")
    near.withdraw(directory, words, lock)
    assert path.exists()
    near.withdraw(directory, words, again)
    assert not path.exists()
    os.close(again)


def test_what_a_job_consists_of():
    assert nodes.parts({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}) == [nodes.Part("--jobid=7", "7", 3)]
    het = {"SLURM_JOB_ID": "7", "SLURM_HET_SIZE": "2"}
    het |= {"SLURM_JOB_NUM_NODES_HET_GROUP_0": "1", "SLURM_JOB_NUM_NODES_HET_GROUP_1": "4"}
    assert nodes.parts(het) == [
        nodes.Part("--jobid=7 --het-group=0", "7+0", 1),
        nodes.Part("--jobid=7 --het-group=1", "7+1", 4),
    ]
    assert nodes.parts({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290"})[0].nodes == 1
    for env in ({}, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}):
        with pytest.raises(Fail, match="--nodes"):
            nodes.parts(env)
