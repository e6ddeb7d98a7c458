# SPDX-License-Identifier: Apache-2.0
"""Standard errors of poses: by noise, and by what adds to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.solution import Solution, similar_volumes
from eddymotion.estimation.joint.levels import FINE
from eddymotion.estimation.joint.solver import JointSolver, group_motion
from eddymotion.estimation.period_scatter import PeriodScatter
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.pyramid import THICKNESS_POWER, fine_widths, head_scale
from eddymotion.machine.memory import give_back_memory
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import twist_millimetres
from eddymotion.wording import listed

log = logging.getLogger(__name__)

HALVES_FACTOR = 1.35
"""Standard errors over the scatter between halves of the brain: see
:func:`excess_covariance`. On ten simulated heads at b=1000 the errors were 0.8 to 1.5 times the
scatter, of which steps that are too short explain 1.3; where they are shorter, that counts."""

THICK = 1.3
"""Filters have to be wider along the slices by this factor to differ from plain ones."""

BEYOND_CHANCE = 2.5
"""Slices contradict the pose of their volume along an axis if the square of how far they would
move it is larger by this factor than the variance without them. A b=0 volume at rest beside one
that moved has 2.2."""

CLEARLY, CLEARLY_MM = 20.0, 0.2
"""A volume is named if the square of that displacement is larger than that of noise and misfit by
the first, and the displacement larger than the second. A volume of a real series in which the head
moved between interleaved slices has 18, and 0.19 mm; others have 12 at most."""

COARSE_MM = 4.0
"""With voxels that are larger by a factor, in a human head, that displacement has to be larger by
the square of it: detail finer than a voxel takes slices of two b=0 volumes, within which the head
was at rest, by up to 0.06 mm with voxels of 3 mm, 0.23 with 6 mm, and 0.64 with 8 mm."""

ENOUGH_FOR_MEDIAN = 8
"""Of so many volumes the median over them is taken to be at rest."""

MISFIT_MM, MISFIT_FEW, MISFIT_B_POWER = 0.0125, 8.0, 0.9
"""Standard error beyond that of noise; see :func:`misfit_covariances`."""


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Covariances of the errors of N poses, and what makes them.

    Twists as those of an :class:`~eddymotion.estimation.estimate.Estimate`.

    Parameters
    ----------
    covariances : (N, 6, 6) array
        All in all, of a head at rest within volumes.
    by_noise, by_misfit : (N, 6, 6) array
        The parts of noise, as one step shows it, and of what the model gets wrong.
    expected : (N, 6, 6) array
        Both together, over the share of a displacement that one step takes back.
    apart : (N, 6, 6) array
        By the scatter between parts of the time of a volume; NaN where not known.
    against : (N, 6, 6) array
        By how far slices would move the pose of their volume; NaN where not known.
    within : (N, 6, 6) array
        The same, without what volumes of similar b-values have in common: that is no motion within
        volumes, but may be an error of their poses.
    scale : float
        Size of the head relative to a human one.
    voxel : float
        Size of the voxels, mm.
    """

    covariances: np.ndarray
    by_noise: np.ndarray
    by_misfit: np.ndarray
    expected: np.ndarray
    apart: np.ndarray
    against: np.ndarray
    within: np.ndarray
    scale: float = 1.0
    voxel: float = 0.0

    def period_scatter(self, lost: np.ndarray) -> PeriodScatter:
        """Return how far parts of the time of volumes differ, with lost slices (N, Z) bool."""
        return PeriodScatter(self.covariances, self.apart, self.by_noise, self.by_misfit, lost)

    @property
    def by_slices(self) -> np.ndarray:
        """What slices that contradict the pose of their volume add to `covariances`, (N, 6, 6)."""
        return beyond(self.against, self.covariances, by=BEYOND_CHANCE)

    @property
    def contradicted(self) -> np.ndarray:
        """Volumes whose slices clearly contradict their pose, (k,)."""
        clear = are_contradicted(self.within, self.expected, self.scale, self.voxel)
        return np.flatnonzero(clear)

    @property
    def contradictions_mm(self) -> np.ndarray:
        """How far slices of each volume would move its pose, mm; zero where not known: (N,)."""
        return in_millimetres(self.within, self.scale)


def in_millimetres(covariances: np.ndarray, scale: float) -> np.ndarray:
    """Return root-mean-square displacements by covariances (N, 6, 6), mm; 0 where not known."""
    in_mm = twist_millimetres(scale)
    return np.sqrt(np.nan_to_num(np.einsum("nkk,k->n", covariances, in_mm**2)))


