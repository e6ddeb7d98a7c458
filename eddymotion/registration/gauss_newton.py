# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton registration, coarse to fine.

At level ``k`` both images are smoothed and compared at random points ``x`` of the fixed mask. The
metric (:mod:`eddymotion.registration.metrics`) is a function of the values ``f(x)`` and
``m(T x)``; in second order of a small step ``δ = B p`` around the present matrix ``T``, as if it
moved the fixed image, ::

    C(p) ≈ C₀ + gᵀp + ½ pᵀH p,     p = −H⁻¹ g,     T ← T exp(B p)

With ``ssd`` this is ``m(T x) ≈ a f(x) + c − a ∇f(x)·δ(x)``: intensity scale and offset and the
motion are one weighted least-squares solution. Three choices matter:

- *Points off the grid.* Interpolation averages noise most half-way between voxels, so a cost
  sampled on the grid is drawn there; random sub-voxel positions make the noise independent of
  ``T``.
- *The gradient of the fixed image*, the prediction from many volumes in the leave-one-out loop:
  the moving volume's own noise would enlarge the normal matrix and shorten every step. It also
  never changes, so a step costs one sampling of the moving image.
- *A band-pass at the finest level*, for ``ssd``. What a prediction gets wrong is smooth in space
  and would pull as a false shift. A metric with a curve or a histogram of the values needs the
  values themselves, and ``lncc`` subtracts its own means.

**Both ways.** A pair has no prediction: either image may be called fixed. Points of the moving
mask are then compared at ``T⁻¹ y`` in the same manner, with the gradient of the moving image, and
both costs and their steps are summed, those of ``T⁻¹`` turned into steps of ``T``
(:meth:`eddymotion.registration.groups.Group.reversal`). Where the sum of the slopes is zero it is
so with the images exchanged: the result is inverse-consistent by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.images.pyramid import Level
from eddymotion.mapping.registration import Registration
from eddymotion.registration.checks import check_keys, read_settings
from eddymotion.registration.groups import GROUPS, SHIFT, Group
from eddymotion.registration.metrics import METRICS
from eddymotion.registration.problem import Pair, Side
from eddymotion.registration.request import Engine, Request
from eddymotion.registration.solver import Descent
from eddymotion.wording import shown

__all__ = ["COARSE_TO_FINE", "REFINE", "GaussNewton", "Level"]

COARSE_TO_FINE = (
    Level(32.0, 2_000),
    Level(16.0, 3_000),
    Level(8.0, 6_000),
    Level(4.0, 10_000),
    Level(1.0, 25_000, highpass=3.0),
)
"""The coarse widths scale with the head, since they must cover its motion; the finest band scales
with the voxel, since that is the scale of the noise and of the finest detail."""

SHIFT_FROM = 24.0
"""Width from which on a level, unless it is the last, only shifts: a brain is nearly a ball then,
and one of a volume with another diffusion weighting would be turned over."""

RIGID_FROM = 12.0
"""Width from which on a level, unless it is the last, leaves sizes and shears alone."""

MAX_REACH = 0.25
"""Up to which share of the width (FWHM) of the level a step is lengthened."""

SMALL = 20.0
"""A step of up to this many tolerances that only raises the cost counts as none."""

REFINE = COARSE_TO_FINE[-1:]
"""For a pair that is known to be within about two voxels."""


