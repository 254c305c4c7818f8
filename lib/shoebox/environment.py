"""Environments: which variables a command inside gets, and why. Pure; values are kept to the byte."""

from __future__ import annotations

from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    Setting = tuple[str, str | None, str]  # name, value (None: the host's), why
    Rule = tuple[str, str, str, str]  # what to do (set, prepend, append, unset), name, value, why

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where an MPI lies that is not where it was built for.
MOVED = {
    "OPAL_PREFIX": "the host's Open MPI",
    "OPAL_LIBDIR": "the host's Open MPI",
    "OPAL_PKGLIBDIR": "the host's Open MPI",
    "PMIX_INSTALL_PREFIX": "the host's PMIx",
    "PMIX_PREFIX": "the host's PMIx",
}
# What points programs at files of the host that do not fit the image, or are not there at all.
_FOREIGN = {
    **MOVED,
    "BASH_ENV": "a file that shells would run",
    "ENV": "a file that shells would run",
    "PERL5LIB": "the host's Perl",
    "PYTHONHOME": "the host's Python",
    "PYTHONPATH": "the host's Python",
}
_FOREIGN_PREFIXES = (
    ("BASH_FUNC_", "a function of the host's shell"),
    ("CONDA_", "the host's Conda"),
    ("LD_", "the host's libraries"),
    ("LMOD_", "the host's modules"),
    ("MODULE", "the host's modules"),
    ("R_LIBS", "the host's R"),
)

# Variables that shells have for themselves: some cannot be unset, the others would mean something else afterwards.
_SHELLS = frozenset(
    (
        *("BASHOPTS", "BASHPID", "BASH_VERSINFO", "EUID", "GID", "IFS", "OLDPWD", "OPTARG", "OPTIND", "PPID", "PWD"),
        *("SHELLOPTS", "SHLVL", "UID", "_"),
    )
)
_OURS = ("PATH", "PYTHONNOUSERSITE")  # whatever the host has, these are not its
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")


HOST = "the host"


class Variable:
    """A variable and the reason for it; a value of None says that it stays outside."""

    __slots__ = ("name", "value", "why")

    def __init__(self, name: str, value: str | None, why: str) -> None:
        """Hold the parts."""
        self.name = name
        self.value = value
        self.why = why


def build(
    host: Mapping[str, str],
    image: Mapping[str, str],
    settings: Sequence[Setting],
    *,
    rules: Sequence[Rule] = (),
    clear: bool,
    fixed: Mapping[str, str],
    tmpdir_visible: bool,
) -> list[Variable]:
    """Return the variables inside, and those that stay outside, sorted by name.

    In this order, the last wins: the host's (unless clear), the image's, fixed (HOME and the like, unless the host has
    decided), rules of the site's, settings: (name, value, why), where None passes the host's value, whatever it
    is.
    """
    found = {} if clear else {name: _judge(name, value, tmpdir_visible=tmpdir_visible) for name, value in host.items()}
    found["PATH"] = Variable("PATH", PATH, "the image names none; the host's leads to the host's programs")
    found["PYTHONNOUSERSITE"] = Variable("PYTHONNOUSERSITE", "1", "packages in ~/.local are the host's Python's")
    for name, value in image.items():
        found[name] = Variable(name, value, "the image")
    for name, value in fixed.items():
        found[name] = Variable(name, value, "sh-run")
    for rule in rules:
        found[rule[1]] = _ruled(found.get(rule[1]), rule)
    for name, given, why in settings:
        passed = host.get(name) if given is None else given
        if passed is not None:
            found[name] = Variable(name, passed, why)
    return sorted(found.values(), key=lambda variable: variable.name)


def _ruled(before: Variable | None, rule: Rule) -> Variable:
    """Return what a rule of the site's makes of a variable; values are joined as in PATH."""
    operator, name, value, why = rule
    if operator == "unset":
        return Variable(name, None, why)
    if operator == "set" or before is None or not before.value:
        return Variable(name, value, why)
    joined = f"{value}:{before.value}" if operator == "prepend" else f"{before.value}:{value}"
    return Variable(name, joined, f"{before.why}; {why}")


