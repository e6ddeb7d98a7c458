# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields against a plain twin, written from ``docs/explanation/eddy-currents.md``.

The simulator acquires through the same module that the estimator corrects with: a fault in it
would hide. The twin shares nothing with it: neither the terms nor their slopes nor the inverse.
"""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation

from eddymotion.data.gradients import Gradients
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.simulation import Grid, acquire, procedural_head
from eddymotion.simulation.eddy_currents import simulate_eddy_currents

RADIUS_MM = 80.0
SIZES = (5.0, 6.0, 7.0)
GRIDS = {
    "plain": {"orientation": "RAS"},
    "flipped": {"orientation": "LPS"},
    "sagittal": {"orientation": "PSR"},
    "oblique": {
        "orientation": "LAS",
        "rotation": Rotation.from_euler("xyz", [12, -17, 25], degrees=True).as_matrix(),
    },
}
AXES = ["i", "j", "k", "i-", "j-", "k-"]


def displacement(e, u):
    """Displacement ``d = e · P(u)`` (mm) at one place."""
    x, y, z = u
    terms = [x, y, z]
    terms += [x**2, y**2, z**2, x * y, x * z, y * z]
    terms += [x**3, y**3, z**3, x**2 * y, x**2 * z, x * y**2, y**2 * z, x * z**2, y * z**2]
    terms += [x * y * z]
    return sum(weight * term for weight, term in zip(e, terms, strict=False))


def stretch(e, s, pe, center):
    """Return ``1 − ∂d/∂pe`` at a scanner position: exact central differences of a cubic."""
    h = 20.0

    def d(step):
        return displacement(e, (s + step * pe - center) / RADIUS_MM)

    return 1.0 - (8 * (d(h) - d(-h)) - (d(2 * h) - d(-2 * h))) / (12 * h)


def recorded_from(e, r, pe, center):
    """Scanner position of what is recorded at `r`: the root of ``s − pe · d(s) = r``."""

    def miss(t):
        return t - displacement(e, (r + t * pe - center) / RADIUS_MM)

    return r + brentq(miss, -40.0, 40.0, xtol=1e-11) * pe


def axis_of(grid, pe_axis):
    """Phase-encoding direction, RAS+: along growing indices, or against them."""
    column = grid.affine[:3, {"i": 0, "j": 1, "k": 2}[pe_axis[0]]]
    return column / np.sqrt(column @ column) * (-1.0 if len(pe_axis) == 2 else 1.0)


@pytest.mark.parametrize("n_terms", [3, 9, 19])
@pytest.mark.parametrize(
    "pose", [np.eye(4), rigid_matrix([3, -8, 5], [0.1, -0.3, 0.2], [0, 0, 9])]
)
def test_field_moves_and_scales_as_the_definition_says(n_terms, pose):
    random = np.random.default_rng(n_terms)
    pe = np.array([0.36, -0.8, 0.48])
    center = np.array([5.0, -7.0, 11.0])
    e = random.normal(size=(3, n_terms))
    points = random.uniform(-70, 70, (25, 3))
    motion = Motion(np.tile(pose, (3, 1, 1)), eddy_currents=EddyCurrents(e, pe, center))
    recorded, factor = motion.displaced(2, points)
    eddy = motion.eddy_currents
    for point, where, times in zip(points, recorded, factor, strict=True):
        s = pose[:3, :3] @ point + pose[:3, 3]
        expected = s - pe * displacement(e[2], (s - center) / RADIUS_MM)
        np.testing.assert_allclose(where, expected, atol=1e-9)
        np.testing.assert_allclose(times, stretch(e[2], s, pe, center), atol=1e-6)
        np.testing.assert_allclose(eddy.recorded(2, s[None])[0], expected, atol=1e-9)
        back, scale = eddy.origin(2, expected[None])
        np.testing.assert_allclose(back[0], recorded_from(e[2], expected, pe, center), atol=1e-8)
        np.testing.assert_allclose(scale[0], times, atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("pe_axis", AXES)
def test_scan_records_the_head_where_the_definition_says(name, pe_axis):
    """Signal over a voxel at a place of the scan is that of the head where it came from."""
    head = procedural_head(8.0)
    grid = Grid.covering(head, SIZES, **GRIDS[name])
    gradients = Gradients([0, 1000, 1000], [[0, 0, 0], [0.6, 0, 0.8], [0, 1, 0]])
    pose = rigid_matrix(np.array([4.0, -3.0, 2.0]), np.array([0.1, -0.1, 0.2]), np.zeros(3))
    eddy = simulate_eddy_currents(
        gradients, grid, order="quadratic", amplitude=6.0, pe_axis=pe_axis, seed=4
    )
    pe, center = axis_of(grid, pe_axis), grid.affine[:3] @ [*(np.array(grid.shape) - 1) / 2.0, 1]
    np.testing.assert_allclose(eddy.pe, pe, atol=1e-12)
    np.testing.assert_allclose(eddy.center, center, atol=1e-9)
    motion = Motion(np.tile(pose, (3, 1, 1)))
    dwi = acquire(head, gradients, motion, grid, snr=None, eddy=eddy)
    bvec = pose[:3, :3].T @ gradients.bvecs[1]
    image = head.signal(1000.0, bvec).astype(float)
    to_head = np.linalg.inv(head.affine) @ np.linalg.inv(pose)
    e = eddy.coefficients[1]
    brain = np.argwhere(dwi.mask)
    for voxel in brain[np.random.default_rng(0).choice(len(brain), 15, replace=False)]:
        found = 0.0
        for corner in np.ndindex(2, 2, 2):
            r = grid.affine[:3] @ [*(voxel + np.array(corner) / 2 - 0.25), 1.0]
            s = recorded_from(e, r, pe, center)
            place = (to_head[:3] @ [*s, 1.0])[:, None]
            value = map_coordinates(image, place, order=3, mode="mirror")[0]
            found += value / stretch(e, s, pe, center) / 8
        np.testing.assert_allclose(dwi.signal[tuple(voxel)][1], max(found, 0), rtol=2e-3, atol=0.5)
