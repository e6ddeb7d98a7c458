# SPDX-License-Identifier: Apache-2.0
"""Whether the b-values fit what the images show.

A volume tells its b-value twice: by how bright the brain is, and by which parts of it are bright
(fluid at b=0, white matter at high b). A volume counts as mislabelled only where both speak
against its label: one that lost its signal is dark, but looks like the others of its shell; one
of another receive gain is bright, but looks like them, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eddymotion.data.gradients import SHELL_GAP, Gradients
from eddymotion.data.series import DWI, Series
from eddymotion.robust import robust_deviation

LEVEL_WIDTH = 0.15
"""b-values that differ by less than this part, or by :data:`SHELL_GAP`, should look alike."""

GAP = 0.3
"""Volumes of one b-value do not part in two by brightness (logarithm) further than this: the
signal falls by that much from b=0 to 350 s/mm²."""

SHELLS_APART = 0.5
"""One shell is taken for another only where brightness is so far off: at b=5000 s/mm² and few
directions it varies by 0.35."""

CONTRAST_MARGIN = 0.1
"""By so much the pattern of a volume has to agree better with that of another b-value."""

STRANGE_BELOW = 0.15
"""A pattern whose correlation with its level is so far below the usual does not belong to it."""

BLOCKS_ACROSS = 14
"""Blocks (8 mm in a human head) between which brightness is compared: coarser than the motion."""

MIN_BLOCKS = 20

IN_TISSUE = 0.8e-3
"""Usual diffusivity in the brain, mm²/s."""

FASTEST, SLOWEST, FIXED = 3.5e-3, 2e-5, 1.2e-4
"""Free water at body temperature has 3.0e-3 mm²/s; ten real series 0.7e-3 to 1e-3, spinal cord
1.5e-3, and b=308 of a lattice 1.3e-3. Below the second nothing that shows decay is; below the
third tissue that was fixed may be."""

DECAY = 0.4
"""Logarithm of the signal at the lowest b-value over that at another, from which on a diffusivity
is told by it: perfusion alone takes less."""

USUAL = (0.3e-3, 1.6e-3)
"""Range of the diffusivity in a brain at low b-values, mm²/s."""

WEIGHTED = 12
"""Volumes of the lowest b-values by which two b=0 volumes are judged."""

ALIKE, UNLIKE = 0.15, 0.2
"""Patterns of two b=0 volumes agree at least so far, noise and motion included; and the one that
has so much less to do with the diffusion-weighted volumes, alike or opposite, is the wrong one."""

DIRECTIONS = 10
"""Volumes of a shell from which on its brightness is known as a function of the direction."""

MISPLACED_SCATTER, MISPLACED_LEAST = 6.0, 0.12
"""So many times the usual distance from that function, and at least so far, is a volume of another
shell; and three times nearer to that shell. Where all fibres run alike, at SNR 8, sound volumes of
b=3000 are up to 5.3 times away, as far as those of b=2000: these two are not told apart there."""

MISPLACED_MARGIN = 0.1
"""By so much its pattern may agree worse with that of the other shell, which few directions tell
roughly."""

SCALED_NORMS = 1.5
"""Largest over smallest squared length of b-vectors from which on they may tell b-values."""

SCALED_SPREAD, SCALED_GAIN = 0.15, 0.5
"""Vectors do tell them where the brightness of like b-values scatters by more than the first, and
by less than the second part of that if the vectors' lengths count."""


@dataclass(frozen=True)
class Contradiction:
    """What the images say against the table.

    Parameters
    ----------
    found : str
        Which volumes, and what they show.
    reading : str
        What would fit.
    certain : bool
        Whether no head could look so.
    """

    found: str
    reading: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.found}; {self.reading}"


@dataclass(frozen=True, eq=False)
class Appearance:
    """How the volumes look in the brain.

    Parameters
    ----------
    brightness : (N,) array
        Logarithm of the median signal.
    patterns : (N, B) array
        Signal of blocks, of mean zero and length one: products are correlations.
    """

    brightness: np.ndarray
    patterns: np.ndarray

    @classmethod
    def of(cls, dwi: Series) -> Appearance | None:
        """Look at a series; None where the brain is too small or a volume shows nothing."""
        if not dwi.mask.any():
            return None
        box = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(dwi.mask))
        mask = dwi.mask[box]
        edge = np.cbrt(dwi.mask.sum() * np.prod(dwi.voxel_sizes)) / BLOCKS_ACROSS
        factors = np.maximum(np.round(edge / dwi.voxel_sizes).astype(int), 1)
        factors = np.minimum(factors, mask.shape)
        inside = _block_means(mask, factors) > 0.75
        if inside.sum() < MIN_BLOCKS:
            return None
        blocks = np.stack([_block_means(v[box], factors)[inside] for v in dwi.volumes()])
        signal = np.median(blocks, axis=1)
        if not (signal > 0).all():
            return None
        patterns = blocks - blocks.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(patterns, axis=1, keepdims=True)
        if not (lengths > 0).all():  # one value everywhere: reported when the motion is sought
            return None
        return cls(np.log(signal), patterns / lengths)

    def similarity(self, volume: int, others: np.ndarray) -> float:
        """Correlation of a volume's pattern with the mean of `others`, itself left out."""
        others = others[others != volume]
        mean = self.patterns[others].mean(axis=0) if len(others) else np.zeros(1)
        length = np.linalg.norm(mean)
        return float(self.patterns[volume] @ mean / length) if length > 0 else 0.0


