# SPDX-License-Identifier: Apache-2.0
"""What was found in a series, in words and numbers: log, sidecar and report tell it."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.dataset import DWI
from eddymotion.estimation import Quality
from eddymotion.estimation.outliers import lost_in_words
from eddymotion.estimation.undetermined import in_words
from eddymotion.geometry import Motion, framewise_displacement, rigid_parameters
from eddymotion.gradients import image_axes
from eddymotion.models import Model


def summarise(
    dwi: DWI, motion: Motion, model: Model, before: Quality, after: Quality
) -> dict[str, str]:
    """Say in words and numbers what was found."""
    parameters = rigid_parameters(motion.matrices, dwi.center)
    reach = np.ptp(parameters, axis=0)
    fd = framewise_displacement(parameters)[1:]
    dwis = dwi.gradients.dwis

    def rise(name: str, function: Any) -> str:
        values = [getattr(quality, name)[dwis] for quality in (before, after)]
        first, second = (v[np.isfinite(v)] for v in values)
        return f"{function(first):.3f} → {function(second):.3f}" if len(second) else "n/a"

    kind = "the first b=0" if len(dwi.gradients.b0s) else "since the series has no b=0"
    return {
        "series": repr(dwi),
        "model": type(model).__name__,
        "reference": f"volume {dwi.reference}, {kind}",
        "range of translations (x, y, z)": ", ".join(f"{r:.2f}" for r in reach[:3]) + " mm",
        "range of rotations (x, y, z)": ", ".join(f"{np.rad2deg(r):.2f}" for r in reach[3:]) + "°",
        "frame of the diffusion-weighted volumes": _frame(motion),
        "framewise displacement": f"mean {fd.mean():.2f} mm, max {fd.max():.2f} mm",
        "eddy currents": _fields(dwi, motion),
        "mean correlation with the prediction": rise("correlation", np.mean),
        "lowest correlation with the prediction": rise("correlation", np.min),
        "slices that lost signal": lost_in_words(after.outliers),
    } | _unknown(motion)


def _unknown(motion: Motion) -> dict[str, str]:
    """Say what could not be found, where that is anything."""
    told = {}
    if motion.unplaced is not None:
        volumes = np.flatnonzero(motion.unplaced)
        told["volumes that could not be placed"] = ", ".join(map(str, volumes))
    if motion.undetermined is not None:
        told["not determined by the images, taken as at rest"] = in_words(motion.undetermined)
    return told


def _fields(dwi: DWI, motion: Motion) -> str:
    eddy = motion.eddy_currents
    if eddy is None:
        return "no fields"
    points = apply_affine(dwi.affine, np.argwhere(dwi.mask)[::97])
    squares = [np.square(eddy.displacement(v, points)).mean() for v in dwi.gradients.dwis]
    head = framewise_displacement(rigid_parameters(motion.head, dwi.center))[1:]
    axis = "ijk"[int(np.abs(image_axes(dwi.affine).T @ eddy.pe).argmax())]
    return (
        f"{eddy.order} fields along {axis}, {np.sqrt(np.mean(squares)):.2f} mm RMS in the brain; "
        f"framewise displacement of the head alone: mean {head.mean():.2f} mm, "
        f"max {head.max():.2f} mm"
    )


def _frame(motion: Motion) -> str:
    if motion.frame_error is None:
        return "not estimated"
    return f"joined to that of the b=0 volumes within {motion.frame_error:.3f} mm (standard error)"
