"""Registration: fixed + moving → transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from eddymotion.dataset import Image


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration found, and how it got there.

    Parameters
    ----------
    matrix : (4, 4) array
        Points of the fixed image → points of the moving image, RAS+ mm.
    converged : bool
        Whether the steps became smaller than the tolerance.
    message : str
        Why it stopped, in words and numbers.
    cost : tuple of float
        What was minimised, after each accepted step of the finest level.
    n_iterations : int
        Over all levels.
    """

    matrix: np.ndarray
    converged: bool
    message: str
    cost: tuple[float, ...] = ()
    n_iterations: int = 0


@runtime_checkable
class Registrar(Protocol):
    """Finds where the points of one image are in another."""

    def register(
        self,
        fixed: Image,
        moving: Image,
        *,
        fixed_mask: np.ndarray | None = None,
        init: np.ndarray | None = None,
        seed: int = 0,
    ) -> Registration:
        """Register a pair.

        Parameters
        ----------
        fixed, moving : Image
            On any grids.
        fixed_mask : (X, Y, Z) bool array, optional
            Where the fixed image counts, on its grid.
        init : (4, 4) array, optional
            Where to start; the identity when not given. Only the neighbourhood is searched.
        seed : int
            Of whatever is drawn at random.

        Returns
        -------
        Registration
        """
        ...
