# SPDX-License-Identifier: Apache-2.0
"""Rigid parameters and displacement measures against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import block_means, grid_center
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import (
    exp_rigid,
    framewise_displacement,
    log_rigid,
    rigid_matrix,
    rigid_parameters,
    rms_displacement,
    target_registration_error,
)

CENTER = np.array([12.0, -7.0, 31.0])


@pytest.fixture
def parameters():
    random = np.random.default_rng(0)
    return np.hstack([random.normal(0, 8, (20, 3)), random.uniform(-1.2, 1.2, (20, 3))])


def test_parameters_and_matrices_invert_each_other(parameters):
    matrices = rigid_matrix(parameters[:, :3], parameters[:, 3:], CENTER)
    np.testing.assert_allclose(rigid_parameters(matrices, CENTER), parameters, atol=1e-12)
    np.testing.assert_allclose(
        exp_rigid(log_rigid(matrices, CENTER), CENTER), matrices, atol=1e-12
    )


def test_stacks_of_any_shape_are_taken(parameters):
    stack = parameters.reshape(5, 2, 2, 6)
    matrices = rigid_matrix(stack[..., :3], stack[..., 3:], CENTER)
    one = rigid_matrix(stack[3, 1, 0, :3], stack[3, 1, 0, 3:], CENTER)
    np.testing.assert_array_equal(matrices[3, 1, 0], one)
    np.testing.assert_allclose(rigid_parameters(matrices, CENTER), stack, atol=1e-12)
    again = exp_rigid(log_rigid(matrices, CENTER), CENTER)
    np.testing.assert_allclose(again, matrices, atol=1e-12)


def test_angles_are_extrinsic_xyz_and_the_center_only_translates():
    angles = np.array([0.3, -0.2, 0.5])
    matrix = rigid_matrix(np.array([1.0, 2.0, 3.0]), angles, CENTER)
    x, y, z = Rotation.from_rotvec(np.diag(angles)).as_matrix()
    np.testing.assert_allclose(matrix[:3, :3], z @ y @ x, atol=1e-12)
    np.testing.assert_allclose(
        apply_affine(matrix, CENTER), CENTER + np.array([1, 2, 3]), atol=1e-12
    )


def test_framewise_displacement_is_powers_sum():
    fd = framewise_displacement(
        np.array([[0.0] * 6, [1, -2, 0, 0.01, 0, -0.02], [1.0] + [0.0] * 5])
    )
    assert np.isnan(fd[0])
    np.testing.assert_allclose(fd[1:], [3 + 50 * 0.03, 2 + 50 * 0.03])


def test_rms_displacement_is_the_average_over_the_sphere(parameters):
    a, b = rigid_matrix(parameters[:2, :3], parameters[:2, 3:], CENTER)
    random = np.random.default_rng(1)
    directions = random.normal(size=(400_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ball = CENTER + 80 * directions * np.cbrt(random.uniform(size=(len(directions), 1)))
    apart = np.linalg.norm(apply_affine(a, ball) - apply_affine(b, ball), axis=1)
    np.testing.assert_allclose(
        rms_displacement(a, b, CENTER), np.sqrt((apart**2).mean()), rtol=3e-3
    )


def test_target_registration_error_is_the_distance_of_mapped_points(parameters):
    a, b = rigid_matrix(parameters[:2, :3], parameters[:2, 3:], CENTER)
    points = np.random.default_rng(2).normal(0, 50, (30, 3))
    expected = np.linalg.norm(apply_affine(a, points) - apply_affine(b, points), axis=1)
    np.testing.assert_allclose(target_registration_error(a, b, points), expected)


def test_motion_changes_reference_and_stays_frozen(parameters):
    motion = Motion(rigid_matrix(parameters[:, :3], parameters[:, 3:], CENTER))
    moved = motion.relative_to(4)
    np.testing.assert_allclose(moved[4], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(moved[7] @ motion[4], motion[7], atol=1e-10)
    before = motion.matrices.copy()
    motion.updated(np.array([0]), np.eye(4))
    np.testing.assert_array_equal(motion.matrices, before)
    with pytest.raises(ValueError, match="read-only"):
        motion.matrices[0] = 0
    with pytest.raises(ValueError, match=r"\(N, 4, 4\)"):
        Motion(np.eye(4))
    errors = np.ones((len(motion), 6))
    known = replace(motion, standard_errors=errors, frame_error=0.1)
    errors[:] = 7
    np.testing.assert_array_equal(known.standard_errors, 1)
    some = known.select(np.array([2, 5]))
    assert (some.standard_errors.shape, some.frame_error) == ((2, 6), 0.1)
    with pytest.raises(EddymotionError, match="standard errors of shape"):
        replace(motion, standard_errors=errors[1:])


def test_parameters_tell_where_a_point_goes(parameters):
    """The point that is asked for, else the centre that a motion has, else the origin."""
    motion = Motion(rigid_matrix(parameters[:, :3], parameters[:, 3:], CENTER))
    other = CENTER + np.array([30.0, -10.0, 5.0])
    for known, asked, where in (
        (None, None, np.zeros(3)), (CENTER, None, CENTER), (CENTER, other, other),
    ):  # fmt: skip
        found = replace(motion, center=known).parameters(asked)[:, :3]
        went = motion.matrices[:, :3, :3] @ where + motion.matrices[:, :3, 3] - where
        np.testing.assert_allclose(found, went, atol=1e-9)


def test_grid_center_is_the_mean_voxel():
    affine = np.array([[0, -2, 0, 5], [3, 0, 0, -1], [0, 0.5, 2.5, 2], [0, 0, 0, 1.0]])
    voxels = np.argwhere(np.ones((4, 5, 7)))
    np.testing.assert_allclose(
        grid_center((4, 5, 7), affine), apply_affine(affine, voxels).mean(0)
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, bool, complex])
@pytest.mark.parametrize("factors", [(2, 3, 1), (1, 1, 4), (3, 2, 2)])
def test_blocks_are_averaged_as_numpy_does(kind, factors):
    volume = (40 * np.random.default_rng(2).normal(size=(6, 12, 8))).astype(kind)
    shape = [n for size, f in zip(volume.shape, factors, strict=True) for n in (size // f, f)]
    expected = volume.reshape(shape).mean(axis=(1, 3, 5))
    kept = volume.copy()
    found = block_means(volume, factors)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(volume, kept)
    assert block_means(volume, factors, np.complex64).dtype == np.complex64
