# SPDX-License-Identifier: Apache-2.0
"""The quality of a series as one JSON object: figures of the group, and those of other programs.

Names are the columns of the group's table; what MRIQC or FSL's eddy QUAD call by a name of their
own, and measure in the same way, stands under that name as well. ``Dictionary`` tells what each
is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.reports.metrics import (
    describe_metric,
    percent,
    quality_metrics,
    with_common_shells,
)
from eddymotion.reports.series import SeriesReport
from eddymotion.robust import over_known

MRIQC_FD_MM = 0.2
"""Framewise displacement above which MRIQC counts volumes."""

OTHER_NAMES = {
    "fd_num": ("Volumes with a framewise displacement above 0.2 mm", "1", "MRIQC"),
    "fd_perc": ("The same, of all volumes but the first", "%", "MRIQC"),
    "ndc": ("Neighbouring DWI correlation of the original series: ndc_raw", "1", "MRIQC"),
    "data_no_b0_vols": ("b=0 volumes", "1", "eddy QUAD"),
    "data_no_dw_vols": ("Diffusion-weighted volumes", "1", "eddy QUAD"),
    "data_no_shells": ("Shells; 0 for a scheme without", "1", "eddy QUAD"),
    "data_unique_bvals": ("b-values of the shells", "s/mm^2", "eddy QUAD"),
    "qc_mot_abs": (
        "Mean root-mean-square displacement to the reference: over a sphere of 80 mm, where eddy "
        "takes the brain", "mm", "eddy QUAD"),
    "qc_mot_rel": ("The same to the previous volume", "mm", "eddy QUAD"),
    "qc_outliers_tot": ("Slices that lost signal, of those that were judged", "%", "eddy QUAD"),
    "qc_outliers_b": ("The same of each shell", "%", "eddy QUAD"),
    "qc_cnr_avg": (
        "Signal-to-noise ratio of the b=0 volumes, then contrast-to-noise ratio of each shell, "
        "corrected series, median over the brain", "1", "eddy QUAD"),
    "exclude_volumes": (
        "Volumes beyond repair, counted from 0, and why: to be excluded from the analysis",
        "n/a", ""),
}  # fmt: skip
"""Figures beside those of the group: what they are, their unit, whose name it is."""


def quality_record(series: SeriesReport) -> dict[str, Any]:
    """Collect the figures of a series, JSON-ready: what is not known is None.

    Returns
    -------
    dict
        Name → figure, and ``Dictionary``: name → description, unit, whose name it is.
    """
    figures: dict[str, Any] = {**with_common_shells(quality_metrics(series))}
    figures |= _as_mriqc(series) | _as_quad(series)
    figures["exclude_volumes"] = series.reasons_beyond_repair
    return {
        **{name: _plain(value) for name, value in figures.items()},
        "Dictionary": {name: _described(name) for name in figures},
        "EddymotionVersion": __version__,
    }


def _as_mriqc(series: SeriesReport) -> dict[str, Any]:
    fd = series.findings.fd_with_offset
    count, n_known = int((fd > MRIQC_FD_MM).sum()), int(np.isfinite(fd).sum())
    figures: dict[str, Any] = {"fd_num": count, "fd_perc": 100 * count / max(n_known, 1)}
    if series.data is not None:
        figures["ndc"] = series.data.measures["ndc"][0]
    return figures


def _as_quad(series: SeriesReport) -> dict[str, Any]:
    gradients, findings = series.gradients, series.findings
    shells = gradients.shells if gradients.is_shelled else ()
    figures: dict[str, Any] = {
        "data_no_b0_vols": len(gradients.b0s),
        "data_no_dw_vols": len(gradients.dwis),
        "data_no_shells": len(shells),
        "data_unique_bvals": [round(float(gradients.bvals[shell].mean())) for shell in shells],
        "qc_mot_abs": over_known(np.mean, series.confounds.numbers("rms_abs")),
        "qc_mot_rel": over_known(np.mean, series.confounds.numbers("rmsd")),
    }
    lost, judged = findings.outliers, findings.judged
    figures["qc_outliers_tot"] = percent(lost.sum(), judged.sum())
    figures["qc_outliers_b"] = [
        percent(lost[shell].sum(), judged[shell].sum()) for shell in shells
    ]
    if series.data is not None:
        measures = series.data.measures
        bvals = [f"{bval:.0f}" for bval in gradients.shell_bvals[: len(shells)]]
        cnr = [measures["cnr"].get(bval, (np.nan, np.nan))[1] for bval in bvals]
        figures["qc_cnr_avg"] = [measures["tsnr_b0"][1], *cnr]
    return figures


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if np.isfinite(value) else None
    return value


def _described(name: str) -> dict[str, str]:
    words, unit, whose = OTHER_NAMES[name] if name in OTHER_NAMES else (*describe_metric(name), "")
    described = {"Description": words, "Units": unit, "NamedAsIn": whose}
    return {key: text for key, text in described.items() if text not in ("", "n/a")}
