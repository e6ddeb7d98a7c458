# SPDX-License-Identifier: Apache-2.0
"""The step behind ``eddymotion-register``: paths in → paths out."""

from __future__ import annotations

import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.evaluation.landmarks import errors_of
from eddymotion.images.grid import grid_center
from eddymotion.io.transforms import read_linear
from eddymotion.io.writing import refuse_overwriting
from eddymotion.pairs.inputs import FilePair, PairPaths, PairSettings
from eddymotion.pairs.measures import PairQuality
from eddymotion.pairs.outputs import PairOutputs, write_all
from eddymotion.pairs.summary import summary_of_pair
from eddymotion.registration import Registrar, Registration, get_registrar, initial_transform
from eddymotion.registration.checks import inside_grid

ORDERS = {"nearest": 0, "linear": 1, "cubic": 3}
"""Names of interpolations → orders of splines."""

MIN_COMMON = 50
"""Voxels of the fixed image that the moving one must show where the search starts."""


def register_pair(paths: PairPaths, prefix: Path, settings: PairSettings) -> dict[str, Any]:
    """Register two images and write all that is reported of it.

    Parameters
    ----------
    paths : PairPaths
    prefix : Path
        How the names of the outputs begin.
    settings : PairSettings

    Returns
    -------
    dict
        What ``PREFIX.json`` holds.

    Raises
    ------
    EddymotionError
        If the files or options cannot be used, or the engine fails; nothing is written then.
    """
    outputs = PairOutputs(prefix)
    refuse_overwriting(outputs.all(), paths)
    registrar = registrar_for(settings)
    pair = FilePair.read(paths, settings)
    started = time.perf_counter()
    start = find_start(pair, paths, settings)
    refuse_no_overlap(pair, paths, settings, start)
    registration = registrar.register(
        pair.fixed, pair.moving, transform=settings.transform, metric=settings.metric,
        fixed_mask=pair.fixed_mask, moving_mask=pair.moving_mask, init=start,
        seed=settings.random_seed,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    nothing = Registration(np.eye(4), True, "as positioned by the headers")
    before = pair.compared(nothing, 1)
    after = pair.compared(registration, ORDERS[settings.interpolation])
    linear = None
    if registration.warp is not None:
        linear = pair.compared(replace(registration, warp=None), 1).agreement
    quality = PairQuality.of(
        registration, pair.fixed, pair.head, before.agreement, after.agreement, linear
    )
    how = {
        "transform": settings.transform,
        "metric": settings.metric or default_metric(registrar, settings.transform),
        "started": "init" if paths.init else settings.initialize,
    }
    errors = None
    if pair.landmarks:
        points = pair.landmarks[0].points
        mapped, wrong_way = registration.map(points), registration.map(points, inverse=True)
        errors = errors_of(*pair.landmarks, mapped, wrong_way)
    summary = summary_of_pair(paths, settings, how, quality, errors, seconds)
    write_all(pair, outputs, settings, registration, (before, after), errors, summary)
    return summary


def registrar_for(settings: PairSettings) -> Registrar:
    """Build the engine, with its threads, and make sure that it offers the transform."""
    registrar = get_registrar(settings.engine, settings.settings)
    if settings.transform not in registrar.transforms:
        raise EddymotionError(
            f"--transform {settings.transform}: {settings.engine} offers "
            f"{', '.join(registrar.transforms)}; use one of these, or another --backend"
        )
    stated = is_dataclass(registrar) and "n_threads" in {entry.name for entry in fields(registrar)}
    if stated and registrar.n_threads == 1:  # type: ignore[attr-defined]
        registrar = replace(registrar, n_threads=settings.nprocs)  # type: ignore[type-var]
    return registrar


def default_metric(registrar: Registrar, transform: str) -> str:
    """Return what an engine minimises if nobody says, in its last stage."""
    return "cc" if transform == "syn" and "cc" in registrar.metrics else registrar.metrics[0]


def find_start(pair: FilePair, paths: PairPaths, settings: PairSettings) -> np.ndarray:
    """Return where the search starts: what a file says, or what is found."""
    if paths.init:
        return read_linear(paths.init, pair.fixed, pair.moving)
    return initial_transform(
        pair.fixed, pair.moving, settings.initialize, fixed_mask=pair.fixed_mask,
        moving_mask=pair.moving_mask, seed=settings.random_seed,
    )  # fmt: skip


def refuse_no_overlap(
    pair: FilePair, paths: PairPaths, settings: PairSettings, start: np.ndarray
) -> None:
    """Raise if the moving image shows nothing of the fixed one where the search starts."""
    voxels = np.argwhere(pair.head)
    points = apply_affine(pair.fixed.affine, voxels)
    moved = apply_affine(start, points)
    if inside_grid(moved, pair.moving).sum() >= min(MIN_COMMON, len(voxels)):
        return
    apart = np.linalg.norm(
        moved.mean(axis=0) - grid_center(pair.moving.data.shape, pair.moving.affine)
    )
    tried = f"the transform in {paths.init}" if paths.init else "the coordinates in the headers"
    advice = "--initialize mass, or multi" if settings.initialize == "header" else "another --init"
    raise EddymotionError(
        f"{paths.moving}: does not overlap {paths.fixed} under {tried} (their centres are "
        f"{apart:.0f} mm apart); try {advice}"
    )
