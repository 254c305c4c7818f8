"""The first rank's part: find the image, mount it, look, plan, and make the namespaces that others may join."""

from __future__ import annotations

import errno
import os

from . import command, enter, host, paths, store
from .facts import DIRECTORY, Host, Request
from .fail import Fail
from .source import Source, choose
from .step import Holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .command import Config
    from .plan import Plan
    from .site import Site
    from .usage import Options


class Prepared:
    """A plan; the image's mount, to carry it out with; and what is to be left for those who join."""

    __slots__ = ("image", "left", "plan")

    def __init__(self, plan: Plan, image: int, left: Holder) -> None:
        """Hold the parts."""
        self.plan = plan
        self.image = image
        self.left = left


def prepare(request: Request, name: str, env: dict[str, str], kept: list[int]) -> Prepared:
    """Enter the outer namespaces, mount the image there, attached to nothing, and plan. Raises Fail or OSError.

    name: the image's, as the user wrote it. kept: descriptors that stay open for the command.
    """
    request = Request(request.options, request.command, request.settings, _site(request.options, env))
    path = store.find(name, env)
    known = store.read_sidecar(path)
    kind, offset = host.image(path)
    person = host.person(env)
    _outer(person.uid, person.gid)
    source, root, server = _mount(request, env, path, kind, offset, kept)
    # The server takes some 2 ms to begin; what follows is imported, and the host looked at, while it does.
    outside = Host(
        env,
        person,
        home=os.path.realpath(person.home),
        cwd=host.cwd(),
        terminal=host.can_be_typed_for(),
        descriptors=kept,
    )
    return _plan(request, outside, source, root, command.config(known) if known else None, server)


def make(prepared: Prepared, proc: int) -> None:
    """Carry out the plan, and be inside. proc: the host's /proc/self, a directory. Raises Fail or OSError."""
    enter.build(prepared.plan, prepared.image)
    enter.inner(proc, prepared.plan.uid, prepared.plan.gid)


def _site(options: Options, env: dict[str, str]) -> Site | None:
    """Return what the site decided, None if it decided nothing. Raises Fail."""
    asked = ",".join(options.all("module")) or env.get("SHOEBOX_MODULE", "")
    if not asked and not os.path.exists(f"{paths.SITE}/site.conf"):
        return None
    from . import site  # noqa: PLC0415 - few sites need it

    return site.load(paths.SITE, asked, host.text)


def _outer(uid: int, gid: int) -> None:
    try:
        enter.outer(uid, gid)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Fail("cannot make a container", "this kernel is older than Linux 5.12") from error
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.EUSERS):
            raise
        why, todo = host.why_no_namespaces()
        raise Fail("cannot make a user namespace", why or error, todo) from error


def _mount(
    request: Request, env: dict[str, str], path: str, kind: str, offset: int, kept: list[int]
) -> tuple[Source, int, enter.Server | None]:
    """Choose a way and mount the image, attached nowhere yet; return what it is, its mount, and who serves it."""
    try:
        if kind == DIRECTORY:
            return Source(path, kind, 0, "bind", "it is a directory"), enter.directory(path), None
        server, unpacker = host.tool(("squashfuse_ll", "squashfuse"), env), host.tool(("unsquashfs",), env)
        device, fuse = _device() if server else (-1, "squashfuse is not installed")
        unpack = "" if unpacker else "unsquashfs is not installed"
        preferred = request.site.way if request.site else ""
        way = choose(request.options.one("mount"), fuse=fuse, unpack=unpack, preferred=preferred)
        source = Source(path, kind, offset, *way)
        if source.way == "fuse":
            return source, *enter.fuse(device, server, path, offset, kept)
        from . import extract  # noqa: PLC0415 - the last resort

        return source, extract.extract(unpacker, path, offset), None
    except OSError as error:
        raise Fail(f"cannot mount image {path!r}", error, "try another way with --mount") from error


def _device() -> tuple[int, str]:
    """Open /dev/fuse, which the kernel wants done in the user namespace of the mount; return it, or why not."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC), ""
    except OSError as error:
        return -1, f"/dev/fuse: {error.strerror}"


def _plan(
    request: Request, outside: Host, source: Source, root: int, config: Config | None, server: enter.Server | None
) -> Prepared:
    """Look at what matters, and decide. Raises Fail."""
    from . import plan, probe  # noqa: PLC0415 - see prepare

    notes: list[str] = []
    try:
        said = config or _config(root, source.path, notes)
        wanted = plan.wishes(request.options, outside, request.site)
        places = [wish.target for wish in wanted] + plan.places(request.options, outside, said)
        looks = probe.looks(root, places)
        if request.site:
            for wish in (wish for wish in wanted if wish.why == "--volume"):
                names = (wish.source, wish.target, os.path.realpath(wish.source), looks[wish.target].real)
                request.site.forbid(wish.source, wish.target, names)
        facts = probe.facts(root, looks, plan.covered(places, wanted, looks), notes)
    except OSError as error:
        if server is not None and error.errno in probe.GONE:
            server.wait()
        raise Fail(f"cannot read image {source.path!r}", error) from error
    if server is not None:
        server.wait()
    left = Holder(outside.person.home, said, request.site.rules if request.site else ())
    return Prepared(plan.make(request, outside, said, source, facts, wanted), root, left)


def _config(root: int, path: str, notes: list[str]) -> Config:
    """Return what the image says of itself. Raises OSError if its server is gone."""
    from . import probe, sidecar  # noqa: PLC0415 - see prepare

    try:
        return command.config(sidecar.config_only(probe.config(root, notes) or b"{}", path + probe.CONFIG))
    except Fail as error:  # an image from anywhere may have anything there
        notes.append(str(error))
        return command.Config({})
