# SPDX-License-Identifier: Apache-2.0
"""The steps of a run, each path in → path out: what commands and workflow nodes call."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.checks import in_sidecar
from eddymotion.dataset import DWI, Series
from eddymotion.derivatives import OnDemand, Outputs, write_outputs, write_sidecar
from eddymotion.derivatives.outlier_table import outlier_summary
from eddymotion.errors import EddymotionError
from eddymotion.estimation import Quality, assess, choose_estimator, estimate_motion
from eddymotion.estimation.outliers import ruin_in_words
from eddymotion.estimation.replacement import Replaced
from eddymotion.estimation.slicing import Slicing
from eddymotion.files import image_stem, load, write_json
from eddymotion.geometry import Motion
from eddymotion.models import Model, get_model
from eddymotion.motion_files import read_motion, write_motion
from eddymotion.normalisation import OutputSpace, Target, space_of, write_output_space
from eddymotion.parallel import Progress, silent
from eddymotion.registration import get_registrar
from eddymotion.reports.data import recorded_log
from eddymotion.reports.series import draw_series
from eddymotion.reports.slices import Slices
from eddymotion.resampling import Engine, Resampled, kernel_agrees
from eddymotion.running import software_versions
from eddymotion.series_files import SeriesFiles, metadata_of, phase_encoding, slicing_of
from eddymotion.settings import Settings
from eddymotion.summary import summarise

log = logging.getLogger(__name__)


KEPT_METADATA = (
    "RepetitionTime", "EchoTime", "FlipAngle", "MagneticFieldStrength", "Manufacturer",
    "ManufacturersModelName", "PhaseEncodingDirection", "PhaseEncodingAxis", "TotalReadoutTime",
    "EffectiveEchoSpacing", "MultibandAccelerationFactor",
)  # fmt: skip
"""Fields of the raw sidecar that still hold for the corrected series."""

USED_METADATA = (
    "SliceTiming", "SliceEncodingDirection", "MultibandAccelerationFactor", "TotalReadoutTime",
    "PhaseEncodingDirection", "PhaseEncodingAxis",
)  # fmt: skip
"""Fields of the raw sidecar that a result may depend on."""

REUSED_OUTPUTS = (
    "dwi", "bval", "bvec", "sidecar", "dwiref", "mask", "mask_sidecar", "xfm", "x5", "confounds",
    "confounds_sidecar", "outliers", "outliers_sidecar", "motion_figure", "before_after_figure",
    "heldout_figure", "maps_figure", "report_data",
)  # fmt: skip
"""All that must lie there for a finished series to be taken as finished."""


AFTER_MOTION = frozenset({
    "output_space", "output_space_transform", "output_space_contrast", "output_space_mask",
    "resampling", "replace_outliers", "fsl_outputs", "cnr_maps", "residuals",
    "eddy_fields",
})  # fmt: skip
"""Settings that change what is made of a motion, not the motion itself."""

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
        See :class:`~eddymotion.parallel.Progress`.
    work_dir : Path, optional
        Where the motion is kept, and sought, so that an interrupted run need not find it again.

    Returns
    -------
    dict
        Label → value: what the report tells in its summary.
    """
    print_of_run = fingerprint(series, settings)
    if (finished := finished_summary(outputs, print_of_run)) is not None:
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
        with stages("motion"), recorded_log() as stages.told:
            motion = find_motion(dwi, series, model, settings, progress)
        if kept:
            kept.keep(motion, stages)
    with stages("quality"):
        slicing = slicing_of(series, dwi)
        before = judge(dwi, Motion.identity(len(dwi)), model, slicing, settings)
        after = judge(dwi, motion, model, slicing, settings)
    with stages("output space"):
        space = space_of(dwi, motion, target, settings)
    with stages("resampling and writing"):
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
            on_demand=on_demand(series, settings),
            progress=progress,
        )
    with stages("pictures"):
        slices = slices_before, slices_after
        draw_series(outputs, dwi, motion, model, *slices, before, after, log=stages.told)
    registrar = get_registrar(settings.registration, settings.registration_settings)
    summary = {"estimator": choose_estimator(settings.estimator, model, registrar)}
    summary |= summarise(dwi, motion, model, before, after)
    summary |= ({"output space": space.told()} if space else {}) | {"time": str(stages)}
    outliers = outlier_summary(after.outliers, replaced=settings.replace_outliers)
    content = sidecar_of(series, settings, summary, stages, print_of_run)
    write_sidecar(outputs, content | {"OutlierSlices": outliers, "Warnings": in_sidecar(dwi)})
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
    dwi = load_series(series, settings)
    with stages("motion"), recorded_log() as stages.told:
        motion = find_motion(dwi, series, model_for(dwi, settings), settings, progress)
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
        """Write it; the details come last and are the mark of completion."""
        content = {"motion": stages.seconds["motion"], "told": stages.told}
        write_json(self.folder / "stages.json", content)
        write_motion(self.folder / "xfm.txt", self.folder / "details.json", motion)

    def recall(self, stages: Stages) -> Motion | None:
        """Read it with what it took and what was told, if it is there."""
        if not (self.folder / "details.json").is_file():
            return None
        try:
            motion = read_motion(self.folder / "xfm.txt", self.folder / "details.json")
            seconds = json.loads((self.folder / "stages.json").read_text(encoding="utf-8"))
            stages.seconds |= {"motion": float(seconds["motion"])}
            stages.told = [(float(at), str(message)) for at, message in seconds["told"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: cannot be used (%s); the motion is found again", self.folder, error)
            return None
        return motion


def load_series(series: SeriesFiles, settings: Settings) -> DWI:
    """Load a series as the settings say."""
    dwi = load(
        series.dwi,
        bval=series.bval,
        bvec=series.bvec,
        mask=settings.brain_mask,
        b0_threshold=settings.b0_threshold,
        ignore=settings.ignore,
    )
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


def find_motion(
    dwi: DWI, series: SeriesFiles, model: Model, settings: Settings, progress: Progress
) -> Motion:
    """Estimate the motion as the settings and the metadata say."""
    return estimate_motion(
        dwi,
        model=model,
        registrar=get_registrar(settings.registration, settings.registration_settings),
        estimator=settings.estimator,
        n_iterations=settings.n_iterations,
        align_shells=not settings.no_shell_alignment,
        eddy_currents=settings.eddy_current,
        pe_axis=settings.pe_axis or phase_encoding(series),
        slicing=slicing_of(series, dwi),
        seed=settings.random_seed,
        n_threads=settings.nprocs,
        progress=progress,
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


def judge(dwi: DWI, motion: Motion, model: Model, slicing: Slicing, settings: Settings) -> Quality:
    """Compare each volume with its prediction, as the settings say."""
    found = assess(dwi, motion, model, slicing=slicing, seed=settings.random_seed,
                   n_threads=settings.nprocs)  # fmt: skip
    correlations = found.correlation[dwi.gradients.dwis]
    if settings.min_q_distance > 0 and not np.isfinite(correlations).any():
        raise EddymotionError(
            f"--min-q-distance {settings.min_q_distance:g} leaves no volume from which another "
            "one could be predicted; choose a smaller one"
        )
    return found


def on_demand(series: SeriesFiles, settings: Settings) -> OnDemand:
    """Collect what is wanted besides the outputs of every run."""
    readout = metadata_of(series).get("TotalReadoutTime")
    return OnDemand(
        fsl=settings.fsl_outputs,
        cnr_maps=settings.cnr_maps,
        residuals=settings.residuals,
        eddy_fields=settings.eddy_fields,
        readout_time=float(readout) if isinstance(readout, (int, float)) else None,
        pe_axis=settings.pe_axis or phase_encoding(series),
        n_threads=settings.nprocs,
    )


def refuse_overwriting_inputs(series: SeriesFiles, outputs: Outputs, settings: Settings) -> None:
    """Raise if an output has the path of an input."""
    given = (
        series.dwi, series.bval, series.bvec, settings.brain_mask, settings.output_space,
        settings.output_space_mask,
    )  # fmt: skip
    inputs = {path.resolve() for path in given if path is not None}
    for kind in REUSED_OUTPUTS:
        if outputs[kind].resolve() in inputs:
            raise EddymotionError(
                f"{outputs[kind]}: is an input and would be overwritten; "
                "give another output folder"
            )


def sidecar_of(
    series: SeriesFiles,
    settings: Settings,
    summary: dict[str, str],
    stages: Stages | None = None,
    print_of_run: str | None = None,
) -> dict[str, Any]:
    """Return the sidecar of the corrected image."""
    metadata = metadata_of(series)
    seconds = {} if stages is None else stages.seconds
    kept = {key: metadata[key] for key in KEPT_METADATA if _is_json(metadata.get(key))}
    content = kept | {
        "Sources": [series.uri or series.dwi.name],
        "Settings": settings.effective(),
        "Summary": summary,
        "StageSeconds": {name: round(spent, 2) for name, spent in seconds.items()},
        "PackageVersions": software_versions(),
    }
    return content if print_of_run is None else content | {"Fingerprint": print_of_run}


def _is_json(value: Any) -> bool:
    """Whether a value is there and can be written: NaN and infinity are not JSON."""
    try:
        return value is not None and bool(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return False


def fingerprint(
    series: SeriesFiles, settings: Settings, without: frozenset[str] = frozenset()
) -> str:
    """Digest of all that determines the outputs: input files, settings and version.

    Settings in `without` do not count, nor then fields of the raw sidecar that are only handed on.
    """
    digest = hashlib.sha256(__version__.encode())
    effective = {k: v for k, v in settings.effective().items() if k not in without}
    digest.update(json.dumps(effective, sort_keys=True).encode())
    metadata = metadata_of(series)
    fields = USED_METADATA if without else (*USED_METADATA, *KEPT_METADATA)
    used = {key: metadata[key] for key in fields if key in metadata}
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
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def finished_summary(outputs: Outputs, print_of_run: str | None = None) -> dict[str, str] | None:
    """Return the summary of a finished run, with that fingerprint if one is given."""
    if not all(outputs[kind].exists() for kind in REUSED_OUTPUTS):
        return None
    try:
        sidecar = json.loads(outputs["sidecar"].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if print_of_run not in (None, sidecar.get("Fingerprint")):
        return None
    return sidecar.get("Summary")
