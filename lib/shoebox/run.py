"""sh-run: read the words, join the other ranks or make what they can join, execute."""

from __future__ import annotations

import os
import sys

from . import VERSION, command, environment, execute, fail, host, join, paths, step, usage
from .facts import Caller, Peers, Request
from .fail import NOT_EXECUTABLE, NOT_RUN, Fail, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from .command import Command
    from .environment import Setting

USAGE = """\
usage: sh-run [option...] IMAGE [--] [COMMAND [ARGUMENT...]]
       sh-run [option...] --enter JOB[.STEP]|PID [--] [COMMAND [ARGUMENT...]]

Run a command in an image: a name in a store, a squashfs or SIF file, or a directory; or in a container that runs.

  -v, --volume SRC:DST[:ro]...   show the host's SRC at DST inside
      --no-home                  leave the home directory outside
      --node-cache DST:size=SIZE[,fs=ext4|xfs][,on=DIR|tmpfs]...  have an empty file system of this node's own at DST
      --env NAME[=VALUE]...      set a variable, or pass the host's
      --env-file FILE...         set the variables that a file lists
      --clearenv                 begin with none of the host's variables
      --workdir DIR              work in this directory of the inside
      --entrypoint[=PROGRAM]     begin with the image's Entrypoint, or with this
      --writable[=SIZE|DIR[:SIZE]]  let the image be written to, in memory; or keep the changes in DIR
      --device VENDOR/CLASS=NAME...  bring in a device as its CDI specification says, as nvidia.com/gpu=0
      --gpu                      bring in the host's GPU driver, by CDI where there is a specification
      --mpi[=MODE]               whose MPI: image, the image's own; host, the host's in its place; or auto
      --module NAME,...          use these of the site's modules and not its own choice, or none
      --mount WAY                how to mount a squashfs: fuse, kernel, unpack or setuid
      --image IMAGE              the image; then all the words are the command
      --join                     share mounts with what the same parent starts, as a job step does
      --no-join                  share with nobody, in a job step either
      --enter JOB[.STEP]|PID     enter the container of a job, or of a process, on this node
      --sshd[=PORT]              start the user's own sshd in the container instead of a command
      --resolve                  print the image's path, which no name that moves will change, and stop
      --explain[=FORMAT]         print the plan and its reasons as text, or as json, and stop
      --sweep                    remove what killed runs have left on this node, and stop
  -q, --quiet                    no warnings
  -h, --help                     print this
"""
_LISTS = (("volume", "SHOEBOX_VOLUME"), ("node-cache", "SHOEBOX_NODE_CACHE"), ("env", "SHOEBOX_ENV"))
_ENTERING = ("enter", "env", "env-file", "quiet", "workdir")


def run(argv: list[str], refused: int = NOT_EXECUTABLE) -> int:  # noqa: RET503 - execute does not return
    """Become the command in the image; return only after --explain. Raises Fail, or OSError if all else fails.

    A rank that joins imports nothing beyond what stands above, and opens no file of the host's but what /proc, the
    step's key and --env-file are. refused: what Slurm's plugin is to end a task with whose command is no program.
    """
    options = usage.parse(USAGE, argv, stop_at_operand=True)
    env = host.environ()
    if options.flag("sweep"):
        return _sweep(options, env)
    given = host.given(env)
    if given and _is_each_ones(options):
        return NOT_RUN  # nobody would hear why, and each task sees to it
    if options.flag("enter"):
        _enter(options, env)
    options = options.behind(_variables(options, env))
    name, words = _operands(options, env)
    if options.flag("resolve"):
        return _resolve(name, words, env)
    request = Request(options, words, list(_settings(options)), image=name)
    kept = host.descriptors(env)
    execute.tidy_descriptors([*kept, *given])
    if options.flag("sshd"):
        _begin_sshd(request, env)
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # A task of a step that we give to the plugin has the terminal, not we.
    caller = Caller(env, host.cwd(), kept, proc, filtered=host.can_type() if given else host.can_be_typed_for())
    why, shared = step.peers(options, step.whole_job(env) if given else env, join.parent)
    if shared:
        place = _place(name, caller.cwd)
        shared = [VERSION, *join.about_node(proc), *shared, *step.request(options, place, env, caller.cwd)]
    if options.flag("explain"):
        return _explain(request, caller, Peers(why, shared, join.members(shared, env) if shared else []))
    if given:
        return _give(request, caller, given, shared, refused)
    key = _key(shared, env, options) if shared else None
    joined = _join(request, caller, key) if key else None
    made = joined or _make(request, caller, key)
    if request.sshd:
        from . import sshd  # noqa: PLC0415 - few want one

        sshd.tie(request.sshd)
    execute.execute(made, filtered=caller.filtered)


