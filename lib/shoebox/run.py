"""sh-run: read the words, look, plan, enter."""

from __future__ import annotations

import errno
import os
import sys

from . import enter, environment, plan, probe, sidecar, store, superblock, usage
from .fail import USAGE as WRONG
from .fail import Fail, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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
_SERVERS = ("squashfuse_ll", "squashfuse")
_GONE = (errno.ENOTCONN, errno.ECONNABORTED)  # what the kernel says of a FUSE server that ended


def run(argv: list[str]) -> int:  # noqa: RET503 - enter.execute does not return
    """Become the command in the image; return only after --explain. Raises Fail, or OSError if all else fails."""
    options = usage.parse(USAGE, argv, stop_at_operand=True)
    env = probe.environ()
    name, command = _operands(options, env)
    request = plan.Request(options, command, list(_settings(options)))
    host = probe.host(env)
    enter.tidy_descriptors(host.descriptors)
    wanted = plan.wishes(options, host)
    path = store.find(name, env)
    known = store.read_sidecar(path)
    kind, offset = _kind(path)
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _outer(host)
    source, device = _way(options, host, path, kind, offset)
    root, server = _mount(source, device, host)
    try:
        if known is None:
            known = _config(root, path)
        targets = [wish.target for wish in wanted]
        places = plan.places(options, host, known)
        looks = probe.image(root, targets + places)
        facts = probe.facts(root, looks, plan.covered(targets + places, wanted, looks))
    except OSError as error:
        if server is not None and error.errno in _GONE:
            server.wait()
        raise Fail(f"cannot read image {path!r}", error) from error
    made = plan.make(request, host, known, source, facts, wanted)
    if options.flag("explain"):
        return _explain(made, options.one("explain", "text"))
    if not options.flag("quiet"):
        for warning in made.warnings:
            say(f"warning: {warning}")
    if server is not None:
        server.wait()
    enter.build(made, root)
    enter.inner(proc, made.uid, made.gid)
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


def _settings(options: usage.Options) -> Iterator[environment.Setting]:
    for path in options.all("env-file"):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise Fail(f"cannot read {path!r}", error) from error
        yield from environment.read_file(os.fsdecode(data), path)
    for text in options.all("env"):
        yield environment.setting(text)


def _kind(path: str) -> tuple[str, int]:
    """Return whether the image is a directory or a squashfs, and at which byte that begins. Raises Fail."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Fail(f"cannot open image {path!r}", error) from error
    try:
        about = os.fstat(fd)
        if about.st_mode & 0o170000 == 0o040000:
            return plan.DIRECTORY, 0
        if about.st_mode & 0o170000 != 0o100000:
            raise Fail(f"cannot use image {path!r}", "it is neither a file nor a directory")
        header = os.pread(fd, superblock.HEAD, 0)
        if header[32:41] == b"SIF_MAGIC":
            from . import sif  # noqa: PLC0415 - few images are SIF files

            offset, size = sif.locate(lambda at, length: os.pread(fd, length, at), about.st_size, path)
            superblock.check(os.pread(fd, superblock.HEAD, offset), size, path)
            return "squashfs", offset
        superblock.check(header, about.st_size, path)
        return "squashfs", 0
    finally:
        os.close(fd)


def _outer(host: plan.Host) -> None:
    try:
        enter.outer(host.person.uid, host.person.gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.EUSERS):
            raise
        why, todo = probe.why_no_namespaces()
        raise Fail("cannot make a user namespace", why or error, todo) from error


def _way(options: usage.Options, host: plan.Host, path: str, kind: str, offset: int) -> tuple[plan.Source, int]:
    """Choose the way to mount; return it, and /dev/fuse if that is it."""
    if kind == plan.DIRECTORY:
        return plan.Source(path, kind, "bind", "it is a directory"), -1
    device, fuse, unpack = -1, "", ""
    if not probe.tool(_SERVERS, host.env):
        fuse = "squashfuse is not installed"
    else:
        try:
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            fuse = f"/dev/fuse: {error.strerror}"
    if not probe.tool(("unsquashfs",), host.env):
        unpack = "unsquashfs is not installed"
    way, why = plan.way(options.one("mount"), fuse=fuse, unpack=unpack)
    return plan.Source(path, kind, way, why, offset), device


def _mount(source: plan.Source, device: int, host: plan.Host) -> tuple[int, enter.Server | None]:
    """Mount the image, nowhere yet; return its mount, and who serves it."""
    try:
        if source.way == "bind":
            return enter.directory(source.path), None
        if source.way == "fuse":
            program = probe.tool(_SERVERS, host.env)
            return enter.fuse(device, program, source.path, source.offset, host.descriptors)
        from . import extract  # noqa: PLC0415 - the last resort

        return extract.extract(probe.tool(("unsquashfs",), host.env), source.path, source.offset), None
    except OSError as error:
        raise Fail(f"cannot mount image {source.path!r}", error, "try another way with --mount") from error


def _config(root: int, path: str) -> Sidecar:
    """Return the config that travels in the image; what is wrong with it is a warning."""
    data = probe.read_config(root)
    return sidecar.config_only(data or b"{}", os.path.join(path, probe.CONFIG[1:]))


def _explain(made: plan.Plan, form: str) -> int:
    from . import explain  # noqa: PLC0415 - no rank needs it

    if form not in ("text", "json"):
        raise Fail(f"cannot explain as {form!r}", "there are text and json", status=WRONG)
    sys.stdout.write(explain.as_json(made) if form == "json" else explain.as_text(made))
    return 0
