"""Signatures as cosign makes them: what they say, where registries keep them, and how we keep them. Pure.

Follows github.com/sigstore/cosign's specs/SIGNATURE_SPEC.md: a signature is a layer of a manifest, its blob the payload
(JSON, "simple signing"), its annotation the signature of that blob's bytes. Who signs an index signs what it lists.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import oci
from .fail import Fail
from .reference import check_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"
_KIND = "cosign container image signature"
MOST = 64  # signatures of one digest that we look at, the newest
_MAX_PAYLOAD = 16384  # bytes; an honest one has some 250
_MAX_SIGNATURE = 2048  # bytes; RSA of 16384 bits


@dataclass(frozen=True)
class Signature:
    """The bytes that were signed, and the signature of these."""

    payload: bytes
    signature: bytes


@dataclass(frozen=True)
class Bundle:
    """What travels with an image: signatures, and the indexes that lead to its manifest and may be what is signed."""

    signatures: tuple[Signature, ...] = ()
    indexes: tuple[bytes, ...] = ()


NONE = Bundle()


def tag(digest: str) -> str:
    """Return the tag under which cosign puts the signatures of a digest, in the same repository."""
    return f"{digest.replace(':', '-')}.sig"


def listed(manifest: oci.Manifest) -> list[tuple[oci.Descriptor, bytes]]:
    """Return payloads' descriptors and their signatures; what is of another kind or size is none."""
    found = []
    for layer in manifest.layers:
        said = layer.annotations.get(_ANNOTATION, "")
        if layer.media_type != PAYLOAD_TYPE or layer.size > _MAX_PAYLOAD or len(said) > 2 * _MAX_SIGNATURE:
            continue
        try:
            found.append((layer, base64.b64decode(said, validate=True)))
        except ValueError:  # not base64
            continue
    return [pair for pair in found if pair[1]][-MOST:]


def claim(payload: bytes) -> tuple[str, str]:
    """Return what a payload says that is signed: a manifest's digest, and what the image is called. Raises Fail.

    To be asked only after its signature has been verified; and even then nothing is guessed.
    """
    try:
        document: object = json.loads(payload.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Fail("not a signature's payload", f"not JSON ({str(error)[:100]})") from error
    critical = _part(document, "critical", {"critical", "optional"})
    image, identity = critical.get("image"), critical.get("identity")
    digest, name = _word(image, "docker-manifest-digest"), _word(identity, "docker-reference")
    if critical.keys() != {"type", "image", "identity"} or critical["type"] != _KIND:
        raise Fail("not a signature's payload", f"its type is not {_KIND!r}")
    try:
        return check_digest(digest), name
    except Fail as error:
        raise Fail("not a signature's payload", f"{digest[:100]!r} is no digest") from error


def covered(manifest: str, indexes: Iterable[bytes]) -> set[str]:
    """Return the digests whose signature is one of the manifest too: its own, and of the indexes that list it."""
    digests = {manifest}
    left = list(indexes)
    for _ in range(oci.MAX_DEPTH):
        for data in left:
            try:
                index = oci.parse_manifest(data)
            except Fail:
                continue
            if isinstance(index, oci.Index) and any(entry.digest in digests for entry in index.manifests):
                digests.add(f"sha256:{hashlib.sha256(data).hexdigest()}")
    return digests


def record(bundle: Bundle) -> dict[str, object]:
    """Return a bundle as JSON has it."""
    return {
        "signatures": [{"payload": _text(one.payload), "signature": _text(one.signature)} for one in bundle.signatures],
        "indexes": [_text(index) for index in bundle.indexes],
    }


def read(value: object) -> Bundle:
    """Read what record made; what is not of that form is no signature."""
    if not isinstance(value, dict):
        return NONE
    pairs, indexes = value.get("signatures"), value.get("indexes")
    found = [
        Signature(_bytes(pair.get("payload")), _bytes(pair.get("signature")))
        for pair in (pairs if isinstance(pairs, list) else [])[: 4 * MOST]
        if isinstance(pair, dict)
    ]
    good = tuple(one for one in found if one.signature and 0 < len(one.payload) <= _MAX_PAYLOAD)
    return Bundle(
        good, tuple(_bytes(index) for index in (indexes if isinstance(indexes, list) else [])[: oci.MAX_DEPTH])
    )


def dump(bundle: Bundle) -> bytes:
    """Write a bundle as a file of a layout."""
    return json.dumps({"schema": 1, **record(bundle)}, indent=1).encode() + b"\n"


def load(data: bytes) -> Bundle:
    """Read what dump wrote; anything else is no signature."""
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError):
        return NONE
    return read(document)


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object of its pairs, for json.loads: a name that comes twice is a ValueError, not the last one."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} is said twice")
    return made


def _part(value: object, name: str, words: set[str]) -> Mapping[str, object]:
    part = value.get(name) if isinstance(value, dict) and value.keys() <= words else None
    if not isinstance(part, dict):
        raise Fail("not a signature's payload", f"it has no {name!r}, or more than belongs there")
    return part


def _word(value: object, name: str) -> str:
    word = value.get(name) if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(word, str):
        raise Fail("not a signature's payload", f"it has no {name!r}, or more than belongs there")
    return word


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (ValueError, binascii.Error):
        return b""
