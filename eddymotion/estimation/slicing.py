# SPDX-License-Identifier: Apache-2.0
"""How a volume was acquired, slice by slice."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.words import shown

SAME_TIME = 1e-4
"""Slices that were excited within so many seconds were excited together."""


@dataclass(frozen=True, eq=False)
class Slicing:
    """How a volume was acquired, slice by slice.

    Parameters
    ----------
    axis : int
        The image axis that counts the slices.
    groups : tuple of index arrays
        Slices that were excited together; none where that is not known.
    """

    axis: int = 2
    groups: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, metadata: Mapping[str, Any] | None, shape: Sequence[int]) -> Slicing:
        """Read a BIDS sidecar.

        Parameters
        ----------
        metadata : mapping
            `SliceEncodingDirection`, `SliceTiming` and `MultibandAccelerationFactor` are used.
        shape : (3,) sequence
            Of a volume.

        Raises
        ------
        EddymotionError
            If they contradict the image or each other.
        """
        metadata = metadata or {}
        direction = str(metadata.get("SliceEncodingDirection") or "k")
        if direction.removesuffix("-") not in ("i", "j", "k"):
            raise EddymotionError(
                f"SliceEncodingDirection is {shown(direction)}, expected i, j or k, with or "
                "without a minus; correct the sidecar"
            )
        axis = "ijk".index(direction[0])
        timing = metadata.get("SliceTiming")
        if timing is None:
            return cls(axis)
        acceleration = metadata.get("MultibandAccelerationFactor")
        if not _are_numbers(timing):
            raise EddymotionError(
                f"SliceTiming is {shown(timing)}, expected a list of numbers; correct the sidecar"
            )
        if not _are_numbers([acceleration or 0]):
            raise EddymotionError(
                f"MultibandAccelerationFactor is {shown(acceleration)}, expected a number; "
                "correct the sidecar"
            )
        if len(timing) != shape[axis]:
            raise EddymotionError(
                f"SliceTiming has {len(timing)} entries, the image {shape[axis]} slices along "
                f"{direction[0]}; correct SliceTiming or SliceEncodingDirection in the sidecar"
            )
        timing = timing[::-1] if direction.endswith("-") else timing
        return cls(axis, tuple(multiband_groups(timing, acceleration)))

    def periods(self, n_slices: int, n_periods: int) -> np.ndarray:
        """Say in which part of a volume's time each slice was excited, (n_slices,).

        Where that is not known: as if the even slices came first, from the bottom up.
        """
        groups = self.groups or tuple(np.r_[0:n_slices:2, 1:n_slices:2].reshape(-1, 1))
        period = np.zeros(n_slices, int)
        for time, group in enumerate(groups):
            period[group] = time * n_periods // len(groups)
        return period


def _are_numbers(values: Any) -> bool:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    return isinstance(values, (list, tuple)) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


PLAIN = Slicing()
"""Slices along the third image axis; which were excited together is not known."""


def multiband_groups(
    slice_timing: Sequence[float], acceleration: float | None = None
) -> list[np.ndarray]:
    """Find the slices that were excited together.

    Parameters
    ----------
    slice_timing : (Z,) sequence
        Seconds, in the order of the slices.
    acceleration : float, optional
        Slices in each group, as a check.

    Returns
    -------
    list of index arrays
        In the order of their times.

    Raises
    ------
    EddymotionError
        If the groups are larger than `acceleration`.
    """
    times = np.asarray(slice_timing, float)
    order = np.argsort(times, kind="stable")
    first = np.flatnonzero(np.diff(times[order]) > SAME_TIME) + 1
    groups = [np.sort(group) for group in np.split(order, first)]
    largest = max(map(len, groups))
    if acceleration and largest > round(acceleration):
        raise EddymotionError(
            f"SliceTiming has {largest} slices at one time, MultibandAccelerationFactor is "
            f"{acceleration:g}; correct the sidecar"
        )
    return groups
