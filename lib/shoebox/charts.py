"""A report as one page of HTML: charts in SVG, and nothing that a browser would have to fetch. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BAR = "#2a6f97"  # fits light and dark
_WIDTH, _TALL = 720, 160  # of a chart, and of its columns, in pixels
_ROW, _LABEL, _NUMBER = 22, 300, 70  # of a bar: height; room for its name and its number
_CUT = 36  # characters of a name that fit
_MOST = 24  # bars; and columns
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px sans-serif }}
body {{ max-width: 760px; margin: 2em auto; padding: 0 1em }}
svg {{ width: 100%; height: auto; font-size: 13px }} svg text {{ fill: currentColor }}
p, figcaption {{ opacity: .8 }} figure {{ margin: 0 }}
</style></head>
<body><h1>{title}</h1>
<p>{note}</p>
{charts}
</body></html>
"""


@dataclass(frozen=True)
class Chart:
    """A title, and (name, more about it, number) for each bar, in order; columns: side by side, as for months."""

    title: str
    bars: Sequence[tuple[str, str, int]]
    columns: bool = False


def page(title: str, note: str, charts: Sequence[Chart]) -> str:
    """Return the page."""
    return _PAGE.format(title=escape(title), note=escape(note), charts="\n".join(map(_figure, charts)))


def _figure(chart: Chart) -> str:
    bars = chart.bars[-_MOST:] if chart.columns else chart.bars[:_MOST]
    left = len(chart.bars) - len(bars)
    caption = f"<figcaption>{left} more: see sh-stats --json</figcaption>" if left else ""
    if not bars:
        return f"<h2>{escape(chart.title)}</h2><p>nothing</p>"
    most = max(1, *(number for _, _, number in bars))
    drawn, height = _columns(bars, most) if chart.columns else _rows(bars, most)
    svg = f'<svg role="img" aria-label="{escape(chart.title)}" viewBox="0 0 {_WIDTH} {height}">{drawn}</svg>'
    return f"<h2>{escape(chart.title)}</h2><figure>{svg}{caption}</figure>"


def _rows(bars: Sequence[tuple[str, str, int]], most: int) -> tuple[str, int]:
    drawn = []
    for at, (name, more, number) in enumerate(bars):
        length = max(1, (_WIDTH - _LABEL - _NUMBER) * number // most)
        base = at * _ROW + _ROW - 7
        drawn.append(
            f"<g><title>{escape(_shown(f'{name} {more}'.strip()))}: {number}</title>"
            f'<text x="{_LABEL - 8}" y="{base}" text-anchor="end">{escape(_cut(name))}</text>'
            f'<rect x="{_LABEL}" y="{at * _ROW + 3}" width="{length}" height="{_ROW - 6}" fill="{BAR}"/>'
            f'<text x="{_LABEL + length + 6}" y="{base}">{number}</text></g>'
        )
    return "".join(drawn), len(bars) * _ROW


def _columns(bars: Sequence[tuple[str, str, int]], most: int) -> tuple[str, int]:
    step = min(90, _WIDTH // len(bars))
    some = -(-64 // step)  # columns to a label
    drawn = []
    for at, (name, more, number) in enumerate(bars):
        length = max(1, _TALL * number // most)
        top = 20 + _TALL - length
        label = f'<text x="{at * step}" y="{40 + _TALL}">{escape(_cut(name))}</text>' if at % some == 0 else ""
        count = f'<text x="{at * step}" y="{top - 4}">{number}</text>' if len(str(number)) * 9 < step else ""
        drawn.append(
            f"<g><title>{escape(_shown(f'{name} {more}'.strip()))}: {number}</title>"
            f'<rect x="{at * step}" y="{top}" width="{step - 4}" height="{length}" fill="{BAR}"/>'
            f"{count}{label}</g>"
        )
    return "".join(drawn), 48 + _TALL


def _cut(name: str) -> str:
    name = _shown(name)
    return name if len(name) <= _CUT else f"...{name[3 - _CUT :]}"


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
