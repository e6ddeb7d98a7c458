# SPDX-License-Identifier: Apache-2.0
"""A bundle that fills slices and runs along one of six directions was taken for lost signal.

The other directions do not tell of it: the prediction of the one that sees it is too bright in
slices side by side. Nearly half of a volume was flagged, and nothing was lost.
"""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.estimation import assess
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import acquire, shelled_scheme

SEEN = 4


@pytest.fixture(scope="module")
def series(head, grid):
    """Six directions, and white matter that runs along one of them in a slab."""
    gradients, (low, high) = shelled_scheme({1000: 6}, 1), (20.0, 50.0)
    height = head.affine[2, 3] + head.affine[2, 2] * np.arange(head.fibres.shape[2])
    inside = np.clip(np.minimum(height - low, high - height) / 12 + 0.5, 0, 1)[:, None, None]
    along = np.zeros((3, 3))
    along[0] = gradients.bvecs[SEEN]
    fibres = (1 - inside) * head.fibres + inside * along
    slab = replace(head, fibres=fibres.astype(np.float32))
    return acquire(slab, gradients, Motion.identity(len(gradients)), grid, snr=25)


def test_nothing_is_flagged_where_nothing_was_lost(series):
    assert not assess(series, Motion.identity(len(series))).outliers.flagged.any()


def test_a_slice_that_was_lost_there_is_found(series):
    signal, index = np.array(series.signal), series.mask.sum(axis=(0, 1)).argmax()
    signal[:, :, [index, index + 6], SEEN] *= 0.4
    flagged = assess(replace(series, signal=signal), Motion.identity(len(series))).outliers.flagged
    assert np.argwhere(flagged).tolist() == [[SEEN, index], [SEEN, index + 6]]
