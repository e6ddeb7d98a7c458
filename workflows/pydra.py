# SPDX-License-Identifier: Apache-2.0
"""Pydra workflows: the graphs of :mod:`eddymotion.workflows.nipype`, with the same outputs.

One series, and several side by side::

    from eddymotion.workflows.pydra import DwiHmc

    outputs = DwiHmc(dwi_file="dwi.nii.gz")(worker="cf", cache_root="work")
    outputs.dwi_file, outputs.xfm_file

    both = DwiHmc().split(dwi_file=["a_dwi.nii.gz", "b_dwi.nii.gz"])(worker="cf")
    both.dwi_file  # a list

Runs of a session, in one frame::

    runs = DwiRuns(dwi_files=["dir-AP_dwi.nii.gz", "dir-PA_dwi.nii.gz"])(worker="cf")
    runs.dwi_files, runs.field_file
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eddymotion.errors import with_present_names
from eddymotion.interfaces import pydra as tasks  # sets NO_ET before Pydra is imported
from eddymotion.interfaces.pydra import StepTask, inputs_of, outputs_of
from eddymotion.pipeline.graphs import RUNS_INPUTS, Graph, correction_graph, lovo_graph, runs_graph
from eddymotion.pipeline.settings import (
    APPLYING,
    JOINING,
    MERGING,
    MOTION,
    Settings,
    settings_of,
)
from eddymotion.pipeline.steps import FORMER_NAMES, SERIES, STEPS, Field, setting_fields

from pydra.compose import workflow  # isort: skip

__all__ = ["DwiHmc", "DwiRuns", "Lovo", "forget_failures"]


def _lovo(**given: Any) -> Any:
    """Estimate motion by the leave-one-out loop, every volume a task of its own.

    In each pass the volumes are resampled by the transforms so far, each is predicted from all
    the others, and the original volume is registered to its prediction. Same transforms as
    ``estimator="lovo"``, and slower, since everything goes through files.
    """
    settings = settings_of({name: given[name] for name in MOTION})
    return _add(lovo_graph(settings), given)


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
    return _add(correction_graph(spelled_out=given["spelled_out"]), given)


def _dwi_runs(**given: Any) -> Any:
    """Correct the runs of a session in one frame, with the off-resonance field between them.

    Each run's motion is found in its own frame; the mean b=0 images tell how the runs lie to each
    other and, where their phase encodings differ, the field that distorts them. With
    ``distortion_group_merge`` they are made one series, too.
    """
    settings = settings_of({name: given[name] for name in MERGING})
    return _add(runs_graph(settings), given)


def _add(graph: Graph, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Add the tasks of a graph to the workflow under construction; return what it gives."""
    given = with_present_names(given, FORMER_NAMES, "workflow")
    made: dict[str, Any] = {}
    for node in graph.nodes:
        task = Lovo if node.step == "Lovo" else getattr(tasks, node.step)
        known = inspect.signature(task).parameters
        values = {name: given[name] for name in known if name in given} | dict(node.values)
        taken = {
            name: getattr(made[source], field) for name, (source, field) in node.sources.items()
        }
        of_each = {name: taken.pop(name) for name in node.iterfield}
        adding = task(**(values | taken))
        if of_each:
            by = node.iterfield if len(node.iterfield) > 1 else node.iterfield[0]
            adding = adding.split(by, **of_each).combine(list(node.iterfield))
        made[node.name] = workflow.add(adding, name=node.name)
    return tuple(getattr(made[source], field) for source, field in graph.outputs.values())


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


_FIELDS = {
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
    outputs=outputs_of(
        (_FIELDS[name] for name in correction_graph(spelled_out=False).outputs), workflow.out
    ),
)


def _outputs_of_runs() -> list[Field]:
    """Describe what the graph of runs gives: lists with one file a run, field, merged series."""
    of_all = {field.name: field for step in ("Join", "Merge") for field in STEPS[step].outputs}
    names = runs_graph(Settings()).outputs
    return [
        of_all.get(name) or Field(name, list[Path], _FIELDS[name.removesuffix("s")].help)
        for name in names
    ]


ALL_SETTINGS = (*MOTION, *APPLYING, *JOINING, *MERGING)
"""Settings of :data:`DwiRuns`."""

DwiRuns: Any = workflow.define(
    _dwi_runs,
    name="DwiRuns",
    bases=(StepTask,),
    inputs=inputs_of(
        (*RUNS_INPUTS, SERIES[-1], *setting_fields(dict.fromkeys(ALL_SETTINGS))),
        workflow.arg,
    ),
    outputs=outputs_of(_outputs_of_runs(), workflow.out),
)
