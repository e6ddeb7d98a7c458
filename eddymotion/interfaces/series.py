# SPDX-License-Identifier: Apache-2.0
"""Nipype interfaces of the BIDS-App: a series or a participant each, outputs in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eddymotion.interfaces.nipype import (  # sets NO_ET before Nipype is imported
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)


class _EstimateSeriesInputSpec(BaseInterfaceInputSpec):
    job = traits.Any(mandatory=True, nohash=True, desc="what to do with the series")


class _EstimateSeriesOutputSpec(TraitedSpec):
    estimated = traits.Str(desc="name of the series whose motion is kept in the work folder")


class EstimateSeries(SimpleInterface):
    """Find the motion of a series and keep it in the work folder, unless it is there."""

    input_spec = _EstimateSeriesInputSpec
    output_spec = _EstimateSeriesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        self.inputs.job.estimate()
        self._results["estimated"] = self.inputs.job.name
        return runtime


class _JoinRunsInputSpec(_EstimateSeriesInputSpec):
    estimated = traits.List(traits.Str, desc="the runs of a session whose motion was sought")


class _JoinRunsOutputSpec(TraitedSpec):
    joined = traits.Str(desc="name of one of the runs, which lie in one frame")


class JoinRuns(SimpleInterface):
    """Find how the runs of a session lie to each other, and the field that distorts them."""

    input_spec = _JoinRunsInputSpec
    output_spec = _JoinRunsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        self.inputs.job.join()
        self._results["joined"] = self.inputs.job.name
        return runtime


class _CorrectSeriesInputSpec(_EstimateSeriesInputSpec):
    estimated = traits.Str(desc="what tells that the motion is there")


class _CorrectSeriesOutputSpec(TraitedSpec):
    corrected = File(exists=True, desc="the corrected series")


class CorrectSeries(SimpleInterface):
    """Write the outputs of a series, with the motion in the work folder."""

    input_spec = _CorrectSeriesInputSpec
    output_spec = _CorrectSeriesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        self.inputs.job.correct()
        self._results["corrected"] = str(self.inputs.job.outputs["dwi"])
        return runtime


class _MergeRunsInputSpec(BaseInterfaceInputSpec):
    jobs = traits.List(traits.Any, mandatory=True, nohash=True, desc="the runs of a session")
    corrected = traits.List(File(exists=True), desc="what must be there before")


class _MergeRunsOutputSpec(TraitedSpec):
    merged = traits.Str(desc="name of the first run")


class MergeRuns(SimpleInterface):
    """Write the corrected runs of a session as one series."""

    input_spec = _MergeRunsInputSpec
    output_spec = _MergeRunsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        first, *others = self.inputs.jobs
        first.merge(others)
        self._results["merged"] = first.name
        return runtime


class _WritePageInputSpec(BaseInterfaceInputSpec):
    output_dir = traits.Str(mandatory=True, desc="root of the derivatives")
    participant = traits.Str(mandatory=True, desc="label without sub-")
    corrected = traits.List(File(exists=True), desc="what must be there before")


class _WritePageOutputSpec(TraitedSpec):
    page = File(exists=True, desc="the participant's report")


class WritePage(SimpleInterface):
    """Write the report of a participant."""

    input_spec = _WritePageInputSpec
    output_spec = _WritePageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from eddymotion.reports.participant import write_report

        folder, label = Path(self.inputs.output_dir), self.inputs.participant
        write_report(folder, label)  # what it cannot show is logged at the end of the run
        self._results["page"] = str(folder / f"sub-{label}.html")
        return runtime
