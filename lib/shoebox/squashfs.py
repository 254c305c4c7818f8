"""Squashfs writers: the tools that turn a tar stream into an image, which of them are here, and how each is told.

tar2sqfs (squashfs-tools-ng) takes entries in any order in 23 MB of memory; mksquashfs -tar (squashfs-tools 4.5) wants
parents first and takes a gigabyte; an older mksquashfs gets an unpacked tree (unpack.py). All write the same settings.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import linux
from .fail import LATER, USAGE, Fail
from .superblock import COMPRESSORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .unpack import Tree

BLOCK_SIZE = 131072  # bytes; read 2 x faster than 1 MiB blocks by many small readers, at 2 % more size
_LEVELS = {"zstd": range(1, 23), "gzip": range(1, 10), "lzo": range(1, 10)}
_LIBRARIES = {"zstd": "libzstd.so", "gzip": "libz.so", "lz4": "liblz4.so", "xz": "liblzma.so", "lzo": "liblzo2.so"}
_PIPE = 1 << 20  # bytes: /proc/sys/fs/pipe-max-size
TAR2SQFS, MKSQUASHFS_TAR, MKSQUASHFS = "tar2sqfs", "mksquashfs -tar", "mksquashfs"
PROGRAMS = (TAR2SQFS, MKSQUASHFS_TAR, MKSQUASHFS)


@dataclass(frozen=True)
class Settings:
    """How an image is to be written. level: 0 where the compressor has none; jobs: processors to use."""

    compressor: str
    level: int
    jobs: int


@dataclass(frozen=True)
class Root:
    """What an image's top directory is to be. mtime: seconds."""

    mode: int = 0o755
    mtime: int = 0


@dataclass(frozen=True)
class Writer:
    """One of the tools: its program (TAR2SQFS …), where it is, its version."""

    program: str
    path: str
    version: str

    def record(self, settings: Settings) -> dict[str, object]:
        """Return what the sidecar says of it: all that the bytes of an image depend on besides what is in it."""
        return {
            "program": self.program,
            "version": self.version,
            "compressor": settings.compressor,
            "level": settings.level or None,
            "block_size": BLOCK_SIZE,
            "library": _library(self.path, settings.compressor),
        }


ROOT = Root()


def settings(compressor: str, level: str, jobs: str) -> Settings:
    """Check what the user asked for. Raises Fail (USAGE)."""
    if compressor not in COMPRESSORS:
        raise Fail(f"unknown compressor {compressor!r}", todo=f"choose one of {', '.join(COMPRESSORS)}", status=USAGE)
    levels = _LEVELS.get(compressor)
    if level and (levels is None or not level.isdecimal() or int(level) not in levels):
        why = f"{compressor} has {f'levels {levels[0]} to {levels[-1]}' if levels else 'no levels'}"
        raise Fail(f"not a level: {level!r}", why, status=USAGE)
    if jobs and not (jobs.isdecimal() and 0 < int(jobs) < 4096):
        raise Fail(f"not a number of jobs: {jobs!r}", status=USAGE)
    usual = {"zstd": 3, "gzip": 6, "lzo": 8}.get(compressor, 0)
    return Settings(compressor, int(level) if level else usual, int(jobs) if jobs else len(os.sched_getaffinity(0)))


def find() -> Writer:
    """Return the best writer on PATH. Raises Fail if there is none."""
    path = shutil.which("tar2sqfs")
    if path:
        return Writer(TAR2SQFS, path, _said([path, "--version"]))
    path = shutil.which("mksquashfs")
    if not path:
        todo = "install squashfs-tools-ng (or squashfs-tools)"
        raise Fail("no squashfs writer", "neither tar2sqfs nor mksquashfs is on PATH", todo)
    version = _said([path, "-version"])
    new = tuple(map(int, re.findall(r"\d+", version)[:2])) >= (4, 5)  # EL 9's is 4.4-git.1
    return Writer(MKSQUASHFS_TAR if new else MKSQUASHFS, path, version)


def _said(command: list[str]) -> str:
    """Return the version that a tool prints: the first word that looks like one."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_environment())
    found = re.search(rb"\d+\.\d[\w.-]*", done.stdout)
    if not found and done.returncode < 0:
        raise Fail(f"cannot use {command[0]!r}", f"killed by signal {-done.returncode}", "try again", LATER)
    if not found:
        raise Fail(f"cannot use {command[0]!r}", "it tells no version")
    return found[0].decode()


def _library(path: str, compressor: str) -> str | None:
    """Return the file of the compressor's library that a tool loads, `libzstd.so.1.5.4`; None if it is built in."""
    ldd = shutil.which("ldd")
    if not ldd:
        return None
    listed = subprocess.run([ldd, path], capture_output=True, text=True, check=False).stdout
    found = re.search(rf"=> (\S*/{re.escape(_LIBRARIES[compressor])}\S*)", listed)
    return os.path.basename(os.path.realpath(found[1])) if found else None