def are_contradicted(
    against: np.ndarray, expected: np.ndarray, scale: float, voxel: float
) -> np.ndarray:
    """Whether slices clearly contradict the pose of their volume, (N,) bool.

    Parameters
    ----------
    against : (N, 6, 6) array
        Covariances by how far they would move it.
    expected : (N, 6, 6) array
        Covariances by noise and misfit.
    scale : float
        Size of the head relative to a human one.
    voxel : float
        Size of the voxels, mm.
    """
    far, usual = in_millimetres(against, scale), in_millimetres(expected, scale)
    limit = CLEARLY_MM * scale * max(1.0, (voxel / (COARSE_MM * scale)) ** 2)
    return (far > limit) & (far > np.sqrt(CLEARLY) * usual)


def pose_errors(
    solver: JointSolver,
    frames: Sequence[np.ndarray],
    groups: Sequence[VolumeGroup],
    solutions: Sequence[Solution],
    motion: Motion,
) -> PoseErrors:
    """Find the errors of the poses of a series.

    Parameters
    ----------
    solver : JointSolver
    frames : sequence of index arrays
        Diffusion-weighted volumes that share a frame.
    groups : sequence of VolumeGroup
    solutions : sequence of Solution
        Of the groups.
    motion : Motion
        To which they led.
    """
    dwi, n = solver.dwi, len(motion)
    by_misfit = np.zeros((n, 6, 6))
    for volumes in (dwi.gradients.b0s, *frames):
        by_misfit[volumes] = misfit_covariances(dwi, volumes)
    unknown = np.full((n, 6, 6), np.nan)
    found = {
        "covariances": by_misfit.copy(),
        "by_noise": np.zeros((n, 6, 6)),
        "expected": by_misfit.copy(),
        "apart": unknown.copy(),
        "against": unknown.copy(),
        "within": unknown.copy(),
    }
    for group, solution in zip(groups, solutions, strict=True):
        own = group.volumes
        of_group = _of_group(solver, group, solution, motion, by_misfit[own])
        for name, covariances in found.items():
            covariances[own] = getattr(of_group, name)
    _warn_of_unknown(found["covariances"])
    scale, voxel = solver.bands.scale, solver.bands.voxel
    return PoseErrors(**found, by_misfit=by_misfit, scale=scale, voxel=voxel)


def _warn_of_unknown(covariances: np.ndarray) -> None:
    """Name the volumes whose poses have no known covariance, of (N, 6, 6)."""
    unknown = np.flatnonzero(~np.isfinite(covariances).all(axis=(1, 2)))
    if len(unknown):
        log.warning(
            "volumes %s: too little of the brain is inside the images to refine their poses, "
            "which may be off by a millimetre and have no standard errors", listed(unknown),
        )  # fmt: skip


def _of_group(
    solver: JointSolver,
    group: VolumeGroup,
    solution: Solution,
    motion: Motion,
    by_misfit: np.ndarray,
) -> PoseErrors:
    """Find the errors of the poses of a group; `by_misfit` (n, 6, 6) is of its volumes."""
    give_back_memory()  # of the group before, too
    by_noise = solution.covariances()
    scale, voxel = solver.bands.scale, solver.bands.voxel
    for unshaded in (False, True):  # the brightness of slices counts where they contradict a pose
        weighted, alike = solution.pulls_of_slices(solver.dwi, unshaded=unshaded)
        square, scattered, moved = _contradicted(solver, solution, alike, by_noise + by_misfit)
        usual = moved if moved.all() else ~moved
        recovered = solution.recovered_by(usual)
        expected = by_misfit + by_noise / recovered**2
        against = within = square / recovered**2 + scattered
        contradicted = are_contradicted(against, expected, scale, voxel).any()
        if not (contradicted or moved.any()):
            break
    apart = solution.scatter_of_periods(solver.dwi, weighted)
    if len(moved) >= ENOUGH_FOR_MEDIAN and contradicted:
        similar = similar_volumes(solution.problem.gradients.bvals)
        mean, scattered = solution.contradictions(solver.dwi, alike, similar)
        within = mean[:, :, None] * mean[:, None] / recovered**2 + scattered
    scatter = solution.squares_of_halves()[usual].mean(axis=0)
    factor = max(HALVES_FACTOR, 1 / recovered)
    whole = expected + excess_covariance(expected, factor**2 * scatter)
    whole += pulled_by_slices(by_noise, pulls_of_slices(solver, solution.problem, group, motion))
    return PoseErrors(whole, by_noise, by_misfit, expected, apart, against, within, scale, voxel)


