"""sh-run --writable=DIR: what is written stays, in either form, and nothing is lost without a word."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from fixtures.rootfs import make_tree, one_line, servers, squash, until

# A file system that overlay refuses: a directory shown again by FUSE, served in a namespace of our own, for as long as
# the command lives that comes after these words.
FAR = (
    *("unshare", "-Urm", "bash", "-c"),
    """setpriv --pdeathsig KILL bindfs -f --no-allow-other near far >/dev/null 2>&1 &
    until mountpoint -q far; do sleep 0.01; done; exec "$@" """,
    "bash",
)
CHANGE = "echo new >/etc/new; rm /etc/os-release; rm -r /usr/lib; mkdir /usr/lib; ln /etc/new /etc/second"
SLEEP = ("sleep", "60")


@pytest.fixture(params=["overlay", "tar"])
def kept(cmd, request):
    """Return the words that run sh-run in a directory that keeps changes, and that directory as it really is."""
    if request.param == "overlay":
        return ("sh-run", "--writable=./near/kept"), cmd_directory(cmd) / "kept"
    cmd_directory(cmd)
    return (*FAR, "sh-run", "--writable=./far/kept"), cmd.home / "near/kept"


def cmd_directory(cmd):
    for name in ("near", "far"):
        (cmd.home / name).mkdir()
    return cmd.home / "near"


@pytest.fixture
def far(cmd):
    """Return the same for the file system that overlay refuses."""
    return (*FAR, "sh-run", "--writable=./far/kept"), cmd_directory(cmd) / "kept"


def saved(directory):
    """Return the names in the tar, {} if there is none."""
    if not (directory / "changes.tar").exists():
        return {}
    with tarfile.open(directory / "changes.tar") as archive:
        return {member.name: member for member in archive}


def ready(process):
    """Wait until the command says so."""
    assert process.stdout.readline() == b"ready\n", process.communicate(timeout=20)
    return process


def test_changes_stay_and_the_image_is_not_touched(cmd, box, kept):
    words, directory = kept
    before = box.read_bytes()
    cmd.ok(*words, box, "sh", "-c", CHANGE)
    show = "cat /etc/new; stat -c %h /etc/new; ls /etc/os-release /usr/lib; id -u; stat -c %u:%g /etc/new"
    done = cmd(*words, box, "sh", "-c", show)
    uid, gid = (0, 0) if words[0] == "unshare" else (os.getuid(), os.getgid())
    assert done.stdout.split() == ["new", "2", "/usr/lib:", str(uid), f"{uid}:{gid}"]
    assert "os-release: No such file" in done.stderr
    assert cmd.ok("sh-run", box, "cat", "/etc/os-release") == "NAME=box"
    assert box.read_bytes() == before
    assert (directory / "upper").exists() != (directory / "changes.tar").exists()


def test_the_form_is_chosen_once_and_explained(cmd, box, kept):
    words, directory = kept
    form = "tar" if words[0] == "unshare" else "overlay"

    (directory.parent / f".shoebox-{os.uname().nodename}-4194305/work/work").mkdir(parents=True)  # of one killed

    def explained():
        return json.loads(cmd.ok(*words[:-1], "--explain=json", words[-1], box))["root"]

    assert explained()["form"] == form
    assert not directory.exists()
    assert os.listdir(directory.parent) == []
    cmd.ok(*words, box, "true")
    assert (explained()["form"], "it has" in explained()["why"]) == (form, True)
    text = cmd.ok(*words[:-1], "--explain", words[-1], box)
    assert re.search(
        r"^root .*(kept in /.*/kept/upper|saved as /.*/kept/changes\.tar) +# --writable; ", text, re.MULTILINE
    )


def test_a_tar_stays_one_where_overlay_would_do_and_an_upper_directory_never_becomes_one(cmd, box, far):
    words, directory = far
    cmd.ok(*words, box, "sh", "-c", "echo 1 >/etc/new")
    assert cmd.ok("sh-run", "--writable=./near/kept", box, "cat", "/etc/new") == "1"
    assert not (directory / "upper").exists()
    (directory / "changes.tar").unlink()
    cmd.ok("sh-run", "--writable=./near/kept", box, "sh", "-c", "echo 2 >/etc/new")
    if os.getuid() == 0:  # the lock is another's to the user namespace of the test
        (directory / "lock").unlink()
    assert one_line(cmd(*words, box, "true"), "does not suit", "sh-flatten --changes")
    (directory / "changes.tar").touch()
    assert one_line(cmd("sh-run", "--writable=./near/kept", box, "true"), "only you know")


def test_the_tar_is_a_layer(cmd, box, far):
    words, directory = far
    cmd.ok(*words, box, "sh", "-c", f"{CHANGE}; chmod 4711 /etc/new; touch -d '2001-02-03 04:05:06' /etc/new")
    found = saved(directory)
    assert set(found) >= {"etc/new", "etc/second", "etc/.wh.os-release", "usr/lib", "usr/lib/.wh..wh..opq"}
    new = found["etc/new"]
    assert (new.uid, new.gid, new.mode, time.localtime(new.mtime)[:6]) == (0, 0, 0o4711, (2001, 2, 3, 4, 5, 6))
    assert (directory.stat().st_mode & 0o777, (directory / "changes.tar").stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_the_exit_status_is_the_commands(cmd, box, far, status):
    assert cmd(*far[0], box, "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGPIPE])
def test_a_command_that_a_signal_kills_is_seen_to_die_of_it_and_its_changes_stay(cmd, box, far, number):
    assert cmd(*far[0], box, "sh", "-c", f"touch /x; kill -{number} $$").returncode == -number
    assert "x" in saved(far[1])


def test_a_command_that_cannot_be_run_is_told_as_ever(cmd, box, far):
    assert one_line(cmd(*far[0], box, "nosuch"), "no such command", status=127)
    assert one_line(cmd(*far[0], box, "plain"), "not an executable file", status=126)
    assert "lock" not in os.listdir(far[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_reach_the_command_and_what_it_does_then_is_saved(cmd, box, far, number):
    script = f"trap 'echo got; touch /got; exit 7' {int(number)}; echo ready; while :; do sleep 0.05; done"
    process = ready(cmd.start(*far[0], box, "sh", "-c", script))
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == b"got\n"
    assert process.returncode == 7
    assert "got" in saved(far[1])


def test_the_terminals_signal_reaches_the_command_once_and_stopping_works(cmd, box, far):
    typist = Path(__file__).parent.parent / "fixtures/typist.py"
    script = "trap 'echo got' INT; echo ready; read x; echo $x; read x; echo $x"
    out = cmd.ok("/usr/bin/python3", typist, *far[0], box, "sh", "-c", script, timeout=60)
    seen = ["ready", "got", "stopped", "second", "second", "end 0"]  # what is typed is shown
    assert re.findall(r"ready|got|stopped|first|second|end 0", out) == seen, out


def test_it_saves_when_the_last_process_has_left_not_when_the_command_has(cmd, box, far):
    script = "setsid sh -c 'exec >&- 2>&- <&-; sleep 2; touch /late' & touch /early"
    done = cmd(*far[0], box, "sh", "-c", script)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "waiting for what still runs inside" in done.stderr
    assert {"early", "late"} <= set(saved(far[1]))


def test_asked_to_end_while_something_still_runs_it_saves_what_is_there(cmd, box, far):
    script = "setsid sh -c 'exec >&- 2>&- <&-; sleep 4; touch /late' & touch /early; exit 3"
    process = cmd.start(*far[0], box, "sh", "-c", script)
    assert b"waiting" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert b"is not saved" in process.communicate(timeout=20)[1]
    assert process.returncode == 3
    assert "early" in saved(far[1])
    assert until(lambda: not servers(box))
    assert "late" not in saved(far[1])


def test_a_command_that_ignores_term_is_saved_before_the_batch_system_kills_it(cmd, box, far):
    process = ready(cmd.start(*far[0], box, "sh", "-c", "trap '' TERM; touch /early; echo ready; sleep 60"))
    process.send_signal(signal.SIGTERM)
    assert b"goes on after TERM" in process.stderr.readline()
    assert until(lambda: "early" in saved(far[1]))
    process.kill()
    process.communicate()


def test_who_reads_the_output_does_not_wait_for_what_is_left_behind(cmd, box, far):
    go = cmd.home / "go"
    left = f"setsid sh -c 'until [ -e {go} ]; do sleep 0.1; done' <&- >&- 2>&- & echo done"
    process = cmd.start(*far[0], box, "sh", "-c", left)
    said = process.stdout.read(), process.stderr.readline()
    go.touch()
    assert said[0] == b"done\n"
    assert b"waiting" in said[1]
    process.communicate(timeout=20)


def test_kill_9_at_any_moment_keeps_what_was_saved_and_the_next_run_says_what_is_lost(cmd, box, kept):
    words, directory = kept
    cmd.ok(*words, box, "sh", "-c", "echo first >/etc/new")
    warned = 0
    for round_ in range(15):
        script = "echo $$ >/etc/other; echo ready; sleep 60"
        process = cmd.start(*words, box, "sh", "-c", script, stdin=subprocess.DEVNULL)
        time.sleep(0.03 * round_)
        if round_ == 14:  # one at least has begun, however slow the machine
            ready(process)
        process.kill()
        process.communicate()
        assert until(lambda: not servers(box))
        done = cmd(*words, box, "cat", "/etc/new")
        assert (done.returncode, done.stdout) == (0, "first\n"), done.stderr
        warned += "its changes are lost" in done.stderr
    assert bool(warned) == (words[0] == "unshare")
    left = {"image", "changes.tar"} if words[0] == "unshare" else {"image", "upper", "work", "lock"}
    assert set(os.listdir(directory)) <= left | {".changes.tar.part", ".image.part"}


def test_two_at_once_and_the_second_is_told_who_was_first(cmd, box, kept):
    words, _ = kept
    first = ready(cmd.start(*words, box, "sh", "-c", "echo ready; read x"))
    host = os.uname().nodename
    assert one_line(cmd(*words, box, "true"), f"process {first.pid} on {host} has it, since 20", "wait for its end")
    first.communicate(b"\n", timeout=20)
    cmd.ok(*words, box, "true")


def test_many_at_once_and_one_gets_it(cmd, box, kept):
    words, _ = kept
    cmd.ok(*words, box, "true")
    go = cmd.home / "go"
    for _ in range(5):
        script = f"mkdir /etc/alone || echo two; until [ -e {go} ]; do sleep 0.05; done; rmdir /etc/alone"
        several = [cmd.start(*words, box, "sh", "-c", script) for _ in range(6)]
        until(lambda: sum(process.poll() is not None for process in several) >= 5, 30)  # noqa: B023 - called here
        go.touch()
        ended = [(*process.communicate(timeout=30), process.returncode) for process in several]
        go.unlink()
        assert [status for _, _, status in ended].count(0) == 1, ended
        assert not any(b"two" in out for out, _, _ in ended)


def test_what_an_earlier_run_has_left_behind_keeps_the_upper_directory(cmd, box):
    words = ("sh-run", "--writable=./kept")
    cmd.ok(*words, box, "sh", "-c", "setsid sleep 4 <&- >&- 2>&- &")
    assert one_line(cmd(*words, box, "true"), "what an earlier run has started still uses", "/kept'")
    assert until(lambda: cmd(*words, box, "true").returncode == 0)


def lock(directory, **other):
    """Put a lock there, of a process of this node that has ended, but for what other says."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    said = {"node": os.uname().nodename, "boot": boot, "space": os.readlink("/proc/self/ns/pid")[5:-1]}
    said |= {"pid": "1", "start": "7", "since": "1000000000", "form": "tar", "step": ""} | other
    (directory / "lock").unlink(missing_ok=True)
    (directory / "lock").symlink_to(":".join(said.values()))


