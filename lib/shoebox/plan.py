"""Plans: what a container will be, decided from what was asked and what is there. Pure: values in, a Plan out.

The steps: `wishes` and `places` say what to look at, others look, `make` decides. Facts about the image are facts about
the image alone; what covers what, once the mounts are made in their order, is worked out here.
"""

from __future__ import annotations

import os

from . import command, identity
from .facts import DIRECTORY, FILE, MISSING, Wish
from .fail import USAGE, Fail
from .paths import plain_target, pmix, shared, under, wants_cwd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .cdi import Devices, Link
    from .command import Command, Config
    from .facts import Facts, Host, Look, Request
    from .nodecache import Cache
    from .source import Source
    from .writable import Writable

KERNEL = (
    ("/proc", "the kernel's view of processes"),
    ("/sys", "the kernel's view of hardware"),
    ("/dev", "devices: GPUs, networks, shared memory, terminals"),
    ("/tmp", "shared with the host, as programs expect"),  # noqa: S108 - a place, not a file
)
NAMES = (("/etc/resolv.conf", "host names mean the same inside"), ("/etc/hosts", "host names mean the same inside"))
PMIX = "PMIx's server and its clients meet there"


class Mount:
    """A mount to make: source of the host (or a file with this content, or a node cache) onto real, where target leads.

    optional: nobody asked for it.
    """

    __slots__ = ("cache", "content", "kind", "optional", "readonly", "real", "source", "target", "why")

    def __init__(self, wish: Wish, real: str, kind: str) -> None:
        """Take over a wish."""
        self.source = wish.source
        self.target = wish.target
        self.readonly = wish.readonly
        self.optional = wish.optional or not wish.asked
        self.content = wish.content
        self.cache = wish.cache
        self.why = wish.why
        self.real = real
        self.kind = kind


class Plan:
    """All that enter carries out, and the reasons.

    made: (path, kind) that the image lacks and a skeleton gives; links, likewise: (path, text, why). devices: (name,
    why); mpi likewise. writable: None if nothing is. form: see Config. skipped: (what, why) that stays out.
    usage: where the run leaves a line, see Site. filtered: no typing for the caller. descriptors: those that stay open
    besides 0, 1, 2.
    """

    __slots__ = (
        *("command", "descriptors", "devices", "filtered", "form", "gid", "links", "made", "mounts", "mpi", "skipped"),
        *("source", "uid", "usage", "warnings", "writable"),
    )

    def __init__(
        self,
        source: Source,
        host: Host,
        *,
        writable: Writable | None,
        mounts: _Mounts,
        command: Command,
        devices: Devices | None = None,
        form: tuple[str, str] = ("", ""),
        usage: str = "",
    ) -> None:
        """Hold the parts."""
        self.source = source
        self.usage = usage
        self.form = form
        self.uid, self.gid = host.person.uid, host.person.gid
        self.descriptors = host.descriptors
        self.filtered = host.terminal
        self.writable = writable
        self.mounts, self.made, self.links = mounts.mounts, mounts.made, mounts.links
        self.devices = devices.used if devices else []
        self.mpi = devices.mpi if devices else []
        self.skipped = [*mounts.skipped, *(devices.skipped if devices else ())]
        self.command = command
        self.warnings = [*mounts.warnings, *(devices.warnings if devices else ()), *command.warnings]

    @property
    def caches(self) -> list[Cache]:
        """The node caches, in the order of their mounts."""
        return [mount.cache for mount in self.mounts if mount.cache]

    @property
    def overlay(self) -> bool:
        """Whether the root is an overlay over the image."""
        return bool(self.made or self.links) or self.writable is not None


