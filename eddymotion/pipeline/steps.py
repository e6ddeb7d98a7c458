# SPDX-License-Identifier: Apache-2.0
"""All steps of a run, in one table, each from files to files.

The Nipype interfaces and the Pydra tasks are made from it. The parameters of its function are the
inputs of a step; its outputs, and the settings that it uses, are in the table.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import MeasuredFiles, SeriesFiles
from eddymotion.pipeline.lovo_steps import (
    move_all,
    plan,
    predict_volume,
    register_pair,
    resample_volume,
    split,
    unite,
)
from eddymotion.pipeline.run_steps import fieldmap, join, list_runs, merge
from eddymotion.pipeline.series_steps import (
    OPTIONAL_FILES,
    Paths,
    apply,
    correct,
    estimate,
    measure,
    report,
)
from eddymotion.pipeline.settings import (
    ALL,
    APPLYING,
    JOINING,
    JUDGING,
    KINDS,
    MERGING,
    MOTION,
    OF_PARTICIPANTS,
    PREDICTING,
    READING,
    REGISTERING,
    SETTINGS,
    WORDS,
    Setting,
    Settings,
    kind_of,
    settings_of,
)

REQUIRED = inspect.Parameter.empty

HELP = {
    "dwi_file": "4-D diffusion series (NIfTI)",
    "bval_file": "b-values (FSL); default: the file next to the series",
    "bvec_file": "b-vectors (FSL, image axes); default: the file next to the series",
    "mask_file": "brain mask on the grid of the series; computed when not given",
    "xfm_file": "transforms, one per volume, reference → volume (ITK text)",
    "x5_file": "the same transforms as X5",
    "details_file": "standard errors and eddy-current fields that belong to the transforms (JSON)",
    "n_threads": "number of volumes processed at a time; results do not depend on it",
    "corrected_file": "corrected series",
    "corrected_bval_file": "b-values of the corrected series",
    "corrected_bvec_file": "rotated b-vectors",
    "dwiref_file": "reference: mean of the corrected b=0 volumes",
    "confounds_file": "motion and quality, one row per volume (TSV)",
    "confounds_sidecar_file": "meaning and units of the confounds' columns (JSON)",
    "report_file": "page with figures before and after correction (HTML)",
    "motion_figure_file": "motion parameters over the series (SVG)",
    "before_after_figure_file": "slices before and after (PNG)",
    "sidecar_file": "source, settings, versions and timings (JSON)",
    "outliers_file": "slices that lost signal (TSV)",
    "cnr_file": "SNR of the b=0 volumes and CNR of each shell, with cnr_maps (4-D)",
    "residuals_file": "residual of each volume from its prediction, with residuals (4-D)",
    "noise_file": "noise that was removed, with denoise (3-D)",
    "trajectory_file": "pose at each excitation, where motion within volumes was estimated (TSV)",
    "eddy_currents_file": "coefficients of eddy-current fields, where some were found (TSV)",
    "eddy_field_files": "eddy-current fields as displacements, with eddy_fields, one a volume",
    "fsl_files": "text files and CNR maps of FSL's eddy, with fsl_outputs",
    "fsl_matrix_files": "FLIRT matrices, original volume → reference, with fsl_outputs",
    "output_space_xfm_file": "reference frame → output_space, affine part (ITK text)",
    "output_space_warp_file": "reference frame → output_space, warp",
    "exclude_volumes_file": "volumes beyond repair, counted from 0 (text)",
    "qc_file": "figures of quality, with what they mean (JSON)",
    "volume_files": "the volumes, one file each",
    "matrix_files": "transforms, one file a volume (ITK text)",
    "nonnegative": "whether the series has no voxel below zero: resampled volumes are clipped",
    "volume_file": "one original volume (3-D)",
    "matrix_file": "its transform, reference → volume (ITK text)",
    "to_predict": "whether to resample on the grid of the predictions of the leave-one-out loop",
    "out_file": "the volume in the frame of the reference",
    "aligned_files": "resampled volumes, one file each",
    "pass_number": "pass of the leave-one-out loop, from 1 on",
    "aligned_file": "aligned series (4-D)",
    "volumes": "indices of the volumes",
    "relaxation": "fraction of the step from the start to the estimate that is taken",
    "center": "point about which that step is measured, RAS+ mm: the centre of the brain",
    "volume": "index of the held-out volume, from 0 on",
    "predicted_file": "the held-out volume as predicted by the others; NaN where they predict "
    "nothing",
    "fixed_file": "fixed image (3-D); NaNs are ignored",
    "moving_file": "moving image (3-D)",
    "fixed_mask_file": "where the fixed image counts",
    "init_files": "initial transforms, one per volume (ITK text)",
    "lost_files": "where each volume lost its signal, one image a volume",
    "lost_file": "where the moving image shows nothing, on the grid of the fixed one",
    "init_file": "start, fixed → moving (ITK text); the identity when not given",
    "seed": "of the random sampling points",
    "converged": "whether the steps became smaller than the tolerance",
    "message": "why it stopped, in words and numbers",
    "predicted_files": "predictions of the last pass, one file a volume",
    "dwi_files": "diffusion series of a session (4-D NIfTI), in the order of their acquisition",
    "bval_files": "b-values (FSL) of each run; default: the files next to the series",
    "bvec_files": "b-vectors (FSL, image axes) of each run; default: the files next to the series",
    "corrected_files": "corrected images, one file each",
    "corrected_bval_files": "b-values of each corrected run",
    "corrected_bvec_files": "rotated b-vectors of each run",
    "dwiref_files": "reference of each run: mean of its corrected b=0 volumes",
    "confounds_files": "motion and quality of each run, one row per volume (TSV)",
    "xfm_files": "transforms of each run, one per volume, reference → volume (ITK text)",
    "details_files": "standard errors and fields that belong to the transforms of each run (JSON)",
    "mask_files": "brain mask of each run",
    "merged_file": "the corrected runs as one series, on request",
    "merged_bval_file": "its b-values",
    "merged_bvec_file": "its b-vectors",
    "image_files": "echo-planar images of different phase encodings, or series whose first b=0 "
    "volume counts; the field is in the frame and on the grid of the first",
    "epi_files": "images without diffusion weighting of other phase encodings, such as fmap/*_epi",
    "phasediff_file": "measured map: difference of the phases of two echoes",
    "phase1_file": "measured map: phase of the first echo",
    "phase2_file": "measured map: phase of the second echo",
    "map_file": "measured map in Hz, rad/s or T, according to its sidecar",
    "magnitude_file": "magnitude image of the measured map",
    "field_file": "off-resonance field, Hz, on the grid and in the frame of the first image",
    "coefficients_file": "its cubic B-spline coefficients; the affine says where the knots are",
    "epi_file": "the images without diffusion weighting and without distortion, as one",
    "readout_time": "TotalReadoutTime, s: one for all images, or one each; default: from the "
    "sidecars",
    "echo_times": "echo times of the two echoes of a phase map, s; default: from the sidecars",
    "units": "units of the measured map: Hz, rad/s or T; default: from the sidecar",
    "pe_axis": "PhaseEncodingDirection of each image as in BIDS; default: from the sidecars",
    "ignore": "sform, qform: which affine to disregard where the two disagree",
    "random_seed": SETTINGS["random_seed"].help,
    "distortion_group_merge": SETTINGS["distortion_group_merge"].help,
    "output_space": SETTINGS["output_space"].help,
}
"""What each input and output is."""

VALUE_OUTPUTS: Mapping[str, Any] = {
    "nonnegative": bool, "converged": bool, "message": str, "volumes": list[int],
    "relaxation": list[float], "center": list[float],
}  # fmt: skip
"""Types of outputs that are neither a file nor a list of files."""

OPTIONAL_OUTPUTS = {
    "Correct": (*OPTIONAL_FILES, "fsl_files"),
    "Join": ("field_file", "coefficients_file", "epi_file"),
    "Merge": ("merged_file", "merged_bval_file", "merged_bvec_file"),
}
"""Outputs that are None where there is nothing to write: step → outputs."""


@dataclass(frozen=True)
class Field:
    """An input or an output of a step.

    Parameters
    ----------
    name : str
    kind : type
        ``Path``, ``float``, ``int``, ``str``, ``bool``, or a list of one of them.
    help : str
    default
        Of an input; None where it need not be given.
    words : tuple of str
        What it takes instead of a value of that type.
    """

    name: str
    kind: Any
    help: str
    default: Any = REQUIRED
    words: tuple[str, ...] = ()

    def converted(self, value: Any) -> Any:
        """Convert a value from a workflow engine; None means that it was not given."""
        if value is None:
            return None if self.default is REQUIRED else self.default
        if self.kind == list[Path]:
            return [Path(item) for item in value]
        return Path(value) if self.kind is Path else value


SERIES = (
    Field("dwi_file", Path, HELP["dwi_file"]),
    Field("bval_file", Path, HELP["bval_file"], None),
    Field("bvec_file", Path, HELP["bvec_file"], None),
    Field("mask_file", Path, SETTINGS["brain_mask"].help, None),
    Field("n_threads", int, HELP["n_threads"], Settings.nprocs),
)
"""Inputs of a step that reads the series; the last two are settings."""

FORMER_NAMES = {"num_threads": "n_threads"}
"""Keywords of workflows and tasks: former name → present one."""

TO_READ = SERIES[-2:]
"""Inputs that say how a series is read; they are settings."""

CORRECTED_SERIES = (
    Field("corrected_file", Path, HELP["corrected_file"]),
    Field("corrected_bval_file", Path, HELP["corrected_bval_file"], None),
    Field("corrected_bvec_file", Path, HELP["corrected_bvec_file"], None),
)

RUNS = (
    Field("dwi_files", list[Path], HELP["dwi_files"]),
    Field("bval_files", list[Path], HELP["bval_files"], None),
    Field("bvec_files", list[Path], HELP["bvec_files"], None),
)

MEASURED = {
    "phasediff_file": "phasediff", "phase1_file": "phase1", "phase2_file": "phase2",
    "map_file": "fieldmap", "magnitude_file": "magnitude",
}  # fmt: skip
"""Inputs of a step that reads a measured map → their names in :class:`MeasuredFiles`."""


def runs_of(
    dwis: Sequence[Path], bvals: Sequence[Path] | None, bvecs: Sequence[Path] | None
) -> list[SeriesFiles]:
    """Put runs together with their tables.

    Raises
    ------
    EddymotionError
        If there is another number of tables than of runs, or no run at all.
    """
    for what, tables in (("bval_files", bvals), ("bvec_files", bvecs)):
        if tables and len(tables) != len(dwis):
            raise EddymotionError(
                f"{what}: {len(tables)} given for {len(dwis)} runs; give one per run, or none if "
                "they are next to the images"
            )
    if not dwis:
        raise EddymotionError("dwi_files: none given, expected one or more series")
    nothing = [None] * len(dwis)
    return [SeriesFiles(*files) for files in zip(dwis, bvals or nothing, bvecs or nothing,
                                                 strict=True)]  # fmt: skip


def measured_of(*paths: Path | None) -> MeasuredFiles:
    """Put the files of a measured map together, given in the order of :data:`MEASURED`."""
    given = zip(MEASURED.values(), paths, strict=True)
    return MeasuredFiles({kind: path for kind, path in given if path is not None})


GROUPED_INPUTS: Mapping[str, tuple[Callable[..., Any], tuple[Field, ...]]] = {
    "series": (SeriesFiles, SERIES[:3]),
    "corrected": (SeriesFiles, CORRECTED_SERIES),
    "runs": (runs_of, RUNS),
    "measured": (measured_of, tuple(Field(name, Path, HELP[name], None) for name in MEASURED)),
}
"""Parameter that stands for several inputs → what makes its value, and these inputs."""


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Parameters
    ----------
    name : str
        Of the interface and the task.
    function : callable
        From files to files. Its parameters are the inputs, except ``settings``, ``out_dir`` and
        ``progress``; one of :data:`GROUPED_INPUTS` stands for several inputs.
    output_names : mapping
        Output → the name under which :data:`HELP` explains it.
    setting_names : tuple of str
        Settings that it uses.
    """

    name: str
    function: Callable[..., Paths]
    output_names: Mapping[str, str]
    setting_names: tuple[str, ...] = ()

    @property
    def help(self) -> str:
        """The first line of the function's docstring, and where to read the rest."""
        first = (inspect.getdoc(self.function) or "").partition("\n")[0].rstrip(".")
        where = f"{self.function.__module__}.{self.function.__name__}"
        return f"{first}; see :func:`{where}`."

    @cached_property
    def inputs(self) -> tuple[Field, ...]:
        """Inputs that are no settings."""
        hints = typing.get_type_hints(self.function)
        found: list[Field] = []
        for name, parameter in inspect.signature(self.function).parameters.items():
            if name in GROUPED_INPUTS:
                found += GROUPED_INPUTS[name][1]
                if name in ("series", "runs") and "settings" in hints:
                    found += TO_READ
            elif name not in ("settings", "out_dir", "progress"):
                default = [] if parameter.default == () else parameter.default
                found.append(Field(name, kind_of(hints[name]), HELP[name], default))
        return tuple(found)

    @property
    def settings(self) -> tuple[Field, ...]:
        """Settings that it uses, as inputs."""
        return setting_fields(self.setting_names)

    @property
    def outputs(self) -> tuple[Field, ...]:
        """Outputs."""
        files = {"file": Path, "files": list[Path]}
        missing = OPTIONAL_OUTPUTS.get(self.name, ())
        return tuple(
            Field(name, VALUE_OUTPUTS.get(name) or files[name.rpartition("_")[2]], HELP[explained],
                  None if name in missing else REQUIRED)
            for name, explained in self.output_names.items()
        )  # fmt: skip

    def settings_of(self, given: Mapping[str, Any]) -> Settings:
        """Collect its settings among what is given; other inputs may have the names of some."""
        names = {*self.setting_names, *(field.name for field in TO_READ)}
        return settings_of({name: value for name, value in given.items() if name in names})

    def run(self, given: Mapping[str, Any], out_dir: Path) -> Paths:
        """Call the function with inputs and settings by name; those that are None are not given.

        Returns
        -------
        dict
            Name of an output → its path, a list of paths, or a value.
        """
        converted: dict[str, Any] = {f.name: f.converted(given.get(f.name)) for f in self.inputs}
        converted |= {"settings": self.settings_of(given), "out_dir": out_dir}
        names = inspect.signature(self.function).parameters
        for name in GROUPED_INPUTS.keys() & names:
            make, inputs = GROUPED_INPUTS[name]
            converted[name] = make(*(converted[field.name] for field in inputs))
        return self.function(**{name: converted[name] for name in names if name in converted})


