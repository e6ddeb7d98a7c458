# SPDX-License-Identifier: Apache-2.0
"""Charts over volumes as SVG: readable without a script, linked to each other with one.

The same text is a file under ``figures/`` and a part of the page. Every text goes through
:func:`html.escape`. A chart says where its columns are (``data-left``, ``data-step``) and which
volume each shows (``data-order``): that is all the script needs to link it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#B8A800",
)  # fmt: skip
"""Okabe & Ito's colours (yellow darkened), told apart by colour-blind readers."""

AXIS_COLORS = {"x": VERMILION, "y": BLUE, "z": GREEN}

SHELL_COLORS = (SKY, BLUE, PURPLE, ORANGE, GREEN, VERMILION, YELLOW, "#000000")

B0_COLOR = "#9A9A9A"
INK, FADED, RULE = "#222222", "#666666", "#DDDDDD"

LEAST_TICKS = 3
"""With fewer, an axis that crosses zero could have no other number: no scale."""

WIDTH = 1060.0
LEFT, RIGHT = 62.0, 92.0


def element(name: str, content: str = "", **attributes: object) -> str:
    """Write an element of SVG, whose content is written already."""
    written = attributes_text(attributes)
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def attributes_text(attributes: Mapping[str, object]) -> str:
    """Write the attributes of an element of SVG or HTML.

    ``class_`` stands for ``class``, other underscores for hyphens; ``True`` is an attribute
    without a value, ``None`` and ``False`` none.
    """
    return "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_value(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def text(
    x: float, y: float, content: str, *, anchor: str = "start", fill: str = INK, size: float = 12,
    weight: str | None = None, rotate: bool = False,
) -> str:  # fmt: skip
    """Write text at a place, on its side when `rotate`."""
    turn = f"rotate(-90 {x:.6g} {y:.6g})" if rotate else None
    return element(
        "text", escape(content), x=x, y=y, text_anchor=anchor, fill=fill, font_size=size,
        font_weight=weight, transform=turn,
    )  # fmt: skip


def title(content: str) -> str:
    """Write what a pointer that rests on an element shows."""
    return f"<title>{escape(content)}</title>"


def document(
    width: float, height: float, parts: Sequence[str], label: str, **attributes: object
) -> str:
    """Write an SVG document.

    Parameters
    ----------
    width, height : float
    parts : sequence of str
    label : str
        What it shows, for those who do not see it.
    """
    return element(
        "svg", title(label) + "".join(parts), xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label,
        font_family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
        **attributes,
    )  # fmt: skip


class Columns:
    """The common x axis of charts over volumes.

    Parameters
    ----------
    order : (N,) sequence of int
        The volume that each column shows.
    """

    def __init__(self, order: Sequence[int] | np.ndarray) -> None:
        self.order = [int(volume) for volume in order]
        self.step = (WIDTH - LEFT - RIGHT) / max(len(self.order), 1)
        self.column = {volume: k for k, volume in enumerate(self.order)}

    @property
    def right(self) -> float:
        """Where the last column ends."""
        return WIDTH - RIGHT

    def middle(self, volume: int) -> float:
        """Middle of a volume's column."""
        return LEFT + (self.column[volume] + 0.5) * self.step

    def band(self, volume: int, top: float, height: float, fill: str, **attributes: Any) -> str:
        """Fill a volume's column."""
        x = LEFT + self.column[volume] * self.step
        return element("rect", x=x, y=top, width=self.step, height=height, fill=fill, **attributes)

    def axis(self, y: float, label: str = "volume") -> str:
        """Write the numbers of the columns below `y`."""
        in_time = self.order == sorted(self.order)
        shown = self.order if in_time else range(len(self.order))
        round_ones = set(ticks(min(shown), max(shown), 14, whole=True)) if shown else ()
        marks = [k for k, number in enumerate(shown) if number in round_ones]
        numbers = "".join(
            text(LEFT + (k + 0.5) * self.step, y + 15, str(self.order[k]), anchor="middle",
                 fill=FADED)
            for k in marks
        )  # fmt: skip
        return numbers + text(self.right + 8, y + 15, label, fill=FADED)

    def chart(self, height: float, parts: Sequence[str], label: str, kind: str) -> str:
        """Write a linked chart, with the cursor that the script moves."""
        cursor = element(
            "rect", class_="cursor", x=LEFT, y=0.0, width=max(self.step, 1.5), height=height,
            fill="#000000", fill_opacity="0.13", visibility="hidden", pointer_events="none",
        )  # fmt: skip
        return document(
            WIDTH, height, [*parts, cursor], label, class_="chart linked", data_kind=kind,
            data_left=f"{LEFT:g}", data_step=f"{self.step:.6g}", data_order=json.dumps(self.order),
        )  # fmt: skip


