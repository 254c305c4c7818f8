"""sh-run: what of the host is visible inside, and where (behaviours 43, 44, 47, 63, 64)."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from fixtures.rootfs import make_tree, one_line, servers, squash, until


@pytest.fixture
def data(tmp_path):
    """Return a directory of the host with a file, a directory, and links."""
    where = tmp_path / "data"
    (where / "sub").mkdir(parents=True)
    (where / "file").write_text("data\n")
    (where / "sub/file").write_text("sub\n")
    (where / "out").symlink_to("/etc")
    return where


def test_home_tmp_the_current_directory_and_the_kernels_are_visible(cmd, box, tmp_path):
    (cmd.home / "mine").write_text("home\n")
    work = tmp_path / "work"
    work.mkdir()
    assert cmd.ok("sh-run", box, "cat", cmd.home / "mine") == "home"
    cmd.ok("sh-run", box, "touch", "here", "/tmp/sh-run-test", cwd=work)
    assert (work / "here").exists()
    Path("/tmp/sh-run-test").unlink()
    for path in ("/proc/self/status", "/sys/kernel", "/dev/null"):
        cmd.ok("sh-run", box, "test", "-e", path)
    cmd.ok("sh-run", box, "sh", "-c", "echo > /dev/null")


def test_the_hosts_resolv_conf_and_hosts_show_where_the_images_links_lead(cmd, box):
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        if os.path.exists(name):
            assert cmd.ok("sh-run", box, "cat", name) == Path(name).read_text().removesuffix("\n")


def test_no_home_leaves_the_home_outside(cmd, box, tmp_path):
    home = cmd.home / "elsewhere"
    home.mkdir()
    words = ("sh-run", "--no-home", "--workdir", "/", box, "sh", "-c")
    plan = json.loads(cmd.ok("sh-run", "--no-home", "--explain=json", box, HOME="/opt/none", cwd="/"))
    assert "/opt/none" not in [mount["destination"] for mount in plan["mounts"]]
    assert cmd.ok(*words, "echo $HOME", HOME=str(home)) == str(home)


def test_a_home_behind_a_link_is_visible_by_both_names(cmd, box, tmp_path):
    real = tmp_path / "export/home"
    real.mkdir(parents=True)
    (real / "mine").write_text("home\n")
    link = tmp_path / "home-link"
    link.symlink_to(real)
    plan = json.loads(cmd.ok("sh-run", "--explain=json", box, HOME=str(link), cwd=real))
    shown = [mount["destination"] for mount in plan["mounts"]] + [skip["what"] for skip in plan["skipped"]]
    assert {str(link), str(real)} <= set(shown)
    assert cmd.ok("sh-run", box, "cat", "mine", HOME=str(link), cwd=real) == "home"


def test_a_volume_shows_a_directory_or_a_file_and_may_be_read_only(cmd, box, data):
    assert cmd.ok("sh-run", "-v", f"{data}:/mnt", box, "cat", "/mnt/file") == "data"
    assert cmd.ok("sh-run", "--volume", f"{data}/file:/some/where/file", box, "cat", "/some/where/file") == "data"
    cmd.ok("sh-run", "-v", f"{data}:/mnt", box, "touch", "/mnt/new")
    assert (data / "new").exists()
    done = cmd("sh-run", "-v", f"{data}:/mnt:ro", box, "touch", "/mnt/newer")
    assert "Read-only file system" in done.stderr
    done = cmd("sh-run", "-v", f"{data}/file:/f:ro", box, "sh", "-c", "echo > /f")
    assert "Read-only file system" in done.stderr
    assert cmd.ok("sh-run", "-v", "sub:/mnt", box, "cat", "/mnt/file", cwd=data) == "sub"


def test_read_only_holds_for_what_is_mounted_below_too(cmd, box):
    done = cmd("sh-run", "-v", "/dev:/mnt:ro", box, "touch", "/mnt/shm/sh-run-test")
    assert "Read-only file system" in done.stderr
    assert not Path("/dev/shm/sh-run-test").exists()


def test_mounts_are_made_in_the_order_given_and_the_later_wins(cmd, box, data, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("other\n")
    both = ("-v", f"{data}:/mnt", "-v", f"{other}:/mnt")
    assert cmd.ok("sh-run", *both, box, "cat", "/mnt/file") == "other"
    assert cmd.ok("sh-run", *both[2:], *both[:2], box, "cat", "/mnt/file") == "data"
    inside = ("-v", f"{data}:/mnt", "-v", f"{other}:/mnt/sub")
    assert cmd.ok("sh-run", *inside, box, "cat", "/mnt/file", "/mnt/sub/file") == "data\nother"
    over = ("-v", f"{other}:/mnt/sub", "-v", f"{data}:/mnt")
    assert cmd.ok("sh-run", *over, box, "cat", "/mnt/sub/file") == "sub"
    passwd = ("-v", f"{data}/file:/etc/passwd")
    assert cmd.ok("sh-run", *passwd, box, "cat", "/etc/passwd") == "data"


def test_a_target_that_the_image_lacks_is_made_without_touching_it(cmd, tree, box, data):
    for image in (tree, box):
        out = cmd.ok("sh-run", "-v", f"{data}:/new/er/dir", image, "sh", "-c", "cat /new/er/dir/file; ls /new; ls /")
        assert out.split()[:2] == ["data", "er"]
        assert {"bin", "etc", "new", "usr"} <= set(out.split())
        done = cmd("sh-run", "-v", f"{data}:/new/er/dir", image, "touch", "/new/file")
        assert "Read-only file system" in done.stderr
    assert not (tree / "new").exists()


@pytest.mark.evil(63)
def test_a_target_inside_a_volume_must_be_there_and_nothing_is_created_outside(cmd, box, data):
    before = sorted(os.listdir(data))
    done = cmd("sh-run", "-v", f"{data}:/mnt", "-v", f"{data}/sub:/mnt/none", box, "true")
    assert one_line(done, "'/mnt/none'", f"{data}/none")
    assert sorted(os.listdir(data)) == before


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        ("/none-such:/mnt", "no such file or directory"),
        ("/etc:mnt", "absolute"),
        ("/etc:/mnt/../../x", ".."),
        ("/etc:/", "the root is the image"),
        ("/etc:/mnt:rx", "'rx'"),
        ("/etc", "SRC:DST"),
        (":/mnt", "SRC:DST"),
        ("/etc:/bin/busybox", "a directory"),
        ("/etc/passwd:/usr", "a file"),
        ("/etc:/bin/busybox/x", "not a directory"),
        ("/etc:/round/x", "symbolic links"),
    ],
)
def test_a_volume_that_cannot_be_is_refused_in_one_line(cmd, box, volume, why):
    assert one_line(cmd("sh-run", "-v", volume, box, "true"), volume.split(":")[0], why)


@pytest.mark.evil(63)
def test_a_target_that_is_a_link_stays_inside_the_image(cmd, box, data):
    plan = json.loads(cmd.ok("sh-run", "-v", f"{data}:/away/shoebox", "--explain=json", box))
    assert ("/etc/shoebox", "directory") in [(made["path"], made["kind"]) for made in plan["made"]]
    assert cmd.ok("sh-run", "-v", f"{data}:/away/shoebox", box, "cat", "/etc/shoebox/file") == "data"
    assert not os.path.exists("/etc/shoebox/file")
    # A link in a volume leads to the container's own place, not to the host's.
    done = cmd("sh-run", "-v", f"{data}:/mnt", "-v", f"{data}/sub:/mnt/out", box, "cat", "/etc/file")
    assert (done.returncode, done.stdout) == (0, "sub\n")


@pytest.mark.evil(62, 63)
def test_magic_links_of_proc_are_no_way_out(cmd, box, data):
    assert one_line(cmd("sh-run", "-v", f"{data}:/proc/self/cwd/mnt", box, "true"), "/proc/self/cwd/mnt")
    assert one_line(cmd("sh-run", "--workdir", "/proc/self/root", box, "true"), "/proc/self/root")


@pytest.mark.evil(64)
def test_the_hosts_mount_table_is_the_same_before_during_and_after(cmd, box, data):
    def table():
        return Path("/proc/self/mountinfo").read_text()

    before = table()
    process = cmd.start("sh-run", "--writable", "-v", f"{data}:/mnt", box, "sleep", "60")
    assert until(lambda: servers(box))
    assert table() == before
    process.kill()
    process.communicate()
    assert until(lambda: not servers(box))
    assert table() == before


def test_the_server_does_not_have_the_image_mounted_itself(cmd, box):
    process = cmd.start("sh-run", box, "sh", "-c", "echo; sleep 60")
    process.stdout.readline()
    for pid in servers(box):
        assert "fuse.squashfuse" not in Path(f"/proc/{pid}/mounts").read_text()
    process.kill()
    process.communicate()


def test_what_is_mounted_outside_later_is_seen_inside(cmd, tree, tmp_path):
    """An automounter answers in the host's mount namespace: so the container's mounts must be slaves of the host's."""
    where = tmp_path / "auto"
    (where / "home").mkdir(parents=True)
    ready, go = tmp_path / "ready", tmp_path / "go"
    outside = f"""
        mount -t tmpfs none {where} && mount --make-shared {where} && mkdir {where}/home || exit 9
        sh-run -v {where}:/auto {tree} sh -c 'touch {ready}; while ! test -e {go}; do sleep 0.05; done; ls /auto/home' &
        while ! test -e {ready}; do sleep 0.05; done
        mount -t tmpfs none {where}/home && touch {where}/home/found {go}; wait $!
    """
    assert cmd.ok("unshare", "-Urm", "sh", "-c", outside, timeout=30) == "found"


def test_an_image_directory_is_read_only_below_its_own_mounts_too(cmd, tmp_path):
    where = make_tree(tmp_path / "box")
    (where / "more").mkdir()
    (where / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\nuid{os.getuid()}:x:{os.getuid()}::/:/bin/sh\n")
    for name in ("hosts", "resolv.conf"):
        (where / "etc" / name).unlink()
        (where / "etc" / name).touch()
    outside = f"mount -t tmpfs none {where}/more && sh-run {where} touch /more/x"
    assert "Read-only file system" in cmd("unshare", "-Urm", "sh", "-c", outside).stderr
    outside = f"mount -t tmpfs none {where}/more && sh-run -v /etc:/none {where} true"
    assert one_line(cmd("unshare", "-Urm", "sh", "-c", outside), "mounted in it", "/none")


def test_a_target_over_which_an_image_has_a_whiteout_is_one_line(cmd, tmp_path):
    image = squash(make_tree(tmp_path / "x"), tmp_path / "x.sqfs", ("gone", tarfile.CHRTYPE, 0o600, 0, 0, b""))
    assert one_line(cmd("sh-run", "-v", "/etc:/gone/x", image, "true"), "/gone/x")
