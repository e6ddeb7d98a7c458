# SPDX-License-Identifier: Apache-2.0
"""The leave-one-out identity of a linear smoother.

**Least squares.** Let the fitted values be linear in the data, ``ŷ = H y``, with
``H = X (XᵀWX)⁻¹ XᵀW`` for a design ``X`` and fixed weights ``W``. Write ``A = XᵀWX`` and drop
observation ``i``: ``A₋ᵢ = A − wᵢ xᵢxᵢᵀ`` and ``XᵀWy`` loses ``wᵢ xᵢ yᵢ``. The Sherman-Morrison
formula gives the refitted prediction without a refit::

    ŷ₍ᵢ₎ = xᵢᵀ A₋ᵢ⁻¹ (XᵀWy − wᵢ xᵢ yᵢ) = yᵢ − (yᵢ − ŷᵢ) / (1 − Hᵢᵢ)

**Gaussian process.** For ``y ~ N(Xβ, K)`` with a flat prior on ``β``, the precision of the data is
``P = K⁻¹ − K⁻¹X (XᵀK⁻¹X)⁻¹ XᵀK⁻¹``; conditioning on all but ``yᵢ`` gives the mean
``yᵢ − (P y)ᵢ / Pᵢᵢ`` (Dubrule 1983; Rasmussen & Williams 2006, eq. 5.12).

**Both are one formula.** With ``P = I − H`` the first is the second. A model therefore only
defines its ``P``; :func:`held_out_operator` turns it into the matrix ``L``, zero on the diagonal,
with ``L y`` the prediction of each volume from the others, for all voxels in a single product.

**Several at a time.** Volumes that nearly coincide in q-space with the held-out one would reveal
it (``min_q_distance``). For a group ``G ∋ i`` left out together, block elimination gives
``y_G − (P_GG)⁻¹ (P y)_G``; row ``i`` of it is the prediction from the volumes outside ``G``.

**Leverage.** Where ``Pᵢᵢ → 0`` the other volumes do not determine volume ``i`` (the only b=0 of
a tensor fit, the only volume of a shell): its prediction is NaN, never an arbitrary number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients

LEVERAGE_GUARD = 1e-8
"""Smallest ``Pᵢᵢ`` at which a volume counts as predictable: absolute for least squares, whose
``P`` is a projector, relative to the largest where that is larger (Gaussian processes)."""

VOXELS_FOR_PARAMETERS = 20_000


@runtime_checkable
class Model(Protocol):
    """What the signal should be."""

    def leave_one_out(self, signal: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Predict each volume from the others.

        Parameters
        ----------
        signal : (..., N) array
            Aligned volumes along the last axis.
        gradients : Gradients
            In the frame of the aligned volumes.

        Returns
        -------
        (..., N) float32 array
            Volume ``i`` predicted by the model fitted to all volumes but ``i``; NaN where the
            others do not determine it.
        """
        ...