def _environment(newest: int = 0) -> Mapping[str, str]:
    """Return the environment for a writer: no time of day in the image, messages that we can read.

    newest: seconds; what has no time gets it, and mksquashfs allows no time after it.
    """
    return {**os.environ, "SOURCE_DATE_EPOCH": str(newest), "LC_ALL": "C"}


def _command(writer: Writer, settings: Settings, output: str, root: Root) -> list[str]:
    level = str(settings.level)
    if writer.program == TAR2SQFS:
        # -s: stop at what it cannot read, rather than skip it; -S: leave symlinks' targets alone
        extra = ["-X", f"level={level}"] if settings.level and settings.compressor != "lzo" else []
        options = ["-q", "-s", "-S", "-f", "-b", str(BLOCK_SIZE), "-j", str(settings.jobs)]
        return [writer.path, *options, "-c", settings.compressor, *extra, output]
    extra = ["-Xcompression-level", level] if settings.level else []
    options = ["-tar", "-noappend", "-quiet", "-no-progress", "-exit-on-error", "-root-mode", f"{root.mode:o}"]
    jobs = ["-b", str(BLOCK_SIZE), "-processors", str(settings.jobs)]
    return [writer.path, "-", output, *options, *jobs, "-comp", settings.compressor, *extra]


def pack(writer: Writer, settings: Settings, tree: Tree, newest: int, output: str) -> None:
    """Make an image of an unpacked tree. newest: no time in it will be later, seconds."""
    options = ["-noappend", "-no-progress", "-no-exports", "-b", str(BLOCK_SIZE), "-comp", settings.compressor]
    level = ["-Xcompression-level", str(settings.level)] if settings.level else []
    jobs = ["-processors", str(settings.jobs), "-pf", tree.definitions]
    # Where the image has none, the files here have what this host gives to every file: SELinux labels.
    attributes = [] if tree.attributes else ["-no-xattrs"]
    with _held(output) as held:
        done = subprocess.run(
            [writer.path, tree.path, output, *options, *level, *jobs, *attributes],
            stdout=subprocess.DEVNULL,
            env=_environment(newest),
            check=False,
            preexec_fn=_end_with_us,
        )
        if done.returncode:
            raise _failed(writer, held, output, f"exit status {done.returncode}")


def _end_with_us() -> None:
    """Let the tool be killed when we are; one that reads from us ends by itself."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


class Sink:
    """A running writer: write() it a tar stream, and finish() it."""

    def __init__(self, writer: Writer, settings: Settings, output: str, root: Root, held: int) -> None:
        """Start the tool; its stderr is ours. output: a path that may be written over; held: a descriptor of it."""
        self._writer, self._output, self._held = writer, output, held
        command = _command(writer, settings, output, root)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=_environment(root.mtime)
        )
        if self._process.stdin is None:
            raise Fail("no pipe to the writer")
        self._fd = self._process.stdin.fileno()
        with contextlib.suppress(OSError):  # a small pipe is slower, and as good
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def write(self, data: memoryview | bytes) -> None:
        """Hand over some more of the stream. Raises Fail if the tool has gone."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError:
            self.finish()
            raise _failed(self._writer, self._held, self._output, "it stopped reading") from None

    def finish(self) -> None:
        """Wait for the tool to end. Raises Fail if it did not do well."""
        if self._process.stdin:
            self._process.stdin.close()
        status = self._process.wait()
        if status:
            how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
            raise _failed(self._writer, self._held, self._output, how)

    def stop(self) -> None:
        """End the tool, wherever it is."""
        self._process.kill()
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def _held(output: str) -> Iterator[int]:
    """Make the file and yield a descriptor of it: a tool that removes it then does not hide that the disk is full."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def _failed(writer: Writer, held: int, output: str, how: str) -> Fail:
    """Return why a tool failed: for want of space, if no more can be written to its file."""
    try:
        for _ in range(2):  # the first may get some of it written
            os.pwrite(held, bytes(_PIPE), os.fstat(held).st_size)
        os.fsync(held)
    except OSError as error:
        todo = "free some space, or choose another place with -d or -o"
        return Fail(f"cannot write to {os.path.dirname(output)!r}", error, todo)
    return Fail(f"{writer.program} failed", how, "see what it says above")


@contextlib.contextmanager
def sink(writer: Writer, settings: Settings, output: str, root: Root = ROOT) -> Iterator[Sink]:
    """Run a writer for the length of a with statement; whatever goes wrong inside, it is gone at the end.

    root: for MKSQUASHFS_TAR, which takes no such entry; its mtime is the latest of all times.
    """
    with _held(output) as held:
        running = Sink(writer, settings, output, root, held)
        try:
            yield running
            running.finish()
        finally:
            running.stop()
