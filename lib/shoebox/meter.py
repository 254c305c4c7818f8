"""The progress meter: a bar on stderr, when that is a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def meter(total_bytes: int, label: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show how far a long work is, with rate and time left, and yield advance(bytes), which any thread may call.

    total_bytes: 0 when unknown. Nothing is shown when quiet, or when stderr is no terminal.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _nothing
        return
    from rich import progress  # noqa: PLC0415 - 100 ms, for those who look on only
    from rich.console import Console  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total_bytes or None)
        yield lambda count: bar.advance(task, count)


def _nothing(_count: int) -> None:
    """Advance no bar."""
