# SPDX-License-Identifier: Apache-2.0
"""Volumes that no rigid pose explains: a head that moved between slices, ghosts, spikes.

The prediction of a volume leaves the share ``u = 1 − r²`` of its variance unexplained, with ``r``
the correlation where the slices kept their signal. By noise and errors of the model, this share is
about the same for all volumes of a shell. A volume with ``K`` times that share should be left out
if a fit to the shell is better without it. A least-squares fit to ``n`` volumes, one of variance
``K`` and the others of variance 1, has the variance ``(n − 1 + K) / n²``; without that volume it
is ``1 / (n − 1)``. That is smaller if ::

    K > (2 n − 1) / (n − 1)

which is about two. Since shares scatter, a volume is beyond repair only if it is also
:data:`SPREADS` robust standard deviations of ``log u`` from the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.robust import robust_deviation
from eddymotion.wording import short_repr

SPREADS = 6.0
"""Robust standard deviations from the others."""

ENOUGH_TO_COMPARE = 6
"""With fewer volumes it is not known what is usual."""

LEAST_SHARE = 0.01
"""Added to all shares: with a hundredth of the variance unexplained no volume does harm."""


@dataclass(frozen=True, eq=False)
class Misfits:
    """How much more of each volume its prediction leaves unexplained than of others of its shell.

    Parameters
    ----------
    times : (N,) array
        Unexplained share of the variance over the median of the shell; NaN where not known.
    beyond_repair : (N,) bool array
        Volumes without which a fit is better.
    """

    times: np.ndarray
    beyond_repair: np.ndarray

    __repr__ = short_repr

    @classmethod
    def of(cls, correlation: np.ndarray, gradients: Gradients) -> Misfits:
        """Compare correlations (N,) of volumes with their predictions; NaN where not known."""
        share = 1 - np.clip(correlation, 0, 1) ** 2 + LEAST_SHARE
        times, beyond_repair = np.full(len(share), np.nan), np.zeros(len(share), bool)
        for group in (gradients.b0s, *comparable_groups(gradients)):
            known = group[np.isfinite(share[group])]
            if (n := len(known)) < ENOUGH_TO_COMPARE:
                continue
            away = np.log(share[known] / np.median(share[known]))
            spread = robust_deviation(away)
            times[known] = np.exp(away)
            harms = times[known] > (2 * n - 1) / (n - 1)
            beyond_repair[known] = harms & (away > SPREADS * spread)
        return cls(times, beyond_repair)
