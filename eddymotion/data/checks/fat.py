# SPDX-License-Identifier: Apache-2.0
"""Where fat that was not suppressed lies over the brain.

Its protons resonate 3.4 ppm lower, so that an echo-planar image shows it shifted along the phase
encoding, by some voxels. The shift stays with the scanner: of a head that is turned by θ the ring
of fat lies ``shift · sin θ`` beside where a rigid head would have it. Fat hardly diffuses. It
fades beside tissue at b=0, outshines it at high b-values, and pulls the poses of the
diffusion-weighted volumes.

A head that moved between the b=0 volumes and the others puts tissue where at b=0 there was skull
or air: it looks as if diffusion hardly attenuated it, as fat does. But beside such voxels are
others that are brighter than at b=0, which nothing but motion (or another gain) makes them. So fat
has to be found both in all volumes and in those that show least of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.images.pyramid import head_scale

LEAST_BVALUE = 400.0
"""Below, tissue itself is hardly attenuated (s/mm²)."""

LEAST_DIRECTIONS = 6
"""So many volumes, if there are, tell how tissue is attenuated: across fibres a single direction
hardly attenuates white matter. Lower b-values take part where the high ones are fewer."""

LEAST_DIFFUSIVITY, UP_TO = 0.6e-3, 2000.0
"""Of a brain, mm²/s, up to a b-value: what seems to be less is another gain of the b=0 volumes, or
fixed tissue. Ten real series have 0.7e-3 to 1e-3."""

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

BRIGHTER, OF_MOVED, MOVED_SHARE = 0.15, 5.0, 0.03
"""What moves in seems to be fat in up to so many times as many voxels as are brighter than at b=0
(attenuation below minus the first), and in up to so large a share of the brain."""

MOST_SHARE = 0.5
"""Of the brain, above which it is no fat. Of eleven simulated heads that have some it took a tenth
to a quarter, and poses need the rest."""

MOST_AROUND = 0.6
"""Of what lies around the brain, above which it is no fat but a medium that hardly diffuses."""

MOST_INSIDE = 0.5
"""Of what is found, as far as :data:`INSIDE`, above which it is no fat, which comes from outside
the brain, but a part of the brain that hardly diffuses: a stroke."""

REACH, AROUND = 2, 5
"""Voxels to which the filters of the fine levels spread fat, and up to which it is looked for."""

DARK, ABOVE_DARK = 0.05, 1.5
"""Quantile of the signal that is background, and times that fat is as bright: a noise floor is not
attenuated either."""

INSIDE = 3
"""Voxels from the edge of the mask on that tell how tissue is attenuated."""

LEAST_TOLD = 0.002
"""Part of the brain under fat below which fat lies beside the brain: it is left out, but no reason
for a warning. In simulated heads whose rim of fat was not shifted it was 0.0008 at most."""

_FOUND: WeakKeyDictionary[DWI, np.ndarray] = WeakKeyDictionary()


def fat_over_brain(dwi: DWI) -> np.ndarray:
    """Return where fat lies in or beside the brain and the filters spread it, (X, Y, Z) bool."""
    spread: np.ndarray = scipy.ndimage.binary_dilation(find_fat(dwi), iterations=REACH)
    return spread


def find_fat(dwi: DWI) -> np.ndarray:
    """Return where fat lies in or beside the brain, (X, Y, Z) bool.

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
    nowhere = np.zeros(dwi.shape, bool)
    inside = scipy.ndimage.binary_erosion(dwi.mask, iterations=INSIDE)
    b0s, high = dwi.gradients.b0s, _high(dwi.gradients)
    if not len(b0s) or not len(high) or not inside.any():
        return nowhere
    b0, around = _mean(dwi, b0s), _near_brain(dwi, AROUND)
    of_all = _Appearance.of(high, dwi, b0, inside, around)
    if _share_near(of_all.hardly_attenuated, dwi) < LEAST_SHARE:  # the rest takes longer
        return nowhere
    of_least_moved = _Appearance.of(_least_moved(dwi, high, b0, around), dwi, b0, inside, around)
    if not (of_least_moved.shows_fat and of_all.shows_fat):
        return nowhere
    certain, shown = of_all.certain, of_all.shown
    some = (of_all.attenuation < LESS) & (of_all.brightness > SHOWN)
    over_fluid = _above(of_all.weighted) / of_all.level_of(b0) > UNDIMINISHED
    for taken in (some | over_fluid, some, certain):  # below b=1000 some tissue is as bright
        fat = scipy.ndimage.binary_propagation(certain, mask=certain | shown & taken)
        spread = scipy.ndimage.binary_dilation(fat, iterations=REACH)
        if (spread & dwi.mask).sum() < MOST_SHARE * dwi.mask.sum():
            return np.asarray(fat)
    return nowhere


