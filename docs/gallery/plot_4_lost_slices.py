# SPDX-License-Identifier: Apache-2.0
"""
Find slices that lost signal
============================

Some slices of a moving head are nearly black. They are found by comparison with what the other
volumes predict.
"""

import matplotlib.pyplot as plt
import numpy as np

import eddymotion as em
from eddymotion.simulation import (
    Grid,
    acquire,
    dropped_slices,
    procedural_head,
    shelled_scheme,
    simulate_motion,
)

head = procedural_head(6.0)
gradients = shelled_scheme({1000.0: 24}, 3)
grid = Grid.covering(head, 6.0)
truth = simulate_motion("drift", len(gradients), np.zeros(3), seed=1)
dwi = acquire(head, gradients, truth, grid, snr=30, dropout=0.04)

# %%
# Each slice of each volume gets a z-score: how much weaker it is than its prediction.

motion = em.estimate_motion(dwi)
quality = em.assess(dwi, motion)
lost = dropped_slices(gradients, dwi.shape[2], 0.04) < 1

# %%
# Found ones and true ones. Slices without brain cannot be judged, and b=0 volumes lose nothing.

fig, axes = plt.subplots(2, 1, sharex=True, sharey=True, layout="constrained")
for axis, image, title in ((axes[0], lost, "lost"), (axes[1], quality.outliers.flagged, "found")):
    axis.imshow(image.T, origin="lower", cmap="gray_r", aspect="auto")
    axis.set(title=title, ylabel="slice")
axes[1].set_xlabel("volume")
