# SPDX-License-Identifier: Apache-2.0
"""Whether each b-vector stands at the volume that was recorded with it.

Poses hardly depend on it, since volumes are predicted from those that look like them; all that is
fitted to the corrected series does. The brain of a volume looks as its direction has it: the
patterns of a shell are about quadratic functions of the direction, five dimensions beside their
mean. With ``H`` the projection on such functions and ``G`` the products of the patterns,
``tr(H G)`` is what directions explain. Exchanging those of two volumes changes it by ::

    2 Σ_b (H_ib − H_jb) (G_jb − G_ib) + (H_ii − H_jj) (G_jj − G_ii),    b ≠ i, j

of all pairs at once in a few products of matrices. Other orders of the whole table are tried one
by one.

A head that moves changes the patterns as well, often by more than directions do; what a
displacement would add to them is taken out first (:mod:`eddymotion.data.checks.displaced`).

Where the table stands in no order at all, directions explain no more than by chance. With a random
rotation in place of ``H``, of ``m = n − 1`` dimensions, ``tr(H G)`` has ::

    mean      tr H tr G / m
    variance  2 [tr H² − (tr H)² / m] [tr G² − (tr G)² / m] / [(m − 1)(m + 2)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.displaced import displacement_bases
from eddymotion.data.checks.shells import direction_products
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import Series
from eddymotion.machine.frozen import once_per_value

LEAST_VOLUMES = 10
"""Of a shell, from which on its directions are compared."""

DIMENSIONS = 5
"""Of quadratic functions of the direction, beside their mean."""

EXPLAINED = 0.9
"""What the true directions explain, as a part of what any functions of as many dimensions explain:
0.94 to 1 in nine real series. In one whose head moved far it is 0.77, and nothing is said."""

GAIN = 2.4
"""Least gain of an exchange, in units of what is not explained of a volume. In the nine series no
exchange gains anything; in the other one the best gains 2.6, and others follow."""

LEAST_GAIN, SLIGHT = 1e-6, 0.1
"""A gain does not count below the first part of all differences among the volumes, or below the
second part of what is not explained of a volume. Two
directions a degree apart may be exchanged for 0.002 of the latter."""

MOST_EXCHANGES = 2
"""No more exchanges than this have to make all fit."""

MUCH_BETTER = 1.15
"""Another order of the whole table has to explain more by this factor."""

LEAST_FOR_CHANCE = 15
"""Least number of volumes of a shell to recognise a table in no order: with 12 any explains
half."""

BY_CHANCE = 2.5
"""Standard deviations, up to which a table explains no more than one in no order does; right ones
of six real series explain 8 to 27 more."""

LEAST_SHARE, MOST_OF_ONE, MOST_ALONG = 0.75, 0.45, 0.5
"""Volumes differ as directions make them if five patterns explain at least the first part of all
differences, one pattern at most the second part of these, and successive volumes correlate by the
third at most. In ten real series 0.85 to 0.93, 0.24 to 0.34 and 0.37 at most. Noise has many
patterns; motion has few, and lasts."""

ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "each is moved one diffusion-weighted volume earlier": lambda rows: np.roll(rows, -1),
    "each is moved one diffusion-weighted volume later": lambda rows: np.roll(rows, 1),
    "their order is reversed": lambda rows: rows[::-1],
}
"""Wrong orders of the diffusion-weighted volumes in which tables may be."""


@dataclass(frozen=True, eq=False)
class _Shell:
    """How a shell looks.

    Parameters
    ----------
    volumes : (n,) int array
    products : (n, n) array
        ``G``, of patterns less their mean.
    projection : (n, n) array
        ``H``
    """

    volumes: np.ndarray
    products: np.ndarray
    projection: np.ndarray

    @classmethod
    def of(cls, products: np.ndarray, bvecs: np.ndarray, volumes: np.ndarray) -> _Shell:
        """Look at the volumes of a shell, with the b-vectors (N, 3) of a table."""
        design = direction_products(bvecs[volumes])
        design = design - design.mean(axis=0)
        return cls(volumes, products, design @ np.linalg.pinv(design, rcond=1e-3))

    @property
    def explained(self) -> float:
        """What directions explain, as part of what any functions of as many dimensions do."""
        most = np.linalg.eigvalsh(self.products)[-DIMENSIONS:].sum()
        return float((self.projection * self.products).sum() / max(most, 1e-12))

    @property
    def beyond_chance(self) -> float:
        """What directions explain beyond any in no order, in standard deviations of these."""
        H, G, m = self.projection, self.products, len(self.volumes) - 1
        h, g = np.trace(H), np.trace(G)
        spread = ((H * H).sum() - h**2 / m) * ((G * G).sum() - g**2 / m)
        deviation = np.sqrt(max(2 * spread / ((m - 1) * (m + 2)), 1e-30))
        return float(((H * G).sum() - h * g / m) / deviation)

    @property
    def shows_directions(self) -> bool:
        """Whether volumes differ in about as many ways as directions would make them."""
        variances = np.linalg.eigvalsh(self.products)[-DIMENSIONS:]
        together, all_ways = variances.sum(), np.trace(self.products)
        along = np.trace(self.products, 1) / max(all_ways, 1e-12)
        return bool(
            together > LEAST_SHARE * all_ways
            and variances[-1] < MOST_OF_ONE * together
            and along < MOST_ALONG
        )

    @property
    def unexplained(self) -> float:
        """What directions do not explain, of a volume."""
        left = np.trace(self.products) - (self.projection * self.products).sum()
        return float(left / (len(self.volumes) - DIMENSIONS - 1))

    def gains(self) -> np.ndarray:
        """Return by how much exchanging the directions of two volumes explains more, (n, n)."""
        H, G = self.projection, self.products
        h, g, HG = np.diag(H), np.diag(G), H @ G
        of_all = HG + HG.T - np.diag(HG)[:, None] - np.diag(HG)
        of_pair = (h[:, None] - H) * (G - g[:, None]) + (h - H) * (G - g)
        return 2 * (of_all - of_pair) + (h[:, None] - h) * (g - g[:, None])

    def exchanged(self, i: int, j: int) -> _Shell:
        """Return the same with the directions of two volumes exchanged."""
        order = np.arange(len(self.volumes))
        order[[i, j]] = j, i
        return _Shell(self.volumes, self.products, self.projection[np.ix_(order, order)])

    def exchanges(self) -> list[tuple[int, int]]:
        """Find exchanges of two of its directions that make it fit; none if they are unclear."""
        shell, pairs = self, list[tuple[int, int]]()
        while len(pairs) <= MOST_EXCHANGES:
            gains = shell.gains()
            i, j = divmod(int(np.argmax(gains)), len(gains))
            least = max(LEAST_GAIN * np.trace(shell.products), SLIGHT * shell.unexplained)
            if gains[i, j] < least:
                return pairs if shell.explained > EXPLAINED else []
            if gains[i, j] < GAIN * shell.unexplained:
                return []
            shell = shell.exchanged(i, j)
            pairs.append((i, j))
        return []


def exchanged_vectors(dwi: Series) -> list[tuple[int, int]]:
    """Find pairs of volumes whose b-vectors seem to be exchanged.

    Parameters
    ----------
    dwi : Series
    """
    pairs: list[tuple[int, int]] = []
    for shell in _shells(dwi, dwi.gradients.bvecs):
        pairs += [(shell.volumes[i], shell.volumes[j]) for i, j in shell.exchanges()]
    return sorted((int(min(pair)), int(max(pair))) for pair in pairs)


def likelier_order(dwi: Series) -> str | None:
    """Say in which other order the b-vectors of a table fit the images; None where in none.

    Parameters
    ----------
    dwi : Series
    """
    gradients, dwis = dwi.gradients, dwi.gradients.dwis

    def explained(rows: np.ndarray) -> float:
        bvecs = gradients.bvecs.copy()
        bvecs[dwis] = gradients.bvecs[rows]
        return float(np.mean([shell.explained for shell in _shells(dwi, bvecs)] or [1.0]))

    own = explained(dwis)
    if own > EXPLAINED / MUCH_BETTER:
        return None
    others = {words: explained(order(dwis)) for words, order in ORDERS.items()}
    best = max(others, key=lambda words: others[words])
    return best if others[best] > max(EXPLAINED, MUCH_BETTER * own) else None


def in_no_order(dwi: Series) -> bool:
    """Whether volumes differ as directions would make them, and the table explains it by chance.

    Parameters
    ----------
    dwi : Series
    """
    clear = [shell for shell in _shells(dwi, dwi.gradients.bvecs)
             if len(shell.volumes) >= LEAST_FOR_CHANCE and shell.shows_directions]  # fmt: skip
    return bool(clear) and all(shell.beyond_chance < BY_CHANCE for shell in clear)


def _shells(dwi: Series, bvecs: np.ndarray) -> list[_Shell]:
    """Look at the shells that are large enough, with the b-vectors (N, 3) of a table."""
    return [_Shell.of(products, bvecs, volumes) for volumes, products in _products(dwi)]


@once_per_value
def _products(dwi: Series) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the shells that are large enough, and the products of their patterns.

    Less what the displacement of the head adds to them. They do not depend on the b-vectors, of
    which several tables are tried.
    """
    large = _large_shells(dwi.gradients)
    if not large or (appearance := Appearance.of(dwi)) is None:
        return []
    bases, found = displacement_bases(dwi, large), []
    for number, volumes in enumerate(large):
        patterns = appearance.patterns[volumes] - appearance.patterns[volumes].mean(axis=0)
        if bases is not None:
            patterns = patterns - patterns @ bases[number].T @ bases[number]
        found.append((volumes, patterns @ patterns.T))
    return found


def _large_shells(gradients: Gradients) -> Sequence[np.ndarray]:
    """Shells of enough volumes that all have a direction."""
    if not gradients.is_shelled:
        return []
    return [one for one in gradients.shells
            if len(one) >= LEAST_VOLUMES and not gradients.is_trace[one].any()]  # fmt: skip
