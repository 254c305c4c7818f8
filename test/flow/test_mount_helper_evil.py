"""sh-mount against those who call it: nothing they do to it, and no system call that fails, leaves them a privilege.

Behaviours 71, 72, 74 and 75.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.helper import ACCOUNT, GROUP, PYTHON, USER, plan, said
from fixtures.installed import TREE
from fixtures.rootfs import make_tree, until, words_of

root = pytest.mark.root
evil = pytest.mark.evil

NS_GET_USERNS = 0xB701
# Prints what the setuid way left of itself; busybox's own words, as the image has nothing else.
LOOK = "cat /proc/self/status; echo ==; readlink /proc/$$/fd/*; echo ==; cat /proc/self/mountinfo"
MOUNTS = (("w", "/proc", "/proc"), ("R", "/etc", "/etc"))


# ---- Every system call failing, one after the other ----


@dataclass(frozen=True)
class Call:
    """A system call of sh-mount's. when: its number among those of this name, from the wrapper's begin on."""

    name: str
    when: int
    line: str
    ours: bool  # not the loader's, before main


def calls(trace):
    """Return all of sh-mount's calls, but for those that cannot fail."""
    seen: Counter[str] = Counter()
    found = []
    begun = main = False
    for line in trace.splitlines():
        name = line.partition("(")[0]
        if not re.fullmatch(r"[a-z0-9_]+", name):
            continue
        if name == "execve" and begun and line.endswith("= 0"):
            break  # what follows is the command's
        seen[name] += 1
        main = main or (begun and name == "getresuid")
        if begun and name not in ("getuid", "getgid", "getpid", "exit_group"):
            found.append(Call(name, seen[name], line, main))
        begun = begun or (name == "execve" and "sh-mount" in line)
        if main and line.startswith("write(1<"):
            break  # what follows is waiting
    return found


def whole_trace(site, start):
    """Return strace's whole output of one run, wrapper included."""
    out = site.where / "trace"
    start(["strace", "-qq", "-y", "-o", os.fspath(out)])
    text = out.read_text()
    out.unlink()
    return text


def injected(name, error, when):
    return ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:{error}:when={when}"]


def mount_table():
    return Path("/proc/self/mountinfo").read_text()


def check_kernel(site, words):
    """Start sh-mount; if it says that it is ready, check that it has kept every promise; return whether it was."""
    process = site.start(site.helper, "kernel", site.image, wrap=words)
    ready = bool(process.stdout.readline())
    try:
        if ready:
            check_ready(Path(f"/proc/{children(process.pid)[0]}"))
    finally:
        _, err = process.communicate()
    assert ready or process.returncode in STOPPED, (process.returncode, err)
    return ready


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def check_ready(proc):
    check_dropped(proc)
    image = [line for line in (proc / "mountinfo").read_text().splitlines() if " squashfs " in line]
    assert all(line.split()[5].startswith("ro,nosuid,nodev") for line in image)
    assert len(image) == 1


def check_dropped(proc):
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
    assert status["Groups"].split() == [str(GROUP)]
    assert status["NoNewPrivs"] == "1"
    assert sorted(path.name for path in (proc / "fd").iterdir()) == ["0", "1", "2"]
    own = (proc / "ns/user").stat()
    assert own.st_ino != Path("/proc/self/ns/user").stat().st_ino
    namespace = os.open(proc / "ns/mnt", os.O_RDONLY)
    owner = fcntl.ioctl(namespace, NS_GET_USERNS)  # whose it is decides whether the mounts' flags are locked
    assert os.fstat(owner).st_ino == own.st_ino
    os.close(owner)
    os.close(namespace)


