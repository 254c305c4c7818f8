"""Signatures checked by openssl(1): public keys (ECDSA, RSA, Ed25519) in PEM, SHA-256.

Not by a package: the distribution mends its own libcrypto, and knows a machine in FIPS mode; `cryptography` would bring
another one along, of 5 MB, with no wheel for every processor that clusters have. One check takes some 5 ms.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

_PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----\s([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")
_ED25519 = bytes.fromhex("06032b6570")  # object identifiers in DER: RFC 8410, 5480, 8017
_KINDS = (_ED25519, bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06092a864886f70d010101"))
_HEAD = 24  # bytes, in which a key says of what kind it is (RFC 5280, SubjectPublicKeyInfo)


def fingerprint(pem: bytes, name: str) -> str:
    """Return the sha256 (hex digits) of a public key, which openssl can use. name: for errors. Raises Fail."""
    if _kind(pem) is None:
        raise Fail(f"cannot use the key {name!r}", "not a public key of ECDSA, RSA or Ed25519 in PEM", "see cosign(1)")
    with _file(pem) as key:
        done = _run(["pkey", "-pubin", "-in", key[1], "-noout"], b"", [key[0]])
    if done.returncode:
        raise Fail(f"cannot use the key {name!r}", "openssl cannot read it")
    return hashlib.sha256(_der(pem)).hexdigest()


def verifies(pem: bytes, payload: bytes, signature: bytes) -> bool:
    """Tell whether the signature is one of the payload by this key, which fingerprint has taken."""
    with ExitStack() as stack:
        key, signed, data = (stack.enter_context(_file(content)) for content in (pem, signature, payload))
        if _kind(pem) == _ED25519:  # in one go, not of a digest
            words = ["pkeyutl", "-verify", "-pubin", "-inkey", key[1], "-rawin", "-in", data[1], "-sigfile", signed[1]]
        else:
            words = ["dgst", "-sha256", "-verify", key[1], "-signature", signed[1], data[1]]
        return _run(words, b"", [key[0], signed[0], data[0]]).returncode == 0


def _der(pem: bytes) -> bytes:
    found = _PEM.fullmatch(pem)
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        return b""


def _kind(pem: bytes) -> bytes | None:
    head = _der(pem)[:_HEAD]
    return next((kind for kind in _KINDS if kind in head), None)


@contextmanager
def _file(content: bytes) -> Iterator[tuple[int, str]]:
    """Yield a descriptor that has the content, and its path in a child that has the descriptor."""
    fd = os.memfd_create("shoebox")
    try:
        os.write(fd, content)  # in one: they are small
        yield fd, f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _run(words: list[str], data: bytes, fds: list[int]) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("openssl")
    if not program:
        raise Fail("cannot check signatures", "openssl(1) is not on PATH", "install openssl")
    return subprocess.run([program, *words], input=data, capture_output=True, check=False, pass_fds=fds)
