# SPDX-License-Identifier: Apache-2.0
"""Coefficients of FSL's topup, as their header says what they are."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.fieldmaps import FieldmapPaths, FieldmapSettings
from eddymotion.fieldmaps.inputs import read_measured
from eddymotion.fieldmaps.topup import is_topup_coefficients, topup_field

SHAPE, KNOTS = (20, 24, 16), (2, 3, 4)
LAS = np.array([[-2.0, 0, 0, 20], [0, 2.0, 0.1, -30], [0, -0.1, 2.5, 7], [0, 0, 0, 1]])


@pytest.fixture
def coefficients():
    """Enough knots along each axis: from one distance before the first voxel on."""
    n = [-(-(size + 1) // knot) + 2 for size, knot in zip(SHAPE, KNOTS, strict=True)]
    return np.random.default_rng(0).normal(size=n).astype(np.float32) * 30


def write(path, coefficients, intent=2016, shape=SHAPE):
    """Write a file as topup does: the geometry in the wrong places."""
    image = nib.Nifti1Image(coefficients, np.diag([*KNOTS, 1.0]))
    image.header.set_zooms(KNOTS)
    qform = np.diag([*KNOTS, 1.0])
    qform[:3, 3] = shape
    image.set_qform(qform, 1)
    image.set_sform(np.eye(4), 1)
    image.header["intent_code"] = intent
    image.header["intent_p1"] = image.header["intent_p2"] = 2.0
    nib.save(image, path)
    return path


def cubic(x):
    """The cubic B-spline."""
    x = np.abs(x)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0))


def test_the_field_is_the_sum_of_its_splines(coefficients, tmp_path):
    path = write(tmp_path / "x_fieldcoef.nii.gz", coefficients)
    assert is_topup_coefficients(path)
    found = topup_field(path, SHAPE, LAS).on_grid(SHAPE, LAS)
    basis = [
        cubic(np.arange(size)[:, None] / knot - (np.arange(n) - 1))
        for size, knot, n in zip(SHAPE, KNOTS, coefficients.shape, strict=True)
    ]
    expected = np.einsum("xa,yb,zc,abc->xyz", *basis, coefficients)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    at = np.array([[7, 11, 5]])
    hertz = topup_field(path, SHAPE, LAS).hertz(apply_affine(LAS, at))
    np.testing.assert_allclose(hertz, expected[7, 11, 5], atol=1e-3)


def test_what_cannot_be_placed_is_refused(coefficients, tmp_path):
    path = write(tmp_path / "a.nii.gz", coefficients)
    with pytest.raises(EddymotionError, match=r"made from images of shape \(20, 24, 16\)"):
        topup_field(path, (20, 24, 17), LAS)
    with pytest.raises(EddymotionError, match="from left to right"):
        topup_field(path, SHAPE, np.diag([2.0, 2.0, 2.5, 1.0]))
    quadratic = write(tmp_path / "b.nii.gz", coefficients, intent=2017)
    with pytest.raises(EddymotionError, match="quadratic splines"):
        topup_field(quadratic, SHAPE, LAS)
    with pytest.raises(EddymotionError, match="give the field that topup writes with --fout"):
        read_measured(FieldmapPaths((), fieldmap=path), FieldmapSettings(units="Hz"))
    image = nib.Nifti1Image(coefficients, LAS)
    nib.save(image, tmp_path / "field.nii.gz")
    assert not is_topup_coefficients(tmp_path / "field.nii.gz")
