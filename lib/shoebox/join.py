"""Joining: the ranks of a step find each other in a file, and enter the namespaces of any that lives. Effects.

The file lies in a directory of the user's own on the node, and bears two locks. Who makes the container has it alone,
by lockf(3); who is on the way in shares it, by flock(2). Both keep theirs until they execute their command, for until
then the kernel lets nobody follow them (they are not dumpable, ptrace(2)), and it drops those of the killed. No process
of ours and no pin stays: the container ends with the last process in it, and a file that names nobody alive is the next
one's to write.
"""

from __future__ import annotations

import errno
import os
import time
from stat import S_ISREG  # which os has imported

from . import linux, step
from .fail import Fail
from .host import slurp, stat
from .paths import node_local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .step import Contents, Holder, Member, Spaces

_MOST = 16 << 20  # bytes of the file; an honest one has some kilobytes
_CROWD = 256  # dead members in a file, from which on it is written anew
_PAUSE = 0.001  # seconds
_PATIENCE = 20  # looks at one that lives and lets nobody follow: its exec may be a moment from its end
_OPEN = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not hang us
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Key:
    """The open file of one request: its words, itself and its directory as descriptors, and its path."""

    __slots__ = ("directory", "fd", "me", "path", "words")

    def __init__(self, directory: int, path: str, words: list[str], me: Member) -> None:
        """Open the file, or make it. Raises OSError."""
        self.directory = directory
        self.path = path
        self.words = words
        self.me = me
        self.fd = _open_plain(directory, os.path.basename(path), os.O_CREAT)
        linux.flock(self.fd, linux.LOCK_SH | linux.LOCK_NB)  # to see whether this file system has locks at all


def about_node(proc: int) -> list[str]:
    """Return what tells this node, user and view of the node from others. proc: /proc/self, a directory."""
    boot = slurp("/proc/sys/kernel/random/boot_id").decode().strip()
    spaces = (os.readlink(f"ns/{name}", dir_fd=proc) for name in ("pid", "user", "mnt"))
    return [os.uname().nodename, boot, *spaces, str(os.getuid()), str(os.getgid())]


def born(pid: int | str) -> str:
    """Return when a process began, in clock ticks from boot; "" if there is none, or it only waits for its parent.

    See proc(5), /proc/PID/stat.
    """
    said = stat(f"/proc/{pid}/stat")
    return said[19] if said and said[0] not in ("Z", "X") else ""


def parent() -> str:
    """Return the parent's pid and when it began, "" if there is no telling."""
    pid = os.getppid()
    start = born(pid)
    return f"{pid} {start}" if start else ""


def find(words: list[str], env: Mapping[str, str]) -> Key:
    """Open the file of a request. Raises Fail if there is no place for it."""
    directory, path = _directory(env)
    path = os.path.join(path, step.file_name(words))
    try:
        return Key(directory, path, words, (os.getpid(), born("self")))
    except OSError as error:
        raise Fail(f"cannot use {path!r}", error) from error


def place(env: Mapping[str, str]) -> str:
    """Return the user's own directory on this node, made if it is not there. Raises Fail."""
    fd, path = _directory(env)
    os.close(fd)
    return path


def opened(*, make: bool = True) -> tuple[int, str]:
    """Open the user's own directory on this node, where no variable changes it: as (descriptor or -1, path).

    make: if it is not there. Raises Fail.
    """
    return _directory({}, make=make)


def members(words: list[str], env: Mapping[str, str]) -> list[int]:
    """Return the processes that we would find to join. Makes nothing. Raises Fail as `find`."""
    directory, path = _directory(env, make=False)
    if directory < 0:
        return []
    try:
        fd = _open_plain(directory, step.file_name(words))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Fail(f"cannot use {path!r}", error) from error
    found = _understood(_read(fd))
    os.close(fd)
    return [pid for pid, start in found.members if start == born(pid)] if found and found.words == words else []


