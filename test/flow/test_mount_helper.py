"""sh-mount: what it mounts, for whom, what it leaves of itself, and what it refuses (behaviours 69-71, 73)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from fixtures.helper import GROUP, NO_SPACES, OTHER, OWNER, PYTHON, USER, loops, plan, said
from fixtures.installed import TREE
from fixtures.rootfs import make_tree, squash, until

pytestmark = pytest.mark.root


def fields(status):
    return {line.split(":\t")[0]: line.split(":\t")[1].split() for line in status.splitlines() if ":\t" in line}


def fill(image, path):
    """Copy an image, readable to all, for a test that changes it."""
    shutil.copy(image, path)
    path.chmod(0o644)
    return path


# ---- The kernel way ----


@pytest.mark.evil(71)
def test_a_runner_joins_and_has_all_rights_in_the_new_user_namespace_alone(site):
    done = site.joined("sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups /proc/self/status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:7] == ["0", str(USER), "1", "0", str(USER), "1", "deny"]
    status = fields(done.stdout)
    assert int(status["CapEff"][0], 16).bit_count() > 30
    assert status["Groups"] == ["65534"]  # the supplementary one gives access still
    (site.store / "groups").mkdir(mode=0o750)
    os.chown(site.store / "groups", 0, GROUP)
    (site.store / "groups").chmod(0o750)
    assert site.joined("ls", site.store / "groups").returncode == 0


@pytest.mark.evil(69)
def test_what_the_image_gives_to_root_is_the_users_as_by_fuse(site):
    script = "cd $WHERE; cat private/secret; ls root && cat home/open/theirs; stat -c '%u %n' private home/other"
    done = site.joined("sh", "-c", script)
    assert done.stdout.splitlines() == ["root0 private", "65534 home/other"]
    assert "home/open/theirs: Permission denied" in done.stderr


def test_a_container_of_it_runs_as_the_user(site):
    done = site.joined("sh", "-c", "id -u; id -g; cat /etc/os-release /private/secret; ls /", mode="run")
    assert done.stdout.split()[:4] == [str(USER), str(USER), "NAME=box", "rootaway"], done.stderr
    assert "store" not in done.stdout


@pytest.mark.evil(64)
def test_the_helper_goes_when_told_and_what_it_mounted_goes_with_the_last_process(site):
    script = "(sleep 2; cat /etc/os-release >&2) >/dev/null <&- & exec true"
    with site.start(*PYTHON, site.where / "runner.py", "run", site.helper, site.image, "sh", "-c", script) as process:
        assert process.wait(timeout=20) == 0
        assert len(loops(site.image)) == 1
        assert process.stderr.read() == "NAME=box\n"
    assert until(lambda: not loops(site.image))


@pytest.mark.evil(64)
def test_nothing_of_it_stays_when_it_is_killed_at_any_time(site):
    for turn in range(40):
        process = site.start(site.helper, "kernel", site.image)
        try:
            process.wait(timeout=turn * 1e-4)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    assert until(lambda: not loops(site.image))


def test_many_at_once_get_a_loop_device_each(site):
    every = [site.start(site.helper, "kernel", site.image) for _ in range(24)]
    assert [process.stdout.readline() for process in every] == [f"{site.where}/mnt\n"] * 24
    assert len(loops(site.image)) == 24
    assert [process.communicate() and process.returncode for process in every] == [0] * 24


@pytest.mark.evil(65, 71)
def test_while_it_waits_it_is_the_caller_and_holds_nothing(site):
    process = site.start(site.helper, "kernel", site.image)
    process.stdout.readline()
    proc = Path(f"/proc/{process.pid}")
    status = fields((proc / "status").read_text())
    assert (status["Uid"], status["Gid"]) == ([str(USER)] * 4, [str(USER)] * 4)
    assert (status["Groups"], status["NoNewPrivs"]) == ([str(GROUP)], ["1"])
    assert sorted(path.name for path in (proc / "fd").iterdir()) == ["0", "1", "2"]
    assert not (proc / "environ").read_bytes().strip(b"\0") or b"PATH" in (proc / "environ").read_bytes()
    mounted = [line for line in (proc / "mountinfo").read_text().splitlines() if " squashfs " in line]
    assert len(mounted) == 1
    assert mounted[0].split()[4] == f"{site.where}/mnt"
    assert mounted[0].split()[5].startswith("ro,nosuid,nodev")
    process.communicate()


@pytest.mark.evil(73)
def test_no_trick_strips_a_flag_or_opens_a_device(site):
    done = site.joined(mode="tricks")
    outcomes = json.loads(done.stdout or "{}")
    assert len(outcomes) > 25, done.stderr
    assert {what: how for what, how in outcomes.items() if how not in ("EPERM", "EACCES", "EINVAL", "EROFS")} == {}
    for what in ("open a device", "remount the mount", "strip ro", "strip nosuid", "strip nodev", "unmount"):
        assert outcomes[what] in ("EPERM", "EACCES", "EINVAL")


@pytest.mark.evil(66)
def test_a_set_user_id_program_of_the_image_gains_nothing(site, tree):
    busybox = (tree / "bin/busybox").read_bytes()
    members = [(name, b"0", 0o6755, uid, uid, busybox) for name, uid in (("su-root", 0), ("su-other", OTHER))]
    image = squash(tree, site.store / "su.sqfs", *members)
    for name in ("su-root", "su-other"):
        script = f"d=$(mktemp -d); ln -s /{name} $d/id; $d/id -u; $d/id -ru; rm -r $d"
        words = (*PYTHON, site.where / "runner.py", "run", site.helper, image, "sh", "-c", script)
        for done in (site.run(*words), site.setuid("sh", "-c", script, image=image, mounts=TMP)):
            assert done.stdout == f"{USER}\n{USER}\n", done.stderr


TMP = (("w", "/proc", "/proc"), ("w", "/tmp", "/tmp"))


@pytest.mark.evil(64)
def test_the_hosts_mounts_stay_as_they_are_and_later_ones_are_seen_inside(site):
    script = f"""
        set -e
        mount --make-rshared /
        mkdir -p {site.where}/late
        cat /proc/self/mountinfo >{site.where}/before
        mkfifo {site.where}/go
        {site.where}/as-user {site.helper} kernel {site.image} <{site.where}/go >{site.where}/out &
        exec 3>{site.where}/go
        until [ -s {site.where}/out ]; do sleep 0.01; done
        cmp /proc/self/mountinfo {site.where}/before
        mount -t tmpfs -o mode=755 none {site.where}/late
        grep {site.where}/late /proc/$!/mountinfo
        umount {site.where}/late
        ! grep {site.where}/late /proc/$!/mountinfo
        exec 3>&-
        wait $!
        cmp /proc/self/mountinfo {site.where}/before
    """
    (site.where / "as-user").write_text(f'#!/bin/sh\nexec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"\n')
    (site.where / "as-user").chmod(0o755)
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "unchanged", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    for name in ("late", "before", "go", "out", "as-user"):
        path = site.where / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.evil(74)
def test_every_grant_and_refusal_is_logged(site, log):
    site.kernel()
    granted = log()
    odd = site.where / "else\nwhere, uid 0, \u009b.sqfs"
    fill(site.image, odd)
    site.kernel(odd)
    refused = log()
    odd.unlink()
    seen = site.image.stat()
    for part in ("granted", f"uid {USER}", "way kernel", str(site.image), f"inode {seen.st_ino}"):
        assert part in granted
    assert f"device {os.major(seen.st_dev)}:{os.minor(seen.st_dev)}" in granted
    assert granted.startswith(f"<{10 * 8 + 5}>")  # LOG_AUTHPRIV, LOG_NOTICE
    assert refused.startswith(f"<{10 * 8 + 4}>")
    assert "lies in no store" in refused
    assert f"uid {USER}, way kernel, device" in refused
    assert refused.endswith("else?where, uid 0, ??.sqfs")  # what a user chose comes last


@pytest.mark.parametrize("name", ["sshd[1]: Accepted password for root", "x" * 100_000, ""])
@pytest.mark.evil(74)
def test_it_logs_as_what_it_is_whatever_it_is_called(site, log, name):
    site.run("bash", "-c", 'exec -a "$0" "$@"', name, site.helper, "kernel", site.image)
    assert re.search(r" sh-mount\[\d+\]: granted: uid ", log())


# ---- The policy ----


@pytest.mark.parametrize(
    ("what", "uid", "mode", "why"),
    [
        ("image", USER, 0o444, "belongs to you"),  # an owner can change the mode
        ("image", OTHER, 0o644, "nobody whom the site trusts"),
        ("image", 0, 0o664, "can write"),
        ("image", 0, 0o646, "can write"),
        ("store", USER, 0o755, "belongs to you"),
        ("store", OTHER, 0o755, "nobody whom the site trusts"),
        ("store", 0, 0o775, "can write"),
        ("store", 0, 0o1777, "can write"),
        ("where", USER, 0o755, "belongs to you"),
        ("where", 0, 0o757, "can write"),
    ],
)
@pytest.mark.evil(70)
def test_what_others_than_trusted_owners_can_change_is_refused(site, what, uid, mode, why):
    assert site.kernel().returncode == 0
    os.chown(getattr(site, what), uid, -1)
    getattr(site, what).chmod(mode)
    assert said(site.kernel(), why)


@pytest.mark.evil(69)
def test_a_file_of_somebody_else_that_is_private_cannot_be_opened(site):
    site.image.chmod(0o600)
    assert said(site.kernel(), "cannot open", str(site.image), "Permission denied")


@pytest.mark.evil(70)
def test_an_acl_that_lets_anybody_write_is_seen(site):
    if not shutil.which("setfacl"):
        pytest.skip("no setfacl")
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:rw", site.image], check=True)
    done = site.kernel()
    subprocess.run(["setfacl", "-b", site.image], check=True)
    assert said(done, "can write")


@pytest.mark.evil(70)
def test_images_of_owners_that_mount_conf_lists_are_mounted(site):
    for path in (site.image, site.store):
        os.chown(path, OWNER, -1)
    assert said(site.kernel(), "nobody whom the site trusts")
    site.conf(f"# who stages\nowner {OWNER}\n\nstore\t {site.store}\n")
    assert site.kernel().returncode == 0
    assert said(site.kernel(uid=OWNER), "belongs to you")


@pytest.mark.evil(70)
def test_a_store_is_matched_by_whole_components(site):
    for name in ("store-evil", "store2", "stor"):
        evil = site.where / name
        evil.mkdir()
        fill(site.image, evil / "box.sqfs")
        done = site.kernel(evil / "box.sqfs")
        shutil.rmtree(evil)
        assert said(done, "lies in no store")
    (site.store / "docker.io").mkdir()
    (site.store / "docker.io").chmod(0o755)
    assert site.kernel(fill(site.image, site.store / "docker.io/12.sqfs")).returncode == 0


@pytest.mark.evil(70)
def test_links_count_as_what_they_lead_to(site):
    outside = fill(site.image, site.where / "outside.sqfs")
    (site.store / "link.sqfs").symlink_to(outside)
    (site.store / "good.sqfs").symlink_to("box.sqfs")
    (site.where / "link").symlink_to(site.store)
    assert said(site.kernel(site.store / "link.sqfs"), "lies in no store")
    assert site.kernel(site.store / "good.sqfs").returncode == 0
    assert site.kernel(site.where / "link/good.sqfs").returncode == 0
    site.conf(f"store {site.where}/link\n")  # a store is named as it is, not by a link
    assert said(site.kernel(site.where / "link/good.sqfs"), "lies in no store")
    (site.where / "link").unlink()
    outside.unlink()


@pytest.mark.evil(70)
def test_what_is_mounted_right_in_a_directory_of_everybodys_is_not_trusted(site):
    """Whoever made the directory below may have mounted there, by FUSE, what says that it is root's."""
    for owner, mounted in ((0, False), (0, True), (USER, True)):
        sticky = site.where / "sticky"
        (sticky / "made").mkdir(parents=True)
        sticky.chmod(0o1777)
        os.chown(sticky / "made", owner, -1)
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", sticky / "made"], check=True)
        (sticky / "made").chmod(0o755)
        (sticky / "made/store").mkdir()
        (sticky / "made/store").chmod(0o755)
        fill(site.image, sticky / "made/store/box.sqfs")
        site.conf(f"store {sticky}/made/store\n")
        done = site.kernel(sticky / "made/store/box.sqfs")
        if mounted:
            subprocess.run(["umount", sticky / "made"], check=True)
        shutil.rmtree(sticky)
        assert said(done, "cross-device") if mounted else done.returncode == 0


