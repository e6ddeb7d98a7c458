# SPDX-License-Identifier: Apache-2.0
"""The same images in voxels of another size: all lengths follow, and no angle changes."""

from dataclasses import replace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.estimation.period_scatter import PeriodScatter
from eddymotion.simulation import (
    Grid,
    acquire,
    procedural_head,
    shelled_scheme,
    simulate_eddy_currents,
    simulate_motion,
)
from eddymotion.simulation.within_volumes import simulate_within_volumes

SMALLER = 1 / 8  # a power of two: no digit is lost


def shrunk(dwi):
    return replace(dwi, affine=np.diag([SMALLER] * 3 + [1.0]) @ dwi.affine)


def assert_alike(found, small, atol=1e-9, rtol=1e-6):
    """Poses of the small head are those of the large one, in its own millimetres."""
    lengths = np.repeat([SMALLER, 1.0], 3)
    expected = found.matrices.copy()
    expected[:, :3, 3] *= SMALLER
    np.testing.assert_allclose(small.matrices, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(
        small.standard_errors, found.standard_errors * lengths, rtol=rtol, atol=1e-12
    )


def test_a_mouse_is_corrected_as_a_man_is():
    head, gradients = procedural_head(8.0), shelled_scheme({1000: 13}, 3)
    grid = Grid.covering(head, 8.0)
    motion = simulate_motion("moderate", len(gradients), grid.center, seed=1)
    eddy = simulate_eddy_currents(gradients, grid, amplitude=2.0, seed=1)
    dwi = acquire(head, gradients, motion, grid, snr=30, eddy=eddy)
    found, small = em.estimate_motion(dwi), em.estimate_motion(shrunk(dwi))
    assert np.abs(found.matrices[:, :3, 3]).max() > 1.0
    assert_alike(found, small)
    points = grid.center + np.random.default_rng(0).normal(scale=40, size=(50, 3))
    for volume in range(len(dwi)):
        expected = found.eddy_currents.recorded(volume, points) * SMALLER
        recorded = small.eddy_currents.recorded(volume, points * SMALLER)
        np.testing.assert_allclose(recorded, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, SMALLER])
def test_a_mouse_that_turned_within_a_volume_is_seen_as_a_man_is(size):
    """Parts of a volume 3 mm or 3 mm of a turn apart, where noise is half a millimetre of each."""
    unit = np.repeat([size, 1.0], 3)
    noise = np.tile(np.diag([0.25] * 3 + [1e-4] * 3), (4, 1, 1))  # 0.5 mm at 50 mm: 0.01 rad
    apart = noise.copy()
    apart[1, 0, 0], apart[2, 4, 4] = 9.0, (3 / 50) ** 2
    noise, apart = noise * np.outer(unit, unit), apart * np.outer(unit, unit)
    scatter = PeriodScatter(noise, apart, noise, 1e-3 * noise, np.zeros((4, 5), bool))
    expected = np.array([1.5, 1.25 + 9, 1.25 + 9, 1.5]) / (1.5 * 1.001)
    np.testing.assert_allclose(scatter.evidence(size), expected)


@pytest.mark.slow
def test_a_mouse_that_nods_is_followed_as_a_man_is():
    """But for what holds numbers away from zero."""
    dwi, _ = simulate_within_volumes(head=procedural_head(6.0), voxel_size=6.0, snr=40, seed=2)
    found, small = em.estimate_motion(dwi), em.estimate_motion(shrunk(dwi))
    assert found.trajectory.moving.any()
    assert_alike(found, small, atol=3e-5, rtol=1e-2)
    np.testing.assert_array_equal(small.trajectory.moving, found.trajectory.moving)
    poses = found.trajectory.poses(found.matrices)
    poses[..., :3, 3] *= SMALLER
    np.testing.assert_allclose(small.trajectory.poses(small.matrices), poses, rtol=0, atol=3e-5)
    lengths = np.repeat([SMALLER, 1.0], 3)
    np.testing.assert_allclose(
        small.trajectory.standard_errors, found.trajectory.standard_errors * lengths, rtol=1e-2
    )
