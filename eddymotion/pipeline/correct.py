# SPDX-License-Identifier: Apache-2.0
"""Correcting one series: from its files to all its outputs, in one process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.checks import DataIssue, find_issues
from eddymotion.data.series import DWI, Series
from eddymotion.derivatives import OnDemand, Outputs, write_outputs, write_sidecar
from eddymotion.derivatives.finished import files_of, sha256
from eddymotion.derivatives.outlier_table import outlier_summary
from eddymotion.derivatives.session import remove_elsewhere
from eddymotion.estimation import Quality
from eddymotion.estimation.outliers import describe_beyond_repair
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.writing import refuse_overwriting, write_json
from eddymotion.machine.locks import refuse_if_lost
from eddymotion.machine.logs import NOTICE
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model
from eddymotion.pipeline.cache import FoundMotion, MotionCache, finished_summary, known_motion
from eddymotion.pipeline.fingerprint import fingerprint_of, motion_fingerprint_of
from eddymotion.pipeline.output_space import space_of, write_output_space
from eddymotion.pipeline.output_space.space import OutputSpace
from eddymotion.pipeline.preparation import (
    Prepared,
    describe,
    prepare,
    warn_of_partial_fourier,
    write_noise,
)
from eddymotion.pipeline.runs import SessionRun
from eddymotion.pipeline.runs.account import issues_of, methods_with, sidecar_of_run, summary_of
from eddymotion.pipeline.runs.field_outputs import draw_session_field, write_session_field
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.sidecar import methods_of, sidecar_of
from eddymotion.pipeline.stages import (
    Stages,
    corrected_series,
    find_motion,
    get_ready_to_estimate,
    get_ready_to_write,
    judge_both,
    load_series,
    model_for,
)
from eddymotion.pipeline.target import Target
from eddymotion.reports.data import recorded_log
from eddymotion.reports.maps import JudgedSlices
from eddymotion.reports.qc import quality_record
from eddymotion.reports.series import SeriesReport, draw_series
from eddymotion.reports.slices import Slices
from eddymotion.reports.summary import summarise

log = logging.getLogger(__name__)

REUSED = "%s: motion found in an earlier run; reused"


def correct_series(
    series: SeriesFiles,
    outputs: Outputs,
    settings: Settings,
    progress: Progress = silent,
    *,
    work_dir: Path | None = None,
) -> dict[str, str]:
    """Correct one series and write all its outputs, unless they are up to date.

    Parameters
    ----------
    series : SeriesFiles
    outputs : Outputs
    settings : Settings
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.
    work_dir : Path, optional
        Where the motion is kept, so that an interrupted run need not estimate it again.

    Returns
    -------
    dict
        Label → value: the summary of the report.
    """
    fingerprint = fingerprint_of(series, settings)
    if (finished := finished_summary(outputs, fingerprint, name=series.dwi.name)) is not None:
        log.log(NOTICE, "%s: outputs with the same settings exist; reused", series.dwi.name)
        return finished
    _refuse_overwriting(series, outputs, settings)
    stages = Stages()
    if settings.nprocs > 1:
        get_ready_to_estimate()
    with stages("reading"):
        dwi = load_series(series, settings)
        target = Target.read(settings)
    if settings.nprocs > 1:
        get_ready_to_write()
    model = model_for(dwi.gradients, settings)
    cache = MotionCache.of(series, settings, work_dir) if work_dir else None
    found = known_motion(series, outputs, settings, cache)
    if found is None:
        found = new_motion(dwi, model, settings, stages, cache, progress)
    elif cache is None or not series.runs:  # for runs of a session `estimate_series` said so
        log.log(NOTICE, REUSED, series.dwi.name)
    stages.seconds["motion"] = found.seconds
    with stages("runs"):
        run = SessionRun.of(series, dwi, found.motion, settings, work_dir)
        dwi, motion = run.moved(dwi, found.motion, settings)
    with stages("quality"):
        before, after = judge_both(dwi, motion, model, settings)
    prepared = _prepared(series, dwi, settings, stages, progress)
    with stages("output space"):
        space = space_of(dwi, motion, target, settings, run.frame)
    correction = Correction(
        series, settings, dwi, motion, model, run, before, after, prepared, target, space
    )
    with stages("resampling and writing"):
        corrected, *drawn = correction.write(outputs, progress)
    with stages("pictures"), ThreadPoolExecutor(1) as beside:
        digest = beside.submit(sha256, outputs["dwi"])
        beside.submit(find_issues, dwi)  # for the sidecar
        draw_session_field(run, outputs)
        draw_series(outputs, dwi, motion, model, *drawn, log=found.log)
    digests = {outputs["dwi"]: digest.result()}
    return correction.record(outputs, corrected, stages, fingerprint, digests)


def _prepared(
    series: SeriesFiles, dwi: DWI, settings: Settings, stages: Stages, progress: Progress
) -> Prepared:
    if not settings.prepares:
        return Prepared(dwi)
    warn_of_partial_fourier(series, settings)
    with stages("noise and ringing"):
        return prepare(dwi, settings, progress)


@dataclass(frozen=True, eq=False)
class Correction:
    """A series whose motion is known, and all that is needed to write its outputs.

    Parameters
    ----------
    series : SeriesFiles
    settings : Settings
    dwi : DWI
        The original series.
    motion : Motion
        In the frame, and with the field, of the runs that belong together.
    model : Model
    run : SessionRun
        How the series lies among the runs of its session.
    before, after : Quality
    prepared : Prepared
        What is resampled.
    target : Target, optional
    space : OutputSpace, optional
        Where it is resampled, if not in the frame.
    """

    series: SeriesFiles
    settings: Settings
    dwi: DWI
    motion: Motion
    model: Model
    run: SessionRun
    before: Quality
    after: Quality
    prepared: Prepared
    target: Target | None
    space: OutputSpace | None

    def write(
        self, outputs: Outputs, progress: Progress
    ) -> tuple[Series, JudgedSlices, JudgedSlices]:
        """Resample the series, volume by volume, and write all files except pictures and sidecar.

        Returns
        -------
        corrected : Series
        before, after : JudgedSlices
            What is drawn of the original and of the corrected series.
        """
        settings, space = self.settings, self.space
        refuse_if_lost(outputs["sidecar"])
        outputs["sidecar"].unlink(missing_ok=True)  # without it the outputs count as unfinished
        remove_elsewhere(outputs)
        write_output_space(space, self.dwi, outputs)
        apart, fsl = settings.separate_all_dwis, settings.fsl_outputs
        write_session_field(self.run, outputs, apart=apart, fsl=fsl)
        write_noise(self.prepared, settings, outputs)
        corrected = corrected_series(
            self.prepared.dwi, self.motion, settings, self.target, space, self.after, progress
        )
        original = Slices.of(self.prepared.dwi, n_threads=settings.nprocs)
        written = Slices(corrected)
        volumes = progress(corrected.volumes(), "resampling", len(self.dwi))
        write_outputs(
            corrected,
            self.motion,
            outputs,
            volumes=written.watching(volumes),
            original=self.dwi,
            quality=self.after,
            on_demand=on_demand(settings, in_frame=space is None),
            progress=progress,
        )
        return corrected, JudgedSlices(original, self.before), JudgedSlices(written, self.after)

    def record(
        self,
        outputs: Outputs,
        corrected: Series,
        stages: Stages,
        fingerprint: str,
        digests: Mapping[Path, str],
    ) -> dict[str, str]:
        """Write the sidecar, which marks the outputs as finished, and log the summary.

        Returns
        -------
        dict
            As :func:`correct_series`.
        """
        methods = methods_of(
            self.dwi, self.motion, self.model, self.settings, corrected, self.space
        )
        methods = methods_with(self.run, methods)
        summary = {"estimator": methods.estimator} | self.summary() | {"time": str(stages)}
        grids = (self.dwi, corrected, self.space.linear if self.space else np.eye(4))
        content = sidecar_of(
            self.series, self.settings, summary, methods, self.motion, grids, stages
        )
        content["Warnings"] += self.warnings()
        outliers = self.after.outliers
        content |= sidecar_of_run(self.run) | {
            "OutlierSlices": outlier_summary(outliers, replaced=self.settings.replace_outliers),
            "Fingerprint": fingerprint,
            "MotionFingerprint": motion_fingerprint_of(self.series, self.settings),
        }
        write_json(outputs["qc"], quality_record(SeriesReport.load(outputs, content)))
        write_sidecar(outputs, content, record=True, digests=digests)
        name = self.series.dwi.name
        for label, value in summary.items():
            log.info("%s: %s: %s", name, label, value)
        if (warning := describe_beyond_repair(outliers)) is not None:
            log.warning("%s: %s", name, warning)
        return summary

    def summary(self) -> dict[str, str]:
        """Summarise what was found and done, label → value."""
        summary = summarise(self.dwi, self.motion, self.model, self.before, self.after)
        summary |= summary_of(self.run)
        if self.settings.prepares:
            summary["taken off before resampling"] = describe(self.prepared, self.settings)
        return summary | ({"output space": self.space.describe()} if self.space else {})

    def warnings(self) -> list[dict[str, Any]]:
        """Collect the warnings about the runs and the output space; log those about the runs."""
        of_runs = issues_of(self.run)
        for issue in of_runs:
            log.warning("%s: %s", self.series.dwi.name, issue.text)
        texts = self.space.warnings if self.space else ()
        of_space = [DataIssue("output space", text) for text in texts]
        return [issue.plain() for issue in (*of_runs, *of_space)]


def estimate_series(
    series: SeriesFiles,
    outputs: Outputs,
    settings: Settings,
    work_dir: Path,
    progress: Progress,
) -> None:
    """Estimate the motion of one series and keep it in `work_dir`, unless it is known already.

    The first half of :func:`correct_series`, which reads it from there.
    """
    if finished_summary(outputs, fingerprint_of(series, settings)) is not None:
        return
    _refuse_overwriting(series, outputs, settings)
    Target.read(settings)  # raises if it is wrong, before the estimation takes its time
    cache = MotionCache.of(series, settings, work_dir)
    if known_motion(series, outputs, settings, cache) is not None:
        log.log(NOTICE, REUSED, series.dwi.name)
        return
    dwi = load_series(series, settings)
    new_motion(dwi, model_for(dwi.gradients, settings), settings, Stages(), cache, progress)


def new_motion(
    dwi: DWI,
    model: Model,
    settings: Settings,
    stages: Stages,
    cache: MotionCache | None,
    progress: Progress,
) -> FoundMotion:
    """Estimate the motion, and keep it."""
    with stages("motion"), recorded_log() as lines:
        motion = find_motion(dwi, model, settings, progress)
    found = FoundMotion(motion, stages.seconds["motion"], lines)
    if cache is not None:
        cache.keep(found)
    return found


def on_demand(settings: Settings, *, in_frame: bool) -> OnDemand:
    """Collect which optional outputs the settings ask for; `in_frame` as in :class:`OnDemand`."""
    return OnDemand(
        fsl=settings.fsl_outputs,
        cnr_maps=settings.cnr_maps,
        residuals=settings.residuals,
        eddy_fields=settings.eddy_fields,
        in_frame=in_frame,
        n_threads=settings.nprocs,
    )


def _refuse_overwriting(series: SeriesFiles, outputs: Outputs, settings: Settings) -> None:
    given = series.dwi, series.bval, series.bvec, *settings.files().values()
    refuse_overwriting(files_of(outputs), given)
