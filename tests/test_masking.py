# SPDX-License-Identifier: Apache-2.0
"""A mask that is a brain, on heads that are hard to find."""

import numpy as np
import pytest
from dipy.segment.mask import median_otsu
from scipy import ndimage

from eddymotion.data.gradients import Gradients
from eddymotion.images.masking import COARSE_VOXELS, brain_mask, median_filtered
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
