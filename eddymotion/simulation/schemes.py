# SPDX-License-Identifier: Apache-2.0
"""Gradient schemes: shells, and random points of a lattice in q-space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError

LATTICE_RADIUS = 5
"""Lattice steps from the centre of q-space to its edge, as in DSI with 515 points."""


def shelled_scheme(shells: dict[float, int], n_b0: int = 1, *, seed: int = 0) -> Gradients:
    """Spread directions evenly over each shell, in random order, b=0 interleaved.

    Parameters
    ----------
    shells : dict
        b-value → number of directions.
    n_b0 : int
        The first volume is a b=0; the others are spread over the series.
    seed : int

    Returns
    -------
    Gradients
        RAS+.
    """
    random = np.random.default_rng(seed)
    bvals = np.repeat(list(shells), list(shells.values())).astype(float)
    bvecs = np.concatenate([_spread_directions(n, random) for n in shells.values()])
    order = random.permutation(len(bvals))
    return _interleave_b0(bvals[order], bvecs[order], n_b0)


def cartesian_scheme(n: int, b_max: float, n_b0: int = 1, *, seed: int = 0) -> Gradients:
    """Draw points of a Cartesian half-grid in q-space, in random order, b=0 interleaved.

    The randomly subsampled diffusion spectrum imaging of Cieslak et al. (2024): of the lattice
    points up to a radius of :data:`LATTICE_RADIUS` steps, of each antipodal pair one.

    Parameters
    ----------
    n : int
        Number of points, at most 257.
    b_max : float
        b-value (s/mm²) at the radius; ``b_max * |q|² / 25`` elsewhere.
    n_b0 : int
        The first volume is a b=0; the others are spread over the series.
    seed : int

    Returns
    -------
    Gradients
        RAS+.

    Raises
    ------
    EddymotionError
        If there are fewer points than that.

    References
    ----------
    Cieslak et al. (2024), Imaging Neuroscience.
    """
    points = _half_lattice(LATTICE_RADIUS)
    if n > len(points):
        raise EddymotionError(f"a half-grid has {len(points)} points, {n} were requested")
    q = np.random.default_rng(seed).permutation(points)[:n]
    squared = (q**2).sum(axis=1)
    return _interleave_b0(b_max * squared / LATTICE_RADIUS**2, q.astype(float), n_b0)


def _half_lattice(radius: int) -> np.ndarray:
    """Lattice points in a ball, without the centre, of each antipodal pair one: (P, 3)."""
    from eddymotion.images.grid import all_points

    steps = np.arange(-radius, radius + 1)
    q = all_points([steps] * 3)
    q = q[len(q) // 2 + 1 :]  # in lexicographic order, antipodes mirror each other
    return q[(q**2).sum(axis=1) <= radius**2]


def _interleave_b0(bvals: np.ndarray, bvecs: np.ndarray, n_b0: int) -> Gradients:
    where = np.linspace(0, len(bvals), n_b0, endpoint=False).astype(int)
    return Gradients(np.insert(bvals, where, 0.0), np.insert(bvecs, where, 0.0, axis=0))


def _spread_directions(n: int, random: np.random.Generator) -> np.ndarray:
    """Points that repel each other and each other's antipodes (Jones et al. 1999)."""
    from dipy.core.sphere import HemiSphere, disperse_charges

    start = random.normal(size=(n, 3))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    if n == 1:
        return start
    sphere, _ = disperse_charges(HemiSphere(xyz=start), 500)
    return sphere.vertices * random.choice([-1.0, 1.0], size=(n, 1))


def mirrored_scheme(shells: dict[float, int], n_b0: int) -> Gradients:
    """Measure a :func:`shelled_scheme` twice, the second time with all gradients reversed."""
    once = shelled_scheme(shells, n_b0)
    return Gradients(np.tile(once.bvals, 2), np.concatenate([once.bvecs, -once.bvecs]))


def b0_scheme(n: int) -> Gradients:
    """No diffusion weighting in any of `n` volumes."""
    return Gradients(np.zeros(n), np.zeros((n, 3)))


@dataclass(frozen=True)
class Scheme:
    """A gradient scheme with a name."""

    description: str
    build: Callable[[], Gradients]


SCHEMES = {
    "single": Scheme(
        "64 directions at b=1000, 6 b=0",
        partial(shelled_scheme, {1000.0: 64}, 6),
    ),
    "abcd": Scheme(
        "ABCD: 6, 15, 15, 60 directions at b=500, 1000, 2000, 3000, 7 b=0",
        partial(shelled_scheme, {500.0: 6, 1000.0: 15, 2000.0: 15, 3000.0: 60}, 7),
    ),
    "hcp": Scheme(
        "Human Connectome Project: 90 directions each at b=1000, 2000, 3000, 18 b=0",
        partial(shelled_scheme, {1000.0: 90, 2000.0: 90, 3000.0: 90}, 18),
    ),
    "hcph": Scheme(
        "Human Connectome PHantom: 6, 20, 45, 66 directions at b=700, 1000, 2000, 3000 and 3 b=0, "
        "then all again, reversed",
        partial(mirrored_scheme, {700.0: 6, 1000.0: 20, 2000.0: 45, 3000.0: 66}, 3),
    ),
    "csdsi": Scheme(
        "compressed-sensing DSI: 55 random points of the DSI lattice to b=5000, 3 b=0",
        partial(cartesian_scheme, 55, 5000.0, 3),
    ),
    "dsi": Scheme(
        "DSI: the half lattice of 257 points to b=5000, 1 b=0",
        partial(cartesian_scheme, 257, 5000.0, 1),
    ),
    "few": Scheme(
        "12 directions at b=1000, 1 b=0",
        partial(shelled_scheme, {1000.0: 12}, 1),
    ),
    "b0": Scheme("3 b=0 alone, as of reversed phase encoding", partial(b0_scheme, 3)),
}
"""Schemes by name; each always the same, whatever the seed of a simulation."""
