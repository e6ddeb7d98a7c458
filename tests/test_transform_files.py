# SPDX-License-Identifier: Apache-2.0
"""One transform in five formats: what is written means the same to whoever reads it."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nitransforms.linear import Affine
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import fsl_coordinates, grid_center
from eddymotion.images.image import Image
from eddymotion.io.itk import LPS
from eddymotion.io.transforms import FORMATS, read_linear, write_linear
from eddymotion.mapping.rigid import rigid_matrix

TURN = Rotation.from_euler("xyz", [14, -9, 21], degrees=True).as_matrix()
OBLIQUE = from_matvec(TURN @ np.diag([1.8, 2.1, 2.6]), [-61.0, 42.0, 13.0])
GRIDS = {
    "RAS": ((40, 44, 30), from_matvec(np.diag([2.0, 2.0, 3.0]), [-40, -44, -45])),
    "LAS": ((36, 40, 28), from_matvec(np.diag([-2.2, 2.0, 2.5]), [40, -40, -35])),
    "shifted": ((40, 40, 40), from_matvec(np.diag([1.5, 1.5, 1.5]), [310.0, -520.0, 77.0])),
    "oblique": ((38, 42, 32), OBLIQUE),
    "oblique LPS": ((38, 42, 32), OBLIQUE @ from_matvec(np.diag([-1, -1, 1]), [37, 41, 0])),
}
PAIRS = [("RAS", "LAS"), ("LAS", "RAS"), ("oblique", "LAS"), ("shifted", "oblique LPS"),
         ("oblique LPS", "oblique")]  # fmt: skip


def image(name):
    shape, affine = GRIDS[name]
    return Image(np.zeros(shape, np.float32), affine)


def some_affine(fixed, moving):
    """Bring the centre of one grid near that of the other, turn, scale and shear."""
    center = grid_center(fixed.data.shape, fixed.affine)
    offset = grid_center(moving.data.shape, moving.affine) - center + [3.0, -5.0, 7.0]
    matrix = rigid_matrix(offset, np.deg2rad([12, -8, 25]), center)
    stretch = np.array([[1.06, 0.02, 0.01], [0.0, 0.97, -0.03], [0.0, 0.0, 1.02]])
    return matrix @ from_matvec(stretch, center - stretch @ center)


def corners(image):
    return apply_affine(
        image.affine, np.array(list(itertools.product(*((0, n - 1) for n in image.data.shape))))
    )


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("fmt", FORMATS)
def test_nitransforms_maps_points_as_we_do(fmt, pair, tmp_path):
    fixed, moving = map(image, pair)
    matrix = some_affine(fixed, moving)
    path = tmp_path / f"x{FORMATS[fmt]}"
    write_linear(path, matrix, fixed, moving)
    grids = {
        name: nib.Nifti1Image(one.data, one.affine)
        for name, one in (("reference", fixed), ("moving", moving))
    }
    theirs = Affine.from_filename(path, fmt="X5" if fmt == "x5" else fmt, **grids)
    points = corners(fixed)
    expected = apply_affine(matrix, points)
    assert np.abs(theirs.map(points) - expected).max() < 1e-3
    assert np.abs(apply_affine(read_linear(path, fixed, moving), points) - expected).max() < 1e-3


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
def test_flirt_finds_the_voxel_by_its_own_rules(pair, tmp_path):
    fixed, moving = map(image, pair)
    matrix = some_affine(fixed, moving)
    write_linear(tmp_path / "x.mat", matrix, fixed, moving)
    flirt = np.loadtxt(tmp_path / "x.mat")

    def in_fsl(voxels, shape, affine):
        """Voxels times their sizes; x counted from the other end in a neurological image."""
        voxels = np.array(voxels, float)
        if np.linalg.det(affine[:3, :3]) > 0:
            voxels[:, 0] = shape[0] - 1 - voxels[:, 0]
        return voxels * np.sqrt((affine[:3, :3] ** 2).sum(axis=0))

    voxels = np.array([[0, 0, 0], [5, 7, 9], [30, 2, 17]])
    in_moving = apply_affine(np.linalg.inv(moving.affine) @ matrix @ fixed.affine, voxels)
    back = apply_affine(flirt, in_fsl(in_moving, *GRIDS[pair[1]]))
    assert np.abs(back - in_fsl(voxels, *GRIDS[pair[0]])).max() < 1e-6


def test_freesurfer_source_is_the_moving_image(tmp_path):
    fixed, moving = image("oblique"), image("LAS")
    matrix = some_affine(fixed, moving)
    write_linear(tmp_path / "x.lta", matrix, fixed, moving)
    text = (tmp_path / "x.lta").read_text()
    source, destination = text.split("src volume info")[1].split("dst volume info")
    assert "volume = {} {} {}".format(*GRIDS["LAS"][0]) in source
    assert "volume = {} {} {}".format(*GRIDS["oblique"][0]) in destination
    rows = text.split("1 4 4\n")[1].splitlines()[:4]
    stored = np.array([row.split() for row in rows], float)
    np.testing.assert_allclose(stored, np.linalg.inv(matrix), atol=1e-9)


def test_slicer_reads_an_affine_transform_in_lps(tmp_path):
    fixed, moving = image("RAS"), image("shifted")
    matrix = some_affine(fixed, moving)
    write_linear(tmp_path / "x.tfm", matrix, fixed, moving)
    lines = dict(line.split(": ", 1) for line in (tmp_path / "x.tfm").read_text().splitlines()[2:])
    assert lines["Transform"] == "AffineTransform_double_3_3"
    numbers = np.array(lines["Parameters"].split(), float)
    stored = from_matvec(numbers[:9].reshape(3, 3), numbers[9:])
    np.testing.assert_array_equal(stored, LPS @ matrix @ LPS)


def test_itk_rigid_kinds_against_their_definition(tmp_path):
    """Euler angles as Rz Rx Ry; a versor is the vector of a unit quaternion."""
    fixed = moving = image("RAS")
    x, y, z = (Rotation.from_euler(axis, 0.1 * (1 + i)) for i, axis in enumerate("xyz"))
    versor = (z * y).as_quat()[:3]
    cases = {
        "TranslationTransform_double_3_3": ("1 2 3", "", np.eye(3)),
        "Euler3DTransform_double_3_3": ("0.1 0.2 0.3 1 2 3", "10 20 30 0", (z * x * y)),
        "VersorRigid3DTransform_double_3_3": (
            " ".join(map(repr, map(float, versor))) + " 1 2 3", "10 20 30", z * y),
        "Similarity3DTransform_double_3_3": (
            " ".join(map(repr, map(float, versor))) + " 1 2 3 1.25", "10 20 30", z * y),
    }  # fmt: skip
    for kind, (parameters, center, turn) in cases.items():
        path = tmp_path / "one.txt"
        path.write_text(
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\n"
            f"Parameters: {parameters}\nFixedParameters: {center}\n"
        )
        linear = turn if isinstance(turn, np.ndarray) else turn.as_matrix()
        linear = linear * (1.25 if "Similarity" in kind else 1.0)
        about = np.array([10.0, 20.0, 30.0]) if center else np.zeros(3)
        point = np.array([4.0, -7.0, 11.0])
        expected = linear @ (point - about) + about + [1, 2, 3]
        found = LPS @ read_linear(path, fixed, moving) @ LPS
        np.testing.assert_allclose(apply_affine(found, point), expected, atol=1e-9)


def test_binary_mat_of_ants(tmp_path):
    fixed, moving = image("RAS"), image("LAS")
    linear, center = TURN * 1.1, np.array([5.0, -6.0, 7.0])
    arrays = {
        "AffineTransform_float_3_3": np.append(linear.ravel(), [1.0, 2.0, 3.0])[:, None],
        "fixed": center[:, None],
    }
    savemat(tmp_path / "0GenericAffine.mat", arrays, format="4")
    found = LPS @ read_linear(tmp_path / "0GenericAffine.mat", fixed, moving) @ LPS
    np.testing.assert_allclose(apply_affine(found, center), np.add(center, [1, 2, 3]), atol=1e-6)
    np.testing.assert_allclose(found[:3, :3], linear, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.tfm", "#Insight Transform File V1.0\n", "holds 0 transforms"),
        ("x.txt", "Transform: BSplineTransform_double_3_3\nParameters: 1\nFixedParameters: 0\n",
         "BSplineTransform"),
        ("x.tfm", "Transform: AffineTransform_double_3_3\nParameters: 1 2\nFixedParameters: 0\n",
         "2 numbers are not a valid AffineTransform"),
        ("x.mat", "1 0 0 0\n0 1 0 0\n", "cannot be read"),
        ("x.mat", "0 0 0 0\n" * 4, "inverted|singular|Singular"),
        ("x.aff12.1D", "1 0 0 0 0 1 0 0\n", "cannot be read"),
        ("x.aff12.1D", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 2, "holds 2 rows"),
        ("x.lta", "type = 1\n", "cannot be read"),
        ("x.x5", "no HDF5\n", "cannot be read"),
        ("x.nii.gz", "", "not a linear transform by its name"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_what_is_expected(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(EddymotionError, match=expected) as caught:
        read_linear(path, image("RAS"), image("LAS"))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fsl_coordinates_of_radiological_images_are_scaled_voxels():
    las = image("LAS")
    points = apply_affine(las.affine, np.array([[0, 0, 0], [3, 4, 5]]))
    np.testing.assert_allclose(
        apply_affine(fsl_coordinates(las.data.shape, las.affine), points),
        [[0, 0, 0], [6.6, 8, 12.5]],
        atol=1e-9,
    )
