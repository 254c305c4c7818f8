"""POSIX ACLs as the kernel keeps them in `system.posix_acl_access`. Pure.

Follows linux/posix_acl_xattr.h: version 2, then entries of tag, permission and id, in the order of the tags; acl(5).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

XATTR = "system.posix_acl_access"
OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20  # tags
READ = 4
_VERSION, _NOBODY = 2, 0xFFFFFFFF
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")


def encode(owner: int, users: Iterable[int], groups: Iterable[int]) -> bytes:
    """Return the ACL by which the owner has a permission (0 to 7), these users and groups may read, and nobody else."""
    named = [(USER, READ, uid) for uid in sorted(set(users))], [(GROUP, READ, gid) for gid in sorted(set(groups))]
    mask = [(MASK, READ, _NOBODY)] if any(named) else []
    entries = [(OWNER, owner, _NOBODY), *named[0], (OWNING_GROUP, 0, _NOBODY), *named[1], *mask, (OTHER, 0, _NOBODY)]
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def decode(data: bytes) -> list[tuple[int, int, int]]:
    """Return the entries (tag, permission, id) of an ACL. Raises ValueError."""
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % _ENTRY.size or _HEAD.unpack_from(data)[0] != _VERSION:
        raise ValueError("not an ACL as we know them")
    return [(tag, allowed, number) for tag, allowed, number in _ENTRY.iter_unpack(data[_HEAD.size :])]


def of_mode(mode: int) -> list[tuple[int, int, int]]:
    """Return the entries that the permissions of a file without an ACL stand for."""
    return [(tag, mode >> shift & 7, _NOBODY) for tag, shift in ((OWNER, 6), (OWNING_GROUP, 3), (OTHER, 0))]
