"""How much C runs with privilege: counted, and it must hold."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure import Row
from bench.privilege import BUBBLEWRAP, bubblewrap, privileged
from fixtures.installed import TREE

MOST = 560  # all there are: a new line shall be seen. 400 before there were node caches


def test_few_lines_of_c_run_with_privilege(record: Callable[[Row], None]) -> None:
    lines, _ = privileged(TREE / "lib/c/sh-mount.c")
    theirs = bubblewrap(TREE / "build/bench/bubblewrap")
    beside = f"bubblewrap {BUBBLEWRAP}: {f'{theirs:,}' if theirs else 'not measured, no source package'}"
    record(Row(f"lines of C that run with privilege ({beside})", MOST, "lines", lines, lines, lines, gate=True))
