# SPDX-License-Identifier: Apache-2.0
"""The group level: quality metrics of all series in one table, from the derivatives alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.derivatives.finished import refuse_changed
from eddymotion.errors import EddymotionError
from eddymotion.io.tsv import MISSING
from eddymotion.reports.group_rule import DETAILS, RULE, MetricComparison, compare
from eddymotion.reports.metrics import (
    Value,
    describe_metric,
    in_order,
    quality_metrics,
    rounded_bval,
    with_common_shells,
)
from eddymotion.reports.participant import NO_ERRORS, finished_outputs, why_unreadable
from eddymotion.reports.series import SeriesReport
from eddymotion.wording import why

log = logging.getLogger(__name__)

TABLE, DICTIONARY, PAGE = "group_dwi.tsv", "group_dwi.json", "group_dwi.html"

READ = ("confounds", "outliers", "eddy", "trajectory", "report_data")
"""Outputs that the metrics are taken from; the images are left to the participant level."""

IDENTITY = {
    "participant_id": "Participant",
    "session_id": "Session; n/a without",
    "series": "Name of the series: that of its file without _dwi.nii.gz",
    "protocol": "Voxel size (mm) and b-values (s/mm^2) of the series; some metrics are compared "
    "within a protocol only",
}


VERDICTS = {
    "Usable": "nothing beyond the limits of care",
    "Usable with care": "a number beyond the limits of care",
    "Doubtful": "a number beyond the limits of doubt",
}


@dataclass(frozen=True, eq=False)
class GroupRow:
    """A series of a group.

    Parameters
    ----------
    participant, session, series, protocol : str
    metrics : dict
        Name → value.
    page : str
        Name of the participant's report in the output folder; empty where there is none.
    part : str
        Where the series is on that page.
    """

    participant: str
    session: str
    series: str
    protocol: str
    metrics: dict[str, Value]
    page: str
    part: str

    @property
    def verdict(self) -> str:
        """That of the participant's report."""
        return str(self.metrics.get("verdict", MISSING))


@dataclass(frozen=True, eq=False)
class SeriesGroup:
    """All series of a group.

    Parameters
    ----------
    rows : sequence of GroupRow
    errors : dict
        Series that are missing or cannot be read → why.
    """

    rows: Sequence[GroupRow]
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics, in the order of the columns."""
        return in_order({name for row in self.rows for name in row.metrics})

    def column(self, metric: str) -> np.ndarray:
        """Return a metric of all series (N,): NaN where it is not known or not a number."""
        values = [row.metrics.get(metric, np.nan) for row in self.rows]
        return np.array([np.nan if isinstance(value, str) else value for value in values], float)

    def head_column(self, metric: str) -> np.ndarray:
        """Return ``fd_mean`` or ``fd_max``, of the head alone where that is known: (N,)."""
        head = self.column(metric.replace("fd_", "fd_head_"))
        return np.where(np.isfinite(head), head, self.column(metric))

    def comparisons(self) -> list[dict[str, MetricComparison]]:
        """Compare each series with the others; see :mod:`eddymotion.reports.group_rule`."""
        columns = {name: self.column(name) for name in self.metrics}
        columns |= {name: self.head_column(name) for name in ("fd_mean", "fd_max")}
        return compare(columns, [row.protocol for row in self.rows])


def gather(
    output_dir: Path,
    participants: Collection[str] = (),
    sessions: Collection[str] = (),
    errors: Mapping[str, str] = NO_ERRORS,
) -> SeriesGroup:
    """Collect the metrics of all finished series; see :func:`build_group_report`."""
    wanted = {label.removeprefix("sub-") for label in participants}
    rows: list[GroupRow] = []
    failed = dict(errors)
    for folder in sorted(output_dir.glob("sub-*/")):
        if wanted and folder.name.removeprefix("sub-") not in wanted:
            continue
        part = 0
        for outputs in finished_outputs(folder):
            try:
                series = SeriesReport.load(outputs)
                refuse_changed(outputs, READ)
                row = _row(series, folder.name, _page_of(folder), f"s{part}")
            except Exception as error:  # whatever is in its files, the others are gathered
                log.debug("%s cannot be read", outputs.src, exc_info=True)
                failed[outputs.src] = why_unreadable(outputs, error)
                continue
            part += 1
            if _is_wanted(row.session, sessions):
                rows.append(row)
    return SeriesGroup(rows, failed)


def table_columns(
    group: SeriesGroup, comparisons: Sequence[Mapping[str, MetricComparison]]
) -> dict[str, list[str]]:
    """Return the columns of the table, as text."""
    columns = {
        "participant_id": [row.participant for row in group.rows],
        "session_id": [row.session or MISSING for row in group.rows],
        "series": [row.series for row in group.rows],
        "protocol": [row.protocol for row in group.rows],
    }
    for name in group.metrics:
        columns[name] = [_cell(row.metrics.get(name, np.nan)) for row in group.rows]
    columns["outlier"] = [_outlier_cell(found) for found in comparisons]
    return columns


def data_dictionary(group: SeriesGroup) -> dict[str, Any]:
    """Describe the columns of the table."""
    dictionary: dict[str, Any] = {name: {"Description": words} for name, words in IDENTITY.items()}
    for name in group.metrics:
        words, unit = describe_metric(name)
        dictionary[name] = {"Description": words} | ({} if unit == "n/a" else {"Units": unit})
    if "verdict" in dictionary:
        dictionary["verdict"]["Levels"] = VERDICTS
    dictionary["outlier"] = {
        "Description": "Metrics by which the series stands out among the others, separated by "
        f"commas; none: it does not; n/a: too few comparable series. {RULE} {DETAILS}"
    }
    return dictionary


def _row(series: SeriesReport, participant: str, page: str, part: str) -> GroupRow:
    outputs = series.outputs
    try:
        metrics = with_common_shells(quality_metrics(series))
        in_order(metrics)
    except (KeyError, TypeError, ValueError) as error:
        raise EddymotionError(
            f"{outputs['report_data']}: its measures cannot be read ({why(error)}); correct the "
            "series again"
        ) from error
    session = outputs.folder.name if outputs.folder.name.startswith("ses-") else ""
    return GroupRow(participant, session, outputs.src, _protocol(series), metrics, page, part)


def _page_of(folder: Path) -> str:
    page = folder.parent / f"{folder.name}.html"
    return page.name if page.is_file() else ""


def _is_wanted(session: str, sessions: Collection[str]) -> bool:
    wanted = {label.removeprefix("ses-") for label in sessions}
    return not wanted or session.removeprefix("ses-") in wanted


def _protocol(series: SeriesReport) -> str:
    """Name what series must share to be compared in signal: voxel size and b-values."""
    words = series.data.series if series.data is not None else str(series.summary.get("series"))
    size = re.search(r"[\d.e+-]+(?:×[\d.e+-]+){2} mm", words)
    gradients = series.gradients
    if gradients.is_shelled:
        bvals = "+".join(str(rounded_bval(bval)) for bval in gradients.shell_bvals)
    else:
        bvals = f"0–{rounded_bval(gradients.bvals.max(initial=0))}"
    return f"{size[0] if size else 'unknown size'}, b={bvals}"


def _cell(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if np.isfinite(value) else MISSING
    return str(value)


def _outlier_cell(found: Mapping[str, MetricComparison]) -> str:
    if not found:
        return MISSING
    return ",".join(name for name, one in found.items() if one.is_outlier) or "none"
