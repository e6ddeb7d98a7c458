# SPDX-License-Identifier: Apache-2.0
"""Displacements that follow the gradient, and the course of the head against them.

Let every volume be displaced by ``δ(g)``, a quadratic function of its direction. At an edge of the
mean image the signal then changes with ``g`` as that of tissue does, quadratically. The signal
model takes it for anatomy, and nothing in the images contradicts this. On simulated heads 0.9 of
the variance of the errors within a shell of 24 directions was of this kind (0.2 by chance).

The motion of a head does not depend on the directions, which change irregularly from volume to
volume. With ``x_i`` the five products of ``g_i`` of trace zero, ``p_i`` the pose and ``d`` the
steps of the head in time::

    p_{i+1} − p_i = d_i + (x_{i+1} − x_i) M,    d_i ~ Student-t(3, s² Δt),    M ~ N(0, Π)

``M`` (5 by 6, for each shell) is chosen so that the course becomes smoothest. ``Π`` is a multiple
of the squared standard errors of the poses: 2, 1, a quarter or 0 (:data:`SIZES`), distributed as
evenly over the five products as possible. Neither this multiple nor ``s`` is known. For each axis,
``M`` is the mean over both, weighted by the likelihood of the steps with ``M`` integrated out: a
dozen directions may agree with the steps of the head by chance, and a single best ``s`` would then
mean a head at rest. Where nothing follows the direction, or the head moved too much to decide,
``M`` stays near zero. Standard errors stay unchanged.

A vibrating bed moves the head with the direction as well, by more than the errors of the poses,
and images show most of that. So the multiple may also be 8, 32 or 128. The displacement is then
the sum of a pull, of twice the variance at most, and of motion, which is kept.

Schemes without shells have two polynomials of the b-value in place of the products: the model
learns the decay of the signal from the very volumes that it aligns, and takes a displacement that
follows the b-value for a part of it. That may be larger than the errors of the poses, which then
do not hold ``M`` back where the head moved too much to decide: it counts as far as the steps
determine it better than the poses are known. A head may also drift steadily, and b-values in
ascending order are no different from that: what is linear in time is no evidence. What neither the
steps nor the images determine of such a displacement is in the errors, as far as the b-values of
neighbours in time depend on each other. In random order, the images have shown it.

Eddy currents displace volumes as well, by up to millimetres along the phase encoding and linearly
in ``q``. Products of directions on a half sphere correlate with that. So along the phase encoding
the part that is linear in ``q`` is first removed from steps and products.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, exp_rigid, log_rigid
from eddymotion.robust import robust_deviation, student_weights

log = logging.getLogger(__name__)

MOST_OF_ERRORS = 2.0
"""Largest variance of errors that follow the direction, relative to that of the poses: standard
errors may be too small. With 1, the errors of 12 simulated series were larger by 3 %."""

SIZES = np.array([0.0, 0.25, 1.0, MOST_OF_ERRORS, 8.0, 32.0, 128.0])
"""Variances that may follow the direction, relative to that of the poses. Without 0, a correlation
by chance of 12 directions of a real series was taken for pulls. The excess over the errors is
motion of the head."""

ODDS = np.where(SIZES > MOST_OF_ERRORS, 0.25, 1.0)
"""Prior odds of the sizes. With equal odds, standard errors of two real series were larger by 1 to
4 %."""

LIKELY = 0.6
"""Least probability at which the head itself is taken to follow the direction along an axis. In
eight heads that did, it was 0.7 to 1 along some axis; in ten real and eleven simulated series that
did not, 0.12 at most. Without any evidence it is 0.16. A head that nods periodically, over a few
volumes, agrees with some quadratic function by chance: a fifth of such series are misjudged."""

RESTLESS = (0.0, 0.3, 3.0, 30.0)
"""Variance of where the head is in each volume, by chance, relative to that of its steps: such a
head seems to follow the directions as soon as these steps have to be independent."""

COMMON = 1.25
"""See :attr:`GradientPulls.common`."""

FEW_DIRECTIONS = 6
"""Shells with fewer do not determine a quadratic function."""

FEWEST_BY_B, BY_B_VALUE = 12, 10.0
"""Volumes of a scheme without shells, and the variance of what follows the b-value in it, relative
to that of the poses."""

LEFT_BY_B = 4.0
"""The same, of errors that are left where neither steps nor images determine it. Of six series it
was 0.5 to 2.2 around the mean of the volumes; b=0, the frame of all, is farther away."""

FREEDOM, N_STEPS, SETTLED_MM = 3.0, 50, 1e-4
"""Degrees of freedom of Student's t for the steps; iterations of their weights, at most, and the
change of the pulls at which these end."""

N_SCALES = 80
"""Number of values of ``s``, over four and a half decades of its square."""

LEAST_SHOWN = 1e-6
"""Least change along a direction of ``q``, relative to the largest."""

LEAST_ALONG = 0.02
"""Least sine of the angle at which fields displace along an axis."""

LEAST_SCALE_MM = 1e-4
"""Least scale ``s``, in a human head: simulated heads may not move at all."""


@dataclass(frozen=True, eq=False)
class GradientPulls:
    """How the poses of a group follow the gradient.

    Parameters
    ----------
    design : (n, C) array
        Products of directions for each volume, five columns a shell, or polynomials of the
        b-value: of mean zero.
    pulls : (C, 6) array
        mm; rotations at the radius at which they are compared.
    head_pulls : (C, 6) array
        Of the head, which follows the gradient likewise, on axes where that is likely.
    scale : (6,) array
        ``s``, mm: size of the steps of the head from one volume to the next.
    left_open : (C, C, 6) array
        Covariances of what is not determined of the pulls, beyond the errors of the poses, mm².
    """

    design: np.ndarray
    pulls: np.ndarray
    head_pulls: np.ndarray
    scale: np.ndarray
    left_open: np.ndarray

    @property
    def displacements(self) -> np.ndarray:
        """Of each volume, mm: (n, 6)."""
        return self.design @ self.pulls

    @property
    def not_determined(self) -> np.ndarray:
        """Variances of the displacements that are not determined, mm²: (n, 6)."""
        return np.einsum("ni,ijk,nj->nk", self.design, self.left_open, self.design)

    @property
    def common(self) -> np.ndarray:
        """Covariance of the part common to all volumes, without that which varies, mm²: (6, 6).

        A vibration goes with ``(g · a)²``, whose mean, squared, is :data:`COMMON` times its
        variance over all directions.
        """
        head_pulls = self.design @ self.head_pulls
        return COMMON * head_pulls.T @ head_pulls / len(head_pulls)

    def __str__(self) -> str:
        size, steps = (float(np.sqrt(np.mean(of**2))) for of in (self.displacements, self.scale))
        return (
            f"{size:.3f} mm of the poses follow the direction; steps of the head are "
            f"{steps:.3f} mm"
        )


@dataclass(frozen=True, eq=False)
class WithoutPulls:
    """Poses from which the part that follows the gradient is removed.

    Parameters
    ----------
    motion : Motion
    common : (N, 6, 6) array
        Covariance (mm, rad) of motion that all volumes of a group share and no b=0 has, since the
        head itself follows the gradient: images show it, steps in time do not.
    removed : (N, 6) array
        Twists (mm, rad) that lead from these poses back to the given ones.
    not_determined : (N, 6, 6) array
        Covariance (mm, rad) of displacements that follow the b-value, which neither images nor
        steps determine, beyond that of the poses.
    """

    motion: Motion
    common: np.ndarray
    removed: np.ndarray
    not_determined: np.ndarray


def find_pulls(
    motion: Motion,
    gradients: Gradients,
    volumes: np.ndarray,
    covariances: np.ndarray,
    center: np.ndarray,
    in_mm: np.ndarray,
) -> GradientPulls | None:
    """Find the part of the poses that follows the gradient.

    Parameters
    ----------
    motion : Motion
        Of N volumes.
    gradients : Gradients
        Theirs, in the scanner's frame.
    volumes : (n,) index array
        A group in a frame of its own, ascending.
    covariances : (N, 6, 6) array
        Of the errors of the poses: mm, rad.
    center : (3,) array
        About which rotations are measured, RAS+ mm.
    in_mm : (6,) array
        Millimetres for each unit of a twist.

    Returns
    -------
    GradientPulls
        None where there are too few volumes, or errors are not known.
    """
    own = gradients.rotated(motion.rotations).select(volumes)
    variances = np.einsum("nkk->nk", covariances[volumes]) * in_mm**2
    if not np.isfinite(variances).all():
        return None
    designed = _by_shells(own, variances) if own.is_shelled else _by_b_value(own, variances)
    if designed is None:
        return None
    design, prior = designed
    poses = motion.head[volumes]
    steps = log_rigid(np.linalg.inv(poses[:-1]) @ poses[1:], center) * in_mm
    size = in_mm[-1] / ROTATION_RADIUS_MM  # of the head, relative to a human one
    changes, prior, gaps = np.diff(design, axis=0), prior / size**2, np.diff(volumes)
    # b-values in ascending order rise as steadily as a head may drift
    drift = np.empty((len(gaps), 0)) if own.is_shelled else gaps[:, None]
    pulls, head_pulls, scale = _smoothest(
        steps / size,
        changes,
        gaps,
        prior,
        np.hstack([drift, np.diff(gradients.qvecs[volumes], axis=0)]),
        np.where(displaced_by_fields(motion), drift.shape[1] + 3, drift.shape[1]),
    )
    left_open = np.zeros((*changes.shape[1:] * 2, 6))
    if not own.is_shelled:
        pulls *= np.minimum(prior / BY_B_VALUE * (changes**2).sum(axis=0)[:, None] / scale**2, 1.0)
        left_open = _left_open(design, changes, gaps, prior * (LEFT_BY_B / BY_B_VALUE), scale)
    pulls, head_pulls, scale = size * pulls, size * head_pulls, size * scale
    return GradientPulls(design, pulls, head_pulls, scale, size**2 * left_open)


def _left_open(
    design: np.ndarray, changes: np.ndarray, gaps: np.ndarray, prior: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Covariances (C, C, 6) of pulls by a design (n, C), of what its changes leave open."""
    seen, steady = changes / np.sqrt(gaps)[:, None], np.sqrt(gaps)[:, None]
    seen = seen - steady @ (steady.T @ seen) / gaps.sum()
    alike = (design[1:] * design[:-1]).sum(axis=0) / (design**2).sum(axis=0)
    found = [
        np.linalg.inv(np.diag(1 / own) + seen.T @ seen / square)
        for own, square in zip(prior.T, scale**2, strict=True)
    ]
    open_still: np.ndarray = np.stack(found, axis=2) * np.outer(alike, alike)[:, :, None]
    return open_still


