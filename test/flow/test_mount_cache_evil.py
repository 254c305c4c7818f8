"""sh-mount's node caches against those who ask for them: the file below, its names, mkfs, limits, ends at any time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.caching import GIB, MIB, caching, far, read, squashed
from fixtures.helper import ACCOUNT, ENV, OTHER, PYTHON, USER, said
from fixtures.rootfs import until

__all__ = ["caching", "far", "squashed"]  # fixtures
pytestmark = [pytest.mark.root, pytest.mark.evil(76)]


# ---- The words, and mount.conf ----


@pytest.mark.parametrize(
    ("fs", "size", "why"),
    [
        *((fs, 16 * MIB, "file system") for fs in ("btrfs", "vfat", "", "ext4 ", "EXT4", "ext", "../ext4", "ext4x")),
        *(("ext4", size, "size") for size in (0, MIB - 1, 300 * GIB + 1, -1, 2**63, 2**64, 2**64 + 16 * MIB, 10**40)),
        *(
            ("ext4", size, "size")
            for size in ("", "16M", "1e9", "0x1000000", " 16777216", "+16777216", "16777216 ", "x")
        ),
    ],
)
def test_a_size_or_file_system_that_the_site_does_not_allow_is_refused(caching, fs, size, why):
    assert said(caching.ask((fs, size)), f"does not allow this {why}")


def test_limits_hold_to_the_byte_and_for_what_is_listed_only(caching):
    caching.conf("cache-size 16M 32M", "cache-fs xfs")
    for size in (16 * MIB - 1, 32 * MIB + 1):
        assert said(caching.ask(("xfs", size)), "size")
    assert said(caching.ask(("ext4", 16 * MIB)), "file system")
    caching.conf("cache-size 16M 32M")
    for size in (16 * MIB, 32 * MIB):
        assert caching.ask(("ext4", size)).returncode == 0
    assert said(caching.ask(("xfs", 16 * MIB)), "mkfs failed")  # too small for it


def test_a_mkfs_that_is_not_installed_is_told_from_one_that_failed(caching):
    without = ("unshare", "-m", "sh", "-c", 'mount --bind /dev/null /sbin/mkfs.xfs && exec "$@"', "-")
    assert said(caching.ask(("xfs", GIB), wrap=without), "'xfs': its mkfs is not installed")


@pytest.mark.parametrize("count", [1, 2, 4, 5, 27, 28, 300])
def test_other_numbers_of_words_and_more_than_eight_caches_are_wrong_usage(caching, count):
    words = (caching.words(("ext4", 16 * MIB)) * 100)[:count]
    assert said(caching.site.run(caching.site.helper, "kernel", "", *words), "usage")


@pytest.mark.parametrize(
    "change",
    ["{}/", "{}/.", "{}/../caches", "/{}", "{}/sub", "{}x", "/tmp", "/", "", "caches", "/proc/self/cwd/caches"],
)
def test_a_directory_is_asked_for_just_as_the_line_names_it(caching, change):
    words = ("ext4", 16 * MIB, change.format(caching.place))
    assert said(caching.site.run(caching.site.helper, "kernel", "", *words), "has no line for caches in this directory")


@pytest.mark.parametrize(
    "line",
    [
        "cache /a", "cache root /a", "cache 0 /a", "cache -1 /a", "cache 4294967295 /a", "cache 1 a", "cache 1 /a/",
        "cache 1", "cache", " cache 1 /a", "cache 1 /a\r", "cache 1K /a", "cache-size 1M", "cache-size 2M 1M",
        "cache-size 0 1M", "cache-size M 1G", "cache-size 1 2 3", "cache-size 1 2P", "cache-size 1 2MM",
        "cache-size -1 5", "cache-size 1 9999999999T", "cache-size 1 18446744073709551615K", "cache-fs",
        "cache-fs ext4,xfs", "cache-fs btrfs", "cache-fs ext4  xfs", "cache-filesystem ext4",
    ],
)  # fmt: skip
def test_a_line_that_is_not_understood_allows_nothing(caching, line):
    caching.conf(line)
    assert said(caching.ask(), "line 5 is wrong")


# ---- The directory ----


@pytest.mark.parametrize(
    ("uid", "mode", "why"),
    [
        (USER, 0o700, "belongs to you"),
        (OTHER, 0o700, "nobody whom the site trusts"),
        (0, 0o700, "mode 0700"),
        *((ACCOUNT, mode, "mode 0700") for mode in (0o750, 0o705, 0o711, 0o500, 0o600, 0o2700, 0o1700, 0o4700, 0)),
        *((ACCOUNT, mode, "can write") for mode in (0o720, 0o702, 0o777, 0o1777, 0o730)),
    ],
)
def test_a_directory_that_is_not_the_accounts_alone_is_refused(caching, uid, mode, why):
    os.chown(caching.place, uid, -1)
    caching.place.chmod(mode)
    done = caching.ask()
    os.chown(caching.place, ACCOUNT, -1)
    caching.place.chmod(0o700)
    assert said(done, why)


def test_a_directory_of_roots_group_is_refused(caching):
    os.chown(caching.place, ACCOUNT, 0)
    assert said(caching.ask(), "its group is root's")


def test_an_acl_that_lets_others_in_is_seen(caching):
    if not shutil.which("setfacl"):
        pytest.skip("no setfacl")
    subprocess.run(["setfacl", "-m", f"u:{USER}:rwx", caching.place], check=True)
    done = caching.ask()
    subprocess.run(["setfacl", "-b", caching.place], check=True)
    assert said(done, "can write")


def test_the_account_itself_and_root_get_none(caching):
    assert said(caching.ask(uid=ACCOUNT), "belongs to you")
    assert said(caching.ask(uid=0), "you are root")


@pytest.mark.parametrize(
    "kind",
    ["mine above", "open above", "link above", "link", "link of the account's", "file", "fifo", "device", "nothing"],
)
def test_what_others_could_put_in_its_place_and_what_is_none_is_refused(caching, kind):
    where = caching.site.where
    above, place = where / "above", where / "above/place"
    above.mkdir()
    if kind in ("mine above", "open above"):
        place.mkdir(0o700)
        above.chmod(0o777 if kind == "open above" else 0o755)
        os.chown(above, USER if kind == "mine above" else 0, -1)
    elif kind == "link above":
        above.rmdir()
        (where / "real").mkdir()
        (where / "real/place").mkdir(0o700)
        above.symlink_to("real")
    elif kind.startswith("link"):
        place.symlink_to(caching.place)
    elif kind == "file":
        place.write_text("")
        place.chmod(0o700)
    elif kind == "fifo":
        os.mkfifo(place, 0o700)
    elif kind == "device":
        os.mknod(place, 0o60700, os.makedev(7, 0))
    if kind != "nothing":
        os.chown(place, ACCOUNT, ACCOUNT, follow_symlinks=kind == "link above")
    caching.conf(f"cache {ACCOUNT} {place}")
    done = caching.ask(place=place, timeout=20)
    for path in (place, where / "real/place", where / "real", above):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    assert said(done)


def test_a_sticky_directory_will_do_above_but_not_what_is_mounted_right_in_it(caching):
    for mounted in (False, True):
        sticky = caching.site.where / "sticky"
        (sticky / "caches").mkdir(parents=True)
        sticky.chmod(0o1777)
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "none", sticky / "caches"], check=True)
        os.chown(sticky / "caches", ACCOUNT, ACCOUNT)
        (sticky / "caches").chmod(0o700)
        caching.conf(f"cache {ACCOUNT} {sticky}/caches")
        done = caching.ask(place=sticky / "caches")
        if mounted:
            subprocess.run(["umount", sticky / "caches"], check=True)
        shutil.rmtree(sticky)
        assert said(done, "cross-device") if mounted else done.returncode == 0


def test_no_file_that_is_there_is_taken_whatever_it_is(caching):
    """It has no name; else one of 64 random bits: what is there, links and FIFOs too, is not even opened."""
    for n in range(50):
        (caching.place / f".cache-{n:016x}").symlink_to("/etc/passwd")
    os.mkfifo(caching.place / ".cache-")
    before = sorted(os.listdir(caching.place))
    out = caching.site.where / "trace"
    words = ("strace", "-qq", "-o", out, "-e", "trace=openat")
    assert caching.ask(wrap=words).returncode == 0
    opened = [line for line in out.read_text().splitlines() if line.startswith("openat(")]
    (nameless,) = [line for line in opened if "O_CREAT" in line or "O_TMPFILE" in line]
    assert '"."' in nameless
    assert "O_RDWR|O_EXCL|O_DSYNC|O_CLOEXEC|O_TMPFILE, 0600" in nameless
    fault = f"inject=openat:error=EOPNOTSUPP:when={opened.index(nameless) + 1}"
    assert caching.ask(wrap=(*words, "-e", fault)).returncode == 0
    (made,) = [line for line in out.read_text().splitlines() if "O_CREAT" in line]
    out.unlink()
    assert "O_RDWR|O_CREAT|O_EXCL|O_DSYNC|O_NOFOLLOW|O_CLOEXEC, 0600" in made
    assert sorted(os.listdir(caching.place)) == before
    for name in before:
        (caching.place / name).unlink()


# ---- Its file, its device, its mount ----


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_no_trick_gets_at_the_flags_or_the_device_of_a_cache(caching, fs):
    done = caching.joined("", (fs, GIB), mode="cache")
    outcomes = json.loads(done.stdout or "{}")
    assert len(outcomes) > 25, done.stderr
    wrong = {what: how for what, how in outcomes.items() if how not in ("EPERM", "EACCES", "EINVAL", "ENOTTY", "EROFS")}
    assert wrong == {}


def test_nothing_is_got_of_its_file_or_of_mkfs_while_it_is_made(caching):
    for fs, size in (("xfs", 200 * GIB), ("ext4", 200 * GIB)):
        env = ENV | {"CACHES": " ".join(caching.words((fs, size)))}
        words = (*PYTHON, caching.site.where / "runner.py", "steal", caching.site.helper, "")
        found = json.loads(caching.site.run(*words, env=env, timeout=300).stdout)
        assert found.pop()["processes"] > 10, "no child was met"
        assert found == []


LOOK = """
import ctypes, glob, os, sys
place, handle, kind = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
libc, got = ctypes.CDLL(None, use_errno=True), []
def tries(what, act):
    try:
        act()
        got.append(what)
    except OSError:
        pass
