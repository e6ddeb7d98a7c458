# SPDX-License-Identifier: Apache-2.0
"""Coefficients of FSL's topup, as their header says what they are."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes

from eddymotion.errors import EddymotionError
from eddymotion.fieldmaps import FieldmapPaths, FieldmapSettings
from eddymotion.fieldmaps.inputs import read_measured
from eddymotion.images.grid import Grid
from eddymotion.io.other_programs import eddy_poses
from eddymotion.io.topup import is_topup_coefficients, topup_field, write_topup
from eddymotion.mapping.off_resonance import OffResonance, Readout
from eddymotion.mapping.rigid import rigid_matrix

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
    quadratic = write(tmp_path / "b.nii.gz", coefficients, intent=2017)
    with pytest.raises(EddymotionError, match="quadratic splines"):
        topup_field(quadratic, SHAPE, LAS)
    with pytest.raises(EddymotionError, match="give the field that topup writes with --fout"):
        read_measured(FieldmapPaths((), fieldmap=path), FieldmapSettings(units="Hz"))
    image = nib.Nifti1Image(coefficients, LAS)
    nib.save(image, tmp_path / "field.nii.gz")
    assert not is_topup_coefficients(tmp_path / "field.nii.gz")


@pytest.mark.parametrize("flipped", [False, True])
def test_one_spline_a_voxel_lies_in_it(tmp_path, flipped):
    """topup stores no more than those, the first in the first voxel, counted from the right."""
    coefficients = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    image = nib.Nifti1Image(coefficients, None)
    qform = np.eye(4)
    qform[:3, 3] = SHAPE
    image.set_qform(qform, 1)
    image.header["intent_code"] = 2016
    nib.save(image, tmp_path / "x_fieldcoef.nii.gz")
    affine = LAS @ np.diag([-1.0, 1, 1, 1]) if flipped else LAS
    found = topup_field(tmp_path / "x_fieldcoef.nii.gz", SHAPE, affine).on_grid(SHAPE, affine)
    basis = [cubic(np.arange(size)[:, None] - np.arange(size)) for size in SHAPE]
    expected = np.einsum("xa,yb,zc,abc->xyz", *basis, coefficients)
    np.testing.assert_allclose(found, expected[::-1] if flipped else expected, atol=1e-4)


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_what_is_written_is_read_again(tmp_path, mirror):
    """The field, wherever x is counted from, poses and polarity."""
    turned = rigid_matrix(np.array([20.0, -30, 7]), np.array([0.1, 0, 0.05]), np.zeros(3))
    affine = turned @ np.diag([-2.0 * mirror, 2.0, 2.5, 1.0])
    smooth = np.random.default_rng(2).normal(size=(8, 10, 8)) * 40
    knots = affine @ np.diag([4.0, 4, 4, 1])
    knots[:3, 3] = apply_affine(affine, [-5.0, -6, -6])
    field = OffResonance(smooth, knots)
    turn = rigid_matrix(np.array([1.0, -2, 3]), np.array([0.1, -0.05, 0.2]), np.zeros(3))
    readouts = [Readout.of(affine, pe, 0.05) for pe in ("j-", "j")]
    written = write_topup(
        tmp_path / "topup", field, np.stack([np.eye(4), turn]), readouts, SHAPE, affine
    )
    assert [path.name for path in written] == [
        "topup_fieldcoef.nii.gz", "topup_movpar.txt", "topup_acqparams.txt"
    ]  # fmt: skip
    header = nib.load(written[0]).header
    assert header["intent_code"] == 2016
    assert [header[f"qoffset_{axis}"] for axis in "xyz"] == list(SHAPE)
    np.testing.assert_allclose([header[f"intent_p{n}"] for n in (1, 2, 3)], voxel_sizes(affine))
    assert header.get_data_shape() == SHAPE
    np.testing.assert_array_equal(header["pixdim"][1:4], 1)  # voxels from knot to knot
    found = topup_field(written[0], SHAPE, affine).on_grid(SHAPE, affine)
    np.testing.assert_allclose(found, field.on_grid(SHAPE, affine), atol=1e-3)
    rows = np.loadtxt(written[1])
    np.testing.assert_allclose(rows[0], 0, atol=1e-9)
    (as_eddy,) = eddy_poses(rows[1:], Grid(SHAPE, affine))
    np.testing.assert_allclose(as_eddy, np.linalg.inv(turn), atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(written[2]), [[0, -1, 0, 0.05], [0, 1, 0, 0.05]])
