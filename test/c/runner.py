"""What sh-run does with sh-mount in the kernel way, as small as can be, and what a user might try there instead.

python3 -IS runner.py MODE HELPER IMAGE [WORD...]    as the user; WHERE in the environment is the image's mount
    join      run the words in the namespaces that sh-mount made
    run       run them in a container: the image as root, /proc, /dev and /tmp of the host, the user as the user
    tricks    try to get the image's flags off, or a device open, and print what came of it as JSON
    attack    start sh-mount often, stop it anywhere, try to get hold of it, and print what was got as JSON
    end       have it fail often, take the descriptors that it has while it ends, and print what was got as JSON
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
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
    process = subprocess.Popen([helper, "kernel", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
    if mode == "tricks":
        leave(process)
        print(json.dumps({what: outcome(act) for what, act in tricks(where)}))
        return
    if mode == "run":
        enter(where, proc, uid, gid)
    leave(process)
    os.environb[b"WHERE"] = where
    os.execvp(words[0], words)


main(*sys.argv[1:])
