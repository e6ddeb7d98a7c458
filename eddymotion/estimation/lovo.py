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
from eddymotion.geometry import Motion, exp_rigid, log_rigid
from eddymotion.gradients import Gradients
from eddymotion.models import AverageModel, Model
from eddymotion.parallel import Progress, parallel_map, silent
from eddymotion.registration import GaussNewton, Registrar, Registration
from eddymotion.registration.gauss_newton import REFINE
from eddymotion.resampling import resample

log = logging.getLogger(__name__)


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
    for step in schedule(model, registrar, dwi.gradients, n_iterations):
        aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
        predicted = predict(aligned, step.model)
        motion = register_volumes(
            dwi,
            predicted,
            step.registrar,
            init=motion,
            relaxation=relaxation(step.model, dwi.gradients),
            seed=seed + step.number,
            n_threads=n_threads,
            progress=progress,
            description=f"pass {step.number} of {n_iterations}",
        )
    return motion


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
            _opening(registrar) if number == 1 else _refining(registrar),
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
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
    description: str = "registration",
) -> Motion:
    """Register each original volume to its prediction, starting from `init`.

    Each goes the part `relaxation` (N,) of the way it found. Volumes without a prediction (the
    only b=0, say) keep their pose.
    """

    def register(volume: int) -> Registration | None:
        if not np.isfinite(predicted[..., volume]).all():
            return None
        return registrar.register(
            Image(predicted[..., volume], dwi.affine),
            dwi.volume(volume),
            fixed_mask=dwi.mask,
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


def _opening(registrar: Registrar) -> Registrar:
    """Return a registrar for blurred predictions: our own skips its finest level."""
    if isinstance(registrar, GaussNewton) and len(registrar.levels) > 1:
        return replace(registrar, levels=registrar.levels[: -len(REFINE)])
    return registrar


def _refining(registrar: Registrar) -> Registrar:
    """Return a registrar for small remaining motion: our own skips its coarse levels."""
    if isinstance(registrar, GaussNewton) and len(registrar.levels) > 1:
        return replace(registrar, levels=registrar.levels[-len(REFINE) :])
    return registrar
