"""The last resort for old systems: a merged tar unpacked into a private directory, for a mksquashfs that reads no tar.

What only root could make (owners, devices, set-user-ID bits) becomes a pseudo file definition of mksquashfs(1); what
neither can hold is told. The tree is ours alone (0700), and nothing is made but in directories that were made here, so
that no name, symlink or doubtful header can lead out of it.
"""

from __future__ import annotations

import copy
import os
import shutil
import tarfile
import threading
from typing import TYPE_CHECKING, BinaryIO, Self

from . import publish
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_XATTR = "SCHILY.xattr."
_END = 1024  # bytes that end an archive
# What ends a name in a definition, quotes, or begins a comment. Not escaped, a name could go on as a definition with a
# command that mksquashfs runs; the newline, which cannot be escaped, is refused one.
_ESCAPED = frozenset(' \t\r\v\f"\\#')


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # whatever the umask: it shows where no definition can say more


class Tree:
    """An unpacked image: path, and what mksquashfs needs besides it."""

    def __init__(self, beside: str) -> None:
        """Choose a private directory next to a file; it is made by entering the with statement."""
        room = publish.temporary(os.path.dirname(beside))
        self._room = room
        self.path = os.path.join(room, "root")
        self.definitions = os.path.join(room, "definitions")
        self.attributes = False  # whether anything in it has extended attributes of the image's
        self.lost: set[str] = set()
        self._mode = 0o755  # of the root
        self._lines: list[bytes] = []
        self._made = {""}  # directories, by path within the tree
        self._alone: dict[str, tarfile.TarInfo] = {}  # what mksquashfs makes anew for each hard link: devices, symlinks

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
        written = 0

        def work() -> None:
            nonlocal written
            try:
                with open(start, "wb") as pipe:

                    def write(data: memoryview | bytes) -> None:
                        nonlocal written
                        written += pipe.write(data)

                    produce(write)
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        read, problem = 0, None
        try:
            with open(end, "rb") as pipe:
                read = self._unpack(pipe)
                while pipe.read(1 << 20):
                    continue
        except (tarfile.TarError, ValueError, OverflowError) as error:
            problem = error
        thread.join()
        if errors and not isinstance(errors[0], BrokenPipeError):
            raise errors[0]
        if problem or read + _END != written:  # tarfile takes a header that it cannot read for the end
            raise Fail("cannot unpack the image", str(problem or "a header of it makes no sense"), "install tar2sqfs")
        with open(self.definitions, "wb") as file:
            file.writelines(self._lines)

    def _unpack(self, stream: BinaryIO) -> int:
        """Unpack a tar; return how many bytes of it there were, without its end."""
        later: list[tuple[str, int]] = []
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                path = self._inside(member.name)
                member.mtime = int(member.mtime)
                self._define(member)
                if member.isdir():
                    self._made.add(os.path.normpath(member.name))
                    os.makedirs(path, 0o700, exist_ok=True)
                    self._attributes(member, path)
                    later.append((path, member.mtime))
                    continue
                self._make(archive, member, path)
            read = archive.offset
        for path, mtime in reversed(later):
            os.utime(path, (mtime, mtime))
        os.chmod(self.path, self._mode)
        return read

    def _inside(self, name: str) -> str:
        """Return where a name lies. Raises Fail for one that is not in a directory made here."""
        path = os.path.normpath(name)
        if os.path.dirname(path) not in self._made or path == "..":
            raise Fail("refused the image", f"{name!r} has no directory to lie in", "do not trust this image")
        return os.path.join(self.path, path)

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.islnk():
            self._link(self._inside(member.linkname), member, path)
            return
        if member.issym():
            os.symlink(member.linkname, path)
            self._alone[path] = member
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.isreg():
            content = archive.extractfile(member)
            with open(path, "xb", opener=_private) as file:
                if content:
                    shutil.copyfileobj(content, file, 1 << 20)
        else:  # a device, which its definition makes
            self.lost.add("times of devices")
            self._alone[path] = member
            return
        self._attributes(member, path)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)

    def _link(self, target: str, member: tarfile.TarInfo, path: str) -> None:
        again = copy.copy(self._alone.get(target))
        if again is not None:
            again.name = member.name
            self._define(again)
            self.lost.add("hard links of devices and symlinks")
        if again is None or again.issym():
            os.link(target, path, follow_symlinks=False)

    def _attributes(self, member: tarfile.TarInfo, path: str) -> None:
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                try:
                    data = value.encode("utf-8", "surrogateescape")
                    os.setxattr(path, key[len(_XATTR) :], data, follow_symlinks=False)
                    self.attributes = True
                except OSError:
                    self.lost.add(f"extended attributes {key[len(_XATTR) :]}")

    def _define(self, member: tarfile.TarInfo) -> None:
        """Note what only root could do, as a line of a pseudo file."""
        if member.islnk():
            return
        name = os.path.normpath(member.name)
        if name == ".":  # a pseudo file cannot speak of the root
            self._mode = member.mode & 0o7777
            if (member.uid, member.gid) != (os.geteuid(), os.getegid()):
                self.lost.add("the owner of the root directory")
            return
        if "\n" in name:
            self.lost.add("owners and modes of files with a newline in their names")
            return
        name = "".join("\\" + c if c in _ESCAPED else c for c in name)
        kind = {tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b"}.get(member.type, "m")
        line = f"{name} {kind} {member.mode & 0o7777:o} {member.uid} {member.gid}"
        if kind != "m":
            line += f" {member.devmajor} {member.devminor}"
        self._lines.append(line.encode("utf-8", "surrogateescape") + b"\n")
