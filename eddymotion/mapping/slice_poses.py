# SPDX-License-Identifier: Apache-2.0
"""Motion within volumes: where the head was whenever slices were excited.

The slices of a volume are excited one after the other, or a few at a time. Between two of these
excitations the head may move, so each has a matrix of its own: reference → scanner, RAS+ mm, as
that of a volume in :mod:`eddymotion.mapping.motion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.machine.frozen import freeze
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import mean_pose
from eddymotion.wording import short_repr


@dataclass(frozen=True, eq=False)
class SlicePoses:
    """The pose of the head at each excitation of each volume.

    Parameters
    ----------
    matrices : (N, G, 4, 4) array
        Rigid matrices, reference → scanner, RAS+ mm, in the order of the excitations.
    groups : tuple of G index arrays
        Slices of each excitation, 0-based along the slice axis; every slice is in one of them.
    times : (N, G) array
        Of the excitations, seconds from the start of the run; NaN where they are not known.
    standard_errors : (N, G, 6) array, optional
        Of the three translations (mm) and angles (rad) of
        :func:`~eddymotion.mapping.rigid.rigid_parameters`.

    Raises
    ------
    EddymotionError
        If the shapes do not fit, or a slice is missing or there twice.
    """

    matrices: np.ndarray
    groups: tuple[np.ndarray, ...]
    times: np.ndarray
    standard_errors: np.ndarray | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        groups = tuple(np.array(group, int) for group in self.groups)
        slices = np.concatenate(groups) if groups else np.zeros(0, int)
        if not np.array_equal(np.sort(slices), np.arange(len(slices))):
            raise EddymotionError(
                f"slice poses: the groups hold slices {sorted(slices.tolist())}, expected each "
                "from 0 upwards once"
            )
        object.__setattr__(self, "groups", groups)
        one_each = f"N {len(groups)}"  # excitation of a volume
        freeze(self, "slice poses", matrices=f"{one_each} 4 4", times=one_each,
               standard_errors=f"{one_each} 6")  # fmt: skip
        if not np.isfinite(self.matrices).all():
            raise EddymotionError("slice poses: the matrices hold NaN or Inf")

    @classmethod
    def of_volumes(
        cls, motion: Motion, groups: Sequence[np.ndarray], times: np.ndarray
    ) -> SlicePoses:
        """Give all slices of a volume its pose.

        Parameters
        ----------
        motion : Motion
        groups : sequence of G index arrays
        times : (N, G) array
            See :class:`SlicePoses`.
        """
        n_groups = len(groups)
        errors = motion.standard_errors
        return cls(
            np.repeat(motion.matrices[:, None], n_groups, axis=1),
            tuple(groups),
            times,
            None if errors is None else np.repeat(errors[:, None], n_groups, axis=1),
        )

    @classmethod
    def of_course(
        cls, motion: Motion, groups: Sequence[np.ndarray], times: np.ndarray
    ) -> SlicePoses:
        """Give each excitation the pose that a motion with a trajectory has there.

        Parameters as of :meth:`of_volumes`.
        """
        course = motion.trajectory
        if course is None:
            raise EddymotionError("slice poses: this motion has no course within volumes")
        first, errors = np.array([group[0] for group in groups]), course.standard_errors
        return cls(
            course.poses(motion.matrices)[:, first],
            tuple(groups),
            times,
            None if errors is None else errors[:, first],
        )

    def __len__(self) -> int:
        return len(self.matrices)

    @property
    def n_slices(self) -> int:
        """Slices of a volume."""
        return sum(map(len, self.groups))

    @property
    def group_of_slice(self) -> np.ndarray:
        """The excitation that each slice belongs to, (Z,)."""
        found = np.empty(self.n_slices, int)
        for number, group in enumerate(self.groups):
            found[group] = number
        return found

    @property
    def poses(self) -> np.ndarray:
        """The pose for each slice of each volume, (N, Z, 4, 4)."""
        return self.matrices[:, self.group_of_slice]

    def mean(self, center: np.ndarray) -> Motion:
        """Return the mean pose of each volume over its excitations.

        Parameters
        ----------
        center : (3,) array
            Point whose displacement is averaged together with the rotation, RAS+ mm.
        """
        return Motion(mean_pose(self.matrices, center))

    def relative_to(self, pose: np.ndarray) -> SlicePoses:
        """Express the poses in another reference, of which `pose` maps points to this one's.

        Standard errors relative to it are not known.
        """
        return SlicePoses(self.matrices @ pose, self.groups, self.times)
