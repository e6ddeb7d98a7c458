# SPDX-License-Identifier: Apache-2.0
"""
Correct a series and compare with the truth
===========================================

A head of large voxels moves; its motion is estimated, and the series resampled.
"""

import matplotlib.pyplot as plt
import numpy as np

import eddymotion as em
from eddymotion.evaluation import compare_motion
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion

# %%
# Simulate: 24 directions at b=1000 and three b=0 volumes, voxels of 6 mm.

head = procedural_head(6.0)
gradients = shelled_scheme({1000.0: 24}, 3)
truth = simulate_motion("moderate", len(gradients), np.zeros(3), seed=1)
dwi = acquire(head, gradients, truth, Grid.covering(head, 6.0), snr=30)
dwi

# %%
# Estimate and resample. Nothing but the series is used.

motion = em.estimate_motion(dwi)
corrected = em.resample(dwi, motion)

# %%
# Compare. The translations are those of the centre of the image.

true, found = (rigid_parameters(m.matrices, dwi.center) for m in (truth, motion))
fig, axes = plt.subplots(2, 1, sharex=True, layout="constrained")
for axis, part, scale, unit in (
    (axes[0], slice(0, 3), 1, "mm"),
    (axes[1], slice(3, 6), 180 / np.pi, "°"),
):
    axis.plot(found[:, part] * scale)
    axis.set_prop_cycle(None)
    axis.plot(true[:, part] * scale, "--")
    axis.set_ylabel(unit)
axes[0].legend("xyz", title="solid: found, dashed: true", ncols=3)
axes[1].set_xlabel("volume")

# %%
# What is left is a small part of a voxel. A constant offset of the whole series is set aside: it
# blurs nothing.

score = compare_motion(motion, truth, center=dwi.center, bvals=gradients.bvals).score()
score.rmse_translation_mm, score.rmse_rotation_deg
