# SPDX-License-Identifier: Apache-2.0
"""The steps of a run, each path in → path out: what commands and workflow nodes call."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.data.checks import in_sidecar
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI, Series
from eddymotion.derivatives import OnDemand, Outputs, write_outputs, write_sidecar
from eddymotion.derivatives.citation import NONE_FOUND, Methods
from eddymotion.derivatives.finished import (
    damage,
    intact,
    is_damaged,
    read_sidecar,
    refuse_names,
    sha256,
)
from eddymotion.derivatives.grid_metadata import on_grid
from eddymotion.derivatives.outlier_table import outlier_summary
from eddymotion.errors import EddymotionError
from eddymotion.estimation import (
    Quality,
    assess,
    choose_estimator,
    estimate_motion,
)
from eddymotion.estimation.estimators import Estimator, LeaveOneOut
from eddymotion.estimation.outliers import ruin_in_words
from eddymotion.estimation.replacement import Replaced
from eddymotion.io.images import image_stem
from eddymotion.io.motion import read_motion, write_motion
from eddymotion.io.series import load
from eddymotion.io.sidecars import ACQUISITION_FIELDS, SeriesFiles, metadata_of, usable
from eddymotion.io.tsv import Table
from eddymotion.io.writing import write_json
from eddymotion.machine.locks import refuse_if_lost
from eddymotion.machine.parallel import Progress, silent
from eddymotion.machine.versions import software_versions
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model, get_model, name_of
from eddymotion.pipeline.output_space import OutputSpace, Target, space_of, write_output_space
from eddymotion.pipeline.settings import Settings
from eddymotion.registration.registry import DEFAULT, chosen_registrar
from eddymotion.reports.data import recorded_log
from eddymotion.reports.series import draw_series
from eddymotion.reports.slices import Slices
from eddymotion.reports.summary import summarise
from eddymotion.resampling import Engine, Resampled, kernel_agrees

log = logging.getLogger(__name__)


KEPT_METADATA = (
    "RepetitionTime", "EchoTime", "FlipAngle", "MagneticFieldStrength", "Manufacturer",
    "ManufacturersModelName", "PhaseEncodingDirection", "PhaseEncodingAxis", "TotalReadoutTime",
    "EffectiveEchoSpacing", "MultibandAccelerationFactor",
)  # fmt: skip
"""Fields of the raw sidecar that still hold for the corrected series, on its own grid."""

AFTER_MOTION = frozenset({
    "output_space", "output_space_transform", "output_space_contrast", "output_space_mask",
    "resampling", "replace_outliers", "fsl_outputs", "cnr_maps", "residuals",
    "eddy_fields",
})  # fmt: skip
"""Settings that change what is made of a motion, not the motion itself."""

RIGID_TOLERANCE = 1e-6
"""Largest difference of a rotation times its transpose from the identity."""

SHOWN = 5
"""Names of files in a message."""

DIGITS = 16
"""Of a digest in a folder's name."""


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
    print_of_run = fingerprint(series, settings)
    if (finished := finished_summary(outputs, print_of_run, told=series.dwi.name)) is not None:
        log.info("%s: outputs with the same settings are there; reused", series.dwi.name)
        return finished
    refuse_overwriting_inputs(series, outputs, settings)
    stages = Stages()
    with stages("reading"):
        dwi = load_series(series, settings)
        target = Target.read(settings)
    model = model_for(dwi, settings)
    kept = KeptMotion.of(series, settings, work_dir) if work_dir else None
    motion = kept.recall(stages) if kept else None
    if motion is None:
        motion = motion_of_outputs(series, outputs, settings, stages)
    if motion is None:
        with stages("motion"), recorded_log() as stages.told:
            motion = find_motion(dwi, model, settings, progress)
        if kept:
            kept.keep(motion, stages)
    with stages("quality"):
        before = judge(dwi, Motion.identity(len(dwi)), model, settings)
        after = judge(dwi, motion, model, settings)
    with stages("output space"):
        space = space_of(dwi, motion, target, settings)
    with stages("resampling and writing"):
        refuse_if_lost(outputs["sidecar"])
        outputs["sidecar"].unlink(missing_ok=True)  # from here to its writing it is not finished
        write_output_space(space, dwi, outputs)
        resampled = prepare_resampling(dwi, motion, settings, target, space)
        corrected = shown_series(resampled, after, settings, progress)
        slices_before, slices_after = Slices.of(dwi), Slices(corrected)
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
        slices = slices_before, slices_after
        draw_series(outputs, dwi, motion, model, *slices, before, after, log=stages.told)
    methods = methods_of(dwi, motion, model, settings, corrected, space)
    summary = {"estimator": methods.estimator}
    summary |= summarise(dwi, motion, model, before, after)
    summary |= ({"output space": space.told()} if space else {}) | {"time": str(stages)}
    outliers = outlier_summary(after.outliers, replaced=settings.replace_outliers)
    grids = (dwi, corrected, space.linear if space else np.eye(4))
    content = sidecar_of(series, settings, summary, methods, grids, stages) | {
        "OutlierSlices": outliers,
        "Warnings": in_sidecar(dwi, motion.frame_doubt),
        "Fingerprint": print_of_run,
        "MotionFingerprint": fingerprint(series, settings, without=AFTER_MOTION),
    }
    write_sidecar(outputs, content, record=True)
    for label, value in summary.items():
        log.info("%s: %s: %s", series.dwi.name, label, value)
    if (ruin := ruin_in_words(after.outliers)) is not None:
        log.warning("%s: %s", series.dwi.name, ruin)
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
    if finished_summary(outputs, fingerprint(series, settings)) is not None:
        return
    stages, kept = Stages(), KeptMotion.of(series, settings, work_dir)
    if kept.recall(stages) is not None:
        log.info("%s: motion found in an earlier run; reused", series.dwi.name)
        return
    refuse_overwriting_inputs(series, outputs, settings)
    Target.read(settings)  # a wrong one is better known before
    if (motion := motion_of_outputs(series, outputs, settings, stages)) is not None:
        kept.keep(motion, stages)
        return
    dwi = load_series(series, settings)
    with stages("motion"), recorded_log() as stages.told:
        motion = find_motion(dwi, model_for(dwi, settings), settings, progress)
    kept.keep(motion, stages)