class _Mounts:
    """The mounts decided so far, and so what the container has at a path.

    fixed: why a target that the image lacks cannot be made, or "".
    """

    __slots__ = ("facts", "fixed", "links", "made", "mounts", "skipped", "warnings")

    def __init__(self, facts: Facts, fixed: str) -> None:
        self.facts = facts
        self.fixed = fixed
        self.mounts: list[Mount] = []
        self.made: list[tuple[str, str]] = []
        self.links: list[tuple[str, str, str]] = []
        self.skipped: list[tuple[str, str]] = []
        self.warnings = list(facts.notes)

    def add(self, wish: Wish) -> None:
        """Decide on a wish. Raises Fail if the user asked for what cannot be."""
        kind = FILE if wish.content else DIRECTORY if wish.cache else self.facts.host[wish.source]
        if kind not in (DIRECTORY, FILE):
            self._skip(wish, kind or "there is no such file or directory on the host")
            return
        real, there, shown = self.inside(wish.target)
        problem = self.facts.image[wish.target].problem
        if there == MISSING and shown:
            problem = f"there is no {shown!r} on the host to mount it on"
        elif there not in (DIRECTORY, FILE, MISSING):
            problem = there
        elif there == MISSING and self.fixed:
            problem = self.fixed
        elif wish.cache and (below := self._volume_below(real)):
            problem = f"the volume at {below!r} would be covered"
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

    def _volume_below(self, real: str) -> str:
        """Return the target of a volume below a place, or ""."""
        found = (mount for mount in self.mounts if mount.why == "--volume" and mount.real != real)
        return next((mount.target for mount in found if under(mount.real, real)), "")

    def link(self, link: Link, end: str) -> None:
        """Decide on a symbolic link. end: where it leads at last. What the image has in its place gets covered."""
        real, there, shown = self.inside(link.path)
        if real == self.inside(end)[0]:
            self.skipped.append((link.path, "it leads there already"))
        elif there == MISSING:
            problem = self.facts.image[link.path].problem or self.fixed
            if shown:
                problem = f"it would be in {shown!r} of the host"
            if problem:
                self.skipped.append((link.path, problem))
                self.warnings.append(f"cannot make the link {link.path!r}: {problem}")
            else:
                self.links.append((real, link.leads, link.why))
        else:
            ours = next((mount.source for mount in reversed(self.mounts) if mount.target == end), "")
            if ours:
                self.add(Wish(ours, link.path, link.why, readonly=True, asked=True, optional=True))
            else:
                self.skipped.append((link.path, "the image has a file there"))

    def _skip(self, wish: Wish, why: str, *, warn: bool = False) -> None:
        if wish.asked and not wish.optional:
            todo = "" if wish.why == "--volume" or wish.cache else f"see {wish.why}"
            raise Fail(f"cannot mount {wish.source or 'a node cache'!r} at {wish.target!r}", why, todo)
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
                    if mount.cache:
                        return real, DIRECTORY if asked == top else "in a node cache there is nothing yet", ""
                    return (real, FILE, "") if mount.content else (real, self.facts.host[shown], shown)
        return look.real, look.kind, ""

    def has_directory(self, path: str) -> bool:
        """Tell whether there is a directory at an absolute path."""
        return path.startswith("/") and self.inside(path)[1] == DIRECTORY


def wishes(request: Request, host: Host) -> list[Wish]:
    """Return the mounts wanted, in order; a later one covers an earlier one. Raises Fail for a malformed volume."""
    options = request.options
    volumes = [_volume(text) for text in options.all("volume") if text not in request.caches]
    volumes += [Wish("", one.target, one.why, asked=True, cache=one) for one in dict.fromkeys(request.caches.values())]
    wanted = [Wish(path, path, why) for path, why in KERNEL]
    home = os.path.normpath(host.person.home)
    if not options.flag("no-home") and shared(home):
        wanted.append(Wish(home, home, "the home directory"))
        if host.home != home and shared(host.home):
            wanted.append(Wish(host.home, host.home, "the home directory, by the name that links lead to"))
    if wants_cwd(host.cwd) and not any(under(host.cwd, volume.target) for volume in volumes):
        wanted.append(Wish(host.cwd, host.cwd, "the current directory"))
    wanted += [Wish(path, path, why) for path, why in NAMES]
    wanted += [Wish(path, path, PMIX) for path in pmix(host.env)]
    wanted += request.site.wishes(host.person) if request.site else []
    wanted += request.devices.wishes if request.devices else []
    return wanted + volumes + (request.sshd.wishes if request.sshd else [])