def _block_means(volume: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Average blocks of voxels, whole ones only; adding strided views copies no voxel first."""
    means = volume
    for axis in (2, 1, 0):  # the slowest of a NIfTI file first: what is added lies together
        step = factors[axis]
        whole = means.shape[axis] // step * step
        views = [np.moveaxis(means, axis, 0)[first:whole:step] for first in range(step)]
        added: np.ndarray = np.array(views[0], np.float32 if axis else np.float64)
        for view in views[1:]:
            added += view
        means = np.moveaxis(added, 0, axis)
    return means / np.prod(factors)


def contradictions(dwi: Series) -> list[Contradiction]:
    """Compare the b-values of a series with its images.

    Parameters
    ----------
    dwi : Series

    Returns
    -------
    list of Contradiction
        Empty where the table fits, or the images do not tell (a phantom without diffusion).
    """
    appearance = Appearance.of(dwi)
    if appearance is None:
        return []
    bvals, threshold = dwi.gradients.bvals, dwi.gradients.b0_threshold
    scaled = _scaled_bvals(appearance.brightness, _levels(bvals, threshold), bvals)
    if scaled is not None:
        return [scaled]
    shelled = dwi.gradients.is_shelled
    labels = _Labels.of(appearance, bvals, threshold, shelled=shelled)
    wrong, without_b0 = _mislabelled(appearance, labels, dwi.gradients), not len(labels.b0s)
    if not wrong:
        return labels.out_of_order()
    certain = any(one.certain for one in wrong)
    if len(wrong) > 1 and certain and not without_b0:
        for step, words in ((-1, "earlier"), (1, "later")):
            if _Labels.of(appearance, np.roll(bvals, step), threshold, shelled=shelled).fit():
                found = _describe(wrong)
                reading = f"the b-values fit the images if each stands one volume {words}"
                return [Contradiction(found, reading)]
    by_kind = []
    for of_kind in (True, False):
        some = [one for one in wrong if one.certain is of_kind]
        if some:
            by_kind.append(Contradiction(_describe(some), _relabelling(some), of_kind))
    return by_kind


def _mislabelled(
    appearance: Appearance, labels: _Labels, gradients: Gradients
) -> list[_Mislabelled]:
    """Find volumes under the label of others, those of another shell among them."""
    wrong = labels.mislabelled()
    if any(one.certain for one in wrong):
        return wrong
    misplaced = _of_other_shells(appearance, gradients)
    named = {one.volume for one in misplaced}
    wrong = misplaced + [one for one in wrong if one.volume not in named]
    return sorted(wrong, key=lambda one: one.volume)


def compare_b0s(dwi: DWI) -> str | None:
    """Compare the two b=0 volumes of a series, and say which is wrong if they differ.

    The diffusion-weighted volumes tell: the diffusivity that a b=0 volume gives to the brain is
    a usual one, and fluid, bright at b=0, is dark in them: noise has nothing to do with them.
    """
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    if len(b0s) != 2:
        return None
    lowest = dwis[np.argsort(dwi.gradients.bvals[dwis], kind="stable")][:WEIGHTED]
    appearance = Appearance.of(dwi.select(np.concatenate([b0s, lowest])))
    if appearance is None:
        return None
    weighted = np.arange(2, 2 + len(lowest))
    text = f"the two b=0 volumes ({listed(b0s)}) differ"
    if appearance.patterns[0] @ appearance.patterns[1] < ALIKE:
        similarity = [abs(appearance.similarity(volume, weighted)) for volume in (0, 1)]
        wrong = int(np.argmin(similarity))
        known = similarity[1 - wrong] > similarity[wrong] + UNLIKE
        text += " in what they show"
    elif abs(appearance.brightness[0] - appearance.brightness[1]) > GAP:
        decays = appearance.brightness[:2] - np.median(appearance.brightness[weighted])
        diffusivities = decays / np.median(dwi.gradients.bvals[lowest])
        usual = (diffusivities > USUAL[0]) & (diffusivities < USUAL[1])
        wrong, known = int(np.argmin(usual)), usual.sum() == 1
        factor = np.exp(abs(appearance.brightness[0] - appearance.brightness[1]))
        text += f" in brightness by a factor of {factor:.1f}"
    else:
        return None
    which = f"volume {b0s[wrong]} is the doubtful one" if known else "both are doubtful"
    return f"{text}; by the diffusion-weighted volumes {which}, look at them"


def _scaled_bvals(
    brightness: np.ndarray, levels: Sequence[np.ndarray], bvals: np.ndarray
) -> Contradiction | None:
    """Say whether all b-values are some power of ten too large or too small.

    The diffusivity that they give to the brain is impossible then.
    """
    levels = [level for level in levels if len(level)]
    places = np.array([np.median(bvals[level]) for level in levels])
    decays = np.median(brightness[levels[0]]) - [np.median(brightness[one]) for one in levels]
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
    """Say whether the lengths of the b-vectors tell the b-values, as scanners write it.

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
        _scatter(appearance.brightness, _levels(bvals, threshold)) for bvals in (nominal, scaled)
    )
    if before < SCALED_SPREAD or after > SCALED_GAIN * before:
        return None
    values = ", ".join(f"{bval:.0f}" for bval in _distinct(scaled, threshold))
    return Contradiction(
        f"volumes of one b-value differ in brightness by a factor of {np.exp(2 * before):.1f}",
        "the b-values fit the images if multiplied by the squared length of their b-vectors: "
        f"that gives b={values}",
    )


