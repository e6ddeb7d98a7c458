# SPDX-License-Identifier: Apache-2.0
"""A head that moves between interleaved slices leaves a comb: no slice is lost, no pose fits."""

from dataclasses import replace

import numpy as np
import pytest
from report_cases import with_lost_slices

from eddymotion.estimation import assess
from eddymotion.estimation.outliers import reasons_beyond_repair
from eddymotion.estimation.outliers.misfits import LEAST_SHARE, Misfits
from eddymotion.simulation import shelled_scheme

COMB = 10


@pytest.fixture(scope="module")
def combed(moving):
    """Every other slice of a volume shows the head two voxels further to the front."""
    signal = np.array(moving.signal)
    signal[:, 2:, ::2, COMB] = signal[:, :-2, ::2, COMB]
    return replace(moving, signal=signal)


def test_a_comb_is_beyond_repair_and_no_other_volume_is(combed, moving, truth):
    quality = assess(combed, truth)
    reasons = reasons_beyond_repair(quality.outliers)
    assert list(reasons) == [COMB]
    assert reasons[COMB].startswith("no pose agrees with its prediction: ")
    assert not quality.outliers.flagged[COMB].mean() > 0.2
    assert not reasons_beyond_repair(assess(moving, truth).outliers)


def test_lost_slices_are_no_misfit(moving, truth):
    dropped = with_lost_slices(moving)
    quality = assess(dropped, truth)
    few, most = 5, 12
    usual = np.median(quality.correlation[moving.gradients.dwis])
    assert quality.correlation[few] < usual - 0.03
    assert quality.outliers.misfits.times[few] < 1.5
    assert list(reasons_beyond_repair(quality.outliers)) == [most]


@pytest.mark.parametrize("n", [6, 30])
def test_out_is_what_a_fit_is_better_without(n):
    """Just above the ratio at which the mean of a shell has less variance without the volume."""
    gradients = shelled_scheme({1000: n}, 1)
    volume = gradients.dwis[2]

    def variance(weights, times):
        weights = weights / weights.sum()
        return float((weights**2 * np.where(np.arange(n) == 2, times, 1.0)).sum())

    for times in np.linspace(1.7, 2.6, 10):
        share = np.full(len(gradients), 0.1)
        share[volume] = times * (0.1 + LEAST_SHARE) - LEAST_SHARE
        found = Misfits.of(np.sqrt(1 - share), gradients)
        every, others = np.ones(n), (np.arange(n) != 2).astype(float)
        better = variance(others, times) < variance(every, times)
        assert found.beyond_repair[volume] == better
        assert found.times[volume] == pytest.approx(times)
        assert found.beyond_repair.sum() == better


def test_what_scatters_anyway_is_not_out():
    """Of a shell whose volumes differ by a factor of two none stands out by a factor of three."""
    gradients = shelled_scheme({1000: 20}, 1)
    share = 0.05 * 2 ** np.random.default_rng(0).uniform(-1, 1, len(gradients))
    share[gradients.dwis[4]] = 0.15
    assert not Misfits.of(np.sqrt(1 - share), gradients).beyond_repair.any()
