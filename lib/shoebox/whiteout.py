"""Whiteouts as layers write them (OCI image-spec, layer.md) and as the kernel's overlay does (overlayfs.rst). Pure."""

from __future__ import annotations

import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
OPAQUE_XATTR, OPAQUE_VALUE = "user.overlay.opaque", b"y"
_WHITEOUT_XATTR, _OVERLAYS = "user.overlay.whiteout", "user.overlay."
_KEPT = ("user.", "system.posix_acl_", "security.capability")
_CAPABILITY, _CAPABILITY_2, _CAPABILITY_3 = "security.capability", 0x02, 0x03  # revisions: capabilities(7)
_SIZE_2, _SIZE_3 = 20, 24  # bytes of struct vfs_cap_data and vfs_ns_cap_data


def is_whiteout(about: tuple[int, int, int], names: Iterable[str]) -> bool:
    """Tell whether a file of an upper directory says that there is none. about: its mode, rdev and size."""
    mode, device, size = about
    if stat.S_ISCHR(mode):
        return device == 0
    return stat.S_ISREG(mode) and size == 0 and _WHITEOUT_XATTR in names


def is_opaque(attributes: Mapping[str, bytes]) -> bool:
    """Tell whether a directory of an upper directory hides all that lies below it."""
    return attributes.get(OPAQUE_XATTR) == OPAQUE_VALUE


def kept(attributes: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the extended attributes that are the file's, not overlay's or this host's, by name.

    Capabilities that a user namespace has set name its root (revision 3): the image's are everybody's.
    """
    found = {}
    for name, value in sorted(attributes.items()):
        if name.startswith(_KEPT) and not name.startswith(_OVERLAYS):
            ours = name == _CAPABILITY and len(value) == _SIZE_3 and value[3] == _CAPABILITY_3
            found[name] = value[:3] + bytes([_CAPABILITY_2]) + value[4:_SIZE_2] if ours else value
    return found
