# SPDX-License-Identifier: Apache-2.0
"""Slices that lost signal.

A head that moves during the diffusion gradients dephases whole slices, or all slices that were
excited together. What a volume shows is compared with its leave-one-out prediction:

- :mod:`.gains`: what each slice has kept of its signal, and how well that is known;
- :mod:`.profiles`: what a slice that lost nothing would show, by the others of its volume;
- :mod:`.scores`: how far it is from that, and which slices are outliers;
- :mod:`.misfits`: volumes that no pose of the head explains;
- :mod:`.volumes`: what is lost of whole volumes, which are beyond repair, and that in words;
- :mod:`.slices`: where slices are, and what becomes of those that lost signal.
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
    share_lost,
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
    "share_lost",
    "slice_heights",
    "slice_row",
    "spline_through",
    "volumes_beyond_repair",
]
