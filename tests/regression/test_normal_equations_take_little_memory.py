# SPDX-License-Identifier: Apache-2.0
"""Sums need no copy of the normal matrix a chunk; no step goes unjudged, or is in vain."""

import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation.equations import coupled
from eddymotion.estimation.equations.coupled import CoupledProblem, KeptMatrix
from eddymotion.estimation.equations.normal_equations import NormalEquations
from eddymotion.estimation.equations.samples import Residuals, Samples
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.equations.unknowns import Poses, Unknowns
from eddymotion.estimation.fields.unknowns import UnknownFields
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import jittered_points
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid
from eddymotion.models import AverageModel, get_model
from eddymotion.simulation import shelled_scheme

N, N_POINTS = 60, 20_000


def summed(n_threads):
    """Normal equations of many volumes with quadratic fields, and the most that they took (MB)."""
    random = np.random.default_rng(0)
    points = random.normal(size=(N_POINTS, 3)) * 40
    scheme = shelled_scheme({1000: N}, 0)
    blocks = [Poses(np.zeros(3)), UnknownFields(scheme, N_TERMS["quadratic"], np.zeros(3))]
    problem = CoupledProblem(
        [], scheme, AverageModel(), points, np.zeros(3), blocks=blocks, n_threads=n_threads
    )
    eddy = EddyCurrents.none(N, "quadratic", np.array([0.0, 1, 0]), np.zeros(3))
    motion = Motion(Motion.identity(N).matrices, eddy_currents=eddy)
    values = random.normal(size=(4, N, N_POINTS)).astype(np.float32)
    missing = np.zeros((N, N_POINTS), bool)
    samples = Samples(motion, values[0], values[1:], missing)
    precision = AverageModel().precision(scheme)
    with one_blas_thread():
        tracemalloc.start()
        residuals = Residuals(samples, precision, values[0], np.ones(N_POINTS))
        weights = np.ones(N_POINTS)
        found = (
            problem.gradients_by_part(residuals, weights),
            problem.normal_matrix(residuals, weights),
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return found, peak / 1e6


def test_threads_share_one_matrix(monkeypatch):
    monkeypatch.setattr(coupled, "CHUNK_BYTES", 2**18)
    (gradients, hessian), _ = summed(1)
    (other_gradients, other_hessian), peak = summed(8)
    assert np.array_equal(hessian, other_hessian)
    assert np.array_equal(gradients, other_gradients)
    assert np.array_equal(hessian, hessian.T)
    assert peak < 8 * hessian.nbytes / 1e6  # a queue of products took fourteen times as much


def test_the_diagonal_of_the_inverse_is_that_of_the_solution():
    random = np.random.default_rng(1)
    root = random.normal(size=(12, 40))
    hessian = root @ root.T
    hessian[5] = hessian[:, 5] = 0.0  # nothing moves it
    for directions in None, np.eye(6)[:, 1:]:
        unknowns = Unknowns([Poses(np.zeros(3), directions)])
        system = NormalEquations(0.0, 60, hessian, random.normal(size=(4, 12)), unknowns)
        expected = np.diag(system.solve(np.eye(12))).reshape(2, 6)
        assert system.inverse_diagonal("poses") == pytest.approx(expected)
        assert system.inverse_diagonal("poses")[0, 5] == 0


def test_what_volumes_show_is_let_go_of_before_halves_are_solved(still, monkeypatch):
    volumes = still.gradients.dwis[:5]
    splines = [Spline.of(still.volume(volume)) for volume in volumes]
    points = jittered_points(still.mask, still.affine, 4000, np.random.default_rng(0))
    problem = CoupledProblem(
        splines, still.gradients.select(volumes), AverageModel(), points, still.brain_center
    )
    solution = Solution(problem, Motion.identity(5))
    shown, held, plain = weakref.ref(solution.found.samples.slopes), [], NormalEquations.step
    monkeypatch.setattr(
        NormalEquations,
        "step",
        lambda self, *name: held.append(shown() is not None) or plain(self, *name),
    )
    assert np.isfinite(solution.squares_of_halves()).all()
    assert held == [True] + 6 * [False]
    assert 0.1 < solution.recovered <= 1


def test_pulls_of_all_slices_are_the_right_side(still, displaced):
    solution = Solution(*displaced)
    weighted, alike = solution.pulls_of_slices(still)
    of_all = solution.system.right.reshape(6, 6)
    np.testing.assert_allclose(
        weighted.sum(axis=2), of_all, rtol=1e-3, atol=1e-4 * np.abs(of_all).max()
    )
    assert weighted.shape == alike.shape == (6, 6, still.n_slices)
    far = solution.contradictions(still, alike)[0] @ np.diag([1, 1, 1, 50, 50, 50])
    assert 0.02 < np.sqrt((far**2).mean()) < 1.0  # as far as the volumes were displaced


def test_how_short_steps_are_is_read_at_few_points_of_one_other_place(displaced, monkeypatch):
    problem, start = displaced
    solution, read, plain = Solution(problem, start), [], CoupledProblem.sample
    expected = Solution(problem, start).recovered
    assert np.isfinite(solution.squares_of_halves()).all()
    monkeypatch.setattr(
        CoupledProblem, "sample", lambda self, motion: read.append(motion) or plain(self, motion)
    )
    assert solution.recovered == expected
    assert len(read) == 1
    assert problem.farthest(read[0], start) > 0


def test_a_last_step_that_fits_worse_is_not_returned(still, monkeypatch):
    volumes = still.gradients.dwis[:5]
    splines = [Spline.of(still.volume(volume)) for volume in volumes]
    points = jittered_points(still.mask, still.affine, 2000, np.random.default_rng(0))
    problem = CoupledProblem(
        splines, still.gradients.select(volumes), AverageModel(), points, still.brain_center
    )
    far = np.zeros((5, 6))
    far[:, 0] = [9, -9, 9, -9, 0]
    monkeypatch.setattr(NormalEquations, "step", lambda _: far)
    start = Motion.identity(5)
    found, descent, _ = problem.solve(start, 1, 1e-3)
    assert np.array_equal(found.matrices, start.matrices)
    assert len(descent.costs) == 1


@pytest.fixture
def displaced(still):
    """Six volumes at rest, and a motion that is tenths of a millimetre off."""
    volumes = still.gradients.dwis[:6]
    splines = [Spline.of(still.volume(volume)) for volume in volumes]
    points = jittered_points(still.mask, still.affine, 2000, np.random.default_rng(0))
    problem = CoupledProblem(
        splines, still.gradients.select(volumes), AverageModel(), points, still.brain_center
    )
    away = np.random.default_rng(1).normal(scale=[0.1] * 3 + [0.002] * 3, size=(6, 6))
    return problem, problem.moved(Motion.identity(6), away - away.mean(axis=0))


def test_a_matrix_that_is_kept_leads_to_the_same_poses(displaced, monkeypatch):
    problem, start = displaced
    matrices = []
    plain = CoupledProblem.normal_matrix
    monkeypatch.setattr(
        CoupledProblem,
        "normal_matrix",
        lambda self, *given: matrices.append(self.steady_mm) or plain(self, *given),
    )
    anew, kept = (replace(problem, steady_mm=mm).solve(start, 20, 1e-4)[0] for mm in (0, 1))
    assert problem.farthest(anew, start) > 0.1
    assert problem.farthest(anew, kept) < 2e-3
    assert matrices.count(1) == 1 < matrices.count(0)


def test_what_the_last_step_saw_tells_the_errors(displaced, monkeypatch):
    problem, start = displaced
    found, _, seen = problem.solve(start, 20, 1e-3)
    anew = Solution(problem, found)
    expected, share = anew.covariances(), anew.recovered
    monkeypatch.setattr(CoupledProblem, "sample", None)  # nothing is read again
    told = Solution.of(problem, found, seen)
    assert problem.farthest(told.motion, found) < 5e-3
    np.testing.assert_allclose(told.covariances(), expected, atol=0.02 * np.abs(expected).max())
    monkeypatch.undo()
    assert told.recovered == pytest.approx(share, abs=0.02)


def test_steps_that_do_not_end_leave_the_errors_to_another_reading(displaced):
    problem, start = displaced
    found, descent, seen = problem.solve(start, 1, 1e-6)
    assert not descent.ended
    assert seen is None
    assert Solution.of(problem, found, seen).motion is found


def test_steps_end_where_noise_does_more(displaced):
    problem, start = displaced
    exact, descent, _ = problem.solve(start, 20, 1e-5)
    near, short, _ = problem.solve(start, 20, 1e-5, 0.2)
    noise = problem.length(exact, problem.evaluate(exact).chance())
    assert short.n_steps < descent.n_steps
    left = log_rigid(np.linalg.inv(near.matrices) @ exact.matrices, problem.center)
    assert 0 < problem.length(exact, left) < 0.2 * noise


def test_what_is_read_to_fit_the_model_tells_the_first_step_and_is_let_go_of(
    displaced, monkeypatch
):
    """The model sees the same as when the volumes are read for it alone."""
    problem, start = displaced
    problem = replace(problem, model=get_model("gp", problem.gradients))
    read, plain = [], CoupledProblem.sample
    monkeypatch.setattr(
        CoupledProblem, "sample", lambda self, motion: read.append(motion) or plain(self, motion)
    )
    kept = KeptMatrix.begun(problem, start)
    alone = problem.with_model_fitted(start)
    assert kept.problem.model == alone.model
    shown = weakref.ref(kept.first)
    found, _, _ = kept.problem.solve(start, 5, 1e-3, kept=kept)
    assert sum(motion is start for motion in read) == 1
    assert kept.first is None
    del kept
    assert shown() is None
    np.testing.assert_array_equal(found.matrices, alone.solve(start, 5, 1e-3)[0].matrices)
