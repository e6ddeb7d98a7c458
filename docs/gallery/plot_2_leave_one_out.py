# SPDX-License-Identifier: Apache-2.0
"""
Predict a volume from the others, without a refit
=================================================

The prediction of a volume from all others follows from one matrix product. Here it is compared with
a model that is really fitted again without the volume.
"""

import matplotlib.pyplot as plt
import numpy as np

from eddymotion.mapping.motion import Motion
from eddymotion.models import GaussianProcessModel, LegendreCovariance, TensorModel
from eddymotion.models.tensor import design_matrix
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme

head = procedural_head(6.0)
gradients = shelled_scheme({1000.0: 24}, 3)
dwi = acquire(head, gradients, Motion.identity(27), Grid.covering(head, 6.0), snr=30)

# %%
# A tensor, the closed form for all 27 volumes at once:

closed = TensorModel().leave_one_out(dwi.signal, gradients)

# %%
# And a fit of the logarithm of the signal to the 26 others, for one volume:

volume = 7
others = np.delete(np.arange(27), volume)
signal = np.maximum(dwi.signal[dwi.mask], 1.0)
design = design_matrix(gradients)
fit = np.linalg.lstsq(design[others], np.log(signal[:, others]).T)[0]
refitted = np.exp(design[volume] @ fit)
np.abs(refitted - closed[..., volume][dwi.mask]).max() / signal.max()

# %%
# A Gaussian process learns from the data how much directions have to do with each other, and
# predicts better than a tensor.

predicted = GaussianProcessModel(LegendreCovariance()).leave_one_out(dwi.signal, gradients)
middle = dwi.shape[2] // 2
fig, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for axis, image, title in (
    (axes[0], dwi.signal[..., volume], "acquired"),
    (axes[1], closed[..., volume], "tensor of the others"),
    (axes[2], predicted[..., volume], "Gaussian process"),
    (axes[3], dwi.signal[..., volume] - predicted[..., volume], "left over"),
):
    axis.imshow(image[:, :, middle].T, origin="lower", cmap="gray")
    axis.set_title(title)
    axis.axis("off")
