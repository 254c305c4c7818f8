"""sh-rm: images and names leave stores; what runs goes on; what is pinned, or somebody else's, stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.stores import DEBIAN, MANIFEST, OTHER, publish_in, whole

RETIRED = ".retired"


@pytest.fixture
def store(cmd, tmp_path) -> Path:
    """Return a store on the path, with an image of two names and one of one."""
    where = tmp_path / "s"
    publish_in(where, [f"{DEBIAN}/12", f"{DEBIAN}/latest"])
    publish_in(where, ["x.org/app/1"], b"app", OTHER)
    cmd.env["SHOEBOX_PATH"] = str(where)
    return where


def path(store: Path, digits: str = MANIFEST) -> Path:
    return store / f"sha256-{digits}.sqfs"


def test_by_one_of_several_names_the_name_goes_and_by_the_last_the_image(cmd, store):
    assert cmd.ok("sh-rm", "debian:12") == str(store / DEBIAN / "12.sqfs")
    assert whole(store) == [f"{DEBIAN}/latest.sqfs", "x.org/app/1.sqfs"]
    assert cmd.ok("sh-rm", "debian") == str(path(store))
    assert whole(store) == ["x.org/app/1.sqfs"]
    assert not path(store).exists()
    assert len(list((store / RETIRED).iterdir())) == 2
    assert cmd("sh-images").stderr == ""


@pytest.mark.parametrize("word", [f"sha256:{MANIFEST}", f"sha256:{MANIFEST[:12]}0", "PATH", "s/PATH"])
def test_by_digest_or_path_the_image_goes_with_its_names(cmd, store, word):
    word = word.replace("s/PATH", f"s/{path(store).name}").replace("PATH", str(path(store)))
    assert cmd.ok("sh-rm", word, cwd=store.parent) == str(path(store))
    assert whole(store) == ["x.org/app/1.sqfs"]


def test_by_the_path_of_a_name_it_is_as_by_the_name(cmd, store):
    name = store / DEBIAN / "12.sqfs"
    assert cmd.ok("sh-rm", name) == str(name)
    assert path(store).exists()


def test_with_name_the_image_stays_without_one(cmd, store):
    cmd.ok("sh-rm", "--name", "x.org/app:1")
    assert "  -  " not in cmd.ok("sh-images")
    assert OTHER[:12] in cmd.ok("sh-images")
    done = cmd("sh-rm", "--name", path(store))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert path(store).exists()


def test_names_come_from_stdin_and_one_that_fails_does_not_stop_the_rest(cmd, store):
    done = cmd("sh-rm", stdin="no/such:1\nx.org/app:1\n")
    assert (done.returncode, done.stdout) == (1, f"{path(store, OTHER)}\n")
    assert done.stderr.startswith("sh-rm: no image 'no/such:1' in ")
    assert done.stderr.count("\n") == 1
    assert cmd("sh-rm", stdin="").returncode == 2
    assert cmd("sh-rm", "--pin", "--unpin", "debian").returncode == 2


@pytest.mark.parametrize("word", ["own.sqfs", ".", "old.squashfs"])
def test_what_is_not_in_a_store_is_not_removed(cmd, store, word):
    (store.parent / "own.sqfs").touch()
    (store.parent / "old.squashfs").touch()
    done = cmd("sh-rm", word if word != "." else "./s", cwd=store.parent)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it is not an image in a store" in done.stderr
    assert (store.parent / "own.sqfs").exists()


def test_a_pinned_image_stays_until_it_is_unpinned(cmd, store):
    assert cmd.ok("sh-rm", "--pin", "debian:12") == str(path(store))
    assert path(store).with_suffix(".pin").exists()
    assert cmd("sh-images").stderr == ""
    assert '"pinned": true' in cmd.ok("sh-images", "--json")
    done = cmd("sh-rm", path(store))
    assert (done.returncode, done.stderr) == (
        1,
        f"sh-rm: cannot remove '{path(store)}': it is pinned: sh-rm --unpin first\n",
    )
    cmd.ok("sh-rm", "debian:12")  # a mere name
    assert cmd("sh-rm", "debian").returncode == 1
    cmd.ok("sh-rm", "--unpin", "debian")
    cmd.ok("sh-rm", "debian")
    assert whole(store) == ["x.org/app/1.sqfs"]
    assert not list(store.glob("*.pin"))


def test_a_run_goes_on_in_an_image_that_is_removed_and_deleted(cmd, store, box):
    image = cmd.ok("sh-stage", "-d", store, box)
    running = cmd.start("sh-run", image, "sh", "-c", "echo on; read x; cat /etc/os-release; exec ls /bin")
    assert running.stdout.readline() == b"on\n"
    cmd.ok("sh-rm", image)
    assert cmd("sh-run", image, "true").returncode == 125
    cmd.ok("sh-expire", "--grace", "0", store)
    assert not list((store / RETIRED).iterdir())
    out, told = running.communicate(b"\n", timeout=60)
    assert (running.returncode, told) == (0, b"")
    assert b"busybox" in out


@pytest.mark.root
class TestOthers:
    """Two users and a store for both."""

    @pytest.fixture
    def shared(self, cmd, tmp_path):
        for folder in (tmp_path, *tmp_path.parents):
            if str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        where = tmp_path / "s"
        where.mkdir()
        where.chmod(0o777)
        images = []
        for uid, digits, name in ((4001, MANIFEST, f"{DEBIAN}/12"), (4002, OTHER, "x.org/app/1")):
            image = publish_in(where, [name], str(uid).encode(), digits)
            for one in (image, image.with_suffix(".json")):
                os.chown(one, uid, uid)
            os.chown(where / f"{name}.sqfs", uid, uid, follow_symlinks=False)
            images.append(image)
        for folder in [p for p in where.rglob("*") if p.is_dir()]:
            folder.chmod(0o777)

        def as_user(uid, *words):
            env = cmd.env | {"SHOEBOX_PATH": str(where), "HOME": "/nonexistent"}
            return subprocess.run(
                words,
                env=env,
                cwd="/",
                user=uid,
                group=uid,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )

        return where, images, as_user

    def test_users_list_and_remove_their_own_and_others_are_a_line(self, shared):
        where, (ours, theirs), as_user = shared
        listed = as_user(4001, "sh-images", "--own").stdout
        assert "debian:12" in listed
        assert "app" not in listed
        for word in ("x.org/app:1", str(theirs), f"sha256:{OTHER}"):
            done = as_user(4001, "sh-rm", word)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert "it belongs to user 4002" in done.stderr
        assert theirs.exists()
        assert as_user(4001, "sh-rm", "debian:12").stdout == f"{ours}\n"
        assert whole(where) == ["x.org/app/1.sqfs"]

    def test_an_expiry_takes_its_own_only_and_leaves_what_others_retired(self, shared):
        where, (ours, theirs), as_user = shared
        assert as_user(4001, "sh-expire", "--age", "0", "--grace", "0", str(where)).stdout == f"{ours}\n"
        assert theirs.exists()
        (where / RETIRED).chmod(0o777)
        assert as_user(4002, "sh-rm", "x.org/app:1").returncode == 0
        as_user(4001, "sh-expire", "--grace", "0", str(where))
        assert len(list((where / RETIRED).iterdir())) == 2
        as_user(4002, "sh-expire", "--grace", "0", str(where))
        assert not list((where / RETIRED).iterdir())

    def test_a_store_that_may_not_be_written_to_is_a_line(self, shared):
        where, (ours, _), as_user = shared
        where.chmod(0o755)
        done = as_user(4001, "sh-rm", "debian:12")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "Permission denied" in done.stderr
        assert ours.exists()


def test_removals_and_stagings_of_one_image_at_once_leave_it_whole_or_gone(cmd, store, tmp_path):
    where = tmp_path / "target"
    source = path(store)
    words = (
        f"for n in $(seq 12); do sh-stage -q -d {where} {source}; done",
        f"for n in $(seq 12); do sh-rm {where}/{source.name}; done",
        f"for n in $(seq 12); do sh-expire -q --age 0 --grace 0 {where}; done",
        f"for n in $(seq 12); do sh-expire -q --match '*' {where}; done",
    )
    cmd.ok("sh-stage", "-d", where, source)
    workers = [cmd.start("bash", "-c", script) for script in words]
    until = time.monotonic() + 240
    while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
        for image in where.glob("sha256-*.sqfs"):
            # The image's name says that both are there, unless it went, or its sidecar comes back, between two looks.
            late = time.monotonic() + 5
            while not image.with_suffix(".json").exists() and image.exists():
                assert time.monotonic() < late, image
                time.sleep(0.001)
    for worker, script in zip(workers, words):
        said = worker.communicate()[1].decode()
        assert b"Traceback" not in said.encode(), said
        assert worker.returncode == 0 or "sh-rm" in script, said
    cmd.ok("sh-stage", "-d", where, source)
    assert len(whole(where)) == 2
    cmd.ok("sh-expire", "--age", "0", "--grace", "0", where)
    assert [p.name for p in where.iterdir() if p.is_file()] == []


def test_kill_9_at_any_moment_leaves_nothing_half_and_the_next_expiry_finishes(cmd, store):
    source = path(store)
    target = store.parent / "target"
    for delay in (0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3):
        cmd.ok("sh-stage", "-d", target, source)
        worker = cmd.start("sh-expire", "--age", "0", "--grace", "0", target)
        time.sleep(delay)
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        for image in target.glob("sha256-*.sqfs"):
            assert image.with_suffix(".json").exists()
    time.sleep(1.1)  # stamps are of seconds
    cmd.ok("sh-expire", "--age", "0", "--grace", "0", target)
    assert [p.name for p in target.rglob("*") if not p.is_dir()] == []
