"""The way `unpack`: a squashfs extracted into memory, where FUSE is not to be had. Effects of sh-run; no policy.

The tree lies in a tmpfs that is attached to no place: it ends with the container, whatever is killed.
"""

from __future__ import annotations

import os
import sys

from . import linux
from .enter import write_maps
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

_TOP = b"squashfs-root"  # unsquashfs's own name for the root, in its lists
_SOMEBODY = 65534  # an id that is not root's, to unsquashfs


def extract(program: str, path: str, offset: int) -> int:
    """Return a read-only mount with the image's tree. program: unsquashfs. Raises Fail or OSError.

    Whatever the way, the user may do the same: see `_rights`.
    """
    mount = linux.new_mount("tmpfs", {"source": "shoebox", "mode": "755"}, linux.NOSUID | linux.NODEV)
    at = ["-o", str(offset)] if offset else []
    _run(program, ["-no-progress", "-no-xattrs", "-force", "-dest", ".", *at, path], mount)
    for name, mode in _rights(_run(program, ["-lln", *at, path], mount)):
        fd = linux.openat2(mount, name, os.O_PATH, linux.IN_ROOT | linux.NO_SYMLINKS)
        os.chmod(f"/proc/self/fd/{fd}", mode)
        os.close(fd)
    linux.set_mount(mount, linux.RDONLY)
    return mount


def _run(program: str, arguments: list[str], tree: int) -> bytes:
    """Run unsquashfs in the tree's root and return its output. Raises Fail.

    It runs as somebody who is not root in a user namespace of its own, so that it does not try to give files away.
    """
    out, err = os.memfd_create("stdout"), os.memfd_create("stderr")
    child = os.fork()
    if not child:
        _become(program, arguments, tree, out, err)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = os.pread(err, 4096, 0).decode(errors="replace").strip()
    text = b"".join(iter(lambda: os.read(out, 1 << 20), b"")) if os.lseek(out, 0, os.SEEK_SET) == 0 else b""
    os.close(out)
    os.close(err)
    # Status 2 is for what did not matter to it; device nodes are not ours to make, and nothing could open them.
    if status not in (0, 2) or (status == 2 and any("superuser" not in line for line in said.splitlines())):
        raise Fail(f"cannot unpack the image: {os.path.basename(program)} ended with status {status}", said)
    return text


def _become(program: str, arguments: list[str], tree: int, out: int, err: int) -> NoReturn:
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, 9)
        linux.unshare(linux.CLONE_NEWUSER)
        write_maps("/proc/self", linux.AT_FDCWD, (_SOMEBODY, 0), (_SOMEBODY, 0))
        os.fchdir(tree)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.execve(program, [program, *arguments], {"LC_ALL": "C"})  # noqa: S606 - no shell is what we want
    except OSError as error:
        sys.stderr.write(str(error))
    os._exit(1)


def _rights(listing: bytes) -> Iterator[tuple[str, int]]:
    """Yield (path, mode) of all that is not root's in the image, for a user who owns it all after the unpacking.

    Mounted, it would belong to an id that is not mapped: group 0's bits count for the user, else those of the others.
    So these become the owner's. The listing is `unsquashfs -lln`'s.
    """
    name, mode = b"", -1
    for line in [*listing.split(b"\n"), b"?"]:
        words = line.split(None, 2)
        begins = len(words) == 3 and len(words[0]) == 10 and b"/" in words[1] and _TOP in words[2]
        if not begins and line != b"?":  # a newline in a name
            name += b"\n" + line
            continue
        if mode >= 0:
            yield os.fsdecode(name.rstrip(b"\n")), mode
        mode = -1
        if begins and not words[0].startswith(b"l"):
            uid, _, gid = words[1].partition(b"/")
            name = b"/" + words[2].partition(_TOP)[2].lstrip(b"/")
            if uid != b"0":
                bits = _bits(words[0])
                mode = bits & 0o7077 | ((bits >> 3 if gid == b"0" else bits) & 7) << 6


def _bits(text: bytes) -> int:
    """Read `-rwsr-xr-t`."""
    bits = sum(1 << (8 - i) for i, c in enumerate(text[1:10]) if c in b"rwxst")
    return bits | sum(special for i, special in ((3, 0o4000), (6, 0o2000), (9, 0o1000)) if text[i] in b"sStT")
