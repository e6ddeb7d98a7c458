# SPDX-License-Identifier: Apache-2.0
"""Where the points of an image lie in the reference frame of a series."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from eddymotion.images.image import Image
from eddymotion.pairs.advice import advise
from eddymotion.pairs.measures import PairQuality
from eddymotion.registration import Registration
from eddymotion.wording import short_repr


@dataclass(frozen=True, eq=False)
class Overlay:
    """Both images on a grid about as fine as the series.

    Parameters
    ----------
    target : Image
    before, after : (X, Y, Z) array
        The reference of the series, as the files lie and registered.
    white_matter : (X, Y, Z) array, optional
        Of the target, 0 to 1.
    """

    target: Image
    before: np.ndarray
    after: np.ndarray
    white_matter: np.ndarray | None

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class OutputSpace:
    """Where the points of an image lie in the reference frame of a series: a ``SpaceMap``.

    Parameters
    ----------
    target : Image
        Whose space and grid it is.
    registration : Registration
        Points of the target → points of the reference frame.
    transform : {"rigid", "affine", "syn"}
    quality : PairQuality
    shown : Overlay, optional
        Both images on one grid: for the eye.
    doubts : tuple of str
        What speaks against it besides the figures of the pair.
    """

    target: Image
    registration: Registration
    transform: str
    quality: PairQuality
    shown: Overlay | None = None
    doubts: tuple[str, ...] = ()

    __repr__ = short_repr

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points (P, 3) of the target to the reference frame, RAS+ mm: (P, 3)."""
        return self.registration.map(points)

    @cached_property
    def rotation(self) -> np.ndarray:
        """The rotation nearest to the linear part, target → reference frame, (3, 3)."""
        return scipy.linalg.polar(self.registration.matrix[:3, :3])[0]

    @property
    def linear(self) -> np.ndarray | None:
        """The matrix (4, 4), target → reference frame; None of a warp, which has no such one."""
        return None if self.registration.warp is not None else self.registration.matrix

    @property
    def warnings(self) -> list[str]:
        """What looks wrong, in plain words."""
        metric = "cc" if self.transform == "syn" else "nmi"
        ended = replace(self.registration, converged=True)  # by small steps or many, look at it
        advice = advise(
            replace(self.quality, registration=ended), transform=self.transform, metric=metric,
            started="multi",
        )  # fmt: skip
        return [*(one.finding for one in advice), *self.doubts]

    def describe(self) -> str:
        """Say in words and numbers what was found."""
        p, after = self.quality.parameters, self.quality.after
        text = (
            f"{self.transform}: {np.linalg.norm(p.translation):.1f} mm, {p.angle:.1f}°"
            f", normalised mutual information {self.quality.before.similarity:.3f} → "
            f"{after.similarity:.3f}"
        )
        if self.transform != "rigid":
            text += ", scales " + ", ".join(f"{scale:.3f}" for scale in p.scales)
        if self.transform == "syn":
            low, high = self.quality.displacements.jacobian
            text += f", local volume × {low:.2f} to {high:.2f}"
        return text
