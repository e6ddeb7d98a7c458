# SPDX-License-Identifier: Apache-2.0
"""What is minimised: how the values of two images belong together.

Each metric looks at the values ``f`` of the reference image and ``m`` of the target at the same
random points, and answers with its cost and how the cost changes when the *reference* is shifted
by a small step ``δ = B p``, i.e. when ``f`` becomes ``f − ∇f·δ``. All about the reference is
computed once a level; a step costs one sampling of the target.

``ssd``
    ``m = a f + c``, Student-t weights (one degree of freedom).
``cr``
    ``m = φ(f)`` with any smooth ``φ`` (B-splines): the correlation ratio (Roche et al. 1998).
``lncc``
    ``m = a f + c`` in each of many small clusters of points: one minus the squared local
    correlation.
``mi``, ``nmi``
    (Normalised) mutual information of a joint histogram with cubic B-spline windows on both sides
    (Thévenaz & Unser 2000; Studholme et al. 1999). Its slope is exact. With one image shifted the
    histogram's logarithm acts as a log-likelihood, whose curvature is the Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.images.lattice import spline_matrix
from eddymotion.images.pyramid import MIN_POINTS, jittered_points
from eddymotion.registration.solver import Evaluation
from eddymotion.robust import TINY, Cauchy

METRICS: tuple[str, ...] = ("ssd", "lncc", "cr", "mi", "nmi")

N_BINS = {0: 16, 8_000: 32}
"""Number of points → bins of the joint histogram along each side, from there on: with few points
in many bins, chance looks like information."""

N_KNOTS = 16
"""Of the curve ``φ``."""

TAILS = (0.002, 0.998)
"""Quantiles between which the bins and knots are spaced; values beyond count as the outermost."""

CLUSTER_SIZE = 24
CLUSTER_WIDTH = 4.0
"""Points of a cluster, and its edge relative to the width (FWHM) of the level."""

POINTS_FACTOR = 3
"""A correlation spends points on its clusters: it gets this many times those of the level."""

RIDGE = 1e-6
"""Relative, on the diagonal of normal matrices."""

INFORMATION = 0.5
"""Fisher information of Student-t residuals with one degree of freedom, relative to the normal
matrix of their weights: reweighted least squares alone goes half of each step (Lange et al. 1989).
"""

EXACT = 0.02
"""Residuals below this share of the standard deviation count as equal: in images without
background half of the points could fit exactly, and the rest would count as outliers."""

FLAT = 0.02
"""Share of the mean variance that is added to that of each cluster: flat ones count less."""


@dataclass(frozen=True, eq=False)
class Expansion(Evaluation):
    """A cost in second order of a step.

    Parameters
    ----------
    cost, n_points, hessian
        See :class:`~eddymotion.registration.solver.Evaluation`.
    slope : (K,) array
    """

    slope: np.ndarray

    def step(self) -> np.ndarray:
        """Return the Gauss-Newton step."""
        scale = np.sqrt(np.diag(self.hessian)) + np.finfo(float).tiny
        scaled = self.hessian / np.outer(scale, scale)
        scaled[np.diag_indices_from(scaled)] += RIDGE
        return -np.linalg.solve(scaled, self.slope / scale) / scale


class Fit(Protocol):
    """A metric with what it knows about the reference at one level."""

    @property
    def slack(self) -> float:
        """Rise of the cost that still counts as progress."""
        ...

    def evaluate(self, moved: np.ndarray) -> Expansion | None:
        """Evaluate at the target's values (P,), NaN outside; None if there is nothing to see."""
        ...


@dataclass(frozen=True, eq=False)
class LinearFit:
    """``ssd``: one scale and offset, Student-t weights.

    Parameters
    ----------
    values : (P,) array
        The reference at the points.
    columns : (P, K) array
        ``−∇f · ∂δ/∂p``.
    """

    values: np.ndarray
    columns: np.ndarray
    slack: float = 1e-3  # near the optimum the robust scale jitters by more than a step gains

    def evaluate(self, moved: np.ndarray) -> Expansion | None:
        """See :class:`Fit`."""
        inside = np.isfinite(moved)
        y = moved[inside].astype(float)
        intensities = np.column_stack([self.values[inside], np.ones(len(y))])
        first, weights, square, cost = _robust_fit(intensities, y)
        columns = np.column_stack([intensities, self.columns[inside]])
        solution, reduced = _solve_reduced(columns, y, weights, 2)
        gain = solution[0] if abs(solution[0]) > 1e-3 * abs(first[0]) else first[0]
        if gain == 0:
            return None
        reweighted = reduced * (gain**2 / (len(y) * square))
        slope = -reweighted @ solution[2:] / gain
        return Expansion(cost, len(y), INFORMATION * reweighted, slope)


