"""Devices by CDI: what a node's specifications say, and the edits that a container needs for a device. Pure.

Container Device Interface, github.com/cncf-tags/container-device-interface, SPEC.md. No hook is run: what NVIDIA's
hooks would do is done by other means, or named as left out.
"""

from __future__ import annotations

import os

from .facts import Wish
from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from .environment import Rule

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
SUFFIXES = (".json", ".yaml")
ALL = "all"
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_ALPHANUMERIC = _LETTERS | frozenset("0123456789")
# Options of a mount that say nothing, or what holds anyway: nothing inside gains privileges, or can make a device.
_EMPTY_OPTIONS = frozenset(("bind", "rbind", "rw", "nosuid", "nodev", "private", "rprivate", "slave", "rslave"))
_KEYS = frozenset(("env", "deviceNodes", "mounts", "hooks", "additionalGids", "intelRdt", "netDevices"))
_NOT_APPLIED = {
    "additionalGids": "nobody can add groups in a user namespace",
    "intelRdt": "resource classes are for root to assign",
    "netDevices": "the network is the host's",
}
_TOOLS = ("nvidia-ctk", "nvidia-cdi-hook")  # whose hooks we know
_NEEDLESS = {
    "chmod": "directories of devices are the host's, with the host's modes",
    "disable-device-node-modification": "nobody can make devices in a user namespace",
    "update-application-profile": "all devices of the host are visible inside",
    "update-nvidia-params": "nobody can make devices in a user namespace",
}


class Spec:
    """A specification. rank: its directory's place in the search order, the highest wins; devices: name to edits."""

    __slots__ = ("devices", "edits", "kind", "path", "rank")

    def __init__(self, path: str, rank: int, kind: str, edits: object, devices: Mapping[str, object]) -> None:
        """Hold the parts; edits are as the file has them."""
        self.path = path
        self.rank = rank
        self.kind = kind
        self.edits = edits
        self.devices = devices


class Node:
    """A device of the host that must be there: own, if it is that of a device asked for; wanted: of `r` and `w`."""

    __slots__ = ("own", "path", "wanted", "where")

    def __init__(self, path: str, wanted: str, own: str, where: str) -> None:
        """Hold the parts. own: the device's name, or ""; where: the specification's path."""
        self.path = path
        self.wanted = wanted
        self.own = own
        self.where = where


class Link:
    """A symbolic link wanted inside, at path; to: its text."""

    __slots__ = ("path", "to", "why")

    def __init__(self, path: str, to: str, why: str) -> None:
        """Hold the parts."""
        self.path = path
        self.to = to
        self.why = why

    @property
    def leads(self) -> str:
        """Where it leads, as an absolute path."""
        return os.path.join(os.path.dirname(self.path), self.to)


class Shared:
    """A shared library of the host's that programs inside are to find by its name.

    source: its file; target: where a mount puts that inside, or "". needs: versions, by the library that is to have
    them. vital: without it the others are of no use.
    """

    __slots__ = ("name", "needs", "source", "target", "vital", "why")

    def __init__(
        self, name: str, source: str, target: str, needs: Mapping[str, Collection[str]], why: str, *, vital: bool
    ) -> None:
        """Hold the parts."""
        self.name = name
        self.source = source
        self.target = target
        self.needs = needs
        self.why = why
        self.vital = vital


class Devices:
    """What the devices asked for want of the container.

    used: (device, why). folders: whose libraries the dynamic linker is to find. libraries: those, and others. compat:
    the driver's version if the image's CUDA compatibility libraries may take its place, or "". skipped: (what, why).
    mpi: (whose MPI it is, why): that comes in as the libraries of devices do.
    """

    __slots__ = (
        *("compat", "folders", "libraries", "links", "mpi", "nodes", "rules", "skipped", "used", "warnings", "wishes"),
    )

    def __init__(self) -> None:
        """Begin with nothing."""
        self.used: list[tuple[str, str]] = []
        self.nodes: list[Node] = []
        self.wishes: list[Wish] = []
        self.links: list[Link] = []
        self.rules: list[Rule] = []
        self.folders: list[str] = []
        self.libraries: list[Shared] = []
        self.skipped: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.mpi: list[tuple[str, str]] = []
        self.compat = ""

    def beside(self, first: Devices) -> Devices:
        """Return all that these and `first` want; what `first` mounts comes first."""
        made = Devices()
        for name in self.__slots__:
            setattr(made, name, getattr(first, name) + getattr(self, name))
        return made


