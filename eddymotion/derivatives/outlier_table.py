"""The table of slices that lost signal."""

from __future__ import annotations

from eddymotion.derivatives.confounds import table_text
from eddymotion.estimation.outliers import SliceOutliers

DESCRIPTIONS = {
    "volume": {"Description": "Volume, counted from 0"},
    "slice": {"Description": "Slice, counted from 0 along the slice axis of the original image"},
    "z_score": {
        "Description": "Robust z-score of the share of its predicted signal that the slice shows; "
        "negative where signal is lost"
    },
    "replaced": {
        "Description": "Whether the corrected series shows the prediction there",
        "Levels": {"true": "it does", "false": "it shows what was acquired"},
    },
}
"""Of the columns, for a JSON file beside the table."""


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
    return table_text(columns)  # type: ignore[arg-type]
