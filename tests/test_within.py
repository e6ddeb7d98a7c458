# SPDX-License-Identifier: Apache-2.0
"""The head is followed through volumes within which it moved, and nowhere else."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import linalg

import eddymotion as em
from eddymotion.data.acquisition import Slicing
from eddymotion.errors import EddymotionError
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.period_scatter import PeriodScatter
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.estimation.within_volumes import follow_head, solver
from eddymotion.estimation.within_volumes.chain import Chain
from eddymotion.estimation.within_volumes.descent import FoundCourse
from eddymotion.estimation.within_volumes.equations import _Assembly, right_jacobians
from eddymotion.estimation.within_volumes.increments import Increments
from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.estimation.within_volumes.matrix import GroupMatrix
from eddymotion.estimation.within_volumes.overcount import find_overcount
from eddymotion.estimation.within_volumes.slice_order import OrderEvidence
from eddymotion.estimation.within_volumes.solver import LEVELS, CourseSolver, motion_over_error
from eddymotion.estimation.within_volumes.standard_errors import between_knots, covariances
from eddymotion.estimation.within_volumes.system import CourseSystem, Posterior
from eddymotion.evaluation.trajectory import compare_trajectory
from eddymotion.images.grid import Grid
from eddymotion.images.stack import SliceStack
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.rigid import exp_rigid, log_rigid, rigid_parameters, rms_displacement
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.models import get_model
from eddymotion.simulation import procedural_head, shelled_scheme
from eddymotion.simulation.within_volumes import simulate_within_volumes

CENTER = np.array([3.0, -7.0, 12.0])
RANDOM = np.random.default_rng(0)
TIMES = np.array([0.0, 1.0, 2.0, 0.5, 1.5, 2.5, 0.0, 1.0, 2.0, 0.5, 1.5, 2.5])
INTERLEAVED = Slicing.of({"SliceTiming": TIMES.tolist()}, (5, 5, 12))
MOVING = np.array([False, True, True, False, True])


def test_steps_in_twists_are_steps_of_the_pose():
    """``T exp(−δ) = exp(ξ + dξ)`` with ``δ = −A dξ``, to first order."""
    twists = RANDOM.normal(size=(4, 6)) * np.r_[5, 5, 5, 0.3, 0.3, 0.3]
    change = 1e-6 * RANDOM.normal(size=(4, 6))
    moved = exp_rigid(twists + change, CENTER)
    steps = log_rigid(np.linalg.inv(exp_rigid(twists, CENTER)) @ moved, CENTER)
    expected = np.einsum("kab,kb->ka", right_jacobians(twists), change)
    np.testing.assert_allclose(steps, expected, atol=1e-11)


def test_a_volume_at_rest_has_one_pose_and_others_a_line_between_knots():
    knots = Knots.between(INTERLEAVED, 4, MOVING)
    assert knots.n_rows == 2 + 3 * 4
    twists = RANDOM.normal(size=(knots.n_rows, 6))
    of_slices = knots.of_slices(twists)
    assert not np.ptp(of_slices[~MOVING], axis=1).any()
    for volume in np.flatnonzero(MOVING):
        own = twists[knots.row[volume]]
        at = np.linspace(0, 2.5, 4)
        line = np.stack([np.interp(TIMES, at, axis) for axis in own.T], axis=1)
        np.testing.assert_allclose(of_slices[volume], line, atol=1e-12)


def test_more_knots_leave_the_course_as_it_is():
    few, many = (Knots.between(INTERLEAVED, n, MOVING) for n in (3, 5))
    twists = RANDOM.normal(size=(few.n_rows, 6))
    np.testing.assert_allclose(
        many.of_slices(many.taken_over(twists, few)), few.of_slices(twists), atol=1e-12
    )


def matrix_of(knots, random, n_points=60):
    """A group of volumes whose points are seen in up to eight slices."""
    n, n_slices = len(knots.moving), len(knots.basis)
    root = random.normal(size=(n, n))
    weights = random.normal(size=(n, n_points, 8)).astype(np.float32)
    weights[random.uniform(size=weights.shape) < 0.3] = 0.0
    first = random.integers(0, n_slices - 7, (n, n_points)).astype(np.int32)
    jacobian = random.normal(size=(n, n_points, 6)).astype(np.float32)
    return GroupMatrix(knots, (root @ root.T).astype(np.float32), jacobian, weights, first, 3.0)


def written_down(matrix):
    """``H`` between all knots of all volumes, (n, M, 6, n, M, 6), not centred."""
    n_slices = len(matrix.knots.basis)
    of_slices = np.zeros((*matrix.first.shape, n_slices))
    for k in range(8):
        which = matrix.first + k
        np.put_along_axis(of_slices, which[..., None], matrix.weights[..., k, None], axis=2)
    parts = of_slices @ matrix.knots.basis
    slopes = np.einsum("nvm,nva->nmav", parts, matrix.jacobian)
    products = np.einsum("nmav,kpbv,nk->nmakpb", slopes, slopes, matrix.precision, optimize=True)
    return products / matrix.overcount


@pytest.mark.parametrize("moving", [np.ones(5, bool), MOVING])
def test_the_matrix_multiplies_as_if_it_were_written_down(moving):
    knots = Knots.between(INTERLEAVED, 3, moving)
    matrix = matrix_of(knots, np.random.default_rng(2))
    square = plainly(knots, written_down(matrix))
    steps = RANDOM.normal(size=(knots.n_rows, 6))
    expected = square @ steps.ravel()
    np.testing.assert_allclose(
        matrix.times(steps).ravel(), expected, atol=1e-5 * np.abs(square).max()
    )
    apart = written_down(matrix)
    for volume, own in enumerate(matrix.own):
        block = apart[volume, :, :, volume]
        block = block if moving[volume] else block.sum(axis=(0, 2))[None, :, None]
        if moving[volume]:
            np.testing.assert_allclose(
                own, block.reshape(len(own), -1), atol=1e-5 * np.abs(own).max()
            )


@pytest.mark.parametrize("moving", [np.ones(5, bool), MOVING])
def test_what_all_volumes_do_alike_moves_nothing(moving):
    knots = Knots.between(INTERLEAVED, 3, moving)
    matrix = matrix_of(knots, np.random.default_rng(3))
    alike = RANDOM.normal(size=(3 if moving.all() else 1, 6))
    steps = np.zeros((knots.n_rows, 6))
    steps[knots.row] = np.broadcast_to(alike, (5, 3, 6))
    apart = matrix.times(RANDOM.normal(size=steps.shape))
    assert np.abs(matrix.times(steps)).max() < 1e-12 * np.abs(apart).max()


def chain_of(random, sizes=(1, 3, 3, 1, 2)):
    """A chain of volumes, and the same written down."""
    links = random.uniform(0.5, 2.0, (len(sizes) - 1, 6))
    links[2] = 0.0
    blocks = []
    for size in sizes:
        root = random.normal(size=(6 * size, 9 * size))
        blocks.append(root @ root.T + 5.0 * np.eye(6 * size))
    whole = linalg.block_diag(*blocks)
    for end, link in zip(6 * np.cumsum(sizes), links, strict=False):
        whole[range(end - 6, end), range(end, end + 6)] = -link
        whole[range(end, end + 6), range(end - 6, end)] = -link
    return Chain(blocks, links), whole


def test_a_chain_is_solved_and_inverted_as_if_it_were_written_down():
    chain, whole = chain_of(np.random.default_rng(4))
    right = RANDOM.normal(size=(10, 6))
    np.testing.assert_allclose(chain.solve(right).ravel(), linalg.solve(whole, right.ravel()))
    inverse, ends = linalg.inv(whole), 6 * np.cumsum([0, 1, 3, 3, 1, 2])
    for volume, covariance in enumerate(chain.covariances):
        own = slice(ends[volume], ends[volume + 1])
        np.testing.assert_allclose(covariance, inverse[own, own], atol=1e-12)
    for end, across in zip(ends[1:], chain.across, strict=False):
        between = np.diag(inverse[end - 6 : end, end : end + 6])
        np.testing.assert_allclose(across, between * (end != ends[3]), atol=1e-12)


def test_increments_stop_at_the_end_of_a_run():
    knots = Knots.between(INTERLEAVED, 3, MOVING)
    follows = np.array([True, True, False, True])
    increments = Increments.of(knots, follows, np.ones(6))
    place = np.arange(knots.n_rows, dtype=float)
    assert set(increments.change @ place) == {1.0}
    links = {tuple(row) for row in increments.change.indices.reshape(-1, 2)}
    assert (knots.row[2, -1], knots.row[3, 0]) not in links
    assert len(links) == knots.n_rows - 2


def test_scales_of_increments_are_learnt_from_a_course_that_is_known():
    knots = Knots.between(INTERLEAVED, 4, np.ones(200, bool))
    increments = Increments.of(knots, np.ones(199, bool), np.ones(6))
    true = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    steps = true * RANDOM.standard_t(1, size=(knots.n_rows, 1)).clip(-20, 20)
    steps = steps * np.sign(RANDOM.normal(size=(knots.n_rows, 6)))
    twists = np.cumsum(steps, axis=0)
    known = np.zeros((knots.n_rows - 1, 6))
    for _ in range(40):
        increments = increments.learnt(twists, increments.weights(twists), known)
    ratios = increments.scale[0] / increments.scale[0, 0]
    np.testing.assert_allclose(ratios, true / true[0], rtol=0.02)


def apart(knots, chain):
    """A posterior in which volumes have nothing in common."""
    return Posterior(knots, chain, np.zeros((knots.n_rows, 6, 1)), np.ones((1, 1)))


def test_heads_stray_most_half_way_between_knots():
    """A Brownian bridge: a quarter of the variance in the middle, none at the knots."""
    knots = Knots.between(INTERLEAVED, 3, MOVING)
    increments = Increments.of(knots, np.ones(4, bool), np.full(6, 2.0))
    still = FoundCourse(np.zeros((knots.n_rows, 6)), increments, None, np.ones(5), 1, 0.0)
    strayed = between_knots(knots, still)
    assert not strayed[~MOVING].any()
    of_increment = (increments.scale[0, 0] / 2.0) ** 2 / increments.weights(still.twists)[0]
    half_way = (TIMES / 1.25) % 1.0
    expected = half_way * (1 - half_way) * of_increment
    np.testing.assert_allclose(strayed[1, :, 0, 0], expected, atol=1e-15)
    assert not strayed[1, TIMES == 0].any()


def test_how_far_a_head_strays_is_told_in_errors_of_its_course():
    """A volume that goes to and fro by 1.3 errors, one by 1.1, one that is merely elsewhere."""
    knots = Knots.between(INTERLEAVED, 3, MOVING)
    in_mm, error = np.array([1.0] * 3 + [50.0] * 3), 0.02
    own = np.diag((in_mm / error) ** 2)
    blocks = [np.kron(np.eye(len(np.unique(rows))), own) for rows in knots.row]
    posterior = apart(knots, Chain(blocks, np.zeros((4, 6))))
    away = knots.basis - knots.basis.mean(axis=0)
    of_noise = np.sqrt(6 * (away**2).sum(axis=1).mean()) * error
    shape = np.array([1.0, -1.0, 1.0])
    by_one = np.sqrt(((away @ shape) ** 2).mean())
    twists = np.zeros((knots.n_rows, 6))
    for volume, times in ((1, 1.3), (2, 1.1)):
        twists[knots.row[volume], 4] = times * of_noise / by_one * shape / 50.0
    twists[knots.row[4]] = 1.0
    increments = Increments.of(knots, np.ones(4, bool), in_mm)
    found = FoundCourse(twists, increments, posterior, np.ones(5), 1, 0.0)
    by_errors = motion_over_error(knots, found, in_mm)
    np.testing.assert_allclose(by_errors, [0.0, 1.3, 1.1, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(("by", "left"), [(1.5, 17), (2.5, 36)])
def test_volumes_that_merely_seem_to_move_do_not_make_all_of_them_move(by, left):
    """Sixteen in 30 beyond 1.2 standard errors: of all of them only where half move clearly."""
    course = CourseSolver.__new__(CourseSolver)
    is_dwi = np.arange(36) >= 6
    course.dwi = SimpleNamespace(gradients=SimpleNamespace(dwis=np.flatnonzero(is_dwi)))
    course.moving = np.ones(36, bool)
    course.drop_knots_at_rest(np.where(np.arange(36) < 19, 0.8, by))
    assert course.moving.sum() == left


def test_one_volume_beyond_noise_and_misfit_is_evidence():
    noise = np.tile(np.diag([1e-4] * 3 + [4e-8] * 3), (6, 1, 1))
    apart = noise * np.array([1.0, 1.5, 3.0, 1.0, 40.0, 3.0])[:, None, None]
    is_b0 = np.array([True, False, False, False, False, True])
    scatter = PeriodScatter(noise, apart, noise, noise, np.zeros((6, 4), bool))
    assert scatter.moving(is_b0, 1.0).tolist() == [False, False, True, False, True, False]
    quiet = replace(scatter, apart=np.minimum(apart, 3 * noise))
    assert not quiet.moving(is_b0, 1.0).any()
    assert not replace(scatter, by_misfit=20 * noise).moving(is_b0, 1.0).any()


@pytest.mark.parametrize(("apart_mm", "scale", "moved"), [
    (0.025, 1.0, True), (0.015, 1.0, False), (0.015, 0.5, True), (0.0075, 0.5, False),
])  # fmt: skip
def test_parts_of_b0_volumes_have_to_pull_apart_by_a_fiftieth_of_a_millimetre(
    apart_mm, scale, moved
):
    """Less may come from the motion of others; in a head of half the size, half as much."""
    noise = np.tile(np.diag([1e-6] + [1e-12] * 5), (2, 1, 1))
    apart = noise + np.diag([apart_mm**2] + [0.0] * 5)
    scatter = PeriodScatter(noise, apart, noise, noise, np.zeros((2, 4), bool))
    assert scatter.moving(np.array([True, False]), scale).tolist() == [moved, True]


@pytest.mark.parametrize("option", [1, 0, -3, True, "always", 2.5])
def test_other_options_are_refused(option):
    with pytest.raises(EddymotionError, match="expected auto, none, or a number of knots"):
        em.Joint(within_volume=option)


@pytest.mark.parametrize(
    ("asked", "moving", "expected"),
    [
        (None, 12, [4, 8, 18]),
        (None, 36, [4, 8, 8]),
        (5, 36, [4, 5, 5]),
        (30, 36, [4, 8, 30]),
    ],
)
def test_a_volume_gets_the_knots_that_were_asked_for(asked, moving, expected):
    course = CourseSolver.__new__(CourseSolver)
    course.n_knots, course.moving = asked, np.arange(max(36, moving)) < moving
    assert [course.knots_at(level) for level in LEVELS] == expected


@pytest.mark.parametrize(
    ("n_moved", "n_asked"), [(0, 0), (20, 20), (60, 36), (160, 36), (190, 62), (200, 72)]
)
def test_the_order_of_slices_is_asked_of_volumes_that_moved_and_of_some_at_rest(n_moved, n_asked):
    course = CourseSolver.__new__(CourseSolver)
    course.moving = np.random.default_rng(0).permutation(np.arange(200) < n_moved)
    asked = course.chosen_volumes(np.arange(200))
    assert len(np.unique(asked)) == 72
    assert course.moving[asked].sum() == n_asked


@pytest.fixture(scope="module")
def nods():
    """A few volumes that are scanned while the head nods in four of them, and the mean poses."""
    gradients = shelled_scheme({1000.0: 10}, 2)
    dwi, truth = simulate_within_volumes(
        gradients=gradients, head=procedural_head(6.0), voxel_size=6.0, snr=60, seed=2
    )
    mean, own = Trajectory.of_poses(truth.poses, dwi.center, dwi.affine)
    far = own.excursions(mean, dwi.center + 50 * np.r_[np.eye(3), -np.eye(3)]).max(axis=1)
    return dwi, truth.poses, em.Motion(mean), far > 0.2


def test_a_course_is_found_where_the_head_nods_and_nowhere_else(nods, monkeypatch):
    """From the mean of each volume, and with doubts of one more volume, at rest."""
    dwi, truth, motion, nodding = nods
    few = [replace(at, n_points=n) for at, n in zip(LEVELS, (1500, 1500, 4000), strict=True)]
    monkeypatch.setattr(solver, "LEVELS", tuple(few))
    noise = np.tile(np.diag([1e-4] * 3 + [4e-8] * 3), (len(dwi), 1, 1))
    doubted = nodding | (np.arange(len(dwi)) == 5)
    apart, lost = noise * np.where(doubted, 40.0, 1.0)[:, None, None], np.zeros((len(dwi), 25))
    estimate = Estimate(
        motion, noise, period_scatter=PeriodScatter(noise, apart, noise, noise, lost > 0)
    )
    model = get_model("gp", dwi.gradients)
    found = follow_head(dwi, estimate, motion, model, compute=Compute()).motion
    np.testing.assert_array_equal(found.trajectory.moving, nodding)
    off = rms_displacement(found.trajectory.poses(found.matrices), truth, dwi.center)[:, 3:-3]
    before = rms_displacement(motion.matrices[:, None], truth, dwi.center)[:, 3:-3]
    assert np.sqrt((off[nodding] ** 2).mean()) < 0.4 * np.sqrt((before[nodding] ** 2).mean())
    assert np.sqrt((off[~nodding] ** 2).mean()) < 0.25


def test_a_wrong_order_of_slices_gives_one_pose_a_volume_and_a_warning(nods, monkeypatch, caplog):
    dwi, _, motion, nodding = nods
    order = OrderEvidence(300.0, 3000.0, "slices in a true order")
    monkeypatch.setattr(CourseSolver, "evidence_of_order", lambda solver: order)
    noise = np.tile(np.diag([1e-4] * 3 + [4e-8] * 3), (len(dwi), 1, 1))
    apart = noise * np.where(nodding, 40.0, 1.0)[:, None, None]
    lost = np.zeros((len(dwi), dwi.n_slices), bool)
    estimate = Estimate(
        motion, noise, period_scatter=PeriodScatter(noise, apart, noise, noise, lost)
    )
    found = follow_head(dwi, estimate, motion, get_model("gp", dwi.gradients), compute=Compute())
    assert found.motion.trajectory is None
    np.testing.assert_array_equal(found.motion.matrices, motion.matrices)
    assert "slices in a true order" in found.motion.order_doubt
    assert found.motion.order_doubt in caplog.text
    assert found.motion.select(slice(3)).order_doubt == found.motion.order_doubt


@pytest.fixture(scope="module")
def problem(nods):
    """Its equations at a coarse level, and twists away from the solution."""
    dwi, _, motion, nodding = nods
    groups = VolumeGroup.all_of(dwi, get_model("gp", dwi.gradients), [dwi.gradients.dwis])
    lost = np.zeros((len(dwi), dwi.n_slices), bool)
    course = CourseSolver(dwi, motion, groups, nodding, lost, 3)
    knots = Knots.between(course.slicing, 3, nodding)
    volumes = log_rigid(motion.head, dwi.brain_center)
    jitter = np.random.default_rng(5).normal(size=(knots.n_rows, 6)) * np.r_[[0.3] * 3, [6e-3] * 3]
    level = replace(LEVELS[0], n_points=400)
    stacks, twists = course.stacks(level), volumes[knots.volume] + jitter
    return course.problem(level, knots, stacks, twists), twists


def test_a_volume_at_rest_is_read_again_only_where_it_has_moved_far(problem, monkeypatch):
    """A little further on it shows what its slopes tell: nearly what it is read as there."""
    problem, twists = problem
    problem, member = replace(problem), problem.members[-1]
    before, read = problem.sample(member, twists), []
    of_stack = SliceStack.read

    def spied(stack, *given, **options):
        read.append([one is stack for one in problem.stacks].index(True))
        return of_stack(stack, *given, **options)

    monkeypatch.setattr(SliceStack, "read", spied)
    still = member.volumes[~problem.knots.moving[member.volumes]]
    moving = member.volumes[problem.knots.moving[member.volumes]]
    near, far = twists.copy(), twists.copy()
    near[:, 0] += 0.25  # of 0.3 mm
    far[:, 0] += 0.4
    problem.sample(member, twists)
    assert not read
    shown = problem.sample(member, near)
    assert sorted(read) == moving.tolist()
    afresh = replace(problem).sample(member, near)
    known, at = ~(shown.missing | afresh.missing), np.isin(member.volumes, still)
    off, way = ((shown.values - one.values)[at][known[at]] for one in (afresh, before))
    assert np.sqrt((off**2).mean()) < 0.1 * np.sqrt((way**2).mean())
    read.clear()
    problem.sample(member, far)
    assert sorted(read) == member.volumes.tolist()


def plainly(knots, square):
    """Centre a matrix between all knots (n, M, 6, n, M, 6), and put those at rest together."""
    n, m = len(knots.moving), knots.n_knots
    between = np.eye(n) - 1 / n
    square = np.einsum("in,nmakpb,jk->imajpb", between, square, between, optimize=True)
    together = np.zeros((knots.n_rows, 6, n, m, 6))
    for volume, knot in np.ndindex(n, m):
        together[knots.row[volume, knot], range(6), volume, knot, range(6)] = 1.0
    together = together.reshape(knots.n_rows * 6, -1)
    return together @ square.reshape(n * m * 6, -1) @ together.T


def test_equations_of_a_course_are_those_of_all_knots_of_all_volumes(problem):
    problem, twists = problem
    gaps = [problem.sample(one, twists).missing.any(axis=0) for one in problem.members]
    problem = replace(problem, points=problem.points[~np.any(gaps, axis=0)])
    found = problem.linearise(twists)
    for member in problem.members:
        part = _Assembly(problem, member, twists)
        knots = Knots(problem.knots.basis, problem.knots.moving[member.volumes])
        of_slices = np.zeros((*part.samples.first.shape, len(knots.basis) + 8))
        for k in range(8):
            which = part.samples.first[..., None] + k
            np.put_along_axis(of_slices, which, part.samples.weights[..., k, None], axis=2)
        parts = of_slices[..., :-8] @ knots.basis
        jacobian = np.einsum("nvm,nav->nmav", parts, part.jacobian(slice(None)))
        weighted, P = jacobian * part.weights, part.P.astype(float)
        pull = np.einsum("nmav,nv->nma", weighted, P @ part.samples.values)
        square = np.einsum("nmav,kpbv,nk->nmakpb", weighted, jacobian, P, optimize=True)
        rows = np.unique(problem.knots.row[member.volumes])
        matrix = part.linearised()[1]
        overcount = matrix.overcount
        gradient = knots.summed(pull - pull.mean(axis=0)) / overcount
        close(found.gradient[rows], gradient, np.abs(gradient).max(axis=0), 1e-3)
        square = plainly(knots, square) / overcount
        size = np.sqrt(np.diag(square))
        unit = np.eye(square.shape[0]).reshape(-1, len(rows), 6)
        own = np.array([matrix.times(one).ravel() for one in unit])
        close(own, square, np.outer(size, size), 1e-3)


@pytest.mark.parametrize("n", [3, 12])
def test_points_that_say_the_same_count_once_whatever_all_volumes_do(n):
    """Blocks of 40 equal points, of volumes that are fitted by their mean."""
    random, n_blocks, copies = np.random.default_rng(n), 300, 40
    jacobian = random.normal(size=(n_blocks, n, 6)) * np.r_[[1.0] * 3, [50.0] * 3]
    between = np.eye(n) - 1 / n
    noise = random.normal(size=(n_blocks, n)) @ between
    pulls = copies * jacobian * noise[..., None]
    square = copies * np.einsum("bia,ij,bjc->iajc", jacobian, between, jacobian)
    found = find_overcount(pulls, square)
    assert found == pytest.approx(copies, rel=0.3)
    alike = 1e6 * np.cov(random.normal(size=(6, 9)))
    common = pulls + random.normal(size=(n_blocks, 1, 6)) * 1e3
    assert find_overcount(common, square + alike[:, None]) == pytest.approx(found, rel=1e-4)
    apart = np.kron(between, np.eye(6))
    inverse = np.linalg.pinv(apart @ square.reshape(6 * n, -1) @ apart, rcond=1e-9)
    by_blocks = np.diag(inverse @ np.cov(pulls.reshape(n_blocks, -1).T, bias=True) @ inverse)
    expected = np.median(n_blocks * by_blocks / np.diag(inverse))
    assert found == pytest.approx(expected, rel=0.05)


def test_motion_within_volumes_is_no_misfit(nods):
    """Noise is: read at the course, as much is left as without motion; at mean poses, more."""
    dwi, truth, motion, nodding = nods
    groups = VolumeGroup.all_of(dwi, get_model("gp", dwi.gradients), [dwi.gradients.dwis])
    lost = np.zeros((len(dwi), dwi.n_slices), bool)
    course = CourseSolver(dwi, motion, groups, nodding, lost, 12)
    means, level = log_rigid(motion.head, dwi.brain_center), replace(LEVELS[1], n_points=1500)
    knots = Knots.between(course.slicing, 12, nodding)
    at_means, rows = means[knots.volume], np.zeros((knots.n_rows, 6))
    nearest = knots.basis.argmax(axis=0)
    slices = log_rigid(truth.reshape(-1, 4, 4), dwi.brain_center).reshape(*truth.shape[:2], 6)
    rows[knots.row] = slices[:, nearest]
    stacks = course.stacks(level)
    left = []
    for twists in (rows, at_means):
        problem = course.problem(level, knots, stacks, twists)
        part = _Assembly(problem, problem.members[-1], twists)
        left.append(part.linearised()[1].overcount)
    assert left[0] < 0.6 * left[1]


def close(found, expected, size, part):
    np.testing.assert_allclose(found / size, expected / size, atol=part)


@pytest.fixture(scope="module")
def system(problem):
    """The linear system of a step from there."""
    problem, twists = problem
    in_mm, knots = np.array([1.0] * 3 + [50.0] * 3), problem.knots
    increments = Increments.of(knots, np.ones(problem.n_volumes - 1, bool), in_mm)
    damping = np.linspace(0.1, 1.2, problem.n_volumes)
    equations = problem.linearise(twists)
    return CourseSystem(equations, increments, increments.weights(twists), damping)


def test_damping_holds_volumes_against_each_other_alone(problem, system):
    problem, damping = problem[0], system.damping
    unit = np.eye(6 * problem.knots.n_rows).reshape(-1, problem.knots.n_rows, 6)
    found = np.array([system.apart(one).ravel() for one in unit])
    found = found.reshape(problem.knots.n_rows, 6, problem.knots.n_rows, 6)
    diagonal = np.concatenate([np.diag(one).reshape(-1, 6) for one in system.equations.own])
    for member in problem.members:
        knots = Knots(problem.knots.basis, problem.knots.moving[member.volumes])
        n, m = len(member.volumes), knots.n_knots
        rows = np.unique(problem.knots.row[member.volumes])
        share = np.where(knots.moving, 1.0, 1 / m)[:, None, None]
        held = damping[member.volumes, None, None] * share * diagonal[rows][knots.row]
        square = np.diag(held.ravel()).reshape(n, m, 6, n, m, 6)
        own = found[rows][:, :, rows].reshape(len(rows) * 6, -1)
        np.testing.assert_allclose(own, plainly(knots, square), atol=1e-9 * held.max())


def test_steps_and_errors_are_nearly_those_of_the_matrix_written_down(system):
    """Without what all volumes have in common, which no equations tell."""
    n_rows = system.equations.knots.n_rows
    unit = np.eye(6 * n_rows).reshape(-1, n_rows, 6)
    whole = np.array([system.times(one).ravel() for one in unit])
    inverse, in_mm = linalg.inv((whole + whole.T) / 2), system.increments.in_mm
    right = system.times(RANDOM.normal(size=(n_rows, 6)) / in_mm)
    steps = (system.solve(right), (inverse @ right.ravel()).reshape(n_rows, 6))
    found, expected = (system.equations.without_common(one) * in_mm for one in steps)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    change = np.kron(np.diff(np.eye(n_rows), axis=0), np.eye(6))
    variances = np.diag(change @ inverse @ change.T).reshape(-1, 6)
    ratios = system.posterior.of_increments / variances
    assert ratios.min() > 0.85  # both b=0 volumes have half of what they share counted twice
    assert ratios.max() < 1.5
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)


def test_errors_of_poses_are_those_of_the_knots_against_the_mean_of_the_group():
    """As by the matrix that leads from the twists of all knots to the steps of all slices."""
    knots = Knots.between(INTERLEAVED, 3, MOVING)
    blocks = []
    for rows in knots.row:
        root = RANDOM.normal(size=(2, 6 * len(np.unique(rows)), 6 * len(np.unique(rows))))
        blocks.append(root[0] @ root[0].T + np.eye(root.shape[1]))
    whole = linalg.block_diag(*[linalg.inv(one) for one in blocks])
    twists = RANDOM.normal(size=(knots.n_rows, 6)) * np.r_[[2.0] * 3, [0.2] * 3]
    increments = Increments.of(knots, np.ones(4, bool), np.ones(6))
    posterior = apart(knots, Chain(blocks, np.zeros((4, 6))))
    found = FoundCourse(twists, increments, posterior, np.ones(5), 1, 0.0)
    group = SimpleNamespace(volumes=np.arange(5))
    of_volumes, of_slices = covariances(knots, found, [group])
    of_slices = of_slices - between_knots(knots, found)
    steps = np.einsum("zm,nmk->nzk", knots.basis, np.eye(knots.n_rows)[knots.row])
    steps = np.einsum("nzk,kab->nzakb", steps, right_jacobians(twists)).reshape(5, 12, 6, -1)
    of_mean = steps.mean(axis=1) - steps.mean(axis=(0, 1))
    of_slice = steps - steps.mean(axis=(0, 1))
    for volume in range(5):
        expected = of_mean[volume] @ whole @ of_mean[volume].T
        np.testing.assert_allclose(of_volumes[volume], MOVING[volume] * expected, atol=1e-9)
        for at in range(12):
            expected = of_slice[volume, at] @ whole @ of_slice[volume, at].T
            np.testing.assert_allclose(of_slices[volume, at], MOVING[volume] * expected, atol=1e-9)


def test_a_warp_that_all_volumes_may_share_is_an_error_of_slices_and_not_of_volumes():
    knots = Knots.between(INTERLEAVED, 3, np.ones(5, bool))
    twists = RANDOM.normal(size=(knots.n_rows, 6)) * np.r_[[2.0] * 3, [0.2] * 3]
    inverse = np.linalg.inv(right_jacobians(twists))
    common = np.zeros((knots.n_rows, 6, 18))
    for knot in range(3):
        common[knots.row[:, knot], :, 6 * knot : 6 * knot + 6] = inverse[knots.row[:, knot]]
    blocks = [1e12 * np.eye(18)] * 5
    posterior = Posterior(knots, Chain(blocks, np.zeros((4, 6))), common, np.eye(18))
    increments = Increments.of(knots, np.ones(4, bool), np.ones(6))
    found = FoundCourse(twists, increments, posterior, np.ones(5), 1, 0.0)
    of_volumes, of_slices = covariances(knots, found, [SimpleNamespace(volumes=np.arange(5))])
    of_slices = of_slices - between_knots(knots, found)
    assert np.abs(of_volumes).max() < 1e-9
    away = ((knots.basis - knots.basis.mean(axis=0)) ** 2).sum(axis=1)
    expected = np.broadcast_to(away[:, None, None] * np.eye(6), of_slices.shape)
    np.testing.assert_allclose(of_slices, expected, atol=1e-9)


def displaced(motion, truth, dwi):
    """Return the errors of the slices' own part of the brain."""
    head = procedural_head(3.0)
    points = np.argwhere(head.brain)[::5] @ head.affine[:3, :3].T + head.affine[:3, 3]
    course = motion.trajectory
    poses = (
        np.repeat(motion.matrices[:, None], dwi.n_slices, axis=1)
        if course is None
        else course.poses(motion.matrices)
    )
    grid = Grid(dwi.shape, dwi.affine)
    return compare_trajectory(poses, truth.poses, points, grid, bvals=dwi.gradients.bvals).score()


