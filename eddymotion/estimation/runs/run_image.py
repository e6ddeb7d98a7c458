# SPDX-License-Identifier: Apache-2.0
"""What a run shows of where it lies and how it is distorted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import reference_volumes
from eddymotion.data.series import DWI
from eddymotion.estimation.runs.ties import ShownDiffusion
from eddymotion.images.grid import grid_points, mask_center
from eddymotion.images.image import Image
from eddymotion.machine.parallel import Compute, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.registration.gauss_newton import GaussNewton
from eddymotion.wording import short_repr

VOLUMES_FOR_REFERENCE = 6
"""Largest number of b=0 volumes that are averaged."""


@dataclass(frozen=True, eq=False)
class RunImage:
    """What a run shows of where it lies and how it is distorted.

    Parameters
    ----------
    image : Image
        Mean of its b=0 volumes in its own frame, free of motion and eddy currents.
    brain : (X, Y, Z) bool array
    encoding : (3,) array, optional
        Phase-encoding vector, RAS+.
    readout_time : float, optional
        Seconds.
    ends : (2, 4, 4) array
        Poses of the head in the first and the last volume.
    end_errors : (2, 3) array
        Standard errors of their translations, mm; zero where they are not known.
    b0_poses : (M, 4, 4) array
        Poses of the volumes that were averaged.
    is_b0 : bool
        Whether it is of b=0 volumes; of a run without any, it is of the lowest shell.
    diffusion : ShownDiffusion, optional
        Diffusion-weighted volumes, where they lie in the frame of the b=0 volumes with an error
        that is known.
    name : str
        Of its file, if it has one.
    """

    image: Image
    brain: np.ndarray
    encoding: np.ndarray | None
    readout_time: float | None
    ends: np.ndarray
    end_errors: np.ndarray
    b0_poses: np.ndarray
    is_b0: bool
    diffusion: ShownDiffusion | None
    name: str

    __repr__ = short_repr

    @classmethod
    def of(cls, run: DWI, motion: Motion, n_threads: int = 1) -> RunImage:
        """Take what counts from a run and its motion in its own frame."""
        return cls(
            mean_b0(run, motion, n_threads),
            run.mask,
            run.acquisition.common_phase_encoding,
            run.acquisition.common_readout_time,
            motion.head[[0, -1]],
            _end_errors(motion),
            motion.matrices[_averaged(run, motion)],
            bool(len(run.gradients.b0s)),
            ShownDiffusion.of(run, motion, n_threads),
            run.source.name if run.source else "",
        )

    @property
    def encoded(self) -> tuple[int, float]:
        """Number and size (mm) of the voxels along the phase encoding; none if that is unknown."""
        if self.encoding is None:
            return 0, 0.0
        to_voxels = np.linalg.inv(self.image.affine)[:3, :3]
        axis = int(np.abs(to_voxels @ self.encoding).argmax())
        return self.image.data.shape[axis], float(self.image.voxel_sizes[axis])

    @property
    def center(self) -> np.ndarray:
        """The centre of the brain, RAS+ mm."""
        return mask_center(self.brain, self.image.affine)


def mean_b0(run: DWI, motion: Motion, n_threads: int = 1) -> Image:
    """Average the b=0 volumes of a run in its own frame; the lowest shell without any.

    As they were recorded but for motion and eddy currents: the off-resonance field is left in.
    """
    points = grid_points(run.shape, run.affine)

    def read(volume: int) -> np.ndarray:
        return motion.mapping(volume).rebuild(run.volume(volume), points)

    read_all = np.stack(parallel_map(read, _averaged(run, motion).tolist(), n_threads=n_threads))
    known = np.isfinite(read_all)
    mean = np.where(known, read_all, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return Image(mean.reshape(run.shape).astype(np.float32), run.affine)


def _averaged(run: DWI, motion: Motion) -> np.ndarray:
    """Choose the volumes of the reference, at most a few."""
    return reference_volumes(run.gradients, motion.unplaced)[:VOLUMES_FOR_REFERENCE]


def _end_errors(motion: Motion) -> np.ndarray:
    """Return standard errors (2, 3) of the first and the last translation, mm."""
    errors = motion.standard_errors
    return np.zeros((2, 3)) if errors is None else np.nan_to_num(errors[[0, -1], :3])


def align_b0s(run: DWI, compute: Compute) -> Motion:
    """Register the volumes of a run without diffusion weighting to its first one."""
    first = run.volume(0)
    engine = GaussNewton()

    def pose(volume: int) -> np.ndarray:
        if volume == 0:
            return np.eye(4)
        found = engine.register(first, run.volume(volume), fixed_mask=run.mask, seed=compute.seed)
        return found.matrix

    return Motion(np.stack(parallel_map(pose, range(len(run)), n_threads=compute.n_threads)))
