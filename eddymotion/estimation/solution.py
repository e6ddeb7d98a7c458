# SPDX-License-Identifier: Apache-2.0
"""What the solution of a joint problem tells of its own errors.

All of it comes from one reading of the volumes at the solution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from eddymotion.data.acquisition import Slicing
from eddymotion.estimation.coupled import CoupledProblem, Residuals
from eddymotion.estimation.normal_equations import DAMPING, NormalEquations
from eddymotion.estimation.outliers import slice_heights
from eddymotion.estimation.unknowns import POSES
from eddymotion.images.pyramid import MIN_POINTS
from eddymotion.mapping.motion import Motion
from eddymotion.robust import sandwich

LEAST_RECOVERED = 0.1
"""Steps are not taken as shorter than by this factor."""

PERIODS = 8
"""Parts of the time of a volume that are compared to find motion within it. On simulated nods of
up to 1.5 mm the errors were 0.3 to 1.5 times what their scatter says; four parts told 1.4 times
more."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The solution of a problem.

    Parameters
    ----------
    problem : CoupledProblem
    motion : Motion
        Of its N volumes.
    """

    problem: CoupledProblem
    motion: Motion

    @cached_property
    def found(self) -> Residuals | None:
        """How the volumes depart from the model there; None where too few points are inside."""
        return self.problem.look(self.motion)

    @cached_property
    def system(self) -> NormalEquations | None:
        """The normal equations there."""
        found = self.found
        return None if found is None else self.problem.equations(found, found.weights)

    def release(self) -> None:
        """Let go of what the volumes show; it is read again if it is asked for."""
        self.__dict__.pop("found", None)

    def covariances(self) -> np.ndarray:
        """Covariance of the error of each pose, (N, 6, 6).

        Noise is correlated from point to point and misfit from voxel to voxel, but little between
        parts of the brain that are ``part_mm`` wide. NaN where too few points are left.
        """
        if self.system is None:
            return np.full((len(self.motion), 6, 6), np.nan)
        return self.system.covariances(POSES)

    @cached_property
    def recovered(self) -> float:
        """Share of a small displacement that one step takes back.

        Noise in ``J`` makes ``H`` too large, the more the less signal there is: steps become
        shorter, and what :meth:`covariances` and :meth:`scatter_of_halves` tell from one step
        smaller, by this share. The displacement is one that noise may well have caused: what the
        blocks add, with random signs. 1 where too few points are left.
        """
        system, unknowns = self.system, self.problem.unknowns
        if system is None:
            return 1.0
        signs = np.random.default_rng(0).choice([-1.0, 1.0], len(system.gradients))
        rights = np.stack([system.gradients.T @ signs, system.right], axis=1)
        solved = system.solve(rights).reshape(len(self.motion), -1, 2)
        solved = (solved - solved.mean(axis=0))[:, unknowns.columns[POSES]]
        away, step = np.moveaxis(solved, 2, 0)
        poses = unknowns.only(POSES)
        there = self.problem.evaluate(poses.moved(self.motion, away))
        if there is None:
            return 1.0
        in_mm = poses.lengths(self.problem.points)
        back, away = (step - there.step(POSES)) * in_mm, away * in_mm
        share = (back * away).sum() / max((away**2).sum(), np.finfo(float).tiny)
        return float(np.clip(share, LEAST_RECOVERED, 1.0))

    def scatter_of_halves(self) -> np.ndarray:
        """Mean square by which halves of the brain move the poses, axis by axis: (6,).

        Left and right, front and back, top and bottom each take a step of their own, over all
        volumes. Were there noise alone, this would be the mean of :meth:`covariances`; what is
        alike over wide regions shows here only. NaN where a half is too small.
        """
        if self.found is None or self.system is None:
            return np.full(6, np.nan)
        whole, weights = self.system.step(POSES), self.found.weights
        away = self.problem.points - self.problem.center
        above = away > np.median(away, axis=0)
        squares = []
        for axis, side in product(range(3), (False, True)):
            inside = above[:, axis] == side
            if (weights[inside] > 0).sum() < MIN_POINTS:
                return np.full(6, np.nan)
            half = self.problem.at(inside)
            system = half.equations(self.found.at(inside), weights[inside])
            squares.append((system.step(POSES) - whole) ** 2)
        return np.mean(squares, axis=(0, 1))

    def scatter_of_periods(
        self, slicing: Slicing, affine: np.ndarray, n_slices: int
    ) -> np.ndarray:
        """Covariance of each pose by how much the parts of its time pull apart, (N, 6, 6).

        As :meth:`covariances`, with what the slices of each of :data:`PERIODS` parts of the time
        add in place of each part of the brain, and the other volumes held. Were there noise
        alone, both would be alike; a head that moved within a volume shows here. NaN where too
        few points are left.

        Parameters
        ----------
        slicing : Slicing
        affine : (4, 4) array
            Of the images.
        n_slices : int
        """
        problem, found, n = self.problem, self.found, len(self.motion)
        if found is None:
            return np.full((n, 6, 6), np.nan)
        period, weights = slicing.periods(n_slices, PERIODS), found.weights
        pulls, hessian = np.zeros((n, 6, PERIODS)), np.zeros((n, 6, 6))
        poses = replace(problem, blocks=problem.unknowns.only(POSES).blocks)
        for chunk in poses.chunks(n):
            jacobian = poses.jacobian(found, chunk)
            for volume, own in enumerate(jacobian):
                recorded = self.motion.recorded(volume, problem.points[chunk])
                heights = np.rint(slice_heights(recorded, affine, slicing.axis)).astype(int)
                inside = period[np.clip(heights, 0, n_slices - 1), None] == np.arange(PERIODS)
                weighted = own * weights[chunk]
                hessian[volume] += found.precision[volume, volume] * weighted @ own.T
                pulls[volume] += (weighted * found.values[volume, chunk]) @ inside
        diagonal = np.einsum("nkk->nk", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        (pose,) = poses.blocks
        along = np.eye(6) if pose.directions is None else pose.directions
        pulls, hessian = along.T @ pulls, along.T @ hessian @ along
        steps = along @ np.linalg.solve(hessian, pulls - pulls.mean(axis=2, keepdims=True))
        return sandwich(steps, n_fitted=1)
