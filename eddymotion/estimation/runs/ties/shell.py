# SPDX-License-Identifier: Apache-2.0
"""One shell that several runs show, and the poses of the runs by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy
from nibabel.affines import voxel_sizes

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.normal_equations import NormalEquations
from eddymotion.estimation.equations.samples import LostSlices
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.equations.unknowns import Poses
from eddymotion.estimation.frames.gradient_pulls import remove_gradient_pulls
from eddymotion.estimation.frames.ties import ENOUGH_DIRECTIONS
from eddymotion.estimation.joint.standard_errors import misfit_of
from eddymotion.estimation.runs.ties.shown import LEVELS, ShownDiffusion
from eddymotion.images.grid import mask_center
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import (
    Level,
    difference_of_gaussians,
    fine_widths,
    head_scale,
    jittered_points,
    steepest_points,
)
from eddymotion.machine.parallel import Compute, one_blas_thread, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.mapping.rigid import log_rigid, twist_millimetres
from eddymotion.mapping.volume import VolumeMapping
from eddymotion.models import GaussianProcessModel, LegendreCovariance
from eddymotion.robust import sandwich

log = logging.getLogger(__name__)

MAX_STEPS, TOLERANCE_VOXELS, STEADY = 20, 0.001, 0.1
"""Of the descent at a level: most steps, way that is left at its end, and share of the width of
its filter up to which the normal matrix stays."""

FOR_STEEPNESS = 8
"""Volumes from which edges are located."""

BRIGHT = 90.0
"""Percentile of an image within the brain that measures its brightness."""

OCTANTS_FACTOR = 2.5
"""Standard errors over the scatter of eight parts of the brain: errors of a field are similar over
wide regions."""

NEGLIGIBLE = 1e-12


@dataclass(frozen=True, eq=False)
class MotionOfRuns(Motion):
    """Volumes of several runs, each with what distorts it there.

    Parameters
    ----------
    mappings : tuple of VolumeMapping
        Of each volume; the poses are those of `matrices`.
    """

    mappings: tuple[VolumeMapping, ...] = ()

    def _mapping(self, volume: int) -> VolumeMapping:
        return replace(self.mappings[volume], pose=self.matrices[volume])


@dataclass(frozen=True, eq=False)
class LostInRuns:
    """Slices without signal of volumes of several runs.

    Parameters
    ----------
    parts : sequence of N (LostSlices or None, int)
        Those of the run of each volume, and which of its volumes it is.
    """

    parts: Sequence[tuple[LostSlices | None, int]]

    def at(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Whether a volume has lost its signal at points (V, 3)."""
        lost, own = self.parts[volume]
        return np.zeros(len(points), bool) if lost is None else lost.at(own, points)


class PosesOfRuns(Poses):
    """The pose of each run: one step for all of its volumes.

    Parameters
    ----------
    center : (3,) array
        RAS+ mm.
    runs : (N,) int array
        Which run each volume is of, from zero on.
    """

    def __init__(self, center: np.ndarray, runs: np.ndarray) -> None:
        super().__init__(center)
        self.design = np.eye(runs.max() + 1)[runs]


