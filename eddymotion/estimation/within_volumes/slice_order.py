# SPDX-License-Identifier: Apache-2.0
"""Whether slices were acquired in the order given by SliceTiming.

A head does not jump back and forth between excitations. With one pose per volume, each slice pulls
that pose to where the head was when the slice was excited, with the gradient ``g`` and the normal
matrix ``H`` of its own knot (:class:`SlicePulls`). In the true order of acquisition, these pulls
belong to a course that is smooth, or rests and jumps now and then. In a wrong order they belong to
a head that shakes. For an order with the knots ``x`` of all volumes in time, ::

    log p(data | order) = log ∫ exp(−½ (x − x₀)ᵀ H (x − x₀) − gᵀ (x − x₀)) p(x) dx

with ``p`` the random walk with jumps of :mod:`~eddymotion.estimation.within_volumes.increments` at
one scale. Laplace's approximation gives the integral, at the most likely course. Jumps get small
Student-t weights, computed iteratively. This is a banded system that takes a few milliseconds per
order, so that all orders in which scanners acquire slices are compared with the given one.

Errors of the model pull slices, too. ``H`` is reduced as far as the pulls of most slices exceed
those expected from noise (:meth:`SlicePulls.calibrated`). Errors that change slowly along the
slice axis would support a sequential order. So, whatever the order, each volume may be displaced
by a quadratic function of the position, as much as usual volumes are (:class:`SmoothMisfit`). The
remaining errors make the odds of all orders too large. So another order has to be better by a
large part of the odds of the given one.

A head at rest within its volumes does not show the order. The few times at which it moves and
comes back do not show the direction of time, but that makes no difference to the poses of the
slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy

from eddymotion.data.acquisition import Slicing, usual_orders
from eddymotion.estimation.within_volumes.equations import SlicePulls
from eddymotion.estimation.within_volumes.knots import between_times
from eddymotion.machine.parallel import parallel_map
from eddymotion.robust import student_weights

N_KNOTS, N_FINER = 6, 12
"""Of a volume: enough to distinguish orders; and for a second look at one that seems wrong. A nod
may be too short for the first. An order in which each knot covers fewer slices that lie side by
side then follows it better: two slices at a time in place of one, up to one after the other."""

SCALE_MM = 0.15
"""Of the walk over a fifth of a volume, in a human head."""

AT_REST_MM = 0.003
"""Scale of a walk that is at rest between jumps."""

SMOOTH = 2
"""Degree of the errors of the model along the slice axis."""

MEDIAN_SQUARE = 0.455
"""Of a normal distribution."""

LEAST_MISFIT_MM = 1e-3

N_ROUNDS, SETTLED = 10, 0.5

HELD = 1e-6
"""Precision (1/mm²) with which every pose is held: the data do not determine their mean."""

BETTER_BY, LEAST_GAIN = 0.2, 50.0
"""Log odds by which another order has to be better: a share of those of the given order, and a
minimum. True orders were behind by up to 3.6 %, and by 12.5 % with one slice at a time, where the
halves of a volume change places (odd before even slices). Wrong orders were behind: sequential for
interleaved slices by 100 % or more, one slice at a time for three by 20 % or more, odd before even
slices by 14 to 52 %, and reversed orders by 2 to 12 %."""


@dataclass(frozen=True)
class OrderEvidence:
    """How well two orders explain the pulls of slices within volumes.

    Parameters
    ----------
    given : float
        Log odds of the order that SliceTiming gives against a head at rest within volumes.
    best : float
        Of the best of the others.
    order : str
        The best of the others, in words.
    """

    given: float
    best: float
    order: str

    @property
    def contradicts(self) -> bool:
        """Whether another order than that of SliceTiming is the true one."""
        return self.best - self.given > max(LEAST_GAIN, BETTER_BY * self.given)

    @property
    def doubt(self) -> str | None:
        """Message if another order is the true one, else None."""
        if not self.contradicts:
            return None
        return (
            "the motion of the head shows that slices were acquired in another order than "
            f"SliceTiming tells ({self}); correct the sidecar"
        )

    def __str__(self) -> str:
        return (
            f"log odds of {self.given:.0f} for the order that SliceTiming tells, {self.best:.0f} "
            f"for {self.order}"
        )


def weigh_orders(pulls: SlicePulls, slicing: Slicing, n_threads: int = 1) -> OrderEvidence:
    """Compare the order of SliceTiming with those in which scanners acquire slices.

    Parameters
    ----------
    pulls : SlicePulls
    slicing : Slicing
        As the sidecar has it.
    n_threads : int
        Orders at a time.
    """
    known = pulls.calibrated()
    misfit = SmoothMisfit.of(known)
    found = _weigh(known, misfit, slicing, N_KNOTS, n_threads)
    if not found.contradicts:
        return found
    finer = _weigh(known, misfit, slicing, N_FINER, n_threads)
    return found if finer.contradicts else finer


def _weigh(
    pulls: SlicePulls, misfit: SmoothMisfit, slicing: Slicing, n_knots: int, n_threads: int
) -> OrderEvidence:
    """Compare the orders with so many knots of a volume."""
    odds = partial(log_evidence, pulls, misfit, n_knots=n_knots)
    at_rest = odds(slicing, AT_REST_MM)
    assert slicing.times is not None
    others = usual_orders(len(slicing.times), slicing.axis, max(map(len, slicing.groups)))
    names, orders = zip(*others, strict=True)
    told, *found = parallel_map(
        lambda order: odds(order, SCALE_MM) - at_rest, [slicing, *orders], n_threads=n_threads
    )
    best = int(np.argmax(found))
    return OrderEvidence(told, found[best], names[best])


@dataclass(frozen=True, eq=False)
class SmoothMisfit:
    """Pulls of the slices of a volume that vary smoothly along their axis, motion or not.

    Parameters
    ----------
    shape : (Z, S) array
        Functions of the place.
    variance : (6 S,) array
        Variance of their coefficients in a volume, mm².
    """

    shape: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, pulls: SlicePulls) -> SmoothMisfit:
        """Learn it from most of the volumes, since motion within volumes is rare."""
        n_slices = pulls.gradient.shape[1]
        shape = np.polynomial.legendre.legvander(np.linspace(-1, 1, n_slices), SMOOTH)
        gradient, hessian = pulls.of_knots(shape)
        size = np.trace(hessian, axis1=1, axis2=2)[:, None, None] / hessian.shape[1]
        held = hessian + 1e-6 * size * np.eye(hessian.shape[1])
        steps = np.linalg.solve(held, gradient[..., None])[:, 6:, 0]
        return cls(shape[:, 1:], np.median(steps**2, axis=0) / MEDIAN_SQUARE)

    def taken_out(self, pulls: SlicePulls, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gradient (n, 6 M) and normal matrix of knots of basis (Z, M), freed of it."""
        gradient, hessian = pulls.of_knots(np.hstack([self.shape, basis]))
        k = len(self.variance)
        own = hessian[:, :k, :k] + np.diag(1 / np.maximum(self.variance, LEAST_MISFIT_MM**2))
        right = np.dstack([hessian[:, :k, k:], gradient[:, :k, None]])
        gone = hessian[:, k:, :k] @ np.linalg.solve(own, right)
        left = hessian[:, k:, k:] - gone[..., :-1]
        return gradient[:, k:] - gone[..., -1], (left + left.transpose(0, 2, 1)) / 2


