"""Publishing on a host that gives files but no shell: what publish.py does, done there by SFTP, as scp(1) uses it."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from . import publish, sidecar, ssh
from .fail import LATER, Fail
from .image import blocks
from .sftp import Sftp, connected
from .store import image_file, sidecar_file

if TYPE_CHECKING:
    from .image import Image
    from .readers import Readers
    from .systems import Place


def send(place: Place, source: Image, readers: Readers) -> str:
    """Copy an image into the store of another host, unless its content is there; return its `host:path`.

    A directory that does not begin with a slash is below where the server lets us in. readers: with no
    users and no groups. Raises Fail.
    """
    try:
        with connected(place.host) as there:
            if b"posix-rename@openssh.com" not in there.extensions:
                why = "its SFTP server cannot rename a file over another"
                raise source.uncopied(place, why, "it needs that of OpenSSH")
            _Store(there, place, readers).take_in(source)
    except ConnectionError as error:
        raise source.uncopied(place, str(error), f"try: sftp {place.host}", LATER) from error
    except OSError as error:
        raise source.uncopied(place, error) from error
    return place.path(image_file(source.known.hex))


class _Store:
    """A store at the other end."""

    def __init__(self, there: Sftp, place: Place, readers: Readers) -> None:
        self.there, self.place, self.readers = there, place, readers
        self.top = ssh.under_home(place.directory).rstrip("/")
        self.part = f"{self.top}/{os.path.basename(publish.temporary(''))}"

    def take_in(self, source: Image) -> None:
        """Do all of it. Raises OSError, Fail."""
        image = f"{self.top}/{image_file(source.known.hex)}"
        self._make(self.top or "/")
        self._sweep()
        if self._holds(image, source):
            with suppress(PermissionError):  # another's
                self.there.touch(sidecar_file(image))
            if self.readers.mode is not None and self.readers.mode & 0o004:  # or it stays as private as it is
                for path in (image, sidecar_file(image)):
                    self.there.chmod(path, self.readers.mode)
        else:
            try:
                self._copy(image, source)
            finally:
                for left in (self.part, f"{self.part}j"):
                    with suppress(OSError):
                        self.there.remove(left)
        for stem in source.stems:
            self._name(stem, image_file(source.known.hex))

    def _holds(self, image: str, source: Image) -> bool:
        line = sidecar.first_line(source.known.sha256, source.size) + b"\n"
        try:
            return self.there.stat(image)[0] == source.size and self.there.read(sidecar_file(image), len(line)) == line
        except FileNotFoundError:
            return False

    def _copy(self, image: str, source: Image) -> None:
        """Copy both files, and let them appear: the sidecar first, so that who sees the image sees both."""
        digest = hashlib.sha256()
        mode = 0o600 if self._private(image) else self.readers.begin
        try:
            with self.there.create(self.part, mode) as file:
                for block in blocks(source.fd, source.offset, source.size):
                    digest.update(block)
                    file.write(block)
                size = file.finish()
            with self.there.create(f"{self.part}j", mode) as file:
                file.write(source.sidecar)
                beside = file.finish()
        except OSError as error:
            if isinstance(error, (PermissionError, ConnectionError)):
                raise
            raise self._full(source, str(error.strerror or error)) from error  # the protocol tells no more
        source.check(digest.hexdigest())
        if (size, beside) != (source.size, len(source.sidecar)):
            raise self._full(source, f"{size} of {source.size} bytes arrived")
        if self.readers.mode is not None:
            self.there.chmod(self.part, self.readers.mode)
            self.there.chmod(f"{self.part}j", self.readers.mode)
        self._retire(image)
        self.there.rename(f"{self.part}j", sidecar_file(image))
        self.there.rename(self.part, image)

    def _private(self, image: str) -> bool:
        """Tell whether not everybody may read what has the image's name: then its successor is for nobody else."""
        try:
            return not self.there.stat(image)[1] & 0o004
        except FileNotFoundError:
            return False

    def _full(self, source: Image, why: str) -> Fail:
        return source.uncopied(self.place, f"it did not fit, or failed ({why})", "make room, and try again", LATER)

    def _name(self, stem: str, file: str) -> None:
        """Let a name mean an image."""
        path, meant = f"{self.top}/{stem}.sqfs", "../" * stem.count("/") + file
        with suppress(OSError):  # there is none, or it is no link
            if self.there.readlink(path) == meant:
                return
        self._make(os.path.dirname(path))
        self.there.symlink(meant, self.part)
        try:
            self.there.rename(self.part, path)
        except OSError:
            self.there.remove(self.part)
            raise

    def _retire(self, image: str) -> None:
        """Move what has the image's name, and its sidecar, where who runs from it keeps it."""
        away = f"{self.top}/{publish.RETIRED}/{os.path.basename(image)[: -len('.sqfs')]}"
        away += f".{int(time.time())}-{os.urandom(4).hex()}"
        made = False
        for path, kind in ((image, "sqfs"), (sidecar_file(image), "json")):
            try:
                self.there.stat(path)
            except FileNotFoundError:
                continue
            if not made:
                self._make(os.path.dirname(away))
                made = True
            self.there.rename(path, f"{away}.{kind}")

    def _make(self, path: str) -> None:
        """Make a directory and those above it that lack, for no more than their group to write."""
        try:
            self.there.stat(path)
        except FileNotFoundError:
            above = os.path.dirname(path)
            if above not in ("", path):
                self._make(above)
            try:
                self.there.mkdir(path, 0o775)
            except OSError:  # another one was quicker, or it cannot be
                self.there.stat(path)
                return
            if self.readers.mode is not None:
                self.there.chmod(path, publish.directory_mode(self.readers.mode))

    def _sweep(self) -> None:
        """Remove what publish.sweep would, if this directory were here."""
        for name, mtime in self.there.list(self.top or "/"):
            if publish.abandoned(name, mtime):
                with suppress(OSError):
                    self.there.remove(f"{self.top}/{name}")