class Panel:
    """A panel of a chart: values on a linear axis.

    Parameters
    ----------
    columns : Columns
    top, height : float
    low, high : float
        Ends of the axis.
    label : str
    """

    def __init__(
        self, columns: Columns, top: float, height: float, low: float, high: float, label: str
    ) -> None:
        self.columns, self.top, self.height, self.label = columns, top, height, label
        if not high - low > 1e-9:
            low, high = low - 0.5, high + 0.5
        self.low, self.high = low, high

    def y(self, value: float) -> float:
        """Where a value is, not beyond the panel."""
        part = (value - self.low) / (self.high - self.low)
        return self.top + self.height * (1 - min(max(part, 0.0), 1.0))

    def frame(self) -> str:
        """Draw grid lines, numbers and the label."""
        parts = []
        for value in ticks(self.low, self.high, self.height / 24):
            y, is_zero = self.y(value), abs(value) < 1e-9 * (self.high - self.low)
            parts.append(element("line", x1=LEFT, x2=self.columns.right, y1=y, y2=y,
                                 stroke=FADED if is_zero else RULE, stroke_width=1))  # fmt: skip
            parts.append(text(LEFT - 7, y + 4, f"{value:.6g}", anchor="end", fill=FADED, size=11))
        middle = self.top + self.height / 2
        parts.append(text(16, middle, self.label, anchor="middle", rotate=True))
        return "".join(parts)

    def line(self, volumes: Sequence[int], values: np.ndarray, color: str, name: str) -> str:
        """Draw a line with a dot at each volume, broken where nothing is known."""
        known = [(v, x) for v, x in zip(volumes, values, strict=True) if np.isfinite(x)]
        points = " ".join(f"{self.columns.middle(v):.2f},{self.y(x):.2f}" for v, x in known)
        radius = min(2.6, max(1.2, self.columns.step / 4))
        dots = "".join(
            element("circle", cx=self.columns.middle(v), cy=self.y(x), r=radius, fill=color)
            for v, x in known
        )
        return element(
            "g",
            title(name)
            + element("polyline", points=points, fill="none", stroke=color, stroke_width=1.5)
            + dots,
        )

    def band(self, low: np.ndarray, high: np.ndarray, color: str) -> str:
        """Fill between two curves over all columns, where both are known."""
        known = [v for v in self.columns.order if np.isfinite(low[v]) and np.isfinite(high[v])]
        if not known:
            return ""
        upper = [f"{self.columns.middle(v):.2f},{self.y(high[v]):.2f}" for v in known]
        lower = [f"{self.columns.middle(v):.2f},{self.y(low[v]):.2f}" for v in reversed(known)]
        return element("polygon", points=" ".join(upper + lower), fill=color, fill_opacity="0.22")

    def bar(self, volume: int, value: float, color: str) -> str:
        """Draw a bar from zero."""
        width = max(self.columns.step * 0.78, 0.8)
        top, bottom = self.y(value), self.y(0.0)
        return element(
            "rect", x=self.columns.middle(volume) - width / 2, y=top, width=width,
            height=max(bottom - top, 0.4), fill=color,
        )  # fmt: skip


def ticks(low: float, high: float, most: float, *, whole: bool = False) -> list[float]:
    """Choose round values between two ends, at least 3: Matplotlib's.

    Parameters
    ----------
    low, high : float
    most : float
        Largest number of steps between them, if 3 values lie between them then.
    whole : bool
        Whole numbers only.
    """
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(
        max(1, round(most)), steps=[1, 2, 5, 10], integer=whole, min_n_ticks=LEAST_TICKS
    )
    slack = 1e-9 * (high - low)
    found = (float(value) for value in locator.tick_values(low, high))
    return [value for value in found if low - slack <= value <= high + slack]


def spread_labels(heights: Sequence[float], apart: float) -> list[float]:
    """Move labels apart that would lie on each other."""
    order = np.argsort(heights)
    placed = list(map(float, heights))
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + apart)
    return placed