def test_a_stale_lock_of_this_node_is_taken_over_and_one_of_another_is_told(cmd, box, kept):
    words, directory = kept
    cmd.ok(*words, box, "true")
    for other in ({}, {"boot": "x", "pid": str(os.getpid())}, {"form": "overlay"}):
        lock(directory, **other)
        (directory / "lock.next").symlink_to(os.readlink(directory / "lock"))  # killed while it took one over
        done = cmd(*words, box, "true")
        assert done.returncode == 0
        assert ("its changes are lost" in done.stderr) == (other.get("form", "tar") == "tar")
        assert not (directory / "lock.next").is_symlink()
    for other in ({"node": "n2"}, {"node": "n2", "form": "overlay"}):
        lock(directory, **other)
        assert one_line(cmd(*words, box, "true"), "process 1 on ", "since 2001-09-", "if it has ended, remove '")
    lock(directory, space="5")  # in another pid namespace: only overlay can tell
    assert cmd(*words, box, "true").returncode == 125
    (directory / "lock").unlink()
    (directory / "lock").write_text("")
    assert one_line(cmd(*words, box, "true"), "is not ours", "remove it")


def test_another_image_is_refused_and_a_copy_of_the_same_is_not(cmd, box, tree, kept, tmp_path):
    words, directory = kept
    cmd.ok(*words, box, "touch", "/x")
    assert one_line(cmd(*words, tree, "true"), "another image", str(box), "run that one")
    copy = tmp_path / "copy.sqfs"
    copy.write_bytes(box.read_bytes())
    assert cmd.ok(*words, copy, "ls", "/x") == "/x"
    assert f"path {box}" in (directory / "image").read_text()


