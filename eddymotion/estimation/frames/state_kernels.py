# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loop: inference of drift and jitter from the steps that they make up.

Of n steps ``t`` the states are ``(ε₀, v₀, ε₁, v₁, … v_{n−1}, ε_n)``, of unit variance before any
step is known, and a step is ``b_t v_t + c (ε_{t+1} − ε_t)`` and noise. A state has to do with the
two before it and the two after it alone: their precision is a band, of which a factor ``L D Lᵀ``
and the same band of the inverse (Takahashi's equations) take a few operations a state.

As :mod:`eddymotion.images.kernels`: it has a plain twin in the tests.
"""

from __future__ import annotations

from eddymotion.machine.compiling import compiled

PADDING = 2
"""States beyond the last, which are related to none."""


@compiled
def infer_states(steps, precisions, drifts, jitter, kept, means, bands):
    """Fill the means and covariances of the states of a course, given its steps.

    Parameters
    ----------
    steps : (A, n) array
        Along each of A axes.
    precisions : (n,) array
        Of the noise; zero where a step is not known.
    drifts : (A, n) array
        ``b``
    jitter : float
        ``c``
    kept : (n,) array
        Correlation of each drift with the one before; of the first zero.
    means : (A, 2 n + 3) array
        Filled, padding included.
    bands : (A, 2 n + 3, 3) array
        Filled with the covariance of each state with itself, the next and the one after that.
    """
    for axis in range(steps.shape[0]):
        _set_up(kept, bands[axis])
        _add_steps(steps[axis], precisions, drifts[axis], jitter, means[axis], bands[axis])
        _factor(means[axis], bands[axis])
        _invert(means[axis], bands[axis])


@compiled
def _set_up(kept, band):
    """Fill the precision of states of which no step is known."""
    band[:, 0] = 1.0
    band[:, 1:] = 0.0
    for step in range(1, kept.size):
        now, new = 2 * step + 1, 1.0 / (1.0 - kept[step] * kept[step])
        band[now, 0] += new - 1.0
        band[now - 2, 0] += kept[step] * kept[step] * new
        band[now - 2, 2] -= kept[step] * new


@compiled
def _add_steps(steps, precisions, drifts, jitter, right, band):
    """Add the information of the steps to the precision, and fill the right side."""
    right[:] = 0.0
    for step in range(steps.size):
        first, b, w = 2 * step, drifts[step], precisions[step]
        band[first, 0] += w * jitter * jitter
        band[first, 1] -= w * jitter * b
        band[first, 2] -= w * jitter * jitter
        band[first + 1, 0] += w * b * b
        band[first + 1, 1] += w * jitter * b
        band[first + 2, 0] += w * jitter * jitter
        right[first] -= w * jitter * steps[step]
        right[first + 1] += w * b * steps[step]
        right[first + 2] += w * jitter * steps[step]


@compiled
def _factor(right, band):
    """Turn the precision into its factor, and the right side into half of the solution."""
    for state in range(band.shape[0] - PADDING):
        one, two = band[state, 1] / band[state, 0], band[state, 2] / band[state, 0]
        band[state + 1, 0] -= one * band[state, 1]
        band[state + 1, 1] -= one * band[state, 2]
        band[state + 2, 0] -= two * band[state, 2]
        right[state + 1] -= one * right[state]
        right[state + 2] -= two * right[state]
        band[state, 1], band[state, 2] = one, two


@compiled
def _invert(means, band):
    """Turn the factor into the band of the inverse, and half of the solution into all of it."""
    for state in range(band.shape[0] - PADDING - 1, -1, -1):
        one, two, pivot = band[state, 1], band[state, 2], band[state, 0]
        means[state] = means[state] / pivot - one * means[state + 1] - two * means[state + 2]
        band[state, 1] = -one * band[state + 1, 0] - two * band[state + 1, 1]
        band[state, 2] = -one * band[state + 1, 1] - two * band[state + 2, 0]
        band[state, 0] = 1.0 / pivot - one * band[state, 1] - two * band[state, 2]
