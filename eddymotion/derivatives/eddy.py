# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields on disk: a table of coefficients, and displacement fields.

The table has a row a volume; its JSON file says what is needed to evaluate it. A displacement
field is the scanner's: it takes a scanner position to where that is recorded, without the motion,
which the rigid transforms hold (reference → scanner position). One file a volume, as ITK and
NiTransforms read it: five dimensions, vectors in LPS+ mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eddymotion.data.series import Series
from eddymotion.images.grid import grid_points
from eddymotion.io.tsv import table_text
from eddymotion.io.warps import write_displacements
from eddymotion.io.writing import write_json, write_text
from eddymotion.mapping.eddy_currents import SCALE_MM, TERMS, EddyCurrents

MODEL = "EddyCurrents"
"""Key of what the JSON file says about all columns together."""


def write_eddy(table: Path, sidecar: Path, eddy: EddyCurrents) -> None:
    """Write the coefficients of the fields, a row a volume, and what they mean.

    Parameters
    ----------
    table : Path
        TSV: `offset` and `offset_se` where they are known, then ``e_…`` for each of the
        :data:`~eddymotion.mapping.eddy_currents.TERMS`, mm.
    sidecar : Path
        JSON.
    eddy : EddyCurrents
    """
    columns = eddy_columns(eddy)
    write_text(table, table_text(columns))
    write_json(sidecar, eddy_descriptions(columns) | {MODEL: _model(eddy)})


def eddy_columns(eddy: EddyCurrents) -> dict[str, np.ndarray]:
    """Return the columns of the table, (N,) each; NaN is written as ``n/a``."""
    missing = np.full(len(eddy), np.nan)
    columns = {
        "offset": missing if eddy.offsets is None else eddy.offsets + 0.0,
        "offset_se": missing if eddy.offset_errors is None else eddy.offset_errors,
    }
    for term, values in zip(TERMS, eddy.coefficients.T, strict=False):
        columns[f"e_{term}"] = values + 0.0  # no negative zeros
    return columns


def eddy_descriptions(columns: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """Describe each column, for the JSON file."""
    known = {
        "offset": (
            "Displacement of the centre by the field, against the phase-encoding vector: the part "
            "of the translation of the pose that follows the diffusion gradients"
        ),
        "offset_se": "Standard error of offset",
    }
    for term in TERMS:
        product = "·".join(term)
        known[f"e_{term}"] = (
            f"Coefficient of {product} in the displacement against the phase-encoding vector, "
            "with (x, y, z) = (RAS+ scanner position − Center) / Scale"
        )
    return {name: {"Description": known[name], "Units": "mm"} for name in columns}


def _model(eddy: EddyCurrents) -> dict[str, object]:
    return {
        "Description": (
            "d(s) = Σ e_… · term; what is at scanner position s is recorded at "
            "s − PhaseEncodingVector · d(s), and its intensity times 1 − ∂d/∂PhaseEncodingVector "
            "is that without the field. The poses hold the offset."
        ),
        "Order": eddy.order,
        "PhaseEncodingVector": [float(value) for value in eddy.pe + 0.0],
        "Center": [float(value) for value in eddy.center + 0.0],
        "Scale": SCALE_MM,
        "Units": "mm",
    }


def write_displacement_fields(folder: Path, eddy: EddyCurrents, original: Series) -> list[Path]:
    """Write a displacement field for each volume, on the grid of the original series.

    Parameters
    ----------
    folder : Path
        Gets ``field_0000.nii.gz`` …; fields of a former run are removed.
    eddy : EddyCurrents
    original : Series

    Returns
    -------
    list of Path
    """
    for old in folder.glob("field_*.nii.gz"):
        old.unlink()
    paths = [folder / f"field_{volume:04d}.nii.gz" for volume in range(len(eddy))]
    for volume, path in enumerate(paths):
        write_displacements(path, displacements(eddy, volume, original), original.affine)
    return paths


def displacements(eddy: EddyCurrents, volume: int, original: Series) -> np.ndarray:
    """Evaluate a field on the grid of a series: (X, Y, Z, 3) float32, RAS+ mm."""
    x, y, z = original.shape
    first, step = grid_points((x, y, 1), original.affine), original.affine[:3, 2]
    field = np.empty((x, y, z, 3), np.float32)
    for height in range(z):  # all terms at all voxels at once are many volumes
        points = first + height * step
        moved = eddy.recorded(volume, points) - points
        field[:, :, height] = moved.reshape(x, y, 3)
    return field
