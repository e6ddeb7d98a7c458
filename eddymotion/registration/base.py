# SPDX-License-Identifier: Apache-2.0
"""Registration: fixed + moving → transform."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from eddymotion.images.image import Image
from eddymotion.mapping.registration import Registration

TRANSFORMS = ("rigid", "similarity", "affine", "syn")
"""From six parameters to a displacement for each voxel (symmetric normalisation)."""


@runtime_checkable
class Registrar(Protocol):
    """Finds where the points of one image are in another.

    Attributes
    ----------
    transforms : tuple of str
        What it can estimate, out of :data:`TRANSFORMS`.
    metrics : tuple of str
        What it can minimise; the first is its default.
    """

    transforms: tuple[str, ...]
    metrics: tuple[str, ...]

    def register(
        self,
        fixed: Image,
        moving: Image,
        *,
        transform: str = "rigid",
        metric: str | None = None,
        fixed_mask: np.ndarray | None = None,
        moving_mask: np.ndarray | None = None,
        init: np.ndarray | None = None,
        seed: int = 0,
    ) -> Registration:
        """Register a pair.

        Parameters
        ----------
        fixed, moving : Image
            On any grids.
        transform : str
            One of `transforms`.
        metric : str, optional
            One of `metrics`; the engine's default when not given.
        fixed_mask, moving_mask : (X, Y, Z) bool array, optional
            Where an image counts, on its own grid.
        init : (4, 4) array, optional
            Where to start, fixed → moving; the identity when not given. Only the neighbourhood is
            searched (:mod:`eddymotion.registration.initial` finds a far start).
        seed : int
            Of whatever is drawn at random.

        Returns
        -------
        Registration

        Raises
        ------
        EddymotionError
            If the pair cannot be registered: images that do not overlap, constant images, an
            unknown transform or metric.
        """
        ...
