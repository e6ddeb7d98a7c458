# SPDX-License-Identifier: Apache-2.0
"""A run in one go: a series in, all its outputs written."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from eddymotion.data.checks import DataIssue
from eddymotion.data.series import DWI
from eddymotion.derivatives import OnDemand, Outputs, write_outputs, write_sidecar
from eddymotion.derivatives.finished import refuse_names
from eddymotion.derivatives.outlier_table import outlier_summary
from eddymotion.derivatives.session import remove_elsewhere
from eddymotion.errors import EddymotionError
from eddymotion.estimation.outliers import describe_beyond_repair
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.writing import write_json
from eddymotion.machine.locks import refuse_if_lost
from eddymotion.machine.logs import NOTICE
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model
from eddymotion.pipeline.cache import MotionCache, finished_summary, known_motion
from eddymotion.pipeline.fingerprint import fingerprint_of, motion_fingerprint_of
from eddymotion.pipeline.output_space import space_of, write_output_space
from eddymotion.pipeline.preparation import (
    Prepared,
    describe,
    prepare,
    warn_of_partial_fourier,
    write_noise,
)
from eddymotion.pipeline.runs import RunTogether
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.sidecar import methods_of, sidecar_of
from eddymotion.pipeline.stages import (
    Stages,
    corrected_series,
    find_motion,
    judge_both,
    load_series,
    model_for,
)
from eddymotion.pipeline.target import Target
from eddymotion.reports.data import recorded_log
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
    """Correct one series and write all its outputs, unless they are there already.

    Parameters
    ----------
    series : SeriesFiles
    outputs : Outputs
    settings : Settings
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.
    work_dir : Path, optional
        Where the motion is kept, and sought, so that an interrupted run need not find it again.

    Returns
    -------
    dict
        Label → value: what the report tells in its summary.
    """
    fingerprint = fingerprint_of(series, settings)
    if (finished := finished_summary(outputs, fingerprint, name=series.dwi.name)) is not None:
        log.log(NOTICE, "%s: outputs with the same settings are there; reused", series.dwi.name)
        return finished
    refuse_overwriting_inputs(series, outputs, settings)
    stages = Stages()
    with stages("reading"):
        dwi = load_series(series, settings)
        target = Target.read(settings)
    model = model_for(dwi.gradients, settings)
    cache = MotionCache.of(series, settings, work_dir) if work_dir else None
    motion = known_motion(series, outputs, settings, stages, cache)
    if motion is None:
        motion = new_motion(dwi, model, settings, stages, cache, progress)
    elif cache is None or not series.runs:  # of those, `estimate_series` has said so
        log.log(NOTICE, REUSED, series.dwi.name)
    with stages("runs"):
        together = RunTogether.of(series, dwi, motion, settings, work_dir)
        dwi, motion = together.moved(dwi, motion, settings)
    with stages("quality"):
        before, after = judge_both(dwi, motion, model, settings)
    prepared = Prepared(dwi)
    if settings.prepares:
        warn_of_partial_fourier(series, settings)
        with stages("noise and ringing"):
            prepared = prepare(dwi, settings, progress)
    with stages("output space"):
        space = space_of(dwi, motion, target, settings, together.frame)
    with stages("resampling and writing"):
        refuse_if_lost(outputs["sidecar"])
        outputs["sidecar"].unlink(missing_ok=True)  # from here to its writing it is not finished
        remove_elsewhere(outputs)
        write_output_space(space, dwi, outputs)
        together.write_field(outputs, apart=settings.separate_all_dwis, fsl=settings.fsl_outputs)
        write_noise(prepared, settings, outputs)
        corrected = corrected_series(
            prepared.dwi, motion, settings, target, space, after, progress
        )
        slices_before, slices_after = Slices.of(prepared.dwi), Slices(corrected)
        volumes = progress(corrected.volumes(), "resampling", len(dwi))
        write_outputs(
            corrected,
            motion,
            outputs,
            volumes=slices_after.watching(volumes),
            original=dwi,
            quality=after,
            on_demand=on_demand(settings, in_frame=space is None),
            progress=progress,
        )
    with stages("pictures"):
        together.draw(outputs)
        slices = slices_before, slices_after
        draw_series(outputs, dwi, motion, model, *slices, before, after, log=stages.log)
    methods = together.among(methods_of(dwi, motion, model, settings, corrected, space))
    summary = {"estimator": methods.estimator}
    summary |= summarise(dwi, motion, model, before, after)
    summary |= together.summary()
    if settings.prepares:
        summary["taken off before resampling"] = describe(prepared, settings)
    summary |= ({"output space": space.describe()} if space else {}) | {"time": str(stages)}
    outliers = outlier_summary(after.outliers, replaced=settings.replace_outliers)
    grids = (dwi, corrected, space.linear if space else np.eye(4))
    content = sidecar_of(series, settings, summary, methods, motion, grids, stages)
    for issue in together.issues:
        log.warning("%s: %s", series.dwi.name, issue.text)
    of_space = [DataIssue("output space", text) for text in (space.warnings if space else ())]
    content["Warnings"] += [
        {"Subject": issue.kind, "Text": issue.text, "Severe": issue.severe}
        for issue in (*together.issues, *of_space)
    ]
    content |= together.in_sidecar() | {
        "OutlierSlices": outliers,
        "Fingerprint": fingerprint,
        "MotionFingerprint": motion_fingerprint_of(series, settings),
    }
    write_json(outputs["qc"], quality_record(SeriesReport.load(outputs, content)))
    write_sidecar(outputs, content, record=True)
    for label, value in summary.items():
        log.info("%s: %s: %s", series.dwi.name, label, value)
    if (warning := describe_beyond_repair(after.outliers)) is not None:
        log.warning("%s: %s", series.dwi.name, warning)
    return summary


def estimate_series(
    series: SeriesFiles,
    outputs: Outputs,
    settings: Settings,
    work_dir: Path,
    progress: Progress = silent,
) -> None:
    """Find the motion of one series and keep it in `work_dir`, unless it or the outputs are there.

    The first half of :func:`correct_series`, which takes it from there.
    """
    if finished_summary(outputs, fingerprint_of(series, settings)) is not None:
        return
    refuse_overwriting_inputs(series, outputs, settings)
    Target.read(settings)  # a wrong one is better known before
    stages, cache = Stages(), MotionCache.of(series, settings, work_dir)
    if known_motion(series, outputs, settings, stages, cache) is not None:
        log.log(NOTICE, REUSED, series.dwi.name)
        return
    dwi = load_series(series, settings)
    new_motion(dwi, model_for(dwi.gradients, settings), settings, stages, cache, progress)


def new_motion(
    dwi: DWI,
    model: Model,
    settings: Settings,
    stages: Stages,
    cache: MotionCache | None,
    progress: Progress,
) -> Motion:
    """Estimate the motion, and keep it."""
    with stages("motion"), recorded_log() as stages.log:
        motion = find_motion(dwi, model, settings, progress)
    if cache is not None:
        cache.keep(motion, stages)
    return motion


def on_demand(settings: Settings, *, in_frame: bool = True) -> OnDemand:
    """Collect what is wanted besides the outputs of every run; `in_frame` as of its result."""
    return OnDemand(
        fsl=settings.fsl_outputs,
        cnr_maps=settings.cnr_maps,
        residuals=settings.residuals,
        eddy_fields=settings.eddy_fields,
        in_frame=in_frame,
        n_threads=settings.nprocs,
    )


def refuse_overwriting_inputs(series: SeriesFiles, outputs: Outputs, settings: Settings) -> None:
    """Raise if an output has the path of an input or a folder, or too long a name."""
    given = series.dwi, series.bval, series.bvec, *settings.files().values()
    inputs = {path.resolve() for path in given if path is not None}
    refuse_names(outputs)
    for kind in outputs:
        if outputs[kind].resolve() in inputs:
            raise EddymotionError(
                f"{outputs[kind]}: is an input and would be overwritten; "
                "give another output folder"
            )
