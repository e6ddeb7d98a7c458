# SPDX-License-Identifier: Apache-2.0
"""Runs of b=0 volumes alone, which need no tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.runs.run_image import RunImage, align_b0s
from eddymotion.images.gaps import fill_missing
from eddymotion.images.masking import brain_mask
from eddymotion.io.images import read_image
from eddymotion.io.sidecars import SeriesFiles, acquisition_of, metadata_of
from eddymotion.machine.parallel import Compute
from eddymotion.pipeline.settings import Settings

log = logging.getLogger(__name__)

LEAST_VOXELS = 4
"""Of an image that shows the off-resonance field, along each axis."""


def is_readable(run: SeriesFiles, ignore: Sequence[str]) -> bool:
    """Whether a run of b=0 alone can be used; a warning says why not."""
    try:
        _signal_of_b0s(run, ignore)
    except EddymotionError as error:
        log.warning("%s: excluded from the runs of its session (%s)", run.dwi.name, error)
        return False
    return True


def image_of_b0s(run: SeriesFiles, settings: Settings) -> RunImage:
    """Take what counts from a run of b=0 volumes alone, its volumes aligned."""
    dwi = load_b0s(run, settings.ignore)
    compute = Compute(settings.nprocs, settings.random_seed)
    return RunImage.of(dwi, align_b0s(dwi, compute), settings.nprocs)


def load_b0s(run: SeriesFiles, ignore: Sequence[str] = ()) -> DWI:
    """Load a run of b=0 volumes alone, which needs no tables; a 3-D image is one."""
    signal, affine = _signal_of_b0s(run, ignore)
    n_volumes = signal.shape[3]
    gradients = Gradients(np.zeros(n_volumes), np.zeros((n_volumes, 3)))
    acquisition: Acquisition = acquisition_of(
        gradients, metadata_of(run), signal.shape[:3], affine, None, run.dwi.name
    )
    return DWI(signal, affine, acquisition, brain_mask(signal.mean(axis=3)), run.dwi)


def _signal_of_b0s(run: SeriesFiles, ignore: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the volumes (X, Y, Z, N) of a run of b=0 alone, and their affine.

    Raises
    ------
    EddymotionError
        If it cannot be read, or shows nothing.
    """
    signal, affine, _ = read_image(run.dwi, ignore)
    signal = np.array(signal if signal.ndim == 4 else signal[..., None])
    if signal.ndim != 4 or min(signal.shape[:3]) < LEAST_VOXELS:
        raise EddymotionError(
            f"{run.dwi}: found an image of shape {signal.shape}, expected volumes of "
            f"{LEAST_VOXELS} or more voxels along each axis"
        )
    for volume in np.moveaxis(signal, 3, 0):
        fill_missing(volume)
    blank = np.flatnonzero(np.ptp(signal, axis=(0, 1, 2)) == 0)
    if len(blank):
        raise EddymotionError(f"{run.dwi}: all voxels of volume {blank[0]} have the same value")
    return signal, affine
