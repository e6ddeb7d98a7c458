# SPDX-License-Identifier: Apache-2.0
"""Displacement fields in files."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nitransforms.nonlinear import load as load_field
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Box
from eddymotion.io.warps import (
    read_displacements,
    read_warp,
    whole_displacements,
    write_displacements,
)
from eddymotion.registration import Registration, Warp
from eddymotion.simulation import Grid

TURN = Rotation.from_euler("xyz", [12, -20, 15], degrees=True).as_matrix()


def some_grid(orientation="LAS", turn=TURN):
    class Room(Box):
        shape, affine = (20, 24, 18), np.diag([3.0, 3.0, 3.0, 1.0])

    return Grid.covering(Room(), (3.0, 3.5, 4.0), orientation, turn)


def smooth_field(shape, seed=0, largest=4.0):
    random = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(random.standard_normal(shape), 3) for _ in range(3)], -1)
    return (largest * field / np.abs(field).max()).astype(np.float32)


@pytest.mark.parametrize("name", ["field.nii", "field.nii.gz"])
def test_fields_come_back_as_they_were_written(tmp_path, name):
    grid = some_grid()
    field = smooth_field(grid.shape)
    before = field.copy()
    write_displacements(tmp_path / name, field, grid.affine)
    found, affine = read_displacements(tmp_path / name)
    np.testing.assert_array_equal(found, before)
    np.testing.assert_array_equal(field, before)
    np.testing.assert_allclose(affine, grid.affine, atol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_files_are_itk_vectors_in_lps(tmp_path):
    grid = some_grid()
    field = np.zeros((*grid.shape, 3), np.float32)
    field[...] = (1.0, 2.0, 3.0)
    write_displacements(tmp_path / "field.nii.gz", field, grid.affine)
    stored = nib.load(tmp_path / "field.nii.gz")
    assert stored.shape == (*grid.shape, 1, 3)
    assert stored.header.get_intent()[0] == "vector"
    np.testing.assert_array_equal(stored.get_fdata()[0, 0, 0, 0], [-1.0, -2.0, 3.0])
    first = (tmp_path / "field.nii.gz").read_bytes()
    write_displacements(tmp_path / "field.nii.gz", field, grid.affine)
    assert (tmp_path / "field.nii.gz").read_bytes() == first


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSL"])
def test_nitransforms_maps_points_as_we_do(tmp_path, orientation):
    grid = some_grid(orientation)
    warp = Warp(smooth_field(grid.shape), smooth_field(grid.shape, 1), grid.affine)
    write_displacements(tmp_path / "there.nii.gz", warp.forward, warp.affine)
    write_displacements(tmp_path / "back.nii.gz", warp.inverse, warp.affine)
    inner = np.pad(np.ones(np.array(grid.shape) - 2, bool), 1)
    points = apply_affine(grid.affine, np.argwhere(inner)[::50])
    for name, inverse in (("there", False), ("back", True)):
        theirs = load_field(str(tmp_path / f"{name}.nii.gz"), fmt="itk")
        mapped = warp.map(points, inverse=inverse)
        np.testing.assert_allclose(theirs.map(points), mapped, atol=2e-3)
    again = read_warp(tmp_path / "there.nii.gz", tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(again.inverse, warp.inverse)


def test_one_field_holds_matrix_and_warp_both_ways():
    fixed, moving = some_grid("LAS"), some_grid("RAS", np.eye(3))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = TURN, (3.0, -2.0, 5.0)
    warp = Warp(smooth_field(fixed.shape), smooth_field(fixed.shape, 1), fixed.affine)
    registration = Registration(matrix, True, "", warp=warp)
    for grid, inverse in ((fixed, False), (moving, True)):
        field = whole_displacements(registration, grid.shape, grid.affine, inverse=inverse)
        voxel = (7, 11, 5)
        point = apply_affine(grid.affine, [voxel])
        expected = registration.map(point, inverse=inverse)
        np.testing.assert_allclose(point[0] + field[voxel], expected[0], atol=1e-4)


def test_what_is_no_displacement_field_is_refused(tmp_path):
    grid = some_grid()
    with pytest.raises(EddymotionError, match="no such file"):
        read_displacements(tmp_path / "none.nii.gz")
    nib.Nifti1Image(np.zeros(grid.shape), grid.affine).to_filename(tmp_path / "image.nii.gz")
    (tmp_path / "text.nii.gz").write_text("not an image")
    for name in ("image.nii.gz", "text.nii.gz"):
        with pytest.raises(
            EddymotionError, match=r"not a (displacement field of ITK|NIfTI image)"
        ):
            read_displacements(tmp_path / name)
    write_displacements(tmp_path / "a.nii.gz", smooth_field(grid.shape), grid.affine)
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EddymotionError, match="may be truncated"):
        read_displacements(tmp_path / "cut.nii.gz")
    bad = smooth_field(grid.shape)
    bad[3, 3, 3] = np.nan
    write_displacements(tmp_path / "nan.nii", bad, grid.affine)
    with pytest.raises(EddymotionError, match="finite"):
        read_displacements(tmp_path / "nan.nii")
    write_displacements(tmp_path / "b.nii.gz", smooth_field((9, 9, 9)), grid.affine)
    with pytest.raises(EddymotionError, match="another grid"):
        read_warp(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


def test_points_go_there_and_back_each_by_its_own_field():
    """Shifts in place of bends: the inverse need not be that of the other to be the one taken."""
    grid = Grid((6, 6, 6), np.diag([3.0, 3.0, 3.0, 1.0]))
    there, back = (np.full((6, 6, 6, 3), shift, np.float32) for shift in ([1, 0, 0], [0, 2, 0]))
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    matrix[:3, 3] = (0.0, 0.0, 1.5)
    found = Registration(matrix, True, "", warp=Warp(there, back, grid.affine))
    points = np.array([[6.0, 7.0, 8.0]])
    np.testing.assert_allclose(found.map(points), [[7.0, 7.0, 9.5]], atol=1e-5)
    np.testing.assert_allclose(found.map(points, inverse=True), [[6.0, 9.0, 6.5]], atol=1e-5)
