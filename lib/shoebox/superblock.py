"""Superblocks: is this file a whole squashfs 4.0, and what is it else. Pure: the first bytes in, a record or Fail out.

Layout: struct squashfs_super_block in the kernel's fs/squashfs/squashfs_fs.h; the checks are those of its super.c.
"""

from __future__ import annotations

from .fail import Fail

SIZE = 96  # bytes of a superblock
HEAD = 2048  # bytes worth giving to check: enough to name most other formats too

SIF = "a SIF file"  # what seems() calls the one other format that has a squashfs in it

COMPRESSORS = ("zstd", "gzip", "lz4", "xz", "lzo")  # of images, the usual one first; lzma is for squashfs 3
_NUMBERS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_LOGS = range(12, 21)  # a block is 4 KiB to 1 MiB
_OTHERS = (  # offset, bytes there, what has them
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"\xfd7zXZ", "xz data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"QFI\xfb", "a qcow disk image"),
    (0, b"{", "JSON text"),
    (32, b"SIF_MAGIC", SIF),
    (257, b"ustar", "a tar archive"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS image"),
    (1080, b"\x53\xef", "an ext file system"),
    (0, b"#!", "a script"),
)


class Superblock:
    """What a squashfs says of itself."""

    __slots__ = ("block_size", "bytes_used", "compressor", "inodes", "mkfs_time")

    def __init__(self, compressor: str, block_size: int, inodes: int, bytes_used: int, mkfs_time: int) -> None:
        """Hold: compressor's name; block size and used size in bytes; count of inodes; seconds since 1970."""
        self.compressor = compressor
        self.block_size = block_size
        self.inodes = inodes
        self.bytes_used = bytes_used
        self.mkfs_time = mkfs_time


def check(header: bytes, file_size: int, name: str) -> Superblock:
    """Read a superblock, or raise Fail with what is wrong with the image called name.

    header: the first HEAD bytes, or what there is of them. file_size: of the whole squashfs, in bytes.
    """
    what = f"cannot use image {name!r}"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(header[offset : offset + size], "little")

    if not file_size:
        raise Fail(what, "it is empty")
    if header[:4] == b"sqsh":
        raise Fail(what, "it is a big-endian squashfs of an old version", "make it again with sh-flatten")
    if header[:4] != b"hsqs":
        other = seems(header)
        raise Fail(what, "it is not a squashfs" + (f" but {other}" if other else ""), "make one with sh-flatten")
    if file_size < SIZE or len(header) < SIZE:
        raise Fail(what, f"it is cut off in the superblock, after {file_size} bytes", "copy it again")
    version = f"{number(28, 2)}.{number(30, 2)}"
    if version != "4.0":
        raise Fail(what, f"it is squashfs version {version}, not 4.0", "make it again with sh-flatten")
    block_size, log = number(12, 4), number(22, 2)
    if log not in _LOGS or block_size != 1 << log:
        raise Fail(what, f"it is damaged: a block size of {block_size} bytes, its logarithm {log}", "copy it again")
    compressor = _NUMBERS.get(number(20, 2))
    if compressor is None:
        raise Fail(what, f"it is damaged: compressor {number(20, 2)} does not exist", "copy it again")
    bytes_used = number(40, 8)
    if bytes_used > file_size:
        why = f"it is cut off: {file_size} bytes, but its superblock says {bytes_used}"
        raise Fail(what, why, "copy it again")
    # Root inode, ids, inodes and directories have to lie after the superblock, before the end, in this order.
    if not number(26, 2) or not SIZE <= number(64, 8) < number(72, 8) < bytes_used or number(32, 2) > 8192:
        raise Fail(what, "it is damaged: its tables lie outside it", "copy it again")
    return Superblock(compressor, block_size, number(4, 4), bytes_used, number(8, 4))


def seems(header: bytes) -> str:
    """Name the format that a file's first bytes look like, with its article; "" if nothing known does."""
    return next((what for offset, magic, what in _OTHERS if header.startswith(magic, offset)), "")
