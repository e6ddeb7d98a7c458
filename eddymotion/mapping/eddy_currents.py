# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields: displacements along the phase-encoding axis, fixed to the scanner.

The field of volume ``i`` at scanner position ``s`` displaces by ``d_i(s) = e_i · P(u)`` mm, with
``u = (s − centre) / 80 mm`` in RAS+ and ``P`` the terms of :data:`TERMS`. What is at ``s`` is
recorded at ``s − pe · d_i(s)``, and the volume has to be sampled there. An echo-planar image
conserves signal, so that it is brighter where it is squeezed; the values sampled have to be
multiplied by the stretch ``1 − ∂d/∂pe``.

There is no constant term, which could not be distinguished from a translation of the head. Both
are in the translation of the pose; :attr:`EddyCurrents.offsets` is the part that belongs to the
fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.machine.frozen import freeze, selected
from eddymotion.mapping.field_kernels import displace_points
from eddymotion.wording import short_repr

TERMS = (
    "x", "y", "z",
    "xx", "yy", "zz", "xy", "xz", "yz",
    "xxx", "yyy", "zzz", "xxy", "xxz", "xyy", "yyz", "xzz", "yzz", "xyz",
)  # fmt: skip
"""Terms of a field; ``xy`` is the product of the first two components of u."""

N_TERMS = {"none": 0, "linear": 3, "quadratic": 9, "cubic": 19}
"""How many of :data:`TERMS` a field of that order has."""

SCALE_MM = 80.0
"""Unit of length: about the radius of a head. A coefficient is the displacement there."""

NEWTON_STEPS = 20


