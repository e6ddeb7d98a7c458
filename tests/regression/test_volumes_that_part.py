# SPDX-License-Identifier: Apache-2.0
"""Volumes of a scattered head that part from the others as a whole.

With 12 directions at b=3000, each displaced by up to 20 mm and 25°, halves of the volumes ended
up to 45° apart in three of four series; each half predicts its own, and nothing told.
"""

import logging

import numpy as np
import pytest

import eddymotion as em
from eddymotion.estimation.frames.anchors import Anchors
from eddymotion.estimation.joint.outlier_search import OutlierSearch
from eddymotion.estimation.joint.solver import JointSolver
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.grid import Grid
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rms_displacement
from eddymotion.models import get_model
from eddymotion.simulation import acquire, procedural_head, shelled_scheme
from eddymotion.simulation.motion import simulate_motion

SCHEME = shelled_scheme({3000.0: 8}, 1)
AWAY = exp_rigid(np.array([6.0, -3.0, 9.0, 0.1, 0.35, -0.2]), np.zeros(3))
FRAME = exp_rigid(np.array([3.0, 5.0, -2.0, 0.1, -0.05, 0.2]), np.zeros(3))


@pytest.fixture(scope="module")
def moderate():
    """Of a head within reach of a start at rest."""
    head = procedural_head(4.0)
    grid = Grid.covering(head, 4.0)
    truth = simulate_motion("swap50", len(SCHEME), grid.center, seed=2)
    return acquire(head, SCHEME, truth, grid, snr=30.0, coil_bias=0.13, seed=2), truth


@pytest.fixture(scope="module")
def anchors(moderate):
    return Anchors.of(moderate[0], SCHEME.dwis)


def in_group(truth):
    """Right poses of the group, in a frame of its own."""
    return Motion(truth.relative_to(0).matrices[SCHEME.dwis] @ np.linalg.inv(FRAME))


def test_b0_finds_each_volume_alone(moderate, anchors):
    dwi, truth = moderate
    there = truth.relative_to(0).matrices[SCHEME.dwis]
    apart = rms_displacement(anchors.matrices, there, dwi.brain_center)
    found = in_group(truth)
    core, offset = anchors.core(found)
    assert core.sum() >= len(core) - 1
    assert np.array_equal(core, apart < 6.0)
    assert rms_displacement(offset, FRAME, dwi.brain_center) < 6.0
    assert not len(anchors.disagreement(found).volumes)


def test_the_smaller_part_is_named_and_its_errors_hold_the_way(moderate, anchors, caplog):
    _, truth = moderate
    some = np.array([1, 4, 6])  # one more did not register
    found = in_group(truth)
    found = found.updated(some, found.matrices[some] @ AWAY)
    assert not anchors.core(found)[0][some].any()
    disagreement = anchors.disagreement(found)
    assert np.array_equal(disagreement.volumes, SCHEME.dwis[some])
    errors = np.sqrt(np.einsum("nkk->nk", disagreement.covariances(len(SCHEME))))
    assert not errors[np.setdiff1d(np.arange(len(SCHEME)), disagreement.volumes)].any()
    angles = np.linalg.norm(errors[disagreement.volumes, 3:], axis=1)
    assert (1.96 * angles > np.deg2rad(20)).all()
    with caplog.at_level(logging.WARNING):
        disagreement.warn()
    assert ", ".join(map(str, SCHEME.dwis[some])) in caplog.text


def test_one_volume_alone_is_no_part(moderate, anchors):
    """Its registration may have failed."""
    found = in_group(moderate[1])
    found = found.updated(np.array([2]), found.matrices[[2]] @ AWAY)
    assert not len(anchors.disagreement(found).volumes)


def test_volumes_that_the_core_predicts_are_in_place_wherever_b0_finds_them():
    """Of a thin slab, turned by 17°, b=0 found ten of eleven volumes wrongly, four of them alike.

    Their poses were right, and their standard errors 12 mm.
    """
    head, scheme, some = procedural_head(4.0), shelled_scheme({1000.0: 10}, 1), np.array([1, 4, 6])
    still = Motion.identity(len(scheme))
    dwi = acquire(head, scheme, still, Grid.covering(head, 4.0), snr=30.0, seed=2)
    solver = JointSolver(dwi, 10, Compute())
    group = VolumeGroup.all_of(dwi, get_model("auto", scheme), [scheme.dwis])[-1]
    everywhere = still.matrices[scheme.dwis]
    elsewhere = everywhere.copy()
    elsewhere[some] = AWAY
    for by_b0, poses, named in (elsewhere, everywhere, False), (everywhere, elsewhere, True):
        anchors, motion = Anchors(dwi, scheme.dwis, by_b0), still.updated(scheme.dwis, poses)
        found = motion.select(scheme.dwis)
        assert np.array_equal(anchors.disagreement(found).volumes, scheme.dwis[some])
        in_place = OutlierSearch(solver)._in_place(group, motion, anchors)
        assert in_place[some].all() != named
        assert len(anchors.disagreement(found, in_place).volumes) == named * len(some)


def scattered(seed):
    """Twelve directions at b=3000, each displaced by up to 20 mm and 25°; how far they end off."""
    scheme, head = shelled_scheme({3000.0: 12}, 1), procedural_head()
    grid = Grid.covering(head, 3.0)
    truth = simulate_motion("scattered", len(scheme), grid.center, seed=seed)
    dwi = acquire(head, scheme, truth, grid, snr=20.0, coil_bias=0.13, seed=seed)
    found = em.estimate_motion(dwi).relative_to(0)
    return found, rms_displacement(found.matrices, truth.relative_to(0).matrices, dwi.brain_center)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_halves_are_brought_together(seed):
    """25° and 54° apart before; of seed 0 coarse levels leave groups of at most three."""
    found, apart = scattered(seed)
    assert apart.max() < 0.6
    assert np.rad2deg(found.standard_errors[:, 3:]).max() < 1.0


@pytest.mark.slow
def test_others_stay_where_they_are_when_one_is_left_out():
    """They went through coarse levels again, which tore them apart: up to 18 mm."""
    found, apart = scattered(15)
    assert found.unplaced.sum() <= 1
    assert apart[~found.unplaced].max() < 0.6
    assert np.isnan(found.standard_errors[found.unplaced]).all()
