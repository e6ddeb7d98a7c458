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
from eddymotion.mapping.rigid import (
    exp_rigid,
    log_rigid,
    rigid_matrix,
    rigid_parameters,
    twist_millimetres,
)
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation import acquire
from eddymotion.simulation.timing import SliceTiming

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


@pytest.mark.slow
def test_errors_grow_where_the_head_moved_within_a_volume(found, found_at_rest, nodded, scheme):
    own, errors = found.standard_errors[NODDING], found.standard_errors[scheme.dwis]
    usual = np.median(errors, axis=0)
    added = np.sqrt(own[3] ** 2 - usual[3] ** 2)  # to the error of the frame, which all share
    assert added > np.deg2rad(0.095)
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


BENT = (7, 11, 15, 19)
"""Volumes within which the head moves while slices are acquired one after the other."""

COURSES = np.array([
    [2.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 2.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 2.0, 0.0, 0.0, 0.0],
    [0.0, 1.0, 1.0, np.deg2rad(1.5), 0.0, np.deg2rad(1.0)],
])  # fmt: skip
"""How far, mm and rad, within a quarter of the time; then it stays until the volume ends."""

BEGINS = [0.5, 2.5, 0.5, 2.5]
"""In quarters of the time of the volume."""


@pytest.fixture(scope="module")
def bent(still, head, scheme, grid):
    """The series, and the mean pose of each of its volumes that moved, (4, 6)."""
    n_slices = still.shape[2]
    way = np.clip(4 * np.arange(n_slices) / n_slices - np.array(BEGINS)[:, None], 0, 1)
    twists = np.zeros((1 + len(BENT), n_slices, 6))
    twists[1:] = way[..., None] * COURSES[:, None]
    groups = tuple(np.arange(n_slices)[:, None])
    times = SliceTiming("sequential", 1).excitations(len(twists), n_slices)
    moved = SlicePoses(exp_rigid(twists, still.center), groups, times)
    scan = acquire(head, scheme.select(np.array([0, *BENT])), moved, grid, snr=20, seed=5)
    signal = still.signal.copy()
    signal[..., BENT] = scan.signal[..., 1:]
    return replace(still, signal=signal), twists[1:].mean(axis=1)


@pytest.mark.slow
def test_errors_hold_the_mean_pose_where_slices_one_after_the_other_show_a_bent_head(bent):
    """Without SliceTiming; the images agree with a head that is turned instead."""
    dwi, mean = bent
    volumes, in_mm = np.array(BENT), twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes))
    found = estimated(dwi, PLAIN)
    away = in_mm * (log_rigid(found.matrices[volumes], dwi.center) - mean)
    errors = in_mm * found.standard_errors[volumes]
    assert np.mean(np.abs(away) < 1.96 * errors) >= 0.9
    assert 0.9 < np.sqrt(np.mean(errors**2) / np.mean(away**2)) < 1.4


def test_periods_follow_the_order_of_excitation():
    assert PLAIN.periods(6, 2).tolist() == [0, 1, 0, 1, 0, 1]
    slicing = Slicing.of({"SliceTiming": [0.0, 0.2, 0.1, 0.3] * 2}, (4, 4, 8))
    assert slicing.periods(8, 4).tolist() == [0, 2, 1, 3] * 2
    assert slicing.periods(8, 2).tolist() == [0, 1, 0, 1] * 2