@dataclass(frozen=True)
class _Mislabelled:
    """A volume, its label, and what it looks like; None: like no other b-value of the table."""

    volume: int
    label: float
    like: float | None
    brighter: bool
    certain: bool


@dataclass(frozen=True, eq=False)
class _Labels:
    """Volumes under some table: by level, and those that do not belong to theirs.

    Parameters
    ----------
    appearance : Appearance
    bvals : (N,) array
    levels : list of index arrays
        Volumes of like b-values; the first are the b=0 volumes, which there may be none of.
    cores : list of index arrays
        Of each level, the volumes that look alike.
    shelled : bool
        Whether levels above b=0 are shells: points of a lattice are as unlike within a level as
        between two.
    """

    appearance: Appearance
    bvals: np.ndarray
    levels: list[np.ndarray]
    cores: list[np.ndarray]
    shelled: bool

    @classmethod
    def of(
        cls, appearance: Appearance, bvals: np.ndarray, threshold: float, *, shelled: bool
    ) -> _Labels:
        levels = _levels(bvals, threshold)
        cores = [
            _largest_cluster(level, appearance.brightness, brightest=number == 0)
            for number, level in enumerate(levels)
        ]
        return cls(appearance, bvals, levels, cores, shelled)

    @property
    def b0s(self) -> np.ndarray:
        return self.levels[0]

    def fit(self) -> bool:
        """Whether all volumes look like their level, and b=0 is the brightest."""
        if self.mislabelled() or not len(self.b0s):
            return False
        brightness = self.appearance.brightness
        rest = np.concatenate([*self.levels[1:], np.empty(0, int)])
        return bool(np.median(brightness[self.b0s]) > np.median(brightness[rest]) + GAP / 2)

    def mislabelled(self) -> list[_Mislabelled]:
        """Find the volumes that do not belong to their level, in their order."""
        found = [
            one
            for number, (level, core) in enumerate(zip(self.levels, self.cores, strict=True))
            for volume in np.setdiff1d(level, core)
            if (one := self._judged(int(volume), number)) is not None
        ]
        bright = np.array([one.volume for one in found if one.like is None], int)
        if len(bright):
            known = {one.volume for one in found}
            found += [one for one in self._too_dark(bright) if one.volume not in known]
        return sorted(found, key=lambda one: one.volume)

    def out_of_order(self) -> list[Contradiction]:
        """Find whole levels that are brighter than one of a lower b-value."""
        if not self.shelled:
            return []
        levels = [level for level in self.levels if len(level)]
        brightness = [np.median(self.appearance.brightness[level]) for level in levels]
        found = []
        for lower, higher in pairwise(range(len(levels))):
            if brightness[higher] > brightness[lower] + GAP:
                bvals = [self.bvals[levels[level]].mean() for level in (lower, higher)]
                found.append(Contradiction(
                    f"volumes {listed(levels[higher])} (b={bvals[1]:.0f}) are brighter than "
                    f"volumes {listed(levels[lower])} (b={bvals[0]:.0f})",
                    "the images fit if the two b-values are exchanged, or their gains differ",
                    certain=False,
                ))  # fmt: skip
        return found

    def _judged(self, volume: int, own: int) -> _Mislabelled | None:
        """Judge a volume that is brighter or darker than its level."""
        brightness, similarity = self.appearance.brightness, self.appearance.similarity
        label = float(self.bvals[volume])
        distances = [
            abs(brightness[volume] - np.median(brightness[core])) if len(core) else np.inf
            for core in self.cores
        ]
        brighter = bool(brightness[volume] > np.median(brightness[self.cores[own]]))
        at_home = similarity(volume, self.cores[own])
        brightest = max(np.median(brightness[core]) for core in self.cores if len(core))
        distances = distances if brightness[volume] < brightest + GAP else []
        for other in np.argsort(distances, kind="stable"):
            if other == own or not distances[other] < distances[own] / 2:
                continue
            if 0 not in (own, other) and not (self.shelled and distances[own] >= SHELLS_APART):
                continue
            if similarity(volume, self.cores[other]) > at_home + CONTRAST_MARGIN:
                like = 0.0 if other == 0 else float(self.bvals[self.levels[other]].mean())
                return _Mislabelled(volume, label, like, brighter, 0 in (own, other))
        usual = np.median([similarity(v, self.cores[own]) for v in self.cores[own]])
        if own and brightness[volume] > brightest - GAP / 2 and at_home < usual - STRANGE_BELOW:
            return _Mislabelled(volume, label, None, brighter, certain=True)
        return None

    def _too_dark(self, bright: np.ndarray) -> Iterator[_Mislabelled]:
        """Find b=0 volumes that look like a shell, and not like those that must be b=0."""
        brightness, similarity = self.appearance.brightness, self.appearance.similarity
        for volume in self.b0s:
            away = np.median(brightness[bright]) - brightness[volume]
            for level, core in zip(self.levels[1:], self.cores[1:], strict=True):
                near = abs(brightness[volume] - np.median(brightness[core])) < away / 2
                if (
                    near
                    and similarity(volume, core) > similarity(volume, bright) + CONTRAST_MARGIN
                ):
                    like = float(self.bvals[level].mean())
                    yield _Mislabelled(
                        int(volume), float(self.bvals[volume]), like, brighter=False, certain=True
                    )
                    break


