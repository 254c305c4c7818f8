"""Plans: what a container will be, decided from what was asked and what is there. Pure: values in, a Plan out.

The steps: `wishes` and `places` say what to look at, probe looks, `make` decides. Facts about the image are facts about
the image alone; what covers what, once the mounts are made in their order, is worked out here.
"""

from __future__ import annotations

import os

from . import environment, identity
from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .sidecar import Sidecar
    from .usage import Options

DIRECTORY, FILE, MISSING = "directory", "file", ""  # a FILE is whatever is not a directory
KERNEL = (
    ("/proc", "the kernel's view of processes"),
    ("/sys", "the kernel's view of hardware"),
    ("/dev", "devices: GPUs, networks, shared memory, terminals"),
    ("/tmp", "shared with the host, as programs expect"),  # noqa: S108 - a place, not a file
)
NAMES = (("/etc/resolv.conf", "host names mean the same inside"), ("/etc/hosts", "host names mean the same inside"))
# Places that are the image's own business: never covered because the user happens to stand in them.
_SYSTEM = frozenset(("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr"))
_TOPS = frozenset(("/", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/var"))


class Request:
    """What was asked for: the options, the words after the image, and what --env and --env-file set."""

    __slots__ = ("command", "options", "settings")

    def __init__(
        self, options: Options, command: Sequence[str] = (), settings: Sequence[environment.Setting] = ()
    ) -> None:
        """Hold the parts."""
        self.options = options
        self.command = command
        self.settings = settings


class Host:
    """What is outside. terminal: a program could type for our caller; descriptors: those that a PMI needs."""

    __slots__ = ("cwd", "descriptors", "env", "home", "person", "terminal")

    def __init__(
        self,
        env: dict[str, str],
        person: identity.Person,
        *,
        home: str = "",
        cwd: str = "",
        terminal: bool = False,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Hold the parts. home: the directory with its symbolic links followed; cwd: "" if it is gone."""
        self.env = env
        self.person = person
        self.home = home
        self.cwd = cwd
        self.terminal = terminal
        self.descriptors = descriptors


class Source:
    """The image as a file or directory, and the way in which it gets mounted."""

    __slots__ = ("kind", "offset", "path", "way", "why")

    def __init__(self, path: str, kind: str, way: str, why: str, offset: int = 0) -> None:
        """Hold the parts. offset: bytes before the squashfs in the file."""
        self.path = path
        self.kind = kind
        self.way = way
        self.why = why
        self.offset = offset


class Wish:
    """A mount that somebody wants. asked: by the user, so that it must not fail; content: a file's, if we make it."""

    __slots__ = ("asked", "content", "readonly", "source", "target", "why")

    def __init__(
        self, source: str, target: str, why: str, *, readonly: bool = False, asked: bool = False, content: bytes = b""
    ) -> None:
        """Hold the parts."""
        self.source = source
        self.target = target
        self.why = why
        self.readonly = readonly
        self.asked = asked
        self.content = content


class Look:
    """What the image has at a path: its kind, the path with no symbolic link left in it, and what is wrong there."""

    __slots__ = ("kind", "problem", "real")

    def __init__(self, real: str, kind: str, problem: str = "") -> None:
        """Hold the parts."""
        self.real = real
        self.kind = kind
        self.problem = problem


class Facts:
    """What probe saw: in the image, by path asked; on the host, by path; and the image's passwd(5) and group(5)."""

    __slots__ = ("group", "host", "image", "notes", "passwd")

    def __init__(
        self,
        image: dict[str, Look],
        host: dict[str, str],
        passwd: bytes = b"",
        group: bytes = b"",
        notes: Sequence[str] = (),
    ) -> None:
        """Hold the parts. notes: what could not be read, one phrase each."""
        self.image = image
        self.host = host
        self.passwd = passwd
        self.group = group
        self.notes = notes


class Mount:
    """A mount to make: source of the host (or a file with this content) onto real, which is where target leads."""

    __slots__ = ("content", "kind", "readonly", "real", "source", "target", "why")

    def __init__(self, wish: Wish, real: str, kind: str) -> None:
        """Take over a wish."""
        self.source = wish.source
        self.target = wish.target
        self.readonly = wish.readonly
        self.content = wish.content
        self.why = wish.why
        self.real = real
        self.kind = kind


class Plan:
    """All that enter carries out, and the reasons.

    made: (path, kind) that the image lacks and a skeleton gives. writable: None, or the size of the tmpfs ("" for the
    kernel's default). skipped: (what, why) that stays out. filtered: no typing for the caller.
    """

    __slots__ = (
        "args",
        "args_why",
        "cwd",
        "cwd_why",
        "descriptors",
        "filtered",
        "gid",
        "made",
        "mounts",
        "skipped",
        "source",
        "uid",
        "variables",
        "warnings",
        "writable",
    )

    def __init__(self, source: Source, host: Host) -> None:
        """Begin a plan; make fills it, and nothing changes it after that."""
        self.source = source
        self.uid, self.gid = host.person.uid, host.person.gid
        self.descriptors = list(host.descriptors)
        self.filtered = host.terminal
        self.writable: str | None = None
        self.made: list[tuple[str, str]] = []
        self.mounts: list[Mount] = []
        self.variables: list[environment.Variable] = []
        self.skipped: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.args: list[str] = []
        self.cwd = self.cwd_why = self.args_why = ""

    @property
    def overlay(self) -> bool:
        """Whether the root is an overlay over the image."""
        return bool(self.made) or self.writable is not None


def way(asked: str, *, fuse: str, unpack: str) -> tuple[str, str]:
    """Return how to mount a squashfs, the least privilege that works first, and why.

    asked: by the user, or "". fuse, unpack: what is missing for that way, "" if nothing. Raises Fail.
    """
    missing = {"fuse": fuse, "unpack": unpack}
    if asked in missing:
        if missing[asked]:
            raise Fail(f"cannot mount with --mount={asked}", missing[asked])
        return asked, "--mount says so"
    if asked in ("kernel", "setuid"):
        raise Fail(f"cannot mount with --mount={asked}", "sh-mount is not installed", "run with --mount=fuse")
    if asked:
        raise Fail(f"no such way to mount: {asked!r}", "there are fuse, unpack, kernel and setuid", status=USAGE)
    if not fuse:
        return "fuse", "user namespaces, /dev/fuse and squashfuse are there"
    if not unpack:
        return "unpack", f"not fuse: {fuse}"
    raise Fail("cannot mount a squashfs", f"{fuse}; {unpack}", "install squashfuse or squashfs-tools")


def wishes(options: Options, host: Host) -> list[Wish]:
    """Return the mounts wanted, in order; a later one covers an earlier one. Raises Fail for a malformed volume."""
    volumes = [_volume(text) for text in options.all("volume")]
    wanted = [Wish(path, path, why) for path, why in KERNEL]
    home = host.person.home
    if not options.flag("no-home") and not _own(home):
        wanted.append(Wish(home, home, "the home directory"))
        if host.home != home and not _own(host.home):
            wanted.append(Wish(host.home, host.home, "the home directory, by the name that links lead to"))
    if host.cwd not in _TOPS and not _own(host.cwd) and not any(under(host.cwd, v.target) for v in volumes):
        wanted.append(Wish(host.cwd, host.cwd, "the current directory"))
    wanted += [Wish(path, path, why) for path, why in NAMES]
    return wanted + volumes


def places(options: Options, host: Host, image: Sidecar) -> list[str]:
    """Return the paths, besides the mounts', that matter inside."""
    found = (options.one("workdir"), host.cwd, _working_dir(image), host.env.get("TMPDIR", ""))
    return [*identity.PATHS, *(path for path in found if path.startswith("/"))]


def covered(paths: Iterable[str], wanted: Sequence[Wish], image: dict[str, Look]) -> set[str]:
    """Return the paths of the host that could show at these paths inside, once some of the mounts are made."""
    found = {wish.source for wish in wanted}
    for path in paths:
        for wish in wanted:
            for inside, top in ((path, wish.target), (image[path].real, image[wish.target].real)):
                if under(inside, top):
                    found.add(wish.source + inside[len(top) :])
    return found


def under(path: str, top: str) -> bool:
    """Tell whether path is top or lies below it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def make(request: Request, host: Host, image: Sidecar, source: Source, facts: Facts, wanted: list[Wish]) -> Plan:
    """Decide all of it. wanted: what `wishes` said. Raises Fail."""
    plan = Plan(source, host)
    plan.warnings += facts.notes
    if request.options.flag("writable"):
        plan.writable = _size(request.options.one("writable"))
    accounts = identity.files(host.person, facts.passwd, facts.group)
    generated = [Wish("", path, why, content=content, readonly=True) for path, content, why in accounts]
    first_asked = next((i for i, wish in enumerate(wanted) if wish.asked), len(wanted))
    for wish in wanted[:first_asked] + generated + wanted[first_asked:]:
        why_not = _mount(plan, wish, facts)
        if why_not and wish.asked:
            raise Fail(f"cannot mount '{wish.source}' at '{wish.target}'", why_not)
        if why_not:
            plan.skipped.append((wish.target, why_not))
    _choose_cwd(plan, request.options, host, image, facts)
    tmpdir = host.env.get("TMPDIR", "")
    plan.variables = environment.build(
        host.env,
        {_native(name): _native(value) for name, value in image.env.items()},
        request.settings,
        clear=request.options.flag("clearenv"),
        fixed={"HOME": host.person.home, "PWD": plan.cwd},
        tmpdir_visible=tmpdir.startswith("/") and _inside(plan, tmpdir, facts)[1] == DIRECTORY,
    )
    plan.args, plan.args_why = _args(request, image)
    return plan


def _mount(plan: Plan, wish: Wish, facts: Facts) -> str:
    """Add a wish to the plan, with what has to be made for it; return why not, or ""."""
    kind = FILE if wish.content else facts.host[wish.source]
    if kind not in (DIRECTORY, FILE):
        return kind or "there is no such file or directory on the host"
    real, there, shown = _inside(plan, wish.target, facts)
    if shown == wish.source and not wish.asked and not wish.content:
        return "it is already visible there"
    problem = facts.image[wish.target].problem
    if there == MISSING and shown:
        problem = f"there is no {shown!r} on the host to mount it on"
    elif there not in (DIRECTORY, FILE, MISSING):
        problem = there
    elif there not in (kind, MISSING):
        problem = f"it is a {kind}, and inside there is a {there} in its place"
    if problem:
        if not wish.asked:
            plan.warnings.append(f"cannot mount {wish.target!r}: {problem}")
        return problem
    if there == MISSING:
        plan.made.append((real, kind))
    plan.mounts.append(Mount(wish, real, kind))
    return ""


def _inside(plan: Plan, path: str, facts: Facts) -> tuple[str, str, str]:
    """Return what the container has at a path: (without links, kind, the host's path that shows there or "")."""
    look = facts.image[path]
    for mount in reversed(plan.mounts):
        for inside, top in ((path, mount.target), (look.real, mount.real)):
            if under(inside, top):
                shown = mount.source + inside[len(top) :]
                real = mount.real + inside[len(top) :]
                return (real, FILE, "") if mount.content else (real, facts.host[shown], shown)
    return look.real, look.kind, ""


def _choose_cwd(plan: Plan, options: Options, host: Host, image: Sidecar, facts: Facts) -> None:
    """Set the plan's current directory: the one asked for, ours, the image's, or the root."""
    asked = options.one("workdir")
    if options.flag("workdir"):
        if not asked.startswith("/"):
            raise Fail(f"cannot work in {asked!r}", "--workdir needs an absolute path", status=USAGE)
        if _inside(plan, asked, facts)[1] != DIRECTORY:
            raise Fail(f"cannot work in {asked!r}", "there is no such directory inside")
        plan.cwd, plan.cwd_why = asked, "--workdir"
        return
    if host.cwd and _inside(plan, host.cwd, facts)[1] == DIRECTORY:
        plan.cwd, plan.cwd_why = host.cwd, "the current directory"
        return
    own = _working_dir(image)
    # What /proc shows inside is not the image's: WorkingDir=/proc/self/fd/7 has been a way out of other runners.
    if own and not under(own, "/proc") and _inside(plan, own, facts)[1] == DIRECTORY:
        plan.cwd, plan.cwd_why = own, "the image's WorkingDir; the current directory is not inside"
        return
    plan.cwd, plan.cwd_why = "/", "the current directory is not inside, and the image names none that is"
    plan.warnings.append(f"the current directory {host.cwd!r} is not inside the image: working in '/'")


def _args(request: Request, image: Sidecar) -> tuple[list[str], str]:
    """Return the words to execute, and why these."""
    options, command = request.options, request.command
    entrypoint, cmd = ([_native(word) for word in words] for words in (image.entrypoint, image.cmd))
    if options.one("entrypoint"):
        return [options.one("entrypoint"), *command], "--entrypoint and the command line"
    if options.flag("entrypoint"):
        if not entrypoint:
            raise Fail("cannot use --entrypoint", "the image has none", "name a command")
        return entrypoint + list(command or cmd), "the image's Entrypoint"
    if command:
        return list(command), "the command line"
    if entrypoint or cmd:
        return entrypoint + cmd, "the image's Entrypoint and Cmd"
    return ["/bin/sh"], "neither the command line nor the image names a command"


def _volume(text: str) -> Wish:
    """Read SRC:DST[:ro]. Raises Fail."""
    what = f"cannot use volume {text!r}"
    source, _, rest = text.partition(":")
    target, _, flag = rest.partition(":")
    if not source or not target:
        raise Fail(what, "it is not SRC:DST or SRC:DST:ro", status=USAGE)
    if flag not in ("", "ro", "rw"):
        raise Fail(what, f"{flag!r} is neither ro nor rw", status=USAGE)
    if not target.startswith("/") or ".." in target.split("/"):
        raise Fail(what, f"{target!r} is not an absolute path without '..'", status=USAGE)
    target = "/" + os.path.normpath(target).lstrip("/")
    if target == "/":
        raise Fail(what, "the root is the image", status=USAGE)
    return Wish(os.path.abspath(source), target, "--volume", readonly=flag == "ro", asked=True)


def _size(text: str) -> str:
    """Check a size that tmpfs(5) takes: bytes, with k, m or g, or % of the memory. Raises Fail."""
    if text and not text.rstrip("kmgKMG%").isdecimal():
        raise Fail(f"cannot use --writable={text}", "a size is a number with k, m, g or %", status=USAGE)
    return text


def _own(path: str) -> bool:
    """Tell whether a path is no place to share: none at all, the root, or of the image's own system."""
    return not path.startswith("/") or path == "/" or path.split("/")[1] in _SYSTEM


def _working_dir(image: Sidecar) -> str:
    own = _native(image.working_dir)
    return os.path.normpath("/" + own.lstrip("/")) if own else ""


def _native(text: str) -> str:
    """Return text from JSON as os writes the same bytes, whatever the locale's encoding."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))