def parse(name: str) -> tuple[str, str]:
    """Return (kind, name) of a qualified device name, VENDOR/CLASS=NAME. Raises Fail."""
    kind, _, device = name.partition("=")
    vendor, _, group = kind.partition("/")
    good = _is_word(vendor, _LETTERS, "_-.") and _is_word(group, _LETTERS, "_-.")
    if not good or not _is_word(device, _ALPHANUMERIC, "_-.:"):
        raise Fail(f"no such device: {name!r}", "a name is VENDOR/CLASS=NAME, as nvidia.com/gpu=0 is", status=USAGE)
    return kind, device


def spec(data: object, path: str, rank: int) -> Spec:
    """Read a specification, as JSON or YAML has it. Raises Fail."""
    top = _mapping(data, path, "it")
    version = top.get("cdiVersion")
    if version not in VERSIONS:
        known = f"{VERSIONS[0]} to {VERSIONS[-1]} are known"
        raise _wrong(path, f"it has no cdiVersion: {known}" if version is None else f"cdiVersion {version!r}: {known}")
    kind = _text(top.get("kind"), path, "kind")
    vendor, _, group = kind.partition("/")
    if not _is_word(vendor, _LETTERS, "_-.") or not _is_word(group, _LETTERS, "_-."):
        raise _wrong(path, f"kind {kind!r} is not VENDOR/CLASS")
    devices: dict[str, object] = {}
    for listed in _list(top.get("devices"), path, "devices"):
        device = _mapping(listed, path, "a device")
        name = _text(device.get("name"), path, "a device's name")
        if not _is_word(name, _ALPHANUMERIC, "_-.:"):
            raise _wrong(path, f"{name!r} is no device's name")
        if name in devices:
            raise _wrong(path, f"the device {name!r} is there twice")
        devices[name] = device.get("containerEdits")
    if not devices:
        raise _wrong(path, "it has no devices")
    return Spec(path, rank, kind, top.get("containerEdits"), devices)


def resolve(names: Iterable[str], specs: Sequence[Spec], unread: Sequence[str] = (), where: str = "") -> Devices:
    """Return the edits for devices. unread: what was wrong with other files; where: they were looked for. Raises Fail.

    Of the specifications that have a device, that of the last directory counts; two in one directory are a conflict.
    """
    edits = Devices()
    opened: set[str] = set()
    for asked in names:
        kind, device = parse(asked)
        ours = [spec for spec in specs if spec.kind == kind]
        every = sorted({name for spec in ours for name in spec.devices})
        wanted = every if device == ALL and ALL not in every else [device]
        if not wanted or wanted[0] not in every:
            raise _unknown(asked, kind, every, unread, where)
        for name in wanted:
            qualified = f"{kind}={name}"
            if qualified in opened:
                continue
            spec = _pick(qualified, name, ours)
            if spec.path not in opened:
                _add(edits, spec.edits, spec.path, "")
            _add(edits, spec.devices[name], spec.path, qualified)
            opened |= {qualified, spec.path}
            edits.used.append((qualified, spec.path))
    return edits


def _pick(device: str, name: str, specs: Iterable[Spec]) -> Spec:
    having = [spec for spec in specs if name in spec.devices]
    best = [spec for spec in having if spec.rank == max(spec.rank for spec in having)]
    if len(best) > 1:
        both = " and ".join(spec.path for spec in best[:2])
        raise Fail(f"cannot use device {device!r}", f"{both} both have it", "remove one")
    return best[0]


def _unknown(asked: str, kind: str, known: Sequence[str], unread: Sequence[str], where: str) -> Fail:
    """Say why there is no such device."""
    if known:
        why = f"of {kind} there are {', '.join(known)}"
    else:
        why = f"no specification in {where} has devices of the kind {kind}"
    todo = "make one, as with nvidia-ctk cdi generate" if not known and kind.startswith("nvidia.com/") else ""
    return Fail(f"no such device: {asked!r}", "; ".join((why, *unread)), todo)


def _add(edits: Devices, data: object, path: str, own: str) -> None:
    """Add one containerEdits. own: the device whose they are, "" for the whole specification's. Raises Fail."""
    if data is None:
        return
    made = _mapping(data, path, "containerEdits")
    edits.rules += [_variable(item, path) for item in _list(made.get("env"), path, "env")]
    for item in _list(made.get("deviceNodes"), path, "deviceNodes"):
        node = _mapping(item, path, "a device node")
        inside = _path(node.get("path"), path, "a device node's path")
        outside = _path(node.get("hostPath") or inside, path, "a device node's hostPath")
        permissions = _text(node.get("permissions") or "rw", path, "permissions")
        edits.nodes.append(Node(outside, permissions, own, path))
        if outside != inside:
            edits.wishes.append(Wish(outside, inside, path, asked=True))
    edits.wishes += [_mount(item, path, edits) for item in _list(made.get("mounts"), path, "mounts")]
    for item in _list(made.get("hooks"), path, "hooks"):
        _hook(edits, _mapping(item, path, "a hook"), path)
    edits.skipped += [(key, why) for key, why in _NOT_APPLIED.items() if made.get(key)]
    for key in sorted(set(made) - _KEYS):
        edits.warnings.append(f"not applied: {key!r} of {path}, which is not known")


