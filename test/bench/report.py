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

from bench.measure import Row, Table

TOOLS = (
    *("tar2sqfs --version", "mksquashfs -version", "squashfuse_ll --help", "umoci --version", "skopeo --version"),
    *("docker-registry --version", "ch-run --version", "python3 --version"),
)
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
_BAR, _STEP, _LETTER = 300, 34, 7  # pixels: a ratio of 1, a row, a letter of what is left of the bars


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
    if row.unit == "x":
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,.{1 if row.unit in ('ms', 'MB/s') else 0}f} {row.unit}".rstrip()


def _cells(row: Row) -> list[str]:
    spread = f"{_value(row, row.low)} … {_value(row, row.high)}" if row.low < row.high else "counted"
    spread = "one round" if len(row.ours) == 1 else spread
    target = "" if row.target is None else f"{row.sense} {_value(row, row.target)}"
    return [row.work, target, _value(row, row.value), spread, {True: "yes", False: "NO", None: ""}[row.met]]


def _aligned(lines: list[list[str]]) -> str:
    """Return a table, as Markdown has it; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _figure(value: float | None) -> str:
    """Return a number with three digits that count, at least."""
    if value is None:
        return ""
    digits = 2 if value < 10 else 1
    return f"{value:,.{0 if value >= 100 or value == int(value) else digits}f}"


def text(rows: list[Row], tables: list[Table]) -> str:
    """Return the rows, and the tables below them, as Markdown has them."""
    parts = [_aligned([["work", "target", "measured", "spread", "met"], *map(_cells, rows)])]
    for table in tables:
        lines = [[name, *map(_figure, figures)] for name, figures in table.lines.items()]
        parts.append(f"{table.title}, {table.unit}:\n\n{_aligned([['', *table.columns], *lines])}")
    return "\n\n".join(parts)


def renew(page: Path, rows: list[Row], tables: list[Table], facts: dict[str, str]) -> None:
    """Put the figures between the page's marks."""
    head, _, rest = page.read_text().partition(BEGIN)
    about = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    page.write_text(f"{head}{BEGIN}{text(rows, tables)}\n\n{about}\n{END}{rest.partition(END)[2]}")


def write(where: Path, rows: list[Row], tables: list[Table], facts: dict[str, str]) -> None:
    """Write where.json and where.svg."""
    lines = [{**asdict(row), "met": row.met} for row in rows]
    document = {"machine": facts, "rows": lines, "tables": [asdict(table) for table in tables]}
    where.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    where.with_suffix(".svg").write_text(svg([row for row in rows if row.target is not None]))


def _share(row: Row, value: float) -> float:
    """Return a value relative to the row's target; in any row, what is below 1 meets it."""
    over, under = (value, row.target) if row.sense == "≤" else (row.target, value)
    return over / under if under else 0


def svg(rows: list[Row]) -> str:
    """Return a picture: a bar for each row, relative to its target, which is the line at 1: shorter is better."""
    left = max((len(row.work) for row in rows), default=0) * _LETTER + 16
    end, height = left + _BAR, _STEP * (len(rows) + 1) + 10
    size = f'width="{end + _BAR + 150}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{end}" y="20" text-anchor="middle">target</text>',
    ]
    for number, row in enumerate(rows):
        top = _STEP * (number + 1)
        middle = top + _STEP // 2 - 4
        bar, *spread = (max(0, min(_share(row, value), 2)) * _BAR for value in (row.value, row.low, row.high))
        color = "#4a9" if row.met else "#e84"
        work, target, value, *_ = _cells(row)
        parts += [
            f'<text x="{left - 8}" y="{middle + 5}" text-anchor="end">{work}</text>',
            f'<rect x="{left}" y="{top}" width="{bar:.0f}" height="{_STEP - 8}" fill="{color}"/>',
            f'<path d="M{left + spread[0]:.0f} {middle}H{left + spread[1]:.0f}" stroke="#222"/>',
            f'<text x="{left + max(bar, *spread) + 8:.0f}" y="{middle + 5}">{value}, {target}</text>',
        ]
    line = f'<path d="M{end} 26V{height - 8}" stroke="#222" stroke-dasharray="4 3"/>'
    return "\n".join([*parts, line, "</svg>\n"])
