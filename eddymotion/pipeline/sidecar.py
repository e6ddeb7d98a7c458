# SPDX-License-Identifier: Apache-2.0
"""The sidecar of a corrected series: what was done, with which settings and programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.checks import DataIssue, find_issues
from eddymotion.data.series import DWI, Series
from eddymotion.derivatives.citation import NONE_FOUND, Methods
from eddymotion.derivatives.confounds import excursions
from eddymotion.derivatives.grid_metadata import on_grid
from eddymotion.estimation.estimators import Estimator, LeaveOneOut
from eddymotion.estimation.replacement import Replaced
from eddymotion.io.sidecars import ACQUISITION_FIELDS, SeriesFiles, metadata_of, usable
from eddymotion.machine.versions import software_versions
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model, name_of
from eddymotion.pipeline.output_space.space import OutputSpace
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import Stages, engine_of, estimator_of
from eddymotion.registration.registry import DEFAULT
from eddymotion.resampling import Resampled

KEPT_METADATA = (
    "RepetitionTime", "EchoTime", "FlipAngle", "MagneticFieldStrength", "Manufacturer",
    "ManufacturersModelName", "PhaseEncodingDirection", "PhaseEncodingAxis", "TotalReadoutTime",
    "EffectiveEchoSpacing", "MultibandAccelerationFactor",
)  # fmt: skip
"""Fields of the raw sidecar that still hold for the corrected series, on its own grid."""


def sidecar_of(
    series: SeriesFiles,
    settings: Settings,
    summary: dict[str, str],
    methods: Methods,
    motion: Motion,
    grids: tuple[DWI, Series, np.ndarray | None],
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Return the sidecar of the corrected image; `grids` as :func:`on_grid` takes them."""
    metadata = metadata_of(series)
    seconds = {} if stages is None else stages.seconds
    acquisition = usable(metadata, *ACQUISITION_FIELDS)
    others = [key for key in KEPT_METADATA if key not in ACQUISITION_FIELDS]
    found = acquisition | usable(metadata, *others, owner=series.dwi.name)
    kept = {key: found[key] for key in KEPT_METADATA if key in found}
    sources, space = [series.uri or series.dwi.name], {}
    if series.anatomy is not None:
        sources.append(series.anatomy.uri)
        space = {"SpatialReference": series.anatomy.uri}
    return (
        on_grid(kept, *grids)
        | space
        | {
            "Sources": sources,
            "Settings": settings.effective(),
            "Summary": summary,
            "Methods": methods.plain(),
            "StageSeconds": {name: round(spent, 2) for name, spent in seconds.items()},
            "PackageVersions": software_versions(),
            "Warnings": warnings_of(grids[0], motion),
            "MotionWithinVolumes": _within(grids[0], motion),
        }
    )


def warnings_of(dwi: DWI, motion: Motion) -> list[dict[str, Any]]:
    """Return what is suspicious about a series, and what its motion says against itself."""
    doubts = {
        "frames": motion.frame_doubt,
        "slice timing": motion.order_doubt,
        "motion within volumes": motion.within_doubt,
    }
    of_motion = [DataIssue(kind, text) for kind, text in doubts.items() if text is not None]
    return [issue.plain() for issue in (*find_issues(dwi), *of_motion)]


def _within(dwi: DWI, motion: Motion) -> dict[str, Any]:
    """Say within which volumes the head moved, and how these were rebuilt."""
    volumes = np.flatnonzero(motion.moved_within)
    found: dict[str, Any] = {"Volumes": volumes.tolist()}
    if why := dwi.acquisition.why_untimed or motion.order_doubt:
        found["NotSoughtSince"] = why
    if motion.trajectory is None:
        return found
    return found | {
        "LargestExcursion": round(float(excursions(motion, dwi.center).max()), 4),
        "VoxelSize": round(float(dwi.voxel_sizes.min()), 4),
        "Resampling": "slice by slice, each at its own pose: cubic splines in the plane, kriging "
                      "across slices",
    }  # fmt: skip


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
    image, eddy = settings.output_space, motion.eddy_currents
    described = Methods(
        model=name_of(model),
        min_q_distance=settings.min_q_distance,
        eddy_currents="" if eddy is None else eddy.order,
        reference="b0" if len(dwi.gradients.b0s) else "first",
        resampling=engine_of(settings),
        output_space=image.name if isinstance(image, Path) else "",
        replaced_outliers=settings.replace_outliers,
        denoised=settings.denoise,
        without_ringing=settings.degibbs,
        followed_within=bool(motion.moved_within.any()),
    )
    if corrected is not None:
        transform = "none" if space is None else space.transform
        described = replace(described, output_transform=transform, **_as_written(corrected))
    if estimated:
        estimator = estimator_of(settings, model, dwi.gradients)
        described = replace(described, **_as_estimated(dwi, motion, settings, estimator))
    return described


def _as_written(corrected: Series) -> dict[str, Any]:
    """Say what made the volumes of a series, which may differ from the settings."""
    resampled = corrected.corrected if isinstance(corrected, Replaced) else corrected
    found: dict[str, Any] = {
        "replaced_outliers": isinstance(corrected, Replaced) and corrected.lost
    }
    return found | ({"resampling": resampled.engine} if isinstance(resampled, Resampled) else {})


def _as_estimated(
    dwi: DWI, motion: Motion, settings: Settings, estimator: Estimator
) -> dict[str, Any]:
    """Say how the motion was found under these settings."""
    gradients = dwi.gradients
    one_frame = motion.frame_error is not None or not (len(gradients.b0s) and len(gradients.dwis))
    found: dict[str, Any] = {"estimator": estimator.name, "aligned": one_frame}
    if motion.eddy_currents is None:
        found["eddy_currents"] = NONE_FOUND if estimator.seeks_fields(gradients) else "none"
    if isinstance(estimator, LeaveOneOut):
        options = settings.registration_settings
        given = "" if options is None else f" with {options.name}"
        found["registration"] = (settings.registration or DEFAULT) + given
        found["passes"] = estimator.n_passes
    return found
