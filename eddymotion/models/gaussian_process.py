# SPDX-License-Identifier: Apache-2.0
"""Gaussian process over the volumes of a scheme, around a mean that is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.models.average import shell_indicators
from eddymotion.models.base import LinearModel, column_basis, projected_precision
from eddymotion.models.covariance import Covariance, fit_covariance

DIFFUSIVITIES = (0.1e-3, 0.5e-3, 1.5e-3)
"""mm²/s; decays that together make the mean of a scheme without shells."""

ALIKE = 1e-3
"""Combinations of them that vary less over the b-values, relative to the largest, are left out."""


@dataclass(frozen=True)
class GaussianProcessModel(LinearModel):
    """Gaussian process with a flat prior on the mean of each shell.

    b=0 volumes are a shell of their own, without a covariance: each is predicted by the mean of
    the others.

    Parameters
    ----------
    covariance : Covariance
        Of diffusion-weighted volumes.
    fitted : bool
        Whether the parameters of `covariance` are taken as they are; otherwise they are fitted to
        the data, by restricted maximum likelihood.
    min_q_distance : float
        As in :class:`~eddymotion.models.base.LinearModel`.
    """

    covariance: Covariance
    fitted: bool = False
    min_q_distance: float = 0.0

    def fit(self, scatter: np.ndarray, gradients: Gradients) -> GaussianProcessModel:
        """Return a copy with the most likely parameters; b=0 volumes have no say."""
        dwis = gradients.dwis
        table = gradients.select(dwis)
        covariance = fit_covariance(
            self.covariance, scatter[np.ix_(dwis, dwis)], table, mean_design(table)
        )
        return replace(self, covariance=covariance, fitted=True)

    def precision(self, gradients: Gradients) -> np.ndarray:
        """Return ``P`` (N, N), in units of the inverse noise variance."""
        K = self.covariance.matrix(gradients) + np.eye(len(gradients))
        return projected_precision(K, mean_design(gradients))


def predictors(
    covariance: Covariance, known: Gradients, sought: Gradients
) -> tuple[np.ndarray, np.ndarray]:
    """Return how known volumes predict others, were these measured.

    Universal kriging (Cressie 1993, Statistics for Spatial Data, 3.4)::

        [K + I  X] [λ]   [k]          v = 1 + k₀ − kᵀλ − xᵀμ
        [Xᵀ     0] [μ] = [x]

    Parameters
    ----------
    covariance : Covariance
    known : Gradients
        Of N volumes, some at the b-value of each that is sought.
    sought : Gradients
        Of M volumes; not as seen by each other.

    Returns
    -------
    weights : (M, N) array
        ``λ``
    variances : (M,) array
        ``v``, of the differences, in units of the noise variance.
    """
    n = len(known)
    table = Gradients(
        np.concatenate([known.bvals, sought.bvals]),
        np.concatenate([known.bvecs, sought.bvecs]),
        known.b0_threshold,
    )
    K, X = covariance.matrix(table), mean_design(table)
    system = np.block([[K[:n, :n] + np.eye(n), X[:n]], [X[:n].T, np.zeros((X.shape[1],) * 2)]])
    right = np.vstack([K[:n, n:], X[n:].T])
    solved = np.linalg.solve(system, right)
    variances = 1 + np.diag(K)[n:] - np.einsum("nm,nm->m", right, solved)
    return solved[:n].T, variances


def mean_design(gradients: Gradients) -> np.ndarray:
    """Design of the mean, (N, q), of full rank.

    One column a shell. Where there are no shells: one for b=0, and what three exponential decays
    with the b-value span for the others, which is less for few different b-values.
    """
    if gradients.is_shelled:
        return shell_indicators(gradients)
    decays = np.exp(-np.outer(gradients.bvals, DIFFUSIVITIES)) * ~gradients.is_b0[:, None]
    decays = column_basis(decays, ALIKE)
    b0 = gradients.is_b0[:, None].astype(float)
    return np.hstack([b0, decays]) if b0.any() else decays
