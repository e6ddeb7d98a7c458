# SPDX-License-Identifier: Apache-2.0
"""Lines stay on their picture, and a picture shows the head on whatever grid another lies."""

from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image

from eddymotion.reports.figures import b0_edges_figure
from eddymotion.reports.panels import FigureBox, Panels
from eddymotion.reports.slices import PLANES, Slices


def test_a_line_ends_where_its_picture_does():
    panels = Panels(3.0, 1.0)
    cell, picture = FigureBox(1.0, 0.0, 1.0, 1.0), np.ones((10, 10))
    panels.image(cell, picture, (1, 1), vmin=0, vmax=1)
    across = np.array([[-9.0, 5.0], [19.0, 5.0]])
    panels.lines(cell, [across], picture.shape, (1, 1), colors="orange")
    file = BytesIO()
    panels.figure.savefig(file, dpi=100)
    shown = np.asarray(Image.open(file).convert("RGB"))
    colored = np.flatnonzero((np.ptp(shown.astype(int), axis=2) > 50).any(axis=0))
    assert (colored[0], colored[-1]) == (100, 199)


def test_another_grid_before_shows_the_same_of_the_head(moving):
    """Twelve voxels of air on one side more, as on the grid of a template or of a T1w."""
    margin = ((12, 0), (12, 0), (12, 0))
    affine = moving.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [12, 12, 12]
    wide = replace(moving, signal=np.pad(moving.signal, (*margin, (0, 0))), affine=affine,
                   mask=np.pad(moving.mask, margin))  # fmt: skip
    images = b0_edges_figure(Slices.of(moving), Slices.of(wide)).axes[0].images
    assert len(images) == 2 * len(PLANES)
    for before, after in zip(images[:3], images[3:], strict=True):
        np.testing.assert_allclose(before.get_array(), after.get_array(), rtol=0.05, atol=0.01)
