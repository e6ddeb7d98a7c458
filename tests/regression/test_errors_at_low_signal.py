# SPDX-License-Identifier: Apache-2.0
"""Noise makes steps too short, and errors that one step tells too small."""

import numpy as np
import pytest

from eddymotion.estimation import estimate_motion
from eddymotion.evaluation.motion import coverage_percent
from eddymotion.simulation import acquire, shelled_scheme


@pytest.mark.slow
def test_intervals_hold_the_truth_at_b3000_and_low_snr(head, grid, truth):
    scheme = shelled_scheme({3000: 24}, 3)
    dwi = acquire(head, scheme, truth, grid, snr=10, seed=5)
    found = estimate_motion(dwi, eddy_currents="none", n_threads=2)
    assert coverage_percent(found, truth, dwi.center, scheme.dwis) > 90
    errors = np.median(found.standard_errors[scheme.dwis, :3])
    assert errors < 0.4  # and not because they are boundless
