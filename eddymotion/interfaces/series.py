# SPDX-License-Identifier: Apache-2.0
"""Nipype interface of the BIDS-App: a part of a run, outputs in their place."""

from __future__ import annotations

from typing import Any

from eddymotion.interfaces.nipype import (  # sets NO_ET before Nipype is imported
    SimpleInterface,
    TraitedSpec,
    traits,
)

from nipype.interfaces.base import DynamicTraitedSpec  # isort: skip
from nipype.interfaces.io import add_traits  # isort: skip


class _RunPartInputSpec(DynamicTraitedSpec):
    of = traits.Any(mandatory=True, nohash=True, desc="a job, a session or a page")
    step = traits.Str(mandatory=True, desc="what to do with it: name of a method")


class _RunPartOutputSpec(TraitedSpec):
    done = traits.Str(desc="that it is done, for what comes after it")


class RunPart(SimpleInterface):
    """Do one thing of a run, once others are done: see :mod:`eddymotion.pipeline.series_job`.

    Parameters
    ----------
    n_before : int
        Nodes that it waits for, each connected with ``after1``, ``after2``, …
    """

    input_spec = _RunPartInputSpec
    output_spec = _RunPartOutputSpec

    def __init__(self, n_before: int = 0, **inputs: Any) -> None:
        super().__init__(**inputs)
        add_traits(self.inputs, [f"after{number + 1}" for number in range(n_before)])

    def _run_interface(self, runtime: Any) -> Any:
        getattr(self.inputs.of, self.inputs.step)()
        self._results["done"] = self.inputs.step
        return runtime