def test_what_is_allowed_has_a_limit_where_it_is_memory(cmd, box, far):
    words, directory = far
    done = cmd(*words[:-1], f"{words[-1]}:2m", box, "sh", "-c", "dd if=/dev/urandom of=/big bs=64k count=64; true")
    assert done.returncode == 0
    assert "No space left on device" in done.stderr
    assert "the changes fill all the memory" in done.stderr
    assert saved(directory)["big"].size > 1 << 20
    assert one_line(cmd(*words[:-1], f"{words[-1]}:1m", box, "true"), "do not fit into 1m", "allow more")
    assert "big" in saved(directory)
    assert "lock" not in os.listdir(directory)


FULL = """
mount -t tmpfs -o size=300k none near && bindfs -f --no-allow-other near far >/dev/null 2>&1 &
until mountpoint -q far; do sleep 0.01; done
sh-run --writable=./far/kept "$1" sh -c 'echo first >/etc/new'
sh-run --writable=./far/kept "$1" sh -c 'echo second >/etc/new; dd if=/dev/urandom of=/big bs=64k count=16 2>/dev/null'
echo "status $?"
sh-run --writable=./far/kept "$1" cat /etc/new
ls -A far/kept; kill %1; fusermount -u far || umount far
"""


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_full_disk_is_told_the_old_tar_stays_and_the_changes_go_elsewhere(cmd, box, far, tmp_path, elsewhere):
    (tmp_path / "tmp").mkdir()
    done = cmd(
        "unshare", "-Urm", "bash", "-c", FULL, "bash", box, TMPDIR=str(tmp_path / "tmp") if elsewhere else "/proc"
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("sh-run: ")]
    assert len(said) == 1, done.stderr
    assert "cannot save the changes as " in said[0]
    assert "No space left on device" in said[0]
    assert done.stdout.split() == ["status", "125", "first", "changes.tar", "image"]
    if not elsewhere:
        assert "what this run changed is lost" in said[0]
        return
    (copy,) = (tmp_path / "tmp").iterdir()
    assert f"are in {str(copy)!r} instead" in said[0]
    with tarfile.open(copy) as archive:
        assert archive.extractfile("etc/new").read() == b"second\n"