for name in (".", ".cache-", ".nfs0001", ".fuse_hidden0001", "..namedfork", "kept"):
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT, os.O_TMPFILE | os.O_RDWR):
        tries(f"open {name} {flags}", lambda: os.open(f"{place}/{name}", flags))
tries("list", lambda: os.listdir(place))
tries("rename", lambda: os.rename(place, place + "2"))
for mode in ("fd", "map_files"):
    for path in glob.glob(f"/proc/[0-9]*/{mode}/*"):
        try:
            name = os.readlink(path)
        except OSError:
            continue
        if ".cache-" in name or name.startswith("/memfd:mkfs") or name.startswith("/dev/loop"):
            got.append(f"{path} {name}")
above = os.open(os.path.dirname(place), os.O_RDONLY)
raw = len(handle).to_bytes(4, "little") + kind.to_bytes(4, "little", signed=True) + handle
for flags in (os.O_RDONLY, os.O_RDWR, os.O_PATH, os.O_PATH | os.O_DIRECTORY, os.O_DIRECTORY):
    for at in (above, -100):
        if libc.open_by_handle_at(at, raw, flags) >= 0:
            got.append(f"open by handle {flags}")
for device in glob.glob("/dev/loop*"):
    for flags in (os.O_RDONLY, os.O_RDWR):
        tries(device, lambda: os.open(device, flags))
