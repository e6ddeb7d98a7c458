"""The leave-one-out loop.

Each volume is predicted from all the others and registered to its prediction; the better the
others are aligned, the sharper the prediction, so it is repeated (block coordinate descent on the
likelihood of the series). Each pass starts from the
original volumes and from the motion of the pass before.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.dataset import DWI, Image
from eddymotion.errors import EddymotionError
from eddymotion.geometry import Motion, exp_rigid, log_rigid
from eddymotion.gradients import Gradients
from eddymotion.models import AverageModel, Model
from eddymotion.parallel import Progress, one_blas_thread, parallel_map, silent
from eddymotion.registration import GaussNewton, Registrar, Registration
from eddymotion.registration.gauss_newton import REFINE
from eddymotion.resampling import covered_mask, resample

log = logging.getLogger(__name__)

ENOUGH = 0.5
"""Part of the mask in which a volume must be predicted to be registered."""

MIN_SLICES = 3
MIN_MASK_VOXELS = 200


def leave_one_out_loop(
    dwi: DWI,
    *,
    model: Model,
    registrar: Registrar,
    n_iterations: int = 5,
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
) -> Motion:
    """Estimate the motion: predict from the others, register, repeat.

    b=0 volumes are predicted by the mean of the other b=0 volumes, diffusion-weighted ones by
    `model`. The two groups therefore end each in a frame of its own;
    :func:`eddymotion.estimation.frames.unite_frames` joins them.

    Parameters
    ----------
    dwi : DWI
    model : Model
    registrar : Registrar
    n_iterations : int
        Passes over the series.
    seed : int
    n_threads : int
        Volumes at a time; the result does not depend on it.
    progress : callable
        See :class:`~eddymotion.parallel.Progress`.

    Returns
    -------
    Motion
        Reference → volume.
    """
    motion = Motion.identity(len(dwi))
    _refuse_unusable(dwi)
    for step in schedule(model, registrar, dwi.gradients, n_iterations):
        aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
        with one_blas_thread():
            predicted = predict(aligned, step.model)
        motion = register_volumes(
            dwi,
            predicted,
            step.registrar,
            init=motion,
            relaxation=relaxation(step.model, dwi.gradients),
            mask=covered_mask(dwi, motion),
            seed=seed + step.number,
            n_threads=n_threads,
            progress=progress,
            description=f"pass {step.number} of {n_iterations}",
        )
    return fill_unpredicted(dwi, motion, is_predicted(predicted, dwi.mask))


def _refuse_unusable(dwi: DWI) -> None:
    if min(dwi.shape) < MIN_SLICES:
        raise EddymotionError(
            f"{dwi!r}: found {min(dwi.shape)} voxels along one axis, expected at least "
            f"{MIN_SLICES}; rigid motion in 3-D cannot be seen in less: give the whole series"
        )
    if dwi.mask.sum() < MIN_MASK_VOXELS:
        raise EddymotionError(
            f"{dwi!r}: the brain mask has {dwi.mask.sum()} voxels, expected at least "
            f"{MIN_MASK_VOXELS}; give another mask"
        )


@dataclass(frozen=True)
class Pass:
    """What one pass of the loop predicts with and registers with."""

    number: int
    model: Model
    registrar: Registrar


def schedule(
    model: Model, registrar: Registrar, gradients: Gradients, n_iterations: int
) -> list[Pass]:
    """Plan the passes.

    The first half predicts with shell means: every volume then leans on all others alike and the
    loop contracts fast, where a model with few effective neighbours hands each volume the errors
    of just those. The rest uses `model`, which is sharper. The last pass always does. Our own
    registrar works coarse to fine in the first pass, and only at its finest level afterwards.
    """
    n_means = min((n_iterations + 1) // 2, n_iterations - 1) if gradients.is_shelled else 0
    return [
        Pass(
            number,
            AverageModel() if number <= n_means else model,
            _at_stage(registrar, number, n_iterations),
        )
        for number in range(1, n_iterations + 1)
    ]


def predict(aligned: DWI, model: Model) -> np.ndarray:
    """Predict each volume of an aligned series from the others; NaN where they do not tell."""
    predicted = model.leave_one_out(aligned.signal, aligned.gradients)
    b0s = aligned.gradients.b0s
    if len(b0s):
        signal, gradients = aligned.signal[..., b0s], aligned.gradients.select(b0s)
        predicted[..., b0s] = AverageModel().leave_one_out(signal, gradients)
    return predicted


def register_volumes(
    dwi: DWI,
    predicted: np.ndarray,
    registrar: Registrar,
    *,
    init: Motion,
    relaxation: np.ndarray | float = 1.0,
    mask: np.ndarray | None = None,
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
    description: str = "registration",
) -> Motion:
    """Register each original volume to its prediction, starting from `init`.

    Each goes the part `relaxation` (N,) of the way it found. Voxels of the `mask` (the brain when
    not given) without a prediction are left out; volumes without one (the only b=0, say) keep
    their pose.
    """
    where = dwi.mask if mask is None else mask

    def register(volume: int) -> Registration | None:
        known = np.isfinite(predicted[..., volume])
        if not known[where].mean() > ENOUGH:
            return None
        return registrar.register(
            Image(np.where(known, predicted[..., volume], 0.0), dwi.affine),
            dwi.volume(volume),
            fixed_mask=where & known,
            init=init[volume],
            seed=seed,
        )

    found = parallel_map(
        register,
        range(len(dwi)),
        n_threads=n_threads,
        progress=progress,
        description=description,
    )
    parts = np.broadcast_to(relaxation, len(dwi))
    matrices = init.matrices.copy()
    for volume, registration in enumerate(found):
        if registration is None:
            continue
        way = log_rigid(np.linalg.inv(init[volume]) @ registration.matrix, dwi.brain_center)
        matrices[volume] = init[volume] @ exp_rigid(parts[volume] * way, dwi.brain_center)
        log.debug("volume %d: %s", volume, registration.message)
    return Motion(matrices)


def is_predicted(predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether each volume has a prediction in most of the mask, (N,)."""
    volumes = np.moveaxis(predicted, 3, 0)
    return np.array([np.isfinite(volume[mask]).mean() > ENOUGH for volume in volumes])