def remove_gradient_pulls(
    motion: Motion,
    covariances: np.ndarray,
    gradients: Gradients,
    groups: Iterable[np.ndarray],
    center: np.ndarray,
    in_mm: np.ndarray,
) -> WithoutPulls:
    """Remove from the poses the part that follows the gradient, as far as time shows it.

    Parameters
    ----------
    motion, covariances, gradients, center, in_mm
        As for :func:`find_pulls`.
    groups : iterable of index arrays

    Returns
    -------
    WithoutPulls
    """
    common, not_determined = np.zeros_like(covariances), np.zeros_like(covariances)
    before = motion
    for volumes in groups:
        found = find_pulls(motion, gradients, volumes, covariances, center, in_mm)
        if found is not None:
            log.info("motion of %d volumes: %s", len(volumes), found)
            away = exp_rigid(-found.displacements / in_mm, center)
            motion = motion.updated(volumes, motion.matrices[volumes] @ away)
            common[volumes] = found.common / np.outer(in_mm, in_mm)
            not_determined[volumes] = (found.not_determined / in_mm**2)[:, :, None] * np.eye(6)
    removed = log_rigid(np.linalg.inv(motion.matrices) @ before.matrices, center)
    return WithoutPulls(motion, common, removed, not_determined)


def displaced_by_fields(motion: Motion) -> np.ndarray:
    """Axes of a twist along which fields displace volumes, (6,) bool."""
    found = np.zeros(6, bool)
    if motion.eddy_currents is not None:
        found[:3] = np.abs(motion.eddy_currents.pe) > LEAST_ALONG
    return found


