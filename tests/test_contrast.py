# SPDX-License-Identifier: Apache-2.0
"""The b=0 signal as a function of the diffusion-weighted one and of the place."""

import numpy as np
import pytest

from eddymotion.estimation.contrast.basis import Basis, Moments
from eddymotion.estimation.contrast.clusters import N_POINTS


@pytest.mark.parametrize("with_spread", [True, False])
def test_predicted_gradient_equals_finite_differences(with_spread):
    """Mean and standard deviation change along a line, the place is held."""
    random = np.random.default_rng(1)
    n = 50
    mean, spread = random.uniform(1, 9, (2, n, N_POINTS))
    slopes = random.normal(size=(2, n, N_POINTS, 3))
    place = random.uniform(-1, 1, (n, N_POINTS, 3))
    moments = Moments(mean, spread if with_spread else None, slopes[0], slopes[1])
    basis = Basis.over(moments, 3)
    function = random.normal(size=len(basis.ridge()))
    way, tiny = np.array([0.6, -0.5, 0.4]), 2e-4

    def predict(step):
        there = spread + step * slopes[1] @ way if with_spread else None
        return basis.at(mean + step * slopes[0] @ way, there, place) @ function

    found = basis.slopes(moments, place, function) @ way
    expected = (predict(tiny) - predict(-tiny)) / (2 * tiny)
    # the hats have corners, which a step in a hundred crosses
    assert np.median(np.abs(found - expected)) < 0.02 * np.std(expected)
