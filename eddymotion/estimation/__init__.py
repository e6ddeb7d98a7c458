"""Series → motion."""

from __future__ import annotations

from eddymotion.dataset import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.lovo import leave_one_out_loop
from eddymotion.estimation.quality import Quality, assess
from eddymotion.geometry import Motion
from eddymotion.models import AverageModel, Model, get_model
from eddymotion.parallel import Progress, silent
from eddymotion.registration import Registrar, get_registrar

__all__ = ["Quality", "assess", "estimate_motion"]

ESTIMATORS = {"lovo": leave_one_out_loop}

MIN_SLICES = 3
MIN_MASK_VOXELS = 200


def estimate_motion(
    dwi: DWI,
    *,
    model: Model | str = "auto",
    registrar: Registrar | str = "gauss-newton",
    estimator: str = "lovo",
    n_iterations: int = 5,
    align_shells: bool = True,
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
) -> Motion:
    """Estimate the head's pose in each volume.

    Parameters
    ----------
    dwi : DWI
    model : Model or str
        What predicts a held-out volume; a name of :func:`eddymotion.models.get_model` or your
        own. ``auto`` chooses by the scheme.
    registrar : Registrar or str
        What registers a volume to its prediction.
    estimator : {"lovo"}
        The leave-one-out loop.
    n_iterations : int
        Passes of the loop.
    align_shells : bool
        Whether to bring diffusion-weighted and b=0 volumes into one frame.
    seed : int
        Of the random sampling points.
    n_threads : int
        The result does not depend on it.
    progress : callable
        See :class:`~eddymotion.parallel.Progress`.

    Returns
    -------
    Motion
        Reference → volume; the identity for the first b=0.
    """
    if estimator not in ESTIMATORS:
        raise EddymotionError(
            f"estimator {estimator!r} is unknown; use one of {', '.join(ESTIMATORS)}"
        )
    if n_iterations < 1:
        raise EddymotionError(f"n_iterations is {n_iterations}, expected at least 1")
    _refuse_unusable(dwi)
    if isinstance(model, str):
        model = get_model(model, dwi.gradients)
    if isinstance(registrar, str):
        registrar = get_registrar(registrar)
    motion = ESTIMATORS[estimator](
        dwi,
        model=model,
        registrar=registrar,
        n_iterations=n_iterations,
        seed=seed,
        n_threads=n_threads,
        progress=progress,
    )
    groups = dwi.gradients.shells if isinstance(model, AverageModel) else None  # none shared
    return unite_frames(dwi, motion, groups=groups, align_shells=align_shells)


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
