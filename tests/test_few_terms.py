# SPDX-License-Identifier: Apache-2.0
"""Products with a precision matrix by few combinations of the volumes, where these are all."""

import numpy as np
import pytest

from eddymotion.estimation.equations.few_terms import Filter
from eddymotion.models import AverageModel, get_model
from eddymotion.simulation import shelled_scheme

MANY = shelled_scheme({1000.0: 190, 3000.0: 100}, 10)


@pytest.mark.parametrize(
    ("model", "most"),
    [(AverageModel(), 3), (get_model("gp", MANY), 2 * 45 + 3)],
    ids=["average", "gp"],
)
def test_few_terms_are_found_and_give_the_same_product(model, most):
    precision = model.precision(MANY)
    few = Filter.of(precision)
    assert few.factors is not None
    assert few.factors[0].shape[1] <= most
    values = np.random.default_rng(0).normal(size=(len(MANY), 500)).astype(np.float32)
    np.testing.assert_allclose(few @ values, precision @ values, atol=3e-6)
    np.testing.assert_allclose(few.leverage, np.diag(precision), atol=1e-7)


def test_a_matrix_of_more_terms_is_used_as_it_is():
    random = np.random.default_rng(0)
    root = random.normal(size=(40, 60))
    precision = root @ root.T / 60
    whole = Filter.of(precision)
    assert whole.factors is None
    values = random.normal(size=(40, 7)).astype(np.float32)
    np.testing.assert_allclose(whole @ values, precision @ values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("n", [2, 40])
def test_predictions_are_what_the_precision_leaves(n, alone):
    """With factors, and with a whole matrix, which few volumes have."""
    precision = AverageModel().precision(MANY.select(MANY.shells[0][:n]))
    smoother = Filter.of(precision)
    assert (smoother.factors is None) == (n == 2)
    shown = np.random.default_rng(1).normal(size=(n, 50)).astype(np.float32)
    leverage = np.diag(precision) if alone else None
    taken = precision @ shown / (1.0 if leverage is None else leverage[:, None])
    found = shown
    for matrix in reversed(smoother.predictors(leverage)):
        found = matrix @ found
    np.testing.assert_allclose(found, shown - taken, atol=1e-6)
