# SPDX-License-Identifier: Apache-2.0
"""What a user can ask for besides the outputs of every run.

FSL eddy's files, maps of SNR and CNR, residuals, displacement fields. What an earlier run left of
them and this one is not asked for is removed: it would belong to another result.
"""

from __future__ import annotations

import glob
import logging
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.data.series import DWI, Series
from eddymotion.derivatives.eddy import write_displacement_fields
from eddymotion.derivatives.fsl import OutlierTables, write_fsl_eddy
from eddymotion.derivatives.names import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.estimation.maps import cnr_maps
from eddymotion.estimation.outliers import SliceOutliers
from eddymotion.estimation.quality import Quality
from eddymotion.io.images import write_image, write_series
from eddymotion.io.motion import write_fsl_matrices
from eddymotion.io.writing import write_json
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.motion import Motion

FSL_SLICE_AXIS = 2
"""eddy counts slices along the third axis of the image, always."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnDemand:
    """What is wanted.

    Parameters
    ----------
    fsl : bool
        FLIRT matrices, and the text files and CNR maps of FSL's eddy.
    cnr_maps, residuals, eddy_fields : bool
    in_frame : bool
        Whether the corrected series lies in the reference frame, not in the space of another
        image: FLIRT's matrices lead to its grid then, otherwise to that of the original series.
    n_threads : int
    """

    fsl: bool = False
    cnr_maps: bool = False
    residuals: bool = False
    eddy_fields: bool = False
    in_frame: bool = True
    n_threads: int = 1


def remove_on_demand(outputs: Outputs) -> None:
    """Remove what an earlier run left."""
    for folder in ("fsl_matrices", "eddy_fields"):
        shutil.rmtree(outputs[folder], ignore_errors=True)
    for kind in ("cnr", "cnr_sidecar", "residuals", "residuals_sidecar"):
        outputs[kind].unlink(missing_ok=True)
    for path in fsl_files(outputs):
        path.unlink()


def fsl_files(outputs: Outputs) -> list[Path]:
    """Find the files of FSL's eddy that are there."""
    prefix = fsl_prefix(outputs)
    return sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.eddy_*"))


def fsl_prefix(outputs: Outputs) -> Path:
    """Eddy's base name: with it, programs find the corrected image, too."""
    return Path(str(outputs["dwi"]).removesuffix(".nii.gz"))


def write_on_demand(
    wanted: OnDemand,
    outputs: Outputs,
    corrected: Series,
    motion: Motion,
    original: DWI,
    quality: Quality | None,
    progress: Progress = silent,
) -> None:
    """Write what is wanted.

    Parameters
    ----------
    wanted : OnDemand
    outputs : Outputs
    corrected : Series
        As it was written.
    motion : Motion
    original : DWI
    quality : Quality, optional
        Of the corrected series.
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Raises
    ------
    EddymotionError
        If maps or residuals are wanted and there is no model that predicts.
    """
    if wanted.eddy_fields and motion.eddy_currents is not None:
        write_displacement_fields(outputs["eddy_fields"], motion.eddy_currents, original)
    elif wanted.eddy_fields:
        log.warning("no eddy-current fields were found, so none are written")
    cnr = None
    if wanted.cnr_maps or wanted.residuals or (wanted.fsl and quality is not None):
        cnr = _maps(wanted, outputs, corrected, quality, progress)
    if wanted.fsl:
        reference = corrected if wanted.in_frame else original
        write_fsl_matrices(outputs["fsl_matrices"], motion, original, reference)
        write_fsl_eddy(
            fsl_prefix(outputs),
            motion,
            original,
            corrected,
            outliers=_for_eddy(quality.outliers) if quality else None,
            cnr=cnr,
        )


def _for_eddy(outliers: SliceOutliers) -> OutlierTables | None:
    """Return the scores as eddy has them; None where it has no way to say them."""
    if outliers.slicing.axis != FSL_SLICE_AXIS or outliers.z_square is None:
        return None
    return OutlierTables(outliers.flagged, outliers.z, outliers.z_square)


def _maps(
    wanted: OnDemand,
    outputs: Outputs,
    corrected: Series,
    quality: Quality | None,
    progress: Progress,
) -> np.ndarray:
    """Map SNR and CNR, and write what is wanted of maps and residuals."""
    if quality is None or quality.model is None:
        raise EddymotionError(
            "CNR maps and residuals compare the series with its predictions; give the quality "
            "that eddymotion.assess returns"
        )
    cnr_of = partial(
        cnr_maps, corrected, quality.model, outliers=quality.outliers,
        n_threads=wanted.n_threads, progress=progress,
    )  # fmt: skip
    if not wanted.residuals:
        cnr = cnr_of()
    else:
        shape = (*corrected.shape, len(corrected))
        with tempfile.TemporaryFile(dir=outputs["dwi"].parent) as stream:  # the size of a series
            residuals: np.ndarray = np.memmap(stream, np.float32, "w+", shape=shape, order="F")
            cnr = cnr_of(residuals=residuals)
            volumes = (np.nan_to_num(residuals[..., index]) for index in range(shape[3]))
            write_series(outputs["residuals"], corrected, volumes)
            del residuals
        write_json(outputs["residuals_sidecar"], RESIDUALS)
    if wanted.cnr_maps:
        write_image(outputs["cnr"], cnr, corrected.affine)
        write_json(outputs["cnr_sidecar"], map_descriptions(corrected.gradients))
    return cnr


RESIDUALS = {
    "Description": "What each volume of the corrected series shows minus what the other volumes "
    "predict for it; zero where they predict nothing. Lost slices are as acquired, also where the "
    "corrected series shows predictions.",
    "SkullStripped": False,
}


def map_descriptions(gradients: Gradients) -> dict[str, object]:
    """Describe the volumes of the map for its JSON file."""
    groups = comparable_groups(gradients)
    shells = [float(round(gradients.bvals[group].mean(), 1)) for group in groups]
    return {
        "Description": "Volume 0: signal-to-noise ratio of the b=0 volumes, mean over standard "
        "deviation. The others: contrast-to-noise ratio of a shell, standard deviation over the "
        "directions of the prediction from the other volumes over that of the residual. Slices "
        "that lost signal do not count. Zero outside the brain and where fewer than three volumes "
        "tell.",
        "Volumes": ["SNR of b=0", *(f"CNR of b={bval:g}" for bval in shells)],
        "BValues": [0.0, *shells],
        "Units": "1",
        "SkullStripped": True,
    }
