# SPDX-License-Identifier: Apache-2.0
"""Nipype interfaces and Pydra tasks: the steps of the pipeline for workflow engines.

:mod:`eddymotion.interfaces.nipype` and :mod:`eddymotion.interfaces.pydra` import their engine.
Names, descriptions and defaults of the fields are the same in both.
"""

from __future__ import annotations

from pathlib import Path


def tables_beside(dwi: Path) -> dict[str, Path]:
    """Find the gradient tables beside a series: field → path of those that exist.

    Engines judge by the given files whether a result still holds. Who corrects a table and runs
    again must not get the old result because the table was not given, but found.
    """
    stem = dwi.name.removesuffix(".gz").removesuffix(".nii")
    found = {f"{kind}_file": dwi.parent / f"{stem}.{kind}" for kind in ("bval", "bvec")}
    return {field: path for field, path in found.items() if path.is_file()}


def sidecar_beside(dwi: Path) -> Path | None:
    """Find the sidecar beside a series, which tells its phase encoding and slice timing."""
    path = dwi.parent / f"{dwi.name.removesuffix('.gz').removesuffix('.nii')}.json"
    return path if path.is_file() else None
