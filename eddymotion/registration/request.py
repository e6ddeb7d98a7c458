# SPDX-License-Identifier: Apache-2.0
"""Checked requests to an engine of the package, and its message at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eddymotion.images.grid import mask_center
from eddymotion.images.image import Image
from eddymotion.mapping.registration import Registration
from eddymotion.registration.checks import check_pair
from eddymotion.registration.problem import head_of


@dataclass(frozen=True, eq=False)
class Request:
    """A pair that can be registered, and how it is to be.

    Parameters
    ----------
    fixed, moving : Image
    fixed_mask, moving_mask : (X, Y, Z) bool array, optional
    transform : str
    metric : str, optional
        The engine's default when not given.
    start : (4, 4) array
        Fixed → moving, RAS+ mm.
    seed : int
    """

    fixed: Image
    moving: Image
    fixed_mask: np.ndarray | None
    moving_mask: np.ndarray | None
    transform: str
    metric: str | None
    start: np.ndarray
    seed: int

    @cached_property
    def head(self) -> np.ndarray:
        """Where the fixed image counts, (X, Y, Z) bool."""
        return head_of(self.fixed, self.fixed_mask)

    @cached_property
    def middle(self) -> np.ndarray:
        """Middle of the head in the fixed image, RAS+ mm."""
        return mask_center(self.head, self.fixed.affine)


class Engine(ABC):
    """A :class:`~eddymotion.registration.Registrar` that only gets requests it can fulfil."""

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
        """Register a pair; see :meth:`eddymotion.registration.Registrar.register`."""
        self._refuse(transform)
        check_pair(fixed, moving, fixed_mask, moving_mask, transform, metric, self, init)
        here = None if fixed_mask is None else np.asarray(fixed_mask, bool)
        there = None if moving_mask is None else np.asarray(moving_mask, bool)
        start = np.eye(4) if init is None else np.array(init, dtype=float)
        return self._register(Request(fixed, moving, here, there, transform, metric, start, seed))

    def _refuse(self, transform: str) -> None:  # noqa: B027
        """Raise for a transform that the engine lacks, where more can be said than that."""

    @abstractmethod
    def _register(self, request: Request) -> Registration:
        """Register what was checked."""


def ending(
    converged: bool, n_iterations: int, costs: Sequence[float], of: str = "", form: str = ".5g"
) -> str:
    """Say how an engine ended: after how many iterations `of` what, and at which cost."""
    how = "converged" if converged else "stopped at the iteration limit"
    text = f"{how} after {n_iterations} iterations{of}"
    return f"{text}; cost {costs[0]:{form}} → {costs[-1]:{form}}" if len(costs) else text
