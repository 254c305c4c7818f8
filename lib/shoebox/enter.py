"""Effects of sh-run: namespaces and mounts. No policy: plan has decided everything.

    host -- unshare --> A: user namespace where 0 is the user; the FUSE server stays here
                        `-- unshare --> B: image, skeleton and mounts; pivot_root
                                        `-- unshare --> a nested user namespace where the user is the user; exec

The server never is in the mount namespace B, and nothing of ours is after the exec: when the last process of the
container ends, B ends, with it the image's mount, so the server reads ENODEV and leaves. The kernel counts, we don't.
"""

from __future__ import annotations

import errno
import os
import time
from stat import S_IFDIR

from . import linux
from .fail import Fail
from .writable import MEMORY, OVERLAY, UPPER, WORK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .plan import Mount, Plan
    from .writable import Writable

_LOCKED = linux.RDONLY | linux.NOSUID | linux.NODEV
_INSIDE = linux.IN_ROOT | linux.NO_MAGICLINKS
_PATH = os.O_PATH | os.O_CLOEXEC
_TRIES, _PAUSE = 20, 0.05  # the pause in seconds


class Server:
    """A FUSE server on its way up: its process until it goes to the background, and what it says until then."""

    __slots__ = ("name", "pid", "stderr")

    def __init__(self, name: str, pid: int, stderr: int) -> None:
        """Hold the parts."""
        self.name = name
        self.pid = pid
        self.stderr = stderr

    def wait(self) -> None:
        """Wait until it serves. Raises Fail with its own words if it does not."""
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # whoever started us ignores SIGCHLD: nobody will ever know
            status = 0
        if status:
            said = os.pread(self.stderr, 4096, 0).decode(errors="replace").strip()
            why = "; ".join(line.strip() for line in said.split("\n"))
            raise Fail("cannot serve the image", f"{self.name} ended with status {status}", why)


def outer(uid: int, gid: int) -> None:
    """Enter a user and a mount namespace (A) in which 0 is the user. Raises OSError."""
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    write_maps("/proc/self", linux.AT_FDCWD, (0, uid), (0, gid), deny=True)
    root = os.open("/", _PATH)
    linux.set_mount(root, propagation=linux.MS_SLAVE)  # not private: automounters answer in the host's namespace
    os.close(root)


def write_maps(proc: str, directory: int, uids: tuple[int, int], gids: tuple[int, int], *, deny: bool = False) -> None:
    """Map (inside, outside), one of each; deny: an ordinary user may only without setgroups(2) (user_namespaces(7))."""
    at = None if directory == linux.AT_FDCWD else directory
    texts = [("setgroups", "deny")] if deny else []
    texts += [("uid_map", f"{uids[0]} {uids[1]} 1"), ("gid_map", f"{gids[0]} {gids[1]} 1")]
    for name, text in texts:
        fd = os.open(os.path.join(proc, name), os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def directory(path: str) -> int:
    """Return a directory as an image's mount, read-only. Raises OSError."""
    mount = linux.clone_tree(path)
    linux.set_mount(mount, _LOCKED)
    return mount


def fuse(device: int, program: str, path: str, offset: int, kept: Sequence[int], shown: str = "") -> tuple[int, Server]:
    """Return the mount of a squashfs that a server serves, and the server. device: /dev/fuse, opened in A.

    shown: the image's path for people, if path is none.

    We mount, the server only serves: so the kernel keeps our requests until it is ready, and it needs no privilege.
    Raises OSError.
    """
    shown = os.path.basename(shown or path)  # in /proc/mounts; fsconfig(2) takes 255 bytes
    mount = served(device, shown, "squashfuse", 0, _LOCKED)
    stderr = os.memfd_create("stderr")
    null = os.open("/dev/null", os.O_RDWR)
    os.set_inheritable(device, True)
    words = [program, *(("-o", f"offset={offset}") if offset else ()), path, f"/dev/fd/{device}"]
    # Not in the foreground: it forks when it serves, so it is nobody's child, and its first process tells us.
    pid = os.posix_spawn(
        program,
        words,
        {},
        file_actions=[
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in kept),
            *((os.POSIX_SPAWN_DUP2, *pair) for pair in ((null, 0), (null, 1), (stderr, 2))),
        ],
        setpgroup=0,  # a Ctrl-C is not for it
    )
    os.close(null)
    os.close(device)  # the server's is the last one: when it dies, the kernel refuses requests instead of waiting
    return mount, Server(os.path.basename(program), pid, stderr)


