# SPDX-License-Identifier: Apache-2.0
"""The levels of the joint solution, coarse to fine, and when each has converged."""

from __future__ import annotations

from eddymotion.images.pyramid import Level

COARSE = (Level(16.0, 3_000), Level(10.0, 4_000), Level(5.0, 8_000))
FINE = (Level(1.0, 12_000, highpass=2.5), Level(1.0, 40_000, highpass=2.5))
"""Coarse widths scale with the head, since they must cover its motion; the fine band scales with
the voxel, since that is the scale of noise and detail."""

COARSE_ITERATIONS = 8
FINE_ITERATIONS = 20

COARSE_TOLERANCE, FINE_TOLERANCE = 0.02, 0.001
"""A level ends once the root-mean-square displacement still to go, over the points, is smaller. At
coarse levels it is relative to the width of the filter, since the next level only needs to begin
near; at fine levels in voxels."""

NEGLIGIBLE = {FINE[0]: 0.25, FINE[1]: 0.1}
"""The same, relative to the displacement that noise causes at these points. Noise displaces the
volumes twice as far at the first fine level as at the last, which goes on from there."""

CHANCE_MM, MOST_POINTS, MOST_VALUES = 0.03, 120_000, 8_000_000
"""If noise displaces the volumes at the first fine level by more than `CHANCE_MM` (root mean
square, in a human head), the last level gets more points, in proportion to the square of the
excess, since signal at points left out is wasted: at most `MOST_POINTS`, half of the voxels, and
`MOST_VALUES` values of all volumes."""

STEADY = 0.1
"""Volumes may move by this share of the width of the filter before the normal matrix is computed
again."""
