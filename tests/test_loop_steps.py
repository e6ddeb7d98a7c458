# SPDX-License-Identifier: Apache-2.0
"""The grid that predictions of the loop are made on, and the step of all volumes after a pass."""

from __future__ import annotations

import numpy as np
import pytest

from eddymotion.data.series import DWI
from eddymotion.estimation.lovo import moving_together
from eddymotion.estimation.lovo.moving_together import Following, joined_ways, move_together
from eddymotion.estimation.lovo.prediction_grid import prediction_grid
from eddymotion.estimation.lovo.schedule import registrar_at
from eddymotion.estimation.lovo.shading import shaded_like
from eddymotion.images.grid import Grid
from eddymotion.images.image import Image
from eddymotion.images.kernels import smooth
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.models import AverageModel, get_model
from eddymotion.registration import GaussNewton
from eddymotion.registration.engines.dipy import DipyRegistrar
from eddymotion.registration.gauss_newton import REFINE
from eddymotion.resampling import resample
from eddymotion.simulation import shelled_scheme

GRADIENTS = shelled_scheme({1000.0: 6, 2500.0: 8}, 2)
N = len(GRADIENTS)
CENTER = np.array([3.0, -2.0, 1.0])
RANDOM = np.random.default_rng


def some_ways(random, n=N):
    return random.normal(size=(n, 6)) * ([0.1] * 3 + [2e-3] * 3)


def test_the_step_of_all_is_the_joint_one():
    random = RANDOM(1)
    slopes = random.normal(size=(5, 6, 40)) * ([[1.0]] * 3 + [[30.0]] * 3)
    root = random.normal(size=(5, 9))
    precision, ways = root @ root.T, some_ways(random, 5)
    held_out = -precision / np.diag(precision)[:, None]
    np.fill_diagonal(held_out, 0.0)
    normal, right = np.zeros((5, 6, 5, 6)), np.zeros((5, 6))
    for i in range(5):
        own = precision[i, i] * slopes[i] @ slopes[i].T
        right[i] = own @ ways[i]
        for j in range(5):
            normal[i, :, j] = precision[i, j] * slopes[i] @ slopes[j].T
        normal[i, :, i] += moving_together.DAMPING * own
    expected = np.linalg.solve(normal.reshape(30, 30), right.ravel()).reshape(5, 6)
    np.testing.assert_allclose(joined_ways(ways, slopes, held_out), expected, rtol=1e-8)