@dataclass(frozen=True, eq=False)
class CurveFit:
    """``cr``: any smooth curve of the reference's values; cost ½ ln(1 − η²).

    All points count alike: with weights, so pliable a curve would follow a part of them and let
    the others go as outliers, wherever the images lie.

    Parameters
    ----------
    basis, derivatives : (P, N_KNOTS) arrays
        B-splines of the reference's values and their derivatives.
    columns : (P, K) array
        ``−∇f · ∂δ/∂p``.
    """

    basis: np.ndarray
    derivatives: np.ndarray
    columns: np.ndarray
    slack: float = 1e-3  # points come into view and leave it

    @classmethod
    def of(cls, values: np.ndarray, columns: np.ndarray) -> CurveFit:
        """Prepare for the reference's values (P,)."""
        windows = Windows.over(values, N_KNOTS)
        return cls(windows.weights(values), windows.weights(values, 1), columns)

    def evaluate(self, moved: np.ndarray) -> Expansion | None:
        """See :class:`Fit`."""
        inside = np.isfinite(moved)
        y, basis = moved[inside].astype(float), self.basis[inside]
        evenly = np.ones_like(y)
        curve = _weighted_solution(basis, y, evenly)
        left = float(((y - basis @ curve) ** 2).mean())
        if not (left > 0 and y.var() > 0):
            return None
        slopes = self.derivatives[inside] @ curve
        columns = np.column_stack([basis, self.columns[inside] * slopes[:, None]])
        solution, reduced = _solve_reduced(columns, y, evenly, basis.shape[1])
        hessian = reduced / (len(y) * left)
        cost = 0.5 * float(np.log(left / y.var()))
        return Expansion(cost, len(y), hessian, -hessian @ solution[basis.shape[1] :])


@dataclass(frozen=True, eq=False)
class ClusterFit:
    """``lncc``: a scale and offset for each cluster.

    Parameters
    ----------
    values : (P,) array
        Cluster by cluster, NaN where the reference has none.
    columns : (P, K) array
        ``−∇f · ∂δ/∂p``.
    """

    values: np.ndarray
    columns: np.ndarray
    slack: float = 1e-4

    def evaluate(self, moved: np.ndarray) -> Expansion | None:
        """See :class:`Fit`."""
        f, m = (v.reshape(-1, CLUSTER_SIZE).astype(float) for v in (self.values, moved))
        known = np.isfinite(f) & np.isfinite(m)
        whole = known.sum(axis=1) > CLUSTER_SIZE / 2
        if whole.sum() * CLUSTER_SIZE < MIN_POINTS:
            return None
        f, m, known = f[whole], m[whole], known[whole]
        columns = self.columns.reshape(len(whole), CLUSTER_SIZE, -1)[whole]
        share = known / known.sum(axis=1, keepdims=True)
        f, m = (_centred(values, known, share) for values in (f, m))
        ff, fm, mm = (np.einsum("cn,cn->c", a, b) for a, b in ((f, f), (f, m), (m, m)))
        if ff.max() <= 0 or mm.max() <= 0:
            return None
        ff, mm = ff + FLAT * ff.mean(), mm + FLAT * mm.mean()
        gain = fm / ff
        columns = np.where(known[..., None], columns, 0.0)
        columns -= known[..., None] * np.einsum("cn,cnk->ck", share, columns)[:, None]
        residual = m - gain[:, None] * f
        right = np.einsum("cnk,cn->k", columns, residual * (gain / mm)[:, None])
        along = np.einsum("cn,cnk->ck", f, columns) / ff[:, None]
        columns -= f[..., None] * along[:, None]
        flat = (columns * (gain / np.sqrt(mm))[:, None, None]).reshape(-1, columns.shape[2])
        n, cost = len(f), float(1 - (fm**2 / (ff * mm)).mean())
        n_points = int(np.isfinite(moved).sum())
        return Expansion(cost, n_points, 2 * flat.T @ flat / n, -2 * right / n)


