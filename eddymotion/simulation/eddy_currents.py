"""Eddy-current fields: displacements along the phase-encoding axis, fixed to the scanner.

The field of volume ``i`` at scanner position ``s`` displaces by ``d_i(s) = e_i · P(u)`` mm, with
``u = (s − centre) / 80 mm`` in RAS+ and ``P`` the terms of :data:`TERMS`. A point at ``s`` is
recorded at ``s − pe · d_i(s)``: the volume is to be sampled there. There is no constant term: no
image could tell it from a translation of the head.

With ``Q`` the field as a quadratic form in homogeneous coordinates, ``d(s) = sᵀQs``, the point
seen at ``r`` lies at ``s = r + pe·t`` where ``t = d(r) + 2t·peᵀQr + t²·peᵀQpe``, a quadratic
equation. As an echo-planar image conserves signal, it is divided by the stretch ``1 − ∂d/∂pe``,
always.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.files import write_text
from eddymotion.gradients import Gradients, image_axes
from eddymotion.simulation.grid import Grid

Order = Literal["linear", "quadratic"]
"""Linear fields have the first three of :data:`TERMS`, quadratic ones all nine."""

TERMS = ("x", "y", "z", "xx", "yy", "zz", "xy", "xz", "yz")
"""Terms of a field; ``xy`` is the product of the first two components of u."""

PE_AXES = ("i", "i-", "j", "j-", "k", "k-")
"""Phase-encoding directions as in BIDS: image axes, a minus for the other way."""

SCALE_MM = 80.0
"""Unit of length: about the radius of a head. A coefficient is the displacement there."""

QUADRATIC_SHARE = 0.3
"""Standard deviation of quadratic coefficients relative to that of linear ones."""


@dataclass(frozen=True, eq=False)
class EddyCurrents:
    """The eddy-current fields of a series.

    Parameters
    ----------
    coefficients : (N, 3) or (N, 9) array
        mm at :data:`SCALE_MM` from the centre, in the order of :data:`TERMS`.
    pe : (3,) array
        Unit vector of the phase-encoding direction, RAS+.
    center : (3,) array
        Where the fields vanish, RAS+ mm: the centre of the image grid.
    """

    coefficients: np.ndarray
    pe: np.ndarray
    center: np.ndarray

    def displacement(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Displacement d (mm, against `pe`) of scanner positions (P, 3), RAS+ mm: (P,)."""
        s = _homogeneous(points)
        return ((s @ self._form(volume)) * s).sum(axis=1)

    def recorded(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Where points at scanner positions (P, 3) are recorded, RAS+ mm: (P, 3)."""
        return points - self.displacement(volume, points)[:, None] * self.pe

    def origin(self, volume: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Invert :meth:`recorded`.

        Returns
        -------
        origins : (P, 3) array
            The scanner positions that are recorded at `points`, RAS+ mm.
        stretch : (P,) array
            Millimetres recorded for each millimetre along the phase-encoding axis.

        Raises
        ------
        EddymotionError
            If the field folds the image.
        """
        form, r, pe = self._form(volume), _homogeneous(points), np.append(self.pe, 0.0)
        field = ((r @ form) * r).sum(axis=1)
        slope = 1 - 2 * (r @ (form @ pe))
        square = slope**2 - 4 * (pe @ form @ pe) * field
        if not ((square > 0) & (slope > 0)).all():
            raise EddymotionError(
                f"eddy currents: the field of volume {volume} folds the image; give a smaller "
                "--eddy-amplitude"
            )
        stretch = np.sqrt(square)
        return points + (2 * field / (slope + stretch))[:, None] * self.pe, stretch

    def _form(self, volume: int) -> np.ndarray:
        """Return the field as a quadratic form Q of homogeneous RAS+ coordinates, (4, 4)."""
        e = np.zeros(len(TERMS))
        e[: self.coefficients.shape[1]] = self.coefficients[volume]
        x, y, z, xx, yy, zz, xy, xz, yz = e
        in_units = np.array(
            [[2 * xx, xy, xz, x], [xy, 2 * yy, yz, y], [xz, yz, 2 * zz, z], [x, y, z, 0.0]]
        ) / 2  # fmt: skip
        to_units = np.diag([1 / SCALE_MM] * 3 + [1.0])
        to_units[:3, 3] = -self.center / SCALE_MM
        return to_units.T @ in_units @ to_units


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
        :data:`SCALE_MM`.
    pe_axis : str
        One of :data:`PE_AXES`.
    seed : int

    Returns
    -------
    EddyCurrents
        Zero for b=0 volumes.
    """
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    n_terms = {"linear": 3, "quadratic": 9}[order]
    spread = np.where(np.arange(n_terms) < 3, 1.0, QUADRATIC_SHARE)
    response = random.normal(size=(n_terms, 3)) * spread[:, None]
    mean_square = np.einsum("ka,kl,la->", response, _ball_moments()[:n_terms, :n_terms], response)
    response *= amplitude / np.sqrt(mean_square / 3)
    axis = "ijk".index(pe_axis[0])
    pe = image_axes(grid.affine)[:, axis] * (-1.0 if pe_axis.endswith("-") else 1.0)
    return EddyCurrents(gradients.qvecs @ response.T, pe, grid.center)


def write_eddy_table(path: Path, eddy: EddyCurrents) -> None:
    """Write the coefficients (mm), a row a volume, one column ``e_…`` for each of the terms."""
    names = TERMS[: eddy.coefficients.shape[1]]
    rows = ["\t".join(f"e_{name}" for name in names)]
    rows += ["\t".join(f"{value:.8g}" for value in row + 0.0) for row in eddy.coefficients]
    write_text(path, "\n".join(rows) + "\n")


def _ball_moments() -> np.ndarray:
    """Means of the products of the terms over the unit ball, (9, 9)."""
    moments = np.zeros((9, 9))
    moments[:3, :3] = np.eye(3) / 5
    moments[3:6, 3:6] = (1 + 2 * np.eye(3)) / 35
    moments[6:, 6:] = np.eye(3) / 35
    return moments


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])
