# SPDX-License-Identifier: Apache-2.0
"""A few steep places determine a field, and only some of the points the normal matrix.

In a series with six volumes at b=500, steps of one of them were more than twice as long as they
should be: it went back and forth by a quarter of a millimetre, and the last level took all the
steps that it may.
"""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.normal_equations import turns_between
from eddymotion.estimation.equations.samples import Residuals, Samples
from eddymotion.estimation.equations.unknowns import Poses
from eddymotion.estimation.fields.unknowns import UnknownFields
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.models import AverageModel
from eddymotion.simulation import shelled_scheme

N, N_POINTS = 30, 20_000


@pytest.fixture(scope="module")
def problem_and_residuals():
    random, center = np.random.default_rng(0), np.zeros(3)
    scheme = shelled_scheme({1000: N}, 0)
    n_terms = N_TERMS["quadratic"]
    blocks = [Poses(center), UnknownFields(scheme, n_terms, center)]
    points = random.normal(size=(N_POINTS, 3)) * 40
    problem = CoupledProblem([], scheme, AverageModel(), points, center, blocks=blocks)
    eddy = EddyCurrents.none(N, "quadratic", np.array([0.0, 1, 0]), center)
    motion = Motion(Motion.identity(N).matrices, eddy_currents=eddy)
    values = random.normal(size=(4, N, N_POINTS)).astype(np.float32)
    values[1:, :, random.choice(N_POINTS, 40, replace=False)] *= 30
    samples = Samples(motion, values[0], values[1:], np.zeros((N, N_POINTS), bool))
    precision = AverageModel().precision(scheme)
    return problem, Residuals(samples, precision, values[0], np.ones(N_POINTS))


def test_blocks_of_single_volumes_are_those_of_all_points(problem_and_residuals):
    problem, residuals = problem_and_residuals
    assert len(problem.points_for_matrix(residuals)) < N_POINTS / 5
    hessian = problem.normal_matrix(residuals, np.ones(N_POINTS))
    np.testing.assert_array_equal(hessian, hessian.T)
    assert np.linalg.eigvalsh(hessian).min() > -1e-6 * np.abs(hessian).max()
    between = hessian.reshape(N, len(problem.unknowns), N, -1)
    jacobian = problem.jacobian(residuals, slice(None)).astype(float)
    for volume, columns in enumerate(jacobian):
        expected = residuals.precision[volume, volume] * columns @ columns.T
        size = np.sqrt(np.diag(expected))
        off = (between[volume, :, volume] - expected) / size / size[:, None]
        assert np.abs(off).max() < 1e-3


def test_poses_alone_need_no_more_points(problem_and_residuals):
    """Longer steps took them farther along what is not determined."""
    with_fields, residuals = problem_and_residuals
    problem = replace(with_fields, blocks=with_fields.blocks[:1])
    weights, points = np.ones(N_POINTS), problem.points_for_matrix(residuals)
    assert len(points) < N_POINTS
    columns = problem.columns(residuals, weights, points).astype(float)
    expected = (columns @ columns.T).reshape(N, 6, N, 6) * residuals.precision[:, None, :, None]
    found = problem.normal_matrix(residuals, weights)
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-3, atol=tolerance)


def test_a_turn_leads_from_one_product_to_the_other():
    random, size = np.random.default_rng(1), np.array([1.0, 50, 3, 1])
    some, others = (
        (columns := random.normal(size=(5, 4, 20)) * size[:, None]) @ columns.swapaxes(1, 2)
        for _ in range(2)
    )
    turns = turns_between(some, others)
    np.testing.assert_allclose(turns @ some @ turns.swapaxes(1, 2), others, rtol=1e-3, atol=0.1)
    nothing = turns_between(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    np.testing.assert_allclose(nothing[0], np.eye(4), atol=1e-9)
