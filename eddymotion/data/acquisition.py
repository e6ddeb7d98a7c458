# SPDX-License-Identifier: Apache-2.0
"""What the scanner did, volume by volume and slice by slice: one value for all that is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.images.axes import phase_encoding_vector
from eddymotion.machine.frozen import freeze, selected
from eddymotion.wording import PE_AXES, short_repr, shown

SAME_TIME = 1e-4
"""Slices that were excited within this time (seconds) were excited together."""

LONGEST_VOLUME = 100.0
"""No volume takes more seconds: a longer time is of another unit."""

LEAST_EXCITATIONS = 6
"""With fewer different times, slices say little of a course within a volume."""


@dataclass(frozen=True, eq=False)
class Slicing:
    """How a volume was acquired, slice by slice.

    Parameters
    ----------
    axis : int
        The image axis that counts the slices.
    groups : tuple of index arrays
        Slices that were excited together, in the order of time; none where that is not known.
    times : (Z,) array, optional
        Seconds from the start of the volume to the excitation of each slice.
    """

    axis: int = 2
    groups: tuple[np.ndarray, ...] = ()
    times: np.ndarray | None = None

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
                "without '-'; correct the sidecar"
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
        groups = tuple(multiband_groups(timing, acceleration))
        return cls(axis, groups, np.array(timing, float))

    def possible(self, n_slices: int) -> list[Slicing]:
        """Orders in which slices may have been acquired: the known one, or else the usual ones."""
        if self.groups:
            return [self]
        return [order for _, order in usual_orders(n_slices, self.axis)] or [self]

    def periods(self, n_slices: int, n_periods: int) -> np.ndarray:
        """Say in which part of a volume's time each slice was excited, (n_slices,).

        Where that is not known: as if the even slices came first, from the bottom up.
        """
        groups = self.groups or tuple(np.r_[0:n_slices:2, 1:n_slices:2].reshape(-1, 1))
        period = np.zeros(n_slices, int)
        for time, group in enumerate(groups):
            period[group] = time * n_periods // len(groups)
        return period


MULTIBAND = (1, 2, 3, 4, 5, 6, 8)
"""Slices that scanners acquire at a time."""


def usual_orders(n_slices: int, axis: int = 2, together: int = 1) -> Iterator[tuple[str, Slicing]]:
    """Go through the orders that scanners use, each in words and as a :class:`Slicing`.

    Parameters
    ----------
    n_slices : int
    axis : int
        The image axis that counts the slices.
    together : int
        Slices at a time, besides the usual numbers.
    """
    for at_a_time in sorted({*MULTIBAND, together}):
        n = -(-n_slices // at_a_time)
        if n < LEAST_EXCITATIONS:
            continue
        for name, first in _sequences(n):
            groups = tuple(np.arange(slice_, n_slices, n) for slice_ in first)
            times = np.empty(n_slices)
            for time, group in enumerate(groups):
                times[group] = time
            beside = f", {at_a_time} at a time" * (at_a_time > 1)
            yield name + beside, Slicing(axis, groups, times)


def _sequences(n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Go through the sequences of n excitations, from the first slice to the last and back."""
    forward = {
        "slices one after the other": np.arange(n),
        "even slices before odd ones": np.r_[0:n:2, 1:n:2],
        "odd slices before even ones": np.r_[1:n:2, 0:n:2],
    }
    for step in sorted({3, round(np.sqrt(n))} - {1, 2}):
        name = f"every {step}th slice, then their neighbours"
        forward[name] = np.argsort(np.arange(n) % step, kind="stable")
    for name, first in forward.items():
        yield f"{name}, upwards", first
        yield f"{name}, downwards", first[::-1]


def _are_numbers(values: Any) -> bool:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    return isinstance(values, (list, tuple)) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


