"""Commands: the words to execute, the directory and the variables they get, and why. Pure.

Who makes a container and who joins one decide it here, each for itself; has_directory tells what the inside has.
"""

from __future__ import annotations

import os

from . import environment
from .fail import USAGE, Fail
from .paths import under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .facts import Request
    from .sidecar import Sidecar


SHELL = "/bin/sh"
# Of who enters a container: the terminal is not the one that those in it have.
_TERMINAL = ("TERM", "COLORTERM", "DISPLAY", "XAUTHORITY")
_RANKS = ("PMI_", "PMIX_")  # who a rank is; another process must not be taken for it


class Config:
    """What an image says of how to run it, as os writes text; working_dir is "" or an absolute path.

    scripts: a shell of the image, then patterns of files that it sources before any command; or nothing. form: what
    tool wrote all this, and how we know; ("", "") if it is an OCI config.
    """

    __slots__ = ("cmd", "entrypoint", "env", "form", "scripts", "working_dir")

    def __init__(
        self,
        env: Mapping[str, str],
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        working_dir: str = "",
        *,
        scripts: Sequence[str] = (),
        form: tuple[str, str] = ("", ""),
    ) -> None:
        """Hold the parts."""
        self.scripts = scripts
        self.form = form
        self.env = env
        self.entrypoint = entrypoint
        self.cmd = cmd
        self.working_dir = working_dir


class Command:
    """What is executed: args and cwd, each with its reason; variables; warnings, if the directory is not the one.

    prefix: words before args, a shell of the image that sources its scripts and then executes args; or none.
    """

    __slots__ = ("args", "cwd", "prefix", "variables", "warnings")

    def __init__(
        self,
        args: tuple[list[str], str],
        cwd: tuple[str, str],
        variables: list[environment.Variable],
        warnings: list[str],
        prefix: Sequence[str] = (),
    ) -> None:
        """Hold the parts."""
        self.prefix = prefix
        self.args = args
        self.cwd = cwd
        self.variables = variables
        self.warnings = warnings

    @property
    def words(self) -> list[str]:
        """All the words to execute."""
        return [*self.prefix, *self.args[0]]


def config(image: Sidecar) -> Config:
    """Return what a sidecar says, whatever the locale's encoding."""
    own = _native(image.working_dir)
    return Config(
        {_native(name): _native(value) for name, value in image.env.items()},
        [_native(word) for word in image.entrypoint],
        [_native(word) for word in image.cmd],
        os.path.normpath("/" + own.lstrip("/")) if own else "",
    )


def decide(
    request: Request,
    env: Mapping[str, str],
    said: Config,
    *,
    home: str,
    cwd: str,
    has_directory: Callable[[str], bool],
    rules: Sequence[environment.Rule] = (),
) -> Command:
    """Decide all of it. env, home, cwd: the caller's; rules: the site's. Raises Fail."""
    where, warnings = _cwd(request, cwd, said, has_directory)
    tmpdir = env.get("TMPDIR", "")
    fixed = {"HOME": home, "PWD": where[0], "SHOEBOX_RUNTIME": "1"}
    variables = environment.build(
        env,
        said.env,
        request.settings,
        rules=rules,
        clear=request.options.flag("clearenv"),
        fixed=fixed,
        tmpdir_visible=tmpdir.startswith("/") and has_directory(tmpdir),
    )
    prefix: list[str] = []
    if said.scripts:
        ours = [*fixed, *(name for name, _, _ in request.settings)]
        script = environment.sourcing(said.scripts[1:], variables, env.keys() - said.env.keys(), rules, ours)
        prefix = [said.scripts[0], "-c", script, "sh-run"]  # the last is what the shell calls itself in its errors
    return Command(_args(request, said), where, variables, warnings, prefix)


def again(
    request: Request,
    env: Mapping[str, str],
    theirs: Mapping[str, str],
    shell: str,
    *,
    cwd: str,
    has_directory: Callable[[str], bool],
) -> Command:
    """Decide for who enters a container. env, cwd: the caller's; theirs: the environment of who is in it.

    shell: for want of a command. Raises Fail.
    """
    where, warnings = _cwd(request, cwd, Config({}, working_dir=theirs.get("PWD", "")), has_directory)
    found = {name: value for name, value in theirs.items() if not name.startswith(_RANKS)}
    found.update({name: env[name] for name in _TERMINAL if name in env})
    found.update({"PWD": where[0], "SHELL": shell})
    for name, given, _ in request.settings:
        value = env.get(name) if given is None else given
        if value is not None:
            found[name] = value
    variables = [environment.Variable(name, value, "the container") for name, value in found.items()]
    return Command((list(request.command) or [shell], "the command line, or a shell"), where, variables, warnings)


def _cwd(
    request: Request, cwd: str, said: Config, has_directory: Callable[[str], bool]
) -> tuple[tuple[str, str], list[str]]:
    """Return the directory to work in and why (the one asked for, ours, the image's, or the root), and a warning."""
    asked, own = request.options.one("workdir"), said.working_dir
    if request.options.flag("workdir"):
        if not asked.startswith("/"):
            raise Fail(f"cannot work in {asked!r}", "--workdir needs an absolute path", status=USAGE)
        if not has_directory(asked):
            raise Fail(f"cannot work in {asked!r}", "there is no such directory inside")
        return (asked, "--workdir"), []
    if cwd and has_directory(cwd):
        return (cwd, "the current directory"), []
    # What /proc shows inside is not the image's: WorkingDir=/proc/self/fd/7 has been a way out of other runners.
    if own and not under(own, "/proc") and has_directory(own):
        return (own, "the image's WorkingDir; the current directory is not inside"), []
    note = f"the current directory {cwd!r} is not inside the image: working in '/'"
    return ("/", "the current directory is not inside, and the image names none that is"), [note]


def _args(request: Request, said: Config) -> tuple[list[str], str]:
    """Return the words to execute, and why these."""
    options, command = request.options, list(request.command)
    if options.one("entrypoint"):
        return [options.one("entrypoint"), *command], "--entrypoint and the command line"
    if options.flag("entrypoint"):
        if not said.entrypoint:
            raise Fail("cannot use --entrypoint", "the image has none", "name a command")
        return [*said.entrypoint, *(command or said.cmd)], "the image's Entrypoint"
    if command:
        return command, "the command line"
    if said.entrypoint or said.cmd:
        return [*said.entrypoint, *said.cmd], "the image's Entrypoint and Cmd"
    return [SHELL], "neither the command line nor the image names a command"


def _native(text: str) -> str:
    """Return text from JSON as os writes the same bytes."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))
