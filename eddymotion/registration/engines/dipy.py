# SPDX-License-Identifier: Apache-2.0
"""DIPY as an engine: affine registration by mutual information, SyN for the rest.

DIPY's optimiser (L-BFGS) knows nothing of units: a radian and a millimetre weigh alike, and
rotations turn about the origin of the world, wherever that is. Both images are therefore given in
coordinates whose origin lies in the middle of the fixed mask (in the moving image: where the start
puts that point) and whose unit is the mask's radius: the six parameters then decouple and move
points about equally far. The histogram is sampled at random points of the mask, off the grid, as
in :mod:`eddymotion.registration.gauss_newton`; DIPY alone samples sparsely or within a mask, not
both.

References
----------
Garyfallidis et al. (2014), Frontiers in Neuroinformatics 8:8; Mattes et al. (2003), IEEE TMI
22:120.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dipy.align.imaffine import AffineRegistration, MutualInformationMetric
from dipy.align.transforms import regtransforms
from nibabel.affines import apply_affine, from_matvec

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.images.pyramid import MIN_POINTS, jittered_points
from eddymotion.mapping.registration import Registration
from eddymotion.registration.checks import inside_grid
from eddymotion.registration.engines.syn import SYN_METRICS, SynSettings, run_syn
from eddymotion.registration.request import Engine, Request, ending
from eddymotion.registration.settings import (
    check_number,
    check_numbers,
    check_one_of,
    engine_from,
)
from eddymotion.wording import shown

STAGES = {
    "rigid": ("RIGID",),
    "similarity": ("RIGID", "RIGIDISOSCALING"),
    "affine": ("RIGID", "AFFINE"),
    "syn": ("RIGID", "AFFINE"),
}
"""The linear stages of each transform, in DIPY's names."""

METRICS: tuple[str, ...] = ("mi", *SYN_METRICS)

TAILS = (0.001, 0.999)
"""Quantiles at which intensities are cut off: DIPY spaces its histogram from the darkest voxel to
the brightest."""


@dataclass(frozen=True)
class DipyRegistrar(Engine):
    """Registration with DIPY.

    Parameters
    ----------
    iterations : sequence of int
        Evaluations of the mutual information at most, at each level of the pyramid, coarse to
        fine.
    sigmas : sequence of float
        Of the smoothing Gaussian at each level, in voxels.
    n_bins : int
        Of the histogram, along each side.
    n_points : int
        Random points of the fixed mask at which the images are compared.
    prealignment : {"affine", "init"}
        What SyN starts from: an affine registration, or the given start, unchanged.
    syn_iterations : sequence of int
        At each level of SyN's pyramid, coarse to fine.
    syn_step : float
        Largest displacement of an iteration, in voxels of the level.
    syn_radius : int
        Of the neighbourhood of the cross-correlation, in voxels.
    """

    iterations: tuple[int, ...] = (100, 100, 50)
    sigmas: tuple[float, ...] = (3.0, 1.0, 0.0)
    n_bins: int = 32
    n_points: int = 10_000
    prealignment: str = "affine"
    syn_iterations: tuple[int, ...] = (100, 50, 25)
    syn_step: float = 0.25
    syn_radius: int = 3

    transforms = tuple(STAGES)
    metrics = METRICS

    def __post_init__(self) -> None:
        check_numbers("iterations", self.iterations, least=1, whole=True)
        check_numbers("sigmas", self.sigmas, least=0)
        if len(self.iterations) != len(self.sigmas):
            raise EddymotionError(
                f"iterations and sigmas are {len(self.iterations)} and {len(self.sigmas)} "
                "numbers; give one each for every level"
            )
        check_number("n_bins", self.n_bins, least=4, whole=True)
        check_number("n_points", self.n_points, least=MIN_POINTS, whole=True)
        check_one_of("prealignment", self.prealignment, ("affine", "init"))
        check_numbers("syn_iterations", self.syn_iterations, least=1, whole=True)
        check_number("syn_step", self.syn_step, least=1e-3)
        check_number("syn_radius", self.syn_radius, least=1, whole=True)

    @classmethod
    def from_settings(cls, path: Path | None) -> DipyRegistrar:
        """Read the parameters from a JSON file; the defaults without one."""
        return engine_from(cls, path)

    def _register(self, request: Request) -> Registration:
        """Register; see :meth:`~eddymotion.registration.request.Engine.register`.

        The linear stages maximise the mutual information (``mi``); the other metrics are those of
        SyN, which takes ``cc`` when none is given.
        """
        transform, start = request.transform, request.start
        chosen = _metric_for(transform, request.metric)
        pair = _Clipped.of(request)
        if transform == "syn" and self.prealignment == "init":
            linear = Registration(start, True, "pre-aligned by the start")
        else:
            linear = self._register_linearly(pair, STAGES[transform], start, request.seed)
        if transform != "syn":
            return linear
        settings = SynSettings(chosen, self.syn_iterations, self.syn_step, self.syn_radius)
        masks = (request.fixed_mask, request.moving_mask)
        return run_syn(pair.fixed, pair.moving, masks, linear, settings)

    def _register_linearly(
        self, pair: _Clipped, stages: tuple[str, ...], start: np.ndarray, seed: int
    ) -> Registration:
        here, there = pair.coordinates(start)
        matrix = there @ start @ np.linalg.inv(here)
        random = np.random.default_rng(seed)
        points = jittered_points(pair.mask, here @ pair.fixed.affine, self.n_points, random)
        n_iterations = 0
        for number, stage in enumerate(stages):
            metric = _MutualInformation(self.n_bins, points, pair.moving_mask)
            levels = slice(min(number, len(self.iterations) - 1), None)  # what was found, stays
            engine = AffineRegistration(
                metric=metric, level_iters=list(self.iterations[levels]),
                sigmas=list(self.sigmas[levels]), factors=[1] * len(self.sigmas[levels]),
                verbosity=0,
            )  # fmt: skip
            found = engine.optimize(
                pair.fixed.data, pair.moving.data, regtransforms[stage, 3], None,
                static_grid2world=here @ pair.fixed.affine,
                moving_grid2world=there @ pair.moving.affine,
                starting_affine=matrix,
                static_mask=pair.mask.astype(np.int32),
            )  # fmt: skip
            matrix = found.affine
            n_iterations += metric.n_evaluations
        costs = metric.accepted_costs
        converged = len(metric.costs) < self.iterations[-1]
        message = ending(converged, n_iterations, costs, form=".4f")
        matrix = np.linalg.inv(there) @ matrix @ here
        return Registration(matrix, converged, message, costs, n_iterations)