def test_of_a_mean_it_is_the_way_to_the_mean_of_all():
    random = RANDOM(2)
    ways = some_ways(random, 4)
    ways -= ways.mean(axis=0)
    slopes = np.repeat(random.normal(size=(1, 6, 40)), 4, axis=0)
    steps = joined_ways(ways, slopes, (1 - np.eye(4)) / 3)
    expected = ways / (1 / 0.75 + moving_together.DAMPING)
    np.testing.assert_allclose(steps, expected, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def predicted():
    """Images that are a little alike, on a grid, and a mask."""
    random = RANDOM(3)
    volumes = random.normal(size=(N, 18, 20, 16)) + 2 * random.normal(size=(18, 20, 16))
    images = np.stack([smooth(one.astype(np.float32), [1.0] * 3) for one in volumes], axis=3)
    brain = np.zeros((18, 20, 16), bool)
    brain[3:-3, 3:-3, 3:-3] = True
    return images, Image(brain, np.diag([2.0, 2.0, 2.0, 1.0]))


def moved(predicted, ways, following, order=slice(None), reach=2.0):
    """Steps that volumes take which found some ways."""
    init = Motion(exp_rigid(some_ways(RANDOM(4)), CENTER))
    found = Motion(init.matrices @ exp_rigid(ways, CENTER))
    found = init.updated(ways.any(axis=1), found.matrices[ways.any(axis=1)])
    images, brain = predicted
    after = move_together(
        Motion(init.matrices[order]), Motion(found.matrices[order]), images[..., order], brain,
        following, relaxation=np.full(N, 0.5), center=CENTER, reach=reach,
    )  # fmt: skip
    return log_rigid(np.linalg.inv(init.matrices[order]) @ after.matrices, CENTER)


def test_shells_keep_the_mean_of_their_ways_and_b0_volumes_go_alone(predicted):
    following = Following.of(get_model("gp-legendre", GRADIENTS), GRADIENTS)
    ways = some_ways(RANDOM(5))
    steps = moved(predicted, ways, following)
    np.testing.assert_allclose(steps[GRADIENTS.b0s], 0.5 * ways[GRADIENTS.b0s], atol=1e-9)
    for shell in GRADIENTS.shells:
        np.testing.assert_allclose(steps[shell].mean(axis=0), ways[shell].mean(axis=0), atol=1e-9)
        assert not np.allclose(steps[shell], ways[shell], rtol=0.1)


def test_the_order_of_the_volumes_does_not_matter(predicted):
    ways, order = some_ways(RANDOM(6)), RANDOM(7).permutation(N)
    model = get_model("gp-legendre", GRADIENTS)
    steps = moved(predicted, ways, Following.of(model, GRADIENTS))
    other = moved(predicted, ways, Following.of(model, GRADIENTS.select(order)), order)
    np.testing.assert_allclose(other, steps[order], rtol=1e-4, atol=1e-7)


def test_volumes_that_went_far_or_nowhere_are_not_followed(predicted):
    following = Following.of(get_model("gp-legendre", GRADIENTS), GRADIENTS)
    astray, still = GRADIENTS.dwis[[2, 5]]
    ways = some_ways(RANDOM(8))
    ways[astray], ways[still] = [5.0, 0, 0, 0, 0, 0.2], 0.0
    steps = moved(predicted, ways, following)
    np.testing.assert_allclose(steps[astray], 0.5 * ways[astray], atol=1e-9)
    np.testing.assert_allclose(steps[still], 0.0, atol=1e-15)
    ways[astray] *= -1
    others = np.setdiff1d(np.arange(N), [astray, still])
    np.testing.assert_array_equal(moved(predicted, ways, following)[others], steps[others])


@pytest.mark.parametrize("model", [AverageModel(), get_model("dti", GRADIENTS)])
def test_of_means_and_other_models_each_goes_its_part(predicted, model):
    ways = some_ways(RANDOM(9))
    steps = moved(predicted, ways, Following.of(model, GRADIENTS))
    np.testing.assert_allclose(steps, 0.5 * ways, atol=1e-9)


@pytest.mark.parametrize("shape", [(50, 61, 1), (7, 90, 33)])
def test_predictions_lie_within_the_volumes_about_their_centre(shape):
    affine = np.array([[0, -2.0, 0.1, 40], [2.1, 0, 0, -70], [0, 0.1, 3, 8], [0, 0, 0, 1.0]])
    recorded = Grid(shape, affine)
    grid = prediction_grid(recorded)
    ends = np.array([np.zeros(3), np.subtract(grid.shape, 1)])
    there = (np.c_[ends, [1, 1]] @ (np.linalg.inv(affine) @ grid.affine).T)[:, :3]
    half = 0.45
    assert (there[0] - half >= -0.5 - 1e-4).all()
    assert (there[1] + half <= np.array(shape) - 0.5 + 1e-4).all()
    np.testing.assert_allclose(grid.center, recorded.center, atol=1e-4)
    np.testing.assert_array_equal(grid.affine, grid.affine.astype(np.float32))


def test_a_moved_volume_lies_where_it_lies_on_the_grid_of_predictions():
    """Read a quarter of a voxel aside everywhere, fine detail seems displaced."""
    random = RANDOM(10)
    signal = random.normal(size=(44, 46, 42)).astype(np.float32)
    signal = 100 + 30 * smooth(signal, [0.6] * 3)
    dwi = DWI(signal[..., None], np.diag([2.0, 2.0, 2.0, 1.0]), GRADIENTS.select([0]),
              np.ones(signal.shape, bool))  # fmt: skip
    pose = np.eye(4)
    pose[:3, 3] = [0.5, -0.5, 0.5]
    errors = []
    for grid in (dwi, prediction_grid(dwi)):
        aligned = resample(dwi, Motion(pose[None]), engine="fast", grid=(grid.shape, grid.affine))
        mask = np.zeros(aligned.shape, bool)
        mask[4:-4, 4:-4, 4:-4] = True
        found = GaussNewton(levels=REFINE, symmetric=False).register(
            aligned.volume(0), dwi.volume(0), fixed_mask=mask, init=pose
        )
        errors.append(np.abs(found.matrix[:3, 3] - pose[:3, 3]).max())
    assert errors[0] > 0.01
    assert errors[1] < errors[0] / 4


def test_smooth_errors_of_a_prediction_do_not_shift_other_engines():
    """What is smooth is taken from the volume, whatever the prediction has; detail stays."""
    random = RANDOM(11)
    shape, affine = (30, 32, 28), np.diag([2.0, 2.0, 2.0, 1.0])
    truth = 100 + 60 * smooth(random.normal(size=shape).astype(np.float32), [0.8] * 3)
    mask = np.zeros(shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    along = np.linspace(-1, 1, shape[0])[:, None, None]
    moving, pose = Image(truth, affine), np.eye(4)
    shaded, given = (
        shaded_like(Image((truth * factor).astype(np.float32), affine), moving, mask, pose)
        for factor in (1 + 0.4 * along, np.ones(shape))
    )
    inner = (slice(7, -7),) * 3
    np.testing.assert_allclose(given.data[mask], truth[mask], rtol=1e-4)
    np.testing.assert_allclose(shaded.data[inner], truth[inner], rtol=0.02)
    assert np.abs(0.4 * along[7:-7]).max() > 0.2


def test_other_engines_get_shaded_predictions_in_the_last_passes(monkeypatch):
    engine = DipyRegistrar()
    late = [registrar_at(engine, number, 5) for number in range(1, 6)]
    assert [one is engine for one in late] == [True, True, True, False, False]
    seen = []
    monkeypatch.setattr(DipyRegistrar, "register", lambda self, *a, **k: seen.append((a, k)))
    images = [Image(RANDOM(k).random((9, 9, 9), np.float32), np.eye(4)) for k in (12, 13)]
    late[-1].register(*images, seed=7)
    (fixed, moving), how = seen[0]
    mask = np.ones((9, 9, 9), bool)
    np.testing.assert_array_equal(fixed.data, shaded_like(*images, mask, np.eye(4)).data)
    assert moving is images[1]
    assert how == {"fixed_mask": None, "init": None, "seed": 7}
