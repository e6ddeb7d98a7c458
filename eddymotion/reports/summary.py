# SPDX-License-Identifier: Apache-2.0
"""What was found in a series, in words and numbers, for log, sidecar and report."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.series import DWI
from eddymotion.derivatives.confounds import excursions
from eddymotion.estimation import Quality
from eddymotion.estimation.equations.undetermined import describe_directions
from eddymotion.estimation.outliers import describe_outliers
from eddymotion.images.axes import image_axes
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import framewise_displacement
from eddymotion.models import Model

FRAME = "frame of the diffusion-weighted volumes"
"""Label of what is known about it."""

WITHIN = "motion within volumes"
"""Label of what was found of it."""


def summarise(
    dwi: DWI, motion: Motion, model: Model, before: Quality, after: Quality
) -> dict[str, str]:
    """Say in words and numbers what was found."""
    reach = np.ptp(motion.parameters(dwi.center, of_head=True), axis=0)
    dwis, of = dwi.gradients.dwis, ", of the head" if _has_offset(motion) else ""

    def correlations(function: Callable[[np.ndarray], float]) -> str:
        values = [quality.correlation[dwis] for quality in (before, after)]
        first, second = (v[np.isfinite(v)] for v in values)
        return f"{function(first):.3f} → {function(second):.3f}" if len(second) else "n/a"

    kind = "the first b=0" if len(dwi.gradients.b0s) else "since the series has no b=0"
    return {
        "series": repr(dwi),
        "model": type(model).__name__,
        "reference": f"volume {dwi.reference}, {kind}",
        "range of translations (x, y, z)": ", ".join(f"{r:.2f}" for r in reach[:3]) + " mm" + of,
        "range of rotations (x, y, z)": ", ".join(f"{np.rad2deg(r):.2f}" for r in reach[3:]) + "°",
        FRAME: _frame(motion),
        "framewise displacement": _displacements(dwi, motion),
        WITHIN: _within(dwi, motion),
        "eddy currents": _fields(dwi, motion),
        "mean correlation with the prediction": correlations(np.mean),
        "lowest correlation with the prediction": correlations(np.min),
        "slices that lost signal": describe_outliers(after.outliers),
    } | _unknown(motion)


def _unknown(motion: Motion) -> dict[str, str]:
    """Say what could not be found, where that is anything."""
    facts = {}
    if motion.unplaced is not None:
        volumes = np.flatnonzero(motion.unplaced)
        facts["volumes that could not be placed"] = ", ".join(map(str, volumes))
    if motion.undetermined is not None:
        facts["not determined by the images, assumed to be at rest"] = describe_directions(
            motion.undetermined
        )
    return facts


def _has_offset(motion: Motion) -> bool:
    """Whether the poses hold an offset of eddy-current fields."""
    return motion.eddy_currents is not None and motion.eddy_currents.offsets is not None


def _displacements(dwi: DWI, motion: Motion) -> str:
    """Describe the framewise displacement of the head, and beside it that of the poses."""
    head = motion.framewise_displacement(dwi.center)[1:]
    poses = framewise_displacement(motion.parameters(dwi.center))[1:]
    text = f"mean {head.mean():.2f} mm, max {head.max():.2f} mm"
    if not _has_offset(motion):
        return text
    return (
        f"{text}, of the head; with the offset of the eddy currents mean {poses.mean():.2f} mm, "
        f"max {poses.max():.2f} mm"
    )


def _within(dwi: DWI, motion: Motion) -> str:
    """Say within how many volumes the head moved, and how far."""
    n_moved = int(motion.moved_within.sum())
    if not n_moved:
        why = dwi.acquisition.why_untimed or motion.order_doubt
        return f"not estimated, since {why}" if why else "one pose a volume"
    reach = excursions(motion, dwi.center)
    return (
        f"in {n_moved} of {len(dwi)} volumes, by up to {reach.max():.2f} mm (volume "
        f"{int(reach.argmax())}) from the pose of the volume; these were rebuilt slice by slice"
    )


def _fields(dwi: DWI, motion: Motion) -> str:
    eddy = motion.eddy_currents
    if eddy is None:
        return "no fields"
    points = apply_affine(dwi.affine, np.argwhere(dwi.mask)[::97])
    squares = [np.square(eddy.displacement(v, points)).mean() for v in dwi.gradients.dwis]
    axis = "ijk"[int(np.abs(image_axes(dwi.affine).T @ eddy.pe).argmax())]
    text = f"{eddy.order} fields along {axis}, {np.sqrt(np.mean(squares)):.2f} mm RMS in the brain"
    if eddy.offsets is None:
        return text
    return f"{text}; offset up to {np.abs(eddy.offsets).max():.2f} mm"


def _frame(motion: Motion) -> str:
    if motion.frame_error is None:
        return "not estimated"
    text = f"joined to that of the b=0 volumes within {motion.frame_error:.3f} mm (standard error)"
    return text if motion.frame_evidence is None else f"{text}; {motion.frame_evidence}"
