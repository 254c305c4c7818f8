"""Looks at the host: who runs us, where, with what; and what sort of file the image is. Changes nothing."""

from __future__ import annotations

import os

from .facts import DIRECTORY, FILE, MISSING
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .identity import Person

_TYPE, _IS_DIRECTORY, _IS_FILE = 0o170000, 0o040000, 0o100000  # of st_mode: stat's functions for them are an import
_WHERE = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_SWITCHES = (
    ("user.max_user_namespaces", "0", "set it to 10000"),
    ("kernel.unprivileged_userns_clone", "0", "set it to 1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "set it to 0, or give sh-run an AppArmor profile"),
)


def environ() -> dict[str, str]:
    """Return the environment as we were given it: Python itself adds LC_CTYPE where there is no locale (PEP 538)."""
    env = dict(os.environ)
    if env.get("LC_CTYPE") == "C.UTF-8" and b"\0LC_CTYPE=" not in b"\0" + slurp("/proc/self/environ"):
        del env["LC_CTYPE"]
    return env


def person(env: dict[str, str]) -> Person:
    """Return who runs us, as NSS knows them. To be asked before any namespace: its sources check who asks."""
    import grp  # noqa: PLC0415 - asking NSS may be slow: only who needs the answer pays
    import pwd  # noqa: PLC0415

    from .identity import Person  # noqa: PLC0415 - a rank that joins needs none of this

    uid, gid = os.getuid(), os.getgid()
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = ""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Person(uid, gid, "", group, env.get("HOME", ""))
    return Person(uid, gid, entry.pw_name, group, env.get("HOME") or entry.pw_dir, entry.pw_gecos)


def cwd() -> str:
    """Return the current directory, "" if it was removed or is not under our root."""
    try:
        path = os.getcwd()
    except OSError:
        return ""
    return path if path.startswith("/") else ""


def descriptors(env: dict[str, str]) -> list[int]:
    """Return the open descriptors that a command of a parallel job needs: the one of PMI-1."""
    try:
        fd = int(env.get("PMI_FD", ""))
        os.fstat(fd)
    except (ValueError, OverflowError, OSError):
        return []
    return [fd] if fd > 2 else []


def given(env: dict[str, str]) -> list[int]:
    """Take what Slurm's plugin gave us out of the environment: a socket, then what it keeps for the job; or nothing."""
    try:
        fds = list(map(int, env.pop("SHOEBOX_GIVE", "").split(",")))
        for fd in fds:
            os.set_inheritable(fd, False)
    except (ValueError, OverflowError, OSError):
        return []
    return fds if min(fds) > 2 else []


def shell(env: dict[str, str]) -> str:
    """Return the user's shell, "" if there is no telling."""
    import pwd  # noqa: PLC0415 - see person

    try:
        return env.get("SHELL") or pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:
        return ""


def can_type() -> bool:
    """Tell whether this kernel lets a program type on its terminal, for whoever uses that afterwards."""
    return slurp("/proc/sys/dev/tty/legacy_tiocsti") != b"0\n"


def can_be_typed_for() -> bool:
    """Tell whether there is a terminal that a program of ours could type on."""
    if not can_type():
        return False
    if any(map(os.isatty, (0, 1, 2))):
        return True
    return stat("/proc/self/stat")[4:5] != ["0"]  # tty_nr: the controlling terminal


def tool(names: Iterable[str], env: dict[str, str]) -> str:
    """Return the path of the first of these programs that is there, "" if none is."""
    where = [d for d in f"{env.get('PATH', '')}:{_WHERE}".split(":") if d.startswith("/")]
    candidates = (os.path.join(directory, name) for name in names for directory in where)
    return next((path for path in candidates if os.access(path, os.X_OK)), "")


def why_no_device(path: str) -> str:
    """Return why a device cannot be opened for reading and writing, "" if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def why_no_namespaces() -> tuple[str, str]:
    """Return why this kernel refuses us user namespaces, "" if it does not say, and what to do."""
    for name, off, todo in _SWITCHES:
        if slurp("/proc/sys/" + name.replace(".", "/")).strip() == off.encode():
            return f"{name} is {off} on this machine", f"ask its administrator to {todo}"
    return "", "ask this machine's administrator for unprivileged user namespaces"


def image(path: str) -> tuple[str, int]:
    """Return whether the image is a `directory` or a `squashfs`, and at which byte the latter begins. Raises Fail."""
    from . import superblock  # noqa: PLC0415 - see person

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Fail(f"cannot open image {path!r}", error) from error
    try:
        about = os.fstat(fd)
        if about.st_mode & _TYPE == _IS_DIRECTORY:
            return DIRECTORY, 0
        if about.st_mode & _TYPE != _IS_FILE:
            raise Fail(f"cannot use image {path!r}", "it is neither a file nor a directory")
        header = os.pread(fd, superblock.HEAD, 0)
        offset, size = 0, about.st_size
        if header[32:41] == b"SIF_MAGIC":
            from . import sif  # noqa: PLC0415 - few images are SIF files

            offset, size = sif.locate(lambda at, length: os.pread(fd, length, at), size, path)
            header = os.pread(fd, superblock.HEAD, offset)
        superblock.check(header, size, path)
        return "squashfs", offset
    finally:
        os.close(fd)


def kind(path: str) -> str:
    """Return the kind of what is at a path, or a phrase that says why we cannot know."""
    try:
        return DIRECTORY if os.stat(path).st_mode & _TYPE == _IS_DIRECTORY else FILE
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as error:
        return error.strerror or str(error)


def text(path: str) -> str | None:
    """Return a file's text, None if there is no such file. Raises Fail."""
    try:
        with open(path, "rb", 0) as file:
            return os.fsdecode(file.readall())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error


def stat(path: str, directory: int | None = None) -> list[str]:
    """Return what a /proc/PID/stat says, from its third field on; [] if the process has ended."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        return os.read(fd, 4096).rpartition(b") ")[2].decode().split()
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)


def slurp(path: str) -> bytes:
    """Return a file of the kernel's, b"" if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    finally:
        os.close(fd)
