"""The first rank's part: find the image, mount it, look, plan, and make the namespaces that others may join."""

from __future__ import annotations

import os

from . import command, enter, execute, helper, host, join, paths, sidecar, store, ways
from .facts import DIRECTORY, Host, Request
from .fail import Fail
from .step import Holder
from .writable import OVERLAY, TAR, asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .cachefs import Server
    from .changes import Image
    from .command import Config
    from .facts import Caller
    from .identity import Person
    from .near import Copy
    from .plan import Plan
    from .site import Site
    from .source import Source
    from .usage import Options
    from .writable import Writable


class Prepared:
    """A plan; the image's mount, and those of sh-mount's caches, to carry it out with; what is left for those who join.

    step: a name for who shares the container, or "". scratch, memory: see enter.build; held: cachefs.mount; -1 if there
    is none.
    """

    __slots__ = ("caches", "held", "image", "left", "memory", "plan", "scratch", "step")

    def __init__(self, plan: Plan, image: int, left: Holder) -> None:
        """Hold the parts."""
        self.caches: Sequence[int] = ()
        self.plan = plan
        self.image = image
        self.left = left
        self.step = ""
        self.scratch = self.memory = self.held = -1

    @property
    def supervised(self) -> bool:
        """Whether a process of ours has to stay, to save the changes."""
        return self.plan.writable is not None and self.plan.writable.form == TAR

    @property
    def identity(self) -> Image:
        """The image as changes belong to it."""
        from .changes import Image  # noqa: PLC0415 - see prepare

        source = self.plan.source
        known = store.read_sidecar(source.path)
        digest = (known.manifest or f"sha256:{known.sha256}") if known else ""
        mode = os.fstat(self.image).st_mode
        return Image(source.path, digest, mode, source.offset, is_directory=source.kind == DIRECTORY)


def prepare(request: Request, caller: Caller) -> Prepared:
    """Enter the outer namespaces, mount the image there, attached to nothing, and plan. Raises Fail or OSError.

    What follows from the request on this machine is added to it.
    """
    env = caller.env
    request.site = _site(request.options, env)
    if request.options.flag("device") or request.options.flag("gpu"):
        from . import devices  # noqa: PLC0415 - few want one

        request.devices = devices.look(request.options, env)
    path = store.find(request.image, env)
    copy = _near(path, request.options, env)
    kind, offset = host.image(copy.file if copy else path)
    person = host.person(env)
    if _wants_caches(request.options):
        from . import caches  # noqa: PLC0415 - few want one

        request.caches = caches.look(request.options, request.site, person, caller.cwd)
    begun = ways.begin(request, env, path, kind, copy)
    said = _beside(path, person, copy)
    outside = Host(
        env,
        person,
        home=os.path.realpath(person.home),
        cwd=caller.cwd,
        terminal=caller.filtered,
        descriptors=caller.kept,
    )
    writable = asked(request.options.one("writable")) if request.options.flag("writable") else None
    if writable and writable.directory:
        writable.directory = os.path.realpath(writable.directory)
    source, root, server = ways.mount(begun, outside, path, kind, offset, alone=not request.caches)
    if writable and writable.directory and source.way != "setuid":
        from . import changes  # noqa: PLC0415 - few want it

        writable = changes.look(writable, path)
    prepared = _plan(request, outside, source, root, said, server, writable)
    prepared.caches = begun.made
    return prepared


def make(prepared: Prepared, proc: int, env: dict[str, str]) -> None:
    """Carry out the plan, and be inside; in the way setuid, sh-mount does, and becomes the command.

    proc: the host's /proc/self, a directory. Raises Fail or OSError.
    """
    if prepared.plan.source.way == "setuid":
        execute.usual_signals()
        helper.become(paths.HELPER, prepared.plan, join.place(env))
    kept = prepared.plan.writable
    if not kept or kept.form != OVERLAY:
        _build(prepared, proc)
        return
    from . import changes  # noqa: PLC0415 - few want it

    taken = changes.take(kept, prepared.identity, prepared.step)
    try:
        _build(prepared, proc)
    except (Fail, OSError):
        changes.release(taken)
        raise


def tell(prepared: Prepared, env: dict[str, str], key: join.Key | None = None) -> None:
    """Leave a line of this run where the site wants one: once for a step and a node. Nobody waits, nothing fails.

    key: if others can join. To be called before `make`: the container need not show where the line goes.
    """
    plan = prepared.plan
    if not plan.usage:
        return
    from . import record  # noqa: PLC0415 - where the site wants it

    # Where nobody can join, each rank makes a container; one after another in a step, each run does.
    if join.is_again(key) if key and plan.source.way != "setuid" else not record.is_first(env):
        return
    record.leave(plan.usage, plan.source.path, plan.source.way, env, plan.uid)


