"""Our records of the FUSE protocol are those of linux/fuse.h."""

from __future__ import annotations

import subprocess

import pytest

from shoebox import fuse

RECORDS = {
    "struct fuse_in_header": fuse.HEAD.size,
    "struct fuse_out_header": fuse.REPLY.size,
    "struct fuse_out_header + struct fuse_entry_out": fuse.ENTRY.size,
    "struct fuse_out_header + struct fuse_entry_out + struct fuse_open_out": fuse.ENTRY_OPEN.size,
    "struct fuse_out_header + struct fuse_attr_out": fuse.ATTR.size,
    "struct fuse_out_header + struct fuse_write_out": fuse.WRITTEN.size,
    "struct fuse_out_header + struct fuse_statfs_out": fuse.STATFS_OUT.size,
    "struct fuse_out_header + struct fuse_init_out": fuse.INIT_OUT.size,
    "struct fuse_setattr_in": fuse.SETATTR_IN.size,
    "struct fuse_mknod_in": fuse.MKNOD_IN.size,
    "struct fuse_mkdir_in": fuse.MKDIR_IN.size,
    "struct fuse_create_in": fuse.CREATE_IN.size,
    "struct fuse_rename_in": fuse.RENAME_IN.size,
    "struct fuse_rename2_in": fuse.RENAME2_IN.size,
    "struct fuse_link_in": fuse.LINK_IN.size,
    "struct fuse_read_in": fuse.READ_IN.size,
    "struct fuse_write_in": fuse.WRITE_IN.size,
    "struct fuse_fallocate_in": fuse.FALLOCATE_IN.size,
    "struct fuse_forget_in": fuse.FORGET_IN.size,
    "struct fuse_batch_forget_in": fuse.BATCH_IN.size,
    "struct fuse_forget_one": fuse.FORGET_ONE.size,
    "struct fuse_dirent": fuse.DIRENT.size,
}
OPCODES = (
    "LOOKUP FORGET GETATTR SETATTR READLINK SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK READ WRITE STATFS RELEASE"
)
OPCODES += (
    " FSYNC INIT READDIR RELEASEDIR FSYNCDIR BATCH_FORGET FALLOCATE RENAME2 TMPFILE ASYNC_READ BIG_WRITES OPEN CREATE"
)
OPCODES += " WRITEBACK_CACHE PARALLEL_DIROPS MAX_PAGES CACHE_SYMLINKS WRITE_CACHE"
ATTRIBUTES = "MODE UID GID SIZE ATIME MTIME ATIME_NOW MTIME_NOW CTIME"


@pytest.mark.parametrize("what", ["sizes", "numbers"])
def test_sizes_and_numbers_are_those_of_the_header(tmp_path, what):
    if what == "sizes":
        expected = RECORDS
        words = {name: " + ".join(f"sizeof({part})" for part in name.split(" + ")) for name in RECORDS}
    else:
        expected = {f"FUSE_{name}": getattr(fuse, name) for name in OPCODES.split()}
        expected |= {f"FATTR_{name}": getattr(fuse, name) for name in ATTRIBUTES.split()}
        expected |= {"FOPEN_KEEP_CACHE": fuse.KEEP_CACHE, "FUSE_ROOT_ID": fuse.ROOT}
        words = {name: name for name in expected}
    lines = "".join(f'printf("%s\\t%ld\\n", "{name}", (long)({word}));\n' for name, word in words.items())
    source = (
        f"#include <stdint.h>\n#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {{\n{lines}return 0;\n}}\n"
    )
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["gcc", "-o", tmp_path / "a", tmp_path / "a.c"], check=True)
    said = subprocess.run([tmp_path / "a"], check=True, capture_output=True, text=True).stdout
    assert {name: int(number) for name, number in (line.split("\t") for line in said.splitlines())} == expected