@dataclass(frozen=True, eq=False)
class SharedShell:
    """Volumes of one shell in several runs, in the frame of the first run of the session.

    Parameters
    ----------
    runs : (K,) index array
        Which runs of the session show it.
    shown : sequence of K ShownDiffusion
        The volumes of the shell alone.
    poses : (K, 4, 4) array
        First run → frame of each.
    shifts : (K, 3) array
        Where a spin that is off by one hertz is displaced, mm; NaN where it is not known.
    """

    runs: np.ndarray
    shown: Sequence[ShownDiffusion]
    poses: np.ndarray
    shifts: np.ndarray

    @property
    def of_volumes(self) -> np.ndarray:
        """Which of the K runs each volume is of, (N,)."""
        return np.repeat(np.arange(len(self.shown)), [len(one.images) for one in self.shown])

    @property
    def voxel(self) -> float:
        """Mean edge of the voxels of the first run, mm."""
        return float(np.cbrt(np.prod(self.shown[0].images[0].voxel_sizes)))

    @property
    def gradients(self) -> Gradients:
        """Of all volumes, in the scanner's frame."""
        tables = [one.gradients for one in self.shown]
        return Gradients(
            np.concatenate([table.bvals for table in tables]),
            np.concatenate([table.bvecs for table in tables]),
        )

    @property
    def lost(self) -> LostInRuns:
        """Slices without signal."""
        return LostInRuns([(one.lost, k) for one in self.shown for k in range(len(one.images))])

    @property
    def motion(self) -> MotionOfRuns:
        """The motion of all volumes, from the first run."""
        mappings = tuple(mapping for one in self.shown for mapping in one.mappings)
        own = np.stack([mapping.pose for mapping in mappings])
        return MotionOfRuns(own @ self.poses[self.of_volumes], mappings=mappings)

    def undistorted(self, field: OffResonance | None, n_threads: int) -> SharedShell:
        """Take the field (or None) out of the volumes of runs whose readout is known.

        As it is at the poses given: a tenth of a millimetre changes it by some thousandths.
        """
        if field is None:
            return self
        parts = zip(self.shown, self.shifts, self.poses, strict=True)
        return replace(self, shown=[
            one.undistorted(field, shift, pose, n_threads) if np.isfinite(shift).all() else one
            for one, shift, pose in parts
        ])  # fmt: skip

    def banded(self, level: Level, n_threads: int) -> list[Spline]:
        """Filter all volumes alike, whatever their voxels: the runs have to look the same."""
        images = [image for one in self.shown for image in one.images]
        unit = np.max([fine_widths(image.voxel_sizes) for image in images], axis=0)
        assert level.highpass is not None
        widths = level.fwhm * unit, level.highpass * unit
        gains = self._gains().astype(np.float32)

        def band(number: int) -> Spline:
            shown = difference_of_gaussians(images[number], *widths)
            return Spline.of_filtered(replace(shown, data=gains[number] * shown.data))

        return parallel_map(band, range(len(images)), n_threads=n_threads)

    def _gains(self) -> np.ndarray:
        """By which volumes are multiplied so that the runs are as bright as each other, (N,)."""
        brightness = np.array([
            np.median([np.percentile(image.data, BRIGHT) for image in one.images])
            for one in self.shown
        ])  # fmt: skip
        return (brightness[0] / np.maximum(brightness, NEGLIGIBLE))[self.of_volumes]


def shared_shell(
    shown: Sequence[ShownDiffusion | None], poses: np.ndarray, shifts: np.ndarray
) -> SharedShell | None:
    """Choose the shell that most runs show with enough directions, and with the most of them."""
    known = {run: one for run, one in enumerate(shown) if one is not None}
    if len(known) < 2:
        return None
    pooled = SharedShell(np.array([*known]), [*known.values()], poses[[*known]], shifts[[*known]])
    table, of_volumes = pooled.gradients, pooled.of_volumes
    if not table.is_shelled:
        return None
    first = np.searchsorted(of_volumes, np.arange(len(known)))  # volume of each run
    by_shell = [
        [shell[of_volumes[shell] == run] - first[run] for run in range(len(known))]
        for shell in table.shells
    ]
    parts = max(by_shell, key=_strength)
    which = [run for run, part in enumerate(parts) if len(part) >= ENOUGH_DIRECTIONS]
    if len(which) < 2:
        return None
    return SharedShell(
        pooled.runs[which],
        [pooled.shown[run].select(parts[run]) for run in which],
        pooled.poses[which],
        pooled.shifts[which],
    )


def _strength(parts: Sequence[np.ndarray]) -> tuple[int, int]:
    """How many runs show a shell with enough directions, and with how many at least."""
    enough = [len(part) for part in parts if len(part) >= ENOUGH_DIRECTIONS]
    return len(enough), min(enough, default=0)