@dataclass(frozen=True, eq=False)
class EddyCurrents:
    """The eddy-current fields of a series.

    Parameters
    ----------
    coefficients : (N, K) array
        mm at :data:`SCALE_MM` from the centre, in the order of :data:`TERMS`; K is one of
        :data:`N_TERMS`.
    pe : (3,) array
        Unit vector of the phase-encoding direction, RAS+.
    center : (3,) array
        Where the fields vanish, RAS+ mm: the centre of the image grid.
    offsets : (N,) array, optional
        Displacement of the centre by the fields, mm along `pe` (signed as ``d``): the part of the
        poses' translation that follows the gradients, or goes with fields that follow the head.
    offset_errors : (N,) array, optional
        Their standard errors, mm.
    """

    coefficients: np.ndarray
    pe: np.ndarray
    center: np.ndarray
    offsets: np.ndarray | None = None
    offset_errors: np.ndarray | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        freeze(self, "eddy currents", coefficients="N K", pe="3", center="3", offsets="N",
               offset_errors="N")  # fmt: skip
        if self.coefficients.shape[1] not in N_TERMS.values():
            raise EddymotionError(
                f"eddy currents: coefficients of shape {self.coefficients.shape}, expected (N, K) "
                f"with K one of {', '.join(map(str, N_TERMS.values()))}"
            )
        if abs(np.linalg.norm(self.pe) - 1) > 1e-6:
            raise EddymotionError(
                f"eddy currents: the phase-encoding direction {self.pe} does not have length 1"
            )

    def __len__(self) -> int:
        return len(self.coefficients)

    @classmethod
    def none(cls, n_volumes: int, order: str, pe: np.ndarray, center: np.ndarray) -> EddyCurrents:
        """No displacement in any of `n_volumes` volumes, as fields of an order."""
        return cls(np.zeros((n_volumes, N_TERMS[order])), pe, center)

    @property
    def shifts(self) -> np.ndarray:
        """Matrices that add the offsets to a scanner position, (N, 4, 4)."""
        matrices = np.tile(np.eye(4), (len(self), 1, 1))
        if self.offsets is not None:
            matrices[:, :3, 3] = -self.offsets[:, None] * self.pe
        return matrices

    def select(self, volumes: np.ndarray | slice) -> EddyCurrents:
        """Keep the fields of some of the volumes."""
        return selected(self, volumes, "coefficients", "offsets", "offset_errors")

    def of_order(self, order: str) -> EddyCurrents:
        """Leave out the terms beyond an order, or add those it has more, as zero."""
        coefficients = np.zeros((len(self), N_TERMS[order]))
        kept = min(N_TERMS[order], self.coefficients.shape[1])
        coefficients[:, :kept] = self.coefficients[:, :kept]
        return replace(self, coefficients=coefficients)

    @property
    def order(self) -> str:
        """One of :data:`N_TERMS`."""
        n_terms = self.coefficients.shape[1]
        return next(name for name, n in N_TERMS.items() if n == n_terms)

    def displacement(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Displacement d (mm, against `pe`) of scanner positions (P, 3), RAS+ mm: (P,)."""
        return self.terms(points) @ self.coefficients[volume]

    def recorded(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Where signal from scanner positions (P, 3) is recorded, RAS+ mm: (P, 3)."""
        return points - self.displacement(volume, points)[:, None] * self.pe

    def stretch(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Millimetres recorded for each millimetre along `pe` at scanner positions (P, 3): (P,).

        What is recorded times this is what would be recorded without a field.
        """
        u, n_terms = self._units(points), self.coefficients.shape[1]
        slope = polynomial_slopes(u, self.pe, n_terms) @ self.coefficients[volume]
        return 1.0 - slope / SCALE_MM

    def displaced(
        self, volume: int, points: np.ndarray, pose: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`recorded` (P, 3) and :meth:`stretch` (P,) of moved points (P, 3).

        Parameters
        ----------
        volume : int
        points : (P, 3) array
            mm
        pose : (4, 4) array
            Frame of the points → scanner, RAS+ mm.
        """
        recorded, factors = np.empty((len(points), 3)), np.empty(len(points), np.float32)
        displacement, stretch = self.polynomials(volume)
        displace_points(
            np.ascontiguousarray(points, dtype=float),
            np.ascontiguousarray(pose[:3]),
            self.units_of(pose),
            displacement,
            stretch,
            np.ascontiguousarray(self.pe, dtype=float),
            recorded,
            factors,
        )
        return recorded, factors

    def units_of(self, pose: np.ndarray) -> np.ndarray:
        """Return the map from points of a frame, or of each of several, to the u of the terms.

        Parameters
        ----------
        pose : (…, 4, 4) array
            Frame of the points → scanner, RAS+ mm.

        Returns
        -------
        (…, 3, 4) array
        """
        units = np.array(pose[..., :3, :], dtype=float)
        units[..., 3] -= self.center
        return units / SCALE_MM

    def polynomials(self, volume: int) -> tuple[np.ndarray, np.ndarray]:
        """Write displacement and stretch of a volume as weights of 1 and :data:`TERMS`, (20,)."""
        coefficients = self.coefficients[volume]
        displacement, stretch = np.zeros((2, 1 + len(TERMS)))
        displacement[1 : 1 + len(coefficients)] = coefficients
        stretch[0] = 1.0
        for weight, term in zip(coefficients, TERMS, strict=False):
            for position, axis in enumerate(term):
                rest = term[:position] + term[position + 1 :]
                column = 1 + TERMS.index(rest) if rest else 0
                stretch[column] -= weight * self.pe["xyz".index(axis)] / SCALE_MM
        return displacement, stretch

    def origin(self, volume: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Invert :meth:`recorded`, by Newton's method along `pe`.

        Returns
        -------
        origins : (P, 3) array
            The scanner positions that are recorded at `points`, RAS+ mm.
        stretch : (P,) array
            Of :meth:`stretch`, there.

        Raises
        ------
        EddymotionError
            If the field folds the image.
        """
        shift = np.zeros(len(points))
        for _ in range(NEWTON_STEPS):
            origins = points + shift[:, None] * self.pe
            stretch = self.stretch(volume, origins)
            if not (stretch > 0).all():
                break
            step = (self.displacement(volume, origins) - shift) / stretch
            shift += step
            if np.abs(step).max(initial=0) < 1e-10:
                origins = points + shift[:, None] * self.pe
                return origins, self.stretch(volume, origins)
        raise EddymotionError(
            f"eddy currents: the field of volume {volume} folds the image; give a smaller one"
        )

    def terms(self, points: np.ndarray) -> np.ndarray:
        """Evaluate the terms of the fields at scanner positions (P, 3), RAS+ mm: (P, K)."""
        return polynomial_terms(self._units(points), self.coefficients.shape[1])

    def _units(self, points: np.ndarray) -> np.ndarray:
        return (points - self.center) / SCALE_MM


def polynomial_terms(u: np.ndarray, n_terms: int) -> np.ndarray:
    """Return the first `n_terms` of :data:`TERMS` at ``u`` (P, 3): (P, n_terms)."""
    terms = np.empty((n_terms, len(u)), u.dtype)
    for column, term in zip(terms, TERMS, strict=False):
        parts = [u[:, "xyz".index(axis)] for axis in term]
        column[:] = parts[0]
        for part in parts[1:]:
            column *= part
    return terms.T


def polynomial_slopes(u: np.ndarray, direction: np.ndarray, n_terms: int) -> np.ndarray:
    """Differentiate :func:`polynomial_terms` along a direction (3,): (P, n_terms)."""
    slopes = np.zeros((n_terms, len(u)), u.dtype)
    for column, term in zip(slopes, TERMS, strict=False):
        for position, axis in enumerate(term):
            rest = term[:position] + term[position + 1 :]
            product = np.full(len(u), direction["xyz".index(axis)], u.dtype)
            for other in rest:
                product *= u[:, "xyz".index(other)]
            column += product
    return slopes.T
