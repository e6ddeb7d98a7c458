# SPDX-License-Identifier: Apache-2.0
"""Summary of a registered pair."""

from __future__ import annotations

from typing import Any

from eddymotion import __version__
from eddymotion.evaluation.landmarks import LandmarkErrors
from eddymotion.evaluation.summaries import landmark_summary, rounded
from eddymotion.pairs.advice import advise
from eddymotion.pairs.inputs import PairPaths, PairSettings
from eddymotion.pairs.measures import PairQuality, Parameters

DESCRIPTION = {
    "matrix": "points of the fixed image → points of the moving one, RAS+ mm; of a nonlinear "
    "transform its linear part, which comes after the warp",
    "translation_mm": "displacement of the centre of the fixed grid along x, y, z",
    "rotation_deg": "extrinsic x, y, z angles of the rotation nearest to the matrix; angle_deg: "
    "about its axis",
    "scales, shears": "diagonal (x, y, z) and the rest (xy, xz, yz) of the symmetric stretch that "
    "comes before the rotation",
    "displacement_mm": "over the head of the fixed image",
    "similarity": "normalised mutual information, 1: nothing in common, 2: the same",
    "share": "part of the fixed image's head that lies within the moving image",
    "dice": "of both masks; null without them",
    "before, after": "as positioned by the headers, and after registration",
}


def summary_of_pair(
    paths: PairPaths,
    settings: PairSettings,
    how: dict[str, str],
    quality: PairQuality,
    errors: LandmarkErrors | None,
    seconds: float,
) -> dict[str, Any]:
    """Return the summary of a registration, ready for JSON."""
    found = quality.registration
    figures: dict[str, Any] = {
        "fixed": paths.fixed.name,
        "moving": paths.moving.name,
        "backend": settings.engine,
        **how,
        "converged": found.converged,
        "message": found.message,
        "seconds": seconds,
        "n_iterations": found.n_iterations,
        "cost": {"first": found.cost[0], "last": found.cost[-1]} if found.cost else None,
        **_parameters(quality.parameters),
        "displacement_mm": {
            "mean": quality.displacements.mean, "max": quality.displacements.largest
        },
        "jacobian": {
            "min": quality.displacements.jacobian[0], "max": quality.displacements.jacobian[1],
            "n_folds": quality.displacements.n_folds,
        },
        **{name: {"before": getattr(quality.before, name), "after": getattr(quality.after, name)}
           for name in ("similarity", "correlation", "share", "dice")},
    }  # fmt: skip
    if errors is not None:
        figures["landmarks"] = dict(landmark_summary(errors, True).figures)
        figures["landmarks"].pop("description")
    matrix = {"matrix": found.matrix.tolist()}  # not rounded
    return {
        **rounded(figures),
        **matrix,
        "advice": [str(advice) for advice in advise(quality, **how)],
        "random_seed": settings.random_seed,
        "version": __version__,
        "description": DESCRIPTION,
    }


def _parameters(p: Parameters) -> dict[str, Any]:
    return {
        "translation_mm": p.translation, "rotation_deg": p.rotation, "angle_deg": p.angle,
        "scales": p.scales, "shears": p.shears, "volume_change": p.volume,
    }  # fmt: skip
