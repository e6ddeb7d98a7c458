# SPDX-License-Identifier: Apache-2.0
"""Pydra tasks, one for each step of :mod:`eddymotion.pipeline.steps`.

Pydra distinguishes results by the contents of input files and by the names of step and fields, not
by the version of this package: clear the cache after an upgrade.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ET", "1")  # no version ping: it waits for seconds behind a firewall

from fileformats.generic import File
from pydra.compose import python
from pydra.engine.lazy import LazyField
from pydra.utils.hash import hash_function
from pydra.utils.typing import StateArray

from eddymotion.errors import with_present_names
from eddymotion.interfaces import BESIDE, NO_PARTICIPANT, files_beside
from eddymotion.pipeline.contradictions import refuse_t1w
from eddymotion.pipeline.settings import SETTINGS, settings_of
from eddymotion.pipeline.steps import FORMER_NAMES, REQUIRED, STEPS, Field, Step

__all__ = list(STEPS)


THREADS = ("n_threads", *FORMER_NAMES)
"""Inputs on which results do not depend."""


class StepTask:
    """A task of a step, or a workflow of them, distinguished from others by its name.

    The series may have its tables and sidecar next to it: they belong to its content. Pydra judges
    by the inputs whether a result still holds. Settings are checked when the task is made; what
    comes from other tasks, or is split, when it is there.
    """

    def __attrs_post_init__(self) -> None:
        names = (about.node_input or name for name, about in SETTINGS.items())
        inputs = {name: getattr(self, name, None) for name in names}
        given = {k: v for k, v in inputs.items() if not isinstance(v, (LazyField, StateArray))}
        step = STEPS.get(type(self).__name__)  # none of a workflow
        check = step.settings_of if step else settings_of
        check(given)

    def _compute_hashes(self) -> tuple[Any, dict[str, Any]]:
        hashes = super()._compute_hashes()[1]  # type: ignore[misc]
        hashes = {name: value for name, value in hashes.items() if name not in THREADS}
        hashes["step"] = hash_function(type(self).__name__)
        given = {name: value for name in BESIDE if _are_files(value := getattr(self, name, None))}
        for number, path in enumerate(files_beside(given)):
            hashes[f"{number} beside"] = hash_function(File(path))
        return hash_function(sorted(hashes.items())), hashes


def _are_files(value: Any) -> bool:
    """Whether a value is a file or files, not the promise of some."""
    return all(isinstance(item, File) for item in (value if isinstance(value, list) else [value]))


def inputs_of(fields: Iterable[Field], field: Any = python.arg) -> dict[str, Any]:
    """Describe inputs as `field`."""
    found = {}
    for entry in fields:
        default = {} if entry.default is REQUIRED else {"default": entry.default}
        found[entry.name] = field(
            type=_type_of(entry), help=entry.help, converter=partial(_checked, entry.name),
            **default,
        )  # fmt: skip
    for former, name in FORMER_NAMES.items():
        if name in found:
            kind = found[name].type | None
            found[former] = field(type=kind, help=f"former name of {name}", default=None)
    return found


def _checked(name: str, value: Any) -> Any:
    """Refuse what would be taken for the name of a file; see the value itself otherwise."""
    refuse_t1w({name: value}, NO_PARTICIPANT)
    return value


def outputs_of(fields: Iterable[Field], field: Any = python.out) -> dict[str, Any]:
    """Describe outputs as `field`."""
    return {entry.name: field(type=_type_of(entry), help=entry.help) for entry in fields}


def _type_of(entry: Field) -> Any:
    kind = {Path: File, list[Path]: list[File]}.get(entry.kind, entry.kind)
    if entry.words:
        kind |= str
    return kind | None if entry.default is None else kind


def _task(step: Step) -> Any:
    """Make the task of a step."""
    return python.define(
        _function(step),
        name=step.name,
        bases=(StepTask,),
        inputs=inputs_of((*step.inputs, *step.settings)),
        outputs=outputs_of(step.outputs),
    )


def _function(step: Step) -> Callable[..., Any]:
    """Return a function of this module with a name of its own: Pydra's workers find it by that.

    Its hash is that of the source below, and stays the same in another process.
    """

    def call(**given: Any) -> Any:
        given = with_present_names(given, FORMER_NAMES, step.name)
        found = step.run(given, Path.cwd())
        return found if len(step.output_names) > 1 else next(iter(found.values()))

    call.__name__ = call.__qualname__ = f"_{step.function.__name__}"
    call.__doc__ = step.help
    globals()[call.__name__] = call
    return call


(
    Estimate, Apply, Measure, Report, Correct, Split, ResampleVolume, Plan, PredictVolume,
    RegisterPair, MoveAll, Unite, ListRuns, Join, Merge, Fieldmap,
) = map(_task, STEPS.values())  # fmt: skip
