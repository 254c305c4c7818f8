"""sh-run in a job step: the ranks of a node share one container (behaviours 53-58)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.installed import own_bin
from fixtures.rootfs import one_line, servers, until

SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
SHOW = "readlink /proc/self/ns/user && readlink /proc/self/ns/mnt"  # busybox's takes one at a time
SPACES = ("sh", "-c", SHOW)
WAIT = ("sh", "-c", f"{SHOW} && exec sleep 60")
# Reads the memory of another process: Open MPI's and MPICH's way between ranks of a node.
READER = """
import ctypes, sys
class Vec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
libc = ctypes.CDLL(None, use_errno=True)
if len(sys.argv) == 1:
    libc.prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER_ANY, for Yama
    text = ctypes.create_string_buffer(b"from rank 0")
    print(ctypes.addressof(text), flush=True)
    sys.stdin.read()
else:
    got = ctypes.create_string_buffer(11)
    ours, theirs = Vec(ctypes.addressof(got), 11), Vec(int(sys.argv[2]), 11)
    done = libc.process_vm_readv(int(sys.argv[1]), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    print(got.value.decode() if done == 11 else f"errno {ctypes.get_errno()}")
"""


@pytest.fixture
def rank(cmd):
    """Return a function that starts a rank; what still runs at the end is killed."""
    started = []

    def start(*words, **env):
        process = cmd.start("sh-run", *words, env=cmd.env | SLURM | env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def place(cmd):
    return Path(cmd.env["XDG_RUNTIME_DIR"]) / f"shoebox-{os.getuid()}"


def waiting(rank, *words, **env):
    """Start a rank that waits; return it and the namespaces that it is in."""
    process = rank(*words, *WAIT, **env)
    there = [process.stdout.readline().decode().strip() for _ in range(2)]
    assert all(there), process.communicate(timeout=20)[1]
    return process, there


def spaces(cmd, *words, **env):
    """Return the namespaces that a rank is in."""
    return cmd.ok("sh-run", *words, *SPACES, **SLURM | env).split()


def ended(processes):
    """Wait for processes; return their statuses and what they said on stderr."""
    said = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], b"".join(said)


def test_a_hundred_rounds_of_eight_ranks(rank, box):
    for _ in range(100):
        assert ended([rank(box, "true") for _ in range(8)]) == ([0] * 8, b"")


def test_sixteen_ranks_at_once_share_the_namespaces_and_one_server(rank, box):
    ranks = [rank(box, *WAIT) for _ in range(16)]
    seen = {(process.stdout.readline(), process.stdout.readline()) for process in ranks}
    assert len(seen) == 1
    assert len(servers(box)) == 1


def test_the_first_rank_ends_first_and_the_others_notice_nothing(cmd, rank, box):
    first, there = waiting(rank, box)
    second = rank(box, "sh", "-c", "read line; cat /etc/os-release")
    third, also_there = waiting(rank, box)
    assert there == also_there
    assert until(lambda: len(keyed(cmd)) == 3)
    first.kill()
    first.wait()
    assert spaces(cmd, box) == there
    third.kill()
    assert second.communicate(b"\n", timeout=20)[0] == b"NAME=box\n"


def keyed(cmd):
    """Return the members in the only key file."""
    (path,) = (Path(cmd.env["XDG_RUNTIME_DIR"]) / f"shoebox-{os.getuid()}").iterdir()
    return re.findall(rb"(?<=\0)\d+ \d+(?=\0)", path.read_bytes())


def test_a_first_rank_killed_while_it_builds_hinders_nobody(rank, box, place):
    for round_ in range(50):
        first = rank(box, "sleep", "60")
        others = [rank(box, "true") for _ in range(3)]
        time.sleep(0.002 * round_)
        first.kill()
        assert ended(others) == ([0] * 3, b"")
    assert until(lambda: not servers(box))
    assert len(list(place.iterdir())) == 1


def test_a_first_rank_that_fails_leaves_the_others_to_fail_as_clearly(rank, tmp_path):
    (tmp_path / "bad.sqfs").write_bytes(b"hsqs" + bytes(4096))
    statuses, said = ended([rank(tmp_path / "bad.sqfs", "true") for _ in range(4)])
    assert statuses == [125] * 4
    assert said.count(b"\n") == 4


def test_a_command_that_is_not_there_is_127_for_every_rank(rank, box):
    assert ended([rank(box, "nosuch") for _ in range(4)])[0] == [127] * 4


@pytest.mark.parametrize(
    ("words", "env"),
    [
        ((), {"SLURM_STEP_ID": "1"}),
        ((), {"SLURM_JOB_ID": "2"}),
        (("-v", "/usr:/mnt"), {}),
        (("--no-home",), {}),
        (("--writable",), {}),
        (("--no-join",), {}),
    ],
)
def test_another_step_or_other_mounts_are_independent(cmd, rank, box, words, env):
    _, there = waiting(rank, box)
    other, elsewhere = waiting(rank, *words, box, **env)
    assert elsewhere != there
    other.kill()
    other.wait()
    assert spaces(cmd, box) == there


def test_another_image_is_independent(cmd, rank, box, bare):
    _, there = waiting(rank, box)
    assert spaces(cmd, "--image", "/") != there
    assert cmd("sh-run", bare, "/sh", "-c", ":", **SLURM).returncode == 0


def test_a_job_step_of_no_batch_system_is_the_parents_children(cmd, box):
    script = f"for i in 1 2; do sh-run %s {box} sh -c '{SHOW}; sleep 1' & done; wait"
    together = cmd.ok("sh", "-c", script % "--join").split()
    assert len(set(together)) == 2
    hydra = cmd.ok("sh", "-c", script % "", PMI_RANK="0").split()
    assert len(set(hydra)) == 2
    apart = cmd.ok("sh", "-c", script % "").split()
    assert len(set(apart)) == 4
    (dead,) = (cmd.home / ".run").glob("shoebox-*/*")
    assert dead.is_file()


def test_ranks_read_each_others_memory(cmd, rank):
    words = ("--image", "/", "/usr/bin/python3", "-IS", "-c", READER)
    first = rank(*words)
    address = first.stdout.readline().decode().strip()
    assert cmd.ok("sh-run", *words, str(first.pid), address, **SLURM) == "from rank 0"
    if os.getuid():
        assert cmd.ok("sh-run", "--no-join", *words, str(first.pid), address, **SLURM) == "errno 1"


def test_who_joins_gets_the_same_environment_directory_and_words(cmd, rank, box, tmp_path):
    (tmp_path / "box.sqfs").symlink_to(box)
    said = {"Env": ["A=image", "PATH=/bin:/usr/bin"], "Entrypoint": ["sh", "-c"], "Cmd": ["env; pwd; id; umask"]}
    (tmp_path / "tree/.shoebox").mkdir(parents=True)
    subprocess.run(["cp", "-a", f"{box.parent}/box/.", tmp_path / "tree"], check=True)
    (tmp_path / "tree/.shoebox/config.json").write_text(json.dumps({"config": said}))
    (cmd.home / "sub").mkdir()
    alone, _ = waiting(rank, tmp_path / "tree")
    for words, options in (
        ((), {}),
        ((), {"cwd": cmd.home / "sub"}),
        ((), {"TMPDIR": "/nowhere", "LD_PRELOAD": "", "PYTHONPATH": "/x", "B": "own"}),
        (("--env", "C=1", "--workdir", "/etc"), {}),
        (("--clearenv",), {}),
        (("--entrypoint=/bin/env",), {}),
    ):
        both = [cmd.ok("sh-run", *more, *words, tmp_path / "tree", **SLURM | options) for more in ((), ("--no-join",))]
        assert both[0] == both[1]
    assert alone.poll() is None


@pytest.mark.evil(66)
def test_who_joins_is_as_confined_as_the_first(cmd, rank, box):
    waiting(rank, box)
    status = cmd.ok("sh-run", box, "cat", "/proc/self/status", **SLURM)
    assert "NoNewPrivs:\t1" in status
    assert os.getuid() == 0 or "CapEff:\t0000000000000000" in status
    assert cmd.ok("sh-run", box, "ls", "/proc/self/fd", **SLURM).split() == ["0", "1", "2", "3"]  # 3 is ls's own
    assert cmd("sh-run", box, "mount", "-t", "tmpfs", "none", "/mnt", **SLURM).returncode != 0


def test_who_joins_from_where_is_not_inside_works_elsewhere_with_a_warning(cmd, rank, box):
    waiting(rank, box)
    done = cmd("sh-run", box, "pwd", cwd=Path("/var"), **SLURM)
    assert done.stdout == "/var\n"  # the image has one
    done = cmd("sh-run", box, "pwd", cwd=Path("/opt"), **SLURM)
    assert (done.stdout, done.stderr.count("\n")) == ("/\n", 1)
    assert "not inside" in done.stderr
    assert cmd("sh-run", "-q", box, "pwd", cwd=Path("/opt"), **SLURM).stderr == ""
    assert one_line(cmd("sh-run", "--workdir", "/none", box, "pwd", **SLURM), "no such directory inside")


def test_what_one_rank_writes_all_see(cmd, rank, box):
    waiting(rank, "--writable", box)
    cmd.ok("sh-run", "--writable", box, "sh", "-c", "echo shared >/etc/new", **SLURM)
    assert cmd.ok("sh-run", "--writable", box, "cat", "/etc/new", **SLURM) == "shared"


def test_explain_tells_who_would_be_joined_and_joins_nobody(cmd, rank, box, place):
    assert "as the first" in cmd.ok("sh-run", "--explain", box, **SLURM)
    assert not place.exists()
    first, _ = waiting(rank, box)
    text = cmd.ok("sh-run", "--explain", box, **SLURM)
    assert re.search(rf"^join +the container of {first.pid} +# Slurm step 1\.0", text, re.MULTILINE)
    assert len(keyed(cmd)) == 1
    text = cmd.ok("sh-run", "--explain", "--no-join", box, **SLURM)
    assert re.search(r"^join +nobody +# --no-join$", text, re.MULTILINE)
    assert re.search(r"^join +nobody +# no job step", cmd.ok("sh-run", "--explain", box), re.MULTILINE)


def test_a_daemon_keeps_its_root_and_the_server_ends_with_it(cmd, rank, box):
    first, _ = waiting(rank, box)
    go, copy = cmd.home / "go", cmd.home / "copy"
    script = f"setsid sh -c 'exec >&- 2>&- <&-; until [ -e {go} ]; do sleep 0.05; done; cp /etc/os-release {copy}' &"
    cmd.ok("sh-run", box, "sh", "-c", script, **SLURM)
    first.kill()
    first.wait()
    serving = servers(box)
    go.touch()
    assert len(serving) == 1
    assert until(lambda: copy.exists() and copy.read_text() == "NAME=box\n")
    assert until(lambda: not servers(box))


def test_a_rank_that_has_left_for_other_namespaces_is_not_followed(cmd, rank, box):
    first = rank(box, "unshare", "-U", "-m", *WAIT)
    left = [first.stdout.readline().decode().strip() for _ in range(2)]
    joined = spaces(cmd, box)
    assert set(joined).isdisjoint(left)


def forge(place, change):
    (path,) = place.iterdir()
    data = path.read_bytes()
    path.unlink()
    change(path, data)


def born(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]


FORGED = {
    "garbage": lambda path, _: path.write_bytes(os.urandom(1000)),
    "nothing": lambda path, _: path.touch(),
    "a torn file": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "a huge file": lambda path, _: (path.touch(), os.truncate(path, 1 << 40)),
    "a reused pid": lambda path, data: path.write_bytes(re.sub(rb" \d+\0$", b" 1\0", data)),
    "a process that was never inside": lambda path, data: path.write_bytes(
        re.sub(rb"\d+ \d+\0$", f"{os.getpid()} {born(os.getpid())}\0".encode(), data)
    ),
    "another user's process": lambda path, data: path.write_bytes(
        re.sub(rb"\d+ \d+\0$", f"1 {born(1)}\0".encode(), data)
    ),
    "impossible pids": lambda path, data: path.write_bytes(data + b"0 0\0-1 5\0" + b"9" * 300 + b" 1\0"),
}


@pytest.mark.parametrize("how", FORGED)
@pytest.mark.evil(68)
def test_a_forged_key_is_made_anew(cmd, rank, box, place, how):
    old, there = waiting(rank, box)
    forge(place, FORGED[how])
    if how == "impossible pids":  # the true one is still there
        assert spaces(cmd, box) == there
        return
    _, anew = waiting(rank, box)
    assert anew != there
    assert spaces(cmd, box) == anew
    assert old.poll() is None


@pytest.mark.parametrize("how", ["symlink", "fifo", "directory"])
@pytest.mark.evil(68)
def test_what_is_no_file_in_place_of_the_key_is_told_and_harms_nothing(cmd, rank, box, place, tmp_path, how):
    make = {"symlink": lambda p, _: p.symlink_to(tmp_path / "x"), "fifo": lambda p, _: os.mkfifo(p)}
    _, there = waiting(rank, box)
    forge(place, make.get(how, lambda path, _: path.mkdir()))
    done = cmd("sh-run", box, *SPACES, **SLURM)
    assert done.returncode == 0
    assert done.stdout.split() != there
    assert done.stderr.startswith("sh-run: warning: not joining other ranks: cannot use ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_crowd_of_dead_members_is_cleared_away(cmd, rank, box, place):
    _, there = waiting(rank, box)
    (path,) = place.iterdir()
    data = path.read_bytes()
    member = re.search(rb"\d+ \d+\0$", data)[0]
    path.write_bytes(data[: -len(member)] + b"1073741824 5\0" * 1000 + member)
    assert spaces(cmd, box) == there
    assert len(keyed(cmd)) == 2


def test_keys_of_what_has_ended_are_swept_away(cmd, box, place):
    for number in range(3):
        cmd.ok("sh-run", box, "true", **SLURM | {"SLURM_STEP_ID": str(number)})
    assert len(list(place.iterdir())) == 1


@pytest.mark.evil(68)
def test_the_umask_opens_nothing_to_others(cmd, box, place):
    done = subprocess.run(
        ["sh", "-c", 'umask 000; exec sh-run "$0" sh -c umask', box],
        env=cmd.env | SLURM,
        cwd=cmd.home,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"0000\n"
    (path,) = place.iterdir()
    assert (place.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.root
@pytest.mark.evil(68)
def test_a_directory_of_another_users_in_the_way_is_passed_over(cmd, box, place):
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    cmd.ok("sh-run", box, "true", **SLURM)
    assert list(place.iterdir()) == []
    for made in Path("/dev/shm/shoebox-0").iterdir():
        made.unlink()


@pytest.mark.root
@pytest.mark.evil(68)
def test_a_rank_starts_though_all_directories_on_the_node_are_another_users(cmd, box, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    lacking = [top for top in map(Path, ("/dev/shm/shoebox-0", "/tmp/shoebox-0")) if not top.exists()]
    script = 'for top in /dev/shm /tmp; do mkdir -p $top/shoebox-0; mount --bind "$0" $top/shoebox-0; done; exec "$@"'
    words = ("unshare", "-m", "sh", "-c", script, theirs, "sh-run", box, "cat", "/etc/os-release")
    done = cmd(*words, **SLURM, XDG_RUNTIME_DIR=None)
    for made in lacking:
        made.rmdir()
    assert (done.returncode, done.stdout) == (0, "NAME=box\n"), done.stderr
    assert done.stderr.startswith("sh-run: warning: not joining other ranks: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.root
def test_another_users_rank_of_the_same_step_is_not_joined(cmd, box, tmp_path):
    as_other = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "--"]
    box.parent.chmod(0o755)
    env = cmd.env | SLURM | {"HOME": "/", "XDG_RUNTIME_DIR": "/none"}
    image = ["--image", "/", *SPACES]
    with subprocess.Popen(["sh-run", "--image", "/", *WAIT], env=env, stdout=subprocess.PIPE) as ours:
        there = [ours.stdout.readline().decode().strip() for _ in range(2)]
        theirs = subprocess.run([*as_other, "sh-run", *image], env=env, capture_output=True, text=True, check=False)
        mine = subprocess.run(["sh-run", *image], env=env, capture_output=True, text=True, check=True)
        ours.kill()
    assert mine.stdout.split() == there
    apart = set(theirs.stdout.split()).isdisjoint(there)
    assert apart or theirs.returncode == 126  # 126: our copy of sh-run is not theirs to read


@pytest.mark.parametrize(("command", "option"), [("sh-run", "--image"), ("shifter", "-i")])
def test_who_joins_opens_no_file_but_pythons_ours_and_the_key(cmd, rank, box, prefix, place, tmp_path, command, option):
    """A gate: a thousand ranks must not ask a file system, or NSS, a thousand times."""
    waiting(rank, box)
    opened = "trace=open,openat,openat2,setns,execve,connect"
    cmd.ok("strace", "-o", tmp_path / "trace", "-e", opened, own_bin(prefix) / command, option, box, "true", **SLURM)
    lines = (tmp_path / "trace").read_text().splitlines()
    inside = max(number for number, line in enumerate(lines) if line.startswith("setns(") and line.endswith("= 0"))
    runs = next(number for number, line in enumerate(lines) if number > inside and line.startswith("execve("))
    before = [line for line in lines[:inside] if line.startswith("open") and "ENOENT" not in line]
    paths = [re.search(r'"([^"]*)"', line)[1] for line in before]
    allowed = ("/usr/lib/", "/lib/", "/lib64/", "/usr/bin/python", "/etc/ld.so", "/usr/local/lib/python", "/proc/")
    allowed += (str(prefix), os.path.dirname(place), "/usr/share/locale", "/etc/localtime")  # which Python itself reads
    relative = {place.name, *(path.name for path in place.iterdir()), "stat", "ns/user", "ns/mnt"}
    assert [path for path in paths if not path.startswith(allowed) and path not in relative] == []
    assert not any(line.startswith("connect(") for line in lines)
    assert len([line for line in lines[inside:runs] if line.startswith("open")]) == 1  # the current directory
    imported = {os.path.basename(path).split(".")[0] for path in paths if path.startswith(str(prefix))}
    assert imported.isdisjoint({"plan", "probe", "identity", "store", "sidecar", "enter", "holder", "superblock"})
    assert not any("json" in path or "nss" in path for path in paths)


def test_a_signal_while_waiting_for_the_first_ends_the_rank(cmd, rank, box, place):
    waiting(rank, box)
    (path,) = place.iterdir()
    path.unlink()
    blocker = subprocess.Popen(["python3", "-c", BLOCK, path], stdout=subprocess.PIPE)
    blocker.stdout.readline()
    second = rank(box, "true")
    time.sleep(0.5)
    assert second.poll() is None
    second.send_signal(signal.SIGINT)
    assert second.wait(10) == -signal.SIGINT
    third = rank(box, "true")
    blocker.kill()
    blocker.communicate()
    assert ended([third]) == ([0], b"")


BLOCK = """
import os, sys, time
os.lockf(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600), os.F_LOCK, 0)
print(flush=True)
time.sleep(60)
"""
