"""join: the directory and the file of a step, and who is in it."""

from __future__ import annotations

import os
import subprocess

import pytest

from shoebox import join, step
from shoebox.command import Config
from shoebox.fail import Fail

NODE = ["0.1.0", "node", "boot", "pid:[1]"]


@pytest.fixture
def env(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path / "run")}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "run" / f"shoebox-{os.getuid()}"


def close(key):
    os.close(key.fd)
    os.close(key.directory)


def test_the_directory_and_the_file_are_the_users_alone_whatever_the_umask(env, place):
    old = os.umask(0)
    key = join.find(NODE, env)
    os.umask(old)
    assert place.stat().st_mode & 0o7777 == 0o700
    assert os.fstat(key.fd).st_mode & 0o7777 == 0o600
    assert key.path == str(place / step.file_name(NODE))
    close(key)


@pytest.mark.parametrize("odd", ["symlink", "file", "open", "fifo"])
def test_what_is_not_a_directory_of_the_users_alone_is_passed_over(env, place, tmp_path, odd):
    if odd == "symlink":
        (tmp_path / "mine").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "mine")
    elif odd == "file":
        place.touch(mode=0o700)
    elif odd == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
        place.chmod(0o755)
    key = join.find(NODE, env)
    assert not key.path.startswith(str(tmp_path))
    os.unlink(key.path)
    close(key)


def test_a_directory_that_others_may_change_is_passed_over(env, place):
    place.parent.chmod(0o777)
    key = join.find(NODE, env)
    assert not key.path.startswith(str(place))
    os.unlink(key.path)
    close(key)
    place.parent.chmod(0o1777)
    key = join.find(NODE, env)
    assert key.path.startswith(str(place))
    close(key)


@pytest.mark.parametrize("odd", ["symlink", "directory", "fifo"])
def test_what_is_no_plain_file_is_refused_and_hangs_nothing(env, place, tmp_path, odd):
    place.mkdir(mode=0o700)
    path = place / step.file_name(NODE)
    if odd == "symlink":
        path.symlink_to(tmp_path / "elsewhere")
    elif odd == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(Fail, match="cannot use"):
        join.find(NODE, env)
    assert not (tmp_path / "elsewhere").exists()


def test_looking_for_members_makes_nothing_and_names_only_the_living(env, place):
    assert join.members(NODE, env) == []
    assert not place.exists()
    key = join.find(NODE, env)
    with subprocess.Popen(["sleep", "60"]) as process:
        listed = [(process.pid, join.born(process.pid)), (process.pid, "1"), (1 << 30, "5")]
        head = step.pack(NODE, ("user:[1]", "mnt:[2]"), step.Holder("/", Config({})))
        os.write(key.fd, head + b"".join(map(step.pack_member, listed)))
        assert join.members(NODE, env) == [process.pid]
        process.kill()
    assert join.members(NODE, env) == []
    close(key)


def write(place, words, *members):
    head = step.pack(words, ("user:[1]", "mnt:[2]"), step.Holder("/", Config({})))
    path = place / step.file_name(words)
    path.write_bytes(head + b"".join(map(step.pack_member, members)))
    return path


def test_sweeping_removes_the_files_of_the_dead_and_no_others(env, place):
    key = join.find(NODE, env)
    us = (os.getpid(), join.born(os.getpid()))
    dead = [write(place, [*NODE, "x"], (us[0], "1")), write(place, [*NODE[:2], "old boot", "pid:[1]"], us)]
    kept = [
        write(place, [*NODE, "y"], (1 << 30, "5"), us),
        write(place, [NODE[0], "another node", "boot", "pid:[1]"], (1 << 30, "5")),
        write(place, [*NODE[:3], "pid:[2]"], (1 << 30, "5")),
        place / "not-a-key",
        place / os.path.basename(key.path),
    ]
    (place / "not-a-key").touch()
    (place / ("0" * 32)).write_bytes(b"\xff garbage")
    (place / ("1" * 32)).mkdir()
    busy = write(place, [*NODE, "busy"])
    holding = subprocess.Popen(["flock", "-s", busy, "sleep", "60"])
    while join.born(holding.pid) and not subprocess.run(["flock", "-n", busy, "true"], check=False).returncode:
        continue
    join.sweep(key.directory, key.words, os.path.basename(key.path))
    holding.kill()
    holding.wait()
    assert not any(path.exists() for path in dead)
    assert not (place / ("0" * 32)).exists()
    assert all(path.exists() for path in [*kept, busy])
    close(key)