@dataclass(frozen=True)
class KeptMotion:
    """A motion in the work folder, under the digest of all that determines it.

    Parameters
    ----------
    folder : Path
    """

    folder: Path

    @classmethod
    def of(cls, series: SeriesFiles, settings: Settings, work_dir: Path) -> KeptMotion:
        """Where the motion of a series under these settings is kept."""
        digest = fingerprint(series, settings, without=AFTER_MOTION)[:DIGITS]
        return cls(work_dir / "motion" / f"{image_stem(series.dwi)}_{digest}")

    def keep(self, motion: Motion, stages: Stages) -> None:
        """Write it; what it took comes last and is the mark of completion."""
        xfm, details = self.folder / "xfm.txt", self.folder / "details.json"
        write_motion(xfm, details, motion)
        content = {"motion": stages.seconds["motion"], "told": stages.told}
        digests = {path.name: sha256(path) for path in (xfm, details)}
        write_json(self.folder / "stages.json", content | {"files": digests})

    def recall(self, stages: Stages) -> Motion | None:
        """Read it with what it took and what was told, if it is there and as it was written."""
        if not (self.folder / "stages.json").is_file():
            return None
        try:
            content = json.loads((self.folder / "stages.json").read_text(encoding="utf-8"))
            for name, digest in content["files"].items():
                if sha256(self.folder / name) != digest:
                    raise ValueError(f"{name} was changed")
            motion = read_motion(self.folder / "xfm.txt", self.folder / "details.json")
            _refuse_not_rigid(motion)
            seconds = float(content["motion"])
            told = [(float(at), str(message)) for at, message in content["told"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s: cannot be used (%s); the motion is found again", self.folder, error)
            return None
        stages.seconds |= {"motion": seconds}
        stages.told = told
        return motion


def motion_of_outputs(
    series: SeriesFiles, outputs: Outputs, settings: Settings, stages: Stages
) -> Motion | None:
    """Read the motion of a finished run, if these settings give the same and it is as written."""
    sidecar = read_sidecar(outputs)
    if sidecar.get("MotionFingerprint") != fingerprint(series, settings, without=AFTER_MOTION):
        return None
    files = outputs["xfm"], outputs["motion"]
    if not all(intact(path, sidecar) for path in files):
        return None
    try:
        motion = read_motion(*files)
        _refuse_not_rigid(motion)
        seconds = float(sidecar["StageSeconds"]["motion"])
    except (ValueError, KeyError, TypeError) as error:
        log.debug("%s: cannot be used (%s)", outputs["motion"], error)
        return None
    stages.seconds |= {"motion": seconds}
    with suppress(EddymotionError):  # only the report tells it
        steps = Table.read(outputs["report_steps"])
        stages.told = [*zip(steps.numbers("seconds").tolist(), steps.columns["step"], strict=True)]
    log.info("%s: motion found in an earlier run; reused", series.dwi.name)
    return motion


def _refuse_not_rigid(motion: Motion) -> None:
    turns = motion.matrices[:, :3, :3]
    products = turns @ np.swapaxes(turns, 1, 2)
    off = np.abs(products - np.eye(3)).max(axis=(1, 2), initial=0.0) > RIGID_TOLERANCE
    off |= ~np.isfinite(motion.matrices).all(axis=(1, 2)) | (np.linalg.det(turns) < 0)
    off |= (motion.matrices[:, 3] != (0, 0, 0, 1)).any(axis=1)
    if off.any():
        volumes = ", ".join(map(str, np.flatnonzero(off)[:5]))
        raise ValueError(f"not rigid in volume {volumes}")


def load_series(series: SeriesFiles, settings: Settings) -> DWI:
    """Load a series as the settings say."""
    if series.problem:
        raise EddymotionError(series.problem)
    dwi = load(
        series.dwi,
        bval=series.bval,
        bvec=series.bvec,
        mask=settings.brain_mask,
        b0_threshold=settings.b0_threshold,
        ignore=settings.ignore,
        metadata=metadata_of(series),
    )
    if settings.pe_axis:
        dwi = replace(dwi, acquisition=dwi.acquisition.encoded(settings.pe_axis, dwi.affine))
    log.info("%s: %s", series.dwi.name, dwi)
    return dwi


def model_for(dwi: DWI, settings: Settings) -> Model:
    """Choose the model of a series as the settings say."""
    return get_model(
        settings.model,
        dwi.gradients,
        min_q_distance=settings.min_q_distance,
        n_procs=settings.nprocs,
    )


class Stages:
    """Seconds of each stage of a run, and what the estimation told meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.told: list[tuple[float, str]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s ({parts})"


def find_motion(dwi: DWI, model: Model, settings: Settings, progress: Progress) -> Motion:
    """Estimate the motion as the settings say."""
    return estimate_motion(
        dwi,
        estimator=estimator_of(settings, model, dwi.gradients),
        align_shells=not settings.no_shell_alignment,
        seed=settings.random_seed,
        n_threads=settings.nprocs,
        progress=progress,
    )


def estimator_of(settings: Settings, model: Model, gradients: Gradients) -> Estimator:
    """Choose the estimator of a series as the settings say."""
    return choose_estimator(
        settings.estimator,
        model,
        chosen_registrar(settings.registration, settings.registration_settings),
        gradients=gradients,
        n_iterations=settings.n_iterations,
        eddy_currents=settings.eddy_current,
    )


def prepare_resampling(
    dwi: DWI,
    motion: Motion,
    settings: Settings,
    target: Target | None,
    space: OutputSpace | None,
) -> Resampled:
    """Choose the engine; the compiled kernel must agree with NiTransforms on one volume."""
    engine: Engine = "fast" if settings.resampling == "fast" else "nitransforms"
    if engine == "fast" and not kernel_agrees(dwi, motion):
        log.warning("the compiled kernel disagrees with NiTransforms here; NiTransforms is used")
        engine = "nitransforms"
    grid = None if target is None else target.grid
    return Resampled.of(
        dwi, motion, engine=engine, grid=grid, space=space, n_threads=settings.nprocs
    )


def shown_series(
    resampled: Resampled, quality: Quality, settings: Settings, progress: Progress
) -> Series:
    """Return the corrected series as it is to be written: with predictions, where asked for."""
    if not settings.replace_outliers or quality.model is None:
        return resampled
    return Replaced.of(
        resampled, quality.model, quality.outliers, n_threads=settings.nprocs, progress=progress
    )


def judge(dwi: DWI, motion: Motion, model: Model, settings: Settings) -> Quality:
    """Compare each volume with its prediction, as the settings say."""
    found = assess(dwi, motion, model, seed=settings.random_seed, n_threads=settings.nprocs)
    correlations = found.correlation[dwi.gradients.dwis]
    if settings.min_q_distance > 0 and not np.isfinite(correlations).any():
        raise EddymotionError(
            f"--min-q-distance {settings.min_q_distance:g} leaves no volume from which another "
            "one could be predicted; choose a smaller one"
        )
    return found


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
    given = (
        series.dwi, series.bval, series.bvec, settings.brain_mask, settings.output_space,
        settings.output_space_mask,
    )  # fmt: skip
    inputs = {path.resolve() for path in given if path is not None}
    refuse_names(outputs)
    for kind in outputs:
        if outputs[kind].resolve() in inputs:
            raise EddymotionError(
                f"{outputs[kind]}: is an input and would be overwritten; "
                "give another output folder"
            )


def sidecar_of(
    series: SeriesFiles,
    settings: Settings,
    summary: dict[str, str],
    methods: Methods,
    grids: tuple[Series, Series, np.ndarray | None],
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Return the sidecar of the corrected image; `grids` as :func:`on_grid` takes them."""
    metadata = metadata_of(series)
    seconds = {} if stages is None else stages.seconds
    told = usable(metadata, *ACQUISITION_FIELDS)
    others = [key for key in KEPT_METADATA if key not in ACQUISITION_FIELDS]
    found = told | usable(metadata, *others, owner=series.dwi.name)
    kept = {key: found[key] for key in KEPT_METADATA if key in found}
    return on_grid(kept, *grids) | {
        "Sources": [series.uri or series.dwi.name],
        "Settings": settings.effective(),
        "Summary": summary,
        "Methods": methods.plain(),
        "StageSeconds": {name: round(spent, 2) for name, spent in seconds.items()},
        "PackageVersions": software_versions(),
    }


def methods_of(
    dwi: DWI,
    motion: Motion,
    model: Model,
    settings: Settings,
    corrected: Series | None = None,
    space: OutputSpace | None = None,
    *,
    estimated: bool = True,
) -> Methods:
    """Collect what was done with a series, choices by default resolved.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
    model : Model
    settings : Settings
    corrected : Series, optional
        As it was written; as the settings say without.
    space : OutputSpace, optional
    estimated : bool
        Whether the motion was found under these settings: it may be given by somebody else.
    """
    registration = settings.registration, settings.registration_settings
    estimator = estimator_of(settings, model, dwi.gradients)
    eddy, loop = motion.eddy_currents, estimated and isinstance(estimator, LeaveOneOut)
    sought = estimator.seeks_fields(dwi.gradients)
    none = (NONE_FOUND if sought else "none") if estimated else ""
    n_b0s, n_dwis = len(dwi.gradients.b0s), len(dwi.gradients.dwis)
    resampled = corrected.corrected if isinstance(corrected, Replaced) else corrected
    engine = resampled.engine if isinstance(resampled, Resampled) else settings.resampling
    replaced = settings.replace_outliers if corrected is None else isinstance(corrected, Replaced)
    transform = "none" if space is None else space.transform
    given = "" if registration[1] is None else f" with {registration[1].name}"
    return Methods(
        estimator=estimator.name if estimated else "",
        model=name_of(model),
        min_q_distance=settings.min_q_distance,
        registration=(registration[0] or DEFAULT) + given if loop else "",
        passes=estimator.n_passes if loop and isinstance(estimator, LeaveOneOut) else 0,
        eddy_currents=none if eddy is None else eddy.order,
        reference="b0" if n_b0s else "first",
        aligned=not estimated or motion.frame_error is not None or not (n_b0s and n_dwis),
        resampling=engine,
        output_space="" if settings.output_space is None else settings.output_space.name,
        output_transform="" if corrected is None else transform,
        replaced_outliers=replaced,
    )


def fingerprint(
    series: SeriesFiles, settings: Settings, without: frozenset[str] = frozenset()
) -> str:
    """Digest of all that determines the outputs: input files, settings and version.

    Settings in `without` do not count, nor then fields of the raw sidecar that are only handed on.
    """
    digest = hashlib.sha256(__version__.encode())
    effective = {k: v for k, v in settings.effective().items() if k not in without}
    digest.update(json.dumps(effective, sort_keys=True).encode())
    fields = ACQUISITION_FIELDS if without else (*ACQUISITION_FIELDS, *KEPT_METADATA)
    used = usable(metadata_of(series), *fields)
    digest.update(json.dumps(used, sort_keys=True).encode())
    given = (
        series.dwi,
        series.bval or series.dwi.with_name(image_stem(series.dwi) + ".bval"),
        series.bvec or series.dwi.with_name(image_stem(series.dwi) + ".bvec"),
        settings.brain_mask,
        None if "output_space" in without else settings.output_space,
        None if "output_space" in without else settings.output_space_mask,
        settings.registration_settings,
    )
    for path in given:
        if path is not None and path.is_file():
            digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def finished_summary(
    outputs: Outputs, print_of_run: str | None = None, *, told: str = ""
) -> dict[str, str] | None:
    """Return the summary of a finished run, if all it wrote is there and as it was written.

    Parameters
    ----------
    outputs : Outputs
    print_of_run : str, optional
        Of the run that is asked for. Without it any will do, and only sizes are compared.
    told : str
        Name of the series; with it, what is damaged is logged.
    """
    sidecar = read_sidecar(outputs)
    found = []
    if sidecar:
        if print_of_run not in (None, sidecar.get("Fingerprint")):
            return None
        found = damage(outputs, sidecar, quick=print_of_run is None)
    elif is_damaged(outputs["sidecar"]):
        found = [f"{outputs['sidecar'].name} (its content was changed)"]
    if found and told:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        log.warning("%s: not what was written: %s%s; the outputs are made again",
                    told, ", ".join(found[:SHOWN]), more)  # fmt: skip
    return None if found or not sidecar else sidecar.get("Summary")
