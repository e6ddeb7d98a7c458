# SPDX-License-Identifier: Apache-2.0
"""Writing the outputs of a series: BIDS names, images, tables, sidecars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI, Series
from eddymotion.derivatives.confounds import confounds, descriptions
from eddymotion.derivatives.course import write_course
from eddymotion.derivatives.eddy import write_eddy
from eddymotion.derivatives.finished import recorded, stamp
from eddymotion.derivatives.names import Outputs
from eddymotion.derivatives.on_demand import OnDemand, remove_on_demand, write_on_demand
from eddymotion.derivatives.outlier_table import (
    exclusion_list,
    outlier_descriptions,
    outlier_table,
)
from eddymotion.errors import EddymotionError, check_kind
from eddymotion.estimation.quality import Quality
from eddymotion.estimation.replacement import Replaced
from eddymotion.io.images import write_image, write_series
from eddymotion.io.motion import write_motion, write_x5
from eddymotion.io.series import MeanB0
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.tsv import table_text
from eddymotion.io.writing import write_json, write_text
from eddymotion.machine.disk import prove_writable
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.motion import Motion

__all__ = [
    "OnDemand",
    "Outputs",
    "save",
    "write_confounds",
    "write_corrected",
    "write_exclusions",
    "write_outputs",
    "write_sidecar",
    "write_transforms",
]

NONE_KNOWN: Mapping[Path, str] = {}


def save(
    corrected: DWI, motion: Motion, folder: str | Path, *, quality: Quality | None = None
) -> Outputs:
    """Write a corrected series, its transforms and its tables into a folder.

    Parameters
    ----------
    corrected : DWI
        From :func:`eddymotion.resample`; its source names the files. Motion is written relative to
        the centre of its grid, so that it must lie in the reference frame, not in another `space`.
    motion : Motion
    folder : path
        Made if needed.
    quality : Quality, optional
        From ``eddymotion.assess(dwi, motion)``, with `dwi` the series as acquired. Fills the
        columns about the predictions (``hmc_r2``, ``hmc_xcorr``), which are ``n/a`` without it.

    Returns
    -------
    Outputs
        The paths written, by kind.

    Raises
    ------
    EddymotionError
        If motion or quality are of another number of volumes, or the folder cannot be written to.
    """
    check_kind(corrected, DWI, "save")
    check_kind(motion, Motion, "save")
    motion.check_length(len(corrected), "save")
    if quality is not None and len(quality.correlation) != len(corrected):
        raise EddymotionError(
            f"save: the quality covers {len(quality.correlation)} volumes, the series has "
            f"{len(corrected)}; give what assess returned for it"
        )
    prove_writable(Path(folder), "give another folder")
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
    on_demand: OnDemand | None = None,
    progress: Progress = silent,
) -> None:
    """Write all files of a series, except the sidecar of the image and the pictures.

    Parameters
    ----------
    corrected : Series
    motion : Motion
    outputs : Outputs
        Paths of the files.
    volumes : iterable of (X, Y, Z) arrays, optional
        The volumes of `corrected`, if they are used elsewhere on their way.
    original : DWI, optional
        The original series, if the corrected one lies on another grid: motion is measured at
        its centre, and its grid is that of the reference frame, the domain of the transforms.
    quality : Quality, optional
    on_demand : OnDemand, optional
        Which optional outputs to write.
    progress : callable
        Shows the progress of other outputs that take long.
    """
    write_corrected(corrected, motion, outputs, volumes)
    write_json(outputs["mask_sidecar"], {"Type": "Brain"})
    domain = original or corrected
    write_transforms(motion, outputs, outputs["motion"], domain)
    write_confounds(outputs, corrected.gradients, motion, domain.center, quality)
    outliers = quality.outliers if quality else None
    replaced = isinstance(corrected, Replaced) and corrected.lost
    write_text(outputs["outliers"], outlier_table(outliers, replaced=replaced))
    write_json(outputs["outliers_sidecar"], outlier_descriptions(outliers, replaced=replaced))
    write_exclusions(outputs, quality)
    _write_fields(outputs, motion)
    write_course(outputs, motion, domain)
    remove_on_demand(outputs)
    if on_demand is not None and original is not None:
        write_on_demand(on_demand, outputs, corrected, motion, original, quality, progress)


def write_corrected(
    corrected: Series,
    motion: Motion,
    outputs: Outputs,
    volumes: Iterable[np.ndarray] | None,
) -> None:
    """Write the images and the gradient table; `volumes` as in :func:`write_outputs`."""
    affine = corrected.affine
    reference = MeanB0(corrected.gradients, motion.unplaced)
    passing = reference.watching(corrected.volumes() if volumes is None else volumes)
    write_series(outputs["dwi"], corrected, passing)
    write_gradient_table(outputs["bval"], outputs["bvec"], corrected.gradients, affine)
    write_image(outputs["dwiref"], reference.image, affine)
    write_image(outputs["mask"], corrected.mask.astype(np.uint8), affine)


def write_transforms(motion: Motion, outputs: Outputs, details: Path, domain: Series) -> None:
    """Write transforms, which map points of `domain`, and errors and fields into `details`."""
    write_motion(outputs["xfm"], details, motion)
    write_x5(outputs["x5"], motion, domain)


def write_confounds(
    outputs: Outputs,
    gradients: Gradients,
    motion: Motion,
    center: np.ndarray,
    quality: Quality | None,
) -> None:
    """Write the table of motion, measured at `center` (RAS+ mm), and its data dictionary."""
    columns = confounds(gradients, motion, center, quality)
    write_text(outputs["confounds"], table_text(columns))
    write_json(outputs["confounds_sidecar"], descriptions(columns))


def write_exclusions(outputs: Outputs, quality: Quality | None) -> None:
    """List the volumes that are better left out, or remove the list of an earlier run."""
    if quality is not None:
        write_text(outputs["exclude_volumes"], exclusion_list(quality.outliers))
        return
    outputs["exclude_volumes"].unlink(missing_ok=True)


def _write_fields(outputs: Outputs, motion: Motion) -> None:
    """Write the table of the eddy-current fields, or remove that of an earlier run."""
    table, sidecar = outputs["eddy"], outputs["eddy_sidecar"]
    if motion.eddy_currents is not None:
        write_eddy(table, sidecar, motion.eddy_currents)
        return
    table.unlink(missing_ok=True)
    sidecar.unlink(missing_ok=True)


def write_sidecar(
    outputs: Outputs,
    content: dict[str, Any] | None,
    *,
    record: bool = False,
    digests: Mapping[Path, str] = NONE_KNOWN,
) -> None:
    """Write the sidecar of the image, last of all: it marks the outputs as complete.

    With `record`, it holds sizes and digests of the other outputs; `digests` are those that are
    known already.
    """
    whole = {"SkullStripped": False, "EddymotionVersion": __version__} | (content or {})
    write_json(outputs["sidecar"], recorded(outputs, whole, digests) if record else whole)
    if record:
        stamp(outputs)
