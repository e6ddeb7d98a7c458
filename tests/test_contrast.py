# SPDX-License-Identifier: Apache-2.0
"""The b=0 signal as a function of the diffusion-weighted one and of the place."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation.frames.contrast import offset_from_images
from eddymotion.estimation.frames.contrast.basis import Basis, Moments
from eddymotion.estimation.frames.contrast.clusters import N_POINTS
from eddymotion.estimation.frames.contrast.equations import ContrastEquations
from eddymotion.images.grid import grid_points
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid, rms_displacement


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


def test_a_near_start_needs_the_finest_width_alone_and_sees_it_at_the_same_points(
    still, monkeypatch
):
    volumes, plain, seen = still.gradients.dwis, ContrastEquations.at, []
    series = still, Motion.identity(len(still.gradients.b0s)), volumes

    def at(clusters, width, *given):
        seen.append((width.fwhm, clusters.points))
        return plain(clusters, width, *given)

    monkeypatch.setattr(ContrastEquations, "at", at)
    far, near = (
        offset_from_images(*series, Motion.identity(len(volumes)), np.eye(4), near=one)[0]
        for one in (False, True)
    )
    assert [width for width, _ in seen] == [4.0, 2.0, 1.0, 1.0]
    np.testing.assert_array_equal(seen[2][1], seen[3][1])
    assert rms_displacement(far, near, still.brain_center) < 0.05


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
