# SPDX-License-Identifier: Apache-2.0
"""b-values that are too large or too small all together, or by the lengths of b-vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.contradiction import Contradiction
from eddymotion.data.checks.labels import levels_of
from eddymotion.data.series import Series

IN_TISSUE = 0.8e-3
"""Usual diffusivity in the brain, mm²/s."""

FASTEST, SLOWEST, FIXED = 3.5e-3, 2e-5, 1.2e-4
"""Free water at body temperature has 3.0e-3 mm²/s; ten real series 0.7e-3 to 1e-3, spinal cord
1.5e-3, and b=308 of a lattice 1.3e-3. No diffusivity that shows decay is below the second;
that of fixed tissue may be below the third."""

DECAY = 0.4
"""Logarithm of the signal at the lowest b-value over that at another, above which it yields a
diffusivity: perfusion alone reduces the signal by less."""

SCALED_NORMS = 1.5
"""Largest over smallest squared length of b-vectors, above which they may encode b-values."""

SCALED_SPREAD, SCALED_GAIN = 0.15, 0.5
"""They do if the brightness of volumes of like b-values scatters by more than the first, and by
less than the second part of that once the lengths of the vectors are taken into account."""


def scaled_bvals(
    brightness: np.ndarray, levels: Sequence[np.ndarray], bvals: np.ndarray
) -> Contradiction | None:
    """Say whether all b-values are some power of ten too large or too small.

    The diffusivity that they give to the brain is impossible then.
    """
    levels = [level for level in levels if len(level)]
    places = np.array([np.median(bvals[level]) for level in levels])
    decays = np.median(brightness[levels[0]]) - [np.median(brightness[level]) for level in levels]
    clear = decays > DECAY
    if not clear.any():
        return None
    found = decays[clear] / (places[clear] - places[0])
    typical = float(np.median(found))
    if FIXED <= typical <= FASTEST:
        return None
    power = round(np.log10(typical / IN_TISSUE))
    if power == 0:
        return None
    words = f"multiplied by {10**power}" if power > 0 else f"divided by {10**-power}"
    highest = f"b={places[-1]:.0f} becomes {places[-1] * 10.0**power:.0f}"
    certain = not SLOWEST < typical < FASTEST
    return Contradiction(
        f"the brain would have a diffusivity of {typical:.2g} mm²/s (usual: {IN_TISSUE:.1g}, free "
        "water: 0.003)",
        f"the images fit b-values in s/mm² {words} ({highest})"
        + ("" if certain else ", unless this is fixed tissue"),
        certain,
    )


def scaled_vectors(dwi: Series, norms: np.ndarray) -> Contradiction | None:
    """Say whether the lengths of the b-vectors encode the b-values, as some scanners write it.

    Parameters
    ----------
    dwi : Series
    norms : (N,) array
        Lengths of the b-vectors on file.
    """
    squared = np.nan_to_num(norms) ** 2
    nominal, threshold = dwi.gradients.bvals, dwi.gradients.b0_threshold
    above = squared[(squared > 1e-4) & (nominal > threshold)]
    if not len(above) or above.max() < SCALED_NORMS * above.min():
        return None
    appearance = Appearance.of(dwi)
    if appearance is None:
        return None
    scaled = nominal * squared
    before, after = (
        _scatter(appearance.brightness, levels_of(bvals, threshold)) for bvals in (nominal, scaled)
    )
    if before < SCALED_SPREAD or after > SCALED_GAIN * before:
        return None
    values = ", ".join(f"{bval:.0f}" for bval in _distinct(scaled, threshold))
    return Contradiction(
        f"volumes of one b-value differ in brightness by a factor of {np.exp(2 * before):.1f}",
        "the b-values fit the images if multiplied by the squared length of their b-vectors: "
        f"that gives b={values}",
    )


def _scatter(brightness: np.ndarray, levels: Sequence[np.ndarray]) -> float:
    """Root-mean-square distance from the median of the level."""
    away = [brightness[level] - np.median(brightness[level]) for level in levels if len(level)]
    return float(np.sqrt(np.mean(np.concatenate(away) ** 2)))


def _distinct(bvals: np.ndarray, threshold: float) -> list[float]:
    """Mean b-value of each level."""
    levels = [level for level in levels_of(bvals, threshold) if len(level)]
    return [float(bvals[level].mean()) for level in levels]
