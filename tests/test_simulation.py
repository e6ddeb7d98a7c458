# SPDX-License-Identifier: Apache-2.0
"""Simulated series: reproducible, with a truth that explains them."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.images.axes import image_axes
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.series import load
from eddymotion.mapping.eddy_currents import SCALE_MM
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters
from eddymotion.simulation import (
    SCHEMES,
    EddyCurrents,
    FittedHead,
    Grid,
    Recipe,
    acquire,
    cartesian_scheme,
    coil_sensitivity,
    dropped_slices,
    procedural_head,
    replayed_motion,
    shelled_scheme,
    simulate,
    simulate_eddy_currents,
    simulate_motion,
)
from eddymotion.simulation.acquisition import DROPOUT_FACTORS
from eddymotion.simulation.base import signal_of_volume
from eddymotion.simulation.fitted import fit_ball_and_stick
from eddymotion.simulation.output import integer_gain, write_bids


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


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("single", {0: 6, 1000: 64}),
        ("abcd", {0: 7, 500: 6, 1000: 15, 2000: 15, 3000: 60}),
        ("hcp", {0: 18, 1000: 90, 2000: 90, 3000: 90}),
        ("hcph", {0: 6, 700: 12, 1000: 40, 2000: 90, 3000: 132}),
        ("few", {0: 1, 1000: 12}),
        ("b0", {0: 3}),
    ],
)
def test_named_schemes_have_the_published_shells(name, counts):
    values, found = np.unique(SCHEMES[name].build().bvals, return_counts=True)
    assert dict(zip(values, found, strict=True)) == counts


def test_lattice_schemes_reach_to_5000():
    for name, n, n_b0 in (("csdsi", 55, 3), ("dsi", 257, 1)):
        gradients = SCHEMES[name].build()
        assert (len(gradients.dwis), len(gradients.b0s)) == (n, n_b0)
        assert gradients.bvals.max() == 5000


def test_trace_weighted_volume_averages_three_directions():
    class Fibre:
        def signal(self, bval, bvec):
            return np.array([np.exp(-1.5e-3 * bval * bvec[0] ** 2)])

    trace = signal_of_volume(Fibre(), 1000.0, np.zeros(3))
    np.testing.assert_allclose(trace, np.exp(-0.5))


def test_chi_noise_has_twice_as_many_channels_as_coils(head, grid):
    gradients = shelled_scheme({1000: 2}, 1)
    still = Motion.identity(3)
    clean = acquire(head, gradients, still, grid, snr=None).signal[..., 0]
    noisy = acquire(head, gradients, still, grid, snr=10, coils=4).signal[..., 0]
    sigma = head.white_signal / 10
    np.testing.assert_allclose((noisy[clean == 0] ** 2).mean(), 8 * sigma**2, rtol=0.02)
    bright = clean > 8 * sigma
    excess = (noisy[bright].astype(float) ** 2 - clean[bright] ** 2).mean()
    np.testing.assert_allclose(excess, 8 * sigma**2, rtol=0.1)


@pytest.fixture(scope="module")
def eddy(grid):
    """Quadratic fields of a series with a b=0 and three gradients."""
    gradients = Gradients([0, 1000, 1000, 4000], [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [1, 0, 0]])
    return simulate_eddy_currents(gradients, grid, order="quadratic", amplitude=2.0, pe_axis="j-")


def test_eddy_currents_follow_the_diffusion_gradient(eddy, grid):
    e = eddy.coefficients
    assert not e[0].any()
    np.testing.assert_allclose(e[2], -e[1])
    np.testing.assert_allclose(e[3], 2 * e[1])
    np.testing.assert_allclose(eddy.pe, -image_axes(grid.affine)[:, 1])


def test_amplitude_is_the_rms_displacement_over_a_ball(grid):
    random = np.random.default_rng(0)
    points = random.uniform(-SCALE_MM, SCALE_MM, (8000, 3))
    points = points[np.linalg.norm(points, axis=1) < SCALE_MM]
    gradients = Gradients(np.full(60, 1000.0), random.normal(size=(60, 3)))
    eddy = simulate_eddy_currents(gradients, grid, order="quadratic", amplitude=2.0)
    displacements = [eddy.displacement(i, points + eddy.center) for i in range(60)]
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(displacements))), 2.0, rtol=0.15)


def test_recorded_and_origin_are_inverse_and_the_stretch_is_the_derivative(eddy):
    points = np.random.default_rng(1).uniform(-80, 80, (500, 3)) + eddy.center
    origins, stretch = eddy.origin(3, points)
    np.testing.assert_allclose(eddy.recorded(3, origins), points, atol=1e-9)
    step = 1e-3
    moved = eddy.recorded(3, origins + step * eddy.pe) - points
    np.testing.assert_allclose(moved @ eddy.pe / step, stretch, atol=1e-5)


def test_displacement_is_the_polynomial_of_the_table():
    eddy = EddyCurrents(np.arange(1.0, 10.0)[None], np.array([0.0, 1, 0]), np.array([5.0, -3, 1]))
    x, y, z = u = np.array([0.5, -0.25, 0.75])
    terms = [x, y, z, x * x, y * y, z * z, x * y, x * z, y * z]
    found = eddy.displacement(0, (eddy.center + SCALE_MM * u)[None])
    np.testing.assert_allclose(found, np.arange(1.0, 10.0) @ terms)


def test_field_that_folds_the_image_is_refused():
    eddy = EddyCurrents(np.array([[0.0, 100.0, 0.0]]), np.array([0.0, 1, 0]), np.zeros(3))
    with pytest.raises(EddymotionError, match="folds"):
        eddy.origin(0, np.zeros((1, 3)))


def test_eddy_currents_shift_the_image_and_keep_its_signal(head, grid):
    gradients = Gradients([0, 1000, 1000], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    pe = image_axes(grid.affine)[:, 1]
    scaled = np.array([[0, 0, 0], [0, 8.0, 0], [4.0, 0, 0]])  # stretched, then sheared
    eddy = EddyCurrents(scaled, pe, grid.center)
    plain, seen = (
        acquire(head, gradients, Motion.identity(3), grid, snr=None, eddy=field).signal
        for field in (None, eddy)
    )
    np.testing.assert_allclose(seen[..., 0], plain[..., 0], atol=1e-3 * plain.max())
    np.testing.assert_allclose(seen.sum(axis=(0, 1, 2)), plain.sum(axis=(0, 1, 2)), rtol=1e-3)
    y = np.arange(grid.shape[1]) - (grid.shape[1] - 1) / 2

    def center_and_width(volume):
        weights = volume.sum(axis=(0, 2)) / volume.sum()
        return weights @ y, np.sqrt(weights @ y**2 - (weights @ y) ** 2)

    (_, before), (_, after) = (center_and_width(s[..., 1]) for s in (plain, seen))
    np.testing.assert_allclose(after / before, 1 - 8 / SCALE_MM, rtol=2e-3)
    for x in (10, 30):  # sagittal slices move by the field there
        where = grid.affine[0, 0] * x + grid.affine[0, 3] - grid.center[0]
        slices = (s[x : x + 1, :, :, 2] for s in (plain, seen))
        (before, _), (after, _) = map(center_and_width, slices)
        np.testing.assert_allclose((after - before) * 4.0, -4.0 * where / SCALE_MM, atol=0.05)


def test_covering_grid_does_not_depend_on_how_the_head_is_stored(head):
    class Turned:
        shape = (head.shape[1], head.shape[2], head.shape[0])
        affine = head.affine[:, [1, 2, 0, 3]]

    plain, turned = Grid.covering(head, (3, 4, 5), "LPS"), Grid.covering(Turned, (3, 4, 5), "LPS")
    assert plain.shape == turned.shape
    np.testing.assert_allclose(plain.affine, turned.affine)


def test_ball_and_stick_is_recovered_and_extrapolates():
    gradients = shelled_scheme({1000: 30}, 2)
    random = np.random.default_rng(2)
    direction = random.normal(size=(50, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    s0, f, d = random.uniform([[500], [0], [0.5e-3]], [[900], [0.8], [3e-3]], (3, 50))

    def signal(g):
        along = (direction @ g.bvecs.T) ** 2
        ball = (1 - f)[:, None] * np.exp(-np.outer(d, g.bvals))
        return s0[:, None] * (ball + f[:, None] * np.exp(-d[:, None] * g.bvals * along))

    found = fit_ball_and_stick(signal(gradients), gradients, direction)
    np.testing.assert_allclose(found[0], s0, rtol=5e-3)
    np.testing.assert_allclose(found[1], f, atol=0.02)
    np.testing.assert_allclose(found[2], d, rtol=0.04)


def test_fitted_head_gives_back_the_series_and_any_other_gradient(public_series):
    dwi = public_series("ds000114_trunc")
    head = FittedHead.from_series(dwi)
    inside = tuple(
        slice((w - n) // 2, (w + n) // 2) for w, n in zip(head.shape, dwi.shape, strict=True)
    )
    for volume in (0, 12):
        fitted = head.signal(dwi.gradients.bvals[volume], dwi.gradients.bvecs[volume])[inside]
        measured = np.asarray(dwi.signal[..., volume], float)
        assert np.corrcoef(fitted[dwi.mask], measured[dwi.mask])[0, 1] > 0.9
    np.testing.assert_allclose(head.white_signal, 700, rtol=1e-3)
    last = np.inf
    for bval in (0.0, 1000.0, 3000.0, 10000.0):
        now = head.signal(bval, np.array([0.6, 0.0, 0.8]))
        assert np.isfinite(now).all()
        assert (now >= 0).all()
        assert (now <= last).all()
        last = now
    short = replace(dwi, signal=dwi.signal[..., :11], gradients=dwi.gradients.select(slice(11)))
    with pytest.raises(EddymotionError, match="six directions"):
        FittedHead.from_series(short)


def test_motion_is_replayed_from_tables_and_transforms(tmp_path):
    center = np.array([3.0, -20.0, 8.0])
    truth = simulate_motion("high", 9, center, seed=3)
    write_itk(tmp_path / "xfm.txt", truth.matrices)
    replayed = replayed_motion(tmp_path / "xfm.txt", 9, center)
    np.testing.assert_allclose(replayed.matrices, truth.matrices, atol=1e-12)
    table = tmp_path / "confounds.tsv"
    names = ["framewise_displacement", "trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    rows = [["n/a", *map(repr, row)] for row in rigid_parameters(truth.matrices, center).tolist()]
    table.write_text("\n".join("\t".join(row) for row in [names, *rows]) + "\n")
    replayed = replayed_motion(table, 9, center)
    np.testing.assert_allclose(replayed.matrices, truth.matrices, atol=1e-12)
    with pytest.raises(EddymotionError, match="9 volumes, the scheme has 10"):
        replayed_motion(table, 10, center)
    table.write_text(table.read_text().replace("rot_y", "rot_q"))
    with pytest.raises(EddymotionError, match="rot_y"):
        replayed_motion(table, 9, center)
    write_itk(tmp_path / "xfm.txt", truth.matrices * [[1.01], [1], [1], [1]])
    with pytest.raises(EddymotionError, match="not rigid"):  # before a head is fitted
        simulate(Recipe(series=tmp_path / "none.nii.gz", motion=tmp_path / "xfm.txt"))
    with pytest.raises(EddymotionError, match="not rigid"):
        replayed_motion(tmp_path / "xfm.txt", 9, center)


def test_integers_hold_the_signal_without_overflow_or_coarse_steps(tmp_path, tiny):
    for factor in (1e-3, 1.0, 1e3):
        series = replace(tiny, signal=tiny.signal * np.float32(factor))
        gain = integer_gain(series.signal)
        image = write_bids(tmp_path, "sim", series, Motion.identity(len(tiny)), gain=gain)
        stored = np.asarray(load(image).signal, float)
        assert 16000 < stored.max() < 32768
        np.testing.assert_allclose(stored, series.signal * gain, atol=0.51)
    with pytest.raises(EddymotionError, match="16-bit"):
        write_bids(tmp_path, "sim", series, Motion.identity(len(tiny)))
