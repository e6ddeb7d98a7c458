# SPDX-License-Identifier: Apache-2.0
"""Figures of merit: estimated against true motion, landmarks, corrected series."""

from eddymotion.evaluation.landmarks import (
    LandmarkErrors,
    Landmarks,
    landmark_errors,
    pair_landmarks,
    read_landmarks,
)
from eddymotion.evaluation.motion import (
    MotionComparison,
    MotionScore,
    ball_points,
    brain_points,
    compare_motion,
    constant_offset,
)
from eddymotion.evaluation.series import (
    SeriesQuality,
    assess_series,
    compared_mask,
    correlation_between,
    nearest_neighbours,
    refuse_different,
    smoothness,
)
from eddymotion.evaluation.trajectory import (
    SliceComparisons,
    TrajectoryComparison,
    TrajectoryScore,
    compare_by_slices,
    compare_trajectory,
    motion_within,
    trajectory_coverage,
)
from eddymotion.evaluation.transforms import (
    read_bvals,
    read_grid,
    read_mask,
    read_motion,
    read_transform,
    read_transforms,
)

__all__ = [
    "LandmarkErrors",
    "Landmarks",
    "MotionComparison",
    "MotionScore",
    "SeriesQuality",
    "SliceComparisons",
    "TrajectoryComparison",
    "TrajectoryScore",
    "assess_series",
    "ball_points",
    "brain_points",
    "compare_by_slices",
    "compare_motion",
    "compare_trajectory",
    "compared_mask",
    "constant_offset",
    "correlation_between",
    "landmark_errors",
    "motion_within",
    "nearest_neighbours",
    "pair_landmarks",
    "read_bvals",
    "read_grid",
    "read_landmarks",
    "read_mask",
    "read_motion",
    "read_transform",
    "read_transforms",
    "refuse_different",
    "smoothness",
    "trajectory_coverage",
]
