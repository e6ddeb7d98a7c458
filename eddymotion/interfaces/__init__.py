# SPDX-License-Identifier: Apache-2.0
"""Nipype interfaces and Pydra tasks: the steps of the pipeline for workflow engines.

:mod:`eddymotion.interfaces.nipype` and :mod:`eddymotion.interfaces.pydra` import their engine.
Names, descriptions and defaults of the fields are the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BESIDE = frozenset({
    "dwi_file", "dwi_files", "image_files", "epi_files", "phasediff_file", "phase1_file",
    "phase2_file", "map_file",
})  # fmt: skip
"""Inputs next to which tables or a sidecar are looked for."""

TABLES = ("bval", "bvec")

NO_PARTICIPANT = "a node knows no participant"
"""Why a node does not take a participant's T1w as output space."""


def files_beside(given: Mapping[str, Any]) -> list[Path]:
    """Find tables and sidecars next to the images among the inputs of a step.

    Engines judge by the given files whether a result still holds. Who corrects a table and runs
    again must not get the old result because the table was not given, but found. The sidecar
    gives phase encoding, readout and slice timing.

    Parameters
    ----------
    given : mapping
        Input → path or paths; what else is given does not count, but tables that are take the
        place of those beside the images.
    """
    found = []
    for name in sorted(BESIDE & given.keys()):
        images = given[name] if isinstance(given[name], list) else [given[name]]
        several = "s" if isinstance(given[name], list) else ""
        sought = [kind for kind in TABLES if not given.get(f"{kind}_file{several}")]
        found += [path for image in images for path in _beside(Path(image), (*sought, "json"))]
    return found


def _beside(image: Path, endings: tuple[str, ...]) -> list[Path]:
    stem = image.name.removesuffix(".gz").removesuffix(".nii")
    paths = [image.parent / f"{stem}.{ending}" for ending in endings]
    return [path for path in paths if path.is_file()]
