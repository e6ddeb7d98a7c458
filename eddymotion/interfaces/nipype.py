# SPDX-License-Identifier: Apache-2.0
"""Nipype interfaces, one for each step of :mod:`eddymotion.pipeline.steps`.

Nodes of :class:`Estimate`, :class:`Apply` and :class:`Correct` hold the whole series: give them
``mem_gb=eddymotion.pipeline.limits.memory_gb(dwi_file, n_threads)`` and ``n_procs=n_threads``.
"""

from __future__ import annotations

import hashlib
import os
import typing
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ET", "1")  # no version ping: it waits for seconds behind a firewall

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from eddymotion.interfaces import BESIDE, NO_PARTICIPANT, files_beside
from eddymotion.pipeline.contradictions import refuse_t1w
from eddymotion.pipeline.steps import REQUIRED, STEPS, Field, Step

__all__ = list(STEPS)


class _File(File):
    """A file by its absolute path: nodes run in folders of their own. Links are not followed."""

    def validate(self, objekt: Any, name: str, value: Any, return_pathlike: bool = False) -> Any:
        """Validate a value that is set."""
        refuse_t1w({name: value}, NO_PARTICIPANT)
        path = super().validate(objekt, name, value, return_pathlike=True).absolute()
        return path if return_pathlike else str(path)


_TRAITS = {
    float: traits.Float, int: traits.Int, str: traits.Str, bool: traits.Bool,
    Path: partial(_File, exists=True),
}  # fmt: skip


class _ImagesInputSpec(BaseInterfaceInputSpec):
    """Of a step that reads images."""

    def get_hashval(self, hash_method: str | None = None) -> Any:
        """Treat files next to the series as inputs: a node runs again when they change."""
        parts, digest = super().get_hashval(hash_method)
        given = self.get()
        for path in files_beside({k: v for k, v in given.items() if isdefined(v)}):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            parts = [*parts, (f"{path.name} beside", content)]
            digest = hashlib.md5(f"{digest}{content}".encode(), usedforsecurity=False).hexdigest()
        return parts, digest


class _StepInterface(SimpleInterface):
    step: Step

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.step.settings_of({k: v for k, v in self.inputs.get().items() if isdefined(v)})

    def _run_interface(self, runtime: Any) -> Any:
        given = {name: value if isdefined(value) else None
                 for name, value in self.inputs.get().items()}  # fmt: skip
        if given.get("n_threads") is None:
            given["n_threads"] = given.get("num_threads")
        found = self.step.run(given, Path(runtime.cwd))
        self._results.update({name: _plain(found[name]) for name in self.step.output_names
                              if found[name] is not None})  # fmt: skip
        return runtime


def _plain(value: Any) -> Any:
    """Paths as text, in lists too."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _interface(step: Step) -> type:
    """Make the interface of a step, and its specifications: importable, as pickling needs them."""
    reads_beside = not BESIDE.isdisjoint(field.name for field in step.inputs)
    base = _ImagesInputSpec if reads_beside else BaseInterfaceInputSpec
    inputs = {field.name: _input(field) for field in step.inputs}
    settings = {field.name: _setting(field) for field in step.settings}
    if "n_threads" in inputs:  # Nipype sets this name to a node's n_procs
        inputs["num_threads"] = traits.Int(nohash=True, desc="former name of n_threads")
    outputs = {field.name: _trait(field) for field in step.outputs}
    members = {
        "__doc__": step.help,
        "step": step,
        "input_spec": _class(f"_{step.name}InputSpec", base, inputs | settings),
        "output_spec": _class(f"_{step.name}OutputSpec", TraitedSpec, outputs),
    }
    return _class(step.name, _StepInterface, members)


def _class(name: str, base: type, members: dict[str, Any]) -> type:
    made = type(name, (base,), members | {"__module__": __name__})
    return globals().setdefault(name, made)


def _input(field: Field) -> Any:
    if field.default is REQUIRED:
        return _trait(field, mandatory=True)
    if field.name == "n_threads":
        return _trait(field, nohash=True)
    if field.default is None:
        return _trait(field)
    return _trait(field, field.default, usedefault=True)


def _setting(field: Field) -> Any:
    """Return a trait for a setting; undefined means its default."""
    default = "" if field.default is None else f" (default: {field.default})"
    return _trait(field, desc=field.help + default)


def _trait(field: Field, *default: Any, **metadata: Any) -> Any:
    metadata = {"desc": field.help} | metadata
    if field.words:
        return traits.Either(traits.Enum(field.words), _TRAITS[field.kind](), **metadata)
    if field.kind in _TRAITS:
        return _TRAITS[field.kind](*default, **metadata)
    return traits.List(_TRAITS[typing.get_args(field.kind)[0]](), **metadata)


(
    Estimate, Apply, Measure, Report, Correct, Split, ResampleVolume, Plan, PredictVolume,
    RegisterPair, MoveAll, Unite, ListRuns, Join, Merge, Fieldmap,
) = map(_interface, STEPS.values())  # fmt: skip
