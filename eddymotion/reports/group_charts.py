# SPDX-License-Identifier: Apache-2.0
"""Distributions of a group as SVG: each dot a series."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.mapping.rigid import PARAMETERS
from eddymotion.reports.group import SeriesGroup
from eddymotion.reports.group_rule import MetricComparison
from eddymotion.reports.metrics import METRICS, Metric, metric_parts
from eddymotion.reports.svg import FADED, INK, RULE, document, element, text, ticks

WIDTH, HEIGHT = 330.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 28.0, 24.0

Strips = dict[str, tuple[str, np.ndarray]]
"""Label → column of the table that is judged, and values (N,)."""

TONES = {"Usable": "good", "Usable with care": "care", "Doubtful": "doubtful"}


@dataclass(frozen=True, eq=False)
class Distribution:
    """A panel: one metric, in one strip or several.

    Parameters
    ----------
    name, label : str
    metric : Metric
    strips : dict
        Label → values (N,), NaN where not known.
    limits : dict
        Strip → the value beyond which a series stands out, where all are compared.
    """

    name: str
    label: str
    metric: Metric
    strips: dict[str, np.ndarray]
    limits: dict[str, float]


def distributions(
    group: SeriesGroup, comparisons: Sequence[Mapping[str, MetricComparison]]
) -> list[Distribution]:
    """Choose what is drawn: each thing that is measured once, with its variants side by side."""
    panels = _strips_of_metrics(group) | _displacements(group)
    panels["largest_motion"] = _largest_motions(group)
    return [
        _distribution(name, strips, comparisons)
        for name, strips in panels.items()
        if any(np.isfinite(values).any() for _, values in strips.values())
    ]


def _strips_of_metrics(group: SeriesGroup) -> dict[str, Strips]:
    """Put raw and corrected beside each other, and the limits of displacements."""
    panels: dict[str, Strips] = {}
    for metric in group.metrics:
        base, detail, which = metric_parts(metric)
        name = f"{base}_b{detail}" if base == "cnr" else base
        strip = which or (f"> {detail} mm" if base == "fd_percent_over_" else "")
        if METRICS[base].panel:
            panels.setdefault(name, {})[strip] = (metric, group.column(metric))
    return panels


def _displacements(group: SeriesGroup) -> dict[str, Strips]:
    """Separate displacements of the head from those with eddy currents, if both are known."""
    return {
        name: {
            "head alone": (name, group.head_column(name)),
            "and eddy currents": ("", group.column(name)),
        }
        for name in ("fd_mean", "fd_max")
        if name.replace("fd_", "fd_head_") in group.metrics
    }


def _largest_motions(group: SeriesGroup) -> Strips:
    """Sort the largest motions by the parameter of the transforms that they are in."""
    parameters = [row.metrics.get("largest_motion") for row in group.rows]
    ranges = group.column("largest_motion_range")
    return {
        name: ("", np.where([one == name for one in parameters], ranges, np.nan))
        for name in PARAMETERS
    }


def _distribution(
    name: str, strips: Strips, comparisons: Sequence[Mapping[str, MetricComparison]]
) -> Distribution:
    base, bval, _ = metric_parts(name)
    metric, limits = METRICS[base], {}
    for strip, (column, _) in strips.items():
        found = {one[column].limit for one in comparisons if column in one}
        if len(found) == 1:
            limits[strip] = found.pop()
    values = {strip: values for strip, (_, values) in strips.items()}
    label = metric.panel + (f" of b={bval}" if bval else "")
    return Distribution(name, label, metric, values, limits)


def distribution_chart(panel: Distribution, tones: Sequence[str], rings: Sequence[bool]) -> str:
    """Draw a panel.

    Parameters
    ----------
    panel : Distribution
    tones : (N,) sequence of str
        Class of each dot.
    rings : (N,) sequence of bool
        Which series stand out.
    """
    axis = _Scale.of(panel)
    step = (WIDTH - LEFT - RIGHT) / len(panel.strips)
    middles = [LEFT + (k + 0.5) * step for k in range(len(panel.strips))]
    parts = [text(4, 15, panel.label, weight="600", size=13), axis.frame()]
    for number, (name, values) in enumerate(panel.strips.items()):
        x, reach = middles[number], 0.42 * step
        parts.append(text(x, HEIGHT - 7, name, anchor="middle", fill=FADED, size=11))
        parts += _summary(axis, values, x, reach, panel.limits.get(name))
        parts.append(_dots(axis, values, x, reach, number, tones, rings))
    return document(
        WIDTH, HEIGHT, parts, _description(panel), class_="distribution", data_name=panel.name,
        data_digits=panel.metric.digits, data_strips=json.dumps(list(panel.strips)),
    )  # fmt: skip


def _description(panel: Distribution) -> str:
    digits = panel.metric.digits
    parts = [
        f"{name or 'all'}: median {np.median(known):.{digits}f}, "
        f"{known.min():.{digits}f} to {known.max():.{digits}f}, {len(known)} series"
        for name, values in panel.strips.items()
        if len(known := values[np.isfinite(values)])
    ]
    return f"{panel.label}. " + "; ".join(parts)


@dataclass(frozen=True)
class _Scale:
    """A vertical axis, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, panel: Distribution) -> _Scale:
        """Cover all values of a panel."""
        values = np.concatenate(list(panel.strips.values()))
        values = values[np.isfinite(values)]
        low, high = float(values.min()), float(values.max())
        if panel.metric.logarithmic and low > 0 and high > 5 * low:
            return cls(low / 1.15, high * 1.15, True)
        if np.isinf(panel.metric.most) and low >= 0:  # read from zero
            return cls(0.0, max(high * 1.06, 1e-3), False)
        space = max(0.06 * (high - low), 0.005)
        return cls(low - space, min(high + space, panel.metric.most), False)

    def y(self, value: float) -> float:
        """Where a value is, not beyond the panel."""
        low, high, value = (map(math.log, (self.low, self.high, max(value, self.low)))
                            if self.logarithmic else (self.low, self.high, value))  # fmt: skip
        part = (value - low) / (high - low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(part, 0.0), 1.0))

    def ticks(self) -> list[float]:
        """Round values on the axis."""
        if not self.logarithmic:
            return ticks(self.low, self.high, 5)
        from matplotlib.ticker import LogLocator

        values = LogLocator(subs=(1, 2, 5)).tick_values(self.low, self.high)
        return [float(value) for value in values if self.low <= value <= self.high]

    def frame(self) -> str:
        """Draw grid lines and numbers."""
        parts = []
        for value in self.ticks():
            y = self.y(value)
            parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke=RULE))
            parts.append(text(LEFT - 6, y + 4, f"{value:.6g}", anchor="end", fill=FADED, size=11))
        return "".join(parts)


