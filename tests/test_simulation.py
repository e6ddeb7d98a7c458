"""Simulated series: reproducible, with a truth that explains them."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.errors import EddymotionError
from eddymotion.files import load, read_itk
from eddymotion.geometry import Motion, rigid_matrix, rigid_parameters
from eddymotion.simulation import (
    Grid,
    acquire,
    cartesian_scheme,
    coil_sensitivity,
    dropped_slices,
    procedural_head,
    shelled_scheme,
    simulate_motion,
)
from eddymotion.simulation.acquisition import DROPOUT_FACTORS, write_bids


def test_same_seed_gives_the_same_bytes_whatever_the_threads():
    head = procedural_head(8.0)
    grid = Grid.covering(head, 8.0)
    series = []
    for n_threads, seed in ((1, 4), (2, 4), (1, 5)):
        gradients = shelled_scheme({1000: 7}, 2, seed=4)
        motion = simulate_motion("moderate", len(gradients), np.zeros(3), seed=4)
        dwi = acquire(head, gradients, motion, grid, seed=seed, n_threads=n_threads)
        series.append(dwi.signal.tobytes() + gradients.bvecs.tobytes() + motion.matrices.tobytes())
    assert series[0] == series[1]
    assert series[0] != series[2]


@pytest.mark.parametrize("pattern", ["none", "drift", "moderate", "high", "swap30", "scattered"])
def test_motion_starts_at_rest_and_is_rigid(pattern):
    motion = simulate_motion(pattern, 40, np.array([3.0, 2.0, 1.0]), seed=2)
    np.testing.assert_array_equal(motion[0], np.eye(4))
    np.testing.assert_allclose(
        motion.rotations @ motion.rotations.transpose(0, 2, 1), np.tile(np.eye(3), (40, 1, 1)),
        atol=1e-12,
    )  # fmt: skip
    travelled = np.abs(rigid_parameters(motion.matrices, np.zeros(3))).max()
    assert travelled == 0 if pattern == "none" else travelled > 0.5


@pytest.mark.parametrize(
    ("pattern", "n_moved", "mm", "degrees"),
    [("swap15", 15, 5, 8), ("swap30", 30, 5, 8), ("swap50", 50, 5, 8), ("scattered", 99, 20, 25)],
)
def test_share_of_the_volumes_is_displaced_independently(pattern, n_moved, mm, degrees):
    center = np.array([3.0, 2.0, 1.0])
    motion = simulate_motion(pattern, 100, center, seed=5)
    parameters = rigid_parameters(motion.matrices, center)
    moved = np.abs(parameters).max(axis=1) > 1e-9
    assert moved.sum() == n_moved
    assert not moved[0]
    extents = np.repeat([mm, np.deg2rad(degrees)], 3)
    scaled = parameters[moved] / extents
    assert 0.8 < np.abs(scaled).max() <= 1
    np.testing.assert_allclose((scaled**2).mean(), 1 / 3, rtol=0.25)  # uniform


def test_scheme_spreads_directions_and_interleaves_b0():
    gradients = shelled_scheme({1000: 30, 2000: 30}, 4)
    assert len(gradients.b0s) == 4
    assert gradients.b0s[0] == 0
    assert gradients.b0s[-1] > 40
    for shell in gradients.shells:
        assert len(shell) == 30
        cosines = np.abs(gradients.bvecs[shell] @ gradients.bvecs[shell].T) - np.eye(30)
        assert np.rad2deg(np.arccos(cosines.max())) > 15


def test_cartesian_scheme_lies_on_a_half_lattice():
    gradients = cartesian_scheme(257, 5000, 3, seed=1)
    assert gradients.is_b0.sum() == 3
    assert gradients.is_b0[0]
    radius = 5 * np.sqrt(gradients.bvals[gradients.dwis] / 5000)
    q = gradients.bvecs[gradients.dwis] * radius[:, None]
    points = np.round(q).astype(int)
    np.testing.assert_allclose(q, points, atol=1e-9)
    assert len(np.unique(np.concatenate([points, -points]), axis=0)) == 514  # DSI with 515 points
    assert not cartesian_scheme(55, 5000, 3).is_shelled
    with pytest.raises(EddymotionError, match="257"):
        cartesian_scheme(258, 5000)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSL"])
def test_head_lies_at_the_same_place_on_every_grid(head, orientation):
    grid = Grid.covering(head, (4.0, 4.0, 5.0), orientation)
    gradients = shelled_scheme({1000: 2}, 1)
    dwi = acquire(head, gradients, Motion.identity(3), grid, snr=None)
    weights = dwi.signal[..., 0]
    voxels = np.argwhere(weights > 0)
    center = np.average(voxels, axis=0, weights=weights[weights > 0])
    world = grid.affine[:3, :3] @ center + grid.affine[:3, 3]
    b0 = head.signal(0.0, np.zeros(3))
    true = np.average(np.argwhere(b0 > 0), axis=0, weights=b0[b0 > 0])
    np.testing.assert_allclose(world, head.affine[:3, :3] @ true + head.affine[:3, 3], atol=0.1)


def test_moved_head_is_where_the_truth_says(head, grid):
    gradients = shelled_scheme({1000: 2}, 1)
    matrix = np.eye(4)
    matrix[:3, 3] = 4.0, -8.0, 4.0  # whole voxels
    still = acquire(head, gradients, Motion.identity(3), grid, snr=None)
    moved = acquire(head, gradients, Motion(np.tile(matrix, (3, 1, 1))), grid, snr=None)
    np.testing.assert_allclose(
        moved.signal[1:, :-2, 1:], still.signal[:-1, 2:, :-1], atol=0.01 * still.signal.max()
    )


def test_noise_is_rician_with_the_asked_snr(head, grid):
    gradients = shelled_scheme({1000: 2}, 1)
    clean = acquire(head, gradients, Motion.identity(3), grid, snr=None).signal[..., 0]
    noisy = acquire(head, gradients, Motion.identity(3), grid, snr=10).signal[..., 0]
    b0 = head.signal(0.0, np.zeros(3))
    sigma = b0[head.tissue[..., 0] > 0.9].mean() / 10
    np.testing.assert_allclose(noisy[clean == 0].mean(), sigma * np.sqrt(np.pi / 2), rtol=0.02)
    bright = clean > 8 * sigma
    np.testing.assert_allclose((noisy - clean)[bright].std(), sigma, rtol=0.03)


def test_coil_stays_with_the_scanner_when_the_head_moves(head, grid):
    gradients = shelled_scheme({1000: 2}, 1)
    steps = np.arange(3)[:, None] * np.ones(3)
    motion = Motion(rigid_matrix(4 * steps, 0.1 * steps, np.zeros(3)))
    even = acquire(head, gradients, motion, grid, snr=None).signal
    seen = acquire(head, gradients, motion, grid, snr=None, coil_bias=0.13).signal
    bright = even.min(axis=3) > 0.01 * even.max()
    ratio = seen[bright] / even[bright]
    voxels = np.argwhere(bright)
    x, y, z = (voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]).T / 90  # centred on 0
    np.testing.assert_allclose(
        np.log(ratio), np.tile(0.13 * (x + 0.9 * z + 0.5 * y * z), (3, 1)).T, atol=1e-5
    )


def test_coil_is_the_same_on_every_grid(head):
    fields = []
    for orientation in ("RAS", "LPI"):
        field = coil_sensitivity(Grid.covering(head, 8.0, orientation), 0.2)
        fields.append(field if orientation == "RAS" else field[::-1, ::-1, ::-1])
    np.testing.assert_allclose(*fields, rtol=1e-6)


def test_dropped_slices_are_those_that_lose_signal(head, grid):
    gradients = shelled_scheme({1000: 10}, 2)
    still = Motion.identity(len(gradients))
    whole = acquire(head, gradients, still, grid, snr=None, seed=6).signal
    holed = acquire(head, gradients, still, grid, snr=None, seed=6, dropout=0.1).signal
    kept = dropped_slices(gradients, grid.shape[2], 0.1, seed=6)
    lost = kept < 1
    assert lost.sum() == round(0.1 * 10 * grid.shape[2])
    assert not lost[gradients.b0s].any()
    assert kept[lost].min() >= DROPOUT_FACTORS[0]
    assert kept[lost].max() <= DROPOUT_FACTORS[1]
    np.testing.assert_allclose(holed, whole * kept.T, rtol=1e-6)


def test_dropout_leaves_the_noise_of_the_series_alone(head, grid):
    gradients = shelled_scheme({1000: 4}, 1)
    still = Motion.identity(len(gradients))
    plain, holed = (
        acquire(head, gradients, still, grid, seed=6, dropout=share).signal for share in (0.0, 0.1)
    )
    same = dropped_slices(gradients, grid.shape[2], 0.1, seed=6).T == 1
    np.testing.assert_array_equal(plain[:, :, same], holed[:, :, same])


def test_bids_dataset_holds_the_series_and_its_truth(tmp_path, tiny):
    motion = simulate_motion("drift", len(tiny), np.zeros(3), seed=1)
    series = replace(tiny, signal=np.round(tiny.signal))
    image = write_bids(tmp_path, "sim", series, motion)
    back = load(image)
    np.testing.assert_array_equal(back.signal, series.signal)
    np.testing.assert_allclose(back.gradients.bvecs, series.gradients.bvecs, atol=1e-6)
    np.testing.assert_array_equal(
        read_itk(tmp_path / "truth" / "sub-sim_xfm.txt"), motion.matrices
    )
    table = np.loadtxt(tmp_path / "truth" / "sub-sim_motion.tsv", skiprows=1)
    np.testing.assert_allclose(
        table, rigid_parameters(motion.matrices, series.center), rtol=1e-6, atol=1e-9
    )
    assert (tmp_path / "dataset_description.json").is_file()
