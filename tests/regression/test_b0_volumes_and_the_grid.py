# SPDX-License-Identifier: Apache-2.0
"""Two b=0 volumes of a head that moved were pulled towards rest by the pattern of the grid.

Detail finer than a voxel stays with the grid while the head moves: filtered over one voxel, two
volumes of 4 mm lacked 5 to 25 % of the way between them, and the first of them is the reference.
"""

from dataclasses import replace

import numpy as np

import eddymotion as em
from eddymotion.data.gradients import Gradients
from eddymotion.estimation.joint.levels import FINE
from eddymotion.estimation.joint.solver import JointSolver
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.grid import Grid
from eddymotion.images.masking import brain_mask
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid, rigid_matrix
from eddymotion.models import GaussianProcessModel, LegendreCovariance
from eddymotion.simulation import SyntheticHead, acquire

IN_MM = np.array([1.0] * 3 + [50.0] * 3)


def test_the_grid_does_not_pull_b0_volumes_to_rest():
    head = SyntheticHead()
    grid = Grid.covering(head, 4.0, "LAS", np.eye(3))
    pose = rigid_matrix([-0.8, 0.3, 0.9], np.deg2rad([1.0, 0.4, 0.6]), grid.center)
    truth = Motion(np.stack([np.eye(4), pose]))
    table = Gradients(np.zeros(2), np.zeros((2, 3)))
    signal = acquire(head, table, truth, grid, snr=30.0, seed=3).signal
    dwi = em.DWI(signal, grid.affine, table, brain_mask(signal.mean(axis=3)))
    model = GaussianProcessModel(LegendreCovariance())
    (b0s,) = VolumeGroup.all_of(dwi, model, [np.array([0])])

    def wrong(group: VolumeGroup) -> float:
        solver = JointSolver(dwi, 20, Compute())
        found, _ = solver.solve(FINE[0], [group], truth)
        way = found.matrices[1] @ np.linalg.inv(found.matrices[0])
        return float(np.abs(log_rigid(np.linalg.inv(pose) @ way, dwi.brain_center) * IN_MM).max())

    assert wrong(b0s) < 0.04
    assert wrong(replace(b0s, widening=1.0)) > 3 * wrong(b0s)
