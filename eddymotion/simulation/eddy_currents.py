# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields that follow the diffusion gradients.

:mod:`eddymotion.mapping.eddy_currents` says what a field does to a volume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.images.axes import image_axes
from eddymotion.images.grid import Grid
from eddymotion.io.tsv import table_text
from eddymotion.io.writing import write_text
from eddymotion.mapping.eddy_currents import N_TERMS, TERMS, EddyCurrents

__all__ = ["EddyCurrents", "Order", "simulate_eddy_currents", "write_eddy_table"]

Order = Literal["linear", "quadratic"]
"""Linear fields have the first three of :data:`~eddymotion.mapping.eddy_currents.TERMS`, quadratic
ones the first nine."""

QUADRATIC_SHARE = 0.3
"""Standard deviation of quadratic coefficients relative to that of linear ones."""


def simulate_eddy_currents(
    gradients: Gradients,
    grid: Grid,
    *,
    order: Order = "linear",
    amplitude: float = 1.0,
    pe_axis: str = "j",
    seed: int = 0,
) -> EddyCurrents:
    """Draw fields that are proportional to the diffusion gradient: √b times its direction.

    Parameters
    ----------
    gradients : Gradients
        Of the scanner, RAS+.
    grid : Grid
    order : {"linear", "quadratic"}
    amplitude : float
        Root-mean-square displacement (mm) at b=1000 over all directions and a ball of
        :data:`~eddymotion.mapping.eddy_currents.SCALE_MM`.
    pe_axis : str
        As PhaseEncodingDirection of BIDS, such as ``j-``.
    seed : int

    Returns
    -------
    EddyCurrents
        Zero for b=0 volumes.
    """
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    n_terms = N_TERMS[order]
    spread = np.where(np.arange(n_terms) < 3, 1.0, QUADRATIC_SHARE)
    response = random.normal(size=(n_terms, 3)) * spread[:, None]
    mean_square = np.einsum("ka,kl,la->", response, _ball_moments()[:n_terms, :n_terms], response)
    response *= amplitude / np.sqrt(mean_square / 3)
    axis = "ijk".index(pe_axis[0])
    pe = image_axes(grid.affine)[:, axis] * (-1.0 if pe_axis.endswith("-") else 1.0)
    return EddyCurrents(gradients.qvecs @ response.T, pe, grid.center)


def write_eddy_table(path: Path, eddy: EddyCurrents) -> None:
    """Write the coefficients (mm), one row per volume, one column ``e_…`` per term."""
    columns = zip(TERMS, eddy.coefficients.T + 0.0, strict=False)
    write_text(path, table_text({f"e_{name}": values for name, values in columns}))


def _ball_moments() -> np.ndarray:
    """Means of the products of the terms over the unit ball, (9, 9)."""
    moments = np.zeros((9, 9))
    moments[:3, :3] = np.eye(3) / 5
    moments[3:6, 3:6] = (1 + 2 * np.eye(3)) / 35
    moments[6:, 6:] = np.eye(3) / 35
    return moments
