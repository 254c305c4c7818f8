"""Looks at shared libraries: the host's, as its dynamic linker finds them, and an image's. Changes nothing."""

from __future__ import annotations

import os

from . import elf, glibc, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = 16 << 20  # bytes of what a program prints
_INSIDE = linux.IN_ROOT | linux.NO_MAGICLINKS


def of_glibc(root: int) -> dict[str, set[str]]:
    """Return the versions that the image's glibc has, by library; {} if there is none where we look."""
    for directory in glibc.DIRECTORIES:
        found = {}
        for name in glibc.VERSIONED:
            try:
                found[name] = inside(root, f"{directory}/{name}").defines
            except (OSError, ValueError):
                continue
        if glibc.LIBC in found:
            return found
    return {}


def inside(root: int, path: str) -> elf.Library:
    """Read a library of the image. Raises OSError or ValueError."""
    return read(linux.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, _INSIDE), machine())


def read(fd: int, kind: int) -> elf.Library:
    """Read a library, which must be for a machine of this kind, and close it. Raises OSError or ValueError."""
    try:
        if elf.machine(os.pread(fd, elf.HEAD, 0)) != kind:
            raise ValueError("it is not for this machine")
        return elf.read(lambda at, length: os.pread(fd, length, at))
    finally:
        os.close(fd)


def machine() -> int:
    """Return for which machine we ourselves are."""
    with open("/proc/self/exe", "rb", 0) as file:
        return elf.machine(file.read(elf.HEAD))


def names(root: int, directory: str) -> list[str]:
    """Return the names in a directory of the image, [] if it is not there."""
    if root < 0:
        return []
    try:
        fd = linux.openat2(root, directory, os.O_RDONLY | os.O_DIRECTORY, _INSIDE)
    except OSError:
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def output(program: str, *words: str, env: Mapping[str, str] | None = None) -> str:
    """Return what a program prints, whatever its status. Raises OSError."""
    out, null = os.memfd_create("stdout"), os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((null, 0), (out, 1), (null, 2))]
    pid = os.posix_spawn(program, [program, *words], env or {}, file_actions=actions)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:  # whoever started us ignores SIGCHLD; the kernel has waited until it ended
        pid = 0
    try:
        return os.fsdecode(os.pread(out, _MOST, 0))
    finally:
        os.close(out)
        os.close(null)


def linker() -> str:
    """Return this machine's dynamic linker, as our own interpreter names it. Raises OSError or ValueError."""
    with open("/proc/self/exe", "rb", 0) as file:
        found = elf.interpreter(lambda at, length: os.pread(file.fileno(), length, at))
    if not found:
        raise ValueError("this Python has no dynamic linker")
    return found


def linked(paths: list[str], env: Mapping[str, str]) -> dict[str, str]:
    """Return the libraries that these need, and they themselves, by name, with their paths, "" where there is none.

    As the dynamic linker of this machine finds them, which lists them itself (ld.so(8)). Raises OSError or ValueError.
    """
    asks = {name: env[name] for name in ("LD_LIBRARY_PATH",) if env.get(name)}
    asks["LD_PRELOAD"] = ":".join(paths[1:])
    found = {os.path.basename(path): path for path in paths}
    for line in output(linker(), "--list", paths[0], env=asks).splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow:
            found.setdefault(name, "" if rest.startswith("not found") else rest.partition(" (0x")[0])
    return found