def _contradicted(
    solver: JointSolver, solution: Solution, pulls: np.ndarray, expected: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what slices say against each pose, by mean and scatter, and where it is clear.

    If two of three volumes moved, their median has moved as well, and the third seems to have.
    So in small groups each volume is tried as the one at rest, and the one with which the fewest
    others have moved, and those least far, takes the place of the median.
    """
    n, scale, voxel = len(expected), solver.bands.scale, solver.bands.voxel

    def against(at_rest: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        usual = None if at_rest is None else np.tile(np.arange(n) == at_rest, (n, 1))
        mean, scattered = solution.contradictions(solver.dwi, pulls, usual)
        square = mean[:, :, None] * mean[:, None]
        return square, scattered, are_contradicted(square + scattered, expected, scale, voxel)

    usual = against(None)
    if not usual[2].any() or not 2 < n < ENOUGH_FOR_MEDIAN:
        return usual
    tried = [against(volume) for volume in range(n)]
    sizes = [in_millimetres(square + scattered, scale).sum() for square, scattered, _ in tried]
    order = sorted(range(len(tried)), key=lambda k: (tried[k][2].sum(), sizes[k]))
    best = tried[order[0]]
    return best if best[2].sum() < usual[2].sum() else usual


def misfit_covariances(dwi: DWI, volumes: np.ndarray) -> np.ndarray:
    """Covariance of what the model gets wrong alike all over the brain, (n, 6, 6), of `volumes`.

    b=0 volumes are predicted by a mean, which takes no directions: theirs is ``MISFIT_MM`` alone.
    Without it 25 to 75 % of their intervals held the truth.
    """
    scale = head_scale(dwi.mask, dwi.voxel_sizes)
    return misfit_of(dwi.gradients.select(volumes), scale)


def misfit_of(gradients: Gradients, scale: float) -> np.ndarray:
    """Covariance of what the model gets wrong in n volumes of a head of a size, (n, 6, 6).

    The scatter between blocks does not show it. On simulated series the errors were 1.4 (64
    directions at b=1000) to 4 times (b=3000, 12 directions, random q-space) what the blocks say.
    The rest was about alike in millimetres for voxels of 1.2 to 4 mm, and, with ``n`` volumes,
    close to ``MISFIT_MM (1 + MISFIT_FEW / n) max(1, b / 1000)^MISFIT_B_POWER`` an axis (rotations
    at 50 mm), for a human head.
    """
    few = MISFIT_FEW / max(len(gradients), 1)
    size = MISFIT_MM * scale * np.where(gradients.is_b0, 1.0, 1 + few)
    size = size * np.maximum(1.0, gradients.bvals / 1000.0) ** MISFIT_B_POWER
    in_mm = twist_millimetres(scale)
    return size[:, None, None] ** 2 * np.diag(1 / in_mm**2)


def excess_covariance(covariances: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """Return what the scatter between halves of the brain shows beyond covariances, (6, 6).

    Parameters
    ----------
    covariances : (N, 6, 6) array
        Of the poses of a group.
    scatter : (6,) array
        Mean of :meth:`~eddymotion.estimation.equations.solution.Solution.squares_of_halves` over
        volumes, times the square of a factor: :data:`HALVES_FACTOR`, or by how much steps are too
        short.
    """
    variances = np.diagonal(covariances, axis1=1, axis2=2).mean(axis=0)
    return np.diag(np.maximum(np.nan_to_num(scatter - variances), 0.0))


def beyond(covariances: np.ndarray, known: np.ndarray, by: float = 1.0) -> np.ndarray:
    """Return what covariances (N, 6, 6) have beyond others, axis by axis.

    None where they are not known, or are not larger by a factor.
    """
    own, other = (np.nan_to_num(np.einsum("nkk->nk", one)) for one in (covariances, known))
    return np.where(own > by * other, np.maximum(own - other, 0.0), 0.0)[:, :, None] * np.eye(6)


def pulls_of_slices(
    solver: JointSolver, problem: CoupledProblem, group: VolumeGroup, motion: Motion
) -> np.ndarray:
    """Find how far a filter as narrow along thick slices as in them would move poses, (n, 6)."""
    wide, plain = (fine_widths(solver.dwi.voxel_sizes, p) for p in (THICKNESS_POWER, 0.0))
    if wide.max() < THICK * plain.max():
        return np.zeros((len(group.volumes), 6))
    splines = solver.bands.of_group(group, FINE[-1], motion.matrices, thickness_power=0.0)
    return Solution(replace(problem, splines=splines), group_motion(motion, group)).way_left


def pulled_by_slices(covariances: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """Return what thick slices pull the poses by, beyond noise, (N, 6, 6).

    Parameters
    ----------
    covariances : (N, 6, 6) array
        Of the poses of a group, by noise alone.
    pulls : (N, 6) array
        Steps that a filter as narrow along the slices as in them asks for. They are as large as
        what it leaves to be found or larger: with voxels of 2×2×6 mm that filter lacked 7 to 25 %
        of pitch, roll and shifts through the slices, the wider one 2 to 11 %, and with 2.5×2.5×7.5
        mm and a head of sharp edges 63 and 29 %.
    """
    return beyond(pulls[:, :, None] * pulls[:, None], covariances)
