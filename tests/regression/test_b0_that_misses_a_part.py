# SPDX-License-Identifier: Apache-2.0
"""A lone b=0 volume that does not show a part of what the others show, beside lost slices.

Nothing predicts it, so that it stayed unknown there in the second pass of the judgement: the model
was fitted to no voxel at all, and no volume had a prediction in that part.
"""

import numpy as np

import eddymotion as em
from eddymotion.data.series import DWI
from eddymotion.images.grid import Grid
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.simulation import acquire, procedural_head, shelled_scheme


def judged(up_mm):
    """Judge a series whose first volume, of b=0, was `up_mm` higher than the others."""
    head, scheme = procedural_head(6.0), shelled_scheme({1000.0: 12}, 1, seed=3)
    poses = np.repeat(np.eye(4)[None], len(scheme), axis=0)
    poses[0] = rigid_matrix(np.array([0.0, 0.0, up_mm]), np.zeros(3), np.zeros(3))
    motion = Motion(poses)
    dwi = acquire(head, scheme, motion, Grid.covering(head, 6.0), seed=3)
    signal = np.array(dwi.signal)
    signal[:, :, signal.shape[2] // 2, 5] *= 0.3
    mask = np.array(dwi.mask)
    mask[:, :, -6:] = mask.any(axis=2, keepdims=True)  # as masks of runs together may
    return em.assess(DWI(signal, dwi.affine, dwi.acquisition, mask), motion)


def test_the_others_are_judged_as_ever():
    seen, missed = judged(0.0), judged(30.0)
    assert missed.outliers.flagged[5].sum() == seen.outliers.flagged[5].sum() == 1
    np.testing.assert_allclose(missed.correlation[1:], seen.correlation[1:], atol=0.03)
