# SPDX-License-Identifier: Apache-2.0
"""
Look at things in a notebook
============================

A series, a motion and a registration have pictures of their own, which stay in a saved notebook.
"""

import numpy as np

import eddymotion as em
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion

head = procedural_head(5.0)
gradients = shelled_scheme({1000.0: 24}, 3)
truth = simulate_motion("moderate", len(gradients), np.zeros(3), seed=1)

# %%
# A series shows a slice of each volume. The head moves:

dwi = acquire(head, gradients, truth, Grid.covering(head, 5.0), snr=30)
dwi

# %%
# A motion shows its traces:

motion = em.estimate_motion(dwi)
motion

# %%
# Two volumes flicker in three planes. The worst one before the correction; the pointer over it
# holds it:

worst = int(np.argmax(np.linalg.norm(motion.matrices[:, :3, 3], axis=1)))
em.show(dwi.volume(0), dwi.volume(worst), contour=dwi.mask, labels=("b=0", f"volume {worst}"))

# %%
# And moved by what was found. A motion maps points of the reference to points of a volume, which
# is the direction that is asked for:

flicker = em.show(
    dwi.volume(0),
    dwi.volume(worst),
    motion[worst],
    contour=dwi.mask,
    labels=("b=0", f"volume {worst}, corrected"),
)
flicker
