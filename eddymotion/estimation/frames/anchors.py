# SPDX-License-Identifier: Apache-2.0
"""Volumes that disagree with the others as a whole, held against the b=0 volume.

Where the head is elsewhere in each volume, diffusion-weighted volumes may end as two or more
clusters: each predicts its own volumes, and no single volume is better off elsewhere. The b=0
volume belongs to none of them. Mutual information registers it to each volume alone, within some
millimetres where the identity is close enough as a start; other registrations fail.

With ``A_i`` from this registration and ``T_i`` the pose within the group, ``D_i = T_i⁻¹ A_i`` is
the offset between both frames, the same for all volumes that are placed correctly. The largest set
that agrees is taken to be right: the core. The others are tried again, predicted by the core
alone, at ``A_i D⁻¹`` among many poses (:mod:`eddymotion.estimation.equations.search`). Volumes
that still agree among themselves on another ``D``, but not with what the core predicts, disagree
with the core.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.checks.b0_volumes import empty_b0s
from eddymotion.data.series import DWI
from eddymotion.images.pyramid import Level, head_scale
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid, rms_displacement
from eddymotion.registration import GaussNewton
from eddymotion.registration.gauss_newton import COARSE_TO_FINE
from eddymotion.robust import Z_95
from eddymotion.wording import named_volumes

log = logging.getLogger(__name__)

TOGETHER_MM = 8.0
"""Root-mean-square distance, in a human head, within which two volumes agree. Of 48 volumes at
b=3000, 36 were registered to b=0 within 5 mm, and the others were 12 to 60 mm off."""

LEAST_CORE = 4
"""Least number of volumes that can predict others."""

FROM_REST, NEAR = COARSE_TO_FINE[:-1], COARSE_TO_FINE[2:-1]
"""Levels at which the b=0 volume is registered."""

TOLERANCE = 0.005
"""Of :class:`~eddymotion.registration.GaussNewton`, ten times its default."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """Volumes of a group, each registered to the b=0 volume alone.

    Parameters
    ----------
    dwi : DWI
    volumes : (n,) index array
    matrices : (n, 4, 4) array
        b=0 volume → volume.
    """

    dwi: DWI
    volumes: np.ndarray
    matrices: np.ndarray

    @classmethod
    def of(cls, dwi: DWI, volumes: np.ndarray, n_threads: int = 1) -> Anchors:
        """Register the b=0 volume to each volume, from rest."""
        starts = np.tile(np.eye(4), (len(volumes), 1, 1))
        return cls(dwi, volumes, _registered(dwi, volumes, starts, n_threads, FROM_REST)[0])

    def offsets(self, motion: Motion) -> np.ndarray:
        """Return ``D_i`` (n, 4, 4) for poses of the volumes within the group."""
        return np.linalg.inv(motion.matrices) @ self.matrices

    def near(self, motion: Motion) -> np.ndarray:
        """Return which volumes agree on ``D`` with each, (n, n) bool."""
        offsets, center = self.offsets(motion), self.dwi.brain_center
        apart = rms_displacement(offsets[:, None], offsets, center)
        return apart < TOGETHER_MM * head_scale(self.dwi.mask, self.dwi.voxel_sizes)

    def core(self, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest set of volumes that agree, and their ``D``."""
        near = self.near(motion)
        first = int(near.sum(axis=1).argmax())
        return near[first], self.offsets(motion)[first]

    def from_poses(self, motion: Motion, n_threads: int) -> Anchors:
        """Register those outside the core again, from their poses and from the last result.

        The lower cost counts. Wide filters would move either far from its start.
        """
        core, offset = self.core(motion)
        outside = np.flatnonzero(~core)
        some = self.dwi, self.volumes[outside]
        there, costs = _registered(*some, motion.matrices[outside] @ offset, n_threads, NEAR)
        here, own_costs = _registered(*some, self.matrices[outside], n_threads, NEAR)
        matrices = self.matrices.copy()
        matrices[outside] = np.where((costs <= own_costs)[:, None, None], there, here)
        return replace(self, matrices=matrices)

    def disagreement(self, motion: Motion, in_place: np.ndarray | None = None) -> Disagreement:
        """Find the volumes that agree with others on another ``D``, and how far off it is.

        Parameters
        ----------
        motion : Motion
            Of the volumes.
        in_place : (n,) bool array, optional
            Volumes that are where they belong, whatever b=0 says.
        """
        core, offset = self.core(motion)
        others = ~core if in_place is None else ~(core | in_place)
        near = self.near(motion)[others][:, others]
        some = np.flatnonzero(others)[near.sum(axis=1) > 1] if core.sum() > 1 else np.empty(0, int)
        from_core = np.linalg.inv(offset) @ self.offsets(motion)[some]
        return Disagreement(self.volumes[some], log_rigid(from_core, self.dwi.brain_center))


@dataclass(frozen=True, eq=False)
class Disagreement:
    """Volumes that agree with each other, but not with the core: they may lie elsewhere.

    Parameters
    ----------
    volumes : (k,) index array
    twists : (k, 6) array
        Distance from the offset of the core, mm and rad.
    """

    volumes: np.ndarray
    twists: np.ndarray

    def updated(self, anchors: Anchors, motion: Motion, in_place: np.ndarray) -> Disagreement:
        """Replace what is known of the volumes of a group, by their poses."""
        new = anchors.disagreement(motion, in_place)
        others = ~np.isin(self.volumes, anchors.volumes)
        return Disagreement(
            np.concatenate([self.volumes[others], new.volumes]),
            np.concatenate([self.twists[others], new.twists]),
        )

    def covariances(self, n: int) -> np.ndarray:
        """Return what that adds to the errors of all n volumes, (n, 6, 6)."""
        found = np.zeros((n, 6, 6))
        found[self.volumes] = np.square(self.twists / Z_95)[:, :, None] * np.eye(6)
        return found

    def warn(self) -> None:
        """Name them, if there are some."""
        if len(self.volumes):
            log.warning(
                "%s: agree with each other, but the b=0 volume places them elsewhere than the "
                "other diffusion-weighted volumes do; their poses may be wrong by as much as "
                "their standard errors", named_volumes(np.sort(self.volumes)),
            )  # fmt: skip


NO_DISAGREEMENT = Disagreement(np.empty(0, int), np.empty((0, 6)))


def _registered(
    dwi: DWI, volumes: np.ndarray, starts: np.ndarray, n_threads: int, levels: tuple[Level, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Register the b=0 volume to volumes: matrices (n, 4, 4) and costs (n,)."""
    engine = GaussNewton(levels, tolerance=TOLERANCE, symmetric=False)
    fixed = dwi.volume(np.setdiff1d(dwi.gradients.b0s, empty_b0s(dwi))[0])

    def one(item: int) -> tuple[np.ndarray, float]:
        found = engine.register(
            fixed,
            dwi.volume(volumes[item]),
            metric="nmi",
            init=starts[item],
            fixed_mask=dwi.mask,
            seed=0,
        )
        return found.matrix, found.cost[-1]

    found = parallel_map(one, range(len(volumes)), n_threads=n_threads)
    matrices = np.array([matrix for matrix, _ in found]).reshape(-1, 4, 4)
    return matrices, np.array([cost for _, cost in found])
