# SPDX-License-Identifier: Apache-2.0
"""How runs were read out, and whether that determines the off-resonance field."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.mapping.off_resonance import NOMINAL_READOUT_S, Readout

log = logging.getLogger(__name__)

OTHER_SHIFT = 0.5
"""Part of the larger displacement by which another run has to differ to determine the field:
turned slices alone do not."""


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
    """Return the readout of each run; None if its phase encoding is not known.

    If no run states its readout time, a nominal one is assumed for all: that suffices to
    find the field from runs of opposite polarity, but not for one that was measured in hertz. If
    only some runs state theirs, that of the others is unknown.
    """
    times = [run.readout_time for run in runs]
    if without_times(runs) and not measured:
        if _are_opposed(runs):
            log.warning(
                "TotalReadoutTime is in no sidecar of these runs: %g s is assumed for all, so "
                "that the off-resonance field in Hz is correct up to a factor, and the correction "
                "is exact if their times are equal; add it to the sidecars", NOMINAL_READOUT_S
            )  # fmt: skip
        times = [NOMINAL_READOUT_S] * len(runs)
    return [
        None
        if time is None or run.encoding is None
        else Readout(run.encoding, time * run.voxel_mm)
        for run, time in zip(runs, times, strict=True)
    ]


def _are_opposed(runs: Sequence[RunImage]) -> bool:
    """Whether runs are distorted differently, as far as their phase encodings are known."""
    return differ([Readout(r.encoding, r.voxel_mm) for r in runs if r.encoding is not None])


def tell_field(runs: Sequence[RunImage]) -> bool:
    """Whether the images of runs determine the off-resonance field."""
    runs = [runs[run] for run in of_one_contrast(runs)]
    unknown = sum(run.readout_time is None for run in runs)
    if unknown not in (0, len(runs)):
        return False
    readouts = [
        Readout(run.encoding, (run.readout_time or NOMINAL_READOUT_S) * run.voxel_mm)
        for run in runs
        if run.encoding is not None
    ]
    return len(readouts) == len(runs) and differ(readouts)


def differ(readouts: Sequence[Readout | None]) -> bool:
    """Whether runs of known readout are distorted differently."""
    shifts = np.array([readout.shift for readout in readouts if readout is not None])
    if len(shifts) < 2:
        return False
    largest = np.linalg.norm(shifts, axis=1).max()
    return bool(np.linalg.norm(shifts - shifts[0], axis=1).max() >= OTHER_SHIFT * largest)


def warn_of_unknown(
    runs: Sequence[RunImage], readouts: Sequence[Readout | None], *, measured: bool
) -> None:
    """Warn of runs that cannot be corrected for the field, since their readout is unknown."""
    unknown = [n for n, readout in enumerate(readouts, start=1) if readout is None]
    opposed = _are_opposed(runs)
    if opposed and not unknown and not measured:
        log.warning("runs of different phase encodings have no contrast in common, b=0 or not: "
                    "the off-resonance field is not estimated")  # fmt: skip
    if not unknown or len(unknown) == len(runs) or not (measured or opposed):
        return
    log.warning(
        "run %s of %d: PhaseEncodingDirection or TotalReadoutTime is "
        "not in its sidecar, so that %s; add them",
        ", ".join(map(str, unknown)), len(runs),
        "it is not corrected for the off-resonance field" if measured
        else "the off-resonance field is not estimated, for which the others would suffice",
    )  # fmt: skip
