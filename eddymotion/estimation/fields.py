# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields: what they have in common, and whether there are any.

An eddy current is driven by the diffusion gradient, so that the coefficients ``e_i`` of the
fields are mostly a linear function of it, plus what is each volume's own (the second level of FSL
eddy)::

    e_ik = C_k · q_i + η_ik,     η_ik ~ N(0, τ_k²),     q = g √(b / 1000)

- ``C`` is free, ``τ`` is learnt from the data: few directions are shrunk towards the common
  response, many go their own way.
- An eddy current turns round with its gradient. What a signal model gets wrong does not, so that
  fields which follow ``q`` less than they go their own way are not eddy currents: they are left
  out (:attr:`FieldEvidence.is_there`).
- A field common to all volumes changes nothing but the frame of the head. Its mean is therefore
  that of the response, ``C · q̄``.
- Neither is a displacement along the phase-encoding axis common to all points known from a
  translation of the head. The part that follows ``q`` from volume to volume is called the fields'
  (:func:`with_offsets`).
- A head that pitches and rolls in the main field is magnetised otherwise, and leaves the shims,
  which stay in the scanner: the off-resonance field changes, smoothly and nearly linearly with the
  pose. Where fields follow the poses (:class:`PoseResponse`), so they may: the common response is
  one to ``q`` and to pitch, roll and translation; turning about the main field changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.normal_equations import NormalEquations
from eddymotion.estimation.equations.unknowns import Block, PriorTerms
from eddymotion.images.grid import transformed
from eddymotion.mapping.eddy_currents import (
    N_TERMS,
    SCALE_MM,
    TERMS,
    EddyCurrents,
    polynomial_terms,
)
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, rigid_parameters
from eddymotion.robust import TINY, Cauchy, robust_deviation, sandwich

log = logging.getLogger(__name__)

SIGNIFICANT = 1e-3
"""Probability below which a response is not taken for chance."""

FIELDS = "eddy currents"

OFFSET_ITERATIONS = 50

FEWEST_FREE = 6
"""Volumes beyond the drivers, from which on it is asked whether fields follow the poses."""

LEAST_MOTION_MM = 1.0
"""Root mean square of the motion (mm at 50 mm) that fields may follow. A field changes by a part
of it; of heads at rest, and of some that nodded within volumes, fields seemed to follow 0.1 to 0.3
mm of motion by 0.2 mm."""

LEAST_FOLLOWED = 0.1
"""Part of the motion (mm at 50 mm) by which fields follow it at least, mm at 80 mm. A field that
only turns with the head seems to follow it, too, since it displaces along a direction that turns
against the head: by 0.005 to 0.05 on simulated heads, where one that changes does by 0.147 to
0.31."""

FAR_AWAY = 4.0
"""Poses farther from the middle one than so many times the median distance tell nothing of fields:
volumes that went astray have fields that go with it."""

UNTOLD_SHIFT, UNTOLD_TURN = 0.3, 0.02
"""Of fields that follow the head: the part of their displacement, and of the head's own turns, by
which poses may be wrong since images tell it from nothing. On simulated heads 0.2 to 0.3, and
0.01 to 0.03."""

UNSEEN_SHIFT, UNSEEN_PART = 0.3, 0.2
"""Of fields that seem to follow a head which moved too little to be sure, so that nothing takes
them out: the part of their displacement, and of the head's own motion, by which poses may be
wrong. On three simulated heads that nodded, errors were 0.1 to 0.3 of the motion, in roll as well,
which does not lead along the phase encoding."""

OFFSET_SIZE = 2.0
"""Of what eddy currents displace the middle by, over what they do 80 mm from it: .5 to 3 in
three real series."""

LEAST_OWN_MM = 0.01
"""Fields keep at least so much freedom of their own: standard deviation of a coefficient, mm."""


