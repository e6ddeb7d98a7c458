# SPDX-License-Identifier: Apache-2.0
"""What the leave-one-out loop leaves to the course of the head, and the points of its passes."""

from __future__ import annotations

import numpy as np
import pytest

from eddymotion.data.series import DWI
from eddymotion.estimation.lovo import without_gradient_pulls
from eddymotion.estimation.lovo.schedule import POINTS_FACTOR, registrar_at
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rigid_parameters
from eddymotion.registration import GaussNewton
from eddymotion.registration.gauss_newton import REFINE, Level
from eddymotion.simulation import shelled_scheme

GRADIENTS = shelled_scheme({1000.0: 24, 2000.0: 24}, 3)
N = len(GRADIENTS)


@pytest.fixture
def dwi():
    shape = (20, 24, 20)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    return DWI(np.ones((*shape, N), np.float32), affine, GRADIENTS, np.ones(shape, bool))


def a_course(center):
    """A head that drifts, with little from volume to volume, and jumps once."""
    steps = np.random.default_rng(0).normal(0, [0.01] * 3 + [1e-4] * 3, (N, 6))
    steps[20] += [1.0, 0.5, 0.0, 0.01, 0.0, 0.0]
    return Motion(exp_rigid(np.cumsum(steps, axis=0), center))


def pulled(motion, center):
    """Displace volumes by a quadratic function of their direction, of another sign each shell."""
    x, y, z = GRADIENTS.rotated(motion.rotations).bvecs.T
    sign = np.where(GRADIENTS.bvals > 1500, -1.0, 1.0)
    away = sign[:, None] * np.outer(x * x - y * y, [0.1, 0, 0, 0, 0, 0])
    away += sign[:, None] * np.outer(2 * y * z, [0, 0, 0.1, 0, 0, 1e-3])
    return motion.updated(np.arange(N), motion.matrices @ exp_rigid(away, center))


def errors(motion, truth, volumes, dwi):
    of_both = (
        rigid_parameters(one.matrices[volumes], dwi.brain_center) for one in (motion, truth)
    )
    away = np.subtract(*of_both)[:, :3]
    return np.sqrt(((away - away.mean(axis=0)) ** 2).mean())


@pytest.mark.parametrize("groups", [[GRADIENTS.dwis], GRADIENTS.shells])
def test_what_follows_the_direction_is_left_to_the_course(dwi, groups):
    truth = a_course(dwi.brain_center)
    found = pulled(truth, dwi.brain_center)
    before, placed = found.matrices.copy(), np.ones(N, bool)
    placed[[7, 30]] = False
    free = without_gradient_pulls(dwi, found, placed, groups)

    for group in groups:
        group = group[placed[group]]
        assert errors(free, truth, group, dwi) < 0.35 * errors(found, truth, group, dwi)
    stay = GRADIENTS.is_b0 | ~placed
    np.testing.assert_array_equal(free.matrices[stay], before[stay])
    np.testing.assert_array_equal(found.matrices, before)


def test_course_that_follows_no_direction_stays(dwi):
    truth = a_course(dwi.brain_center)
    free = without_gradient_pulls(dwi, truth, np.ones(N, bool), [GRADIENTS.dwis])
    assert errors(free, truth, GRADIENTS.dwis, dwi) < 0.005


def test_nothing_that_was_placed_is_no_fault(dwi):
    found, placed = a_course(dwi.brain_center), GRADIENTS.is_b0
    free = without_gradient_pulls(dwi, found, placed, GRADIENTS.shells)
    np.testing.assert_array_equal(free.matrices, found.matrices)


def test_last_passes_compare_more_points():
    n_points = [registrar_at(GaussNewton(), k, 5).levels[-1].n_points for k in range(2, 6)]
    few = REFINE[-1].n_points
    assert n_points == [few, few, POINTS_FACTOR * few, POINTS_FACTOR * few]


def test_levels_that_were_given_stay():
    own = GaussNewton(levels=(Level(8.0, 500), Level(1.0, 700, highpass=3.0)))
    assert [registrar_at(own, k, 5).levels for k in (2, 5)] == [own.levels[-1:]] * 2
