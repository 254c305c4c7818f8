"""Looks for MPI libraries, the host's and an image's, for --mpi. Changes nothing."""

from __future__ import annotations

import os

from . import glibc, host, libraries, linux, mpi
from .cdi import Devices, Shared
from .facts import DIRECTORY
from .fail import USAGE, Fail
from .paths import under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .elf import Library as Elf
    from .facts import Request
    from .source import Source

_CACHE = "/etc/ld.so.cache"
_MOST = 16 << 20  # bytes of it
_INSIDE = linux.IN_ROOT | linux.NO_MAGICLINKS


def fit(request: Request, env: Mapping[str, str], said: Mapping[str, str], root: int, source: Source) -> Devices:
    """Return what --mpi wants of an image. root: the image's. said: the image's own variables. Raises Fail."""
    mode = request.options.one("mpi") or "auto"
    named = request.site.mpi if request.site else []
    if mode not in mpi.MODES:
        raise Fail(f"no such MPI: {mode!r}", f"there are {', '.join(mpi.MODES)}", status=USAGE)
    own = Devices()
    if mode == "image":
        own.mpi.append(("the image's", "--mpi=image"))
    elif mode == "auto" and not named:
        own.mpi.append(("the image's", "--mpi=auto, and the site names none of the host's"))
    elif source.kind == DIRECTORY and os.path.realpath(source.path) == "/":
        own.mpi.append(("the host's", "the image is this machine's own root"))
    else:
        try:
            _refuse(request, root, source)
            return _replace(env, named, root, said)
        except Fail as error:
            if mode == "host":
                raise
            own.mpi.append(("the image's", f"--mpi=auto: {error}"))
    return own


def _refuse(request: Request, root: int, source: Source) -> None:
    """Raise Fail if no MPI of the host's can come into this container."""
    if source.way == "setuid" or root < 0:
        raise mpi.refusal("that takes a user namespace")
    for name, value, why in request.settings:
        if name == "LD_LIBRARY_PATH" and value is not None and mpi.PLACE not in value.split(":"):
            raise mpi.refusal(f"{why} sets {name}", f"let it begin with {mpi.PLACE}")


def _replace(env: Mapping[str, str], named: list[str], root: int, said: Mapping[str, str]) -> Devices:
    """Put the host's MPI in the place of the image's. Raises Fail."""
    files = dict(_files(root, said))
    mains = [one for path, name in files.items() if mpi.is_main(name) for one in _of_image(root, path, name)]
    if not mains:
        raise mpi.refusal("no MPI was found in the image", "run without --mpi")
    try:
        ours = _with_all(_choose(_of_host(env, named), mains, named), env)
    except (OSError, ValueError) as error:
        raise mpi.refusal(error) from error
    fitting = [one for one in mains if not mpi.verdict(ours.main, one)[0]]
    made = mpi.settle(ours, _image(root, files, fitting, ours))
    made.rules += mpi.moved(env, said)
    return made


def _choose(offered: list[mpi.Library], mains: list[mpi.Library], named: list[str]) -> mpi.Library:
    """Return the first of the host's that can take the place of one of the image's. Raises Fail."""
    for one in offered:
        if any(not mpi.verdict(one, other)[0] for other in mains):
            return one
    where = "the site names none that is there" if named else "ldconfig and LD_LIBRARY_PATH know none"
    raise mpi.refusal(mpi.verdict(offered[0], mains[0])[0] if offered else f"there is none: {where}")


def _image(root: int, files: Mapping[str, str], mains: list[mpi.Library], ours: mpi.Host) -> mpi.Image:
    """Return what the image has of an MPI in the directories of these libraries. files: path to name."""
    paths = {one.path for one in mains}
    tops = {os.path.dirname(path) for path in paths}
    covered = {
        path: name
        for path, name in files.items()
        if os.path.dirname(path) in tops
        and mpi.is_own(name, ours.main.family)
        and (path in paths or not mpi.is_main(name))
    }
    present = {library.name: _versions(root, library.name, files) for library in ours.libraries}
    return mpi.Image(mains, covered, libraries.of_glibc(root), present)


