# SPDX-License-Identifier: Apache-2.0
"""How runs lie in one frame, and what distorts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eddymotion.estimation.off_resonance.measured import MapAgreement
from eddymotion.estimation.runs.changing_field import errors_within
from eddymotion.estimation.runs.ties import FrameTie
from eddymotion.images.masking import moved_mask
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import LEAST_STRETCH, OffResonance, SeriesField
from eddymotion.wording import short_repr


@dataclass(frozen=True, eq=False)
class JoinedRuns:
    """How runs lie in one frame, and what distorts them.

    Parameters
    ----------
    poses : (K, 4, 4) array
        First run → the frame of each, RAS+ mm.
    errors : (K, 6) array
        Standard errors of the poses, mm and rad; zero for the first run, whose frame it is.
    shifts : (K, 3) array
        Where a spin that is off by one hertz is displaced in each run, mm, RAS+; NaN where the
        readout of a run is not known.
    field : OffResonance, optional
        In the frame of the first run.
    mean : (X, Y, Z) float32 array
        The runs' mean b=0 images without distortion as one, in that frame, on the grid of the
        first run.
    mask : (X, Y, Z) bool array
        The brain there.
    affine : (4, 4) array
        Of that grid.
    similarity : (float, float)
        Correlation of the runs' mean b=0 images in the brain before and after.
    measured : bool
        Whether the field was given.
    nominal : bool
        Whether no run states its readout time, so that the field is known up to a factor.
    modulated : bool
        Whether the brightness of compressed signal is corrected, too.
    beside : (X, Y, Z) float32 array, optional
        A measured map (Hz) that the field is compared with, on that grid; NaN where it is
        unknown.
    ties : tuple of FrameTie or None
        Additional displacement of diffusion-weighted volumes, one per run; none if not tied.
    """

    poses: np.ndarray
    errors: np.ndarray
    shifts: np.ndarray
    field: OffResonance | None
    mean: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    similarity: tuple[float, float] = (np.nan, np.nan)
    measured: bool = False
    nominal: bool = False
    modulated: bool = True
    beside: np.ndarray | None = None
    ties: tuple[FrameTie | None, ...] = ()

    __repr__ = short_repr

    @cached_property
    def hertz(self) -> np.ndarray | None:
        """The field on the grid of the first run, (X, Y, Z) Hz."""
        return None if self.field is None else self.field.on_grid(self.mask.shape, self.affine)

    @property
    def unit(self) -> str:
        """Of the field."""
        return "arbitrary" if self.nominal else "Hz"

    @property
    def mm_per_hertz(self) -> np.float64:
        """Displacement by one hertz in the run that it displaces most, mm."""
        return np.nanmax(np.linalg.norm(self.shifts, axis=1))

    @property
    def comparison(self) -> MapAgreement | None:
        """Agreement of the field with the measured map."""
        if self.beside is None or self.hertz is None:
            return None
        return MapAgreement.of(self.hertz, self.beside)

    def __len__(self) -> int:
        return len(self.poses)

    def spread_mm(self, run: int) -> np.ndarray:
        """Return the standard deviation of the displacement of a run by the field: mm, (3,).

        In the brain, along its phase encoding; zero without a field, and of an unknown readout.
        """
        if self.hertz is None or not np.isfinite(self.shifts[run]).all():
            return np.zeros(3)
        return self.hertz[self.mask].std() * self.shifts[run]

    def motion(self, run: int, alone: Motion) -> Motion:
        """Bring a motion that was found in a run's own frame into that of the first.

        The field changes with the head, which a run alone takes for motion.
        """
        errors, distortion = alone.standard_errors, None
        if self.field is not None and np.isfinite(self.shifts[run]).all():
            shifts = np.tile(self.shifts[run], (len(alone), 1))
            distortion = SeriesField(self.field, shifts, self.modulated)
        further = np.hypot(self.errors[run], errors_within(alone.matrices, self.spread_mm(run)))
        moved = replace(
            alone,
            matrices=alone.matrices @ self.poses[run],
            standard_errors=None if errors is None else np.hypot(errors, further),
            off_resonance=distortion,
            alone=alone,
        )
        moved = moved.with_errors_of_slices(lambda errors: np.hypot(errors, further[:, None]))
        tie = self.ties[run] if self.ties else None
        return moved if tie is None else tie.applied(moved)

    def stretch(self, run: int) -> np.ndarray:
        """Return recorded millimetres a millimetre along the phase encoding of a run, (X, Y, Z).

        On the grid of the first run, for the run's head at rest; one without a field.
        """
        if self.field is None or not np.isfinite(self.shifts[run]).all():
            return np.ones(self.mask.shape, np.float32)
        _, slopes = self.field.on_grid_with_gradient(self.mask.shape, self.affine)
        along = (self.poses[run][:3, :3].T @ self.shifts[run]).astype(np.float32)
        return np.maximum(1.0 + slopes @ along, LEAST_STRETCH)

    def mask_on(self, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Return the brain on another grid of the same frame, (X, Y, Z) bool."""
        if tuple(shape) == self.mask.shape and np.array_equal(affine, self.affine):
            return self.mask
        return moved_mask(self.mask, np.linalg.inv(self.affine) @ affine, tuple(shape))
