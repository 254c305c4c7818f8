"""What a site's administrators decided: site.conf and modules. Pure: texts in, mounts wanted and environment out.

The format is site.conf(5)'s: sections of fstab(5) lines, of NAME=VALUE lines and of settings. sh-run imports this when
there is such a file, so what no run needs is looked at by siteconf.py.
"""

from __future__ import annotations

from .facts import Wish
from .fail import USAGE, Fail
from .paths import under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .environment import Rule
    from .identity import Person

    Read = Callable[[str], "str | None"]  # a path's text, None if there is no such file

FILE, MODULES, SUFFIX = "site.conf", "modules.d", ".conf"
NONE = "none"  # the word for no module at all
WAYS = ("fuse", "kernel")
_SECTIONS = ("mounts", "environment", "settings")
_SETTINGS = {
    False: (
        *("way", "modules", "deny-volume", "sshd-interface", "sshd-options", "mpi", "usage", "grace", "expire"),
        *("account", "conversions", "turn-limit", "import", "import-size", "pull-size"),
        *("node-cache-on", "node-cache-size"),
    ),
    True: ("description", "conflicts", "mpi"),
}  # of a module?
# syslog.h's, from LOG_USER on.
FACILITIES = {"user": 1, "daemon": 3, "authpriv": 10, **{f"local{number}": 16 + number for number in range(8)}}
_OPTIONS = ("bind", "rbind", "defaults", "ro", "rw", "nofail")
_OPERATORS = ("prepend", "append", "unset")
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))  # fstab(5); the backslash last
NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.+-")


class Entry:
    """A line of [mounts], not yet anybody's."""

    __slots__ = ("nofail", "readonly", "source", "target", "where", "why")

    def __init__(self, source: str, target: str, options: Iterable[str], why: str, where: str) -> None:
        """Hold the parts. why: for --explain; where: `FILE:LINE`, for errors."""
        self.source = source
        self.target = target
        self.readonly = "ro" in options
        self.nofail = "nofail" in options
        self.why = why
        self.where = where


class Part:
    """What one file says; settings: key to (value, `FILE:LINE`)."""

    __slots__ = ("mounts", "rules", "settings")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.mounts: list[Entry] = []
        self.rules: list[Rule] = []
        self.settings: dict[str, tuple[str, str]] = {}

    def words(self, key: str) -> list[str]:
        """Return a setting that is a list."""
        return self.settings.get(key, ("", ""))[0].replace(",", " ").split()

    def one(self, key: str) -> str:
        """Return a setting, "" if it is not made."""
        return self.settings.get(key, ("", ""))[0]


class Site:
    """What site.conf and the modules in use come to.

    sshd_interface: for --sshd, "" for loopback; sshd_options: (keyword, value) of sshd_config(5).
    way: to mount, preferred, or "". deny: paths that no volume may show or cover. modules: the names of those in use.
    mpi: where the host has one, as the last file says that names any. usage: where a run leaves a line: a directory,
    one of FACILITIES, or "".
    """

    __slots__ = (
        *("_caches", "_entries", "deny", "modules", "mpi", "rules", "sshd_interface", "sshd_options", "usage", "way"),
    )

    def __init__(self, own: Part, modules: list[tuple[str, Part]]) -> None:
        """Put the parts together: the site's first, then the modules' in the order asked for."""
        parts = [own] + [part for _, part in modules]
        self._entries = [entry for part in parts for entry in part.mounts]
        self.rules = [rule for part in parts for rule in part.rules]
        self.way = own.one("way")
        self._caches = [own.settings.get(f"node-cache-{key}", ("", "")) for key in ("on", "size")]
        self.usage = "" if own.one("usage") == NONE else own.one("usage")
        self.deny = own.words("deny-volume")
        self.mpi = next((words for part in reversed(parts) if (words := part.words("mpi"))), [])
        self.modules = [name for name, _ in modules]
        self.sshd_interface = own.one("sshd-interface")
        self.sshd_options = [(name, value) for name, _, value in _sshd_options(own.one("sshd-options"))]

    def wishes(self, person: Person) -> list[Wish]:
        """Return the mounts wanted for somebody. Raises Fail for a variable that a mount cannot have."""
        return [
            Wish(
                _expand(entry.source, person, entry.where),
                _target(_expand(entry.target, person, entry.where), entry.where),
                entry.why,
                readonly=entry.readonly,
                asked=True,
                optional=entry.nofail,
            )
            for entry in self._entries
        ]

    def node_caches(self, person: Person) -> tuple[list[str], tuple[str, str]]:
        """Return where node caches may lie, the default first, and their sizes as set, and where so. Raises Fail."""
        (on, where), sizes = self._caches
        return [_expand(place, person, where) for place in on.replace(",", " ").split()], sizes

    def forbid(self, what: str, names: Iterable[str]) -> None:
        """Refuse a volume, or what is like one, if one of its names meets a denied path. Raises Fail.

        what: what cannot be used then; names: links followed or not. A name above a denied path meets it, too: it would
        show that, or cover it.
        """
        for name in names:
            for path in self.deny:
                if under(name, path) or under(path, name):
                    raise Fail(what, f"{path!r} is not for volumes at this site", "choose another path")


