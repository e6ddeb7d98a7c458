# SPDX-License-Identifier: Apache-2.0
"""The stages of correcting a series, as the settings say: one function each.

:mod:`eddymotion.pipeline.correct` runs them in one process, the nodes of a workflow one by one,
with files in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI, Series
from eddymotion.errors import EddymotionError
from eddymotion.estimation import Quality, assess, choose_estimator, estimate_motion
from eddymotion.estimation.estimators import Estimator
from eddymotion.estimation.quality import assess_both
from eddymotion.estimation.replacement import Replaced
from eddymotion.io.series import load
from eddymotion.io.sidecars import SeriesFiles, metadata_of
from eddymotion.io.tables import TABLES, table_named_after
from eddymotion.machine.compiling import get_ready
from eddymotion.machine.memory import give_back_memory
from eddymotion.machine.parallel import Progress, import_beside
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model, get_model
from eddymotion.pipeline.output_space.space import OutputSpace
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.target import Target
from eddymotion.registration.registry import chosen_registrar
from eddymotion.reports.series import DRAWN_WITH
from eddymotion.resampling import Engine, Resampled

log = logging.getLogger(__name__)

ENGINES: Mapping[Engine, str] = {"nitransforms": "NiTransforms", "fast": "the compiled kernel"}
"""Engine → its name in messages."""


class Stages:
    """Seconds of each stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure how long the code inside takes."""
        log.debug("%s", name, extra={"stage": name})
        give_back_memory()
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def __str__(self) -> str:
        rounded = {name: f"{seconds:.1f}" for name, seconds in self.seconds.items()}
        parts = ", ".join(f"{name} {text}" for name, text in rounded.items() if text != "0.0")
        return f"{sum(self.seconds.values()):.1f} s ({parts})"


def get_ready_to_estimate() -> None:
    """Import the modules of the estimation while the series is read and its mask computed."""
    import_beside("scipy.ndimage", "scipy.linalg", "scipy.spatial", then=get_ready)


def get_ready_to_write() -> None:
    """Import the modules that resample and draw while the motion is estimated."""
    import_beside("nitransforms.resampling", *DRAWN_WITH)


def load_series(series: SeriesFiles, settings: Settings) -> DWI:
    """Load a series as the settings say."""
    if series.problem:
        raise EddymotionError(series.problem)
    dwi = load(
        series.dwi,
        bval=series.bval,
        bvec=series.bvec,
        mask=settings.brain_mask,
        b0_threshold=settings.b0_threshold,
        ignore=settings.ignore,
        metadata=metadata_of(series),
    )
    if not len(dwi.gradients.dwis):
        raise EddymotionError(
            f"{series.dwi}: found 0 diffusion-weighted volume(s) above "
            f"b={settings.b0_threshold:g}, expected at least 2, since each is predicted from the "
            "others; check the .bval or lower --b0-threshold, or give it together with the run "
            "whose distortion it shows"
        )
    if settings.pe_axis:
        dwi = replace(dwi, acquisition=dwi.acquisition.encoded(settings.pe_axis, dwi.affine))
    log.info("%s: %s", series.dwi.name, dwi)
    return dwi


def tables_of(series: SeriesFiles) -> tuple[Path, Path]:
    """Return the paths of b-values and b-vectors: those given, or those beside the image."""
    bval, bvec = (table_named_after(series.dwi, suffix) for suffix in TABLES)
    return series.bval or bval, series.bvec or bvec


def model_for(gradients: Gradients, settings: Settings) -> Model:
    """Choose the model of a series as the settings say."""
    return get_model(
        settings.model,
        gradients,
        min_q_distance=settings.min_q_distance,
        n_procs=settings.nprocs,
    )


def find_motion(dwi: DWI, model: Model, settings: Settings, progress: Progress) -> Motion:
    """Estimate the motion as the settings say."""
    return estimate_motion(
        dwi,
        estimator=estimator_of(settings, model, dwi.gradients),
        align_shells=not settings.no_shell_alignment,
        random_seed=settings.random_seed,
        n_threads=settings.nprocs,
        progress=progress,
    )


def estimator_of(settings: Settings, model: Model, gradients: Gradients) -> Estimator:
    """Choose the estimator of a series as the settings say."""
    within = settings.within_volume
    return choose_estimator(
        settings.estimator,
        model,
        chosen_registrar(settings.registration, settings.registration_settings),
        gradients=gradients,
        n_iterations=settings.n_iterations,
        eddy_current=settings.eddy_current,
        within_volume=int(within) if within.isdecimal() else within,
    )


def judge_both(
    dwi: DWI, motion: Motion, model: Model, settings: Settings
) -> tuple[Quality, Quality]:
    """Compare volumes with their predictions, before and after correction."""
    seed, n_threads = settings.random_seed, settings.nprocs
    before, after = assess_both(dwi, motion, model, random_seed=seed, n_threads=n_threads)
    _refuse_without_predictions(dwi, after, settings)
    return before, after


def judge(dwi: DWI, motion: Motion, model: Model, settings: Settings) -> Quality:
    """Compare each volume with its prediction, as the settings say."""
    found = assess(dwi, motion, model, random_seed=settings.random_seed, n_threads=settings.nprocs)
    _refuse_without_predictions(dwi, found, settings)
    return found


def _refuse_without_predictions(dwi: DWI, found: Quality, settings: Settings) -> None:
    """Raise if no volume is left from which another one could be predicted."""
    correlations = found.correlation[dwi.gradients.dwis]
    if settings.min_q_distance > 0 and not np.isfinite(correlations).any():
        raise EddymotionError(
            f"--min-q-distance {settings.min_q_distance:g} leaves no volume to predict another "
            "one from; use a smaller value"
        )


def engine_of(settings: Settings) -> Engine:
    """Choose the engine of interpolation as the settings say."""
    default = "nitransforms" if settings.output_space is None else "fast"
    return "fast" if (settings.resampling or default) == "fast" else "nitransforms"


def corrected_series(
    dwi: DWI,
    motion: Motion,
    settings: Settings,
    target: Target | None,
    space: OutputSpace | None,
    quality: Quality | None,
    progress: Progress,
) -> Series:
    """Return the corrected series, resampled when its volumes are read.

    Predictions take the place of lost slices if the settings ask for that. The compiled kernel,
    the default for an output grid of its own (which has many more voxels), must agree with
    NiTransforms on one volume.
    """
    grid, n_threads = None if target is None else target.grid_for(dwi), settings.nprocs
    engine = engine_of(settings)
    resampled = Resampled.of(
        dwi, motion, engine=engine, grid=grid, space=space, n_threads=n_threads
    )
    if engine == "fast" and not resampled.kernel_agrees:
        log.warning("the compiled kernel disagrees with NiTransforms here; NiTransforms is used")
        resampled = replace(resampled, engine="nitransforms")
    n_moved = int(motion.moved_within.sum())
    if n_moved:
        log.info(
            "the head moved within %d of %d volumes: these are rebuilt slice by slice, each at "
            "its own pose, the others by %s", n_moved, len(dwi), ENGINES[resampled.engine],
        )  # fmt: skip
    wanted = settings.replace_outliers or n_moved > 0
    if not wanted or quality is None or quality.model is None:
        return resampled
    return Replaced.of(
        resampled,
        quality.model,
        quality.outliers,
        lost=settings.replace_outliers,
        n_threads=n_threads,
        progress=progress,
    )
