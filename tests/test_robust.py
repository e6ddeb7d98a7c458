# SPDX-License-Identifier: Apache-2.0
"""Robust weights, covariances and spline bases, beside those of SciPy and least squares."""

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import BSpline
from scipy.optimize import minimize_scalar

from eddymotion.images.lattice import spline_matrix
from eddymotion.robust import Cauchy, known_medians, robust_deviation, sandwich


def test_weights_lead_to_the_most_likely_middle():
    """Reweighted means of Cauchy values end where SciPy's likelihood is largest."""
    values = stats.cauchy.rvs(3.0, 0.5, size=200, random_state=1)
    spread, middle = Cauchy(np.float64(0.25)), np.median(values)
    for _ in range(200):
        weights = spread.weights((values - middle) ** 2)
        middle = (weights * values).sum() / weights.sum()
    best = minimize_scalar(
        lambda at: -stats.cauchy.logpdf(values, at, 0.5).sum(), (2.5, 3.0, 3.5), tol=1e-10
    )
    assert middle == pytest.approx(best.x, abs=1e-6)


def test_the_cost_is_the_likelihood_but_for_the_scale():
    values = stats.cauchy.rvs(size=50, random_state=2)
    spread = Cauchy.of(values**2)
    scale = np.sqrt(spread.square)
    expected = -stats.cauchy.logpdf(values, scale=scale).mean() - np.log(np.pi) + np.log(scale)
    assert spread.cost(values**2) == pytest.approx(expected)


def test_the_deviation_is_that_of_scipy():
    values = stats.norm.rvs(size=999, random_state=3)
    expected = stats.median_abs_deviation(values, center=lambda *_, **__: 0.0, scale="normal")
    assert robust_deviation(values) == pytest.approx(expected, rel=1e-5)


def test_a_sandwich_is_the_covariance_of_a_mean():
    """Each value adds its n-th part to the mean."""
    values = np.random.default_rng(4).normal(size=(2, 40))
    away = (values - values.mean(axis=1, keepdims=True)) / 40
    assert sandwich(away, n_fitted=1) == pytest.approx(np.cov(values) / 40)


@pytest.mark.parametrize("margin", [1, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_splines_are_those_of_scipy_between_the_ends_and_constant_beyond(margin, order):
    n = 9
    ends = margin, n - 1 - margin
    within = np.linspace(*ends, 50)
    basis = BSpline(np.arange(-2.0, n + 2), np.eye(n), 3)
    found = spline_matrix(within, n, order, margin=margin)
    assert found == pytest.approx(basis(within, order), abs=1e-12)
    beyond = spline_matrix(np.array([ends[0] - 3.3, ends[1] + 0.4]), n, order, margin=margin)
    assert beyond == pytest.approx(0 * beyond if order else basis(np.array(ends)), abs=1e-12)


def test_medians_of_rows_are_those_of_what_is_known_of_each():
    random = np.random.default_rng(4)
    values = random.normal(size=(5, 40, 7))
    values[random.random(values.shape) < 0.4] = np.nan
    values[0, 0], values[0, 1, :3], values[0, 2] = np.nan, [np.inf, -np.inf, 1.0], 1.0
    found = known_medians(values)
    for row, median in zip(values.reshape(-1, 7), found.ravel(), strict=True):
        known = row[np.isfinite(row)]
        assert median == np.median(known) if len(known) else np.isnan(median)