@dataclass(frozen=True, eq=False)
class _OfDirection:
    """How the volumes of a shell look, as a function of the direction.

    Parameters
    ----------
    bval : float
    brightness : (6,) array
    patterns : (6, B) array
        Coefficients of the products of a direction's components.
    scatter : float
        Usual distance of the brightness from it.
    """

    bval: float
    brightness: np.ndarray
    patterns: np.ndarray
    scatter: float

    @classmethod
    def of(
        cls, appearance: Appearance, shell: np.ndarray, gradients: Gradients
    ) -> _OfDirection | None:
        """Fit the volumes of a shell, misplaced ones left out; None if they are too few."""
        if len(shell) < DIRECTIONS or gradients.is_trace[shell].any():
            return None
        design = _products(gradients.bvecs[shell])
        brightness = appearance.brightness[shell]
        penalty = 1e-2 * len(shell) * (np.eye(6) - _ISOTROPIC)
        away = brightness - np.median(brightness)
        for _ in range(20):
            scatter = max(robust_deviation(away), 0.01)
            weights = 1 / (1 + (away / (2 * scatter)) ** 2) ** 2
            weighted = design.T * weights
            normal = weighted @ design + penalty
            fitted = np.linalg.solve(normal, weighted @ brightness)
            away = brightness - design @ fitted
        patterns = np.linalg.solve(normal, weighted @ appearance.patterns[shell])
        return cls(float(gradients.bvals[shell].mean()), fitted, patterns, scatter)

    def distance(self, appearance: Appearance, volume: int, bvec: np.ndarray) -> float:
        """Brightness of a volume above that of a volume of this shell and its direction."""
        return float(appearance.brightness[volume] - _products(bvec) @ self.brightness)

    def similarity(self, appearance: Appearance, volume: int, bvec: np.ndarray) -> float:
        """Correlation of its pattern with that of such a volume."""
        expected = _products(bvec) @ self.patterns
        return float(appearance.patterns[volume] @ expected / max(np.linalg.norm(expected), 1e-12))


_ISOTROPIC = np.outer([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]) / 3
"""Of the products, the part that no direction changes."""


