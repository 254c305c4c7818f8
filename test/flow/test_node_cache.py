"""sh-run --node-cache: a file system of the node's own, whatever makes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from fixtures.caching import caching
from fixtures.caller import user
from fixtures.helper import USER
from fixtures.rootfs import one_line, until

__all__ = ["caching", "user"]  # fixtures

SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
ROOT = pytest.mark.root


@pytest.fixture(params=["fuse", "tmpfs"])
def place(request, tmp_path):
    """Return what on= says, and what that comes to."""
    (tmp_path / "scratch").mkdir()
    return "tmpfs" if request.param == "tmpfs" else str(tmp_path / "scratch"), request.param


@pytest.fixture
def caches(user, caching):
    """Return the directory in which sh-mount makes caches; nothing may be left of them at the end."""
    shutil.copy(user.site.where / "mount.conf", user.site.where / "etc")
    return caching.place


def explained(text):
    """Return the lines of --explain about caches."""
    return [line for line in text.splitlines() if line.startswith("cache ")]


def test_a_cache_is_empty_ones_own_of_the_size_asked_for_and_gone_with_the_container(cmd, box, place, tmp_path):
    script = "stat -c '%a %u %F' /c; ls -A /c; echo x >/c/x; cat /c/x; df -k /c | tail -1"
    asked = f"/c:size=64M,on={place[0]}"
    told = cmd.ok("sh-run", "--node-cache", asked, box, "sh", "-c", script).splitlines()
    assert told[:2] == [f"700 {os.getuid()} directory", "x"]
    assert 0.8 * 65536 <= int(told[2].split()[-5]) <= 65536
    assert cmd.ok("sh-run", "--node-cache", asked, box, "ls", "-A", "/c") == ""
    assert list((tmp_path / "scratch").iterdir()) == []


def test_all_ranks_of_a_container_share_it(cmd, box, place):
    words = ("sh-run", "--node-cache", f"/c:size=8M,on={place[0]}", box)
    first = cmd.start(*words, "sh", "-c", "echo there >/c/x; echo; cat", env=cmd.env | SLURM)
    first.stdout.readline()
    assert cmd.ok(*words, "cat", "/c/x", **SLURM) == "there"
    assert cmd(*words[:2], f"/c:size=9M,on={place[0]}", box, "cat", "/c/x", **SLURM).returncode == 1
    first.communicate(timeout=30)
    assert cmd(*words, "cat", "/c/x", **SLURM).returncode == 1


def test_what_the_command_leaves_behind_keeps_it(cmd, box, place, tmp_path):
    script = f"(sleep 1; echo late >/c/x; cat /c/x >{tmp_path}/seen) >/dev/null 2>&1 &"
    cmd.ok(
        "sh-run", "--node-cache", f"/c:size=8M,on={place[0]}", "-v", f"{tmp_path}:{tmp_path}", box, "sh", "-c", script
    )
    assert until(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text() == "late\n")


def test_several_caches_are_several(cmd, box, place):
    more = [f"--node-cache=/{name}:size={name}M,on={place[0]}" for name in (8, 16)]
    env = {"SHOEBOX_NODE_CACHE": f"/24:size=24M,on={place[0]}"}
    sizes = cmd.ok("sh-run", *more, box, "sh", "-c", "touch /8/x; ls -A /16 /24; df -k /8 /16 /24", **env).split("\n")
    assert sizes[:3] == ["/16:", "", "/24:"]
    assert [round(int(line.split()[-5]) / 1024) for line in sizes[-3:]] == [8, 16, 24]


def test_a_full_cache_gives_enospc_and_harms_nothing_else(cmd, box, place):
    script = (
        "echo kept >/d/x; dd if=/dev/zero of=/c/x bs=64k count=1000; echo $?; rm /c/x; echo new >/c/y && cat /c/y /d/x"
    )
    more = [f"--node-cache=/{name}:size=8M,on={place[0]}" for name in "cd"]
    done = cmd("sh-run", *more, box, "sh", "-c", script)
    assert done.stdout == "1\nnew\nkept\n", done.stderr
    assert "No space left on device" in done.stderr


def test_shifters_words_on_a_volume_ask_for_one(cmd, box, tmp_path):
    (tmp_path / "scratch").mkdir()
    volume = f"--volume={tmp_path}/scratch:/c:perNodeCache=size=16M,fstype=xfs"
    [line] = explained(cmd.ok("sh-run", "--explain", volume, box))
    assert line.split()[1:5] == ["16M", "fuse", "in", f"{tmp_path}/scratch"]
    assert "the volume says so; " in line
    assert cmd.ok("sh-run", volume, box, "sh", "-c", "echo in >/c/x; cat /c/x") == "in"


def test_of_two_at_one_target_the_last_counts(cmd, box):
    words = [f"--volume=/tmp:/c:perNodeCache=size={size}M" for size in (8, 16)]
    for more, size in (([], "16M"), (["--volume=/tmp:/c:perNodeCache=size=24M"], "24M")):
        [line] = explained(cmd.ok("sh-run", "--explain", *words, *more, box))
        assert line.split()[1] == size
    words = [f"--node-cache=/c:size={size}M,on=tmpfs" for size in (8, 16)]
    assert cmd.ok("sh-run", *words, box, "sh", "-c", "df -k /c | tail -1").split()[1] == "16384"


def test_explain_says_what_it_will_be_and_why_and_makes_nothing(cmd, box, place, tmp_path):
    words = ("--node-cache", f"/c:size=8M,on={place[0]}", box)
    [line] = explained(cmd.ok("sh-run", "--explain", *words))
    assert line.split()[1:3] == ["8.0M", place[1]]
    assert "on= says so; " in line
    [mount] = [one for one in json.loads(cmd.ok("sh-run", "--explain=json", *words))["mounts"] if one["cache"]]
    assert (mount["destination"], mount["source"], mount["cache"]["by"]) == ("/c", None, place[1])
    assert mount["cache"]["size"] == 8 << 20
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--node-cache=/c"], "cannot use node cache '/c': it is not DST:size=SIZE"),
        (["--node-cache=/c:size=1G"], "nobody says where it is to lie: add on=DIR"),
        (
            ["--node-cache=/c:size=1G,on=/no/such"],
            "cannot make node cache '/c' in '/no/such': No such file or directory",
        ),
        (["--node-cache=/c:size=8388608T,on=tmpfs"], "no file can have"),
        (["--node-cache=/c:size=1M,on=tmpfs", "--volume=/usr:/c/below"], "the volume at '/c/below' would be covered"),
        (["--node-cache=/c:size=1G,on=/etc/passwd"], "'/etc/passwd'"),
        (["--node-cache=/c:size=1G,on=/proc"], "'/proc'"),
        (
            ["--node-cache=/etc/os-release:size=1G,on=tmpfs"],
            "cannot mount 'a node cache' at '/etc/os-release': it is a directory",
        ),
        (
            ["--node-cache=/c:size=1M,on=tmpfs", "--node-cache=/c/d:size=1M,on=tmpfs"],
            "in a node cache there is nothing yet",
        ),
    ],
)
def test_what_cannot_be_is_one_line(cmd, box, words, told):
    assert one_line(cmd("sh-run", *words, box, "true"), told)


def test_a_cache_below_a_volume_and_one_over_it(cmd, box, tmp_path):
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/file").touch()
    words = ("-v", f"{tmp_path}/data:/data", "--node-cache")
    assert cmd.ok("sh-run", *words, "/data/deep:size=1M,on=tmpfs", box, "ls", "-A", "/data", "/data/deep").split() == (
        ["/data:", "deep", "file", "/data/deep:"]
    )
    assert cmd.ok("sh-run", *words, "/data:size=1M,on=tmpfs", box, "ls", "-A", "/data") == ""


@ROOT
def test_the_site_says_where_and_how_large_and_which_targets_not(user, tmp_path):
    conf = user.site.where / "etc/site.conf"
    conf.write_text("[settings]\nnode-cache-on = tmpfs $HOME/caches\nnode-cache-size = 2M 1G\ndeny-volume = /etc\n")
    (user.home / "caches").mkdir()
    os.chown(user.home / "caches", USER, USER)
    [line] = explained(user.ok("--explain", "--node-cache=/c:size=8M", user.site.image))
    assert "site.conf says so; in memory" in line
    assert user.ok(f"--node-cache=/c:size=8M,on={user.home}/caches", user.site.image, "ls", "-A", "/c") == ""
    for words, told in (
        (f"/c:size=8M,on={user.home}", "this site has none on"),
        ("/c:size=1M", "it has less than 2.0M"),
        ("/c:size=2G", "this site gives 1.0G at most"),
        ("/etc/c:size=8M", "'/etc' is not for volumes at this site"),
    ):
        assert one_line(user.run("--node-cache", words, user.site.image, "true"), told)
    conf.write_text("[settings]\nnode-cache-size = 2G 1G\n")
    assert one_line(user.run("--node-cache=/c:size=1G", user.site.image), f"{conf}:2", "the first is the larger one")


@ROOT
@pytest.mark.parametrize(("way", "fs"), [("kernel", "ext4"), ("kernel", "xfs"), ("fuse", "ext4"), ("unpack", "ext4")])
def test_sh_mount_makes_one_whatever_mounts_the_image(user, caches, way, fs):
    asked = f"--node-cache=/c:size=400M,fs={fs},on={caches}"
    script = "grep ' /c ' /proc/mounts; stat -c %u /c; ls -A /c; echo x >/c/x; cat /c/x"
    told = user.ok(asked, f"--mount={way}", user.site.image, "sh", "-c", script).splitlines()
    assert told[0].split()[1:3] == ["/c", fs]
    assert {"nosuid", "nodev"} <= set(told[0].split()[3].split(","))
    assert told[1:] == [str(USER), "x"]


@ROOT
def test_sh_mount_makes_one_for_an_image_of_the_users_and_for_a_directory(user, caches, tree):
    mine = user.home / "mine.sqfs"
    mine.write_bytes(user.site.image.read_bytes())
    os.chown(mine, USER, USER)
    subprocess.run(["cp", "-a", tree, user.site.store / "tree"], check=True)
    for image in (mine, user.site.store / "tree"):
        text = user.ok("--explain", "--node-cache=/c:size=16M", image)
        assert explained(text)[0].split()[1:5] == ["16M", "ext4", "in", str(caches)]
        assert user.ok("--node-cache=/c:size=16M", image, "sh", "-c", "grep -c ' /c ext4 ' /proc/mounts") == "1\n"


@ROOT
def test_what_sh_mount_refuses_of_a_cache_is_one_line(user, caches):
    for words, told in (
        ("size=301G", "mount.conf gives 300G at most: ask for less"),
        ("size=10M,fs=xfs", "an xfs has 300M at least: ask for more, or say fs=ext4"),
    ):
        assert one_line(user.run(f"--node-cache=/c:{words},on={caches}", user.site.image, "true"), told)
    assert one_line(
        user.run("--mount=setuid", "--node-cache=/c:size=16M", user.site.image, "true"), "nobody could share it"
    )


@ROOT
def test_the_doctor_tries_the_places_of_mount_conf(user, caches):
    def said():
        done = user.site.run(user.site.where / "sh-doctor", env=user.env)
        return [line.split(None, 3)[:3] for line in done.stdout.splitlines() if " node caches " in line]

    assert said() == [["ok", "node", "caches"]]
    caches.chmod(0o755)
    assert said() == [["lack", "node", "caches"]]


@ROOT
def test_ranks_share_what_sh_mount_made_and_it_goes_with_the_last(user, caches):
    words = ("--node-cache=/c:size=200G", user.site.image)
    first = user.start(*words, "sh", "-c", "echo there >/c/x; echo; cat", **SLURM)
    first.stdout.readline()
    assert user.ok(*words, "cat", "/c/x", **SLURM) == "there\n"
    first.communicate(timeout=60)
    assert user.run(*words, "cat", "/c/x", **SLURM).returncode == 1
