"""sh-run: read the words, look, plan, enter."""

from __future__ import annotations

import errno
import os
import sys

from . import enter, host, store, usage
from .facts import DIRECTORY, Host, Request
from .fail import USAGE as WRONG
from .fail import Fail, say
from .source import Source, choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .environment import Setting
    from .plan import Plan
    from .sidecar import Sidecar

USAGE = """\
usage: sh-run [option...] IMAGE [--] [COMMAND [ARGUMENT...]]

Run a command in an image: a name in a store, a squashfs or SIF file, or a directory.

  -v, --volume SRC:DST[:ro]...   show the host's SRC at DST inside
      --no-home                  leave the home directory outside
      --env NAME[=VALUE]...      set a variable, or pass the host's
      --env-file FILE...         set the variables that a file lists
      --clearenv                 begin with none of the host's variables
      --workdir DIR              work in this directory of the inside
      --entrypoint[=PROGRAM]     begin with the image's Entrypoint, or with this
      --writable[=SIZE]          let the image be written to, in memory; gone at the end
      --mount WAY                how to mount a squashfs: fuse or unpack
      --image IMAGE              the image; then all the words are the command
      --explain[=FORMAT]         print the plan and its reasons as text, or as json, and stop
  -q, --quiet                    no warnings
  -h, --help                     print this
"""


def run(argv: list[str]) -> int:  # noqa: RET503 - enter.execute does not return
    """Become the command in the image; return only after --explain. Raises Fail, or OSError if all else fails."""
    options = usage.parse(USAGE, argv, stop_at_operand=True)
    env = host.environ()
    name, command = _operands(options, env)
    request = Request(options, command, list(_settings(options)))
    kept = host.descriptors(env)
    enter.tidy_descriptors(kept)
    path = store.find(name, env)
    known = store.read_sidecar(path)
    kind, offset = host.image(path)
    person = host.person(env)
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _outer(person.uid, person.gid)
    source, root, server = _mount(options, env, path, kind, offset, kept)
    # The server takes some 2 ms to begin; what follows is imported, and the host looked at, while it does.
    outside = Host(
        env,
        person,
        home=os.path.realpath(person.home),
        cwd=host.cwd(),
        terminal=host.can_be_typed_for(),
        descriptors=kept,
    )
    made = _plan(request, outside, source, root, known, server)
    if options.flag("explain"):
        return _explain(made, options.one("explain", "text"))
    if not options.flag("quiet"):
        for warning in made.warnings:
            say(f"warning: {warning}")
    enter.build(made, root)
    enter.inner(proc, person.uid, person.gid)
    enter.execute(made)


def _operands(options: usage.Options, env: dict[str, str]) -> tuple[str, list[str]]:
    """Return the image's name and the command."""
    words = options.operands
    default = options.one("image") or env.get("SHOEBOX_IMAGE", "")
    if words and (not default or words[1:2] == ["--"]):
        return words[0], words[2:] if words[1:2] == ["--"] else words[1:]
    if not default:
        raise Fail("no IMAGE given", todo="see -h", status=WRONG)
    return default, words


def _settings(options: usage.Options) -> Iterator[Setting]:
    if not options.flag("env") and not options.flag("env-file"):
        return
    from . import environment  # noqa: PLC0415 - see run

    for path in options.all("env-file"):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise Fail(f"cannot read {path!r}", error) from error
        yield from environment.read_file(os.fsdecode(data), path)
    for text in options.all("env"):
        yield environment.setting(text)


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
    options: usage.Options, env: dict[str, str], path: str, kind: str, offset: int, kept: list[int]
) -> tuple[Source, int, enter.Server | None]:
    """Choose a way and mount the image, attached nowhere yet; return what it is, its mount, and who serves it."""
    try:
        if kind == DIRECTORY:
            return Source(path, kind, 0, "bind", "it is a directory"), enter.directory(path), None
        server, unpacker = host.tool(("squashfuse_ll", "squashfuse"), env), host.tool(("unsquashfs",), env)
        device, fuse = _device() if server else (-1, "squashfuse is not installed")
        unpack = "" if unpacker else "unsquashfs is not installed"
        source = Source(path, kind, offset, *choose(options.one("mount"), fuse=fuse, unpack=unpack))
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
    request: Request, outside: Host, source: Source, root: int, known: Sidecar | None, server: enter.Server | None
) -> Plan:
    """Look at what matters, and decide. Raises Fail."""
    from . import plan, probe  # noqa: PLC0415 - see run

    notes: list[str] = []
    try:
        known = known or _config(root, source.path, notes)
        wanted = plan.wishes(request.options, outside)
        paths = [wish.target for wish in wanted] + plan.places(request.options, outside, known)
        looks = probe.looks(root, paths)
        facts = probe.facts(root, looks, plan.covered(paths, wanted, looks), notes)
    except OSError as error:
        if server is not None and error.errno in probe.GONE:
            server.wait()
        raise Fail(f"cannot read image {source.path!r}", error) from error
    if server is not None:
        server.wait()
    return plan.make(request, outside, known, source, facts, wanted)


def _config(root: int, path: str, notes: list[str]) -> Sidecar:
    """Return what the image says of itself. Raises OSError if its server is gone."""
    from . import probe, sidecar  # noqa: PLC0415 - see run

    try:
        return sidecar.config_only(probe.config(root, notes) or b"{}", path + probe.CONFIG)
    except Fail as error:  # an image from anywhere may have anything there
        notes.append(str(error))
        return sidecar.Sidecar({})


def _explain(made: Plan, form: str) -> int:
    from . import explain  # noqa: PLC0415 - no rank needs it

    if form not in ("text", "json"):
        raise Fail(f"cannot explain as {form!r}", "there are text and json", status=WRONG)
    sys.stdout.write(explain.as_json(made) if form == "json" else explain.as_text(made))
    return 0
