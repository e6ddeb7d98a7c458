# SPDX-License-Identifier: Apache-2.0
"""What the data do not determine is not moved, or reported: shells, directions of motion."""

import logging

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation import estimate_motion
from eddymotion.estimation.frames.errors import covariances_of_few
from eddymotion.estimation.frames.ties import joined_in_time, tied_by_data, tied_volumes
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rigid_parameters, rms_displacement
from eddymotion.models import get_model
from eddymotion.simulation import (
    Grid,
    acquire,
    cartesian_scheme,
    procedural_head,
    shelled_scheme,
)

AXES = np.eye(3)


def blocks(bvals, n_b0=1):
    """Three orthogonal directions at each b-value, one after the other."""
    b = np.concatenate([np.zeros(n_b0), np.repeat(bvals, 3)])
    return Gradients(b, np.concatenate([np.zeros((n_b0, 3)), np.tile(AXES, (len(bvals), 1))]))


@pytest.mark.parametrize(
    ("bvals", "expected"),
    [
        ([60, 90, 120, 160, 200], [60, 90, 120, 160, 200]),
        ([80, 100, 200, 400, 800], [80, 100, 200, 400, 800]),
        ([495, 500, 505, 990, 1000, 1010, 2990, 3040], [500, 1000, 3015]),
        ([700, 780, 2000, 2090], [740, 2045]),
    ],
)
def test_low_b_values_are_not_one_shell(bvals, expected):
    np.testing.assert_allclose(blocks(bvals).shell_bvals, expected)


def test_a_volume_of_few_is_known_no_better_than_it_lies_near_a_neighbour(caplog):
    """Five directions in a frame of their own; one settled 10° away from where the head rests."""
    dwi = acquire(procedural_head(8.0), shelled_scheme({1000: 5}, 1), Motion.identity(6),
                  Grid.covering(procedural_head(8.0), 8.0))  # fmt: skip
    twist = np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.deg2rad(10)])
    motion = Motion.identity(6).updated(np.array([3]), exp_rigid(twist, dwi.brain_center)[None])
    few = covariances_of_few(motion, [np.arange(1, 6)], dwi)
    assert 1.96 * np.sqrt(few[3, 5, 5]) >= np.deg2rad(9.99)
    assert np.abs(np.delete(few, 3, axis=0)).max() < 1e-12  # they lie at a neighbour's pose
    assert "volume 3 (counted from 0): away from both neighbours" in caplog.text
    assert not covariances_of_few(
        motion, [np.arange(6)], dwi
    ).any()  # enough volumes speak for themselves


def test_a_scheme_without_shells_is_one_frame():
    """Single volumes at a b-value of their own are tied by q-space, not by a shell's mean."""
    gradients = cartesian_scheme(55, 5000.0, 3)
    model = get_model("auto", gradients)
    frames = tied_volumes(gradients, model)
    assert [len(frame) for frame in frames] == [55]
    assert [len(frame) for frame in tied_by_data(frames, gradients, model)] == [55]


def test_shells_that_hardly_tie_are_frames_of_their_own():
    def frames(shells):
        gradients = shelled_scheme(shells, 1)
        groups = tied_volumes(gradients, get_model("gp", gradients))
        return [np.unique(gradients.bvals[group]).tolist() for group in groups]

    assert frames({500: 6, 1000: 15, 2000: 15, 3000: 60}) == [[500, 1000, 2000, 3000]]
    assert frames({1000: 12, 3000: 24}) == [[1000, 3000]]
    assert frames({700: 3, 1000: 3, 2000: 3}) == [[700], [1000], [2000]]
    assert frames({100: 12, 1000: 30, 2000: 4}) == [[100], [2000], [1000]]
    assert frames({200: 20, 500: 20}) == [[200], [500]]  # too low for what the model gets wrong


def test_several_pairs_near_in_time_join_frames_better_than_the_nearest():
    """Poses scatter by 0.3 mm: what one pair alone proposes is off by 1.03 mm, RMS."""
    random, center = np.random.default_rng(0), np.zeros(3)
    offset = exp_rigid(np.array([3.0, -2.0, 1.0, 0.05, 0.02, -0.03]), center)
    placed, group = np.arange(4), np.arange(4, 8)
    errors = []
    for _ in range(100):
        twists = random.normal(scale=0.3, size=(8, 6)) * [1, 1, 1, 0.02, 0.02, 0.02]
        poses = exp_rigid(twists, center)
        apart = poses.copy()
        apart[group] = poses[group] @ np.linalg.inv(offset)
        joined = joined_in_time(Motion(apart), [group, placed], center)
        np.testing.assert_array_equal(joined.matrices[placed], poses[placed])
        errors.append(rms_displacement(joined.matrices[4], poses[4], center))
    assert np.sqrt(np.mean(np.square(errors))) < 0.9


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 36])
@pytest.mark.slow
def test_a_head_at_rest_stays_where_three_directions_a_shell_are_given(seed):
    """Fluid is as dark as tissue at b=400: images tell two frames, 2 mm apart (seed 36)."""
    head = procedural_head(5.0)
    gradients = blocks([50, 100, 200, 400, 800], n_b0=2)
    grid = Grid.covering(head, 5.0)
    dwi = acquire(head, gradients, Motion.identity(len(gradients)), grid, snr=20, seed=seed)
    found = estimate_motion(dwi)
    assert rms_displacement(found.matrices, np.eye(4), dwi.center).max() < 0.5
    errors = np.abs(rigid_parameters(found.matrices, dwi.center))
    assert (errors <= 1.96 * found.standard_errors + 1e-9)[1:].mean() > 0.85


@pytest.fixture(scope="module")
def cylinder():
    """Oil in a tube along z that is longer than the image: isotropic diffusion, no motion."""
    gradients = shelled_scheme({700: 7, 2000: 8}, 1, seed=2)
    x, y, _ = np.mgrid[-22:23, -22:23, -6:6] * 5.0 + 0.3
    inside = np.clip((55 - np.hypot(x, 1.15 * y)) / 5.0, 0, 1)
    random = np.random.default_rng(4)
    signal = 1000 * inside[..., None] * np.exp(-4e-4 * gradients.bvals)
    noise = random.normal(scale=15, size=(2, *signal.shape))
    signal = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = -110, -110, -30
    return DWI(signal, affine, gradients, inside > 0.5)


def test_a_direction_that_nothing_shows_is_held_and_reported(cylinder, caplog):
    with caplog.at_level(logging.WARNING, "eddymotion"):
        found = estimate_motion(cylinder)
    assert "translation along z" in caplog.text
    moved = rigid_parameters(found.matrices, cylinder.center)
    assert np.abs(moved[:, 2]).max() < 0.05
    assert np.isnan(found.standard_errors[:, 2]).all()
    assert np.isfinite(found.standard_errors[:, :2]).all()
    assert rms_displacement(found.matrices, np.eye(4), cylinder.center).max() < 0.5


def test_a_head_shows_all_directions(estimated):
    assert estimated.undetermined is None
    assert np.isfinite(estimated.standard_errors).all()
