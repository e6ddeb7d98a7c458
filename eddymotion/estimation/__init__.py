# SPDX-License-Identifier: Apache-2.0
"""Estimation of the motion of the head: diffusion series → poses and fields."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from eddymotion.data.acquisition import Slicing
from eddymotion.data.checks import find_issues
from eddymotion.data.checks.b0_volumes import with_equal_b0s
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError, check_kind, renamed
from eddymotion.estimation.estimate import with_larger_errors
from eddymotion.estimation.estimators import Estimator, Joint, LeaveOneOut, choose_estimator
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.quality import Quality, assess, described
from eddymotion.estimation.runs import join_runs
from eddymotion.estimation.runs.run_image import RunImage, align_b0s
from eddymotion.machine.parallel import Compute, Progress, silent
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model
from eddymotion.registration import Registrar

__all__ = ["Joint", "LeaveOneOut", "Quality", "assess", "choose_estimator", "estimate_motion"]

log = logging.getLogger(__name__)

MIN_SLICES = 3
MIN_MASK_VOXELS = 200

LARGEST_SIGNAL = 1e15
"""Largest signal whose sums of squares fit single precision."""


@overload
def estimate_motion(dwi: DWI, **options: Any) -> Motion: ...
@overload
def estimate_motion(dwi: Sequence[DWI], **options: Any) -> list[Motion]: ...
@renamed(seed="random_seed")  # type: ignore[misc]  # options by name
def estimate_motion(
    dwi: DWI | Sequence[DWI],
    *,
    model: Model | str | None = None,
    registrar: Registrar | str | None = None,
    estimator: Estimator | str | None = None,
    n_iterations: int | None = None,
    align_shells: bool = True,
    eddy_currents: str | None = None,
    pe_axis: str | None = None,
    slicing: Slicing | None = None,
    random_seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
) -> Motion | list[Motion]:
    """Estimate the head's pose in each volume.

    Parameters
    ----------
    dwi : DWI or sequence of DWI
        A run, or runs that belong together, in the order of their acquisition. Several runs get
        one frame, that of the first b=0 of the first, and where their phase encodings differ, the
        off-resonance field between them (:mod:`eddymotion.estimation.runs`).
    model : Model or str, optional
        What predicts a held-out volume; a name of :func:`eddymotion.models.get_model` or your
        own. ``auto``, when not given, chooses by the scheme.
    registrar : Registrar or str, optional
        What registers a volume to its prediction in the leave-one-out loop; one that is given asks
        for the loop.
    estimator : Joint, LeaveOneOut, or one of {"joint", "lovo"}, optional
        All volumes at once, or the leave-one-out loop, which takes any model and any registrar.
        :class:`~eddymotion.Joint` and :class:`~eddymotion.LeaveOneOut` carry options of their own,
        the model among them. When not given, ``joint`` unless the model or the registrar asks for
        the loop.
    align_shells : bool
        Whether to bring diffusion-weighted and b=0 volumes into one frame.
    n_iterations, eddy_currents
        Deprecated: options of the estimator, ``Joint(max_steps=..., eddy_current=...)`` and
        ``LeaveOneOut(n_passes=...)``.
    pe_axis, slicing
        Deprecated: what the scanner did is in ``dwi.acquisition``, which :func:`eddymotion.load`
        reads from the sidecar. If that holds no phase encoding, its axis is found from the data;
        slices that lost signal are sought one by one, or together where they were excited
        together.
    random_seed : int
        Of the random sampling points.
    n_threads : int
        The result does not depend on it.
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    Motion, or list of Motion
        Reference → volume; the identity for the first b=0. With standard errors from ``joint``.
    """
    compute = Compute(n_threads, random_seed, progress)
    if isinstance(dwi, list | tuple):
        return _estimate_together(
            dwi, compute, model=model, registrar=registrar, estimator=estimator,
            n_iterations=n_iterations, align_shells=align_shells, eddy_currents=eddy_currents,
        )  # fmt: skip
    check_kind(dwi, DWI, "estimate_motion")
    assert isinstance(dwi, DWI)
    if not len(dwi.gradients.dwis):
        return replace(align_b0s(dwi, compute), center=dwi.center)
    dwi = described(dwi, pe_axis=pe_axis, slicing=slicing)
    chosen = _chosen(dwi, estimator, model, registrar, n_iterations, eddy_currents)
    _refuse_unusable(dwi)
    issues = find_issues(dwi, n_threads)
    for issue in issues:
        log.warning("%s: %s", dwi.source.name if dwi.source else "series", issue.text)
    log.info("estimator: %s%s", chosen.name, chosen.why and f" ({chosen.why})")
    motion = _estimate(dwi, chosen, compute, align_shells=align_shells)
    for issue in issues:
        motion = with_larger_errors(motion, dwi.center, lost=issue.lost, factor=issue.factor)
    return replace(motion, center=dwi.center)


def _estimate(dwi: DWI, estimator: Estimator, compute: Compute, *, align_shells: bool) -> Motion:
    """Find poses within groups, join the groups, and follow the head within volumes."""
    if isinstance(estimator, Joint):  # squares of differences, which a gain would fill
        dwi = with_equal_b0s(dwi)
    estimate = estimator.estimate(dwi, compute)
    motion = unite_frames(dwi, estimate, align_shells=align_shells, compute=compute)
    followed = estimator.follow(dwi, estimate, motion, compute)
    if followed is None:
        return motion
    return unite_frames(dwi, followed, align_shells=align_shells, compute=compute)


def _estimate_together(runs: Sequence[DWI], compute: Compute, **options: Any) -> list[Motion]:
    """Find the motion of each run, and bring them into one frame."""
    n_threads, seed = compute.n_threads, compute.seed
    options |= {"random_seed": seed, "n_threads": n_threads, "progress": compute.progress}
    alone = [estimate_motion(run, **options) for run in runs]
    images = [RunImage.of(*both, n_threads) for both in zip(runs, alone, strict=True)]
    joined = join_runs(images, compute=compute)
    return [joined.motion(number, motion) for number, motion in enumerate(alone)]


def _chosen(
    dwi: DWI,
    estimator: Estimator | str | None,
    model: Model | str | None,
    registrar: Registrar | str | None,
    n_iterations: int | None,
    eddy_currents: str | None,
) -> Estimator:
    """Return the estimator that was given, or make one of options given one by one."""
    if isinstance(estimator, Joint | LeaveOneOut):
        given = {"model": model, "registrar": registrar, "n_iterations": n_iterations,
                 "eddy_currents": eddy_currents}  # fmt: skip
        if beside := [name for name, value in given.items() if value is not None]:
            raise EddymotionError(
                f"estimate_motion: {' and '.join(beside)} together with an estimator object; "
                f"give them to {type(estimator).__name__}(...)"
            )
        return estimator.for_scheme(dwi.gradients)
    if n_iterations is not None or eddy_currents is not None:
        warnings.warn(
            "n_iterations and eddy_currents of estimate_motion are deprecated and will be "
            "removed in the next release; give estimator=Joint(max_steps=..., eddy_current=...) "
            "or LeaveOneOut(n_passes=...)",
            FutureWarning,
            stacklevel=4,
        )
    return choose_estimator(
        estimator,
        "auto" if model is None else model,
        registrar,
        gradients=dwi.gradients,
        n_iterations=n_iterations,
        eddy_current="auto" if eddy_currents is None else eddy_currents,
    )


def _refuse_unusable(dwi: DWI) -> None:
    if min(dwi.shape) < MIN_SLICES:
        raise EddymotionError(
            f"{dwi.source or dwi}: found {min(dwi.shape)} voxels along one axis, expected at "
            f"least {MIN_SLICES}, since fewer do not show rigid motion in 3-D; give the whole "
            "series"
        )
    ends = np.array([(volume.min(), volume.max()) for volume in dwi.volumes()], float)
    largest = np.abs(ends).max()
    if largest > LARGEST_SIGNAL:
        raise EddymotionError(
            f"{dwi.source or dwi}: the signal reaches {largest:.1e}, expected at most "
            f"{LARGEST_SIGNAL:.0e}; divide it by a constant"
        )
    flat = np.flatnonzero(ends[:, 0] == ends[:, 1])
    if len(flat):
        raise EddymotionError(
            f"{dwi.source or dwi}: all voxels of volume {', '.join(map(str, flat))} (counted "
            "from 0) have the same value; remove it from the image, the .bval and the .bvec"
        )
    if dwi.mask.sum() < MIN_MASK_VOXELS:
        raise EddymotionError(
            f"{dwi.source or dwi}: the brain mask has {dwi.mask.sum()} voxels, expected at "
            f"least {MIN_MASK_VOXELS}; give another mask"
        )