def load(directory: str, asked: str, read: Read) -> Site | None:
    """Read site.conf and the modules in use; None if there is neither. Raises Fail.

    directory: of the site's files. asked: names separated by commas, "" for the site's own choice, `none` for none.
    """
    path = f"{directory}/{FILE}"
    text = read(path)
    if text is None and asked in ("", NONE):
        return None
    own = parse(text or "", path)
    wanted = [] if asked == NONE else list(dict.fromkeys(asked.split(",") if asked else own.words("modules")))
    modules = []
    for name in wanted:
        if not is_name(name) or name == NONE:
            raise Fail(f"no such module: {name!r}", "a name has letters, digits and _.+-", status=USAGE)
        place = f"{directory}/{MODULES}/{name}{SUFFIX}"
        text = read(place)
        if text is None:
            raise Fail(f"no such module: {name!r}", f"there is no {place!r}", "sh-doctor lists those of this site")
        modules.append((name, parse(text, place, name)))
    for name, other in conflicts(modules):
        raise Fail(f"cannot use module {name!r} with {other!r}", f"{name!r} conflicts with it", "leave one out")
    return Site(own, modules)


def conflicts(modules: Iterable[tuple[str, Part]]) -> Iterator[tuple[str, str]]:
    """Yield (module, another of these that it conflicts with)."""
    loaded = list(modules)
    for name, part in loaded:
        for other in part.words("conflicts"):
            if other != name and any(other == present for present, _ in loaded):
                yield name, other


def is_name(text: str) -> bool:
    """Tell whether a text may be a module's name: it becomes a file's."""
    return bool(text) and text[0] not in ".-" and set(text) <= NAME


def parse(text: str, path: str, module: str = "") -> Part:
    """Read a file of the site's: site.conf, or that of a module with this name. Raises Fail with its line."""
    part = Part()
    section = ""
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        where = f"{path}:{number}"
        why = f"module {module}, line {number}" if module else f"{FILE}, line {number}"
        if not bare or bare.startswith("#"):
            continue
        if "\0" in line:
            raise _wrong(where, "there is a NUL byte")
        if bare.startswith("[") and bare.endswith("]"):
            section = bare[1:-1].strip()
            if section not in _SECTIONS:
                raise _wrong(where, f"no such section: {bare!r}", f"there are {_listed(_SECTIONS)}")
        elif section == "mounts":
            part.mounts.append(_mount(bare, where, why))
        elif section == "environment":
            part.rules.append(_rule(line.lstrip(), where, why))
        elif section == "settings":
            key, value = _setting(bare, where, is_module=bool(module))
            if key in part.settings:
                raise _wrong(where, f"{key!r} is set twice", f"see also {part.settings[key][1]}")
            part.settings[key] = (value, where)
        else:
            raise _wrong(where, "it stands in no section", f"begin one: {_listed(_SECTIONS)}")
    return part


def _mount(line: str, where: str, why: str) -> Entry:
    """Read a line of fstab(5): source, target, type, options, and two numbers that may be left out."""
    words = line.split()
    if not 4 <= len(words) <= 6 or not all(word.isdecimal() for word in words[4:]):
        raise _wrong(where, "it is not a line of fstab(5)", "write SOURCE TARGET none bind[,ro][,nofail]")
    source, target, kind = (_unescaped(word) for word in words[:3])
    options = words[3].split(",")
    if kind not in ("none", "bind"):
        raise _wrong(where, f"the type {kind!r} is not possible", "only what the host has can be mounted: none")
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise _wrong(where, f"no such option: {unknown[0]!r}", f"there are {', '.join(_OPTIONS)}")
    if "ro" in options and "rw" in options:
        raise _wrong(where, "it is both ro and rw")
    if not ({"bind", "rbind"} & set(options)):
        raise _wrong(where, "the option 'bind' is not there")
    for path in (source, target):
        if not path.startswith(("/", "$HOME")) or ".." in path.split("/"):
            raise _wrong(where, f"{path!r} is not an absolute path without '..'")
    return Entry(source, target, options, why, where)


