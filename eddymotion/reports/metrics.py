# SPDX-License-Identifier: Apache-2.0
"""Quality of a series in single numbers: what a group of scans is compared by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from eddymotion.mapping.rigid import PARAMETERS, POWER_RADIUS_MM
from eddymotion.reports.series import SeriesReport
from eddymotion.robust import over_known

BVAL_STEP = 50
"""Shells whose b-values round to the same multiple of this share a name."""

FD_LIMITS_MM = (0.5, 1.0, 2.0)
"""Framewise displacements above which volumes are counted."""

Value = float | int | str


@dataclass(frozen=True)
class Metric:
    """What is known of a metric, whatever its ``detail``: a b-value, or a limit in mm.

    Parameters
    ----------
    words : str
        What it is.
    unit : str
    column : str
        The same in a few words, at the head of a column.
    digits : int
        Decimals that are shown.
    shown : bool
        Whether a page shows its column before one asks for all.
    panel : str
        Label of its distribution; none is drawn without.
    logarithmic : bool
        Whether the distribution is drawn so where it is wide.
    most : float
        Largest value that there is.
    """

    words: str
    unit: str
    column: str
    digits: int = 2
    shown: bool = False
    panel: str = ""
    logarithmic: bool = False
    most: float = np.inf


METRICS = {
    "n_volumes": Metric("Volumes of the series", "1", "volumes", 0),
    "n_dwi": Metric("Diffusion-weighted volumes", "1", "DWIs", 0),
    "fd_mean": Metric(
        "Mean framewise displacement (Power et al. 2012)", "mm",
        "mean FD", shown=True, panel="mean FD (mm)", logarithmic=True),
    "fd_max": Metric(
        "Largest framewise displacement (Power et al. 2012)", "mm",
        "largest FD", shown=True, panel="largest FD (mm)", logarithmic=True),
    "fd_head_mean": Metric(
        "Mean framewise displacement of the head alone, where eddy currents were found and taken "
        "off", "mm", "mean FD, head", shown=True),
    "fd_head_max": Metric(
        "Largest framewise displacement of the head alone, where eddy currents were found and "
        "taken off", "mm", "largest FD, head", shown=True),
    "fd_percent_over_": Metric(
        "Volumes with a framewise displacement above {detail} mm", "%",
        "FD > {detail} mm", 1, panel="volumes above an FD (%)"),
    "within_max": Metric(
        "Largest displacement of the head within a volume, where it was estimated: RMS "
        "displacement from the pose of the volume over a sphere of 80 mm", "mm",
        "motion within", panel="motion within a volume (mm)"),
    "outlier_slices": Metric(
        "Slices that lost signal, of those that were judged", "%",
        "lost slices", shown=True, panel="lost slices (%)"),
    "beyond_repair": Metric(
        "Volumes beyond repair, to be excluded from the analysis", "1", "beyond repair", 0,
        shown=True),
    "residual": Metric(
        "Root-mean-square difference of diffusion-weighted volumes from their leave-one-out "
        "predictions, of the mean signal, median over volumes", "%",
        "residual", 1, shown=True, panel="residual (%)"),
    "ndc": Metric(
        "Mean Pearson correlation of each diffusion-weighted volume with the one nearest in "
        "q-space (Yeh et al. 2019)", "1",
        "neighb. corr.", 3, shown=True, panel="neighbouring correlation", most=1.0),
    "tsnr_b0": Metric(
        "Mean over standard deviation of the b=0 volumes, median over the brain", "1",
        "tSNR", 1, panel="tSNR of b=0"),
    "cnr": Metric(
        "Standard deviation of the predicted signal over that of the residual in a shell, median "
        "over the brain (Bastiani et al. 2019)", "1",
        "CNR b={detail}", shown=True, panel="CNR"),
    "largest_motion": Metric(
        "Parameter of the transforms with the widest range; rotations in mm at 50 mm", "n/a",
        "largest motion", shown=True, panel="largest motion (mm)", logarithmic=True),
    "largest_motion_range": Metric("Range of that parameter", "mm", "motion range", shown=True),
    "verdict": Metric("Verdict of the participant's report", "n/a", "verdict"),
}  # fmt: skip
"""Base of a name → what is known, in the order of a table's columns."""

_WHICH = {"raw": "of the original series", "corrected": "of the corrected series"}


