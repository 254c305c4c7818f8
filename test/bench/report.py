"""The table of a run: as text, as JSON, as a picture, and as the figures on the page."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

from bench.measure import Row

TOOLS = (
    *("tar2sqfs --version", "mksquashfs -version", "squashfuse_ll --help", "umoci --version", "skopeo --version"),
    *("docker-registry --version", "ch-run --version", "python3 --version"),
)
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
_BAR, _STEP, _LEFT = 300, 34, 380  # pixels: a ratio of 1, a row, what is left of the bars


def machine(tree: Path) -> dict[str, str]:
    """Return what the figures depend on, without a name of the machine."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = subprocess.check_output(["stat", "-f", "-c", "%T", tree], text=True).strip()
    linux = platform.release().partition("-")[0]
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "processors": f"{len(os.sched_getaffinity(0))}, {cpu[1].strip() if cpu else platform.machine()}",
        "memory": f"{pages >> 30} GiB",
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {linux}, {files}",
        "user": "an ordinary one" if os.geteuid() else "root",
        "tools": ", ".join(map(_version, TOOLS)),
    }


def _version(command: str) -> str:
    """Return a tool's name, and the first word that looks like a version in what it prints."""
    env = {"USER": "nobody", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    name, *words = command.split()
    done = subprocess.run([name, *words], capture_output=True, text=True, env=env, check=False)
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return f"{name} {found[0] if found else '?'}"


def _value(row: Row, value: float) -> str:
    digits = {"x": 2, "ms": 1}.get(row.unit, 0)
    text = f"{value:,.{digits}f}"
    return text if row.unit == "x" else f"{text} {row.unit}"


def _cells(row: Row) -> list[str]:
    spread = f"{_value(row, row.low)} … {_value(row, row.high)}" if row.ours else "counted"
    met = "yes" if row.value <= row.target else "NO"
    return [row.work, f"≤ {_value(row, row.target)}", _value(row, row.value), spread, met]


def text(rows: list[Row]) -> str:
    """Return the table, as Markdown has it."""
    lines = [["work", "target", "measured", "spread", "met"], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def renew(page: Path, rows: list[Row], facts: dict[str, str]) -> None:
    """Put the figures between the page's marks."""
    head, _, rest = page.read_text().partition(BEGIN)
    about = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    page.write_text(f"{head}{BEGIN}{text(rows)}\n\n{about}\n{END}{rest.partition(END)[2]}")


def write(where: Path, rows: list[Row], facts: dict[str, str]) -> None:
    """Write where.json and where.svg."""
    document = {"machine": facts, "rows": [{**asdict(row), "met": row.value <= row.target} for row in rows]}
    where.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    where.with_suffix(".svg").write_text(svg(rows))


def svg(rows: list[Row]) -> str:
    """Return a picture: a bar for each row, its length relative to the target, which is the line at 1."""
    end, height = _LEFT + _BAR, _STEP * (len(rows) + 1) + 10
    size = f'width="{end + _BAR + 120}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{end}" y="20" text-anchor="middle">target</text>',
    ]
    for number, row in enumerate(rows):
        top = _STEP * (number + 1)
        middle = top + _STEP // 2 - 4
        bar, *spread = (min(v / row.target if row.target else 0, 2) * _BAR for v in (row.value, row.low, row.high))
        color = "#4a9" if row.value <= row.target else "#e84"
        work, target, value, *_ = _cells(row)
        parts += [
            f'<text x="{_LEFT - 8}" y="{middle + 5}" text-anchor="end">{work}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{bar:.0f}" height="{_STEP - 8}" fill="{color}"/>',
            f'<path d="M{_LEFT + spread[0]:.0f} {middle}H{_LEFT + spread[1]:.0f}" stroke="#222"/>',
            f'<text x="{_LEFT + max(bar, spread[1]) + 8:.0f}" y="{middle + 5}">{value}, {target}</text>',
        ]
    line = f'<path d="M{end} 26V{height - 8}" stroke="#222" stroke-dasharray="4 3"/>'
    return "\n".join([*parts, line, "</svg>\n"])
