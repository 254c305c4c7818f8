"""OCI image layouts: where blobs are opened, hashed, renamed and made durable.

Follows image-spec v1.1, image-layout.md. Our own layouts, one per reference, share one directory of blobs:

    CACHE/oci/blobs/sha256/HEX                              verified before it bears this name
    CACHE/oci/blobs/sha256/.HEX.KERNEL-UID.part             a download, resumed by the next pull
    CACHE/oci/docker.io/library/debian/_12/index.json       one manifest; `blobs` beside it is a relative symlink
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Literal

from . import oci
from .fail import USAGE, Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .reference import Reference

_BUFFER = 1 << 20  # bytes read, hashed and written at once
_STALE = 24 * 3600  # seconds after which nobody is still writing a temporary file
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # Lustre without -o flock, some NFS
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def directory(cache: str, reference: Reference, suffix: str = "") -> str:
    """Return a reference's layout directory. suffix: for a platform that is not this machine's, `+linux-arm64`."""
    last = "_@" + reference.digest.replace(":", "-") if reference.digest else "_" + reference.tag
    return os.path.join(cache, "oci", reference.registry.replace(":", "+"), reference.repository, last + suffix)


def prepare(cache: str) -> str:
    """Make the shared directory of blobs, remove downloads given up a day ago, and return the directory's path.

    Raises Fail (USAGE) for a cache whose path cannot stand in `oci:DIR:NAME`.
    """
    if ":" in cache or "\n" in cache:
        raise Fail(f"cannot use the cache {cache!r}", "its path has a ':' or a newline", "set SHOEBOX_CACHE", USAGE)
    blobs = os.path.join(cache, "oci", "blobs", "sha256")
    os.makedirs(blobs, exist_ok=True)
    _sweep(blobs)
    return blobs


def check_blob(blobs: str, descriptor: oci.Descriptor) -> Literal["good", "damaged", "absent"]:
    """Tell whether a blob is in the shared directory, reading it to its end."""
    try:
        with _open(os.path.join(blobs, descriptor.hex), descriptor) as blob:
            good = _hash(blob, hashlib.sha256()).hexdigest() == descriptor.hex
    except FileNotFoundError:
        return "absent"
    except Fail:
        return "damaged"
    return "good" if good else "damaged"


def read_document(blobs: str, descriptor: oci.Descriptor) -> bytes:
    """Return a manifest, index or config, its digest verified. blobs: the `blobs/sha256` directory. Raises Fail."""
    if descriptor.size > oci.MAX_DOCUMENT:
        raise Fail(f"cannot read {descriptor.digest!r}", f"{descriptor.size} bytes are too many for a document")
    try:
        with _open(os.path.join(blobs, descriptor.hex), descriptor) as blob:
            data = blob.read(descriptor.size)
    except FileNotFoundError as error:
        raise Fail(f"the layout lacks the blob {descriptor.digest!r}", todo="pull it again") from error
    if hashlib.sha256(data).hexdigest() != descriptor.hex:
        raise Fail(f"the blob {descriptor.digest!r} is damaged", todo="pull it again")
    return data


def write_document(blobs: str, data: bytes) -> None:
    """Put a manifest under its digest."""
    _write(blobs, hashlib.sha256(data).hexdigest(), data)


class Part:
    """A blob on its way: bytes, hashed as they are written, under a temporary name that outlives us for a resume."""

    def __init__(self, path: str, fd: int, descriptor: oci.Descriptor) -> None:
        """Take an open file, and hash what an earlier pull has left in it."""
        self._path = path
        self._fd = fd
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self.size = os.fstat(fd).st_size
        if self.size > descriptor.size:
            self.restart()
        with open(fd, "rb", buffering=0, closefd=False) as left:
            _hash(left, self._sha256)

    def write(self, data: bytes | memoryview) -> None:
        """Append and hash. A full disk gives its space back, and is a Fail."""
        self._sha256.update(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise self._full(error) from error
        self.size += len(data)

    def restart(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._sha256 = hashlib.sha256()
        self.size = 0

    def publish(self) -> bool:
        """Give the blob its name if it is the right one, and tell; a wrong one is forgotten."""
        if self.size != self._descriptor.size or self._sha256.hexdigest() != self._descriptor.hex:
            self.restart()
            return False
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._full(error) from error
        os.rename(self._path, os.path.join(os.path.dirname(self._path), self._descriptor.hex))
        return True

    def _full(self, error: OSError) -> Fail:
        if error.errno in _FULL:
            self.restart()
        return Fail(f"cannot write to {os.path.dirname(self._path)!r}", error, "free space, or set SHOEBOX_CACHE")


@contextmanager
def part(blobs: str, descriptor: oci.Descriptor, waiting: Callable[[], None]) -> Iterator[Part]:
    """Open a blob's temporary file for us alone.

    When another pull on this machine is at the same blob, wait for it, calling waiting() every now and then (it may
    raise): check_blob then says whether anything is left to do. An empty file is removed in the end, others stay.
    """
    path = os.path.join(blobs, f".{descriptor.hex}.{_kernel()}-{os.geteuid()}.part")
    fd, path = _lock(path, waiting)
    try:
        yield Part(path, fd, descriptor)
    finally:
        if os.fstat(fd).st_size == 0 and _same(path, fd):
            os.unlink(path)
        os.close(fd)


def publish(cache: str, where: str, name: str, manifest: oci.Descriptor) -> None:
    """Make or replace the layout directory of a reference, once all its blobs are there; index.json comes last.

    where: its directory; name: what index.json calls the manifest; manifest: its descriptor, with its platform.
    """
    os.makedirs(where, exist_ok=True)
    _sweep(where)
    shared = os.path.join(cache, "oci", "blobs")
    _sync(os.path.join(shared, "sha256"))
    _link(os.path.relpath(shared, where), os.path.join(where, "blobs"))
    entry: dict[str, object] = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
        "annotations": {oci.REF_NAME: name},
    }
    if manifest.platform:
        said = {key: value for key, value in vars(manifest.platform).items() if value}
        entry["platform"] = said
    index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [entry]}
    _write(where, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    _write(where, "index.json", json.dumps(index, indent=1).encode() + b"\n")


def read_layout(where: str, name: str = "", platform: oci.Platform | None = None) -> tuple[oci.Descriptor, bytes]:
    """Find a manifest in any OCI layout, ours or made by others, and return its descriptor and its verified bytes.

    name: as index.json has it (org.opencontainers.image.ref.name); "" when the layout holds one image only.
    platform: chooses where that leaves several; this machine's by default. Raises Fail.
    """
    layout = _small(os.path.join(where, "oci-layout"))
    index = _small(os.path.join(where, "index.json"))
    blobs = os.path.join(where, "blobs", "sha256")
    return resolve(where, layout, index, lambda descriptor: read_document(blobs, descriptor), name, platform)


def resolve(
    where: str,
    layout: bytes,
    index: bytes,
    read: Callable[[oci.Descriptor], bytes],
    name: str,
    platform: oci.Platform | None = None,
) -> tuple[oci.Descriptor, bytes]:
    """Find a manifest as read_layout does, given what the files oci-layout and index.json hold.

    read: gives a document's verified bytes. where: names the layout in errors. Raises Fail.
    """
    wanted = platform or oci.native(os.uname().machine)
    if b'"imageLayoutVersion"' not in layout:
        raise Fail(f"not an OCI layout: {where!r}", "its file 'oci-layout' gives no version")
    top = oci.parse_manifest(index, oci.OCI_INDEX)
    entries = top.manifests if isinstance(top, oci.Index) else ()
    if name:
        named = [entry for entry in entries if name in entry.names]
        if not named:
            there = ", ".join(sorted({n for entry in entries for n in entry.names})[:20]) or "images without names"
            raise Fail(f"the layout {where!r} has no image {name!r}", f"it has {there}")
        entries = tuple(named)
    for _ in range(oci.MAX_DEPTH):
        entry = entries[0] if len(entries) == 1 else oci.choose(entries, wanted)
        data = read(entry)
        found = oci.parse_manifest(data, entry.media_type)
        if isinstance(found, oci.Manifest):
            return entry, data
        entries = found.manifests
        if len(entries) == 1:  # an index of one may still be of another platform
            entries = (oci.choose(entries, wanted),)
    raise Fail(f"cannot read the layout {where!r}", f"indexes are nested more than {oci.MAX_DEPTH} deep")


def open_blob(where: str, descriptor: oci.Descriptor) -> BinaryIO:
    """Open a blob of a layout for reading; its size is checked, its digest is the reader's to check. Raises Fail."""
    try:
        return _open(os.path.join(where, "blobs", "sha256", descriptor.hex), descriptor)
    except FileNotFoundError as error:
        raise Fail(f"the layout {where!r} lacks the blob {descriptor.digest!r}", todo="pull it again") from error


