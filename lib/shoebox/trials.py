"""Trials for sh-doctor: each does in a child what sh-run would do, and says why it could not. Python 3.9."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

from . import enter, linux
from . import helper as sh_mount
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 20  # seconds until a child is given up
# A squashfs with one file, nothing in it compressed: so any compressor's number can stand in its superblock, and
# whether a reader has that compressor is all that mounting it shows. lz4 has options, which a flag announces.
_IMAGE = base64.b64decode(
    "aHNxcwIAAAAAAAAAAAACAAEAAAAFABEASwcBAAQAAAAgAAAAAAAAAPcAAAAAAAAA7wAAAAAAAAD//////////3IAAAAAAAAAtAAAAAAAAADh"
    "AAAAAAAAAP//////////CIABAAAAAAAAAHNob2Vib3gKQIACAKQBAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAACAAAAAEA7QEAAAAAAAAAAAIA"
    "AAAAAAAAAgAAABwAAAADAAAAGYAAAAAAAAAAAAEAAAAAAAAAAgAEAHdvcmtzEIBqAAAAAAAAAAgAAAEAAAAAzwAAAAAAAAAEgAAAAADpAAAA"
    "AAAAAA=="
)
_NAME, _CONTENT = "works", b"shoebox\n"
_NUMBERS = {"gzip": 1, "lzo": 3, "xz": 4, "lz4": 5, "zstd": 6}
_AT = 20  # where the compressor's number stands, 2 bytes
_FLAGS, _HAS_OPTIONS = 24, 0x0400  # SQUASHFS_COMP_OPT


def image(compressor: str) -> bytes:
    """Return a squashfs for `fuse` and `unpack` to read."""
    made = bytearray(_IMAGE)
    made[_AT : _AT + 2] = _NUMBERS[compressor].to_bytes(2, "little")
    if compressor != "lz4":
        flags = int.from_bytes(made[_FLAGS : _FLAGS + 2], "little") & ~_HAS_OPTIONS
        made[_FLAGS : _FLAGS + 2] = flags.to_bytes(2, "little")
    return bytes(made)


def namespaces() -> str:
    """Make the namespaces that sh-run makes."""

    def act() -> None:
        proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
        uid, gid = os.getuid(), os.getgid()
        enter.outer(uid, gid)
        linux.unshare(linux.CLONE_NEWNS)
        enter.inner(proc, uid, gid)

    return attempt(act)


def device() -> str:
    """Open /dev/fuse."""

    def act() -> None:
        os.close(os.open("/dev/fuse", os.O_RDWR))

    return attempt(act).replace("/dev/fuse: ", "")


def fuse(program: str, path: str) -> str:
    """Mount the image at a path by squashfuse, and read it."""

    def act() -> None:
        enter.outer(os.getuid(), os.getgid())
        mount, server = enter.fuse(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC), program, path, 0, [])
        server.wait()
        fd = os.open(_NAME, os.O_RDONLY, dir_fd=mount)
        if os.read(fd, len(_CONTENT) + 1) != _CONTENT:
            raise Fail("what it reads is wrong")

    return attempt(act)


def overlay() -> str:
    """Mount an overlay in a user namespace, as --writable does, and write to it."""

    def act() -> None:
        enter.outer(os.getuid(), os.getgid())
        scratch = linux.new_mount("tmpfs", {"source": "shoebox", "mode": "755"}, 0)
        top = os.open("/", os.O_PATH)
        linux.move_mount(scratch, top, "/")
        for name in ("lower", "upper", "work"):
            os.mkdir(name, dir_fd=scratch)
        where = f"/proc/self/fd/{scratch}"
        options = {"lowerdir": f"{where}/lower", "upperdir": f"{where}/upper", "workdir": f"{where}/work"}
        mount = linux.new_mount("overlay", {"source": "shoebox", **options, "userxattr": ""}, 0)
        os.close(os.open(_NAME, os.O_WRONLY | os.O_CREAT, dir_fd=mount))

    return attempt(act)


def unpack(program: str, path: str) -> str:
    """List the image at a path by unsquashfs."""
    try:
        done = subprocess.run(
            [program, "-l", path], capture_output=True, timeout=PATIENCE, check=False, close_fds=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return f"status {done.returncode}: {said[0] if said else ''}" if done.returncode else ""


def helper(program: str, path: str) -> str:
    """Ask sh-mount for an image, and leave at once."""

    def act() -> None:
        _, _, why = sh_mount.join(sh_mount.start(program, path))
        if why:
            raise Fail(why)

    return attempt(act)


def cache(program: str, fs: str, size: int, place: str) -> str:
    """Ask sh-mount for a node cache, and leave at once. size: bytes."""

    def act() -> None:
        _, _, why = sh_mount.join(sh_mount.start(program, "", [(fs, size, place)]))
        if why:
            raise Fail(why)

    return attempt(act)


def version(program: str) -> str:
    """Return the version that squashfuse or unsquashfs calls itself, "" if it does not say."""
    word = "-version" if os.path.basename(program) == "unsquashfs" else "--version"
    try:
        done = subprocess.run([program, word], capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+\.\d[\w.-]*", (done.stdout + done.stderr).decode(errors="replace"))
    return found[0] if found else ""


def attempt(act: Callable[[], None]) -> str:
    """Do something in a child; return why it failed, or ""."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        try:
            act()
            said = ""
        except Fail as error:
            said = str(error)
        except OSError as error:
            said = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        os.write(there, f"!{said}".encode(errors="replace"))
        os._exit(0)
    os.close(there)
    with open(here, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not said:
        return (
            f"no answer within {PATIENCE} s" if status == -signal.SIGALRM else f"the trial ended with status {status}"
        )
    return said[1:]
