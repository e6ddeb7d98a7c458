# SPDX-License-Identifier: Apache-2.0
"""Denoising before the correction removes motion: it is noticed, reported, and errors grow."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from eddymotion.data.checks import DENOISED_PART, find_issues
from eddymotion.data.checks.noise import is_denoised
from eddymotion.estimation.estimate import with_larger_errors
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import acquire, shelled_scheme

RANK = 3


@pytest.fixture(scope="module")
def raw(head, grid):
    gradients = shelled_scheme({3000.0: 24}, 2)
    dwi = acquire(head, gradients, Motion.identity(26), grid, snr=10)
    box = np.s_[2:26, 4:20, 12:28]  # brain and air
    return replace(dwi, signal=dwi.signal[box], mask=dwi.mask[box])


def denoised(dwi):
    """Keep the largest patterns of the neighbours of each voxel, as MP-PCA does."""
    signal = np.pad(np.asarray(dwi.signal, float), [(2, 2)] * 3 + [(0, 0)], mode="reflect")
    patches = sliding_window_view(signal, (5, 5, 5), axis=(0, 1, 2))
    clean = np.empty(dwi.signal.shape, np.float32)
    for plane in range(clean.shape[0]):
        rows = np.moveaxis(patches[plane], 2, -1).reshape(*clean.shape[1:3], 125, -1)
        mean = rows.mean(axis=2)
        centred = rows - mean[:, :, None]
        _, vectors = np.linalg.eigh(np.swapaxes(centred, 2, 3) @ centred)
        kept = vectors[..., -RANK:]
        middle = centred[:, :, 62, None, :]
        clean[plane] = (middle @ kept @ np.swapaxes(kept, 2, 3))[:, :, 0] + mean
    return replace(dwi, signal=clean)


def test_noise_that_was_removed_is_noticed_and_raw_noise_is_not(raw):
    assert not is_denoised(raw)
    clean = denoised(raw)
    assert is_denoised(clean)
    assert "denoised" in [one.kind for one in find_issues(clean)]


def test_standard_errors_grow_with_the_motion_that_may_be_missing():
    matrices = np.tile(np.eye(4), (5, 1, 1))
    matrices[4, 0, 3] = 2.0
    errors = np.full((5, 6), 0.01)
    errors[0] = 0.0
    grown = with_larger_errors(Motion(matrices, errors), np.zeros(3), lost=DENOISED_PART)
    assert grown.standard_errors[4, 0] == pytest.approx(2 * DENOISED_PART, rel=0.01)
    np.testing.assert_allclose(grown.standard_errors[:4], errors[:4])
