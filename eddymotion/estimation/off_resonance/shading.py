# SPDX-License-Identifier: Apache-2.0
"""Brightness in which images of one head differ, smooth over the brain.

A receive field stays with the scanner while the head moves, and may be divided out of one image
and not of the other. What a field squeezes together is brighter, too: a ratio of brightness that
is taken for such a stretch makes a field where there is none. The logarithm of the ratio is a
polynomial of third order beside the field.

A free ratio explains what the brightness shows of the coarsest parts of the field. So evidence is
required for it: it has to make the images agree better than a field alone can.
"""

from __future__ import annotations

import numpy as np

from eddymotion.mapping.eddy_currents import SCALE_MM, TERMS, polynomial_terms

N_SHADES = 1 + len(TERMS)
"""Terms of a gain that varies over the brain."""

GAIN_SPREAD, SHADE_SPREAD = 0.3, 0.15
"""How far the logarithm of a gain, and the coefficients of its other terms, may go. Twice as
far is as good or better in simulated pairs, and worse in real ones."""

LESS_NOISE = 0.92
"""Noise of the images with a ratio that varies, over that without, below which there is one. It
was .96 and more of simulated pairs without any, .88 with 1.1 : 1 over the head, where the field
is about as good either way."""


def shading_terms(points: np.ndarray, center: np.ndarray, n_shades: int) -> np.ndarray:
    """Evaluate one and polynomials at points (P, 3), RAS+ mm: (G, P) float32."""
    terms = polynomial_terms((points - center) / SCALE_MM, n_shades - 1)
    return np.concatenate([np.ones((1, len(points))), terms.T]).astype(np.float32)


def gain_spreads(n_shades: int) -> np.ndarray:
    """Return standard deviations of the coefficients of all terms, (G,)."""
    return np.r_[GAIN_SPREAD, np.full(n_shades - 1, SHADE_SPREAD)]
