"""Who may read an image in a store: file permission, set before a file bears its name, and nothing else.

Private is: the owner, who can always change it, and the users and groups in the file's POSIX ACL; where the file system
has none, one group at most.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from shlex import quote
from typing import TYPE_CHECKING

from . import acl
from .fail import USAGE, Fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_NO_ACL = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_ILL = frozenset(":,/")  # what no name of a user has, or what setfacl(1) takes for something else


@dataclass(frozen=True)
class Readers:
    """Who is to read an image, by name, or by number in digits (with a plus sign before: never a name, see chown(1)).

    private: the owner, these users and these groups, and nobody else. If not: with this mode and this one group, the
    directories that are made too; by default what the umask leaves. asked: somebody has asked for it in so many words.
    """

    private: bool = False
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    mode: int | None = None
    asked: bool = False

    @property
    def begin(self) -> int:
        """The mode of a file that is being written: what nobody else may read is never open to others."""
        return 0o600 if self.private else 0o644

    def crossing(self) -> tuple[list[str], list[str]]:
        """Return the users and groups as another host may know them: by name. Raises Fail."""
        users = [_user(*_uids([name])) if _is_number(name) else name for name in self.users]
        groups = [_group(*_gids([name])) if _is_number(name) else name for name in self.groups]
        for name in filter(_is_number, [*users, *groups] if self.private else []):
            raise Fail("cannot tell another host who may read it", f"number {name} has no name here", "name them")
        return users, groups

    def check(self) -> None:
        """Raise Fail if one of them is unknown here."""
        _uids(self.users)
        _gids(self.groups)


UMASK = Readers()
OWNER = Readers(private=True)


def asked(users: list[str], groups: list[str], modes: list[str]) -> Readers | None:
    """Return what the values of --user, --group and --mode ask for, None if they say nothing. Raises Fail (USAGE)."""
    named = names(users), names(groups)
    for name in (*named[0], *named[1]):
        if not name or name.startswith("-") or not name.isprintable() or _ILL & set(name):
            raise Fail(f"not the name of a user or group: {name!r}", todo="see id(1) for yours", status=USAGE)
    if not modes:
        return Readers(True, named[0], named[1], asked=True) if users or groups else None
    mode = modes[-1]
    if users or len(named[1]) > 1:
        raise Fail("--mode goes with one --group, and no --user", todo="leave --mode out", status=USAGE)
    if not (len(mode) <= 4 and set(mode) <= set("01234567") and int(mode, 8) <= 0o777 and int(mode, 8) & 0o400):
        todo = "give octal digits, with which you can still read: 644, 640, 600"
        raise Fail(f"not a mode for images: {mode!r}", todo=todo, status=USAGE)
    return Readers(False, (), named[1], int(mode, 8), asked=True)


def names(values: list[str]) -> tuple[str, ...]:
    """Return the names that the values of an option list, with commas between, each once."""
    return tuple(dict.fromkeys(name for value in values for name in value.split(",")))


def of(file: int | str) -> Readers:
    """Return who may read an open file, or one at a path: everybody (UMASK), or these. Raises OSError.

    Who may read it by being its owner is not told: of a copy, that is who makes it.
    """
    about = os.stat(file)
    try:
        entries = acl.decode(os.getxattr(file, acl.XATTR))
    except ValueError:
        return OWNER
    except OSError as error:
        if error.errno not in (errno.ENODATA, *_NO_ACL):
            raise
        entries = acl.of_mode(about.st_mode)
    mask = next((allowed for tag, allowed, _ in entries if tag == acl.MASK), acl.READ)
    may = {(tag, number): allowed & (mask if tag != acl.OTHER else acl.READ) for tag, allowed, number in entries}
    others = [allowed for (tag, _), allowed in may.items() if tag != acl.OWNER]
    if all(others):
        return UMASK
    gids = [
        about.st_gid if tag == acl.OWNING_GROUP else number
        for (tag, number), allowed in may.items()
        if tag in (acl.OWNING_GROUP, acl.GROUP) and allowed
    ]
    uids = [number for (tag, number), allowed in may.items() if tag == acl.USER and allowed]
    return Readers(True, tuple(map(_user, uids)), tuple(map(_group, gids)))


def by_umask(fd: int) -> bool:
    """Tell whether our umask alone says who may read an open file of ours: it lets its group."""
    about, mask = os.stat(fd), os.umask(0o077)
    os.umask(mask)
    plain = about.st_mode & 0o777 == 0o644 & ~mask and about.st_mode & 0o040
    return bool(plain) and about.st_uid == os.geteuid() and not _has_acl(fd)


def give(fd: int, readers: Readers) -> None:
    """Let these read an open file of ours, and nobody else, at once. Raises Fail, OSError with its path."""
    try:
        _give(fd, readers, _uids(readers.users), _gids(readers.groups))
    except OSError as error:
        error.filename = os.readlink(f"/proc/self/fd/{fd}")
        raise


def _give(fd: int, readers: Readers, uids: list[int], gids: list[int]) -> None:
    if not readers.private:
        if gids:
            os.fchown(fd, -1, *gids)
        if readers.mode is not None:
            os.fchmod(fd, readers.mode)
            if readers.mode & 0o004 and _has_acl(fd):  # which could take it from the group
                os.removexattr(fd, acl.XATTR)
    elif not uids and gids == [os.fstat(fd).st_gid] and not _has_acl(fd):  # as a umask of 027 makes it
        os.fchmod(fd, 0o640)
    else:
        try:
            if _deaf(fd):
                raise OSError(errno.ENOTSUP, "ACLs are not heeded")
            os.setxattr(fd, acl.XATTR, acl.encode(6, uids, gids))
        except OSError as error:
            if error.errno not in _NO_ACL:
                raise
            _give_group(fd, uids, gids)


def _give_group(fd: int, uids: list[int], gids: list[int]) -> None:
    """Do it without ACLs."""
    os.fchmod(fd, 0o600)
    with suppress(OSError):  # inherited, and not heeded here
        os.removexattr(fd, acl.XATTR)
    what = "cannot let others read what is private"
    if uids or len(gids) > 1:
        raise Fail(what, "this file system has no ACLs, so one group may, and no user by name", "give one --group")
    for gid in gids:
        try:
            os.fchown(fd, -1, gid)
        except PermissionError as error:
            raise Fail(what, "this file system has no ACLs, and you are not in that group", "see id(1)") from error
        os.fchmod(fd, 0o640)


def add(files: Iterable[str], readers: Readers) -> None:
    """Let these, too, read files that are there, if they were asked for. Raises Fail, OSError.

    Nobody is ever taken off, nothing public becomes private, and what is private becomes public by a mode only.
    """
    for path in files if readers.asked else ():
        was = of(path)
        more = both(was, readers)
        if not was.private or (more.users, more.groups, more.mode) == (was.users, was.groups, was.mode):
            continue
        if os.geteuid() not in (0, os.stat(path).st_uid):
            raise foreign(path, readers)
        change(path, more)


def change(path: str, readers: Readers) -> None:
    """Let these read a file that is there, and nobody else. Raises Fail, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        give(fd, readers)
    finally:
        os.close(fd)


