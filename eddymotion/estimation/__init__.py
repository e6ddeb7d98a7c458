# SPDX-License-Identifier: Apache-2.0
"""Series → motion."""

from __future__ import annotations

import logging

import numpy as np

from eddymotion.data.acquisition import Slicing
from eddymotion.data.checks import doubts
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError, check_kind
from eddymotion.estimation.estimate import with_larger_errors
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.joint import (
    FEW_FOR_FIELDS,
    FINE_ITERATIONS,
    fields_are_sought,
    solve_jointly,
)
from eddymotion.estimation.lovo import leave_one_out_loop
from eddymotion.estimation.quality import Quality, assess, described
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.eddy_currents import N_TERMS
from eddymotion.mapping.motion import Motion
from eddymotion.models import AverageModel, LinearModel, Model, get_model
from eddymotion.registration import GaussNewton, Registrar, get_registrar
from eddymotion.wording import shown

__all__ = ["Quality", "assess", "choose_estimator", "estimate_motion"]

log = logging.getLogger(__name__)

FIELD_ORDERS = ("auto", *N_TERMS)

ESTIMATORS = ("joint", "lovo")

LOOP_PASSES = 5

MIN_SLICES = 3
MIN_MASK_VOXELS = 200

LARGEST_SIGNAL = 1e15
"""Of which sums of squares still fit single precision."""


