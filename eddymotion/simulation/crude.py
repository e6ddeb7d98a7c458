# SPDX-License-Identifier: Apache-2.0
"""A crude alignment of a real series, to fit a head to: nothing of the package's estimators.

Volumes of one b-value are matched, smoothed, to the mean of the others, in which those with like
directions weigh more; a head that is fitted to them is as blurred as that is wrong, but what is
simulated with it is known exactly. How volumes of different
b-values lie to each other is taken from time alone: the head is said to rest between neighbours
in the series.
"""

from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from eddymotion.data.series import DWI
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid

FULL_WIDTHS_MM = (9.0, 6.0, 4.0, 4.0)
"""Smoothing of the volumes, round by round."""

SPACING_MM = 4.0
"""Between the points of the brain that are compared."""

STEPS = 4

LEAST_WEIGHT = 0.05
"""Of a volume in the mean for another; the same direction has one more."""


def align_crudely(dwi: DWI) -> Motion:
    """Align a series; the first volume is the reference.

    Parameters
    ----------
    dwi : DWI
        With the mask of the brain.

    Returns
    -------
    Motion
        Reference → volume.
    """
    groups = [group for group in (dwi.gradients.b0s, *dwi.gradients.shells) if len(group)]
    poses = np.tile(np.eye(4), (len(dwi), 1, 1))
    for group in groups:
        poses[group] = _within_group(dwi, group)
    groups.sort(key=min)
    joined = list(groups[0])
    for group in groups[1:]:
        poses[group] = poses[group] @ _offset(poses, joined, group, dwi.center)
        joined += list(group)
    poses = poses @ np.linalg.inv(poses[0])
    poses[0] = np.eye(4)
    return Motion(poses)


def _within_group(dwi: DWI, group: np.ndarray) -> np.ndarray:
    """Align volumes of one b-value to each other: (G, 4, 4), their frame → volume."""
    poses = np.tile(np.eye(4), (len(group), 1, 1))
    if len(group) == 1:
        return poses
    points = _brain_points(dwi)
    alike = dwi.gradients.bvecs[group] @ dwi.gradients.bvecs[group].T
    weights = LEAST_WEIGHT + alike**4
    np.fill_diagonal(weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    for width in FULL_WIDTHS_MM:
        sigma = width / 2.355 / dwi.voxel_sizes
        smooth = [
            ndimage.gaussian_filter(np.asarray(dwi.signal[..., v], np.float32), sigma)
            for v in group
        ]
        moved = np.stack([_moved(s, p, dwi.affine) for s, p in zip(smooth, poses, strict=True)])
        for k, weight in enumerate(weights.astype(np.float32)):
            template = _Template(np.tensordot(weight, moved, 1), dwi.affine, points, dwi.center)
            poses[k] = template.match(smooth[k], poses[k])
    return poses


class _Template:
    """A mean volume, at points of the brain, with its slopes with respect to a rigid motion."""

    def __init__(
        self, mean: np.ndarray, affine: np.ndarray, points: np.ndarray, center: np.ndarray
    ) -> None:
        self.points, self.center = points, center
        self._to_voxels = np.linalg.inv(affine)
        self.values = self._at(mean, np.eye(4))
        slopes = np.stack([self._at(part, np.eye(4)) for part in np.gradient(mean)], axis=1)
        slopes = slopes @ self._to_voxels[:3, :3]
        design = np.column_stack(
            [slopes, np.cross(points - center, slopes), self.values, np.ones(len(points))]
        )
        self._solve = np.linalg.solve(design.T @ design, design.T)

    def match(self, volume: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Return the pose (template → volume) for which a volume looks like the template."""
        for _ in range(STEPS):
            difference = self._at(volume, pose) - self.values
            twist = (self._solve @ difference)[:6]
            pose = pose @ exp_rigid(-twist, self.center)
        return pose

    def _at(self, volume: np.ndarray, pose: np.ndarray) -> np.ndarray:
        voxels = apply_affine(self._to_voxels @ pose, self.points)
        return ndimage.map_coordinates(volume, voxels.T, order=1, mode="nearest").astype(float)


def _brain_points(dwi: DWI) -> np.ndarray:
    """Points of the brain, about :data:`SPACING_MM` apart: (P, 3) mm."""
    steps = np.maximum(np.round(SPACING_MM / dwi.voxel_sizes).astype(int), 1)
    regular = np.zeros(dwi.shape, bool)
    regular[tuple(slice(None, None, step) for step in steps)] = True
    return apply_affine(dwi.affine, np.argwhere(regular & dwi.mask))


def _moved(volume: np.ndarray, pose: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Volume as it looks in the frame of the mean."""
    to_voxels = np.linalg.inv(affine) @ pose @ affine
    return ndimage.affine_transform(volume, to_voxels, order=1, mode="nearest")


def _offset(
    poses: np.ndarray, joined: list[int], group: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Frame of the joined volumes → frame of a group: mean over the nearest pairs in time."""
    gaps = np.abs(np.subtract.outer(np.array(joined), group))
    pairs = np.argwhere(gaps == gaps.min())
    between = [np.linalg.inv(poses[group[j]]) @ poses[joined[i]] for i, j in pairs]
    return exp_rigid(log_rigid(np.array(between), center).mean(axis=0), center)
