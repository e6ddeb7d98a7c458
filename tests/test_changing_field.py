# SPDX-License-Identifier: Apache-2.0
"""Fields that follow the head: found where they are there, and left out where they are not."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine

import eddymotion as em
from eddymotion.data.acquisition import Acquisition
from eddymotion.estimation.fields import (
    FieldPrior,
    follow_poses,
    pose_regressors,
    untold_covariances,
)
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme

CENTER = np.array([3.0, -10.0, 20.0])
SCHEME = shelled_scheme({1000.0: 24}, 2, seed=3)


@pytest.fixture(scope="module")
def matrices():
    """A head that pitches, rolls and turns about the main field."""
    random = np.random.default_rng(2)
    walk = np.cumsum(random.normal(size=(len(SCHEME), 6)), axis=0)
    walk = (walk - walk[0]) / np.abs(walk - walk[0]).max(axis=0)
    return rigid_matrix(walk[:, :3] * 2.0, walk[:, 3:] * np.deg2rad([9.0, 4.0, 6.0]), CENTER)


@pytest.fixture(scope="module")
def response():
    return np.random.default_rng(4).normal(scale=[[0.05]] * 3 + [[0.3]] * 2, size=(5, 9))


def test_a_turn_about_the_main_field_changes_nothing():
    angles = np.array([[0, 0, 0], [0, 0, 0.2], [0.1, 0, 0], [0, 0.1, 0]])
    poses = pose_regressors(rigid_matrix(np.zeros((4, 3)), angles, CENTER), CENTER, 0)
    np.testing.assert_allclose(poses[:2], 0, atol=1e-12)
    np.testing.assert_allclose(poses[2:], [[0, 0, 0, 5, 0], [0, 0, 0, 0, 5]], atol=1e-12)


def test_what_follows_the_head_is_told_from_gradients_and_noise(matrices, response):
    random, n = np.random.default_rng(7), len(SCHEME)
    poses = pose_regressors(matrices, CENTER, 0)
    by_gradients = SCHEME.qvecs @ random.normal(size=(3, 9))
    noise = random.normal(scale=0.1, size=(n, 9))
    found = follow_poses(by_gradients + poses @ response + noise, SCHEME, poses)
    assert found.is_there
    np.testing.assert_allclose(poses @ found.response, poses @ response, atol=0.4)
    assert 0.08 < found.own_mm < 0.12
    assert not follow_poses(by_gradients + noise, SCHEME, poses).is_there
    little = follow_poses(by_gradients + 0.1 * poses @ response + 0.1 * noise, SCHEME, poses)
    assert little.p < 1e-6
    assert not little.is_there, "as a field that only turns with the head seems to"
    few = np.arange(12)
    assert follow_poses(noise[few], SCHEME.select(few), poses[few]) is None


def test_common_field_is_that_of_the_reference(matrices, response):
    """A field common to all volumes says nothing: it is none where the head was at first."""
    poses = pose_regressors(matrices, CENTER, 0)
    fields = SCHEME.qvecs @ np.ones((3, 9)) + poses @ response
    prior = FieldPrior(np.ones(9), poses)
    np.testing.assert_allclose(prior.centred(fields + 5.0, SCHEME), fields, atol=1e-6)
    some = np.arange(5, 26)
    np.testing.assert_allclose(
        prior.of_volumes(some).centred(fields[some] - 2.0, SCHEME.select(some)),
        fields[some], atol=1e-6,
    )  # fmt: skip


def test_poses_are_less_certain_along_the_phase_encoding(matrices, response):
    poses = pose_regressors(matrices, CENTER, 0)
    eddy = EddyCurrents(poses @ response, np.array([0.0, 1.0, 0.0]), CENTER)
    points = CENTER + np.random.default_rng(0).normal(scale=50, size=(200, 3))
    found = untold_covariances(eddy, response, poses, points)
    assert not found[0].any()
    assert (found[5:, 1, 1] > 0).all()
    assert not found[:, [0, 2], [0, 2]].any()


@pytest.mark.slow
def test_a_series_whose_field_changes_with_the_head_is_corrected(matrices, response):
    """b=0 volumes, too; fields that only follow the gradients could not, quadratic ones less."""
    head = procedural_head(4.0)
    grid = Grid.covering(head, 4.0, "LAS")
    poses = pose_regressors(matrices, grid.center, 0)
    cubic = np.random.default_rng(5).normal(scale=[[0.02]] * 3 + [[0.15]] * 2, size=(5, 10))
    coefficients = poses @ np.hstack([response, cubic])
    eddy = EddyCurrents(coefficients, grid.affine[:3, 1] / 4.0, grid.center)
    acquisition = Acquisition.every(SCHEME, grid.affine, phase_encoding="j")

    def scan(fields):
        dwi = acquire(head, SCHEME, em.Motion(matrices), grid, snr=30, eddy=fields, n_threads=2)
        return replace(dwi, acquisition=acquisition)

    assert em.estimate_motion(scan(None), n_threads=2).eddy_currents is None
    dwi = scan(eddy)
    points = dwi.brain_center + np.random.default_rng(1).normal(scale=35, size=(300, 3))
    true = np.stack([eddy.displaced(v, points, pose)[0] for v, pose in enumerate(matrices)])

    def errors(recorded):
        return np.stack(recorded) - true

    def rms(wrong):
        return np.sqrt((wrong**2).sum(axis=2).mean(axis=1))

    def of_order(order):
        found = em.estimate_motion(dwi, estimator=em.Joint(eddy_currents=order), n_threads=2)
        assert found.eddy_currents.order == {"auto": "cubic"}.get(order, order)
        return errors([found.displaced(volume, points)[0] for volume in range(len(dwi))])

    b0, dwis = SCHEME.b0s[1], SCHEME.dwis
    without = rms(errors([apply_affine(pose, points) for pose in matrices]))
    auto, quadratic = of_order("auto"), of_order("quadratic")
    assert rms(auto).mean() < 0.4 * without.mean()
    assert rms(auto)[b0] < 0.5 * without[b0]
    auto, quadratic = (wrong[dwis] - wrong[dwis].mean(axis=0) for wrong in (auto, quadratic))
    assert rms(auto).mean() < 0.8 * rms(quadratic).mean()
