# SPDX-License-Identifier: Apache-2.0
"""What was found of the runs of a session, kept in the work folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.estimation.runs.ties import FrameTie
from eddymotion.io.sidecars import MeasuredFiles, SeriesFiles
from eddymotion.io.writing import replacing, write_json
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.pipeline.cache import DIGITS
from eddymotion.pipeline.fingerprint import measured_fingerprint_of, motion_fingerprint_of
from eddymotion.pipeline.settings import Settings

log = logging.getLogger(__name__)

OF_FIELD = ("fieldmaps", "fmap-jacobian")
"""Words of ``--ignore`` about the off-resonance field."""


def digest_of(runs: Sequence[SeriesFiles], measured: MeasuredFiles, settings: Settings) -> str:
    """Return a digest of the files and settings of a session."""
    words = [motion_fingerprint_of(run, settings) for run in runs]
    given = {} if settings.fieldmap is None else {"fieldmap": settings.fieldmap}
    words += [measured_fingerprint_of(files) for files in (measured, MeasuredFiles(given))]
    words += sorted(set(OF_FIELD) & set(settings.ignore))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:DIGITS]


def keep(folder: Path, joined: JoinedRuns) -> None:
    """Write what was found; the last file is the mark of completion."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        name: getattr(joined, name)
        for name in ("poses", "errors", "shifts", "mean", "mask", "affine")
    }
    if joined.beside is not None:
        arrays["beside"] = joined.beside
    if joined.field is not None:
        arrays |= {"hertz": joined.field.coefficients, "lattice": joined.field.affine}
    with replacing(folder / "runs.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    rest = {"similarity": [s if np.isfinite(s) else None for s in joined.similarity],
            "measured": joined.measured, "nominal": joined.nominal, "modulated": joined.modulated,
            "ties": [tie and tie.plain() for tie in joined.ties]}  # fmt: skip
    write_json(folder / "runs.json", rest)


def recalled(folder: Path) -> JoinedRuns | None:
    """Read what was found; None where nothing usable is there."""
    try:
        rest = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
        with np.load(folder / "runs.npz") as stored:
            arrays = dict(stored)
        ties = tuple(tie and FrameTie.of(tie) for tie in rest["ties"])
        field = None
        if "hertz" in arrays:
            field = OffResonance(arrays.pop("hertz"), arrays.pop("lattice"))
        before, after = (np.nan if s is None else float(s) for s in rest["similarity"])
        return JoinedRuns(
            field=field, similarity=(before, after), measured=bool(rest["measured"]),
            nominal=bool(rest["nominal"]),
            modulated=bool(rest["modulated"]), ties=ties, **arrays,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s: cannot be used (%s); the runs are joined again", folder, error)
        return None
