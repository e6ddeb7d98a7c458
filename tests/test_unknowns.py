# SPDX-License-Identifier: Apache-2.0
"""Blocks of unknowns: normal equations that know nothing of what they solve for."""

from dataclasses import dataclass

import numpy as np
import pytest

from eddymotion.estimation.equations import normal_equations
from eddymotion.estimation.equations.normal_equations import NormalEquations
from eddymotion.estimation.equations.unknowns import POSES, Poses, PriorTerms, Unknowns
from eddymotion.estimation.fields.unknowns import FIELDS, UnknownFields
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import shelled_scheme

N, CENTER = 5, np.array([1.0, -2.0, 3.0])


@dataclass
class Plain:
    """A block of numbers that mean nothing."""

    name: str
    size: int
    directions: np.ndarray | None = None
    design: np.ndarray | None = None


def least_squares(columns, values):
    """Normal equations of plain least squares, each value a part of its own."""
    return columns.T @ columns, columns * values[:, None]


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(normal_equations, "DAMPING", 0.0)


def problem(p, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(60, N * p)), random.normal(size=60)


@pytest.mark.usefixtures("undamped")
def test_each_block_gets_its_part_of_the_solution():
    columns, values = problem(5)
    unknowns = Unknowns([Plain("a", 2), Plain("b", 3)])
    system = NormalEquations(0.0, 60, *least_squares(columns, values), unknowns)
    expected = np.linalg.lstsq(columns, values)[0].reshape(N, 5)
    expected -= expected.mean(axis=0)
    assert system.step("a") == pytest.approx(expected[:, :2])
    assert system.step("b") == pytest.approx(expected[:, 2:])


@pytest.mark.usefixtures("undamped")
def test_volumes_that_share_unknowns_step_by_their_design():
    """As least squares whose columns are summed by the design."""
    columns, values = problem(3)
    design = np.random.default_rng(1).normal(size=(N, 2))
    shared = Plain("shared", 2, design=design)
    unknowns = Unknowns([Plain("own", 1), shared])
    system = NormalEquations(0.0, 60, *least_squares(columns, values), unknowns)
    by_volume = columns.reshape(60, N, 3)
    summed = np.einsum("vnk,nd->vdk", by_volume[:, :, 1:], design).reshape(60, 4)
    found = np.linalg.lstsq(np.hstack([by_volume[:, :, 0], summed]), values)[0]
    steps = system.solve(system.right).reshape(N, 3)
    assert steps[:, 0] == pytest.approx(found[:N])
    assert steps[:, 1:] == pytest.approx(design @ found[N:].reshape(2, 2))


@pytest.mark.usefixtures("undamped")
def test_steps_go_along_the_directions_of_a_block_only():
    columns, values = problem(4)
    directions = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 2)))[0]
    unknowns = Unknowns([Plain("free", 1), Plain("held", 3, directions)])
    system = NormalEquations(0.0, 60, *least_squares(columns, values), unknowns)
    by_volume = columns.reshape(60, N, 4)
    along = np.concatenate([by_volume[:, :, :1], by_volume[:, :, 1:] @ directions], axis=2)
    found = np.linalg.lstsq(along.reshape(60, -1), values)[0].reshape(N, 3)
    steps = system.solve(system.right).reshape(N, 4)
    assert steps[:, 1:] == pytest.approx(found[:, 1:] @ directions.T)


@pytest.mark.usefixtures("undamped")
def test_what_is_known_before_pulls_its_own_block():
    """A prior as strong as the data that wants ones: half-way between both."""
    hessian = np.eye(2 * N)
    terms = PriorTerms(np.ones((N, 1)), np.eye(N)[None])
    unknowns = Unknowns([Plain("a", 1), Plain("b", 1)])
    system = NormalEquations(0.0, 60, hessian, np.zeros((1, 2 * N)), unknowns, {"b": terms})
    steps = system.solve(system.right).reshape(N, 2)
    assert steps == pytest.approx(np.tile([0.0, 0.5], (N, 1)))


def test_a_step_moves_each_volume_by_its_columns():
    """As the columns say of an image that is linear in space; but for what is common to all."""
    random = np.random.default_rng(3)
    gradients = shelled_scheme({1000: N}, 0)
    blocks = [Poses(CENTER), UnknownFields(gradients, 3, CENTER)]
    eddy = EddyCurrents.none(N, "linear", np.array([0.6, 0.8, 0.0]), CENTER)
    motion = Motion(Motion.identity(N).matrices, eddy_currents=eddy)
    unknowns = Unknowns(blocks)
    points, slope = random.normal(size=(7, 3)) * 30, random.normal(size=3)
    step = 1e-5 * random.normal(size=(N, len(unknowns)))
    step -= step.mean(axis=0)
    slopes = np.broadcast_to(slope[None, :, None], (N, 3, 7)).astype(np.float32)
    columns = unknowns.jacobian(motion, points, slopes)
    moved = unknowns.moved(motion, step)
    expected = -np.einsum("nk,nkv->nv", step, columns)
    found = np.stack([
        (moved.recorded(volume, points) - motion.recorded(volume, points)) @ slope
        for volume in range(N)
    ])  # fmt: skip
    assert found - found.mean(axis=0) == pytest.approx(
        expected - expected.mean(axis=0), rel=1e-3, abs=1e-7
    )
    assert unknowns.columns == {POSES: slice(0, 6), FIELDS: slice(6, 9)}
    assert len(unknowns.lengths(points)) == 9
