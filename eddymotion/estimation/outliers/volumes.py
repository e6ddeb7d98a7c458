# SPDX-License-Identifier: Apache-2.0
"""What lost slices mean for their volumes: how much is lost, and which are beyond repair."""

from __future__ import annotations

import numpy as np

from eddymotion.estimation.outliers.scores import SliceOutliers

VARIATION = 0.35
"""About the SD over the mean of a diffusion-weighted signal in the brain."""

MANY_LOST, WEAK_VOLUME = 0.5, 0.5
"""A volume that lost more than this part of its slices, or that has less than this part of the
predicted signal throughout, is beyond repair."""


def percent_lost(outliers: SliceOutliers) -> np.ndarray:
    """Percentage of the slices judged of each volume that lost signal, (N,); 0 where none was."""
    n_judged = outliers.judged.sum(axis=1)
    return 100.0 * outliers.flagged.sum(axis=1) / np.maximum(n_judged, 1)


def correlation_left(share: np.ndarray) -> np.ndarray:
    """Return what losing a share of the slices leaves of a correlation with the prediction.

    Where slices become zero and the rest stays as predicted, with ``c`` the SD over the mean of
    the signal in the brain, a correlation of 1 falls to ``c √(1 − s) / √(c² + s)``.
    """
    share = np.clip(share, 0, 1)
    return VARIATION * np.sqrt(1 - share) / np.sqrt(VARIATION**2 + share)


def volumes_beyond_repair(outliers: SliceOutliers) -> np.ndarray:
    """Find volumes better left out, for a reason of :func:`reasons_beyond_repair`.

    Returns
    -------
    index array
    """
    return np.array(sorted(reasons_beyond_repair(outliers)), int)


def reasons_beyond_repair(outliers: SliceOutliers) -> dict[int, str]:
    """Say which volumes are better left out, and why: the gravest reason of each."""
    lost, unplaced = percent_lost(outliers), outliers.unplaced
    gain = np.full(len(lost), np.nan) if outliers.gain is None else outliers.gain
    reasons: dict[int, str] = {}
    if (misfits := outliers.misfits) is not None:
        for volume in np.flatnonzero(misfits.beyond_repair):
            reasons[int(volume)] = (
                f"no pose agrees with its prediction: {misfits.times[volume]:.1f} times as much "
                "of its variance is unexplained as usual"
            )
    for volume in np.flatnonzero(lost > 100 * MANY_LOST):
        reasons[int(volume)] = f"{lost[volume]:.0f} % of its slices lost signal"
    for volume in np.flatnonzero(np.nan_to_num(gain, nan=1.0) < WEAK_VOLUME):
        reasons[int(volume)] = f"{100 * gain[volume]:.0f} % of its signal is left"
    for volume in () if unplaced is None else np.flatnonzero(unplaced):
        reasons[int(volume)] = "it could not be placed"
    return dict(sorted(reasons.items()))


def describe_outliers(outliers: SliceOutliers) -> str:
    """Say how many slices are outliers, and in which volumes most."""
    n_lost, n_judged = int(outliers.flagged.sum()), int(outliers.judged.sum())
    if not n_lost:
        return f"0 of {n_judged}"
    percent = percent_lost(outliers)
    worst = int(np.argmax(percent))
    n_volumes = int((percent > 0).sum())
    return (
        f"{n_lost} of {n_judged} ({100 * n_lost / n_judged:.1f} %) in {n_volumes} "
        f"volume{'s' if n_volumes > 1 else ''}, most in volume {worst} ({percent[worst]:.0f} %)"
    )


def describe_beyond_repair(outliers: SliceOutliers) -> str | None:
    """Name the volumes beyond repair, for a warning; None where there are none."""
    reasons = reasons_beyond_repair(outliers)
    if not reasons:
        return None
    several = len(reasons) > 1
    named = (f"{volume}: {why}" if several else why for volume, why in reasons.items())
    return (
        f"volume{'s' * several} {', '.join(map(str, reasons))} (counted from 0) beyond repair, "
        f"to be excluded from the analysis ({'; '.join(named)})"
    )
