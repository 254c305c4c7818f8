"""MPI: whether the host's library can take the place of an image's, and how it does. Pure.

The host's files are mounted over the image's, so that a program finds them whatever its RPATH says; and what they need,
by the names under which they ask for it, in PLACE, which comes first in LD_LIBRARY_PATH. Where the two have different
names for one library (Debian's libmpich.so.12 is everybody else's libmpi.so.12), PLACE has it by both: to the dynamic
linker that is one file. What both have stays the image's if that has every version that is asked for, but for
what knows the network: the image's other programs were linked with it.
"""

from __future__ import annotations

import os

from . import glibc
from .cdi import Devices
from .environment import MOVED
from .facts import Wish
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from .cdi import Shared
    from .environment import Rule

MODES = ("auto", "host", "image")
PLACE = "/.shoebox/mpi"
OPEN, MPICH = "Open MPI", "MPICH"
# Where an image may have an MPI besides glibc.DIRECTORIES and what its own settings name; `*` is every name there.
DIRECTORIES = (
    *("/usr/local/lib", "/usr/local/lib64", "/opt/conda/lib", "/opt/*/lib", "/opt/*/lib64"),
    *("/usr/lib64/openmpi/lib", "/usr/lib64/mpich/lib", "/usr/lib/x86_64-linux-gnu/openmpi/lib"),
)
# What libraries open by themselves, from the directory in which they lie: files that tell a directory of plugins, and
# further files and directories. Each is mounted where the host has it, for there the library looks.
OPENED = {
    "libopen-pal.so": (
        *("openmpi", "openmpi/lib/openmpi", "openmpi/lib/openmpi3", "../share/openmpi", "../../share/openmpi"),
        *("../etc/openmpi-mca-params.conf", "/etc/openmpi", "/etc/openmpi-x86_64"),
    ),
    "libpmix.so": ("pmix", "pmix2/lib/pmix", "../share/pmix", "../../share/pmix2", "../etc/pmix-mca-params.conf"),
    "libucs.so": ("ucx",),
    "libfabric.so": ("libfabric",),
    "libibverbs.so": ("libibverbs", "/etc/libibverbs.d"),
}
_ALIASES = (
    ("libmpi.so.12", "libmpich.so.12"),
    ("libmpifort.so.12", "libmpichfort.so.12"),
    ("libmpicxx.so.12", "libmpichcxx.so.12"),
)
_OWN = {OPEN: ("libmpi.so.", "libmpi_", "libopen-rte.so.", "libopen-pal.so."), MPICH: tuple(sum(_ALIASES, ()))}
# What must fit the node's hardware and services: never the image's.
_NODES = (
    *("libcxi.", "libefa.", "libfabric.", "libibverbs.", "libmlx", "libmunge.", "libnl-", "libpals.", "libpmi"),
    *("libpsm", "librdmacm.", "libucm.", "libucp.", "libucs.", "libuct.", "libxpmem."),
)


class Library:
    """An MPI library: its path, its soname, whose it is, and the numbers of its version, the first that of its ABI."""

    __slots__ = ("family", "name", "path", "version")

    def __init__(self, path: str, name: str, real: str, libraries: Iterable[str]) -> None:
        """Judge it. real: the name of its file, without links; libraries: the names that it is linked to."""
        self.path = path
        self.name = name
        self.version = _numbers(real) or _numbers(name)
        # Open MPI before its third version had a libmpi.so.12 too.
        is_open = any(n.startswith(("libopen-rte", "libopen-pal")) for n in libraries)
        self.family = OPEN if is_open or (name.startswith("libmpi.") and _numbers(name)[:1] >= (20,)) else MPICH

    def __str__(self) -> str:
        """Return it as people call it."""
        return f"{self.family}, ABI {'.'.join(map(str, self.version))}"


class Host:
    """The host's MPI. main: its library for C; libraries: those that go with it, if needed vital; folders: opened."""

    __slots__ = ("folders", "libraries", "main")

    def __init__(self, main: Library, libraries: Sequence[Shared], folders: Sequence[str]) -> None:
        """Hold the parts."""
        self.main = main
        self.libraries = libraries
        self.folders = folders


class Image:
    """An image's MPI, in whose place the host's can be. mains: its libraries for C.

    covered: the libraries that have to go, path to name. glibc: the versions that its glibc defines, by library.
    present: the versions that its own libraries of the names of the host's define.
    """

    __slots__ = ("covered", "glibc", "mains", "present")

    def __init__(
        self,
        mains: Sequence[Library],
        covered: Mapping[str, str],
        glibc: Mapping[str, Collection[str]],
        present: Mapping[str, Collection[str]],
    ) -> None:
        """Hold the parts."""
        self.mains = mains
        self.covered = covered
        self.glibc = glibc
        self.present = present


