# SPDX-License-Identifier: Apache-2.0
"""A head fitted to a real series: a noise-free signal for any gradient."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from eddymotion.data.gradients import Gradients, dipy_table
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid
from eddymotion.io.series import mean_b0
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.resampling import resample
from eddymotion.resampling.reading import inside_image
from eddymotion.simulation.phantom import S0
from eddymotion.wording import short_repr

log = logging.getLogger(__name__)

TENSOR_MAX_BVAL = 1500.0
"""The tensor that gives the direction comes from volumes up to this b-value, where there are
enough: beyond it the decay is far from Gaussian."""

DIFFUSIVITIES = np.geomspace(0.05e-3, 3.5e-3, 24)
"""Diffusivities (mm²/s) that the fit tries first; then it looks closer around the best."""

CLOSER_LOOKS = 3

MARGIN_MM = 25.0
"""How far the head goes on beyond the field of view, so that motion uncovers no void."""

HEAD_FRACTION = 0.1
"""Voxels with more than this part of the brain's median b=0 signal belong to the head,"""

BACKGROUND_FACTOR = 1.5
"""if they exceed the median outside the brain by this factor."""

WHITE_STICK_FRACTION = 0.5
"""Brain voxels with a larger stick fraction count as white matter."""

VOXELS_AT_A_TIME = 4096


class SeriesHead:
    """A head fitted to a series, on a wider grid."""

    s0: np.ndarray
    field_of_view: Grid

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        x, y, z = self.s0.shape
        return x, y, z


