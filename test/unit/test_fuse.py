"""Our records of the FUSE protocol: names in a directory, the greeting."""

from __future__ import annotations

from stat import S_IFREG

from shoebox import fuse


def test_a_name_in_a_directory_is_filled_up_to_64_bits():
    for name in (b"a", b"12345678", b"x" * 255):
        packed = fuse.dirent(7, 3, S_IFREG | 0o644, name)
        assert len(packed) % 8 == 0
        assert fuse.DIRENT.unpack_from(packed) == (7, 3, len(name), 8)
        assert packed[24:].rstrip(b"\0") == name


def test_the_kernel_is_given_only_what_it_offers():
    packed = fuse.init(5, 34, fuse.WRITEBACK_CACHE | 2, 131072, 65536)
    assert fuse.INIT_OUT.unpack(packed)[:7] == (len(packed), 0, 5, 7, 34, 131072, fuse.WRITEBACK_CACHE)
    assert fuse.INIT_OUT.unpack(packed)[9:12] == (fuse.LARGEST, 1, 16)
