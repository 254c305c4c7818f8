"""SIF files (Apptainer, Singularity): where in one the squashfs lies. Pure: a function that reads in, a place out.

Layout: version 1 of github.com/apptainer/sif, pkg/sif/{sif,descriptor}.go; little-endian, nothing is padded.
"""

from __future__ import annotations

from .fail import Fail
from .superblock import SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = 128  # launch 32, magic 10, version 3, arch 3, id 16, then eight numbers of 8 bytes
_DESCRIPTOR = 585  # bytes each; what it says of its data begins with the kind, ends with 384 bytes for that kind
_MOST = 4096  # descriptors; files have 48
_PARTITION = 0x4004
_OCI = (0x400A, 0x400B)  # an index and blobs: sylabs/sif's DataOCIRootIndex and DataOCIBlob
_SQUASHFS = 1
_FILE_SYSTEMS = {2: "ext3", 3: "an archive", 4: "raw data", 5: "an encrypted squashfs", 6: "an encrypted squashfs"}
_PRIMARY = 2


def locate(read: Callable[[int, int], bytes], size: int, name: str) -> tuple[int, int]:
    """Return (offset, length) in bytes of the primary system partition, a squashfs, of the SIF file called name.

    read(offset, length) returns that part of the file, shorter only at its end; size is the file's, in bytes.
    Raises Fail; what the file says of itself is believed only as far as it lies inside the file.
    """
    what = f"cannot use image {name!r}"

    def number(data: bytes, offset: int, length: int) -> int:
        return int.from_bytes(data[offset : offset + length], "little")

    header = read(0, _HEADER)
    if len(header) < _HEADER or header[32:42] != b"SIF_MAGIC\0":
        raise Fail(what, "it is not a SIF file")
    version = header[42:45].rstrip(b"\0")
    if version != b"01":
        raise Fail(what, f"it is a SIF file of version {version.decode('ascii', 'replace')!r}, not '01'")
    count, start = number(header, 88, 8), number(header, 96, 8)
    if count > _MOST or not _HEADER <= start <= size - count * _DESCRIPTOR:
        raise Fail(what, f"it is damaged: {count} descriptors at byte {start} of {size}", "copy it again")
    table = read(start, count * _DESCRIPTOR)
    layered = False
    for at in range(0, len(table), _DESCRIPTOR):
        one = table[at : at + _DESCRIPTOR]
        layered = layered or (number(one, 0, 4) in _OCI and bool(one[4]))
        if number(one, 0, 4) != _PARTITION or not one[4] or number(one, 205, 4) != _PRIMARY:
            continue
        kind = number(one, 201, 4)
        if kind != _SQUASHFS:
            is_what = _FILE_SYSTEMS.get(kind, f"of unknown kind {kind}")
            raise Fail(
                what, f"its system partition is {is_what}, not a squashfs", "build it again, unencrypted, as SIF"
            )
        offset, length = number(one, 17, 8), number(one, 25, 8)
        if offset < _HEADER or length < SIZE or offset + length > size:
            raise Fail(what, f"it is cut off: {length} bytes at byte {offset}, and it has {size}", "copy it again")
        return offset, length
    if layered:
        todo = "sh-pull it from its registry, or build it without --oci"
        raise Fail(what, "it is an OCI-SIF: layers, and no file system of the whole", todo)
    raise Fail(what, "it has no primary system partition")