def log_evidence(
    pulls: SlicePulls,
    misfit: SmoothMisfit,
    slicing: Slicing,
    scale: float,
    n_knots: int,
) -> float:
    """Log odds of an order of acquisition, up to a constant of all orders.

    Parameters
    ----------
    pulls : SlicePulls
    misfit : SmoothMisfit
    slicing : Slicing
        The order.
    scale : float
        Of the walk over a fifth of a volume, mm.
    n_knots : int
        Of a volume, over its time.
    """
    assert slicing.times is not None
    basis = between_times(slicing.times, n_knots)
    gradient, hessian = misfit.taken_out(pulls, basis)
    n = len(gradient)
    start = np.repeat(pulls.twists - pulls.twists.mean(axis=0), n_knots, axis=0)
    walk = _Walk.of(pulls.volumes, scale, 1 / len(slicing.groups), n_knots)
    flat = start.reshape(n, -1)
    right = (np.einsum("nij,nj->ni", hessian, flat) - gradient).ravel()
    banded = _banded(hessian)
    poses, found = start, -np.inf
    for _ in range(N_ROUNDS):
        factor = scipy.linalg.cholesky_banded(
            walk.added(banded, poses), lower=True, overwrite_ab=True, check_finite=False
        )
        poses = scipy.linalg.cho_solve_banded((factor, True), right, check_finite=False).reshape(
            -1, 6
        )
        away = poses.reshape(n, -1) - flat
        cost = np.einsum("ni,nij,nj->", away, hessian, away) / 2 + (gradient * away).sum()
        before, found = found, walk.log_density(poses) - cost - np.log(factor[0]).sum()
        if abs(found - before) < SETTLED:
            break
    return float(found)


@dataclass(frozen=True, eq=False)
class _Walk:
    """The random walk with jumps of the knots of all volumes.

    Parameters
    ----------
    variance : (K - 1,) array
        Variance of the increments, mm²; proportional to the time between knots.
    """

    variance: np.ndarray

    @classmethod
    def of(cls, volumes: np.ndarray, scale: float, excitation: float, n_knots: int) -> _Walk:
        """Make the walk through volumes (n,); `excitation`: its part of a volume's time."""
        n_steps = n_knots - 1
        variance = np.full((len(volumes), n_knots), scale**2 * (N_KNOTS - 1) / n_steps)
        between = excitation + np.diff(volumes, append=volumes[-1] + 1) - 1
        variance[:, -1] *= between * n_steps
        return cls(variance.ravel()[:-1])

    def added(self, banded: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Add the precision of the walk at the poses (K, 6) to a banded matrix."""
        moved = (np.diff(poses, axis=0) ** 2).sum(axis=1)
        precision = student_weights(moved / self.variance, n_values=6) / self.variance
        both = np.append(precision, 0.0) + np.append(0.0, precision)
        whole = banded.copy()
        whole[0] += np.repeat(both, 6) + HELD
        whole[6, : 6 * len(precision)] -= np.repeat(precision, 6)
        return whole

    def log_density(self, poses: np.ndarray) -> float:
        """Logarithm of the density of the poses (K, 6), up to a constant."""
        moved = (np.diff(poses, axis=0) ** 2).sum(axis=1)
        each = 7 / 2 * np.log1p(moved / self.variance) + 3 * np.log(self.variance)
        return -float(each.sum())


def _banded(blocks: np.ndarray) -> np.ndarray:
    """Lower bands of a matrix of symmetric blocks (n, m, m) on its diagonal, (m + 6, n m)."""
    n, m, _ = blocks.shape
    bands = np.zeros((m + 6, n, m))
    for band in range(m):
        bands[band, :, : m - band] = np.diagonal(blocks, -band, axis1=1, axis2=2)
    return bands.reshape(m + 6, n * m)
