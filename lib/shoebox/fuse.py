"""Numbers and records of the kernel's FUSE protocol, as linux/fuse.h has them. Pure."""

from __future__ import annotations

from struct import Struct

MAJOR, MINOR = 7, 38
ROOT = 1  # FUSE_ROOT_ID

# enum fuse_opcode
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 2, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, INIT, READDIR, RELEASEDIR, FSYNCDIR, CREATE = 20, 26, 28, 29, 30, 35
BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, TMPFILE = 42, 43, 44, 45, 51
LAST = TMPFILE

# What the kernel offers and we take (FUSE_*): a request for each page otherwise, or one at a time.
ASYNC_READ, BIG_WRITES, WRITEBACK_CACHE = 1 << 0, 1 << 5, 1 << 16
PARALLEL_DIROPS, MAX_PAGES, CACHE_SYMLINKS = 1 << 18, 1 << 22, 1 << 23
# Not ASYNC_DIO: two pieces of one write(2) may share a block. Not HANDLE_KILLPRIV: the kernel would keep the old mode.
WANTED = ASYNC_READ | BIG_WRITES | WRITEBACK_CACHE | PARALLEL_DIROPS | MAX_PAGES | CACHE_SYMLINKS

# FATTR_*
MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_NOW, MTIME_NOW, CTIME = 1, 2, 4, 8, 16, 32, 128, 256, 1024
WRITE_CACHE = 1  # FUSE_WRITE_CACHE: from the page cache
KEEP_CACHE = 2  # FOPEN_KEEP_CACHE
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # FALLOC_FL_*
NOREPLACE, EXCHANGE = 1, 2  # RENAME_*

LARGEST = 1 << 20  # bytes of one read or write
FOREVER = 1 << 31  # seconds for which the kernel may keep a name or attributes: nothing changes but through it

_ATTR = "3Q3q10I"  # struct fuse_attr
HEAD = Struct("=IIQQIIIHH")  # struct fuse_in_header
REPLY = Struct("=IiQ")  # struct fuse_out_header; so the next ones begin, too
ENTRY = Struct("=IiQ4Q2I" + _ATTR)  # struct fuse_entry_out
ENTRY_OPEN = Struct("=IiQ4Q2I" + _ATTR + "Q2I")  # then struct fuse_open_out
OPENED = Struct("=IiQQ2I")  # struct fuse_open_out
ATTR = Struct("=IiQQ2I" + _ATTR)  # struct fuse_attr_out
WRITTEN = Struct("=IiQ2I")  # struct fuse_write_out
STATFS_OUT = Struct("=IiQ5Q4I24x")  # struct fuse_statfs_out
INIT_OUT = Struct("=IiQ4I2H2I2HI28x")  # struct fuse_init_out
INIT_IN = Struct("=4I")  # struct fuse_init_in, its beginning
SETATTR_IN = Struct("=2I3Q3q8I")
MKNOD_IN = Struct("=4I")
MKDIR_IN = Struct("=2I")
CREATE_IN = Struct("=4I")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=Q2I")
LINK_IN = Struct("=Q")
READ_IN = Struct("=2Q2IQ2I")
WRITE_IN = Struct("=2Q2IQ2I")
FALLOCATE_IN = Struct("=3Q2I")
FORGET_IN = Struct("=Q")
BATCH_IN = Struct("=2I")
FORGET_ONE = Struct("=2Q")
DIRENT = Struct("=2Q2I")  # struct fuse_dirent without its name

DATA = HEAD.size + WRITE_IN.size  # bytes before the data of a WRITE
REQUEST = DATA + LARGEST  # bytes of the longest request


def error(unique: int, number: int) -> bytes:
    """Return a reply that has nothing but an errno; 0 for success."""
    return REPLY.pack(REPLY.size, -number, unique)


def whole(unique: int, body: bytes) -> bytes:
    """Return a reply with a body."""
    return REPLY.pack(REPLY.size + len(body), 0, unique) + body


def dirent(ino: int, cookie: int, mode: int, name: bytes) -> bytes:
    """Return a struct fuse_dirent, filled up to 64 bits. cookie: what a reader goes on from."""
    return DIRENT.pack(ino, cookie, len(name), mode >> 12) + name + b"\0" * (-len(name) % 8)


def init(unique: int, minor: int, offered: int, readahead: int, page: int) -> bytes:
    """Return the answer to INIT. minor, offered, readahead: the kernel's (struct fuse_init_in). page: its, in bytes."""
    size, flags, waiting = INIT_OUT.size, offered & WANTED, 64
    head = (size, 0, unique, MAJOR, min(MINOR, minor), readahead, flags, waiting, waiting * 3 // 4)
    return INIT_OUT.pack(*head, LARGEST, 1, LARGEST // page, 0, 0)
