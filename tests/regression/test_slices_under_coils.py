# SPDX-License-Identifier: Apache-2.0
"""Slices contradict no pose because of a gain, or of coils under which the head turned.

Two b=0 volumes between which the head had turned far, or of which one was twice as bright, were
said to have moved within, by up to 2 mm, and standard errors were up to four times as large.
"""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.solution import Solution
from eddymotion.images.image import Image, Spline
from eddymotion.images.pyramid import jittered_points
from eddymotion.mapping.motion import Motion
from eddymotion.models import AverageModel

SHADED = 1


@pytest.fixture(scope="module")
def at_rest(still):
    """The b=0 volumes, each predicted by the mean of the others."""
    volumes = still.gradients.b0s
    gradients = still.gradients.select(volumes)
    points = jittered_points(still.mask, still.affine, 8000, np.random.default_rng(0))
    splines = [Spline.of(still.volume(volume)) for volume in volumes]
    return CoupledProblem(splines, gradients, AverageModel(), points, still.brain_center)


def farthest_mm(dwi, problem):
    """How far slices would take each volume, mm."""
    solution = Solution(problem, Motion.identity(len(problem.splines)))
    mean, apart = solution.contradictions(dwi, solution.pulls_of_slices(dwi, unshaded=True)[1])
    variances = np.einsum("nkk->nk", apart) + mean**2
    return np.sqrt(variances @ np.square([1, 1, 1, 50, 50, 50]))


def with_volume(dwi, problem, change):
    """Change one of the volumes, an (X, Y, Z) array."""
    splines, volume = list(problem.splines), dwi.gradients.b0s[SHADED]
    splines[SHADED] = Spline.of(Image(change(dwi.volume(volume).data), dwi.affine))
    return farthest_mm(dwi, replace(problem, splines=splines))


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_brightness_is_no_motion_within_volumes(still, at_rest, strength):
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in still.shape[:3]), indexing="ij")
    shade = 1.5 * np.exp(strength * (x - y + z**2 - x * y))
    far = with_volume(still, at_rest, lambda data: data * shade)
    assert far[SHADED] < 1.5 * farthest_mm(still, at_rest).max()


def test_slices_that_lie_elsewhere_contradict_the_pose(still, at_rest):
    middle = slice(still.n_slices // 2 - 2, still.n_slices // 2 + 2)

    def moved(data):
        data = np.array(data)
        data[1:, :, middle] = data[:-1, :, middle]
        return data

    assert with_volume(still, at_rest, moved)[SHADED] > 3 * farthest_mm(still, at_rest).max()
