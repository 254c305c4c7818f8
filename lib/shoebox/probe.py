"""Looks: what is there, on the host and in the image, before anything is decided. Changes nothing."""

from __future__ import annotations

import errno
import os

from . import linux
from .identity import Person
from .plan import DIRECTORY, FILE, MISSING, Facts, Host, Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIG = "/.shoebox/config.json"
_ACCOUNTS_MOST = 1 << 20  # bytes of passwd(5) that we copy
_CONFIG_MOST = 16 << 20
_LINKS_MOST = 40  # as many as the kernel follows
_WHERE = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_SWITCHES = (
    ("user.max_user_namespaces", "0", "set it to 10000"),
    ("kernel.unprivileged_userns_clone", "0", "set it to 1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "set it to 0, or give sh-run an AppArmor profile"),
)


def environ() -> dict[str, str]:
    """Return the environment as we were given it: Python itself adds LC_CTYPE where there is no locale (PEP 538)."""
    env = dict(os.environ)
    if env.get("LC_CTYPE") == "C.UTF-8" and b"\0LC_CTYPE=" not in b"\0" + _slurp("/proc/self/environ"):
        del env["LC_CTYPE"]
    return env


def host(env: dict[str, str]) -> Host:
    """Return what is outside."""
    person = _person(env)
    try:
        cwd = os.getcwd()
    except OSError:  # removed under our feet, or out of our root
        cwd = ""
    descriptors = [int(fd) for fd in (env.get("PMI_FD", ""),) if fd.isdecimal()]
    return Host(
        env,
        person,
        home=os.path.realpath(person.home),
        cwd=cwd if cwd.startswith("/") else "",
        terminal=_slurp("/proc/sys/dev/tty/legacy_tiocsti") != b"0\n" and _terminal(),
        descriptors=descriptors,
    )


def _person(env: dict[str, str]) -> Person:
    import pwd  # noqa: PLC0415 - asking NSS may be slow: only who needs the answer pays

    uid, gid = os.getuid(), os.getgid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Person(uid, gid, "", _group(gid), env.get("HOME", ""))
    return Person(uid, gid, entry.pw_name, _group(gid), env.get("HOME") or entry.pw_dir, entry.pw_gecos)


def _group(gid: int) -> str:
    import grp  # noqa: PLC0415 - as above

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _terminal() -> bool:
    """Tell whether there is a terminal that a program inside could type on."""
    if any(map(os.isatty, (0, 1, 2))):
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def tool(names: Iterable[str], env: dict[str, str]) -> str:
    """Return the path of the first of these programs that is there, ""."""
    where = [d for d in f"{env.get('PATH', '')}:{_WHERE}".split(":") if d.startswith("/")]
    candidates = (os.path.join(directory, name) for name in names for directory in where)
    return next((path for path in candidates if os.access(path, os.X_OK)), "")


def why_no_namespaces() -> tuple[str, str]:
    """Return why this kernel gives us no user namespaces, and what to do: after it has refused."""
    for name, off, todo in _SWITCHES:
        if _slurp("/proc/sys/" + name.replace(".", "/")).strip() == off.encode():
            return f"{name} is {off} on this machine", f"ask its administrator to {todo}"
    return "", "ask this machine's administrator for unprivileged user namespaces"


def image(root: int, paths: Iterable[str]) -> dict[str, Look]:
    """Look at each of these paths in the image whose root directory is open as root."""
    return {path: _look(root, path) for path in paths}


def facts(root: int, looks: dict[str, Look], host_paths: Iterable[str]) -> Facts:
    """Return all that plan wants to know: add what the host has, and the image's accounts."""
    notes: list[str] = []
    passwd, group = (_read_or_note(root, path, notes) for path in ("/etc/passwd", "/etc/group"))
    return Facts(looks, {path: _kind(path) for path in host_paths}, passwd, group, notes)


def read_config(root: int) -> bytes:
    """Return the config that travels in the image, b"" if there is none. Raises OSError."""
    try:
        return _read(root, CONFIG, _CONFIG_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _kind(path: str) -> str:
    """Return the kind of a path on the host, or what is wrong with it."""
    try:
        return DIRECTORY if os.stat(path).st_mode & 0o170000 == 0o040000 else FILE
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as error:
        return error.strerror or str(error)


def _look(root: int, path: str) -> Look:
    """Look at a path in the image. Where a link leads to nothing, the place it leads to is what is missing."""
    wanted = path
    for _ in range(_LINKS_MOST):
        try:
            fd = linux.openat2(root, wanted, os.O_PATH, linux.IN_ROOT | linux.NO_MAGICLINKS)
        except FileNotFoundError:
            wanted, missing = _follow(root, wanted)
            if missing:
                return Look(wanted, MISSING)
            continue
        except NotADirectoryError:
            return Look(wanted, MISSING, "in the image, something on the way to it is not a directory")
        except OSError as error:
            loop = error.errno == errno.ELOOP
            return Look(
                wanted, MISSING, "its symbolic links lead nowhere" if loop else f"in the image: {error.strerror}"
            )
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            return Look(real, DIRECTORY if os.fstat(fd).st_mode & 0o170000 == 0o040000 else FILE)
        finally:
            os.close(fd)
    return Look(wanted, MISSING, "its symbolic links lead nowhere")


def _follow(root: int, path: str) -> tuple[str, bool]:
    """Return (path without a symbolic link, True) if that is missing, else (where a dangling link leads, False)."""
    head, rest = path, ""
    while True:
        head, _, name = head.rpartition("/")
        try:
            fd = linux.openat2(root, head or "/", os.O_PATH, linux.IN_ROOT | linux.NO_MAGICLINKS)
        except FileNotFoundError:
            rest = f"/{name}{rest}"
            continue
        try:
            real = os.readlink(f"/proc/self/fd/{fd}").rstrip("/")
            try:
                link = os.readlink(name, dir_fd=fd)
            except OSError:  # there is nothing of that name
                return f"{real}/{name}{rest}", True
            return os.path.normpath("/" + os.path.join(real, link).lstrip("/") + rest), False
        finally:
            os.close(fd)


def _read_or_note(root: int, path: str, notes: list[str]) -> bytes:
    try:
        return _read(root, path, _ACCOUNTS_MOST)
    except FileNotFoundError:
        return b""
    except OSError as error:
        notes.append(f"cannot read the image's {path!r}: {error.strerror}")
        return b""


def _read(root: int, path: str, most: int) -> bytes:
    """Read a file of the image. Raises OSError, also if it is no regular file or has more bytes than most."""
    fd = linux.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, linux.IN_ROOT | linux.NO_MAGICLINKS)
    try:
        about = os.fstat(fd)
        if about.st_mode & 0o170000 != 0o100000:
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", path)
        return _all(fd, most)
    finally:
        os.close(fd)


def _all(fd: int, most: int) -> bytes:
    parts = [b""]
    while (part := os.read(fd, 1 << 16)) and len(parts) << 16 <= most + (1 << 16):
        parts.append(part)
    return b"".join(parts)


def _slurp(path: str) -> bytes:
    """Return a small file of the kernel's, b"" if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return _all(fd, 16 << 20)
    finally:
        os.close(fd)
