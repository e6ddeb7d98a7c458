# SPDX-License-Identifier: Apache-2.0
"""Slices of a head at rest within volumes contradict no pose, whatever the voxels and the shells.

Detail finer than voxels of 6 to 8 mm, and what the model gets wrong in a shell of few volumes,
were said to be motion within volumes.
"""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation import estimate_motion
from eddymotion.estimation.equations.solution import _poses_of_periods, similar_volumes
from eddymotion.estimation.joint.standard_errors import PoseErrors
from eddymotion.simulation import Recipe, shelled_scheme, simulate

COARSE_MM = 8.0


@pytest.fixture(scope="module")
def coarse():
    """Two b=0 volumes, between which the head moved."""
    recipe = Recipe(
        motion="moderate", voxel_size=(COARSE_MM,) * 3, coil_bias=0.0, head="synthetic",
        random_seed=71,
    )  # fmt: skip
    return simulate(recipe, gradients=shelled_scheme({1000.0: 20}, 2, seed=4), n_threads=2).dwi


@pytest.mark.slow
def test_detail_finer_than_coarse_voxels_is_no_motion_within_volumes(coarse):
    assert estimate_motion(coarse, n_threads=2).within_doubt is None


def test_motion_within_volumes_is_found_with_coarse_voxels(coarse):
    second, middle = int(coarse.gradients.b0s[1]), coarse.n_slices // 2
    signal = np.array(coarse.signal)
    some = slice(middle - 3, middle + 2)
    signal[:, 1:, some, second] = signal[:, :-1, some, second]
    doubt = estimate_motion(replace(coarse, signal=signal), n_threads=2).within_doubt
    assert f"volumes 0, {second}: slices contradict" in doubt
    assert "others of the 2 b=0 volumes" in doubt


@pytest.mark.parametrize(
    ("far_mm", "voxel", "scale", "named"),
    [(0.25, 3.0, 1.0, [0]), (0.25, 6.0, 1.0, []), (0.65, 8.0, 1.0, []), (2.1, 8.0, 1.0, [0]),
     (0.3, 4.0, 0.5, []), (1.05, 4.0, 0.5, [0])],
)  # fmt: skip
def test_slices_have_to_move_a_pose_farther_where_voxels_are_large(far_mm, voxel, scale, named):
    """Relative to the head: 4 mm in one of half the size are as 8 mm in a human one."""
    against = np.diag([far_mm**2, 0, 0, 0, 0, 0])[None]
    little, rest = 1e-9 * np.eye(6)[None], np.full((1, 6, 6), np.nan)
    errors = PoseErrors(little, little, little, little, rest, against, against, scale, voxel)
    assert errors.contradicted.tolist() == named


def test_what_a_shell_has_in_common_is_the_models():
    """Six volumes of b=500 beside sixty of b=3000; the head moved within one of the six."""
    random, bvals = np.random.default_rng(1), np.repeat([500.0, 3000.0], [6, 60])
    n, period = len(bvals), np.repeat(np.arange(8), 2)
    own = np.tile(np.eye(6), (n, len(period), 1, 1))
    steps = np.zeros((n, 6, len(period)))
    steps[:6] = random.normal(size=(6, len(period)))
    alone = np.array(steps)
    steps[2] += random.normal(size=(6, len(period)))
    (found,) = _poses_of_periods(steps, own, [period], similar_volumes(bvals))
    np.testing.assert_allclose(found[np.arange(n) != 2], 0, atol=1e-12)
    (moved,) = _poses_of_periods(steps - alone, own, [period], similar_volumes(bvals))
    np.testing.assert_allclose(found[2], moved[2])
    assert np.abs(moved[2]).max() > 0.5


def test_volumes_are_compared_with_their_shell_or_with_the_most_similar_ones():
    few = similar_volumes(np.repeat([0.0, 700.0, 2000.0], [1, 3, 12]))
    assert few[4:].sum(axis=1).tolist() == [12] * 12
    assert few[1:4].all()
    rounded = similar_volumes(np.tile([995.0, 1000.0, 1005.0], 4))
    assert rounded.all()
