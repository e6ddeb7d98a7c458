# SPDX-License-Identifier: Apache-2.0
"""A dark brainstem belongs to the mask, a mouth does not, and a doubtful mask is reported."""

import numpy as np
import pytest
from scipy import ndimage

from eddymotion.images.masking import _holes_in_slices, _solid, brain_mask, mask_issue
from eddymotion.io.series import load, mean_b0

AXES = np.indices((40, 44, 36)).transpose(1, 2, 3, 0)


def ball(centre, radius):
    return (((AXES - centre) / radius) ** 2).sum(axis=-1) < 1


def test_a_hole_that_opens_downwards_is_filled():
    brain = ball((20, 22, 18), (15, 17, 16))
    stem = (np.hypot(AXES[..., 0] - 20, AXES[..., 1] - 22) < 4) & (AXES[..., 2] < 20)
    assert _solid(brain & ~stem)[20, 22, 5:20].all()


def test_what_hangs_on_by_a_thread_is_cut_off():
    brain, mouth = ball((20, 18, 20), (14, 15, 14)), ball((20, 39, 8), (5, 4, 5))
    thread = (abs(AXES[..., 0] - 20) < 2) & (AXES[..., 2] == 10) & (AXES[..., 1] > 18)
    found = _solid(brain | mouth | (thread & (AXES[..., 1] < 40)))
    assert not (found & mouth)[:, 38:].any()
    assert (found & brain).sum() > 0.98 * brain.sum()


def test_second_opinion_speaks_up_only_against_a_wrong_mask(moving):
    reference = mean_b0(moving.signal, moving.gradients)
    assert mask_issue(reference, moving.mask) is None
    half = moving.mask.copy()
    half[half.shape[0] // 2 :] = False
    assert "in common" in mask_issue(reference, half)


def test_a_tight_mask_is_no_wrong_one(moving):
    """Poses are as good without the rim; one that lacks a part of the brain is told as before."""
    reference = mean_b0(moving.signal, moving.gradients)
    assert mask_issue(reference, ndimage.binary_erosion(moving.mask, iterations=3)) is None
    for axis in range(3):
        part = moving.mask.copy()
        np.moveaxis(part, axis, 0)[: part.shape[axis] // 2 - 3] = False
        assert "in common" in mask_issue(reference, part)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "voxel", "inside"), [
    ("sub-xa30/dwi/sub-xa30_dir-AP_dwi", (36, 34, 9), True),  # midbrain
    ("sub-bangalore/dwi/sub-bangalore_dwi", (63, 100, 14), False),  # mouth
])  # fmt: skip
def test_real_heads(name, voxel, inside):
    from conftest import SHARED

    path = SHARED / "bids_real" / f"{name}.nii.gz"
    if not path.is_file():
        pytest.skip("shared/data/bids_real is not here")
    dwi = load(path)
    mask = brain_mask(mean_b0(dwi.signal, dwi.gradients))
    assert mask[voxel] == inside


def test_holes_of_all_slices_are_those_of_each():
    mask = np.random.default_rng(0).random((12, 13, 14)) > 0.4
    for axis in range(3):
        filled = [ndimage.binary_fill_holes(one) for one in np.moveaxis(mask, axis, 0)]
        found = mask | _holes_in_slices(mask, axis)
        np.testing.assert_array_equal(found, np.stack(filled, axis))