def test_a_damaged_tar_is_told_and_left_alone(cmd, box, far):
    words, directory = far
    cmd.ok(*words, box, "touch", "/x")
    whole = (directory / "changes.tar").read_bytes()
    for data in (whole[:1000], b"hello", b""):
        (directory / "changes.tar").write_bytes(data)
        assert one_line(cmd(*words, box, "true"), "changes.tar", "damaged")
        assert (directory / "changes.tar").read_bytes() == data
    assert set(os.listdir(directory)) == {"changes.tar", "image"}


@pytest.mark.parametrize("value", ["./a:b", "/a:/b", "./d:1x"])
def test_a_directory_that_cannot_be_named_so_is_refused(cmd, box, value):
    assert cmd("sh-run", f"--writable={value}", box, "true").returncode == 125
    assert os.listdir(cmd.home) == [".run"]


def test_odd_directories_work_or_are_told(cmd, box, tree, tmp_path):
    def run(value, image=box, **more):
        return cmd("sh-run", f"--writable={value}", image, "touch", "/x", **more)

    (cmd.home / "real").mkdir()
    (cmd.home / "link").symlink_to("real")
    assert run("./link").returncode == 0
    assert (cmd.home / "real/upper/x").exists()
    (cmd.home / "dangling").symlink_to("none/where")
    assert one_line(run("./dangling"), "No such file or directory")
    assert one_line(run("./none/where"), "No such file or directory")
    (cmd.home / "file").touch()
    assert one_line(run("./file"), "Not a directory")
    odd = cmd.home / "odd ,=\\ \n\udcff"
    odd.mkdir()
    assert run(f"{odd}").returncode == 0
    assert (odd / "upper/x").exists()
    copy = make_tree(tmp_path / "copy")
    assert one_line(run(f"{copy}/kept", copy), "lie in each other")
    assert one_line(run(f"{tmp_path}", copy), "lie in each other")
    assert not (copy / "x").exists()
    assert run("../kept2", cwd=cmd.home / "real").returncode == 0
    assert (cmd.home / "kept2/upper/x").exists()


