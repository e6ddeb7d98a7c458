# SPDX-License-Identifier: Apache-2.0
"""The steps of runs that belong together, each from files to files.

:func:`list_runs` names their files. :func:`join` brings motions that were found in each run's own
frame into that of the first, with the off-resonance field between the runs, as
:mod:`eddymotion.pipeline.runs` does for the BIDS-App. :func:`merge` makes one series of the
corrected runs. :func:`fieldmap` makes a field on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.session import SessionOutputs
from eddymotion.errors import EddymotionError
from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.fieldmaps import (
    FieldmapOutputs,
    FieldmapPaths,
    FieldmapSettings,
    make_fieldmap,
)
from eddymotion.io.images import write_image
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.sidecars import MeasuredFiles, SeriesFiles
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.runs import SessionRun
from eddymotion.pipeline.runs.b0s import image_of_b0s
from eddymotion.pipeline.runs.field_outputs import write_session_field
from eddymotion.pipeline.runs.joining import joined_of
from eddymotion.pipeline.runs.mergeable import refuse_averaging_elsewhere, refuse_unmergeable
from eddymotion.pipeline.runs.merging import load_corrected, stretch_on, write_as_one
from eddymotion.pipeline.series_steps import Paths
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import load_series, tables_of

NO_MAP = MeasuredFiles()

FIELD_FILES = {"field_file": "preproc", "coefficients_file": "coeff", "epi_file": "epi"}
"""Output of a step that makes a field → its name in
:class:`~eddymotion.derivatives.field_files.FieldFiles`."""


def list_runs(
    runs: Sequence[SeriesFiles],
    out_dir: Path,
    distortion_group_merge: str = "none",
    output_space: Path | None = None,
) -> Paths:
    """Name the files of runs: where no tables are given, those beside each.

    Parameters
    ----------
    runs : sequence of SeriesFiles
    out_dir : Path
    distortion_group_merge, output_space
        Settings of the whole, by which is checked here, before anything is computed, whether the
        corrected runs can be merged.

    Returns
    -------
    dict
        ``dwi_files``, ``bval_files`` and ``bvec_files``, one a run.
    """
    settings = Settings(distortion_group_merge=distortion_group_merge, output_space=output_space)
    refuse_averaging_elsewhere(settings)
    refuse_unmergeable(runs, settings)
    tables = [tables_of(run) for run in runs]
    return {
        "dwi_files": [run.dwi for run in runs],
        "bval_files": [bval for bval, _ in tables],
        "bvec_files": [bvec for _, bvec in tables],
    }


def join(
    runs: Sequence[SeriesFiles],
    xfm_files: Sequence[Path],
    details_files: Sequence[Path],
    settings: Settings,
    out_dir: Path,
    epi_files: Sequence[Path] = (),
    measured: MeasuredFiles = NO_MAP,
) -> Paths:
    """Bring the motions of runs into one frame, and find the off-resonance field between them.

    Parameters
    ----------
    runs : sequence of SeriesFiles
        In the order of their acquisition; the frame is that of the first.
    xfm_files, details_files : sequence of Path
        The motion of each in its own frame, from
        :func:`~eddymotion.pipeline.series_steps.estimate`.
    settings : Settings
    out_dir : Path
    epi_files : sequence of Path, optional
        Further images without diffusion weighting that show the field, such as ``fmap/*_epi``.
    measured : MeasuredFiles
        A map of the field, used where no runs of different phase encodings show it.

    Returns
    -------
    dict
        One a run: ``xfm_files``, ``details_files`` (with the field) and ``mask_files``. Of all:
        ``field_file`` (Hz), ``coefficients_file`` and ``epi_file``; None without a field.
    """
    _refuse_other_number(runs, xfm_files, "transforms")
    _refuse_other_number(runs, details_files, "details")
    motions = [read_written_motion(*both) for both in zip(xfm_files, details_files, strict=True)]
    images = [
        RunImage.of(load_series(run, settings), motion, settings.nprocs)
        for run, motion in zip(runs, motions, strict=True)
    ]
    b0s = [SeriesFiles(path, is_b0=True) for path in epi_files]
    images += [image_of_b0s(run, settings) for run in b0s]
    joined = joined_of(images, measured, settings)
    names = tuple(run.dwi.name for run in (*runs, *b0s))
    found: Paths = {"xfm_files": [], "details_files": [], "mask_files": []}
    for number, (run, motion) in enumerate(zip(runs, motions, strict=True)):
        outputs = Outputs.in_folder(out_dir / f"run_{number}", run.dwi)
        dwi = load_series(run, settings)
        dwi, moved = SessionRun(names, joined, number).moved(dwi, motion, settings)
        details = outputs["xfm"].with_suffix(".json")
        write_motion(outputs["xfm"], details, moved, whole=True)
        write_image(outputs["mask"], dwi.mask.astype(np.uint8), dwi.affine)
        found["xfm_files"].append(outputs["xfm"])
        found["details_files"].append(details)
        found["mask_files"].append(outputs["mask"])
    return found | _write_field(SessionRun(names, joined, 0), runs[0], out_dir)


def _write_field(run: SessionRun, series: SeriesFiles, out_dir: Path) -> Paths:
    """Write the field of a session, of which `run` and `series` are the first; name its files."""
    outputs = Outputs.in_folder(out_dir, series.dwi)
    write_session_field(run, outputs)
    if run.joined is None or run.joined.field is None:
        return dict.fromkeys(FIELD_FILES)
    files = SessionOutputs.of(outputs).field
    return {name: files.path(kind) for name, kind in FIELD_FILES.items()}


def _refuse_other_number(runs: Sequence[SeriesFiles], files: Sequence[Path], what: str) -> None:
    if len(files) != len(runs):
        raise EddymotionError(
            f"{len(runs)} runs, but {what} of {len(files)}; give one file per run, in the same "
            "order"
        )


def merge(
    dwi_files: Sequence[Path],
    corrected_files: Sequence[Path],
    corrected_bval_files: Sequence[Path],
    corrected_bvec_files: Sequence[Path],
    mask_files: Sequence[Path],
    xfm_files: Sequence[Path],
    details_files: Sequence[Path],
    settings: Settings,
    out_dir: Path,
) -> Paths:
    """Write the corrected runs of a session as one series, as ``distortion_group_merge`` says.

    Parameters
    ----------
    dwi_files : sequence of Path
        The original runs, whose names are kept.
    corrected_files, corrected_bval_files, corrected_bvec_files, mask_files : sequence of Path
        Of each run, from :func:`~eddymotion.pipeline.series_steps.apply`.
    xfm_files, details_files : sequence of Path
        The motion of each in the common frame, from :func:`join`.
    settings : Settings
    out_dir : Path

    Returns
    -------
    dict
        ``merged_file``, ``merged_bval_file`` and ``merged_bvec_file``; None where nothing is to be
        merged.
    """
    kinds = {"merged_file": ".nii.gz", "merged_bval_file": ".bval", "merged_bvec_file": ".bvec"}
    if settings.distortion_group_merge == "none" or len(dwi_files) < 2:
        return dict.fromkeys(kinds)
    refuse_averaging_elsewhere(settings)
    names = [path.name for path in dwi_files]
    corrected = [
        load_corrected(*files, settings)
        for files in zip(corrected_files, corrected_bval_files, corrected_bvec_files, mask_files,
                         strict=True)
    ]  # fmt: skip
    motions = [read_written_motion(*both) for both in zip(xfm_files, details_files, strict=True)]
    stretched = (_stretch_of(*both) for both in zip(corrected, motions, strict=True))
    session = SessionOutputs.of(Outputs.in_folder(out_dir, dwi_files[0]))
    write_as_one(session, corrected, stretched, names, settings)
    return {name: session.merged(ending) for name, ending in kinds.items()}


def _stretch_of(corrected: DWI, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """Return how the field of a motion stretched the run, and where a hertz displaced it."""
    known = motion.off_resonance
    if known is None:
        return np.ones(corrected.shape, np.float32), np.zeros(3)
    pose, shift = motion[corrected.reference], known.shifts[corrected.reference]
    return stretch_on(corrected.shape, corrected.affine, known.field, pose, shift), shift


def fieldmap(
    image_files: Sequence[Path],
    out_dir: Path,
    measured: MeasuredFiles = NO_MAP,
    mask_file: Path | None = None,
    pe_axis: Sequence[str] = (),
    readout_time: Sequence[float] = (),
    echo_times: Sequence[float] = (),
    units: str | None = None,
    ignore: Sequence[str] = (),
    random_seed: int = 0,
) -> Paths:
    """Find the off-resonance field of echo-planar images, or of a measured map, and correct them.

    Parameters
    ----------
    image_files : sequence of Path
        Echo-planar images, or series whose first b=0 volume counts; the field is in the frame and
        on the grid of the first.
    out_dir : Path
    measured : MeasuredFiles
        A map of the field.
    mask_file : Path, optional
        The brain, on the grid of the first image.
    pe_axis, readout_time, echo_times, units, ignore, random_seed
        As in :class:`~eddymotion.fieldmaps.FieldmapSettings`.

    Returns
    -------
    dict
        ``field_file`` (Hz), ``coefficients_file``, ``epi_file`` (all images corrected, as one),
        ``corrected_files`` (each of them) and ``report_file``.
    """
    paths = FieldmapPaths(tuple(image_files), **measured.files, mask=mask_file)
    settings = FieldmapSettings(
        tuple(pe_axis), tuple(readout_time), tuple(echo_times), units, tuple(ignore), random_seed
    )
    make_fieldmap(paths, out_dir, settings)
    outputs = FieldmapOutputs(out_dir, paths.images)
    found: Paths = {name: outputs.field.path(kind) for name, kind in FIELD_FILES.items()}
    return found | {"corrected_files": outputs.corrected(), "report_file": outputs.field.page}
