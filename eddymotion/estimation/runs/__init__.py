# SPDX-License-Identifier: Apache-2.0
"""Runs that belong together: one frame, and the off-resonance field between them.

Each run's motion is found in its own frame, that of its first b=0. What remains is a rigid pose of
each run relative to the first, and, if their phase encodings differ, the field that makes them
differ. Both come from the runs' mean b=0 images: the poses by registration where all runs are
distorted alike, together with the field otherwise (:mod:`eddymotion.estimation.off_resonance`).
The field hardly biases the motion within a run, since it moves with the head: no second solution
is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.estimation.off_resonance import estimate_off_resonance
from eddymotion.estimation.off_resonance.images import (
    Distorted,
    combined,
    corrected_images,
    mean_correlation,
    rigid_start,
)
from eddymotion.estimation.off_resonance.problem import LEVELS
from eddymotion.estimation.runs.changing_field import CHANGE_A_RADIAN, errors_between
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.estimation.runs.readouts import (
    differ,
    of_one_contrast,
    readouts_of,
    tell_field,
    warn_of_readouts,
    without_times,
)
from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.estimation.runs.ties import Brain, TiedFrames, tied_frames
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask
from eddymotion.machine.parallel import Compute, parallel_map
from eddymotion.mapping.off_resonance import OffResonance, Readout
from eddymotion.mapping.rigid import log_rigid, twist_millimetres
from eddymotion.registration.gauss_newton import GaussNewton

log = logging.getLogger(__name__)

REGISTERED = 0.25
"""Error of the constant of a field by registration of the distorted images, as a part of the
standard deviation of the field in the brain: .39 and .45 of two real pairs, if their heads lay
still, .1 of simulated ones."""

N_COARSE = 3
"""Levels after which the constant is found. Those that follow compare points of the frame that it
determines: between these a fine field corrects less well."""

STILL_MM = 0.1
"""Error of the guess that the head has not moved between two runs, at least."""

LEAST_VOXELS = 0.015
"""Standard errors of poses that were found together with a field, at least: images of one grid
agree best where their voxels coincide."""

WITH_FIELD = 2.5
"""Standard errors of poses that were found together with a field, over the scatter between halves
of the brain: what of a turn the field took up is alike in all of them. Four simulated pairs were
off by two to five times that scatter."""

UNKNOWN_READOUT = Readout(np.array([0.0, 1.0, 0.0]), 0.0)
"""Of an image that no field distorts, as far as is known."""

TWIST_UNITS = twist_millimetres()
"""Millimetres that a millimetre and a radian move the head."""

NEGLIGIBLE = 1e-9
"""Displacement by one hertz, mm, in which two runs do not differ."""

ALIKE = 0.85
"""Correlation of the runs' b=0 images below which they do not show enough of one head to tie their
diffusion-weighted volumes: distorted by unknown fields, say."""


def join_runs(
    runs: Sequence[RunImage],
    *,
    field: OffResonance | None = None,
    seeks_field: bool = True,
    compute: Compute | None = None,
) -> JoinedRuns:
    """Bring runs into the frame of the first, and find the field where their distortions differ.

    Parameters
    ----------
    runs : sequence of RunImage
        In the order of their acquisition.
    field : OffResonance, optional
        A field that is known, in the frame of the first run: none is sought then.
    seeks_field : bool
        Whether one is sought at all.
    compute : Compute, optional

    Raises
    ------
    EddymotionError
        If the runs do not show the same head.
    """
    compute, measured = compute or Compute(), field is not None
    readouts = readouts_of(runs, measured=measured)
    images = [
        Distorted(run.image, readout or UNKNOWN_READOUT, run.name)
        for run, readout in zip(runs, readouts, strict=True)
    ]
    placed = _placed(runs, images, readouts, field, seeks_field, compute)
    corrected, mean, mask, similarity = _shown_together(runs, images, placed)
    if placed.field is not None and not measured and not similarity[1] > similarity[0]:
        log.warning("the b=0 images of these runs correlate by r = %.2f with the off-resonance "
                    "field found from them, and by %.2f without: it is not used; do they show "
                    "the same head?", *reversed(similarity))  # fmt: skip
        placed = PlacedRuns.registered(placed.start)
        corrected, mean, mask, similarity = _shown_together(runs, images, placed)
    brain, found = Brain(mask, runs[0].image.affine), placed.field
    errors = _pose_errors(corrected, brain, runs[0].center, compute)
    if found is not None and not measured:
        least = LEAST_VOXELS * runs[0].image.voxel_sizes.mean()
        errors[1:] = np.hypot(WITH_FIELD * errors[1:], least / TWIST_UNITS)
    shifts = np.array([np.full(3, np.nan) if r is None else r.shift for r in readouts])
    frames = TiedFrames(placed.poses, errors, ())
    if similarity[1] >= ALIKE and (found is not None or not differ(readouts)):
        diffusion = [run.diffusion for run in runs]
        tied = tied_frames(diffusion, placed.poses, errors, shifts, found, brain, compute)
        frames = tied or frames
    return JoinedRuns(
        frames.poses, np.hypot(frames.errors, placed.left_open), shifts, found, mean, mask,
        brain.affine, similarity,
        measured=measured, nominal=without_times(runs) and not measured, ties=frames.ties,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class PlacedRuns:
    """Where K runs lie by their b=0 images, and the field between them.

    Parameters
    ----------
    start, poses : (K, 4, 4) array
        First run → each, RAS+ mm: by registration of the distorted images, and in the end.
    left_open : (K, 6) array
        Errors that one constant field leaves open, mm and rad.
    field : OffResonance, optional
    brightness : (K, X, Y, Z) array, or a number
        By what images are multiplied to be alike, on the grid of the first.
    """

    start: np.ndarray
    poses: np.ndarray
    left_open: np.ndarray
    field: OffResonance | None
    brightness: np.ndarray | float = 1.0

    @classmethod
    def registered(cls, start: np.ndarray, field: OffResonance | None = None) -> PlacedRuns:
        """Leave runs where registration has put them, with a field that was not found with it."""
        return cls(start, start, np.zeros((len(start), 6)), field)


def _placed(
    runs: Sequence[RunImage],
    images: Sequence[Distorted],
    readouts: Sequence[Readout | None],
    field: OffResonance | None,
    seeks_field: bool,
    compute: Compute,
) -> PlacedRuns:
    """Register the runs to the first, together with a field where one is sought and shown."""
    first, alike = runs[0], of_one_contrast(runs)
    start = rigid_start(images, first.brain, compute.seed)
    if seeks_field or field is not None:
        warn_of_readouts(runs, readouts, measured=field is not None)
    if seeks_field and field is None and tell_field(runs, readouts):
        telling, poses = [images[run] for run in alike], start.copy()
        coarse = estimate_off_resonance(
            telling, poses=start[alike], levels=LEVELS[:N_COARSE], seed=compute.seed
        )
        poses[alike] = coarse.poses
        spread = float(coarse.hertz[coarse.mask].std())
        constant, error = _constant(runs, images, poses, REGISTERED * spread)
        poses = _with_constant(poses, images, constant)
        found = estimate_off_resonance(telling, poses=poses[alike], seed=compute.seed)
        field, poses[alike] = found.field, found.poses
        poses = _with_others(poses, alike, images, field, first.brain, compute.seed)
        left_open = _left_open(runs, images, poses, spread, error)
        brightness = np.ones((len(runs), *first.image.data.shape), np.float32)
        brightness[alike] = found.brightness
        return PlacedRuns(start, poses, left_open, field, brightness)
    return PlacedRuns.registered(start, field)


def _shown_together(
    runs: Sequence[RunImage], images: Sequence[Distorted], placed: PlacedRuns
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """Correct the images of the runs, on the grid of the first.

    Returns
    -------
    corrected : (K, X, Y, Z) array
        Alike in brightness.
    mean : (X, Y, Z) float32 array
        Of those of the contrast of the first.
    brain : (X, Y, Z) bool array
    similarity : (float, float)
        Correlation of these in the brain without a field and with it; NaN of one alone.
    """
    first, alike = runs[0], of_one_contrast(runs)
    grid, none = (first.image.data.shape, first.image.affine), OffResonance.none()
    before = corrected_images(images, none, placed.start, *grid)[0] * placed.brightness
    corrected, stretch = corrected_images(images, placed.field or none, placed.poses, *grid)
    corrected *= placed.brightness
    mean = combined(corrected[alike], stretch[alike])
    brain = first.brain if len(runs) == 1 and placed.field is None else brain_mask(mean)
    if len(alike) < 2:
        return corrected, mean, brain, (np.nan, np.nan)
    similarity = mean_correlation(before[alike], brain), mean_correlation(corrected[alike], brain)
    log.info("%d runs together: correlation of their b=0 images %.3f, before correction %.3f",
             len(alike), *reversed(similarity))  # fmt: skip
    return corrected, mean, brain, similarity


def _with_others(
    poses: np.ndarray,
    alike: Sequence[int],
    images: Sequence[Distorted],
    field: OffResonance,
    brain: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Register runs of another contrast than the first, as the field corrects them: (K, 4, 4)."""
    first, placed = images[0].image, poses.copy()
    grid = first.data.shape, first.affine
    for run in sorted(set(range(len(poses))) - set(alike)):
        both = [images[0], images[run]]
        seen, _ = corrected_images(both, field, poses[[0, run]], *grid)
        fixed, moving = (Image(np.nan_to_num(image), first.affine) for image in seen)
        found = GaussNewton(symmetric=False).register(
            fixed, moving, metric="nmi", fixed_mask=brain, seed=seed
        )
        placed[run] = poses[run] @ found.matrix
    return placed


