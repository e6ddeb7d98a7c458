# SPDX-License-Identifier: Apache-2.0
"""The charts of a participant's page: tables and scores → SVG."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.io.tsv import Table
from eddymotion.reports.layout import data_address
from eddymotion.reports.svg import (
    AXIS_COLORS,
    B0_COLOR,
    BLUE,
    FADED,
    INK,
    LEFT,
    PURPLE,
    RULE,
    SHELL_COLORS,
    VERMILION,
    Columns,
    Panel,
    document,
    element,
    spread_labels,
    text,
    ticks,
    title,
)
from eddymotion.reports.verdict import JUMP_MM, Findings
from eddymotion.robust import Z_95

Z_LIMIT = 8.0
"""Scores beyond this have the colour of this."""

COLOR_MAP = "RdBu"
"""Red: signal lost; blue: signal gained. Told apart by colour-blind readers."""


MakePanel = Callable[[str, float, float], Panel]
"""Name of a panel and the ends of its axis → the panel."""

OFFSET = "eddy (mm)"
"""Panel of what eddy currents displace a volume by as a whole, mm."""


def shell_colors(gradients: Gradients) -> list[str]:
    """Colour of each volume, by shell: (N,)."""
    colors = [B0_COLOR] * len(gradients)
    for number, shell in enumerate(comparable_groups(gradients)):
        for volume in shell:
            colors[volume] = SHELL_COLORS[number % len(SHELL_COLORS)]
    return colors


def shell_names(gradients: Gradients) -> list[tuple[str, str]]:
    """Name and colour of b=0 and of each shell."""
    names = [("b=0", B0_COLOR)] if len(gradients.b0s) else []
    if not gradients.is_shelled:
        bvals = gradients.bvals[gradients.dwis]
        return [*names, (f"b={bvals.min():.0f}…{bvals.max():.0f}", SHELL_COLORS[0])]
    return names + [
        (f"b={bval:.0f}", SHELL_COLORS[number % len(SHELL_COLORS)])
        for number, bval in enumerate(gradients.shell_bvals)
    ]


def motion_chart(
    confounds: Table,
    gradients: Gradients,
    findings: Findings,
    head: np.ndarray | None = None,
) -> str:
    """Draw translations, rotations, FD, agreement and outlier slices over the volumes.

    Parameters
    ----------
    confounds : Table
        As in the confounds file.
    gradients : Gradients
    findings : Findings
    head : (3, N) array, optional
        Translations of the head, mm, without the offset of eddy-current fields, which has a panel
        of its own then; those of the table when not given.
    """
    offset = confounds.numbers("eddy_offset")
    apart = head is not None and bool(np.isfinite(offset).any())
    columns = Columns(range(len(confounds)))
    strip, top = 14.0, 30.0
    heights = {
        "translation (mm)": 118.0, "rotation (°)": 118.0, **({OFFSET: 62.0} if apart else {}),
        "FD (mm)": 78.0, "correlation": 74.0, "lost slices": 60.0,
    }  # fmt: skip
    tops, y = {}, top + strip + 10
    for name, height in heights.items():
        tops[name] = y
        y += height + 16
    bottom = y - 16
    parts = [_legend(shell_names(gradients), "■ jump", "✕ beyond repair")]
    parts += [
        columns.band(v, tops["translation (mm)"], bottom - tops["translation (mm)"], "#F3D9CC",
                     fill_opacity="0.75")
        for v in findings.spoilt
    ]  # fmt: skip
    parts += [columns.band(v, top, strip, c) for v, c in enumerate(shell_colors(gradients))]
    parts += [
        text(columns.middle(v), top + strip - 3, "✕", anchor="middle", fill="#000000", size=11)
        for v in findings.spoilt
    ]

    def panel(name: str, low: float, high: float) -> Panel:
        return Panel(columns, tops[name], heights[name], low, high, name)

    translations = head if apart else None
    parts.append(three_lines(panel, "translation (mm)", confounds, "trans", translations))
    parts.append(three_lines(panel, "rotation (°)", confounds, "rot", scale=180 / np.pi))
    parts.append(_offsets(panel, offset, confounds.numbers("eddy_offset_se")) if apart else "")
    parts.append(_displacement(panel, findings))
    parts.append(_agreement(panel, gradients, findings))
    most = max(int(findings.outliers.max(initial=0)), 4)
    lost = panel("lost slices", 0.0, float(most))
    parts.append(lost.frame())
    parts += [lost.bar(int(v), float(findings.outliers[v]), VERMILION)
              for v in np.flatnonzero(findings.outliers)]  # fmt: skip
    parts.append(columns.axis(bottom))
    label = (
        f"Motion of {len(confounds)} volumes: translations, rotations, framewise displacement, "
        f"correlation with the prediction, outlier slices; {len(findings.jumps)} jumps"
    )
    return columns.chart(bottom + 24, parts, label, "motion")


def _legend(names: Sequence[tuple[str, str]], *signs: str) -> str:
    x, parts = LEFT, []
    for name, color in names:
        parts.append(element("rect", x=x, y=6.0, width=12.0, height=12.0, fill=color))
        parts.append(text(x + 16, 16, name))
        x += 34 + 7.0 * len(name)
    for sign in signs:
        parts.append(text(x + 6, 16, sign, fill=VERMILION if sign[0] == "■" else INK))
        x += 24 + 7.0 * len(sign)
    return "".join(parts)


def three_lines(
    panel: MakePanel, name: str, table: Table, kind: str, values: np.ndarray | None = None,
    scale: float = 1.0,
) -> str:  # fmt: skip
    """Draw the x, y and z of `kind` over the volumes, with 95 % intervals where known.

    `values` (3, N), where they are others than those of the table.
    """
    if values is None:
        values = np.array([table.numbers(f"{kind}_{axis}") * scale for axis in "xyz"])
    margins = np.array([table.numbers(f"{kind}_{axis}_se") * scale for axis in "xyz"]) * Z_95
    if not np.isfinite(values).any():
        return ""
    low, high = _reach(values, margins)
    space = 0.06 * (high - low)
    drawn = panel(name, low - space, high + space)
    parts = [drawn.frame()]
    ends = spread_labels([drawn.y(row[np.isfinite(row)][-1]) for row in values], 13)
    for axis, row, margin, end in zip("xyz", values, margins, ends, strict=True):
        color = AXIS_COLORS[axis]
        parts.append(drawn.band(row - margin, row + margin, color))
        parts.append(drawn.line(range(len(row)), row, color, f"{kind}_{axis}"))
        parts.append(text(drawn.columns.right + 8, end + 4, axis, fill=color, weight="bold"))
    return "".join(parts)


def _reach(values: np.ndarray, margins: np.ndarray) -> tuple[float, float]:
    """Find ends of an axis that shows values with their intervals, but no far wider one whole."""
    least = 0.1  # an axis that magnifies noise would look like motion
    span = max(float(np.nanmax(values) - np.nanmin(values)), least)
    wide = np.minimum(np.nan_to_num(margins), span)
    return min(float(np.nanmin(values - wide)), -least), max(
        float(np.nanmax(values + wide)), least
    )


def _offsets(panel: MakePanel, offset: np.ndarray, error: np.ndarray) -> str:
    low, high = _reach(offset[None], Z_95 * error[None])
    drawn = panel(OFFSET, low, high)
    margin = Z_95 * np.nan_to_num(error)
    return "".join([
        drawn.frame(),
        drawn.band(offset - margin, offset + margin, PURPLE),
        drawn.line(range(len(offset)), offset, PURPLE, "eddy_offset"),
    ])  # fmt: skip


def _displacement(panel: MakePanel, findings: Findings) -> str:
    high = max(1.15 * np.nanmax(findings.fd, initial=0.0), 1.2 * JUMP_MM)
    drawn = panel("FD (mm)", 0.0, float(high))
    jumps = set(map(int, findings.jumps))
    parts = [drawn.frame()]
    for volume, value in enumerate(findings.fd):
        if np.isfinite(value):
            parts.append(drawn.bar(volume, value, VERMILION if volume in jumps else "#8A8A8A"))
        if volume in jumps and len(jumps) <= len(findings.fd) / 3:
            parts.append(text(drawn.columns.middle(volume), drawn.y(value) - 2, "▼",
                              anchor="middle", fill=VERMILION, size=9))  # fmt: skip
    y = drawn.y(JUMP_MM)
    parts.append(element("line", x1=LEFT, x2=drawn.columns.right, y1=y, y2=y, stroke=VERMILION,
                         stroke_dasharray="5 4"))  # fmt: skip
    parts.append(text(drawn.columns.right + 8, y + 4, f"jump {JUMP_MM:g} mm", fill=VERMILION))
    return "".join(parts)


def _agreement(panel: MakePanel, gradients: Gradients, findings: Findings) -> str:
    known = findings.correlation[np.isfinite(findings.correlation)]
    if not known.size:
        return ""
    low = min(known.min() - 0.01, 0.94)
    drawn = panel("correlation", float(low), 1.0)
    colors = shell_colors(gradients)
    spoilt = set(map(int, findings.spoilt))
    parts = [drawn.frame()]
    for volume, value in enumerate(findings.correlation):
        if np.isfinite(value):
            x, y = drawn.columns.middle(volume), drawn.y(value)
            parts.append(element("circle", cx=x, cy=y, r=3.0, fill=colors[volume],
                                 stroke=VERMILION if volume in spoilt else None,
                                 stroke_width=2))  # fmt: skip
    return "".join(parts)


def shell_order(gradients: Gradients) -> np.ndarray:
    """Diffusion-weighted volumes by shell, within it in the order of time."""
    return np.concatenate(comparable_groups(gradients))


def carpet_chart(
    z: np.ndarray, outliers: Sequence[tuple[int, int, float]], gradients: Gradients
) -> str:
    """Draw the scores of all slices of all diffusion-weighted volumes.

    Parameters
    ----------
    z : (N, Z) array
        NaN where not judged.
    outliers : sequence of (volume, slice, z)
        As in the table; boxed.
    gradients : Gradients
    """
    columns = Columns(shell_order(gradients))
    n_slices = z.shape[1]
    top, height = 46.0, float(np.clip(6.0 * n_slices, 150, 330))
    step = height / n_slices
    picture = _carpet_png(z[columns.order].T[::-1])
    parts = [
        element("image", x=LEFT, y=top, width=columns.right - LEFT, height=height,
                preserveAspectRatio="none", href=picture, style="image-rendering:pixelated")
    ]  # fmt: skip
    parts += [columns.band(v, top - 16, 12, shell_colors(gradients)[v]) for v in columns.order]
    for volume, index, score in outliers:
        if volume in columns.column:
            tooltip = title(f"volume {volume}, slice {index}: z = {score:.1f}")
            parts.append(element(
                "rect", tooltip, x=LEFT + columns.column[volume] * columns.step,
                y=top + (n_slices - 1 - index) * step, width=columns.step, height=step,
                fill="none", stroke="#000000", stroke_width=1.4, pointer_events="all",
            ))  # fmt: skip
    names = [(name, color) for name, color in shell_names(gradients) if color != B0_COLOR]
    parts += [
        text(LEFT - 7, top + (n_slices - 0.5 - k) * step + 4, f"{k:g}", anchor="end", fill=FADED,
             size=11)
        for k in ticks(0, n_slices - 1, 6, whole=True)
    ]  # fmt: skip
    parts += [text(16, top + height / 2, "slice", anchor="middle", rotate=True),
              _legend(names, "□ outlier"), _color_bar(columns.right + 12, top, height),
              columns.axis(top + height, "volume")]  # fmt: skip
    label = (
        f"Residual of {n_slices} slices in {len(columns.order)} volumes; {len(outliers)} outliers"
    )
    return columns.chart(top + height + 24, parts, label, "carpet")


def _carpet_png(z: np.ndarray) -> str:
    """Colour scores (rows, columns): a data address."""
    from matplotlib import colormaps
    from PIL import Image

    scaled = (np.clip(np.nan_to_num(z), -Z_LIMIT, Z_LIMIT) + Z_LIMIT) / (2 * Z_LIMIT)
    colors = (colormaps[COLOR_MAP](scaled)[..., :3] * 255).astype(np.uint8)
    colors[~np.isfinite(z)] = 0xD4  # grey: not judged
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, "PNG", optimize=True)
    return data_address(buffer.getvalue(), ".png")


def _color_bar(x: float, top: float, height: float) -> str:
    size = min(height, 170.0)
    scale = np.linspace(Z_LIMIT, -Z_LIMIT, 33)[:, None]
    parts = [element("image", x=x, y=top, width=12.0, height=size, preserveAspectRatio="none",
                     href=_carpet_png(scale))]  # fmt: skip
    words = {Z_LIMIT: f"+{Z_LIMIT:g}", 0.0: "0", -Z_LIMIT: f"−{Z_LIMIT:g} lost"}
    for value, word in words.items():
        y = top + size * (Z_LIMIT - value) / (2 * Z_LIMIT)
        parts.append(text(x + 16, float(np.clip(y + 4, top + 10, top + size)), word, size=11))
    parts.append(text(x, top - 6, "z-score", size=11, fill=FADED))
    if height - size > 20:
        parts.append(element("rect", x=x, y=top + size + 8, width=12.0, height=12.0,
                             fill="#D4D4D4"))  # fmt: skip
        parts.append(text(x + 16, top + size + 18, "not judged", size=11))
    return "".join(parts)


SPHERE_SIZE = 460.0
VIEW = np.array([[0.80, 0.60, 0.0], [-0.24, 0.32, 0.92], [0.55, -0.73, 0.40]])
"""Rows: what points right, up and to the eye at first."""


def sphere_chart(gradients: Gradients, before: np.ndarray, after: np.ndarray) -> str:
    """Draw b-vectors before (rings) and after (dots) rotation, in q-space.

    Parameters
    ----------
    gradients : Gradients
    before, after : (N, 3) array
        Unit vectors, RAS+.
    """
    view, middle, radius = _view_of(after), SPHERE_SIZE / 2, 0.43 * SPHERE_SIZE
    lengths = np.sqrt(gradients.bvals / max(gradients.bvals.max(), 1e-6))
    shells = np.sqrt(gradients.shell_bvals / gradients.bvals.max())
    radii = sorted(set(np.round(shells, 3).tolist())) if gradients.is_shelled else [1.0]
    parts = [
        element("circle", cx=middle, cy=middle, r=radius * part, fill="none", stroke=RULE)
        for part in radii
    ]
    for axis, name in enumerate(("R", "A", "S")):
        x, y, _ = view[:, axis]
        parts.append(element("line", class_="axis", data_axis=axis, x1=middle, y1=middle,
                             x2=middle + radius * x, y2=middle - radius * y,
                             stroke="#BBBBBB"))  # fmt: skip
        parts.append(element("text", name, class_="axis-name", data_axis=axis, fill=FADED,
                             x=middle + 1.07 * radius * x, y=middle - 1.07 * radius * y + 4,
                             text_anchor="middle", font_size=13))  # fmt: skip
    points, colors = [], shell_colors(gradients)
    for volume in (int(v) for v in gradients.dwis if np.any(after[v])):
        ends = [lengths[volume] * vectors[volume] for vectors in (before, after)]
        points.append([volume, *(round(float(c), 4) for end in ends for c in end)])
        seen = [view @ end for end in ends]
        ring, dot = ((middle + radius * x, middle - radius * y) for x, y, _ in seen)
        turn = np.rad2deg(np.arccos(np.clip(before[volume] @ after[volume], -1, 1)))
        words = f"volume {volume}, b={gradients.bvals[volume]:.0f}: turned by {turn:.2f}°"
        parts.append(element(
            "g",
            title(words) + _ring_and_dot(ring, dot, colors[volume]),
            class_="direction", data_volume=volume,
            opacity="1" if seen[1][2] >= 0 else "0.4",
        ))  # fmt: skip
    label = f"{len(points)} gradient directions before and after rotation with the head"
    return document(
        SPHERE_SIZE, SPHERE_SIZE, parts, label, class_="chart sphere", data_kind="sphere",
        data_points=json.dumps(points), data_radius=f"{radius:g}",
        data_view=json.dumps(np.round(view, 5).tolist()),
    )  # fmt: skip


def _view_of(vectors: np.ndarray) -> np.ndarray:
    """Axes of the sphere at first, as :data:`VIEW`, from the side where most vectors are."""
    view, _ = np.linalg.qr(VIEW.T)
    view = (view * np.sign(np.einsum("ij,ij->j", view, VIEW.T))).T
    turned: np.ndarray = view * np.array([[-1.0], [1.0], [-1.0]])
    return turned if (vectors @ view[2]).sum() < 0 else view


def _ring_and_dot(ring: tuple[float, float], dot: tuple[float, float], color: str) -> str:
    """Draw a direction before and after rotation, and the way between."""
    (x0, y0), (x1, y1) = ring, dot
    return (
        element("line", x1=x0, y1=y0, x2=x1, y2=y1, stroke=color, stroke_width=1.5)
        + element("circle", cx=x0, cy=y0, r=4.6, fill="none", stroke=color, stroke_width=1.3)
        + element("circle", cx=x1, cy=y1, r=3.2, fill=color)
    )


def eddy_chart(table: Table, gradients: Gradients) -> str:
    """Draw the coefficients of the eddy-current fields over the volumes.

    Parameters
    ----------
    table : Table
        Columns ``e_x`` …, mm at 80 mm from the centre, and ``offset`` where known.
    gradients : Gradients
    """
    columns = Columns(range(len(table)))
    names = [name for name in table.columns if name.startswith("e_")]
    groups = {
        "linear (mm)": [name for name in names if len(name) == 3],
        "higher (mm)": [name for name in names if len(name) > 3],
        "offset (mm)": [name for name in ("offset",) if np.isfinite(table.numbers(name)).any()],
    }
    parts, top = [_legend(shell_names(gradients))], 54.0
    parts += [columns.band(v, 30.0, 14, c) for v, c in enumerate(shell_colors(gradients))]
    for label, members in groups.items():
        values = np.array([table.numbers(name) for name in members])
        if not np.isfinite(values).any():
            continue
        low, high = min(np.nanmin(values), -0.1), max(np.nanmax(values), 0.1)
        panel = Panel(columns, top, 100.0, low * 1.06, high * 1.06, label)
        parts.append(panel.frame())
        parts.append(_terms(panel, members, values))
        top += 116
    parts.append(columns.axis(top - 16))
    return columns.chart(top + 8, parts, f"Eddy-current fields of {len(table)} volumes", "eddy")


def _terms(panel: Panel, names: Sequence[str], values: np.ndarray) -> str:
    """Draw the terms of a panel; only the six largest of them get a colour and a name."""
    palette = [*AXIS_COLORS.values(), SHELL_COLORS[2], SHELL_COLORS[3], SHELL_COLORS[0]]
    sizes = np.nan_to_num(np.abs(values)).mean(axis=1)
    named = sorted(np.argsort(-sizes, kind="stable")[: len(palette)])
    colors = dict(zip(named, palette, strict=False))
    if len(names) == 1:
        colors = {0: BLUE}
    ends = spread_labels([panel.y(float(np.nan_to_num(values[k][-1]))) for k in named], 12)
    parts = [
        panel.line(panel.columns.order, row, colors.get(k, "#BBBBBB"), names[k])
        for k, row in enumerate(values)
    ]
    parts += [
        text(panel.columns.right + 8, min(end, panel.top + panel.height) + 4,
             names[k].removeprefix("e_"), fill=colors[k], weight="bold", size=11)
        for k, end in zip(named, ends, strict=True)
    ]  # fmt: skip
    return "".join(parts)
