# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loop of the normal equations of a course."""

from __future__ import annotations

from eddymotion.machine.compiling import compiled


@compiled
def add_products(square, products, precision, volume, row):
    """Add ``P_ij`` times products of Jacobians to the upper triangle of ``H``.

    Parameters
    ----------
    square : (K, 6, K, 6) float32 array
        Added to.
    products : (6 A, 6 A) float32 array
        Of A unknowns; its upper triangle is read.
    precision : (n, n) float32 array
        ``P``
    volume : (A,) int array
        Of each unknown.
    row : (A,) int array
        Which of the K each is, ascending.
    """
    for i in range(len(row)):
        for a in range(6):
            for j in range(i, len(row)):
                part = precision[volume[i], volume[j]]
                for b in range(a if i == j else 0, 6):
                    square[row[i], a, row[j], b] += part * products[6 * i + a, 6 * j + b]
