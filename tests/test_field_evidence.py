# SPDX-License-Identifier: Apache-2.0
"""How large eddy-current fields are, by what they have in common and by what each has alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from eddymotion.estimation.fields.evidence import weigh_fields
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.simulation import shelled_scheme

SCHEME = shelled_scheme({1000: 20, 3000: 30}, 1)
SCHEME = SCHEME.select(SCHEME.dwis)
N_TERMS, LINEAR = 9, slice(0, 3)
COUNTED = 4.0
"""Times that the normal equations count each point."""


def weighed(coefficients, noise):
    """Evidence of linear and quadratic fields that were estimated with errors, and the prior."""
    variances = np.full(coefficients.shape, noise**2)
    system = SimpleNamespace(
        covariances=lambda block: np.einsum("nk,kl->nkl", variances, np.eye(N_TERMS)),
        inverse_diagonal=lambda block: variances / COUNTED,
    )
    eddy = EddyCurrents(coefficients, np.array([0.0, 1.0, 0.0]), np.zeros(3))
    return weigh_fields(eddy, SCHEME, system)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_what_follows_the_gradients_and_what_is_each_volumes_own_are_measured(noise):
    random, n = np.random.default_rng(1), len(SCHEME)
    by_gradients = SCHEME.qvecs @ random.normal(size=(3, N_TERMS)) + random.normal(size=N_TERMS)
    of_size = 0.8 / (by_gradients - by_gradients.mean(axis=0)).std(axis=0)
    by_gradients = by_gradients * of_size
    by_gradients[:, LINEAR] /= 2
    found = []
    for _ in range(40):
        own = random.normal(scale=0.2, size=(n, N_TERMS))
        own[:, LINEAR] = 0.0
        errors = random.normal(scale=noise, size=(n, N_TERMS))
        (linear, quadratic), prior = weighed(by_gradients + own + errors, noise)
        found.append([linear.response_mm, linear.own_mm, quadratic.response_mm, quadratic.own_mm])
        assert linear.noise_mm == pytest.approx(noise)
        assert linear.is_there
        assert quadratic.is_there
        strength = prior.precision / COUNTED
        expected = np.maximum([linear.own_mm, quadratic.own_mm], 0.01) ** -2.0
        np.testing.assert_allclose(strength, np.repeat(expected, [3, 6]))
    mean = np.sqrt((np.array(found) ** 2).mean(axis=0))
    np.testing.assert_allclose(mean[[0, 2, 3]], [0.4, 0.8, 0.2], rtol=0.08)
    assert mean[1] < 0.3 * noise


def test_fields_of_nothing_but_noise_are_seldom_taken_for_a_response():
    """As often as their p says, or a little less often."""
    random = np.random.default_rng(2)
    p = [
        one.p_response
        for _ in range(200)
        for one in weighed(random.normal(scale=0.1, size=(len(SCHEME), N_TERMS)), 0.1)[0]
    ]
    for level in (0.02, 0.1, 0.3):
        assert 0.4 * level < np.mean(np.array(p) < level) < 1.3 * level