@dataclass(frozen=True, eq=False)
class FieldPrior:
    """What is known of the fields before a volume is looked at.

    Parameters
    ----------
    precision : (K,) array, optional
        ``1 / τ²`` of each term in the units of the normal matrix; none when not given.
    poses : (N, 5) array, optional
        From :func:`pose_regressors`, of volumes whose fields follow them.
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
        """Return the same for a normal matrix of so many times the points."""
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


@dataclass(frozen=True, eq=False)
class UnknownFields(Block):
    """The coefficients of the eddy-current fields of a motion as unknowns: steps ``e ← e − ε``.

    Parameters
    ----------
    gradients : Gradients
        Of the volumes, in the scanner's frame.
    size : int
        Terms of the fields.
    center : (3,) array
        Of the terms, RAS+ mm.
    known : FieldPrior
    design : (N, D) array, optional
        What the fields of all volumes are linear in, if they share the unknowns.
    """

    gradients: Gradients
    size: int
    center: np.ndarray
    known: FieldPrior = NO_PRIOR
    design: np.ndarray | None = None

    name = FIELDS

    def lengths(self, points: np.ndarray) -> np.ndarray:
        """Root-mean-square displacement (mm) of points (V, 3) for each coefficient, (K,)."""
        terms = polynomial_terms((points - self.center) / SCALE_MM, self.size)
        return np.sqrt((terms**2).mean(axis=0))

    def columns(self, motion: Motion, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return the slopes along the phase encoding, times the terms."""
        found = np.empty((len(slopes), self.size, len(points)), np.float32)
        for volume, (own, columns) in enumerate(zip(slopes, found, strict=True)):
            motion.mapping(volume).fill_field_columns(points, own, columns)
        return found

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, K); the common part of the fields is as the prior has it."""
        eddy = motion.eddy_currents
        assert eddy is not None
        coefficients = self.known.centred(eddy.coefficients - step, self.gradients)
        return replace(motion, eddy_currents=replace(eddy, coefficients=coefficients))

    def prior(self, motion: Motion) -> PriorTerms | None:
        """Return what is known of the fields before."""
        assert motion.eddy_currents is not None
        return self.known.terms(motion.eddy_currents.coefficients, self.gradients)


def drivers_of(gradients: Gradients, poses: np.ndarray | None = None) -> np.ndarray:
    """Return what the common response is linear in: gradients, poses where given; (N, 3 or 8)."""
    q = gradients.qvecs
    if poses is None:
        return q
    return np.hstack([q, poses * (q.std() / max(poses.std(axis=0).max(), TINY))])


def nonlinear_part(gradients: Gradients, poses: np.ndarray | None = None) -> np.ndarray:
    """Return the projector onto what is not common and not linear in the drivers, (N, N)."""
    drivers = drivers_of(gradients, poses)
    if poses is None:
        design = np.column_stack([np.ones(len(gradients)), drivers])
        return np.eye(len(gradients)) - design @ np.linalg.pinv(design, rcond=0.05)
    away = drivers - drivers.mean(axis=0)
    n = len(gradients)
    return np.eye(n) - np.full((n, n), 1 / n) - away @ np.linalg.pinv(away, rcond=0.05)


def pose_regressors(matrices: np.ndarray, center: np.ndarray, reference: int) -> np.ndarray:
    """Return how far heads are from where a volume saw it, as far as fields change: (N, 5) mm.

    Translations of the centre (RAS+), pitch and roll at 50 mm. A head that turns about the main
    field keeps its own.

    Parameters
    ----------
    matrices : (N, 4, 4) array
        Frame of the head → scanner.
    center : (3,) array
        Of the brain, RAS+ mm.
    reference : int
        Volume whose pose is zero.
    """
    there = (matrices[reference] @ np.append(center, 1.0))[:3]
    moved = rigid_parameters(matrices @ np.linalg.inv(matrices[reference]), there)
    return moved[:, :5] * [1, 1, 1, ROTATION_RADIUS_MM, ROTATION_RADIUS_MM]


def usual_poses(poses: np.ndarray) -> np.ndarray:
    """Find the poses that are not far from the others, of (N, 5): (N,) bool."""
    away = np.linalg.norm(poses - np.median(poses, axis=0), axis=1)
    return away <= FAR_AWAY * np.median(away)


def response_part(gradients: Gradients) -> np.ndarray:
    """Return the projector onto what is linear in the gradient, without the mean, (N, N)."""
    q = gradients.qvecs - gradients.qvecs.mean(axis=0)
    return q @ np.linalg.pinv(q, rcond=0.05)


@dataclass(frozen=True, eq=False)
class PoseResponse:
    """How fields follow the poses of the head, beyond the gradients.

    Parameters
    ----------
    response : (5, K) array
        Coefficients (mm) for each of :func:`pose_regressors` (mm).
    moved_mm : float
        Root mean square of what follows the poses, mm at 80 mm.
    own_mm : float
        Root mean square of what follows neither poses nor gradients.
    pose_mm : float
        Root mean square of the poses.
    p : float
        Probability of such a response without any.
    """

    response: np.ndarray
    moved_mm: float
    own_mm: float
    pose_mm: float
    p: float

    @property
    def is_shown(self) -> bool:
        """Whether the fields follow the poses: for sure, and more than they go their own way."""
        return self.p < SIGNIFICANT and self.moved_mm > self.own_mm

    @property
    def is_suspected(self) -> bool:
        """Whether it is shown, and stronger than where a field only turns with the head."""
        return self.is_shown and self.moved_mm > LEAST_FOLLOWED * self.pose_mm

    @property
    def is_there(self) -> bool:
        """Whether it is suspected, and the head moved enough to be sure."""
        return self.is_suspected and self.pose_mm > LEAST_MOTION_MM

    def __str__(self) -> str:
        return (
            f"fields follow the head by {self.moved_mm:.2f} mm for {self.pose_mm:.2f} mm of "
            f"motion (p = {self.p:.1g}), {self.own_mm:.2f} mm follow nothing"
        )


def follow_poses(
    coefficients: np.ndarray, gradients: Gradients, poses: np.ndarray
) -> PoseResponse | None:
    """Measure how fields follow the poses; None where there are too few volumes to tell.

    Parameters
    ----------
    coefficients : (N, K) array
        Estimated without a prior.
    gradients : Gradients
    poses : (N, 5) array
        From :func:`pose_regressors`.
    """
    without, free = nonlinear_part(gradients), nonlinear_part(gradients, poses)
    n_moved, n_own = np.trace(without - free), np.trace(free)
    if n_own < FEWEST_FREE or n_moved < 0.5:
        return None
    own = (coefficients * (free @ coefficients)).sum()
    moved = max((coefficients * (without @ coefficients)).sum() - own, 0.0)
    n_terms, size = coefficients.shape[1], coefficients.size
    ratio = (moved / n_moved) / max(own / n_own, TINY)
    away = without @ poses
    response = np.linalg.lstsq(away, without @ coefficients, rcond=0.05)[0]
    centred = poses - poses.mean(axis=0)
    return PoseResponse(
        response,
        float(np.sqrt(max(moved - n_moved * own / n_own, 0.0) / size)),
        float(np.sqrt(own / n_own / n_terms)),
        float(np.sqrt((centred**2).sum(axis=1).mean())),
        float(scipy.special.fdtrc(n_moved, n_own, ratio)),  # terms are not independent: as one
    )


def untold_covariances(
    eddy: EddyCurrents, response: np.ndarray, poses: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Covariance of what fields that follow the head leave open of its poses, (N, 6, 6).

    What such a field displaces all points by is a translation along the phase encoding, and turned
    against a distorted head it looks like a turn.

    Parameters
    ----------
    eddy : EddyCurrents
    response : (5, K) array
        Of :class:`PoseResponse`.
    poses : (N, 5) array
    points : (P, 3) array
        Of the brain, RAS+ mm.
    """
    displaced = eddy.terms(points) @ (poses @ response).T
    along = UNTOLD_SHIFT**2 * (displaced**2).mean(axis=0)
    covariances = np.zeros((len(poses), 6, 6))
    covariances[:, :3, :3] = along[:, None, None] * np.outer(eddy.pe, eddy.pe)
    turned = UNTOLD_TURN * poses[:, 3:] / ROTATION_RADIUS_MM
    covariances[:, [3, 4], [3, 4]] = turned**2
    return covariances


