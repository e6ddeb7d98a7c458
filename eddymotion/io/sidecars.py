# SPDX-License-Identifier: Apache-2.0
"""The files of a series, and what its metadata say about how it was acquired."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.acquisition import LONGEST_VOLUME, Acquisition, Slicing
from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError, absence, describe_pointer_file
from eddymotion.io.images import image_stem
from eddymotion.wording import PE_AXES, shown, why

log = logging.getLogger(__name__)

SAME_REPETITION = 0.02
"""Part by which the repetition times of sidecar and header may differ unsaid."""

SIDECAR_DEPTH = 3
"""How deep lists and objects of a sidecar are kept: no field that is read goes deeper."""


@dataclass(frozen=True)
class Anatomy:
    """The participant's own anatomical image.

    Parameters
    ----------
    t1w : Path
    brain_mask, white_matter : Path, optional
        On its grid; the latter 0 to 1, or labels (``dseg``).
    uri : str
        BIDS URI of the image.
    """

    t1w: Path
    brain_mask: Path | None = None
    white_matter: Path | None = None
    uri: str = ""


@dataclass(frozen=True)
class MeasuredFiles:
    """The files of a measured off-resonance map, and what has been read of their sidecars.

    Parameters
    ----------
    files : mapping
        ``phasediff``, ``phase1`` and ``phase2``, or ``fieldmap``, and ``magnitude``; none where
        there is no map.
    echo_times : tuple of float
        Of the two echoes, s; those of the sidecars beside the files when not given.
    units : str, optional
        Of ``fieldmap``; likewise.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    echo_times: tuple[float, ...] = ()
    units: str | None = None

    def __bool__(self) -> bool:
        return bool(self.files)


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one series.

    Parameters
    ----------
    dwi, bval, bvec : Path
    uri : str
        How the outputs name their source: a BIDS URI, or a file name outside a dataset.
    metadata : dict
        Of the input's sidecar, as far as it is read.
    problem : str
        Why it cannot be corrected, where that was seen before it was read.
    runs : tuple of SeriesFiles
        The runs of its session that it belongs with, itself among them; none where it is alone.
    is_b0 : bool
        Whether all volumes are b=0.
    measured : MeasuredFiles
        The measured map that is meant for it.
    anatomy : Anatomy, optional
        Where the output is to lie in its space.
    """

    dwi: Path
    bval: Path | None = None
    bvec: Path | None = None
    uri: str = ""
    metadata: dict[str, Any] | None = None
    problem: str = ""
    runs: tuple[SeriesFiles, ...] = ()
    is_b0: bool = False
    measured: MeasuredFiles = field(default_factory=MeasuredFiles)
    anatomy: Anatomy | None = None


def metadata_of(series: SeriesFiles) -> dict[str, Any]:
    """Return the sidecar of a series: the one given, or the one beside the image."""
    return series.metadata if series.metadata is not None else metadata_beside(series.dwi)


def metadata_beside(image: Path) -> dict[str, Any]:
    """Return the sidecar beside an image; empty if there is none."""
    beside = image.with_name(image_stem(image) + ".json")
    return dict(_sidecar(beside, beside.lstat().st_mtime_ns)) if os.path.lexists(beside) else {}


@lru_cache(maxsize=8)
def _sidecar(path: Path, changed: int) -> dict[str, Any]:
    """Read a sidecar, once as long as it is not changed: what is wrong is logged once."""
    return read_sidecar(path)


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read a sidecar; one that cannot be read is logged, and taken for an empty one."""
    if not path.is_file():
        log.warning("%s", absence(path, "slice timing and phase encoding are not known"))
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"found a {type(content).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        problem = (
            f"cannot be read as JSON ({why(error)}); slice timing and phase encoding are not known"
        )
        log.warning("%s", describe_pointer_file(path) or f"{path}: {problem}")
        return {}
    return {key: _shallow(value, SIDECAR_DEPTH) for key, value in content.items()}


