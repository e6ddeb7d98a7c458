# SPDX-License-Identifier: Apache-2.0
"""What can be scanned: the protocol that the scanner knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from eddymotion.images.grid import Box


class Head(Box, Protocol):
    """A head at rest that gives a noise-free signal for any gradient."""

    @property
    def brain(self) -> np.ndarray:
        """Where the brain is, (X, Y, Z) bool."""
        ...

    @property
    def white_signal(self) -> float:
        """Mean b=0 signal of white matter: what a signal-to-noise ratio refers to."""
        ...

    def signal(self, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal, finite and not negative.

        Parameters
        ----------
        bval : float
            s/mm²
        bvec : (3,) array
            RAS+ in the head's frame; unit length, or zero for b=0.

        Returns
        -------
        (X, Y, Z) float32 array
        """
        ...


@runtime_checkable
class ContinuousHead(Head, Protocol):
    """A head whose signal is known at any point: nothing is interpolated."""

    def signal_at(self, points: np.ndarray, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal, finite and not negative.

        Parameters
        ----------
        points : (P, 3) array
            RAS+ mm, in the head's frame.
        bval, bvec
            See :meth:`Head.signal`.

        Returns
        -------
        (P,) float32 array
        """
        ...


def signal_of_volume(head: Head, bval: float, bvec: np.ndarray) -> np.ndarray:
    """Signal of a volume; a b-value without a direction is a trace-weighted volume.

    Trace-weighted images are geometric means over three orthogonal gradients.
    """
    return _of_volume(head.signal, bval, bvec)


def signal_of_volume_at(
    head: ContinuousHead, points: np.ndarray, bval: float, bvec: np.ndarray
) -> np.ndarray:
    """Signal of a volume at points (P, 3) of the head, as :func:`signal_of_volume`."""
    return _of_volume(partial(head.signal_at, points), bval, bvec)


def _of_volume(
    signal: Callable[[float, np.ndarray], np.ndarray], bval: float, bvec: np.ndarray
) -> np.ndarray:
    if bval == 0 or bvec.any():
        return signal(bval, bvec)
    along = [signal(bval, axis) for axis in np.eye(3)]
    return np.cbrt(along[0] * along[1] * along[2])
