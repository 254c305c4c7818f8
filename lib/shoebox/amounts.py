"""Sizes and spans of time, as people write and read them. Pure."""

from __future__ import annotations

from .fail import USAGE, Fail

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}  # seconds
_POWERS = ("", "K", "M", "G", "T")


def parse_size(text: str) -> int:
    """Read a size in bytes: digits, and a unit of 1024 if any. Raises Fail."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isascii() or not digits.isdigit() or unit not in _POWERS:
        raise Fail(f"not a size: {text!r}", todo="write digits, and K, M, G or T if need be", status=USAGE)
    return int(digits) << (10 * _POWERS.index(unit))


def parse_span(text: str) -> int:
    """Read a span of time in seconds: digits and one of the units of told_span, or 0. Raises Fail."""
    unit = text.lstrip("0123456789")
    digits = text[: len(text) - len(unit)]
    if not 0 < len(digits) < 10 or (unit not in _UNITS and text != "0"):
        raise Fail(f"not a time: {text!r}", todo=f"write digits and one of {', '.join(_UNITS)}: 30d", status=USAGE)
    return int(digits) * _UNITS.get(unit, 0)


def told_size(count: float) -> str:
    """Write a size as ls -h does: three digits at most, in powers of 1024."""
    unit = 0
    while round(count) >= 1000 and unit < len(_POWERS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f}{_POWERS[unit]}" if count >= 10 or not unit else f"{count:.1f}{_POWERS[unit]}"


def told_span(seconds: float) -> str:
    """Write a span in the largest unit of which it has at least two, `2d` to `13d` and then weeks."""
    for unit, length in reversed(_UNITS.items()):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