def quality_metrics(series: SeriesReport) -> dict[str, Value]:
    """Collect the metrics of a series; NaN for what is not known.

    Returns
    -------
    dict
        Name → value, in the order of a table's columns. Names of what is measured before and
        after end in ``_raw`` and ``_corrected``; those of a shell hold its b-value, as in
        ``cnr_b1000_raw``.
    """
    findings, fd = series.findings, series.findings.fd_with_offset
    head, n_known = series.confounds.numbers("framewise_displacement_head"), np.isfinite(fd).sum()
    parameter, reach = largest_motion(series)
    if_known = {
        "fd_head_mean": over_known(np.mean, head),
        "fd_head_max": over_known(np.max, head),
        "within_max": over_known(np.max, series.excursions),
    }
    return {
        "n_volumes": len(series.confounds),
        "n_dwi": len(series.gradients.dwis),
        "fd_mean": over_known(np.mean, fd),
        "fd_max": over_known(np.max, fd),
        **{
            f"fd_percent_over_{limit:g}mm": percent((fd > limit).sum(), n_known)
            for limit in FD_LIMITS_MM
        },
        **{name: value for name, value in if_known.items() if np.isfinite(value)},
        "outlier_slices": percent(findings.outliers.sum(), findings.judged.sum()),
        "beyond_repair": len(findings.spoilt),
        **_measured(series),
        "largest_motion": parameter,
        "largest_motion_range": reach,
        "verdict": series.verdict.headline,
    }


def describe_metric(name: str) -> tuple[str, str]:
    """Return what a metric means, and its unit.

    Raises
    ------
    KeyError
        If there is no metric of that name.
    """
    base, detail, which = metric_parts(name)
    metric = METRICS[base]
    details = [f"b={detail}" if base == "cnr" else "", _WHICH.get(which, "")]
    suffix = ", ".join(filter(None, details))
    words = metric.words.format(detail=detail)
    return (f"{words}; {suffix}" if suffix else words), metric.unit


def metric_parts(name: str) -> tuple[str, str, str]:
    """Take the name of a metric apart.

    Returns
    -------
    base : str
        What is measured: ``cnr``, ``fd_percent_over_``, ``ndc`` …
    detail : str
        b-value of the shell, or the limit in mm; mostly empty.
    which : str
        ``raw``, ``corrected`` or empty.

    Raises
    ------
    KeyError
        If there is no metric of that name.
    """
    if name.startswith("fd_percent_over_"):
        return "fd_percent_over_", name.removeprefix("fd_percent_over_").removesuffix("mm"), ""
    base, _, which = name.rpartition("_")
    if which not in _WHICH:
        base, which = name, ""
    base, _, bval = base.partition("_b") if base.startswith("cnr_b") else (base, "", "")
    if base not in METRICS:
        raise KeyError(name)
    return base, bval, which


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names of metrics as :func:`quality_metrics` gives them, shells by their b-value."""
    bases = list(METRICS)

    def place(name: str) -> tuple[int, float, bool]:
        base, detail, which = metric_parts(name)
        return bases.index(base), float(detail or 0), which == "corrected"

    return sorted(names, key=place)


def with_common_shells(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """Name shells by rounded b-values, so that 995 and 1000 s/mm² share a column."""
    found: dict[str, Value] = {}
    for name, value in metrics.items():
        rounded = re.sub(r"(?<=^cnr_b)\d+", lambda match: str(rounded_bval(match[0])), name)
        found.setdefault(rounded, value)
    return found


def rounded_bval(bval: str | float) -> int:
    """Round a b-value, s/mm², to what names a shell."""
    return BVAL_STEP * round(float(bval) / BVAL_STEP)


def largest_motion(series: SeriesReport) -> tuple[str, float]:
    """Find the parameter with the widest range, and that range in mm (rotations at 50 mm)."""
    in_mm = {"trans": 1.0, "rot": POWER_RADIUS_MM}
    columns = {name: series.confounds.numbers(name) for name in PARAMETERS}
    ranges = {
        name: in_mm[name.partition("_")[0]] * float(np.nan_to_num(over_known(np.ptp, values)))
        for name, values in columns.items()
    }
    name = max(ranges, key=lambda key: ranges[key])
    return name, ranges[name]


def percent(part: int, whole: int) -> float:
    """Return a part as a percentage of the whole; NaN of nothing."""
    return 100 * int(part) / int(whole) if whole else np.nan


def _measured(series: SeriesReport) -> dict[str, Value]:
    """Name those measures that a run has left."""
    if series.data is None:
        return {}
    found: Mapping = series.data.measures
    pairs = {"residual": found["residual_percent"], "ndc": found["ndc"],
             "tsnr_b0": found["tsnr_b0"]}  # fmt: skip
    pairs |= {f"cnr_b{bval}": pair for bval, pair in found["cnr"].items()}
    return {
        f"{name}_{which}": float(value)
        for name, pair in pairs.items()
        for which, value in zip(_WHICH, pair, strict=True)
    }
