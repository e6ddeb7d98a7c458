# SPDX-License-Identifier: Apache-2.0
"""The files of a series, and what its metadata tell of how it was acquired."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eddymotion.data.acquisition import Slicing
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError, absence, stand_in
from eddymotion.io.images import image_stem
from eddymotion.wording import PE_AXES, shown, why

log = logging.getLogger(__name__)

SIDECAR_DEPTH = 3
"""How deep lists and objects of a sidecar are kept: no field that is read goes deeper."""


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
    """

    dwi: Path
    bval: Path | None = None
    bvec: Path | None = None
    uri: str = ""
    metadata: dict[str, Any] | None = None
    problem: str = ""


def metadata_of(series: SeriesFiles) -> dict[str, Any]:
    """Return the sidecar of a series: the one given, or the one beside the image."""
    if series.metadata is not None:
        return series.metadata
    beside = series.dwi.with_name(image_stem(series.dwi) + ".json")
    return dict(_sidecar(beside, beside.lstat().st_mtime_ns)) if os.path.lexists(beside) else {}


@lru_cache(maxsize=8)
def _sidecar(path: Path, changed: int) -> dict[str, Any]:
    """Read a sidecar, once as long as it is not changed: what is wrong is told once."""
    return read_sidecar(path)


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read a sidecar; one that cannot be read is told, and taken for an empty one."""
    if not path.is_file():
        log.warning("%s", absence(path, "slice timing and phase encoding are not known"))
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"found a {type(content).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        said = (
            f"cannot be read as JSON ({why(error)}); slice timing and phase encoding are not known"
        )
        log.warning("%s", stand_in(path) or f"{path}: {said}")
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


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number_or_numbers(value: Any) -> bool:
    return _is_number(value) or _is_numbers(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_axis(value: Any) -> bool:
    return isinstance(value, str) and value in PE_AXES


NUMBER = _is_number, "a number"
NUMBERS = _is_numbers, "a list of numbers"
EITHER = _is_number_or_numbers, "a number or a list of numbers"
POSITIVE = _is_positive, "a number above zero"
TEXT = _is_text, "text"
AXIS = _is_axis, f"one of {', '.join(PE_AXES)}"

FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "EchoTime": EITHER,
    "EffectiveEchoSpacing": NUMBER,
    "FlipAngle": EITHER,
    "MagneticFieldStrength": NUMBER,
    "Manufacturer": TEXT,
    "ManufacturersModelName": TEXT,
    "MultibandAccelerationFactor": POSITIVE,
    "PhaseEncodingAxis": AXIS,
    "PhaseEncodingDirection": AXIS,
    "RepetitionTime": NUMBER,
    "SliceEncodingDirection": AXIS,
    "SliceTiming": NUMBERS,
    "TotalReadoutTime": POSITIVE,
}
"""The fields of a sidecar that are read, and what each has to be."""


def usable(metadata: Mapping[str, Any], *keys: str, owner: str = "") -> dict[str, Any]:
    """Return those fields of a sidecar that are there and are what BIDS says they are.

    Parameters
    ----------
    metadata : mapping
    *keys : str
        Fields of :data:`FIELDS`.
    owner : str
        The series for which the others are told, in a warning each; not told when not given.
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


def slicing_of(series: SeriesFiles, dwi: DWI, *, tell: bool = True) -> Slicing:
    """Tell from the sidecar how the volumes were acquired.

    The slice axis holds even where the timing does not fit the image: then slices are taken one by
    one. A timing whose axis cannot be understood is not used. What is wrong is told, if not told
    before.
    """
    metadata, direction = metadata_of(series), "SliceEncodingDirection"
    keys = direction, "SliceTiming", "MultibandAccelerationFactor"
    fields = usable(metadata, *keys, owner=series.dwi.name if tell else "")
    if metadata.get(direction) is not None and direction not in fields:
        fields.pop("SliceTiming", None)
    try:
        return Slicing.of(fields, dwi.shape)
    except EddymotionError as error:
        if tell:
            log.warning("%s: %s; slices are judged one by one", series.dwi.name, error)
        return Slicing.of(usable(fields, direction), dwi.shape)


def phase_encoding(series: SeriesFiles, *, tell: bool = True) -> str | None:
    """Return the phase-encoding direction that the metadata tell: i, j, k, i-, j- or k-."""
    keys = "PhaseEncodingDirection", "PhaseEncodingAxis"
    found = usable(metadata_of(series), *keys, owner=series.dwi.name if tell else "")
    return next(iter(found.values()), None)
