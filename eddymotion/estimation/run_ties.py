# SPDX-License-Identifier: Apache-2.0
"""What ties the frames of several runs: a small network, solved by least squares.

Each run has two frames, that of its b=0 volumes and that of its diffusion-weighted ones. They are
the nodes; what is known of two of them is an edge with a covariance:

*b=0 and diffusion-weighted volumes of a run*, by time and by a contrast of images
(:mod:`eddymotion.estimation.frames`). This is the weakest edge.

*b=0 volumes of two runs*, by their mean images (:mod:`eddymotion.estimation.runs`).

*Diffusion-weighted volumes of runs that share a shell*, by each other: all of them are volumes of
one model, whatever their directions, and the poses of whole runs are the unknowns of the same
Gauss-Newton steps that find the poses of volumes (:mod:`eddymotion.estimation.coupled`). They have
one contrast, so that this edge is ten times as strong as the first; off-resonance has to be known
where runs are distorted differently.

With ``b_k`` and ``d_k`` the errors of the nodes, twists of the head in the frame of the first run,
and ``b_1 = 0``::

    d_k − b_k = 0 ± F_k,    b_k = 0 ± B_k,    d_k − d_1 = t_k ± T

Time is new in each run, but the contrast of one head misleads all of its runs alike: half of the
variance of ``F_k`` counts as shared. Where edges contradict each other beyond chance, ``F`` is
widened until they do not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.linalg import block_diag, sqrtm

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation.coupled import CoupledProblem
from eddymotion.estimation.frames import standard_errors
from eddymotion.estimation.normal_equations import NormalEquations
from eddymotion.estimation.ties import ENOUGH_DIRECTIONS
from eddymotion.estimation.unknowns import Poses
from eddymotion.images.grid import mask_center
from eddymotion.images.image import Image, Spline
from eddymotion.images.pyramid import (
    Level,
    crop,
    fine_widths,
    jittered_points,
    low_pass,
    steepest,
)
from eddymotion.machine.parallel import Compute, one_blas_thread, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.mapping.volume import VolumeMapping
from eddymotion.models import GaussianProcessModel, LegendreCovariance
from eddymotion.robust import sandwich
from eddymotion.wording import short_repr

log = logging.getLogger(__name__)

VOLUMES_OF_RUN = 16
"""Of a shell of each run, at most, evenly spread; more of them tie no better than the field is
known."""

LEVELS = (Level(2.0, 8_000, highpass=5.0), Level(1.0, 20_000, highpass=2.5))

MAX_STEPS, TOLERANCE_VOXELS, STEADY = 20, 0.001, 0.1
"""Of the descent at a level: most steps, way that is left at its end, and share of the width of
its filter up to which the normal matrix stays."""

MARGIN_FWHM, MARGIN_VOXELS = 2.0, 3.0
"""What is kept of a volume around the brain."""

FOR_STEEPNESS = 8
"""Volumes that tell where edges are."""

BRIGHT = 90.0
"""Percentile of an image, cut down to the brain, that tells how bright it is."""

OCTANTS_FACTOR = 2.5
"""Standard errors over the scatter of eight parts of the brain: what is wrong with a field is
alike over wide regions."""

SHARED = 0.5
"""Part of the variance between b=0 and diffusion-weighted frames that runs of a head share."""

NEGLIGIBLE = 1e-12


@dataclass(frozen=True, eq=False)
class ShownDiffusion:
    """Diffusion-weighted volumes of one run, cut down to the brain.

    Parameters
    ----------
    all_volumes : (M,) index array
        All that share the frame.
    images : tuple of n Image
        Some of them, as they were recorded.
    gradients : Gradients
        Of those, in the scanner's frame.
    mappings : tuple of VolumeMapping
        Frame of the run → each of those.
    covariance : (6, 6) array
        Of what brings them into the frame of b=0, mm and rad about the centre.
    center : (3,) array
        Of the brain, RAS+ mm.
    """

    all_volumes: np.ndarray
    images: tuple[Image, ...]
    gradients: Gradients
    mappings: tuple[VolumeMapping, ...]
    covariance: np.ndarray
    center: np.ndarray

    __repr__ = short_repr

    @classmethod
    def of(cls, run: DWI, motion: Motion, n_threads: int = 1) -> ShownDiffusion | None:
        """Take what a run shows; None where nothing is known of its frames, or of its shells."""
        gradients, covariance = run.gradients, motion.frame_covariance
        if covariance is None or not gradients.is_shelled or not len(gradients.b0s):
            return None
        lost = np.zeros(len(run), bool) if motion.unplaced is None else motion.unplaced
        placed = gradients.dwis[~lost[gradients.dwis]]
        shells = [shell[~lost[shell]] for shell in gradients.shells]
        chosen = np.sort(np.concatenate([_spread(shell) for shell in shells]))
        if not len(chosen):
            return None
        brain = apply_affine(run.affine, np.argwhere(ndimage.binary_dilation(run.mask)))
        margin = MARGIN_FWHM * LEVELS[0].fwhm * fine_widths(run.voxel_sizes)
        margin = margin + MARGIN_VOXELS * run.voxel_sizes

        def cut(volume: int) -> Image:
            there = motion.mapping(volume).recorded(brain)
            return crop(run.volume_with_missing(volume), there, margin)

        images = parallel_map(cut, chosen.tolist(), n_threads=n_threads)
        return cls(
            placed,
            tuple(images),
            gradients.select(chosen),
            tuple(replace(motion.mapping(volume), slices=None) for volume in chosen.tolist()),
            covariance,
            run.brain_center,
        )

    def select(self, which: np.ndarray) -> ShownDiffusion:
        """Return some of the volumes that are shown."""
        return replace(
            self,
            images=tuple(self.images[k] for k in which),
            gradients=self.gradients.select(which),
            mappings=tuple(self.mappings[k] for k in which),
        )


def _spread(shell: np.ndarray) -> np.ndarray:
    """Choose volumes of a shell, evenly spread."""
    return shell[:: max(1, -(-len(shell) // VOLUMES_OF_RUN))]


@dataclass(frozen=True, eq=False)
class FrameTie:
    """How other runs move the diffusion-weighted volumes of a run against its b=0 volumes.

    Parameters
    ----------
    volumes : (M,) index array
        Which these are.
    offset : (4, 4) array
        After their matrices in the frame of the first run.
    before, after : (6, 6) array
        Covariances of their frame, mm and rad about the centre: as the run alone tells it, and
        with the others.
    center : (3,) array
        RAS+ mm, in the frame of the first run.
    """

    volumes: np.ndarray
    offset: np.ndarray
    before: np.ndarray
    after: np.ndarray
    center: np.ndarray

    def __str__(self) -> str:
        way = log_rigid(self.offset, self.center)
        alone, now = (np.sqrt(np.diag(one)[:3].max()) for one in (self.before, self.after))
        return (
            f"volumes with b>0 moved by {np.linalg.norm(way[:3]):.2f} mm and "
            f"{np.rad2deg(np.linalg.norm(way[3:])):.2f}° against those with b=0, as other runs "
            f"ask for: known within {now:.3f} mm, by the run alone {alone:.3f}"
        )

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> FrameTie:
        """Take what :meth:`plain` returned."""
        parts = {name: np.array(value) for name, value in content.items()}
        return cls(**{name: parts[name] for name in (one.name for one in fields(cls))})

    def plain(self) -> dict[str, Any]:
        """Return it as lists, by name."""
        return {one.name: getattr(self, one.name).tolist() for one in fields(self)}

    def applied(self, motion: Motion) -> Motion:
        """Move the volumes, and let their errors tell what is known now."""
        own = motion.matrices[self.volumes]
        matrices = motion.matrices.copy()
        matrices[self.volumes] = own @ self.offset
        about = self.center if motion.center is None else motion.center
        taken = standard_errors(own, self._of_each(self.before), self.center, about)
        given = standard_errors(own @ self.offset, self._of_each(self.after), self.center, about)

        def changed(errors: np.ndarray, taken: np.ndarray, given: np.ndarray) -> np.ndarray:
            new = errors.copy()
            left = np.maximum(errors[self.volumes] ** 2 - taken**2, 0.0)
            new[self.volumes] = np.sqrt(left + given**2)
            return new

        errors = motion.standard_errors
        moved = replace(
            motion,
            matrices=matrices,
            standard_errors=None if errors is None else changed(errors, taken, given),
            frame_error=float(np.sqrt(np.diag(self.after)[:3].max())),
            frame_covariance=self.after,
        )
        return moved.with_errors_of_slices(
            lambda errors: changed(errors, taken[:, None], given[:, None])
        )

    def undone(self, motion: Motion) -> Motion:
        """Return what :meth:`applied` was given."""
        back = np.linalg.inv(self.offset)
        return replace(self, offset=back, before=self.after, after=self.before).applied(motion)

    def _of_each(self, covariance: np.ndarray) -> np.ndarray:
        """Return a covariance for each of the volumes, (M, 6, 6)."""
        return np.tile(covariance, (len(self.volumes), 1, 1))


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

    def motion(self, field: OffResonance | None) -> MotionOfRuns:
        """Return the motion of all volumes, from the first run, with the field (or None)."""
        mappings = []
        for one, shift in zip(self.shown, self.shifts, strict=True):
            known = field is not None and np.isfinite(shift).all()
            there = {"off_resonance": field, "shift": shift} if known else {}
            mappings += [replace(mapping, **there) for mapping in one.mappings]
        own = np.stack([mapping.pose for mapping in mappings])
        return MotionOfRuns(own @ self.poses[self.of_volumes], mappings=tuple(mappings))

    def banded(self, level: Level, n_threads: int) -> list[Spline]:
        """Filter all volumes alike, whatever their voxels: the runs have to look the same."""
        images = [image for one in self.shown for image in one.images]
        unit = np.max([fine_widths(image.voxel_sizes) for image in images], axis=0)
        assert level.highpass is not None
        widths = level.fwhm * unit, level.highpass * unit
        gains = self._gains()

        def band(number: int) -> Spline:
            narrow, wide = (low_pass(images[number], width) for width in widths)
            data = np.float32(gains[number]) * (narrow.data - wide.data)
            return Spline.of(Image(data, narrow.affine, wide.missing))

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
    runs = [k for k, one in enumerate(shown) if one is not None]
    there = [one for one in shown if one is not None]
    if len(runs) < 2:
        return None
    pooled = SharedShell(np.array(runs), there, poses[runs], shifts[runs])
    table, ends = pooled.gradients, np.cumsum([0, *(len(one.images) for one in there)])
    if not table.is_shelled:
        return None
    by_shell = [
        [shell[(shell >= a) & (shell < b)] - a for a, b in pairwise(ends)]
        for shell in table.shells
    ]
    parts = max(by_shell, key=_strength)
    which = [k for k, part in enumerate(parts) if len(part) >= ENOUGH_DIRECTIONS]
    if len(which) < 2:
        return None
    return SharedShell(
        pooled.runs[which],
        [there[k].select(parts[k]) for k in which],
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

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Draw a point of each voxel, those at its edge as well, (P, 3)."""
        mask = ndimage.binary_dilation(self.mask)
        return jittered_points(mask, self.affine, int(mask.sum()), random)


