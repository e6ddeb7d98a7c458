# SPDX-License-Identifier: Apache-2.0
"""The leave-one-out loop.

Each volume is predicted from all the others and registered to its prediction. The better the
others are aligned, the sharper is the prediction, so this is repeated (block coordinate descent on
the likelihood of the series). Each pass starts from the original volumes and the motion of the
pass before, in which volumes that went astray are recovered
(:mod:`eddymotion.estimation.outlier_volumes`). Predictions are made on a grid of their own
(:mod:`eddymotion.estimation.lovo.prediction_grid`), and the registrations of a pass are combined
into one step of all volumes (:mod:`eddymotion.estimation.lovo.moving_together`).

Once the model itself predicts (:mod:`eddymotion.estimation.lovo.schedule`), slices that lost their
signal are sought before each pass. They are left out when other volumes are predicted, and when
their own volume is registered.

No registration to a prediction shows the part of the poses that follows the direction of
diffusion. After the last pass, the course of the head decides about it
(:mod:`eddymotion.estimation.frames.gradient_pulls`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.checks.b0_volumes import empty_b0s
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.frames.gradient_pulls import remove_gradient_pulls
from eddymotion.estimation.held_out import fitted, predict
from eddymotion.estimation.joint.standard_errors import misfit_of
from eddymotion.estimation.lovo.moving_together import Following, move_together, reach_of
from eddymotion.estimation.lovo.prediction_grid import prediction_grid
from eddymotion.estimation.lovo.schedule import plan_passes
from eddymotion.estimation.outlier_volumes import recover_outlier_volumes, retry_outlier_volumes
from eddymotion.estimation.outliers import is_lost, slice_heights
from eddymotion.estimation.quality import ENOUGH, assess
from eddymotion.images.grid import Box, grid_points
from eddymotion.images.image import Image
from eddymotion.images.pyramid import head_scale, jittered_points
from eddymotion.machine.parallel import ALONE, Compute, one_blas_thread, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import twist_millimetres
from eddymotion.models import AverageModel, Model
from eddymotion.registration import Registrar, Registration
from eddymotion.resampling import resample
from eddymotion.resampling.masks import covered_mask

log = logging.getLogger(__name__)

REPEATS = 2
"""Of predicting lost signal: volumes that lost the same voxel depend on one another."""

FAR_VOXELS = 2.0
"""A registration that moves the brain farther (root mean square) is compared with its start."""

N_TO_COMPARE = 5_000
"""Points of the brain at which the two are compared."""

MISFIT_FACTOR = 4.0
"""Errors of the loop that follow the direction, relative to what the model gets wrong in the joint
solution: see :func:`without_gradient_pulls`."""

LEAST_LEFT = 0.1
"""Part of the brain that must not be lost for a volume to be registered."""


def leave_one_out_loop(
    dwi: DWI,
    *,
    model: Model,
    registrar: Registrar,
    n_iterations: int,
    compute: Compute,
) -> Estimate:
    """Estimate the motion: predict from the others, register, repeat.

    b=0 volumes are predicted by the mean of the other b=0 volumes, diffusion-weighted ones by
    `model`. Each of the two groups therefore ends in a frame of its own;
    :func:`eddymotion.estimation.frames.unite_frames` joins them.

    Parameters
    ----------
    dwi : DWI
    model : Model
    registrar : Registrar
    n_iterations : int
        Passes over the series.
    compute : Compute

    Returns
    -------
    Estimate
        Without standard errors.
    """
    seed, n_threads = compute.seed, compute.n_threads
    motion, known = Motion.identity(len(dwi)), np.ones(len(dwi), bool)
    grid = prediction_grid(dwi)
    for step in plan_passes(model, registrar, dwi.gradients, n_iterations):
        motion = recover_outlier_volumes(dwi, motion, seed=seed, n_threads=n_threads)
        lost = None
        if step.seeks_lost:
            lost = lost_voxels(dwi, motion, model, grid, compute)
        aligned = resample(
            dwi, motion, engine="fast", grid=(grid.shape, grid.affine), n_threads=n_threads
        )
        signal = fill_lost(aligned, step.model, lost)
        with one_blas_thread():
            used = fitted(step.model, signal, aligned.gradients)
            predicted = predict(signal, aligned.gradients, used)
        brain = Image(covered_mask(Image(aligned.mask, grid.affine), motion, dwi), grid.affine)
        found = register_volumes(
            dwi,
            predicted,
            step.registrar,
            init=motion,
            brain=brain,
            lost=lost,
            compute=replace(compute, seed=seed + step.number),
            description=f"pass {step.number} of {n_iterations}",
        )
        motion = move_together(
            motion,
            found,
            predicted,
            brain,
            Following.of(used, aligned.gradients),
            relaxation=step.relaxation,
            center=dwi.brain_center,
            reach=reach_of(dwi),
            compute=compute,
        )
        known = is_predicted(predicted, aligned.mask)
        del aligned, signal, predicted, lost  # or two copies of the series would outlive the pass
    return conclude(dwi, motion, known, model, compute)


def conclude(
    dwi: DWI,
    motion: Motion,
    known: np.ndarray,
    model: Model,
    compute: Compute,
) -> Estimate:
    """End the loop: find volumes that fit nowhere, and remove what follows the gradient.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        Of the last pass.
    known : (N,) bool array
        Volumes that it predicted.
    model : Model
    compute : Compute
    """
    seed, n_threads = compute.seed, compute.n_threads
    judged = assess(dwi, motion, model, random_seed=seed, n_threads=n_threads)
    retried = retry_outlier_volumes(dwi, motion, judged, seed=seed, n_threads=n_threads)
    unplaced = np.isin(np.arange(len(dwi)), empty_b0s(dwi))
    if retried is not None:
        motion, unplaced[retried.unplaced] = retried.motion, True
    placed = known & ~unplaced
    # means of shells bring no two of them into one frame
    shells = list(dwi.gradients.shells) if isinstance(model, AverageModel) else None
    motion = without_gradient_pulls(dwi, motion, placed, shells or [dwi.gradients.dwis])
    motion = fill_unpredicted(dwi, motion, placed, model, groups=shells, unplaced=unplaced)
    return Estimate(motion, groups=shells, unplaced=unplaced if unplaced.any() else None)


def without_gradient_pulls(
    dwi: DWI, motion: Motion, placed: np.ndarray, groups: Sequence[np.ndarray]
) -> Motion:
    """Remove from the poses what follows the gradient, as the course of the head shows it.

    A displacement that is a quadratic function of the direction looks like anatomy to a model of
    the signal, and anatomy looks like such a displacement to the mean of a shell: passes with
    means leave such errors, and passes with a model keep them. The loop has no standard errors;
    the expected size of the pulls is that of the misfit of the joint solution times
    :data:`MISFIT_FACTOR`.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
        b=0 volumes and each group may be in frames of their own.
    placed : (N,) bool array
        Volumes whose poses were found.
    groups : sequence of index arrays
        Diffusion-weighted volumes that share a frame.
    """
    gradients, scale = dwi.gradients, head_scale(dwi.mask, dwi.voxel_sizes)
    covariances = np.zeros((len(dwi), 6, 6))
    groups = [group[placed[group]] for group in groups if placed[group].any()]
    for group in groups:
        covariances[group] = MISFIT_FACTOR**2 * misfit_of(gradients.select(group), scale)
    in_mm = twist_millimetres(scale)
    about = groups, dwi.brain_center, in_mm
    return remove_gradient_pulls(motion, covariances, gradients, *about).motion


def lost_voxels(
    dwi: DWI,
    motion: Motion,
    model: Model,
    grid: Box,
    compute: Compute = ALONE,
) -> list[np.ndarray] | None:
    """Find the voxels of a grid of the reference at which each volume lost its signal.

    Returns
    -------
    list of N index arrays, or None
        Flat, in the order of NIfTI (x fastest). None where nothing is lost.
    """
    n_threads = compute.n_threads
    judged = assess(dwi, motion, model, random_seed=compute.seed, n_threads=n_threads)
    outliers = judged.outliers
    if not outliers.flagged.any():
        return None
    points = grid_points(grid.shape, grid.affine, order="F")

    def find(volume: int) -> np.ndarray:
        flags = outliers.flagged[volume]
        if not flags.any():
            return np.empty(0, int)
        recorded = motion.recorded(volume, points)
        heights = slice_heights(recorded, dwi.affine, outliers.slicing.axis)
        return np.flatnonzero(is_lost(flags, heights))

    return parallel_map(find, range(len(dwi)), n_threads=n_threads)


def fill_lost(aligned: DWI, model: Model, lost: list[np.ndarray] | None) -> np.ndarray:
    """Return the signal, with predictions from the others where volumes lost theirs."""
    if lost is None:
        return aligned.signal
    signal = aligned.signal.copy(order="K")
    for _ in range(REPEATS):
        with one_blas_thread():
            predicted = predict(signal, aligned.gradients, model)
        for volume, voxels in enumerate(lost):
            values = predicted[..., volume].T.ravel()[voxels]
            known = np.isfinite(values)
            where = np.unravel_index(voxels[known], aligned.shape, order="F")
            signal[..., volume][where] = values[known]
    return signal


def register_volumes(
    dwi: DWI,
    predicted: np.ndarray,
    registrar: Registrar,
    *,
    init: Motion,
    brain: Image,
    lost: list[np.ndarray] | None = None,
    compute: Compute = ALONE,
    description: str = "registration",
) -> Motion:
    """Register each original volume to its prediction, starting from `init`.

    The predictions are on the grid of the mask `brain`. Voxels without a prediction are left out,
    and those that are `lost` (:func:`lost_voxels`). Volumes of which too little is left (a single
    b=0, say) keep their pose.
    """
    mask = brain.data

    def register(volume: int) -> Registration | None:
        known = np.isfinite(predicted[..., volume])
        if not known[mask].mean() > ENOUGH:
            return None
        if lost is not None:
            known[np.unravel_index(lost[volume], known.shape, order="F")] = False
            if not known[mask].mean() > LEAST_LEFT:
                return None
        try:
            return register_unless_worse(
                registrar,
                Image(np.nan_to_num(predicted[..., volume]), brain.affine),
                dwi.volume(volume),
                mask & known,
                init[volume],
                compute.seed,
            )
        except EddymotionError as error:
            raise type(error)(f"volume {volume}: {error}") from error

    found = parallel_map(
        register,
        range(len(dwi)),
        n_threads=compute.n_threads,
        progress=compute.progress,
        description=description,
    )
    matrices = init.matrices.copy()
    for volume, registration in enumerate(found):
        if registration is not None:
            matrices[volume] = registration.matrix
            log.debug("volume %d: %s", volume, registration.message)
    return Motion(matrices)


def register_unless_worse(
    registrar: Registrar,
    predicted: Image,
    moving: Image,
    mask: np.ndarray,
    init: np.ndarray,
    seed: int,
) -> Registration:
    """Register a volume to its prediction; keep the start if the fit is worse after a long way.

    At high b-values a volume is mostly noise, and a registration may end where little of the brain
    is left to disagree. Volume and prediction have the same contrast, so that their correlation
    measures the fit. It is taken off the grid, where interpolation favours neither.
    """
    found = registrar.register(predicted, moving, fixed_mask=mask, init=init, seed=seed)
    points = jittered_points(mask, predicted.affine, N_TO_COMPARE, np.random.default_rng(seed))
    displacement = apply_affine(found.matrix, points) - apply_affine(init, points)
    far = FAR_VOXELS * np.cbrt(np.prod(moving.voxel_sizes))
    if np.sqrt((displacement**2).sum(axis=1).mean()) < far:
        return found
    expected = predicted.spline.sample(points)
    before, after = (
        _correlation(expected, moving.spline.sample(points, pose)) for pose in (init, found.matrix)
    )
    if not after < before:
        return found
    message = f"fits worse than its start ({after:.3f} after {before:.3f}); kept there"
    return replace(found, matrix=init, converged=False, message=message)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of what is known of both; NaN where that is nothing."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def is_predicted(predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether each volume has a prediction in most of the mask, (N,)."""
    volumes = np.moveaxis(predicted, 3, 0)
    return np.array([np.isfinite(volume[mask]).mean() > ENOUGH for volume in volumes])
