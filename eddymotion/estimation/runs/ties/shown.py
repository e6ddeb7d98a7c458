# SPDX-License-Identifier: Apache-2.0
"""What a run shows of its diffusion-weighted volumes, for ties between runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.samples import LostSlices
from eddymotion.estimation.outliers import SliceOutliers, rescaled
from eddymotion.estimation.quality import assess
from eddymotion.images.image import Image
from eddymotion.images.pyramid import Level, crop, fine_widths
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.mapping.volume import VolumeMapping
from eddymotion.wording import short_repr

VOLUMES_OF_RUN = 16
"""Of a shell of each run, at most, evenly spread; more of them tie no better than the field is
known."""

LEVELS = (Level(2.0, 8_000, highpass=5.0), Level(1.5, 20_000, highpass=2.5))
"""What is finer than a voxel stays with the grid, and turns each of a few volumes its own way: by
.14° of 4-mm voxels with a filter of one voxel and the noise-free truth as prediction."""

MARGIN_FWHM, MARGIN_VOXELS = 2.0, 3.0
"""What is kept of a volume around the brain."""


@dataclass(frozen=True, eq=False)
class ShownDiffusion:
    """Diffusion-weighted volumes of one run, cut down to the brain.

    Parameters
    ----------
    all_volumes : (M,) index array
        All that share the frame.
    images : tuple of n Image
        Some of them, as they were recorded.
    gradients : Gradients
        Of those, in the scanner's frame.
    mappings : tuple of VolumeMapping
        Frame of the run → each of those.
    covariance : (6, 6) array
        Of what brings them into the frame of b=0, mm and rad about the centre.
    center : (3,) array
        Of the brain, RAS+ mm.
    apart : bool
        Whether other runs may move each of the volumes by itself: all of them are here, and the
        head moved between them alone.
    lost : LostSlices, optional
        Slices without signal of the n volumes.
    """

    all_volumes: np.ndarray
    images: tuple[Image, ...]
    gradients: Gradients
    mappings: tuple[VolumeMapping, ...]
    covariance: np.ndarray
    center: np.ndarray
    apart: bool
    lost: LostSlices | None

    __repr__ = short_repr

    @classmethod
    def of(cls, run: DWI, motion: Motion, n_threads: int = 1) -> ShownDiffusion | None:
        """Take what a run shows; None where nothing is known of its frames, or of its shells."""
        gradients, covariance = run.gradients, motion.frame_covariance
        if covariance is None or not gradients.is_shelled or not len(gradients.b0s):
            return None
        lost = np.zeros(len(run), bool) if motion.unplaced is None else motion.unplaced
        placed = gradients.dwis[~lost[gradients.dwis]]
        shells = [shell[~lost[shell]] for shell in gradients.shells]
        chosen = np.sort(np.concatenate([_spread(shell) for shell in shells]))
        if not len(chosen):
            return None
        apart = len(chosen) == len(placed) and motion.trajectory is None
        outliers = assess(run, motion, n_threads=n_threads).outliers if apart else None
        brain = apply_affine(run.affine, np.argwhere(scipy.ndimage.binary_dilation(run.mask)))
        margin = MARGIN_FWHM * LEVELS[0].fwhm * fine_widths(run.voxel_sizes)
        margin = margin + MARGIN_VOXELS * run.voxel_sizes

        def cut(volume: int) -> Image:
            there = motion.mapping(volume).recorded(brain)
            image = run.volume_with_missing(volume)
            return crop(image if outliers is None else rescaled(image, outliers, volume),
                        there, margin)  # fmt: skip

        images = parallel_map(cut, chosen.tolist(), n_threads=n_threads)
        return cls(
            placed,
            tuple(images),
            gradients.select(chosen),
            tuple(replace(motion.mapping(volume), slices=None) for volume in chosen.tolist()),
            covariance,
            run.brain_center,
            apart,
            None if outliers is None else _lost_slices(run, outliers, chosen),
        )

    def undistorted(
        self, field: OffResonance, shift: np.ndarray, pose: np.ndarray, n_threads: int
    ) -> ShownDiffusion:
        """Take fields out of the volumes, so that filters meet what is alike in all runs.

        Parameters
        ----------
        field : OffResonance
            In the frame of another run.
        shift : (3,) array
            Where a spin that is off by one hertz is displaced, mm.
        pose : (4, 4) array
            That frame → the one of this run.
        n_threads : int
        """

        def flat(volume: int) -> Image:
            mapping = self.mappings[volume]
            there = replace(
                mapping, pose=mapping.pose @ pose, off_resonance=field, shift=np.asarray(shift)
            )
            return there.undistorted(self.images[volume])

        images = parallel_map(flat, range(len(self.images)), n_threads=n_threads)
        rigid = tuple(VolumeMapping(mapping.pose) for mapping in self.mappings)
        return replace(self, images=tuple(images), mappings=rigid)

    def select(self, which: np.ndarray) -> ShownDiffusion:
        """Return some of the volumes that are shown."""
        return replace(
            self,
            images=tuple(self.images[k] for k in which),
            gradients=self.gradients.select(which),
            mappings=tuple(self.mappings[k] for k in which),
            lost=self.lost and replace(self.lost, flagged=self.lost.flagged[which]),
            apart=self.apart and len(which) == len(self.images),
        )


def _spread(shell: np.ndarray) -> np.ndarray:
    """Choose volumes of a shell, evenly spread."""
    return shell[:: max(1, -(-len(shell) // VOLUMES_OF_RUN))]


def _lost_slices(run: DWI, outliers: SliceOutliers, volumes: np.ndarray) -> LostSlices | None:
    """Return the slices without signal of some volumes; None where there are none."""
    flagged = outliers.flagged[volumes]
    return LostSlices(flagged, run.affine, outliers.slicing.axis) if flagged.any() else None
