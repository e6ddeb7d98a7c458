# SPDX-License-Identifier: Apache-2.0
"""Whether fields of each degree are there: how they follow the gradients, against their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.normal_equations import NormalEquations
from eddymotion.estimation.fields.prior import FieldPrior, nonlinear_part, response_part
from eddymotion.estimation.fields.unknowns import FIELDS
from eddymotion.mapping.eddy_currents import N_TERMS, TERMS, EddyCurrents

SIGNIFICANT = 1e-3
"""Probability below which a response is not taken for chance."""

LEAST_OWN_MM = 0.01
"""Least freedom of the fields besides the response: standard deviation of a coefficient, mm."""


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

    @property
    def is_there(self) -> bool:
        """Whether the fields follow the gradients by more than they change otherwise."""
        return self.p_response < SIGNIFICANT and self.response_mm > self.own_mm

    def __str__(self) -> str:
        return (
            f"fields of degree {self.degree}: {self.response_mm:.2f} mm follow the gradients "
            f"(p = {self.p_response:.1g}), {self.own_mm:.2f} mm do not; "
            f"standard error {self.noise_mm:.2f} mm"
        )


def shown_order(evidence: Sequence[FieldEvidence], least_mm: float = 0.0) -> str:
    """Return the highest order whose fields are there and whose response is above `least_mm`."""
    there = [e.degree for e in evidence if e.is_there and e.response_mm > least_mm]
    return list(N_TERMS)[max(there, default=0)]


def weigh_fields(
    eddy: EddyCurrents,
    gradients: Gradients,
    system: NormalEquations,
    poses: np.ndarray | None = None,
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
    poses : (N, 5) array, optional
        From :func:`.following.pose_regressors`, where the fields follow them.

    Returns
    -------
    evidence : list of FieldEvidence
        One a degree.
    prior : FieldPrior
        For the next solution.
    """
    n_terms = eddy.coefficients.shape[1]
    variances = np.einsum("nkk->nk", system.covariances(FIELDS))
    naive = system.inverse_diagonal(FIELDS)
    moved = naive > 0  # not of volumes that nothing moves
    units = float(np.median(variances[moved] / naive[moved]))  # `H` counts correlated points
    own, response = nonlinear_part(gradients, poses), response_part(gradients)
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
        p = scipy.special.fdtrc(n_response * n_of_degree, max(n_own, 1) * n_of_degree, ratio)
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
    return evidence, FieldPrior(precision, poses)
