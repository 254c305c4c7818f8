"""OCI image layouts: where blobs are opened, hashed, renamed and made durable.

Follows image-spec v1.1, image-layout.md. Our own layouts, one per reference, share one directory of blobs:

    CACHE/oci/blobs/sha256/HEX                              verified before it bears this name
    CACHE/oci/blobs/sha256/.HEX.KERNEL-UID.part             a download, resumed by the next pull
    CACHE/oci/docker.io/library/debian/_12/index.json       one manifest; `blobs` beside it is a relative symlink
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Literal

from . import oci, parts
from .fail import USAGE, Fail
from .platforms import Platform, native
from .readers import OWNER, UMASK, hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .reference import Reference

PRIVATE = "shoebox.private"  # an annotation of the descriptor in index.json: not for everybody
_SIGNATURES = "signatures.json"  # beside index.json, ours alone
_NEW = ".new"  # ends the names of small temporary files, which nobody goes on with
_STALE = 24 * 3600  # seconds after which nobody is still writing a temporary file


def directory(cache: str, reference: Reference, suffix: str = "") -> str:
    """Return a reference's layout directory. suffix: for a platform that is not this machine's, `+linux-arm64`."""
    last = "_@" + reference.digest.replace(":", "-") if reference.digest else "_" + reference.tag
    return os.path.join(cache, "oci", reference.registry.replace(":", "+"), reference.repository, last + suffix)


def shared_blobs(cache: str) -> str:
    """Return the path of the shared directory of blobs. Raises Fail (USAGE) where it cannot stand in `oci:DIR:NAME`."""
    if ":" in cache or "\n" in cache:
        raise Fail(f"cannot use the cache {cache!r}", "its path has a ':' or a newline", "set SHOEBOX_CACHE", USAGE)
    return os.path.join(cache, "oci", "blobs", "sha256")


def prepare(cache: str) -> str:
    """Make the shared directory of blobs, remove downloads given up a day ago, and return its path. Raises Fail."""
    blobs = shared_blobs(cache)
    os.makedirs(blobs, exist_ok=True)
    _sweep(blobs)
    return blobs


def check_blob(blobs: str, descriptor: oci.Descriptor) -> Literal["good", "damaged", "absent"]:
    """Tell whether a blob is in the shared directory, reading it to its end.

    One of another user's private image is absent: it is to be had from the registry, as if it were not there.
    """
    try:
        with _open(os.path.join(blobs, descriptor.hex), descriptor) as blob:
            good = parts.hash_file(blob, hashlib.sha256()).hexdigest() == descriptor.hex
    except FileNotFoundError:
        return "absent"
    except Fail as error:
        return "absent" if isinstance(error.__cause__, PermissionError) else "damaged"
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


def is_private(where: str) -> bool:
    """Tell whether a layout directory says that its image is not for everybody, or what it says cannot be told."""
    if not os.path.lexists(os.path.join(where, "index.json")):
        return False
    try:
        top = oci.parse_manifest(_small(os.path.join(where, "index.json")), oci.OCI_INDEX)
    except Fail:
        return True
    return isinstance(top, oci.Index) and any(PRIVATE in entry.annotations for entry in top.manifests)


@contextmanager
def kept(blobs: str, digits: set[str], private: bool) -> Iterator[None]:
    """Let nobody else read these blobs, if they are a private image's: those that are there, and those to come.

    But for blobs that are there in a cache that users share: others' public images may have them, too.
    """
    shared = os.stat(blobs).st_mode & 0o022
    with hidden(OWNER if private else UMASK):
        for name in os.listdir(blobs) if private else ():
            if (name in digits and not shared) or name[1:65] in digits:  # a part
                with suppress(FileNotFoundError, PermissionError):  # not there any more; not ours
                    os.chmod(os.path.join(blobs, name), 0o600)
        yield


def publish(
    cache: str,
    where: str,
    name: str,
    manifest: oci.Descriptor,
    data: bytes,
    signed: bytes = b"",
    private: bool = False,
) -> None:
    """Make or replace the layout directory of a reference, once its other blobs are there; index.json comes last.

    where: its directory; name: what index.json calls the manifest; manifest: its descriptor, with its platform; data:
    its bytes; signed: signatures.dump, or b""; private: see is_private. A Docker manifest stands beside its OCI form:
    read_layout finds the one, everybody else the other.
    """
    shared = os.path.join(cache, "oci", "blobs")
    shown, form = oci.as_oci(manifest, data)
    with hidden(OWNER if private else UMASK):
        for document in {data, form}:
            _write(os.path.join(shared, "sha256"), hashlib.sha256(document).hexdigest(), document)
    _sync(os.path.join(shared, "sha256"))
    platform = {key: value for key, value in vars(shown.platform).items() if value} if shown.platform else {}
    entry = {
        "mediaType": shown.media_type,
        "digest": shown.digest,
        "size": shown.size,
        "annotations": {**shown.annotations, oci.REF_NAME: name, **({PRIVATE: "true"} if private else {})},
        **({"platform": platform} if platform else {}),
    }
    index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [entry]}
    for last in (False, False, True):
        try:
            os.makedirs(where, exist_ok=True)
            _sweep(where)
            _link(os.path.relpath(shared, where), os.path.join(where, "blobs"))
            _write(where, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            if signed:
                _write(where, _SIGNATURES, signed)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(where, _SIGNATURES))
            _write(where, "index.json", json.dumps(index, indent=1).encode() + b"\n")
        except (FileNotFoundError, FileExistsError):  # sh-expire has just taken the old layout away
            if last:
                raise
        else:
            return


def renew(path: str) -> None:
    """Let a blob, or a layout directory of ours, count as pulled now, so that sh-expire does not take it."""
    index = os.path.join(path, "index.json")
    ours = os.path.islink(os.path.join(path, "blobs"))
    with suppress(FileNotFoundError, PermissionError):  # whoever needs it sees for himself; it is not ours
        if ours or not os.path.isdir(path):
            os.utime(index if ours else path)


def lacks(blobs: str, digits: Iterable[str]) -> bool:
    """Tell whether one of these blobs is not in the shared directory."""
    return not all(os.path.lexists(os.path.join(blobs, name)) for name in digits)


def read_signatures(where: str) -> bytes:
    """Return what publish was given as `signed`, or b""."""
    if not os.path.lexists(os.path.join(where, _SIGNATURES)):
        return b""
    return _small(os.path.join(where, _SIGNATURES))


def read_layout(where: str, name: str = "", platform: Platform | None = None) -> tuple[oci.Descriptor, bytes]:
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
    platform: Platform | None = None,
) -> tuple[oci.Descriptor, bytes]:
    """Find a manifest as read_layout does, given what the files oci-layout and index.json hold.

    read: gives a document's verified bytes. where: names the layout in errors. Raises Fail.
    """
    wanted = platform or native(os.uname().machine)
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
        entry = oci.original(entries[0] if len(entries) == 1 else oci.choose(entries, wanted))
        data = read(entry)
        found = oci.parse_manifest(data, entry.media_type)
        if isinstance(found, oci.Manifest):
            return entry, data
        entries = found.manifests
        if len(entries) == 1:  # an index of one may still be of another platform
            entries = (oci.choose(entries, wanted),)
    raise Fail(f"cannot read the layout {where!r}", f"indexes are nested more than {oci.MAX_DEPTH - 1} deep")


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
        todo = "pull the image again" if isinstance(error, PermissionError) else ""  # another user's private one has it
        raise Fail(f"cannot read {path!r}", error, todo) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != descriptor.size:
        os.close(fd)
        why = f"it has {found.st_size} bytes, and {descriptor.size} are expected"
        raise Fail(f"the blob {path!r} is damaged", why if stat.S_ISREG(found.st_mode) else "not a file", "pull again")
    return os.fdopen(fd, "rb")


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


def _sweep(where: str) -> None:
    """Remove temporary files that nobody has written to for a day, and small ones of this host's dead processes."""
    limit = time.time() - _STALE
    here = f".{parts.kernel()}-"
    with os.scandir(where) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith((".part", _NEW)):
                with suppress(OSError):  # somebody else swept it, or it is not ours to sweep
                    _, ours, pid = entry.name.removesuffix(_NEW).rpartition(here)
                    dead = entry.name.endswith(_NEW) and ours and not os.path.exists(f"/proc/{pid}")
                    if dead or entry.stat(follow_symlinks=False).st_mtime < limit:
                        os.unlink(entry.path)


def _ours() -> str:
    """Return how a small temporary file of this process ends."""
    return f"{parts.kernel()}-{os.getpid()}{_NEW}"


def _write(where: str, name: str, data: bytes) -> None:
    """Make a small file, whole or not at all; the same content is left alone, unless it is not ours to read."""
    path = os.path.join(where, name)
    with suppress(FileNotFoundError, PermissionError), open(path, "rb") as file:
        if file.read(len(data) + 1) == data:
            with suppress(PermissionError):  # somebody else's, who can remove it
                os.utime(path)
            return
    temporary = os.path.join(where, f".{name}.{_ours()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
        except OSError as error:
            raise Fail(f"cannot write to {where!r}", error, "free space, or set SHOEBOX_CACHE") from error
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
    temporary = os.path.join(os.path.dirname(path), f".blobs.{_ours()}")
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
