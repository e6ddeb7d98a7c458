# SPDX-License-Identifier: Apache-2.0
"""Volumes that do not look like others of their b-value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.contradiction import Contradiction
from eddymotion.data.gradients import SHELL_GAP
from eddymotion.wording import listed

LEVEL_WIDTH = 0.15
"""b-values that differ by less than this part, or by :data:`SHELL_GAP`, should look alike."""

GAP = 0.3
"""Volumes of one b-value do not part in two by brightness (logarithm) further than this: the
signal falls by that much from b=0 to 350 s/mm²."""

SHELLS_APART = 0.5
"""One shell is taken for another only where brightness (logarithm) differs by this much: at b=5000
s/mm² and few directions it varies by 0.35."""

LONE, MANY = 2, 6
"""Up to the first number of volumes may all have a wrong label; from the second on they do not."""

APART = 2.0
"""Volumes whose b-values differ by more than this factor do not look alike."""

CONTRAST_MARGIN = 0.1
"""By how much better the pattern of a volume has to agree with that of another b-value."""

STRANGE_BELOW = 0.15
"""A pattern whose correlation with its level is this far below the usual does not belong to it."""


@dataclass(frozen=True)
class Mislabelled:
    """A volume, its label, and what it looks like; None: like no other b-value of the table."""

    volume: int
    label: float
    like: float | None
    brighter: bool
    certain: bool


@dataclass(frozen=True, eq=False)
class Labels:
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
    ) -> Labels:
        """Put volumes of like b-values together, and find those that look alike."""
        levels = levels_of(bvals, threshold)
        cores = [
            _largest_cluster(level, appearance.brightness, brightest=number == 0)
            for number, level in enumerate(levels)
        ]
        return cls(appearance, bvals, levels, cores, shelled)

    @property
    def b0s(self) -> np.ndarray:
        """Volumes labelled b=0."""
        return self.levels[0]

    def fit(self) -> bool:
        """Whether all volumes look like their level, and b=0 is the brightest."""
        if self.mislabelled() or not len(self.b0s):
            return False
        brightness = self.appearance.brightness
        rest = np.concatenate([*self.levels[1:], np.empty(0, int)])
        return bool(np.median(brightness[self.b0s]) > np.median(brightness[rest]) + GAP / 2)

    def mislabelled(self) -> list[Mislabelled]:
        """Find the volumes that do not belong to their level, in their order."""
        found = [
            one
            for number, (level, core) in enumerate(zip(self.levels, self.cores, strict=True))
            for volume in np.setdiff1d(level, core)
            if (one := self._judged(int(volume), number)) is not None
        ]
        known = {one.volume for one in found}
        found += [one for one in self._lone() if one.volume not in known]
        bright = np.array([one.volume for one in found if one.like is None], int)
        if len(bright):
            known = {one.volume for one in found}
            found += [one for one in self._too_dark(bright) if one.volume not in known]
        return sorted(found, key=lambda one: one.volume)

    def out_of_order(self) -> list[Contradiction]:
        """Find whole levels that are brighter than one of a lower b-value."""
        if not self.shelled:
            return []
        there = [number for number, level in enumerate(self.levels) if len(level)]
        levels, brightness = [self.levels[k] for k in there], self._brightness[there]
        found = []
        for lower, higher in pairwise(range(len(levels))):
            if brightness[higher] > brightness[lower] + GAP:
                bvals = [self.bvals[levels[level]].mean() for level in (lower, higher)]
                found.append(Contradiction(
                    f"volumes {listed(levels[higher])} (b={bvals[1]:.0f}) are brighter than "
                    f"volumes {listed(levels[lower])} (b={bvals[0]:.0f})",
                    "exchange the two b-values if they are swapped, or check whether the gains "
                    "differ",
                    certain=False,
                ))  # fmt: skip
        return found

    @cached_property
    def _brightness(self) -> np.ndarray:
        """Median brightness of each core; NaN where there is none."""
        brightness = self.appearance.brightness
        return np.array([np.median(brightness[core]) if len(core) else np.nan
                         for core in self.cores])  # fmt: skip

    def _judged(self, volume: int, own: int) -> Mislabelled | None:
        """Judge a volume that is brighter or darker than its level."""
        label = float(self.bvals[volume])
        brighter = bool(self.appearance.brightness[volume] > self._brightness[own])
        if (other := self._likelier_level(volume, own)) is not None:
            like = 0.0 if other == 0 else float(self.bvals[self.levels[other]].mean())
            return Mislabelled(volume, label, like, brighter, certain=0 in (own, other))
        if own and self._is_strange(volume, own):
            return Mislabelled(volume, label, None, brighter, certain=True)
        return None

    def _likelier_level(self, volume: int, own: int) -> int | None:
        """Find the level, of those nearer in brightness, whose pattern fits a volume better."""
        brightness, similarity = self.appearance.brightness[volume], self.appearance.similarity
        if brightness >= np.nanmax(self._brightness) + GAP:
            return None
        distances = np.abs(brightness - self._brightness)
        at_home = similarity(volume, self.cores[own])
        between_shells = self.shelled and distances[own] >= SHELLS_APART
        for other in np.argsort(distances, kind="stable"):
            if other == own or not distances[other] < distances[own] / 2:
                continue
            if 0 not in (own, other) and not between_shells:
                continue
            if similarity(volume, self.cores[other]) > at_home + CONTRAST_MARGIN:
                return int(other)
        return None

    def _is_strange(self, volume: int, own: int) -> bool:
        """Whether a volume is as bright as b=0, with a pattern that its level does not have."""
        if self.appearance.brightness[volume] <= np.nanmax(self._brightness) - GAP / 2:
            return False
        core, similarity = self.cores[own], self.appearance.similarity
        usual = np.median([similarity(member, core) for member in core])
        return bool(similarity(volume, core) < usual - STRANGE_BELOW)

    def _lone(self) -> Iterator[Mislabelled]:
        """Find the few volumes of a shell that look like one of quite another b-value."""
        for level in self.levels[1:] if self.shelled and len(self.b0s) else ():
            for volume in map(int, level) if len(level) <= LONE else ():
                others = range(1, len(self.levels))
                other = next((k for k in others if self._is_alike_though_apart(volume, k)), None)
                if other is not None:
                    label = float(self.bvals[volume])
                    like = float(self.bvals[self.levels[other]].mean())
                    yield Mislabelled(volume, label, like, label > like, certain=False)

    def _is_alike_though_apart(self, volume: int, other: int) -> bool:
        """Whether a volume looks like a level of a far larger or smaller b-value.

        If its own b-value is the larger one, no tissue would be attenuated that little: by less
        than half of what the attenuation of the level implies. An object without diffusion looks
        alike at all b-values, and so does one at the noise floor.
        """
        core, similarity = self.cores[other], self.appearance.similarity
        times = self.bvals[volume] / self.bvals[self.levels[other]].mean()
        if len(core) < MANY or 1 / APART < times < APART:
            return False
        if np.exp(self._brightness[other] - GAP) < self.appearance.floor:
            return False
        lost = self._brightness[0] - self.appearance.brightness[volume]
        of_other = self._brightness[0] - self._brightness[other]
        alike = (
            of_other > GAP
            and abs(lost - of_other) < GAP / 2
            and not lost > of_other * max(1.0, times / 2)
        )
        usual = np.median([similarity(member, core) for member in core])
        return bool(alike and similarity(volume, core) > usual - STRANGE_BELOW)

    def _too_dark(self, bright: np.ndarray) -> Iterator[Mislabelled]:
        """Find b=0 volumes that look like a shell, and not like those that must be b=0."""
        for volume in map(int, self.b0s):
            shells = zip(self.levels[1:], self.cores[1:], strict=True)
            level = next(
                (level for level, core in shells if self._fits(volume, core, bright)), None
            )
            if level is not None:
                label, like = float(self.bvals[volume]), float(self.bvals[level].mean())
                yield Mislabelled(volume, label, like, brighter=False, certain=True)

    def _fits(self, volume: int, core: np.ndarray, bright: np.ndarray) -> bool:
        """Whether a volume fits better among those of a core than among the bright ones."""
        brightness, similarity = self.appearance.brightness, self.appearance.similarity
        away = np.median(brightness[bright]) - brightness[volume]
        if not abs(brightness[volume] - np.median(brightness[core])) < away / 2:
            return False
        return similarity(volume, core) > similarity(volume, bright) + CONTRAST_MARGIN


def levels_of(bvals: np.ndarray, threshold: float) -> list[np.ndarray]:
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
