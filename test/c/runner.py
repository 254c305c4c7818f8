"""What sh-run does with sh-mount in the kernel way, as small as can be, and what a user might try there instead.

python3 -IS runner.py MODE HELPER IMAGE [WORD...]    as the user; WHERE in the environment is the image's mount, or what
the caches' are below: those of CACHES in the environment, words for sh-mount
    join      run the words in the namespaces that sh-mount made
    run       run them in a container: the image as root, /proc, /dev and /tmp of the host, the user as the user
    tricks    try to get the image's flags off, or a device open, and print what came of it as JSON
    attack    start sh-mount often, stop it anywhere, try to get hold of it, and print what was got as JSON
    end       have it fail often, take the descriptors that it has while it ends, and print what was got as JSON
    cache     try to get the flags of a cache off, or hold of its device, and print what came of it as JSON
    steal     start sh-mount often, stop it anywhere, try to get hold of what it and its children have open
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import time

NEWNS, NEWUSER = 0x00020000, 0x10000000
REMOUNT, BIND, MOVE, REC, NOSUID, NODEV, RDONLY = 32, 4096, 8192, 16384, 2, 4, 1
CLONE, EMPTY, RECURSIVE, HERE = 1, 0x1000, 0x8000, -100
IDMAP = 0x00100000
LIBC = ctypes.CDLL(None, use_errno=True)
CACHES = os.environ.get("CACHES", "").split()


def call(name, *arguments):
    """Call a function of the C library; bytes and None are pointers."""
    done = getattr(LIBC, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return done


def syscall(number, *arguments):
    return call("syscall", number, *arguments)


def mount(source, target, flags, kind=None, options=None):
    call("mount", source, target, kind, flags, options)


def clone_tree(path):
    return syscall(428, HERE, path, CLONE | RECURSIVE)


def set_mount(fd, path, on, off=0, userns=0):
    syscall(442, fd, path, EMPTY, struct.pack("QQQQ", on, off, 0, userns), 32)


def start(helper, image):
    """Start sh-mount and wait until it is ready; return it and where it mounted the image."""
    process = subprocess.Popen([helper, "kernel", image, *CACHES], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    where = process.stdout.readline().strip()
    if not where:
        sys.exit(process.wait())
    return process, where


def join(process):
    fd = os.pidfd_open(process.pid)
    call("setns", fd, NEWUSER | NEWNS)
    os.close(fd)


def leave(process):
    process.stdin.close()
    assert process.wait() == 0


def enter(where, proc, uid, gid):
    """Make a container of the image's mount, as lib/shoebox/enter.py does."""
    root = clone_tree(where)
    call("unshare", NEWNS)
    sources = {path: clone_tree(path) for path in (b"/proc", b"/dev", b"/tmp")}
    syscall(429, root, b"", HERE, b"/", 4)
    for path, source in sources.items():
        syscall(429, source, b"", root, path[1:], 4)
    os.fchdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", 2)
    os.chdir("/")
    call("unshare", NEWUSER)
    for name, text in (("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
        with open(name, "w", opener=lambda path, flags: os.open(path, flags, dir_fd=proc)) as file:
            file.write(text)


def tricks(where):
    """Yield (what, a function that must fail)."""
    device = where + b"/devices/zero"
    mine = b"/mnt"  # covered in this mount namespace only
    mount(b"none", mine, 0, b"tmpfs")
    for name in (b"copy", b"upper", b"work", b"over", b"moved"):
        os.mkdir(mine + b"/" + name)
    yield "open a device", lambda: os.open(device, os.O_RDONLY)
    yield "write", lambda: os.open(where + b"/etc/passwd", os.O_WRONLY)
    yield "remount the file system", lambda: mount(None, where, REMOUNT)
    yield "remount the mount", lambda: mount(None, where, REMOUNT | BIND)
    for name, flag in (("ro", RDONLY), ("nosuid", NOSUID), ("nodev", NODEV)):
        yield f"strip {name}", lambda flag=flag: set_mount(HERE, where, 0, flag)
    yield "unmount", lambda: call("umount2", where, 0)
    yield "detach", lambda: call("umount2", where, 2)
    yield "move", lambda: mount(where, mine + b"/moved", MOVE)
    yield "bind what lies below alone", lambda: mount(os.path.dirname(where), mine + b"/moved", BIND)
    yield "reconfigure", lambda: syscall(431, syscall(433, HERE, where, 0), 7, None, None, 0)
    copy = clone_tree(where)
    for name, flag in (("ro", RDONLY), ("nosuid", NOSUID), ("nodev", NODEV)):
        yield f"strip {name} of a detached copy", lambda flag=flag: set_mount(copy, b"", 0, flag)
    yield "map the owners of a copy", lambda: set_mount(copy, b"", IDMAP, 0, os.open("/proc/self/ns/user", os.O_RDONLY))
    yield "open a device in a detached copy", lambda: os.open(b"devices/zero", os.O_RDONLY, dir_fd=copy)
    syscall(429, copy, b"", HERE, mine + b"/copy", 4)
    yield "remount an attached copy", lambda: mount(None, mine + b"/copy", REMOUNT | BIND)
    yield "open a device in an attached copy", lambda: os.open(mine + b"/copy/devices/zero", os.O_RDONLY)
    options = b"userxattr,lowerdir=%s,upperdir=%s/upper,workdir=%s/work" % (where, mine, mine)
    mount(b"overlay", mine + b"/over", 0, b"overlay", options)
    yield "open a device in an overlay", lambda: os.open(mine + b"/over/devices/zero", os.O_RDONLY)
    yield "make a device", lambda: os.mknod(mine + b"/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    yield "copy a device up", lambda: os.open(os.link(mine + b"/over/devices/zero", mine + b"/over/zero") or "", 0)
    with open("/proc/self/mountinfo") as file:
        loop = next(line.split()[-2] for line in file if " squashfs " in line)
    yield "open the loop device", lambda: os.open(loop, os.O_RDONLY)
    yield "mount the loop device", lambda: mount(os.fsencode(loop), mine + b"/moved", RDONLY, b"squashfs")
    yield "enter the host's namespace", lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), NEWNS)
    call("unshare", NEWUSER | NEWNS)  # and all of it once more from a namespace below
    yield "strip nodev below", lambda: set_mount(HERE, where, 0, NODEV)
    yield "remount below", lambda: mount(None, where, REMOUNT | BIND)
    yield "unmount below", lambda: call("umount2", mine + b"/copy", 2)
    yield "open a device below", lambda: os.open(device, os.O_RDONLY)


def cache_tricks(where):
    """Yield (what, a function that must fail)."""
    cache = where + b"/1"
    with open("/proc/self/mountinfo") as file:
        loop = next(line.split()[-2] for line in file if f" {os.fsdecode(cache)} " in line)
    number = os.makedev(7, int(loop[9:]))
    mine = b"/mnt"
    mount(b"none", mine, 0, b"tmpfs")
    os.mkdir(mine + b"/moved")
    for name, flag in (("nosuid", NOSUID), ("nodev", NODEV)):
        yield f"strip {name}", lambda flag=flag: set_mount(HERE, cache, 0, flag)
    yield "remount the mount", lambda: mount(None, cache, REMOUNT | BIND)
    yield "remount the file system", lambda: mount(None, cache, REMOUNT | NOSUID | NODEV, None, b"errors=panic")
    yield "reconfigure", lambda: syscall(431, syscall(433, HERE, cache, 0), 7, None, None, 0)
    yield "unmount", lambda: call("umount2", cache, 0)
    yield "detach", lambda: call("umount2", cache, 2)
    yield "move", lambda: mount(cache, mine + b"/moved", MOVE)
    yield "bind what it is mounted in alone", lambda: mount(where, mine + b"/moved", BIND)
    yield "write into what it is mounted in", lambda: os.mkdir(where + b"/9")
    copy = clone_tree(cache)
    for name, flag in (("nosuid", NOSUID), ("nodev", NODEV)):
        yield f"strip {name} of a detached copy", lambda flag=flag: set_mount(copy, b"", 0, flag)
    mount(cache, mine + b"/moved", BIND)
    yield "remount a bound copy", lambda: mount(None, mine + b"/moved", REMOUNT | BIND)
    yield "map the owners of a copy", lambda: set_mount(copy, b"", IDMAP, 0, os.open("/proc/self/ns/user", os.O_RDONLY))
    yield "make a device", lambda: os.mknod(cache + b"/loop", stat.S_IFBLK | 0o666, number)
    yield "make a device elsewhere", lambda: os.mknod(mine + b"/loop", stat.S_IFBLK | 0o666, number)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_EXCL):
        yield f"open the loop device, {flags}", lambda flags=flags: os.open(loop, flags)
    yield "open the control of loop devices", lambda: os.open("/dev/loop-control", os.O_RDWR)
    for kind in (b"ext4", b"xfs"):
        yield f"mount the loop device as {kind}", lambda kind=kind: mount(os.fsencode(loop), mine, 0, kind)
    here = os.open(cache, os.O_RDONLY)
    for name, request in (("freeze", 0xC0045877), ("trim", 0xC0185879), ("shut down", 0x8004587D), ("map", 1)):
        yield f"{name}", lambda request=request: call("ioctl", here, request, b"\1" + b"\0" * 63)
    open(cache + b"/file", "wb").close()
    yield "make a file of it swap", lambda: call("swapon", cache + b"/file", 0)
    yield "give a file away", lambda: os.chown(cache + b"/file", 1, -1)
    call("unshare", NEWUSER | NEWNS)  # and all of it once more from a namespace below
    yield "strip nosuid below", lambda: set_mount(HERE, cache, 0, NOSUID)
    yield "remount below", lambda: mount(None, cache, REMOUNT | BIND)
    yield "unmount below", lambda: call("umount2", mine + b"/moved", 2)


