# SPDX-License-Identifier: Apache-2.0
"""What a raw sidecar says of image axes, matrix and slices, on another grid.

``PhaseEncodingDirection`` names an axis *of the image*. On another grid the same direction may be
another axis, run the other way along it, or be no axis at all. ``TotalReadoutTime`` turns Hz into
voxels along that axis, so that it holds for voxels of that length alone; ``EffectiveEchoSpacing``
depends on the number of lines, too; ``MultibandAccelerationFactor`` counts acquired slices. A
field that does not hold any more is left out: readers take a missing one for unknown, a wrong one
for true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eddymotion.data.series import Series
from eddymotion.images.grid import grid_distance
from eddymotion.wording import PE_AXES

DIRECTIONS = ("PhaseEncodingDirection", "PhaseEncodingAxis")
"""Fields that name an image axis."""

OF_SLICES = ("MultibandAccelerationFactor", "SliceTiming", "SliceEncodingDirection")
"""Fields about slices as they were acquired."""

TIMES = ("TotalReadoutTime", "EffectiveEchoSpacing")
"""Fields that go with the length of a voxel along the phase encoding; the last with the number of
lines, too."""

MAX_TILT = 5.0
"""Degrees between a direction and an image axis that may still stand for it."""

SAME_LENGTH = 0.01
"""Part of a voxel's length that counts as rounding."""

SAME_PLACE_MM = 1e-3


def on_grid(
    metadata: Mapping[str, Any],
    original: Series,
    corrected: Series,
    to_reference: np.ndarray | None,
) -> dict[str, Any]:
    """Express fields of the raw sidecar on the grid of the corrected series.

    Parameters
    ----------
    metadata : dict
        Fields of the raw sidecar.
    original, corrected : Series
        Only their grids count.
    to_reference : (4, 4) array or None
        Points of the corrected series → points of the reference frame, RAS+ mm: the identity
        where it keeps the scanner's coordinates. None where it is no matrix but a warp.

    Returns
    -------
    dict
        All of them on the grid of the original series; otherwise without those that do not hold.
    """
    if to_reference is not None and _is_same_grid(original, corrected, to_reference):
        return dict(metadata)
    tied = {*DIRECTIONS, *OF_SLICES, *TIMES}
    kept = {name: value for name, value in metadata.items() if name not in tied}
    if to_reference is None:
        return kept
    steps = np.linalg.inv(to_reference @ corrected.affine)[:3, :3] @ original.affine[:3, :3]
    for name in DIRECTIONS:
        if metadata.get(name) in PE_AXES:
            kept |= _direction(name, metadata, original, corrected, steps)
    return kept


def _direction(
    name: str,
    metadata: Mapping[str, Any],
    original: Series,
    corrected: Series,
    steps: np.ndarray,
) -> dict[str, Any]:
    """Express a direction, and the times that still hold along it; nothing between two axes.

    Parameters
    ----------
    name : str
        Of the field.
    metadata : mapping
    original, corrected : Series
    steps : (3, 3) array
        What a step of one original voxel along each axis is in voxels of the corrected series.
    """
    direction = metadata[name]
    axis = "ijk".index(direction[0])
    step = steps[:, axis]
    new_axis, tilt = _nearest_axis(step, corrected.voxel_sizes)
    if tilt > MAX_TILT:
        return {}
    backwards = (step[new_axis] < 0) != direction.endswith("-")
    signed = name == "PhaseEncodingDirection" or direction.endswith("-")
    found = {name: "ijk"[new_axis] + ("-" if backwards and signed else "")}
    if abs(abs(step[new_axis]) - 1) <= SAME_LENGTH:
        lines = original.shape[axis] == corrected.shape[new_axis]
        times = TIMES if lines else TIMES[:1]
        found |= {time: metadata[time] for time in times if time in metadata}
    return found


def _is_same_grid(original: Series, corrected: Series, to_reference: np.ndarray) -> bool:
    apart = grid_distance(original.affine, to_reference @ corrected.affine, original.shape)
    return original.shape == corrected.shape and apart < SAME_PLACE_MM


def _nearest_axis(step: np.ndarray, voxel_sizes: np.ndarray) -> tuple[int, float]:
    """Return the image axis nearest to a step in voxels, and degrees between them."""
    along = np.abs(step * voxel_sizes)
    axis = int(along.argmax())
    return axis, float(np.rad2deg(np.arccos(min(along[axis] / np.linalg.norm(along), 1.0))))