def served(device: int, source: str, subtype: str, mode: int, attributes: int) -> int:
    """Return the mount of what a FUSE server will serve, attached nowhere. device: /dev/fuse, opened in A.

    source, subtype: as /proc/mounts is to show them. mode: the root's. attributes: MOUNT_ATTR_ bits. Raises OSError.
    """
    options = {"source": source, "subtype": subtype, "fd": str(device), "rootmode": f"{S_IFDIR | mode:o}"}
    options.update({"user_id": "0", "group_id": "0", "default_permissions": "", "allow_other": ""})
    if attributes & linux.RDONLY:
        options["ro"] = ""
    return linux.new_mount("fuse", options, attributes)


def scratch(size: str) -> int:
    """Return a tmpfs, attached nowhere, for what we make: B's end is its end. Raises OSError."""
    options = {"source": "shoebox", "mode": "755", **({"size": size} if size else {})}
    made = linux.new_mount("tmpfs", options, linux.NOSUID | linux.NODEV)
    for name in ("image", "skeleton", UPPER, WORK, "memory", "files"):
        os.mkdir(name, dir_fd=made)
    return made


def build(plan: Plan, image: int, caches: Sequence[int] = (), top: int = -1, memory: int = -1) -> None:
    """Make the container's mount namespace (B) around the image's mount, and go into it. Raises Fail.

    caches: the mounts of the plan's node caches, attached nowhere. top: a `scratch`, if somebody has made one. memory:
    the tmpfs that has the changes, in that form.
    """
    linux.unshare(linux.CLONE_NEWNS)
    mask = os.umask(0o022)
    left = iter(caches)
    sources = [next(left) if mount.cache else _source(mount) for mount in plan.mounts]
    stacked = 1
    root = image
    if plan.overlay or any(mount.content for mount in plan.mounts):
        if top < 0:
            top = scratch(plan.writable.size if plan.writable and plan.writable.form == MEMORY else "")
        _attach(top, "/")  # so nobody's path is in its way
        stacked += 1
        if plan.overlay:
            root = _overlay(plan, image, top, memory)
    _attach(root, "/")
    for mount, source in zip(plan.mounts, sources):
        _bind(mount, source, root, top)
    os.umask(mask)
    os.fchdir(root)
    try:
        linux.pivot_root(".", ".")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The root is a rootfs, as on nodes that stay in their initramfs, and cannot be taken away (pivot_root(2)).
        # Ours lies on top of it already, so going there is enough; nobody inside can take it off.
        os.chroot(".")
        return
    for _ in range(stacked):  # the old root, and what was on top of it
        linux.umount(".")
    os.chdir("/")


def _source(mount: Mount) -> int:
    """Take hold of a mount's source, as the host names it."""
    if mount.content:
        return -1
    try:
        return linux.clone_tree(mount.source)
    except OSError as error:
        raise Fail(f"cannot mount {mount.source!r}", error) from error


