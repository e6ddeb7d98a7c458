# SPDX-License-Identifier: Apache-2.0
"""The levels of the joint solution, coarse to fine, and when each has come near enough."""

from __future__ import annotations

from eddymotion.images.pyramid import Level

COARSE = (Level(16.0, 3_000), Level(10.0, 4_000), Level(5.0, 8_000))
FINE = (Level(1.0, 12_000, highpass=2.5), Level(1.0, 40_000, highpass=2.5))
"""Coarse widths scale with the head, since they must cover its motion; the fine band scales with
the voxel, since that is the scale of noise and detail."""

COARSE_ITERATIONS = 8
FINE_ITERATIONS = 20

COARSE_TOLERANCE, FINE_TOLERANCE = 0.02, 0.001
"""Root-mean-square way that is left over the points, at which a level ends: relative to the width
of a coarse filter, of which the next level needs no more than to begin near; in voxels at fine
levels."""

NEGLIGIBLE = {FINE[0]: 0.25, FINE[1]: 0.1}
"""The same, relative to what noise displaces the volumes by at these points: of the first it is
twice as much, and the last level goes on from there."""

CHANCE_MM, MOST_POINTS, MOST_VALUES = 0.03, 120_000, 8_000_000
"""Where noise displaces the volumes at the first fine level by more, in a human head (root mean
square), the last level has more points, in proportion to its square: up to so many, to half of the
voxels, and to so many values of all volumes. Points left out are signal that is wasted."""

STEADY = 0.1
"""Share of the width of a filter up to which volumes move without another normal matrix."""
