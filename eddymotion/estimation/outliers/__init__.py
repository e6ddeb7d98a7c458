# SPDX-License-Identifier: Apache-2.0
"""Slices that lost signal.

A head that moves during the diffusion gradients dephases whole slices, or all slices that were
excited together. Each volume is compared with its leave-one-out prediction:

- :mod:`.gains`: the share of its signal that each slice has kept, with its standard error;
- :mod:`.profiles`: the share expected of an intact slice, from the other slices of its volume;
- :mod:`.scores`: how far the share is from that, and which slices are outliers;
- :mod:`.misfits`: volumes that no pose of the head explains;
- :mod:`.volumes`: how much whole volumes have lost, and which are beyond repair, also in words;
- :mod:`.slices`: where slices are, and how those that lost signal are treated.
"""

from __future__ import annotations

from eddymotion.estimation.outliers.gains import (
    MIN_POINTS_IN_SLICE,
    SliceFit,
    fit_slices,
    spline_through,
)
from eddymotion.estimation.outliers.scores import MEMBER_Z_THRESHOLD, SliceOutliers, score_slices
from eddymotion.estimation.outliers.slices import is_lost, rescaled, slice_heights, slice_row
from eddymotion.estimation.outliers.volumes import (
    MANY_LOST,
    WEAK_VOLUME,
    correlation_left,
    describe_beyond_repair,
    describe_outliers,
    percent_lost,
    reasons_beyond_repair,
    volumes_beyond_repair,
)

__all__ = [
    "MANY_LOST",
    "MEMBER_Z_THRESHOLD",
    "MIN_POINTS_IN_SLICE",
    "WEAK_VOLUME",
    "SliceFit",
    "SliceOutliers",
    "correlation_left",
    "describe_beyond_repair",
    "describe_outliers",
    "fit_slices",
    "is_lost",
    "percent_lost",
    "reasons_beyond_repair",
    "rescaled",
    "score_slices",
    "slice_heights",
    "slice_row",
    "spline_through",
    "volumes_beyond_repair",
]