def fill_unpredicted(dwi: DWI, motion: Motion, known: np.ndarray) -> Motion:
    """Give diffusion-weighted volumes that nothing predicts the pose of their neighbour in time.

    Raises
    ------
    EddymotionError
        If the model predicts none at all.
    """
    dwis = dwi.gradients.dwis
    found = dwis[known[dwis]]
    if not len(found):
        raise EddymotionError(
            f"{dwi!r}: the model predicts no diffusion-weighted volume from the others; "
            "use --model average, or a smaller --min-q-distance"
        )
    missing = dwis[~known[dwis]]
    if not len(missing):
        return motion
    nearest = found[np.abs(found[None] - missing[:, None]).argmin(axis=1)]
    log.warning(
        "volumes %s: not predicted by the others; they get the pose of the nearest volume that is",
        ", ".join(map(str, missing)),
    )
    return motion.updated(missing, motion.matrices[nearest])


def relaxation(model: Model, gradients: Gradients) -> np.ndarray:
    """Which part of the way to its prediction each volume should go, (N,).

    Volumes that are predicted by the mean of the others of their group all move at once: two of
    them would swap places for ever. The way to the mean of *all* n, which is the joint solution,
    is ``(n − 1)/n`` of the way to the mean of the others.
    """
    groups = [gradients.b0s, *(gradients.shells if isinstance(model, AverageModel) else ())]
    parts = np.ones(len(gradients))
    for group in groups:
        if len(group):
            parts[group] = (len(group) - 1) / len(group)
    return parts


def _at_stage(registrar: Registrar, number: int, n_iterations: int) -> Registrar:
    """Coarse levels in the first pass, the finest afterwards, all where there is one pass only."""
    if not isinstance(registrar, GaussNewton) or len(registrar.levels) < 2 or n_iterations == 1:
        return registrar
    n_fine = len(REFINE)
    levels = registrar.levels[:-n_fine] if number == 1 else registrar.levels[-n_fine:]
    return replace(registrar, levels=levels)
