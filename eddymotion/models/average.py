# SPDX-License-Identifier: Apache-2.0
"""The mean of the other volumes of the shell: the plainest prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.models.base import LinearModel, least_squares_precision


@dataclass(frozen=True)
class AverageModel(LinearModel):
    """Each volume is predicted by the mean of the others of its shell; b=0 is a shell too."""

    min_q_distance: float = 0.0

    def precision(self, gradients: Gradients) -> np.ndarray:
        """Return the residual projector of the shell means."""
        return least_squares_precision(shell_indicators(gradients))


def shell_indicators(gradients: Gradients) -> np.ndarray:
    """One column a shell (b=0 first where there is any), one where the volume belongs to it."""
    groups = [g for g in (gradients.b0s, *gradients.shells) if len(g)]
    return np.stack([np.isin(np.arange(len(gradients)), g) for g in groups], axis=1).astype(float)
