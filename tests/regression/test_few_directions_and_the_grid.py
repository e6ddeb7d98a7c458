# SPDX-License-Identifier: Apache-2.0
"""Volumes of few directions were turned by the pattern of the grid, each its own way.

Filtered over one voxel, twelve volumes of 4 mm that start at the truth, without noise, were left
off it by .07°, and by .05° over one and a half.
"""

from dataclasses import replace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.estimation.joint.levels import FINE
from eddymotion.estimation.joint.solver import JointSolver
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.evaluation import compare_motion
from eddymotion.images.grid import Grid
from eddymotion.machine.parallel import Compute
from eddymotion.models import GaussianProcessModel, LegendreCovariance
from eddymotion.simulation import SyntheticHead, acquire, shelled_scheme
from eddymotion.simulation.motion import simulate_motion
from eddymotion.simulation.schemes import cartesian_scheme

MODEL = GaussianProcessModel(LegendreCovariance())


def test_the_grid_does_not_turn_volumes_of_few_directions():
    head, table = SyntheticHead(4), shelled_scheme({1000.0: 12}, 1)
    grid = Grid.covering(head, 4.0, "LAS", np.eye(3))
    truth = simulate_motion("moderate", len(table), grid.center, seed=4)
    dwi = acquire(head, table, truth, grid, snr=None)
    (few,) = VolumeGroup.all_of(dwi, MODEL, [table.dwis])

    def turned(group: VolumeGroup) -> float:
        found, _ = JointSolver(dwi, 20, Compute()).solve(FINE[0], [group], truth)
        there = found.select(table.dwis), truth.select(table.dwis)
        return compare_motion(*there, center=dwi.center).score().rmse_rotation_deg

    assert turned(few) < 0.85 * turned(replace(few, widening=(1.0, 1.0)))


@pytest.mark.parametrize(
    ("table", "widening"),
    [
        (shelled_scheme({1000.0: 32}, 1), (1.5, 1.0)),
        (shelled_scheme({1000.0: 33}, 1), (1.0, 1.0)),
        (cartesian_scheme(20, 5000.0, 1), (1.0, 1.0)),
    ],
    ids=["few", "many", "no shells"],
)
def test_many_directions_and_none_on_shells_keep_their_detail(table, widening):
    affine, mask = np.diag([2.0, 2.0, 2.0, 1.0]), np.ones((4, 4, 4), bool)
    dwi = em.DWI(np.ones((4, 4, 4, len(table)), np.float32), affine, table, mask)
    (group,) = VolumeGroup.all_of(dwi, MODEL, [table.dwis])
    assert group.widening == widening
    level = group.at(FINE[1])
    assert (level.fwhm, level.highpass) == (widening[0], 2.5)
