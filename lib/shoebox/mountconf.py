"""mount.conf of sh-mount(8), as those read it who are not sh-mount. Pure; Python 3.9."""

from __future__ import annotations

from .paths import under

FILE = "mount.conf"


class Kernel:
    """What the kernel may mount: images in these directories, of these users, root too; node caches in those others.

    cache_formats: of their file systems, the first is the default; () if it says nothing.
    """

    __slots__ = ("cache_formats", "caches", "owners", "stores")

    def __init__(
        self,
        stores: tuple[str, ...] = (),
        owners: tuple[int, ...] = (0,),
        caches: tuple[str, ...] = (),
        cache_formats: tuple[str, ...] = (),
    ) -> None:
        """Hold the parts."""
        self.stores = stores
        self.owners = owners
        self.caches = caches
        self.cache_formats = cache_formats

    def has(self, path: str) -> bool:
        """Tell whether a path without symbolic links lies in one of the stores, or is one."""
        return any(under(path, store) for store in self.stores)


def parse(text: str) -> Kernel:
    """Read the file. A line that sh-mount does not understand, and for which it mounts nothing at all, says nothing."""
    stores, owners, caches = [], [0], []
    formats: tuple[str, ...] = ()
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
            formats = tuple(value.split())
    return Kernel(tuple(stores), tuple(owners), tuple(caches), formats)
