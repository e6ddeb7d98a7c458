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


def turn_of_fsl(angle, axis, center):
    """Turn about a point by the rule of FSL's rotation matrices: against the right hand."""
    one, other = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(4)
    turn[[one, other], [one, other]] = np.cos(angle)
    turn[one, other], turn[other, one] = np.sin(angle), -np.sin(angle)
    turn[:3, 3] = center - turn[:3, :3] @ center
    return turn


def read_by_the_rules_of_fsl(base):
    """Read what topup's readers read, from the header and the rows alone.

    The image grid is the offset of the qform, its voxels (mm) are the parameters of the intent,
    the distance of the knots is the voxel size; a reader refuses another number of coefficients
    than these ask for. Movements turn about the centre of the voxels, from the image to the field.

    Returns
    -------
    hertz : (X, Y, Z) array
        Voxels counted from right to left.
    matrices : (K, 4, 4) array
        Image → field, in millimetres of such voxels.
    """
    image = nib.load(f"{base}_fieldcoef.nii.gz")
    header, coefficients = image.header, np.asarray(image.dataobj, float)
    assert int(header["intent_code"]) == 2016
    assert int(header["qform_code"]) == 1
    assert int(header["sform_code"]) == 0
    assert not any(header[f"quatern_{axis}"] for axis in "bcd")
    size = [int(header[f"qoffset_{axis}"]) for axis in "xyz"]
    mm = np.array([float(header[f"intent_p{n}"]) for n in (1, 2, 3)])
    knots = [int(knot + 0.5) for knot in header["pixdim"][1:4]]
    wanted = tuple(n if knot == 1 else -(-(n + 1) // knot) + 2
                   for n, knot in zip(size, knots, strict=True))  # fmt: skip
    assert coefficients.shape == wanted
    first = [0 if knot == 1 else -1 for knot in knots]
    basis = [
        cubic(np.arange(n)[:, None] / knot - (np.arange(count) + start))
        for n, knot, count, start in zip(size, knots, wanted, first, strict=True)
    ]
    hertz = np.einsum("xa,yb,zc,abc->xyz", *basis, coefficients)
    center, matrices = (np.array(size) - 1) * mm / 2, []
    for row in np.loadtxt(f"{base}_movpar.txt", ndmin=2):
        matrix = np.eye(4)
        for axis in range(3):
            matrix = matrix @ turn_of_fsl(row[3 + axis], axis, center)
        matrix[:3, 3] += row[:3]
        matrices.append(matrix)
    return hertz, np.stack(matrices)


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_readers_of_topup_find_the_field_and_the_poses(tmp_path, mirror):
    """Where a point of the head is recorded, by FSL's rules and by ours."""
    turned = rigid_matrix(np.array([20.0, -30, 7]), np.array([0.1, 0, 0.05]), np.zeros(3))
    affine = turned @ np.diag([-2.0 * mirror, 2.0, 2.5, 1.0])
    knots = affine @ np.diag([4.0, 4, 4, 1])
    knots[:3, 3] = apply_affine(affine, [-5.0, -6, -6])
    field = OffResonance(np.random.default_rng(3).normal(size=(8, 10, 8)) * 40, knots)
    pose = rigid_matrix(np.array([1.0, -2, 3]), np.array([0.2, -0.15, 0.3]), np.zeros(3))
    readouts = [Readout.of(affine, pe, 0.05) for pe in ("j-", "j")]
    write_topup(tmp_path / "x", field, np.stack([np.eye(4), pose]), readouts, SHAPE, affine)
    hertz, matrices = read_by_the_rules_of_fsl(tmp_path / "x")
    *directions, seconds = np.loadtxt(tmp_path / "x_acqparams.txt").T
    sizes = voxel_sizes(affine)
    voxels = np.array([[4, 7, 3], [11, 16, 9], [15, 5, 12]])
    flipped = voxels.copy()
    if np.linalg.det(affine) > 0:  # FSL counts x from the right
        flipped[:, 0] = SHAPE[0] - 1 - voxels[:, 0]
    for image, readout in enumerate(readouts):
        moved = apply_affine(np.linalg.inv(matrices[image]), flipped * sizes)
        shift = hertz[tuple(flipped.T)][:, None] * seconds[image] * sizes
        by_fsl = moved / sizes + shift * np.stack(directions, axis=1)[image] / sizes
        if np.linalg.det(affine) > 0:
            by_fsl[:, 0] = SHAPE[0] - 1 - by_fsl[:, 0]
        at = apply_affine(affine, voxels)
        ours, _ = readout.displaced(field, at, [np.eye(4), pose][image])
        np.testing.assert_allclose(apply_affine(affine, by_fsl), ours, atol=2e-3)