def _open(path: str, descriptor: oci.Descriptor) -> BinaryIO:
    """Open a regular file of the right size, whatever else may lie there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != descriptor.size:
        os.close(fd)
        why = f"it has {found.st_size} bytes, and {descriptor.size} are expected"
        raise Fail(f"the blob {path!r} is damaged", why if stat.S_ISREG(found.st_mode) else "not a file", "pull again")
    return os.fdopen(fd, "rb")


def _hash(file: BinaryIO, sha256: hashlib._Hash) -> hashlib._Hash:
    buffer = memoryview(bytearray(_BUFFER))
    while count := file.readinto(buffer):  # type: ignore[attr-defined] # typeshed: BinaryIO lacks readinto
        sha256.update(buffer[:count])
    return sha256


def _small(path: str) -> bytes:
    """Read a layout's own file, of bounded size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Fail(f"not an OCI layout: {os.path.dirname(path)!r}", f"no {os.path.basename(path)!r}") from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Fail(f"not an OCI layout: {os.path.dirname(path)!r}", f"{os.path.basename(path)!r} is no file")
        return file.read(oci.MAX_DOCUMENT + 1)


def _lock(path: str, waiting: Callable[[], None]) -> tuple[int, str]:
    """Open and lock the file at path; where locks do not work, a file of our own with another name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        fd = os.open(path, flags, 0o644)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise Fail(f"cannot use {path!r}", "it belongs to somebody else", "remove it")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(path, fd):
                return fd, path
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
            waiting()
            time.sleep(0.05)
        except OSError as error:
            os.close(fd)
            if error.errno not in _NO_LOCKS:
                raise
            path = f"{path.removesuffix('.part')}-{os.getpid()}.part"
            return os.open(path, flags | os.O_TRUNC, 0o644), path
        except Fail:
            os.close(fd)
            raise


def _same(path: str, fd: int) -> bool:
    """Tell whether the name still means the open file; its maker may have renamed it meanwhile."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _kernel() -> str:
    """Return what tells this running kernel from all others: within it, and only there, flock can be relied on."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()[:13]
    except OSError:
        return os.uname().nodename


def _sweep(where: str) -> None:
    """Remove temporary files that nobody has written to for a day."""
    limit = time.time() - _STALE
    with os.scandir(where) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(".part"):
                with suppress(OSError):  # somebody else swept it, or it is not ours to sweep
                    if entry.stat(follow_symlinks=False).st_mtime < limit:
                        os.unlink(entry.path)


def _write(where: str, name: str, data: bytes) -> None:
    """Make a small file, whole or not at all; the same content is left alone."""
    path = os.path.join(where, name)
    with suppress(FileNotFoundError), open(path, "rb") as file:
        if file.read(len(data) + 1) == data:
            return
    temporary = os.path.join(where, f".{name}.{_kernel()}-{os.getpid()}.part")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(where)


def _link(target: str, path: str) -> None:
    """Make a symlink, or replace what is there by it."""
    with suppress(OSError):
        if os.readlink(path) == target:
            return
    temporary = os.path.join(os.path.dirname(path), f".blobs.{_kernel()}-{os.getpid()}.part")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, path)


def _sync(where: str) -> None:
    """Make a directory's names durable."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