@dataclass(frozen=True)
class GaussNewton(Engine):
    """Gauss-Newton registration: rigid, similarity or affine.

    Parameters
    ----------
    levels : sequence of Level
        Coarse to fine. Wide ones only shift, or only shift and turn, if others follow.
    max_iterations : int
        At each level.
    tolerance : float
        Length of the last step, as mean displacement over the mask, at which a level ends: in
        voxels at the last, in widths (FWHM) at those before it.
    symmetric : bool
        Whether to compare the images both ways: exchanging them gives the inverse. One way takes
        half the time and is right where the fixed image has the less noise.
    """

    levels: tuple[Level, ...] = COARSE_TO_FINE
    max_iterations: int = 25
    tolerance: float = 0.0005
    symmetric: bool = True

    transforms = tuple(GROUPS)
    metrics = METRICS

    def __post_init__(self) -> None:
        numbers = (self.max_iterations, self.tolerance)
        if not all(isinstance(number, (int, float)) and number > 0 for number in numbers):
            raise EddymotionError(
                f"registration: max_iterations {shown(self.max_iterations)} and tolerance "
                f"{shown(self.tolerance)} must be numbers above zero"
            )
        if not isinstance(self.symmetric, bool):
            raise EddymotionError(
                f"registration: symmetric is {shown(self.symmetric)}, expected true or false"
            )
        if not self.levels:
            raise EddymotionError("registration: no levels given, expected at least one")

    @classmethod
    def from_settings(cls, path: str | Path | None) -> GaussNewton:
        """Read the parameters from a JSON file; the defaults without one."""
        if path is None:
            return cls()
        path = Path(path)
        settings = read_settings(path, [entry.name for entry in fields(cls)])
        if "levels" in settings:
            settings["levels"] = _levels_of(path, settings["levels"])
        return cls(**settings)

    def _register(self, request: Request) -> Registration:
        sides = Side(request.fixed, request.fixed_mask), Side(request.moving, request.moving_mask)
        metric = request.metric or self.metrics[0]
        pair = Pair(*sides, metric, self.symmetric)
        group = GROUPS[request.transform]
        matrix = group.nearest(request.start, pair.fixed.center)
        n_iterations = 0
        for number, level in enumerate(self.levels):
            last = number == len(self.levels) - 1
            steps = group if last else steps_at(level, group)
            problem = pair.at(level, steps, matrix, (request.seed, number))
            width = problem.view.width
            detail = pair.voxel if last else max(pair.voxel, width)
            descent = Descent(problem, matrix, self.tolerance * detail, MAX_REACH * width)
            descent.run(self.max_iterations)
            # what is shorter than the tolerance needs no judge
            matrix = descent.trial if descent.ended and not descent.halved else descent.place
            n_iterations += len(descent.costs)
        return Registration(
            matrix, *_outcome(descent, n_iterations), tuple(descent.costs), n_iterations
        )


def _outcome(descent: Descent[np.ndarray], n_iterations: int) -> tuple[bool, str]:
    """Say whether the last level converged, and how it ended, after all iterations."""
    length, tolerance = descent.length, descent.tolerance
    if not descent.costs:
        return False, "stopped: the images do not overlap enough"
    if descent.ended and descent.halved and descent.whole > SMALL * tolerance:
        text = f"stopped: neither a step of {descent.whole:.2g} mm nor a part of it helps"
    elif descent.ended:
        text = f"converged: last step {length:.2g} mm is below {tolerance:.2g} mm"
    else:
        text = f"stopped at the iteration limit: last step {length:.2g} mm"
    first, last = descent.costs[0], descent.costs[-1]
    text += f" after {n_iterations} iterations; cost {first:.4f} → {last:.4f}"
    return text.startswith("converged"), text


def steps_at(level: Level, group: Group) -> Group:
    """Return the steps that a level's images can distinguish, at most those of `group`."""
    if level.highpass is None and level.fwhm >= SHIFT_FROM:
        return SHIFT
    if level.highpass is None and level.fwhm >= RIGID_FROM:
        return GROUPS["rigid"]
    return group


def _levels_of(path: Path, levels: object) -> tuple[Level, ...]:
    known = [entry.name for entry in fields(Level)]
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        raise EddymotionError(f"{path}: levels must be a list of objects with {', '.join(known)}")
    for level in levels:
        check_keys(path, level, known, "of a level")
        if not {"fwhm", "n_points"} <= set(level):
            raise EddymotionError(f"{path}: the level {level} needs both fwhm and n_points")
    return tuple(Level(**level) for level in levels)