def _by_shells(
    gradients: Gradients, variances: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Products of directions (n, C) and variances (C, 6) of pulls; None if shells are small."""
    shells = [shell for shell in gradients.shells if len(shell) >= FEW_DIRECTIONS]
    if not shells:
        return None
    prior = [np.tile(variances[shell].mean(axis=0) / 5, (5, 1)) for shell in shells]
    return np.hstack([_products(gradients, shell) for shell in shells]), np.vstack(prior)


def _by_b_value(
    gradients: Gradients, variances: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Polynomials of the b-value (n, 2), orthonormal, and variances (2, 6) of pulls by them."""
    n, bvals = len(gradients), gradients.bvals
    if n < FEWEST_BY_B:
        return None
    powers = (bvals / bvals.max())[:, None] ** np.arange(3)
    design = np.sqrt(n) * np.linalg.qr(powers)[0][:, 1:]
    return design, np.tile(BY_B_VALUE * variances.mean(axis=0) / 2, (2, 1))


def _products(gradients: Gradients, shell: Sequence[int] | np.ndarray) -> np.ndarray:
    """Products of the directions of a shell, of trace zero and mean zero, (n, 5).

    Orthogonal over the sphere, each of mean square one there: together five.
    """
    x, y, z = gradients.bvecs[shell].T
    columns = np.stack([2 * x * y, 2 * x * z, 2 * y * z, x * x - y * y], axis=1)
    last = (2 * z * z - x * x - y * y) / np.sqrt(3)
    own = np.sqrt(15 / 4) * np.column_stack([columns, last])
    design = np.zeros((len(gradients), 5))
    design[shell] = own - own.mean(axis=0)
    return design


def _smoothest(
    steps: np.ndarray,
    changes: np.ndarray,
    gaps: np.ndarray,
    prior: np.ndarray,
    others: np.ndarray,
    numbers: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pulls without which the steps (n − 1, 6) look most like those of a head.

    Parameters
    ----------
    others : (n − 1, k) array
        What else the steps may consist of: a steady drift, changes of the gradients that the
        fields follow.
    numbers : (6,) int array
        How many of these, the first, each axis has.

    Returns
    -------
    pulls, head_pulls : (C, 6) arrays
    scale : (6,) array
    """
    slow, pulls = steps / np.sqrt(gaps)[:, None], np.zeros((changes.shape[1], 6))
    square = np.array([robust_deviation(axis) for axis in slow.T]) ** 2 + LEAST_SCALE_MM**2
    rest = slow
    for _ in range(N_STEPS):
        before = pulls
        known = student_weights((rest**2 / square).sum(axis=1), n_values=6, freedom=FREEDOM)
        weights = np.sqrt(known / gaps)[:, None]
        axes = [
            _Axis.of(values, changes, others[:, :number], weights, own)
            for values, own, number in zip(steps.T, prior.T, numbers, strict=True)
        ]
        pulls, head_pulls, square = (
            np.array(of).T for of in zip(*(axis.mean for axis in axes), strict=True)
        )
        both = (pulls + head_pulls).T
        weighted_rest = [axis.rest(own) for axis, own in zip(axes, both, strict=True)]
        rest = np.stack(weighted_rest, axis=1) / np.sqrt(known)[:, None]
        if np.abs(pulls - before).max() < SETTLED_MM:
            break
    likely = np.array([axis.likely for axis in axes])
    return pulls, np.where(likely > LIKELY, head_pulls, 0.0), np.sqrt(square)


@dataclass(frozen=True, eq=False)
class _Axis:
    """The steps along one axis, weighted, and their possible explanations.

    Parameters
    ----------
    values : (k,) array
    columns : (k, C) array
        Steps caused by a unit of each pull.
    spread : (C,) array
        Standard deviations of the pulls, mm.
    n_free : int
        Degrees of freedom that the fields use.
    restless : (k, k) array
        Covariance of steps of a head that is elsewhere in every volume and goes nowhere.
    """

    values: np.ndarray
    columns: np.ndarray
    spread: np.ndarray
    n_free: int
    restless: np.ndarray

    @classmethod
    def of(
        cls,
        steps: np.ndarray,
        changes: np.ndarray,
        fields: np.ndarray,
        weights: np.ndarray,
        prior: np.ndarray,
    ) -> _Axis:
        """Weight the steps, and remove from them the part that fields explain."""
        between = np.diff(np.eye(len(steps) + 1), axis=0)
        both = weights * np.column_stack([steps, changes, between])
        basis, sizes, _ = np.linalg.svd(weights * fields, full_matrices=False)
        basis = basis[:, sizes > LEAST_SHOWN * sizes.max(initial=0.0)]
        both -= basis @ (basis.T @ both)
        values, columns, away = np.split(both, [1, 1 + changes.shape[1]], axis=1)
        return cls(values[:, 0], columns, np.sqrt(prior), basis.shape[1], away @ away.T)

    @property
    def mean(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the mean over the posterior of sizes and scales.

        Pulls (C,), those of the head (C,), ``s²``.
        """
        found = _Explained.of(self.values, self.columns * self.spread, self.n_free)
        scales = found.scales(self.values)
        logs, variances = found.logs(scales)
        posterior = _normalised(logs)
        errors = np.minimum(SIZES, MOST_OF_ERRORS)
        both = np.stack([errors, SIZES - errors])
        shares = np.einsum("st,pt,stk->pk", posterior, both, found.seen / variances)
        pulls, head_pulls = self.spread * ((shares * found.shown) @ found.right)
        square = np.exp(posterior.sum(axis=1) @ np.log(scales))
        return pulls, head_pulls, float(square)

    @property
    def likely(self) -> float:
        """The probability that the head follows the direction, be it restless or not."""
        every = []
        for ratio in RESTLESS:
            root = np.linalg.cholesky(np.eye(len(self.values)) + ratio * self.restless)
            values, columns = (
                np.linalg.solve(root, of) for of in (self.values, self.columns * self.spread)
            )
            found = _Explained.of(values, columns, self.n_free)
            every.append(
                found.logs(found.scales(self.values))[0] + 2 * np.log(np.diag(root)).sum()
            )
        return float(_normalised(np.array(every))[..., SIZES > MOST_OF_ERRORS].sum())

    def rest(self, pulls: np.ndarray) -> np.ndarray:
        """Return the steps without the pulls, (k,)."""
        return self.values - self.columns @ pulls


@dataclass(frozen=True, eq=False)
class _Explained:
    """Weighted steps along the directions in which pulls show, and beside them.

    Parameters
    ----------
    shown, seen : (C,) array
        Steps there, and what a pull of the usual size adds to them.
    right : (C, C) array
        The pulls of these directions.
    hidden, n_hidden : float
        Sum of squares and number of the others.
    """

    shown: np.ndarray
    seen: np.ndarray
    right: np.ndarray
    hidden: float
    n_hidden: int

    @classmethod
    def of(cls, values: np.ndarray, columns: np.ndarray, n_free: int) -> _Explained:
        """Divide the steps (k,) by what the columns (k, C) explain."""
        left, seen, right = np.linalg.svd(columns, full_matrices=False)
        shown = left.T @ values
        hidden = max(float((values**2).sum()) - float((shown**2).sum()), 0.0)
        return cls(shown, seen, right, hidden, max(len(values) - n_free - len(shown), 0))

    @staticmethod
    def scales(values: np.ndarray) -> np.ndarray:
        """Return squares that the scale of the steps may have."""
        typical = float((values**2).mean())
        scales: np.ndarray = LEAST_SCALE_MM**2 + np.geomspace(1e-4, 4.0, N_SCALES) * typical
        return scales

    def logs(self, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return −2 log-likelihoods by scale and size (S, P), and variances (S, P, C)."""
        variances = scales[:, None, None] + SIZES[:, None] * self.seen**2
        logs = (self.shown**2 / variances + np.log(variances)).sum(axis=-1)
        logs += self.hidden / scales[:, None] + self.n_hidden * np.log(scales)[:, None]
        return logs, variances


def _normalised(logs: np.ndarray) -> np.ndarray:
    """Turn −2 log-likelihoods, by size along the last axis, into a posterior."""
    posterior = ODDS * np.exp((logs.min() - logs) / 2)
    normalised: np.ndarray = posterior / posterior.sum()
    return normalised
