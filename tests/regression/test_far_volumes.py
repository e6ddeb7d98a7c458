# SPDX-License-Identifier: Apache-2.0
"""Volumes far from their neighbours at high b-values, which coarse levels lead astray.

With 12 directions at b=3000, each displaced by up to 20 mm and 25°, some ended 10° to 100° away,
and their standard errors did not tell.
"""

import numpy as np
import pytest

import eddymotion as em
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.search import places_by_signal, search, search_level
from eddymotion.images.grid import Grid
from eddymotion.images.pyramid import band_pass, head_scale, jittered_points
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rms_displacement
from eddymotion.models import GaussianProcessModel, LegendreCovariance
from eddymotion.simulation import acquire, procedural_head, shelled_scheme
from eddymotion.simulation.motion import simulate_motion

SCHEME = shelled_scheme({3000.0: 12}, 2)
ASTRAY = np.array([2, 5, 9])
TURNED = np.array([[0, 0, 0, 0, 1.2, 0], [6, 0, 9, 0.1, -0.7, 0.2], [-4, 9, 2, 0.3, 0.5, 0]])
"""How these volumes are astray: mm and rad, two about the axis around which the head is round."""


def scattered(head, voxel_sizes, seed):
    grid = Grid.covering(head, voxel_sizes)
    truth = simulate_motion("scattered", len(SCHEME), grid.center, seed=seed)
    return acquire(head, SCHEME, truth, grid, snr=20.0, coil_bias=0.13, seed=seed), truth


def test_volumes_astray_are_found_again():
    dwi, truth = scattered(procedural_head(4.0), 4.0, 2)
    dwis, scale = SCHEME.dwis, head_scale(dwi.mask, dwi.voxel_sizes)
    there = truth.matrices[dwis]
    start = there.copy()
    start[ASTRAY] = there[ASTRAY] @ exp_rigid(TURNED, dwi.brain_center)
    level = search_level(scale, 4.0)
    problem = CoupledProblem(
        [band_pass(dwi.volume(volume), level, scale).spline for volume in dwis],
        SCHEME.select(dwis),
        GaussianProcessModel(LegendreCovariance()),
        jittered_points(dwi.mask, dwi.affine, level.n_points, np.random.default_rng(0)),
        dwi.brain_center,
    )
    motion = Motion(start)
    for _ in range(2):
        places = places_by_signal(dwi, dwis, motion)
        fitted = problem.with_model_fitted(motion)
        motion = search(fitted, motion, ASTRAY, places)
    assert rms_displacement(motion.matrices, there, dwi.brain_center).max() < 5.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6])
def test_no_volume_of_few_at_high_b_is_left_astray(seed):
    dwi, truth = scattered(procedural_head(), 3.0, seed)
    found, dwis = em.estimate_motion(dwi), SCHEME.dwis
    apart = np.linalg.inv(truth.matrices[dwis]) @ found.matrices[dwis]
    between = rms_displacement(apart[:, None], apart, dwi.brain_center)
    assert between.max() < 1.0