def enter(key: Key) -> Holder | None:
    """Enter the container of the request and say what its maker left; None if it is upon us to make it.

    Waits for one who is making it. Raises OSError.
    """
    while True:
        linux.flock(key.fd, linux.LOCK_SH)
        data = _read(key.fd)
        holder, _ = _try(key, data)
        if holder:
            return holder
        linux.flock(key.fd, linux.LOCK_UN)  # or all would wait for each other
        os.lockf(key.fd, os.F_LOCK, 0)
        if not os.fstat(key.fd).st_nlink:  # swept away before it was locked
            os.close(key.fd)
            key.fd = _open_plain(key.directory, os.path.basename(key.path), os.O_CREAT)
        elif _read(key.fd) == data:
            return _last_look(key)
        else:  # it was made, or somebody came in, while we waited: all who did may now join at once
            os.lockf(key.fd, os.F_ULOCK, 0)


def _last_look(key: Key) -> Holder | None:
    """Enter after all, if somebody was on the way in whom we can follow now; we alone may make the container."""
    for _ in range(_PATIENCE):
        linux.flock(key.fd, linux.LOCK_EX)
        holder, closed = _try(key, _read(key.fd))
        if holder or not closed:
            break
        time.sleep(_PAUSE)
    linux.flock(key.fd, linux.LOCK_SH if holder else linux.LOCK_UN)
    return holder


def is_again(key: Key) -> bool:
    """Tell whether there was a container of this request before, of this step's; we hold the lock. Raises OSError."""
    found = _understood(_read(key.fd))
    return found is not None and found.words == key.words


def publish(key: Key, proc: int, holder: Holder) -> None:
    """Let others join: we are in the container, and hold the lock. proc: the host's /proc/self. Raises OSError."""
    user, mounts = (os.readlink(f"ns/{name}", dir_fd=proc) for name in ("user", "mnt"))
    _write(key, step.pack(key.words, (user, mounts), holder), [key.me])


def own(env: Mapping[str, str]) -> list[int]:
    """Open those of the user's own directories on this node that are there: where variables have them, and `opened`."""
    found = {}
    for variables in (env, {}):
        try:
            fd, path = _directory(variables, make=False)
        except Fail:  # then nothing of ours can be there
            continue
        if fd >= 0:
            found[path] = fd
    return list(found.values())


def sweep(directory: int, words: list[str] | None = None, but: str = "") -> None:
    """Remove the files of containers that have ended; others may be busy with them meanwhile. Raises OSError.

    The notes of near.py whose keepers were killed are such files too. words: a request's, for the node's name and our
    view of it. but: a file to leave.
    """
    if words is None:
        proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        words = ["", *about_node(proc)]
        os.close(proc)
    for name in os.listdir(directory):
        if not step.is_file_name(name) or name == but:
            continue
        try:
            fd = _open_plain(directory, name)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            os.lockf(fd, os.F_TLOCK, 0)
            if linux.flock(fd, linux.LOCK_EX | linux.LOCK_NB) and not _lives(_read(fd), words):
                os.unlink(name, dir_fd=directory)
        except (BlockingIOError, PermissionError, FileNotFoundError):  # in use, or gone meanwhile
            continue
        finally:
            os.close(fd)


def _try(key: Key, data: bytes) -> tuple[Holder | None, bool]:
    """Follow the first of the members that lets us; say what the maker left, or whether one lives that does not."""
    found = _understood(data)
    if not found or found.words != key.words:
        return None, False
    closed, gone = False, 0
    for at, member in enumerate(found.members):
        try:
            inside = _follow(member, found.spaces)
        except PermissionError:
            closed = True
            continue
        if inside:
            head = step.pack(found.words, found.spaces, found.holder)
            _add(key, head, found.members[at:] if gone > _CROWD else [])
            return found.holder, False
        gone += 1
    return None, closed


