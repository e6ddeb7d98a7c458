# SPDX-License-Identifier: Apache-2.0
"""
What happens if b-vectors are not turned
========================================

A head turns slowly by 20° during the scan. The series is corrected twice: with its b-vectors turned
along, and with the table of the scanner.
"""

import matplotlib.pyplot as plt
import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel

import eddymotion as em
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme

head = procedural_head(6.0)
gradients = shelled_scheme({1000.0: 24}, 3)
angles = np.linspace(0, np.deg2rad(20), 27)
poses = rigid_matrix(np.zeros((27, 3)), angles[:, None] * [0, 0, 1], np.zeros(3))
grid = Grid.covering(head, 6.0)
still = acquire(head, gradients, Motion.identity(27), grid)
moving = acquire(head, gradients, Motion(poses), grid)
corrected = em.resample(moving, Motion(poses))

# %%
# Principal directions of a tensor fit, against those of the head at rest:


def directions(dwi, bvecs):
    """Fit tensors in the brain; return principal directions and anisotropy."""
    table = gradient_table(dwi.gradients.bvals, bvecs=bvecs)
    fit = TensorModel(table).fit(np.asarray(dwi.signal, float)[still.mask])
    return fit.directions[:, 0], fit.fa


true, fa = directions(still, gradients.bvecs)
white = fa > 0.4
fig, axis = plt.subplots(layout="constrained")
for label, bvecs in (
    ("turned along", corrected.gradients.bvecs),
    ("left as they were", gradients.bvecs),
):
    found, _ = directions(corrected, bvecs)
    cosine = np.abs((found * true).sum(axis=1)).clip(0, 1)
    axis.hist(np.rad2deg(np.arccos(cosine[white])), bins=np.arange(0, 31), alpha=0.6, label=label)
axis.set(xlabel="error of the fibre direction, °", ylabel="voxels of white matter")
axis.legend(title="b-vectors")