def _overlay(plan: Plan, image: int, scratch: int, memory: int) -> int:
    """Return the mount of an overlay: what is written, the image, and below it what the image lacks."""
    where = f"/proc/self/fd/{scratch}"
    _attach(image, f"{where}/image")
    for path, kind in plan.made:
        place = f"{where}/skeleton{path}"
        os.makedirs(place if kind == "directory" else os.path.dirname(place), exist_ok=True)
        if kind != "directory":
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    for path, text, _ in plan.links:
        os.makedirs(os.path.dirname(f"{where}/skeleton{path}"), exist_ok=True)
        os.symlink(text, f"{where}/skeleton{path}")
    options = {"source": "shoebox", "lowerdir": f"{where}/image:{where}/skeleton", "userxattr": ""}
    attributes = linux.NOSUID | linux.NODEV
    if plan.writable is None:
        attributes |= linux.RDONLY
    else:
        top = _upper(plan.writable, image, where, memory)
        options.update({"upperdir": f"{top}/{UPPER}", "workdir": f"{top}/{WORK}"})
        if plan.writable.form == OVERLAY:
            options["index"] = "on"  # so that it is refused if another container has it; ours get no index (overlayfs)
    try:
        return _patiently(options, attributes)
    except OSError as error:
        raise Fail("cannot lay an overlay over the image", *_why_no_overlay(plan, error)) from error


def _patiently(options: dict[str, str], attributes: int) -> int:
    """Mount an overlay; one whose upper directory is in use may be about to end."""
    for _ in range(_TRIES):
        try:
            return linux.new_mount("overlay", options, attributes)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(_PAUSE)
    return linux.new_mount("overlay", options, attributes)


def _upper(writable: Writable, image: int, where: str, memory: int) -> str:
    """Return a path of the directory in which overlay finds what it writes to. where: a path of the scratch."""
    if writable.form == MEMORY:
        os.chmod(f"{where}/{UPPER}", os.fstat(image).st_mode & 0o7777)
        return where
    if writable.form == OVERLAY:
        return f"/proc/self/fd/{os.open(writable.directory, _PATH | os.O_DIRECTORY)}"
    _attach(memory, f"{where}/memory")
    return f"/proc/self/fd/{memory}"


def _why_no_overlay(plan: Plan, error: OSError) -> tuple[str, str]:
    lacks = ", ".join([path for path, _ in plan.made] + [path for path, _, _ in plan.links])
    todo = f"put into the image what it lacks: {lacks}" if lacks else "run without --writable"
    kept = plan.writable if plan.writable and plan.writable.form == OVERLAY else None
    if error.errno == errno.EBUSY and kept:
        return f"what an earlier run has started still uses {kept.directory!r}", "wait for its end, or end it"
    if error.errno == errno.ENODEV:
        return "this kernel has no overlay", f"ask this machine's administrator for the module, or {todo}"
    if error.errno == errno.EPERM:
        return "it is not permitted, as before Linux 5.11 in a user namespace", todo
    if error.errno == errno.EINVAL and plan.source.kind == "directory" and not kept:
        return "it is a directory with other file systems mounted in it, or itself an overlay of overlays", todo
    if kept:
        todo = f"make an image with what is there: sh-flatten --changes {kept.directory} IMAGE"
        return f"{error.strerror}: its file system, or the image's, does not suit", todo
    return error.strerror or str(error), todo


def _bind(mount: Mount, source: int, root: int, scratch: int) -> None:
    """Make one of the plan's mounts."""
    try:
        if mount.content:
            name = os.path.basename(mount.target)
            mode = 0o755 if mount.content.startswith(b"#!") else 0o644
            file = os.open(f"files/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=scratch)
            os.write(file, mount.content)
            os.close(file)
            source = linux.clone_tree(f"files/{name}", scratch)
        if mount.readonly:
            linux.set_mount(source, linux.RDONLY)
        target = linux.openat2(root, mount.real, os.O_PATH, _INSIDE)
        linux.move_mount(source, target, mount.real)
    except OSError as error:
        what = mount.source or ("a node cache" if mount.cache else "our file")
        raise Fail(f"cannot mount {what!r} at {mount.target!r}", error) from error
    os.close(target)
    os.close(source)


def _attach(mount: int, where: str) -> None:
    target = os.open(where, _PATH | os.O_DIRECTORY)
    linux.move_mount(mount, target, where)
    os.close(target)


def inner(proc: int, uid: int, gid: int) -> None:
    """Enter the nested user namespace, in which the user is the user. proc: the host's /proc/self, a directory."""
    linux.unshare(linux.CLONE_NEWUSER)
    write_maps("", proc, (uid, 0), (gid, 0))
