"""mount.conf of sh-mount(8), as those read it who are not sh-mount. Pure; Python 3.9."""

from __future__ import annotations

from .amounts import parse_size
from .fail import Fail
from .paths import under

FILE = "mount.conf"
_SIZES, _FORMATS = (1 << 20, 1 << 40), ("ext4",)  # sh-mount's own, if the file names none


class Kernel:
    """What the kernel may mount: images in these directories, of these users, root too; node caches in those others.

    cache_formats: of their file systems, the first is the default; cache_sizes: the least and the most, in bytes.
    """

    __slots__ = ("cache_formats", "cache_sizes", "caches", "owners", "stores")

    def __init__(
        self,
        stores: tuple[str, ...] = (),
        owners: tuple[int, ...] = (0,),
        caches: tuple[str, ...] = (),
        cache_formats: tuple[str, ...] = _FORMATS,
        cache_sizes: tuple[int, int] = _SIZES,
    ) -> None:
        """Hold the parts."""
        self.stores = stores
        self.owners = owners
        self.caches = caches
        self.cache_formats = cache_formats
        self.cache_sizes = cache_sizes

    def has(self, path: str) -> bool:
        """Tell whether a path without symbolic links lies in one of the stores, or is one."""
        return any(under(path, store) for store in self.stores)


def parse(text: str) -> Kernel:
    """Read the file. A line that sh-mount does not understand, and for which it mounts nothing at all, says nothing."""
    stores, owners, caches = [], [0], []
    formats: tuple[str, ...] = _FORMATS
    sizes = _SIZES
    for line in text.split("\n"):
        key, _, value = line.strip(" \t").replace("\t", " ").partition(" ")
        value = value.strip(" ")
        if key == "store" and value.startswith("/"):
            stores.append(value)
        elif key == "owner" and value.isdecimal():
            owners.append(int(value))
        elif key == "cache" and value.partition(" ")[2].lstrip().startswith("/"):
            caches.append(value.partition(" ")[2].lstrip())
        elif key == "cache-fs":
            formats = tuple(value.split()) or formats
        elif key == "cache-size":
            sizes = _sizes(value) or sizes
    return Kernel(tuple(stores), tuple(owners), tuple(caches), formats, sizes)


def _sizes(value: str) -> tuple[int, int] | None:
    try:
        least, most = map(parse_size, value.split())
    except (Fail, ValueError):
        return None
    return least, most
