"""sh-run: a command runs in an image as it would outside, and nothing stays (behaviours 39-42, 46-52a)."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from fixtures.rootfs import PLACES, make_tree, one_line, servers, sif, squash, until, words_of

SLEEP = ("sleep", "60")


@pytest.mark.parametrize("way", ["fuse", "unpack", "directory"])
def test_a_command_runs_in_an_image_whatever_the_way(cmd, box, tree, way):
    words = [tree] if way == "directory" else ["--mount", way, box]
    assert cmd.ok("sh-run", *words, "--", "cat", "/etc/os-release") == "NAME=box"


@pytest.mark.parametrize("way", ["fuse", "unpack", "directory"])
def test_the_root_is_read_only(cmd, box, tree, way):
    words = [tree] if way == "directory" else ["--mount", way, box]
    done = cmd("sh-run", *words, "touch", "/x")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert not (tree / "x").exists()


def test_writable_lets_root_owned_files_change_and_leaves_nothing_behind(cmd, box):
    change = "rm -r /usr/lib && mkdir /usr/lib && echo new > /etc/os-release && cat /etc/os-release && ls -d /usr/lib"
    assert cmd.ok("sh-run", "--writable", box, "sh", "-c", change) == "new\n/usr/lib"
    assert cmd.ok("sh-run", "--writable", box, "cat", "/etc/os-release") == "NAME=box"


def test_writable_works_over_a_directory_without_touching_it(cmd, tree):
    cmd.ok("sh-run", "--writable", tree, "sh", "-c", "echo new > /etc/os-release; touch /x")
    assert (tree / "etc/os-release").read_text() == "NAME=box\n"
    assert not (tree / "x").exists()


def test_writable_has_a_size(cmd, box):
    done = cmd("sh-run", "--writable=1m", box, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=2")
    assert "No space left" in done.stderr
    assert one_line(cmd("sh-run", "--writable=much", box, "true"), "--writable=much")


@pytest.mark.parametrize("status", [0, 1, 2, 77, 125, 255])
def test_the_exit_status_is_the_commands(cmd, box, status):
    assert cmd("sh-run", box, "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE])
def test_a_command_that_a_signal_kills_is_seen_to_die_of_it(cmd, box, number):
    assert cmd("sh-run", box, "sh", "-c", f"kill -{number} $$").returncode == -number


def test_a_missing_command_is_127_and_one_that_cannot_run_126(cmd, box):
    assert one_line(cmd("sh-run", box, "nosuch"), "'nosuch'", status=127)
    assert one_line(cmd("sh-run", box, "/bin/nosuch"), "'/bin/nosuch'", status=127)
    assert one_line(cmd("sh-run", box, ""), "''", status=127)
    assert one_line(cmd("sh-run", box, "plain"), "not an executable file", status=126)
    assert one_line(cmd("sh-run", box, "/etc"), "'/etc'", "not an executable file", status=126)
    assert one_line(cmd("sh-run", box, "strange"), "/no/such/interpreter", status=126)
    assert one_line(cmd("sh-run", box, "foreign"), "another kind of machine", status=126)


def test_a_command_that_its_mode_bars_names_the_remedy(cmd, tree, tmp_path):
    image = squash(tree, tmp_path / "x.sqfs", ("bin/locked", tarfile.REGTYPE, 0o700, 1000, 1000, b"#!/bin/sh\n"))
    assert one_line(cmd("sh-run", image, "locked"), "Permission denied", "sh-flatten --readable", status=126)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command(cmd, box, number):
    script = f"trap 'echo got; exit 7' {number}; echo ready; while :; do sleep 0.05; done"
    process = cmd.start("sh-run", box, "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"got\n", 7)


def test_a_background_child_keeps_its_root_and_the_server_ends_with_it(cmd, box):
    go = cmd.home / "go"
    script = f"(exec >&- 2>&- <&-; while [ ! -e {go} ]; do sleep 0.05; done; cp /etc/os-release {cmd.home}/copy) &"
    cmd.ok("sh-run", box, "sh", "-c", script)
    time.sleep(0.3)
    assert servers(box) != []
    go.touch()
    assert until(lambda: (cmd.home / "copy").exists() and (cmd.home / "copy").read_text() == "NAME=box\n")
    assert until(lambda: not servers(box))


def test_a_daemon_that_has_left_its_session_keeps_its_root(cmd, box):
    script = f"setsid sh -c 'exec >&- 2>&- <&-; sleep 0.5; cp /etc/os-release {cmd.home}/copy' &"
    cmd.ok("sh-run", box, "sh", "-c", script)
    assert until((cmd.home / "copy").exists)
    assert until(lambda: not servers(box))


def test_kill_9_at_any_moment_leaves_no_process_no_mount_and_no_file(cmd, box):
    before = Path("/proc/self/mounts").read_text()
    store = os.listdir(box.parent)
    for round_ in range(50):
        process = cmd.start("sh-run", box, *SLEEP, stdin=subprocess.DEVNULL, process_group=0)
        time.sleep(0.001 * round_)
        process.kill()
        process.communicate()
    assert until(lambda: not servers(box))
    assert Path("/proc/self/mounts").read_text() == before
    assert os.listdir(box.parent) == store
    assert os.listdir(cmd.home) == [".run"]


def test_kill_9_while_an_image_is_being_unpacked_leaves_nothing(cmd, box):
    for round_ in range(10):
        process = cmd.start("sh-run", "--mount=unpack", box, *SLEEP, stdin=subprocess.DEVNULL)
        time.sleep(0.01 * round_)
        process.kill()
        process.communicate()
    assert until(lambda: not any(b"unsquashfs" in words[0] for words in words_of().values()))


def test_when_the_server_dies_the_command_gets_an_error_and_does_not_hang(cmd, box):
    script = "echo ready; read x; cat /etc/os-release || echo failed"
    process = cmd.start("sh-run", box, "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    for pid in servers(box):
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not servers(box))
    out, _ = process.communicate(b"\n", timeout=20)
    assert b"NAME=box" not in out


@pytest.mark.evil(65)
def test_the_server_is_no_child_of_the_command_and_holds_none_of_its_files(cmd, box):
    assert cmd.ok("sh-run", box, "sh", "-c", "sleep 0.1 & wait; echo done", timeout=20) == "done"
    read, write = os.pipe()
    process = cmd.start("sh-run", box, "sh", "-c", "echo ready; exec sleep 60", pass_fds=(write,))
    os.close(write)
    assert process.stdout.readline() == b"ready\n"
    for pid in servers(box):
        opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert not any(name.startswith("pipe:") for name in opened)
        assert os.getsid(pid) not in (os.getsid(0), os.getsid(process.pid))
    assert os.read(read, 1) == b""
    os.close(read)
    process.kill()
    process.communicate()


def test_stdin_and_stdout_pass_through_in_a_pipe(cmd, box):
    data = "".join(f"line {i}\n" for i in range(20000))
    assert cmd("sh-run", box, "cat", stdin=data).stdout == data
    assert cmd.ok("sh", "-c", f"echo a | sh-run {box} cat | sh-run {box} tr a b") == "b"


def test_a_reader_that_goes_away_ends_the_command_quietly(cmd, box):
    assert cmd.ok("sh", "-c", f"sh-run {box} yes | head -n 1") == "y"


def test_a_terminal_stays_a_terminal(cmd, box):
    done = cmd("script", "-qec", f"sh-run {box} sh -c 'test -t 0 && test -t 1 && tty'", "/dev/null")
    assert (done.returncode, done.stdout.startswith("/dev/pts/")) == (0, True)


def test_closed_standard_descriptors_are_survived(cmd, box):
    assert cmd("sh", "-c", f"sh-run {box} true <&- >&- 2>&-").returncode == 0
    assert cmd.ok("sh", "-c", f"sh-run {box} cat /etc/os-release <&-") == "NAME=box"


def test_two_images_run_at_once_and_one_inside_another(cmd, box, tree, tmp_path):
    other = make_tree(tmp_path / "other")
    (other / "etc/os-release").write_text("NAME=other\n")
    second = squash(other, tmp_path / "other.sqfs")
    first = cmd.start("sh-run", box, "sh", "-c", "read x; cat /etc/os-release")
    assert cmd.ok("sh-run", second, "cat", "/etc/os-release") == "NAME=other"
    assert first.communicate(b"\n", timeout=20)[0] == b"NAME=box\n"
    inner = f"sh-run {box} cat /etc/os-release"
    assert cmd.ok("sh-run", "/", "sh", "-c", f"PATH={cmd.env['PATH']}; {inner}") == "NAME=box"


def test_ids_inside_are_those_outside(cmd, box):
    out = cmd.ok("sh-run", box, "sh", "-c", "id -u; id -g; touch ~/mine; stat -c %u:%g ~/mine")
    assert out.split() == [str(os.getuid()), str(os.getgid()), f"{os.getuid()}:{os.getgid()}"]
    about = (cmd.home / "mine").stat()
    assert (about.st_uid, about.st_gid) == (os.getuid(), os.getgid())


def test_names_resolve_inside_and_the_images_own_stay(cmd, box):
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid{os.getuid()}"
    assert cmd.ok("sh-run", box, "sh", "-c", "id -un; stat -c %U ~").split() == [name, name]
    accounts = cmd.ok("sh-run", box, "cat", "/etc/passwd", "/etc/group")
    assert "images:x:1000:1000" in accounts
    if name != "root":  # whom the image knows
        home = cmd.ok("sh-run", box, "sh", "-c", f"grep ^{name}: /etc/passwd | cut -d: -f6")
        assert home == str(cmd.home)


def test_without_user_home_and_path_it_works(cmd, box):
    done = cmd("/usr/bin/env", "-i", cmd.env["PATH"].split(":")[0] + "/sh-run", box, "sh", "-c", "echo $PATH; id -u")
    assert done.stdout.split() == ["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", str(os.getuid())]


def test_the_current_directory_is_kept_else_the_images_else_the_root(cmd, box, tree, tmp_path):
    work = tmp_path / "some where"
    work.mkdir()
    assert cmd.ok("sh-run", box, "pwd", cwd=work) == str(work)
    assert cmd.ok("sh-run", box, "sh", "-c", "echo $PWD", cwd=work) == str(work)
    assert cmd.ok("sh-run", box, "pwd", cwd="/usr/bin") == "/usr/bin"
    done = cmd("sh-run", box, "pwd", cwd="/usr/share")
    assert (done.stdout, done.stderr.count("\n")) == ("/\n", 1)
    assert "/usr/share" in done.stderr
    assert cmd("sh-run", "--quiet", box, "pwd", cwd="/usr/share").stderr == ""
    assert cmd.ok("sh-run", "--workdir", "/usr/lib", box, "pwd") == "/usr/lib"
    assert one_line(cmd("sh-run", "--workdir", "/none", box, "pwd"), "'/none'")
    assert one_line(cmd("sh-run", "--workdir", "etc", box, "pwd"), "absolute")


def test_a_current_directory_that_was_removed_is_no_obstacle(cmd, box, tmp_path):
    done = cmd("sh", "-c", f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec sh-run {box} pwd")
    assert (done.returncode, done.stdout) == (0, "/\n")


def test_an_image_without_any_directory_works(cmd, bare):
    out = cmd.ok("sh-run", bare, "/sh", "-c", "/busybox id -u; /busybox ls /dev/null /proc/self/exe; /busybox pwd")
    assert out.split() == [str(os.getuid()), "/dev/null", "/proc/self/exe", str(cmd.home)]


@pytest.mark.evil(67)
def test_a_directory_a_link_or_a_fifo_in_place_of_a_file_is_told_and_survived(cmd, tmp_path):
    odd = make_tree(tmp_path / "odd")
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (odd / "etc" / name).unlink()
    (odd / "etc/passwd").mkdir()
    os.mkfifo(odd / "etc/group")
    (odd / "etc/hosts").symlink_to("hosts")
    (odd / "etc/resolv.conf").mkdir()
    for image in (odd, squash(odd, tmp_path / "odd.sqfs")):
        done = cmd("sh-run", image, "true", timeout=20)
        assert done.returncode == 0
        for name in ("passwd", "group", "hosts", "resolv.conf"):
            assert f"'/etc/{name}'" in done.stderr


@pytest.mark.evil(67)
def test_a_huge_passwd_is_not_read(cmd, tmp_path):
    odd = make_tree(tmp_path / "odd")
    with (odd / "etc/passwd").open("wb") as file:
        file.truncate(10 << 30)
    done = cmd("sh-run", odd, "id", "-u", timeout=20)
    assert (done.returncode, done.stdout) == (0, f"{os.getuid()}\n")
    assert "larger than 1 MiB" in done.stderr


def test_what_is_not_an_image_is_told_apart(cmd, box, tmp_path):
    def made(name, data):
        (tmp_path / name).write_bytes(data)
        return cmd("sh-run", tmp_path / name, "true")

    whole = box.read_bytes()
    assert one_line(made("empty.sqfs", b""), "empty")
    assert one_line(made("cut.sqfs", whole[:5000]), "cut off")
    assert one_line(made("gzip.sqfs", b"\x1f\x8b" + bytes(500)), "gzip")
    assert one_line(made("text.sqfs", b"hello"), "not a squashfs")
    assert one_line(cmd("sh-run", tmp_path / "none.sqfs", "true"), "none.sqfs", "No such file")
    assert one_line(cmd("sh-run", "/dev/null", "true"), "neither a file nor a directory")
    assert one_line(cmd("sh-run", "no-such-image:1", "true"), "sh-pull no-such-image:1 | sh-flatten | sh-stage")


@pytest.mark.parametrize("way", ["fuse", "unpack"])
def test_a_damaged_image_gives_one_line_in_the_words_of_the_tool(cmd, box, tmp_path, way):
    whole = bytearray(box.read_bytes())
    used = int.from_bytes(whole[40:48], "little")
    inodes = int.from_bytes(whole[64:72], "little")
    whole[inodes:used] = os.urandom(used - inodes)  # the superblock stays as it is
    (tmp_path / "bad.sqfs").write_bytes(whole)
    done = cmd("sh-run", f"--mount={way}", tmp_path / "bad.sqfs", "true", timeout=20)
    assert one_line(done, "bad.sqfs" if way == "fuse" else "unsquashfs")


ACCESS = "for f do for m in r w x; do test -$m \"$f\" && printf $m || printf -; done; printf ' '; done"


@pytest.mark.skipif(
    os.getuid() == 0, reason="root has a capability for its own files, and busybox thinks it may anything"
)
def test_access_is_the_same_by_every_way(cmd, box):
    words = ("sh", "-c", ACCESS, "sh", *PLACES)
    served = cmd.ok("sh-run", "--mount=fuse", "--writable", box, *words)
    assert served == "rwx rwx rw- --- --- r-x --- r-- --x r-- rwx rw- "
    assert cmd.ok("sh-run", "--mount=unpack", "--writable", box, *words) == served
    kept = cmd.ok("sh-run", "--mount=fuse", box, *words)
    assert cmd.ok("sh-run", "--mount=unpack", box, *words) == kept


def test_without_fuse_the_image_is_unpacked_and_explain_says_why(cmd, box):
    plan = json.loads(cmd.ok("sh-run", "--explain=json", "--mount=unpack", box))
    assert plan["way"]["name"] == "unpack"
    one_line(cmd("sh-run", "--mount=kernel", box, "true"), "sh-mount is not installed")
    one_line(cmd("sh-run", "--mount=magic", box, "true"), "'magic'")


def test_the_image_may_be_named_by_an_option_or_the_environment(cmd, box, tree):
    assert cmd.ok("sh-run", "--image", box, "cat", "/etc/os-release") == "NAME=box"
    assert cmd.ok("sh-run", "cat", "/etc/os-release", SHOEBOX_IMAGE=str(box)) == "NAME=box"
    assert cmd.ok("sh-run", tree, "--", "cat", "/etc/os-release", SHOEBOX_IMAGE="/none.sqfs") == "NAME=box"
    assert one_line(cmd("sh-run"), "no IMAGE given")


def test_an_image_with_an_odd_or_a_long_name_works(cmd, box, tmp_path):
    odd = tmp_path / "a b\n,c=d\udcff.sqfs"
    os.link(box, odd)
    assert cmd.ok("sh-run", odd, "cat", "/etc/os-release") == "NAME=box"
    assert cmd.ok("sh-run", "--mount=unpack", odd, "cat", "/etc/os-release") == "NAME=box"
    deep = tmp_path / ("d" * 200) / ("e" * 200) / ("f" * 250 + ".sqfs")
    deep.parent.mkdir(parents=True)
    os.link(box, deep)
    assert (
        cmd.ok("sh-run", "-v", f"{deep.parent}:/{'g' * 250}/{'h' * 250}", deep, "cat", "/etc/os-release") == "NAME=box"
    )


def test_a_sif_file_runs_where_its_squashfs_begins(cmd, box, tmp_path):
    sif(box, tmp_path / "box.sif")
    assert cmd.ok("sh-run", tmp_path / "box.sif", "cat", "/etc/os-release") == "NAME=box"
    assert cmd.ok("sh-run", "--mount=unpack", tmp_path / "box.sif", "cat", "/etc/os-release") == "NAME=box"
    (tmp_path / "cut.sif").write_bytes((tmp_path / "box.sif").read_bytes()[:40000])
    assert one_line(cmd("sh-run", tmp_path / "cut.sif", "true"), "cut off")


def test_an_image_is_found_by_name_and_a_name_that_moves_changes_no_running_job(cmd, box, tree, tmp_path):
    store = tmp_path / "store"
    other = make_tree(tmp_path / "other")
    (other / "etc/os-release").write_text("NAME=other\n")
    cmd.ok("sh-flatten", tree, "-d", store)
    first = next(store.glob("sha256-*.sqfs"))
    name = store / "docker.io/library/box/1.sqfs"
    name.parent.mkdir(parents=True)
    name.symlink_to(first)
    env = {"SHOEBOX_PATH": f"{tmp_path}/none:{store}"}
    running = cmd.start("sh-run", "box:1", "sh", "-c", "echo; read x; cat /etc/os-release", env=cmd.env | env)
    running.stdout.readline()
    cmd.ok("sh-flatten", other, "-d", store)
    name.unlink()
    name.symlink_to(next(path for path in store.glob("sha256-*.sqfs") if path != first))
    assert cmd.ok("sh-run", "box:1", "cat", "/etc/os-release", **env) == "NAME=other"
    assert cmd.ok("sh-run", first.stem.replace("-", ":", 1), "cat", "/etc/os-release", **env) == "NAME=box"
    assert running.communicate(b"\n", timeout=20)[0] == b"NAME=box\n"


@pytest.mark.root
def test_supplementary_groups_keep_file_access_and_show_as_65534(cmd):
    with tempfile.TemporaryDirectory() as where:
        os.chmod(where, 0o755)
        (Path(where) / "theirs").write_text("group\n")
        os.chown(f"{where}/theirs", 0, 4242)
        os.chmod(f"{where}/theirs", 0o640)
        member = ("setpriv", "--reuid=65533", "--regid=65533", "--groups=4242", "--")
        words = ("sh-run", "/", "sh", "-c", "id -G; cat theirs")
        assert cmd.ok(*member, *words, cwd=Path(where), HOME="/", TMPDIR="/tmp") == "65533 65534\ngroup"
        stranger = ("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--")
        assert "Permission denied" in cmd(*stranger, *words, cwd=Path(where), HOME="/").stderr
