# SPDX-License-Identifier: Apache-2.0
"""The end of a run: what became of each series, in a table and in the log."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion.cli.board import Watch
from eddymotion.cli.results import RESULT
from eddymotion.cli.screen import is_terminal
from eddymotion.derivatives.names import source_name

if TYPE_CHECKING:
    from eddymotion.bids.series import Sorted

log = logging.getLogger("eddymotion")

STYLES = ("green", "yellow", "red")
"""Of a verdict, by its level."""

FAILED = "failed"

MOST_ROWS = 60
"""Of a table that somebody reads; of more series, those that are usable are only counted."""

LEAST = 2
"""Columns that the narrowest table has: series and verdict."""

LOG_WIDTH = 1000


@dataclass(frozen=True)
class Outcome:
    """A series at the end of a run, in words.

    Parameters
    ----------
    series, verdict, motion, lost, seconds, report : str
    level : int
        Of the verdict, 0 to 2; 3 where it failed.
    """

    series: str
    verdict: str
    motion: str = ""
    lost: str = ""
    seconds: str = ""
    report: str = ""
    level: int = 3

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of the columns."""
        return self.series, self.verdict, self.motion, self.lost, self.seconds, self.report


COLUMNS = ("series", "verdict", "head motion", "lost slices", "seconds", "report")


def rows_of(watch: Watch, failures: Mapping[str, str]) -> list[Outcome]:
    """Put together what is known of all series of a run that has ended.

    Parameters
    ----------
    watch : Watch
        Who has watched the run.
    failures : mapping
        Series → why it failed.
    """
    rows = []
    jobs = [(page, job) for page in watch.pages for job in page.jobs]
    for page, job in jobs:
        assert watch.board is not None
        seconds = watch.board.lines[job.outputs.src].seconds
        spent = "" if seconds is None else f"{seconds:.0f}"
        found = watch.found.get(job.name)
        if job.name in failures or found is None:
            rows.append(Outcome(job.outputs.src, FAILED, report=page.path.name))
        else:
            rows.append(_finished(job.outputs.src, found, spent, page.path.name))
    names = {job.name for _, job in jobs}
    refused = [source_name(Path(name)) for name in failures if name not in names]
    return rows + [Outcome(name, FAILED) for name in refused]


def _finished(src: str, found: Mapping[str, Any], seconds: str, report: str) -> Outcome:
    motion = "n/a" if found["fd_mean"] is None else f"{found['fd_mean']:.2f} mm"
    lost = f"{found['lost']} of {found['judged']}" if found["judged"] else "not judged"
    return Outcome(src, found["verdict"], motion, lost, seconds, report, found["level"])


def show_table(rows: Sequence[Outcome], folder: Path) -> None:
    """Show the table on the console, and write it to the log.

    Parameters
    ----------
    rows : sequence of Outcome
    folder : Path
        Where the reports are.
    """
    from rich.console import Console

    usable = [row for row in rows if row.level == 0] if len(rows) > MOST_ROWS else []
    shown = [row for row in rows if row not in usable]
    text = io.StringIO()
    plain = Console(file=text, width=LOG_WIDTH, highlight=False)
    plain.print(_table(shown, folder, LOG_WIDTH))
    lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    if usable:
        lines.append(f"and {len(usable)} other series: {usable[0].verdict}")
    if not is_terminal(sys.stdout):
        log.info("\n%s", "\n".join(lines), extra=RESULT)
        return
    console = Console(file=sys.stdout, highlight=False)
    console.print(_table(shown, folder, console.width))
    for line in lines[len(lines) - bool(usable) :]:
        console.print(line)
    log.info("\n%s", "\n".join(lines), extra={"is_shown": True})


def _table(rows: Sequence[Outcome], folder: Path, width: int) -> Any:
    """Make a table that fits; where the reports do not, they are named below it."""
    table = _with(rows, COLUMNS, str(folder))
    if _needs(table) <= width:
        return table
    table = _with(rows, COLUMNS, "")
    table.caption = f"reports: {folder}/"
    if _needs(table) <= width:
        return table
    columns: tuple[str, ...] = COLUMNS[:-1]
    longest = max((len(part) for row in rows for part in parts(row.series)), default=0)
    while len(columns) > LEAST and _room(rows, columns, width) < longest:
        columns = columns[:-1]
    room = _room(rows, columns, width)
    table = _with([replace(row, series=folded(row.series, room)) for row in rows], columns, "")
    table.caption = f"reports: {folder}/sub-*.html"
    return table


def _room(rows: Sequence[Outcome], columns: Sequence[str], width: int) -> int:
    """How many letters of a series' name fit into a line of the table."""
    beyond = max(_needs(_with(rows, columns, "")) - width, 0)
    return max((len(row.series) for row in rows), default=0) - beyond


def parts(name: str) -> list[str]:
    """Break a BIDS name behind each of its entities."""
    return re.findall(r"[^_]+_?", name)


def folded(name: str, room: int) -> str:
    """Break a BIDS name into lines, between its entities."""
    lines = [""]
    for part in parts(name):
        if lines[-1] and len(lines[-1]) + len(part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _needs(table: Any) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=LOG_WIDTH)
    return Measurement.get(console, console.options, table).maximum


def _with(rows: Sequence[Outcome], columns: Sequence[str], folder: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for column in columns:
        right = column in ("head motion", "lost slices", "seconds")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        cells = [Text(cell) for cell in row.cells[: len(columns)]]
        cells[1].stylize((*STYLES, "bold red")[row.level])
        if folder and row.report:
            cells[-1] = Text(f"{folder}/{row.report}")
        table.add_row(*cells)
    return table


def log_skipped(found: Sorted) -> None:
    """List the series that were skipped, those with the same reason together."""
    from eddymotion.bids.series import flattened

    for reason, names in by_reason(flattened(found.skipped)).items():
        log.info("%d series skipped: %s: %s", len(names), ", ".join(names), reason)


def log_failures(failures: dict[str, str], n_series: int, log_file: Path) -> None:
    """List the series that failed, those with the same reason together."""
    if not failures:
        return
    log.error("%d of %d series failed (log: %s):", len(failures), n_series, log_file)
    for reason, names in by_reason(failures).items():
        log.error("  %s: %s", ", ".join(names), reason)


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Turn name → reason into reason → names."""
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    return grouped
