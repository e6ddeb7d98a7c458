# SPDX-License-Identifier: Apache-2.0
"""The moving parts of a participant's page: what chooses a volume, and what shows it.

The script fills and links them; here they are written, with the numbers that it shows.
"""

from __future__ import annotations

import math
from typing import Any

from eddymotion.data.gradients import comparable_groups
from eddymotion.reports.layout import (
    Figure,
    Html,
    data_address,
    embedded_json,
    join,
    tag,
)
from eddymotion.reports.series import SeriesReport

N_WORST = 6

SHOWN_COLUMNS = (
    "trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement",
    "framewise_displacement_head", "eddy_offset", "bval", "hmc_xcorr", "outlier_slices",
)  # fmt: skip
"""Columns that the script shows for the volume under the pointer."""


def volume_bar(series: SeriesReport) -> Html:
    """Write the bar that chooses a volume, and says what is known of it."""
    last = len(series.confounds) - 1
    worst = series.findings.worst(N_WORST)
    chips = [
        tag("button", f"{volume} · {words}", type="button", data_go=volume)
        for volume, words in worst
    ]
    return tag(
        "div",
        tag(
            "div",
            tag("button", "◀", type="button", data_step=-1, aria_label="previous volume"),
            tag("input", type="range", min=0, max=last, value=worst[0][0] if worst else 0,
                aria_label="volume", class_="slider"),
            tag("button", "▶", type="button", data_step=1, aria_label="next volume"),
            tag("output", "", class_="which"),
            class_="row",
        ),
        tag("div", "", class_="readout", aria_live="off"),
        tag("div", tag("span", "Worth a look:"), *chips, class_="chips") if chips else None,
        class_="bar",
    )  # fmt: skip


def viewer(series: SeriesReport) -> Html:
    """Write what the script fills: all volumes before, after and predicted."""
    if series.data is None:
        return tag("p", "The run wrote no images of the original series.", class_="note")
    sprites = [
        tag("img", src=data_address(sheet.data, ".webp"), alt="", hidden=True, class_="sprite",
            data_sheet=name)
        for name, sheet in series.data.sheets.items()
    ]  # fmt: skip
    modes = {
        "flicker": "flicker before/after",
        "pair": "side by side",
        "predicted": "flicker after/prediction",
        "before": "before",
        "after": "after",
    }
    choose = tag("select", *(tag("option", words, value=mode) for mode, words in modes.items()),
                 class_="mode")  # fmt: skip
    controls = tag(
        "div",
        tag("label", "show ", choose),
        tag("button", "flicker", type="button", class_="flicker", aria_pressed="true"),
        tag("button", "play volumes", type="button", class_="play", aria_pressed="false"),
        tag("label", tag("input", type="checkbox", class_="same-shell", checked=True),
            "one shell only"),
        tag("label", tag("input", type="checkbox", class_="outlined", checked=True),
            "edge of the brain"),
        class_="controls",
    )  # fmt: skip
    canvas = tag("canvas", "The volumes are shown here in a browser with JavaScript.", role="img",
                 aria_label="three planes of the chosen volume, before and after correction",
                 class_="main")  # fmt: skip
    return Figure(
        join([*sprites, tag("div", canvas, class_="viewer"), controls]),
        "All volumes",
        "Move through volumes with the bar below, the arrow keys, or the pointer over any "
        "chart. Orange: the edge of the brain in the reference; the head may leave it before "
        "and should stay in it after. Nothing should move between after and prediction. Left is "
        "left.",
    ).html()


def worst_volumes(series: SeriesReport) -> Html:
    """Write what the script fills with the volumes worth a look."""
    if series.data is None:
        return Html("")
    worst = [
        tag("button", tag("canvas", role="img", aria_label=f"volume {volume}, {words}"),
            tag("span", f"volume {volume}: {words}"), type="button", data_go=volume)
        for volume, words in series.findings.worst(N_WORST)
    ]  # fmt: skip
    return Figure(
        tag("div", *worst, class_="gallery"),
        "The volumes worth a look",
        "Flickering before/after. In turn: beyond repair, a correlation with the prediction far "
        "below the shell, the largest framewise displacements, the most outlier slices. Look "
        "for dark slices and for movement; brightness is scaled alike for all volumes of a "
        "shell. Click one to see it at the top.",
    ).html()


def series_data(series: SeriesReport, name: str) -> Html:
    """Embed what the script shows of each volume."""
    columns = {
        key: [None if math.isnan(v) else v for v in series.confounds.numbers(key)]
        for key in SHOWN_COLUMNS
    }
    groups = series.gradients.b0s, *comparable_groups(series.gradients)
    content: dict[str, Any] = {
        "n": len(series.confounds),
        "columns": columns,
        "head": [[None if math.isnan(v) else v for v in row] for row in series.head_translations],
        "groups": [[int(volume) for volume in group] for group in groups],
        "spoilt": [int(volume) for volume in series.findings.spoilt],
        "slices": _slices_of(series),
    }
    if series.data is not None:
        content |= {
            "sheets": {
                key: {"width": sheet.width, "height": sheet.height, "columns": sheet.columns}
                for key, sheet in series.data.sheets.items()
            },
            "boxes": series.data.boxes,
            "outline": series.data.outline,
        }
    return embedded_json(name, content)


def _slices_of(series: SeriesReport) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for volume, index, _ in series.outlier_list:
        found.setdefault(str(volume), []).append(index)
    return found