def setting_fields(names: Iterable[str]) -> tuple[Field, ...]:
    """Describe settings as inputs."""
    defaults = {name: getattr(Settings, name) for name in names}
    return tuple(
        Field(
            name,
            KINDS[name],
            explained(SETTINGS[name]),
            list(v) if isinstance(v, tuple) else v,
            tuple(word for word in WORDS[name] if word not in OF_PARTICIPANTS),
        )
        for name, v in defaults.items()
    )


def explained(setting: Setting) -> str:
    """Say what a setting means, and its values if that does not name them all.

    Help of commands shows them beside the option.
    """
    values = [*setting.choices, *(["N"] if setting.least is not None and setting.choices else [])]
    if all(re.search(rf"\b{re.escape(value)}(?!\w)", setting.help) for value in values):
        return setting.help
    return f"{setting.help}; one of {', '.join(values)}"


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


FOUND = _named("xfm_file", "x5_file", "details_file", "mask_file")
CORRECTED = {
    "dwi_file": "corrected_file",
    "bval_file": "corrected_bval_file",
    "bvec_file": "corrected_bvec_file",
} | _named("dwiref_file", "mask_file")
TABLES = _named("confounds_file", "confounds_sidecar_file", "exclude_volumes_file")
PICTURES = _named("report_file", "motion_figure_file", "before_after_figure_file")
EVERYTHING = {
    **CORRECTED, **TABLES, **PICTURES,
    **_named("xfm_file", "x5_file", "details_file", "sidecar_file", "outliers_file", "qc_file"),
    **_named(*OPTIONAL_OUTPUTS["Correct"]),
}  # fmt: skip
VOLUMES = _named(
    "volume_files", "matrix_files", "mask_file", "bval_file", "bvec_file", "nonnegative"
)
PLANNED = _named(
    "aligned_file", "xfm_file", "init_files", "lost_files", "volumes", "relaxation", "center"
) | {"mask_file": "fixed_mask_file"}
REGISTERED = _named("matrix_file", "converged", "message")
LISTED = _named("dwi_files", "bval_files", "bvec_files")
FIELD = _named("field_file", "coefficients_file", "epi_file")
JOINED = _named("xfm_files", "details_files", "mask_files") | FIELD
MERGED = _named("merged_file", "merged_bval_file", "merged_bvec_file")
FIELDMAP = FIELD | _named("corrected_files", "report_file")

_STEPS = (
    Step("Estimate", estimate, FOUND, MOTION),
    Step("Apply", apply, CORRECTED, APPLYING),
    Step("Measure", measure, TABLES, JUDGING),
    Step("Report", report, PICTURES, MOTION),
    Step("Correct", correct, EVERYTHING, ALL),
    Step("Split", split, VOLUMES, READING),
    Step("ResampleVolume", resample_volume, _named("out_file")),
    Step("Plan", plan, PLANNED, MOTION),
    Step("PredictVolume", predict_volume, _named("predicted_file"), PREDICTING),
    Step("RegisterPair", register_pair, REGISTERED, REGISTERING),
    Step("MoveAll", move_all, _named("matrix_files"), MOTION),
    Step("Unite", unite, FOUND, MOTION),
    Step("ListRuns", list_runs, LISTED),
    Step("Join", join, JOINED, JOINING),
    Step("Merge", merge, MERGED, MERGING),
    Step("Fieldmap", fieldmap, FIELDMAP),
)
STEPS: Mapping[str, Step] = {step.name: step for step in _STEPS}
"""All of them by name: those of a series, seven of the leave-one-out loop by single volumes, those
of several runs."""
