# SPDX-License-Identifier: Apache-2.0
"""Errors of volumes in which the head moved, and of b=0 volumes, hold the truth."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.acquisition import PLAIN, Slicing
from eddymotion.estimation import Joint, estimate_motion
from eddymotion.estimation.joint.standard_errors import MISFIT_MM
from eddymotion.images.pyramid import head_scale
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters
from eddymotion.simulation import acquire

NODDING = 5
"""A diffusion-weighted volume."""

NOD = np.deg2rad([2.0, 0.0, 0.5])


@pytest.fixture(scope="module")
def interleaved(still):
    """Slices in interleaved order, three at a time."""
    n = -(-still.shape[2] // 3)
    turn = np.empty(n)
    turn[np.r_[0:n:2, 1:n:2]] = np.arange(n)
    times = 0.1 * turn[np.arange(still.shape[2]) % n]
    return Slicing.of({"SliceTiming": times.tolist()}, still.shape)


@pytest.fixture(scope="module")
def nodded(still, interleaved, head, scheme, grid):
    """Nod while the third quarter of the slices of one volume is excited."""
    pose = rigid_matrix(np.zeros(3), NOD, np.zeros(3))
    motion = Motion.identity(len(scheme)).updated(np.array([NODDING]), pose)
    signal = still.signal.copy()
    late = np.isin(interleaved.periods(still.shape[2], 4), 2)
    signal[:, :, late, NODDING] = acquire(head, scheme, motion, grid).signal[:, :, late, NODDING]
    return replace(still, signal=signal)


def estimated(dwi, slicing):
    described = replace(dwi, acquisition=replace(dwi.acquisition, slicing=slicing))
    return estimate_motion(described, estimator=Joint(eddy_current="none"), n_threads=2)


@pytest.fixture(scope="module")
def found(nodded, interleaved):
    return estimated(nodded, interleaved)


@pytest.fixture(scope="module")
def found_at_rest(still, interleaved):
    return estimated(still, interleaved)


def test_errors_grow_where_the_head_moved_within_a_volume(found, found_at_rest, nodded, scheme):
    own, errors = found.standard_errors[NODDING], found.standard_errors[scheme.dwis]
    usual = np.median(errors, axis=0)
    assert own[3] > 2 * usual[3]
    mean_pose = np.concatenate([np.zeros(3), NOD / 4])
    assert (np.abs(rigid_parameters(found[NODDING], nodded.center) - mean_pose) < 1.96 * own).all()
    others = np.setdiff1d(scheme.dwis, NODDING)
    before, now = (one.standard_errors[others] for one in (found_at_rest, found))
    assert (np.abs(np.log(now / before)) < np.log(1.1)).all()  # as if nothing had moved


def test_b0_volumes_lie_within_their_errors(found, nodded, scheme):
    """What the model gets wrong is in their errors, too."""
    b0s = scheme.b0s[1:]  # at rest, as the first, which is the reference
    size = head_scale(nodded.mask, nodded.voxel_sizes)
    assert (found.standard_errors[b0s, :3] > MISFIT_MM * size).all()
    apart = np.abs(rigid_parameters(found.matrices[b0s], nodded.center))
    assert np.mean(apart < 1.96 * found.standard_errors[b0s]) > 0.8


def test_periods_follow_the_order_of_excitation():
    assert PLAIN.periods(6, 2).tolist() == [0, 1, 0, 1, 0, 1]
    slicing = Slicing.of({"SliceTiming": [0.0, 0.2, 0.1, 0.3] * 2}, (4, 4, 8))
    assert slicing.periods(8, 4).tolist() == [0, 2, 1, 3] * 2
    assert slicing.periods(8, 2).tolist() == [0, 1, 0, 1] * 2
