# SPDX-License-Identifier: Apache-2.0
"""The steps of a correction, each from files to files, as called by the nodes of a workflow.

:mod:`eddymotion.pipeline.correct` corrects a series in one process, with hardly any intermediate
file. Here each step is a function that reads its inputs from files and returns the paths that it
wrote, so that other programs can be inserted between any two steps. Both run the same
:mod:`~eddymotion.pipeline.stages`, with equal results.

:func:`estimate`, :func:`apply`, :func:`measure`, :func:`report`; :func:`correct` is all of them.
The leave-one-out loop, volume by volume, is in :mod:`eddymotion.pipeline.lovo_steps`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from eddymotion.data.series import DWI
from eddymotion.derivatives import (
    Outputs,
    write_confounds,
    write_corrected,
    write_exclusions,
    write_sidecar,
    write_transforms,
)
from eddymotion.derivatives.on_demand import fsl_files
from eddymotion.derivatives.outlier_table import outlier_summary, outlier_table
from eddymotion.errors import EddymotionError
from eddymotion.evaluation import read_grid
from eddymotion.images.grid import grid_distance
from eddymotion.io.images import write_image
from eddymotion.io.motion import read_written_motion
from eddymotion.io.series import MASK_TOLERANCE, load
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.writing import write_text
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.correct import correct_series
from eddymotion.pipeline.output_space import space_of, write_output_space
from eddymotion.pipeline.preparation import prepare, write_noise
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.sidecar import methods_of, sidecar_of
from eddymotion.pipeline.stages import (
    corrected_series,
    find_motion,
    judge,
    judge_both,
    load_series,
    model_for,
)
from eddymotion.pipeline.target import Target
from eddymotion.reports.maps import JudgedSlices
from eddymotion.reports.participant import write_participant_page
from eddymotion.reports.series import draw_series
from eddymotion.reports.slices import Slices
from eddymotion.reports.summary import summarise

Paths = dict[str, Any]
"""Name of an output → its path, a list of paths, or a value; None where there is none."""

OPTIONAL_FILES = {
    "cnr_file": "cnr",
    "residuals_file": "residuals",
    "noise_file": "noise",
    "trajectory_file": "trajectory",
    "eddy_currents_file": "eddy",
    "eddy_field_files": "eddy_fields",
    "fsl_matrix_files": "fsl_matrices",
    "output_space_xfm_file": "space",
    "output_space_warp_file": "space_warp",
}
"""Files that :func:`correct` does not always write: output → key of its path."""


def estimate(
    series: SeriesFiles, settings: Settings, out_dir: Path, progress: Progress = silent
) -> Paths:
    """Estimate the motion of a series.

    Parameters
    ----------
    series : SeriesFiles
    settings : Settings
    out_dir : Path
        Where the outputs go.
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    dict
        ``xfm_file`` (ITK text), ``x5_file``, ``details_file`` (standard errors, eddy-current
        fields: see :mod:`eddymotion.io.motion`) and ``mask_file``.
    """
    dwi = load_series(series, settings)
    motion = find_motion(dwi, model_for(dwi.gradients, settings), settings, progress)
    return write_found(dwi, motion, Outputs.in_folder(out_dir, series.dwi))


def apply(
    series: SeriesFiles,
    xfm_file: Path,
    settings: Settings,
    out_dir: Path,
    details_file: Path | None = None,
    progress: Progress = silent,
) -> Paths:
    """Resample a series once, by given transforms, and rotate its b-vectors.

    Parameters
    ----------
    series : SeriesFiles
    xfm_file : Path
        ITK text, one transform a volume, reference → volume; whoever found them.
    settings : Settings
    out_dir : Path
    details_file : Path, optional
        From :func:`estimate`: without it there are no eddy-current fields.
    progress : callable

    Returns
    -------
    dict
        ``dwi_file``, ``bval_file``, ``bvec_file``, ``dwiref_file`` (mean of the corrected b=0
        volumes) and ``mask_file``.
    """
    dwi, motion = _with_motion(series, xfm_file, details_file, settings)
    outputs, target = Outputs.in_folder(out_dir, series.dwi), Target.read(settings)
    space = space_of(dwi, motion, target, settings)
    write_output_space(space, dwi, outputs)
    quality = None
    if settings.replace_outliers or motion.moved_within.any():
        quality = judge(dwi, motion, model_for(dwi.gradients, settings), settings)
    prepared = prepare(dwi, settings, progress)
    write_noise(prepared, settings, outputs)
    corrected = corrected_series(prepared.dwi, motion, settings, target, space, quality, progress)
    volumes = progress(corrected.volumes(), "resampling", len(dwi))
    write_corrected(corrected, motion, outputs, volumes)
    return _paths(outputs, "dwi", "bval", "bvec", "dwiref", "mask")


def measure(
    series: SeriesFiles,
    xfm_file: Path,
    settings: Settings,
    out_dir: Path,
    details_file: Path | None = None,
) -> Paths:
    """Tabulate motion, and how well held-out volumes agree with their predictions.

    Parameters
    ----------
    series : SeriesFiles
        The original series.
    xfm_file, settings, out_dir, details_file
        As in :func:`apply`.

    Returns
    -------
    dict
        ``confounds_file``, ``confounds_sidecar_file`` and ``exclude_volumes_file``.
    """
    dwi, motion = _with_motion(series, xfm_file, details_file, settings)
    quality = judge(dwi, motion, model_for(dwi.gradients, settings), settings)
    outputs = Outputs.in_folder(out_dir, series.dwi)
    gradients = dwi.gradients.rotated(motion.rotations)
    write_confounds(outputs, gradients, motion, dwi.center, quality)
    write_exclusions(outputs, quality)
    return _paths(outputs, "confounds", "confounds_sidecar", "exclude_volumes")


def report(
    series: SeriesFiles,
    corrected: SeriesFiles,
    xfm_file: Path,
    settings: Settings,
    out_dir: Path,
    details_file: Path | None = None,
) -> Paths:
    """Draw a series before and after, and write a page that needs no network.

    Parameters
    ----------
    series : SeriesFiles
        The original series.
    corrected : SeriesFiles
        From :func:`apply`.
    xfm_file, settings, out_dir, details_file
        As in :func:`apply`.

    Returns
    -------
    dict
        ``report_file`` (HTML), ``motion_figure_file`` and ``before_after_figure_file``.
    """
    dwi, motion = _with_motion(series, xfm_file, details_file, settings)
    after = load(
        corrected.dwi,
        bval=corrected.bval,
        bvec=corrected.bvec,
        mask=_mask_on(corrected.dwi, settings.brain_mask),
        b0_threshold=settings.b0_threshold,
        ignore=("tables",),  # those of the original were checked
    )
    outputs = Outputs.in_folder(out_dir, series.dwi)
    model = model_for(dwi.gradients, settings)
    before, quality = judge_both(dwi, motion, model, settings)
    drawn = JudgedSlices(Slices.of(dwi), before), JudgedSlices(Slices.of(after), quality)
    draw_series(outputs, dwi, motion, model, *drawn)
    write_confounds(outputs, after.gradients, motion, dwi.center, quality)
    write_text(outputs["outliers"], outlier_table(quality.outliers))
    summary = summarise(dwi, motion, model, before, quality)
    methods = methods_of(dwi, motion, model, settings, estimated=False)
    registered = settings.output_space and settings.output_space_transform != "none"
    grids = (dwi, after, None if registered else np.eye(4))  # only `apply` knows the transform
    content = sidecar_of(series, settings, summary, methods, motion, grids)
    write_sidecar(outputs, content | {"OutlierSlices": outlier_summary(quality.outliers)})
    page = _page(out_dir, outputs)
    return {"report_file": page} | _paths(outputs, "motion_figure", "before_after_figure")


def _mask_on(image: Path, mask: Path | None) -> Path | None:
    """Return the mask if it lies on the grid of the image, in whatever space that is."""
    if mask is None:
        return None
    its, of_mask = read_grid(image), read_grid(mask)
    apart = grid_distance(its.affine, of_mask.affine, its.shape)
    same = its.shape == of_mask.shape and apart <= MASK_TOLERANCE * voxel_sizes(its.affine).min()
    return mask if same else None


def correct(
    series: SeriesFiles, settings: Settings, out_dir: Path, progress: Progress = silent
) -> Paths:
    """Correct a series and write all its outputs and its report, unless they are there.

    Returns
    -------
    dict
        All of :func:`estimate`, :func:`apply`, :func:`measure` and :func:`report`, and
        ``sidecar_file``, ``outliers_file`` and ``qc_file``; what is not in every run is None
        where it is not in this one.
    """
    outputs = Outputs.in_folder(out_dir, series.dwi)
    correct_series(series, outputs, settings, progress)
    page = _page(out_dir, outputs)
    kinds = (
        "dwi", "bval", "bvec", "sidecar", "dwiref", "mask", "xfm", "x5", "confounds",
        "confounds_sidecar", "exclude_volumes", "outliers", "qc", "motion_figure",
        "before_after_figure",
    )  # fmt: skip
    occasional = {name: _found(outputs[kind]) for name, kind in OPTIONAL_FILES.items()}
    occasional["fsl_files"] = fsl_files(outputs) or None
    always = {"report_file": page, "details_file": outputs["motion"]} | _paths(outputs, *kinds)
    return always | occasional


def _found(path: Path) -> Path | list[Path] | None:
    """Return a file, the files of a folder, or None where there is nothing."""
    if path.is_dir():
        return sorted(path.iterdir())
    return path if path.exists() else None


def write_found(dwi: DWI, motion: Motion, outputs: Outputs) -> Paths:
    """Write what an estimation found."""
    details = outputs["xfm"].with_suffix(".json")
    write_transforms(motion, outputs, details, dwi)
    write_image(outputs["mask"], dwi.mask.astype(np.uint8), dwi.affine)
    return _paths(outputs, "xfm", "x5", "mask") | {"details_file": details}


def _page(out_dir: Path, outputs: Outputs) -> Path:
    """Write the page of a series."""
    page = out_dir / f"{outputs.src}.html"
    for why in write_participant_page(page, outputs.src, [outputs]).values():
        raise EddymotionError(why)
    return page


def _paths(outputs: Outputs, *kinds: str) -> Paths:
    return {f"{kind}_file": outputs[kind] for kind in kinds}


def _with_motion(
    series: SeriesFiles, xfm_file: Path, details_file: Path | None, settings: Settings
) -> tuple[DWI, Motion]:
    dwi, motion = load_series(series, settings), read_written_motion(xfm_file, details_file)
    if len(motion) != len(dwi):
        raise EddymotionError(
            f"{xfm_file}: found {len(motion)} transforms for the {len(dwi)} volumes of "
            f"{series.dwi}; give one per volume"
        )
    return dwi, motion