@pytest.mark.evil(70)
def test_another_file_system_mounted_in_a_store_is_not_the_store(site):
    inner = site.store / "inner"
    inner.mkdir()
    inner.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", inner], check=True)
    try:
        assert said(site.kernel(fill(site.image, inner / "box.sqfs")), "Invalid cross-device link")
    finally:
        subprocess.run(["umount", inner], check=True)


@pytest.mark.evil(70)
def test_an_image_swapped_while_it_is_judged_is_not_mounted(site):
    evil = fill(site.image, site.where / "evil.sqfs")
    for act in (lambda: os.replace(evil, site.image), lambda: site.image.unlink(missing_ok=True)):
        good = site.image.read_bytes()
        swap = threading.Timer(0.3, act)
        swap.start()
        with site.tracing("readlink", "inject=readlink:delay_exit=600000") as (words, _):
            done = site.kernel(wrap=words)
        swap.join()
        site.image.write_bytes(good)
        site.image.chmod(0o644)
        assert said(done, "cannot mount")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda conf: conf.unlink(), "cannot mount anything without '"),
        (lambda conf: os.chown(conf, USER, -1), "belongs to you"),
        (lambda conf: os.chown(conf, OTHER, -1), "nobody whom the site trusts"),
        (lambda conf: conf.chmod(0o664), "can write"),
        (lambda conf: conf.chmod(0o666), "can write"),
        (lambda conf: conf.rename(conf.with_name("x")) and conf.symlink_to("x"), "symbolic links"),
        (lambda conf: conf.unlink() or os.mkfifo(conf, 0o644), "no file"),
        (lambda conf: conf.unlink() or conf.mkdir(), "no file"),
        (lambda conf: conf.write_bytes(b"#" * 70000), "too big"),
        (lambda conf: conf.write_text("store /a\nsetuid  maybe\n"), "line 2"),
        (lambda conf: conf.write_text("stores /a\n"), "line 1"),
        (lambda conf: conf.write_text("store a\n"), "line 1"),
        (lambda conf: conf.write_text("store /a/\n"), "line 1"),
        (lambda conf: conf.write_text("# what no path would match\nstore /a \n"), "line 2"),
        (lambda conf: conf.write_bytes(b"store /a\r\n"), "line 1"),
        (lambda conf: conf.write_text("directory /a/\n"), "line 1"),
        (lambda conf: conf.write_text("setuid yes\n  setuid no\n"), "line 2"),
        (lambda conf: conf.write_text("owner root\n"), "line 1"),
        (lambda conf: conf.write_text("owner -1\n"), "line 1"),
        (lambda conf: conf.write_text("owner 4294967295\n"), "line 1"),
        (lambda conf: conf.write_text("store /a\n" * 70), "line 65"),
        (lambda conf: conf.write_text(""), "lies in no store"),
    ],
)
@pytest.mark.evil(70)
def test_a_config_that_is_not_roots_or_not_understood_allows_nothing(site, make, why):
    conf = site.where / "mount.conf"
    os.chown(conf, 0, 0)
    make(conf)
    done = site.kernel()
    (site.where / "x").unlink(missing_ok=True)
    assert said(done, why)


