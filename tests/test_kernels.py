# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels against SciPy."""

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.twist_kernels import sum_twists
from eddymotion.estimation.fields.unknowns import UnknownFields
from eddymotion.estimation.outliers.slice_kernels import SliceSums
from eddymotion.images import kernels
from eddymotion.images.grid import transformed
from eddymotion.images.image import Image
from eddymotion.images.kernels import (
    sample_grid,
    sample_points,
    sample_points_with_gradient,
    smooth,
    spline_coefficients,
)
from eddymotion.mapping.eddy_currents import N_TERMS, TERMS, EddyCurrents, polynomial_terms
from eddymotion.mapping.field_kernels import sample_grid_through_field, weigh_terms
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rigid_matrix

SHAPE = np.array([9, 11, 13])
IN_PLACE = np.eye(4)[:3]


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32)


def sampled(volume, points):
    values = np.empty(len(points), np.float32)
    coefficients = spline_coefficients(volume)
    sample_points(coefficients, IN_PLACE, np.ascontiguousarray(points, float), values)
    return values


ANY_SHAPE = [(9, 11, 13), (40, 37, 50), (16, 32, 48), (2, 3, 4), (1, 17, 2), (30, 1, 1)]


@pytest.mark.parametrize("shape", ANY_SHAPE)
def test_coefficients_equal_scipy_mirrored_beyond_the_edges(shape):
    volume = np.random.default_rng(3).normal(100, 30, shape).astype(np.float32)
    expected = spline_filter(volume.astype(float), order=3, mode="mirror")
    expected = np.pad(expected, 2, mode="reflect")
    found = spline_coefficients(volume)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(volume), rtol=0)


@pytest.mark.parametrize("sigmas", [(1.3, 1.3, 1.3), (0, 0.8, 3), (2, 0, 0), (0, 0, 0), (9, 9, 9)])
@pytest.mark.parametrize("shape", ANY_SHAPE)
def test_smoothing_equals_scipy(shape, sigmas):
    volume = np.random.default_rng(4).normal(100, 30, shape).astype(np.float32)
    expected = gaussian_filter(volume.astype(float), sigmas, mode="nearest", truncate=3.0)
    found = smooth(volume, sigmas)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(volume), rtol=0)


@pytest.mark.parametrize("filtered", [spline_coefficients, lambda v: smooth(v, (1, 2, 0.5))])
def test_filters_take_any_layout_and_leave_the_volume_unchanged(volume, filtered):
    frozen = np.round(volume)
    frozen.flags.writeable = False
    expected = filtered(frozen)
    for same in (np.asfortranarray(frozen), frozen.astype(np.int16), frozen[::-1][::-1]):
        np.testing.assert_array_equal(filtered(same), expected)
    np.testing.assert_array_equal(frozen, np.round(volume))


def test_filters_are_compiled_once(volume):
    frozen = volume.copy()
    frozen.flags.writeable = False
    for given in (volume, frozen):
        smooth(given, (1, 1, 1))
        spline_coefficients(given)
    for kernel in (kernels._prefilter, kernels._smooth):
        assert len(kernel.made.signatures) == 1


def test_samples_equal_map_coordinates_up_to_half_a_voxel_outside(volume):
    points = np.random.default_rng(1).uniform(-0.5, SHAPE - 0.5, (4000, 3))
    points = np.vstack([points, np.argwhere(np.ones(SHAPE)), [-0.5] * 3, SHAPE - 0.5])
    expected = map_coordinates(volume.astype(float), points.T, order=3, mode="mirror")
    np.testing.assert_allclose(sampled(volume, points), expected, atol=1e-3)


@pytest.mark.parametrize("axis", range(3))
def test_only_half_a_voxel_beyond_the_edge_counts_as_inside(volume, axis):
    points = np.tile((SHAPE - 1) / 2, (4, 1))
    points[:, axis] = -0.5, -0.5001, SHAPE[axis] - 0.5, SHAPE[axis] - 0.4999
    expected = [False, True, False, True]
    np.testing.assert_array_equal(np.isnan(sampled(volume, points)), expected)
    values, gradients = np.empty(4, np.float32), np.empty((3, 4), np.float32)
    sample_points_with_gradient(spline_coefficients(volume), IN_PLACE, points, values, gradients)
    np.testing.assert_array_equal(np.isnan(values), expected)
    np.testing.assert_array_equal(np.isnan(gradients).all(axis=0), expected)


