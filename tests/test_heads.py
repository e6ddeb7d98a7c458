# SPDX-License-Identifier: Apache-2.0
"""Heads that share nothing with the built-in one, and scans of them in k-space."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine

import eddymotion.simulation
from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters
from eddymotion.simulation import (
    Grid,
    HarmonicHead,
    KSpace,
    Recipe,
    SyntheticHead,
    acquire,
    shelled_scheme,
    simulate_eddy_currents,
    simulate_motion,
)
from eddymotion.simulation.crude import _offset, align_crudely
from eddymotion.simulation.harmonics import shrunk
from eddymotion.simulation.kspace import Scanner, receive_field
from eddymotion.simulation.sampling import View
from eddymotion.simulation.synthetic import BOX_MM
from eddymotion.simulation.variants import brain_points, covered, with_cavity

POSE = rigid_matrix(np.array([4.0, -3.0, 5.0]), np.deg2rad([6.0, -4.0, 9.0]), np.zeros(3))
OBLIQUE = np.array([0.6, 0.0, 0.8])
NONE = np.zeros(3)
ESTIMATORS = {"estimation", "models", "registration", "evaluation"}


@pytest.fixture(scope="module")
def synthetic():
    return SyntheticHead(1)


@pytest.fixture(scope="module")
def points(synthetic):
    """Some points of the brain."""
    return brain_points(synthetic)[::40]


def test_only_the_head_of_old_knows_an_estimator():
    for path in Path(eddymotion.simulation.__file__).parent.glob("*.py"):
        imports = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        found = {n.module.split(".")[1] for n in imports if n.module.startswith("eddymotion.")}
        assert found & ESTIMATORS <= ({"estimation"} if path.name == "simulated.py" else set())


@pytest.mark.parametrize("bval", [0.0, 1000.0])
def test_moved_head_at_moved_points_is_the_still_head(synthetic, head, bval):
    scanned = Grid.covering(synthetic, 10.0, "PSL")
    moved_along = Grid(scanned.shape, POSE @ scanned.affine)
    gradient = POSE[:3, :3] @ OBLIQUE  # turned with the head, it is the same gradient in it
    in_head = Gradients([bval, 1000.0], [gradient, gradient]).rotated(
        np.stack([POSE[:3, :3], np.eye(3)])
    )
    for subject in (synthetic, head):
        bvec = OBLIQUE if bval else NONE
        still = View(bval, bvec, np.eye(4)).sampled(subject, scanned)
        moved = View(bval, in_head.bvecs[0], np.linalg.inv(POSE)).sampled(subject, moved_along)
        np.testing.assert_allclose(moved, still, atol=1e-3 * still.max())
        assert still.mean() > 20


def test_scan_is_the_formula_of_moved_points(synthetic):
    grid = Grid.covering(synthetic, 12.0, "PSL")
    gradients = Gradients([0, 1000, 1000], [NONE, [1, 0, 0], OBLIQUE])
    still = Motion.identity(3)
    motion = still.updated(np.array([1, 2]), POSE)
    scan = acquire(synthetic, gradients, motion, grid, snr=None).signal
    total = np.zeros(len(grid.voxel_indices))
    for corner in np.ndindex(2, 2, 2):
        scanner = apply_affine(grid.affine, grid.voxel_indices + np.array(corner) / 2 - 0.25)
        in_head = apply_affine(np.linalg.inv(POSE), scanner)
        total += synthetic.signal_at(in_head, 1000.0, POSE[:3, :3].T @ OBLIQUE) / 8
    np.testing.assert_allclose(scan[..., 2].T.ravel(), total, atol=0.5)
    along, across = (acquire(synthetic, gradients, m, grid, snr=None).signal[..., 2].max()
                     for m in (motion, still))  # fmt: skip
    assert along != across


def test_seeds_give_other_heads_and_the_same_seed_the_same(synthetic, points):
    b0 = synthetic.signal_at(points, 0.0, NONE)
    np.testing.assert_array_equal(SyntheticHead(1).signal_at(points, 0.0, NONE), b0)
    other = SyntheticHead(2).signal_at(points, 0.0, NONE)
    assert np.corrcoef(b0, other)[0, 1] < 0.6


def test_values_are_those_of_tissue_and_b0_is_the_limit_of_small_b(synthetic, points):
    b0 = synthetic.signal_at(points, 0.0, NONE)
    np.testing.assert_allclose(
        synthetic.signal_at(points, 1e-3, OBLIQUE), b0, rtol=1e-4, atol=1e-3
    )
    means = [synthetic.signal_at(points, b, OBLIQUE).mean() for b in (0, 1000, 2000, 3000)]
    assert 600 < means[0] < 1100
    assert 0.35 < means[1] / means[0] < 0.55
    assert 0.1 < means[3] / means[0] < 0.3
    axes = np.stack([synthetic.signal_at(points, 1000.0, axis) for axis in np.eye(3)])
    decay = -np.log(np.maximum(axes, 1e-3) / b0)
    spread = np.ptp(decay, axis=0) / decay.mean(axis=0)
    assert np.percentile(spread, 20) < 0.3
    assert np.percentile(spread, 90) > 0.8
    assert brain_points(synthetic)[:, 2].min() > -60
    assert 900 < synthetic.brain.sum() * 8 / 1000 < 1400


def test_infant_has_no_brighter_grey_matter_and_more_diffusion(points):
    adult, infant = (SyntheticHead(1, contrast) for contrast in ("adult", "infant"))
    assert adult.tissue.grey > 1.15 * adult.tissue.white
    assert infant.tissue.white > infant.tissue.grey
    kept = [h.signal_at(points, 1000.0, OBLIQUE).mean() / h.signal_at(points, 0.0, NONE).mean()
            for h in (adult, infant)]  # fmt: skip
    assert kept[1] < 0.75 * kept[0]


@pytest.mark.parametrize("which", ["synthetic", "head"])
def test_cavity_is_wet_or_dark_and_no_brain(which, request):
    whole = request.getfixturevalue(which)
    wet, dark = with_cavity(whole, "fluid"), with_cavity(whole, "empty")
    brain = np.argwhere(whole.brain)
    apart = np.linalg.norm(apply_affine(whole.affine, brain) - wet.center, axis=1)
    lost = whole.brain.sum() - wet.brain.sum()
    assert lost == (apart <= 25).sum() > 0.5 * 65e3 / np.linalg.det(whole.affine[:3, :3])
    far = tuple(brain[apart > 26][::50].T)
    middle = tuple(np.round(apply_affine(np.linalg.inv(whole.affine), wet.center)).astype(int))
    plain, filled, empty = (one.signal(1000.0, OBLIQUE) for one in (whole, wet, dark))
    np.testing.assert_allclose(filled[middle], 2.2 * np.exp(-3) * whole.white_signal, rtol=1e-3)
    assert empty[middle] == 0
    np.testing.assert_allclose([filled[far], empty[far]], [plain[far]] * 2, rtol=1e-5)


def test_cavity_of_a_continuous_head_is_known_at_any_point(synthetic):
    wet = with_cavity(synthetic, "fluid")
    ray = wet.center + np.array([[0.0, 0, 0], [24.0, 0, 0], [26, 0, 0]])
    found, plain = (h.signal_at(ray, 0.0, NONE) for h in (wet, synthetic))
    np.testing.assert_allclose(found[:2], 2.2 * synthetic.white_signal)
    assert found[2] == plain[2]


@pytest.mark.parametrize("orientation", ["LAS", "PSL"])
def test_field_of_view_leaves_out_what_it_says(synthetic, orientation):
    grid = Grid.covering(synthetic, 3.0, orientation)
    slab = covered(grid, synthetic, "slab")
    assert slab.shape == (*grid.shape[:2], 14)
    middle = apply_affine(np.linalg.inv(slab.affine), brain_points(synthetic))[:, 2]
    assert abs((middle.min() + middle.max()) / 2 - 6.5) < 1
    cropped = covered(grid, synthetic, "cropped")
    corners = apply_affine(cropped.affine, np.array([[0, 0, 0], np.array(cropped.shape) - 1]))
    lowest = brain_points(synthetic)[:, 2].min()
    assert 28.5 < corners[:, 2].min() - lowest < 33.5
    whole = apply_affine(grid.affine, np.array([[0, 0, 0], np.array(grid.shape) - 1]))
    np.testing.assert_allclose(corners[:, 2].max(), whole[:, 2].max())


@pytest.mark.parametrize(
    "settings",
    [KSpace(), KSpace(3, 1.7, 0.75, 0.05, "j-", 3), KSpace(2, 3.0, 0.625, 0.1, "i", 4)],
)
def test_image_is_the_truncated_fourier_sum(settings):
    grid = Grid((5, 6, 2), np.diag([16.0, 12, 10, 1]))  # margins of 2 voxels
    scanner = Scanner(settings, grid)
    f, shape = settings.oversampling, np.array([9, 10])
    fine = np.random.default_rng(0).uniform(size=scanner.fine_grid.shape[::-1]).astype(np.float32)
    weighed = (fine * scanner.receive_field).reshape(2, f, *fine.shape[1:]).mean(axis=1)
    kx, ky = (np.arange(-(n // 2), n - n // 2) for n in shape)
    place = [(np.arange(n * f) + 0.5) / f - 0.5 for n in shape]  # voxels of the measured field
    ex, ey = (np.exp(-2j * np.pi * np.outer(k, at) / n)
              for k, at, n in zip((kx, ky), place, shape, strict=True))  # fmt: skip
    space = np.einsum("ky,zyx,lx->zkl", ey, weighed, ex) / f**2
    axis, lines = (1, ky) if settings.pe_axis[0] == "j" else (2, kx)
    ahead = lines if len(settings.pe_axis) == 1 else -lines
    n = len(lines)
    missing = ahead < n - n // 2 - round(settings.partial_fourier * n)
    angle = np.arctan(settings.ghost) * np.where(lines % 2, 1, -1)
    factor = np.where(missing, 0, np.exp(1j * angle))
    space *= factor[:, None] if axis == 1 else factor
    bx, by = (np.exp(2j * np.pi * np.outer(2 + np.arange(m), k) / n)
              for m, k, n in zip((5, 6), (kx, ky), shape, strict=True))  # fmt: skip
    twin = np.einsum("yk,zkl,xl->zyx", by, space, bx) / shape.prod()
    np.testing.assert_allclose(scanner.image(fine), twin, atol=2e-5)


def test_edges_ring_and_the_level_stays():
    settings = KSpace(oversampling=4, coil_variation=1.0)
    scanner = Scanner(settings, Grid((16, 48, 1), np.diag([4.0, 4, 4, 1])))
    y = apply_affine(scanner.fine_grid.affine, np.array([[0, n, 0] for n in
                     range(scanner.fine_grid.shape[1])]))[:, 1]  # fmt: skip
    edge = np.where(y < 96.0, 100.0, 0.0)[:, None]
    line = np.abs(scanner.image(np.broadcast_to(edge, scanner.fine_grid.shape[::-1])))[0, :, 8]
    assert 106 < line[12:24].max() < 111  # Gibbs: 9 %
    np.testing.assert_allclose(line[8:18].mean(), 100, atol=1)


def test_receive_field_varies_as_much_as_asked_and_stays_with_the_scanner():
    random = np.random.default_rng(3).uniform(-1, 1, (20000, 3))
    inside = random[np.linalg.norm(random, axis=1) < 1] * [72, 88, 66]
    for variation in (1.7, 3.0):
        field = np.abs(receive_field(inside, variation, seed=5))
        assert 0.93 * variation < field.max() / field.min() <= 1.03 * variation
        np.testing.assert_allclose(field.mean(), 1, rtol=0.01)
    assert np.abs(receive_field(inside, 2.0, 5) / receive_field(inside, 2.0, 6)).std() > 0.05
    one, other = (Scanner(KSpace(), Grid.covering(SyntheticHead(), 12.0, code)).receive_field
                  for code in ("RAS", "LPI"))  # fmt: skip
    np.testing.assert_allclose(one, other[::-1, ::-1, ::-1], rtol=1e-4)


def test_noise_in_k_space_has_the_asked_deviation_in_the_image():
    scanner = Scanner(KSpace(partial_fourier=0.75, ghost=0.1), Grid((40, 40, 20), np.eye(4) * 4))
    noise = scanner.noise(3.0, np.random.default_rng(1))
    np.testing.assert_allclose([noise.real.std(), noise.imag.std()], 3.0, rtol=0.02)
    zero = scanner.magnitude(np.zeros((20, 40, 40)), 3.0, 4, np.random.default_rng(1))
    np.testing.assert_allclose((zero**2).mean(), 8 * 9, rtol=0.02)  # four coils, two channels


def test_runs_of_one_scanner_are_received_by_the_same_coils():
    runs = [Recipe(kspace=KSpace(), direction=name) for name in ("AP", "PA")]
    assert runs[0].seed != runs[1].seed
    assert runs[0].measurement == runs[1].measurement


def test_k_space_and_voxel_means_agree_on_level_and_place(synthetic, head):
    gradients = Gradients([0, 1000, 1000], [NONE, OBLIQUE, [1, 0, 0]])
    for subject in (synthetic, head):
        grid = Grid.covering(subject, 6.0)
        motion = Motion.identity(3).updated(np.array([1]), POSE)
        plain = acquire(subject, gradients, motion, grid, snr=None)
        even = acquire(subject, gradients, motion, grid, snr=None, kspace=KSpace(2, 1.0))
        mask = plain.mask
        for v in range(3):
            a, b = plain.signal[..., v], even.signal[..., v]
            np.testing.assert_allclose(b[mask].mean(), a[mask].mean(), rtol=0.01)
            assert np.corrcoef(a[mask], b[mask])[0, 1] > 0.9
            best = [np.corrcoef(np.roll(a, s, 0)[mask], b[mask])[0, 1] for s in (-1, 0, 1)]
            assert np.argmax(best) == 1
            assert abs(best[0] - best[2]) < 0.12  # not half a voxel beside it


def test_everything_at_once_does_not_depend_on_the_threads(synthetic):
    gradients = shelled_scheme({1000.0: 3, 2000.0: 2}, 1)
    grid = Grid.covering(synthetic, 12.0)
    motion = simulate_motion("moderate", 6, grid.center, seed=2)
    eddy = simulate_eddy_currents(gradients, grid, order="quadratic", seed=2)
    one, two = (
        acquire(synthetic, gradients, motion, grid, kspace=KSpace(ghost=0.02), eddy=eddy, coils=2,
                dropout=0.1, coil_bias=0.1, seed=2, n_threads=n).signal
        for n in (1, 2)
    )  # fmt: skip
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"partial_fourier": 0.2}, "partial fourier 0.2 given, expected 0.5 to 1"),
        ({"coil_variation": 0.5}, "coil variation"),
        ({"oversampling": 0}, "oversampling 0"),
        ({"pe_axis": "k"}, "slice by slice"),
    ],
)
def test_settings_that_make_no_sense_are_reported(wrong, text):
    with pytest.raises(EddymotionError, match=text):
        KSpace(**wrong)


@pytest.fixture(scope="module")
def real(synthetic):
    """A stand-in for a real series: two shells, noise, a head that rests between b=0 and DW."""
    gradients = shelled_scheme({1000.0: 18, 2000.0: 18}, 3, seed=1)
    grid = Grid.covering(synthetic, 7.0)
    motion = simulate_motion("drift", len(gradients), grid.center, seed=4)
    return acquire(synthetic, gradients, motion, grid, snr=25, kspace=KSpace()), motion


@pytest.mark.slow
def test_crude_alignment_finds_the_motion_crudely(real):
    dwi, motion = real
    found = align_crudely(dwi)
    np.testing.assert_array_equal(found[0], np.eye(4))
    alone = dwi.select(np.r_[0, dwi.gradients.shells[0]])  # nothing to align a single b=0 to
    assert np.isfinite(align_crudely(alone).matrices).all()
    for group in (dwi.gradients.b0s, dwi.gradients.shells[0]):
        true, got = motion.matrices[group], found.matrices[group]
        before = rigid_parameters(true, dwi.center).std(axis=0)
        after = rigid_parameters(np.linalg.inv(true) @ got, dwi.center).std(axis=0)
        assert after[:3].mean() < 0.7 * before[:3].mean()
        assert after[3:].mean() < 0.7 * before[3:].mean()


def test_groups_are_joined_by_neighbours_in_time():
    center = np.array([3.0, 4.0, 5.0])
    true = simulate_motion("high", 4, center, seed=1).matrices.copy()
    true[1], true[2] = true[0], true[3]  # the head rests from b=0 to its neighbour
    poses = true.copy()
    poses[1:3] = true[1:3] @ POSE  # of a frame of their own
    offset = _offset(poses, [0, 3], np.array([1, 2]), center)
    np.testing.assert_allclose(poses[1:3] @ offset, true[1:3], atol=1e-9)


def test_harmonics_give_back_the_series_and_fall_with_b(real):
    dwi, motion = real
    fitted = HarmonicHead.from_series(dwi, motion)
    assert fitted.coefficients.shape == (2, *fitted.shape, 15)
    np.testing.assert_allclose(fitted.white_signal, 700, rtol=1e-3)
    shells = dwi.gradients.shells
    volumes = [0, shells[0][3], shells[0][9], shells[1][5]]
    still = acquire(SyntheticHead(1), dwi.gradients.select(volumes), Motion.identity(4),
                    fitted.field_of_view, snr=None, kspace=KSpace())  # fmt: skip
    inside = tuple(slice((w - n) // 2, (w + n) // 2)
                   for w, n in zip(fitted.shape, dwi.shape, strict=True))  # fmt: skip
    for volume, true in zip(volumes, np.moveaxis(still.signal, 3, 0), strict=True):
        found = fitted.signal(dwi.gradients.bvals[volume], dwi.gradients.bvecs[volume])[inside]
        assert np.corrcoef(found[dwi.mask], true[dwi.mask])[0, 1] > 0.93
    last = fitted.signal(0.0, NONE)
    np.testing.assert_allclose(fitted.signal(1e-3, OBLIQUE), last, rtol=1e-4)
    for bval in (500.0, 1000.0, 1500.0, 2000.0, 5000.0):
        now = fitted.signal(bval, OBLIQUE)
        assert np.isfinite(now).all()
        assert (now >= 0).all()
        assert now[fitted.brain].mean() < 0.95 * last[fitted.brain].mean()
        last = now
    few = dwi.select(np.r_[dwi.gradients.b0s, shells[0][:4], shells[1][:5]])
    with pytest.raises(EddymotionError, match="shells of 4, 5 directions"):
        HarmonicHead.from_series(few)


def test_noise_is_not_frozen_into_the_head():
    random = np.random.default_rng(0)
    step = np.where(np.arange(20) < 10, 100.0, 300.0)[:, None, None] * np.ones((20, 20, 20))
    noisy = step + random.normal(scale=10, size=step.shape)
    left = shrunk(noisy, 100.0) - step
    assert left[2:8].std() < 5
    assert np.abs(left[9:11].mean(axis=(1, 2))).max() < 10  # the edge is still one


def test_synthetic_box_is_the_grid():
    head = SyntheticHead()
    corners = apply_affine(head.affine, np.array([[-0.5] * 3, np.array(head.shape) - 0.5]))
    np.testing.assert_allclose(corners.T, BOX_MM)
    assert replace(head, seed=3).seed == 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bone_lies_between_the_brain_and_air(seed):
    head = SyntheticHead(seed)
    around = 2 * np.vstack([np.eye(3), -np.eye(3)])
    covered_by = brain_points(head)[::5, None] + around
    assert head.matter_at(covered_by.reshape(-1, 3)).min() > 0.99
    beside = np.stack(np.meshgrid(np.arange(46, 72), [-22], np.arange(-56, -36)), axis=-1)
    for side in (-1, 1):
        cells = head.matter_at(beside.reshape(-1, 3) * [side, 1, 1])
        assert (np.abs(cells - 0.5) < 0.01).sum() > 40
    assert head.matter_at(np.array([[0.0, 66.0, -40.0]])) == 0
