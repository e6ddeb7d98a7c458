# SPDX-License-Identifier: Apache-2.0
"""A shift between b=0 and all diffusion-weighted volumes must be seen in the report."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from eddymotion.reports.figures import b0_edges_figure
from eddymotion.reports.slices import PLANES, Slices

TURNED_AXIS = {"sagittal": 0, "axial": 1}
"""Which axis of these planes is y."""


def edge_shift(image, lines, axis):
    """Shift of the lines, pixels, that puts them on the strongest edges of the picture."""
    points = np.concatenate([path.vertices for path in lines.get_paths()])
    left, right, bottom, top = image.get_extent()
    picture = np.asarray(image.get_array())
    inside = (points - [left, bottom]) / [right - left, top - bottom]
    points = (inside * picture.shape[::-1] - 0.5)[:, ::-1]  # row, column
    slope = np.hypot(*np.gradient(picture))
    shifts = np.arange(-4, 4.5, 0.5)
    along = np.eye(2)[1 - axis]
    hit = [map_coordinates(slope, (points + s * along).T, order=1).mean() for s in shifts]
    return shifts[int(np.argmax(hit))]


@pytest.mark.parametrize("voxels", [2, -2])
def test_lines_leave_the_edges_of_displaced_volumes(still, voxels):
    signal = np.array(still.signal)
    dwis = still.gradients.dwis
    signal[..., dwis] = np.roll(signal[..., dwis], voxels, axis=1)
    displaced = Slices.of(replace(still, signal=signal))
    (axes,) = b0_edges_figure(Slices.of(still), displaced).axes
    assert len(axes.images) == len(axes.collections) == 2 * len(PLANES)
    for name, axis in TURNED_AXIS.items():
        rows = (PLANES.index(name), len(PLANES) + PLANES.index(name))
        at_rest, apart = (edge_shift(axes.images[k], axes.collections[k], axis) for k in rows)
        assert at_rest == pytest.approx(0, abs=0.5)
        assert apart - at_rest == pytest.approx(voxels, abs=0.5)
