# SPDX-License-Identifier: Apache-2.0
"""Volumes that are solved together, and what predicts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.estimation.frames.ties import ENOUGH_DIRECTIONS
from eddymotion.images.pyramid import Level
from eddymotion.models import AverageModel, GaussianProcessModel, LinearModel, SphericalCovariance

WIDENING_OF_B0 = 2.0
"""What is finer than a voxel is not lost but shows as a pattern that stays with the grid while the
head moves, and pulls the poses towards rest. Of two b=0 volumes 5 to 25 % of the way between them
were missing, with filters of one voxel, 1 % with two. Diffusion-weighted volumes have too much
noise for that: see :mod:`eddymotion.estimation.joint.missing_motion`."""

COARSE_MODEL = GaussianProcessModel(SphericalCovariance(signal=20.0, angle=1.2), fitted=True)


@dataclass(frozen=True, eq=False)
class VolumeGroup:
    """Volumes that are solved together.

    Parameters
    ----------
    name : str
    volumes : (N,) index array
    coarse, fine : LinearModel
        What predicts them at the coarse and at the fine levels.
    leave_one_out : bool
        See :class:`~eddymotion.estimation.equations.coupled.CoupledProblem`.
    has_fields : bool
        Whether eddy-current fields are estimated.
    widening : float
        Of the filters of fine levels.
    """

    name: str
    volumes: np.ndarray
    coarse: LinearModel
    fine: LinearModel
    leave_one_out: bool
    has_fields: bool = False
    widening: float = 1.0

    @classmethod
    def all_of(
        cls, dwi: DWI, model: LinearModel, frames: Sequence[np.ndarray]
    ) -> list[VolumeGroup]:
        """Group the volumes of a series, the largest diffusion-weighted group last.

        A few volumes cannot teach a covariance: theirs is the fixed one at all levels.
        """
        mean = AverageModel()
        b0s = cls("b=0", dwi.gradients.b0s, mean, mean, leave_one_out=True)
        groups = [replace(b0s, widening=WIDENING_OF_B0)]
        for volumes in frames:
            few = len(frames) > 1 and len(volumes) < ENOUGH_DIRECTIONS
            name = f"b={dwi.gradients.bvals[volumes].mean():.0f}"
            groups.append(cls(name, volumes, COARSE_MODEL, COARSE_MODEL if few else model, False))
        has_fields = len(frames) == 1 or len(frames[-1]) >= ENOUGH_DIRECTIONS
        groups[-1] = replace(groups[-1], name="b>0", has_fields=has_fields)
        return [group for group in groups if len(group.volumes) > 1]

    def at(self, level: Level) -> Level:
        """Return a level with the filters that serve these volumes."""
        if level.highpass is None:
            return level
        widths = self.widening * np.array([level.fwhm, level.highpass])
        return replace(level, fwhm=float(widths[0]), highpass=float(widths[1]))

    def can_recover(self, volumes: np.ndarray) -> bool:
        """Whether some of the volumes are here, and coarse levels know better where they belong.

        They do not know of a few directions.
        """
        enough = self.leave_one_out or len(self.volumes) >= ENOUGH_DIRECTIONS
        return enough and bool(np.isin(volumes, self.volumes).any())

    @property
    def can_be_sought(self) -> bool:
        """Whether its volumes can be tried elsewhere (`equations.search`)."""
        is_process = isinstance(self.fine, GaussianProcessModel)
        return is_process and len(self.volumes) >= ENOUGH_DIRECTIONS

    def without(self, volumes: np.ndarray) -> VolumeGroup:
        """Leave some of the volumes out."""
        return replace(self, volumes=np.setdiff1d(self.volumes, volumes))


def groups_without(groups: Iterable[VolumeGroup], volumes: np.ndarray) -> list[VolumeGroup]:
    """Leave some of the volumes out, and groups of which no two are left."""
    left = [group.without(volumes) for group in groups]
    return [group for group in left if len(group.volumes) > 1]