def _products(bvecs: np.ndarray) -> np.ndarray:
    """Products of the components of directions, (..., 6)."""
    x, y, z = np.moveaxis(bvecs, -1, 0)
    root = np.sqrt(2.0)
    return np.stack([x * x, y * y, z * z, root * x * y, root * x * z, root * y * z], axis=-1)


def _of_other_shells(appearance: Appearance, gradients: Gradients) -> list[_Mislabelled]:
    """Find volumes that look like those of another shell and of their direction."""
    if not gradients.is_shelled:
        return []
    fits = [_OfDirection.of(appearance, shell, gradients) for shell in gradients.shells]
    found = []
    for shell, own in zip(gradients.shells, fits, strict=True):
        if own is None:
            continue
        others = [one for one in fits if one is not None and one is not own]
        for volume in map(int, shell):
            bvec = gradients.bvecs[volume]
            away = own.distance(appearance, volume, bvec)
            if not others or abs(away) < max(MISPLACED_LEAST, MISPLACED_SCATTER * own.scatter):
                continue
            like = min(others, key=lambda one: abs(one.distance(appearance, volume, bvec)))
            if abs(like.distance(appearance, volume, bvec)) < abs(away) / 3 and (
                like.similarity(appearance, volume, bvec)
                > own.similarity(appearance, volume, bvec) - MISPLACED_MARGIN
            ):
                found.append(_Mislabelled(
                    volume, float(gradients.bvals[volume]), like.bval, away > 0, certain=False
                ))  # fmt: skip
    return found


def _levels(bvals: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Put volumes of like b-values together; those of b=0 come first."""
    is_b0 = bvals <= threshold
    levels = [np.flatnonzero(is_b0)]
    rest = np.flatnonzero(~is_b0)
    for volume in rest[np.argsort(bvals[rest], kind="stable")]:
        first = bvals[levels[-1][0]] if len(levels) > 1 else -np.inf
        if bvals[volume] - first <= max(SHELL_GAP, LEVEL_WIDTH * first):
            levels[-1] = np.append(levels[-1], volume)
        else:
            levels.append(np.array([volume]))
    return levels


def _largest_cluster(level: np.ndarray, brightness: np.ndarray, *, brightest: bool) -> np.ndarray:
    """Cut a level where its brightness leaves a gap; of equal parts the likelier one is kept."""
    order = level[np.argsort(brightness[level], kind="stable")]
    parts = np.split(order, np.flatnonzero(np.diff(brightness[order]) > GAP) + 1)
    if brightest:
        parts = parts[::-1]
    return np.sort(max(parts, key=len))


def _scatter(brightness: np.ndarray, levels: Sequence[np.ndarray]) -> float:
    """Root-mean-square distance from the median of the level."""
    away = [brightness[level] - np.median(brightness[level]) for level in levels if len(level)]
    return float(np.sqrt(np.mean(np.concatenate(away) ** 2)))


def _distinct(bvals: np.ndarray, threshold: float) -> list[float]:
    """Mean b-value of each level."""
    levels = [level for level in _levels(bvals, threshold) if len(level)]
    return [float(bvals[level].mean()) for level in levels]


def _describe(wrong: Sequence[_Mislabelled]) -> str:
    """Say which volumes look like what."""
    kinds: dict[str, list[int]] = {}
    for one in wrong:
        like = "all others and unlike them" if one.like is None else f"b={one.like:.0f}"
        side = "bright" if one.brighter else "dark"
        if one.like is None:
            words = f"labelled b={one.label:.0f} but as bright as b=0 or brighter"
        else:
            words = f"labelled b={one.label:.0f} but as {side} as {like}"
        kinds.setdefault(words, []).append(one.volume)
    return "; ".join(
        f"volume{'s' if len(volumes) > 1 else ''} {listed(volumes)} "
        f"{'are' if len(volumes) > 1 else 'is'} {words}"
        for words, volumes in kinds.items()
    )


def _relabelling(wrong: Sequence[_Mislabelled]) -> str:
    kinds: dict[float, list[int]] = {}
    for one in wrong:
        kinds.setdefault(one.like or 0.0, []).append(one.volume)
    return "the images fit " + ", ".join(
        f"b={bval:.0f} for {listed(volumes)}" for bval, volumes in kinds.items()
    )


def listed(volumes: Sequence[int] | np.ndarray, most: int = 12) -> str:
    """Name volumes; many are cut short."""
    shown = ", ".join(str(volume) for volume in volumes[:most])
    return shown + (f" and {len(volumes) - most} more" if len(volumes) > most else "")
