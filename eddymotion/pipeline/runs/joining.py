# SPDX-License-Identifier: Apache-2.0
"""Runs joined as the settings say, with a field that images show, or that is measured or given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.estimation.off_resonance.measured import MeasuredMap
from eddymotion.estimation.runs import join_runs
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.estimation.runs.readouts import readouts_of, tell_field
from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.fieldmaps.inputs import FieldmapPaths, FieldmapSettings, read_measured
from eddymotion.images.image import Image
from eddymotion.io.images import read_image
from eddymotion.io.sidecars import MeasuredFiles, metadata_beside, usable
from eddymotion.io.topup import is_topup_coefficients, topup_field
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.pipeline.settings import Settings
from eddymotion.registration.checks import inside_grid

log = logging.getLogger(__name__)

SIDECAR = '{"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05}'
"""An example of what a sidecar says about off-resonance."""

COVERED = 0.5
"""Part of the brain in which a field has to be known: it is 0.8 and more where edges are cut."""


def joined_of(
    images: Sequence[RunImage], measured: MeasuredFiles, settings: Settings
) -> JoinedRuns:
    """Join runs as the settings say.

    Parameters
    ----------
    images : sequence of RunImage
        In order, runs of b=0 alone last.
    measured : MeasuredFiles
        A measured map.
    settings : Settings
    """
    field, wanted = None, measured and "fieldmaps" not in settings.ignore
    if settings.fieldmap is not None:
        field = _given_field(settings.fieldmap, images[0], settings.ignore)
    elif wanted and not tell_field(images, readouts_of(images)):
        field = _measured_field(images, measured, settings)
    joined = join_runs(
        images,
        field=field,
        seeks_field="fieldmaps" not in settings.ignore,
        compute=Compute(settings.nprocs, settings.random_seed),
    )
    if settings.fieldmap is not None and not np.isfinite(joined.shifts).any():
        raise EddymotionError(
            f"{settings.fieldmap}: cannot be used without PhaseEncodingDirection and "
            f"TotalReadoutTime in the sidecar of the series; add them, as {SIDECAR} in a .json "
            "file next to the image, with its name"
        )
    beside = None
    if wanted and field is None and joined.field is not None:
        beside = _beside(joined, measured, settings)
    return replace(joined, modulated="fmap-jacobian" not in settings.ignore, beside=beside)


def _beside(joined: JoinedRuns, files: MeasuredFiles, settings: Settings) -> np.ndarray | None:
    """Bring a measured map to runs that showed a field without it, if that can be done."""
    try:
        measured = _read(files, settings.ignore)
        mean = Image(joined.mean, joined.affine)
        return measured.beside(mean, joined.mask, settings.random_seed)
    except EddymotionError as error:
        log.warning("%s: not compared with the field of the runs (%s)", _names(files), error)
        return None


def _measured_field(
    runs: Sequence[RunImage], files: MeasuredFiles, settings: Settings
) -> OffResonance | None:
    """Make the field of a measured map in the frame of the first run, if that can be done."""
    first, readout = runs[0], readouts_of(runs, measured=True)[0]
    if readout is None:
        log.warning(
            "%s: not used, since the displacement of the series by off-resonance is not known; "
            "add PhaseEncodingDirection and TotalReadoutTime to its sidecar", _names(files)
        )  # fmt: skip
        return None
    try:
        measured = _read(files, settings.ignore)
        if measured.magnitude is None:
            _refuse_elsewhere(measured, first)
        return measured.field_for(first.image, readout, first.brain, settings.random_seed)
    except EddymotionError as error:
        log.warning("%s: not used (%s)", _names(files), error)
        return None


def _read(measured: MeasuredFiles, ignore: Sequence[str]) -> MeasuredMap:
    settings = FieldmapSettings(
        echo_times=measured.echo_times, units=measured.units, ignore=tuple(ignore)
    )
    return read_measured(FieldmapPaths((), **measured.files), settings)


def _names(measured: MeasuredFiles) -> str:
    return ", ".join(path.name for path in measured.files.values())


def _given_field(path: Path, first: RunImage, ignore: Sequence[str] = ()) -> OffResonance:
    """Read a field in the frame of the first run.

    Raises
    ------
    EddymotionError
        If it is none in three dimensions, or lies elsewhere.
    """
    if is_topup_coefficients(path):
        return topup_field(path, first.image.data.shape, first.image.affine)
    data, affine, _ = read_image(path, ignore)
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    if data.ndim != 3:
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape}, expected a field in Hz of three "
            "dimensions"
        )
    units = usable(metadata_beside(path), "Units", owner=path.name).get("Units", "Hz")
    measured = MeasuredMap.in_units(Image(data, affine), units)
    _refuse_elsewhere(replace(measured, known=np.isfinite(data)), first, f"{path}: ")
    return OffResonance.of_image(measured.hertz)


def _refuse_elsewhere(measured: MeasuredMap, first: RunImage, owner: str = "") -> None:
    """Raise if a map that is not registered does not cover most of the brain."""
    points = apply_affine(first.image.affine, np.argwhere(first.brain))
    covered = inside_grid(points, measured.hertz, measured.known).mean()
    if covered < COVERED:
        raise EddymotionError(
            f"{owner}covers {covered:.0%} of the brain of the first run, expected "
            f"{COVERED:.0%} or more; give one in its frame"
        )
