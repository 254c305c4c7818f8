"""Expiry: which images of a store go, and why. Pure: what is held and the rules in, a list out."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from .amounts import told_size, told_span

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMELESS = "-"  # what a pattern meets where an image has no name, as sh-images shows it


@dataclass(frozen=True)
class Held:
    """An image in a store: its digest's hex digits, size in bytes, when it was staged and last used (time()).

    names: references. own: whether it is ours to remove.
    """

    digits: str
    size: int
    staged: float
    used: float
    names: tuple[str, ...]
    pinned: bool
    own: bool


@dataclass(frozen=True)
class Rules:
    """What expires: age in seconds since the last use and quota in bytes, None for any; patterns of names."""

    age: float | None
    quota: int | None
    match: tuple[str, ...]
    keep: tuple[str, ...]


def decide(held: Iterable[Held], rules: Rules, now: float) -> tuple[list[tuple[Held, str]], int]:
    """Return what goes, each with the reason, oldest use first, and the bytes by which the quota stays exceeded.

    Patterns choose what may go at all. Of that goes what has not been used for the age; then, until all of our own
    images are within the quota, what has the oldest use. With patterns alone, all that they choose goes.
    """
    own = sorted((image for image in held if image.own), key=lambda image: (image.used, image.digits))
    total = sum(image.size for image in own)
    going = []
    for image in own:
        if image.pinned or not _may_go(image, rules):
            continue
        idle = f"last used {told_span(now - image.used)} ago"
        if rules.age is not None and now - image.used >= rules.age:
            reason = idle
        elif rules.quota is not None and total > rules.quota:
            reason = f"{told_size(total)} are more than {told_size(rules.quota)}, and it was {idle}"
        elif rules.age is None and rules.quota is None and rules.match:
            reason = f"it matches {' or '.join(map(repr, rules.match))}"
        else:
            continue
        going.append((image, reason))
        total -= image.size
    return going, max(0, total - rules.quota) if rules.quota is not None else 0


def _may_go(image: Held, rules: Rules) -> bool:
    """Tell whether all names match, if patterns are given, and none is to be kept."""
    names = image.names or (NAMELESS,)
    matches = not rules.match or all(_any(name, rules.match) for name in names)
    return matches and not any(_any(name, rules.keep) for name in names)


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, spelled) for pattern in patterns for spelled in _spelled(pattern))


def _spelled(pattern: str) -> tuple[str, ...]:
    """Return the patterns for whole references that one stands for: it may lack Docker Hub's name, and the tag.

    A pattern that people believe to keep an image must not miss it for its spelling.
    """
    if pattern == NAMELESS:
        return (pattern,)
    host, slash, _ = pattern.partition("/")
    hosted = slash and (set(host) & set("*?[.:") or host == "localhost")
    fulls = (pattern,) if hosted else (pattern, f"docker.io/{pattern}" if slash else f"docker.io/library/{pattern}")
    ends = ("",) if ":" in pattern.rpartition("/")[2] or "@" in pattern else ("", ":*", "@*")
    return tuple(full + end for full in fulls for end in ends)
