# SPDX-License-Identifier: Apache-2.0
"""The sections of a participant's page, in their order: values → HTML."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eddymotion.derivatives.citation import Methods, bibtex, boilerplate, references, version_of
from eddymotion.derivatives.finished import RECORD, SELF
from eddymotion.estimation.outliers import MANY_LOST, WEAK_VOLUME
from eddymotion.estimation.outliers.misfits import SPREADS
from eddymotion.reports.layout import (
    Figure,
    Html,
    Section,
    details,
    image,
    join,
    table,
    tag,
)
from eddymotion.reports.series import SeriesReport
from eddymotion.reports.summary import FRAME, WITHIN
from eddymotion.reports.verdict import (
    JUMP_MM,
    Severity,
)
from eddymotion.reports.viewer import viewer, worst_volumes

UNKNOWN = "n/a"
"""Of a value that was not or could not be measured."""

MARKS = {Severity.GOOD: "✓", Severity.CARE: "!", Severity.DOUBTFUL: "✕"}

CAPTIONS = {
    "motion": (
        "Head motion",
        "Relative to the first b=0 volume, or else the first volume. Look for steps (the head "
        "moved between two volumes) and drifts. Orange bars: jumps, a framewise displacement "
        f"(FD) above {JUMP_MM:g} mm. Translations and FD are the head's; the displacement of "
        "whole volumes by eddy currents, in mm against the phase encoding, is shown separately; "
        "the columns trans contain both. Bands: 95 % intervals. Correlation: of each volume, "
        "after correction, with its prediction; look for dots far below their shell. Lost "
        "slices: signal loss, mostly by motion during the diffusion gradients; resampling "
        "cannot restore it. Shaded: volumes beyond repair. The colours at the top are the "
        "shells.",
    ),
    "within": (
        "Course of the head within volumes",
        "Each volume from its first excitation, at the left of its column, to its last. Lowest "
        "panel: largest distance of the head from the pose of the volume. Orange: more than a "
        "voxel. Volumes within which the head moved were rebuilt slice by slice, each at its "
        "own pose. The course should be smooth, and quiet where neighbouring volumes are; look "
        "for single volumes in which it swings to both sides.",
    ),
    "before_after": (
        "Spread over volumes",
        "The standard deviation over the volumes of the largest shell is bright at moving "
        "edges; after correction these should be thin and dark. In the line through the head, "
        "steps before correction should be straight after it.",
    ),
    "brain": (
        "Mask of the brain",
        "Orange: its edge, on the mean b=0. Estimation and quality measures use the voxels "
        "inside. Look for eyes, neck or skull inside, and for brain outside.",
    ),
    "b0_edges": (
        "Frame of the diffusion-weighted volumes",
        "Orange: edges of the fluid in the b=0 image (before correction: in its first volume), "
        "on the mean of the lowest shell; after correction they should hug the dark ventricles "
        "and the outside of the brain, if they are shifted to the same side everywhere, the "
        "diffusion-weighted volumes are not in the frame of b=0.",
    ),
    "carpet": (
        "Signal lost in slices",
        "A column is a volume, by shell; a row is a slice. Red: less signal than predicted from "
        "the other volumes, in robust standard deviations. Boxed: outliers, which also lost at "
        "least a tenth of the signal. Look for columns with many boxes (a volume to exclude) "
        "and for stripes in time. Grey: not judged.",
    ),
    "heldout": (
        "Held-out prediction",
        "Each volume next to its prediction from the other volumes. The residual should be "
        "noise: red bands are lost slices, paired red and blue rims a volume that is still "
        "misplaced, anatomy a model that does not describe the tissue; faint stripes in a "
        "prediction come from lost slices of other volumes. The local correlation (window of 4 "
        "mm) should be bright in white matter.",
    ),
    "shells": (
        "Gradient directions",
        "Rings: as acquired; dots: rotated with the head, as written to the .bvec file. The "
        "distance from the centre is √b; faint points are on the far side. Long lines are "
        "volumes with large rotations; look for holes and clusters among the dots. Drag to turn.",
    ),
    "maps": (
        "Colour FA, tSNR and CNR",
        "Colour FA: red left–right, green anterior–posterior, blue inferior–superior; edges "
        "should become sharper and the bright rim around the brain should vanish. tSNR: mean "
        "over standard deviation of the b=0 volumes, if there are enough of them. CNR: spread of "
        "the predicted signal over that of the residual; above 1 there is more signal than "
        "noise. Both should rise.",
    ),
    "space": (
        "Output space",
        "The image that defines the space, with outlines of the reference of the series: before "
        "registration, as positioned by the headers, and after it. Orange should follow the "
        "edge of the brain, blue the brightest structures: the ventricles in a b=0, white "
        "matter in FA. The last row shows the reverse: the reference in that space, with "
        "outlines of the image, or with the edge of its white matter, where that is known. Look "
        "at the ventricles, the folds and the callosum; in front and at the ears an echo-planar "
        "image is distorted, which no rigid registration can follow. If it is wrong, the "
        "warning says what to try.",
    ),
    "off_resonance": (
        "Off-resonance field",
        "The mean b=0 of all runs without distortion; the field, which moves with the head; and "
        "how much this run was stretched along its phase encoding: where it was squeezed "
        "(orange), signal piled up and cannot be fully separated. A measured map, if there is "
        "one, should show the same field. The outline of the ventricles and of the front of the "
        "brain should match an anatomical image.",
    ),
    "eddy": (
        "Eddy-current fields",
        "Coefficients of the field of each volume, in mm at 80 mm from the centre, along the "
        "phase-encoding axis. They should follow the diffusion gradient: look for b=0 volumes "
        "near zero and for single volumes that stand out. Only the largest terms are coloured.",
    ),
}
"""Title of a figure, and what to look for."""


def series_sections(series: SeriesReport, prefix: str, page: Path) -> list[Section]:
    """Write all sections of a series.

    Parameters
    ----------
    series : SeriesReport
    prefix : str
        Of the sections' addresses: unique on the page.
    page : Path
        Where the page will be; links are relative to it.
    """
    sections = [
        Section(f"{prefix}-summary", "Summary", summary(series)),
        Section(f"{prefix}-motion", "Motion", join([
            _chart(series, "motion", page), _volume_table(series)])),
        Section(f"{prefix}-within", "Motion within volumes", within(series, page)),
        Section(f"{prefix}-beforeafter", "Before and after", join([
            worst_volumes(series), _picture(series, "before_after", page), frame(series, page),
            _picture(series, "brain", page)])),
        Section(f"{prefix}-checks", "Checks", checks(series)),
        Section(f"{prefix}-carpet", "Slices", slices(series, page)),
        Section(f"{prefix}-heldout", "Held-out prediction", _picture(series, "heldout", page)),
        Section(f"{prefix}-shells", "Gradient directions", directions(series, page)),
        Section(f"{prefix}-maps", "Maps", join([
            _picture(series, "maps", page), measures_table(series)])),
        Section(f"{prefix}-space", "Output space", _picture(series, "space", page)),
        Section(f"{prefix}-offresonance", "Off-resonance field",
                _picture(series, "off_resonance", page)),
        Section(f"{prefix}-eddy", "Eddy currents", _chart(series, "eddy", page)),
        Section(f"{prefix}-estimation", "Estimation", estimation(series)),
        Section(f"{prefix}-settings", "Settings and versions", settings(series)),
        Section(f"{prefix}-citation", "Citation", citation(series)),
    ]  # fmt: skip
    return [section for section in sections if section.content]


def summary(series: SeriesReport) -> Html:
    """Write the verdict, and beside it the volumes."""
    verdict = series.verdict
    level = verdict.level.name.lower()
    box = tag(
        "div",
        tag("p", f"{MARKS[verdict.level]} {verdict.headline}", class_="headline"),
        tag("p", describe_motion(series)),
        tag("p", "Why: " + "; ".join(verdict.reasons) + ".") if verdict.reasons else None,
        class_=f"verdict {level}",
    )
    return tag("div", box, viewer(series), class_="overview")


def checks(series: SeriesReport) -> Html:
    """Write the numbers behind the verdict, and what the run said."""
    numbers = table(
        [
            (
                join([tag("span", MARKS[c.level], class_=f"mark {c.level.name.lower()}",
                          title=c.level.name.lower()), c.label]),
                c.text,
                c.rule,
            )
            for c in series.verdict.checks
        ],
        ("what", "found", "rule"),
        class_="checks",
    )  # fmt: skip
    rule = tag(
        "p",
        "The worst of these checks is the verdict. A volume is beyond repair if more than "
        f"{100 * MANY_LOST:g} % of its judged slices lost signal, if it shows less than "
        f"{100 * WEAK_VOLUME:g} % of its predicted signal throughout, if it could not be placed, "
        "or if no pose explains it: where its slices kept their signal, the part that its "
        "prediction leaves unexplained is so much larger than usual in its shell that a fit is "
        f"better without it (about twice as much), and {SPREADS:g} robust standard deviations "
        "more. Motion is corrected between volumes, and within them where it was estimated; "
        "signal that it destroyed cannot be restored.",
        class_="note",
    )
    reasons = [
        tag("li", f"volume {volume}: {reason}")
        for volume, reason in series.reasons_beyond_repair.items()
    ]
    return join([
        numbers, tag("ul", *reasons) if reasons else None, rule,
        details("Summary of the run", table(_rows(series.summary), class_="facts"))
        if series.summary else None,
    ])  # fmt: skip


def describe_motion(series: SeriesReport) -> str:
    """Say in two sentences what happened in the scan."""
    moved = series.head_translations
    turned = np.rad2deg([series.confounds.numbers(f"rot_{a}") for a in "xyz"])
    far = np.nanmax(np.linalg.norm(moved, axis=0), initial=0.0)
    axis, direction = np.unravel_index(np.nanargmax(np.nan_to_num(np.abs(moved))), moved.shape)
    angle = float(np.nanmax(np.abs(turned), initial=0.0))
    jumps = series.findings.jumps
    listed = ", ".join(map(str, jumps[:10])) + ("…" if len(jumps) > 10 else "")
    steps = {0: "no jumps", 1: f"one jump (to volume {listed})"}.get(
        len(jumps), f"{len(jumps)} jumps (to volumes {listed})"
    )
    what = f"{len(series.confounds)} volumes"
    if series.data is not None:
        what = series.data.series.partition("(")[2].removesuffix(")")
    return (
        f"{what}. The head moved up to {far:.1f} mm (most along {'xyz'[axis]}, volume "
        f"{direction}) and rotated up to {angle:.1f}° from the reference; {steps} of more than "
        f"{JUMP_MM:g} mm.{_describe_offset(series)}"
    )


def _describe_offset(series: SeriesReport) -> str:
    """Say how far eddy currents displaced the volumes besides; empty where that is not known."""
    offsets = np.abs(series.confounds.numbers("eddy_offset"))
    if series.eddy_along is None or not np.isfinite(offsets).any():
        return ""
    return (
        f" Eddy currents displaced the volumes by up to {np.nanmax(offsets):.1f} mm along the "
        "phase encoding, which is not counted as motion of the head."
    )


def within(series: SeriesReport, page: Path) -> Html:
    """Write how the head moved within volumes, and why it was followed or not."""
    text = series.summary.get(WITHIN)
    steps = [] if series.steps is None else series.steps.columns.get("step", [])
    logged = [step.partition(": ")[2] for step in steps if step.startswith(f"{WITHIN}: ")]
    notes = logged[:1]
    if isinstance(text, str) and not any(text in step for step in logged):
        notes = [text, *(f"followed: {step}" for step in notes)]
    return join([
        _chart(series, "within", page),
        *(tag("p", f"{note[:1].upper()}{note[1:]}.", class_="note") for note in notes),
    ])  # fmt: skip


def frame(series: SeriesReport, page: Path) -> Html:
    """Write how diffusion-weighted volumes lie on b=0, and what is known about it."""
    picture = _picture(series, "b0_edges", page)
    text = series.summary.get(FRAME)
    if not picture or not isinstance(text, str):
        return picture
    return join([picture, tag("p", f"{FRAME.capitalize()}: {text}.", class_="note")])


def slices(series: SeriesReport, page: Path) -> Html:
    """Write the scores of all slices, and whether lost ones were replaced."""
    table_of = series.outliers
    replaced = [] if table_of is None else table_of.columns.get("replaced", [])
    note = tag(
        "p",
        f"The corrected series shows the prediction in {replaced.count('true')} of "
        f"{len(replaced)} lost slices.",
        class_="note",
    )
    return join([_chart(series, "carpet", page), note if "true" in replaced else None])


def directions(series: SeriesReport, page: Path) -> Html:
    """Write the b-vectors and how far they turned."""
    if series.data is None:
        return Html("")
    chart = Html(series.charts["shells"])
    gradients, data = series.gradients, series.data
    directed = np.flatnonzero(data.bvecs_after.any(axis=1))
    cosines = np.einsum("ni,ni->n", data.bvecs_before[directed], data.bvecs_after[directed])
    turned = np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))
    rows = [
        (f"b={bval:.0f}", str(len(shell)), f"{turned[np.isin(directed, shell)].mean():.2f}°",
         f"{turned[np.isin(directed, shell)].max():.2f}°")
        for bval, shell in zip(gradients.shell_bvals, gradients.shells, strict=True)
        if np.isin(directed, shell).any()
    ] if gradients.is_shelled else [
        ("all", str(len(directed)), f"{turned.mean():.2f}°", f"{turned.max():.2f}°")
    ]  # fmt: skip
    turns = table(rows, ("shell", "directions", "mean turn", "largest turn"))
    title, caption = CAPTIONS["shells"]
    beside = tag("div", chart, turns, class_="sphere-and-text")
    return Figure(beside, title, caption, _relative(series, "shells", page)).html()


def measures_table(series: SeriesReport) -> Html:
    """Write measures over the brain, before and after; those that are known."""
    if series.data is None:
        return Html("")
    found = series.data.measures
    rows = [
        ("neighbouring-DWI correlation", found["ndc"], ".3f"),
        ("residual of the prediction (%)", found["residual_percent"], ".1f"),
        ("tSNR of b=0", found["tsnr_b0"], ".1f"),
        *((f"CNR, b={bval}", pair, ".2f") for bval, pair in found["cnr"].items()),
    ]
    cells = [(label, *(_cell(value, form) for value in pair)) for label, pair, form in rows]
    known = [row for row in cells if set(row[1:]) != {UNKNOWN}]
    return table(known, ("over the brain", "before", "after"), class_="numbers")


def estimation(series: SeriesReport) -> Html:
    """Write how the estimation went: seconds of each stage, steps and what they reached."""
    seconds = series.sidecar.get("StageSeconds")
    parts: list[Html] = []
    if isinstance(seconds, Mapping):
        done = ((str(stage), f"{s} s") for stage, s in seconds.items() if s != 0)
        parts.append(table(done, ("stage", "time")))
    if series.steps is not None and len(series.steps):
        columns = (series.steps.columns.get(name, []) for name in ("seconds", "step"))
        lines = [(f"{at} s", message) for at, message in zip(*columns, strict=False)]
        parts.append(details(f"Steps of the estimation ({len(lines)})",
                             table(lines, ("at", "step"), class_="log")))  # fmt: skip
    return join(parts)


def settings(series: SeriesReport) -> Html:
    """Write the settings, the versions and what the sidecar keeps of the acquisition."""
    sidecar = dict(series.sidecar)
    parts = []
    for key, words in (("Settings", "Settings"), ("PackageVersions", "Versions")):
        content = sidecar.pop(key, None)
        if isinstance(content, Mapping):
            parts.append(tag("div", tag("h3", words), table(_rows(content))))
    shown = "Summary", "Methods", "StageSeconds", "OutlierSlices", "Warnings"
    for key in (*shown, RECORD, SELF):  # the last are for the next run
        sidecar.pop(key, None)
    rest = [tag("h3", "Sidecar of the corrected image"), table(_rows(sidecar))]
    return join([tag("div", *parts, class_="columns"), *rest]) if series.sidecar else Html("")


def citation(series: SeriesReport) -> Html:
    """Write what may be copied into a paper, and the references."""
    words = boilerplate(Methods.of(series.sidecar), version_of(series.sidecar))
    items = [tag("li", line) for line in references(words)]
    return join([
        tag("p", words),
        details("References", tag("ul", *items)),
        details("BibTeX", tag("pre", bibtex())),
    ])  # fmt: skip


def errors_section(errors: Mapping[str, str]) -> Section:
    """Write the series that failed."""
    content = table(errors.items(), ("series", "what happened"))
    return Section("errors", "Errors", tag("div", content, class_="errors"))


def skipped_section(skipped: Mapping[str, str]) -> Section:
    """Write the series that were not corrected."""
    return Section("skipped", "Skipped series", table(skipped.items(), ("series", "why")))


def _chart(series: SeriesReport, kind: str, page: Path) -> Html:
    if kind not in series.charts:
        return Html("")
    title, caption = CAPTIONS[kind]
    return Figure(Html(series.charts[kind]), title, caption, _relative(series, kind, page)).html()


def _picture(series: SeriesReport, kind: str, page: Path) -> Html:
    path = series.outputs[f"{kind}_figure"]
    if not path.is_file():
        return Html("")
    title, caption = CAPTIONS[kind]
    content = image(path, f"{title} of {series.outputs.src}, described in the caption")
    return Figure(content, title, caption, _relative(series, kind, page)).html()


def _volume_table(series: SeriesReport) -> Html:
    """Write the confounds as they are on disk."""
    columns = series.confounds.columns
    rows = [
        (str(volume), *(cells[volume] for cells in columns.values()))
        for volume in range(len(series.confounds))
    ]
    return details(
        "All values (the confounds table)",
        tag("div", table(rows, ("volume", *columns), class_="confounds"), style="overflow-x:auto"),
    )


def _relative(series: SeriesReport, kind: str, page: Path) -> str:
    path = series.outputs[f"{kind}_figure"]
    return quote(os.fsencode(Path(os.path.relpath(path, page.parent)).as_posix()))


def _rows(content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in content.items():
        yield str(key), _words(value)


def _words(value: object) -> str:
    """Write a value of a sidecar for people."""
    if isinstance(value, str):
        return value
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def _cell(value: float | None, form: str) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else format(value, form)
