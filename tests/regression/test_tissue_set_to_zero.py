# SPDX-License-Identifier: Apache-2.0
"""Zeros that cut through tissue are missing data, not an edge that stays where it is."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from eddymotion.data.checks import find_issues
from eddymotion.estimation import estimate_motion
from eddymotion.evaluation import compare_motion
from eddymotion.images.image import Image


def stripped(dwi):
    inside = ndimage.binary_erosion(dwi.mask)
    return replace(dwi, signal=dwi.signal * inside[..., None], mask=inside)


@pytest.fixture(scope="module")
def of_stripped(moving):
    return estimate_motion(stripped(moving))


@pytest.mark.slow
def test_motion_is_found_within_a_mask_that_rests(moving, truth, of_stripped, scheme):
    compared = compare_motion(of_stripped, truth.relative_to(0), bvals=scheme.bvals,
                              center=np.zeros(3), grid_center=moving.center)  # fmt: skip
    score = compared.score()
    assert score.slope_translation == pytest.approx(1, abs=0.05)
    assert score.slope_rotation == pytest.approx(1, abs=0.08)
    assert compared.coverage_percent > 80


def test_it_is_reported_and_errors_are_larger(moving, estimated, of_stripped):
    assert [one.kind for one in find_issues(stripped(moving))] == ["zeros"]
    assert find_issues(moving) == []
    dwis = moving.gradients.dwis
    wider = np.median(of_stripped.standard_errors[dwis], axis=0)
    assert (wider > 1.2 * np.median(estimated.standard_errors[dwis], axis=0)).all()


def test_zeros_of_the_scanner_in_air_are_no_cut(moving):
    signal = np.where(moving.signal < 60, 0, moving.signal)
    assert not replace(moving, signal=signal).is_cut


def test_nothing_is_read_where_a_missing_voxel_has_a_say():
    missing = np.zeros((12, 12, 12), bool)
    missing[:4] = True
    image = Image(np.ones(missing.shape, np.float32), np.eye(4), missing)
    values = image.spline.sample(np.array([[x, 6.0, 6.0] for x in (3.0, 4.5, 5.5, 8.2)]))
    np.testing.assert_array_equal(np.isfinite(values), [False, False, True, True])


@pytest.mark.parametrize("value", [0, -1, 1, 37.5, -100, "least of the volume"])
def test_any_constant_around_the_brain_is_missing(still, value):
    inside = ndimage.binary_erosion(still.mask)
    values = [v[inside].min() if isinstance(value, str) else value for v in still.volumes()]
    signal = np.where(inside[..., None], still.signal, np.array(values, np.float32))
    dwi = replace(still, signal=signal)
    assert [one.kind for one in find_issues(dwi)] == ["zeros"]
    np.testing.assert_array_equal(dwi.volume_with_missing(5).missing, ~inside)


@pytest.mark.parametrize("voxels", [1, 2])
def test_a_cut_outside_the_mask_is_one(still, voxels):
    inside = ndimage.binary_dilation(still.mask, iterations=voxels)
    assert replace(still, signal=still.signal * inside[..., None]).is_cut


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_that_was_cropped_is_named_and_what_is_gone_has_no_say(still, axis):
    edge = np.argwhere(still.mask).max(axis=0)[axis]
    signal = np.array(still.signal)
    gone = np.moveaxis(signal[..., 5], axis, 0)
    gone[edge - 4 :] = 0
    dwi = replace(still, signal=signal)
    assert not dwi.is_cut
    assert dwi.cut_volumes == (5,)
    assert dwi.volume_with_missing(4).missing is None
    np.testing.assert_array_equal(dwi.volume_with_missing(5).missing, signal[..., 5] == 0)
    (issue,) = find_issues(dwi)
    assert issue.text.startswith("volume 5: tissue visible in other volumes")
    assert still.cut_volumes == ()