def _rule(line: str, where: str, why: str) -> Rule:
    """Read a line of [environment]: NAME=VALUE, prepend NAME=VALUE, append NAME=VALUE or unset NAME."""
    word, _, rest = line.partition(" ")
    operator, text = (word, rest.lstrip()) if word in _OPERATORS else ("set", line)
    name, equals, value = text.partition("=")
    if operator == "unset":
        name, equals = text.strip(), "="
    if not name or not equals or set(name) & set(" \t=$"):
        raise _wrong(where, "it sets no variable", "write [prepend|append] NAME=VALUE, or unset NAME")
    return operator, name, value if operator != "unset" else "", why


def _setting(line: str, where: str, *, is_module: bool) -> tuple[str, str]:
    key, equals, value = (word.strip() for word in line.partition("="))
    known = _SETTINGS[is_module]
    if key not in known or not equals:
        raise _wrong(where, f"no such setting: {key!r}", f"write KEY = VALUE; there are {', '.join(known)}")
    if key == "way" and value not in WAYS:
        raise _wrong(where, f"no such way to prefer: {value!r}", f"there are {' and '.join(WAYS)}")
    paths = value.replace(",", " ").split() if key in ("deny-volume", "mpi") else []
    if key == "node-cache-on":
        paths = [
            place for place in value.replace(",", " ").split() if place != "tmpfs" and not place.startswith("$HOME")
        ]
    if key == "usage" and value not in (NONE, *FACILITIES):
        if not value.startswith("/"):
            raise _wrong(where, f"{value!r} is no place for lines", f"a directory, {', '.join(FACILITIES)} or {NONE}")
        paths = [value]
    for path in paths:
        if not path.startswith("/") or ".." in path.split("/"):
            raise _wrong(where, f"{path!r} is not an absolute path without '..'")
    for name, _, given in _sshd_options(value) if key == "sshd-options" else []:
        if not name.isalnum() or given[-1:] in ("", ","):
            raise _wrong(where, f"'{name}={given}' is not KEYWORD=VALUE", "with blanks between; see sshd_config(5)")
    names = value.replace(",", " ").split() if key in ("modules", "conflicts") else []
    for name in names:
        if not is_name(name):
            raise _wrong(where, f"{name!r} is no module's name", "a name has letters, digits and _.+-")
    return key, value


def _sshd_options(text: str) -> list[tuple[str, str, str]]:
    """Return (keyword, =, value): values may have commas, as lists of ciphers do."""
    return [word.partition("=") for word in text.split()]


def _expand(path: str, person: Person, where: str) -> str:
    """Replace $HOME, $USER and $UID, and nothing else. Raises Fail for another $."""
    known = {"HOME": person.home.rstrip("/"), "USER": person.name, "UID": str(person.uid)}
    first, *rest = path.split("$")
    found = first
    for piece in rest:
        braced = piece.startswith("{")
        name = piece[1:].partition("}")[0] if braced else piece[: _length(piece)]
        if name not in known or (braced and "}" not in piece):
            raise _wrong(where, f"no such variable: '${piece}'", "a mount may have $HOME, $USER and $UID")
        found += known[name] + piece[len(name) + 2 * braced :]
    return found


def _length(text: str) -> int:
    """Return how many characters at the beginning can be a variable's name."""
    return next((at for at, c in enumerate(text) if not (c.isalnum() or c == "_")), len(text))


def _target(path: str, where: str) -> str:
    """Return a target without doubled slashes. Raises Fail for the root."""
    target = "/" + "/".join(word for word in path.split("/") if word not in ("", "."))
    if target == "/":
        raise _wrong(where, "the root is the image's")
    return target


def _unescaped(word: str) -> str:
    for escape, character in _ESCAPES:
        word = word.replace(escape, character)
    return word


def _listed(sections: Iterable[str]) -> str:
    return ", ".join(f"[{name}]" for name in sections)


def _wrong(where: str, why: str, todo: str = "") -> Fail:
    return Fail(f"cannot use {where!r}", why, todo)