def _constant(
    runs: Sequence[RunImage], images: Sequence[Distorted], poses: np.ndarray, registered: float
) -> tuple[float, float]:
    """Find the constant of a field, which looks like translations along the phase encodings.

    Two guesses: the registration of the distorted images, and that the head has not moved since
    the last volume of the run before. The error of the second is estimated along the directions
    that the images determine, five in number. Each is weighted by its error.

    Parameters
    ----------
    poses : (K, 4, 4) array
        As they were found together with the field.
    registered : float
        Error of the first guess, Hz.

    Returns
    -------
    constant : float
        What is to be added to the field, Hz.
    error : float
    """
    weight, pull = registered**-2, 0.0
    for run in range(1, len(runs)):
        against = images[run].readout.shift - images[run - 1].readout.shift
        length = float(np.linalg.norm(against))
        if length < NEGLIGIBLE:
            continue
        still = np.linalg.inv(runs[run].ends[0]) @ runs[run - 1].ends[1] @ poses[run - 1]
        moved = log_rigid(np.linalg.inv(poses[run]) @ still, runs[0].center)
        moved = TWIST_UNITS * [*(poses[run][:3, :3] @ moved[:3]), *moved[3:]]
        along = against / length
        off = float(moved[:3] @ along)
        of_ends = (runs[run].end_errors[0] ** 2 + runs[run - 1].end_errors[1] ** 2) @ along**2
        variance = STILL_MM**2 + of_ends + (moved @ moved - off**2) / 3  # of Student's t for five
        weight += length**2 / variance
        pull -= length * off / variance
    return float(pull / weight), float(weight**-0.5)