def with_offsets_of_poses(
    eddy: EddyCurrents,
    response: np.ndarray,
    poses: np.ndarray,
    matrices: np.ndarray,
    points: np.ndarray,
) -> EddyCurrents:
    """Tell which part of the translations is of fields that follow the head.

    What displaces all points alike is in no image of one run, and the terms, which have no
    constant, leave it to the poses: what a field does at the middle of the image, however curved
    it is there. Shims and the field of all that is far away are nearly linear in place, and zero
    in the middle. So the fields have a constant with which what is linear in them over the brain
    is zero there. On ten simulated heads that nodded or rolled by 10 to 12° (none of them used to
    choose), poses among each other were off by .19 mm so, as the terms are by .25, with a mean of
    zero over the brain by .24, over the head's own middle by .24 (true fields, root mean square).

    Parameters
    ----------
    eddy : EddyCurrents
    response : (5, K) array
        Of :class:`PoseResponse`.
    poses : (N, 5) array
    matrices : (N, 4, 4) array
        Frame of the head → scanner.
    points : (P, 3) array
        Of the brain, RAS+ mm.
    """
    offsets = np.empty(len(poses))
    for volume, (pose, coefficients) in enumerate(zip(matrices, poses @ response, strict=True)):
        terms = eddy.terms(transformed(pose, points))
        linear = np.column_stack([np.ones(len(points)), terms[:, :3]])
        offsets[volume] = -np.linalg.lstsq(linear, terms @ coefficients)[0][0]
    return replace(eddy, offsets=offsets)