PLAIN = Slicing()
"""Slices along the third image axis; which were excited together is not known."""


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What the scanner did to record a series.

    Parameters
    ----------
    gradients : Gradients
        b-values, and b-vectors in RAS+.
    slicing : Slicing
        Which image axis counts the slices, and which of them were excited together.
    runs : (N,) int array, optional
        The run each volume belongs to, counted from 0; one run when not given.
    start_times : (N,) array, optional
        Seconds from the start of its run to that of each volume.
    phase_encoding : (N, 3) array, optional
        Unit vector of each volume, RAS+, along which off-resonance displaces.
    readout_times : (N,) array, optional
        TotalReadoutTime of each volume, seconds: the displacement, in voxels, of a spin that is
        off by one hertz.
    """

    gradients: Gradients
    slicing: Slicing = PLAIN
    runs: np.ndarray = None  # type: ignore[assignment]  # never None once it is made
    start_times: np.ndarray | None = None
    phase_encoding: np.ndarray | None = None
    readout_times: np.ndarray | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        n = len(self.gradients)
        if self.runs is None:
            object.__setattr__(self, "runs", np.zeros(n, int))
        freeze(self, "acquisition", None, runs=f"{n}", start_times=f"{n}",
               phase_encoding=f"{n} 3", readout_times=f"{n}")  # fmt: skip

    @classmethod
    def every(
        cls,
        gradients: Gradients,
        affine: np.ndarray,
        *,
        slicing: Slicing = PLAIN,
        repetition_time: float | None = None,
        phase_encoding: str | None = None,
        readout_time: float | None = None,
    ) -> Acquisition:
        """Describe a run in which every volume was recorded in the same way.

        Parameters
        ----------
        gradients : Gradients
        affine : (4, 4) array
            Voxel indices → RAS+ mm of the images.
        slicing : Slicing
        repetition_time : float, optional
            Seconds between volumes.
        phase_encoding : {"i", "j", "k", "i-", "j-", "k-"}, optional
            Direction as in BIDS.
        readout_time : float, optional
            TotalReadoutTime, seconds.
        """
        n = len(gradients)
        found = cls(
            gradients,
            slicing,
            start_times=None if not repetition_time else np.arange(n) * repetition_time,
            readout_times=None if readout_time is None else np.full(n, float(readout_time)),
        )
        return found if phase_encoding is None else found.encoded(phase_encoding, affine)

    def encoded(self, direction: str, affine: np.ndarray) -> Acquisition:
        """Return the same with one phase-encoding direction, as BIDS writes it, for all volumes.

        Raises
        ------
        EddymotionError
            If it is none of i, j, k, i-, j- and k-.
        """
        if direction not in PE_AXES:
            raise EddymotionError(
                f"pe_axis is {shown(direction)}, expected one of {', '.join(PE_AXES)}"
            )
        vector = phase_encoding_vector(affine, direction)
        return replace(self, phase_encoding=np.tile(vector, (len(self.gradients), 1)))

    @property
    def why_untimed(self) -> str:
        """Why it is not known when slices were excited; empty where it is."""
        slicing, repetition = self.slicing, self.repetition_time
        if slicing.times is None:
            return "the sidecar has no SliceTiming"
        if len(slicing.groups) < LEAST_EXCITATIONS:
            return (
                f"SliceTiming has {len(slicing.groups)} different times, at least "
                f"{LEAST_EXCITATIONS} are needed"
            )
        last = float(np.ptp(slicing.times))
        if last >= (longest := repetition or LONGEST_VOLUME):
            takes = f"takes {repetition:g} s" if repetition else f"takes at most {longest:g} s"
            return (
                f"SliceTiming spans {last:g} s, but a volume {takes}: it should be in "
                "seconds from the start of the volume"
            )
        return ""

    @property
    def repetition_time(self) -> float | None:
        """Seconds between volumes of a run, where they follow each other; None if not known."""
        if self.start_times is None:
            return None
        between = np.diff(self.start_times)[np.diff(self.runs) == 0]
        between = between[between > 0]
        return float(between.min()) if len(between) else None

    @property
    def common_phase_encoding(self) -> np.ndarray | None:
        """The phase-encoding vector (3,) of all volumes; None if not known or not one."""
        vectors = self.phase_encoding
        if vectors is None or not np.array_equal(vectors, np.tile(vectors[0], (len(vectors), 1))):
            return None
        return vectors[0]

    @property
    def common_readout_time(self) -> float | None:
        """The readout time (s) of all volumes; None if not known or not one."""
        times = self.readout_times
        return None if times is None or np.ptp(times) > 0 else float(times[0])

    def select(self, volumes: np.ndarray | slice) -> Acquisition:
        """Keep some of the volumes."""
        return selected(
            self, volumes, "gradients", "runs", "start_times", "phase_encoding", "readout_times"
        )


def multiband_groups(
    slice_timing: Sequence[float], acceleration: float | None
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