def _metric_for(transform: str, metric: str | None) -> str:
    """Return the metric of the last stage."""
    if metric is None:
        return SYN_METRICS[0] if transform == "syn" else "mi"
    known = SYN_METRICS if transform == "syn" else ("mi",)
    if metric not in known:
        raise EddymotionError(
            f"registration: DIPY has no metric {shown(metric)} for {shown(transform)}; "
            f"use one of {', '.join(known)}"
        )
    return metric


@dataclass(frozen=True, eq=False)
class _Clipped:
    """What is compared: images without outlying intensities, and where."""

    fixed: Image
    moving: Image
    mask: np.ndarray
    moving_mask: np.ndarray | None

    @classmethod
    def of(cls, request: Request) -> _Clipped:
        fixed = clipped(request.fixed, request.head)
        moving = clipped(request.moving, request.moving_mask)
        return cls(fixed, moving, request.head, request.moving_mask)

    def coordinates(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World mm → coordinates for the optimiser, of the fixed and of the moving image."""
        points = apply_affine(self.fixed.affine, np.argwhere(self.mask))
        middle = points.mean(axis=0)
        radius = np.sqrt(((points - middle) ** 2).sum(axis=1).mean())
        return _scaled_about(middle, radius), _scaled_about(apply_affine(start, middle), radius)


def clipped(image: Image, mask: np.ndarray | None) -> Image:
    """Cut an image's intensities off at its outermost quantiles.

    The upper one within the mask: bright things elsewhere do not count. The lower one with the
    background: cut off within the mask, it would be as bright as the darkest tissue, and smoothing
    would move the head's outline.
    """
    data = np.asarray(image.data, dtype=np.float32)
    low = np.quantile(data, TAILS[0])
    high = np.quantile(data if mask is None else data[mask], TAILS[1])
    return Image(np.clip(data, low, high) if low < high else data, image.affine)


def _scaled_about(middle: np.ndarray, unit: float) -> np.ndarray:
    return from_matvec(np.eye(3) / unit, -middle / unit)


class _MutualInformation(MutualInformationMetric):
    """DIPY's mutual information at given points of the fixed image, the same at all levels.

    Parameters
    ----------
    n_bins : int
    points : (P, 3) array
        In the optimiser's coordinates.
    moving_mask : (X, Y, Z) bool array or None
    """

    def __init__(self, n_bins: int, points: np.ndarray, moving_mask: np.ndarray | None) -> None:
        super().__init__(nbins=n_bins, sampling_proportion=0.01)
        self.points, self.moving_mask = points, moving_mask
        self.n_evaluations = 0
        self.costs: list[float] = []

    def setup(
        self,
        transform: Any,
        static: np.ndarray,
        moving: np.ndarray,
        *,
        static_grid2world: np.ndarray,
        moving_grid2world: np.ndarray,
        starting_affine: np.ndarray,
        static_mask: np.ndarray,
        moving_mask: np.ndarray | None = None,
    ) -> None:
        """Prepare a level, with the points that the moving image shows."""
        super().setup(
            transform, static, moving, static_grid2world=static_grid2world,
            moving_grid2world=moving_grid2world, starting_affine=starting_affine,
        )  # fmt: skip
        shown = Image(np.asarray(moving), moving_grid2world)
        moved = apply_affine(starting_affine, self.points)
        visible = inside_grid(moved, shown, self.moving_mask)
        if visible.sum() < MIN_POINTS:
            raise EddymotionError(
                f"registration: the images moved apart during registration ({visible.sum()} "
                f"points in common, expected at least {MIN_POINTS}); give a better init, or "
                "larger masks"
            )
        points = self.points[visible]
        self.samples = np.column_stack([points, np.ones(len(points))])
        self.ns = len(points)
        self.samples_prealigned = self.samples @ starting_affine.T
        voxels = apply_affine(self.static_world2grid, points)
        values, _ = self.interp_method(static, voxels)
        self.static_vals = np.array(values, dtype=np.float64)
        self.costs = []

    def distance_and_gradient(self, params: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the mutual information and its gradient."""
        cost, gradient = super().distance_and_gradient(params)
        self.costs.append(float(cost))
        self.n_evaluations += 1
        return cost, gradient

    @property
    def accepted_costs(self) -> tuple[float, ...]:
        """The costs at the finest level that were lower than all before."""
        lowest = np.minimum.accumulate(self.costs)
        return tuple(float(cost) for cost in np.unique(lowest)[::-1])