def _variables(options: usage.Options, env: dict[str, str]) -> dict[str, list[str]]:
    """Return the values of options that variables hold: lists have a line for each, as files do."""
    found = {name: env.get(variable, "").split("\n") for name, variable in _LISTS}
    for name in ("writable", "mpi"):
        if not options.flag(name):
            found[name] = [env.get(f"SHOEBOX_{name.upper()}", "")]
    return {name: lines for name, values in found.items() if (lines := [line for line in values if line])}


def _enter(options: usage.Options, env: dict[str, str]) -> NoReturn:
    """Execute the command in a container that others are in. Raises Fail or OSError."""
    from . import into  # noqa: PLC0415 - no rank needs it

    unfit = sorted(name for name, _ in options.given() if name not in _ENTERING)
    if unfit:
        raise Fail(f"cannot use --{unfit[0]} with --enter", "the container is as it was made", status=fail.USAGE)
    request = Request(options, options.operands, list(_settings(options)))
    execute.tidy_descriptors([])
    filtered, cwd, shell = host.can_be_typed_for(), host.cwd(), host.shell(env)
    theirs = into.enter(options.one("enter"))
    shell = shell if os.access(shell, os.X_OK) else command.SHELL
    made = command.again(request, env, theirs, shell, cwd=cwd, has_directory=os.path.isdir)
    _warn(options, made.warnings)
    execute.execute(made, filtered=filtered)


def _begin_sshd(request: Request, env: dict[str, str]) -> None:
    """Go on as who is to become sshd. Raises Fail or OSError."""
    from . import sshd  # noqa: PLC0415 - few want one

    request.sshd = sshd.begin(request.options, list(request.command), env)
    request.command = request.sshd.words


def _resolve(name: str, words: list[str], env: dict[str, str]) -> int:
    from . import store  # noqa: PLC0415 - no rank needs it

    if words:
        raise Fail(f"cannot use {words[0]!r} with --resolve", "it runs nothing", status=fail.USAGE)
    path = store.find(name, env)
    host.image(path)
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    return 0


def _sweep(options: usage.Options, env: dict[str, str]) -> int:
    if options.operands or [name for name, _ in options.given() if name not in ("sweep", "quiet")]:
        raise Fail("cannot use anything else with --sweep", "it runs nothing", status=fail.USAGE)
    from . import helper, keep  # noqa: PLC0415 - no rank needs them

    for directory in join.own(env):
        for sweep in (join.sweep, helper.sweep, keep.sweep):
            sweep(directory)
    return 0


def _is_each_ones(options: usage.Options) -> bool:
    """Tell whether each task of a step has to see to itself: no container, or no variables, that all could share.

    What is kept in a directory, a process of ours has to see to.
    """
    alone = any(map(options.flag, ("enter", "sshd", "no-join", "clearenv", "explain", "resolve")))
    return alone or any("/" in value for value in options.all("writable"))


def _give(request: Request, caller: Caller, given: list[int], shared: list[str], refused: int) -> int:
    """Find or make the container, and leave it to Slurm's plugin. Raises Fail if each rank has to see to itself."""
    from . import handover, linux  # noqa: PLC0415 - once for a step and a node

    if not shared or _is_each_ones(request.options):  # by now SHOEBOX_WRITABLE counts, too
        return NOT_RUN
    typing = linux.typing_filter() if caller.filtered else b""
    env = caller.env
    found = None if request.options.flag("writable") else handover.found(given[1:], shared)
    if found:
        if os.path.exists(f"{paths.SITE}/site.conf"):
            from . import record  # noqa: PLC0415 - see holder

            record.again(request.image, env)
        spaces = handover.enter(given[1:])
        made = _decide(request, caller, found)
        warnings = [] if request.options.flag("quiet") else made.warnings
        handover.give(given[0], handover.record(made, env, warnings, refused) + typing, spaces, b"")
        return 0
    from . import holder  # noqa: PLC0415 - once for a job and a node

    grouped = step.has_group(host.slurp("/proc/self/cgroup"))
    os.set_inheritable(given[0], True)  # what serves the image has it, so its end is seen
    prepared = holder.prepare(request, caller)
    prepared.held = given[0]
    plan = prepared.plan
    if plan.source.way == "setuid":
        raise Fail("cannot hand over", "nobody can join in the way setuid")
    holder.tell(prepared, env)
    outer = handover.spaces(caller.proc, "user")  # nobody inside can ask for it
    left = handover.left(plan, shared, prepared.left, grouped=grouped)
    holder.make(prepared, caller.proc, env)
    warnings = [] if request.options.flag("quiet") else plan.warnings
    data = handover.record(plan.command, env, warnings, refused) + typing
    handover.give(given[0], data, outer + handover.spaces(caller.proc, "mnt", "user"), left)
    return 0


