"""Images of other tools: what each wrote of how to run it. Pure: functions that look and read in, a Config out.

Singularity, Apptainer: /.singularity.d/env/*.sh and runscript, as their exec and run take them (apptainer's
internal/pkg/util/fs/files/action_script.sh); before 2.3, /environment and /singularity. Charliecloud: /ch/environment
and /ch/metadata.json (ch-run(1), --set-env). enroot: /etc/environment and /etc/rc (its doc/image-format.md). Shifter:
ID.meta beside ID.squashfs (imagegw/shifter_imagegw/converters.py writes it, src/ImageData.c and utility.c read it).
"""

from __future__ import annotations

import os

from .command import Config
from .environment import PATH, known
from .facts import DIRECTORY, FILE
from .fail import Fail
from .sidecar import config_only

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Kind = Callable[[str], str]  # of what the image has at a path: DIRECTORY, FILE or MISSING
    Read = Callable[[str], bytes]  # a file of the image's; b"" if it is not there

_SINGULARITY = "/.singularity.d"
_SHELLS = ("/bin/bash", "/bin/sh")  # bash first: Apptainer's own shell takes what bash takes, so scripts rely on it
_ENROOT = ".sqsh"
_RC = "/etc/rc"
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}  # of Python's repr, besides those that stand for themselves


def recognise(path: str, env: Mapping[str, str], kind: Kind, read: Read, notes: list[str]) -> Config:
    """Return what an image says of itself in the way of another tool; an empty Config if it does in none.

    path: the image's. env: the host's variables, of the process that makes the container. notes: gets what is amiss.
    """
    if kind(_SINGULARITY) == DIRECTORY:
        return _singularity(path, f"{_SINGULARITY}/env/*.sh", f"{_SINGULARITY}/runscript", kind, notes)
    if kind("/singularity") == FILE and kind("/environment") == FILE:
        return _singularity(path, "/environment", "/singularity", kind, notes)
    if kind("/ch/environment") == FILE:
        return _charliecloud(env, read, notes)
    if is_enroot(path, kind):
        variables = enroot(os.fsdecode(read("/etc/environment")), env)
        return Config(variables, ["/bin/sh", _RC], form=("enroot", f"its name ends in {_ENROOT}, and it has {_RC}"))
    return Config({})


def _singularity(path: str, scripts: str, runscript: str, kind: Kind, notes: list[str]) -> Config:
    shell = next((shell for shell in _SHELLS if kind(shell) == FILE), "")
    if not shell:
        notes.append(f"the image's {scripts} are not sourced: it has no shell")
    name = os.path.basename(path)
    return Config(
        {
            "APPTAINER_CONTAINER": path,
            "APPTAINER_NAME": name,
            "SINGULARITY_CONTAINER": path,
            "SINGULARITY_NAME": name,
        },
        [runscript] if kind(runscript) == FILE else [],
        scripts=[shell, scripts] if shell else [],
        form=("singularity", f"it has {os.path.dirname(runscript).rstrip('/') or runscript}"),
    )


def _charliecloud(env: Mapping[str, str], read: Read, notes: list[str]) -> Config:
    where = ""
    try:
        data = read("/ch/metadata.json")
        cwd = config_only(data, "/ch/metadata.json").config.get("cwd") if data else ""
        where = cwd if isinstance(cwd, str) and cwd.startswith("/") and cwd.isprintable() else ""
    except Fail as error:
        notes.append(str(error))
    variables = charliecloud(os.fsdecode(read("/ch/environment")), env)
    form = ("charliecloud", "it has /ch/environment")
    return Config(variables, working_dir=os.path.normpath(where) if where else "", form=form)


def charliecloud(text: str, env: Mapping[str, str]) -> dict[str, str]:
    """Read /ch/environment as `ch-run --set-env` does: lines of NAME=VALUE, in single quotes or not.

    An item between colons that begins with $ is a variable, of an earlier line or of the host's, and goes if that is
    empty or not set. Lines that set nothing are passed over: there ch-run would stop.
    """
    found: dict[str, str] = {}
    outside = {**known(env), "PATH": PATH}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if not name or not equals or "\0" in line:
            continue
        if len(value) >= 2 and value[0] == value[-1] == "'":
            value = value[1:-1]
        items = [found.get(i[1:], outside.get(i[1:], "")) if i[:1] == "$" else i for i in value.split(":")]
        kept = [item for item, was in zip(items, value.split(":")) if item or was[:1] != "$"]
        found[name] = ":".join(kept)
    return found


def enroot(text: str, env: Mapping[str, str]) -> dict[str, str]:
    """Read enroot's /etc/environment as its src/common.sh does (envsubst, then envfmt): ${NAME} is the host's."""
    outside = known(env)
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = _substituted(line, outside).lstrip().partition("=")
        if not equals or not name or set(name) - _NAME or name[0].isdigit() or name.startswith("ENROOT_"):
            continue
        bare = value.rstrip()
        if len(bare) >= 2 and bare[0] in "\"'" and bare[-1] in "\"'":
            value = bare[1:-1]
        if "\0" not in value:
            found[name] = value
    return found