def _build(prepared: Prepared, proc: int) -> None:
    plan, made = prepared.plan, prepared.caches
    servers: Sequence[Server] = ()
    if plan.caches:
        from . import caches  # noqa: PLC0415 - see prepare

        made, servers = caches.make(plan.caches, made, prepared.held)
    enter.build(plan, prepared.image, made, prepared.scratch, prepared.memory)
    for server in servers:
        server.wait()
    enter.inner(proc, plan.uid, plan.gid)


def _wants_caches(options: Options) -> bool:
    """Tell whether there may be node caches: an option, or a volume with more than names and flags."""
    return options.flag("node-cache") or any("=" in volume for volume in options.all("volume"))


def _near(path: str, options: Options, env: dict[str, str]) -> Copy | None:
    """Return this node's own copy of the image, None if there is none, or it is of no use: sh-mount takes no copies."""
    if not env.get("SLURM_JOB_ID") or options.one("mount") in ("kernel", "setuid"):
        return None
    from . import near  # noqa: PLC0415 - who joins needs none of this

    return near.find(path, env)


def _beside(path: str, person: Person, copy: Copy | None) -> Config | None:
    """Return what lies beside the image and says how to run it; None if nothing does. Raises Fail or OSError."""
    known = sidecar.load(copy.sidecar, path) if copy else store.read_sidecar(path)
    if known and known.config:  # else it knows nothing of how to run it, and the image may
        return command.config(known)
    data = store.shifter_text(path)
    if data is None:
        return None
    from . import foreign  # noqa: PLC0415 - few images are other tools'

    return foreign.shifter(data, path, person.uid, [person.gid, *os.getgroups()])


def _site(options: Options, env: dict[str, str]) -> Site | None:
    """Return what the site decided, None if it decided nothing. Raises Fail."""
    asked = ",".join(options.all("module")) or env.get("SHOEBOX_MODULE", "")
    if not asked and not os.path.exists(f"{paths.SITE}/site.conf"):
        return None
    from . import site  # noqa: PLC0415 - few sites need it

    return site.load(paths.SITE, asked, host.text)


def _plan(
    request: Request,
    outside: Host,
    source: Source,
    root: int,
    config: Config | None,
    server: enter.Server | None,
    writable: Writable | None,
) -> Prepared:
    """Look at what matters, and decide. Raises Fail."""
    from . import plan, probe  # noqa: PLC0415 - squashfuse takes some 2 ms to begin, in which we import

    notes: list[str] = []
    try:
        said = config or _config(root, source.path, outside.env, notes)
        if request.devices:
            from . import devices  # noqa: PLC0415 - see prepare

            request.devices = devices.fit(request.devices, root, source)
        if request.options.flag("mpi"):
            from . import hostmpi  # noqa: PLC0415 - see prepare

            wants = hostmpi.fit(request, outside.env, said.env, root, source)
            request.devices = request.devices.beside(wants) if request.devices else wants
        wanted = plan.wishes(request, outside)
        places = [wish.target for wish in wanted] + plan.places(request, outside, said)
        looks = probe.looks(root, places) if root >= 0 else probe.guesses(places, wanted)
        if request.site:
            for wish in (wish for wish in wanted if wish.why in ("--volume", plan.PMIX)):
                names = (wish.source, wish.target, os.path.realpath(wish.source), looks[wish.target].real)
                request.site.forbid(f"cannot use volume '{wish.source}:{wish.target}'", names)
            for cache in request.caches.values():
                what = f"cannot have a node cache at {cache.target!r}"
                request.site.forbid(what, (cache.target, looks[cache.target].real))
        facts = probe.facts(root, looks, plan.covered(places, wanted, looks), notes)
    except OSError as error:
        if server is not None and error.errno in probe.GONE:
            server.wait()
        raise Fail(f"cannot read image {source.path!r}", error) from error
    if server is not None:
        server.wait()
    left = Holder(outside.person.home, said, request.rules)
    return Prepared(plan.make(request, outside, said, source, facts, wanted, writable), root, left)


def _config(root: int, path: str, env: dict[str, str], notes: list[str]) -> Config:
    """Return what the image says of itself. Raises OSError if its server is gone."""
    if root < 0:
        notes.append("the image's own settings are not known: there is no sidecar, and sh-run cannot look into it here")
        return command.Config({})
    from . import probe  # noqa: PLC0415 - see prepare

    data = probe.config(root, notes)
    if not data:
        from . import foreign  # noqa: PLC0415 - see _beside

        def read(name: str) -> bytes:
            return probe.text(root, name, notes)

        return foreign.recognise(path, env, lambda name: probe.kind(root, name), read, notes)
    try:
        return command.config(sidecar.config_only(data, path + probe.CONFIG))
    except Fail as error:  # an image from anywhere may have anything there
        notes.append(str(error))
        return command.Config({})
