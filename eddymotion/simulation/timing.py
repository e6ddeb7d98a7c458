# SPDX-License-Identifier: Apache-2.0
"""When the slices of a volume are excited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.mapping.slice_poses import SlicePoses

SliceOrder = Literal["interleaved", "sequential"]
"""Interleaved: first the even slices, then the odd ones; sequential: one after the other."""


@dataclass(frozen=True)
class SliceTiming:
    """When the slices of a volume are excited, evenly over the repetition time.

    Parameters
    ----------
    order : {"interleaved", "sequential"}
    multiband : int
        Slices that are excited together, as far apart as possible.
    repetition_time : float
        From volume to volume, s.

    Raises
    ------
    EddymotionError
        If a value makes no sense.
    """

    order: SliceOrder = "interleaved"
    multiband: int = 3
    repetition_time: float = 4.0

    def __post_init__(self) -> None:
        if self.order not in ("interleaved", "sequential"):
            raise EddymotionError(
                f"slice order {self.order!r} given, expected interleaved or sequential"
            )
        if self.multiband < 1 or not 0 < self.repetition_time < np.inf:
            raise EddymotionError(
                f"multiband factor {self.multiband} and repetition time "
                f"{self.repetition_time:g} s given, expected 1 or more and a time above zero"
            )

    def groups(self, n_slices: int) -> tuple[np.ndarray, ...]:
        """Return the slices of each excitation, in the order of time."""
        n = -(-n_slices // self.multiband)
        first = np.r_[0:n:2, 1:n:2] if self.order == "interleaved" else np.arange(n)
        return tuple(np.arange(slice_, n_slices, n) for slice_ in first)

    def excitations(self, n_volumes: int, n_slices: int) -> np.ndarray:
        """Return when each volume is excited, seconds from the start: (N, G)."""
        n = len(self.groups(n_slices))
        within = self.repetition_time * np.arange(n) / n
        return self.repetition_time * np.arange(n_volumes)[:, None] + within


def slice_metadata(motion: SlicePoses) -> dict[str, Any]:
    """Return the fields of a BIDS sidecar that say when slices were excited."""
    times = motion.times[0] - motion.times[0, 0]
    content = {
        "SliceTiming": np.round(times, 6)[motion.group_of_slice].tolist(),
        "MultibandAccelerationFactor": max(map(len, motion.groups)),
    }
    if len(motion) > 1:
        content["RepetitionTime"] = round(float(motion.times[1, 0] - motion.times[0, 0]), 6)
    return content