def enroot_config(text: str) -> tuple[Config, list[str]]:
    """Return what an image of enroot says, by its /etc/environment, to whoever will not see the name of its file.

    Also the names of variables that are left out, as they are made of the host's.
    """
    lines = text.split("\n")
    fixed = [line for line in lines if _substituted(line, {}) == line]
    variables = enroot("\n".join(fixed), {})
    left = [line.partition("=")[0].strip() for line in lines if line not in fixed]
    return Config(variables, ["/bin/sh", _RC], form=("enroot", "")), [name for name in left if name not in variables]


def is_enroot(path: str, kind: Kind) -> bool:
    """Tell whether an image of this path is enroot's.

    Debian has PAM's /etc/environment, BSD an /etc/rc: only the name that `enroot import` gives tells.
    """
    return path.endswith(_ENROOT) and kind(_RC) == FILE


def as_oci(said: Config) -> bytes:
    """Return as an OCI config what needs nothing of the host: variables, commands, the directory."""
    import json  # noqa: PLC0415 - sh-run writes none

    parts = {
        "Env": [f"{name}={value}" for name, value in said.env.items()],
        "Entrypoint": list(said.entrypoint),
        "Cmd": list(said.cmd),
        "WorkingDir": said.working_dir,
    }
    return json.dumps({"config": {key: value for key, value in parts.items() if value}}).encode()


def _substituted(line: str, env: Mapping[str, str]) -> str:
    """Replace ${NAME} by the variable, "" if it is not set; all else stays, a $ without braces too."""
    first, *rest = line.split("${")
    for piece in rest:
        name, brace, more = piece.partition("}")
        is_name = brace and name and not set(name) - _NAME and not name[0].isdigit()
        first += env.get(name, "") + more if is_name else "${" + piece
    return first


def shifter(data: bytes, path: str, uid: int, groups: Collection[int]) -> Config:
    """Read the .meta beside an image of Shifter's store, at path. Raises Fail if its lists leave the caller out.

    groups: the caller's, the primary one included. As in Shifter, lists that name somebody leave out all others, root
    too; and of a key that is there twice the last counts, but for ENV.
    """
    keys: dict[str, str] = {}
    env: dict[str, str] = {}
    for key, value in shifter_pairs(os.fsdecode(data), ":"):
        keys[key] = value
        name, equals, rest = value.partition("=")
        if key == "ENV" and name and equals and "\0" not in value:
            env[name] = rest
    users, allowed = (_ids(keys.get(key, "")) for key in ("USERACL", "GROUPACL"))
    if (users or allowed) and uid not in users and not allowed & set(groups):
        todo = "ask who pulled it, or whoever runs the image gateway"
        raise Fail(f"cannot use image {path!r}", "it is not for you: see USERACL and GROUPACL in its .meta", todo)
    where = keys.get("WORKDIR", "")
    form = ("shifter", "a .meta lies beside it")
    where = os.path.normpath("/" + where.lstrip("/")) if where else ""
    return Config(env, _words(keys.get("ENTRY", "")), _words(keys.get("CMD", "")), where, form=form)


def shifter_lists(data: bytes) -> bool:
    """Tell whether a .meta has lists that name somebody."""
    keys = dict(shifter_pairs(os.fsdecode(data), ":"))
    return any(_ids(keys.get(key, "")) for key in ("USERACL", "GROUPACL"))


def shifter_pairs(text: str, separator: str) -> list[tuple[str, str]]:
    """Return keys and values as Shifter reads its files: a line that ends in a backslash goes on in the next.

    Lines without the separator are nothing, nor are those that begin with #.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith("#"):
            continue
        if lines and lines[-1].endswith("\\"):
            lines[-1] = f"{lines[-1][:-1].rstrip()} {line.strip()}"
        elif separator in line:
            lines.append(line.strip())
    pairs = (line.partition(separator) for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _ids(text: str) -> set[int]:
    """Read a list of numbers; what is none stands for nobody, so that a damaged list lets nobody in."""
    return {int(word) if word.isdecimal() and len(word) < 11 else -1 for word in text.replace(",", " ").split()}


def _words(text: str) -> list[str]:
    """Read ENTRY or CMD: the list as Python writes it, u'' or '', or one word as it is. What is neither is none."""
    if not text or "\0" in text:
        return []
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    found = []
    rest = text[1:-1].strip()
    while rest:
        rest = rest[1:] if rest[0] == "u" else rest
        quote, word, at = rest[0] if rest else "", "", 1
        if quote not in ("'", '"'):
            return []
        while at < len(rest) and rest[at] != quote:
            if rest[at] == "\\" and at + 1 < len(rest):
                at += 1
                word += _ESCAPES.get(rest[at], rest[at])
            else:
                word += rest[at]
            at += 1
        if at >= len(rest):
            return []
        found.append(word)
        rest = rest[at + 1 :].lstrip(", ")
    return found
