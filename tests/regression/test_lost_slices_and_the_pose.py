# SPDX-License-Identifier: Apache-2.0
"""A slice that lost signal shows nothing, and does not contradict the pose of its volume.

What most volumes have in common was taken off the steps of its slices as well. Nothing held the
poses of those parts of the time, which came out some tenths of a millimetre away: a volume of a
series drawn at random was said to move within, with 5 of 272 slices lost and a head that did not.
"""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.samples import LostSlices
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.joint.standard_errors import PoseErrors
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import jittered_points
from eddymotion.mapping.motion import Motion
from eddymotion.models import get_model

SOME, LOST_IN = 8, 3


@pytest.fixture(scope="module")
def at_rest(still):
    volumes = still.gradients.dwis[:SOME]
    gradients = still.gradients.select(volumes)
    points = jittered_points(still.mask, still.affine, 8000, np.random.default_rng(0))
    splines = [Spline.of(still.volume(volume)) for volume in volumes]
    model = get_model("auto", gradients)
    return CoupledProblem(splines, gradients, model, points, still.brain_center)


def farthest_mm(dwi, problem):
    """How far slices would take each volume, mm an axis."""
    solution = Solution(problem, Motion.identity(SOME))
    mean, apart = solution.contradictions(dwi, solution.pulls_of_slices(dwi)[1])
    variances = np.einsum("nkk->nk", apart) + mean**2
    return np.sqrt((variances * np.square([1, 1, 1, 50, 50, 50])).mean(axis=1))


def test_a_slice_that_lost_signal_contradicts_no_pose(still, at_rest):
    middle = still.n_slices // 2
    flagged = np.zeros((SOME, still.n_slices), bool)
    flagged[LOST_IN, middle - 2 : middle + 2] = True
    usual = farthest_mm(still, at_rest)
    lost = farthest_mm(still, replace(at_rest, lost=LostSlices(flagged, still.affine)))
    assert lost[LOST_IN] < usual.max()  # 1.4 times before
    np.testing.assert_allclose(np.delete(lost, LOST_IN), np.delete(usual, LOST_IN), rtol=0.3)


def test_where_steps_are_short_noise_takes_poses_as_much_farther():
    """By 0.4 mm where it is 0.1 in one step, which takes back a quarter of the way."""
    one = np.diag(np.square([0.1] * 3 + [0.002] * 3))[None]
    far = {"against": 36 * one, "within": 36 * one}
    covariances = {"by_noise": one, "by_misfit": 0.01 * one, "apart": np.nan * one}
    for share, named in ((1.0, [0]), (0.25, [])):
        expected = one / share**2 + 0.01 * one
        errors = PoseErrors(expected, expected=expected, **far, **covariances)
        assert errors.contradicted.tolist() == named
