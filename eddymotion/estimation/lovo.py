"""The leave-one-out loop.

Each volume is predicted from all the others and registered to its prediction; the better the
others are aligned, the sharper the prediction, so it is repeated. Each pass starts from the
original volumes and from the motion of the pass before.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from eddymotion.dataset import DWI, Image
from eddymotion.geometry import Motion
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
    n_iterations: int = 3,
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
    for iteration in range(n_iterations):
        aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
        predicted = predict(aligned, model)
        motion = register_volumes(
            dwi,
            predicted,
            opening(registrar) if iteration == 0 else refining(registrar),
            init=motion,
            seed=seed + iteration,
            n_threads=n_threads,
            progress=progress,
            description=f"pass {iteration + 1} of {n_iterations}",
        )
    return motion


def predict(aligned: DWI, model: Model) -> np.ndarray:
    """Predict each volume of an aligned series from the others: (X, Y, Z, N), NaN where unknown."""
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
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
    description: str = "registration",
) -> Motion:
    """Register each original volume to its prediction, starting from `init`.

    Volumes without a prediction (the only b=0, say) and those whose registration fails keep
    their pose.
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
    matrices = init.matrices.copy()
    for volume, registration in enumerate(found):
        if registration is None:
            continue
        matrices[volume] = registration.matrix
        if not registration.converged:
            log.info("volume %d: %s", volume, registration.message)
    return Motion(matrices)


def opening(registrar: Registrar) -> Registrar:
    """Return a registrar for blurred predictions: our own skips its finest level."""
    if isinstance(registrar, GaussNewton) and len(registrar.levels) > 1:
        return replace(registrar, levels=registrar.levels[: -len(REFINE)])
    return registrar


def refining(registrar: Registrar) -> Registrar:
    """Return a registrar for small remaining motion: our own skips its coarse levels."""
    if isinstance(registrar, GaussNewton) and len(registrar.levels) > 1:
        return replace(registrar, levels=registrar.levels[-len(REFINE) :])
    return registrar
