# SPDX-License-Identifier: Apache-2.0
"""What the other slices of a volume let expect of one, and what falls out of it."""

import numpy as np
import pytest

from eddymotion.estimation.outliers import SliceFit, score_slices
from eddymotion.estimation.outliers.profiles import correlation_of, expected_from

N_VOLUMES, N_SLICES, ERROR = 6, 36, 0.006
HEIGHT = np.arange(N_SLICES)
BUNDLE = 0.25 * np.exp(-(((HEIGHT - 15) / 6.0) ** 4))
"""What a bundle takes from the one volume whose direction it runs along."""


def fits_of(shares):
    points, square = np.full(N_SLICES, 500), np.full(N_SLICES, 0.01)
    return [SliceFit(share, np.full(N_SLICES, ERROR), square, points) for share in shares]


@pytest.fixture(params=range(5))
def shares(request):
    """Shares of six volumes that their model predicts badly, one of them worst."""
    random, size = np.random.default_rng(request.param), (N_VOLUMES, N_SLICES)
    smooth = np.linalg.cholesky(correlation_of(N_SLICES, 3.0, 1e-6))
    shares = 1 + 0.04 * random.standard_normal(size) @ smooth.T
    shares += ERROR * random.standard_normal(size)
    shares[3] -= BUNDLE
    return shares


def test_a_bundle_that_one_direction_sees_is_no_lost_signal(shares):
    assert not score_slices(fits_of(shares)).flagged.any()


def test_slices_that_lost_signal_within_the_bundle_are_found(shares):
    lost = [11, 12, 28]
    shares[3, lost] *= 0.4
    outliers = score_slices(fits_of(shares))
    assert outliers.flagged[3, lost].all()
    assert outliers.flagged.sum() <= len(lost) + 2
    np.testing.assert_allclose(outliers.ratio[3, lost], 0.4, atol=0.1)


def test_what_is_usual_in_a_shell_is_no_lost_signal():
    shares = 1 + 0.01 * np.random.default_rng(4).standard_normal((40, N_SLICES))
    shares[30:, 20] -= 0.3
    groups = np.arange(30), np.arange(30, 40)
    assert score_slices(fits_of(shares)).flagged[30:, 20].all()
    assert not score_slices(fits_of(shares), groups=groups).flagged.any()


def test_slices_are_expected_as_by_explicit_regression():
    random = np.random.default_rng(1)
    away, known = random.normal(size=(2, 9)), random.random((2, 9)) < 0.6
    kernel = correlation_of(9, 2.0, 0.1)
    expected, deviation = expected_from(away, known, kernel)
    for volume, index in np.ndindex(away.shape):
        others = np.flatnonzero(known[volume] & (np.arange(9) != index))
        weights = np.linalg.solve(kernel[np.ix_(others, others)], kernel[others, index])
        value = weights @ away[volume, others]
        variance = kernel[index, index] - weights @ kernel[others, index]
        counted = away[volume, index] if known[volume, index] else 0.0
        assert expected[volume, index] == pytest.approx(value, abs=1e-5 * (1 + abs(counted)))
        assert deviation[volume, index] ** 2 == pytest.approx(variance, rel=1e-4)
