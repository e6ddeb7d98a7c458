# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops of the equations of a course: of volumes read in slices.

With the slopes ``J`` of the volume by a step of the head, and the weights ``w_k`` of the slices at
a point, a step ``δ_k`` of what slice ``k`` shows changes the volume by ``Σ_k w_k J δ_k``.

jacobian : (V, 6) float32 array
    ``J`` at V points.
weights : (V, 8) float32 array
    ``w`` of the slices from `first` on.
first : (V,) int32 array
"""

from __future__ import annotations

from eddymotion.images.stack_kernels import N_NODES
from eddymotion.machine.compiling import compiled


@compiled
def see_steps(jacobian, weights, first, steps, seen):
    """Fill how steps (Z, 6) float32 of the slices change the volume, (V,) float32."""
    for p in range(len(first)):
        total = 0.0
        for k in range(N_NODES):
            weight = weights[p, k]
            if weight != 0:
                row = first[p] + k
                along = 0.0
                for a in range(6):
                    along += jacobian[p, a] * steps[row, a]
                total += weight * along
        seen[p] = total


@compiled
def see_steps_of_all(jacobian, weights, first, steps, seen):
    """Call :func:`see_steps` for each of n volumes; every array has them in front."""
    for volume in range(len(first)):
        see_steps(jacobian[volume], weights[volume], first[volume], steps[volume], seen[volume])


@compiled
def add_pulls(jacobian, weights, first, factors, pulls):
    """Add what factors (V,) float32 at the points pull the slices by, to (Z, 6) float64."""
    for p in range(len(first)):
        for k in range(N_NODES):
            weight = weights[p, k] * factors[p]
            if weight != 0:
                row = first[p] + k
                for a in range(6):
                    pulls[row, a] += weight * jacobian[p, a]


@compiled
def add_pulls_of_all(jacobian, weights, first, factors, pulls):
    """Call :func:`add_pulls` for each of n volumes; every array has them in front."""
    for volume in range(len(first)):
        add_pulls(jacobian[volume], weights[volume], first[volume], factors[volume], pulls[volume])


@compiled
def add_products(jacobian, weights, first, bands):
    """Add ``w_k w_l J Jᵀ`` to (Z, 8, 6, 6) float64: of slices with themselves and those above.

    Of the products with themselves the upper triangle alone.
    """
    for p in range(len(first)):
        for k in range(N_NODES):
            if weights[p, k] == 0:
                continue
            for apart in range(N_NODES - k):
                weight = weights[p, k] * weights[p, k + apart]
                if weight == 0:
                    continue
                band = bands[first[p] + k, apart]
                for a in range(6):
                    part = weight * jacobian[p, a]
                    for b in range(a, 6):
                        band[a, b] += part * jacobian[p, b]
