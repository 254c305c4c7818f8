"""Whether the site lets an image in: its policy, held against signatures, offline; and bytes that the kernel gets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import mountconf, openssl, paths, policy, signatures, squashfs, store
from .fail import Fail
from .policy import REJECT, SIGNED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .image import Image
    from .policy import Identity, Key, Policy
    from .reference import Reference
    from .signatures import Bundle

_MAX_KEY = 65536  # bytes


@dataclass(frozen=True)
class Signer:
    """A key that has signed an image: how the policy calls it, its sha256 (hex digits), what it calls the image."""

    key: str
    sha256: str
    identity: str


@dataclass(frozen=True)
class Site:
    """A policy and its keys: what each key's PEM is, how it is called, and its sha256."""

    policy: Policy
    keys: Mapping[Key, tuple[bytes, str, str]]

    def asks(self, reference: Reference | None) -> bool:
        """Tell whether images of a reference need signatures."""
        return policy.asks(self.policy.requirements(reference))

    def admit(self, reference: Reference | None, manifest: str | None, bundle: Bundle) -> list[Signer]:
        """Return who signed an image; [] where nobody had to. manifest: its digest or None. Raises Fail."""
        signers = []
        for required in self.policy.requirements(reference):
            if required.kind == REJECT:
                raise self._refused(reference, "nothing of that name is let in")
            if required.kind == SIGNED:
                signers.append(self._signer(reference, manifest, bundle, required.keys, required.identity))
        return signers

    def _signer(
        self, reference: Reference | None, manifest: str | None, bundle: Bundle, keys: tuple[Key, ...], wanted: Identity
    ) -> Signer:
        """Return the first that signed it well; else say what came nearest. Nothing is read that no key has signed."""
        if not manifest or not bundle.signatures:
            raise self._refused(
                reference, "it has no signature" if manifest else "what has no manifest has no signature"
            )
        digests = signatures.covered(manifest, bundle.indexes)
        why = "it is signed by none of " + ", ".join(self.keys[key][1] for key in keys)
        near = 0
        for one in bundle.signatures:
            for key in keys:
                pem, called, sha256 = self.keys[key]
                if not openssl.verifies(pem, one.payload, one.signature):
                    continue
                try:
                    digest, name = signatures.claim(one.payload)
                except Fail as error:
                    found, told = 1, f"{called} has signed {error}"
                else:
                    if digest in digests and wanted.accepts(reference, name):
                        return Signer(called, sha256, name)
                    found, told = 2, f"what {called} has signed is another image, {digest}"
                    if digest in digests:
                        found, told = (
                            3,
                            f"{called} has signed it as {name[:300]!r}, and the policy says {wanted.kind!r}",
                        )
                near, why = (found, told) if found > near else (near, why)
        raise self._refused(reference, why)

    def _refused(self, reference: Reference | None, why: str) -> Fail:
        what = repr(str(reference)) if reference else "an image without a name"
        return Fail(f"{what} is refused by {self.policy.name!r}", why)


def site() -> Site | None:
    """Return the site's policy, with its keys; None if there is none. Raises Fail for what cannot be understood."""
    path = os.path.join(paths.SITE, policy.FILE)
    data = _read(path, policy.MOST)
    if data is None:
        return None
    found = policy.load(data, path)
    keys: dict[Key, tuple[bytes, str, str]] = {}
    for key in found.all_keys():
        pem = _read(key.path, _MAX_KEY) if key.path else key.pem
        if pem is None:
            raise Fail(f"cannot use {path!r}", f"there is no key {key.path!r}")
        sha256 = openssl.fingerprint(pem, key.path or f"{path}, keyData")
        keys[key] = (pem, repr(key.path) if key.path else f"the key sha256:{sha256[:12]}", sha256)
    return Site(found, keys)


def check_bytes(image: Image, directory: str) -> None:
    """Raise Fail for an image that must not enter, byte for byte, a directory that the kernel mounts from.

    It may if we have made it ourselves, with a sidecar that says so, or if it lies where the kernel mounts it already.
    """
    data = _read(os.path.join(paths.SITE, mountconf.FILE), policy.MOST)
    trusted = mountconf.parse(os.fsdecode(data or b""))
    if not trusted.has(os.path.realpath(directory)):
        return
    about = os.fstat(image.fd)
    path = os.path.realpath(image.path)
    writable = about.st_mode & 0o022
    if trusted.has(path) and about.st_uid in trusted.owners and not writable:
        return
    why = "others can write to it" if writable else ""
    if about.st_uid != os.geteuid():
        why = "it is another user's"
    beside = store.sidecar_file(path) if path.endswith(".sqfs") else ""
    try:
        own = bool(beside) and os.stat(beside, follow_symlinks=False).st_uid == os.geteuid()
    except FileNotFoundError:
        own = False
    if not own or image.known.writer.get("program") not in squashfs.PROGRAMS:
        why = why or "it has no sidecar of yours that says that sh-flatten made it"
    if why:
        todo = f"sh-flatten squashfs:{image.path} | sh-stage -d {directory}"
        raise Fail(
            f"refused {image.path!r}: the kernel mounts from {directory!r}, and takes no foreign bytes", why, todo
        )


def _read(path: str, most: int) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