def changes(host: Mapping[str, str], variables: Sequence[Variable]) -> tuple[list[str], list[str]]:
    """Return what makes `build`'s variables of the host's, and of those of the host's other tasks: (unset, set).

    unset: names, and patterns PREFIX*; set: NAME=VALUE, to be done afterwards.
    """
    unset = [*_FOREIGN, *(f"{prefix}*" for prefix, _ in _FOREIGN_PREFIXES)]
    unset += [variable.name for variable in variables if variable.value is None and variable.name not in _FOREIGN]
    changed = [
        f"{variable.name}={variable.value}"
        for variable in variables
        if variable.value is not None
        and (variable.why != HOST or host.get(variable.name) != variable.value or _is_foreign(variable.name))
    ]  # also what is the same here by chance: a task's prolog may have changed it there
    return unset, changed


def _is_foreign(name: str) -> bool:
    return name in _FOREIGN or name.startswith(tuple(prefix for prefix, _ in _FOREIGN_PREFIXES))


def sourcing(
    patterns: Sequence[str],
    variables: Sequence[Variable],
    host: Collection[str],
    rules: Sequence[Rule],
    ours: Sequence[str],
) -> str:
    """Return a shell's script that sources an image's files, then executes its arguments.

    The files do not see the host's variables, as with Apptainer: a line such as FOO=${FOO:-1} is to mean 1 whatever the
    host has. host: their names. rules: the site's; ours: names of what sh-run and the user set; both come after the
    files, in this order. Values stay in the environment: all the machine may read a command line.
    """
    there = [v.name for v in variables if v.value is not None and _is_name(v.name) and v.name not in _SHELLS]
    last = [name for name in there if name in ours]
    hidden = [name for name in there if name in host and name not in last and name not in _OURS]
    lines = [f"_sh_{at}=${name}; unset {name}" for at, name in enumerate(hidden)]
    lines += [f"_sh_last_{at}=${name}" for at, name in enumerate(last)]
    lines.append(f'for _sh_file in {" ".join(patterns)}; do [ -f "$_sh_file" ] && . "$_sh_file"; done')
    lines += [f'[ "${{{name}+x}}" ] || export {name}="$_sh_{at}"' for at, name in enumerate(hidden)]
    lines += [line for rule in rules if _is_name(rule[1]) for line in [_rule_line(rule)]]
    lines += [f'export {name}="$_sh_last_{at}"' for at, name in enumerate(last)]
    return "\n".join([*lines, 'exec "$@"'])


def _rule_line(rule: Rule) -> str:
    """Return a rule of the site's as a shell does it; what is joined already stays as it is."""
    operator, name, value, _ = rule
    text = "'" + value.replace("'", "'\\''") + "'"
    if operator == "unset":
        return f"unset {name}"
    if operator == "set":
        return f"export {name}={text}"
    joined = f'{text}"${{{name}:+:${name}}}"' if operator == "prepend" else f'"${{{name}:+${name}:}}"{text}'
    return f'case ":${name}:" in *:{text}:*) ;; *) export {name}={joined};; esac'


def _is_name(text: str) -> bool:
    """Tell whether a shell can have a variable of this name."""
    return not set(text) - _LETTERS - set("0123456789") and text[:1] in _LETTERS


def _judge(name: str, value: str, *, tmpdir_visible: bool) -> Variable:
    why = _FOREIGN.get(name) or next((why for prefix, why in _FOREIGN_PREFIXES if name.startswith(prefix)), "")
    if name == "TMPDIR" and not tmpdir_visible:
        why = "that directory is not inside"
    return Variable(name, None, why) if why else Variable(name, value, HOST)


def known(host: Mapping[str, str]) -> dict[str, str]:
    """Return those of the host's variables that mean something inside."""
    return {name: value for name, value in host.items() if _judge(name, value, tmpdir_visible=True).value is not None}


def setting(text: str) -> Setting:
    """Read --env's NAME=VALUE or NAME. Raises Fail."""
    return (*_pair(text, "--env"), "--env")


def read_file(data: str, path: str) -> Iterator[Setting]:
    """Read an --env-file: lines of NAME=VALUE or NAME, blank ones and those with # first left out; values as they are.

    If there is a NUL in it, it is what `env -0` writes, so that values may have newlines. Raises Fail.
    """
    lines = data.split("\0") if "\0" in data else [line for line in data.split("\n") if not line.startswith("#")]
    for line in lines:
        if line.strip():
            yield (*_pair(line, path), f"--env-file {path}")


def _pair(text: str, where: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not name or "\0" in name:
        raise Fail(f"cannot use {text!r} of {where}", "it is not NAME=VALUE or NAME", status=USAGE)
    return name, value if equals else None