@pytest.mark.slow
@pytest.mark.parametrize(("course", "left"), [("nods", 0.35), ("jumps", 0.5)])
def test_the_head_is_followed_through_volumes(course, left):
    dwi, truth = simulate_within_volumes(course, seed=2)
    one_pose = em.estimate_motion(dwi, estimator=em.Joint(within_volume="none"))
    motion = em.estimate_motion(dwi, n_threads=2)
    before, after = (displaced(m, truth, dwi) for m in (one_pose, motion))
    assert after.rms_mm < left * before.rms_mm
    assert one_pose.trajectory is None
    mean, own = Trajectory.of_poses(truth.poses, dwi.center, dwi.affine)
    far = own.excursions(mean, dwi.center + 50 * np.r_[np.eye(3), -np.eye(3)]).max(axis=1)
    moved = dwi.gradients.dwis[far[dwi.gradients.dwis] > 1.0]  # b=0 volumes are few: more is asked
    assert motion.trajectory.moving[moved].all()
    errors = motion.trajectory.standard_errors
    own = rigid_parameters(motion.trajectory.poses(motion.matrices), dwi.center)
    off = np.abs(own - rigid_parameters(truth.poses, dwi.center))
    covered = (off < 1.96 * errors)[motion.trajectory.moving][:, 5:-5]
    assert 0.85 < covered.mean() <= 1.0


