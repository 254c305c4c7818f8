"""mount.conf of sh-mount(8), as far as it concerns who fills stores: which the kernel mounts from. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from .paths import under

FILE = "mount.conf"


@dataclass(frozen=True)
class Kernel:
    """The directories that the kernel may mount images from, and the users whose images it may be given, root too."""

    stores: tuple[str, ...]
    owners: tuple[int, ...]

    def has(self, path: str) -> bool:
        """Tell whether a path without symbolic links lies in one of the stores, or is one."""
        return any(under(path, store) for store in self.stores)


def parse(text: str) -> Kernel:
    """Read the file. A line that sh-mount does not understand, and for which it mounts nothing at all, says nothing."""
    stores, owners = [], [0]
    for line in text.split("\n"):
        key, _, value = line.strip(" \t").replace("\t", " ").partition(" ")
        value = value.strip(" ")
        if key == "store" and value.startswith("/"):
            stores.append(value)
        elif key == "owner" and value.isdecimal():
            owners.append(int(value))
    return Kernel(tuple(stores), tuple(owners))
