"""The leave-one-out loop.

Each volume is predicted from all the others and registered to its prediction; the better the
others are aligned, the sharper the prediction, so it is repeated (block coordinate descent on the
likelihood of the series). Each pass starts from the original volumes and from the motion of the
pass before.
"""

from __future__ import annotations

import logging

import numpy as np

from eddymotion.dataset import DWI, Image
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.quality import ENOUGH, predict
from eddymotion.estimation.schedule import plan_passes
from eddymotion.geometry import Motion, exp_rigid, log_rigid
from eddymotion.models import Model
from eddymotion.parallel import Progress, one_blas_thread, parallel_map, silent
from eddymotion.registration import Registrar, Registration
from eddymotion.resampling import covered_mask, resample

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
) -> Estimate:
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
    Estimate
        Without standard errors.
    """
    motion, known = Motion.identity(len(dwi)), np.ones(len(dwi), bool)
    for step in plan_passes(model, registrar, dwi.gradients, n_iterations):
        aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
        with one_blas_thread():
            predicted = predict(aligned.signal, aligned.gradients, step.model)
        motion = register_volumes(
            dwi,
            predicted,
            step.registrar,
            init=motion,
            relaxation=step.relaxation,
            mask=covered_mask(dwi, motion),
            seed=seed + step.number,
            n_threads=n_threads,
            progress=progress,
            description=f"pass {step.number} of {n_iterations}",
        )
        known = is_predicted(predicted, dwi.mask)
        del aligned, predicted  # or two copies of the series would outlive the pass
    return Estimate(fill_unpredicted(dwi, motion, known))


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