def _variable(item: object, path: str) -> Rule:
    name, equals, value = _text(item, path, "env").partition("=")
    if not name or not equals:
        raise _wrong(path, f"{item!r} is not NAME=VALUE")
    return "set", name, value, path


def _mount(item: object, path: str, edits: Devices) -> Wish:
    mount = _mapping(item, path, "a mount")
    source, target = _path(mount.get("hostPath"), path, "hostPath"), _path(mount.get("containerPath"), path, "a mount")
    options = [_text(option, path, "an option") for option in _list(mount.get("options"), path, "options")]
    kind = mount.get("type") or "none"
    if kind not in ("none", "bind"):
        raise _wrong(path, f"it wants a mount of the type {kind!r} at {target!r}")
    extra = sorted(set(options) - _EMPTY_OPTIONS - {"ro"})
    if extra:
        edits.skipped.append((f"{','.join(extra)} of {target}", "of a mount's options only ro has an effect"))
    return Wish(source, target, path, readonly="ro" in options, asked=True)


def _hook(edits: Devices, hook: Mapping[str, object], path: str) -> None:
    """Add what a hook would do. Its words are those of nvidia-cdi-hook and `nvidia-ctk hook`."""
    program = os.path.basename(_text(hook.get("path"), path, "a hook's path"))
    words = [_text(word, path, "an argument") for word in _list(hook.get("args"), path, "args")][1:]
    if program == "nvidia-ctk" and words[:1] == ["hook"]:
        del words[0]
    act = words[0] if words and program in _TOOLS else ""
    if act == "create-symlinks":
        edits.links += [_link(value, path) for value in _values(words, "--link")]
    elif act in ("update-ldcache", "create-soname-symlinks"):
        found = [_path(value, path, "a folder") for value in _values(words, "--folder")]
        edits.folders += [folder for folder in found if folder not in edits.folders]
    elif act == "enable-cuda-compat":
        edits.compat = next(_values(words, "--host-driver-version"), "")
    elif act in _NEEDLESS:
        edits.skipped.append((f"hook {act}", _NEEDLESS[act]))
    else:
        edits.warnings.append(f"hook {' '.join((program, *words))!r} of {path} is left out: no hook is run")


def _link(value: str, path: str) -> Link:
    to, colons, name = value.partition("::")
    if not to or not colons:
        raise _wrong(path, f"{value!r} is not TARGET::LINK")
    return Link(_path(name, path, "a link"), to, path)


def _values(words: Sequence[str], option: str) -> Iterator[str]:
    """Yield the values of an option, which may also be listed with commas."""
    for word, following in zip(words, [*words[1:], ""]):
        value = following if word == option else word[len(option) + 1 :] if word.startswith(f"{option}=") else ""
        yield from (part for part in value.split(",") if part)


def _is_word(text: str, first: frozenset[str], inner: str) -> bool:
    return text[:1] in first and text[-1:] in _ALPHANUMERIC and set(text) <= _ALPHANUMERIC | set(inner)


def _path(value: object, path: str, what: str) -> str:
    """Return an absolute path, without doubled slashes. Raises Fail for any other."""
    text = _text(value, path, what)
    if not text.startswith("/") or ".." in text.split("/") or text.strip("/.") == "":
        raise _wrong(path, f"{what}: {text!r} is not an absolute path without '..'")
    return "/" + os.path.normpath(text).lstrip("/")


def _text(value: object, path: str, what: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(path, f"{what} is {value!r}, which is no text" if value is not None else f"{what} is not there")
    return os.fsdecode(value.encode("utf-8", "surrogateescape"))


def _list(value: object, path: str, what: str) -> list[object]:
    if value is not None and not isinstance(value, list):
        raise _wrong(path, f"{what} is no list")
    return value or []


def _mapping(value: object, path: str, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(path, f"{what} is no object")
    return value


def _wrong(path: str, why: str) -> Fail:
    return Fail(f"cannot use the CDI specification {path!r}", why)
