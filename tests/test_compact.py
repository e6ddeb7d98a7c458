# SPDX-License-Identifier: Apache-2.0
"""Splines that are kept around points alone, against those of the whole volume."""

import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.images.compact import CompactSpline
from eddymotion.images.compact_kernels import LARGEST
from eddymotion.images.image import Image, Spline
from eddymotion.mapping.rigid import rigid_matrix

SHAPE = (30, 26, 22)
AFFINE = np.array([[-2.0, 0.1, 0, 31], [0.1, 1.8, 0.2, -20], [0, -0.2, 2.2, -25], [0, 0, 0, 1]])
SLACK = 2


@pytest.fixture
def random():
    return np.random.default_rng(5)


@pytest.fixture
def image(random):
    return Image(random.normal(0, 20, SHAPE).astype(np.float32), AFFINE)


def inside_ball(random, n=3000, radius=6.0):
    """Points of a ball in the middle of the image, mm, and its surface."""
    ways = random.normal(size=(n, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    middle = apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)
    distances = 2 * radius * np.cbrt(random.uniform(size=(n, 1)))
    return middle + distances * ways, middle + 2 * radius * ways


def test_what_is_kept_reads_as_the_whole_does_within_half_a_unit(image, random):
    whole = Spline.of(image)
    points, surface = inside_ball(random)
    compact = CompactSpline.around(surface, whole, SLACK)
    shift, turn = np.array([1.5, -2, 1]), np.array([0.05, -0.04, 0.06])  # less than the slack
    pose = rigid_matrix(shift, turn, points.mean(axis=0))
    for moved in (None, pose):
        expected, slopes = whole.sample_with_gradient(points, moved)
        found, found_slopes = compact.sample_with_gradient(points, moved)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0.51 * compact.unit)
        np.testing.assert_allclose(found_slopes, slopes, rtol=1e-4, atol=2 * compact.unit)
        np.testing.assert_array_equal(compact.sample(points, moved), found)
    assert compact.unit <= np.abs(whole.coefficients).max() / LARGEST * 1.001
    assert compact.values.nbytes < 0.25 * whole.coefficients.nbytes


def test_nothing_is_read_where_nothing_is_kept(image, random):
    _, surface = inside_ball(random)
    whole = Spline.of(image)
    compact = CompactSpline.around(surface, whole, SLACK)
    anywhere = apply_affine(AFFINE, random.uniform(-3, np.array(SHAPE) + 2, (5000, 3)))
    found, slopes = compact.sample_with_gradient(anywhere)
    expected = whole.sample(anywhere)
    kept = np.isfinite(found)
    assert 0 < kept.sum() < 0.5 * np.isfinite(expected).sum()
    assert np.isfinite(expected[kept]).all()
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-5, atol=0.51 * compact.unit)
    assert (np.isnan(slopes).all(axis=1) == ~kept).all()
    far = CompactSpline.around(surface + 1000.0, whole, 0)
    assert np.isnan(far.sample(surface)).all()


def test_edges_of_the_image_and_what_is_missing_are_those_of_the_whole(image, random):
    missing = np.zeros(SHAPE, bool)
    missing[10:14, 8:12, 9:13] = True
    whole = Spline.of(Image(image.data, AFFINE, missing))
    everywhere = apply_affine(AFFINE, np.argwhere(np.ones(SHAPE, bool)))
    compact = CompactSpline.around(everywhere, whole, SLACK)
    points = apply_affine(AFFINE, random.uniform(-1, SHAPE, (8000, 3)))
    expected = whole.sample(points)
    assert 0.1 < np.isnan(expected).mean() < 0.5
    np.testing.assert_allclose(
        compact.sample(points), expected, rtol=1e-5, atol=0.51 * compact.unit
    )


def test_voxels_that_show_no_head_do_not_make_the_others_coarse(image, random):
    spoilt = image.data.copy()
    spoilt[15, 13, 15] = 1e5
    whole = Spline.of(Image(spoilt, AFFINE))
    points, surface = inside_ball(random)
    away = np.linalg.norm(points - apply_affine(AFFINE, (15, 13, 15)), axis=1) > 14
    compact = CompactSpline.around(surface, whole, SLACK)
    errors = compact.sample(points[away]) - whole.sample(points[away])
    assert away.sum() > 300
    assert np.abs(errors).max() < 0.05 * image.data.std()  # 0.2 of it if the largest counted
