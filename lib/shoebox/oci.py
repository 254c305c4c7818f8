"""The formats of registries and layouts: manifests, indexes and configs of OCI and Docker, read into records. Pure.

Follows github.com/opencontainers/image-spec v1.1 (manifest.md, image-index.md, config.md, descriptor.md) and
distribution's manifest-v2-2.md. Whatever a document says wrongly is a Fail, never a traceback.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .fail import Fail
from .platforms import Platform, runs_on
from .reference import check_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DOCUMENT = 4 << 20  # bytes of a manifest, index or config: distribution-spec, "Pushing Manifests"
MAX_DEPTH = 3  # documents on the way from a name to an image's manifest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
SCHEMA_1_TYPES = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_LAYER_BASES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
LAYER_TYPES = tuple(base + how for base in _LAYER_BASES for how in ("", "+gzip", "+zstd", ".gzip", ".zstd"))
REF_NAME = "org.opencontainers.image.ref.name"
_NAMES = (REF_NAME, "io.containerd.image.name")  # buildx writes a full name into the second
_ORIGINAL = (
    "shoebox.original.digest",
    "shoebox.original.size",
)  # of the Docker manifest that an entry is the OCI form of
_ATTESTATION = "vnd.docker.reference.type"


@dataclass(frozen=True)
class Descriptor:
    """What names a blob: its type, its digest (`sha256:HEX`) and its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""
    annotations: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def hex(self) -> str:
        """The digest's 64 hex digits."""
        return self.digest.partition(":")[2]

    @property
    def foreign(self) -> bool:
        """Tell whether it is a layer that registries do not hold, to be had from its urls."""
        return ".foreign." in self.media_type or ".nondistributable." in self.media_type

    @property
    def names(self) -> tuple[str, ...]:
        """What a layout's index calls it."""
        return tuple(self.annotations[key] for key in _NAMES if key in self.annotations)


@dataclass(frozen=True)
class Manifest:
    """One image: its config and its layers, the lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Index:
    """The manifests of one image for several platforms, or what a layout holds."""

    media_type: str
    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Config:
    """What of an image's config matters for running it; empty where the config says nothing.

    env holds the entries as they are, mostly `NAME=VALUE`.
    """

    platform: Platform
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    working_dir: str
    user: str
    volumes: tuple[str, ...]
    labels: dict[str, str] = field(hash=False)
    diff_ids: tuple[str, ...]


def parse_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or index (OCI or Docker schema 2).

    media_type: what Content-Type or a descriptor claims it is; "" (or a type that says nothing) when nobody does. The
    claim, the document's own mediaType and its shape must agree (CVE-2021-41190). Raises Fail.
    """
    document = _document(data, "manifest")
    version = document.get("schemaVersion")
    own = _text(document.get("mediaType"), "mediaType")
    claim = media_type.partition(";")[0].strip().lower()
    if version == 1 or {claim, own} & set(SCHEMA_1_TYPES):
        raise Fail("cannot read the manifest", "it is of Docker's schema 1, withdrawn in 2019", "push the image again")
    is_index, is_manifest = "manifests" in document, "layers" in document or "config" in document
    if version != 2 or is_index == is_manifest:
        raise _odd("manifest", "it is neither an image's manifest nor an index" if version == 2 else "no schema 2")
    types = INDEX_TYPES if is_index else MANIFEST_TYPES
    said = [kind for kind in (claim if claim.startswith("application/vnd.") else "", own) if kind]
    if any(kind not in types or kind != said[0] for kind in said):
        shape = "an index" if is_index else "an image's manifest"
        raise _odd("manifest", f"it has the shape of {shape}, and is said to be {' and '.join(map(repr, said))}")
    kind = said[0] if said else types[0]
    if is_index:
        return Index(kind, tuple(_descriptor(entry) for entry in _list(document["manifests"], "manifests")))
    return Manifest(
        kind,
        _descriptor(document.get("config")),
        tuple(_descriptor(entry) for entry in _list(document.get("layers"), "layers")),
        _strings_by_name(document.get("annotations"), "annotations"),
    )


def as_oci(entry: Descriptor, data: bytes) -> tuple[Descriptor, bytes]:
    """Return a manifest in OCI's types, with its descriptor, which remembers the original; an OCI manifest as it is.

    Layouts need this: skopeo and umoci pass over Docker's types there, and only there. The blobs are the same.
    """
    if entry.media_type != DOCKER_MANIFEST:
        return entry, data
    document = _document(data, "manifest") | {"mediaType": OCI_MANIFEST}
    document["config"] = _object(document.get("config"), "config") | {"mediaType": CONFIG_TYPES[0]}
    layers = [_object(layer, "layers") for layer in _list(document.get("layers"), "layers")]
    document["layers"] = [layer | {"mediaType": _oci_layer(_text(layer.get("mediaType"), "layer"))} for layer in layers]
    made = json.dumps(document).encode()
    said = dict(zip(_ORIGINAL, (entry.digest, str(len(data))), strict=True))
    digest = f"sha256:{hashlib.sha256(made).hexdigest()}"
    return Descriptor(OCI_MANIFEST, digest, len(made), entry.platform, annotations=said), made


def original(entry: Descriptor) -> Descriptor:
    """Return the descriptor of the manifest as the registry has it: undo as_oci."""
    digest, size = (entry.annotations.get(key, "") for key in _ORIGINAL)
    if not digest:
        return entry
    if not (size.isascii() and size.isdigit() and len(size) < 10):
        raise _odd("descriptor", "its original has no size")
    return Descriptor(DOCKER_MANIFEST, _digest(digest), int(size), entry.platform, annotations=entry.annotations)


