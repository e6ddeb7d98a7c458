# SPDX-License-Identifier: Apache-2.0
"""Pydra tasks over :mod:`eddymotion.pipeline.parts`: each is a call of the function of its name.

Pydra tells results apart by the contents of input files and by the source of the function here,
not by the version of this package: clear the cache after an upgrade.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_ET", "1")  # no version ping: it waits for seconds behind a firewall

from fileformats.generic import File
from pydra.compose import python
from pydra.utils.hash import hash_function

from eddymotion.interfaces import (
    ALL,
    APPLYING,
    FIELD_HELP,
    JUDGING,
    MOTION,
    PREDICTING,
    READING,
    REGISTERING,
    setting_default,
    setting_help,
    setting_type,
    settings_of,
    sidecar_beside,
    tables_beside,
)

if TYPE_CHECKING:
    from eddymotion.pipeline.correct import SeriesFiles

__all__ = [
    "Apply",
    "Correct",
    "Estimate",
    "Measure",
    "Plan",
    "PredictVolume",
    "RegisterPair",
    "Report",
    "ResampleVolume",
    "Split",
    "Unite",
]


class SeriesTask:
    """A task whose series may have its tables and sidecar beside it: they belong to its content.

    Pydra judges by the inputs whether a result still holds.
    """

    dwi_file: Any

    def _compute_hashes(self) -> tuple[Any, dict[str, Any]]:
        hashes = super()._compute_hashes()[1]  # type: ignore[misc]
        if isinstance(self.dwi_file, File):
            beside = tables_beside(Path(self.dwi_file))
            if (sidecar := sidecar_beside(Path(self.dwi_file))) is not None:
                beside["sidecar"] = sidecar
            hashes |= {f"{name} beside": hash_function(File(path))
                       for name, path in beside.items()}  # fmt: skip
        return hash_function(sorted(hashes.items())), hashes


TYPES = {
    "num_threads": int, "pass_number": int, "volume": int, "seed": int, "nonnegative": bool,
    "converged": bool, "message": str, "volumes": list[int], "relaxation": float,
    "center": list[float],
}  # fmt: skip
"""Fields that are neither a file nor a list of files."""

DEFAULTS = {"num_threads": 1, "seed": 0, "nonnegative": False, "relaxation": 1.0}

SERIES = ("dwi_file", "bval_file", "bvec_file", "mask_file", "num_threads")
OPTIONAL = {
    "bval_file", "bvec_file", "mask_file", "details_file", "corrected_bval_file",
    "corrected_bvec_file", "fixed_mask_file", "lost_file", "init_file", "xfm_file?",
    "pass_number?", "center",
}  # fmt: skip
"""Inputs that need not be given; a question mark after a name says so for one task."""


def _type(name: str) -> Any:
    return TYPES.get(name, list[File] if name.endswith("_files") else File)


def inputs_of(
    *names: str, settings: Sequence[str] = (), field: Any = python.arg
) -> dict[str, Any]:
    """Describe inputs by name, and settings with their defaults, as `field`."""
    inputs = {}
    for asked in names:
        name, kind = asked.rstrip("?"), _type(asked.rstrip("?"))
        told = {"help": FIELD_HELP[name]}
        if name in DEFAULTS:
            inputs[name] = field(type=kind, default=DEFAULTS[name], **told)
        elif asked in OPTIONAL:
            inputs[name] = field(type=kind | None, default=None, **told)
        else:
            inputs[name] = field(type=kind, **told)
    return inputs | {name: _setting(name, field) for name in settings}


def _setting(name: str, field: Any) -> Any:
    kind, optional = setting_type(name)
    kind = File if kind is Path else kind
    default = setting_default(name)
    return field(
        type=kind | None if optional else kind,
        default=list(default) if isinstance(default, tuple) else default,
        help=setting_help(name),
    )


def outputs_of(field: Any = python.out, **names: str) -> dict[str, Any]:
    """Describe outputs, name → the name under which it is explained, as `field`."""
    return {name: field(type=_type(name), help=FIELD_HELP[told]) for name, told in names.items()}


def named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _series(given: dict[str, Any], prefix: str = "") -> SeriesFiles:
    from eddymotion.pipeline.correct import SeriesFiles

    dwi = given[f"{prefix}file" if prefix else "dwi_file"]
    bval, bvec = (_path(given.get(f"{prefix}{kind}_file")) for kind in ("bval", "bvec"))
    return SeriesFiles(Path(dwi), bval, bvec)


def _path(file: Any) -> Path | None:
    return None if file is None else Path(file)


# Functions of module level, not the decorated names: Pydra's workers find them by name, and their
# hash stays the same in another process.


def _estimate(**given: Any) -> Any:
    """Estimate the motion of a diffusion series."""
    from eddymotion.pipeline import parts

    return parts.estimate(_series(given), settings_of(given), Path.cwd())


FOUND = named("xfm_file", "x5_file", "details_file", "mask_file")

Estimate: Any = python.define(
    _estimate,
    name="Estimate",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, settings=MOTION),
    outputs=outputs_of(**FOUND),
)


def _apply(**given: Any) -> Any:
    """Resample a series once, by given transforms, and rotate its b-vectors."""
    from eddymotion.pipeline import parts

    return parts.apply(_series(given), Path(given["xfm_file"]), settings_of(given), Path.cwd(),
                       _path(given["details_file"]))  # fmt: skip


CORRECTED = {
    "dwi_file": "corrected_file",
    "bval_file": "corrected_bval_file",
    "bvec_file": "corrected_bvec_file",
    "dwiref_file": "dwiref_file",
    "mask_file": "mask_file",
}

Apply: Any = python.define(
    _apply,
    name="Apply",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, "xfm_file", "details_file", settings=APPLYING),
    outputs=outputs_of(**CORRECTED),
)


def _measure(**given: Any) -> Any:
    """Tabulate motion, and how well held-out volumes agree with their predictions."""
    from eddymotion.pipeline import parts

    return parts.measure(_series(given), Path(given["xfm_file"]), settings_of(given), Path.cwd(),
                         _path(given["details_file"]))  # fmt: skip


TABLES = named("confounds_file", "confounds_sidecar_file")

Measure: Any = python.define(
    _measure,
    name="Measure",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, "xfm_file", "details_file", settings=JUDGING),
    outputs=outputs_of(**TABLES),
)


def _report(**given: Any) -> Any:
    """Draw a series before and after, and write a page that needs no network."""
    from eddymotion.pipeline import parts

    return parts.report(_series(given), _series(given, "corrected_"), Path(given["xfm_file"]),
                        settings_of(given), Path.cwd(),
                        _path(given["details_file"]))  # fmt: skip


PICTURES = named("report_file", "motion_figure_file", "before_after_figure_file")

Report: Any = python.define(
    _report,
    name="Report",
    bases=(SeriesTask,),
    inputs=inputs_of(
        *SERIES, "corrected_file", "corrected_bval_file", "corrected_bvec_file", "xfm_file",
        "details_file", settings=MOTION,
    ),
    outputs=outputs_of(**PICTURES),
)  # fmt: skip


def _correct(**given: Any) -> Any:
    """Correct a series: all outputs and the report."""
    from eddymotion.pipeline import parts

    return parts.correct(_series(given), settings_of(given), Path.cwd())


Correct: Any = python.define(
    _correct,
    name="Correct",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, settings=ALL),
    outputs=outputs_of(
        **CORRECTED, **TABLES, **PICTURES,
        **named("xfm_file", "x5_file", "sidecar_file", "outliers_file"),
    ),
)  # fmt: skip


def _split(**given: Any) -> Any:
    """Write each volume of a series as an image of its own."""
    from eddymotion.pipeline import loop as loop_parts

    return loop_parts.split(_series(given), settings_of(given), Path.cwd())


Split: Any = python.define(
    _split,
    name="Split",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, settings=READING),
    outputs=outputs_of(**named("volume_files", "matrix_files", "mask_file", "bval_file",
                              "bvec_file", "nonnegative")),
)  # fmt: skip


def _resample_volume(**given: Any) -> Any:
    """Resample one volume on its own grid."""
    from eddymotion.pipeline import loop as loop_parts

    found = loop_parts.resample_volume(Path(given["volume_file"]), Path(given["matrix_file"]),
                                  Path.cwd(), nonnegative=given["nonnegative"])  # fmt: skip
    return found["out_file"]


ResampleVolume: Any = python.define(
    _resample_volume,
    name="ResampleVolume",
    inputs=inputs_of("volume_file", "matrix_file", "nonnegative"),
    outputs=outputs_of(**named("out_file")),
)


def _plan(**given: Any) -> Any:
    """Gather the volumes for a pass of the leave-one-out loop, and say how it goes."""
    from eddymotion.pipeline import loop as loop_parts

    return loop_parts.plan(given["aligned_files"], given["matrix_files"], _series(given),
                      settings_of(given), Path.cwd(),
                      pass_number=given["pass_number"])  # fmt: skip


Plan: Any = python.define(
    _plan,
    name="Plan",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, "aligned_files", "matrix_files", "pass_number", settings=MOTION),
    outputs=outputs_of(
        aligned_file="aligned_file",
        xfm_file="xfm_file",
        mask_file="fixed_mask_file",
        init_files="init_files",
        lost_files="lost_files",
    )
    | {
        "volumes": python.out(type=list[int], help=FIELD_HELP["volumes"]),
        "relaxation": python.out(type=list[float], help=FIELD_HELP["relaxation"]),
        "center": python.out(type=list[float], help=FIELD_HELP["center"]),
    },
)


def _predict_volume(**given: Any) -> Any:
    """Predict one volume of an aligned series from all the others."""
    from eddymotion.pipeline import loop as loop_parts

    tables = _series(given | {"dwi_file": given["aligned_file"]})
    found = loop_parts.predict_volume(Path(given["aligned_file"]), tables, given["volume"],
                                 settings_of(given), Path.cwd(),
                                 xfm_file=_path(given["xfm_file"]),
                                 pass_number=given["pass_number"])  # fmt: skip
    return found["predicted_file"]


PredictVolume: Any = python.define(
    _predict_volume,
    name="PredictVolume",
    inputs=inputs_of("aligned_file", "volume", "xfm_file?", "pass_number?", settings=PREDICTING)
    | {name: python.arg(type=File, help=FIELD_HELP[name]) for name in ("bval_file", "bvec_file")},
    outputs=outputs_of(**named("predicted_file")),
)


def _register_pair(**given: Any) -> Any:
    """Register an image to another one."""
    from eddymotion.pipeline import loop as loop_parts

    return loop_parts.register_pair(Path(given["fixed_file"]), Path(given["moving_file"]),
                               settings_of(given), Path.cwd(),
                               mask_file=_path(given["fixed_mask_file"]),
                               lost_file=_path(given["lost_file"]),
                               init_file=_path(given["init_file"]), seed=given["seed"],
                               pass_number=given["pass_number"],
                               relaxation=given["relaxation"],
                               center=given["center"])  # fmt: skip


RegisterPair: Any = python.define(
    _register_pair,
    name="RegisterPair",
    inputs=inputs_of(
        "fixed_file", "moving_file", "fixed_mask_file", "lost_file", "init_file", "seed",
        "pass_number?", "relaxation", "center", settings=REGISTERING,
    ),
    outputs=outputs_of(**named("matrix_file", "converged", "message")),
)  # fmt: skip


def _unite(**given: Any) -> Any:
    """Bring b=0 and diffusion-weighted volumes into one frame: the end of the loop."""
    from eddymotion.pipeline import loop as loop_parts

    return loop_parts.unite(_series(given), given["matrix_files"], given["predicted_files"],
                       settings_of(given), Path.cwd())  # fmt: skip


Unite: Any = python.define(
    _unite,
    name="Unite",
    bases=(SeriesTask,),
    inputs=inputs_of(*SERIES, "matrix_files", "predicted_files", settings=MOTION),
    outputs=outputs_of(**FOUND),
)
