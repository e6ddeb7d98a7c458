# SPDX-License-Identifier: Apache-2.0
"""Corrected runs → one series: one after the other, or pairs of opposite polarity averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Box, grid_distance

SAME_GRID_MM = 1e-3

SAME_DIRECTION_DEGREES = 5.0
SAME_BVAL = 0.1
"""Part by which b-values of a pair may differ: scanners round them."""


def refuse_other_grids(grids: Sequence[tuple[str, Box]]) -> None:
    """Raise if the grids of runs, each with its name, differ: such runs cannot be merged."""
    if not grids:
        return
    (name, first), *others = grids
    for other, box in others:
        apart = grid_distance(first.affine, box.affine, first.shape)
        if box.shape != first.shape or apart > SAME_GRID_MM:
            raise EddymotionError(
                f"{other}: not on the grid of {name}, so that the two cannot be merged; "
                "leave --distortion-group-merge out, or give an --output-space"
            )


def concatenated(runs: Sequence[DWI]) -> DWI:
    """Concatenate the volumes of corrected runs.

    Raises
    ------
    EddymotionError
        If their grids differ.
    """
    first = runs[0]
    refuse_other_grids([(str(run.source), run) for run in runs])
    gradients = Gradients(
        np.concatenate([run.gradients.bvals for run in runs]),
        np.concatenate([run.gradients.bvecs for run in runs]),
        first.gradients.b0_threshold,
    )
    signal = np.concatenate([run.signal for run in runs], axis=3)
    return DWI(signal, first.affine, gradients, first.mask, first.source)


def averaged(
    runs: Sequence[DWI], stretches: Sequence[np.ndarray], shifts: np.ndarray
) -> tuple[DWI, int]:
    """Make one volume of each pair of opposite polarity, weighted by the squares of the stretch.

    Where an image was squeezed, little is known of what is where; where it was stretched, much.
    Volumes without a partner stay as they are, as do voxels that one run alone has seen.

    Parameters
    ----------
    runs : sequence of DWI
        Corrected, in one frame.
    stretches : sequence of (X, Y, Z) arrays
        Of each run, on that grid.
    shifts : (K, 3) array
        Displacement for a hertz in each run.

    Returns
    -------
    DWI
    int
        How many pairs there were.
    """
    whole = concatenated(runs)
    run_of = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    partner, pairs = _partners(whole.gradients, run_of, shifts), 0
    signal, kept = np.array(whole.signal, np.float32), []
    for volume, other in enumerate(partner):
        if other is not None and other < volume:
            continue
        kept.append(volume)
        if other is None:
            continue
        both = signal[..., [volume, other]]
        squares = [stretches[run_of[one]] ** 2 for one in (volume, other)]
        weights = np.stack(squares, axis=-1) * (both != 0)  # zero: not seen by that run
        total = weights.sum(axis=-1)
        signal[..., volume] = (weights * both).sum(axis=-1) / np.where(total > 0, total, 1)
        pairs += 1
    merged = DWI(signal, whole.affine, whole.gradients, whole.mask, whole.source)
    return merged.select(np.array(kept)), pairs


def _partners(gradients: Gradients, run_of: np.ndarray, shifts: np.ndarray) -> list[int | None]:
    """Find for each volume one of another polarity with the same gradient, each once."""
    partner: list[int | None] = [None] * len(gradients)
    limit = np.cos(np.deg2rad(SAME_DIRECTION_DEGREES))
    for volume in range(len(gradients)):
        if partner[volume] is not None:
            continue
        for other in range(volume + 1, len(gradients)):
            opposed = shifts[run_of[volume]] @ shifts[run_of[other]] < 0
            if partner[other] is not None or not opposed:
                continue
            b, c = gradients.bvals[[volume, other]]
            both_b0 = gradients.is_b0[volume] and gradients.is_b0[other]
            along = abs(gradients.bvecs[volume] @ gradients.bvecs[other]) >= limit
            if both_b0 or (along and abs(b - c) <= SAME_BVAL * max(b, c)):
                partner[volume], partner[other] = other, volume
                break
    return partner
