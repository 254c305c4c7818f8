"""What sh-flatten reads: OCI layouts, archives, tars and directories, each as layers, config and name."""

from __future__ import annotations

import io
import json
import os
import stat
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO

from . import layout, oci, reference, signatures, store, unsquash
from .archive import Archive, seekable
from .fail import USAGE, Fail
from .merge import Layer
from .streams import Piped, Slice

if TYPE_CHECKING:
    from collections.abc import Callable

_TAR = ("tar", "--create", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*")
LAYERED = ("oci", "oci-archive", "docker-archive")  # schemes
IMAGES = ("squashfs", "sif")
_PAX = ("--format=posix", "--pax-option=delete=atime,delete=ctime")


@dataclass(frozen=True)
class Source:
    """An image to be: its layers, the lowest first, their size (bytes, for progress), and what is known of it.

    private: not everybody may read what it is made of.
    """

    layers: tuple[Layer, ...]
    size: int
    config: bytes | None = None
    manifest: str | None = None
    reference: reference.Reference | None = None
    platform: str | None = None
    signed: signatures.Bundle = signatures.NONE
    private: bool = False


def read(name: str, spool: str, limit: int) -> Source:
    """Return the source that a user names: `oci:DIR[:NAME]`, `oci-archive:`, `docker-archive:`, `squashfs:`, `sif:`.

    Without a scheme it is a squashfs, a SIF file, a tar or a directory. spool: the directory where what cannot seek is
    put, unlinked; limit: most bytes that it may have there. Raises Fail.
    """
    scheme, colon, rest = name.partition(":")
    if colon and scheme in IMAGES:
        return unsquashed(rest, spool, limit)
    if colon and scheme == "oci":
        where, _, image = rest.partition(":")
        return _oci(where, image)
    if colon and scheme in ("oci-archive", "docker-archive"):
        path, _, image = rest.partition(":")
        archive = Archive(path, spool, limit)
        return _oci_archive(archive, image) if scheme == "oci-archive" else _docker_archive(archive, image)
    if os.path.isdir(name):
        return _directory(name)
    if "/" in name or os.path.exists(name) or name == "-":
        return _tar("/dev/stdin" if name == "-" else name, spool, limit)
    kinds = "oci:DIR:NAME, oci-archive:FILE, docker-archive:FILE, a squashfs, a SIF file, a tar, a directory"
    todo = f"sh-pull {name} | sh-flatten, or name {kinds}"
    raise Fail(f"cannot flatten {name!r}", "no such file, and not a name that sh-pull prints", todo, USAGE)


def _named(name: str) -> reference.Reference | None:
    """Return the reference that an archive's name for an image is; None for a mere tag (`12`)."""
    if ":" not in name and "@" not in name:
        return None
    try:
        return reference.parse(name)
    except Fail:
        return None


def _image(what: str, entry: oci.Descriptor, data: bytes, name: str, blobs: _Blobs) -> Source:
    """Put together the source that a manifest describes."""
    manifest = oci.parse_manifest(data, entry.media_type)
    if not isinstance(manifest, oci.Manifest):
        raise Fail(f"cannot flatten {what}", "an index where a manifest belongs")
    oci.check_image(manifest)
    config_bytes = blobs.document(manifest.config)
    config = oci.parse_config(config_bytes)
    if config.diff_ids and len(config.diff_ids) != len(manifest.layers):
        why = f"its manifest has {len(manifest.layers)} layers, its config {len(config.diff_ids)}"
        raise Fail(f"refused {what}", why)
    layers = tuple(
        Layer(f"layer {n} of {what}", partial(blobs.open, descriptor), diff_id)
        for n, (descriptor, diff_id) in enumerate(
            zip(manifest.layers, config.diff_ids or ("",) * len(manifest.layers)), 1
        )
    )
    size = sum(descriptor.size for descriptor in manifest.layers)
    return Source(layers, size, config_bytes, entry.digest, _named(name), str(config.platform) or None)


@dataclass(frozen=True)
class _Blobs:
    """How to get at blobs: a document's verified bytes, any blob's stream."""

    document: Callable[[oci.Descriptor], bytes]
    open: Callable[[oci.Descriptor], BinaryIO]


def _oci(where: str, name: str) -> Source:
    layout.renew(where)
    entry, data = layout.read_layout(where, name)
    blobs = os.path.join(where, "blobs", "sha256")
    what = repr(f"oci:{where}:{name}" if name else f"oci:{where}")
    reads = _Blobs(partial(layout.read_document, blobs), partial(layout.open_blob, where))
    source = _image(what, entry, data, name or next(iter(entry.names), ""), reads)
    signed = signatures.load(layout.read_signatures(where))
    return replace(source, signed=signed, private=layout.PRIVATE in entry.annotations)


def _oci_archive(archive: Archive, name: str) -> Source:
    def document(descriptor: oci.Descriptor) -> bytes:
        data = archive.read(f"blobs/sha256/{descriptor.hex}")
        if sha256(data).hexdigest() != descriptor.hex:
            raise Fail(f"the blob {descriptor.digest!r} is damaged", archive.what)
        return data

    def blob(descriptor: oci.Descriptor) -> BinaryIO:
        return archive.open(f"blobs/sha256/{descriptor.hex}")

    files = archive.read("oci-layout"), archive.read("index.json")
    entry, data = layout.resolve(archive.what, *files, document, name)
    return _image(archive.what, entry, data, name or next(iter(entry.names), ""), _Blobs(document, blob))


def _docker_archive(archive: Archive, name: str) -> Source:
    """Read what `docker save` writes: manifest.json, an array of {Config, RepoTags, Layers}."""
    try:
        images = json.loads(archive.read("manifest.json"))
    except (ValueError, RecursionError) as error:
        raise Fail(f"cannot read {archive.what}", f"its manifest.json is not JSON ({error})") from error
    found = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    if name:
        wanted = str(reference.parse(name))
        found = [image for image in found if wanted in (str(_named(tag)) for tag in _strings(image.get("RepoTags")))]
    if len(found) != 1:
        tags = [tag for image in images for tag in _strings(image.get("RepoTags"))] if isinstance(images, list) else []
        todo = f"name one: docker-archive:FILE:NAME; it has {', '.join(tags) or 'none with a name'}"
        raise Fail(f"cannot choose an image in {archive.what}", f"{len(found)} match", todo)
    image = found[0]
    config = archive.read(str(image.get("Config")))
    parsed = oci.parse_config(config)
    paths = _strings(image.get("Layers"))
    diff_ids = parsed.diff_ids or ("",) * len(paths)
    if len(diff_ids) != len(paths):
        raise Fail(f"refused {archive.what}", f"{len(paths)} layers, and {len(diff_ids)} in its config")
    layers = tuple(
        Layer(f"layer {n} of {archive.what}", partial(archive.open, path), diff_id)
        for n, (path, diff_id) in enumerate(zip(paths, diff_ids), 1)
    )
    tags = _strings(image.get("RepoTags"))
    meant = _named(name or (tags[0] if tags else ""))
    return Source(layers, sum(map(archive.size, paths)), config, None, meant, str(parsed.platform) or None)


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _tar(path: str, spool: str, limit: int) -> Source:
    """Read a root file system as one tar, compressed or not."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
        with open(path, "rb") if regular else open(os.devnull, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    if any(start.startswith(magic, at) for at, magic in unsquash.MAGICS):
        return unsquashed(path, spool, limit)
    if regular:
        return Source((Layer(repr(path), lambda: open(path, "rb")),), os.path.getsize(path))
    spooled = seekable(path, spool, limit)
    size = os.fstat(spooled.fileno()).st_size
    return Source((Layer(repr(path), lambda: io.BufferedReader(Slice(spooled.fileno(), 0, size), 1 << 17)),), size)


def unsquashed(path: str, spool: str, limit: int) -> Source:
    """Read a squashfs or a SIF file: its tree, and what lies beside it or in it of how to run it. Raises Fail."""
    image = unsquash.opened(path, spool, limit)
    config = unsquash.config(image, path)
    known = store.read_sidecar(path)
    platform = known.platform if known else str(oci.parse_config(config).platform) if config else ""
    return Source(
        (image.layer(),), 0, config, platform=platform or None, private=image.private or unsquash.listed(path)
    )


def _packed(directory: str) -> BinaryIO:
    """Return the stream that tar(1) makes of a directory."""
    names = os.memfd_create("map")
    options = list(_PAX)
    if os.geteuid():  # what is ours on this host is root's in the image, as the user is inside (design.md, "Run")
        os.write(names, f"+{os.geteuid()} root:0\n+{os.getegid()} root:0\n".encode())
        options += [f"--{whose}-map=/proc/self/fd/{names}" for whose in ("owner", "group")]
    command = [*_TAR, *options, "-C", directory, "."]
    return io.BufferedReader(Piped(command, repr(directory), [names], partial(os.close, names)), 1 << 17)


def _directory(path: str) -> Source:
    """Read a root file system as a directory; its own /.shoebox/config.json, if any, is its config."""
    return Source((Layer(repr(path), lambda: _packed(path)),), 0, _own_config(path))


def _own_config(path: str) -> bytes | None:
    """Return the config that an unpacked image of ours carries."""
    try:  # no symlink followed: it may lead to what is not the image's
        folder = os.open(os.path.join(path, ".shoebox"), os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fd = os.open("config.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)
    with os.fdopen(fd, "rb") as file:
        data = file.read(oci.MAX_DOCUMENT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    try:
        oci.parse_config(data)
    except Fail:
        return None
    return data
