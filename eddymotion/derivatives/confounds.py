# SPDX-License-Identifier: Apache-2.0
"""The confounds table: one row a volume."""

from __future__ import annotations

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.outliers import percent_lost
from eddymotion.estimation.quality import Quality
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import (
    PARAMETERS,
    framewise_displacement,
    rms_displacement,
)

EXCURSION = "rms_within"
"""Column of the motion within volumes."""


def confounds(
    gradients: Gradients, motion: Motion, center: np.ndarray, quality: Quality | None
) -> dict[str, np.ndarray]:
    """Return the columns of the confounds table, (N,) each; NaN is written as ``n/a``.

    Parameters
    ----------
    gradients : Gradients
        In the reference frame.
    motion : Motion
    center : (3,) array
        Centre of the original image grid, RAS+ mm.
    quality : Quality, optional
        Agreement with the predictions; those columns are NaN without.
    """
    parameters = motion.parameters(center)
    missing = np.full(len(motion), np.nan)
    columns = dict(zip(PARAMETERS, parameters.T, strict=True))
    columns["framewise_displacement"] = framewise_displacement(parameters)
    previous = rms_displacement(motion.matrices[1:], motion.matrices[:-1], center)
    columns["rmsd"] = np.concatenate([[np.nan], previous])
    columns["rms_abs"] = rms_displacement(motion.matrices, np.eye(4), center)
    if motion.trajectory is not None:
        columns[EXCURSION] = excursions(motion, center)
    if motion.eddy_currents is not None and motion.eddy_currents.offsets is not None:
        columns["framewise_displacement_head"] = motion.framewise_displacement(center)
        columns["eddy_offset"] = motion.eddy_currents.offsets + 0.0
        columns["eddy_offset_se"] = motion.eddy_currents.offset_errors
    columns["bval"] = gradients.bvals
    for axis, component in zip("xyz", gradients.bvecs.T, strict=True):
        columns[f"grad_{axis}"] = component + 0.0
    columns["hmc_r2"] = quality.r2 if quality else missing
    columns["hmc_xcorr"] = quality.correlation if quality else missing
    columns["outlier_slices"] = quality.outliers.flagged.sum(axis=1) if quality else missing
    columns["outlier_percent"] = percent_lost(quality.outliers) if quality else missing
    if motion.standard_errors is not None:
        for name, values in zip(PARAMETERS, motion.standard_errors.T, strict=True):
            columns[f"{name}_se"] = values
    return columns


def excursions(motion: Motion, center: np.ndarray) -> np.ndarray:
    """Return how far the head was from the pose of each volume at most while it was recorded, mm.

    Root-mean-square displacement over a sphere of 80 mm, of the slice that is farthest: (N,).
    """
    assert motion.trajectory is not None
    poses, matrices = motion.trajectory.poses(motion.matrices), motion.matrices[:, None]
    return rms_displacement(poses, matrices, center).max(axis=1)


def descriptions(columns: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """Describe each column, for the JSON sidecar."""
    known = {
        "framewise_displacement": (
            "Framewise displacement: sum of absolute changes to the previous volume, rotations as "
            "arc length on a sphere of 50 mm (Power et al. 2012)", "mm"),
        "framewise_displacement_head": (
            "Framewise displacement of the head alone: without eddy_offset", "mm"),
        "eddy_offset": (
            "Part of the translation, against the phase-encoding vector, that follows the "
            "diffusion gradients, or goes with a field that changes with the pose: the fields' "
            "rather than the head's", "mm"),
        "eddy_offset_se": ("Standard error of eddy_offset", "mm"),
        "rmsd": ("Root-mean-square displacement to the previous volume over a sphere of 80 mm "
                 "(Jenkinson 1999)", "mm"),
        "rms_abs": ("Root-mean-square displacement to the reference (dwiref) over a sphere of "
                    "80 mm (Jenkinson 1999)", "mm"),
        EXCURSION: (
            "Motion within the volume: largest root-mean-square displacement of a slice from the "
            "pose of the volume, over a sphere of 80 mm (Jenkinson 1999)", "mm"),
        "bval": ("b-value", "s/mm^2"),
        "hmc_r2": ("Part of the variance over the brain that the leave-one-out prediction of the "
                   "volume explains", "1"),
        "hmc_xcorr": ("Pearson correlation over the brain of the volume with its leave-one-out "
                      "prediction", "1"),
        "outlier_slices": ("Number of slices that lost signal, by comparison with the "
                           "leave-one-out prediction", "1"),
        "outlier_percent": ("The same as a percentage of the slices of the volume that were "
                            "judged", "%"),
    }  # fmt: skip
    for axis in "xyz":
        known[f"trans_{axis}"] = (
            f"Translation along {axis} (RAS+): displacement of the centre of the image grid by "
            "the transform from reference to volume", "mm")  # fmt: skip
        known[f"rot_{axis}"] = (
            f"Rotation about {axis} (RAS+): extrinsic x-y-z angle of the transform from reference "
            "to volume", "rad")  # fmt: skip
        known[f"grad_{axis}"] = (
            f"{axis} component (RAS+) of the b-vector, rotated into the reference frame",
            "1",
        )
    for name in PARAMETERS:
        known[f"{name}_se"] = (f"Standard error of {name}", known[name][1])
    return {name: {"Description": known[name][0], "Units": known[name][1]} for name in columns}
