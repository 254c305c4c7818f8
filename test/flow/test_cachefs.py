"""The node cache by our own FUSE daemon: it does what a local directory does, and loses nothing in silence."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures import cached, glusterfs, nodes
from fixtures.cached import alone, inside
from fixtures.rootfs import until, words_of

from shoebox import cachefs, fuse
from shoebox.fail import Fail

LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20
STEPS = 2500
TREE = Path(__file__).parents[2]


def failing(act, *words):
    """Return the errno with which a call fails, 0 if it does not."""
    try:
        act(*words)
    except OSError as error:
        return error.errno
    return 0


def libc(name, *words):
    if getattr(LIBC, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), name)


def fallocate(fd, mode, offset, size):
    libc("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(size))


def rename(old, new, flags):
    libc("renameat2", -100, os.fsencode(old), -100, os.fsencode(new), flags)


def seen(top):
    """Return all that can be seen of a tree, by path; what directories are long differs between file systems."""
    found = {}
    for path in sorted([top, *top.rglob("*")]):
        about = path.lstat()
        size = about.st_size if not path.is_dir() else 0
        text = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        link = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(top))] = (about.st_mode, about.st_nlink, size, hash(text), link, about.st_uid)
    return found


class Twin:
    """The same calls on a file system: the answers are to be the same."""

    def __init__(self, top):
        self.top = top
        self.files = {}
        for path in ("x", "y", "x/z"):
            (top / path).mkdir()

    def name(self, dice):
        return self.top.joinpath(dice.choice(("", "", "x", "y", "x/z")), dice.choice("abcdex"))

    def step(self, dice):
        acts = [self.open, self.write, self.write, self.read, self.truncate, self.names, self.names, self.attributes]
        try:
            return dice.choice([*acts, self.space, self.mapped, self.close, self.listed])(dice)
        except OSError as error:
            return errno.errorcode[error.errno]

    def open(self, dice):
        flags = os.O_RDWR | dice.choice((0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC))
        flags |= dice.choice((0, 0, os.O_APPEND))
        slot, path, mode = dice.randrange(4), self.name(dice), dice.choice((0o644, 0o600, 0o755))
        if path.is_fifo():
            return None
        fd = os.open(path, flags, mode)
        if slot in self.files:
            os.close(self.files[slot])
        self.files[slot] = fd
        return flags

    def fd(self, dice):
        number = dice.randrange(4)
        if number not in self.files:
            self.files[number] = os.open(self.top / f"file{number}", os.O_RDWR | os.O_CREAT, 0o644)
        return self.files[number]

    def write(self, dice):
        offset, size = dice.choice((0, 511, 4096, 65536, 300_000)), dice.choice((1, 512, 4095, 4096, 10_000, 200_000))
        data = bytes([dice.randrange(256)]) * size
        return os.pwrite(self.fd(dice), data, offset + dice.choice((0, 0, 1, 77)))

    def read(self, dice):
        offset, forget, fd = dice.randrange(500_000), dice.random() < 0.5, self.fd(dice)
        if forget:
            alone(fd)
        data = os.pread(fd, 100_000, offset)
        return len(data), hash(data)

    def truncate(self, dice):
        size, fd = dice.choice((0, 1, 100, 4096, 5000, 70_000, 400_000)), self.fd(dice)
        os.ftruncate(fd, size)
        return os.fstat(fd).st_size

    def names(self, dice):
        act = dice.choice(
            (
                os.mkdir,
                os.unlink,
                os.rmdir,
                os.rename,
                os.rename,
                os.link,
                os.symlink,
                "noreplace",
                "exchange",
                os.mkfifo,
            )
        )
        one, other = self.name(dice), self.name(dice)
        if act in (os.mkdir, os.unlink, os.rmdir, os.mkfifo):
            return act(one)
        if act is os.symlink:
            return act(one.name, other)
        if isinstance(act, str):
            return rename(one, other, fuse.NOREPLACE if act == "noreplace" else fuse.EXCHANGE)
        return act(one, other)

    def attributes(self, dice):
        path, what = self.name(dice), dice.randrange(3)
        if stat.S_ISLNK(path.lstat().st_mode):
            return None
        if what == 0:
            path.chmod(dice.choice((0o700, 0o755, 0o777, 0o2755) if path.is_dir() else (0o644, 0o600, 0o4755, 0o2755)))
        elif what == 1:
            times = dice.randrange(1 << 50), dice.randrange(1 << 50)
            os.utime(path, ns=times)
            return path.stat().st_mtime_ns, path.stat().st_atime_ns
        return path.stat().st_mode

    def space(self, dice):
        mode = dice.choice((0, fuse.KEEP_SIZE, fuse.PUNCH_HOLE | fuse.KEEP_SIZE, fuse.ZERO_RANGE))
        offset, size, fd = dice.randrange(300_000), dice.randrange(1, 100_000), self.fd(dice)
        try:
            fallocate(fd, mode, offset, size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or mode != fuse.ZERO_RANGE:
                raise
            for like_tmpfs in (fuse.PUNCH_HOLE | fuse.KEEP_SIZE, 0):  # which can do this only
                fallocate(fd, like_tmpfs, offset, size)
        return os.fstat(fd).st_size

    def mapped(self, dice):
        fd, at, byte = self.fd(dice), dice.randrange(10_000), dice.randrange(256)
        size = os.fstat(fd).st_size
        if not size:
            return None
        with mmap.mmap(fd, size) as memory:
            at %= size
            old = memory[at]
            memory[at] = byte
            return old, hash(memory[:])

    def close(self, dice):
        fd = self.fd(dice)
        number = next(number for number, known in self.files.items() if known == fd)
        os.close(self.files.pop(number))

    def listed(self, dice):
        path = self.name(dice)
        return sorted(os.listdir(path))


@pytest.mark.parametrize("seed", range(3))
def test_a_cache_does_what_a_local_directory_does(tmp_path, seed):
    local = tmp_path / "local"
    local.mkdir(mode=0o700)

    def act(at):
        twins = Twin(at), Twin(local)
        for step in range(STEPS):
            answers = [twin.step(random.Random(f"{seed} {step}")) for twin in twins]
            assert answers[0] == answers[1], (seed, step)
        for fd in twins[0].files.values():
            alone(fd)
        assert seen(at) == seen(local)
        about = os.statvfs(at)
        assert about.f_blocks == cached.SIZE // 4096

    inside(act, tmp_path)


def test_modes_groups_and_kinds_are_as_elsewhere(tmp_path):
    def act(at):
        os.umask(0o027)
        (at / "d").mkdir()
        (at / "f").touch()
        assert [stat.S_IMODE((at / name).stat().st_mode) for name in "df"] == [0o750, 0o640]
        (at / "d").chmod(0o2770)
        (at / "d/e").mkdir()
        assert (at / "d/e").stat().st_mode & stat.S_ISGID
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(at / "s"))
        os.mkfifo(at / "p")
        assert stat.S_ISSOCK((at / "s").stat().st_mode)
        assert stat.S_ISFIFO((at / "p").stat().st_mode)
        assert failing(os.mknod, at / "c", stat.S_IFCHR | 0o600, os.makedev(0, 0)) == errno.EPERM
        assert failing(os.chown, at / "f", os.getuid() + 1, -1) in (errno.EINVAL, errno.EPERM)
        assert failing(os.setxattr, at / "f", "user.a", b"") == errno.EOPNOTSUPP
        assert failing((at / ("x" * 256)).touch) == errno.ENAMETOOLONG
        (at / ("x" * 255)).touch()
        (at / "f").chmod(0o6755)
        subprocess.run(["sh", "-c", "echo >>f"], check=True, cwd=at)
        assert stat.S_IMODE((at / "f").stat().st_mode) == 0o755
        (at / "f").chmod(0)  # for a program: what was not executed in the namespace has all capabilities there
        assert subprocess.run(["cat", at / "f"], check=False).returncode == (1 if os.getuid() else 0)
        assert (at.stat().st_uid, stat.S_IMODE(at.stat().st_mode)) == (os.getuid(), 0o700)

    inside(act, tmp_path)


def test_files_without_names_live_until_they_are_closed(tmp_path):
    def act(at):
        free = os.statvfs(at).f_bfree
        fd = os.open(at, os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"x" * MIB)
        # os.link would not follow
        libc("linkat", -100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(at / "named"), 0x400)
        os.close(fd)
        assert (at / "named").read_bytes() == b"x" * MIB
        with (at / "named").open("rb") as stream:
            (at / "named").unlink()
            assert not list(at.iterdir())
            alone(stream.fileno())
            assert stream.read() == b"x" * MIB
            assert os.fstat(stream.fileno()).st_nlink == 0
            assert os.statvfs(at).f_bfree == free - 256
        assert until(lambda: os.statvfs(at).f_bfree == free)

    inside(act, tmp_path)


def test_times_are_kept_when_the_kernel_forgets_them(tmp_path):
    def act(at):
        before = time.time_ns() - 10**9
        (at / "f").write_bytes(b"x")
        os.utime(at / "f", ns=(3, 5))
        assert ((at / "f").stat().st_atime_ns, (at / "f").stat().st_mtime_ns) == (3, 5)
        (at / "f").write_bytes(b"y")
        assert before < (at / "f").stat().st_mtime_ns <= time.time_ns()
        assert before < at.stat().st_mtime_ns <= time.time_ns()

    inside(act, tmp_path)


def test_locks_hold_between_processes(tmp_path):
    def act(at):
        with (at / "f").open("w") as one, (at / "f").open("w") as other:
            fcntl.flock(one, fcntl.LOCK_EX)
            assert failing(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
            fcntl.lockf(one, fcntl.LOCK_EX)
            code = f"import fcntl; fcntl.lockf(open({str(at / 'f')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
            done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
            assert "BlockingIOError" in done.stderr

    inside(act, tmp_path)


def test_a_directory_of_5000_names_is_read_while_it_is_emptied(tmp_path):
    def act(at):
        (at / "d").mkdir()
        for number in range(5_000):
            os.mknod(at / f"d/{number}")
        assert len(os.listdir(at / "d")) == 5_000
        subprocess.run(["rm", "-rf", at / "d"], check=True)
        assert not os.listdir(at)
        assert until(lambda: os.statvfs(at).f_files - os.statvfs(at).f_ffree == 1)

    inside(act, tmp_path)


@pytest.mark.parametrize("block", ["512", "4k"])
def test_fio_finds_what_it_wrote(tmp_path, block):
    def act(at):
        words = ["--rw=randwrite", f"--bs={block}", "--size=24m", "--verify=crc32c", "--verify_fatal=1", "--randseed=7"]
        words += ["--name=job", "--numjobs=2", f"--directory={at}", "--invalidate=1", "--minimal", "--end_fsync=1"]
        done = subprocess.run(["fio", *words], check=False, capture_output=True, text=True, cwd=at)
        assert done.returncode == 0, done.stdout + done.stderr

    inside(act, tmp_path)


def test_four_writers_get_what_each_wrote(tmp_path):
    def act(at):
        code = "import sys; f = open(sys.argv[1], 'wb'); [f.write(sys.argv[2].encode() * 512) for _ in range(20000)]"
        writers = [subprocess.Popen([sys.executable, "-c", code, at / name, name]) for name in "abcd"]
        assert [writer.wait() for writer in writers] == [0] * 4
        for name in "abcd":
            with (at / name).open("rb") as stream:
                alone(stream.fileno())
                assert stream.read() == name.encode() * (512 * 20_000)

    inside(act, tmp_path)


def test_a_full_cache_is_an_error_for_the_program_and_harms_nothing_else(tmp_path):
    def act(at):
        (at / "kept").write_bytes(b"k" * 3 * MIB)
        with (at / "big").open("wb", buffering=0) as stream:
            fd = stream.fileno()
            assert failing(lambda: [os.write(fd, b"x" * 65536) for _ in range(256)] and os.fsync(fd)) == errno.ENOSPC
        fd = os.open(at / "second", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"y" * 9 * MIB)
        assert failing(os.close, fd) == errno.ENOSPC  # who asks for no fsync learns it when closing
        assert failing(lambda: fallocate(os.open(at / "third", os.O_RDWR | os.O_CREAT), 0, 0, 9 * MIB)) == errno.ENOSPC
        with (at / "kept").open("rb") as stream:
            alone(stream.fileno())
            assert stream.read() == b"k" * 3 * MIB
        with (at / "big").open("rb") as stream:
            failing(alone, stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert failing(stream.read) == errno.EIO  # what was lost is no zeros
        for name in ("big", "second", "third"):
            (at / name).unlink()
        assert until(lambda: failing((at / "again").write_bytes, b"z" * 4 * MIB) == 0)

    inside(act, tmp_path, 8 * MIB)


def test_fallocate_reserves_so_that_later_writes_fit(tmp_path):
    def act(at):
        fd = os.open(at / "f", os.O_RDWR | os.O_CREAT)
        fallocate(fd, 0, 0, 6 * MIB)
        assert os.fstat(fd).st_blocks * 512 == 6 * MIB
        other = os.open(at / "g", os.O_RDWR | os.O_CREAT)
        os.write(other, b"x" * 3 * MIB)
        assert failing(os.fsync, other) == errno.ENOSPC
        os.pwrite(fd, b"y" * 6 * MIB, 0)
        os.fsync(fd)
        fallocate(fd, fuse.PUNCH_HOLE | fuse.KEEP_SIZE, 0, 5 * MIB)
        assert os.fstat(fd).st_blocks * 512 == MIB

    inside(act, tmp_path, 8 * MIB)


def test_there_are_so_many_inodes_and_df_tells(tmp_path):
    size = MIB

    def act(at):
        limit = size // cachefs.BYTES_A_FILE + 16
        assert os.statvfs(at).f_files == limit
        made = 0
        while not failing(os.mknod, at / str(made)):
            made += 1
        assert made == limit - 1
        assert failing(os.mkdir, at / "d") == errno.ENOSPC

    inside(act, tmp_path, size)


@contextmanager
def traced(pid, *words):
    """Have a process traced. strace is killed: told to end, it may wait for ever for a process that ends just then."""
    with subprocess.Popen(["strace", "-f", *words, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert "attached" in tracer.stderr.readline()
            yield
        finally:
            tracer.kill()


def test_fsync_is_an_fsync_of_the_backing_file(tmp_path):
    trace, go, done = (tmp_path / name for name in ("trace", "go", "done"))

    def act(at):
        assert until(go.exists)
        for directory, flush in ((False, os.fsync), (False, os.fdatasync), (True, os.fsync)):
            fd = os.open(at if directory else at / "f", os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT)
            flush(fd)
            os.close(fd)
        done.touch()

    def beside(pid):
        with traced(pid, "-e", "trace=fsync,fdatasync", "-o", trace):
            go.touch()
            assert until(done.exists)

    inside(act, tmp_path, beside=beside)
    assert trace.read_text().count("fsync(4") == 3


def test_small_files_that_a_quota_stops_are_an_error_and_others_are_as_they_were(tmp_path):
    kept, stopped, tried, over = (tmp_path / name for name in ("kept", "stopped", "tried", "over"))

    def act(at):
        (at / "kept").write_bytes(b"k" * 5000)
        with (at / "kept").open("rb") as stream:
            os.fsync(stream.fileno())
        kept.touch()
        assert until(stopped.exists)
        for name in "ab":
            (at / name).write_bytes(b"x" * 5000)  # waits in the daemon
        fds = {name: os.open(at / name, os.O_RDWR) for name in ("a", "b", "kept")}
        assert failing(os.fsync, fds["a"]) == errno.EDQUOT
        tried.touch()
        assert until(over.exists)
        assert [failing(os.fsync, fd) for fd in fds.values()] == [errno.EDQUOT, errno.EDQUOT, 0]
        for fd in fds.values():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert [failing(os.read, fd, 5000) for fd in fds.values()] == [errno.EIO, errno.EIO, 0]
        os.ftruncate(fds["a"], 0)
        os.pwrite(fds["a"], b"y" * 5000, 0)
        alone(fds["a"])
        assert os.pread(fds["a"], 5001, 0) == b"y" * 5000
        alone(fds["kept"])
        assert os.pread(fds["kept"], 5001, 0) == b"k" * 5000

    def beside(pid):
        assert until(kept.exists)
        with traced(pid, "-e", "inject=pwritev,pwritev2,pwrite64:error=EDQUOT", "-o", "/dev/null"):
            stopped.touch()
            assert until(tried.exists)
        over.touch()

    inside(act, tmp_path, beside=beside)


def test_why_a_daemon_cannot_begin_is_said_be_it_a_bug(tmp_path):
    for size, told in ((MIB, "the kernel speaks another FUSE"), ("many", "TypeError: ")):
        null = os.open("/dev/null", os.O_RDWR)
        with pytest.raises(Fail, match=f"^cannot serve the node cache in '/place': {told}.*: try on=tmpfs$"):
            cachefs._start(null, null, "/place", size, -1).wait()
        os.close(null)


def killing(written, killed):
    """Return what kills the daemon once a file is there, and makes another one."""

    def beside(pid):
        assert until(written.exists)
        os.kill(pid, signal.SIGKILL)
        killed.touch()

    return beside


def test_a_killed_daemon_is_an_error(tmp_path):
    written, killed = tmp_path / "written", tmp_path / "killed"
    gone = (errno.ENOTCONN, errno.ECONNABORTED)

    def act(at):
        fd, other = (os.open(at / name, os.O_WRONLY | os.O_CREAT) for name in "fg")
        os.write(fd, b"x" * 100)
        written.touch()
        assert until(killed.exists)
        assert until(lambda: failing(os.mkdir, at / "d") in gone)
        for late in (fd, other):
            failing(os.write, late, b"y" * 100)  # to memory, maybe
        assert failing(os.fsync, fd) in (*gone, errno.EIO)
        assert failing(os.close, other) in (*gone, errno.EIO)
        assert failing(os.listdir, at) in gone

    inside(act, tmp_path, beside=killing(written, killed))


def test_who_opens_a_file_anew_after_the_daemon_was_killed_gets_an_error_each_time(tmp_path):
    written, killed = tmp_path / "written", tmp_path / "killed"

    def append(path):
        with path.open("ab", buffering=0) as file:
            file.write(b"x" * 100)

    def act(at):
        for _ in range(3):
            append(at / "log")
        written.touch()
        assert until(killed.exists)
        assert until(lambda: failing(os.mkdir, at / "d"))
        assert all(failing(append, at / "log") for _ in range(20))

    inside(act, tmp_path, beside=killing(written, killed))


def test_a_write_takes_a_set_user_id_bit_for_all_to_see(tmp_path):
    def act(at):
        for name in "fg":
            (at / name).write_bytes(b"x" * 100)
            (at / name).chmod(0o6755)
        with (at / "f").open("r+b", buffering=0) as file:
            file.write(b"y")
        os.chown(at / "g", os.getuid(), os.getgid())
        assert [oct((at / name).stat().st_mode & 0o7777) for name in "fg"] == ["0o755", "0o755"]

    inside(act, tmp_path)


def _words(pid):
    """Return what a process was called with; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_the_daemon_has_nothing_of_ours_and_ends_with_the_last_program(tmp_path):
    held, go = os.open(tmp_path, os.O_RDONLY), tmp_path / "go"
    tells, said = os.pipe()
    os.set_inheritable(held, True)
    pids = []

    def act(at):
        assert until(go.exists)
        (at / "f").write_bytes(b"x")
        parent = os.getpid()
        if not os.fork():  # nobody of ours is in the container any more when this one ends
            seen = b"an error"
            try:
                until(lambda: os.getppid() != parent)
                seen = (at / "f").read_bytes()
            finally:
                os.write(said, seen)
                os._exit(0)

    def beside(pid):
        pids.append(pid)
        opened = Path(f"/proc/{pid}/fd")
        assert until(lambda: os.readlink(opened / "2") == "/dev/null")  # right after it said that it is ready
        assert [os.readlink(opened / fd) for fd in "013"] == ["/dev/null", "/dev/null", "/dev/fuse"]
        assert os.readlink(opened / "4").endswith(" (deleted)")
        assert sorted(fd.name for fd in opened.iterdir()) == list("01234")
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]
        _, _, group, session, terminal = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:5]
        assert group == session != str(os.getsid(0))
        assert terminal == "0"
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, signum)
        go.touch()

    inside(act, tmp_path, beside=beside)
    for fd in (held, said):
        os.close(fd)
    with os.fdopen(tells, "rb") as stream:
        assert stream.read() == b"x"
    assert until(lambda: not _words(pids[0]))