def _centred(values: np.ndarray, known: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Subtract the mean of each cluster; zero where nothing is known."""
    filled = np.where(known, values, 0.0)
    return known * (filled - np.einsum("cn,cn->c", share, filled)[:, None])


@dataclass(frozen=True, eq=False)
class HistogramFit:
    """``mi`` and ``nmi``: a joint histogram.

    Parameters
    ----------
    weights, slopes, curvatures : (P, N) arrays
        B-spline windows of the reference's values and their two derivatives.
    columns : (P, K) array
        ``−∇f · ∂δ/∂p``.
    moving : Windows
        Bins of the target.
    normalised : bool
        Whether it is ``nmi``.
    """

    weights: np.ndarray
    slopes: np.ndarray
    curvatures: np.ndarray
    columns: np.ndarray
    moving: Windows
    normalised: bool
    slack: float = 1e-4

    @classmethod
    def of(
        cls, values: np.ndarray, columns: np.ndarray, moving: Windows, normalised: bool
    ) -> HistogramFit:
        """Prepare for the reference's values (P,)."""
        windows = Windows.over(values, moving.n)
        weights, slopes, curvatures = (windows.weights(values, order) for order in range(3))
        return cls(weights, slopes, curvatures, columns, moving, normalised)

    def evaluate(self, moved: np.ndarray) -> Expansion | None:
        """See :class:`Fit`."""
        inside = np.isfinite(moved)
        n = int(inside.sum())
        target = self.moving.weights(moved[inside])
        found = Information.of((self.weights[inside].T @ target).astype(float) / n)
        nmi, ratio = found.normalised, found.normalised if self.normalised else 1.0
        table = (ratio * found.log_joint - found.log_rows[:, None]).astype(np.float32)
        columns = self.columns[inside]
        slope = _weigh(self.slopes[inside] @ table, target)
        curvature = np.maximum(-_weigh(self.curvatures[inside] @ table, target), 0.0)
        scale = 1 / (found.together if self.normalised else 1.0) / n
        cost = -nmi if self.normalised else found.together - found.apart
        hessian = (columns * curvature[:, None]).T @ columns
        if not hessian.any():
            return None
        return Expansion(float(cost), n, scale * hessian, -scale * (slope @ columns))


@dataclass(frozen=True, eq=False)
class Information:
    """Mutual information of two images, from their joint histogram (Studholme et al. 1999).

    Parameters
    ----------
    together, apart : float
        Entropy of the joint histogram, and the sum of those of its two sides.
    log_joint, log_rows : (N, M) array, (N,) array
        Logarithms of the joint histogram and of its first side.
    """

    together: float
    apart: float
    log_joint: np.ndarray
    log_rows: np.ndarray

    @classmethod
    def of(cls, joint: np.ndarray) -> Information:
        """Measure a joint histogram (N, M) of sum one."""
        rows, columns = joint.sum(axis=1), joint.sum(axis=0)
        log_joint, log_rows, log_columns = (
            np.log(np.maximum(share, 1e-12)) for share in (joint, rows, columns)
        )
        apart = -(rows @ log_rows + columns @ log_columns)
        return cls(float(-(joint * log_joint).sum()), float(apart), log_joint, log_rows)

    @property
    def normalised(self) -> float:
        """Normalised mutual information, from 1 (nothing in common) to 2."""
        return self.apart / self.together if self.together else 1.0


def _weigh(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("pj,pj->p", rows, weights).astype(float)


@dataclass(frozen=True)
class Windows:
    """Cubic B-splines, one per bin, over a range of values.

    Parameters
    ----------
    low, width : float
        Centre of the first full bin, and distance between bins.
    n : int
        Bins; the outermost two on each side are only reached by the tails of the windows.
    """

    low: float
    width: float
    n: int

    @classmethod
    def over(cls, values: np.ndarray, n: int) -> Windows:
        """Span the values but for their tails."""
        low, high = np.quantile(values, TAILS)
        if high <= low:
            low, high = float(values.min()), float(values.max())
        return cls(float(low), max(float(high - low), 1e-12) / (n - 5), n)

    def weights(self, values: np.ndarray, order: int = 0) -> np.ndarray:
        """Return the windows at values (P,), or their derivative of an order: (P, n) float32."""
        position = (np.asarray(values, float) - self.low) / self.width + 2.0
        return spline_matrix(
            position, self.n, order, spacing=self.width, margin=2, dtype=np.float32
        )


def cluster_points(
    mask: np.ndarray, affine: np.ndarray, n_points: int, width: float, random: np.random.Generator
) -> np.ndarray:
    """Draw clusters of points around random points of a mask: (C * CLUSTER_SIZE, 3), RAS+ mm.

    Each fills a cube with edges of `width` mm.
    """
    voxels = np.argwhere(mask)
    n_clusters = max(n_points // CLUSTER_SIZE, MIN_POINTS // CLUSTER_SIZE + 1)
    chosen = voxels[random.integers(len(voxels), size=n_clusters)]
    middles = apply_affine(affine, chosen + random.uniform(-0.5, 0.5, chosen.shape))
    spread = random.uniform(-width / 2, width / 2, (n_clusters, CLUSTER_SIZE, 3))
    return (middles[:, None] + spread).reshape(-1, 3)


def draw_points(
    metric: str,
    mask: np.ndarray,
    affine: np.ndarray,
    n_points: int,
    fwhm: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Draw the points at which `metric` looks at a level of width `fwhm` (mm): (P, 3), RAS+ mm."""
    if metric == "lncc":
        width = CLUSTER_WIDTH * fwhm
        return cluster_points(mask, affine, POINTS_FACTOR * n_points, width, random)
    return jittered_points(mask, affine, n_points, random)


def build_fit(
    metric: str, values: np.ndarray, columns: np.ndarray, moving_values: np.ndarray
) -> Fit:
    """Prepare a metric for the values (P,) of the reference.

    Parameters
    ----------
    metric : {"ssd", "lncc", "cr", "mi", "nmi"}
    values : (P,) array
        Finite, but for ``lncc``.
    columns : (P, K) array
        ``−∇f · ∂δ/∂p``.
    moving_values : array
        Values of the target that set the range of its bins.
    """
    if metric == "ssd":
        return LinearFit(values.astype(float), columns)
    if metric == "cr":
        return CurveFit.of(values, columns)
    if metric == "lncc":
        return ClusterFit(values, columns)
    windows = Windows.over(moving_values, max(n for at, n in N_BINS.items() if len(values) >= at))
    return HistogramFit.of(values, columns, windows, normalised=metric == "nmi")


def _robust_fit(basis: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Fit intensities: coefficients, weights, their squared scale, −log-likelihood a point."""
    weights, floor = np.ones_like(y), EXACT * y.std() + TINY
    for _ in range(2):
        coefficients = _weighted_solution(basis, y, weights)
        residual = y - basis @ coefficients
        spread, squares = Cauchy.within(max(np.median(np.abs(residual)), floor)), residual**2
        weights = spread.weights(squares)
    return coefficients, weights, spread.square, spread.cost(squares) - np.log(spread.square) / 2


def _weighted_solution(X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    normal, right, scale = _normal_equations(X, y, weights)
    return np.linalg.solve(normal, right) / scale


def _solve_reduced(
    X: np.ndarray, y: np.ndarray, weights: np.ndarray, n_intensities: int
) -> tuple[np.ndarray, np.ndarray]:
    """Solve for intensities and motion; return also the motion's normal matrix, without them."""
    normal, right, scale = _normal_equations(X, y, weights)
    solution = np.linalg.solve(normal, right) / scale
    k = n_intensities
    reduced = normal[k:, k:] - normal[k:, :k] @ np.linalg.solve(normal[:k, :k], normal[:k, k:])
    return solution, reduced * np.outer(scale[k:], scale[k:])


def _normal_equations(
    X: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the normal equations for columns of unit length, and their lengths."""
    scale = np.sqrt((X**2).mean(axis=0))
    scale = scale + 1e-6 * scale.max() + np.finfo(float).tiny
    scaled = X / scale
    weighted = scaled * weights[:, None]
    normal = scaled.T @ weighted
    diagonal = np.diag_indices_from(normal)
    normal[diagonal] += RIDGE * normal[diagonal] + RIDGE * 1e-3 * len(y) * weights.mean()
    return normal, weighted.T @ y, scale