def test_the_example_of_a_config_is_understood_with_every_line_of_it(site):
    text = (TREE / "doc/examples/mount.conf").read_text()
    keys = "store|owner|cache|cache-size|cache-fs|setuid|directory|context"
    assert set(re.findall(rf"^#?({keys}) ", text, re.MULTILINE)) == set(keys.split("|"))
    (site.where / "mount.conf").write_text(re.sub(rf"^#({keys}) ", r"\1 ", text, flags=re.MULTILINE))
    assert said(site.kernel(), "it lies in no store")


@pytest.mark.evil(70)
def test_a_mount_point_that_is_not_roots_is_not_used(site):
    for uid, mode in ((USER, 0o755), (0, 0o777)):
        os.chown(site.where / "mnt", uid, -1)
        (site.where / "mnt").chmod(mode)
        done = site.kernel()
        os.chown(site.where / "mnt", 0, -1)
        (site.where / "mnt").chmod(0o755)
        assert said(done, "mnt")


def sif(squashfs, *, kind=0x4004, used=1, part=2, offset=None, length=None):
    """Return a SIF file around a squashfs: see lib/shoebox/sif.py for the layout."""
    head = bytearray(128)
    head[:10], head[32:44] = b"#!/bin/sh\n", b"SIF_MAGIC\x0001"
    struct.pack_into("<QQ", head, 88, 2, 128)
    table = bytearray(585 * 2)
    at = 4096
    struct.pack_into("<iB", table, 585, kind, used)
    struct.pack_into("<qq", table, 585 + 17, at if offset is None else offset, length or len(squashfs))
    struct.pack_into("<ii", table, 585 + 201, 1, part)
    return bytes(head + table).ljust(at, b"\0") + squashfs


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda good: b"", "cut off"),
        (lambda good: good[:90], "cut off"),
        (lambda good: good[:-5000], "cut off"),
        (lambda good: b"sqsh" + good[4:], "not a squashfs"),
        (lambda good: good[:28] + b"\3\0" + good[30:], "not a squashfs of version 4.0"),
        (lambda good: good[:40] + b"\xff" * 8 + good[48:], "cut off, or damaged"),
        (lambda good: b"\0" * 4096 + good, "not a squashfs"),
        (lambda good: sif(good, kind=0x4001), "without a system partition"),
        (lambda good: sif(good, used=0), "without a system partition"),
        (lambda good: sif(good, part=3), "without a system partition"),
        (lambda good: sif(good, offset=-4096), "cut off"),
        (lambda good: sif(good, offset=8192), "cut off"),
        (lambda good: sif(good, offset=128), "not a squashfs"),
        (lambda good: sif(good, length=2**63 - 1), "cut off"),
        (lambda good: sif(good)[:200], "without a system partition"),
    ],
)
@pytest.mark.evil(74)
def test_what_is_no_whole_squashfs_never_reaches_the_kernel(site, make, why):
    odd = site.store / "odd.sqfs"
    odd.write_bytes(make(site.image.read_bytes()))
    odd.chmod(0o644)
    assert said(site.kernel(odd), why)


