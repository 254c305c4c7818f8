"""System calls that os lacks on Python 3.9: one function each, every failure an OSError that names its subject.

Each is described by the page of its name in section 2 of the manual. The half of ctypes that is written in C is used as
it is: the other half costs 3 ms at every start and adds nothing here.
"""

from __future__ import annotations

import errno
import os
import sys
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

AT_FDCWD = -100
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_SLAVE = 1 << 19
RDONLY, NOSUID, NODEV = 1, 2, 4  # MOUNT_ATTR_*
IN_ROOT, NO_MAGICLINKS, NO_SYMLINKS = 0x10, 0x02, 0x04  # RESOLVE_*
O_TMPFILE = 0o20000000 | os.O_DIRECTORY  # os has it, but not under a name that mypy knows everywhere
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SIOCGIFADDR = 0x8915  # netdevice(7)
SI_KERNEL = 0x80  # si_code in siginfo_t, sigaction(2): of a signal that a terminal sent to its foreground processes

_AT_EXECFN = 31
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_CLOEXEC, _OPEN_TREE_CLONE, _MNT_DETACH = 1, 1, 2
_FROM_EMPTY, _TO_EMPTY = 0x04, 0x40  # MOVE_MOUNT_?_EMPTY_PATH
_NS_GET_USERNS, _NS_GET_PARENT = 0xB701, 0xB702
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6  # FSCONFIG_*
_PR_SET_SECCOMP, _SECCOMP_FILTER = 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_OLD = "this kernel is older than Linux 5.12, or a seccomp filter hides the call"
_IN_DELETE_SELF, _IN_UNMOUNT, _INOTIFY_EVENT = 0x400, 0x2000, 16  # the last one: bytes of one without a name
_PATIENCE = 1000  # tries; each takes microseconds
# (AUDIT_ARCH_*, number of ioctl) of every way into the kernel that a machine has; x32 shares x86_64's first number.
_IOCTLS = {
    "x86_64": ((0xC000003E, 16), (0xC000003E, 0x40000000 + 514), (0x40000003, 54)),
    "aarch64": ((0xC00000B7, 29), (0x40000028, 54)),
}
_LIBC = dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type] # None is the process itself; typeshed does not know


class _Int(_SimpleCData):  # type: ignore[type-arg] # generic in typeshed only
    _type_ = "i"