@pytest.mark.slow
def test_a_wrong_order_of_slices_is_noticed_in_images(caplog):
    dwi, _ = simulate_within_volumes("jumps", seed=5)
    times = 4.0 * np.arange(dwi.n_slices) / dwi.n_slices
    slicing = Slicing.of({"SliceTiming": times.tolist()}, dwi.shape)
    told = replace(dwi, acquisition=replace(dwi.acquisition, slicing=slicing))
    found = em.estimate_motion(told, estimator=em.Joint(within_volume=6), n_threads=2)
    none = em.estimate_motion(told, estimator=em.Joint(within_volume="none"), n_threads=2)
    assert found.trajectory is None
    np.testing.assert_array_equal(found.matrices, none.matrices)
    assert "even slices before odd ones, upwards, 3 at a time" in found.order_doubt
    assert found.order_doubt in caplog.text
    assert none.order_doubt is None


@pytest.mark.slow
def test_a_head_at_rest_within_volumes_gets_the_answer_of_one_pose():
    dwi, _ = simulate_within_volumes("moderate", seed=3)
    auto = em.estimate_motion(dwi)
    none = em.estimate_motion(dwi, estimator=em.Joint(within_volume="none"))
    assert auto.trajectory is None
    np.testing.assert_array_equal(auto.matrices, none.matrices)
    np.testing.assert_array_equal(auto.standard_errors, none.standard_errors)
