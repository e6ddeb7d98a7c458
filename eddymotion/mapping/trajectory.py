# SPDX-License-Identifier: Apache-2.0
"""Where the head was while each slice of a volume was recorded.

A slice ``k`` of volume ``i`` was recorded at the pose ``W_ik T_i``: ``T_i`` is the pose of the
volume, the mean over its excitations, and ``W_ik`` how far the head was from there, in the frame
of the scanner. A change of the reference, ``T_i → T_i M``, leaves ``W`` as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.images.stack import Kriging, SliceStack, recording_slices
from eddymotion.machine.frozen import freeze, selected
from eddymotion.mapping.rigid import mean_pose
from eddymotion.wording import short_repr


@dataclass(frozen=True, eq=False)
class SlicesOfVolume:
    """Where the head was while each slice of one volume was recorded.

    Parameters
    ----------
    poses : (Z, 4, 4) array
        Reference → scanner, RAS+ mm.
    affine : (4, 4) array
        Of the image: voxel indices → RAS+ mm of the scanner.
    axis : int
        The image axis that counts the slices.
    """

    poses: np.ndarray
    affine: np.ndarray
    axis: int

    def scanned(self, points: np.ndarray) -> np.ndarray:
        """Where points (P, 3) were in the scanner when their slice was recorded: (P, 3), mm."""
        slices, _ = recording_slices(points, self.poses, self.affine, self.axis)
        own = self.poses[slices]
        return np.einsum("pij,pj->pi", own[:, :3, :3], points) + own[:, :3, 3]

    def read(
        self, image: Image, points: np.ndarray, moved: np.ndarray | None, kriging: Kriging
    ) -> np.ndarray:
        """Read an image at points (P, 3) of the head; see :mod:`eddymotion.images.stack`: (P,)."""
        return SliceStack.of(image, self.axis).values(points, self.poses, moved, kriging)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Motion within the volumes of a series.

    Parameters
    ----------
    within : (N, Z, 4, 4) array
        ``W``: rigid matrices, RAS+ mm in the scanner; all of them the identity in a volume in
        which the head was at rest.
    affine : (4, 4) array
        Of the images: voxel indices → RAS+ mm of the scanner.
    axis : int
        The image axis that counts the slices.
    standard_errors : (N, Z, 6) array, optional
        Of the translations (mm) and rotations (rad) of the pose of each slice, as in
        :class:`~eddymotion.mapping.motion.Motion`.
    """

    within: np.ndarray
    affine: np.ndarray
    axis: int = 2
    standard_errors: np.ndarray | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        freeze(self, "trajectory", within="N Z 4 4", affine="4 4", standard_errors="N Z 6")
        if not np.isfinite(self.within).all():
            raise EddymotionError("trajectory: the matrices hold NaN or Inf")

    @classmethod
    def of_poses(
        cls,
        poses: np.ndarray,
        center: np.ndarray,
        affine: np.ndarray,
        axis: int = 2,
        *,
        once: np.ndarray | slice = slice(None),
    ) -> tuple[np.ndarray, Trajectory]:
        """Split the poses of slices (N, Z, 4, 4) into those of volumes and the remainder.

        Parameters
        ----------
        poses : (N, Z, 4, 4) array
            Reference → scanner, RAS+ mm.
        center : (3,) array
            About which means are taken, RAS+ mm.
        affine, axis
            As of the class.
        once : (G,) index array
            One slice of each excitation: what means are taken over. All slices when not given.

        Returns
        -------
        matrices : (N, 4, 4) array
            The mean over the excitations.
        trajectory : Trajectory
        """
        mean = mean_pose(poses[:, once], center)
        within = poses @ np.linalg.inv(mean)[:, None]
        at_rest = (poses == poses[:, :1]).all(axis=(1, 2, 3))
        mean[at_rest], within[at_rest] = poses[at_rest, 0], np.eye(4)
        return mean, cls(within, affine, axis)

    def __len__(self) -> int:
        return len(self.within)

    @property
    def n_slices(self) -> int:
        """Slices of a volume."""
        return self.within.shape[1]

    @cached_property
    def moving(self) -> np.ndarray:
        """Volumes within which the head moved, (N,) bool."""
        return (self.within != np.eye(4)).any(axis=(1, 2, 3))

    def poses(self, matrices: np.ndarray) -> np.ndarray:
        """Poses of all slices, (N, Z, 4, 4), from those of the volumes (N, 4, 4)."""
        return self.within @ matrices[:, None]

    def select(self, volumes: np.ndarray | slice) -> Trajectory:
        """Keep some of the volumes."""
        return selected(self, volumes, "within", "standard_errors")

    def of_volume(self, volume: int, pose: np.ndarray) -> SlicesOfVolume | None:
        """Poses of the slices of a volume at `pose` (4, 4); None where the head was at rest."""
        if not self.moving[volume]:
            return None
        return SlicesOfVolume(self.within[volume] @ pose, self.affine, self.axis)

    def excursions(self, matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Root-mean-square way over points from the pose of a volume to that of a slice, (N, Z).

        Parameters
        ----------
        matrices : (N, 4, 4) array
            Poses of the volumes.
        points : (P, 3) array
            Of the head, RAS+ mm.
        """
        mean = points.mean(axis=0)
        scatter = np.cov(points.T, bias=True)
        change = (self.within - np.eye(4)) @ matrices[:, None]
        linear = change[..., :3, :3]
        shift = linear @ mean + change[..., :3, 3]
        spread = np.einsum("...ij,jk,...ik->...", linear, scatter, linear)
        return np.sqrt(np.maximum(spread + (shift**2).sum(axis=-1), 0.0))