@dataclass(frozen=True, eq=False)
class _Appearance:
    """How the mean of some diffusion-weighted volumes looks beside that at b=0.

    Parameters
    ----------
    dwi : DWI
    inside, around : (X, Y, Z) bool array
        Where the brain tells how tissue looks, and where fat is looked for.
    weighted, attenuation : (X, Y, Z) array
    """

    dwi: DWI
    inside: np.ndarray
    around: np.ndarray
    weighted: np.ndarray
    attenuation: np.ndarray

    @classmethod
    def of(
        cls, volumes: np.ndarray, dwi: DWI, b0: np.ndarray, inside: np.ndarray, around: np.ndarray
    ) -> _Appearance:
        """Average the volumes, and compare them with the mean at b=0."""
        weighted, bval = _mean(dwi, volumes), float(dwi.gradients.bvals[volumes].mean())
        return cls(dwi, inside, around, weighted, _attenuation(b0, weighted, inside, bval))

    @cached_property
    def shown(self) -> np.ndarray:
        """Where there is signal."""
        return self.around & (self.weighted > _dark(self.weighted))

    @cached_property
    def hardly_attenuated(self) -> np.ndarray:
        """Where diffusion hardly attenuates the signal."""
        return self.shown & (self.attenuation < HARDLY)

    @cached_property
    def brightness(self) -> np.ndarray:
        """Signal as part of that of the brain near by."""
        return _above(self.weighted) / self.level_of(self.weighted)

    def level_of(self, image: np.ndarray) -> np.ndarray:
        """How far the brain near by is above the background of an image."""
        near = NEAR_MM * head_scale(self.dwi.mask, self.dwi.voxel_sizes) / self.dwi.voxel_sizes
        return _level(image, self.inside, near)

    @cached_property
    def certain(self) -> np.ndarray:
        """What looks like fat, and is no brighter than at b=0."""
        return self._fat_or_moved & (self.attenuation > -BRIGHTER)

    @cached_property
    def _fat_or_moved(self) -> np.ndarray:
        return self.hardly_attenuated & (self.brightness > BRIGHT)

    @property
    def shows_fat(self) -> bool:
        """Whether there is more of it than motion explains, and it is no lesion and no medium."""
        moved = _share_near(self._fat_or_moved & ~self.certain, self.dwi)
        least = max(LEAST_SHARE, min(OF_MOVED * moved, MOVED_SHARE))
        if _share_near(self.certain, self.dwi) < least:
            return False
        beside = self.around & ~self.dwi.mask
        is_medium = (self.certain & beside).sum() > MOST_AROUND * beside.sum()
        is_lesion = self.inside[self.certain].mean() > MOST_INSIDE
        return not (is_medium or is_lesion)


def _high(gradients: Gradients) -> np.ndarray:
    """Return the volumes of high b-value."""
    bvals = gradients.bvals
    enough = np.sort(bvals)[-min(LEAST_DIRECTIONS, len(bvals))]
    return np.flatnonzero(bvals >= max(LEAST_BVALUE, min(bvals.max() / 2, enough)))


def _least_moved(dwi: DWI, volumes: np.ndarray, b0: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Choose the half of some volumes that shows least where there is less at b=0."""
    newly = []
    for volume in volumes:
        image = _mean(dwi, np.array([volume]))
        newly.append(np.count_nonzero(around & (image > np.exp(BRIGHTER) * b0 + _dark(image))))
    n_kept = max(LEAST_DIRECTIONS, len(volumes) // 2)
    chosen: np.ndarray = volumes[np.argsort(newly, kind="stable")[:n_kept]]
    return chosen


def _near_brain(dwi: DWI, n_voxels: int) -> np.ndarray:
    near: np.ndarray = scipy.ndimage.binary_dilation(dwi.mask, iterations=n_voxels)
    return near


def _share_near(found: np.ndarray, dwi: DWI) -> float:
    """Return how much of it lies within reach of the brain, as part of the brain's size."""
    return float((found & _near_brain(dwi, REACH)).sum() / dwi.mask.sum())


def _mean(dwi: DWI, volumes: np.ndarray) -> np.ndarray:
    """Average some volumes, one at a time: memory; and smooth the mean."""
    total = np.zeros(dwi.shape, np.float32, order="F")  # as volumes are
    for volume in volumes:
        total += dwi.signal[..., volume]
    mean: np.ndarray = scipy.ndimage.gaussian_filter(total / len(volumes), SMOOTHING)
    return mean


def _dark(image: np.ndarray) -> float:
    """Return the signal up to which an image may be background."""
    return ABOVE_DARK * float(np.quantile(image, DARK))


def _attenuation(
    b0: np.ndarray, weighted: np.ndarray, inside: np.ndarray, bval: float
) -> np.ndarray:
    """Return the logarithm of the attenuation, so that its median in the brain is one.

    Differences from the median are in units of it, or of the least that a brain may have: a gain
    does not change them.
    """
    least = 1e-9 * b0.max()
    lost = np.log(np.maximum(b0, least) / np.maximum(weighted, least))
    usual = np.median(lost[inside])
    unit = max(usual, LEAST_DIFFUSIVITY * min(bval, UP_TO))
    return 1.0 + (lost - usual) / unit


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