@one_blas_thread()
def tie_shell(
    shell: SharedShell, field: OffResonance | None, brain: Brain, compute: Compute
) -> tuple[np.ndarray, np.ndarray]:
    """Find how the runs lie to each other by their diffusion-weighted volumes.

    Parameters
    ----------
    shell : SharedShell
    field : OffResonance, optional
        In the frame of the first run.
    brain : Brain
    compute : Compute

    Returns
    -------
    steps : (K, 6) array
        Twists after the matrices of each run; the first has none.
    covariance : (6 K, 6 K) array
        Of their errors; zero for the first, infinite where nothing is seen.
    """
    random = np.random.default_rng(compute.seed)
    start = shell.motion(field)
    motion: Motion = start
    for level in LEVELS:
        problem = _problem_at(level, shell, motion, brain.draw(random), brain.center, random,
                              compute.n_threads)  # fmt: skip
        motion, descent = problem.solve(motion, MAX_STEPS, TOLERANCE_VOXELS * shell.voxel)
        log.debug("runs tied by b=%.0f, %s: %s", shell.gradients.bvals.mean(), level, descent)
    first = [int(np.argmax(shell.of_volumes == run)) for run in range(len(shell.shown))]
    ways = np.linalg.inv(start.matrices[first]) @ motion.matrices[first]
    steps = log_rigid(ways, brain.center)
    system = problem.evaluate(motion)
    if system is None:
        return np.zeros_like(steps), np.full((steps.size, steps.size), np.inf)
    return steps - steps[0], _by_octants(problem, system, first)


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
    steepness = _steepness(splines, motion, candidates)
    return CoupledProblem(
        splines,
        shell.gradients,
        GaussianProcessModel(LegendreCovariance()),
        candidates[steepest(steepness, level.n_points, random)],
        center,
        blocks=[PosesOfRuns(center, shell.of_volumes)],
        steady_mm=STEADY * level.fwhm * shell.voxel,
        n_threads=n_threads,
    ).with_model_fitted(motion)