def test_a_directory_on_a_read_only_file_system_or_of_somebody_elses_is_told(cmd, box):
    script = 'mount -t tmpfs -o ro none near; sh-run --writable=./near/kept "$0" true'
    cmd_directory(cmd)
    assert one_line(cmd("unshare", "-Urm", "sh", "-c", script, box), "Read-only file system")
    if os.getuid():
        assert one_line(cmd("sh-run", "--writable=/usr", box, "true"), "it is not yours")
    else:
        os.chown(cmd.home / "near", 12345, 12345)
        assert one_line(cmd("sh-run", "--writable=./near", box, "true"), "it is not yours")


def test_a_directory_that_hands_down_its_group_gives_it_to_nothing_inside(cmd, box):
    near = cmd_directory(cmd)
    near.chmod(0o2700)
    cmd.ok("sh-run", "--writable=./near", box, "touch", "/x")
    assert (near / "upper").stat().st_mode & 0o7000 == 0
    assert (near / "upper/x").stat().st_gid == os.getgid()


def test_the_ranks_of_a_step_share_the_changes_and_all_of_them_are_saved(cmd, box, kept):
    words, directory = kept
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
    if words[0] == "unshare":  # the ranks have to be in one namespace
        words = ("sh-run", words[-1])
        cmd.ok("sh-run", "--writable=./near/kept", box, "true")
        for path in ("upper", "work", "work/work"):
            (directory / path).chmod(0o700)
        subprocess.run(["rm", "-r", directory / "upper", directory / "work", directory / "lock"], check=True)
        with tarfile.open(directory / "changes.tar", "w"):
            words = ("sh-run", "--writable=./near/kept")
    first = ready(cmd.start(*words, box, "sh", "-c", "echo ready; touch /first", env=cmd.env | step))
    several = [
        cmd.start(*words, box, "sh", "-c", f"sleep 0.3; touch /{n}; ls /first", env=cmd.env | step) for n in range(3)
    ]
    ended = [process.communicate(timeout=30) for process in several]
    assert [process.returncode for process in several] == [0, 0, 0], ended
    first.communicate(timeout=20)
    assert first.returncode == 0
    there = set(saved(directory)) if (directory / "changes.tar").exists() else set(os.listdir(directory / "upper"))
    assert {"first", "0", "1", "2"} <= there


def test_the_supervisor_holds_no_place_inside_and_no_file_of_the_commands(cmd, box, far):
    process = ready(cmd.start(*far[0], box, "sh", "-c", "echo ready; read x"))
    (child,) = [
        int(pid.name)
        for pid in Path("/proc").glob("[0-9]*")
        if until(lambda: True) and parent(pid) == process.pid and comm(pid) == "sh"
    ]
    inside = os.readlink(f"/proc/{child}/ns/mnt")
    assert os.readlink(f"/proc/{process.pid}/ns/mnt") != inside
    assert until(lambda: {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (0, 1)} == {"/dev/null"})
    opened = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
    assert not any(name.startswith("socket:") for name in opened)
    process.communicate(b"\n", timeout=20)