def both(was: Readers, new: Readers) -> Readers:
    """Return who may read what replaces, or adds to, what some may read: those, and who is asked for."""
    if not was.private:
        return new
    if not new.asked:
        return was
    if not new.private and new.mode is not None:
        if new.mode & 0o004:
            return new
        new = replace(new, groups=new.groups if new.mode & 0o040 else ())
    users, groups = (*was.users, *new.users), (*was.groups, *new.groups)
    named = dict(zip(_uids(users), users)), dict(zip(_gids(groups), groups))
    return Readers(True, tuple(named[0].values()), tuple(named[1].values()), asked=True)


def foreign(path: str, readers: Readers = UMASK) -> Fail:
    """Return what to say when an image in a store is another's, and not for us to read, or to give to these readers."""
    owner, image = _user(os.lstat(path).st_uid), f"{os.path.splitext(path)[0]}.sqfs"
    wanted = [f"--user {quote(name)}" for name in readers.users] + [f"--group {quote(name)}" for name in readers.groups]
    words = " ".join(wanted) or f"--user {quote(_user(os.geteuid()))}"
    what = f"cannot let others read {image!r}" if wanted else f"cannot read {image!r}"
    todo = f"ask {owner} for: sh-stage {words} -d {os.path.dirname(path)} {image}"
    return Fail(what, f"it is {owner}'s, and private", todo)


@contextmanager
def hidden(readers: Readers) -> Iterator[None]:
    """Let nobody else read what this process makes meanwhile, if it is not for everybody."""
    old = os.umask(0o077) if readers.private else None
    try:
        yield
    finally:
        if old is not None:
            os.umask(old)


def _has_acl(fd: int) -> bool:
    with suppress(OSError):
        return bool(os.getxattr(fd, acl.XATTR))
    return False


def _deaf(fd: int) -> bool:
    """Tell whether a file may have an ACL that nobody heeds, so that its mask is taken for what its group may.

    So it is with FUSE, where the kernel checks permissions and the server only passes ACLs on: bindfs over ext4.
    """
    about = os.fstat(fd)
    device = f" {os.major(about.st_dev)}:{os.minor(about.st_dev)} "
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        found = next((line.rpartition(" - ")[2].split() for line in mounts if device in line), [])
    return bool(found) and found[0].startswith("fuse") and "default_permissions" in found[-1].split(",")


def _uids(names: Iterable[str]) -> list[int]:
    return [_number(name, "user", lambda name: pwd.getpwnam(name).pw_uid) for name in names]


def _gids(names: Iterable[str]) -> list[int]:
    return [_number(name, "group", lambda name: grp.getgrnam(name).gr_gid) for name in names]


def _number(name: str, what: str, look: Callable[[str], int]) -> int:
    with suppress(KeyError):
        return look(name)
    if _is_number(name) and int(name) < 1 << 32:
        return int(name)
    raise Fail(f"no {what} {name!r}", todo="see id(1) for yours", status=USAGE)


def _is_number(name: str) -> bool:
    """Tell whether this is a number if it is no name."""
    digits = name.removeprefix("+")
    return digits.isascii() and digits.isdigit() and len(digits) <= len(str(1 << 32))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return _digits(uid, pwd.getpwnam)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return _digits(gid, grp.getgrnam)


def _digits(number: int, look: Callable[[str], object]) -> str:
    """Return a number without a name as _number reads it, though another's name may have the same digits."""
    try:
        look(str(number))
    except KeyError:
        return str(number)
    return f"+{number}"
