"""Platforms: what a machine is called in the images' words, and which of them runs what. Pure.

Follows image-spec v1.1, image-index.md ("platform"), and containerd's platforms.Normalize for what is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fail import USAGE, Fail

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_USUAL = {"arm64": "v8", "amd64": "v1"}  # the variant that everyone means and nobody needs to say


@dataclass(frozen=True)
class Platform:
    """What an image runs on: Go's GOOS and GOARCH, and a variant (`linux`, `arm`, `v7`); empty when not said."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """Return it as --platform takes it: `linux/arm/v7`."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform:
    """Read `OS/ARCH[/VARIANT]`. Raises Fail (USAGE)."""
    parts = text.lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(p.isascii() and p.replace("_", "").isalnum() for p in parts):
        raise Fail(f"not a platform: {text!r}", todo="write OS/ARCH or OS/ARCH/VARIANT, as linux/arm64", status=USAGE)
    return _normal(Platform(parts[0], _ALIASES.get(parts[1], parts[1]), parts[2] if len(parts) == 3 else ""))


def native(machine: str) -> Platform:
    """Return the platform of a Linux machine, from uname(2)'s machine."""
    return _normal(Platform("linux", *_MACHINES.get(machine, (machine, ""))))


def runs_on(offered: Platform, wanted: Platform) -> int:
    """Return how well an image of one platform runs on another: 0 not at all, the more the better.

    A machine runs its own variant best, then lower ones: arm v7 runs v6, amd64 v3 runs v2.
    """
    offered, wanted = _normal(offered), _normal(wanted)
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return 0
    if offered.variant == wanted.variant:
        return 1000
    rank, limit = _rank(offered), _rank(wanted)
    return rank if 0 < rank <= limit else 0


def _normal(platform: Platform) -> Platform:
    """Say a variant in one way: `v7` for arm when there is none, none for what everyone means."""
    variant = platform.variant if platform.variant.startswith("v") or not platform.variant else f"v{platform.variant}"
    if platform.architecture == "arm" and not variant:
        variant = "v7"
    if variant == _USUAL.get(platform.architecture):
        variant = ""
    return Platform(platform.os, platform.architecture, variant)


def _rank(platform: Platform) -> int:
    """Return the number of a variant (`v7` is 7)."""
    digits = (platform.variant or _USUAL.get(platform.architecture, "")).removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 3 else 0
