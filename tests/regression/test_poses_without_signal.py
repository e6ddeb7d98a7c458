# SPDX-License-Identifier: Apache-2.0
"""Hardly any signal: poses depended on where the search began, with small standard errors."""

import numpy as np
import pytest

from eddymotion.estimation import estimate_motion
from eddymotion.estimation.joint import restarts
from eddymotion.evaluation.motion import coverage_percent
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import acquire, shelled_scheme, simulate_motion


@pytest.fixture(scope="module")
def faint(head, grid):
    """Scan twelve directions at b=5000 and SNR 8 beside twenty at lower b-values."""
    scheme = shelled_scheme({1000: 8, 3000: 12, 5000: 12}, 3)
    truth = simulate_motion("moderate", len(scheme), np.zeros(3), seed=4)
    return acquire(head, scheme, truth, grid, snr=8, seed=3), truth


@pytest.mark.slow
def test_intervals_hold_the_truth_and_a_warning_is_given(faint, caplog):
    dwi, truth = faint
    found = estimate_motion(dwi, eddy_currents="none", n_threads=2)
    highest = np.flatnonzero(dwi.gradients.bvals > 4000)
    assert coverage_percent(found, truth, dwi.center, highest) > 90
    assert "the start of the search" in caplog.text


@pytest.mark.slow
def test_a_series_with_signal_is_not_searched_again(moving, monkeypatch):
    monkeypatch.setattr(restarts, "restart_covariances", None)  # would fail
    assert estimate_motion(moving, eddy_currents="none", n_threads=2).standard_errors is not None


def test_volumes_of_like_bvalues_are_pooled():
    squares = np.arange(40.0).reshape(40, 1)
    bvals = np.repeat([1000.0, 3000.0], 20)
    means = restarts.pooled(squares, bvals)
    assert means[:20].max() < 20 <= means[20:].min()


def test_the_course_keeps_a_jump_and_drops_what_one_volume_does():
    matrices = np.tile(np.eye(4), (20, 1, 1))
    matrices[10:, 0, 3] = 3.0
    matrices[4, 1, 3] = 5.0
    smooth = restarts.smooth_course(matrices, np.zeros(3))
    expected = Motion(matrices).matrices.copy()
    expected[4] = np.eye(4)
    np.testing.assert_allclose(smooth, expected, atol=1e-12)
