# SPDX-License-Identifier: Apache-2.0
"""The passes of the loop: with which model and registrar, and how far volumes go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.lovo.shading import Shaded
from eddymotion.models import AverageModel, Model
from eddymotion.registration import GaussNewton, Registrar
from eddymotion.registration.gauss_newton import REFINE

POINTS_FACTOR = 2
"""Factor for the points of the finest level in the second half of the passes, where noise decides:
with voxels of 3 mm these are nearly all of the brain. Three series of 24 directions at b=3000
ended at .069 to .087 mm with it, at .079 to .107 mm without."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over the series.

    Parameters
    ----------
    number : int
        From one on.
    model : Model
    registrar : Registrar
    relaxation : (N,) array
        Which part of the way to its prediction each volume goes.
    seeks_lost : bool
        Whether slices that lost their signal are sought before it.
    """

    number: int
    model: Model
    registrar: Registrar
    relaxation: np.ndarray
    seeks_lost: bool


def plan_passes(
    model: Model, registrar: Registrar, gradients: Gradients, n_iterations: int
) -> list[Pass]:
    """Plan the passes.

    The first half predicts with shell means. Every volume then depends equally on all others, and
    the loop converges fast; a model with few effective neighbours would pass their errors on to
    each volume. The other passes, at least the last, use `model`, which is sharper. Our own
    registrar works coarse to fine in the first pass, and only at its finest level afterwards.
    """
    n_means = min((n_iterations + 1) // 2, n_iterations - 1) if gradients.is_shelled else 0
    models = [AverageModel()] * n_means + [model] * (n_iterations - n_means)
    return [
        Pass(
            number,
            used,
            registrar_at(registrar, number, n_iterations),
            relaxation(used, gradients),
            seeks_lost=number > 1 and used is model,
        )
        for number, used in enumerate(models, start=1)
    ]


def relaxation(model: Model, gradients: Gradients) -> np.ndarray:
    """Which part of the way to its prediction each volume should go, (N,).

    Volumes that are predicted by the mean of the others all move at once, so that two of them
    would swap places for ever. The way to the mean of *all* n volumes, which is the joint
    solution, is ``(n − 1)/n`` of the way to the mean of the others.
    """
    groups = [gradients.b0s, *(gradients.shells if isinstance(model, AverageModel) else ())]
    parts = np.ones(len(gradients))
    for group in groups:
        if len(group):
            parts[group] = (len(group) - 1) / len(group)
    return parts


def registrar_at(registrar: Registrar, number: int, n_iterations: int) -> Registrar:
    """Coarse levels in the first pass, the finest afterwards; all if there is only one pass.

    With the blurred predictions of the first pass the finest level would converge slowly, and to
    the wrong place. Predictions have less noise than volumes, so that they are the reference, and
    the registration is not symmetric. The finest level has more points in the second half of the
    passes (:data:`POINTS_FACTOR`), unless levels were given. Other engines than ours register to
    the predictions as they are at first, later to predictions that are as bright as the volumes
    (:mod:`eddymotion.estimation.lovo.shading`).
    """
    late = number > (n_iterations + 1) // 2
    if not isinstance(registrar, GaussNewton):
        return Shaded(registrar) if late else registrar
    registrar = replace(registrar, symmetric=False)
    if len(registrar.levels) < 2 or n_iterations == 1:
        return registrar
    n_fine = len(REFINE)
    levels = registrar.levels[:-n_fine] if number == 1 else registrar.levels[-n_fine:]
    if levels == REFINE and late:
        levels = tuple(replace(one, n_points=POINTS_FACTOR * one.n_points) for one in REFINE)
    return replace(registrar, levels=levels)
