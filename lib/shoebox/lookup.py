"""From a reference to an image's manifest in a registry, and to the signatures that lie there for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from . import oci, signatures
from .fail import LATER, Fail
from .signatures import Bundle, Signature

if TYPE_CHECKING:
    from .platforms import Platform
    from .reference import Reference
    from .registry import Registry


class Manifests(Protocol):
    """Where manifests come from: a registry, or a registry and its mirrors."""

    def manifest(self, name: str) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, and its Content-Type. Raises Fail."""

    def digest(self, name: str) -> str:
        """Return the digest that is told for a tag, "" if none is."""


@dataclass(frozen=True)
class Found:
    """An image's manifest: its descriptor, its bytes, what it says; and the indexes on the way to it, as they came."""

    descriptor: oci.Descriptor
    data: bytes
    manifest: oci.Manifest
    indexes: tuple[bytes, ...] = ()


def resolve(registry: Manifests, reference: Reference, wanted: Platform) -> Found:
    """Fetch manifests, from indexes to an image's own; all claims about what each is must agree. Raises Fail."""
    data, kind = registry.manifest(reference.digest or reference.tag)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if reference.digest not in ("", digest):
        raise Fail("the registry sent something else", f"the manifest {digest!r}")
    found = oci.parse_manifest(data, kind)
    descriptor = oci.Descriptor(found.media_type, digest, len(data))
    indexes: tuple[bytes, ...] = ()
    for _ in range(oci.MAX_DEPTH):
        if isinstance(found, oci.Manifest):
            oci.check_image(found)
            return Found(descriptor, data, found, indexes)
        indexes = (*indexes, data)
        descriptor = oci.choose(found.manifests, wanted)
        data, kind = registry.manifest(descriptor.digest)
        if (len(data), hashlib.sha256(data).hexdigest()) != (descriptor.size, descriptor.hex):
            raise Fail(f"the registry sent something else for {descriptor.digest!r}")
        oci.parse_manifest(data, kind)
        found = oci.parse_manifest(data, descriptor.media_type)
    raise Fail(f"its indexes are nested more than {oci.MAX_DEPTH - 1} deep")


def anew(registry: Manifests, reference: Reference, found: Found, wanted: Platform) -> Found:
    """Return what a reference means by now. A HEAD request will do if that has not changed. Raises Fail."""
    first = found.indexes[0] if found.indexes else found.data
    same = reference.digest or registry.digest(reference.tag) == f"sha256:{hashlib.sha256(first).hexdigest()}"
    return found if same else resolve(registry, reference, wanted)


def signed(registry: Registry, found: Found) -> Bundle:
    """Fetch the signatures of a manifest and of the indexes that led to it: under cosign's tag, and as its referrers.

    What is no signature is passed over. Raises Fail if the registry cannot be asked.
    """
    made: list[Signature] = []
    for data in (found.data, *found.indexes):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        manifests = [registry.optional(signatures.tag(digest))]
        entries = _referrers(registry, digest)
        manifests += [registry.optional(entry.digest) for entry in entries[-signatures.MOST :]]
        for text in filter(None, manifests):
            made += _payloads(registry, text)
    unique = dict.fromkeys(made)
    return Bundle(tuple(unique), found.indexes)


def _referrers(registry: Registry, digest: str) -> list[oci.Descriptor]:
    """Return the signatures among what refers to a digest: distribution-spec v1.1, "Listing Referrers"."""
    text = registry.referrers(digest) or registry.optional(digest.replace(":", "-"))
    try:
        index = oci.parse_manifest(text) if text else None
    except Fail:
        return []
    if not isinstance(index, oci.Index):
        return []
    return [entry for entry in index.manifests if entry.artifact_type == signatures.ARTIFACT_TYPE]


def _payloads(registry: Registry, text: bytes) -> list[Signature]:
    """Fetch what a manifest of signatures lists; a blob that is not there, or not what it should be, is none."""
    try:
        manifest = oci.parse_manifest(text)
    except Fail:
        return []
    made = []
    for layer, signature in signatures.listed(manifest) if isinstance(manifest, oci.Manifest) else []:
        try:
            payload = _blob(registry, layer)
        except Fail as error:
            if error.status == LATER:
                raise
            continue
        if hashlib.sha256(payload).hexdigest() == layer.hex:
            made.append(Signature(payload, signature))
    return made


def _blob(registry: Registry, descriptor: oci.Descriptor) -> bytes:
    """Fetch a small blob, or of a longer one what is enough to see that. Raises Fail."""
    data = b""
    try:
        for piece in registry.blob(descriptor, 0)[1]:
            data += piece
            if len(data) > descriptor.size:
                break
    except ConnectionError as error:
        raise Fail(f"the connection breaks off ({error})", todo="pull again", status=LATER) from error
    return data