def check_setuid(site, words, image=""):
    """Run the look-around in the setuid way, and check what it saw, if it came so far."""
    made = site.where / "made"
    made.write_text("made\n")
    os.chown(made, USER, USER)
    read, write = os.pipe()
    text = plan(["sh", "-c", LOOK], [*MOUNTS, ("u", made, "/etc/passwd")], env=["PATH=/bin"], kept=read)
    try:
        done = site.with_plan(text + ALLOW, image or site.image, keep=(read,), wrap=words)
    finally:
        os.close(read)
        os.close(write)
        made.unlink(missing_ok=True)
    if not done.stdout:
        assert done.returncode in STOPPED, (done.returncode, done.stderr)
        return False
    status, opened, mounts = done.stdout.split("==\n")
    seen = dict(line.split(":\t", 1) for line in status.splitlines())
    assert seen["Uid"].split() == seen["Gid"].split() == [str(USER)] * 4
    assert {int(seen[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert not re.search("/dev/|/tmp/|mnt|memfd", opened), opened
    first = mounts.splitlines()[0].split()
    assert first[4] == "/"
    assert first[5].startswith("ro,nosuid,nodev")
    assert all("nosuid" in line.split()[5] for line in mounts.splitlines())
    return True


def check_directory(site, words):
    """Do the same with a directory as the image."""
    site.conf(f"setuid yes\ndirectory {site.store}/tree\n")
    if not (site.store / "tree").exists():
        make_tree(site.store / "tree")
    return check_setuid(site, words, site.store / "tree")


def check_cache(site, words):
    """Start sh-mount for a cache alone; if it says that it is ready, check what it kept."""
    place = site.store / "caches"
    place.mkdir(mode=0o700, exist_ok=True)
    os.chown(place, ACCOUNT, ACCOUNT)
    site.conf(f"cache {ACCOUNT} {place}\n")
    process = site.start(site.helper, "kernel", "", "ext4", 1 << 20, place, wrap=words)
    ready = bool(process.stdout.readline())
    try:
        if ready:
            proc = Path(f"/proc/{children(process.pid)[0]}")
            check_dropped(proc)
            (cache,) = [line for line in (proc / "mountinfo").read_text().splitlines() if "/mnt/1 " in line]
            assert cache.split()[5].startswith("rw,nosuid,nodev")
            seen = os.stat(proc / f"root{site.where}/mnt/1")
            assert (seen.st_uid, seen.st_mode) == (USER, 0o40700)
            assert os.listdir(proc / f"root{site.where}/mnt/1") == []
    finally:
        _, err = process.communicate()
    assert ready or process.returncode in STOPPED, (process.returncode, err)
    return ready


ALLOW = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)  # a filter that lets every call pass
STOPPED = (125, 126, 127, -signal.SIGSEGV)  # 127 and the last are the loader's, before main
CHECKS = {"kernel": check_kernel, "setuid": check_setuid, "directory": check_directory, "cache": check_cache}
# Calls by which root comes and goes, and one that closes what root opened: these fail from there on, too.
FATAL = ("setresuid", "setresgid", "close_range", "prctl", "capset", "unshare", "setns", "mount_setattr")
# What may fail, and nothing is lost.
HARMLESS = (
    (r"fcntl\([012]<.*, F_GETFD", "the C library looks for closed descriptors; so do we, and stop"),
    (r"close\(", "walking along a path, or after the log: drop() closes all"),
    (r"getrandom\(|brk\(", "malloc has other ways"),
    (r"openat\(.*localtime|\w+\(\d+</\S*(localtime|zoneinfo)", "the log's clock"),
    (r"socket\(|connect\(|sendto\(", "the log"),
    (r"pread64\(\d+<\S*box.sqfs>, .*, 128, 0\)", "it is no SIF file, then, and the superblock is read again"),
    (r"rt_sigaction\(SIGCHLD", "it was so already"),
    (r"openat\(.*O_TMPFILE", "a cache's file has a name, then, for a moment"),
    (r"newfstatat\((1<pipe|\d+</proc/\d+/(setgroups|uid_map|gid_map)>)", "dprintf asks how to buffer"),
    (r"openat2\(.*\"/etc\", |newfstatat\(\d+<\S*/etc>,", "the mount that may be left out"),
    (r"setresuid\(-1, 0, -1\) += -1", "drop() tries whether root can come back"),
)


@root
@evil(75)
@pytest.mark.parametrize("way", CHECKS)
@pytest.mark.parametrize("error", ["EPERM", "EINTR"])
def test_every_system_call_may_fail_and_no_privilege_is_left(site, way, error):
    check = CHECKS[way]
    tried = calls(whole_trace(site, lambda words: check(site, words)))
    assert len([call for call in tried if call.ours]) > 60
    before = mount_table()
    went_on = [call for call in tried if check(site, injected(call.name, f"error={error}", call.when)) and call.ours]
    assert mount_table() == before
    harmless = "|".join(pattern for pattern, _ in HARMLESS)
    assert [call.line for call in went_on if not re.match(harmless, call.line)] == []


@root
@evil(75)
@pytest.mark.parametrize("way", CHECKS)
def test_what_fails_from_some_moment_on_leaves_no_privilege(site, way):
    check = CHECKS[way]
    for call in calls(whole_trace(site, lambda words: check(site, words))):
        if call.name in FATAL:
            check(site, injected(call.name, "error=EPERM", f"{call.when}+"))


@root
@evil(75)
@pytest.mark.parametrize("way", CHECKS)
@pytest.mark.parametrize("name", ["setresuid", "setresgid", "capset", "prctl"])
def test_a_drop_that_only_says_that_it_worked_is_noticed(site, way, name):
    check = CHECKS[way]
    for call in calls(whole_trace(site, lambda words: check(site, words))):
        if call.name == name:
            check(site, injected(name, "retval=0", call.when))


# ---- What a caller can do to it ----


@root
@evil(72)
def test_nothing_is_got_from_it_wherever_it_is_stopped(site):
    done = site.run(*PYTHON, site.where / "runner.py", "attack", site.helper, site.image, timeout=120)
    assert json.loads(done.stdout) == [], done.stderr


@root
@evil(72)
def test_memory_and_descriptors_are_out_of_reach_until_the_privilege_is_gone(site):
    """Slow every system call down by a little, and try to take its descriptors all the while."""
    grab = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pid, end, got = int(sys.argv[1]), time.monotonic() + 30, set()
pidfd = os.pidfd_open(pid)
while time.monotonic() < end:
    for fd in range(3, 12):
        taken = libc.syscall(438, pidfd, fd, 0)
        if taken >= 0:
            got.add(os.readlink(f"/proc/self/fd/{taken}"))
            os.close(taken)
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
        got.add("memory of " + open(f"/proc/{pid}/status").read().split("Uid:")[1].split("\\n")[0])
    except OSError:
        if not os.path.exists(f"/proc/{pid}"):
            break
print("\\n".join(sorted(got)))
"""
    slow = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=all:delay_exit=3000"]
    with site.start(site.helper, "kernel", site.image, wrap=slow) as traced:
        assert until(lambda: [pid for pid in children(traced.pid) if b"sh-mount" in words_of().get(int(pid), [b""])[0]])
        thief = site.start(*PYTHON, "-c", grab, children(traced.pid)[0])
        assert traced.stdout.readline()
        traced.communicate()
        out, err = thief.communicate(timeout=60)
    own = f"memory of \t{USER}\t{USER}\t{USER}\t{USER}"  # after the drop, when it has nothing any more
    assert set(out.split("\n")) <= {"", own}, out + err


FAILING = plan(["true"], [("w", "/etc", "/none/such")], env=[f"A{n}={'x' * 90}" for n in range(20_000)])


@root
@evil(72)
def test_when_it_fails_what_root_opened_is_closed_before_it_is_the_callers(site):
    """A process that ends has no memory for a while; many kernels then forget that it was set-user-ID."""
    with site.tracing("close_range,setresuid,openat,openat2,open_tree") as (words, trace):
        assert said(site.with_plan(FAILING, site.image, wrap=words), "/none/such")
        last = [line.replace(" ", "") for line in trace().splitlines()][-3:]
    assert re.match(r"openat2.*/none/such.*ENOENT", last[0])
    assert last[1:] == ["close_range(3,4294967295,0)=0", f"setresuid({USER},{USER},{USER})=0"]


@root
@evil(72)
def test_nothing_is_got_from_it_while_it_ends(site):
    done = site.run(*PYTHON, site.where / "runner.py", "end", site.helper, site.image)
    assert json.loads(done.stdout) == [], done.stderr


@root
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("kernel",),
        ("kernel", "IMAGE", "IMAGE"),
        ("setuid", "IMAGE"),
        ("setuid",),
        ("Kernel", "IMAGE"),
        ("", "IMAGE"),
        ("-h",),
        ("kernel", ""),
        ("kernel", "x" * 100_000),
        ("kernel", "/" + "x/" * 2100),
        ("%s%n%s%n", "%n"),
        ("kernel", "%s%n%n"),
        ("kernel", "\x1b[2J\nroot: all is well"),
        ("kernel", "/dev/zero"),
        ("kernel", "/dev/tty"),
        ("kernel", "/proc/self/mem"),
        ("kernel", "/proc/self/fd/0"),
        ("kernel", "/proc/self/exe"),
        ("kernel", "."),
    ],
)
@evil(74)
def test_hostile_words_are_refused_in_one_line(site, words):
    done = site.run(site.helper, *[site.image if word == "IMAGE" else word for word in words])
    assert said(done)
    assert "\x1b" not in done.stderr


@root
@evil(74)
def test_without_any_word_not_even_its_name_it_refuses(site):
    code = f"import ctypes; ctypes.CDLL(None).execve(b'{site.helper}', (ctypes.c_char_p * 1)(None), None)"
    assert said(site.run(*PYTHON, "-c", code), "usage")


@root
@evil(67)
def test_a_fifo_in_a_store_does_not_hang_it(site):
    os.mkfifo(site.store / "fifo.sqfs", 0o644)
    assert said(site.kernel(site.store / "fifo.sqfs", timeout=10), "not a file")


@root
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("way", ["kernel", "setuid"])
@evil(74)
def test_closed_descriptors_do_not_get_in_its_way(site, closed, way):
    shut = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    before = mount_table()
    fd = os.memfd_create("plan")
    os.write(fd, plan(["sh", "-c", "cat /proc/self/status"], MOUNTS, env=["PATH=/bin"]))
    words = f"exec {site.helper} {way} {fd if way == 'setuid' else ''} {site.image} {shut}"
    done = site.run("sh", "-c", words, pass_fds=(fd,))
    os.close(fd)
    if 1 in closed:
        assert done.returncode != 0 or not done.stdout
    if way == "setuid" and done.stdout:
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in done.stdout
        assert "NoNewPrivs:\t1" in done.stdout
    assert mount_table() == before


@root
@evil(74)
def test_the_callers_environment_steers_nothing(site):
    marker = site.where / "marker"
    env = {"LD_PRELOAD": f"{marker}.so", "LD_LIBRARY_PATH": str(marker), "TZ": f":{marker}", "LOCPATH": str(marker)}
    env |= {"GCONV_PATH": str(marker), "TMPDIR": str(marker), "LD_AUDIT": f"{marker}.so", "NLSPATH": str(marker)}
    env |= {"GLIBC_TUNABLES": "glibc.malloc.check=3", "MALLOC_TRACE": str(marker), "RES_OPTIONS": "x" * 5000}
    assigned = [f"{name}={value}" for name, value in env.items()]
    with site.tracing("file") as (words, trace):
        done = site.run("env", "--", *assigned, site.helper, "kernel", site.image, wrap=words)
        text = trace().partition(f'execve("{site.helper}"')[2] or trace()
    assert done.stdout == f"{site.where}/mnt\n", done.stderr
    assert str(marker) not in text


@root
@pytest.mark.parametrize(
    ("which", "most"),
    [
        *((resource.RLIMIT_NPROC, n) for n in (0, 1)),
        *((resource.RLIMIT_NOFILE, n) for n in (0, 3, 4, 5, 6, 7, 8, 9, 10, 12)),
        *((resource.RLIMIT_AS, n << 20) for n in (1, 2, 3, 4, 8)),
        *((resource.RLIMIT_STACK, n << 10) for n in (8, 64, 256)),
        *((limit, 0) for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK)),
    ],
)
@pytest.mark.parametrize("way", ["kernel", "setuid"])
@evil(71, 74)
def test_limits_make_it_stop_or_change_nothing(site, way, which, most):
    words = ("prlimit", f"--{NAMES[which]}={most}:{most}", "--")
    fd = os.memfd_create("plan")
    os.write(fd, plan(["sh", "-c", LOOK], MOUNTS, env=["PATH=/bin"]))
    with site.start(
        *words, site.helper, way, *((fd,) if way == "setuid" else ()), site.image, pass_fds=(fd,)
    ) as process:
        ready = way == "kernel" and process.stdout.readline()
        if ready:
            check_ready(Path(f"/proc/{process.pid}"))
        out, _ = process.communicate()
    os.close(fd)
    if out:
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in out
        assert "NoNewPrivs:\t1" in out
    assert ready or out or process.returncode


NAMES = {resource.RLIMIT_NPROC: "nproc", resource.RLIMIT_NOFILE: "nofile", resource.RLIMIT_AS: "as"}
NAMES |= {resource.RLIMIT_STACK: "stack", resource.RLIMIT_FSIZE: "fsize", resource.RLIMIT_DATA: "data"}
NAMES |= {resource.RLIMIT_MEMLOCK: "memlock"}


@root
@evil(74)
def test_root_and_those_without_its_bit_are_told_so(site):
    assert said(site.kernel(uid=0), "you are root")
    site.helper.chmod(0o755)
    done = site.kernel()
    site.helper.chmod(0o4755)
    assert said(done, "not installed set-user-ID root")
    assert said(site.run("setpriv", "--no-new-privs", site.helper, "kernel", site.image), "not installed")
    assert said(site.run("unshare", "--map-current-user", site.helper, "kernel", site.image), "or this is a container")
    assert said(site.run("unshare", "-Urm", site.helper, "kernel", site.image), "you are root")
    words = ("setpriv", "--securebits", "+no_setuid_fixup", "--")
    assert said(site.kernel(wrap=words), "securebits")


@root
@evil(71)
def test_capabilities_to_inherit_and_ignored_signals_of_the_caller_change_nothing(site):
    words = ("setpriv", "--inh-caps=+net_raw,+sys_admin", "--")
    done = site.setuid("cat", "/proc/self/status", wrap=words)
    assert "CapInh:\t0000000000000000" in done.stdout, done.stderr
    script = f"trap '' CHLD PIPE TERM; exec {site.helper} kernel {site.image}"
    assert site.run("sh", "-c", script).stdout == f"{site.where}/mnt\n"


# ---- Its parsers ----


def superblock(used):
    block = bytearray(200)
    block[:4] = b"hsqs"
    struct.pack_into("<HHHHHH", block, 20, 6, 17, 0, 1, 4, 0)
    struct.pack_into("<Q", block, 40, used)
    return bytes(block)


def sif(length, block):
    head = bytearray(128 + 585 * 3)
    head[32:44] = b"SIF_MAGIC\x0001"
    struct.pack_into("<QQ", head, 88, 3, 128)
    struct.pack_into("<iB", head, 128 + 1170, 0x4004, 1)
    struct.pack_into("<qq", head, 128 + 1170 + 17, len(head), length)
    struct.pack_into("<ii", head, 128 + 1170 + 201, 1, 2)
    return bytes(head) + block


def seeds(where):
    """Write inputs to begin with, whose first byte says which parser; see test/c/fuzz.c."""
    conf = b"# who\nstore /store\nstore\t/other\nowner 4294967294\n\ndirectory /a\nsetuid yes\ncontext a:b:c\n"
    caches = b"cache 60130 /caches\ncache\t7 /c d\ncache-size 1K 2T\ncache-fs xfs ext4\n"
    mounts = [*MOUNTS, ("u", "/x", "/y")]
    inputs = [
        b"c" + conf,
        b"c" + b"store /s\nowner 9\ndirectory /d\ncache 1 /e\n" * 63,
        b"c" + caches,
        b"p" + plan(["sh", "-c", "x"], mounts, ["/a", "/"], ["A=b", "PATH=/bin"], 7) + ALLOW,
        b"p" + plan(["a"] * 9, cwd=()),
        b"i" + superblock(150),
        b"i" + sif(200, superblock(150)),
        b"i" + sif(1 << 40, superblock(1 << 39)),  # not accepted, of course
    ]
    for number, text in enumerate(inputs):
        (where / f"seed{number}").write_bytes(text)
        yield where / f"seed{number}"


@evil(74)
def test_no_damaged_config_plan_or_image_is_read_wrongly(tmp_path):
    if not shutil.which("clang"):
        pytest.skip("no clang, which has libFuzzer")
    flags = ("-g", "-O1", "-Wall", "-Wextra", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(["clang", *flags, "-o", tmp_path / "fuzz", TREE / "test/c/fuzz.c"], check=True)
    (tmp_path / "corpus").mkdir()
    assert len(list(seeds(tmp_path / "corpus"))) == 8
    bounds = (f"-max_total_time={os.environ.get('SHOEBOX_FUZZ_SECONDS', '10')}", "-max_len=8192", "-timeout=10")
    words = (tmp_path / "fuzz", *bounds, "-print_final_stats=1", f"-artifact_prefix={tmp_path}/", tmp_path / "corpus")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert int(re.search(r"number_of_executed_units: (\d+)", done.stderr)[1]) > 10_000