@dataclass(frozen=True, eq=False)
class FittedHead(SeriesHead):
    """A ball and a stick in each voxel (Behrens et al. 2003).

    ``S(b, g) = S₀ [(1 − f) exp(−b d) + f exp(−b d (g·v)²)]``

    Why this model: it is positive, finite and falls with b for *any* gradient, also far beyond
    the b-values of the series, where a tensor decays too fast and a kurtosis fit rises again; it
    can be fitted to a single shell; and the plateau across the stick is what white matter shows at
    high b. What it lacks: crossing fibres, for which v is the main direction and f is smaller.

    Parameters
    ----------
    s0, fraction, diffusivity : (X, Y, Z) array
        S₀ (white matter about that of :data:`~eddymotion.simulation.phantom.S0`), f, d in mm²/s.
    direction : (X, Y, Z, 3) array
        Unit vectors v, RAS+.
    brain : (X, Y, Z) bool array
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    field_of_view : Grid
        The grid of the series. The maps reach :data:`MARGIN_MM` beyond it.
    """

    s0: np.ndarray
    fraction: np.ndarray
    diffusivity: np.ndarray
    direction: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    field_of_view: Grid

    __repr__ = short_repr

    @classmethod
    def from_series(
        cls, dwi: DWI, motion: Motion | None = None, *, n_threads: int = 1
    ) -> FittedHead:
        """Fit a series.

        Parameters
        ----------
        dwi : DWI
            Trace-weighted volumes take no part.
        motion : Motion, optional
            Of the series; the fit is to the aligned volumes. Volumes that are not aligned give a
            head whose contrasts lie next to each other.
        n_threads : int
            The result does not depend on it.

        Raises
        ------
        EddymotionError
            If the gradients do not determine a tensor.
        """
        motion = motion or Motion.identity(len(dwi))
        aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
        volumes = np.flatnonzero(~aligned.gradients.is_trace)
        gradients = aligned.gradients.select(volumes)
        for_tensor = tensor_volumes(gradients)
        head = head_region(mean_b0(aligned.signal, aligned.gradients), aligned.mask)
        voxels = aligned.signal[head][:, volumes]
        starts = range(0, len(voxels), VOXELS_AT_A_TIME)

        def fit(start: int) -> np.ndarray:
            some = np.maximum(voxels[start : start + VOXELS_AT_A_TIME], 0.0).astype(float)
            direction = principal_directions(some[:, for_tensor], gradients.select(for_tensor))
            return np.column_stack([*fit_ball_and_stick(some, gradients, direction), direction])

        log.info("fit: a ball and a stick in each of %d voxels", len(voxels))
        maps = np.zeros((*dwi.shape, 6), np.float32)
        maps[head] = np.concatenate(parallel_map(fit, starts, n_threads=n_threads))
        white = aligned.mask & (maps[..., 1] > WHITE_STICK_FRACTION)
        maps[..., 0] *= S0[0] / maps[white if white.any() else aligned.mask, 0].mean()
        wider, affine, around = with_margin(maps, aligned, common_field_of_view(dwi, motion))
        s0, fraction, diffusivity = (wider[..., k] for k in range(3))
        brain = np.pad(aligned.mask, around)
        grid = Grid(aligned.shape, aligned.affine)
        return cls(s0, fraction, diffusivity, wider[..., 3:], brain, affine, grid)

    @cached_property
    def white_signal(self) -> float:
        """Mean b=0 signal of the white matter, or of the brain if none is found."""
        white = self.brain & (self.fraction > WHITE_STICK_FRACTION)
        return self.s0[white if white.any() else self.brain].mean()

    @cached_property
    def _filled(self) -> np.ndarray:
        return self.s0 > 0

    def signal(self, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal; see :meth:`eddymotion.simulation.base.Head.signal`."""
        s0, f, d = (m[self._filled] for m in (self.s0, self.fraction, self.diffusivity))
        along = (self.direction[self._filled] @ np.asarray(bvec, np.float32)) ** 2
        decay = np.float32(bval) * d
        volume = np.zeros(self.shape, np.float32)
        volume[self._filled] = s0 * ((1 - f) * np.exp(-decay) + f * np.exp(-decay * along))
        return volume


def with_margin(
    maps: np.ndarray, dwi: DWI, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Let a head go on where some volumes end: like the nearest voxel that all have.

    Parameters
    ----------
    maps : (X, Y, Z, M) array
    dwi : DWI
    seen : (X, Y, Z) bool array
        See :func:`common_field_of_view`.

    Returns
    -------
    maps, affine
        Of the wider grid.
    around : list of three pairs
        Voxels that were added along each axis.
    """
    margin = np.ceil(MARGIN_MM / dwi.voxel_sizes).astype(int)
    around = [(n, n) for n in margin.tolist()]
    nearest = ndimage.distance_transform_edt(
        ~np.pad(seen, around), sampling=dwi.voxel_sizes, return_distances=False,
        return_indices=True,
    )  # fmt: skip
    inside = [index - n for index, n in zip(nearest, margin, strict=True)]
    affine = dwi.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ margin
    return maps[tuple(inside)], affine, around


def tensor_volumes(gradients: Gradients) -> np.ndarray:
    """Choose the volumes of the tensor fit: low b-values if they suffice, or else all.

    Raises
    ------
    EddymotionError
        If all together do not determine a tensor.
    """
    from dipy.reconst.dti import design_matrix

    low = np.flatnonzero(gradients.bvals <= TENSOR_MAX_BVAL)
    for volumes in (low, np.arange(len(gradients))):
        if len(volumes) >= 7:
            design = design_matrix(dipy_table(gradients.select(volumes)))
            if np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0)) == 7:
                return volumes
    raise EddymotionError(
        f"fit: {len(gradients.dwis)} diffusion-weighted and {len(gradients.b0s)} b=0 volumes do "
        "not determine a tensor; give a series with six directions or more and a b=0"
    )


def principal_directions(voxels: np.ndarray, gradients: Gradients) -> np.ndarray:
    """Fit tensors, weighted, with DIPY; return their first eigenvectors (V, 3), RAS+."""
    from dipy.reconst.dti import TensorModel

    model = TensorModel(dipy_table(gradients), fit_method="WLS", min_signal=1e-3)
    directions = np.nan_to_num(model.fit(voxels).evecs[..., 0])
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    fallback = np.broadcast_to([0.0, 0.0, 1.0], directions.shape)
    return np.where(norms > 0.5, directions / np.maximum(norms, 1e-6), fallback)


