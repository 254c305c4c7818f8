"""sh-run: images and surroundings that mean harm (behaviours 49, 63-68)."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from fixtures.rootfs import make_tree, one_line, squash

# A program that types a command for whoever uses the terminal next, and says how that went.
TYPER = """
import fcntl, sys, termios
for request in (termios.TIOCSTI, termios.TIOCSTI | 1 << 32):
    try:
        fcntl.ioctl(0, request & 0xFFFFFFFF, b"x")
    except OSError as error:
        print("errno", error.errno)
    else:
        print("typed")
"""


@pytest.mark.evil(66)
def test_a_program_inside_cannot_type_on_the_callers_terminal(cmd):
    if Path("/proc/sys/dev/tty/legacy_tiocsti").exists():
        assert Path("/proc/sys/dev/tty/legacy_tiocsti").read_text() == "1\n", "this test needs the kernel's old default"
    leader, follower = pty.openpty()
    words = ("/usr/bin/python3", "-IS", "-c", TYPER)
    for prefix, said in (((), "typed\ntyped"), (("sh-run", "/"), "errno 1\nerrno 1")):
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", *prefix, *words],
            stdin=follower,
            capture_output=True,
            text=True,
            env=cmd.env,
            cwd=cmd.home,
            check=True,
        )
        assert done.stdout.strip() == said
    os.close(leader)
    os.close(follower)


def test_without_a_terminal_no_filter_is_installed(cmd):
    status = cmd.ok("setsid", "--wait", "sh-run", "/", "cat", "/proc/self/status")
    assert "Seccomp:\t0" in status


NO_PMI = [({"PMI_FD": fd}, "0 1 2 3") for fd in ("999", "99999999999999999999", "-1", "x", "", "0")]


@pytest.mark.evil(65)
def test_open_descriptors_inside_are_0_1_2_and_the_pmis(cmd, box):
    read, write = os.pipe()
    for env, expected in (({}, "0 1 2 3"), ({"PMI_FD": str(write)}, f"0 1 2 3 {write}"), *NO_PMI):
        done = subprocess.run(
            ["sh-run", box, "ls", "/proc/self/fd"],
            env=cmd.env | env,
            cwd=cmd.home,
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        assert sorted(done.stdout.split()) == sorted(expected.split())  # 3 is ls reading the directory
    os.close(read)
    os.close(write)


@pytest.mark.evil(66)
def test_no_capability_and_no_new_privilege_inside(cmd, box):
    status = cmd.ok("sh-run", box, "cat", "/proc/self/status")
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert os.getuid() == 0 or int(found[name], 16) == 0  # root's are of the container's user namespace
    assert found["NoNewPrivs"] == "1"
    assert os.getuid() == 0 or cmd("sh-run", box, "chroot", "/", "true").returncode != 0
    assert cmd("sh-run", box, "mount", "-t", "tmpfs", "none", "/mnt").returncode != 0
    assert cmd("sh-run", box, "mount", "-o", "remount,rw", "/").returncode != 0
    assert cmd("sh-run", box, "umount", "/etc/passwd").returncode != 0


@pytest.mark.parametrize("way", ["fuse", "unpack"])
@pytest.mark.evil(66)
def test_a_set_user_id_program_of_the_image_gains_nothing(cmd, tree, tmp_path, way):
    busybox = (tree / "bin/busybox").read_bytes()
    members = [("su-root", 0, 0), ("su-other", 1000, 1000)]
    others = [(name, tarfile.REGTYPE, 0o6755, uid, gid, busybox) for name, uid, gid in members]
    image = squash(tree, tmp_path / "su.sqfs", *others)
    for name, _, _ in members:
        script = f"ln -s /{name} ~/id; ~/id -u; ~/id -g; rm ~/id"  # busybox goes by the name it is called by
        out = cmd.ok("sh-run", f"--mount={way}", image, "sh", "-c", script)
        assert out.split() == [str(os.getuid()), str(os.getgid())]


@pytest.mark.parametrize("words", [(), ("--writable",), ("-v", "/etc:/none/such")])
@pytest.mark.evil(73)
def test_a_device_of_the_image_cannot_be_opened(cmd, box, words):
    done = cmd("sh-run", "--mount=fuse", *words, box, "head", "-c", "1", "/devices/zero")
    assert done.returncode != 0
    assert "Permission denied" in done.stderr or "not permitted" in done.stderr


@pytest.mark.evil(67)
def test_a_fifo_in_place_of_any_file_that_is_read_hangs_nothing(cmd, tmp_path):
    odd = make_tree(tmp_path / "odd")
    (odd / "etc/passwd").unlink()
    (odd / ".shoebox").mkdir()
    for name in ("etc/passwd", ".shoebox/config.json"):
        os.mkfifo(odd / name)
    done = cmd("sh-run", odd, "true", timeout=20)
    assert done.returncode == 0
    assert done.stderr.count("not a regular file") == 2
    os.mkfifo(tmp_path / "fifo.sqfs")
    assert one_line(cmd("sh-run", tmp_path / "fifo.sqfs", "true", timeout=20), "neither a file nor a directory")


@pytest.mark.evil(63)
def test_links_in_the_image_lead_to_nothing_of_the_host(cmd, tmp_path):
    odd = make_tree(tmp_path / "odd")
    (odd / "etc/passwd").unlink()
    (odd / "etc/passwd").symlink_to("/../../../../../etc/passwd-of-the-host")
    (odd / "etc/group").unlink()
    (odd / "etc/group").symlink_to("/proc/self/cwd/group")
    (odd / ".shoebox").symlink_to(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"Env": ["LEAK=1"]}}')
    done = cmd("sh-run", odd, "sh", "-c", "echo $LEAK; cat /etc/passwd-of-the-host | wc -l")
    assert (done.returncode, done.stdout) == (0, "\n2\n" if os.getuid() else "\n1\n")


@pytest.mark.evil(68)
def test_umask_and_limits_are_the_callers_and_open_nothing(cmd, box):
    script = f"umask 000; sh-run -v /etc:/new/place {box} sh -c 'umask; stat -c %a /new /etc/passwd; touch ~/mine'"
    assert cmd.ok("sh", "-c", script).split() == ["0000", "755", "644"]
    assert stat.S_IMODE((cmd.home / "mine").stat().st_mode) == 0o666
    assert cmd.ok("sh", "-c", f"umask 077; sh-run -v /etc:/new/place {box} stat -c %a /new").split() == ["755"]


def test_signals_that_the_caller_ignores_stay_ignored_and_others_are_as_usual(cmd, box):
    status = cmd.ok("sh", "-c", f"trap '' HUP; exec sh-run {box} cat /proc/self/status")
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    assert ignored & 0x7FFFFFFF == 1 << 0  # but for those that the C library keeps to itself
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1]
    assert int(blocked, 16) == 0


def test_a_caller_that_ignores_sigchld_is_served_too(cmd, box):
    assert cmd.ok("sh", "-c", f"trap '' CHLD; exec sh-run {box} cat /etc/os-release") == "NAME=box"


def test_libraries_that_the_user_preloads_do_not_reach_the_server(cmd, box):
    assert cmd.ok("sh-run", box, "cat", "/etc/os-release", LD_LIBRARY_PATH="/nowhere", FUSE_FAKE="1") == "NAME=box"


def test_a_users_python_settings_do_not_break_sh_run(cmd, box, tmp_path):
    (tmp_path / "os.py").write_text("raise SystemExit(99)\n")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/nowhere"}
    assert cmd.ok("sh-run", box, "cat", "/etc/os-release", cwd=tmp_path, **env) == "NAME=box"


def test_ending_sh_run_with_ctrl_c_while_it_starts_leaves_nothing(cmd, box):
    for round_ in range(15):
        process = cmd.start("sh-run", box, "sleep", "60", stdin=subprocess.DEVNULL, process_group=0)
        time.sleep(0.002 * round_)
        os.killpg(process.pid, 2)
        _, said = process.communicate(timeout=20)
        assert process.returncode in (-2, 1), said  # 1: while the interpreter itself began
        assert b"/lib/shoebox/" not in said  # nothing of ours is named, the launcher perhaps


def test_no_user_namespaces_is_one_line_with_the_reason(cmd, box):
    limit = "echo 0 > /proc/sys/user/max_user_namespaces && exec sh-run"
    done = cmd("unshare", "-Ur", "sh", "-c", f"{limit} {box} true")
    assert one_line(done, "user.max_user_namespaces is 0", "set it to 10000")


def test_no_dev_fuse_makes_it_unpack(cmd, box):
    null = cmd.home / "null"
    null.touch()
    hide = (
        f"mount --bind /dev/null {null} && mount -t tmpfs none /dev && touch /dev/null && mount --bind {null} /dev/null"
    )
    text = cmd.ok("unshare", "-Urm", "sh", "-c", f"{hide} && exec sh-run --explain {box}")
    assert "way       unpack " in text
    assert "# not fuse: /dev/fuse: No such file or directory" in text


def inject(cmd, fault, *words):
    """Run sh-run with a system call that fails; its server is not traced, as strace itself has to read through it."""
    return cmd("strace", "-o", "/dev/null", "-e", f"inject={fault}", "sh-run", *words)


def test_a_root_that_cannot_be_taken_away_as_an_initramfs_is_hidden(cmd, box):
    script = "cat /etc/os-release; cd /..; ls; wc -l < /proc/self/mounts"
    lines = inject(cmd, "pivot_root:error=EINVAL", box, "sh", "-c", script).stdout.splitlines()
    assert lines == cmd.ok("sh-run", box, "sh", "-c", script).splitlines()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unshare:error=EPERM:when=1", "cannot make a user namespace"),
        ("unshare:error=ENOSPC:when=1", "cannot make a user namespace"),
        ("fsopen:error=ENODEV:when=1", "try another way with --mount"),
        ("fsopen:error=ENODEV:when=3", "cannot lay an overlay over the image"),
        ("open_tree:error=ENOMEM:when=2", "cannot mount"),
        ("move_mount:error=EPERM:when=6", "cannot mount"),
        ("pivot_root:error=EPERM", "Operation not permitted"),
        ("fchdir:error=EACCES:when=2", "cannot work in"),
        ("unshare:error=EPERM:when=3", "Operation not permitted"),
        ("prctl:error=EPERM", "Operation not permitted"),
    ],
)
@pytest.mark.evil(75)
def test_what_the_kernel_refuses_is_one_line_and_leaves_nothing(cmd, box, fault, said):
    assert one_line(inject(cmd, fault, box, "true"), said)


# Linux 5.2 to 5.12 brought these. What is newer than 5.14, EL 9's, would need another way beside it.
NEW = {
    *("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "openat2", "close_range", "mount_setattr"),
    *("clone3", "faccessat2"),  # the C library's, which has ways of its own without them
}


@pytest.mark.parametrize("call", sorted(NEW - {"clone3", "faccessat2"}))
def test_a_kernel_without_a_call_that_we_need_is_told_so_in_one_line(cmd, box, call):
    assert one_line(inject(cmd, f"{call}:error=ENOSYS", box, "true"), "this kernel is older than Linux 5.12")


@pytest.mark.parametrize("options", [(), ("--writable",), ("--mount=unpack",)])
@pytest.mark.parametrize("step", [{}, {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}])
def test_no_call_is_newer_than_linux_5_14(cmd, box, tmp_path, options, step):
    with cmd.start("sh-run", *options, box, "sh", "-c", "echo; exec sleep 60", env=cmd.env | step) as first:
        first.stdout.readline()  # so that in a step there is somebody to follow
        cmd.ok("strace", "-n", "-o", tmp_path / "trace", "sh-run", *options, box, "true", **step)
        first.kill()
    calls = dict(re.findall(r"^\[ *(\d+)\] (\w+)\(", (tmp_path / "trace").read_text(), re.MULTILINE))
    assert {name for number, name in calls.items() if int(number) >= 424} <= NEW
    assert "openat2" in calls.values()
