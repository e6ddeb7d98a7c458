# SPDX-License-Identifier: Apache-2.0
"""How runs were read out, and whether that determines the off-resonance field."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.mapping.off_resonance import NOMINAL_READOUT_S, Readout

log = logging.getLogger(__name__)

OTHER_SHIFT = 0.5
"""Part of the larger displacement by which another run has to differ to determine the field:
turned slices alone do not."""

SAME_SIZE = 1e-3
"""Relative difference up to which runs have the same grid along their phase encoding."""


def of_one_contrast(runs: Sequence[RunImage]) -> list[int]:
    """Choose the runs whose images have the contrast of the first, b=0 or not.

    Others are aligned by mutual information only, and used for neither field nor brain.
    """
    return [n for n, run in enumerate(runs) if run.is_b0 == runs[0].is_b0]


def without_times(runs: Sequence[RunImage]) -> bool:
    """Whether several runs state their phase encoding, and none its readout time."""
    known = sum(run.encoding is not None for run in runs)
    return known > 1 and all(run.readout_time is None for run in runs)


def readouts_of(runs: Sequence[RunImage], *, measured: bool = False) -> list[Readout | None]:
    """Return the readout of each run; None if its phase encoding or its time is not known.

    If no run states its readout time, a nominal one is assumed for all: that suffices to
    find the field from runs of opposite polarity, but not for one that was measured in hertz. If
    only some runs state theirs, it is assumed for others with as many voxels of the same size
    along the phase encoding.
    """
    nominal = NOMINAL_READOUT_S if without_times(runs) and not measured else None
    times = [run.readout_time or nominal or _time_of_others(run, runs) for run in runs]
    return [
        None
        if time is None or run.encoding is None
        else Readout(run.encoding, time * run.encoded[1])
        for run, time in zip(runs, times, strict=True)
    ]


def _time_of_others(run: RunImage, runs: Sequence[RunImage]) -> float | None:
    """Return the readout time of the runs that are encoded alike; None where these differ."""
    alike = (one for one in runs if np.allclose(one.encoded, run.encoded, SAME_SIZE))
    times = {one.readout_time for one in alike} - {None}
    return times.pop() if len(times) == 1 else None


def tell_field(runs: Sequence[RunImage], readouts: Sequence[Readout | None]) -> bool:
    """Whether the images of runs determine the off-resonance field."""
    return None not in readouts and differ([readouts[run] for run in of_one_contrast(runs)])


def differ(readouts: Sequence[Readout | None]) -> bool:
    """Whether runs of known readout are distorted differently."""
    shifts = np.array([readout.shift for readout in readouts if readout is not None])
    if len(shifts) < 2:
        return False
    largest = np.linalg.norm(shifts, axis=1).max()
    return bool(np.linalg.norm(shifts - shifts[0], axis=1).max() >= OTHER_SHIFT * largest)


def warn_of_readouts(
    runs: Sequence[RunImage], readouts: Sequence[Readout | None], *, measured: bool = False
) -> None:
    """Warn of what was assumed, and of runs that cannot be corrected for the field, or show none.

    Parameters
    ----------
    runs : sequence of RunImage
    readouts : sequence of Readout or None
        As :func:`readouts_of` returns them.
    measured : bool
        Whether the field is known without the runs.
    """
    opposed = differ([Readout(r.encoding, r.encoded[1]) for r in runs if r.encoding is not None])
    if not (measured or opposed) or all(readout is None for readout in readouts):
        return
    for warning in _warnings(runs, readouts, measured=measured):
        log.warning("%s", warning)


def _warnings(
    runs: Sequence[RunImage], readouts: Sequence[Readout | None], *, measured: bool
) -> Iterator[str]:
    shown, nominal = tell_field(runs, readouts), without_times(runs)
    if shown and nominal:
        yield (
            f"TotalReadoutTime is in no sidecar of these runs: {NOMINAL_READOUT_S:g} s is assumed "
            "for all, so that the off-resonance field in Hz is correct up to a factor, and the "
            "correction is exact if their times are equal; add it to the sidecars"
        )
    elif not (shown or measured or None in readouts):
        yield (
            "runs of different phase encodings have no contrast in common, b=0 or not: the "
            "off-resonance field is not estimated"
        )
    for number, (run, readout) in enumerate(zip(runs, readouts, strict=True), start=1):
        name = run.name or f"run {number} of {len(runs)}"
        fields = {"PhaseEncodingDirection": run.encoding, "TotalReadoutTime": run.readout_time}
        missing = " and no ".join(key for key, value in fields.items() if value is None)
        if readout is None:
            what = "the off-resonance field is not estimated, for which the others would suffice"
            if measured:
                what = "it is not corrected for the off-resonance field"
            yield (
                f"{name}: its sidecar has no {missing}, so that {what}; add what is missing "
                "(TotalReadoutTime, in seconds, is EffectiveEchoSpacing times the number of "
                "voxels along the phase encoding less one; it is taken from other runs of the "
                "same grid where these agree)"
            )
        elif missing and not nominal:
            seconds = readout.mm_per_hertz / run.encoded[1]
            yield (
                f"{name}: its sidecar has no TotalReadoutTime; {seconds:g} s is assumed, that of "
                "the other runs of the same grid; add it"
            )
