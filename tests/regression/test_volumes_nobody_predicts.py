# SPDX-License-Identifier: Apache-2.0
"""Volumes without a prediction are named and get a pose; voxels without one are left out."""

import logging

import numpy as np
import pytest

import eddymotion as em
from eddymotion.estimation.lovo import conclude, fill_unpredicted, register_volumes
from eddymotion.images.image import Image
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.models import AverageModel
from eddymotion.registration import GaussNewton
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme


@pytest.fixture(scope="module")
def still():
    gradients = shelled_scheme({1000.0: 6}, 1)
    phantom = procedural_head(6.0)
    grid = Grid.covering(phantom, 6.0)
    return acquire(phantom, gradients, Motion.identity(7), grid, snr=None)


def test_lone_volume_gets_the_pose_of_its_neighbour(still, caplog):
    poses = rigid_matrix(np.arange(21.0).reshape(7, 3), np.zeros((7, 3)), still.center)
    known = np.array([True, True, True, False, True, True, True])
    with caplog.at_level(logging.WARNING):
        filled = fill_unpredicted(still, Motion(poses), known)
    assert any((filled[3] == poses[k]).all() for k in (2, 4))
    assert "volume 3 (counted from 0): cannot" in caplog.text


def test_a_lone_b0_volume_keeps_its_pose_without_a_warning(still, caplog):
    poses = rigid_matrix(np.arange(21.0).reshape(7, 3), np.zeros((7, 3)), still.center)
    filled = fill_unpredicted(still, Motion(poses), np.arange(7) > 0)
    np.testing.assert_array_equal(filled.matrices, poses)
    assert not caplog.records


def test_the_loop_gives_a_pose_of_the_same_shell():
    """Means of shells bring no two of them into one frame; the neighbour was of another shell."""
    gradients = shelled_scheme({1000.0: 6, 2000.0: 6}, 1)
    phantom = procedural_head(6.0)
    dwi = acquire(phantom, gradients, Motion.identity(13), Grid.covering(phantom, 6.0), snr=None)
    first, second = gradients.shells
    volume = next(one for one in second if one - 1 in first and one + 1 in first)
    shifts = np.zeros((13, 3))
    shifts[second, 2] = 3.0
    poses = rigid_matrix(shifts, np.zeros((13, 3)), dwi.center)
    known = np.arange(13) != volume
    found = conclude(dwi, Motion(poses), known, AverageModel(), Compute())
    assert found.motion[volume][2, 3] == pytest.approx(3.0, abs=0.5)


def test_nothing_predicted_is_an_error(still):
    with pytest.raises(em.EddymotionError, match="no diffusion-weighted volume"):
        fill_unpredicted(still, Motion.identity(7), np.zeros(7, bool))


def test_single_voxels_without_prediction_do_not_lose_the_volume(still):
    predicted = np.array(still.signal)
    predicted[still.mask & (np.random.default_rng(0).random(still.mask.shape) < 0.05), 3] = np.nan
    start = Motion(rigid_matrix(np.full((7, 3), 1.0), np.zeros((7, 3)), still.center))
    brain = Image(still.mask, still.affine)
    found = register_volumes(still, predicted, GaussNewton(), init=start, brain=brain)
    np.testing.assert_allclose(found[3][:3, 3], 0, atol=0.3)


def test_one_slice_and_tiny_masks_are_refused(still):
    flat = em.DWI(
        still.signal[:, :, 10:11], still.affine, still.gradients, still.mask[:, :, 10:11]
    )
    with pytest.raises(em.EddymotionError, match="at least 3"):
        em.estimate_motion(flat)
    mask = np.zeros(still.shape, bool)
    mask[5, 5, 5] = True
    with pytest.raises(em.EddymotionError, match="mask"):
        em.estimate_motion(em.DWI(still.signal, still.affine, still.gradients, mask))
