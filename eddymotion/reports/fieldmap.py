# SPDX-License-Identifier: Apache-2.0
"""The page of an off-resonance field: images that flicker, the field, and what it stretches."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from eddymotion.images.image import Image
from eddymotion.io.writing import write_text
from eddymotion.reports import DPI, own_style
from eddymotion.reports.display import show
from eddymotion.reports.layout import Html, data_address, join, tag
from eddymotion.reports.registration import Cuts

if TYPE_CHECKING:
    from eddymotion.estimation.off_resonance import FieldEstimate

STYLE = """\
body { margin: 0 auto; padding: 1em; max-width: 1100px; color: #222; background: #fff;
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin: 1.4em 0 .4em; }
table { border-collapse: collapse; } td { padding: .15em 1.2em .15em 0; vertical-align: top; }
img.figure { width: 100%; max-width: 1060px; }
"""

SQUEEZED, STRETCHED = 0.3, 1.7
"""Ends of the scale of the stretch."""

MOST_FLICKERS = 3
"""Pairs of images that are shown."""


@own_style()
def field_figure(
    image: np.ndarray, hertz: np.ndarray, stretch: np.ndarray, mask: np.ndarray,
    affine: np.ndarray, unit: str, measured: np.ndarray | None = None,
) -> Figure:  # fmt: skip
    """Draw a corrected image, the field, the stretch of the first image, and a measured map.

    Parameters
    ----------
    image, hertz, stretch : (X, Y, Z) array
    mask : (X, Y, Z) bool array
        The brain, outside which the field is faint.
    affine : (4, 4) array
        Of the grid, RAS+ mm.
    unit : str
        Of the field.
    measured : (X, Y, Z) array, optional
        A map (Hz) that is known besides; NaN where it is not. A constant apart is taken off.
    """
    view = Cuts.of(image, mask, affine)
    figure, rows = view.panels(3 if measured is None else 4, bar=True)
    white = float(np.percentile(image[mask], 99.5)) if mask.any() else float(image.max())
    view.show(rows[0], image, cmap="gray", vmin=0, vmax=max(white, 1e-6))
    reach = float(np.percentile(np.abs(hertz[mask]), 99)) if mask.any() else 1.0
    field = view.show(rows[1], np.where(mask, hertz, np.nan), cmap="RdBu_r",
                      vmin=-max(reach, 1.0), vmax=max(reach, 1.0))  # fmt: skip
    shown = view.show(rows[2], np.where(mask, stretch, np.nan), cmap="PuOr",
                      vmin=SQUEEZED, vmax=STRETCHED)  # fmt: skip
    bars = [(1, field, unit), (2, shown, "mm recorded a true mm")]
    if measured is not None:
        apart = np.nanmedian(measured - hertz) if np.isfinite(measured).any() else 0.0
        beside = view.show(rows[3], measured - apart, cmap="RdBu_r",
                           vmin=-max(reach, 1.0), vmax=max(reach, 1.0))  # fmt: skip
        bars.append((3, beside, unit))
    for row in rows[1:]:
        for axes in row:
            axes.set_facecolor("#555555")
    words = ("corrected", "field", "stretch", "measured map")
    for axes, word in zip(rows[:, 0], words, strict=False):
        axes.set_ylabel(word, fontsize="large", color="#333333")
    for row, picture, label in bars:
        figure.colorbar(picture, ax=rows[row], shrink=0.8, pad=0.01).set_label(label)
    return figure


def write_fieldmap_page(
    path: Path, sources: Sequence[Path], made: FieldEstimate, summary: Mapping[str, Any]
) -> None:
    """Write the page: one file without a script and without an address.

    Parameters
    ----------
    path : Path
    sources : sequence of Path
        Of the images.
    made : FieldEstimate
    summary : mapping
        The sidecar of the field.
    """
    names = [source.name for source in sources]
    labels = [f"{number}: {encoding['PhaseEncodingDirection']}"
              for number, encoding in enumerate(summary["Encodings"], start=1)]  # fmt: skip
    affine = made.grid[1]
    figure = field_figure(made.combined, made.hertz, made.stretch[0], made.mask, affine,
                          "Hz" if summary["ReadoutTimesKnown"] else "arbitrary")  # fmt: skip
    first = _flicker(made, made.uncorrected[0], made.combined, ("before", "after"))
    heading = f"Off-resonance field: {names[0]}"
    body = join([
        tag("h1", heading), _table(names, labels, summary), *_pairs(made, labels),
        tag("h2", "The first image before and after"), first,
        tag("h2", "The field, and the stretch of the first image"), _picture(figure),
        tag("p", "Orange in the stretch: squeezed (signal piles up); purple: stretched. A "
                 "constant field is not known from images alone."),
    ])  # fmt: skip
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{tag("title", names[0])}'
    write_text(path, f"{head}<style>{STYLE}</style>{body}</html>\n")


def _pairs(made: FieldEstimate, labels: Sequence[str]) -> Iterator[Html]:
    """Show images beside each other, before and after."""
    for pair in islice(combinations(range(len(labels)), 2), MOST_FLICKERS):
        of_both = labels[pair[0]], labels[pair[1]]
        for words, images in (("before", made.uncorrected), ("after", made.corrected)):
            yield tag("h2", f"Images {of_both[0]} and {of_both[1]}, {words}")
            yield _flicker(made, images[pair[0]], images[pair[1]], of_both)


def _flicker(
    made: FieldEstimate, one: np.ndarray, other: np.ndarray, labels: tuple[str, str]
) -> Html:
    first, second = (Image(np.nan_to_num(image), made.grid[1]) for image in (one, other))
    return Html(show(first, second, contour=made.mask, labels=labels)._repr_html_())


def _table(names: Sequence[str], labels: Sequence[str], summary: Mapping[str, Any]) -> Html:
    rows = [(f"image {label}", name) for label, name in zip(labels, names, strict=True)]
    rows.append(("made from", summary["Method"]))
    rows.append(("displacement", f"{summary['RMSDisplacement']:.2f} mm RMS in the brain"))
    if found := summary.get("Similarity"):
        rows.append(("correlation of the images",
                     f"{found['Before']:.3f} before, {found['After']:.3f} after"))  # fmt: skip
    if found := summary.get("MeasuredComparison"):
        rows.append((
            "measured map", f"correlation {found['Correlation']:.3f}, slope {found['Slope']:.2f}, "
                            f"{found['RMSDifference']:.2f} mm RMS apart",
        ))  # fmt: skip
    rows.append(("folded", f"{100 * summary['FoldedShare']:.2f} % of the brain"))
    rows.append(("dark", f"{100 * summary['DarkShare']:.2f} % of the brain"))
    return tag("table", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))


def _picture(figure: Figure) -> Html:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    words = "corrected image, field and stretch in three planes"
    return tag("img", class_="figure", alt=words, src=data_address(buffer.getvalue(), ".png"))