def test_command_substitution_does_not_wait_for_the_daemon(tmp_path):
    at = tmp_path / "cache"
    at.mkdir()
    words = [
        sys.executable,
        "-m",
        "fixtures.cached",
        tmp_path,
        at,
        str(MIB),
        "sh",
        "-c",
        f"sleep 60 >&- 2>&- & echo $!; cd {at} && pwd",
    ]
    env = {**os.environ, "PYTHONPATH": f"{TREE}/lib:{TREE}/test"}
    begun = time.monotonic()
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    taken = time.monotonic() - begun
    sleeper, where = done.stdout.splitlines()
    os.kill(int(sleeper), signal.SIGKILL)
    assert where == str(at)
    assert taken < 60


@pytest.fixture
def small(tmp_path):
    """Yield a file system of 24 MiB, nearly full at 16."""
    image, at = tmp_path / "image", tmp_path / "small"
    with image.open("wb") as stream:
        stream.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    shutil.rmtree(at / "lost+found")
    yield at
    assert until(lambda: subprocess.run(["umount", at], check=False, capture_output=True).returncode == 0)


@pytest.mark.root
def test_a_full_file_system_below_is_an_error_for_the_program(tmp_path, small):
    free = os.statvfs(small).f_bfree

    def act(at):
        (at / "kept").write_bytes(b"k" * MIB)
        with (at / "kept").open("rb") as stream:
            os.fsync(stream.fileno())
        fd = os.open(at / "big", os.O_WRONLY | os.O_CREAT)
        failed = failing(lambda: [os.write(fd, b"x" * MIB) for _ in range(40)] and os.fsync(fd))
        assert failed in (errno.ENOSPC, errno.EIO)
        failing(os.close, fd)
        with (at / "big").open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert failing(stream.read) == errno.EIO
        with (at / "kept").open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert stream.read() == b"k" * MIB
        (tmp_path / "done").touch()
        assert until(lambda: failing(os.mkdir, at / "d") not in (0, errno.EEXIST))

    def beside(pid):
        assert until((tmp_path / "done").exists)
        os.kill(pid, signal.SIGKILL)

    inside(act, tmp_path, 64 * MIB, small, beside)
    assert until(lambda: os.statvfs(small).f_bfree == free)


