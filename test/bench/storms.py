"""What a storm of imports needs: trees with many modules, the same as images, and where either can be read from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Room, remove
from bench.starter import STEP, Site, Starter
from fixtures import pynamic
from fixtures.dfs import System
from fixtures.helper import USER

PYTHON = "/usr/bin/python3"
IMPORTS = ("numpy", "scipy.linalg", "pandas")
PACKAGES = ("numpy", "scipy", "pandas", "dateutil", "pytz", "six.py", "__pycache__")
LIBRARIES = (
    *("ld-*", "libc.*", "libm.*", "libdl.*", "libpthread*", "librt.*", "libutil*", "libgcc_s*", "libstdc++*"),
    *("libgfortran*", "libquadmath*", "blas", "libblas*", "lapack", "liblapack*", "openblas*/*.so*", "libopenblas*"),
    *("libz.*", "libexpat*", "libffi*", "libcrypto*", "libssl*", "libbz2*", "liblzma*", "libuuid*"),
)
UNUSED = ("test", "tests", "lib2to3", "tkinter", "distutils", "include")
LOCAL = "local disk, tree"
WALL = 0  # of what Starter.together() returns
CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Stack:
    """A root file system with a Python and modules, as a tree and as an image; code: imports them all."""

    tree: Path
    image: Path
    code: str


def interpreter(tree: Path) -> None:
    """Put the machine's Python into a tree: the interpreter, its libraries, and what it reads when it starts."""
    say = "import os, sys; print(os.__file__, *(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', 0)))"
    modules = subprocess.check_output([PYTHON, "-IS", "-c", say], text=True).split()
    libraries = re.findall(r"(/\S+\.so\S*)", subprocess.check_output(["ldd", PYTHON], text=True))
    cached = [path for module in modules for path in Path(module).parent.glob(f"__pycache__/{Path(module).stem}.*.pyc")]
    (tree / modules[0][1:]).parent.joinpath("lib-dynload").mkdir(parents=True)  # by which it knows its place
    for path in (PYTHON, *libraries, *modules, *cached):
        target = tree / str(path)[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def squashed(room: Room, tree: Path) -> Path:
    """Return a tree as an image."""
    subprocess.run(["chmod", "-R", "a+rX", tree], check=True)
    image = tree.with_suffix(".sqfs")
    room.run(["sh-flatten", "-o", image, tree])
    return image


def generated(room: Room, tree: Path, count: int) -> Stack:
    """Make a stack of so many generated packages on top of a tree."""
    interpreter(tree)
    (tree / "pynamic").mkdir()
    code = f"import sys; sys.path.insert(0, '/pynamic'); {pynamic.make(tree / 'pynamic', count)}"
    return Stack(tree, squashed(room, tree), code)


def real(room: Room, image: Path, tree: Path) -> Stack:
    """Make a stack of what IMPORTS needs of the real image: interpreter, library, packages without tests."""
    wanted = ("usr/lib/python3.*", "usr/bin/python3*", "lib", "lib64", "bin", "etc/ld.so*", "etc/alternatives")
    packages = (f"usr/lib/python3/dist-packages/{name}" for name in PACKAGES)
    libraries = (f"usr/lib/{os.uname().machine}-linux-gnu/{name}" for name in LIBRARIES)
    words = ["unsquashfs", "-quiet", "-no-progress", "-d", tree, image]
    words += [*wanted, *packages, *libraries, "usr/lib64", "usr/share/zoneinfo/*.*"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for unused in [path for path in tree.rglob("*") if path.name in UNUSED and path.is_dir()]:
        remove(unused)
    for unused in tree.rglob("*.a"):
        unused.unlink()
    code = f"import sys; sys.path.append('/usr/lib/python3/dist-packages'); import {', '.join(IMPORTS)}"
    return Stack(tree, squashed(room, tree), code)


@dataclass(frozen=True)
class Cost:
    """What a storm took: seconds; requests to the file system, and bytes over its network, None where it was none's.

    seconds: None where there was no storm; requests: None, too, where the servers began to count anew meanwhile.
    """

    seconds: float | None
    requests: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Source:
    """Where ranks import from. command: words before Python's; by: who starts them; system: None where it is local."""

    command: list[str]
    by: Starter
    code: str
    system: System | None
    ours: bool

    def work(self, ranks: int) -> Callable[[Path], object]:
        """Return that work, as side_by_side() takes it."""
        return lambda _: self.run(ranks)

    def first(self, ranks: int) -> Cost:
        """Run ranks when nothing of it is in memory."""
        self.cold()
        if self.system is None:
            return Cost(self.run(ranks))
        before = self.system.statistics()
        seconds = self.run(ranks)
        after = self.system.statistics()
        requests = self.system.requests(before, after)
        return Cost(seconds, requests if requests > 0 else None, after["bytes"] - before["bytes"])

    def run(self, ranks: int) -> float:
        """Run ranks, all at once, to their end; return the seconds that they took."""
        words = [*self.command, PYTHON, "-IS", "-c", self.code]
        return self.by.together([words] * ranks, **STEP)[WALL]

    def cold(self) -> None:
        """Let neither the kernel nor a client have anything of it in memory."""
        if self.system:
            self.system.remount()
        os.sync()
        CACHES.write_text("3")

    @contextmanager
    def warm(self) -> Iterator[None]:
        """Have read all of it already, in a container that is still there."""
        there = (
            self.by.holding([*self.command, PYTHON, "-IS", "-c", "import time; time.sleep(600)"], **STEP)
            if self.ours
            else nullcontext()
        )
        with there:
            self.run(1)
            yield


def put(stack: Stack, place: Path) -> None:
    """Put a stack into a new directory, as tree and as image."""
    place.mkdir(mode=0o755)
    shutil.copytree(stack.tree, place / "tree", symlinks=True)
    (place / "store").mkdir(mode=0o755)
    shutil.copyfile(stack.image, place / "store/storm.sqfs")
    (place / "store/storm.sqfs").chmod(0o644)


def sources(stack: Stack, site: Site, root: Starter, systems: Iterable[tuple[System, Path]]) -> dict[str, Source]:
    """Return all ways to read a stack.

    root: starts what needs root, as chroot(1) does; site: has the image, too; systems: where on them put() has put it.
    """

    def tree(place: Path, system: System | None = None) -> Source:
        command = ["/usr/sbin/chroot", f"--userspec={USER}:{USER}", str(place)]
        return Source(command, root, stack.code, system, ours=False)

    def image(path: Path, way: str, system: System | None = None) -> Source:
        command = [str(site.sh_run), f"--mount={way}", "--image", str(path)]
        return Source(command, site.started, stack.code, system, ours=True)

    found = {LOCAL: tree(stack.tree)}
    for system, place in systems:
        found[f"{system.kind}, tree"] = tree(place / "tree", system)
        for way in ("fuse", "kernel"):
            found[f"{system.kind}, image by {way}"] = image(place / "store/storm.sqfs", way, system)
    for way in ("fuse", "kernel"):
        found[f"staged to the node, image by {way}"] = image(site.image, way)
    return found
