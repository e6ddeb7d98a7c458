# SPDX-License-Identifier: Apache-2.0
"""Pydra workflows: the graphs of :mod:`eddymotion.workflows.nipype`, with the same outputs.

One series, and several side by side::

    from eddymotion.workflows.pydra import DwiHmc

    outputs = DwiHmc(dwi_file="dwi.nii.gz")(worker="cf", cache_root="work")
    outputs.dwi_file, outputs.xfm_file

    both = DwiHmc().split(dwi_file=["a_dwi.nii.gz", "b_dwi.nii.gz"])(worker="cf")
    both.dwi_file  # a list
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eddymotion.interfaces.pydra import (  # sets NO_ET before Pydra is imported
    Apply,
    Estimate,
    Measure,
    Plan,
    PredictVolume,
    RegisterPair,
    ResampleVolume,
    Split,
    StepTask,
    Unite,
    inputs_of,
    outputs_of,
)
from eddymotion.pipeline.lovo_steps import n_passes, refuse_what_is_no_loop
from eddymotion.pipeline.settings import (
    APPLYING,
    JUDGING,
    MOTION,
    PREDICTING,
    READING,
    REGISTERING,
    settings_of,
)
from eddymotion.pipeline.steps import FOUND, SERIES, STEPS, setting_fields

from pydra.compose import workflow  # isort: skip

__all__ = ["DwiHmc", "Lovo", "forget_failures"]

ORIGINAL = ("dwi_file", "bval_file", "bvec_file")
WHOLE = tuple(field.name for field in SERIES)
GIVES = (
    "dwi_file", "bval_file", "bvec_file", "xfm_file", "confounds_file", "dwiref_file", "mask_file",
)  # fmt: skip
"""Outputs of :class:`DwiHmc`."""


def _lovo(**given: Any) -> Any:
    """Estimate motion by the leave-one-out loop, every volume a task of its own.

    In each pass the volumes are resampled by the transforms so far, each is predicted from all
    the others, and the original volume is registered to its prediction. Same transforms as
    ``estimator="lovo"``, and slower, since everything goes through files.
    """
    settings = _some(given, MOTION)
    refuse_what_is_no_loop(settings_of(settings))
    split = workflow.add(Split(**_some(given, (*WHOLE, *READING))))
    original = _some(given, ORIGINAL)
    matrices = split.matrix_files
    for number in range(1, n_passes(settings_of(settings)) + 1):
        resampled = workflow.add(
            ResampleVolume(nonnegative=split.nonnegative)
            .split(("volume_file", "matrix_file"), volume_file=split.volume_files,
                   matrix_file=matrices)
            .combine(["volume_file", "matrix_file"]),
            name=f"resample_{number}",
        )  # fmt: skip
        plan = workflow.add(
            Plan(aligned_files=resampled.out_file, matrix_files=matrices, pass_number=number,
                 mask_file=split.mask_file, **original, **settings),
            name=f"plan_{number}",
        )  # fmt: skip
        predicted = workflow.add(
            PredictVolume(aligned_file=plan.aligned_file, bval_file=split.bval_file,
                          bvec_file=split.bvec_file, xfm_file=plan.xfm_file, pass_number=number,
                          **_some(given, PREDICTING))
            .split(volume=plan.volumes)
            .combine("volume"),
            name=f"predict_{number}",
        )  # fmt: skip
        registered = workflow.add(
            RegisterPair(fixed_mask_file=plan.mask_file, center=plan.center, pass_number=number,
                         seed=settings["random_seed"] + number, **_some(given, REGISTERING))
            .split(PAIRED, fixed_file=predicted.predicted_file, moving_file=split.volume_files,
                   lost_file=plan.lost_files, init_file=plan.init_files,
                   relaxation=plan.relaxation)
            .combine(list(PAIRED)),
            name=f"register_{number}",
        )  # fmt: skip
        matrices = registered.matrix_file
    found = workflow.add(
        Unite(matrix_files=matrices, predicted_files=predicted.predicted_file,
              mask_file=split.mask_file, num_threads=given["num_threads"], **original, **settings)
    )  # fmt: skip
    return tuple(getattr(found, name) for name in FOUND)


PAIRED = ("fixed_file", "moving_file", "lost_file", "init_file", "relaxation")
"""Inputs that go together, volume by volume."""

Lovo: Any = workflow.define(
    _lovo,
    name="Lovo",
    bases=(StepTask,),
    inputs=inputs_of((*SERIES, *setting_fields(MOTION)), workflow.arg),
    outputs=outputs_of(STEPS["Unite"].outputs, workflow.out),
)


def _dwi_hmc(**given: Any) -> Any:
    """Correct the head motion of a diffusion series.

    Estimate the motion, resample the series once and rotate its b-vectors, tabulate motion and
    quality. With ``spelled_out`` the motion is estimated by the graph of `Lovo`.
    """
    series, settings = _some(given, WHOLE), _some(given, MOTION)
    estimate = Lovo if given["spelled_out"] else Estimate
    found = workflow.add(estimate(**series, **settings), name="estimate")
    moved = series | {
        "mask_file": found.mask_file,
        "xfm_file": found.xfm_file,
        "details_file": found.details_file,
    }
    applied = workflow.add(Apply(**moved, **_some(given, APPLYING)))
    measured = workflow.add(Measure(**moved, **_some(given, JUDGING)))
    others = {"xfm_file": found, "confounds_file": measured}
    return tuple(getattr(others.get(name, applied), name) for name in GIVES)


def forget_failures(cache_root: str | Path) -> None:
    """Remove from a Pydra cache the jobs that failed or were interrupted; no run may be using it.

    Pydra 1.0a12 takes the trace of an earlier failure for a failure of the new run, and waits for
    the lock of a job that was killed.
    """
    for error in Path(cache_root).glob("*/_error.pklz"):
        shutil.rmtree(error.parent, ignore_errors=True)
    for lock in Path(cache_root).glob("*.lock"):
        if not (lock.with_suffix("") / "_result.pklz").exists():
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)


def _some(given: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: given[name] for name in names}


_OUTPUTS = {
    field.name: field
    for name in ("Estimate", "Measure", "Apply")  # whose mask is that of the corrected series
    for field in STEPS[name].outputs
}

DwiHmc: Any = workflow.define(
    _dwi_hmc,
    name="DwiHmc",
    bases=(StepTask,),
    inputs=inputs_of((*SERIES, *setting_fields(dict.fromkeys((*MOTION, *APPLYING)))), workflow.arg)
    | {
        "spelled_out": workflow.arg(
            type=bool, default=False, help="estimate with every volume a task of its own (lovo)"
        )
    },
    outputs=outputs_of((_OUTPUTS[name] for name in GIVES), workflow.out),
)