print(got)
"""


def handle(path):
    """Return the handle of a file, as root gets it: who has it needs no name."""
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
raw, mount = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(4 + 128)), ctypes.c_int()
done = libc.name_to_handle_at(-100, os.fsencode(sys.argv[1]), raw, ctypes.byref(mount), 0)
assert done == 0, os.strerror(ctypes.get_errno())
size, kind = int.from_bytes(raw.raw[:4], "little"), int.from_bytes(raw.raw[4:8], "little", signed=True)
print(raw.raw[8:8 + size].hex(), kind)
"""
    become = ("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups")
    done = subprocess.run([*become, *PYTHON, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_name_leads_to_its_file_from_inside_or_outside(caching):
    look_for_names(caching)


def test_no_name_leads_to_its_file_where_root_is_squashed_nor_on_another_node(far, squashed):
    other = squashed.mounted.parent / "other"
    squashed.mount(other)
    try:
        look_for_names(far, other / far.place.name)
    finally:
        squashed.unmount(other)


def look_for_names(there, *elsewhere):
    kept = there.place / "kept"
    assert there.site.run("sh", "-c", f"echo secret >{kept}; chmod 600 {kept}", uid=ACCOUNT).returncode == 0
    words = (*PYTHON, "-c", LOOK, there.place, *handle(kept))
    inside = (
        *PYTHON,
        there.site.where / "runner.py",
        "join",
        there.site.helper,
        "",
        "sh",
        "-c",
        '"$@"; echo; read go',
        "-",
    )
    env = ENV | {"CACHES": " ".join(there.words(("ext4", 64 * MIB)))}
    with there.site.start(*inside, *words, env=env) as process:
        assert process.stdout.readline() == "[]\n"
        assert there.site.run(*words).stdout == "[]\n"
        for place in elsewhere:
            words = (*PYTHON, "-c", LOOK, place, *handle(place / "kept"))
            assert there.site.run(*words).stdout == "[]\n"
        process.communicate("go\n")
    there.site.run("rm", kept, uid=ACCOUNT)


def test_no_file_of_a_caller_becomes_a_cache(caching):
    """Neither by name nor by descriptor: there is no word for one."""
    image = caching.site.where / "mine"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        os.fchown(file.fileno(), USER, USER)
        for place in (image, f"/proc/self/fd/{file.fileno()}", f"/dev/fd/{file.fileno()}", f"/proc/{os.getpid()}/fd"):
            assert said(caching.ask(place=place, pass_fds=(file.fileno(),)), "has no line")
    caching.conf(f"cache {ACCOUNT} {image}")
    assert said(caching.ask(place=image), "Not a directory")
    image.unlink()


def test_a_set_user_id_program_and_a_device_in_a_cache_do_nothing(caching):
    """Root itself puts them there."""
    script = "cd $WHERE/1; mkfifo p; echo; read go; ./su -u; cat <zero; ./su -ru"
    words = (*PYTHON, caching.site.where / "runner.py", "join", caching.site.helper, "", "sh", "-c", script)
    with caching.site.start(*words, env=ENV | {"CACHES": " ".join(caching.words(("ext4", 64 * MIB)))}) as process:
        process.stdout.readline()
        cache = Path(f"/proc/{process.pid}/root{caching.site.where}/mnt/1")
        shutil.copy("/usr/bin/id", cache / "su")
        (cache / "su").chmod(0o6755)
        os.mknod(cache / "zero", 0o20666, os.makedev(1, 5))
        (cache / "zero").chmod(0o666)
        out, err = process.communicate("go\n")
    assert out == "0\n0\n", err  # 0 is the user there
    assert "zero: Permission denied" in err


# ---- Ends, limits, signals ----


def test_whatever_is_killed_at_any_time_no_space_device_or_mount_stays(caching):
    kill(caching, 30)


def test_nothing_stays_where_root_is_squashed_either(far):
    kill(far, 8)


def kill(there, turns):
    """Kill sh-mount, and in every other turn its children, a little later each time."""
    words = there.words(("ext4", 64 * MIB), ("xfs", 320 * MIB))
    for turn in range(turns):
        every = [there.site.start(there.site.helper, "kernel", "", *words) for _ in range(2)]
        time.sleep(turn * 90e-3 / turns)
        for process in every:
            below = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            victims = below.read_text().split() if turn % 2 and below.exists() else []
            for pid in (*map(int, victims), process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for process in every:
            process.communicate()
    assert until(lambda: not there.left(), 60), there.left()
    there.site.run("find", there.place, "-name", ".cache-*", "-delete", uid=ACCOUNT)


def test_a_container_that_is_killed_leaves_nothing(caching):
    words = (
        *PYTHON,
        caching.site.where / "runner.py",
        "join",
        caching.site.helper,
        "",
        "sh",
        "-c",
        "echo; head -c 40M /dev/zero >$WHERE/1/f; read go",
    )
    env = ENV | {"CACHES": " ".join(caching.words(("ext4", 64 * MIB)))}
    for turn in range(6):
        process = caching.site.start(*words, env=env)
        process.stdout.readline()
        time.sleep(turn * 4e-3)
        process.kill()
        process.communicate()
    assert until(lambda: not caching.left(), 30), caching.left()


def test_mkfs_that_is_killed_makes_no_cache(caching):
    """The account, or root, may; the caller cannot."""
    ended = 0
    for _ in range(20):
        process = caching.site.start(caching.site.helper, "kernel", "", *caching.words(("xfs", 200 * GIB)))
        begin = until(lambda process=process: strike(process.pid) or process.poll() is not None or ready(process), 20)
        out, err = process.communicate()
        assert begin
        assert err in ("", "sh-mount: cannot make a cache with 'xfs': mkfs failed\n")
        assert bool(out) != bool(err)
        ended += bool(err)
        if ended > 2:
            break
    assert ended, "mkfs was always faster"


def strike(pid):
    """Kill a mkfs below a process; tell whether there was one."""
    for child in map(int, read(Path(f"/proc/{pid}/task/{pid}/children")).split()):
        if read(Path(f"/proc/{child}/comm")) == "mkfs.xfs\n":
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(child, signal.SIGKILL)
                return True
        if strike(child):
            return True
    return False


def ready(process):
    """Tell whether sh-mount has mounted."""
    return "NoNewPrivs:\t1" in read(Path(f"/proc/{process.pid}/status"))


LIMITS = {
    "fsize": (0, 1 << 12, 1 << 20, 100 << 20, 1 << 30),
    "nofile": (0, 3, 4, 5, 6, 7, 8, 9, 10, 12),
    "as": (1 << 20, 4 << 20, 8 << 20, 16 << 20),
    "data": (0, 1 << 16, 1 << 20),
    "stack": (1 << 13, 1 << 16),
    "nproc": (0, 1),
    "memlock": (0,),
    "core": (0,),
    "cpu": (0, 1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_under_a_limit_there_is_a_whole_cache_or_none(caching, name):
    check = "cd $WHERE/1 && touch f && head -c 1M /dev/zero >g 2>/dev/null; rm f && df --output=size -k . | tail -1"
    for most in LIMITS[name]:
        for fs in ("ext4", "xfs"):
            words = (
                "prlimit",
                f"--{name}={most}:{most}",
                "--",
                caching.site.helper,
                "kernel",
                "",
                *caching.words((fs, GIB)),
            )
            with caching.site.start(*words) as process:
                ready = process.stdout.readline()
                if ready:
                    done = subprocess.run(
                        ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "sh", "-c", check],
                        env=ENV | {"WHERE": ready.strip()}, capture_output=True, text=True, check=False,
                    )  # fmt: skip
                    assert int(done.stdout) > 900 << 10, (most, fs, done)
                _, err = process.communicate()
            assert ready or process.returncode, (most, fs, err)


def test_ignored_and_blocked_signals_a_umask_and_closed_files_change_nothing(caching):
    words = " ".join(map(str, (caching.site.helper, "kernel", "''", *caching.words(("xfs", GIB), ("ext4", GIB)))))
    for before in ("trap '' CHLD PIPE TERM XFSZ HUP INT ALRM USR1", "umask 777", "umask 0", "exec 5<&0 9<&0; cd /proc"):
        assert caching.site.run("sh", "-c", f"{before}; exec {words}").stdout == f"{caching.site.where}/mnt\n"
    blocked = "import os, signal, sys; signal.pthread_sigmask(0, range(1, 65)); os.execv(sys.argv[1], sys.argv[1:])"
    done = caching.site.run(*PYTHON, "-c", blocked, caching.site.helper, "kernel", "", *caching.words(("xfs", GIB)))
    assert done.stdout == f"{caching.site.where}/mnt\n"


def test_mkfs_is_its_account_and_has_nothing_of_the_callers(caching, tmp_path):
    words = ("strace", "-ff", "-qq", "-y", "-v", "-s", "200", "-o", tmp_path / "trace")
    evil = "export MKE2FS_CONFIG=/evil LD_PRELOAD=/evil TMPDIR=/evil; exec 7<&0"
    asked = " ".join(map(str, caching.words(("ext4", 16 * MIB))))
    script = f"{evil}; exec {caching.site.helper} kernel '' {asked}"
    assert caching.site.run("sh", "-c", script, wrap=words).returncode == 0
    traces = [path.read_text().splitlines() for path in tmp_path.iterdir()]  # of a process each

    def after(*parts):
        """Return what a process does from the last of these calls on, in this order, and all do well."""
        (found,) = [lines for lines in traces if any(line.startswith(parts[-1]) for line in lines)]
        for part in parts:
            done = [line.startswith(part) and bool(re.search(r"= [0-9]\S*$", line)) for line in found]
            assert any(done), (part, found)
            found = found[done.index(True) :]
        return found

    timer = "setitimer(ITIMER_REAL, {it_interval={tv_sec=0, tv_usec=0}, it_value={tv_sec=0, tv_usec=0}}, NULL)"
    after(timer, "keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL)", f"setresuid(-1, {ACCOUNT}, -1)")
    ids = (f"setresgid({ACCOUNT}, {ACCOUNT}, {ACCOUNT})", f"setresuid({ACCOUNT}, {ACCOUNT}, {ACCOUNT})")
    after("setgroups(0, NULL)", *ids, 'memfd_create("mkfs"')
    own = after('execve("/sbin/mkfs.ext4"')
    assert own[0].endswith("], NULL) = 0"), own[0]  # no environment
    assert any("memfd:mkfs" in line for line in own)
    for word in (str(caching.place), "/evil", "pipe:", "/dev/tty"):
        assert not [line for line in own if word in line]


@pytest.mark.parametrize(
    "fault",
    [
        *(f"{name}:error=EPERM" for name in ("memfd_create", "setsid", "chdir", "dup2", "pwrite64")),
        *(
            f"pwrite64:{how}"
            for how in ("error=ENOSPC:when=2+", "retval=512", "retval=0:when=2+", "retval=65535:when=3")
        ),
        "fsync:error=EIO",
        "fdatasync:error=EIO",
    ],
)
def test_whatever_fails_in_mkfs_and_around_it_there_is_no_cache(caching, fault):
    words = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={fault}")
    for fs in ("ext4", "xfs"):
        assert said(caching.ask((fs, GIB), wrap=words), "cannot")


@contextmanager
def mounted(at, *words):
    """Have something mounted at a new directory."""
    at.mkdir()
    subprocess.run(["mount", *words, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        at.rmdir()


@contextmanager
def elsewhere(caching, below):
    """Have the account's directory on another file system."""
    place = below / "caches"
    place.mkdir(mode=0o700)
    os.chown(place, ACCOUNT, ACCOUNT)
    there = replace(caching, place=place)
    there.conf()
    yield there
    assert until(lambda: not there.left()), there.left()


def low(caching, kind, options):
    return mounted(caching.site.where / "low", "-t", kind, "-o", f"{options}mode=755", "none")


def test_where_there_is_no_space_below_there_is_no_cache(caching):
    with low(caching, "tmpfs", "size=64k,") as below, elsewhere(caching, below) as there:
        assert said(there.ask(("ext4", GIB)), "No space left on device")


def test_where_the_space_below_ends_it_is_an_error_and_the_host_goes_on(caching):
    script = "cd $WHERE/1; head -c 32M /dev/urandom >f && sync f || echo failed; ls / >/dev/null && echo goes on"
    with low(caching, "tmpfs", "size=8m,") as below, elsewhere(caching, below) as there:
        done = there.joined(script, ("ext4", 64 * MIB))
        assert done.stdout == "failed\ngoes on\n", done.stderr


def test_where_the_space_below_ends_late_the_cache_ends_and_never_reads_what_was_there(caching):
    """Below, a file system takes into memory what its own device refuses later."""
    script = """
        cd $WHERE/1; head -c 48M /dev/urandom >f; sync -f . || echo failed
        for n in 1 2 3 4; do mkdir d$n && touch d$n/f; sync -f .; done; mkdir e || echo ended
    """
    with low(caching, "tmpfs", "size=12m,") as below:
        with (below / "file").open("wb") as file:
            file.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-qFm0", "-O^has_journal", below / "file"], check=True)
        with mounted(below / "mnt", "-o", "loop", below / "file") as above, elsewhere(caching, above) as there:
            done = there.joined(script, ("ext4", 64 * MIB))
            assert done.stdout == "failed\nended\n", done.stderr
            assert "Read-only file system" in done.stderr


def test_where_the_file_system_below_cannot_write_directly_there_is_no_cache(caching):
    with low(caching, "ramfs", "") as below, elsewhere(caching, below) as there:
        assert said(there.ask(), "the file system below cannot write directly")
