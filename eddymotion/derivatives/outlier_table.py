# SPDX-License-Identifier: Apache-2.0
"""The table of slices that lost signal, and what is said about all of them together."""

from __future__ import annotations

from typing import Any

from eddymotion.estimation.outliers import (
    MEMBER_Z_THRESHOLD,
    SliceOutliers,
    percent_lost,
    reasons_beyond_repair,
    volumes_beyond_repair,
)
from eddymotion.estimation.outliers.profiles import RATIO_THRESHOLD, Z_THRESHOLD
from eddymotion.io.tsv import table_text

DESCRIPTIONS = {
    "volume": {"Description": "Volume, counted from 0"},
    "slice": {"Description": "Slice, counted from 0 along the slice axis of the original image"},
    "z_score": {
        "Description": "Robust z-score of the share of its predicted signal that the slice shows, "
        "against what the other slices of the volume let expect; negative where signal is lost"
    },
    "replaced": {
        "Description": "Whether the corrected series shows the prediction there",
        "Levels": {"true": "it does", "false": "it shows what was acquired"},
    },
}
"""Of the columns."""


def outlier_table(outliers: SliceOutliers | None, *, replaced: bool = False) -> str:
    """List the outliers, a row each, volume by volume.

    Parameters
    ----------
    outliers : SliceOutliers, optional
    replaced : bool
        Whether the corrected series shows their predictions.

    Returns
    -------
    str
        TSV with the columns of :data:`DESCRIPTIONS`.
    """
    found = () if outliers is None else zip(*outliers.flagged.nonzero(), strict=True)
    rows = [(int(volume), int(index)) for volume, index in found]
    columns: dict[str, list] = {
        "volume": [volume for volume, _ in rows],
        "slice": [index for _, index in rows],
        "z_score": [float(outliers.z[row]) for row in rows] if outliers is not None else [],
        "replaced": [str(replaced).lower()] * len(rows),
    }
    return table_text(columns)


def exclusion_list(outliers: SliceOutliers) -> str:
    """List the volumes beyond repair, counted from 0, separated by blanks, in one line."""
    return " ".join(map(str, volumes_beyond_repair(outliers))) + "\n"


def outlier_summary(outliers: SliceOutliers, *, replaced: bool = False) -> dict[str, Any]:
    """Say how many slices of the series and of each volume lost signal; JSON-ready.

    Percentages are of the slices that were judged.
    """
    percent, reasons = percent_lost(outliers), reasons_beyond_repair(outliers)
    n_lost, n_judged = int(outliers.flagged.sum()), int(outliers.judged.sum())
    overall = round(100 * n_lost / max(n_judged, 1), 3)
    return {
        "Judged": n_judged,
        "Lost": n_lost,
        "PercentLost": overall,
        "PercentLostPerVolume": [round(float(value), 3) for value in percent],
        "Replaced": replaced,
        "PercentReplaced": overall if replaced else 0.0,
        "VolumesBeyondRepair": list(reasons),
        "ReasonsBeyondRepair": {str(volume): why for volume, why in reasons.items()},
    }


def outlier_descriptions(outliers: SliceOutliers | None, *, replaced: bool) -> dict[str, Any]:
    """Describe the table for its JSON file: columns, how slices were judged, percentages."""
    if outliers is None:
        return dict(DESCRIPTIONS)
    slicing = outliers.slicing
    together = [group.tolist() for group in slicing.groups if len(group) > 1]
    criteria = {
        "Description": "An outlier has a z-score and a share of the predicted signal below the "
        "thresholds, by itself or together with the slices that were excited with it; in a group "
        "that is an outlier, slices below the threshold for members are. Percentages are of the "
        "slices that were judged.",
        "ZThreshold": Z_THRESHOLD,
        "ShareThreshold": RATIO_THRESHOLD,
        "MemberZThreshold": MEMBER_Z_THRESHOLD,
        "SliceAxis": "ijk"[slicing.axis],
        "SlicesExcitedTogether": together or "not known, or one at a time",
    }
    return DESCRIPTIONS | {"Outliers": criteria | outlier_summary(outliers, replaced=replaced)}
