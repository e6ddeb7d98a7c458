# SPDX-License-Identifier: Apache-2.0
"""Symmetric normalisation (SyN) with DIPY: a displacement for each voxel, both ways.

DIPY's map sends a point ``x`` of the fixed image to ``prealign @ (x + d(x))``, which is what
:class:`~eddymotion.mapping.registration.Registration` calls ``matrix @ warp(x)``; its field and
the inverse lie on the fixed grid.

References
----------
Avants et al. (2008), Medical Image Analysis 12:26.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from dipy.align.imwarp import RegistrationStages, SymmetricDiffeomorphicRegistration
from dipy.align.metrics import CCMetric, EMMetric, SSDMetric
from scipy.ndimage import gaussian_filter

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import read_linearly
from eddymotion.images.image import Image
from eddymotion.mapping.registration import Registration, Warp
from eddymotion.registration.request import ending

SYN_METRICS = ("cc", "em", "ssd")
"""Local cross-correlation; expectation-maximisation (other contrasts); squared differences."""

TAILS = (0.001, 0.999)
"""Quantiles at which intensities are cut off for squared differences."""

SMOOTHNESS = 4.0
"""Of the steps of ``em`` and ``ssd``. With DIPY's demons steps ``ssd`` made a simulated warp of
3 mm worse; its Gauss-Newton steps lessen it."""

SSD_STEP = 0.4
"""Share of the step with ``ssd``, which overshoots: of a known warp 0.77 of the error was left,
with whole steps 0.85."""

MASK_SIGMA = 1.0
"""Voxels: a hard edge of the force would tear the field."""

MIN_SIZE = 8
"""Voxels along an axis that the coarsest level keeps, and twice the radius beyond."""

INVERSE_ITERATIONS = 50
INVERSE_TOLERANCE = 1e-3
"""Of the inverse field, in voxels."""


@dataclass(frozen=True)
class SynSettings:
    """How SyN runs; see :class:`eddymotion.registration.engines.dipy.DipyRegistrar`."""

    metric: str
    iterations: tuple[int, ...]
    step: float
    radius: int


def run_syn(
    fixed: Image,
    moving: Image,
    masks: tuple[np.ndarray | None, np.ndarray | None],
    linear: Registration,
    settings: SynSettings,
) -> Registration:
    """Refine a linear registration by a warp.

    Parameters
    ----------
    fixed, moving : Image
    masks : pair of bool arrays or None
        Where each image drives the warp; elsewhere it follows smoothly.
    linear : Registration
        Pre-alignment, fixed → moving.
    settings : SynSettings

    Returns
    -------
    Registration
        With the matrix of `linear` and the warp before it.
    """
    metric = _metric(settings)
    region = _region(fixed, moving, masks, linear.matrix)
    if region is not None:
        _restrict(metric, region)
    if settings.metric == "ssd":
        fixed, moving = _on_one_scale(fixed, moving, region, linear.matrix)
    levels = _levels_that_fit(fixed.data.shape, settings)
    step = settings.step * (SSD_STEP if settings.metric == "ssd" else 1.0)
    engine = SymmetricDiffeomorphicRegistration(
        metric, level_iters=list(levels), step_length=step,
        inv_iter=INVERSE_ITERATIONS, inv_tol=INVERSE_TOLERANCE,
    )  # fmt: skip
    engine.verbosity = 0
    history = _History()
    engine.callback = history.notice
    found = engine.optimize(
        np.asarray(fixed.data, np.float32), np.asarray(moving.data, np.float32),
        static_grid2world=fixed.affine, moving_grid2world=moving.affine, prealign=linear.matrix,
    )  # fmt: skip
    forward = np.asarray(found.get_forward_field(), np.float32)
    inverse = np.asarray(found.get_backward_field(), np.float32)
    if not (np.isfinite(forward).all() and np.isfinite(inverse).all()):
        raise EddymotionError(
            "registration: SyN ended with displacements that are not finite; try the metric cc, "
            "a smaller syn_step, or masks"
        )
    return _result(linear, Warp(forward, inverse, fixed.affine), history, levels)


def _result(
    linear: Registration, warp: Warp, history: _History, levels: tuple[int, ...]
) -> Registration:
    costs = tuple(history.costs)
    converged = len(costs) < levels[-1]
    largest = float(np.linalg.norm(warp.forward, axis=-1).max())
    message = (
        f"{ending(converged, history.n_iterations, costs, ' of SyN')}; displacements up to "
        f"{largest:.3g} mm; linear part: {linear.message}"
    )
    n_iterations = linear.n_iterations + history.n_iterations
    return Registration(linear.matrix, converged, message, costs, n_iterations, warp)


class _History:
    """The energy after each iteration of the finest level, and how many iterations there were."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.n_iterations = 0

    def notice(self, engine: Any, stage: int) -> None:
        """Take notice of a stage of the optimisation."""
        if stage == RegistrationStages.SCALE_END:  # type: ignore[attr-defined]
            self.costs = [float(energy) for energy in engine.energy_list]
            self.n_iterations += len(self.costs)