def _key(words: list[str], env: dict[str, str], options: usage.Options) -> join.Key | None:
    """Open the key; without one we go on alone."""
    try:
        return join.find(words, env)
    except Fail as error:
        _warn(options, [f"not joining other ranks: {error}"])
        return None


def _join(request: Request, caller: Caller, key: join.Key) -> Command | None:
    """Enter the container that others are in, and decide on the command as it looks from there; None if there is none.

    Raises Fail or OSError.
    """
    found = join.enter(key)
    if not found:
        return None
    made = _decide(request, caller, found)
    _warn(request.options, made.warnings)
    return made


def _decide(request: Request, caller: Caller, left: step.Holder) -> Command:
    """Decide on the command as it looks from the container, which we are in. Raises Fail."""
    there, cwd = os.path.isdir, caller.cwd
    return command.decide(
        request, caller.env, left.config, home=left.home, cwd=cwd, has_directory=there, rules=left.rules
    )


def _make(request: Request, caller: Caller, key: join.Key | None) -> Command:
    """Make the container, be inside, and let others join. Raises Fail or OSError."""
    from . import holder  # noqa: PLC0415 - most ranks join

    prepared = holder.prepare(request, caller)
    prepared.step = os.path.basename(key.path) if key else ""
    _warn(request.options, prepared.plan.warnings)
    holder.tell(prepared, caller.env, key)
    if request.sshd:
        from . import sshd  # noqa: PLC0415 - few want one

        sshd.configure(request.sshd, prepared.plan)
    proc = caller.proc
    if prepared.supervised:
        from . import supervise  # noqa: PLC0415 - few do

        supervise.begin(prepared, key)
        os.close(proc)
        proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    holder.make(prepared, proc, caller.env)
    if key:
        try:
            join.publish(key, proc, prepared.left)
            join.sweep(key.directory, key.words, os.path.basename(key.path))
        except OSError as error:
            _warn(request.options, [str(Fail(f"other ranks cannot join: {key.path!r}", error))])
    return prepared.plan.command


def _warn(options: usage.Options, warnings: list[str]) -> None:
    if not options.flag("quiet"):
        for warning in warnings:
            say(f"warning: {warning}")


def _place(name: str, cwd: str) -> str:
    """Return an image's name as it means the same in every directory; see store.find.

    Whether one with a slash is a path is not looked up: each rank would ask a file system.
    """
    return os.path.join(cwd, name) if name.endswith(paths.IMAGES) or "/" in name else name


def _operands(options: usage.Options, env: dict[str, str]) -> tuple[str, list[str]]:
    """Return the image's name and the command."""
    words = options.operands
    default = options.one("image") or env.get("SHOEBOX_IMAGE", "")
    if words and (not default or words[1:2] == ["--"]):
        return words[0], words[2:] if words[1:2] == ["--"] else words[1:]
    if not default:
        raise Fail("no IMAGE given", todo="see -h", status=fail.USAGE)
    return default, words


def _settings(options: usage.Options) -> Iterator[Setting]:
    for path in options.all("env-file"):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise Fail(f"cannot read {path!r}", error) from error
        yield from environment.read_file(os.fsdecode(data), path)
    for text in options.all("env"):
        yield environment.setting(text)


def _explain(request: Request, caller: Caller, peers: Peers) -> int:
    from . import explain, holder  # noqa: PLC0415 - no rank needs it

    form = request.options.one("explain", "text")
    if form not in ("text", "json"):
        raise Fail(f"cannot explain as {form!r}", "there are text and json", status=fail.USAGE)
    made = holder.prepare(request, caller).plan
    sys.stdout.write(explain.as_json(made, peers) if form == "json" else explain.as_text(made, peers))
    return 0
