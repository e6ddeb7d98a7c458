# SPDX-License-Identifier: Apache-2.0
"""Nipype interfaces and Pydra tasks: the steps of the pipeline for workflow engines.

:mod:`eddymotion.interfaces.nipype` and :mod:`eddymotion.interfaces.pydra` import their engine.
Names, descriptions and defaults of the fields are the same in both.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from eddymotion.pipeline.settings import SETTING_NAMES, Settings

FROM_FILES = frozenset({"brain_mask", "nprocs"})
"""Settings that nodes get as ``mask_file`` and ``num_threads``."""

OF_SPACE = (
    "output_space", "output_space_transform", "output_space_contrast", "output_space_mask",
)  # fmt: skip
"""Settings about the space of the corrected series."""

OF_OUTPUTS = frozenset({
    *OF_SPACE, "resampling", "replace_outliers", "fsl_outputs", "cnr_maps", "residuals",
    "eddy_fields",
})  # fmt: skip

READING = ("b0_threshold", "ignore")
"""Settings of a step that only reads the series."""

MOTION = tuple(
    entry.name for entry in fields(Settings) if entry.name not in FROM_FILES | OF_OUTPUTS
)
"""Settings of a step that predicts or registers."""

APPLYING = (
    *READING, *OF_SPACE, "resampling", "replace_outliers", "model", "min_q_distance",
    "random_seed",
)  # fmt: skip
"""Settings of a step that resamples, and predicts what slices have lost."""

JUDGING = (*READING, "model", "min_q_distance", "random_seed")
"""Settings of a step that compares volumes with their predictions."""

REGISTERING = ("registration", "registration_settings", "n_iterations")
"""Settings of a step that registers one pair."""

PREDICTING = ("b0_threshold", "model", "min_q_distance", *REGISTERING)
"""Settings of a step that predicts one volume; the passes of the loop depend on who registers."""

ALL = tuple(entry.name for entry in fields(Settings) if entry.name not in FROM_FILES)

SETTING_HELP = {
    "b0_threshold": "volumes at or below this b-value (s/mm²) count as b=0",
    "model": "what predicts a held-out volume: auto, gp, gp-legendre, gp-spherical, gp-qspace, "
             "average, dti, wls-dti, dki, or dipy:NAME",
    "estimator": "joint (all volumes at once) or lovo (leave one volume out, predict, register, "
                 "repeat); joint unless model or registration needs the loop",
    "registration": "what registers a volume to its prediction",
    "registration_settings": "JSON file with parameters of the registration backend",
    "n_iterations": "passes of lovo over the series, or steps of joint at each level at most",
    "min_q_distance": "predictions leave out volumes closer than this to the held-out one in "
                      "q-space, in units of sqrt(b / 1000 s/mm²)",
    "no_shell_alignment": "do not estimate the offset between diffusion-weighted and b=0 volumes",
    "resampling": "who interpolates: nitransforms, or fast (the compiled kernel)",
    "output_space": "image whose space and grid the corrected series gets; those of the series "
                    "without one",
    "output_space_transform": "how the series is registered to it: auto, none, rigid, affine, syn",
    "output_space_contrast": "what of the series is registered: dwiref or fa",
    "output_space_mask": "brain of the image whose space it gets",
    "fsl_outputs": "write the text files and CNR maps of FSL's eddy and FLIRT matrices, too",
    "cnr_maps": "map SNR of the b=0 volumes and CNR of each shell",
    "residuals": "write what each volume shows beyond its prediction",
    "eddy_fields": "write the eddy-current fields as displacement fields",
    "ignore": "which affine (sform or qform) to disregard where the two disagree, or tables: that "
              "the images contradict the b-values",
    "random_seed": "of the random sampling points",
    "eddy_current": "eddy-current fields to estimate",
    "pe_axis": "phase-encoding axis, as in BIDS; found from the data when not given",
    "replace_outliers": "replace slices that lost signal by their prediction",
}  # fmt: skip
"""What each setting means; those not listed are explained by ``eddymotion-correct --help``."""

FIELD_HELP = {
    "dwi_file": "4-D diffusion series (NIfTI)",
    "bval_file": "b-values (FSL); beside the series when not given",
    "bvec_file": "b-vectors (FSL, image axes); beside the series when not given",
    "mask_file": "brain mask on the grid of the series; computed when not given",
    "xfm_file": "transforms, one a volume, reference → volume (ITK text)",
    "x5_file": "the same transforms as X5",
    "details_file": "standard errors and eddy-current fields that belong to the transforms (JSON)",
    "num_threads": "volumes at a time; the result does not depend on it",
    "corrected_file": "corrected series",
    "corrected_bval_file": "b-values of the corrected series",
    "corrected_bvec_file": "rotated b-vectors",
    "dwiref_file": "reference: mean of the corrected b=0 volumes",
    "confounds_file": "motion and quality, a row a volume (TSV)",
    "confounds_sidecar_file": "meaning and units of the confounds' columns (JSON)",
    "report_file": "page with pictures before and after (HTML)",
    "motion_figure_file": "motion parameters over the series (SVG)",
    "before_after_figure_file": "slices before and after (PNG)",
    "sidecar_file": "source, settings, versions and timings (JSON)",
    "outliers_file": "slices that lost signal (TSV)",
    "volume_files": "the volumes, one file each",
    "matrix_files": "transforms, one file a volume (ITK text)",
    "nonnegative": "whether the series has no voxel below zero: resampled volumes are clipped",
    "volume_file": "one original volume (3-D)",
    "matrix_file": "its transform, reference → volume (ITK text)",
    "out_file": "the volume in the frame of the reference",
    "aligned_files": "resampled volumes, one file each",
    "pass_number": "pass of the leave-one-out loop, from 1 on",
    "aligned_file": "aligned series (4-D)",
    "volumes": "indices of the volumes",
    "relaxation": "which part of the way from the start to what was found is gone",
    "center": "point about which that way is measured, RAS+ mm: the centre of the brain",
    "volume": "index of the held-out volume, from 0 on",
    "predicted_file": "the held-out volume as predicted by the others; NaN where they do not tell",
    "fixed_file": "fixed image (3-D); its NaN do not count",
    "moving_file": "moving image (3-D)",
    "fixed_mask_file": "where the fixed image counts",
    "init_files": "where to start from, one transform a volume (ITK text)",
    "lost_files": "where each volume lost its signal, one image a volume",
    "lost_file": "where the moving image shows nothing, on the grid of the fixed one",
    "init_file": "start, fixed → moving (ITK text); the identity when not given",
    "seed": "of the random sampling points",
    "converged": "whether the steps became smaller than the tolerance",
    "message": "why it stopped, in words and numbers",
    "predicted_files": "predictions of the last pass, one file a volume",
}
"""What each other input and output is."""


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


def setting_help(name: str) -> str:
    """Describe a setting."""
    return SETTING_HELP.get(name, "see eddymotion-correct --help")


def setting_default(name: str) -> Any:
    """Return the default of a setting."""
    return next(entry.default for entry in fields(Settings) if entry.name == name)


def setting_type(name: str) -> tuple[Any, bool]:
    """Return the type of a setting without its ``None``, and whether it has one."""
    hint = typing.get_type_hints(Settings)[name]
    if isinstance(hint, types.UnionType):
        (kind,) = (part for part in typing.get_args(hint) if part is not type(None))
        return kind, True
    return (list[str] if typing.get_origin(hint) is tuple else hint), False


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Collect the settings among the inputs of a node; the rest is left alone.

    ``mask_file`` and ``num_threads`` become those of the settings. What is None is not given.
    """
    values = {name: given[name] for name in SETTING_NAMES & set(given) if given[name] is not None}
    values = {
        name: Path(value) if setting_type(name)[0] is Path else value
        for name, value in values.items()
    }
    if "ignore" in values:
        values["ignore"] = tuple(values["ignore"])
    if given.get("mask_file") is not None:
        values["brain_mask"] = Path(given["mask_file"])
    if given.get("num_threads") is not None:
        values["nprocs"] = given["num_threads"]
    return Settings(**values)