def _metric(settings: SynSettings) -> Any:
    if settings.metric == "cc":
        return CCMetric(3, radius=settings.radius)
    if settings.metric == "em":
        return EMMetric(3, smooth=SMOOTHNESS)
    return SSDMetric(3, smooth=SMOOTHNESS, step_type="gauss_newton")


def _levels_that_fit(shape: tuple[int, ...], settings: SynSettings) -> tuple[int, ...]:
    """Leave out coarse levels that have hardly more voxels than a neighbourhood."""
    least = max(MIN_SIZE, 2 * settings.radius + 2 if settings.metric == "cc" else 0)
    n_fitting = 1 + max(int(np.log2(max(min(shape) / least, 1))), 0)
    return settings.iterations[-n_fitting:]


def _on_one_scale(
    fixed: Image, moving: Image, region: Image | None, prealign: np.ndarray
) -> tuple[Image, Image]:
    """Fit the moving intensities to the fixed ones, and cut both off at the same values.

    SyN stretches each image to the range from 0 to 1; squared differences compare them only if
    both ranges mean the same.
    """
    shown = _on_grid_of(fixed, moving.data, moving.affine, prealign)
    where = fixed.data != 0 if region is None else region.data > 0.5
    values, targets = shown[where], fixed.data[where]
    gain, offset = np.polyfit(values, targets, 1) if np.ptp(values) > 0 else (1.0, 0.0)
    low, high = np.quantile(targets, TAILS)
    if gain <= 0 or low == high:
        raise EddymotionError(
            "registration: the images have opposite contrasts or none where they are compared, "
            "so squared differences cannot align them; use the metric cc or em"
        )
    fitted = np.clip(gain * np.asarray(moving.data, np.float32) + offset, low, high)
    return Image(np.clip(fixed.data, low, high), fixed.affine), Image(fitted, moving.affine)


def _on_grid_of(
    fixed: Image, data: np.ndarray, affine: np.ndarray, prealign: np.ndarray
) -> np.ndarray:
    """Show what a matrix aligns on the grid of the fixed image; linear, zero outside."""
    to_moving = np.linalg.inv(affine) @ prealign @ fixed.affine
    return read_linearly(np.asarray(data, np.float32), to_moving, fixed.data.shape)


def _region(
    fixed: Image,
    moving: Image,
    masks: tuple[np.ndarray | None, np.ndarray | None],
    prealign: np.ndarray,
) -> Image | None:
    """Where both masks are, on the fixed grid, with a soft edge; None without masks."""
    if all(mask is None for mask in masks):
        return None
    region = np.ones(fixed.data.shape, np.float32)
    if masks[0] is not None:
        region *= np.asarray(masks[0], bool)
    if masks[1] is not None:
        region *= _on_grid_of(fixed, masks[1], moving.affine, prealign)
    return Image(gaussian_filter(region, MASK_SIGMA), fixed.affine)


def _restrict(metric: Any, region: Image) -> None:
    """Let a metric drive the warp within a region only."""

    def within(compute: Any) -> Any:
        def restricted() -> np.ndarray:
            step = np.array(compute())
            to_region = np.linalg.inv(region.affine) @ metric.static_affine
            return step * read_linearly(region.data, to_region, step.shape[:3])[..., None]

        return restricted

    metric.compute_forward = within(metric.compute_forward)
    metric.compute_backward = within(metric.compute_backward)
