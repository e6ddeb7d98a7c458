"""Eddy-current fields: what they have in common, and whether there are any.

An eddy current is driven by the diffusion gradient, so that the coefficients ``e_i`` of the
fields are mostly a linear function of it, plus what is each volume's own (the second level of FSL
eddy)::

    e_ik = C_k · q_i + η_ik,     η_ik ~ N(0, τ_k²),     q = g √(b / 1000)

- ``C`` is free, ``τ`` is learnt from the data: few directions are shrunk towards the common
  response, many go their own way.
- A field common to all volumes changes nothing but the frame of the head. Its mean is therefore
  that of the response, ``C · q̄``.
- Neither is a displacement along the phase-encoding axis common to all points known from a
  translation of the head. The part that follows ``q`` from volume to volume is called the fields'
  (:func:`offsets_of`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eddymotion.eddy_currents import TERMS, EddyCurrents
from eddymotion.estimation.normal_equations import NormalEquations
from eddymotion.gradients import Gradients

log = logging.getLogger(__name__)

LEAST_OWN_MM = 0.01
"""Fields keep at least so much freedom of their own: standard deviation of a coefficient, mm."""


@dataclass(frozen=True, eq=False)
class FieldPrior:
    """What is known of the fields before a volume is looked at.

    Parameters
    ----------
    precision : (K,) array, optional
        ``1 / τ²`` of each term in the units of the normal matrix; none when not given.
    """

    precision: np.ndarray | None = None

    def centred(self, coefficients: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Shift coefficients (N, K) so that their mean is that of the common response."""
        q = gradients.qvecs
        own = coefficients - coefficients.mean(axis=0)
        response = np.linalg.lstsq(q - q.mean(axis=0), own, rcond=0.05)[0]
        return own + q.mean(axis=0) @ response

    def scaled(self, factor: float) -> FieldPrior:
        """Return the same for a normal matrix of so many times the points."""
        return self if self.precision is None else FieldPrior(self.precision * factor)

    def terms(
        self, eddy: EddyCurrents | None, gradients: Gradients
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the prior adds to the normal equations of poses and fields.

        Returns
        -------
        gradient : (N, p) array
        precision : (p, N, N) array
            For each unknown of a volume, between volumes.
        """
        n = len(gradients)
        if eddy is None or self.precision is None:
            n_unknowns = 6 + (0 if eddy is None else eddy.coefficients.shape[1])
            return np.zeros((n, n_unknowns)), np.zeros((n_unknowns, 1, 1))
        free = own_part(gradients)
        gradient = np.hstack([np.zeros((n, 6)), free @ eddy.coefficients * self.precision])
        factors = np.concatenate([np.zeros(6), self.precision])
        return gradient, factors[:, None, None] * free


NO_PRIOR = FieldPrior()


def own_part(gradients: Gradients) -> np.ndarray:
    """Return the projector onto what is not common and not linear in the gradient, (N, N)."""
    design = np.column_stack([np.ones(len(gradients)), gradients.qvecs])
    return np.eye(len(gradients)) - design @ np.linalg.pinv(design, rcond=0.05)


def response_part(gradients: Gradients) -> np.ndarray:
    """Return the projector onto what is linear in the gradient, without the mean, (N, N)."""
    q = gradients.qvecs - gradients.qvecs.mean(axis=0)
    return q @ np.linalg.pinv(q, rcond=0.05)


@dataclass(frozen=True, eq=False)
class FieldEvidence:
    """Whether fields of one degree are there.

    Parameters
    ----------
    degree : int
        1 for the terms x, y, z; 2 for their products; 3.
    response_mm : float
        Root mean square of the part that is linear in the gradient, what noise adds taken off, mm
        at 80 mm.
    own_mm : float
        Standard deviation ``τ`` of what is each volume's own, mm.
    noise_mm : float
        Standard error of a coefficient.
    p_response : float
        Probability of such a response without any.
    """

    degree: int
    response_mm: float
    own_mm: float
    noise_mm: float
    p_response: float


def weigh_fields(
    eddy: EddyCurrents, gradients: Gradients, system: NormalEquations
) -> tuple[list[FieldEvidence], FieldPrior]:
    """Measure the fields against their errors.

    Parameters
    ----------
    eddy : EddyCurrents
        Estimated without a prior.
    gradients : Gradients
        In the scanner's frame.
    system : NormalEquations
        Linearised there.

    Returns
    -------
    evidence : list of FieldEvidence
        One a degree.
    prior : FieldPrior
        For the next solution.
    """
    n_terms = eddy.coefficients.shape[1]
    variances = np.einsum("nkk->nk", system.covariances())[:, 6:]
    naive = system.solve(np.eye(len(system.hessian)))
    naive = np.diag(naive).reshape(len(gradients), -1)[:, 6:]
    units = float(np.median(variances / naive))  # the normal matrix counts correlated points
    own, response = own_part(gradients), response_part(gradients)
    n_own, n_response = np.trace(own), np.trace(response)
    degrees = np.array([len(term) for term in TERMS[:n_terms]])
    evidence, precision = [], np.empty(n_terms)
    for degree in np.unique(degrees):
        of_degree = degrees == degree
        e, noise = eddy.coefficients[:, of_degree], variances[:, of_degree].mean()
        n_of_degree = int(of_degree.sum())
        own_power = (e * (own @ e)).sum() / max(n_own * n_of_degree, 1)
        response_power = (e * (response @ e)).sum()
        own_variance = max(own_power - noise, 0.0)
        ratio = response_power / max(n_response * n_of_degree, 1) / max(own_power, noise)
        p = stats.f.sf(ratio, n_response * n_of_degree, max(n_own, 1) * n_of_degree)
        excess = response_power - n_response * n_of_degree * (noise + own_variance)
        evidence.append(
            FieldEvidence(
                int(degree),
                float(np.sqrt(max(excess, 0.0) / len(gradients) / n_of_degree)),
                float(np.sqrt(own_variance)),
                float(np.sqrt(noise)),
                float(p),
            )
        )
        precision[of_degree] = units / max(own_variance, LEAST_OWN_MM**2)
        log.debug("eddy currents: %s", evidence[-1])
    return evidence, FieldPrior(precision)