def places(request: Request, host: Host, image: Config) -> list[str]:
    """Return the paths, besides the mounts', that matter inside."""
    links = _ends(request.devices.links) if request.devices else {}
    found = [request.sshd.shell, identity.SHADOW] if request.sshd else []
    found += [request.options.one("workdir"), host.cwd, image.working_dir, host.env.get("TMPDIR", "")]
    found += [*links.keys(), *links.values()]
    return [*identity.PATHS, *(path for path in found if path.startswith("/"))]


def covered(paths: Iterable[str], wanted: Sequence[Wish], image: dict[str, Look]) -> set[str]:
    """Return the paths of the host that could show at these paths inside, once some of the mounts are made."""
    found = {wish.source for wish in wanted}
    for path in paths:
        for wish in (wish for wish in wanted if not wish.cache):
            for inside, top in ((path, wish.target), (image[path].real, image[wish.target].real)):
                if under(inside, top):
                    found.add(wish.source + inside[len(top) :])
    return found


def make(
    request: Request,
    host: Host,
    image: Config,
    source: Source,
    facts: Facts,
    wanted: list[Wish],
    writable: Writable | None = None,
) -> Plan:
    """Decide all of it. wanted: what `wishes` said. Raises Fail."""
    accounts = identity.files(host.person, facts.passwd, facts.group)
    if request.sshd:
        shell = facts.image.get(request.sshd.shell)
        has_shell = shell is not None and shell.kind == FILE
        accounts = identity.for_sshd(
            host.person, facts.passwd, facts.group, request.sshd.shell if has_shell else command.SHELL
        )
    ours = [Wish("", path, why, content=content, readonly=True) for path, content, why in accounts]
    setuid = source.way == "setuid"
    if setuid and request.options.flag("writable"):
        raise Fail("cannot make the image writable", "that takes a user namespace", "run without --writable")
    mounts = _Mounts(facts, "the image lacks it, and to make it takes a user namespace" if setuid else "")
    for asked in (False, True):
        for wish in [wish for wish in wanted + ours if wish.asked == asked]:
            mounts.add(wish)
    links = request.devices.links if request.devices else []
    ends = _ends(links)
    for link in links:
        mounts.link(link, ends[link.path])
    return Plan(
        source,
        host,
        writable=writable,
        mounts=mounts,
        devices=request.devices,
        form=image.form,
        usage=request.site.usage if request.site else "",
        command=command.decide(
            request,
            host.env,
            image,
            home=host.person.home,
            cwd=host.cwd,
            has_directory=mounts.has_directory,
            rules=request.rules,
        ),
    )


def _ends(links: Sequence[Link]) -> dict[str, str]:
    """Return for each link's path where it leads at last, as far as we make the links on the way."""
    ends = {link.path: os.path.normpath(link.leads) for link in links}
    for _ in ends:
        ends = {path: ends.get(end, end) for path, end in ends.items()}
    return ends


def _volume(text: str) -> Wish:
    """Read SRC:DST[:ro]. Raises Fail."""
    what = f"cannot use volume {text!r}"
    source, _, rest = text.partition(":")
    target, _, flag = rest.partition(":")
    if not source or not target:
        raise Fail(what, "it is not SRC:DST or SRC:DST:ro", status=USAGE)
    if flag not in ("", "ro", "rw"):
        raise Fail(what, f"{flag!r} is neither ro nor rw", status=USAGE)
    return Wish(os.path.abspath(source), plain_target(target, what), "--volume", readonly=flag == "ro", asked=True)
