"""Counts lines of C: how many of sh-mount's can run with privilege, and how many bubblewrap has, as a yardstick."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

# A line of code is one that is not blank, comment or preprocessor's. Of sh-mount, all functions can run with privilege
# but these, to which main() comes through drop() only: privileged() sees to that.
AFTER_DROP = ("join", "execute", "fill", "run_mkfs")
BUBBLEWRAP = "0.8"
SOURCES = ("bubblewrap.c", "bind-mount.c", "network.c", "utils.c")
APT = ("-qq", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=")


def code(text: str) -> list[str]:
    """Return the lines of code of a C file."""
    bare = re.sub(r'("(?:\\.|[^"\\])*")|/\*.*?\*/|//[^\n]*', lambda found: found[1] or "", text, flags=re.DOTALL)
    joined = re.sub(r"\\\n", " ", bare)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def functions(lines: list[str]) -> dict[str, list[str]]:
    """Return the lines of each function, whose signature is one line and whose braces stand at the margin."""
    found: dict[str, list[str]] = {}
    for start, line in enumerate(lines):
        if line == "{":
            name = re.search(r"(\w+)\(", lines[start - 1])
            assert name, lines[start - 1]
            found[name[1]] = lines[start - 1 : lines.index("}", start) + 1]
    return found


def privileged(source: Path) -> tuple[int, int]:
    """Return how many lines of sh-mount can run with privilege, and how many lines of code it has."""
    lines = code(source.read_text())
    parts = functions(lines)
    before = {name: part for name, part in parts.items() if name not in AFTER_DROP}
    for name in AFTER_DROP:
        assert any(f" {name}(" in line for part in parts.values() for line in part[1:]), f"{name}() is never called"
        for part in before.values():
            calls = [above.strip() for above, line in zip(part, part[1:], strict=False) if f" {name}(" in line]
            assert all(above.startswith("drop(") for above in calls), f"{name}() may run before drop()"
    return sum(len(part) for part in before.values()), len(lines)


def bubblewrap(keep: Path) -> int | None:
    """Return how many lines of code bubblewrap has, or None if apt cannot get its source package here.

    keep: a directory for the archive, for the next time.
    """
    pattern = f"bubblewrap_{BUBBLEWRAP}*.orig.tar.*"
    keep.mkdir(parents=True, exist_ok=True)
    if not list(keep.glob(pattern)):
        _fetch(keep)
    for archive in keep.glob(pattern):
        with tarfile.open(archive) as source:  # by Python itself: tar(1) needs a program for .xz
            parts = [member for member in source if Path(member.name).name in SOURCES]
            return sum(len(code(source.extractfile(part).read().decode())) for part in parts)
    return None


def _fetch(keep: Path) -> None:
    """Fetch the source package from where this machine's packages come from."""
    with tempfile.TemporaryDirectory() as there:
        top = Path(there)
        for name in ("parts", "lists/partial", "cache/archives/partial"):
            (top / name).mkdir(parents=True)
        for listed in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*.[sl]*")):
            if listed.suffix in (".list", ".sources") and listed.exists():
                text = re.sub(r"^Types:.*", "Types: deb-src", listed.read_text(), flags=re.MULTILINE)
                text = re.sub(r"^deb ", "deb-src ", text, flags=re.MULTILINE)
                (top / "parts" / listed.name).write_text(text)
        options = [*APT, "-o", f"Dir::Etc::sourceparts={top}/parts", "-o", f"Dir::State::lists={top}/lists"]
        options += ["-o", f"Dir::Cache={top}/cache"]
        for words in (["update"], ["source", "--download-only", "bubblewrap"]):
            try:
                subprocess.run(["apt-get", *options, *words], cwd=keep, timeout=120, capture_output=True, check=True)
            except (OSError, subprocess.SubprocessError):
                return