def _steepness(splines: Sequence[Spline], motion: Motion, points: np.ndarray) -> np.ndarray:
    """How steep the mean of some of the volumes is, (P,)."""
    total = np.zeros((len(points), 3))
    for volume in range(0, len(splines), max(1, len(splines) // FOR_STEEPNESS)):
        slopes = motion.mapping(volume).sample_with_gradient(splines[volume], points)[1]
        total += np.nan_to_num(slopes)
    return np.linalg.norm(total, axis=1)


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


@dataclass(frozen=True, eq=False)
class Network:
    """Edges between the frames of K runs; twists are those of the head, in the first run's frame.

    Parameters
    ----------
    of_b0 : (K, 6, 6) array
        Covariance ``B`` of the frames of b=0; zero for the first run.
    within : sequence of K (6, 6) array or None
        ``F``; None for runs without diffusion-weighted volumes whose frame is known.
    runs : (n,) index array
        Which are tied by their diffusion-weighted volumes.
    steps : (n, 6) array
        ``t``, against the first of those.
    covariance : (6 n, 6 n) array
        ``T``
    """

    of_b0: np.ndarray
    within: Sequence[np.ndarray | None]
    runs: np.ndarray
    steps: np.ndarray
    covariance: np.ndarray

    def solve(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Solve for the errors of the nodes.

        Returns
        -------
        errors : (2 K, 6) array
            Of the frames of b=0, then of the diffusion-weighted ones.
        covariance : (12 K, 12 K) array
        widened : float
            By which ``F`` was multiplied.
        """
        errors, covariance, misfit = self._solve(1.0)
        widened = max(1.0, misfit / (6 * (len(self.runs) - 1)))
        if widened > 1:
            errors, covariance, _ = self._solve(widened)
        return errors, covariance, widened

    def _solve(self, widened: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Condition what is known of the nodes beforehand on the edges between runs.

        Beforehand ``b ~ N(0, B)`` and ``d = b + f``, ``f ~ N(0, F)``; conditioning a Gaussian is
        generalised least squares.
        """
        n_runs = len(self.of_b0)
        of_b0 = block_diag(*self.of_b0)
        before = np.block([[of_b0, of_b0], [of_b0, of_b0 + widened * self._within()]])
        difference = np.zeros((6 * (len(self.runs) - 1), 12 * n_runs))
        for row, run in enumerate(self.runs[1:]):
            rows = slice(6 * row, 6 * row + 6)
            for sign, node in ((1.0, n_runs + run), (-1.0, n_runs + self.runs[0])):
                difference[rows, 6 * node : 6 * node + 6] += sign * np.eye(6)
        told, noise = self.steps[1:].ravel(), self.covariance[6:, 6:]
        spread = difference @ before @ difference.T + noise
        gain = np.linalg.solve(spread, difference @ before).T
        after = before - gain @ difference @ before
        return (gain @ told).reshape(-1, 6), after, float(told @ np.linalg.solve(spread, told))

    def _within(self) -> np.ndarray:
        """Covariance of ``f`` of all runs, (6 K, 6 K): in part shared by them."""
        nothing = np.zeros((6, 6))
        roots = [nothing if one is None else np.real(sqrtm(one)) for one in self.within]
        stacked = np.concatenate(roots)
        own = block_diag(*(root @ root.T for root in roots))
        return SHARED * stacked @ stacked.T + (1 - SHARED) * own


def seen_from_first(covariance: np.ndarray, pose: np.ndarray, own: np.ndarray,
                    center: np.ndarray) -> np.ndarray:  # fmt: skip
    """Turn the covariance (6, 6) of a twist of a run's frame into that of the first run's.

    Parameters
    ----------
    covariance : (6, 6) array
        About `own`, mm and rad.
    pose : (4, 4) array
        First run → frame of the run.
    own, center : (3,) array
        Centres of the brain in the frame of the run and of the first one, RAS+ mm.
    """
    tiny = 1e-4
    steps = np.linalg.inv(pose) @ exp_rigid(tiny * np.eye(6), own) @ pose
    turned = log_rigid(steps, center).T / tiny
    return turned @ covariance @ turned.T


def tied_frames(
    shown: Sequence[ShownDiffusion | None],
    poses: np.ndarray,
    errors: np.ndarray,
    shifts: np.ndarray,
    field: OffResonance | None,
    brain: Brain,
    compute: Compute,
) -> TiedFrames | None:
    """Tie the frames of runs that share a shell; None where there are none.

    Parameters
    ----------
    shown : sequence of K ShownDiffusion or None
    poses : (K, 4, 4) array
        First run → frame of each, by images of b=0.
    errors : (K, 6) array
        Their standard errors, but for what a field leaves open; mm and rad about the centre.
    shifts : (K, 3) array
        As in :class:`SharedShell`.
    field : OffResonance, optional
    brain : Brain
    compute : Compute
    """
    shell = shared_shell(shown, poses, shifts)
    if shell is None:
        return None
    steps, covariance = tie_shell(shell, field, brain, compute)
    if not np.isfinite(covariance).all():
        return None
    within = [
        None if one is None else seen_from_first(one.covariance, pose, one.center, brain.center)
        for one, pose in zip(shown, poses, strict=True)
    ]
    of_b0 = np.square(errors)[:, :, None] * np.eye(6)
    found, after, widened = Network(of_b0, within, shell.runs, steps, covariance).solve()
    of_runs, of_diffusion = np.split(exp_rigid(found, brain.center), 2)
    ties: list[FrameTie | None] = [None] * len(shown)
    for run, (one, own) in enumerate(zip(shown, within, strict=True)):
        if one is not None and own is not None:
            offset = np.linalg.inv(of_runs[run]) @ of_diffusion[run]
            left = _of_difference(after, run, len(shown))
            ties[run] = FrameTie(one.all_volumes, offset, own, left, brain.center)
            log.info("run %d, %s", run + 1, ties[run])
    log.info(
        "runs %s: their volumes with b=%.0f tie them within %.3f mm; that differs from what each "
        "tells alone by %.1f times what was expected",
        ", ".join(map(str, shell.runs + 1)), shell.gradients.bvals.mean(),
        np.sqrt(np.diag(covariance).reshape(-1, 6)[:, :3].max()), np.sqrt(widened),
    )  # fmt: skip
    of_poses = np.diag(after)[: found.size // 2].reshape(-1, 6)
    return TiedFrames(poses @ of_runs, np.sqrt(np.maximum(of_poses, 0.0)), tuple(ties))


@dataclass(frozen=True, eq=False)
class TiedFrames:
    """What a network tells of K runs.

    Parameters
    ----------
    poses : (K, 4, 4) array
        First run → frame of each.
    errors : (K, 6) array
        Their standard errors.
    ties : tuple of K FrameTie or None
        What moves diffusion-weighted volumes besides.
    """

    poses: np.ndarray
    errors: np.ndarray
    ties: tuple[FrameTie | None, ...]


def _of_difference(covariance: np.ndarray, run: int, n_runs: int) -> np.ndarray:
    """Covariance (6, 6) of the two frames of a run against each other."""
    nodes = covariance.reshape(2 * n_runs, 6, 2 * n_runs, 6)
    one, other = run, n_runs + run
    across = nodes[one, :, other]
    return nodes[one, :, one] + nodes[other, :, other] - across - across.T
