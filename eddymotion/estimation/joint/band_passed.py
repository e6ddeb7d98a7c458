# SPDX-License-Identifier: Apache-2.0
"""The volumes of a series, band-passed for a level, and the points at which they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.data.checks.fat import fat_over_brain
from eddymotion.data.series import DWI
from eddymotion.estimation.joint.levels import COARSE
from eddymotion.estimation.outliers import SliceOutliers, rescaled
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.compact import CompactSpline
from eddymotion.images.grid import transformed
from eddymotion.images.image import Continuous, Spline
from eddymotion.images.pyramid import (
    THICKNESS_POWER,
    Level,
    band_pass,
    crop,
    fine_widths,
    head_scale,
    jittered_points,
    steepest_points,
)
from eddymotion.machine.memory import give_back_memory
from eddymotion.machine.parallel import Compute, parallel_iterate, parallel_map

Band = tuple[float, float | None]
"""Widths of the filters of a level."""

MOST_CANDIDATES = 320_000
"""Of points, among which those of fine levels are chosen; one a voxel of the brain otherwise."""

CROP_MARGIN_FWHM, CROP_MARGIN_VOXELS = 2.0, 3
"""Margin around the brain of a volume that is kept from the second level on: it covers the reach
of the filter and the motion that remains."""


@dataclass(eq=False)
class BandPassedVolumes:
    """The volumes of a series, filtered, each kept at the level that it was last asked for.

    Parameters
    ----------
    dwi : DWI
    compute : Compute

    Attributes
    ----------
    outliers : SliceOutliers, optional
        Slices that lost signal: they are brightened before they are filtered.
    stale : index array
        Volumes to be filtered again when they are asked for next.
    """

    dwi: DWI
    compute: Compute
    outliers: SliceOutliers | None = field(default=None, init=False)
    stale: np.ndarray = field(default_factory=lambda: np.empty(0, int), init=False)
    _kept: dict[int, tuple[Band, Continuous]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        dwi = self.dwi
        self.mask = scipy.ndimage.binary_dilation(dwi.mask)  # the edge of the brain has contrast
        self.reliable = self.mask & ~fat_over_brain(dwi)
        surface = self.mask & ~scipy.ndimage.binary_erosion(self.mask)
        self.surface = apply_affine(dwi.affine, np.argwhere(surface))
        self.scale = head_scale(dwi.mask, dwi.voxel_sizes)
        self.voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))

    def leave_out(self, outliers: SliceOutliers, moved: np.ndarray) -> None:
        """Filter volumes with lost slices again, these brightened.

        Volumes that have `moved` far are filtered again as well, since they are cropped to where
        the brain was.
        """
        self.outliers = outliers
        self.stale = np.union1d(np.flatnonzero(outliers.flagged.any(axis=1)), moved)

    def release(self) -> None:
        """Release the volumes; they are filtered again when they are asked for."""
        self._kept.clear()
        give_back_memory()

    def width(self, level: Level) -> float:
        """Return the width of the filter of a level, mm."""
        return level.fwhm * (self.scale if level.highpass is None else self.voxel)

    def of_group(
        self,
        group: VolumeGroup,
        level: Level,
        matrices: np.ndarray,
        thickness_power: float = THICKNESS_POWER,
    ) -> list[Continuous]:
        """Return the volumes of a group at a level, with the filters that serve it."""
        own = group.at(level)
        if thickness_power != THICKNESS_POWER:
            return self.filtered(own, group.volumes, matrices, thickness_power=thickness_power)
        self._ask_for(own, group.volumes, matrices)
        return [self._kept[volume][1] for volume in group.volumes]

    def _ask_for(self, level: Level, volumes: np.ndarray, matrices: np.ndarray) -> None:
        """Filter some volumes, except those that are kept with the same filter."""
        band = level.fwhm, level.highpass
        kept = [v for v, (width, _) in self._kept.items() if width == band]
        missing = np.setdiff1d(volumes, np.setdiff1d(kept, self.stale)).tolist()
        if not missing:
            return
        for volume in missing:
            self._kept.pop(volume, None)  # one band at a time: memory
        give_back_memory()
        found = self.filtered(level, missing, matrices)
        self._kept |= {v: (band, spline) for v, spline in zip(missing, found, strict=True)}
        self.stale = np.setdiff1d(self.stale, missing)
        give_back_memory()  # of filtering

    def filtered(
        self,
        level: Level,
        volumes: Iterable[int],
        matrices: np.ndarray,
        *,
        thickness_power: float = THICKNESS_POWER,
        cut: bool = True,
    ) -> list[Continuous]:
        """Filter some volumes, cropped to the brain and the reach of the filter.

        At fine levels only the brain is kept, with a margin for a little more motion.
        """
        unit = fine_widths(self.dwi.voxel_sizes)
        width = unit if level.highpass is not None else self.scale
        margin = CROP_MARGIN_FWHM * level.fwhm * width + CROP_MARGIN_VOXELS * self.voxel

        def one(volume: int) -> Continuous:
            image = self.dwi.volume_with_missing(volume)
            if self.outliers is not None:
                image = rescaled(image, self.outliers, volume)
            brain = transformed(matrices[volume], self.surface)
            if cut and level is not COARSE[0]:
                image = crop(image, brain, margin)
            shown = band_pass(image, level, self.scale, thickness_power)
            if level.highpass is None:
                return Spline.of(shown)
            spline = Spline.of_filtered(shown)
            return CompactSpline.around(brain, spline, CROP_MARGIN_VOXELS) if cut else spline

        return parallel_map(
            one, volumes, n_threads=self.compute.n_threads, progress=self.compute.progress,
            description=f"filtering for {level}",
        )  # fmt: skip

    def points(
        self,
        level: Level,
        splines: Sequence[Continuous],
        matrices: np.ndarray,
        random: np.random.Generator,
    ) -> np.ndarray:
        """Draw random points of the brain; at fine levels more where the images have edges.

        Each level draws its own: with the same points at both fine levels real series were a sixth
        worse (docs/decisions/0028).
        """
        if level.highpass is None:
            return jittered_points(self.mask, self.dwi.affine, level.n_points, random)
        n_points = min(int(self.reliable.sum()), MOST_CANDIDATES)
        candidates = jittered_points(self.reliable, self.dwi.affine, n_points, random)

        def slopes(volume: int) -> np.ndarray:
            return splines[volume].sample_with_gradient(candidates, matrices[volume])[1]

        some = range(0, len(splines), max(1, len(splines) // 8))
        seen = parallel_iterate(slopes, some, n_threads=self.compute.n_threads)
        return steepest_points(candidates, seen, level.n_points, random)