def _summary(
    axis: _Scale, values: np.ndarray, x: float, reach: float, limit: float | None
) -> list[str]:
    """Draw the middle half of the values, their median, and the limit."""
    known = values[np.isfinite(values)]
    if len(known) < 3:
        return []
    low, median, high = (axis.y(value) for value in np.percentile(known, [25, 50, 75]))
    left, right = x - reach, x + reach
    parts = [
        element("rect", x=x - reach, y=high, width=2 * reach, height=max(low - high, 0.5),
                fill="#EEF0F2"),
        element("line", x1=left, x2=right, y1=median, y2=median, stroke=INK, stroke_width=1.5),
    ]  # fmt: skip
    if limit is not None and axis.low <= limit <= axis.high:
        y = axis.y(limit)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, stroke="#D55E00",
                             stroke_dasharray="4 3"))  # fmt: skip
    return parts


def _dots(
    axis: _Scale, values: np.ndarray, x: float, reach: float, strip: int,
    tones: Sequence[str], rings: Sequence[bool],
) -> str:  # fmt: skip
    known = [int(index) for index in np.flatnonzero(np.isfinite(values))]
    heights = [axis.y(float(values[index])) for index in known]
    radius = 4.0 if len(known) <= 60 else 3.0 if len(known) <= 200 else 2.2
    places = _spread(heights, 2 * radius, reach - radius)
    dots = [
        element("circle", cx=round(x + aside, 1), cy=round(y, 1), r=radius, data_row=index,
                class_=tones[index] + (" ring" if rings[index] else ""))
        for index, y, aside in zip(known, heights, places, strict=True)
    ]  # fmt: skip
    return element("g", "".join(dots) or " ", data_strip=strip)


def _spread(heights: Sequence[float], size: float, reach: float) -> list[float]:
    """Move dots of about the same height aside, so that they lie beside each other."""
    bins: dict[int, list[int]] = {}
    for number, y in enumerate(heights):
        bins.setdefault(int(y // size), []).append(number)
    places = [0.0] * len(heights)
    for members in bins.values():
        step = min(size, 2 * max(reach, 1.0) / max(len(members) - 1, 1))
        for k, number in enumerate(members):
            places[number] = step * (k - (len(members) - 1) / 2)
    return places
