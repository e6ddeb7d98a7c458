# SPDX-License-Identifier: Apache-2.0
"""Where fat that was not suppressed lies over the brain.

Its protons resonate 3.4 ppm lower, so that an echo-planar image shows it shifted along the phase
encoding, by some voxels. The shift stays with the scanner: of a head that is turned by θ the ring
of fat lies ``shift · sin θ`` beside where a rigid head would have it. Fat hardly diffuses. It
fades beside tissue at b=0, outshines it at high b-values, and pulls the poses of the
diffusion-weighted volumes.

A head that moved between the b=0 volumes and the others puts tissue where at b=0 there was skull
or air: it looks as if diffusion hardly attenuated it, as fat does. But beside such voxels are
others that are brighter than at b=0, which nothing but motion (or another gain) makes them.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import scipy

from eddymotion.data.series import DWI
from eddymotion.images.pyramid import head_scale

LEAST_BVALUE = 400.0
"""Below, tissue itself is hardly attenuated (s/mm²)."""

LEAST_DIRECTIONS = 6
"""So many volumes, if there are, tell how tissue is attenuated: across fibres a single direction
hardly attenuates white matter. Lower b-values take part where the high ones are fewer."""

LEAST_LOST = 0.05
"""Attenuation (logarithm) of the brain, below which it tells tissue from nothing else."""

SMOOTHING = 0.8
"""Standard deviation, in voxels, of the filter that keeps noise from looking like fat."""

HARDLY, LESS = 0.4, 0.7
"""Attenuation (logarithm) as part of that of the brain. Below the first nothing but fat is left;
where it is there, what is below the second has some."""

BRIGHT, SHOWN = 0.5, 0.4
"""Signal as part of that of the brain near by, above the background: of fat, and where it has a
share."""

UNDIMINISHED = 0.7
"""Signal as part of that of the brain near by at b=0: of fat over fluid, which takes part in the
attenuation but not in the signal."""

NEAR_MM = 25.0
"""Width (standard deviation, for a human head) of what is near by: coils shade less than that."""

LEAST_SHARE = 0.005
"""Of fat within reach of the brain, as part of its size, below which it does not matter. In ten
real series with fat suppressed it was 0.001 at most; at 0.02 it pulled the poses by 0.2 mm."""

MOVED_SHARE, OF_MOVED = 0.03, 12.0
"""What moves in seems to be fat in up to so many times as many voxels as are brighter than at b=0,
and in up to so large a share of the brain. Three simulated heads without any fat, turned once by 7
to 20° at b=1000: 2 to 9 times, 2.3 % at most; two of them with fat: 4 % or more."""

MOST_SHARE = 0.5
"""Of the brain, above which it is no fat. Of eleven simulated heads that have some it took a tenth
to a quarter, and poses need the rest."""

REACH, AROUND = 2, 5
"""Voxels to which the filters of the fine levels spread fat, and up to which it is looked for."""

DARK, ABOVE_DARK = 0.05, 1.5
"""Quantile of the signal that is background, and times that fat is as bright: a noise floor is not
attenuated either."""

INSIDE = 3
"""Voxels from the edge of the mask on that tell how tissue is attenuated."""

_FOUND: WeakKeyDictionary[DWI, np.ndarray] = WeakKeyDictionary()


def fat_over_brain(dwi: DWI) -> np.ndarray:
    """Return where fat lies in or beside the brain and the filters spread it, (X, Y, Z) bool.

    Parameters
    ----------
    dwi : DWI

    Returns
    -------
    (X, Y, Z) bool array
        Nowhere if fat is suppressed, or if the series has no b=0 volumes or no high b-values.
    """
    if dwi not in _FOUND:
        _FOUND[dwi] = _search(dwi)
    return _FOUND[dwi]


def _search(dwi: DWI) -> np.ndarray:
    inside = scipy.ndimage.binary_erosion(dwi.mask, iterations=INSIDE)
    images = _images(dwi)
    if images is None or not inside.any():
        return np.zeros(dwi.shape, bool)
    b0, weighted = images
    attenuation = _attenuation(b0, weighted, inside)
    shown = _near_brain(dwi, AROUND) & (weighted > ABOVE_DARK * np.quantile(weighted, DARK))
    hardly = shown & (attenuation < HARDLY)
    if _share_near(hardly, dwi) < LEAST_SHARE:  # brightness takes longer to tell
        return np.zeros(dwi.shape, bool)
    near = NEAR_MM * head_scale(dwi.mask, dwi.voxel_sizes) / dwi.voxel_sizes
    of_b0, brightness = (_above(weighted) / _level(image, inside, near) for image in images)
    hardly &= brightness > BRIGHT
    moved_in = attenuation < -HARDLY
    certain = hardly & ~moved_in
    moved_share = min(OF_MOVED * _share_near(hardly & moved_in, dwi), MOVED_SHARE)
    if _share_near(certain, dwi) < max(LEAST_SHARE, moved_share):
        return np.zeros(dwi.shape, bool)
    some = (attenuation < LESS) & (brightness > SHOWN) | (of_b0 > UNDIMINISHED)
    fat = scipy.ndimage.binary_propagation(certain, mask=certain | shown & some)
    spread = scipy.ndimage.binary_dilation(fat, iterations=REACH)
    takes_most = (spread & dwi.mask).sum() > MOST_SHARE * dwi.mask.sum()
    return np.zeros(dwi.shape, bool) if takes_most else spread


def _images(dwi: DWI) -> tuple[np.ndarray, np.ndarray] | None:
    """Average the b=0 volumes and those of high b-value; None without either."""
    bvals, b0s = dwi.gradients.bvals, dwi.gradients.b0s
    enough = np.sort(bvals)[-min(LEAST_DIRECTIONS, len(bvals))]
    high = np.flatnonzero(bvals >= max(LEAST_BVALUE, min(bvals.max() / 2, enough)))
    if not len(b0s) or not len(high):
        return None
    b0, weighted = (
        scipy.ndimage.gaussian_filter(_mean(dwi, volumes), SMOOTHING) for volumes in (b0s, high)
    )
    return b0, weighted


def _near_brain(dwi: DWI, n_voxels: int) -> np.ndarray:
    near: np.ndarray = scipy.ndimage.binary_dilation(dwi.mask, iterations=n_voxels)
    return near


def _share_near(found: np.ndarray, dwi: DWI) -> float:
    """Return how much of it lies within reach of the brain, as part of the brain's size."""
    return float((found & _near_brain(dwi, REACH)).sum() / dwi.mask.sum())


def _mean(dwi: DWI, volumes: np.ndarray) -> np.ndarray:
    """Average some volumes, one at a time: memory."""
    total = np.zeros(dwi.shape, np.float32, order="F")  # as volumes are
    for volume in volumes:
        total += dwi.signal[..., volume]
    return total / len(volumes)


def _attenuation(b0: np.ndarray, weighted: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the logarithm of the attenuation, in units of its median in the brain."""
    least = 1e-9 * b0.max()
    lost = np.log(np.maximum(b0, least) / np.maximum(weighted, least))
    usual = np.median(lost[inside])
    return lost / usual if usual > LEAST_LOST else np.full_like(lost, np.inf)


def _above(image: np.ndarray) -> np.ndarray:
    """Return the signal above the background."""
    above: np.ndarray = image - np.quantile(image, DARK)
    return above


def _level(image: np.ndarray, inside: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return how far the brain within `near` voxels is above the background."""
    above = _above(image)
    brain = np.where(inside, np.minimum(above, 2 * np.median(above[inside])), 0.0)
    total, known = (
        scipy.ndimage.gaussian_filter(part.astype(np.float32), near) for part in (brain, inside)
    )
    return np.maximum(total, 1e-9 * total.max()) / np.maximum(known, 1e-9)