def parent(process):
    try:
        return int((process / "stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def comm(process):
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def image_of(cmd, *words):
    """Return what an image holds: its listing."""
    path = cmd.ok("sh-flatten", *words)
    listed = cmd.ok("unsquashfs", "-lln", path)
    return Path(path), {
        line.split(None, 5)[5]: line.split()[:2] for line in listed.splitlines() if "squashfs-root" in line
    }


def test_an_image_and_its_changes_make_a_new_image(cmd, box, kept, tmp_path):
    words, directory = kept
    script = f"{CHANGE}; mkdir -m 700 /etc/mine; echo s >/etc/mine/shadow; chmod 0 /etc/mine/shadow; chmod 700 /usr"
    cmd.ok(*words, box, "sh", "-c", script)
    new, listed = image_of(cmd, "--changes", directory, "-o", tmp_path / "new.sqfs", box)
    assert listed["squashfs-root/etc/mine/shadow"] == ["----------", "0/0"]
    assert listed["squashfs-root/etc/new"] == ["-rw-r--r--", "0/0"]
    assert listed["squashfs-root/usr"] == ["drwx------", "0/0"]
    assert listed["squashfs-root/home/open/groups"] == ["-rw-r-----", "1000/0"]
    assert not any(name.endswith(("os-release", "usr/lib/x", ".wh.os-release", ".opq")) for name in listed)
    assert cmd.ok("sh-run", new, "sh", "-c", "cat /etc/second; stat -c %h /etc/new; ls /usr/lib") == "new\n2"
    sidecar = json.loads(new.with_suffix(".json").read_text())
    assert (sidecar["manifest"], sidecar["reference"]) == (None, None)
    again = cmd.ok("sh-flatten", "--changes", directory, "-d", tmp_path / "store", box)
    assert Path(again).read_bytes() == new.read_bytes()
    assert one_line(cmd(*words, new, "true"), "another image")


def test_both_forms_make_the_same_image(cmd, box, tmp_path):
    cmd_directory(cmd)
    times = "touch -d '2020-01-01 00:00:00' /etc/new /usr/lib /usr /etc /"
    script = f"{CHANGE}; {times}"
    cmd.ok("sh-run", "--no-home", "--writable=./plain", box, "sh", "-c", script)
    cmd.ok(*FAR, "sh-run", "--no-home", "--writable=./far/kept", box, "sh", "-c", script)
    made = [cmd.ok("sh-flatten", "--tar", "--changes", where, box) for where in ("plain", "near/kept")]
    assert made[0] == made[1]


def test_the_config_of_the_image_comes_along_and_another_image_is_refused(cmd, box, tree, tmp_path):
    (tmp_path / "app/.shoebox").mkdir(parents=True)
    subprocess.run(["cp", "-a", f"{tree}/.", tmp_path / "app"], check=True)
    said = '{"config": {"Env": ["A=image"], "Cmd": ["env"]}}'
    (tmp_path / "app/.shoebox/config.json").write_text(said)
    base = cmd.ok("sh-flatten", tmp_path / "app", "-o", tmp_path / "base.sqfs")
    cmd.ok("sh-run", "--writable=./kept", base, "touch", "/x")
    new = cmd.ok("sh-flatten", "--changes", "kept", "-o", tmp_path / "new.sqfs", base)
    assert "A=image" in cmd.ok("sh-run", new).split("\n")
    assert json.loads((tmp_path / "new.json").read_text())["config"] == json.loads(said)
    done = cmd("sh-flatten", "--changes", "kept", "-o", tmp_path / "no.sqfs", box)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "another image" in done.stderr
    for words in (("--changes", "none", base), ("--changes", tmp_path, base)):
        done = cmd("sh-flatten", *words)
        assert (done.returncode, "there are none" in done.stderr) == (1, True)
    assert cmd("sh-flatten", "--changes", "kept", base, base).returncode == 2


def test_changes_that_are_being_made_are_not_taken(cmd, box, kept):
    words, directory = kept
    cmd.ok(*words, box, "touch", "/x")
    process = ready(cmd.start(*words, box, "sh", "-c", "echo ready; read x"))
    done = cmd("sh-flatten", "--changes", directory, "-o", "new.sqfs", box)
    if words[0] == "unshare":  # the tar is whole, if old
        assert (done.returncode, "warning: process" in done.stderr) == (0, True)
    else:
        assert (done.returncode, "is making some" in done.stderr) == (1, True)
    process.communicate(b"\n", timeout=20)


def test_devices_and_owners_of_the_image_come_along(cmd, tmp_path, tree):
    odd = squash(tree, tmp_path / "odd.sqfs", ("dev/zero", tarfile.CHRTYPE, 0o666, 5, 6, b""))
    cmd.ok("sh-run", "--writable=./kept", odd, "true")
    new = cmd.ok("sh-flatten", "--changes", "kept", "-o", tmp_path / "new.sqfs", odd)
    assert re.search(r"^crw-rw-rw- 5/6 .* squashfs-root/dev/zero$", cmd.ok("unsquashfs", "-lln", new), re.MULTILINE)
