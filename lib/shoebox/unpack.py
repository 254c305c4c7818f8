"""The last resort for old systems: a merged tar unpacked into a private directory, for a mksquashfs that reads no tar.

What only root could make (owners, devices, set-user-ID bits) becomes a pseudo file definition of mksquashfs(1); what
neither can hold is told. The tree is ours alone (0700) and its names were judged, so no symlink can lead out of it.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import threading
from typing import TYPE_CHECKING, BinaryIO, Self

from . import publish

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_XATTR = "SCHILY.xattr."


class Tree:
    """An unpacked image: path, and what mksquashfs needs besides it."""

    def __init__(self, beside: str) -> None:
        """Choose a private directory next to a file; it is made by entering the with statement."""
        room = publish.temporary(os.path.dirname(beside))
        self._room = room
        self.path = os.path.join(room, "root")
        self.definitions = os.path.join(room, "definitions")
        self.newest = 0  # seconds: the latest time in the tree
        self.lost: set[str] = set()
        self._lines: list[bytes] = []

    def __enter__(self) -> Self:
        """Make the directory."""
        os.mkdir(self._room, 0o700)
        os.mkdir(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove it all."""
        shutil.rmtree(self._room)

    def fill(self, produce: Callable[[Callable[[memoryview | bytes], object]], None]) -> None:
        """Unpack the tar stream that produce(write) writes."""
        end, start = os.pipe()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with open(start, "wb") as pipe:
                    produce(pipe.write)
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            with open(end, "rb") as pipe:
                self._unpack(pipe)
        except tarfile.ReadError:
            thread.join()
            if not errors:
                raise
        thread.join()
        if errors and not isinstance(errors[0], BrokenPipeError):
            raise errors[0]
        with open(self.definitions, "wb") as file:
            file.writelines(self._lines)

    def _unpack(self, stream: BinaryIO) -> None:
        later: list[tarfile.TarInfo] = []
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                path = os.path.join(self.path, member.name)
                self.newest = max(self.newest, int(member.mtime))
                self._define(member)
                if member.isdir():
                    os.makedirs(path, 0o700, exist_ok=True)
                    later.append(member)
                    continue
                self._make(archive, member, path)
        for member in reversed(later):
            os.utime(os.path.join(self.path, member.name), (member.mtime, member.mtime))

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.islnk():
            os.link(os.path.join(self.path, member.linkname), path, follow_symlinks=False)
            return
        if member.issym():
            os.symlink(member.linkname, path)
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.isreg():
            content = archive.extractfile(member)
            with open(path, "xb") as file:
                if content:
                    shutil.copyfileobj(content, file, 1 << 20)
        else:  # a device, which its definition makes
            self.lost.add("times of devices")
            return
        self._attributes(member, path)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)

    def _attributes(self, member: tarfile.TarInfo, path: str) -> None:
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                try:
                    data = value.encode("utf-8", "surrogateescape")
                    os.setxattr(path, key[len(_XATTR) :], data, follow_symlinks=False)
                except OSError:
                    self.lost.add(f"extended attributes {key[len(_XATTR) :]}")

    def _define(self, member: tarfile.TarInfo) -> None:
        """Note what only root could do, as a line of a pseudo file."""
        if member.islnk():
            return
        if "\n" in member.name:
            self.lost.add("owners and modes of files with a newline in their names")
            return
        name = "".join("\\" + c if c in ' \t"\\' else c for c in member.name)
        kind = {tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b"}.get(member.type, "m")
        line = f"{name or '/'} {kind} {member.mode & 0o7777:o} {member.uid} {member.gid}"
        if kind != "m":
            line += f" {member.devmajor} {member.devminor}"
        self._lines.append(line.encode("utf-8", "surrogateescape") + b"\n")
