# SPDX-License-Identifier: Apache-2.0
"""Poses sought among many starts, for volumes that coarse levels may have led astray.

A search from coarse to fine ends in the nearest minimum. If volumes lie far from each other, the
first predictions are mixtures of many poses. At high b-values, where images of different
directions differ most, some volumes then end 10° to 100° away in other minima: on a simulated head
with 12 directions at b=3000, each displaced by up to 20 mm and 25°, up to eight of twelve. The
cost at the truth is far lower, but the search has to get there.

A volume is therefore tried at rotations all around the mean pose, at its own place or where its
signal is, and compared with the prediction from all others *for the direction that it would have
there*. Given them, with ``r`` the difference from the prediction and ``v`` its variance
(:func:`~eddymotion.models.gaussian_process.predictors`), the cost of all volumes at a point is ::

    q = q₋ᵢ + r² / v,    −log p ∝ log(q + s²) + log(v) / (N + 1)

with ``q₋ᵢ`` that of the others, which does not depend on the candidate. The best few are refined
by Gauss-Newton steps. Volumes are tried one after another, those that agree best with their
predictions first, each with the others at their poses by then; volumes near their neighbours in
time are not moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from operator import itemgetter

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.normal_equations import DAMPING
from eddymotion.estimation.equations.samples import Residuals
from eddymotion.estimation.equations.unknowns import Poses
from eddymotion.images.pyramid import MIN_POINTS, Level
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.models.gaussian_process import GaussianProcessModel, predictors
from eddymotion.robust import Cauchy

BAND_MM, N_POINTS = (9.0, 22.0), 4_000
"""Widths of the band in which volumes are sought, in a human head. With 12 directions at b=3000
the cost at the truth was lower by 0.01 to 0.15 than where volumes had gone astray; with a fixed
covariance, as coarse levels have, or without the high-pass, it was higher by up to 0.2."""

STEP_DEGREES, N_STEPS, MOST_DEGREES = 15.0, 2, 47.0
"""Step and number of steps of the rotations about each axis that are tried, and the largest
angle."""

N_REFINED, N_REFINING = 4, 6
"""Number of candidates that are refined, and of steps that refine each."""

SETTLED = 0.7
"""The share of the volumes that agree best with their predictions predicts the others, each of
which joins it once it was tried. Otherwise two astray volumes of nearly the same direction hold
each other there: in three of six trials with all of them, in none with this share."""

LEAST_GAIN = 1e-3
"""By which the cost has to fall for a volume to leave its place."""

LEAST_INSIDE = 0.7
"""Part of the points that a volume has to show at a candidate."""


def search(
    problem: CoupledProblem,
    motion: Motion,
    volumes: np.ndarray,
    places: np.ndarray,
    *,
    known: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> Motion:
    """Try volumes at many poses against what the others predict, one after another.

    Parameters
    ----------
    problem : CoupledProblem
        Of :func:`search_level`, its model fitted and its volumes not cut down to where they are
        thought to be.
    motion : Motion
        Of its N volumes.
    volumes : index array
        Which to try.
    places : (N, 3) array
        Where else the centre of the brain may be in each volume, RAS+ mm.
    known : index array, optional
        Volumes that predict the first one; those that agree best when not given.
    starts : (N, 4, 4) array, optional
        One more pose to try of each volume.

    Returns
    -------
    Motion
        With those that are better off elsewhere there.
    """
    found = problem.look(motion)
    if found is None:
        return motion
    turns = turns_around(scipy.spatial.transform.Rotation.from_matrix(motion.rotations).mean())
    values, slopes = found.samples.values, found.samples.slopes
    order = np.argsort(-agreement(found), kind="stable")
    known = order[: math.ceil(SETTLED * len(order))] if known is None else known
    for volume in order[np.isin(order, volumes)]:
        held = _HeldOut.of(problem, motion, volume, known, values, slopes)
        here = held.refined(motion[volume], held.cost(motion[volume]))
        tried = held.poses(turns, [_place(motion[volume], problem.center), places[volume]])
        costs = held.costs(tried)
        best = [tried[k] for k in np.argsort(costs)[:N_REFINED] if np.isfinite(costs[k])]
        best += [] if starts is None else [starts[volume]]
        refined = (held.refined(one, held.cost(one)) for one in best)
        pose, cost = min(refined, key=itemgetter(1), default=here)
        if not cost < here[1] - LEAST_GAIN:
            pose = here[0]
        motion = motion.updated(np.array([volume]), pose[None])
        values[volume], slopes[:, volume] = held.shown(pose)
        known = np.union1d(known, volume)
    return motion


def agreement(found: Residuals) -> np.ndarray:
    """Correlation of each volume with what the others predict at the points, (N,)."""
    values, leverage = found.samples.values, np.diag(found.precision).astype(np.float32)
    predicted = values - found.values / leverage[:, None]
    values, predicted = (of - of.mean(axis=1, keepdims=True) for of in (values, predicted))
    power = np.einsum("nv,nv->n", values, values) * np.einsum("nv,nv->n", predicted, predicted)
    together = np.einsum("nv,nv->n", values, predicted)
    return together / np.sqrt(np.maximum(power, np.finfo(np.float32).tiny))


def agreement_with(problem: CoupledProblem, motion: Motion, known: np.ndarray) -> np.ndarray:
    """Correlation of each volume with what known ones (k,) predict of it at its pose, (N,).

    As in :func:`search`. NaN if too few points lie inside the volumes.
    """
    found = problem.look(motion)
    if found is None:
        return np.full(len(motion), np.nan)
    values, slopes, correlations = found.samples.values, found.samples.slopes, []
    for volume, shown in enumerate(values):
        held = _HeldOut.of(problem, motion, volume, known, values, slopes)
        weights, _ = held.predictors(motion[volume][None])
        correlations.append(np.corrcoef(shown, weights[0] @ held.values)[0, 1])
    return np.array(correlations)


def search_level(scale: float, voxel: float) -> Level:
    """Return the level at which to search, for a head of some size and voxels of some edge, mm."""
    low, high = np.maximum(np.array(BAND_MM) * scale / voxel, (1.0, 2.5))
    return Level(float(low), N_POINTS, highpass=float(high))


def turns_around(mean: scipy.spatial.transform.Rotation) -> np.ndarray:
    """Return the rotations that are tried, (K, 3, 3)."""
    degrees = STEP_DEGREES * np.arange(-N_STEPS, N_STEPS + 1)
    grid = np.array(list(product(degrees, repeat=3)))
    grid = grid[np.linalg.norm(grid, axis=1) <= MOST_DEGREES]
    return (mean * scipy.spatial.transform.Rotation.from_rotvec(grid, degrees=True)).as_matrix()


def places_by_signal(dwi: DWI, volumes: np.ndarray, motion: Motion) -> np.ndarray:
    """Return where the centre of the brain is in volumes, by where their signal is, (n, 3).

    Parameters
    ----------
    dwi : DWI
    volumes : (n,) index array
    motion : Motion
        Theirs. Most of the n poses have to be about right.
    """
    voxels = np.moveaxis(np.indices(dwi.shape), 0, -1).reshape(-1, 3)
    middles = []
    for volume in volumes:
        image = dwi.volume(volume).data.ravel().astype(float)
        bright = np.maximum(np.nan_to_num(image) - np.nanmean(image), 0.0)
        middles.append(bright @ voxels / max(bright.sum(), np.finfo(float).tiny))
    by_signal = np.array(middles) @ dwi.affine[:3, :3].T + dwi.affine[:3, 3]
    by_pose = np.array([_place(matrix, dwi.brain_center) for matrix in motion.matrices])
    return by_signal + np.median(by_pose - by_signal, axis=0)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """A volume, and what the others say of it.

    Parameters
    ----------
    problem : CoupledProblem
    volume : int
    others : Gradients
        Of the other volumes, in the frame of the head.
    values : (N − 1, V) array
        What they show.
    slopes : (3, N − 1, V) array
    misfit : (V,) array
        ``q₋ᵢ``
    """

    problem: CoupledProblem
    volume: int
    others: Gradients
    values: np.ndarray
    slopes: np.ndarray
    misfit: np.ndarray

    @classmethod
    def of(
        cls,
        problem: CoupledProblem,
        motion: Motion,
        volume: int,
        known: np.ndarray,
        values: np.ndarray,
        slopes: np.ndarray,
    ) -> _HeldOut:
        rest = np.setdiff1d(known, volume)
        others = problem.gradients.rotated(motion.rotations).select(rest)
        values, slopes = values[rest], slopes[:, rest]
        precision = problem.model.precision(others).astype(np.float32)
        misfit = np.einsum("nv,nv->v", values, precision @ values)
        return cls(problem, volume, others, values, slopes, np.maximum(misfit, 0.0))

    def poses(self, turns: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
        """Return the poses that put the centre of the brain at places, turned, (K, 4, 4)."""
        poses = np.tile(np.eye(4), (len(places), len(turns), 1, 1))
        poses[..., :3, :3] = turns
        poses[..., :3, 3] = np.array(places)[:, None] - turns @ self.problem.center
        return poses.reshape(-1, 4, 4)

    def costs(self, poses: np.ndarray) -> np.ndarray:
        """Return the cost at poses (K, 4, 4), (K,)."""
        weights, variances = self.predictors(poses)
        spline, points = self.problem.splines[self.volume], self.problem.points
        return np.array([
            self._cost(spline.sample(points, pose), own @ self.values, variance)
            for pose, own, variance in zip(poses, weights, variances, strict=True)
        ])  # fmt: skip

    def cost(self, pose: np.ndarray) -> float:
        """Return the cost at a pose."""
        return float(self.costs(pose[None])[0])

    def _cost(self, shown: np.ndarray, predicted: np.ndarray, variance: float) -> float:
        inside = np.isfinite(shown)
        if inside.sum() < max(MIN_POINTS, LEAST_INSIDE * len(shown)):
            return np.inf
        n_volumes = len(self.values) + 1
        misfit = (self.misfit + (shown - predicted) ** 2 / variance)[inside] / n_volumes
        return Cauchy.of(misfit).cost(misfit) + np.log(variance) / (n_volumes + 1)

    def predictors(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how the others predict the volume at poses (K, 4, 4): (K, N − 1) and (K,)."""
        assert isinstance(self.problem.model, GaussianProcessModel)
        own = self.problem.gradients.select(np.full(len(poses), self.volume))
        turned = own.rotated(poses[:, :3, :3])
        weights, variances = predictors(self.problem.model.covariance, self.others, turned)
        return weights.astype(np.float32), variances

    def refined(self, pose: np.ndarray, cost: float) -> tuple[np.ndarray, float]:
        """Take Gauss-Newton steps; return the best pose on the way, and its cost."""
        best = pose, cost
        for _ in range(N_REFINING):
            pose = pose @ exp_rigid(-self._step(pose), self.problem.center)
            if (cost := self.cost(pose)) < best[1]:
                best = pose, cost
        return best

    def _step(self, pose: np.ndarray) -> np.ndarray:
        """Return the step ``T ← T exp(−δ)`` to where the prediction would move it, (6,)."""
        (weights,), (variance,) = self.predictors(pose[None])
        points, center = self.problem.points, self.problem.center
        shown = self.problem.splines[self.volume].sample(points, pose)
        inside = np.isfinite(shown)
        rest = np.where(inside, shown - weights @ self.values, 0.0)
        misfit = (self.misfit + rest**2 / variance) / (len(self.values) + 1)
        used = Cauchy.of(misfit[inside]).weights(misfit) * inside
        slopes = np.einsum("n,anv->av", weights, self.slopes)[None]
        jacobian = Poses(center).columns(Motion.identity(1), points, slopes)[0].astype(float)
        hessian = (jacobian * used) @ jacobian.T
        hessian[np.diag_indices(6)] *= 1 + DAMPING
        return np.linalg.solve(hessian, (jacobian * used) @ rest)

    def shown(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the volume shows at a pose (V,), or is predicted to, and slopes (3, V)."""
        problem = self.problem
        values, slopes = problem.splines[self.volume].sample_with_gradient(problem.points, pose)
        gone = ~np.isfinite(values)
        values[gone] = (self.predictors(pose[None])[0][0] @ self.values)[gone]
        slopes[gone] = 0.0
        return values, slopes.T


def _place(matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
    return matrix[:3, :3] @ center + matrix[:3, 3]