def _with_constant(poses: np.ndarray, images: Sequence[Distorted], hertz: float) -> np.ndarray:
    """Move the heads so that images stay as they are when a constant is added to the field."""
    back = np.stack([np.eye(4)] * len(poses))
    back[:, :3, 3] = [-hertz * image.readout.shift for image in images]
    return back @ poses @ np.linalg.inv(back[0])


def _left_open(
    runs: Sequence[RunImage],
    images: Sequence[Distorted],
    poses: np.ndarray,
    spread: float,
    error: float,
) -> np.ndarray:
    """Return errors of poses by the constant of a field and by its changes: mm and rad, (K, 6).

    A field changes where the head is tilted against the main field, along z of the scanner.

    Parameters
    ----------
    spread, error : float
        Standard deviation of the field, and error of its constant, Hz.
    """
    errors = np.zeros((len(runs), 6))
    tilts = [(run.b0_poses @ pose)[:, 2, :2] for run, pose in zip(runs, poses, strict=True)]
    for run in range(1, len(runs)):
        readout, against = images[run].readout, tilts[run][:, None] - tilts[0]
        tilt = np.sqrt((against**2).sum(axis=2).mean())
        change = CHANGE_A_RADIAN * tilt * spread * readout.mm_per_hertz
        constant = error * np.linalg.norm(readout.shift - images[0].readout.shift)
        errors[run] = errors_between(change, readout.direction)
        errors[run, :3] = np.hypot(errors[run, :3], constant * readout.direction)
    return errors


def _pose_errors(
    corrected: np.ndarray, brain: Brain, center: np.ndarray, compute: Compute
) -> np.ndarray:
    """Estimate standard errors of the poses: mm and rad, (K, 6).

    By how much halves of the brain, registered alone to the first image, want to move the others:
    root of the mean square. Zero for the first run, whose frame it is.
    """
    errors = np.zeros((len(corrected), 6))
    if len(corrected) == 1:
        return errors
    images = [Image(np.nan_to_num(image), brain.affine) for image in corrected]
    halves = _halves(brain.mask)
    engine = GaussNewton(levels=GaussNewton().levels[-1:])

    def moved(which: tuple[int, int]) -> np.ndarray:
        run, half = which
        found = engine.register(images[0], images[run], metric="nmi", fixed_mask=halves[half],
                                seed=compute.seed)  # fmt: skip
        return log_rigid(found.matrix, center)

    tasks = list(product(range(1, len(corrected)), range(len(halves))))
    found = np.array(parallel_map(moved, tasks, n_threads=compute.n_threads))
    found = found.reshape(len(corrected) - 1, len(halves), 6)
    errors[1:] = np.sqrt((found**2).mean(axis=1))
    return errors


def _halves(mask: np.ndarray) -> list[np.ndarray]:
    """Split a mask at its middle along each axis: left, right, front, back, top, bottom."""
    where = np.argwhere(mask)
    halves = []
    for axis in range(3):
        index = np.arange(mask.shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)])
        middle = np.median(where[:, axis])
        halves += [mask & (index <= middle), mask & (index > middle)]
    if any(not half.any() for half in halves):
        raise EddymotionError("off-resonance field: the brain mask is one voxel thick")
    return halves
