"""Looks for devices: what the node says of them, whether they are there, what they need. Changes nothing."""

from __future__ import annotations

import errno
import os

from . import cdi, gpu, host, libraries, paths
from .facts import DIRECTORY, Wish
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .cdi import Devices, Node, Spec
    from .source import Source
    from .usage import Options

_MOST = 16 << 20  # bytes of a specification


def look(options: Options, env: dict[str, str]) -> Devices | None:
    """Return what the devices asked for want, None if none is asked for. Raises Fail."""
    names = options.all("device")
    if not names and not options.flag("gpu"):
        return None
    for name in names:
        cdi.parse(name)
    specs, unread = _specs(paths.CDI.split(":"))
    by_spec = options.flag("gpu") and any(spec.kind == gpu.KIND for spec in specs)
    wanted = names + ([f"{gpu.KIND}={cdi.ALL}"] if by_spec else [])
    found = cdi.resolve(wanted, specs, unread, paths.CDI.replace(":", " or "))
    found.skipped += [("CDI", why) for why in unread]
    _check_nodes(found)
    machine = libraries.machine()
    for wish in found.wishes:
        if os.path.dirname(wish.target) in found.folders:
            _share(found, "", wish.source, wish.target, wish.why, machine)
    if options.flag("gpu") and not by_spec:
        _driver(found, env, machine)
    return found


def fit(asked: Devices, root: int, source: Source) -> Devices:
    """Return what the devices want of this image. root: the image's, -1 if nobody can look into it. Raises Fail."""
    own_root = source.kind == DIRECTORY and os.path.realpath(source.path) == "/"
    has = libraries.of_glibc(root) if asked.libraries and root >= 0 else None
    return gpu.settle(asked, has, libraries.names(root, gpu.COMPAT) if asked.compat else (), own_root=own_root)


def _specs(directories: Sequence[str]) -> tuple[list[Spec], list[str]]:
    """Read all specifications; return them, and what is wrong with those that cannot be used."""
    specs, unread = [], []
    for rank, directory in enumerate(directories):
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(cdi.SUFFIXES))
        except FileNotFoundError:
            continue
        except OSError as error:
            unread.append(f"{directory}: {error.strerror}")
            continue
        for name in names:
            path = os.path.join(directory, name)
            try:
                specs.append(cdi.spec(_parsed(path), path, rank))
            except Fail as error:
                unread.append(str(error))
    return specs, unread


def _parsed(path: str) -> object:
    """Read a JSON or YAML file. Raises Fail."""
    what = f"cannot read {path!r}"
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST)
    except OSError as error:
        raise Fail(what, error) from error
    try:
        if path.endswith(".json"):
            import json  # noqa: PLC0415 - few runs want devices

            return json.loads(data)
        return _yaml(data, what)
    except ValueError as error:
        raise Fail(what, str(error)) from error


def _yaml(data: bytes, what: str) -> object:
    from . import launch  # noqa: PLC0415 - see _parsed

    lacking = launch.packages()
    try:
        import yaml  # noqa: PLC0415 - see _parsed
    except ImportError as error:
        todo = "write it as JSON: nvidia-ctk cdi generate --format=json"
        raise Fail(what, f"it is YAML, and PyYAML is not there: {lacking or error}", todo) from error
    try:
        loaded: object = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return loaded


def _check_nodes(found: Devices) -> None:
    """Note what is not there, or bars us. Raises Fail if that is all of a device."""
    usable: dict[str, list[str]] = {}  # device, to what is wrong with each of its nodes
    for node in found.nodes:
        why = _why_not(node)
        usable.setdefault(node.own, []).append(why)
        if why:
            found.skipped.append((node.path, why))
        if why and why == os.strerror(errno.ENOENT):
            found.warnings.append(f"there is no {node.path!r}, which {node.where} names")
    for own, whys in usable.items():
        if own and all(whys):
            path = next(node.path for node in found.nodes if node.own == own)
            raise Fail(
                f"cannot use device {own!r}", f"{path}: {whys[0]}", "ask this machine's administrator for access"
            )


def _why_not(node: Node) -> str:
    """Return why a device cannot be used, "" if it can. It is not opened: that would wake up a GPU."""
    wanted = os.R_OK * ("r" in node.wanted) | os.W_OK * ("w" in node.wanted)
    if not os.path.exists(node.path):
        return os.strerror(errno.ENOENT)
    return "" if os.access(node.path, wanted) else os.strerror(errno.EACCES)


def _driver(found: Devices, env: dict[str, str], machine: int) -> None:
    """Add NVIDIA's driver as the dynamic linker of the host knows it. Raises Fail if there is none."""
    ldconfig = host.tool(("ldconfig",), env)
    listed = gpu.driver(libraries.output(ldconfig, "-p")) if ldconfig else []
    for name, path in listed:
        if name not in [library.name for library in found.libraries]:
            _share(found, name, os.path.realpath(path), "", gpu.OPTION, machine)
    if not any(gpu.is_vital(library.name) for library in found.libraries):
        if os.path.exists(gpu.AMD):
            found.used.append((gpu.AMD, "AMD's: the host's /dev is inside, and the image has the libraries"))
            return
        why = "no CDI specification has nvidia.com/gpu, and ldconfig knows no libcuda.so.1"
        raise Fail("cannot find a GPU's driver", why, "run without --gpu, or where there is a GPU")
    found.used.append(("NVIDIA's driver", f"{gpu.OPTION}: no CDI specification has it, {ldconfig} does"))
    programs = [(host.tool((name,), env), f"/usr/bin/{name}") for name in gpu.PROGRAMS]
    for path, target in [*programs, (gpu.SOCKET, gpu.SOCKET)]:
        if path and os.path.exists(path):
            why = gpu.OPTION
            found.wishes.append(Wish(os.path.realpath(path), target, why, readonly=True, asked=True, optional=True))
    lacking = [path for path in gpu.NODES if not os.path.exists(path)]
    found.warnings += [f"there is no {path!r}: no GPU, or its driver is not loaded" for path in lacking]


def _share(found: Devices, name: str, source: str, target: str, why: str, machine: int) -> None:
    """Add a library of the host's, if it is one for this machine. name: "" for its own."""
    try:
        library = libraries.read(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), machine)
    except (OSError, ValueError) as error:
        found.skipped.append((source, f"no library to be found by its name: {error}"))
        return
    name = name or library.soname
    if name and "/" not in name:
        vital = gpu.is_vital(library.soname)
        found.libraries.append(cdi.Shared(name, source, target, library.needs, why, vital=vital))
