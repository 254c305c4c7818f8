"""The host's GPU libraries: which they are, whether the image's C library can load them, how they are found. Pure.

Programs find them by LD_LIBRARY_PATH, in a directory that has these libraries and nothing else. ld.so.cache, which a
hook would make anew, stays as it is: that would take an ldconfig over the whole image at every start, and musl has no
such cache. The directory where a specification puts the libraries is not named in LD_LIBRARY_PATH either: it is the
system's own, and would come before what a program's RUNPATH names.
"""

from __future__ import annotations

import os

from . import glibc
from .cdi import Devices, Link, Shared
from .facts import Wish
from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

KIND = "nvidia.com/gpu"
OPTION = "--gpu"
PLACE = "/.shoebox/lib"
COMPAT = "/usr/local/cuda/compat"
PROGRAMS = (
    *("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"),
)
SOCKET = "/run/nvidia-persistenced/socket"
NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
AMD = "/dev/kfd"
# The driver's own. What comes with other packages (libGL, libOpenCL, libEGL) the image has, made for its C library.
_DRIVER = (
    *("libcuda.so", "libcudadebugger.so", "libnvcuvid.so", "libnvoptix.so", "libnvidia-", "libEGL_nvidia.so"),
    *("libGLESv1_CM_nvidia.so", "libGLESv2_nvidia.so", "libGLX_nvidia.so", "libvdpau_nvidia.so"),
)
_NOT_DRIVER = ("libnvidia-container",)
_VITAL = ("libcuda.so.1", "libnvidia-ml.so.1")


def driver(text: str) -> list[tuple[str, str]]:
    """Return (name, path) of the driver's libraries in what `ldconfig -p` prints, in the order of preference."""
    found = []
    for line in text.splitlines():
        name, _, path = line.strip().partition(" => ")
        name = name.partition(" (")[0]
        if path.startswith("/") and name.startswith(_DRIVER) and not name.startswith(_NOT_DRIVER):
            found.append((name, path))
    return found


def is_vital(name: str) -> bool:
    """Tell whether no program can use a GPU without this library."""
    return name in _VITAL


def settle(
    asked: Devices, has: Mapping[str, Collection[str]] | None, compat: Sequence[str], *, own_root: bool
) -> Devices:
    """Return what is wanted of one image: the libraries became mounts, links and a variable. Raises Fail.

    has: the versions that the libraries of the image's glibc define, {} without glibc, None if we cannot look. compat:
    the names in COMPAT. own_root: the image is the host's root directory.
    """
    made = Devices()
    made.used, made.rules = asked.used, list(asked.rules)
    made.skipped, made.warnings = list(asked.skipped), list(asked.warnings)
    if own_root:
        made.skipped += [(wish.target, "the image is this machine's own root") for wish in asked.wishes]
        return made
    made.wishes, made.links = list(asked.wishes), list(asked.links)
    fitting = [library for library in asked.libraries if _fits(library, has, made)]
    if fitting and has == {}:
        made.warnings.append(
            f"no glibc was found in the image: {fitting[0].name} and others are for programs that use it"
        )
    for library in fitting:
        _show(library, asked.folders, made)
    whole = [folder for folder in asked.folders if any(_holds(wish, folder) for wish in asked.wishes)]
    for link in asked.links:
        if os.path.dirname(link.path) in asked.folders and ".so" in os.path.basename(link.path):
            made.links.append(Link(f"{PLACE}/{os.path.basename(link.path)}", link.path, link.why))
    why = f"libraries of {', '.join(name for name, _ in asked.used)}"
    for folder in ([PLACE] if fitting else []) + whole:
        made.rules.append(("append", "LD_LIBRARY_PATH", folder, why))
    if asked.compat and _newer(compat, asked.compat):
        made.rules.append(("prepend", "LD_LIBRARY_PATH", COMPAT, f"newer than the driver, {asked.compat}"))
    made.links = list({link.path: link for link in made.links}.values())  # of several at a place the last counts
    return made


def _show(library: Shared, folders: Collection[str], made: Devices) -> None:
    """Let a library be found by its name."""
    place = f"{PLACE}/{library.name}"
    if not library.target:
        made.wishes.append(Wish(library.source, place, library.why, readonly=True, asked=True))
        return
    made.links.append(Link(place, library.target, library.why))
    folder, base = os.path.split(library.target)
    if folder in folders and base != library.name:  # as ldconfig does
        made.links.append(Link(f"{folder}/{library.name}", base, library.why))


def _fits(library: Shared, has: Mapping[str, Collection[str]] | None, made: Devices) -> bool:
    """Tell whether the image's glibc can load a library; note it if not, and raise Fail if it is a vital one."""
    why = glibc.too_new(library.needs, has or {})
    if not why:
        return True
    if library.vital:
        raise Fail(f"cannot use the host's {library.source!r}", why, "use an image of a newer distribution")
    made.skipped.append((library.name, why))
    return False


def _newer(names: Iterable[str], driver_version: str) -> bool:
    """Tell whether there is a libcuda.so.A.B of a driver whose first number is greater than the host's."""
    ours = glibc.numbers(driver_version)[:1]
    return any(ours < glibc.numbers(name[len("libcuda.so.") :])[:1] for name in names if name.startswith("libcuda.so."))


def _holds(wish: Wish, folder: str) -> bool:
    """Tell whether a mount, of a directory, has all of a folder."""
    return folder == wish.target or folder.startswith(f"{wish.target}/")