@pytest.mark.root
def test_names_do_not_wait_for_a_file_system_that_stands_still(tmp_path, small):
    frozen, done = tmp_path / "frozen", tmp_path / "done"

    def act(at):
        assert until(frozen.exists)
        writers = [subprocess.Popen(["dd", "if=/dev/zero", f"of={at}/{n}", "bs=4k", "count=64"]) for n in range(6)]
        assert until(lambda: len(os.listdir(at)) == 6)
        (at / "d").mkdir()
        assert sorted(os.listdir(at)) == [*"012345", "d"]
        assert all(writer.poll() is None for writer in writers)
        done.touch()
        assert [writer.wait() for writer in writers] == [0] * 6

    def beside(_):
        subprocess.run(["fsfreeze", "-f", small], check=True)
        try:
            frozen.touch()
            assert until(done.exists)
        finally:
            subprocess.run(["fsfreeze", "-u", small], check=True)

    inside(act, tmp_path, 8 * MIB, small, beside)


@pytest.mark.root
def test_a_file_system_whose_servers_die_is_an_error_for_the_program(tmp_path):
    nodes.need(glusterfs.why_not())
    written, dead = tmp_path / "written", tmp_path / "dead"

    def act(at):
        fd = os.open(at / "f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * MIB)
        os.fsync(fd)
        assert not os.listdir()  # no name at the servers, either
        written.touch()
        assert until(dead.exists, 60)
        assert failing(lambda: [os.write(fd, b"y" * MIB) for _ in range(8)] and os.fsync(fd))
        failing(os.close, fd)
        with (at / "f").open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert failing(stream.read)

    with glusterfs.volume("network.ping-timeout=2") as system:
        place = system.directory(os.getuid(), "mine")

        def beside(_):
            assert until(written.exists, 60)
            bricks = [pid for pid, words in words_of().items() if b"glusterfsd" in words[0] and _is_of(words, system)]
            assert len(bricks) == 2
            for pid in bricks:
                os.kill(pid, signal.SIGKILL)
            dead.touch()

        os.chdir(place)
        try:
            inside(act, tmp_path, 64 * MIB, place, beside)
        finally:
            os.chdir(TREE)


def _is_of(words, system):
    return any(os.fsencode(system.where) in word for word in words)
