# SPDX-License-Identifier: Apache-2.0
"""A SliceTiming of another order than that of the acquisition is noticed."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.acquisition import usual_orders
from eddymotion.estimation.within_volumes.equations import SlicePulls
from eddymotion.estimation.within_volumes.slice_order import OrderEvidence, weigh_orders
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.sidecar import warnings_of

N_VOLUMES, N_SLICES, REACH = 20, 36, 8
TRUE = "even slices before odd ones, upwards, 3 at a time"


def told(name):
    """Slices as a sidecar tells them in an order, of which it is not told how many at a time."""
    return dict(usual_orders(N_SLICES))[name]


def pulls_of(poses, noise_mm, random):
    """Linear equations of slices that are known each within `noise_mm`."""
    precision = np.diag(np.repeat([1.0, 2.0], 3)) / noise_mm**2
    hessian = np.zeros((N_VOLUMES, N_SLICES, REACH, 6, 6))
    hessian[:, :, 0] = precision
    noise = random.normal(size=poses.shape) @ np.linalg.cholesky(precision).T
    start = poses.mean(axis=1)
    gradient = (start[:, None] - poses) @ precision + noise
    return SlicePulls(np.arange(N_VOLUMES) + N_VOLUMES // 2, start, gradient, hessian)


def jumps(slicing, random, n_jumps=6):
    """Poses (N, Z, 6) of a head that jumps now and then, mm."""
    times = slicing.times / (slicing.times.max() + 1)
    times = np.arange(N_VOLUMES)[:, None] + times
    poses = np.zeros((*times.shape, 6))
    for when in random.uniform(1, N_VOLUMES - 1, n_jumps):
        poses += (times > when)[..., None] * random.normal(size=6)
    return poses


def nods(slicing, random, width, n_nods=6):
    """Poses (N, Z, 6) of a head that nods and comes back, with a width in volumes; mm."""
    times = slicing.times / (slicing.times.max() + 1)
    poses = np.zeros((N_VOLUMES, N_SLICES, 6))
    for volume in random.permutation(N_VOLUMES)[:n_nods]:
        away = (times - random.uniform(0.25, 0.75)) / width
        poses[volume] += 3 * np.exp(-(away**2) / 2)[:, None] * random.normal(size=6)
    return poses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "is_noticed"),
    [
        (TRUE, False),
        ("odd slices before even ones, upwards, 3 at a time", True),
        ("slices one after the other, upwards, 3 at a time", True),
        ("even slices before odd ones, upwards", True),
        ("every 3th slice, then their neighbours, upwards, 2 at a time", True),
    ],
)
@pytest.mark.slow
def test_another_order_is_noticed_and_the_true_one_named(name, is_noticed, seed):
    random = np.random.default_rng(seed)
    pulls = pulls_of(jumps(told(TRUE), random), 0.5, random)
    found = weigh_orders(pulls, told(name))
    assert found.contradicts == is_noticed
    assert found.order == TRUE


@pytest.mark.parametrize("seed", [1, 4, 8, 9])
def test_short_nods_do_not_contradict_slices_one_after_the_other(seed):
    """Few knots follow them better if two slices were acquired at a time, one after the other."""
    random = np.random.default_rng(seed)
    order = told("slices one after the other, upwards")
    pulls = pulls_of(nods(order, random, width=0.05), 1.0, random)
    assert not weigh_orders(pulls, order).contradicts


def test_halves_of_a_volume_that_change_places_are_no_evidence():
    """As found of a true order with one slice at a time, nods, seed 21 of the benchmark."""
    assert not OrderEvidence(1599, 1799, "odd slices before even ones, downwards").contradicts


@pytest.mark.parametrize("name", [TRUE, "slices one after the other, upwards"])
@pytest.mark.parametrize("noise_mm", [0.1, 1.0])
def test_a_head_at_rest_within_volumes_says_nothing(name, noise_mm):
    random = np.random.default_rng(7)
    poses = np.repeat(random.normal(size=(N_VOLUMES, 1, 6)), N_SLICES, axis=1)
    assert not weigh_orders(pulls_of(poses, noise_mm, random), told(name)).contradicts


def test_noise_that_is_larger_than_told_changes_no_verdict():
    random = np.random.default_rng(3)
    pulls = pulls_of(jumps(told(TRUE), random), 0.5, random)
    sharp = replace(pulls, gradient=30 * pulls.gradient, hessian=30 * pulls.hessian)
    plain, louder = (weigh_orders(one, told(TRUE)) for one in (pulls, sharp))
    assert louder.given == pytest.approx(plain.given, rel=0.1)


def test_knots_share_the_equations_of_their_slices():
    """As by the matrix that leads from knots to slices."""
    random = np.random.default_rng(1)
    n, n_slices, reach, basis = 2, 7, 3, random.uniform(size=(7, 4))
    dense = np.zeros((n, n_slices, 6, n_slices, 6))
    bands = random.normal(size=(n, n_slices, reach, 6, 6))
    bands[:, :, 0] += bands[:, :, 0].transpose(0, 1, 3, 2)
    for slice_, apart in np.ndindex(n_slices, reach):
        if slice_ + apart < n_slices:
            dense[:, slice_, :, slice_ + apart] = bands[:, slice_, apart]
            dense[:, slice_ + apart, :, slice_] = bands[:, slice_, apart].transpose(0, 2, 1)
    pulls = SlicePulls(np.arange(n), np.zeros((n, 6)), random.normal(size=(n, 7, 6)), bands)
    gradient, square = pulls.of_knots(basis)
    expected = np.einsum("zm,nzakb,kl->nmalb", basis, dense, basis, optimize=True)
    np.testing.assert_allclose(square, expected.reshape(n, 24, 24), atol=1e-10)
    expected = np.einsum("zm,nza->nma", basis, pulls.gradient)
    np.testing.assert_allclose(gradient, expected.reshape(n, -1), atol=1e-10)


def test_the_doubt_is_kept_with_the_motion_and_reaches_the_sidecar(tmp_path, still):
    doubt = str(OrderEvidence(100.0, 1000.0, TRUE).doubt)
    motion = replace(Motion.identity(2), order_doubt=doubt)
    files = tmp_path / "xfm.txt", tmp_path / "details.json"
    write_motion(*files, motion)
    kept = read_written_motion(*files)
    assert kept.order_doubt == doubt
    assert kept.relative_to(1).order_doubt == doubt
    told = [one for one in warnings_of(still, kept) if TRUE in one["Text"]]
    assert [one["Subject"] for one in told] == ["slice timing"]
