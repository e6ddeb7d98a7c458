# SPDX-License-Identifier: Apache-2.0
"""A terminal: lines that are not broken within a word, bars at its foot."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TextIO

LEAST_WIDTH = 20

BESIDE = 36
"""Letters of a line for the bar and what is left."""

AT_FOOT = 4
"""Lines of a terminal that are left free above the bars."""


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether somebody sees what a stream shows, and bars can be drawn there.

    Parameters
    ----------
    stream : stream, optional
        Default: the standard error.
    """
    with suppress(ValueError):  # closed
        return (stream or sys.stderr).isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return False


def wrapped(text: str, width: int | None = None) -> str:
    """Break the lines of a text between words, what follows indented.

    Parameters
    ----------
    text : str
    width : int, optional
        Of the terminal when not given.
    """
    width = width or shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(
            line,
            max(width, LEAST_WIDTH),
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )


@dataclass(frozen=True)
class Bar:
    """A line at the foot of the screen.

    Parameters
    ----------
    before, name, after : str
        What stands before the bar; where there is no room for it, the name is shortened.
    share : float
        Of the work that is done, 0 to 1.
    left : str
        How much there is left.
    """

    before: str
    name: str
    after: str
    share: float
    left: str = ""

    def text(self, room: int) -> str:
        """Return what stands before the bar, in `room` letters."""
        room -= len(self.before) + len(self.after)
        return f"{self.before}{shortened(self.name, room)}{self.after}"


def shortened(name: str, room: int) -> str:
    """Leave out what is in the middle: names that stand together differ at both ends."""
    if len(name) <= room:
        return name
    end = max(room - 1, 2) // 2
    return f"{name[: max(room - 1 - end, 1)]}…{name[-end:]}"


_terminal = threading.RLock()
"""Whoever writes to the terminal holds it."""


class Screen:
    """The terminal of a command while it shows bars; there is one at most."""

    now: ClassVar[Screen | None] = None

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=sys.stderr, highlight=False, markup=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Screen:
        with _terminal:
            self._live.start()
            self.console.show_cursor(True)  # however this ends
            Screen.now = self
        return self

    def __exit__(self, *error: object) -> None:
        with _terminal:
            Screen.now = None
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print lines above the bars."""
        with _terminal:
            lines = wrapped(text, self.console.width)
            self.console.print(lines, style=style or None, soft_wrap=True)

    def draw(self, bars: Sequence[Bar], foot: str = "") -> None:
        """Draw bars, and a line below them."""
        with _terminal:
            most = max(1, self.console.height - AT_FOOT)
            more = f"and {len(bars) - most} more at work" if len(bars) > most else ""
            below = " · ".join(filter(None, (more, foot)))
            self._live.update(_grid(bars[:most], below, self.console.width), refresh=True)


def _leave_terminal() -> None:
    """In a process that was forked: the terminal is that of its parent."""
    Screen.now = None
    _terminal.release()


# nobody is forked while a thread writes, which he would not have
os.register_at_fork(before=_terminal.acquire, after_in_parent=_terminal.release,
                    after_in_child=_leave_terminal)  # fmt: skip


def _grid(bars: Sequence[Bar], foot: str, width: int) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True, min_width=len("12 min left"))
    room = max(width - BESIDE, width // 2)
    for bar in bars:
        drawn = ProgressBar(total=1.0, completed=bar.share, complete_style="cyan")
        grid.add_row(bar.text(room), drawn, bar.left)
    return Group(grid, foot) if foot else grid
