# SPDX-License-Identifier: Apache-2.0
"""The files of a series, and what its metadata tell of how it was acquired."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eddymotion.dataset import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.slicing import PLAIN, Slicing
from eddymotion.files import image_stem
from eddymotion.names import PE_AXES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one series.

    Parameters
    ----------
    dwi, bval, bvec : Path
    uri : str
        How the outputs name their source: a BIDS URI, or a file name outside a dataset.
    metadata : dict
        Of the input's sidecar.
    """

    dwi: Path
    bval: Path | None = None
    bvec: Path | None = None
    uri: str = ""
    metadata: dict[str, Any] | None = None


def metadata_of(series: SeriesFiles) -> dict[str, Any]:
    """Return the sidecar of a series: the one given, or the one beside the image."""
    if series.metadata is not None:
        return series.metadata
    beside = series.dwi.with_name(image_stem(series.dwi) + ".json")
    return dict(_sidecar(beside, beside.stat().st_mtime_ns)) if beside.is_file() else {}


@lru_cache(maxsize=8)
def _sidecar(path: Path, changed: int) -> dict[str, Any]:
    """Read a sidecar, once as long as it is not changed: what is wrong is told once."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"found a {type(content).__name__}, expected an object")
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read as JSON (%s); slice timing and phase encoding are not "
                    "known", path, error)  # fmt: skip
        return {}
    return content


def slicing_of(series: SeriesFiles, dwi: DWI) -> Slicing:
    """Tell from the sidecar how the volumes were acquired; plain slices where it does not fit."""
    try:
        return Slicing.of(metadata_of(series), dwi.shape)
    except EddymotionError as error:
        log.warning("%s: %s; slices are judged one by one", series.dwi.name, error)
        return PLAIN


def phase_encoding(series: SeriesFiles) -> str | None:
    """Return the phase-encoding direction that the metadata tell: i, j, k, i-, j- or k-."""
    metadata = metadata_of(series)
    for key in ("PhaseEncodingDirection", "PhaseEncodingAxis"):
        value = metadata.get(key)
        if value in PE_AXES:
            return str(value)
        if value is not None:
            log.warning("%s: %s is %r, expected one of %s; it is ignored",
                        series.dwi.name, key, value, ", ".join(PE_AXES))  # fmt: skip
    return None