def is_main(name: str) -> bool:
    """Tell whether this is a soname of MPI's interface for C."""
    return name.startswith(("libmpi.so.", "libmpich.so.")) and name.count(".") == 2


def is_own(name: str, family: str) -> bool:
    """Tell whether a library of this soname has to be of the same installation as the interface for C."""
    return name.startswith(_OWN[family]) and name.partition(".so.")[2].isdecimal()


def names(name: str) -> tuple[str, ...]:
    """Return all sonames under which programs ask for what has this one."""
    return next((both for both in _ALIASES if name in both), (name,))


def listed(text: str) -> list[str]:
    """Return the paths of the libraries for C in what `ldconfig -p` prints, in the order of preference."""
    found = (line.strip().partition(" => ") for line in text.splitlines())
    return [path for name, _, path in found if path.startswith("/") and is_main(name.partition(" (")[0])]


def verdict(host: Library, image: Library) -> tuple[str, str]:
    """Return why the host's library cannot take the place of the image's, or ""; and what there is to say if it can."""
    both = f"the image has {image}, the host {host}"
    if host.family != image.family:
        return both, ""
    if host.version[:1] != image.version[:1]:
        return f"{both}: another major", ""
    if _is_older(host, image):
        return "", f"{both}: the same major, but older: a program that uses what was added since will not start"
    return "", f"{both}: the same major, {'not older' if host.version[1:] else 'and no more is known'}"


def settle(host: Host, image: Image) -> Devices:
    """Return what puts the host's MPI in the place of an image's. Raises Fail."""
    why = "--mpi"
    made = Devices()
    if not image.glibc:
        raise refusal("no glibc was found in the image, and the host's libraries are made for it")
    wanted: dict[str, set[str]] = {}
    for library in host.libraries:
        for file, versions in library.needs.items():
            wanted.setdefault(file, set()).update(versions)
    sources: dict[str, str] = {}
    for library in host.libraries:
        problem = glibc.too_new(library.needs, image.glibc)
        if problem and library.vital:
            raise refusal(f"{library.source}: {problem}", "use an image of a newer distribution")
        needed = wanted.get(library.name, set())
        if problem:
            made.skipped.append((library.source, problem))
        elif (
            _is_common(library.name, host.main.family) and needed and needed <= set(image.present.get(library.name, ()))
        ):
            made.skipped.append((library.source, "the image's own has all versions that are asked for"))
        else:
            sources.update(dict.fromkeys(names(library.name), library.source))
    made.wishes = [Wish(path, path, f"{why}: it looks there", readonly=True, asked=True) for path in host.folders]
    for path, name in image.covered.items():
        if name in sources:
            made.wishes.append(Wish(sources[name], path, f"{why}: in place of the image's", readonly=True, asked=True))
        else:
            made.warnings.append(f"the host's MPI has no {name}: programs that need it may not work")
    for name, source in sources.items():
        made.wishes.append(Wish(source, f"{PLACE}/{name}", why, readonly=True, asked=True))
    made.rules.append(("prepend", "LD_LIBRARY_PATH", PLACE, "what the host's MPI needs"))
    for one in image.mains:
        said = verdict(host.main, one)[1]
        made.mpi.append((f"the host's {host.main.path} for {one.path}", said))
        made.warnings += [said] if _is_older(host.main, one) else []
    return made


def moved(host: Mapping[str, str], image: Mapping[str, str]) -> list[Rule]:
    """Return what environment.MOVED's variables must be for the host's MPI, where the image or the host has them."""
    why = "the host's MPI"
    found: list[Rule] = [("set", name, host[name], why) for name in MOVED if name in host]
    return found + [("unset", name, "", why) for name in MOVED if name in image and name not in host]


def refusal(why: object, todo: str = "run with --mpi=image") -> Fail:
    """Return the error of who cannot use the host's MPI."""
    return Fail("cannot use the host's MPI", str(why), todo)


def _is_older(host: Library, image: Library) -> bool:
    """Tell whether the host's has less than the image's, as far as their files' names say."""
    return bool(host.version[1:]) and host.version[1:2] < image.version[1:2]


def _is_common(name: str, family: str) -> bool:
    """Tell whether another library of this name would do."""
    return not is_own(name, family) and not name.startswith(_NODES)


def _numbers(name: str) -> tuple[int, ...]:
    """Return the numbers after .so. in a file's name."""
    words = os.path.basename(name).partition(".so.")[2].split(".")
    return tuple(int(word) for word in words if word.isdecimal())
