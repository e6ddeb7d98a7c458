"""Outputs of a series: BIDS names, tables, sidecars."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.dataset import DWI, Series
from eddymotion.derivatives.confounds import confounds, descriptions, table_text
from eddymotion.derivatives.names import Outputs
from eddymotion.estimation.outliers import SliceOutliers
from eddymotion.estimation.quality import Quality
from eddymotion.files import (
    MeanB0,
    write_fsl_matrices,
    write_gradient_table,
    write_image,
    write_itk,
    write_json,
    write_series,
    write_text,
    write_x5,
)
from eddymotion.geometry import Motion

__all__ = ["Outputs", "save", "write_outputs", "write_sidecar"]


def save(
    corrected: DWI, motion: Motion, folder: str | Path, *, quality: Quality | None = None
) -> Outputs:
    """Write a corrected series, its transforms and its tables into a folder.

    Parameters
    ----------
    corrected : DWI
        From :func:`eddymotion.resample`; its source names the files.
    motion : Motion
    folder : path
        Made if needed.
    quality : Quality, optional
        From :func:`eddymotion.assess`; fills the columns about the predictions.

    Returns
    -------
    Outputs
        The paths written, by kind.
    """
    outputs = Outputs.in_folder(Path(folder), corrected.source or Path("dwi.nii.gz"))
    sidecar = {"Sources": [corrected.source.name]} if corrected.source else None
    outputs["sidecar"].unlink(missing_ok=True)
    write_outputs(corrected, motion, outputs, quality=quality)
    write_sidecar(outputs, sidecar)
    return outputs


def write_outputs(
    corrected: Series,
    motion: Motion,
    outputs: Outputs,
    *,
    volumes: Iterable[np.ndarray] | None = None,
    original: DWI | None = None,
    quality: Quality | None = None,
    fsl: bool = False,
) -> None:
    """Write all files of a series but the sidecar of the image and the pictures.

    Parameters
    ----------
    corrected : Series
    motion : Motion
    outputs : Outputs
        Where to.
    volumes : iterable of (X, Y, Z) arrays, optional
        Those of `corrected`, if somebody else watches them pass.
    original : DWI, optional
        The original series, where the corrected one lies on another grid: motion is measured at
        its centre.
    quality : Quality, optional
    fsl : bool
        Write FLIRT matrices, too.
    """
    affine = corrected.affine
    volumes = corrected.volumes() if volumes is None else volumes
    reference = MeanB0(corrected.gradients)
    write_series(outputs["dwi"], corrected, reference.watching(volumes))
    write_gradient_table(outputs["bval"], outputs["bvec"], corrected.gradients, affine)
    write_image(outputs["dwiref"], reference.image, affine)
    write_image(outputs["mask"], corrected.mask.astype(np.uint8), affine)
    write_json(outputs["mask_sidecar"], {"Type": "Brain"})
    write_itk(outputs["xfm"], motion.matrices)
    write_x5(outputs["x5"], motion, corrected)
    shutil.rmtree(outputs["fsl_matrices"], ignore_errors=True)
    if fsl:
        write_fsl_matrices(outputs["fsl_matrices"], motion, original or corrected, corrected)
    columns = confounds(corrected.gradients, motion, (original or corrected).center, quality)
    write_text(outputs["confounds"], table_text(columns))
    write_json(outputs["confounds_sidecar"], descriptions(columns))
    write_text(outputs["outliers"], _outlier_table(quality.outliers if quality else None))


def write_sidecar(outputs: Outputs, content: dict[str, Any] | None = None) -> None:
    """Write the sidecar of the image, last of all: it is the mark of completion."""
    constant = {"SkullStripped": False, "EddymotionVersion": __version__}
    write_json(outputs["sidecar"], constant | (content or {}))


def _outlier_table(outliers: SliceOutliers | None) -> str:
    found = np.argwhere(outliers.flagged) if outliers is not None else np.empty((0, 2), int)
    columns = {
        "volume": [int(volume) for volume, _ in found],
        "slice": [int(index) for _, index in found],
        "z_score": [float(outliers.z[v, s]) for v, s in found] if outliers else [],
        "replaced": ["false"] * len(found),
    }
    return table_text(columns)  # type: ignore[arg-type]