class _Pointer(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Text(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


def _call(about: str, name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library that returns -1 and sets errno when it fails.

    Everything is passed as wide as a pointer: numbers, bytes and None all go through, and none is cut to 32 bits.
    """
    function = _Function(dlsym(_LIBC, name))
    function.argtypes = (_Pointer,) * len(arguments)
    result: int = function(*arguments)
    if result < 0:
        number = get_errno()
        raise OSError(number, _OLD if number == errno.ENOSYS else os.strerror(number), about)
    return result


def executed() -> str:
    """Return the path that execve was given: a script's own, if its `#!` line led to us. See getauxval(3)."""
    function = _Function(dlsym(_LIBC, "getauxval"))
    function.restype = _Text
    function.argtypes = (_Pointer,)
    path: bytes | None = function(_AT_EXECFN)
    return os.fsdecode(path or b"")


def _syscall(about: str, number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; the numbers from 424 on are the same on every architecture."""
    return _call(about, "syscall", number, *arguments, *(0,) * (6 - len(arguments)))


def _words(*values: int) -> bytes:
    """Return a C struct of 64-bit members."""
    return b"".join(value.to_bytes(8, sys.byteorder) for value in values)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _call("namespaces", "unshare", flags)


def pivot_root(new: str, old: str) -> None:
    """Make new the root and hang the old root at old."""
    _call(new, "pivot_root", os.fsencode(new), os.fsencode(old))


def flock(fd: int, operation: int) -> bool:
    """Lock a file; return False if that would have to wait and LOCK_NB says not to."""
    try:
        _call("lock", "flock", fd, operation)
    except BlockingIOError:
        return False
    return True


def owner(space: int) -> int:
    """Return the user namespace that owns a namespace: ioctl_ns(2). It must be ours, or below ours."""
    return _call("namespaces", "ioctl", space, _NS_GET_USERNS)


def above(user: int) -> int:
    """Return the user namespace in which another was made: ioctl_ns(2). It must be ours, or below ours."""
    return _call("namespaces", "ioctl", user, _NS_GET_PARENT)


def follow(user: int, mounts: int) -> None:
    """Enter a mount namespace and a user namespace below the one that owns it; setns(2) wants rights in all of them."""
    outer = owner(mounts)
    try:
        for fd in (outer, mounts, user):
            setns(fd)
    finally:
        os.close(outer)


def setns(fd: int) -> None:
    """Enter a namespace."""
    _call("namespaces", "setns", fd, 0)


def umount(target: str) -> None:
    """Unmount: gone from here now, from memory when its last user has gone (MNT_DETACH)."""
    _call(target, "umount2", os.fsencode(target), _MNT_DETACH)


def watch_unmount(path: str) -> int:
    """Return a descriptor that becomes readable when the file system that has this path is no longer mounted at all.

    See inotify(7). It does not keep it mounted.
    """
    fd = _call("inotify", "inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
    _call(path, "inotify_add_watch", fd, os.fsencode(path), _IN_DELETE_SELF)  # some event there has to be
    return fd


def was_unmounted(fd: int) -> bool:
    """Tell whether what watch_unmount watches has been unmounted; each call looks at what came after the last one."""
    try:
        data = os.read(fd, 4096)
    except BlockingIOError:
        return False
    masks = (int.from_bytes(data[at + 4 : at + 8], sys.byteorder) for at in range(0, len(data), _INOTIFY_EVENT))
    return any(mask & _IN_UNMOUNT for mask in masks)


def prctl(option: int, value: int) -> None:
    """Set an attribute of the process."""
    _call("process attribute", "prctl", option, value, 0, 0, 0)


def close_range(first: int, last: int) -> None:
    """Close every descriptor from first to last; Python 3.9's own tries them one by one."""
    if first <= last:
        _syscall("descriptors", 436, first, last, 0)


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open, with O_CLOEXEC, a path resolved under the RESOLVE_ rules given."""
    how = _words(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_PATIENCE):
        try:
            return _syscall(path, 437, directory, os.fsencode(path), how, len(how))
        except BlockingIOError:  # something was renamed or mounted, anywhere, while it walked past a ".."
            continue
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def new_mount(kind: str, options: dict[str, str], attributes: int) -> int:
    """Return a mount of a new file system, attached nowhere yet, as with O_PATH: fsopen(2), fsconfig(2), fsmount(2).

    options: an empty value sets a flag. attributes: MOUNT_ATTR_ bits.
    """
    context = _syscall(kind, 430, kind.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            command, text = (_SET_STRING, os.fsencode(value)) if value else (_SET_FLAG, None)
            _syscall(f"{kind}: {name}", 431, context, command, name.encode(), text, 0)
        _syscall(kind, 431, context, _CMD_CREATE, None, None, 0)
        return _syscall(kind, 432, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def clone_tree(path: str, directory: int = AT_FDCWD) -> int:
    """Return a copy, attached nowhere yet, of the mounts at and below path: open_tree(2).

    An empty path means the directory itself.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | (0 if path else _AT_EMPTY_PATH)
    return _syscall(path, 428, directory, os.fsencode(path), flags)


def move_mount(mount: int, target: int, about: str) -> None:
    """Attach a mount onto what the descriptor target is open on."""
    _syscall(about, 429, mount, b"", target, b"", _FROM_EMPTY | _TO_EMPTY)


def set_mount(mount: int, attributes: int = 0, propagation: int = 0) -> None:
    """Set MOUNT_ATTR_ bits and the propagation of a mount and of all mounted below it: mount_setattr(2)."""
    what = _words(attributes, 0, propagation, 0)
    _syscall("mount attributes", 442, mount, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, what, len(what))


def deny_typing() -> bool:
    """Install a seccomp(2) filter that refuses TIOCSTI and TIOCLINUX, by which a program types in its caller's name.

    Needs no_new_privs. The ioctl's request is compared in 32 bits, as the kernel reads it. Returns False on a machine
    whose numbers we do not know.
    """
    program = typing_filter()
    if not program:
        return False
    text = _Text(program)
    fprog = _words(len(program) // 8, _Pointer.from_buffer(text).value or 0)  # struct sock_fprog
    _call("seccomp filter", "prctl", _PR_SET_SECCOMP, _SECCOMP_FILTER, fprog, 0, 0)
    return True


def typing_filter() -> bytes:
    """Return the filter of deny_typing, an array of struct sock_filter; b"" where we know no numbers."""
    blocks = [_refusal(arch, number) for arch, number in _IOCTLS.get(os.uname().machine, ())]
    return b"".join(blocks) + _filter(_RETURN, 0, 0, _ALLOW) if blocks else b""


def _refusal(arch: int, number: int) -> bytes:
    """Return the part of a filter that refuses two requests of the system call that is ioctl there."""
    return b"".join(
        (
            _filter(_LOAD, 0, 0, 4),  # struct seccomp_data: arch
            _filter(_JUMP_IF_EQUAL, 0, 6, arch),
            _filter(_LOAD, 0, 0, 0),  # nr
            _filter(_JUMP_IF_EQUAL, 0, 4, number),
            _filter(_LOAD, 0, 0, 24),  # args[1], its low half: both machines are little-endian
            _filter(_JUMP_IF_EQUAL, 1, 0, _TIOCSTI),
            _filter(_JUMP_IF_EQUAL, 0, 1, _TIOCLINUX),
            _filter(_RETURN, 0, 0, _REFUSE),
        )
    )


def _filter(code: int, if_true: int, if_false: int, value: int) -> bytes:
    """Return a struct sock_filter."""
    return code.to_bytes(2, sys.byteorder) + bytes((if_true, if_false)) + value.to_bytes(4, sys.byteorder)
