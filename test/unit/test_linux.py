"""linux: system calls that os lacks, tried on the kernel that is there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from shoebox import linux


def test_openat2_stays_in_its_root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("inside")
    (tmp_path / "link").symlink_to("/etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    for path in ("/etc/passwd", "link", "../../etc/passwd"):
        fd = linux.openat2(root, path, os.O_RDONLY, linux.IN_ROOT)
        assert os.read(fd, 100) == b"inside"
        assert not os.get_inheritable(fd)
        os.close(fd)
    with pytest.raises(FileNotFoundError) as caught:
        linux.openat2(root, "none", os.O_RDONLY, linux.IN_ROOT)
    assert caught.value.filename == "none"
    with pytest.raises(OSError, match="symbolic") as looped:
        linux.openat2(linux.AT_FDCWD, "/proc/self/root", os.O_PATH, linux.NO_MAGICLINKS)
    assert looped.value.errno == errno.ELOOP
    os.close(root)


def test_close_range_closes_what_it_says_and_nothing_else():
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    linux.close_range(fds[1], fds[1])
    linux.close_range(5, 4)
    os.fstat(fds[0])
    os.fstat(fds[2])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fds[1])
    os.close(fds[0])
    os.close(fds[2])


def test_what_the_kernel_refuses_is_an_oserror_that_names_its_subject():
    with pytest.raises(OSError, match=r"No such device|not permitted") as caught:
        linux.new_mount("no-such-file-system", {}, 0)
    assert caught.value.filename == "no-such-file-system"


TYPES = """
import fcntl, sys
sys.path.insert(0, {lib!r})
from shoebox import linux
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
assert linux.deny_typing()
seen = []
for request in (0x5412, 0x541C, 0x5401):
    try:
        fcntl.ioctl(0, request, bytes(64))
    except OSError as error:
        seen.append(error.errno)
print(*seen)
"""


def test_the_filter_refuses_two_requests_and_lets_others_through():
    lib = os.path.dirname(os.path.dirname(linux.__file__))
    words = [sys.executable, "-c", TYPES.format(lib=lib)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EPERM), str(errno.EPERM), str(errno.ENOTTY)]


def test_the_kernels_structures_have_their_sizes():
    assert len(linux._refusal(0, 0)) == 8 * 8
    assert linux._words(1, 2) == (1).to_bytes(8, sys.byteorder) + (2).to_bytes(8, sys.byteorder)