def estimate_motion(
    dwi: DWI,
    *,
    model: Model | str = "auto",
    registrar: Registrar | str | None = None,
    estimator: str | None = None,
    n_iterations: int | None = None,
    align_shells: bool = True,
    eddy_currents: str = "auto",
    pe_axis: str | None = None,
    slicing: Slicing | None = None,
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
    registrar : Registrar or str, optional
        What registers a volume to its prediction in the leave-one-out loop
        (:class:`~eddymotion.registration.GaussNewton` when not given); one that is given asks for
        the loop.
    estimator : {"joint", "lovo"}, optional
        All volumes at once, or the leave-one-out loop, which takes any model and any registrar.
        When not given, ``joint`` unless the model or the registrar asks for the loop.
    n_iterations : int, optional
        Passes of the loop (5), or the largest number of steps at each level of ``joint`` (20).
    align_shells : bool
        Whether to bring diffusion-weighted and b=0 volumes into one frame.
    eddy_currents : {"auto", "none", "linear", "quadratic", "cubic"}
        Eddy-current fields to estimate with the poses, by ``joint`` only, from six
        diffusion-weighted volumes on. ``auto``: as many terms as the scheme allows and the data
        show.
    pe_axis, slicing
        Deprecated: what the scanner did is in ``dwi.acquisition``, which :func:`eddymotion.load`
        reads from the sidecar. Without a phase encoding there its axis is found from the data;
        slices that lost signal are sought one by one, and together where they were excited
        together.
    seed : int
        Of the random sampling points.
    n_threads : int
        The result does not depend on it.
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    Motion
        Reference → volume; the identity for the first b=0. With standard errors from ``joint``.
    """
    check_kind(dwi, DWI, "estimate_motion")
    dwi = described(dwi, pe_axis=pe_axis, slicing=slicing)
    _refuse_unknown(n_iterations, eddy_currents)
    _refuse_unusable(dwi)
    found = doubts(dwi)
    for doubt in found:
        log.warning("%s: %s", dwi.source.name if dwi.source else "series", doubt.text)
    if isinstance(model, str):
        model = get_model(model, dwi.gradients)
    if isinstance(registrar, str):
        registrar = get_registrar(registrar)
    chosen, reason = choose_estimator(estimator, model, registrar), why_loop(model, registrar)
    log.info("estimator: %s%s", chosen, reason and f" ({reason})")
    _tell_unused(dwi, chosen, model, eddy_currents)
    if chosen == "joint" and isinstance(model, LinearModel):
        estimate = solve_jointly(
            dwi,
            model=model,
            n_iterations=n_iterations or FINE_ITERATIONS,
            eddy_currents=eddy_currents,
            seed=seed,
            n_threads=n_threads,
            progress=progress,
        )
    else:
        estimate = leave_one_out_loop(
            dwi,
            model=model,
            registrar=registrar or GaussNewton(),
            n_iterations=n_iterations or LOOP_PASSES,
            seed=seed,
            n_threads=n_threads,
            progress=progress,
        )
    groups = estimate.groups
    if groups is None and isinstance(model, AverageModel):
        groups = dwi.gradients.shells  # no frame is shared
    motion = unite_frames(
        dwi, estimate, groups=groups, align_shells=align_shells, seed=seed, n_threads=n_threads
    )
    for doubt in found:
        motion = with_larger_errors(motion, dwi.center, lost=doubt.lost, factor=doubt.factor)
    return motion


def choose_estimator(name: str | None, model: Model, registrar: Registrar | None) -> str:
    """Choose the estimator that model and registrar (None: not chosen) allow.

    Raises
    ------
    EddymotionError
        If the one asked for cannot use them.
    """
    if name not in (None, *ESTIMATORS):
        raise EddymotionError(
            f"estimator {shown(name)} is unknown; use one of {', '.join(ESTIMATORS)}"
        )
    needs_loop = why_loop(model, registrar)
    if name == "joint" and needs_loop:
        raise EddymotionError(
            f"estimator joint: {needs_loop}; use --estimator lovo, or --model gp and the "
            "default registration"
        )
    return name or ("lovo" if needs_loop else "joint")


def why_loop(model: Model, registrar: Registrar | None) -> str:
    """Say why the leave-one-out loop alone can use model and registrar; empty if it need not."""
    if not isinstance(model, LinearModel):
        return f"the model {type(model).__name__} is not linear in the signal"
    return "" if registrar is None else "a registration was chosen"


def _refuse_unknown(n_iterations: int | None, eddy_currents: str) -> None:
    if n_iterations is not None and n_iterations < 1:
        raise EddymotionError(f"n_iterations is {n_iterations}, expected at least 1")
    if eddy_currents not in FIELD_ORDERS:
        raise EddymotionError(
            f"eddy_currents is {shown(eddy_currents)}, expected one of {', '.join(FIELD_ORDERS)}"
        )


def _tell_unused(dwi: DWI, estimator: str, model: Model, eddy_currents: str) -> None:
    """Refuse what the estimator cannot do, and say what it has no use for.

    Raises
    ------
    EddymotionError
        If fields of an order are asked of the leave-one-out loop.
    """
    if estimator == "lovo" and eddy_currents not in ("auto", "none"):
        raise EddymotionError(
            f"eddy currents {eddy_currents}: only the estimator joint estimates fields; use "
            "--estimator joint, or --eddy-current none"
        )
    sought = estimator == "joint" and fields_are_sought(dwi.gradients, eddy_currents)
    if not sought and eddy_currents != "none":
        level = logging.INFO if eddy_currents == "auto" else logging.WARNING
        log.log(
            level,
            "eddy currents %s: no fields are estimated, %s",
            eddy_currents,
            "since the leave-one-out loop has none"
            if estimator == "lovo"
            else f"since that takes {FEW_FOR_FIELDS} diffusion-weighted volumes and there are "
            f"{len(dwi.gradients.dwis)}",
        )
    if estimator == "joint" and getattr(model, "min_q_distance", 0.0) > 0:
        log.info("min_q_distance: joint uses it where slices are judged, not for the motion")


def _refuse_unusable(dwi: DWI) -> None:
    if min(dwi.shape) < MIN_SLICES:
        raise EddymotionError(
            f"{dwi!r}: found {min(dwi.shape)} voxels along one axis, expected at least "
            f"{MIN_SLICES}; rigid motion in 3-D cannot be seen in less: give the whole series"
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
            "from 0) have one value; remove it from the image, the .bval and the .bvec"
        )
    if dwi.mask.sum() < MIN_MASK_VOXELS:
        raise EddymotionError(
            f"{dwi.source or dwi}: the brain mask has {dwi.mask.sum()} voxels, expected at "
            f"least {MIN_MASK_VOXELS}; give another mask"
        )