def check_image(manifest: Manifest) -> None:
    """Raise Fail if the manifest is not that of an image: a chart, a signature, encrypted layers."""
    kind = manifest.config.media_type
    if kind not in CONFIG_TYPES:
        raise Fail("not a container image", f"its config is of type {kind!r}")
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise Fail("not a container image", f"a layer is of type {layer.media_type!r}")


def without_layers(data: bytes) -> bytes:
    """Return a config less what it says of layers, for an image that was not made of them. Raises Fail."""
    parse_config(data)
    kept = {key: value for key, value in _document(data, "config").items() if key not in ("rootfs", "history")}
    return json.dumps(kept, separators=(",", ":")).encode()


def parse_config(data: bytes) -> Config:
    """Read an image's config; history, config and rootfs may be absent or null. Raises Fail."""
    document = _document(data, "config")
    run = _object(document.get("config"), "config")
    rootfs = _object(document.get("rootfs"), "rootfs")
    return Config(
        platform=_platform(document),
        env=_strings(run.get("Env"), "Env"),
        entrypoint=_command(run.get("Entrypoint"), "Entrypoint"),
        cmd=_command(run.get("Cmd"), "Cmd"),
        working_dir=_text(run.get("WorkingDir"), "WorkingDir"),
        user=_text(run.get("User"), "User"),
        volumes=tuple(_text(name, "Volumes") for name in _object(run.get("Volumes"), "Volumes")),
        labels=_strings_by_name(run.get("Labels"), "Labels"),
        diff_ids=tuple(_digest(name) for name in _list(rootfs.get("diff_ids"), "diff_ids")),
    )


def choose(manifests: Iterable[Descriptor], wanted: Platform) -> Descriptor:
    """Pick an index's entry for a platform: the best variant, of equals the first; attestations never.

    An entry that names no platform is taken when it is the only one. Raises Fail that names what there is.
    """
    entries = [entry for entry in manifests if _is_image(entry)]
    scores = [runs_on(entry.platform, wanted) if entry.platform else 0 for entry in entries]
    if any(scores):
        return entries[scores.index(max(scores))]
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    offers = sorted({str(entry.platform) if entry.platform else "entries without a platform" for entry in entries})
    why = f"it offers {', '.join(offers[:20])}" if offers else "it offers no image at all"
    raise Fail(f"the index has no image for '{wanted}'", why, "choose one with --platform, or by digest" * bool(offers))


def _is_image(entry: Descriptor) -> bool:
    known = entry.media_type in MANIFEST_TYPES + INDEX_TYPES
    unknown = entry.platform is not None and "unknown" in (entry.platform.os, entry.platform.architecture)
    return known and not unknown and _ATTESTATION not in entry.annotations


def _oci_layer(kind: str) -> str:
    base = next((index for index, base in enumerate(_LAYER_BASES) if kind.startswith(base)), 0)
    return _LAYER_BASES[base % 2] + kind[len(_LAYER_BASES[base]) :].replace(".", "+")


def _document(data: bytes, what: str) -> dict[str, object]:
    if len(data) > MAX_DOCUMENT:
        raise _odd(what, f"{len(data)} bytes are more than the {MAX_DOCUMENT} that registries promise")
    try:
        document: object = json.loads(data.decode())
    except RecursionError as error:
        raise _odd(what, "its JSON is nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, a number of 5,000 digits
        raise _odd(what, f"not JSON ({error})") from error
    return _object(document, what)


def _odd(what: str, why: str) -> Fail:
    return Fail(f"cannot read the {what}", why if len(why) < 300 else why[:300] + "…")


def _object(value: object, what: str) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _odd(what, "no JSON object where one belongs")
    return value


def _list(value: object, what: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _odd(what, "no JSON array where one belongs")
    return value


def _text(value: object, what: str) -> str:
    """Return a string that can be a file's name or a variable: no NUL, nothing that UTF-8 cannot say."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _odd(what, "no string where one belongs")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise _odd(what, "a string with a NUL or half a character")
    return value


def _strings(value: object, what: str) -> tuple[str, ...]:
    return tuple(_text(item, what) for item in _list(value, what))


def _command(value: object, what: str) -> tuple[str, ...]:
    """Return a command; old Docker wrote a string where there was one word."""
    return (_text(value, what),) if isinstance(value, str) else _strings(value, what)


def _strings_by_name(value: object, what: str) -> dict[str, str]:
    return {_text(name, what): _text(item, what) for name, item in _object(value, what).items()}


def _digest(value: object) -> str:
    text = _text(value, "digest")
    try:
        return check_digest(text)
    except Fail as error:
        raise _odd("digest", f"{text[:100]!r} is not 'sha256:' and 64 lower-case hex digits") from error


def _platform(document: dict[str, object]) -> Platform:
    names = (_text(document.get(key), key).lower() for key in ("os", "architecture", "variant"))
    return Platform(*names)


def _descriptor(value: object) -> Descriptor:
    document = _object(value, "descriptor")
    size = document.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise _odd("descriptor", f"{str(size)[:40]!r} is not a size")
    platform = document.get("platform")
    said = _platform(_object(platform, "platform")) if platform else None
    return Descriptor(
        _text(document.get("mediaType"), "mediaType"),
        _digest(document.get("digest")),
        size,
        said if said and said.architecture else None,
        _strings(document.get("urls"), "urls"),
        _text(document.get("artifactType"), "artifactType"),
        _strings_by_name(document.get("annotations"), "annotations"),
    )
