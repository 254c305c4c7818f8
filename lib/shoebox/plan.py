"""Plans: what a container will be, decided from what was asked and what is there. Pure: values in, a Plan out.

The steps: `wishes` and `places` say what to look at, others look, `make` decides. Facts about the image are facts about
the image alone; what covers what, once the mounts are made in their order, is worked out here.
"""

from __future__ import annotations

import os

from . import environment, identity
from .facts import DIRECTORY, FILE, MISSING, Wish
from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .facts import Facts, Host, Look, Request
    from .sidecar import Sidecar
    from .source import Source
    from .usage import Options

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
    kernel's default). skipped: (what, why) that stays out. cwd, args: with the reason. filtered: no typing for the
    caller. descriptors: those that stay open besides 0, 1, 2.
    """

    __slots__ = (
        *("args", "cwd", "descriptors", "filtered", "gid", "made", "mounts", "skipped", "source", "uid", "variables"),
        *("warnings", "writable"),
    )

    def __init__(
        self,
        source: Source,
        host: Host,
        *,
        writable: str | None,
        mounts: _Mounts,
        variables: list[environment.Variable],
        cwd: tuple[str, str],
        args: tuple[list[str], str],
        warnings: list[str],
    ) -> None:
        """Hold the parts."""
        self.source = source
        self.uid, self.gid = host.person.uid, host.person.gid
        self.descriptors = host.descriptors
        self.filtered = host.terminal
        self.writable = writable
        self.mounts, self.made, self.skipped = mounts.mounts, mounts.made, mounts.skipped
        self.variables = variables
        self.cwd = cwd
        self.args = args
        self.warnings = warnings

    @property
    def overlay(self) -> bool:
        """Whether the root is an overlay over the image."""
        return bool(self.made) or self.writable is not None


class _Mounts:
    """The mounts decided so far, and so what the container has at a path."""

    __slots__ = ("facts", "made", "mounts", "skipped", "warnings")

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.mounts: list[Mount] = []
        self.made: list[tuple[str, str]] = []
        self.skipped: list[tuple[str, str]] = []
        self.warnings = list(facts.notes)

    def add(self, wish: Wish) -> None:
        """Decide on a wish. Raises Fail if the user asked for what cannot be."""
        kind = FILE if wish.content else self.facts.host[wish.source]
        if kind not in (DIRECTORY, FILE):
            self._skip(wish, kind or "there is no such file or directory on the host")
            return
        real, there, shown = self.inside(wish.target)
        problem = self.facts.image[wish.target].problem
        if there == MISSING and shown:
            problem = f"there is no {shown!r} on the host to mount it on"
        elif there not in (DIRECTORY, FILE, MISSING):
            problem = there
        elif there not in (kind, MISSING):
            problem = f"it is a {kind}, and inside there is a {there} in its place"
        if problem:
            self._skip(wish, problem, warn=True)
        elif shown == wish.source and not wish.asked and not wish.content:
            self._skip(wish, "it is already visible there")
        else:
            self.mounts.append(Mount(wish, real, kind))
            if there == MISSING:
                self.made.append((real, kind))

    def _skip(self, wish: Wish, why: str, *, warn: bool = False) -> None:
        if wish.asked:
            raise Fail(f"cannot mount {wish.source!r} at {wish.target!r}", why)
        self.skipped.append((wish.target, why))
        if warn:
            self.warnings.append(f"cannot mount {wish.target!r}: {why}")

    def inside(self, path: str) -> tuple[str, str, str]:
        """Return what is at a path: (it without links, its kind, the host's path that shows there or "")."""
        look = self.facts.image[path]
        for mount in reversed(self.mounts):
            for asked, top in ((path, mount.target), (look.real, mount.real)):
                if under(asked, top):
                    shown, real = mount.source + asked[len(top) :], mount.real + asked[len(top) :]
                    return (real, FILE, "") if mount.content else (real, self.facts.host[shown], shown)
        return look.real, look.kind, ""

    def has_directory(self, path: str) -> bool:
        """Tell whether there is a directory at an absolute path."""
        return path.startswith("/") and self.inside(path)[1] == DIRECTORY


def wishes(options: Options, host: Host) -> list[Wish]:
    """Return the mounts wanted, in order; a later one covers an earlier one. Raises Fail for a malformed volume."""
    volumes = [_volume(text) for text in options.all("volume")]
    wanted = [Wish(path, path, why) for path, why in KERNEL]
    home = os.path.normpath(host.person.home)
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
    accounts = identity.files(host.person, facts.passwd, facts.group)
    ours = [Wish("", path, why, content=content, readonly=True) for path, content, why in accounts]
    mounts = _Mounts(facts)
    for asked in (False, True):
        for wish in [wish for wish in wanted + ours if wish.asked == asked]:
            mounts.add(wish)
    cwd, note = _cwd(request.options, host, image, mounts)
    variables = environment.build(
        host.env,
        {_native(name): _native(value) for name, value in image.env.items()},
        request.settings,
        clear=request.options.flag("clearenv"),
        fixed={"HOME": host.person.home, "PWD": cwd[0], "SHOEBOX_RUNTIME": "1"},
        tmpdir_visible=mounts.has_directory(host.env.get("TMPDIR", "")),
    )
    return Plan(
        source,
        host,
        writable=_size(request.options.one("writable")) if request.options.flag("writable") else None,
        mounts=mounts,
        variables=variables,
        cwd=cwd,
        args=_args(request, image),
        warnings=mounts.warnings + note,
    )


def _cwd(options: Options, host: Host, image: Sidecar, mounts: _Mounts) -> tuple[tuple[str, str], list[str]]:
    """Return the directory to work in and why (the one asked for, ours, the image's, or the root), and a warning."""
    asked, own = options.one("workdir"), _working_dir(image)
    if options.flag("workdir"):
        if not asked.startswith("/"):
            raise Fail(f"cannot work in {asked!r}", "--workdir needs an absolute path", status=USAGE)
        if not mounts.has_directory(asked):
            raise Fail(f"cannot work in {asked!r}", "there is no such directory inside")
        return (asked, "--workdir"), []
    if mounts.has_directory(host.cwd):
        return (host.cwd, "the current directory"), []
    # What /proc shows inside is not the image's: WorkingDir=/proc/self/fd/7 has been a way out of other runners.
    if not under(own, "/proc") and mounts.has_directory(own):
        return (own, "the image's WorkingDir; the current directory is not inside"), []
    note = f"the current directory {host.cwd!r} is not inside the image: working in '/'"
    return ("/", "the current directory is not inside, and the image names none that is"), [note]


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
    if text and not (text[:-1] if text[-1] in "kmgKMG%" else text).isdecimal():
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
