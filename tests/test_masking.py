# SPDX-License-Identifier: Apache-2.0
"""A mask that is a brain, on heads that are hard to find."""

import numpy as np
import pytest
from dipy.segment.mask import median_otsu
from scipy import ndimage

from eddymotion.data.gradients import Gradients
from eddymotion.images.masking import (
    COARSE_VOXELS,
    _largest_piece,
    _on_full_grid,
    _solid,
    _widely_smoothed,
    _without_holes_and_bridges,
    brain_mask,
    median_filtered,
)
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import Grid, acquire


def scan(head, grid, snr):
    gradients = Gradients([0, 1000, 1000], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    rest = Motion.identity(3)
    clean = acquire(head, gradients, rest, grid, snr=None).signal[..., 0]
    return acquire(head, gradients, rest, grid, snr=snr).signal[..., 0], clean > 300


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("snr", [None, 20, 3])
def test_mask_is_the_brain_whatever_the_noise(head, grid, snr):
    image, brain = scan(head, grid, snr)
    assert dice(brain_mask(image), brain) > 0.9


@pytest.mark.parametrize("snr", [20, 3])
@pytest.mark.parametrize("part", [np.s_[:, :, :18], np.s_[:, :, 18:], np.s_[:20]])
def test_mask_of_a_cropped_head_overlaps_the_brain(head, grid, part, snr):
    image, brain = scan(head, grid, snr)
    mask = brain_mask(image[part])
    assert mask.shape == image[part].shape
    assert dice(mask, brain[part]) > 0.8


def test_mask_without_any_background_lies_in_the_brain(head, grid):
    image, brain = scan(head, grid, 20)
    inside = np.s_[8:32, 8:40, 10:30]
    assert brain[inside].mean() > 0.95
    mask = brain_mask(image[inside])
    assert mask.mean() > 0.5
    assert brain[inside][mask].mean() > 0.95


def test_small_head_in_a_zero_background_is_found(head, grid):
    image, brain = scan(head, grid, None)
    wide = [(30, 30)] * 3
    assert dice(brain_mask(np.pad(image, wide)), np.pad(brain, wide)) > 0.9


def test_mask_on_a_coarse_grid_is_that_of_median_otsu_on_the_full_grid(head):
    image, _ = scan(head, Grid.covering(head, (1.8, 1.8, 4.0)), 20)
    assert image.shape[1] > 1.5 * COARSE_VOXELS
    assert image.shape[1] % 2  # no whole number of blocks
    _, expected = median_otsu(image, median_radius=2, numpass=2, finalize_mask=True)
    assert dice(brain_mask(image), expected > 0) > 0.98


def test_mask_is_never_empty_and_the_image_stays_unchanged():
    random = np.random.default_rng(0)
    for image in (np.full((12, 12, 6), 5.0), random.rayleigh(1.0, (16, 16, 8))):
        before = image.copy()
        assert brain_mask(image).any()
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(5, 5, 5), (3, 5, 3)])
def test_median_is_that_of_scipy(size):
    image = np.random.default_rng(0).normal(size=(11, 9, 14)).round(1).astype(np.float32)
    expected = ndimage.median_filter(image, size=size)
    np.testing.assert_array_equal(median_filtered(image, size), expected)


@pytest.mark.parametrize("factors", [(1, 2, 1), (3, 1, 4), (1, 1, 1)])
def test_full_grid_is_that_of_scipy(factors):
    coarse = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    shape, step = (
        tuple(np.multiply(coarse.shape, factors) - np.greater(factors, 1)),
        1 / np.array(factors),
    )
    expected = ndimage.affine_transform(
        coarse, np.diag(step), (step - 1) / 2, shape, order=1, mode="nearest"
    )
    found = _on_full_grid(coarse, np.array(factors), shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_wide_filter_is_that_of_scipy():
    image = np.random.default_rng(0).random((12, 9, 17), np.float32)
    expected = ndimage.gaussian_filter(image, 6.3)
    np.testing.assert_allclose(_widely_smoothed(image, 6.3), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_what_lies_around_a_piece_does_not_change_it(seed):
    """Some pieces touch the end of the image, where holes are open."""
    noise = np.random.default_rng(seed).normal(size=(40, 36, 30))
    mask = np.pad(ndimage.gaussian_filter(noise, 2.5) > 0, [(0, 5), (4, 0), (0, 0)])
    mask[5:25, 8:30, 6:24] |= ndimage.gaussian_filter(noise, 4)[5:25, 4:26, 6:24] > -0.02
    uncut = _without_holes_and_bridges(_largest_piece(mask))
    assert uncut.sum() > 1000
    np.testing.assert_array_equal(_solid(mask), uncut)
