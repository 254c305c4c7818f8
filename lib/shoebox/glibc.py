"""The GNU C library, of which a process has one only, the image's: its files, and what it can load. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LIBC = "libc.so.6"
VERSIONED = (LIBC, "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")  # those whose versions others ask for
# Where an image may have it, the most particular place first.
DIRECTORIES = (
    *("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"),
    *("/lib64", "/usr/lib64", "/lib", "/usr/lib"),
)
_PARTS = (
    *("ld-linux", "ld64.so", "linux-vdso", "libanl.so", "libc.so", "libdl.so", "libm.so", "libmvec.so", "libnsl.so.1"),
    *("libnss_", "libpthread.so", "libresolv.so", "librt.so", "libthread_db.so", "libutil.so", "libBrokenLocale.so"),
)


def is_part(name: str) -> bool:
    """Tell whether a library of this name belongs to it."""
    return name.startswith(_PARTS)


def too_new(needs: Mapping[str, Collection[str]], has: Mapping[str, Collection[str]]) -> str:
    """Return why an image with these versions in its glibc cannot load a library, "" if it can."""
    lacking = [
        (numbers(version), f"{version} of {name}")
        for name, versions in needs.items()
        for version in versions
        if name in has and version.startswith("GLIBC_") and version not in has[name]
    ]
    return f"it needs {max(lacking)[1]}, and the image has an older glibc" if lacking else ""


def numbers(text: str) -> list[int]:
    """Return the numbers in a version, for comparing."""
    digits = "".join(c if c.isdecimal() else " " for c in text)
    return [int(word) for word in digits.split()]
