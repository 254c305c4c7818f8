"""Publishing on a host that takes files in by rsync and gives nothing: what publish.py does, as far as rsync can.

The other end may be `rrsync -wo`, so that nothing is known of the store but what a dry run tells. rsync checks each
file that it sends by a digest of its own, and renames it when that is right: the sidecar, then the image. Where they
take the place of others, --delay-updates lets both appear one right after the other, at the end. The names follow by
another connection: symlinks would be made before the files.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from . import publish, ssh
from .fail import FAILED, LATER, Fail
from .image import pour
from .store import image_file, sidecar_file

if TYPE_CHECKING:
    from .image import Image
    from .readers import Readers
    from .systems import Place

# rsync(1), EXIT VALUES: sockets, files (a full disk), the other end gone, signals, timeouts; 255 is ssh's.
_MAY_WORK_LATER = (10, 11, 12, 20, 30, 35, 255)
_NO_CONNECTION = 255
_NEW = b"<f++"  # of a file to be sent that is not there: --itemize-changes
_WORDS = ["rsync", "-tO", f"--rsh=ssh {' '.join(ssh.UNATTENDED)}", "--timeout=600", "--mkpath", "--fsync"]


def send(place: Place, source: Image, readers: Readers) -> str:
    """Copy an image into the store of another host, unless it is there; return its `host:path`.

    Its directory begins with a slash. readers: with no users and no groups. Raises Fail.
    """
    file, mode = image_file(source.known.hex), readers.mode
    # Files that are there keep their modes, and directories, but for what is to be private, or is asked for.
    chmod = f"--chmod=F{0o600 if readers.private else 0o644 if mode is None else mode:o}"
    new = [chmod, "--perms"] if readers.private or mode is not None else [chmod]
    held = [chmod, "--perms"] if mode is not None and mode & 0o004 else [chmod]
    with tempfile.TemporaryDirectory(prefix="sh-stage-") as work, tempfile.TemporaryFile() as spool:
        try:
            image = _tree(work, file, source, spool.fileno(), 0o775 if mode is None else publish.directory_mode(mode))
        except OSError as error:
            raise Fail(f"cannot write to {tempfile.gettempdir()!r}", error, "free space, or set TMPDIR") from error
        there = _Store(source, place)
        # By size and time: a file of this name was checked when it got there. Of directories it tells first.
        found = there.call("-L", "--dry-run", "--out-format=%i", image)
        if found:
            source.check(_poured(source, None))
            keep = [] if found.splitlines()[-1].startswith(_NEW) else _keep(place.directory)
            there.call("-L", *new, *keep, sidecar_file(image), image)
        else:
            there.call("-L", *held, sidecar_file(image), image)  # the time of staging
        there.call("-rl", f"{work}/names/")
    return place.path(file)


def _keep(directory: str) -> list[str]:
    """Return the options by which an image of other settings, and its sidecar, are kept where the others are."""
    away = f"{directory.rstrip('/')}/{publish.RETIRED}"
    return [
        "--delay-updates",
        "--backup",
        f"--backup-dir={away}",
        f"--suffix=.{int(time.time())}-{os.urandom(4).hex()}",
    ]


class _Store:
    """A store at the other end, for an image here."""

    def __init__(self, source: Image, place: Place) -> None:
        self.source, self.place = source, place

    def call(self, *words: str) -> bytes:
        """Have rsync do something there; return what it prints. Raises Fail."""
        called = [*_WORDS, *words, self.place.path("")]
        try:
            done = subprocess.run(
                called, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, preexec_fn=ssh.end_with_us, check=False
            )
        except FileNotFoundError as error:
            raise Fail("cannot start rsync", error, "install rsync 3.2.4 or newer") from error
        if done.returncode:
            raise self._failure(done.returncode)
        return done.stdout

    def _failure(self, status: int) -> Fail:
        if status == _NO_CONNECTION:
            return self.source.uncopied(self.place, "the ssh connection failed", "see what ssh says above", LATER)
        later = LATER if status in _MAY_WORK_LATER else FAILED
        return self.source.uncopied(self.place, f"rsync ended with status {status}", "see what it says above", later)


def _tree(work: str, file: str, source: Image, spool: int, directory_mode: int) -> str:
    """Make the files to send in a directory; return the path of the image among them, a symlink. spool: of a file."""
    image = os.path.join(work, file)
    if source.offset:  # of a SIF file, a part
        _poured(source, spool)
        about = os.fstat(source.fd)
        os.utime(spool, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.symlink(f"/proc/{os.getpid()}/fd/{spool if source.offset else source.fd}", image)
    with open(sidecar_file(image), "wb") as beside:
        beside.write(source.sidecar)
    names = os.path.join(work, "names")
    os.mkdir(names)
    for stem in source.stems:
        where = names
        for part in stem.split("/")[:-1]:
            where = os.path.join(where, part)
            if not os.path.isdir(where):
                os.mkdir(where)
                os.chmod(where, directory_mode)
        os.symlink("../" * stem.count("/") + file, os.path.join(names, f"{stem}.sqfs"))
    return image


def _poured(source: Image, fd: int | None) -> str:
    """Write an image to a descriptor, if there is one; return its sha256."""
    return pour(source.fd, source.offset, source.size, fd, lambda _: None)
