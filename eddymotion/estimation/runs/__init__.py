# SPDX-License-Identifier: Apache-2.0
"""Runs that belong together: one frame, and the off-resonance field between them.

Each run's motion is found in its own frame, that of its first b=0. What is left is a rigid pose of
each run against the first, and, where their phase encodings differ, the field that tells them
apart. Both come from the runs' mean b=0 images: the poses by registration where all runs are
distorted alike, together with the field otherwise (:mod:`eddymotion.estimation.off_resonance`).
The field hardly biases the motion within a run, since it moves with the head: no second solution
is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy

from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.off_resonance import estimate_off_resonance
from eddymotion.estimation.off_resonance.images import (
    Distorted,
    agreement,
    combined,
    corrected_images,
    rigid_start,
)
from eddymotion.estimation.off_resonance.measured import MapAgreement
from eddymotion.estimation.runs.ties import Brain, FrameTie, ShownDiffusion, tied_frames
from eddymotion.images.grid import grid_points, mask_center
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask
from eddymotion.machine.parallel import Compute, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import (
    LEAST_STRETCH,
    NOMINAL_READOUT_S,
    OffResonance,
    Readout,
    SeriesField,
)
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, log_rigid
from eddymotion.registration.gauss_newton import GaussNewton
from eddymotion.wording import short_repr

log = logging.getLogger(__name__)

REGISTERED_MM = 1.0
"""Error of the registration of distorted images along the phase encoding: the mean field of a
brain is zero only about."""

STILL_MM = 0.1
"""Error of the guess that the head has not moved between two runs, at least."""

OTHER_SHIFT = 0.5
"""Part of the larger displacement by which that of another run has to differ to tell the field:
turned slices alone do not."""

WITH_FIELD = 2.5
"""Standard errors of poses that were found together with a field, over the scatter between halves
of the brain: what of a turn the field took up is alike in all of them. Four simulated pairs were
off by two to five times that scatter."""

ALIKE = 0.85
"""Correlation of the runs' b=0 images below which they do not show enough of one head to tie their
diffusion-weighted volumes: distorted by unknown fields, say."""

VOLUMES_FOR_REFERENCE = 6
"""At most so many b=0 volumes are averaged."""


@dataclass(frozen=True, eq=False)
class JoinedRuns:
    """How runs lie in one frame, and what distorts them.

    Parameters
    ----------
    poses : (K, 4, 4) array
        First run → the frame of each, RAS+ mm.
    errors : (K, 6) array
        Standard errors of the poses, mm and rad; zero for the first run, whose frame it is.
    shifts : (K, 3) array
        Where a spin that is off by one hertz is displaced in each run, mm, RAS+; NaN where the
        readout of a run is not known.
    field : OffResonance, optional
        In the frame of the first run.
    mean : (X, Y, Z) float32 array
        The runs' mean b=0 images without distortion as one, in that frame, on the grid of the
        first run.
    mask : (X, Y, Z) bool array
        The brain there.
    affine : (4, 4) array
        Of that grid.
    similarity : (float, float)
        Correlation of the runs' mean b=0 images in the brain before and after.
    measured : bool
        Whether the field was given.
    modulated : bool
        Whether signal that was squeezed is stretched again in brightness, too.
    beside : (X, Y, Z) float32 array, optional
        A measured map (Hz) that the field is compared with, on that grid; NaN where it says
        nothing.
    ties : tuple of FrameTie or None
        What moves diffusion-weighted volumes besides, one a run; none where nothing ties them.
    """

    poses: np.ndarray
    errors: np.ndarray
    shifts: np.ndarray
    field: OffResonance | None
    mean: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    similarity: tuple[float, float] = (np.nan, np.nan)
    measured: bool = False
    modulated: bool = True
    beside: np.ndarray | None = None
    ties: tuple[FrameTie | None, ...] = ()

    __repr__ = short_repr

    @property
    def comparison(self) -> MapAgreement | None:
        """How the field agrees with the measured map beside it."""
        if self.beside is None or self.field is None:
            return None
        return MapAgreement.of(self.field.on_grid(self.mask.shape, self.affine), self.beside)

    def __len__(self) -> int:
        return len(self.poses)

    def motion(self, run: int, alone: Motion) -> Motion:
        """Bring a motion that was found in a run's own frame into that of the first."""
        errors, distortion = alone.standard_errors, None
        if self.field is not None and np.isfinite(self.shifts[run]).all():
            shifts = np.tile(self.shifts[run], (len(alone), 1))
            distortion = SeriesField(self.field, shifts, self.modulated)
        moved = replace(
            alone,
            matrices=alone.matrices @ self.poses[run],
            standard_errors=None if errors is None else np.hypot(errors, self.errors[run]),
            off_resonance=distortion,
        )
        moved = moved.with_errors_of_slices(lambda errors: np.hypot(errors, self.errors[run]))
        tie = self.ties[run] if self.ties else None
        return moved if tie is None else tie.applied(moved)

    def stretch(self, run: int) -> np.ndarray:
        """Return recorded millimetres a millimetre along the phase encoding of a run, (X, Y, Z).

        On the grid of the first run, for the run's head at rest; one without a field.
        """
        if self.field is None or not np.isfinite(self.shifts[run]).all():
            return np.ones(self.mask.shape, np.float32)
        _, slopes = self.field.on_grid_with_gradient(self.mask.shape, self.affine)
        along = (self.poses[run][:3, :3].T @ self.shifts[run]).astype(np.float32)
        return np.maximum(1.0 + slopes @ along, LEAST_STRETCH)

    def mask_on(self, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Return the brain on another grid of the same frame, (X, Y, Z) bool."""
        if tuple(shape) == self.mask.shape and np.array_equal(affine, self.affine):
            return self.mask
        to_own = np.linalg.inv(self.affine) @ affine
        moved = scipy.ndimage.affine_transform(
            self.mask.astype(np.float32), to_own[:3, :3], to_own[:3, 3], tuple(shape), order=1
        )
        return moved > 0.5


@dataclass(frozen=True, eq=False)
class RunImage:
    """What a run shows of where it lies and how it is distorted.

    Parameters
    ----------
    image : Image
        Mean of its b=0 volumes in its own frame, free of motion and eddy currents.
    brain : (X, Y, Z) bool array
    encoding : (3,) array, optional
        Phase-encoding vector, RAS+.
    voxel_mm : float
        Size of a voxel along it.
    readout_time : float, optional
        Seconds.
    ends : (2, 4, 4) array
        Poses of the head in the first and the last volume.
    is_b0 : bool
        Whether it is of b=0 volumes; of a run without any, it is of the lowest shell.
    diffusion : ShownDiffusion, optional
        Diffusion-weighted volumes, where they lie in the frame of the b=0 volumes with an error
        that is known.
    """

    image: Image
    brain: np.ndarray
    encoding: np.ndarray | None
    voxel_mm: float
    readout_time: float | None
    ends: np.ndarray
    is_b0: bool = True
    diffusion: ShownDiffusion | None = None

    __repr__ = short_repr

    @classmethod
    def of(cls, run: DWI, motion: Motion, n_threads: int = 1) -> RunImage:
        """Take what counts from a run and its motion in its own frame."""
        encoding = run.acquisition.common_phase_encoding
        axis = 0
        if encoding is not None:
            axis = int(np.abs(np.linalg.inv(run.affine)[:3, :3] @ encoding).argmax())
        return cls(
            mean_b0(run, motion, n_threads),
            run.mask,
            encoding,
            float(run.voxel_sizes[axis]),
            run.acquisition.common_readout_time,
            motion.head[[0, -1]],
            bool(len(run.gradients.b0s)),
            ShownDiffusion.of(run, motion, n_threads),
        )

    @property
    def center(self) -> np.ndarray:
        """The centre of the brain, RAS+ mm."""
        return mask_center(self.brain, self.image.affine)


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
    compute = compute or Compute()
    readouts = readouts_of(runs)
    unknown = Readout(np.array([0.0, 1.0, 0.0]), 0.0)
    distorted = [
        Distorted(run.image, readout or unknown)
        for run, readout in zip(runs, readouts, strict=True)
    ]
    first, brain, center = runs[0].image, runs[0].brain, runs[0].center
    start = rigid_start(distorted, brain, compute.seed)
    found, measured, gauge = field, field is not None, np.zeros(len(runs))
    poses, alike = start, _of_one_contrast(runs)
    telling = [readouts[run] for run in alike]
    if seeks_field and not measured and differ(telling) and None not in readouts:
        start, gauge = _held_in_time(center, [run.ends for run in runs], start, distorted)
        estimate = estimate_off_resonance(
            [distorted[run] for run in alike], poses=start[alike], seed=compute.seed
        )
        found, poses = estimate.field, start.copy()
        poses[alike] = estimate.poses
        poses = _with_others(poses, alike, distorted, found, brain, compute.seed)
    elif seeks_field or measured:
        _warn_of_unknown(runs, readouts, measured=measured)
    known = found or OffResonance.none()
    grid = first.data.shape, first.affine
    before, _ = corrected_images(distorted, OffResonance.none(), start, *grid)
    corrected, stretch = corrected_images(distorted, known, poses, *grid)
    mean = combined(corrected[alike], stretch[alike])
    joined = brain if len(runs) == 1 and found is None else brain_mask(mean)
    similarity = (np.nan, np.nan)
    if len(alike) > 1:
        similarity = agreement(before[alike], joined), agreement(corrected[alike], joined)
        log.info("%d runs together: their b=0 images agree with r = %.3f, before with %.3f",
                 len(alike), *reversed(similarity))  # fmt: skip
    errors = _pose_errors(corrected, first.affine, joined, center, compute)
    if found is not None and not measured:
        errors *= WITH_FIELD
    shifts = np.array([np.full(3, np.nan) if r is None else r.shift for r in readouts])
    ties: tuple[FrameTie | None, ...] = ()
    if similarity[1] >= ALIKE and (found is not None or not differ(readouts)):
        shown = [run.diffusion for run in runs]
        seen = Brain(joined, first.affine)
        tied = tied_frames(shown, poses, errors, shifts, found, seen, compute)
        if tied is not None:
            poses, errors, ties = tied.poses, tied.errors, tied.ties
    for error, one, held in zip(errors, distorted, gauge, strict=True):
        error[:3] = np.hypot(error[:3], held * one.readout.direction)
    return JoinedRuns(
        poses, errors, shifts, found, mean, joined, first.affine, similarity, measured, ties=ties
    )  # fmt: skip


def _of_one_contrast(runs: Sequence[RunImage]) -> list[int]:
    """Choose the runs whose images have the contrast of the first, b=0 or not.

    Others are placed by mutual information alone: they tell neither field nor brain.
    """
    return [n for n, run in enumerate(runs) if run.is_b0 == runs[0].is_b0]


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


def _warn_of_unknown(
    runs: Sequence[RunImage], readouts: Sequence[Readout | None], *, measured: bool
) -> None:
    """Say which runs do not tell how the field displaces them, where that leaves it in."""
    unknown = [n for n, readout in enumerate(readouts, start=1) if readout is None]
    opposed = differ([Readout(r.encoding, r.voxel_mm) for r in runs if r.encoding is not None])
    if opposed and not unknown and not measured:
        log.warning("runs of different phase encodings have no contrast in common, b=0 or not: "
                    "the off-resonance field is not sought")  # fmt: skip
    if not unknown or len(unknown) == len(runs) or not (measured or opposed):
        return
    log.warning(
        "run %s of %d in the order of their names: PhaseEncodingDirection or TotalReadoutTime is "
        "not in its sidecar, so that %s; add them",
        ", ".join(map(str, unknown)), len(runs),
        "it is not corrected for the off-resonance field" if measured
        else "the off-resonance field is not sought, which the others would tell",
    )  # fmt: skip


def align_b0s(run: DWI, compute: Compute) -> Motion:
    """Register the volumes of a run without diffusion weighting to its first one."""
    first = run.volume(0)
    engine = GaussNewton()

    def pose(volume: int) -> np.ndarray:
        if volume == 0:
            return np.eye(4)
        found = engine.register(first, run.volume(volume), fixed_mask=run.mask, seed=compute.seed)
        return found.matrix

    return Motion(np.stack(parallel_map(pose, range(len(run)), n_threads=compute.n_threads)))


def readouts_of(runs: Sequence[RunImage]) -> list[Readout | None]:
    """Tell how each run was read out; None where its phase encoding is not known.

    Where no run says its readout time, all are taken to have a nominal one: that is enough for
    runs of opposite polarity. A run that says none beside others that do is not taken for known.
    """
    times = [run.readout_time for run in runs]
    known = sum(run.encoding is not None for run in runs)
    if all(time is None for time in times) and known > 1:
        log.warning(
            "TotalReadoutTime is in no sidecar of these runs: taken as %g s for all, so that the "
            "off-resonance field in Hz is right up to a factor, and the correction exact if their "
            "times are equal; add it to the sidecars", NOMINAL_READOUT_S
        )  # fmt: skip
        times = [NOMINAL_READOUT_S] * len(runs)
    return [
        None
        if time is None or run.encoding is None
        else Readout(run.encoding, time * run.voxel_mm)
        for run, time in zip(runs, times, strict=True)
    ]


def tell_field(runs: Sequence[RunImage]) -> bool:
    """Whether the images of runs tell the off-resonance field."""
    runs = [runs[run] for run in _of_one_contrast(runs)]
    unknown = sum(run.readout_time is None for run in runs)
    if unknown not in (0, len(runs)):
        return False
    readouts = [
        Readout(run.encoding, (run.readout_time or NOMINAL_READOUT_S) * run.voxel_mm)
        for run in runs
        if run.encoding is not None
    ]
    return len(readouts) == len(runs) and differ(readouts)


def differ(readouts: Sequence[Readout | None]) -> bool:
    """Whether runs of known readout are distorted differently."""
    shifts = np.array([readout.shift for readout in readouts if readout is not None])
    if len(shifts) < 2:
        return False
    largest = np.linalg.norm(shifts, axis=1).max()
    return bool(np.linalg.norm(shifts - shifts[0], axis=1).max() >= OTHER_SHIFT * largest)


def mean_b0(run: DWI, motion: Motion, n_threads: int = 1) -> Image:
    """Average the b=0 volumes of a run in its own frame; the lowest shell without any.

    As they were recorded but for motion and eddy currents: the off-resonance field is left in.
    """
    averaged = run.gradients.b0s if len(run.gradients.b0s) else run.gradients.shells[0]
    averaged = averaged[:VOLUMES_FOR_REFERENCE]
    points = grid_points(run.shape, run.affine)

    def read(volume: int) -> np.ndarray:
        return motion.mapping(volume).rebuild(run.volume(volume), points)

    read_all = np.stack(parallel_map(read, averaged.tolist(), n_threads=n_threads))
    known = np.isfinite(read_all)
    mean = np.where(known, read_all, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return Image(mean.reshape(run.shape).astype(np.float32), run.affine)


def _held_in_time(
    center: np.ndarray,
    ends: Sequence[np.ndarray],
    start: np.ndarray,
    images: Sequence[Distorted],
) -> tuple[np.ndarray, np.ndarray]:
    """Say where runs are along their phase encoding, which a field cannot be told apart from.

    Two guesses: the registration of the distorted images, and that the head has not moved since
    the last volume of the run before. The second is as good as it is in the directions that the
    images do tell. Each counts by its error.

    Returns
    -------
    poses : (K, 4, 4) array
    errors : (K,) array
        Along the phase encoding, mm.
    """
    poses, errors = start.copy(), np.zeros(len(start))
    for run in range(1, len(poses)):
        last = ends[run - 1][1] @ poses[run - 1]
        still = np.linalg.inv(ends[run][0]) @ last
        moved = log_rigid(np.linalg.inv(poses[run]) @ still, center)
        moved = np.concatenate([poses[run][:3, :3] @ moved[:3], ROTATION_RADIUS_MM * moved[3:]])
        along = images[run].readout.direction
        off = moved[:3] @ along
        across = np.concatenate([moved[:3] - off * along, moved[3:]])
        variance = STILL_MM**2 + (across**2).sum() / 5
        share = REGISTERED_MM**2 / (REGISTERED_MM**2 + variance)
        poses[run][:3, 3] += share * off * along
        errors[run] = np.sqrt(share * variance)
    return poses, errors


def _pose_errors(
    corrected: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    center: np.ndarray,
    compute: Compute,
) -> np.ndarray:
    """Estimate standard errors of the poses: mm and rad, (K, 6).

    By how much halves of the brain, registered alone to the first image, want to move the others:
    root of the mean square. Zero for the first run, whose frame it is.
    """
    errors = np.zeros((len(corrected), 6))
    if len(corrected) == 1:
        return errors
    images = [Image(np.nan_to_num(image), affine) for image in corrected]
    halves = _halves(mask)
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
