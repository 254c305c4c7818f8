"""An overlay's upper directory as a layer of an image (OCI image-spec, layer.md), and back. Effects; Python 3.9."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from typing import TYPE_CHECKING

from . import linux
from .fail import Fail
from .whiteout import OPAQUE, OPAQUE_VALUE, OPAQUE_XATTR, WHITEOUT, is_opaque, is_whiteout, kept

if TYPE_CHECKING:
    from typing import BinaryIO

_XATTR = "SCHILY.xattr."
_TYPES = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
_TYPES |= {stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}
_NANO = 1_000_000_000
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM)  # EPERM: of a symbolic link


def pack(root: int, out: BinaryIO, owner: tuple[int, int]) -> list[str]:
    """Write the layer; return the paths that no layer can have, since their names mean whiteouts.

    root: the upper directory, open. owner: the uid and gid that are root's in the image. Sockets are left out: they
    are nothing without who made them. Raises OSError.
    """
    where = b"/proc/self/fd/%d" % root
    first: dict[tuple[int, int], str] = {}
    odd = []
    options = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    with tarfile.open(fileobj=out, mode="w", **options) as archive:  # type: ignore[call-overload] # typeshed: no dicts
        todo = [b""]
        while todo:
            path = todo.pop()
            place = os.path.join(where, path)
            about = os.lstat(place)
            attributes = _attributes(place)
            member = _member(path, about, owner)
            if os.path.basename(path).startswith(WHITEOUT):
                odd.append(member.name)
            elif path and is_whiteout((about.st_mode, about.st_rdev, about.st_size), attributes):
                archive.addfile(_empty(os.path.join(os.path.dirname(path), WHITEOUT + os.path.basename(path))))
            elif stat.S_IFMT(about.st_mode) in _TYPES:
                member.pax_headers = _records(about, attributes)
                _add(archive, member, place, about, first)
                if member.isdir():
                    if is_opaque(attributes):
                        archive.addfile(_empty(os.path.join(path, OPAQUE)))
                    with _Readable(place, about) as opened, os.scandir(opened) as entries:
                        names = sorted((os.fsencode(entry.name) for entry in entries), reverse=True)
                    todo += [os.path.join(path, name) for name in names]
    return odd


def _add(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    place: bytes,
    about: os.stat_result,
    first: dict[tuple[int, int], str],
) -> None:
    """Add what a place has; where another name of it came before, a hard link to that."""
    if member.issym():
        member.linkname = _text(os.readlink(place))
    elif member.ischr() or member.isblk():
        member.devmajor, member.devminor = os.major(about.st_rdev), os.minor(about.st_rdev)
    if not member.isdir() and about.st_nlink > 1:
        known = first.setdefault((about.st_dev, about.st_ino), member.name)
        if known != member.name:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, known, 0
    if not member.isreg():
        archive.addfile(member)
        return
    with _Readable(place, about) as fd, open(fd, "rb", closefd=False) as file:
        archive.addfile(member, file)


class _Readable:
    """A file or a directory open for reading: what is ours and bars even us is let be read for that moment."""

    def __init__(self, place: bytes, about: os.stat_result) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(place, flags)
        except PermissionError:
            mode = stat.S_IMODE(about.st_mode)
            os.chmod(place, mode | 0o400)
            try:
                self._fd = os.open(place, flags)
            finally:
                os.chmod(place, mode)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _member(path: bytes, about: os.stat_result, owner: tuple[int, int]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(_text(path) or ".")
    member.type = _TYPES.get(stat.S_IFMT(about.st_mode), tarfile.REGTYPE)
    member.mode = stat.S_IMODE(about.st_mode)
    member.uid = 0 if about.st_uid == owner[0] else about.st_uid
    member.gid = 0 if about.st_gid == owner[1] else about.st_gid
    member.size = about.st_size if member.isreg() else 0
    member.mtime = about.st_mtime_ns // _NANO
    return member


def _records(about: os.stat_result, attributes: dict[str, bytes]) -> dict[str, str]:
    seconds, rest = divmod(about.st_mtime_ns, _NANO)
    records = {"mtime": f"{seconds}.{rest:09d}"} if rest else {}
    return {**records, **{_XATTR + name: _text(value) for name, value in kept(attributes).items()}}


def _empty(path: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(_text(path))
    member.mode = 0
    return member


def _attributes(place: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(place, follow_symlinks=False)
        return {name: os.getxattr(place, name, follow_symlinks=False) for name in names}
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return {}


def _text(name: bytes) -> str:
    """Return bytes as tarfile takes them, whatever the locale."""
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def unpack(file: BinaryIO, root: int, what: str) -> None:
    """Fill an upper directory, all of it the user's, with a layer. what: the layer, for errors.

    Nothing gets outside, whatever the layer says. Raises Fail if it is damaged, OSError.
    """
    times: list[tuple[bytes, int]] = []
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                path = _inside(member.name, what)
                if member.isdir():
                    times.append((path, _time(member)))
                parent = _parent(root, os.path.dirname(path))
                try:
                    _place(archive, member, root, parent, os.path.basename(path), what)
                finally:
                    os.close(parent)
            file.seek(archive.offset)  # tarfile takes what is no header for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is cut off")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Fail(f"cannot read {what}", f"it is damaged ({error})", "move it away") from error
    for path, time in reversed(times):
        at = linux.openat2(root, os.fsdecode(path) or ".", os.O_RDONLY | os.O_DIRECTORY, _WITHIN)
        os.utime(at, ns=(time, time))
        os.close(at)


_WITHIN = linux.IN_ROOT | linux.NO_SYMLINKS


def _inside(name: str, what: str) -> bytes:
    parts = [part for part in _bytes(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Fail(f"cannot read {what}", f"{name!r} climbs out of its place", "move it away")
    return b"/".join(parts)


def _parent(root: int, path: bytes) -> int:
    """Open a directory of the upper directory; make it and those above it if they are not there."""
    try:
        return linux.openat2(root, os.fsdecode(path) or ".", os.O_PATH | os.O_DIRECTORY, _WITHIN)
    except (FileNotFoundError, NotADirectoryError):
        above = _parent(root, os.path.dirname(path))
        place = b"/proc/self/fd/%d/" % above + os.path.basename(path)
        try:
            hidden = _clear(place)
            os.mkdir(place, 0o755)
            if hidden:
                os.setxattr(place, OPAQUE_XATTR, OPAQUE_VALUE)
        finally:
            os.close(above)
        return _parent(root, path)


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, parent: int, name: bytes, what: str) -> None:
    """Make what a member describes. parent: the directory it lies in, open; name: b"" for the root itself."""
    where = b"/proc/self/fd/%d/" % parent
    place = where + name
    if name.startswith(WHITEOUT):
        _hide(where, name)
        return
    if name and not (member.isdir() and _is_directory(place)):
        hidden = _clear(place)
        _make(archive, member, root, place, what)
        if hidden and member.isdir():
            os.setxattr(place, OPAQUE_XATTR, OPAQUE_VALUE)
    if member.islnk():
        return
    if not member.issym():
        os.chmod(place, member.mode & 0o7777)
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            os.setxattr(place, key[len(_XATTR) :], _bytes(value), follow_symlinks=False)
    if not member.isdir():
        os.utime(place, ns=(_time(member), _time(member)), follow_symlinks=False)


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, place: bytes, what: str) -> None:
    if member.isdir():
        os.mkdir(place)
    elif member.issym():
        os.symlink(_bytes(member.linkname), place)
    elif member.islnk():
        path = _inside(member.linkname, what)
        parent = _parent(root, os.path.dirname(path))
        try:
            os.link(b"/proc/self/fd/%d/" % parent + os.path.basename(path), place, follow_symlinks=False)
        finally:
            os.close(parent)
    elif member.isreg():
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        content = archive.extractfile(member)
        with open(fd, "wb") as file:
            if content:
                shutil.copyfileobj(content, file, 1 << 20)
    else:  # only root may make devices, and the kernel says so
        kind = {tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR}.get(member.type, stat.S_IFBLK)
        os.mknod(place, kind | 0o600, os.makedev(member.devmajor, member.devminor) if kind != stat.S_IFIFO else 0)


def _hide(where: bytes, name: bytes) -> None:
    """Hide what lies below: a name, or all that a directory holds; not what this layer itself puts there."""
    hidden = where + name[len(WHITEOUT) :]
    try:
        if name != OPAQUE:
            os.mknod(hidden, stat.S_IFCHR)
            return
    except FileExistsError:
        if not _is_directory(hidden):
            return
    os.setxattr(where if name == OPAQUE else hidden, OPAQUE_XATTR, OPAQUE_VALUE)


def _clear(place: bytes) -> bool:
    """Remove what an earlier member made; return whether that was a whiteout."""
    try:
        about = os.lstat(place)
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(about.st_mode):
        shutil.rmtree(place)
    else:
        os.unlink(place)
    return stat.S_ISCHR(about.st_mode) and about.st_rdev == 0


def _is_directory(place: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(place).st_mode)
    except FileNotFoundError:
        return False


def _time(member: tarfile.TarInfo) -> int:
    """Return a member's time in nanoseconds; what is said with a fraction is not rounded."""
    seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    return int(seconds) * _NANO + int(fraction[:9].ljust(9, "0"))