def test_gradients_equal_finite_differences_of_scipy(volume):
    points = np.random.default_rng(2).uniform(0.5, SHAPE - 1.5, (500, 3))
    values, gradients = np.empty(500, np.float32), np.empty((3, 500), np.float32)
    sample_points_with_gradient(spline_coefficients(volume), IN_PLACE, points, values, gradients)
    h = 1e-4
    for axis in range(3):
        step = h * np.eye(3)[axis]
        ahead, behind = (
            map_coordinates(volume.astype(float), p.T, order=3, mode="mirror")
            for p in (points + step, points - step)
        )
        np.testing.assert_allclose(gradients[axis], (ahead - behind) / (2 * h), atol=5e-3)
    np.testing.assert_array_equal(values, sampled(volume, points))


def test_grid_equals_points(volume):
    matrix = np.array([[0.9, 0.1, 0, 0.3], [-0.1, 1.1, 0.05, -1], [0, 0.02, 0.8, 2.0]])
    values = np.empty((8, 9, 10), np.float32)
    sample_grid(spline_coefficients(volume), matrix, values)
    points = np.argwhere(np.ones(values.shape)) @ matrix[:, :3].T + matrix[:, 3]
    expected = sampled(volume, points)
    assert 0 < np.isnan(expected).mean() < 0.7
    np.testing.assert_allclose(
        values.ravel(), np.where(np.isnan(expected), 0.0, expected), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("n_in_a_row", [1, 2, 10])
def test_grid_through_a_field_equals_the_polynomials_and_scipy(volume, n_in_a_row):
    random = np.random.default_rng(5)
    matrix = np.array([[0.9, 0.1, 0, 0.3], [-0.1, 1.1, 0.05, 0.6], [0, 0.02, 0.8, 2.0]])
    units = np.hstack([random.normal(scale=0.1, size=(3, 3)), random.normal(size=(3, 1))])
    displacement, stretch = random.normal(scale=0.3, size=(2, 1 + len(TERMS)))
    shift = np.array([0.1, -0.6, 0.3])
    values = np.empty((8, 9, n_in_a_row), np.float32)
    sample_grid_through_field(
        spline_coefficients(volume), matrix, units, displacement, shift, stretch, values
    )
    index = np.argwhere(np.ones(values.shape))
    u = index @ units[:, :3].T + units[:, 3]
    terms = np.hstack([np.ones((len(u), 1)), polynomial_terms(u, len(TERMS))])
    points = index @ matrix[:, :3].T + matrix[:, 3] + np.outer(terms @ displacement, shift)
    inside = ((points >= -0.5) & (points <= SHAPE - 0.5)).all(axis=1)
    assert 0.3 < inside.mean() < 1
    read = map_coordinates(volume.astype(float), points.T, order=3, mode="mirror")
    expected = np.where(inside, read * (terms @ stretch), 0.0)
    np.testing.assert_allclose(values.ravel(), expected, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("order", ["linear", "quadratic", "cubic"])
def test_points_through_a_field_equal_the_polynomials(order):
    random = np.random.default_rng(6)
    pe = np.array([0.6, 0.0, -0.8])
    eddy = EddyCurrents(random.normal(size=(2, N_TERMS[order])), pe, np.array([5.0, -9.0, 2.0]))
    pose = rigid_matrix(np.array([4.0, -3.0, 2.0]), np.array([0.1, -0.2, 0.3]), np.zeros(3))
    points = random.normal(scale=60, size=(50, 3))
    moved = apply_affine(pose, points)
    recorded, factors = eddy.displaced(1, points, pose)
    np.testing.assert_allclose(recorded, eddy.recorded(1, moved), atol=1e-10)
    np.testing.assert_allclose(factors, eddy.stretch(1, moved), rtol=1e-6)
    weights = random.normal(size=50).astype(np.float32)
    columns = np.empty((N_TERMS[order], 50), np.float32)
    weigh_terms(points, eddy.units_of(pose), weights, columns)
    np.testing.assert_allclose(columns.T, weights[:, None] * eddy.terms(moved), atol=1e-5)


@pytest.mark.parametrize("order", ["linear", "quadratic", "cubic"])
def test_pulls_on_fields_are_their_columns_summed_part_by_part(order):
    random, n = np.random.default_rng(7), 4
    eddy = EddyCurrents.none(n, order, np.array([0.6, 0.0, -0.8]), np.array([5.0, -9.0, 2.0]))
    motion = Motion(exp_rigid(random.normal(size=(n, 6)) * 0.3, np.zeros(3)), eddy_currents=eddy)
    fields = UnknownFields(Gradients(np.zeros(n), np.zeros((n, 3))), N_TERMS[order], eddy.center)
    points = random.normal(scale=60, size=(50, 3))
    slopes = random.normal(size=(n, 3, 50)).astype(np.float32)
    factors = random.normal(size=(n, 50)).astype(np.float32)
    parts = np.sort(random.integers(0, 3, 50))
    columns = fields.columns(motion, points, slopes)
    along = np.einsum("nkp,nab,a,kb->np", slopes, motion.rotations, eddy.pe, np.eye(3))
    for volume in range(n):
        terms = eddy.terms(apply_affine(motion.matrices[volume], points))
        expected = -along[volume][:, None] * terms
        np.testing.assert_allclose(columns[volume].T, expected, rtol=1e-4, atol=1e-4)
    found = fields.pulls(motion, points, slopes, factors, parts)
    for part in range(3):
        inside = parts == part
        expected = (columns * factors[:, None])[:, :, inside].sum(axis=2)
        np.testing.assert_allclose(found[part], expected, rtol=1e-4, atol=1e-4)


def test_image_gradients_are_in_world_millimetres():
    affine = np.array([[0, -2.0, 0, 9], [3.0, 0, 0.5, -4], [0, 0, 4.0, 1], [0, 0, 0, 1]])
    voxels = np.argwhere(np.ones((12, 12, 12)))
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    slope = np.array([0.7, -1.3, 2.1])
    image = Image((world @ slope).reshape(12, 12, 12), affine)
    points = world[((voxels > 3) & (voxels < 8)).all(axis=1)] + 0.3
    values, gradients = image.spline.sample_with_gradient(points)
    np.testing.assert_allclose(values, points @ slope, rtol=2e-3)
    np.testing.assert_allclose(gradients, np.tile(slope, (len(points), 1)), atol=0.02)


def test_a_pose_moves_points_and_turns_gradients(volume):
    spline = Image(volume, np.diag([2.0, 2.5, 3.0, 1.0])).spline
    pose = np.array([[0.96, -0.28, 0, 1.5], [0.28, 0.96, 0, -2.0], [0, 0, 1, 0.7], [0, 0, 0, 1]])
    points = np.random.default_rng(4).uniform(4, 14, (200, 3))
    moved = points @ pose[:3, :3].T + pose[:3, 3]
    expected, slopes = spline.sample_with_gradient(moved)
    assert np.isfinite(expected).mean() > 0.9
    values, gradients = spline.sample_with_gradient(points, pose)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients, slopes @ pose[:3, :3], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(spline.sample(points, pose), values)


@pytest.mark.parametrize("own", [False, True])
def test_forces_and_moments_add_up_part_by_part(own):
    random = np.random.default_rng(11)
    points, slopes = random.normal(size=(50, 3)) * 30, random.normal(size=(4, 3, 50))
    factors = random.normal(size=(4, 50)).astype(np.float32)
    parts = random.integers(0, 3, (4, 50)) if own else np.sort(random.integers(0, 3, 50))
    found = sum_twists(points, slopes.astype(np.float32), factors, parts)
    forces = (slopes * factors[:, None]).transpose(0, 2, 1)
    both = np.concatenate([forces, np.cross(points, forces)], axis=2)
    for part in range(3):
        inside = np.broadcast_to(parts, (4, 50)) == part
        expected = (both * inside[..., None]).sum(axis=1)
        np.testing.assert_allclose(found[part], expected, atol=1e-3, rtol=1e-4)


def test_sums_over_slices_are_those_of_the_spline_at_the_points():
    """Gains that change as hats of one coefficient, interpolated as an image; edges mirrored."""
    random, n_slices = np.random.default_rng(12), 7
    height = random.uniform(-1, n_slices, 400).astype(np.float32)
    observed, predicted = random.uniform(1, 2, (2, 400)).astype(np.float32)
    observed[::9], predicted[5::9] = np.nan, np.nan
    found = SliceSums.of_spline(observed, predicted, height, n_slices, 0.3)
    index = np.rint(height)
    counted = (np.abs(height - index) < 0.3) & (index >= 0) & (index < n_slices)
    counted &= np.isfinite(observed) & np.isfinite(predicted)
    y, p, h = (of[counted].astype(float) for of in (observed, predicted, height))
    columns = p * np.stack([
        map_coordinates(one, h[None], order=3, mode="mirror", prefilter=False)
        for one in np.eye(n_slices)
    ])  # fmt: skip
    np.testing.assert_allclose(found.normal, columns @ columns.T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.slopes, columns @ (y - p), rtol=1e-6, atol=1e-9)
    of_slice = index[counted].astype(int)
    np.testing.assert_array_equal(found.n_points, np.bincount(of_slice, minlength=n_slices))
    squares = np.bincount(of_slice, (y - p) ** 2, n_slices)
    np.testing.assert_allclose(found.squares, squares, rtol=1e-6)


def test_points_are_mapped_as_nibabel_maps_them():
    matrix = rigid_matrix(np.array([3.0, -2, 1]), np.array([0.1, 0.2, -0.3]), np.ones(3))
    points = np.random.default_rng(13).normal(size=(20, 3)) * 50
    np.testing.assert_allclose(transformed(matrix, points), apply_affine(matrix, points))
    assert transformed(matrix, points).flags.c_contiguous
