# SPDX-License-Identifier: Apache-2.0
"""Predictions with the smooth intensities of the volume that is registered to them.

What a prediction gets wrong is smooth in space and acts as a shift. Our own registrar subtracts
what is smooth; a joint histogram needs the intensities themselves. So other engines get, once the
poses are about right, a prediction times ``s(y) / s(ŷ)``: ``s`` smooths within the brain, and
``y`` is the volume read at the pose that registration starts from. What is smooth then says
nothing but that the volume stays where it is, and detail says where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eddymotion.images.image import Image
from eddymotion.images.pyramid import low_pass
from eddymotion.registration import Registrar, Registration

SMOOTH_VOXELS = 4.0
"""FWHM of ``s``. A pass of 24 directions at b=3000 with DIPY, from poses .3 mm and .3° off an
axis, the others at the true ones: .224 mm / .235° without, .150 / .219 with 8 voxels, .109 / .149
with 4 and .118 / .136 with 3."""


@dataclass
class Shaded:
    """A registrar that gets the fixed image with the smooth intensities of the moving one.

    Parameters
    ----------
    engine : Registrar
    """

    engine: Registrar
    transforms: tuple[str, ...] = field(init=False)
    metrics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.transforms, self.metrics = self.engine.transforms, self.engine.metrics

    def register(
        self,
        fixed: Image,
        moving: Image,
        *,
        fixed_mask: np.ndarray | None = None,
        init: np.ndarray | None = None,
        **how: Any,
    ) -> Registration:
        """See :meth:`~eddymotion.registration.Registrar.register`."""
        mask = np.ones(fixed.data.shape, bool) if fixed_mask is None else fixed_mask
        start = np.eye(4) if init is None else init
        shaded = shaded_like(fixed, moving, mask, start)
        return self.engine.register(shaded, moving, fixed_mask=fixed_mask, init=init, **how)


def shaded_like(fixed: Image, moving: Image, mask: np.ndarray, pose: np.ndarray) -> Image:
    """Return the fixed image with what is smooth in the moving one at a pose, fixed → moving."""
    whole = replace(moving, missing=None)
    moved = whole.spline.on_grid(fixed.data.shape, fixed.affine, pose)
    width = SMOOTH_VOXELS * float(np.cbrt(np.prod(moving.voxel_sizes)))
    target, own = (low_pass(Image(data, fixed.affine, ~mask), width)
                   for data in (moved.T, fixed.data))  # fmt: skip
    known = mask & (own.data > 0) & (target.data > 0)
    factor = np.divide(target.data, own.data, out=np.ones_like(own.data), where=known)
    return replace(fixed, data=(fixed.data * factor).astype(np.float32))
