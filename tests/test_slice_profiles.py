# SPDX-License-Identifier: Apache-2.0
"""What the other slices of a volume let expect of one, and what falls out of it."""

import numpy as np
import pytest

from eddymotion.estimation.outliers import SliceFit, score_slices
from eddymotion.estimation.outliers.profiles import (
    expected_from,
    scatter_of_slices,
    scatter_of_volumes,
    slice_correlation,
)
from eddymotion.robust import robust_deviation

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
    smooth = np.linalg.cholesky(slice_correlation(N_SLICES, 3.0, 1e-6))
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
    kernel = slice_correlation(9, 2.0, 0.1)
    expected, deviation = expected_from(away, known, kernel)
    for volume, index in np.ndindex(away.shape):
        others = np.flatnonzero(known[volume] & (np.arange(9) != index))
        weights = np.linalg.solve(kernel[np.ix_(others, others)], kernel[others, index])
        value = weights @ away[volume, others]
        variance = kernel[index, index] - weights @ kernel[others, index]
        counted = away[volume, index] if known[volume, index] else 0.0
        assert expected[volume, index] == pytest.approx(value, abs=1e-5 * (1 + abs(counted)))
        assert deviation[volume, index] ** 2 == pytest.approx(variance, rel=1e-4)


def known(values):
    return values[np.isfinite(values)]


@pytest.mark.parametrize("n_volumes", [6, 29, 30, 66])
def test_scatter_is_that_of_each_slice_and_of_each_volume_alone(n_volumes):
    """From 30 volumes on a slice has its own, where that is more than its neighbourhood's."""
    random = np.random.default_rng(n_volumes)
    size = np.abs(random.normal(size=(n_volumes, N_SLICES))) * random.uniform(0.2, 5, N_SLICES)
    size[random.random(size.shape) < 0.1] = np.nan
    size[:, 20:27] = size[3] = size[4, 4:] = np.nan
    found = scatter_of_slices(size)
    assert np.isnan(found[20:27]).all()
    for index in np.flatnonzero(np.isfinite(found)):
        near, own = known(size[:, max(0, index - 2) : index + 3]), known(size[:, index])
        among = [near, own] if len(own) >= 30 else [near]
        assert found[index] == max(map(robust_deviation, among))
    of_rows = [max(1.0, robust_deviation(known(row))) if len(known(row)) >= 5 else 1.0
               for row in size]  # fmt: skip
    np.testing.assert_array_equal(scatter_of_volumes(size), of_rows)
