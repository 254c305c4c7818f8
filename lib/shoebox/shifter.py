"""shifter: Shifter's words, said to sh-run in this process."""

from __future__ import annotations

import os

from . import linux, shifterwords, usage
from . import run as sh_run
from .fail import NOT_EXECUTABLE, NOT_FOUND, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

USAGE = """\
usage: shifter [option...] [--] [COMMAND [ARGUMENT...]]

Run a command in an image, or a shell, by sh-run, with the words and the variables of Shifter.

  -i, --image IMAGE              docker:REFERENCE (the type may be left out), id:HEX, custom:NAME or local:PATH
  -V, --volume SRC:DST[:ro][;SRC:DST...]...  show the host's SRC at DST inside
  -e, --env NAME[=VALUE]...      set a variable, or pass the host's
      --env-file FILE...         set the variables that a file lists
  -E, --clearenv                 begin with none of the host's variables
  -w, --workdir DIR              work in this directory of the inside
      --entrypoint[=PROGRAM]     begin with the image's Entrypoint, or with this
  -m, --module NAME,...          use these of the site's modules and not its own choice, or none
      --resolve                  print the image's path, which no tag that moves will change, and stop
  -v, --verbose                  taken and ignored: sh-run --explain tells more
  -h, --help                     print this
"""
_SHELL = "/bin/sh"
_OWN_SHELL = '[ -x "$0" ] && exec "$0"; exec /bin/sh'


def run(argv: list[str]) -> int:
    """Become the command in the image. Raises Fail, and OSError."""
    executed = linux.executed()
    script = executed if executed in argv[:2] else ""  # else it is ourselves
    try:
        if os.environ.get("SHOEBOX_VOLUME"):  # Slurm's plugin passes on what users of Shifter write there
            os.environ["SHOEBOX_VOLUME"] = "\n".join(shifterwords.volumes(os.environ["SHOEBOX_VOLUME"].split("\n")))
        return sh_run.run(translate(shifterwords.unpacked(argv, script), os.environ, script), NOT_FOUND)
    except Fail as error:
        if error.status == NOT_EXECUTABLE:  # Shifter has one status for all that execve refuses
            error.status = NOT_FOUND
        raise


def translate(argv: list[str], env: Mapping[str, str], script: str = "") -> list[str]:
    """Return sh-run's words for shifter's. script: the file whose `#!` line names shifter, or "". Raises Fail."""
    options = usage.parse(USAGE, argv, stop_at_operand=True, loose=True)
    image, request = shifterwords.wanted(options.one("image"), env)
    name = shifterwords.name(image)
    if options.flag("resolve"):
        return ["--resolve", f"--image={name}"]
    kind, tag = shifterwords.told(image)
    told = {"IMAGEREQUEST": request, "IMAGETYPE": kind, "IMAGE": tag, "RUNTIME": "1"}
    words = [f"--env=SHIFTER_{key}={value}" for key, value in told.items()] + [f"--env=SHOEBOX_IMAGE={name}"]
    if script.startswith("/") and ":" not in script:  # a batch system's copy lies where nobody else looks
        words.append(f"--volume={script}:{script}:ro")
    given = options.all("volume") or [shifterwords.variable(env, "SHIFTER_VOLUME")]
    words += [f"--volume={volume}" for volume in shifterwords.volumes(given)]
    module = options.one("module") or shifterwords.variable(env, "SHIFTER_MODULE")
    words += [f"--module={module}"] if module else []
    for option, values in options.given():
        if option in ("env", "env-file", "workdir", "entrypoint", "clearenv"):
            words += [f"--{option}={value}" for value in values] or [f"--{option}"]
    return [*words, "--", name, "--", *_command(options, env.get("SHELL", ""), script)]


def _command(options: usage.Options, shell: str, script: str) -> list[str]:
    """Return the command: without words a shell, which is the user's own if the image has it."""
    command = options.operands
    if options.flag("entrypoint"):
        return command
    if not command:
        return [_SHELL, "-c", _OWN_SHELL, shell] if shell.startswith("/") else [_SHELL]
    return [_SHELL, *command] if script and command[0] == script else command
