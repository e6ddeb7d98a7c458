# SPDX-License-Identifier: Apache-2.0
"""The b=0 signal as a function of the diffusion-weighted one and of the place."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt

from eddymotion.estimation.frames.contrast import offset_from_images
from eddymotion.estimation.frames.contrast.basis import Basis, Moments
from eddymotion.estimation.frames.contrast.clusters import COARSE, FINE, N_POINTS, Clusters
from eddymotion.estimation.frames.contrast.equations import ContrastEquations
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.images.pyramid import head_scale
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance, SeriesField
from eddymotion.mapping.rigid import exp_rigid, log_rigid, rms_displacement


@pytest.mark.parametrize("with_spread", [True, False])
def test_predicted_gradient_equals_finite_differences(with_spread):
    """Mean and standard deviation change along a line, the place is held."""
    random = np.random.default_rng(1)
    n = 50
    mean, spread = random.uniform(1, 9, (2, n, N_POINTS))
    slopes = random.normal(size=(2, n, N_POINTS, 3))
    place = random.uniform(-1, 1, (n, N_POINTS, 3))
    moments = Moments(mean, spread if with_spread else None, slopes[0], slopes[1])
    basis = Basis.over(moments, 3)
    function = random.normal(size=len(basis.ridge()))
    way, tiny = np.array([0.6, -0.5, 0.4]), 2e-4

    def predict(step):
        there = spread + step * slopes[1] @ way if with_spread else None
        return basis.at(mean + step * slopes[0] @ way, there, place) @ function

    found = basis.slopes(moments, place, function) @ way
    expected = (predict(tiny) - predict(-tiny)) / (2 * tiny)
    # the hats have corners, which a step in a hundred crosses
    assert np.median(np.abs(found - expected)) < 0.02 * np.std(expected)


def test_a_near_start_needs_the_finest_width_alone(still, monkeypatch):
    volumes, plain, seen = still.gradients.dwis, ContrastEquations.at, []
    series = still, Motion.identity(len(still.gradients.b0s)), volumes

    def at(clusters, width, *given):
        seen.append(width.fwhm)
        return plain(clusters, width, *given)

    monkeypatch.setattr(ContrastEquations, "at", at)
    far, near = (
        offset_from_images(*series, Motion.identity(len(volumes)), np.eye(4), near=one)[0]
        for one in (False, True)
    )
    assert seen == [4.0, 2.0, 1.0, 1.0]
    assert rms_displacement(far, near, still.brain_center) < 0.05


@pytest.mark.parametrize("octants", [slice(None), np.array([0, 2, 5])], ids=["all", "some"])
def test_steps_solve_the_equations_of_function_and_offset_together(still, octants):
    """Their plain twin writes down the matrix of both."""
    volumes, b0s = still.gradients.dwis, still.gradients.b0s
    clusters = Clusters.draw(still, COARSE[1], np.random.default_rng(0), 1)
    equations = ContrastEquations.at(
        clusters, COARSE[1], volumes, Motion.identity(len(volumes)), Motion.identity(len(b0s))
    )
    solved = equations.solve(exp_rigid([0.3, 0, 0.1, 0, 0.005, 0], np.zeros(3)), n_normals=1)
    rows = np.concatenate(
        [np.arange(len(solved.residual))[part] for part in
         np.array(clusters.rows_of_octants)[octants]]
    )  # fmt: skip
    unknowns = np.hstack([equations.functions, solved.seen.derivatives])[rows].astype(float)
    weighted = unknowns * solved.weights[rows, None]
    solved = replace(solved, normals=equations.weigh(solved.weights))
    ridge = np.append(solved.normals.ridge, np.zeros(6))
    right = weighted.T @ solved.residual[rows] - ridge * np.append(solved.function, np.zeros(6))
    expected = np.linalg.solve(weighted.T @ unknowns + np.diag(ridge), right)
    found = solved.step(octants)
    np.testing.assert_allclose(found[-6:], expected[-6:], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        unknowns @ found, unknowns @ expected, atol=1e-3 * np.ptp(unknowns @ expected)
    )


def test_b0_volumes_are_read_without_their_fields(still):
    """A field that shears them by 5 % along y looks like a turn where it is not known."""
    b0s, volumes = still.gradients.b0s, still.gradients.dwis
    shear = np.tile([0.0, 0.0, 4.0], (len(b0s), 1))  # mm at 80 mm, against z
    eddy = EddyCurrents(shear, np.array([0.0, 1.0, 0.0]), still.center)
    origins, stretch = eddy.origin(0, grid_points(still.shape, still.affine))
    signal = still.signal.copy()
    for volume in b0s:
        shown = still.volume(volume).spline.sample(origins) / stretch
        signal[..., volume] = np.nan_to_num(shown).reshape(still.shape)
    dwi, rest = replace(still, signal=signal), Motion.identity(len(b0s))
    own = Motion.identity(len(volumes))
    turned = []
    for known in (rest, replace(rest, eddy_currents=eddy)):
        offset, _ = offset_from_images(dwi, known, volumes, own, np.eye(4), near=True)
        turned.append(np.rad2deg(log_rigid(offset, still.brain_center)[3:]))
    assert np.abs(turned[0]).max() > 0.3
    assert np.abs(turned[1]).max() < 0.1


def test_a_field_of_the_head_lies_where_the_head_does_in_each_frame(still):
    """A shear of the head along y by 10 %; the frames are 5 mm apart along z."""
    b0s, volumes = still.gradients.b0s, still.gradients.dwis
    shift, center = np.array([0.0, 1.0, 0.0]), still.brain_center
    height = grid_points(still.shape, still.affine)[:, 2].reshape(still.shape)
    field = OffResonance.of_image(Image(0.1 * (height - center[2]), still.affine))
    points = grid_points(still.shape, still.affine)
    origins = points - field.hertz(points)[:, None] * shift
    signal = np.empty_like(still.signal)
    for volume in range(len(still)):
        shown = still.volume(volume).spline.sample(origins)
        signal[..., volume] = np.nan_to_num(shown).reshape(still.shape)
    apart = exp_rigid(np.r_[1.0, -1.0, 5.0, np.deg2rad([1.0, -2.0, 1.0])], center)

    def seen(frame, n):
        there = OffResonance(field.coefficients, np.linalg.inv(frame) @ field.affine)
        return Motion(np.tile(frame, (n, 1, 1)), off_resonance=SeriesField(there, [shift] * n))

    own = seen(apart, len(volumes))
    offset, _ = offset_from_images(
        replace(still, signal=signal), seen(np.eye(4), len(b0s)), volumes, own,
        np.linalg.inv(apart), near=True,
    )  # fmt: skip
    assert abs(log_rigid(offset @ apart, center)[1]) < 0.1  # 0.5 if it were at rest


def test_points_deep_inside_tell_what_all_halves_have_wrong(still):
    """All around, what lies within 9 mm of the edge is 2 mm higher at b=0."""
    depth = distance_transform_edt(still.mask, sampling=still.voxel_sizes)
    share = np.clip(10 - depth, 0, 1).ravel()
    origins = grid_points(still.shape, still.affine) - 2 * share[:, None] * [0, 0, 1]
    signal, own = still.signal.copy(), Motion.identity(len(still.gradients.dwis))
    for volume in still.gradients.b0s:
        shown = still.volume(volume).spline.sample(origins)
        signal[..., volume] = np.nan_to_num(shown).reshape(still.shape)
    known, volumes = Motion.identity(len(still.gradients.b0s)), still.gradients.dwis
    dwi = replace(still, signal=signal)
    offset, covariance = offset_from_images(dwi, known, volumes, own, np.eye(4))
    error = log_rigid(offset, still.brain_center)[2]
    assert abs(error) < 0.31  # 0.35 by all points
    assert abs(error) < 2.5 * np.sqrt(covariance[2, 2])  # 5.2 by halves of the brain


def test_deep_points_are_far_from_the_edge_but_not_from_the_cut(still):
    cut = replace(still, signal=still.signal[:, :, 20:], mask=still.mask[:, :, 20:])
    clusters = Clusters.draw(cut, FINE, np.random.default_rng(0), 1)
    depth = distance_transform_edt(np.pad(cut.mask, 1, mode="edge"), sampling=cut.voxel_sizes)
    index = np.linalg.solve(
        cut.affine, np.c_[clusters.points[:, 0], np.ones(len(clusters.points))].T
    )[:3]
    there = np.round(index).astype(int) + 1
    expected = depth[tuple(there)] > 10 * head_scale(cut.mask, cut.voxel_sizes)
    np.testing.assert_array_equal(clusters.are_deep, expected)
    assert clusters.are_deep[there[2] == 1].any()  # in the lowest slice


@pytest.mark.parametrize("width", [*COARSE, FINE])
def test_only_coarse_clusters_reach_beyond_the_edge_of_the_brain(still, width):
    """The fine ones begin a voxel inside it, but where the field of view cuts the brain."""
    cut = replace(still, signal=still.signal[:, :, 20:], mask=still.mask[:, :, 20:])
    clusters = Clusters.draw(cut, width, np.random.default_rng(0), 1)
    index = np.linalg.solve(
        cut.affine, np.c_[clusters.points[:, 0], np.ones(len(clusters.points))].T
    )
    x, y, z = index[:3].round().astype(int)
    outside = ~cut.mask[x, y, z]
    at_edge = outside | ~binary_erosion(cut.mask, border_value=1)[x, y, z]
    assert outside.any() == at_edge.any() == width.with_edge
    assert z.min() == 0


def test_a_brain_that_is_mostly_edge_keeps_it_with_two_points_a_voxel(tiny):
    few = Clusters.draw(tiny, replace(FINE, n_clusters=10**6), np.random.default_rng(0), 1)
    assert len(few.points) == 2 * binary_dilation(tiny.mask).sum() // N_POINTS