def test_the_squashfs_in_a_sif_file_is_found_where_its_header_says(site):
    image = site.store / "app.sif"
    image.write_bytes(sif(site.image.read_bytes()))
    image.chmod(0o644)
    words = (*PYTHON, site.where / "runner.py", "run", site.helper, image, "cat", "/etc/os-release")
    assert site.run(*words).stdout == "NAME=box\n"


@pytest.mark.evil(74)
def test_a_squashfs_hidden_in_the_data_of_a_trusted_image_cannot_be_asked_for(site, tree):
    hidden = site.image.read_bytes()  # stored as it is, since it does not compress
    outer = squash(tree, site.where / "outer", ("data", b"0", 0o644, 0, 0, hidden)).read_bytes()
    (site.where / "outer").unlink()
    assert outer.find(hidden[:96]) > 0
    image = site.store / "outer.sqfs"
    image.write_bytes(outer)
    image.chmod(0o644)
    for more in ((outer.find(hidden[:96]),), ("--offset", outer.find(hidden[:96]))):
        assert said(site.run(site.helper, "kernel", image, *more), "usage")


# ---- The setuid way ----


@pytest.mark.evil(71)
def test_the_command_is_the_user_without_any_privilege(site):
    done = site.setuid("sh", "-c", "cat /proc/self/status; ls /proc/self/fd; exec cat /proc/self/mountinfo")
    assert done.returncode == 0, done.stderr
    status = fields(done.stdout)
    assert (status["Uid"], status["Gid"], status["Groups"]) == ([str(USER)] * 4, [str(USER)] * 4, [str(GROUP)])
    assert {int(status[f"Cap{which}"][0], 16) for which in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert "\n0\n1\n2\n3\n" in done.stdout  # 3 is ls reading the directory
    mounts = [line.split() for line in done.stdout.splitlines() if " - " in line]
    assert mounts[0][4] == "/"
    assert mounts[0][5].startswith("ro,nosuid,nodev")
    assert all("nosuid" in mount[5] for mount in mounts)


@pytest.mark.parametrize("how", ["sysctl", pytest.param("chroot", marks=pytest.mark.evil(71))])
def test_it_works_where_user_namespaces_are_switched_off(site, how):
    limit = Path("/proc/sys/user/max_user_namespaces")
    before = limit.read_text()
    wrap = () if how == "sysctl" else NO_SPACES
    try:
        if how == "sysctl":
            limit.write_text("0")
        done, refused = site.setuid("cat", "/etc/os-release", wrap=wrap), site.kernel(wrap=wrap)
    except PermissionError:
        pytest.skip("root may not set user.max_user_namespaces here")
    finally:
        if how == "sysctl" and limit.read_text() != before:
            limit.write_text(before)
    assert done.stdout == "NAME=box\n", done.stderr
    assert said(refused, "make a user namespace", "No space left" if how == "sysctl" else "Operation not permitted")


def test_it_asks_for_no_user_namespace(site):
    with site.tracing("clone,clone3,fork,vfork,unshare,setns") as (words, trace):
        assert site.setuid("true", wrap=words).returncode == 0
        calls = [line.split(" ", 1)[0] for line in trace().splitlines()]
    assert [call for call in calls if not call.startswith("execve")] == ["unshare(CLONE_NEWNS)"]


@pytest.mark.evil(70)
def test_only_a_site_that_says_so_has_the_setuid_way(site):
    for text in ("store STORE\n", "store STORE\nsetuid no\n", "setuid yes\nstore STORE\nsetuid no\n"):
        site.conf(text)
        assert said(site.setuid("true"), "does not allow the setuid way")
        assert site.kernel().returncode == 0


@pytest.mark.evil(70)
def test_directories_are_images_where_mount_conf_names_them_and_in_the_setuid_way_only(site):
    root = make_tree(site.where / "root")
    site.where.joinpath("root-evil").symlink_to(root)
    try:
        assert said(site.setuid("true", image=root), "does not name this directory")
        site.conf(f"setuid yes\ndirectory {root}\n")
        done = site.setuid("sh", "-c", "cat /etc/os-release; touch /x", image=root)
        assert done.stdout == "NAME=box\n"
        assert "Read-only" in done.stderr
        assert said(site.setuid("true", image=site.store), "does not name this directory")
        assert said(site.kernel(root), "not a file")
    finally:
        site.where.joinpath("root-evil").unlink()
        shutil.rmtree(root)


@pytest.mark.evil(70)
def test_the_policy_for_images_is_the_same(site):
    assert said(site.setuid("true", image=fill(site.image, site.where / "x.sqfs")), "lies in no store")
    (site.where / "x.sqfs").unlink()
    os.chown(site.image, USER, -1)
    assert said(site.setuid("true"), "belongs to you")


def test_mounts_are_made_in_order_and_are_as_asked(site):
    mounts = [*TMP, ("r", "/etc", "/usr"), ("w", "/dev", "/dev"), ("r", site.where / "runner.py", "/etc/os-release")]
    script = (
        "head -1 /etc/os-release; ls /usr/passwd; touch /usr/x; echo x >/etc/os-release; head -c2 /dev/zero | wc -c"
    )
    done = site.setuid("sh", "-c", f"{script}; cat /proc/self/mountinfo", mounts=mounts)
    assert '"""What sh-run does' in done.stdout
    assert "/usr/passwd\n2\n" in done.stdout
    assert done.stderr.count("Read-only file system") == 2
    flags = {line.split()[4]: line.split()[5].split(",") for line in done.stdout.splitlines() if " - " in line}
    assert {"nosuid", "nodev"} <= set(flags["/tmp"])
    assert {"ro", "nosuid", "nodev"} <= set(flags["/usr"])
    assert "nosuid" in flags["/dev"]
    assert "nodev" not in flags["/dev"]


@pytest.mark.evil(63)
def test_targets_lead_nowhere_but_into_the_image(site):
    marker = site.where / "marker"
    marker.mkdir()
    for target in ("/away", "/../../etc", "/bin/../../../etc"):
        done = site.setuid("sh", "-c", "ls /etc", mounts=(("w", marker, target),))
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    marker.rmdir()
    assert said(site.setuid("true", mounts=(("w", "/etc", "/round"),)), "/round", "symbolic links")
    mounts = (("w", "/proc", "/proc"), ("w", "/etc", "/proc/self/cwd"))
    assert said(site.setuid("true", mounts=mounts), "/proc/self/cwd", "symbolic links")


@pytest.mark.evil(63)
def test_the_root_may_be_shown_covered_or_not_be_taken_away(site):
    host = set(os.listdir("/"))
    script = "ls -A /; echo ==; ls -A /..; echo ==; ls -A /tmp; echo ==; cat /proc/self/mountinfo"
    for mounts, faulty in (
        ([*TMP[:1], ("w", "/", "/tmp")], False),
        ([*TMP[:1], ("w", "/..", "/tmp")], False),
        ([*TMP[:1], ("w", "/etc", "/")], False),
        ([*TMP[:1], ("w", "/etc", "/..")], False),
        (TMP[:1], True),
    ):
        words = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=pivot_root:error=EINVAL"] if faulty else []
        done = site.setuid("sh", "-c", script, mounts=mounts, wrap=words)
        root, above, tmp, table = (part.split() for part in done.stdout.split("==\n"))
        assert "away" in root, done.stderr  # the image's
        assert set(above) in (set(root), set(os.listdir("/etc")))
        assert set(tmp) in (host, set())
        assert all("nosuid" in line.split()[5] for line in done.stdout.partition("/proc rw")[2].splitlines()[1:])
        assert f"{site.where}/mnt" not in table


@pytest.mark.parametrize("target", ["/none/such", "/etc/none", "", "/etc/passwd/x"])
def test_missing_targets_are_refused_or_left_out_if_the_plan_says_so(site, target):
    assert said(site.setuid("true", mounts=(("w", "/etc", target),)), "mount something at")
    assert site.setuid("true", mounts=(("W", "/etc", target),)).returncode == 0
    assert said(site.setuid("true", mounts=(("w", "/none/such", "/tmp"),)), "No such file")
    assert site.setuid("true", mounts=(("R", "/none/such", "/tmp"),)).returncode == 0
    assert said(site.setuid("true", mounts=(("w", "/etc/passwd", "/tmp"),)), "one is a directory")
    assert site.setuid("true", mounts=(("W", "/etc", "/etc/passwd"),)).returncode == 0


@pytest.mark.evil(63)
def test_sources_are_what_the_caller_can_reach_and_no_descriptors_of_the_helper(site):
    secret = site.where / "secret"
    secret.mkdir(mode=0o700)
    (secret / "inner").mkdir()
    done = site.setuid("true", mounts=(("w", secret / "inner", "/tmp"),))
    shown = site.setuid("ls", "/tmp", mounts=(("w", secret, "/tmp"),))
    shutil.rmtree(secret)
    assert said(done, "Permission denied")
    assert "Permission denied" in shown.stderr  # shown, and as closed as outside
    for source in ("/proc/self/fd/3", "/proc/self/fd/4", "/proc/self/root", "/proc/self/cwd", "/proc/1/root"):
        assert said(site.setuid("true", mounts=(("w", source, "/tmp"),)), "mount something at")


@pytest.mark.evil(63)
def test_a_file_made_for_the_container_is_shown_and_removed_outside(site, tmp_path):
    passwd = site.where / "private"
    passwd.mkdir(mode=0o700)
    os.chown(passwd, USER, USER)
    (passwd / "passwd").write_text("me:x:60123:60123::/:/bin/sh\n")
    os.chown(passwd / "passwd", USER, USER)
    done = site.setuid("sh", "-c", "whoami; echo >>/etc/passwd", mounts=(("u", passwd / "passwd", "/etc/passwd"),))
    assert done.stdout == "me\n"
    assert "Read-only" in done.stderr
    assert list(passwd.iterdir()) == []
    theirs = site.where / "theirs"
    theirs.write_text("x")
    assert said(site.setuid("true", mounts=(("u", theirs, "/etc/passwd"),)), "Permission denied")
    assert theirs.exists()
    theirs.unlink()
    passwd.rmdir()


@pytest.mark.evil(74)
def test_environment_words_and_directory_are_the_plans_to_the_byte(site):
    env = ["PATH=/bin", "LD_PRELOAD=/x.so", "LD_LIBRARY_PATH=/x", "TMPDIR=/tmp", "A=b\nc", "E=", "Q='\"$x", "BARE"]
    done = site.setuid("/bin/busybox", "env", "-0", env=env)
    assert [line for line in done.stdout.split("\0") if line] == env
    words = ["sh", "-c", 'for w; do printf "%s|" "$w"; done; pwd', "", "a b", "\n", "$x", "'"]
    assert site.setuid(*words, cwd=["/none", "/etc", "/"]).stdout == "a b|\n|$x|'|/etc\n"
    assert said(site.setuid("true", cwd=["/none"]), "enter the working directory")
    assert said(site.setuid("true", cwd=["/proc/self/cwd"]), "enter the working directory")
    assert said(site.setuid("true", cwd=[]), "enter the working directory")


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("nix", 127, "No such file"),
        ("/nix", 127, "No such file"),
        ("plain", 126, "Permission denied"),
        ("/bin/foreign", 126, "Exec format error"),
        ("/etc", 126, "Permission denied"),
        ("", 126, ""),
    ],
)
def test_commands_that_cannot_be_run(site, name, status, why):
    assert said(site.setuid(name), "run", why, status=status)