def _files(root: int, said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the libraries, by path and name, of all directories in which the image may have an MPI; the first first."""
    cached = [os.path.dirname(path) for path in _cache(root) if mpi.is_main(os.path.basename(path))]
    more = [path for pattern in mpi.DIRECTORIES for path in _matching(root, pattern)]
    own = [path for path in said.get("LD_LIBRARY_PATH", "").split(":") if path.startswith("/")]
    seen: set[tuple[int, int]] = set()
    for directory in dict.fromkeys([*map(os.path.normpath, own), *cached, *glibc.DIRECTORIES, *more]):
        try:
            fd = linux.openat2(root, directory, os.O_PATH | os.O_DIRECTORY, _INSIDE)
        except OSError:
            continue
        about = os.fstat(fd)
        os.close(fd)
        if (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            yield from (
                (f"{directory}/{name}", name) for name in sorted(libraries.names(root, directory)) if ".so." in name
            )


def _matching(root: int, pattern: str) -> list[str]:
    """Return the paths that a pattern with at most one `*` stands for."""
    above, star, below = pattern.partition("*")
    return [f"{above}{name}{below}" for name in sorted(libraries.names(root, above))] if star else [pattern]


def _cache(root: int) -> list[str]:
    """Return the paths in the image's ld.so.cache: strings that end in NUL, whatever its format."""
    try:
        fd = linux.openat2(root, _CACHE, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, _INSIDE)
    except OSError:
        return []
    try:
        data = os.pread(fd, _MOST, 0)
    except OSError:
        return []
    finally:
        os.close(fd)
    return [os.fsdecode(path) for path in data.split(b"\0") if path.startswith(b"/") and b"libmpi" in path]


def _of_image(root: int, path: str, name: str) -> Iterator[mpi.Library]:
    """Yield the library of the image at a path, if it is one for this machine."""
    try:
        needed = libraries.inside(root, path).linked_to
        fd = linux.openat2(root, path, os.O_PATH, _INSIDE)
        real = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
    except (OSError, ValueError):
        return
    yield mpi.Library(path, name, real, needed)


def _of_host(env: Mapping[str, str], named: list[str]) -> list[mpi.Library]:
    """Return the host's libraries for C: those that the site names, or all that the dynamic linker knows."""
    if named:
        paths = [path for one in named for path in _listed(one)]
    else:
        own = [path for path in env.get("LD_LIBRARY_PATH", "").split(":") if path.startswith("/")]
        ldconfig = host.tool(("ldconfig",), dict(env))
        paths = [path for one in own for path in _listed(one)]
        paths += mpi.listed(libraries.output(ldconfig, "-p")) if ldconfig else []
    found = []
    for path in dict.fromkeys(paths):
        try:
            about = _read(path)
        except (OSError, ValueError):  # of another kind of machine, or none at all
            continue
        found.append(mpi.Library(path, about.soname or os.path.basename(path), os.path.realpath(path), about.linked_to))
    return found


def _listed(path: str) -> list[str]:
    """Return the libraries for C in a directory of the host's; or the path itself, if it is none."""
    try:
        return [f"{path}/{name}" for name in sorted(os.listdir(path)) if mpi.is_main(name)]
    except NotADirectoryError:
        return [path]
    except OSError:
        return []


def _read(path: str) -> Elf:
    return libraries.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), libraries.machine())


def _with_all(chosen: mpi.Library, env: Mapping[str, str]) -> mpi.Host:
    """Return a library of the host's with those that go with it, and what they open.

    Raises Fail, OSError or ValueError.
    """
    top = os.path.dirname(chosen.path)
    own = [chosen.path, *(f"{top}/{n}" for n in sorted(os.listdir(top)) if mpi.is_own(n, chosen.family))]
    own = [path for path in dict.fromkeys(own) if path == chosen.path or not mpi.is_main(os.path.basename(path))]
    vital = libraries.linked(own, env)
    lacking = [name for name, path in vital.items() if not path]
    if lacking:
        raise mpi.refusal(f"{chosen.path!r} needs {lacking[0]}, which this machine has not")
    folders, plugins = _opened(vital)
    inside = {os.path.basename(path) for path in plugins}
    every = {**libraries.linked(own + plugins, env), **vital} if plugins else vital
    found = []
    for name, path in every.items():
        if path and not glibc.is_part(name) and name not in inside:
            needs = _read(path).needs
            found.append(Shared(name, os.path.realpath(path), "", needs, "--mpi", vital=name in vital))
    return mpi.Host(chosen, found, folders)


def _opened(vital: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the files and directories that these libraries open by themselves, and the plugins among them."""
    folders: list[str] = []
    plugins: list[str] = []
    for name, path in vital.items():
        for place in mpi.OPENED.get(f"{name.partition('.so')[0]}.so", ()):
            opened = os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(path)), place))
            plugins += _plugins(opened)
            if os.path.exists(opened) and not any(under(opened, other) for other in folders):
                folders.append(opened)
    return folders, list(dict.fromkeys(plugins))


def _plugins(directory: str) -> list[str]:
    try:
        names: Iterable[str] = sorted(os.listdir(directory))
    except OSError:
        return []
    return [f"{directory}/{name}" for name in names if name.endswith(".so")]


def _versions(root: int, name: str, has: Mapping[str, str]) -> set[str]:
    """Return the versions that the image's own library of a name defines, none if it has none."""
    for path in (path for path, other in has.items() if other == name):
        try:
            return libraries.inside(root, path).defines
        except (OSError, ValueError):
            continue
    return set()
