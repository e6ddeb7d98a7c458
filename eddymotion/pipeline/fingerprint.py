# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a result: a digest of all that determines it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from eddymotion import __version__
from eddymotion.derivatives.finished import sha256
from eddymotion.io.sidecars import (
    ACQUISITION_FIELDS,
    FIELDS,
    MeasuredFiles,
    SeriesFiles,
    metadata_beside,
    metadata_of,
    usable,
)
from eddymotion.pipeline.settings import AFTER_MOTION, Settings
from eddymotion.pipeline.sidecar import KEPT_METADATA
from eddymotion.pipeline.stages import tables_of


def fingerprint_of(series: SeriesFiles, settings: Settings) -> str:
    """Digest of all that determines the outputs: input files, settings and version."""
    return _digest(series, settings, frozenset(), (*ACQUISITION_FIELDS, *KEPT_METADATA))


def motion_fingerprint_of(series: SeriesFiles, settings: Settings) -> str:
    """Digest of all that determines the motion; what is only handed on does not count."""
    return _digest(series, settings, AFTER_MOTION, ACQUISITION_FIELDS)


def measured_fingerprint_of(measured: MeasuredFiles) -> str:
    """Digest of a measured map: its files, and what their sidecars say."""
    files = measured.files.values()
    sidecars = {path.name: usable(metadata_beside(path), *FIELDS) for path in files}
    values = [measured.echo_times, measured.units, sidecars, *map(content_of, files)]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def content_of(path: Path) -> str:
    """Digest of a file's content, computed once while the file is unchanged."""
    stat = path.stat()
    return _content(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _content(path: Path, changed: int, size: int) -> str:
    """Digest of a file, computed once while it is unchanged, since runs need each other's."""
    return sha256(path)


def _digest(
    series: SeriesFiles, settings: Settings, without: Collection[str], metadata: Collection[str]
) -> str:
    digest = hashlib.sha256(__version__.encode())
    effective = {k: v for k, v in settings.effective().items() if k not in without}
    digest.update(json.dumps(effective, sort_keys=True).encode())
    used = usable(metadata_of(series), *metadata)
    digest.update(json.dumps(used, sort_keys=True).encode())
    files = (path for name, path in settings.files().items() if name not in without)
    for path in (series.dwi, *tables_of(series), *files):
        if path.is_file():
            digest.update(bytes.fromhex(content_of(path)))
    if "fieldmap" not in without:  # what the other runs of the session say counts, too
        given = {} if settings.fieldmap is None else {"fieldmap": settings.fieldmap}
        for measured in (series.measured, MeasuredFiles(given)):
            digest.update(measured_fingerprint_of(measured).encode())
        for run in series.runs:
            digest.update(motion_fingerprint_of(run, settings).encode())
    return digest.hexdigest()