def _shallow(value: Any, depth: int) -> Any:
    """Cut off what is nested too deep to be copied, hashed, or written."""
    if not isinstance(value, (list, dict)):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, list):
        return [_shallow(item, depth - 1) for item in value]
    return {key: _shallow(item, depth - 1) for key, item in value.items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_readout(value: Any) -> bool:
    return _is_positive(value) and value < 1


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number_or_numbers(value: Any) -> bool:
    return _is_number(value) or _is_numbers(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_axis(value: Any) -> bool:
    return isinstance(value, str) and value in PE_AXES


NUMBER = _is_number, "a number"
NUMBERS = _is_numbers, "a list of numbers"
EITHER = _is_number_or_numbers, "a number or a list of numbers"
POSITIVE = _is_positive, "a number above zero"
READOUT = _is_readout, "seconds, above 0 and below 1"
TEXT = _is_text, "text"
TEXTS = _is_text_or_texts, "text or a list of texts"
AXIS = _is_axis, f"one of {', '.join(PE_AXES)}"

FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "B0FieldIdentifier": TEXTS,
    "B0FieldSource": TEXTS,
    "EchoTime": EITHER,
    "EchoTime1": POSITIVE,
    "EchoTime2": POSITIVE,
    "EffectiveEchoSpacing": NUMBER,
    "EstimatedEffectiveEchoSpacing": NUMBER,
    "EstimatedTotalReadoutTime": READOUT,
    "FlipAngle": EITHER,
    "IntendedFor": TEXTS,
    "MagneticFieldStrength": NUMBER,
    "Manufacturer": TEXT,
    "ManufacturersModelName": TEXT,
    "MultibandAccelerationFactor": POSITIVE,
    "PhaseEncodingAxis": AXIS,
    "PhaseEncodingDirection": AXIS,
    "ReconMatrixPE": POSITIVE,
    "RepetitionTime": NUMBER,
    "SliceEncodingDirection": AXIS,
    "SliceTiming": NUMBERS,
    "TotalReadoutTime": READOUT,
    "Units": TEXT,
}
"""The fields of a sidecar that are read, and what each has to be."""


SLICE_FIELDS = "SliceEncodingDirection", "SliceTiming", "MultibandAccelerationFactor"
READOUT_FIELDS = (
    "TotalReadoutTime", "EffectiveEchoSpacing", "EstimatedTotalReadoutTime",
    "EstimatedEffectiveEchoSpacing", "ReconMatrixPE",
)  # fmt: skip
ACQUISITION_FIELDS = (
    *SLICE_FIELDS, "PhaseEncodingDirection", "PhaseEncodingAxis", "RepetitionTime",
    *READOUT_FIELDS,
)  # fmt: skip
"""Fields that say what the scanner did: what a result may depend on."""


def usable(metadata: Mapping[str, Any], *keys: str, owner: str = "") -> dict[str, Any]:
    """Return those fields of a sidecar that are there and are what BIDS says they are.

    Parameters
    ----------
    metadata : mapping
    *keys : str
        Fields of :data:`FIELDS`.
    owner : str
        The series for which the others are logged, in a warning each; not logged when not given.
    """
    found = {}
    for key in keys:
        value = metadata.get(key)
        fits, expected = FIELDS[key]
        if value is None:
            continue
        if fits(value):
            found[key] = value
        elif owner:
            log.warning("%s: %s is %s, expected %s; it is ignored",
                        owner, key, shown(value), expected)  # fmt: skip
    return found


def acquisition_of(
    gradients: Gradients,
    metadata: Mapping[str, Any],
    shape: tuple[int, ...],
    affine: np.ndarray,
    repetition_time: float | None,
    owner: str,
) -> Acquisition:
    """Gather what the scanner did from gradients, sidecar and header of a run.

    What cannot be used is logged once, in a warning each, and left out: no field is demanded.

    Parameters
    ----------
    gradients : Gradients
    metadata : mapping
        Of the sidecar.
    shape : tuple of int
        Of a volume.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    repetition_time : float, optional
        Of the header, seconds; that of the sidecar goes before it.
    owner : str
        The series for which it is logged.
    """
    fields = usable(metadata, *ACQUISITION_FIELDS, owner=owner)
    directions = (fields.get(key) for key in ("PhaseEncodingDirection", "PhaseEncodingAxis"))
    direction = next((found for found in directions if found is not None), None)
    return Acquisition.every(
        gradients,
        affine,
        slicing=_slicing(fields, metadata, shape, owner),
        repetition_time=_repetition_time(fields, repetition_time, owner),
        phase_encoding=direction,
        readout_time=readout_time_of(fields, direction, shape),
    )


def readout_time_of(
    fields: Mapping[str, Any], direction: str | None, shape: tuple[int, ...]
) -> float | None:
    """Return ``TotalReadoutTime`` in seconds, or what other fields say that it is.

    BIDS defines it as ``EffectiveEchoSpacing`` times the number of lines of the reconstructed
    image less one. For scanners that store neither, dcm2niix writes estimates of both.

    Parameters
    ----------
    fields : mapping
        Those of :data:`READOUT_FIELDS` that are usable.
    direction : {"i", "j", "k", "i-", "j-", "k-"}, optional
        Of the phase encoding.
    shape : tuple of int
        Of the image, whose lines are counted where there is no ``ReconMatrixPE``.
    """
    of_image = shape["ijk".index(direction[0])] if direction else 0
    intervals = fields.get("ReconMatrixPE", of_image) - 1
    for estimated in ("", "Estimated"):
        spacing = fields.get(f"{estimated}EffectiveEchoSpacing", 0)
        for seconds in (fields.get(f"{estimated}TotalReadoutTime", 0), spacing * intervals):
            if _is_readout(seconds):
                return float(seconds)
    return None


def _repetition_time(
    fields: Mapping[str, Any], of_header: float | None, owner: str
) -> float | None:
    """Return the seconds between volumes: as the sidecar says, else as the header does."""
    seconds = fields.get("RepetitionTime")
    if seconds is None:
        return of_header
    if not 0 < seconds <= LONGEST_VOLUME:
        log.warning("%s: RepetitionTime is %s, expected seconds, above 0 and at most %g; it is "
                    "ignored", owner, shown(seconds), LONGEST_VOLUME)  # fmt: skip
        return of_header
    if of_header is not None and abs(of_header - seconds) > SAME_REPETITION * seconds:
        log.warning("%s: RepetitionTime is %g s in the sidecar, %g s in the header; the sidecar "
                    "is used", owner, seconds, of_header)  # fmt: skip
    return float(seconds)


def _slicing(
    fields: Mapping[str, Any], metadata: Mapping[str, Any], shape: tuple[int, ...], owner: str
) -> Slicing:
    """Read how the slices of a volume were acquired.

    The slice axis holds even where the timing does not fit the image: then slices are taken one by
    one. A timing whose axis cannot be understood is not used.
    """
    direction = "SliceEncodingDirection"
    used = {key: value for key, value in fields.items() if key in SLICE_FIELDS}
    if metadata.get(direction) is not None and direction not in used:
        used.pop("SliceTiming", None)
    try:
        return Slicing.of(used, shape)
    except EddymotionError as error:
        log.warning("%s: %s; slices are judged one by one", owner, error)
        return Slicing.of({key: used[key] for key in used if key == direction}, shape)
