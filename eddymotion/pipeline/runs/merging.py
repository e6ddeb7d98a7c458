# SPDX-License-Identifier: Apache-2.0
"""Corrected runs of a session as one series."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.session import SessionOutputs, write_merged
from eddymotion.images.image import Image
from eddymotion.io.images import read_image
from eddymotion.io.itk import read_itk
from eddymotion.io.series import load
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.transforms import read_linear
from eddymotion.io.writing import read_json
from eddymotion.mapping.off_resonance import LEAST_STRETCH, OffResonance
from eddymotion.pipeline.runs.one_series import averaged, concatenated
from eddymotion.pipeline.settings import Settings

log = logging.getLogger(__name__)


def merge_runs(runs: Sequence[tuple[SeriesFiles, Outputs]], settings: Settings) -> None:
    """Write the corrected runs of a session as one series, beside their own.

    Parameters
    ----------
    runs : sequence of (SeriesFiles, Outputs)
        In order; all corrected.
    settings : Settings
    """
    corrected = [
        load_corrected(outputs["dwi"], outputs["bval"], outputs["bvec"], outputs["mask"], settings)
        for _, outputs in runs
    ]
    names = [run.uri or run.dwi.name for run, _ in runs]
    session = SessionOutputs.of(runs[0][1])
    every = zip(corrected, runs, strict=True)
    stretched = (_stretch_of(outputs, session, dwi) for dwi, (_, outputs) in every)
    write_as_one(session, corrected, stretched, names, settings)


def load_corrected(
    dwi: Path, bval: Path, bvec: Path, mask: Path | None, settings: Settings
) -> DWI:
    """Load what a correction has written."""
    return load(
        dwi, bval=bval, bvec=bvec, mask=mask, b0_threshold=settings.b0_threshold,
        ignore=("tables",), metadata={},
    )  # fmt: skip


def write_as_one(
    session: SessionOutputs,
    corrected: Sequence[DWI],
    stretched: Iterable[tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    settings: Settings,
) -> None:
    """Write corrected runs as one series, as ``settings.distortion_group_merge`` says.

    Parameters
    ----------
    session : SessionOutputs
    corrected : sequence of DWI
        In one frame, on one grid.
    stretched : iterable of (X, Y, Z) and (3,) array
        How the field stretched each, and where a hertz displaced it; asked for where they count.
    names : sequence of str
    settings : Settings
    """
    how = settings.distortion_group_merge
    times = {run.repetition_time for run in corrected}
    repetition_time = times.pop() if len(times) == 1 else None
    if how == "concat":
        write_merged(session, concatenated(corrected), how, names, 0, repetition_time)
        return
    stretches, shifts = zip(*stretched, strict=True)
    merged, pairs = averaged(corrected, stretches, np.array(shifts))
    if 2 * pairs < sum(map(len, corrected)):
        log.warning(
            "%s: %d of %d volumes have a partner of opposite polarity with the same gradient; "
            "the others are kept unchanged", session.who, 2 * pairs, sum(map(len, corrected)),
        )  # fmt: skip
    write_merged(session, merged, how, names, pairs, repetition_time)


def _stretch_of(
    outputs: Outputs, session: SessionOutputs, corrected: DWI
) -> tuple[np.ndarray, np.ndarray]:
    """Recall from the outputs of a run how its field stretched it, and which way."""
    sidecar = read_json(outputs["sidecar"])
    shift = np.array(sidecar.get("MillimetresPerHertz") or [0.0] * 3, float)
    if not sidecar.get("OffResonanceCorrected") or not session.field.path("coeff").is_file():
        return np.ones(corrected.shape, np.float32), shift
    coefficients, lattice, _ = read_image(session.field.path("coeff"))
    pose, affine = read_itk(outputs["xfm"])[corrected.reference], corrected.affine
    if outputs["space"].is_file():
        grid = Image(np.empty(corrected.shape), affine)
        affine = read_linear(outputs["space"], grid, grid) @ affine
    field = OffResonance(coefficients, lattice)
    return stretch_on(corrected.shape, affine, field, pose, shift), shift


def stretch_on(
    shape: Sequence[int],
    affine: np.ndarray,
    field: OffResonance,
    pose: np.ndarray,
    shift: np.ndarray,
) -> np.ndarray:
    """Return recorded millimetres a millimetre on a grid, (X, Y, Z): of a head at rest at a pose.

    Of coefficients in single precision, as they are written.
    """
    written = replace(field, coefficients=field.coefficients.astype(np.float32))
    _, slopes = written.on_grid_with_gradient(tuple(shape), affine)
    along = (pose[:3, :3].T @ shift).astype(np.float32)
    return np.maximum(1.0 + slopes @ along, LEAST_STRETCH)
