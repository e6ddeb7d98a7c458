# SPDX-License-Identifier: Apache-2.0
"""What is known of eddy-current fields before a volume is looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.unknowns import PriorTerms
from eddymotion.mapping.eddy_currents import N_TERMS
from eddymotion.robust import TINY


@dataclass(frozen=True, eq=False)
class FieldPrior:
    """What is known of the fields before a volume is looked at.

    Parameters
    ----------
    precision : (K,) array, optional
        ``1 / τ²`` of each term in the units of the normal matrix; none when not given.
    poses : (N, 5) array, optional
        From :func:`.following.pose_regressors`, of volumes whose fields follow them.
    """

    precision: np.ndarray | None = None
    poses: np.ndarray | None = None

    def of_order(self, order: str) -> FieldPrior:
        """Return the same for the terms up to an order."""
        if self.precision is None:
            return self
        return replace(self, precision=self.precision[: N_TERMS[order]])

    def of_volumes(self, volumes: np.ndarray) -> FieldPrior:
        """Return the same for some of the volumes."""
        return self if self.poses is None else replace(self, poses=self.poses[volumes])

    def centred(self, coefficients: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Shift coefficients (N, K) so that their mean is that of the common response."""
        drivers = drivers_of(gradients, self.poses)
        own = coefficients - coefficients.mean(axis=0)
        response = np.linalg.lstsq(drivers - drivers.mean(axis=0), own, rcond=0.05)[0]
        return own + drivers.mean(axis=0) @ response

    def scaled(self, factor: float) -> FieldPrior:
        """Return the same for a normal matrix of `factor` times the points."""
        if self.precision is None:
            return self
        return replace(self, precision=self.precision * factor)

    def terms(self, coefficients: np.ndarray, gradients: Gradients) -> PriorTerms | None:
        """Return what the prior adds to the normal equations at coefficients (N, K)."""
        if self.precision is None:
            return None
        free = nonlinear_part(gradients, self.poses)
        gradient = free @ coefficients * self.precision
        return PriorTerms(gradient, self.precision[:, None, None] * free)


NO_PRIOR = FieldPrior()


def drivers_of(gradients: Gradients, poses: np.ndarray | None) -> np.ndarray:
    """Return what the common response is linear in: gradients, poses where given; (N, 3 or 8)."""
    q = gradients.qvecs
    if poses is None:
        return q
    return np.hstack([q, poses * (q.std() / max(poses.std(axis=0).max(), TINY))])


def nonlinear_part(gradients: Gradients, poses: np.ndarray | None) -> np.ndarray:
    """Return the projector onto what is not common and not linear in the drivers, (N, N)."""
    drivers = drivers_of(gradients, poses)
    if poses is None:
        design = np.column_stack([np.ones(len(gradients)), drivers])
        return np.eye(len(gradients)) - design @ np.linalg.pinv(design, rcond=0.05)
    away = drivers - drivers.mean(axis=0)
    n = len(gradients)
    return np.eye(n) - np.full((n, n), 1 / n) - away @ np.linalg.pinv(away, rcond=0.05)


def response_part(gradients: Gradients) -> np.ndarray:
    """Return the projector onto what is linear in the gradient, without the mean, (N, N)."""
    q = gradients.qvecs - gradients.qvecs.mean(axis=0)
    return q @ np.linalg.pinv(q, rcond=0.05)
