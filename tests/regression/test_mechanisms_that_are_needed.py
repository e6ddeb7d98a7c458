# SPDX-License-Identifier: Apache-2.0
"""Series and pairs that go wrong without robust weights, without shorter steps, or half solved."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.estimation import Joint, estimate_motion
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.images.image import Image, Spline
from eddymotion.images.pyramid import jittered_points, low_pass
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import (
    ROTATION_RADIUS_MM,
    exp_rigid,
    log_rigid,
    rigid_matrix,
    rms_displacement,
)
from eddymotion.models import AverageModel
from eddymotion.registration import GaussNewton
from eddymotion.registration.problem import Problem
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion
from eddymotion.testing import known_pair
from eddymotion.testing.pairs import pose

N_B0 = 2
ASIDE = np.array([20.0, 10.0, 10.0])


@pytest.fixture(scope="module")
def coarse_head():
    return procedural_head(4.0)


def acquired(head, truth, seed):
    gradients = shelled_scheme({1000: len(truth) - N_B0}, N_B0)
    return acquire(head, gradients, truth, Grid.covering(head, 5.0), snr=20, seed=seed)


def with_something_fixed(data, affine, center, radius, value):
    """Put a bright ball into an image that stays where it is, whatever the head does."""
    voxels = np.moveaxis(np.indices(data.shape[:3]), 0, -1)
    data = np.array(data)
    apart = apply_affine(affine, voxels) - center - ASIDE
    data[np.linalg.norm(apart, axis=-1) < radius] = value
    return data


def error_of_dwis(dwi, found, truth):
    """Root-mean-square error (mm) of diffusion-weighted volumes, in a frame of their own."""
    dwis, common = dwi.gradients.dwis, np.eye(4)
    for _ in range(5):
        apart = np.linalg.inv(found.matrices[dwis] @ common) @ truth.matrices[dwis]
        twists = log_rigid(apart, dwi.brain_center)
        common = common @ exp_rigid(twists.mean(axis=0), dwi.brain_center)
    in_mm = twists * np.repeat([1.0, ROTATION_RADIUS_MM], 3)
    return float(np.sqrt((in_mm**2).sum(axis=1).mean()))


def test_what_stays_while_the_head_moves_does_not_hold_it_back(coarse_head):
    """With equal weights for all points the error is 0.9 to 1.1 mm, with robust ones 0.3 mm."""
    truth = simulate_motion("moderate", 14, np.zeros(3), seed=1)
    dwi = acquired(coarse_head, truth, seed=1)
    signal = with_something_fixed(dwi.signal, dwi.affine, dwi.brain_center, 10.0, 1400.0)
    spoiled = replace(dwi, signal=signal)
    found = estimate_motion(spoiled, estimator=Joint(eddy_current="none"))
    assert error_of_dwis(dwi, found, truth) < 0.5


@pytest.mark.parametrize("seed", [1, 2])
def test_what_stays_in_both_images_does_not_hold_a_pair_back(seed):
    """With equal weights for all points the error is 0.6 to 1.2 mm, with robust ones 0.05 mm."""
    random = np.random.default_rng(seed)
    pair = known_pair(pose(random.uniform(-6, 6, 3), random.uniform(-8, 8, 3)), seed=seed)
    fixed, moving = (
        Image(
            with_something_fixed(image.data, image.affine, np.zeros(3), 16.0, 2000.0),
            image.affine,
        )
        for image in (pair.fixed, pair.moving)
    )
    found = GaussNewton().register(fixed, moving, fixed_mask=pair.fixed_mask, metric="ssd")
    assert pair.error(found) < 0.2


@pytest.mark.slow
def test_a_head_that_goes_back_and_forth_far_is_captured(coarse_head):
    """With two steps at each coarse level the volumes without weighting end 30 mm away."""
    random = np.random.default_rng(1)
    way = random.normal(size=(2, 3))
    shift, turn = way / np.linalg.norm(way, axis=1)[:, None] * [[25.0], [np.deg2rad(35.0)]]
    sides = np.where(np.arange(14) % 2, 1.0, -1.0)
    truth = Motion([rigid_matrix(side * shift, side * turn, np.zeros(3)) for side in sides])
    dwi = acquired(coarse_head, truth, seed=1)
    found = estimate_motion(dwi, estimator=Joint(eddy_current="none"))
    expected = truth.relative_to(dwi.reference)
    b0s = dwi.gradients.b0s
    apart = rms_displacement(found.matrices[b0s], expected.matrices[b0s], dwi.brain_center)
    assert apart.max() < 1.0
    assert error_of_dwis(dwi, found, truth) < 0.6


def test_steps_of_a_series_that_are_too_long_are_halved(tiny):
    """Each step reaches 2.6 times as far as it should: alone it would end farther away."""

    class Rash(CoupledProblem):
        def evaluate(self, motion):
            system = super().evaluate(motion)
            return replace(system, gradients=2.6 * system.gradients)

    b0s = tiny.gradients.b0s
    poses = Motion([rigid_matrix(np.full(3, x), np.full(3, x / 50), np.zeros(3)) for x in (2, -2)])
    problem = Rash(
        [Spline.of(low_pass(tiny.volume(0), 12.0))] * 2,
        tiny.gradients.select(b0s),
        AverageModel(),
        jittered_points(tiny.mask, tiny.affine, 2000, np.random.default_rng(0)),
        tiny.brain_center,
        leave_one_out=True,
    )
    found, descent, _ = problem.solve(poses, 40, 1e-3)
    assert rms_displacement(found[0], found[1], tiny.brain_center) < 0.2
    assert min(descent.costs) < descent.costs[0]


def test_steps_of_a_pair_that_are_too_long_are_halved(monkeypatch):
    """Each step reaches five times as far: more than lengthening and shortening make up for."""
    evaluate = Problem.evaluate

    def rash(self, matrix):
        found = evaluate(self, matrix)
        return found and replace(found, hessian=found.hessian / 5.0)

    monkeypatch.setattr(Problem, "evaluate", rash)
    pair = known_pair(pose([4, -3, 2], [5, -4, 6]))
    found = GaussNewton().register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    assert pair.error(found) < 0.2