def _follow(member: Member, spaces: Spaces) -> bool:
    """Enter the namespaces of a process if it is the one meant and has not left them; return whether we are inside.

    They are opened, then compared, then entered: by a pidfd we would enter what the process has by then, which may be
    another container's, made by the command. Raises PermissionError if the process lives and bars us.
    """
    try:
        process = os.open(f"/proc/{member[0]}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    opened = [process]
    try:
        if stat("stat", process)[19:20] != [member[1]]:
            return False
        if os.fstat(process).st_uid != os.getuid():
            raise PermissionError
        user = os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        opened.append(user)
        mounts = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        opened.append(mounts)
        if (f"user:[{os.fstat(user).st_ino}]", f"mnt:[{os.fstat(mounts).st_ino}]") != spaces:
            return False
        linux.follow(user, mounts)
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True


def _add(key: Key, head: bytes, instead: list[Member]) -> None:
    """Add ourselves to the members; if these are to be listed instead of all, write the file anew."""
    try:
        if instead:
            _write(key, head, [*instead, key.me])
        else:
            os.write(key.fd, step.pack_member(key.me))
    except OSError:  # no space: nobody can follow us, and that is all
        return


def _write(key: Key, head: bytes, listed: list[Member]) -> None:
    data = head + b"".join(map(step.pack_member, listed))
    os.ftruncate(key.fd, 0)
    if os.write(key.fd, data) != len(data):
        os.ftruncate(key.fd, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), key.path)


def _read(fd: int) -> bytes:
    """Read a file; what is too large to be ours is as good as nothing."""
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0) if size <= _MOST else b""


def _understood(data: bytes) -> Contents | None:
    try:
        return step.unpack(data)
    except ValueError:
        return None


def _lives(data: bytes, words: list[str]) -> bool:
    """Tell whether somebody lives in the container of a file, as far as we can know. words: our own request's."""
    found = _understood(data)
    if not found or len(found.words) < 4:  # none of ours
        return False
    (node, boot, *spaces), (our_node, our_boot, *our_spaces) = found.words[1:4], words[1:4]
    if node == our_node and boot != our_boot:  # from before a reboot
        return False
    return node != our_node or spaces != our_spaces or any(born(pid) == start for pid, start in found.members)


def _directory(env: Mapping[str, str], *, make: bool = True) -> tuple[int, str]:
    """Open the directory for our files, and return its path too; -1 if there is none and none is to be made.

    It is the user's alone, and in a directory from which nobody else can take it. Raises Fail.
    """
    uid = os.getuid()
    refused = []
    for top in node_local(env):
        path = f"{top}/shoebox-{uid}"
        try:
            fd = _open_private(top, os.path.basename(path), uid, make=make)
        except OSError as error:
            refused.append(f"{path!r}: {error.strerror}")
            continue
        return fd, path
    raise Fail("there is no place to meet other ranks in", "; ".join(refused))


def _open_private(top: str, name: str, uid: int, *, make: bool) -> int:
    above = os.open(top, _DIRECTORY)
    try:
        about = os.fstat(above)
        if about.st_uid not in (0, uid) or (about.st_mode & 0o022 and not about.st_mode & 0o1000):
            raise OSError(errno.EPERM, "others can replace it")
        for _ in range(2):
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=above)
                break
            except FileNotFoundError:
                if not make:
                    return -1
                try:
                    os.mkdir(name, 0o700, dir_fd=above)
                except FileExistsError:  # another rank was quicker
                    continue
    finally:
        os.close(above)
    about = os.fstat(fd)
    if about.st_uid != uid or about.st_mode & 0o077:
        os.close(fd)
        raise OSError(errno.EPERM, "it is not yours alone")
    return fd


def _open_plain(directory: int, name: str, create: int = 0) -> int:
    """Open a file of ours. Raises OSError, also for anything that is not a plain file of the user's."""
    fd = os.open(name, _OPEN | create, 0o600, dir_fd=directory)
    about = os.fstat(fd)
    if not S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a plain file of yours", name)
    return fd
