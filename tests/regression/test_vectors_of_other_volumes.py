# SPDX-License-Identifier: Apache-2.0
"""b-vectors that stand at other volumes leave the poses as they are, and were not told."""

from dataclasses import replace

import numpy as np
import pytest
import scipy

from eddymotion.data.checks import find_issues
from eddymotion.data.checks.order import (
    _Shell,
    _shells,
    exchanged_vectors,
    in_no_order,
    likelier_order,
)
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.simulation import acquire


def with_rows(dwi, rows):
    bvecs = dwi.gradients.bvecs.copy()
    bvecs[dwi.gradients.dwis] = dwi.gradients.bvecs[rows]
    return replace(dwi, gradients=Gradients(dwi.gradients.bvals, bvecs))


def told(dwi):
    return [issue.text for issue in find_issues(dwi) if issue.kind == "directions"]


@pytest.mark.parametrize("seed", range(4))
def test_two_volumes_with_exchanged_vectors_are_named(still, seed):
    dwis = still.gradients.dwis
    one, other = sorted(map(int, np.random.default_rng(seed).choice(dwis, 2, replace=False)))
    rows = np.arange(len(still))
    rows[[one, other]] = other, one
    (text,) = told(with_rows(still, rows[dwis]))
    assert text.startswith(f"volumes {one} and {other}: the images fit with their b-vectors")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda rows: np.roll(rows, 1), "each is moved one diffusion-weighted volume earlier"),
        (lambda rows: np.roll(rows, -1), "each is moved one diffusion-weighted volume later"),
        (lambda rows: rows[::-1], "their order is reversed"),
    ],
)
def test_a_table_in_another_order_is_told_with_the_right_one(still, order, words):
    (text,) = told(with_rows(still, order(still.gradients.dwis)))
    assert words in text


def test_vectors_at_their_volumes_are_left_alone(still, moving, two_shells):
    for dwi in (still, moving, two_shells):
        assert not told(dwi)
        assert exchanged_vectors(dwi) == []
        assert likelier_order(dwi) is None


@pytest.fixture(scope="module")
def restless(head, grid, scheme):
    """Each volume elsewhere by some millimetres and degrees: directions explain half of it."""
    twists = np.random.default_rng(3).normal(size=(len(scheme), 6)) * [2, 2, 2, 0.03, 0.03, 0.03]
    return acquire(head, scheme, Motion(exp_rigid(twists, np.zeros(3))), grid, snr=20)


def test_a_head_that_moved_far_tells_two_volumes_as_well(restless):
    dwis, n_named = restless.gradients.dwis, 0
    for seed in range(8):
        one, other = sorted(map(int, np.random.default_rng(seed).choice(dwis, 2, replace=False)))
        rows = np.arange(len(restless))
        rows[[one, other]] = other, one
        named = exchanged_vectors(with_rows(restless, rows[dwis]))
        assert named in ([], [(one, other)])
        n_named += bool(named)
    assert n_named >= 4
    assert not told(restless)


def test_three_exchanges_are_too_many_to_name(moving):
    rows = moving.gradients.dwis.copy()
    rows[:6] = rows[[3, 4, 5, 0, 1, 2]]
    assert exchanged_vectors(with_rows(moving, rows)) == []


def test_a_table_in_no_order_is_told(still, moving):
    rows = np.random.default_rng(5).permutation(still.gradients.dwis)
    for dwi in (still, moving):
        (text,) = told(with_rows(dwi, rows))
        assert text.startswith("the b-vectors fit the images no better than in any order")


def test_noise_and_motion_alone_say_nothing_of_the_order(scheme):
    """A textured body without any direction, that jumps or drifts and fades."""
    random, shape = np.random.default_rng(0), (28, 28, 24)
    texture = scipy.ndimage.gaussian_filter(random.normal(size=shape), 2)
    i, j, k = np.indices(shape) - np.array(shape)[:, None, None, None] / 2
    body = i**2 + j**2 + k**2 < 100
    image = 500 * body * (1 + 0.3 * texture / texture.std())
    for ways in (random.normal(size=(len(scheme), 3)), np.linspace(0, [2, 1, 0], len(scheme))):
        moved = [scipy.ndimage.shift(image, way / 2, order=1) for way in ways]
        signal = np.stack(moved, axis=-1) * np.where(scheme.is_b0, 2.0, 1.0)
        signal = np.abs(signal + random.normal(0, 25, signal.shape)).astype(np.float32)
        assert not in_no_order(DWI(signal, np.diag([4.0, 4.0, 4.0, 1.0]), scheme, body))


def test_chance_is_that_of_random_orders(still):
    (shell,) = _shells(still, still.gradients.bvecs)
    random, bvecs = np.random.default_rng(1), still.gradients.bvecs
    beyond = []
    for _ in range(400):
        other = bvecs.copy()
        other[shell.volumes] = bvecs[random.permutation(shell.volumes)]
        beyond.append(_Shell.of(shell.products, other, shell.volumes).beyond_chance)
    assert abs(np.mean(beyond)) < 0.15
    assert 0.8 < np.std(beyond) < 1.2
    assert shell.beyond_chance > 8


def test_gains_are_what_an_exchange_adds(two_shells):
    shell = _shells(two_shells, two_shells.gradients.bvecs)[0]
    gains = shell.gains()
    explained = (shell.projection * shell.products).sum()
    for i, j in ((0, 1), (3, 11), (7, 2)):
        other = shell.exchanged(i, j)
        added = (other.projection * other.products).sum() - explained
        assert gains[i, j] == pytest.approx(added, rel=1e-9)
        assert gains[j, i] == pytest.approx(added, rel=1e-9)