def relatives(pid):
    """Yield the processes below one."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found = file.read().split()
    except OSError:
        return
    for child in map(int, found):
        yield child
        yield from relatives(child)


def steal(helper, rounds=30):
    """Yield what was got of a cache that is being made: its file, mkfs's memory, power over mkfs."""
    seen = 0
    for turn in range(rounds):
        process = subprocess.Popen([helper, "kernel", "", *CACHES], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        time.sleep(turn * 400e-6)
        os.kill(process.pid, signal.SIGSTOP)  # its children go on
        for pid in (process.pid, *relatives(process.pid)):
            seen += pid != process.pid
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            tries = {f"descriptor {fd}": lambda fd=fd, of=pidfd: syscall(438, of, fd, 0) for fd in range(3, 24)}
            tries |= {
                f"fd/{fd}": lambda fd=fd, of=pid: os.open(f"/proc/{of}/fd/{fd}", os.O_RDWR) for fd in range(3, 24)
            }
            for name in ("mem", "map_files", "fd", "root"):
                tries[name] = lambda name=name, of=pid: os.open(f"/proc/{of}/{name}", os.O_RDONLY)
            tries["maps"] = lambda of=pid: some(f"/proc/{of}/maps")
            tries["trace"] = lambda of=pid: call("ptrace", 0x4206, of, 0, 0)
            if pid != process.pid:
                tries["signal"] = lambda of=pid: os.kill(of, 0)
                tries["limit"] = lambda of=pid: resource.prlimit(of, resource.RLIMIT_FSIZE, (0, 0))
            first = who(pid).split()
            got = [name for name, act in tries.items() if outcome(act) == "done"]
            what = who(pid)
            os.close(pidfd)
            if first[1:2] == [str(os.getuid())]:  # ending what is not yet the account's for good is no gain
                got = [name for name in got if name != "signal"]
            if first[1:3] == [str(os.getuid())] * 2:  # the child in a user namespace, which only ends
                got = [name for name in got if name != "limit"]
            if got and what != "done":
                yield {"turn": turn, "got": got, "of": what}
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
    yield {"processes": seen}


def some(path):
    """Read a file; an empty one, as of a process that has just ended, is an error."""
    with open(path) as file:
        if not file.read():
            raise OSError(errno.ENODATA, "nothing")


def who(pid):
    """Tell what a process is; "done" if it is the caller for good and has nothing any more, or is not sh-mount yet."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":\t", 1) for line in file.read().splitlines())
    except OSError:
        return "done"
    own = lines["Uid"].split() == [str(os.getuid())] * 4
    own = own and (lines["NoNewPrivs"] == "1" or lines["Name"].startswith("python"))
    return "done" if own else f"{lines['Name']} {lines['Uid']}"


def outcome(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def attack(helper, image, rounds=60):
    """Yield what was got from a helper that still had a privilege, or that root had opened."""
    for turn in range(rounds):
        process = subprocess.Popen([helper, "kernel", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        time.sleep(turn * 60e-6)
        os.kill(process.pid, signal.SIGSTOP)
        proc = f"/proc/{process.pid}"
        pidfd = os.pidfd_open(process.pid)
        take = [(fd, outcome(lambda pidfd=pidfd, fd=fd: syscall(438, pidfd, fd, 0))) for fd in range(3, 24)]
        got = [f"descriptor {fd}" for fd, how in take if how == "done"]
        with open(f"{proc}/status") as file:
            status = dict(line.split(":\t", 1) for line in file.read().splitlines())
        own = (status["Uid"].split() == [str(os.getuid())] * 4) and status["NoNewPrivs"] == "1"
        tries = {
            "memory": lambda proc=proc: os.open(f"{proc}/mem", os.O_RDWR),
            "root": lambda proc=proc: os.open(f"{proc}/root", os.O_RDONLY),
            "mounts": lambda pidfd=pidfd: call("setns", pidfd, NEWNS),
            "trace": lambda process=process: call("ptrace", 0x4206, process.pid, 0, 0),
        }
        opened = [name for name, act in tries.items() if outcome(act) == "done"]
        theirs = outcome(lambda proc=proc: os.readlink(f"{proc}/ns/user")) == "done"
        if theirs and os.readlink(f"{proc}/ns/user") == os.readlink("/proc/self/ns/user") and opened:
            got += opened  # before it entered a namespace of ours
        if opened and not own and os.path.basename(os.readlink(f"{proc}/exe")) == "sh-mount":
            got += opened
        if got:
            yield {"turn": turn, "got": got, "status": status["Uid"]}
        os.close(pidfd)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def end(helper, image, rounds=40):
    """Yield the descriptors of root's that were got from a helper that failed after it had opened them."""
    plan = b"mw/etc\0t/none/such\0atrue\0" + b"eA=%s\0" % (b"x" * 90) * 20_000 + b"\0"  # much memory takes time to go
    for turn in range(rounds):
        text = os.memfd_create("plan")
        os.write(text, plan)
        process = subprocess.Popen([helper, "setuid", str(text), image], pass_fds=[text], stderr=subprocess.DEVNULL)
        os.close(text)
        pidfd = os.pidfd_open(process.pid)
        while process.poll() is None:
            for fd in range(3, 16):
                taken = LIBC.syscall(438, pidfd, fd, 0)
                if taken >= 0:
                    name = os.readlink(f"/proc/self/fd/{taken}")
                    os.close(taken)
                    if name.startswith("/dev/loop") or "fscontext" in name:
                        yield {"turn": turn, "got": name}
        os.close(pidfd)


def main(mode, helper, image, *words):
    if mode == "steal":
        print(json.dumps(list(steal(helper))))
        return
    if mode == "end":
        print(json.dumps(list(end(helper, image))))
        return
    if mode == "attack":
        print(json.dumps(list(attack(helper, image))))
        return
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    uid, gid = os.getuid(), os.getgid()
    process, where = start(helper, image)
    join(process)
    if mode in ("tricks", "cache"):
        leave(process)
        list_of = tricks if mode == "tricks" else cache_tricks
        print(json.dumps({what: outcome(act) for what, act in list_of(where)}))
        return
    if mode == "run":
        enter(where, proc, uid, gid)
    leave(process)
    os.environb[b"WHERE"] = where
    os.execvp(words[0], words)


main(*sys.argv[1:])