class LinearModel(ABC):
    """A linear smoother across volumes: subclasses name their precision matrix.

    One whose parameters depend on the data learns them from the scatter ``S = Σ yyᵀ / V`` of the
    voxels in :meth:`fit`.

    Parameters
    ----------
    min_q_distance : float
        Volumes closer than this to the held-out one (or its antipode) in q-space, in units of
        √(b / 1000 s/mm²), are held out with it.
    """

    min_q_distance: float = 0.0
    fitted: bool = True

    @abstractmethod
    def precision(self, gradients: Gradients) -> np.ndarray:
        """Return ``P`` of the volumes, (N, N), in units of the inverse noise variance."""

    def fit(self, scatter: np.ndarray, gradients: Gradients) -> LinearModel:
        """Return a copy with parameters learnt from the scatter (N, N) of the voxels."""
        return self

    def leave_one_out(self, signal: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Predict each volume from the others; see :meth:`Model.leave_one_out`."""
        volumes = as_rows(signal)
        model = self if self.fitted else self.fit(scatter_of_bright(volumes), gradients)
        operator = held_out_operator(
            model.precision(gradients), neighbours(gradients, self.min_q_distance)
        )
        return from_rows(operator.astype(volumes.dtype) @ volumes, signal.shape)


def scatter_of_bright(volumes: np.ndarray) -> np.ndarray:
    """Return ``Σ yyᵀ / V`` over random voxels brighter than the average one, (N, N).

    Parameters
    ----------
    volumes : (N, V) array
    """
    brightness = volumes.mean(axis=0)
    bright = np.flatnonzero(brightness >= brightness.mean())
    if len(bright) > VOXELS_FOR_PARAMETERS:
        random = np.random.default_rng(0)
        bright = np.sort(random.choice(bright, VOXELS_FOR_PARAMETERS, replace=False))
    sample = volumes[:, bright].astype(float)
    return sample @ sample.T / sample.shape[1]


def held_out_operator(precision: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Return the matrix that predicts each volume from those outside its group.

    Parameters
    ----------
    precision : (N, N) array
        Symmetric for Gaussian processes; ``I − H`` for least squares.
    groups : list of N index arrays
        Volumes held out together with volume ``i``; ``groups[i]`` contains ``i``.

    Returns
    -------
    (N, N) array
        Row ``i`` is zero within ``groups[i]``, or NaN where the rest does not determine volume
        ``i``.
    """
    diagonal = np.diag(precision)
    guard = LEVERAGE_GUARD * max(1.0, np.abs(diagonal).max())
    with np.errstate(divide="ignore", invalid="ignore"):
        operator = -precision / diagonal[:, None]
    operator[np.abs(diagonal) <= guard] = np.nan
    np.fill_diagonal(operator, np.where(np.isnan(operator[:, 0]), np.nan, 0.0))
    for i, group in enumerate(groups):
        if len(group) == 1:
            continue
        block = precision[np.ix_(group, group)]
        if np.linalg.svd(block, compute_uv=False)[-1] <= guard:
            operator[i] = np.nan
            continue
        row = np.linalg.solve(block.T, (group == i).astype(float)) @ precision[group]
        operator[i] = -row
        operator[i, group] = 0.0
    return operator


def q_distances(gradients: Gradients) -> np.ndarray:
    """Return the distances between ``q = g √(b/1000)``, antipodes being one, (N, N).

    Infinite to a volume itself and to those without a direction.
    """
    q = gradients.qvecs
    apart = np.minimum(*(np.linalg.norm(q[:, None] - sign * q, axis=2) for sign in (1, -1)))
    undirected = gradients.is_b0 | gradients.is_trace
    apart[undirected] = apart[:, undirected] = np.inf
    np.fill_diagonal(apart, np.inf)
    return apart


def neighbours(gradients: Gradients, min_q_distance: float) -> list[np.ndarray]:
    """Return the volumes within `min_q_distance` of each diffusion-weighted volume.

    Volumes without a direction stand alone: leaving out all b=0 volumes at once would leave
    nothing that predicts them.
    """
    close = q_distances(gradients) < min_q_distance
    np.fill_diagonal(close, True)
    return [np.flatnonzero(row) for row in close]


def least_squares_precision(design: np.ndarray) -> np.ndarray:
    """Return ``I − H`` of an unweighted fit to `design` (N, p), whatever its rank and scaling."""
    basis = column_basis(design)
    return np.eye(len(design)) - basis @ basis.T


def column_basis(design: np.ndarray, tolerance: float = 1e-10) -> np.ndarray:
    """Return an orthonormal basis of what the columns of `design` (N, p) span: (N, rank).

    Directions with less than the part `tolerance` of the largest singular value, the columns
    scaled to the same length, do not count.
    """
    scale = np.linalg.norm(design, axis=0)
    u, singular, _ = np.linalg.svd(design / np.where(scale > 0, scale, 1.0), full_matrices=False)
    return u[:, singular > tolerance * max(singular[0], np.finfo(float).tiny)]


def projected_precision(covariance: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Return ``P`` of a Gaussian process with a flat prior on the coefficients of `design`."""
    try:
        inverse = inverse_from(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:  # not to rounding
        inverse = np.linalg.inv(covariance)
    weighted = inverse @ design
    return inverse - weighted @ np.linalg.solve(design.T @ weighted, weighted.T)


def inverse_from(factor: np.ndarray) -> np.ndarray:
    """Return the inverse of a matrix from its Cholesky factor (N, N)."""
    half, _ = scipy.linalg.lapack.dtrtri(factor, lower=True)
    return half.T @ half


def as_rows(signal: np.ndarray) -> np.ndarray:
    """View (or copy, if it must) a (..., N) signal as (N, V), a volume a row.

    Fortran-ordered series, the order of NIfTI, are not copied.
    """
    volumes = np.asarray(signal).T.reshape(signal.shape[-1], -1)
    return volumes.astype(np.result_type(volumes, np.float32), copy=False)


def from_rows(volumes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Invert :func:`as_rows`."""
    return volumes.reshape(shape[::-1]).T