def fit_ball_and_stick(
    voxels: np.ndarray, gradients: Gradients, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares with known directions and non-negative amplitudes.

    For a diffusivity d the model is linear in two amplitudes; d itself is searched
    (:data:`DIFFUSIVITIES`): variable projection (Golub & Pereyra 1973).

    Parameters
    ----------
    voxels : (V, N) array
    gradients : Gradients
    direction : (V, 3) array
        Unit vectors, RAS+.

    Returns
    -------
    s0, fraction, diffusivity : (V,) arrays
    """
    bvals = np.where(gradients.is_b0, 0.0, gradients.bvals)
    along = bvals * (direction @ gradients.bvecs.T) ** 2
    best = np.full((4, len(voxels)), np.inf)  # misfit, ball, stick, diffusivity

    def attempt(d: np.ndarray) -> None:
        ball, stick, misfit = _two_amplitudes(
            np.exp(-bvals * d[:, None]), np.exp(-along * d[:, None]), voxels
        )
        better = misfit < best[0]
        best[:, better] = np.stack([misfit, ball, stick, d])[:, better]

    for d in DIFFUSIVITIES:
        attempt(np.full(len(voxels), d))
    step = np.sqrt(DIFFUSIVITIES[1] / DIFFUSIVITIES[0])
    for _ in range(CLOSER_LOOKS):
        around = best[3]
        for factor in (1 / step, step):
            attempt(np.clip(around * factor, DIFFUSIVITIES[0], DIFFUSIVITIES[-1]))
        step = np.sqrt(step)
    _, ball, stick, diffusivity = best
    s0 = ball + stick
    fraction = np.divide(stick, s0, out=np.zeros_like(s0), where=s0 > 0)
    return s0, fraction, diffusivity


def _two_amplitudes(
    a: np.ndarray, b: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-negative x₁, x₂ that minimise |a x₁ + b x₂ − y|² in each row, and that minimum."""
    aa, bb, ab = ((u * v).sum(axis=1) for u, v in ((a, a), (b, b), (a, b)))
    ya, yb, yy = ((u * y).sum(axis=1) for u in (a, b, y))
    determinant = aa * bb - ab**2
    safe = np.where(determinant > 1e-9 * aa * bb, determinant, np.inf)
    x1, x2 = (bb * ya - ab * yb) / safe, (aa * yb - ab * ya) / safe
    alone1, alone2 = np.maximum(ya, 0) / aa, np.maximum(yb, 0) / bb
    first_is_better = alone1 * ya >= alone2 * yb
    inside = np.isfinite(safe) & (x1 >= 0) & (x2 >= 0)
    x1 = np.where(inside, x1, np.where(first_is_better, alone1, 0.0))
    x2 = np.where(inside, x2, np.where(first_is_better, 0.0, alone2))
    return x1, x2, yy - x1 * ya - x2 * yb  # at the minimum over the free amplitudes


def head_region(b0: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Find the brain and what is connected to it above the background."""
    background = np.median(b0[~brain]) if not brain.all() else 0.0
    least = max(HEAD_FRACTION * np.median(b0[brain]), BACKGROUND_FACTOR * background)
    labels, _ = ndimage.label(brain | (b0 > least))
    counts = np.bincount(labels[brain])
    return ndimage.binary_fill_holes(labels == np.argmax(counts))


def common_field_of_view(dwi: DWI, motion: Motion) -> np.ndarray:
    """Find the voxels of the reference that lie in the field of view of all volumes."""
    seen = np.ones(dwi.shape, bool)
    for matrix in np.linalg.inv(dwi.affine) @ motion.matrices @ dwi.affine:
        seen &= inside_image(dwi.shape, matrix[:3], dwi.shape)
    return seen if seen.any() else np.ones(dwi.shape, bool)
