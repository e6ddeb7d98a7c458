# SPDX-License-Identifier: Apache-2.0
"""All steps of a run, in one table, each from files to files.

The Nipype interfaces and the Pydra tasks are made from it. What a step takes is what its function
takes; what it gives, and which settings it heeds, stands in the table.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eddymotion.io.sidecars import SeriesFiles
from eddymotion.pipeline.lovo_steps import (
    plan,
    predict_volume,
    register_pair,
    resample_volume,
    split,
    unite,
)
from eddymotion.pipeline.series_steps import Paths, apply, correct, estimate, measure, report
from eddymotion.pipeline.settings import (
    ALL,
    APPLYING,
    JUDGING,
    KINDS,
    MOTION,
    PREDICTING,
    READING,
    REGISTERING,
    SETTINGS,
    Settings,
    kind_of,
    settings_of,
)

REQUIRED = inspect.Parameter.empty

HELP = {
    "dwi_file": "4-D diffusion series (NIfTI)",
    "bval_file": "b-values (FSL); beside the series when not given",
    "bvec_file": "b-vectors (FSL, image axes); beside the series when not given",
    "mask_file": "brain mask on the grid of the series; computed when not given",
    "xfm_file": "transforms, one a volume, reference → volume (ITK text)",
    "x5_file": "the same transforms as X5",
    "details_file": "standard errors and eddy-current fields that belong to the transforms (JSON)",
    "n_threads": "volumes at a time; the result does not depend on it",
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
"""What each input and output is."""

OTHER_OUTPUTS: Mapping[str, Any] = {
    "nonnegative": bool, "converged": bool, "message": str, "volumes": list[int],
    "relaxation": list[float], "center": list[float],
}  # fmt: skip
"""Types of outputs that are neither a file nor a list of files."""


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
    """

    name: str
    kind: Any
    help: str
    default: Any = REQUIRED

    def converted(self, value: Any) -> Any:
        """Convert what a workflow engine hands over; None is not given."""
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

CORRECTED_SERIES = (
    Field("corrected_file", Path, HELP["corrected_file"]),
    Field("corrected_bval_file", Path, HELP["corrected_bval_file"], None),
    Field("corrected_bvec_file", Path, HELP["corrected_bvec_file"], None),
)

SEVERAL = {"series": SERIES, "corrected": CORRECTED_SERIES}
"""Parameters that stand for an image with its tables."""


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Parameters
    ----------
    name : str
        Of the interface and the task.
    function : callable
        From files to files. Its parameters are the inputs, but ``settings``, ``out_dir`` and
        ``progress``; one for a series stands for :data:`SERIES`.
    gives : mapping
        Output → the name under which :data:`HELP` explains it.
    heeds : tuple of str
        Settings.
    """

    name: str
    function: Callable[..., Paths]
    gives: Mapping[str, str]
    heeds: tuple[str, ...] = ()

    @property
    def help(self) -> str:
        """The first line of what the function tells about itself, and where to read the rest."""
        first = (inspect.getdoc(self.function) or "").partition("\n")[0].rstrip(".")
        where = f"{self.function.__module__}.{self.function.__name__}"
        return f"{first}; see :func:`{where}`."

    @cached_property
    def inputs(self) -> tuple[Field, ...]:
        """What it takes, besides settings."""
        hints = typing.get_type_hints(self.function)
        found: list[Field] = []
        for name, parameter in inspect.signature(self.function).parameters.items():
            if name in SEVERAL:
                found += SEVERAL[name]
            elif name not in ("settings", "out_dir", "progress"):
                found.append(Field(name, kind_of(hints[name]), HELP[name], parameter.default))
        return tuple(found)

    @property
    def settings(self) -> tuple[Field, ...]:
        """Which settings it takes."""
        return setting_fields(self.heeds)

    @property
    def outputs(self) -> tuple[Field, ...]:
        """What it gives."""
        files = {"file": Path, "files": list[Path]}
        return tuple(
            Field(name, OTHER_OUTPUTS.get(name) or files[name.rpartition("_")[2]], HELP[explained])
            for name, explained in self.gives.items()
        )

    def run(self, given: Mapping[str, Any], out_dir: Path) -> Paths:
        """Call the function with inputs and settings by name; those that are None are not given.

        Returns
        -------
        dict
            Name of an output → its path, a list of paths, or a value.
        """
        converted: dict[str, Any] = {f.name: f.converted(given.get(f.name)) for f in self.inputs}
        converted |= {"settings": settings_of(given), "out_dir": out_dir}
        names = inspect.signature(self.function).parameters
        for name in SEVERAL.keys() & names:
            dwi, bval, bvec = (converted[f.name] for f in SEVERAL[name][:3])
            converted[name] = SeriesFiles(dwi, bval, bvec)
        return self.function(**{name: converted[name] for name in names if name in converted})


def setting_fields(names: Iterable[str]) -> tuple[Field, ...]:
    """Describe settings as inputs."""
    defaults = {name: getattr(Settings, name) for name in names}
    return tuple(
        Field(name, KINDS[name], SETTINGS[name].help, list(v) if isinstance(v, tuple) else v)
        for name, v in defaults.items()
    )


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


FOUND = _named("xfm_file", "x5_file", "details_file", "mask_file")
CORRECTED = {
    "dwi_file": "corrected_file",
    "bval_file": "corrected_bval_file",
    "bvec_file": "corrected_bvec_file",
} | _named("dwiref_file", "mask_file")
TABLES = _named("confounds_file", "confounds_sidecar_file")
PICTURES = _named("report_file", "motion_figure_file", "before_after_figure_file")
EVERYTHING = {
    **CORRECTED, **TABLES, **PICTURES,
    **_named("xfm_file", "x5_file", "sidecar_file", "outliers_file"),
}  # fmt: skip
VOLUMES = _named(
    "volume_files", "matrix_files", "mask_file", "bval_file", "bvec_file", "nonnegative"
)
PLANNED = _named(
    "aligned_file", "xfm_file", "init_files", "lost_files", "volumes", "relaxation", "center"
) | {"mask_file": "fixed_mask_file"}
REGISTERED = _named("matrix_file", "converged", "message")

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
    Step("Unite", unite, FOUND, MOTION),
)
STEPS: Mapping[str, Step] = {step.name: step for step in _STEPS}
"""All of them by name; the last six are the leave-one-out loop by single volumes."""
