# SPDX-License-Identifier: Apache-2.0
"""The steps of the joint solution, one at a time."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from eddymotion.data.gradients import Gradients
from eddymotion.estimation import joint
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.fields.following import usual_poses
from eddymotion.estimation.joint.band_passed import BandPassedVolumes
from eddymotion.estimation.joint.levels import COARSE, FINE
from eddymotion.estimation.joint.solver import JointSolver
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.pyramid import steepest
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.models import get_model

ALONG_Z = np.eye(6)[[2]]


@pytest.fixture
def steps(tiny):
    solver = JointSolver(tiny, 3, Compute())
    taken = joint.JointSteps(solver, get_model("gp", tiny.gradients), "none")
    taken.solve_first_levels()
    return taken


@pytest.mark.parametrize("held", [0, 1])
@pytest.mark.parametrize("n_frames", [1, 2])
def test_all_starts_again_where_something_is_not_determined(steps, held, n_frames, monkeypatch):
    dwis = steps.dwi.gradients.dwis
    parted = [dwis] if n_frames == 1 else [dwis[:2], dwis[2:]]
    monkeypatch.setattr(joint, "ENOUGH_SLICES", 0)
    monkeypatch.setattr(joint, "undetermined_directions", lambda *given: ALONG_Z[:held])
    monkeypatch.setattr(joint, "tied_by_data", lambda *given: parted)
    motion = steps.motion
    steps.hold_what_is_not_determined()
    assert not steps.solutions
    if not held and n_frames == 1:
        assert steps.motion is motion
        return
    np.testing.assert_array_equal(steps.solver.undetermined, ALONG_Z[:held])
    assert [len(group.volumes) for group in steps.groups][1:] == [len(one) for one in parted]
    along_z = np.abs(rigid_parameters(steps.motion.matrices, steps.dwi.brain_center)[:, 2])
    assert (along_z.max() < 0.05) == bool(held)


def test_errors_are_told_by_what_the_last_step_saw(steps, monkeypatch):
    """At all points of the last level, volumes are read once, and not even that if it has."""
    steps.refine()
    read, plain = [], CoupledProblem.sample
    monkeypatch.setattr(
        CoupledProblem, "sample", lambda self, motion: read.append(self) or plain(self, motion)
    )
    unseen = ["found" not in vars(solution) for solution in steps.solutions]
    assert np.isfinite(steps.errors().covariances).all()
    for solution, once in zip(steps.solutions, unseen, strict=True):
        assert sum(problem is solution.problem for problem in read) == once


def test_blas_has_one_thread_until_the_estimate_is_put_together(tiny, monkeypatch):
    seen, plain = [], joint._known

    def known(*given):
        seen.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        return plain(*given)

    monkeypatch.setattr(joint, "_known", known)
    with threadpool_limits(2, "blas"):
        joint.solve_jointly(tiny, model=get_model("gp", tiny.gradients), max_steps=1)
    assert set(seen) == {1}


def test_fine_levels_draw_points_of_their_own(steps):
    first = steps.solver.solve(FINE[0], steps.groups, steps.motion)[1]
    steps.refine()
    one, other = (set(map(tuple, found[-1].problem.points)) for found in (first, steps.solutions))
    assert len(one) > 1_000
    assert not one & other


@pytest.mark.parametrize(
    ("chance_mm", "voxels", "n_volumes", "n_points"),
    [
        (0.02, 300_000, 60, 40_000),  # the signal is high
        (0.03 * np.sqrt(2), 300_000, 60, 80_000),
        (0.20, 300_000, 60, 120_000),
        (0.20, 150_000, 60, 75_000),  # half of the voxels
        (0.20, 60_000, 60, 40_000),
        (0.20, 300_000, 100, 80_000),  # memory
        (0.20, 300_000, 288, 40_000),
    ],
)
def test_noise_asks_for_points(steps, chance_mm, voxels, n_volumes, n_points):
    solver = steps.solver
    group = replace(steps.groups[-1], volumes=np.arange(n_volumes))
    solver.bands.mask = np.broadcast_to(True, (voxels, 1, 1))
    solver.bands.scale, solver.chance[group.name] = 0.5, 0.5 * chance_mm  # half the size
    assert solver.enough_points(group) == pytest.approx(n_points, rel=1e-6)


def test_the_last_level_has_the_points_that_noise_asks_for(steps, monkeypatch):
    assert 0.001 < steps.solver.chance["b>0"] < 1.0
    monkeypatch.setattr(JointSolver, "enough_points", lambda solver, group: 1_234)
    steps.refine()
    assert len(steps.solutions[-1].problem.points) == 1_234


def test_lost_slices_are_left_out_of_the_one_solution_at_the_last_level(tiny, monkeypatch):
    signal, plain, solved = tiny.signal.copy(), JointSolver.solve, []
    signal[:, :, tiny.shape[2] // 2, tiny.gradients.dwis[2]] *= 0.05

    def solve(self, level, *given):
        solved.append((level, self.bands.outliers is not None))
        return plain(self, level, *given)

    monkeypatch.setattr(JointSolver, "solve", solve)
    spoilt = replace(tiny, signal=signal)
    joint.solve_jointly(spoilt, model=get_model("gp", tiny.gradients), eddy_currents="none")
    assert [known for level, known in solved if level == FINE[-1]] == [True]


def test_heads_that_went_away_are_not_usual_and_those_that_wander_are():
    wander = np.cumsum(np.random.default_rng(0).normal(size=(40, 5)), axis=0)
    assert usual_poses(wander).mean() > 0.9
    visits = np.random.default_rng(1).normal(scale=0.1, size=(40, 5))
    visits[[7, 8, 30]] += 9.0
    assert np.flatnonzero(~usual_poses(visits)).tolist() == [7, 8, 30]


@pytest.mark.parametrize(
    ("leverage", "frames", "known"),
    [
        ([0.5, 0.5, 0.5], [[1, 2, 3]], [1, 1, 1]),
        ([0.5, 0.5, 0.0], [[1, 2, 3]], [1, 1, 0]),
        ([0.5, 0.5, 0.0], [[1, 2], [3]], [1, 1, 1]),  # time and images join its frame
        ([0.0, 0.0, 0.0], [[1, 2], [3]], [0, 0, 0]),  # nothing is known of any
    ],
)
def test_who_is_alone_in_a_frame_is_known_by_time_and_images(leverage, frames, known):
    """A leverage of zero: the others say nothing about a volume. An only b=0 is the frame."""
    gradients = Gradients(np.array([0.0, 1000, 1000, 1000]), np.eye(4, 3, k=-1))
    group = SimpleNamespace(volumes=gradients.dwis)
    model = SimpleNamespace(precision=lambda _: np.diag(leverage))
    solution = SimpleNamespace(problem=SimpleNamespace(model=model, gradients=None))
    found = joint._known(
        SimpleNamespace(gradients=gradients), [group], [solution], list(map(np.array, frames))
    )
    assert found.tolist() == [True, *map(bool, known)]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("level", [COARSE[0], COARSE[-1], FINE[0]])
def test_bands_of_integers_are_those_of_the_same_numbers_as_floats(tiny, kind, level):
    whole = np.round(tiny.signal / tiny.signal.max() * np.iinfo(kind).max)
    shown = []
    for signal in (whole.astype(kind), whole.astype(np.float32)):
        dwi = replace(tiny, signal=signal)
        bands = BandPassedVolumes(dwi, Compute())
        filtered = bands.filtered(level, [0, 3], Motion.identity(len(dwi)).matrices)
        shown.append([band.sample(bands.surface) for band in filtered])
    assert np.isfinite(shown[0]).mean() > 0.5
    np.testing.assert_array_equal(*shown)


@pytest.mark.parametrize("n_points", [3_000, 20_000])
def test_points_and_their_order_do_not_hang_on_rounding(n_points):
    steepness = np.random.default_rng(1).exponential(size=20_000)
    one = steepest(steepness, n_points, np.random.default_rng(0))
    rounded = (steepness * 7.3).astype(np.float32).astype(float)
    np.testing.assert_array_equal(one, steepest(rounded, n_points, np.random.default_rng(0)))


def test_volumes_are_filtered_for_their_group_alone_and_again_only_if_they_are_stale(
    tiny, monkeypatch
):
    asked, plain = [], BandPassedVolumes.filtered
    monkeypatch.setattr(
        BandPassedVolumes, "filtered",
        lambda self, level, volumes, *given, **more:
            asked.append(list(volumes)) or plain(self, level, volumes, *given, **more),
    )  # fmt: skip
    bands, poses = BandPassedVolumes(tiny, Compute()), Motion.identity(len(tiny)).matrices
    groups = VolumeGroup.all_of(tiny, get_model("gp", tiny.gradients), [tiny.gradients.dwis])
    first = [bands.of_group(group, FINE[0], poses) for group in groups]
    assert asked == [group.volumes.tolist() for group in groups]
    asked.clear()
    bands.stale = tiny.gradients.dwis[[1, 4]]
    again = [bands.of_group(group, FINE[1], poses) for group in groups]
    assert asked == [tiny.gradients.dwis[[1, 4]].tolist()]
    same = [[one is other for one, other in zip(*pair, strict=True)]
            for pair in zip(first, again, strict=True)]  # fmt: skip
    assert same == [[True] * 2, [k not in (1, 4) for k in range(8)]]
