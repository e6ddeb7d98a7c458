"""All volumes at once.

The loop of :mod:`eddymotion.estimation.lovo` creeps: each prediction is blurred by the motion of
the others. Here one Gauss-Newton step moves all volumes together
(:mod:`eddymotion.estimation.coupled`), coarse to fine, at random points off the grid:

1. b=0 volumes and diffusion-weighted ones are two groups, each consistent within itself.
   :mod:`eddymotion.estimation.frames` joins them.
2. Coarse levels use a fixed covariance; they cover 20 mm and 25°. Fine levels are band-passed,
   since what a model gets wrong is smooth in space, and fit the covariance to the band.
3. Slices that lost signal are found with the leave-one-out predictions and left out of a last
   solution at the finest level.
4. Standard errors come from how much the solution differs between parts of the brain.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from eddymotion.dataset import DWI, Spline
from eddymotion.estimation.coupled import CoupledProblem, LostSlices
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.outliers import SliceOutliers
from eddymotion.estimation.quality import assess
from eddymotion.geometry import ROTATION_RADIUS_MM, Motion
from eddymotion.models import AverageModel, GaussianProcessModel, LinearModel, SphericalCovariance
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.parallel import Progress, one_blas_thread, parallel_map, silent
from eddymotion.pyramid import (
    BLOCK_MM,
    Level,
    band_pass,
    crop,
    head_scale,
    jittered_points,
)

log = logging.getLogger(__name__)

COARSE = (Level(16.0, 3_000), Level(10.0, 4_000), Level(5.0, 8_000))
FINE = (Level(1.0, 12_000, highpass=2.5), Level(1.0, 40_000, highpass=2.5))
"""Coarse widths scale with the head, since they must cover its motion; the fine band scales with
the voxel, since that is the scale of noise and detail."""

COARSE_ITERATIONS = 8
FINE_ITERATIONS = 20

COARSE_MODEL = GaussianProcessModel(SphericalCovariance(signal=20.0, angle=1.2), fitted=True)

COARSE_TOLERANCE, FINE_TOLERANCE = 0.02, 0.001
"""Root-mean-square step, in voxels over the points, at which a level ends."""

MISFIT_MM, MISFIT_FEW, MISFIT_B_POWER = 0.0125, 8.0, 0.9
"""Standard error beyond that of noise; see :func:`misfit_covariances`."""

CROP_MARGIN_FWHM, CROP_MARGIN_VOXELS = 2.0, 3.0
"""What is kept around the brain of a volume from the second level on: what a level's filter and
its remaining motion reach."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Volumes that are solved together.

    Parameters
    ----------
    name : str
    volumes : (N,) index array
    coarse, fine : LinearModel
        What predicts them at the coarse and at the fine levels.
    leave_one_out : bool
        See :class:`~eddymotion.estimation.coupled.CoupledProblem`.
    """

    name: str
    volumes: np.ndarray
    coarse: LinearModel
    fine: LinearModel
    leave_one_out: bool


def solve_jointly(
    dwi: DWI,
    *,
    model: LinearModel,
    n_iterations: int = FINE_ITERATIONS,
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
) -> Estimate:
    """Estimate the poses of all volumes together.

    Parameters
    ----------
    dwi : DWI
    model : LinearModel
        Of the diffusion-weighted volumes; b=0 volumes are predicted by their mean.
    n_iterations : int
        At most so many steps at a level.
    seed : int
        Of the random points.
    n_threads : int
        The result does not depend on it.
    progress : callable
        See :class:`~eddymotion.parallel.Progress`.

    Returns
    -------
    Estimate
        b=0 and diffusion-weighted volumes each in a frame of their own.
    """
    solver = _Solver(dwi, np.random.default_rng(seed), n_iterations, n_threads, progress)
    groups = [
        _Group("b=0", dwi.gradients.b0s, AverageModel(), AverageModel(), leave_one_out=True),
        _Group("b>0", dwi.gradients.dwis, COARSE_MODEL, model, leave_one_out=False),
    ]
    groups = [group for group in groups if len(group.volumes) > 1]
    matrices = Motion.identity(len(dwi)).matrices
    covariances = np.zeros((len(dwi), 6, 6))
    with one_blas_thread():
        for level in COARSE:
            matrices = solver.solve(level, groups, matrices)[0]  # nothing else kept: memory
        for level in FINE:
            matrices, problems = solver.solve(level, groups, matrices)
        outliers = assess(dwi, Motion(matrices), model, seed=seed, n_threads=n_threads).outliers
        if outliers.flagged.any():
            matrices, problems = solver.solve(FINE[-1], groups, matrices, outliers)
        for group, problem in zip(groups, problems, strict=True):
            covariances[group.volumes] = problem.covariances(matrices[group.volumes])
        covariances[dwi.gradients.dwis] += misfit_covariances(dwi)
    known = _known(dwi, groups, problems)
    return Estimate(
        fill_unpredicted(dwi, Motion(matrices), known),
        np.where(known[:, None, None], covariances, np.nan),
    )


def misfit_covariances(dwi: DWI) -> np.ndarray:
    """Covariance of what the model gets wrong alike all over the brain, (n, 6, 6).

    The scatter between blocks does not show it. On simulated series the errors were 1.4 (64
    directions at b=1000) to 4 times (b=3000, 12 directions, random q-space) what the blocks say.
    The rest was about alike in millimetres for voxels of 1.2 to 4 mm, and, with ``n`` volumes,
    close to ``MISFIT_MM (1 + MISFIT_FEW / n) max(1, b / 1000)^MISFIT_B_POWER`` an axis (rotations
    at 50 mm), for a human head.
    """
    bvals = dwi.gradients.bvals[dwi.gradients.dwis]
    scale = head_scale(dwi.mask, dwi.voxel_sizes)
    size = MISFIT_MM * scale * (1 + MISFIT_FEW / len(bvals))
    size = size * np.maximum(1.0, bvals / 1000.0) ** MISFIT_B_POWER
    in_mm = np.array([1.0] * 3 + [ROTATION_RADIUS_MM * scale] * 3)
    return size[:, None, None] ** 2 * np.diag(1 / in_mm**2)


def _known(dwi: DWI, groups: Sequence[_Group], problems: Sequence[CoupledProblem]) -> np.ndarray:
    """Whether the others say anything about a volume, (N,)."""
    known = dwi.gradients.is_b0.copy()  # an only b=0 is the frame itself
    for group, problem in zip(groups, problems, strict=True):
        leverage = np.diag(problem.model.precision(problem.gradients))
        known[group.volumes] = leverage > LEVERAGE_GUARD * max(1.0, leverage.max())
    return known


@dataclass(eq=False)
class _Solver:
    """What all levels share."""

    dwi: DWI
    random: np.random.Generator
    n_iterations: int
    n_threads: int
    progress: Progress
    band: tuple[Level, list[Spline]] | None = None

    def __post_init__(self) -> None:
        self.mask = ndimage.binary_dilation(self.dwi.mask)  # the edge of the brain has contrast
        self.scale = head_scale(self.dwi.mask, self.dwi.voxel_sizes)
        self.voxel = float(np.cbrt(np.prod(self.dwi.voxel_sizes)))

    def solve(
        self,
        level: Level,
        groups: Sequence[_Group],
        matrices: np.ndarray,
        outliers: SliceOutliers | None = None,
    ) -> tuple[np.ndarray, list[CoupledProblem]]:
        """Solve each group at a level; return the poses and the problems as they were solved."""
        splines = self.splines(level, matrices)
        fine = level.highpass is not None
        new, problems = matrices.copy(), []
        for group in groups:
            own = [splines[volume] for volume in group.volumes]
            poses = matrices[group.volumes]
            problem = CoupledProblem(
                own,
                self.dwi.gradients.select(group.volumes),
                group.fine if fine else group.coarse,
                self.points(level, own, poses),
                self.dwi.brain_center,
                block_mm=BLOCK_MM * self.scale,
                leave_one_out=group.leave_one_out,
                n_threads=self.n_threads,
            )
            if outliers is not None:
                flagged = outliers.flagged[group.volumes]
                problem = replace(problem, lost=LostSlices(flagged, self.dwi.affine))
            if fine:
                problem = problem.with_model_fitted(poses)
            new[group.volumes], course = problem.solve(
                poses,
                self.n_iterations if fine else min(self.n_iterations, COARSE_ITERATIONS),
                (FINE_TOLERANCE if fine else COARSE_TOLERANCE) * self.voxel,
                progress=partial(self.progress, description=f"motion of {group.name}, {level}"),
            )
            log.debug("%s, %s, %d volumes: %s", group.name, level, len(own), course)
            problems.append(problem)
        return new, problems

    def splines(self, level: Level, matrices: np.ndarray) -> list[Spline]:
        """Band-pass all volumes, unless it is the band of the level before."""
        wanted = replace(level, n_points=COARSE[0].n_points)
        if self.band is None or self.band[0] != wanted:
            self.band = None  # one at a time: memory
            brain = apply_affine(self.dwi.affine, np.argwhere(self.mask)[::7])
            width = self.voxel if level.highpass is not None else self.scale
            margin = CROP_MARGIN_FWHM * level.fwhm * width + CROP_MARGIN_VOXELS * self.voxel

            def filtered(volume: int) -> Spline:
                image = self.dwi.volume(volume)
                if level is not COARSE[0]:
                    image = crop(image, apply_affine(matrices[volume], brain), margin)
                return Spline.of(band_pass(image, level, self.scale))

            volumes = range(len(self.dwi))
            self.band = (
                wanted,
                parallel_map(
                    filtered,
                    volumes,
                    n_threads=self.n_threads,
                    progress=self.progress,
                    description=f"filtering for {level}",
                ),
            )
        return self.band[1]

    def points(self, level: Level, splines: Sequence[Spline], matrices: np.ndarray) -> np.ndarray:
        """Draw random points of the brain; at fine levels more where the images have edges."""
        affine = self.dwi.affine
        if level.highpass is None:
            return jittered_points(self.mask, affine, level.n_points, self.random)
        candidates = jittered_points(self.mask, affine, self.mask.sum(), self.random)
        every = max(1, len(splines) // 8)
        total = np.zeros((len(candidates), 3), np.float32)
        for spline, matrix in zip(splines[::every], matrices[::every], strict=True):
            _, slopes = spline.sample_with_gradient(candidates, matrix)
            total += np.nan_to_num(slopes)
        steepness = np.linalg.norm(total, axis=1).astype(float)
        cap = np.quantile(steepness, 0.9)
        weights = np.minimum(steepness, cap) + 1e-6 * cap + np.finfo(float).tiny
        n_points = min(level.n_points, len(candidates))
        waiting = self.random.exponential(size=len(candidates)) / weights
        return candidates[np.argpartition(waiting, n_points - 1)[:n_points]]