def unseen_covariances(
    eddy: EddyCurrents,
    response: np.ndarray,
    poses: np.ndarray,
    moved: np.ndarray,
    points: np.ndarray,
) -> np.ndarray:
    """Covariance of what fields do that may follow the head, and are left out, (N, 6, 6).

    A displacement along the phase encoding that is alike in all points is a translation, and one
    that changes across the head a turn about the axes across it. What stays in the scanner while
    the head moves holds back all of the motion.

    Parameters
    ----------
    eddy, response, poses, points
        As for :func:`untold_covariances`.
    moved : (N, 6) array
        Twists of the poses against that of the reference.
    """
    displaced = eddy.terms(points) @ (poses @ response).T
    square = UNSEEN_SHIFT**2 * (displaced**2).mean(axis=0)[:, None, None]
    along = np.outer(eddy.pe, eddy.pe)
    covariances = UNSEEN_PART**2 * np.einsum("na,nb->nab", moved, moved)
    covariances[:, :3, :3] += square * along
    covariances[:, 3:, 3:] += square / ROTATION_RADIUS_MM**2 * (np.eye(3) - along)
    return covariances


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
        """Whether the fields follow the gradients, more than they go their own way."""
        return self.p_response < SIGNIFICANT and self.response_mm > self.own_mm

    def __str__(self) -> str:
        return (
            f"fields of degree {self.degree}: {self.response_mm:.2f} mm follow the gradients "
            f"(p = {self.p_response:.1g}), {self.own_mm:.2f} mm do not; "
            f"standard error {self.noise_mm:.2f} mm"
        )


def shown_order(evidence: Sequence[FieldEvidence], least_mm: float = 0.0) -> str:
    """Return the highest order whose fields are there, and follow by so many millimetres."""
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
        From :func:`pose_regressors`, where the fields follow them.

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


def with_offsets(motion: Motion, gradients: Gradients) -> Motion:
    """Tell which part of the translation along the phase-encoding axis is the fields'.

    The head moves little between two consecutive volumes, while the gradient turns: steps of the
    translation at the centre are regressed on steps of ``q``, with Cauchy weights, since heads
    jump now and then. Poses keep the sum. Where fields follow the head, it moves far: what its
    steps have of ``q`` by chance is not taken for fields that hardly change with ``q`` elsewhere.

    Parameters
    ----------
    motion : Motion
        Diffusion-weighted volumes in a frame of their own, with fields; their offsets, if any,
        are those of :func:`with_offsets_of_poses`.
    gradients : Gradients
        In the scanner's frame.

    Returns
    -------
    Motion
        Its fields have offsets, with their standard errors.
    """
    eddy, dwis = motion.eddy_currents, gradients.dwis
    if eddy is None:
        return motion
    along = (motion.head[dwis] @ np.append(eddy.center, 1.0))[:, :3] @ eddy.pe
    q = gradients.qvecs
    response, covariance = _regress_robustly(-np.diff(along), np.diff(q[dwis], axis=0))
    followed = eddy.offsets
    if followed is not None:
        size = OFFSET_SIZE * _linear_response(motion, gradients)
        gain = size**2 * np.linalg.inv(covariance + size**2 * np.eye(3))
        response, covariance = gain @ response, gain @ covariance
    variances = np.einsum("nj,jk,nk->n", q, covariance, q)
    offsets, errors = q @ response, np.sqrt(variances)
    if followed is not None:
        offsets = offsets + followed
    log.info("eddy currents: offset along the phase encoding up to %.2f mm (± %.2f)",
             np.abs(offsets).max(), errors.max())  # fmt: skip
    return replace(motion, eddy_currents=replace(eddy, offsets=offsets, offset_errors=errors))


def _linear_response(motion: Motion, gradients: Gradients) -> float:
    """Root mean square of what linear fields do for each unit of ``q``, beside the poses, mm."""
    eddy, dwis = motion.eddy_currents, gradients.dwis
    assert eddy is not None
    poses = pose_regressors(motion.matrices[dwis], eddy.center, 0)
    drivers = drivers_of(gradients.select(dwis), poses)
    linear = eddy.coefficients[dwis, :3]
    away = drivers - drivers.mean(axis=0)
    response = np.linalg.lstsq(away, linear - linear.mean(axis=0), rcond=0.05)[0]
    return float(np.sqrt(np.mean(response[:3] ** 2)))


def _regress_robustly(steps: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regress steps (n,) on columns (n, k) with Cauchy weights: coefficients, covariance."""
    weights = np.ones(len(steps))
    for _ in range(OFFSET_ITERATIONS):
        normal = np.linalg.pinv(columns.T * weights @ columns, rcond=1e-3, hermitian=True)
        response = normal @ (columns.T @ (weights * steps))
        residual = steps - columns @ response
        weights = Cauchy.within(robust_deviation(residual)).weights(residual**2)
    scores = columns * (weights * residual)[:, None]
    return response, sandwich(normal @ scores.T, n_fitted=columns.shape[1])