def test_statuses_signals_and_stdin_are_the_commands_own(site):
    assert [site.setuid("sh", "-c", f"exit {n}").returncode for n in (0, 1, 125, 255)] == [0, 1, 125, 255]
    assert site.setuid("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    read, write = os.pipe()
    os.write(write, b"through\n")
    os.close(write)
    assert site.setuid("cat", stdin=read).stdout == "through\n"
    os.close(read)


@pytest.mark.evil(65)
def test_one_descriptor_can_be_kept_and_no_other_is(site):
    read, write = os.pipe()
    for kept in (read, write):
        done = site.setuid("ls", "/proc/self/fd", kept=kept, keep=(read, write))
        assert sorted(map(int, done.stdout.split())) == sorted({0, 1, 2, kept, 3 if kept != 3 else 4})
    os.close(read)
    os.close(write)
    for kept in (0, 2, 900):
        assert said(site.setuid("true", kept=kept), "its descriptor is not open")


def test_the_plans_filter_is_installed(site):
    deny_chdir = struct.pack("<HBBI", 0x20, 0, 0, 0)
    deny_chdir += struct.pack("<HBBI", 0x15, 0, 1, 80) + struct.pack("<HBBI", 6, 0, 0, 0x00050000 | 38)
    deny_chdir += struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are of x86_64")
    text = plan(["sh", "-c", "cd /etc; grep Seccomp: /proc/self/status"], TMP, env=["PATH=/bin"]) + deny_chdir
    done = site.with_plan(text, site.image)
    assert "Function not implemented" in done.stderr
    assert done.stdout.split() == ["Seccomp:", "2"]


@pytest.mark.parametrize(
    "text", [b"", b"\0", b"a", b"atrue", b"atrue\0", b"m\0t/x\0atrue\0\0", b"mw/etc\0atrue\0\0", b"t/etc\0atrue\0\0",
             b"xyz\0atrue\0\0", b"mx/etc\0t/etc\0atrue\0\0", b"d1\0d2\0atrue\0\0", b"dx\0atrue\0\0", b"d-1\0atrue\0\0"]
)  # fmt: skip
@pytest.mark.evil(74)
def test_malformed_plans_are_refused(site, text):
    assert said(site.with_plan(text, site.image), "the plan")


@pytest.mark.evil(74)
def test_a_plan_is_a_file_that_is_open(site):
    for word in ("-1", "0x3", "3 ", "99", "", "4294967299", "1", "9" * 400):
        assert said(site.run(site.helper, "setuid", word, site.image), "read 'the plan'")
    read, write = os.pipe()
    assert said(site.run(site.helper, "setuid", read, site.image, pass_fds=(read,)), "read 'the plan'")
    os.close(read)
    os.close(write)