@dataclass(frozen=True, eq=False)
class Brain:
    """Where the brain is in the frame of the first run.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    affine : (4, 4) array
    """

    mask: np.ndarray
    affine: np.ndarray

    @cached_property
    def center(self) -> np.ndarray:
        """Its centre, RAS+ mm."""
        return mask_center(self.mask, self.affine)

    @cached_property
    def scale(self) -> float:
        """Its size relative to a human one."""
        return head_scale(self.mask, voxel_sizes(self.affine))

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Draw a point of each voxel, those at its edge as well, (P, 3)."""
        mask = scipy.ndimage.binary_dilation(self.mask)
        return jittered_points(mask, self.affine, int(mask.sum()), random)


@dataclass(frozen=True, eq=False)
class TiedShell:
    """How K runs lie to each other by their N volumes of a shell.

    Parameters
    ----------
    steps : (K, 6) array
        Twists after the matrices of each run; the first has none.
    covariance : (6 K, 6 K) array
        Of their errors; zero for the first, infinite where nothing is seen.
    twists : (N, 6) array
        Twists of the volumes beyond those of their runs, whose mean is zero in each.
    """

    steps: np.ndarray
    covariance: np.ndarray
    twists: np.ndarray


@one_blas_thread()
def tie_shell(
    shell: SharedShell, field: OffResonance | None, brain: Brain, compute: Compute
) -> TiedShell:
    """Find how the runs lie to each other by their diffusion-weighted volumes.

    Then each volume has a pose of its own: all runs together predict it.

    Parameters
    ----------
    shell : SharedShell
    field : OffResonance, optional
        In the frame of the first run.
    brain : Brain
    compute : Compute
    """
    random = np.random.default_rng(compute.seed)
    shell = shell.undistorted(field, compute.n_threads)
    start = shell.motion
    motion: Motion = start
    for level in LEVELS:
        problem = _problem_at(level, shell, motion, brain.draw(random), brain.center, random,
                              compute.n_threads)  # fmt: skip
        motion, descent, _ = problem.solve(motion, MAX_STEPS, TOLERANCE_VOXELS * shell.voxel)
        log.debug("runs tied by b=%.0f, %s: %s", shell.gradients.bvals.mean(), level, descent)
    first = [int(np.argmax(shell.of_volumes == run)) for run in range(len(shell.shown))]
    moved = np.linalg.inv(start.matrices[first]) @ motion.matrices[first]
    steps = log_rigid(moved, brain.center)
    system = problem.evaluate(motion)
    if system is None:
        unknown = np.full((steps.size, steps.size), np.inf)
        return TiedShell(np.zeros_like(steps), unknown, np.zeros((len(motion), 6)))
    twists = _own_twists(problem, motion, shell, brain)
    return TiedShell(steps - steps[0], _by_octants(problem, system, first), twists)


def _own_twists(
    problem: CoupledProblem, motion: Motion, shell: SharedShell, brain: Brain
) -> np.ndarray:
    """Return twists of the volumes (N, 6) to where all runs together predict them.

    What follows the direction of diffusion is left to the course of the head again, here that of
    all runs: the one step between two runs counts for little among the others.
    """
    single = replace(problem, blocks=())
    found, descent, seen = single.solve(motion, MAX_STEPS, TOLERANCE_VOXELS * shell.voxel)
    log.debug("volumes of all runs together: %s", descent)
    solution = Solution.of(single, found, seen)
    by_noise = solution.covariances() / solution.recovered**2
    found = remove_gradient_pulls(
        found,
        by_noise + misfit_of(shell.gradients, brain.scale),
        shell.gradients,
        [np.arange(len(found))],
        brain.center,
        twist_millimetres(brain.scale),
    ).motion
    twists = log_rigid(np.linalg.inv(motion.matrices) @ found.matrices, brain.center)
    for run in range(len(shell.shown)):
        own = shell.of_volumes == run
        twists[own] -= twists[own].mean(axis=0)
    return twists


def _problem_at(
    level: Level,
    shell: SharedShell,
    motion: Motion,
    candidates: np.ndarray,
    center: np.ndarray,
    random: np.random.Generator,
    n_threads: int,
) -> CoupledProblem:
    """Set up the equations of a level, at the steepest of some points (P, 3)."""
    splines = shell.banded(level, n_threads)
    some = range(0, len(splines), max(1, len(splines) // FOR_STEEPNESS))
    slopes = (
        motion.mapping(volume).sample_with_gradient(splines[volume], candidates)[1].astype(float)
        for volume in some
    )
    return CoupledProblem(
        splines,
        shell.gradients,
        GaussianProcessModel(LegendreCovariance()),
        steepest_points(candidates, slopes, level.n_points, random),
        center,
        lost=shell.lost,
        blocks=[PosesOfRuns(center, shell.of_volumes)],
        steady_mm=STEADY * level.fwhm * shell.voxel,
        n_threads=n_threads,
    ).with_model_fitted(motion)


def _by_octants(
    problem: CoupledProblem, system: NormalEquations, first: Sequence[int]
) -> np.ndarray:
    """Covariance of the steps of K runs against the first by eight parts of the brain, (6K, 6K).

    Parameters
    ----------
    problem : CoupledProblem
    system : NormalEquations
        Where it was solved.
    first : (K,) index sequence
        A volume of each run.
    """
    counts = np.bincount(problem.parts)
    middles = np.stack(
        [np.bincount(problem.parts, axis) / np.maximum(counts, 1) for axis in problem.points.T],
        axis=1,
    )
    octants = (middles > np.median(problem.points, axis=0)) @ [1, 2, 4]
    sums = np.stack([system.gradients[octants == octant].sum(axis=0) for octant in range(8)])
    steps = system.solve(sums.T).reshape(system.n_volumes, 6, -1)[list(first)]
    apart = -(steps - steps[0]).reshape(6 * len(first), -1)
    return OCTANTS_FACTOR**2 * sandwich(apart, n_fitted=1)
