# SPDX-License-Identifier: Apache-2.0
"""In a series of 144 volumes the slice in which the brain ends was flagged, and no signal lost.

What such a slice shows changes with the pose, so that it scatters more than those beside
it. The scatter of five slices together was taken for its own, and of many volumes some were far
off by that.
"""

import numpy as np

from eddymotion.estimation.outliers import SliceFit, score_slices

N_VOLUMES, N_SLICES, END = 144, 24, 3


def fits_of(seed):
    random, errors = np.random.default_rng(seed), np.full(N_SLICES, 0.012)
    scatter = np.where(np.arange(N_SLICES) == END, 4.0, 1.0) * errors
    gains = 1 + scatter * random.standard_normal((N_VOLUMES, N_SLICES))
    points = np.full(N_SLICES, 200)
    return [SliceFit(gain, errors, np.full(N_SLICES, 0.01), points) for gain in gains]


def test_a_slice_that_scatters_more_than_those_beside_it_is_not_flagged():
    assert sum(score_slices(fits_of(seed)).flagged.sum() for seed in range(20)) < 5


def test_a_slice_that_lost_signal_there_is_flagged():
    fits = fits_of(0)
    fits[7].gain[END] = 0.5
    assert score_slices(fits).flagged[7].nonzero()[0].tolist() == [END]
