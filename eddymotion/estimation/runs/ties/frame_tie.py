# SPDX-License-Identifier: Apache-2.0
"""How other runs move the diffusion-weighted volumes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from eddymotion.estimation.frames.errors import standard_errors
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid


@dataclass(frozen=True, eq=False)
class FrameTie:
    """How other runs move the diffusion-weighted volumes of a run against its b=0 volumes.

    Parameters
    ----------
    volumes : (M,) index array
        Which these are.
    offset : (4, 4) or (M, 4, 4) array
        After their matrices in the frame of the first run, of all alike or of each.
    before, after : (6, 6) array
        Covariances of their frame, mm and rad about the centre: from the run alone, and
        with the others.
    center : (3,) array
        RAS+ mm, in the frame of the first run.
    """

    volumes: np.ndarray
    offset: np.ndarray
    before: np.ndarray
    after: np.ndarray
    center: np.ndarray

    def __str__(self) -> str:
        twist = log_rigid(self.offset, self.center).reshape(-1, 6).mean(axis=0)
        alone, now = (np.sqrt(np.diag(one)[:3].max()) for one in (self.before, self.after))
        return (
            f"volumes with b>0 moved by {np.linalg.norm(twist[:3]):.2f} mm and "
            f"{np.rad2deg(np.linalg.norm(twist[3:])):.2f}° against those with b=0, as other runs "
            f"ask for: known within {now:.3f} mm, by the run alone {alone:.3f}"
        )

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> FrameTie:
        """Take what :meth:`plain` returned."""
        parts = {name: np.array(value) for name, value in content.items()}
        return cls(**{name: parts[name] for name in (one.name for one in fields(cls))})

    def plain(self) -> dict[str, Any]:
        """Return it as lists, by name."""
        return {one.name: getattr(self, one.name).tolist() for one in fields(self)}

    def applied(self, motion: Motion) -> Motion:
        """Move the volumes, and update their errors."""
        own = motion.matrices[self.volumes]
        matrices = motion.matrices.copy()
        matrices[self.volumes] = own @ self.offset
        about = self.center if motion.center is None else motion.center
        taken = standard_errors(own, self._of_each(self.before), self.center, about)
        given = standard_errors(own @ self.offset, self._of_each(self.after), self.center, about)

        def changed(errors: np.ndarray, taken: np.ndarray, given: np.ndarray) -> np.ndarray:
            new = errors.copy()
            left = np.maximum(errors[self.volumes] ** 2 - taken**2, 0.0)
            new[self.volumes] = np.sqrt(left + given**2)
            return new

        errors = motion.standard_errors
        moved = replace(
            motion,
            matrices=matrices,
            standard_errors=None if errors is None else changed(errors, taken, given),
            frame_error=float(np.sqrt(np.diag(self.after)[:3].max())),
            frame_covariance=self.after,
        )
        return moved.with_errors_of_slices(
            lambda errors: changed(errors, taken[:, None], given[:, None])
        )

    def _of_each(self, covariance: np.ndarray) -> np.ndarray:
        """Return a covariance for each of the volumes, (M, 6, 6)."""
        return np.tile(covariance, (len(self.volumes), 1, 1))
