# SPDX-License-Identifier: Apache-2.0
"""The values that flow through the package: an image, and a diffusion series."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from eddymotion.errors import EddymotionError
from eddymotion.geometry import grid_center
from eddymotion.gradients import Gradients, unit_hint, volumes_told
from eddymotion.html_values import HtmlValue
from eddymotion.kernels import (
    PADDING,
    sample_points,
    sample_points_with_gradient,
    spline_coefficients,
)
from eddymotion.reprs import short_repr, sizes_told
from eddymotion.zeros import (
    CUT_OUTSIDE,
    CUT_SHARE,
    constant_share,
    cut_share,
    have_one_edge,
    solid_constants,
)

KEPT_TYPES = tuple(np.dtype(name) for name in ("float32", "int8", "uint8", "int16", "uint16"))
"""What a series keeps its signal in: scanners store integers, half as large as float32."""

VOLUMES_TO_LOOK_AT = 4
"""Diffusion-weighted volumes that tell whether tissue was set to zero."""

CUT_OUT = 0.002
"""Solid constants in a brain, as a part of it and beyond the usual, that need a closer look."""


@dataclass(frozen=True, eq=False)
class Spline:
    """A 3-D volume as a continuous function of world coordinates: a cubic B-spline.

    Parameters
    ----------
    coefficients : (Z + 4, Y + 4, X + 4) float32 array
        From :func:`eddymotion.kernels.spline_coefficients`.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    """

    coefficients: np.ndarray
    affine: np.ndarray

    __repr__ = short_repr

    @classmethod
    def of(cls, image: Image) -> Spline:
        """Interpolate an image; NaN wherever something that is missing has a say."""
        volume = np.ascontiguousarray(image.data.T, dtype=np.float32)
        coefficients = spline_coefficients(volume)
        if image.missing is not None:
            inside = (slice(PADDING, -PADDING),) * 3
            coefficients[inside][image.missing.T] = np.nan
        return cls(coefficients, image.affine)

    @cached_property
    def _world_to_kernel(self) -> np.ndarray:
        """World mm → voxel position in the kernels' (z, y, x) order."""
        return np.linalg.inv(self.affine)[[2, 1, 0, 3]]  # rows only: points stay (x, y, z)

    def sample(self, points: np.ndarray, pose: np.ndarray | None = None) -> np.ndarray:
        """Return samples (P,); NaN outside the image.

        Parameters
        ----------
        points : (P, 3) array
            mm
        pose : (4, 4) array, optional
            Frame of the points → world; the identity when not given.
        """
        values = np.empty(len(points), np.float32)
        sample_points(self.coefficients, self._mapping(pose), _contiguous(points), values)
        return values

    def sample_with_gradient(
        self, points: np.ndarray, pose: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return samples (P,) and gradients (P, 3), per mm along the axes of the points' frame.

        As :meth:`sample`; NaN outside the image.
        """
        values = np.empty(len(points), np.float32)
        slopes = np.empty((len(points), 3), np.float32)
        sample_points_with_gradient(
            self.coefficients, self._mapping(pose), _contiguous(points), values, slopes
        )
        return values, slopes

    def _mapping(self, pose: np.ndarray | None) -> np.ndarray:
        """Points → positions in the kernels' order, (3, 4)."""
        matrix = self._world_to_kernel if pose is None else self._world_to_kernel @ pose
        return np.ascontiguousarray(matrix[:3])


@dataclass(frozen=True, eq=False)
class Image:
    """A 3-D volume and where it lies.

    Parameters
    ----------
    data : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    missing : (X, Y, Z) bool array, optional
        Voxels that say nothing, whatever their value.
    """

    data: np.ndarray
    affine: np.ndarray
    missing: np.ndarray | None = None

    def __repr__(self) -> str:
        sizes = sizes_told(map(float, self.voxel_sizes))
        return f"Image({sizes_told(self.data.shape)}, {sizes} mm, {self.data.dtype})"

    @property
    def voxel_sizes(self) -> np.ndarray:
        """Edge lengths of a voxel, mm."""
        return voxel_sizes(self.affine)

    @cached_property
    def spline(self) -> Spline:
        """The image as a continuous function."""
        return Spline.of(self)


class Series(ABC):
    """What a series is, wherever its volumes come from.

    Attributes
    ----------
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    gradients : Gradients
        In RAS+.
    mask : (X, Y, Z) bool array
        The brain.
    source : Path, optional
        The file it came from.
    repetition_time : float, optional
        Seconds between volumes.
    """

    affine: np.ndarray
    gradients: Gradients
    mask: np.ndarray
    source: Path | None
    repetition_time: float | None

    @abstractmethod
    def volumes(self) -> Iterator[np.ndarray]:
        """Give the volumes one after the other, (X, Y, Z) each."""

    def __len__(self) -> int:
        return len(self.gradients)

    def __repr__(self) -> str:
        shape = sizes_told((*self.shape, len(self)))
        sizes = sizes_told(map(float, self.voxel_sizes))
        return f"{type(self).__name__}({shape}, {sizes} mm, {volumes_told(self.gradients)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis of a volume."""
        x, y, z = self.mask.shape
        return x, y, z

    @property
    def voxel_sizes(self) -> np.ndarray:
        """Edge lengths of a voxel, mm."""
        return voxel_sizes(self.affine)

    @property
    def center(self) -> np.ndarray:
        """The centre of the image grid, RAS+ mm: where translations are measured."""
        return grid_center(self.shape, self.affine)

    @property
    def reference(self) -> int:
        """The volume whose pose is the reference frame: the first b=0, or volume 0 without."""
        return int(self.gradients.b0s[0]) if len(self.gradients.b0s) else 0

    @cached_property
    def brain_center(self) -> np.ndarray:
        """The centre of the mask, RAS+ mm: where rotations and translations decouple best."""
        return apply_affine(self.affine, np.argwhere(self.mask).mean(axis=0))


@dataclass(frozen=True, eq=False, repr=False)
class DWI(Series, HtmlValue):
    """A diffusion-weighted series: frozen, and valid once constructed.

    Parameters
    ----------
    signal : (X, Y, Z, N) array
        Finite. float32 and integers of at most 16 bits are used as they are, seen read-only, not
        copied (do not change them afterwards); anything else becomes float32.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    gradients : Gradients
        In RAS+; b=0 volumes included, in their place.
    mask : (X, Y, Z) bool array
        The brain.
    source : Path, optional
        The file it came from: names the outputs.
    repetition_time : float, optional
        Seconds between volumes.

    Raises
    ------
    EddymotionError
        If the parts do not belong together or cannot be used, saying what to do.
    """

    signal: np.ndarray
    affine: np.ndarray
    gradients: Gradients
    mask: np.ndarray
    source: Path | None = None
    repetition_time: float | None = None

    def __post_init__(self) -> None:
        name = self.source.name if self.source else "series"
        signal = np.asarray(self.signal)
        if signal.dtype.kind not in "iufb":
            raise EddymotionError(
                f"{name}: values of type {signal.dtype}, expected real numbers; give magnitudes"
            )
        if signal.ndim != 4:
            raise EddymotionError(
                f"{name}: found an image of shape {signal.shape}, expected four dimensions "
                "(x, y, z, volumes); give the whole diffusion series"
            )
        if signal.shape[3] != len(self.gradients):
            raise EddymotionError(
                f"{name}: {signal.shape[3]} volumes but {len(self.gradients)} b-values; "
                "give the .bval and .bvec that belong to this image"
            )
        volumes = np.moveaxis(signal, 3, 0)  # one at a time: memory
        with np.errstate(over="ignore"):  # found below
            kept = signal if signal.dtype in KEPT_TYPES else signal.astype(np.float32)
        if kept.dtype.kind == "f" and not all(
            np.isfinite(volume).all() for volume in np.moveaxis(kept, 3, 0)
        ):
            raise EddymotionError(
                f"{name}: the signal holds NaN or Inf, or values too large for single precision; "
                "set those voxels to zero"
            )
        mask = np.nan_to_num(np.asarray(self.mask)) > 0
        if mask.shape != signal.shape[:3]:
            raise EddymotionError(
                f"{name}: the mask has shape {mask.shape}, the series {signal.shape[:3]}; "
                "give a mask on the grid of the series"
            )
        if not mask.any():
            raise EddymotionError(
                f"{name}: the brain mask is empty; give one that marks the brain"
            )
        empty = np.flatnonzero([not volume.any() for volume in volumes])
        if len(empty):
            raise EddymotionError(
                f"{name}: all voxels of volume {', '.join(map(str, empty))} (counted from 0) are "
                "zero; remove it from the image, the .bval and the .bvec"
            )
        if len(self.gradients.dwis) < 2:
            raise EddymotionError(
                f"{name}: found {len(self.gradients.dwis)} diffusion-weighted volume(s) above "
                f"b={self.gradients.b0_threshold:g}, expected at least 2, since each is predicted "
                "from the others; check the .bval or lower --b0-threshold"
                + unit_hint(self.gradients.bvals, self.gradients.b0_threshold)
            )
        affine = np.array(self.affine, dtype=float)
        if affine.shape != (4, 4) or not abs(np.linalg.det(np.nan_to_num(affine))) > 0:
            raise EddymotionError(f"{name}: the affine must be 4×4, finite and invertible")
        object.__setattr__(self, "signal", _frozen(kept))
        object.__setattr__(self, "affine", _frozen(affine))
        object.__setattr__(self, "mask", _frozen(mask))

    def volume(self, index: int) -> Image:
        """Return one volume, as float32."""
        return Image(np.asarray(self.signal[..., index], dtype=np.float32), self.affine)

    def evidence(self, index: int) -> Image:
        """Return one volume with what is missing of it: what an estimation goes by."""
        image = self.volume(index)
        is_cut = self.is_cut or index in self.cut_volumes
        return replace(image, missing=solid_constants(image.data)) if is_cut else image

    @cached_property
    def is_cut(self) -> bool:
        """Whether tissue was set to zero, or another constant, in the volumes looked at."""
        b0s, dwis = self.gradients.b0s[:1], self.gradients.dwis
        weighted = dwis[:: max(1, len(dwis) // VOLUMES_TO_LOOK_AT)]
        shares = [cut_share(self.signal[..., volume], self.mask) for volume in weighted]
        if np.median(shares) > CUT_SHARE or not len(b0s):
            return bool(np.median(shares) > CUT_SHARE)
        # a cut outside the brain shows at b=0, where the rest of the head is bright
        b0, dark = (self.signal[..., volume] for volume in (b0s[0], weighted[0]))
        share = max(np.median(shares), cut_share(b0, self.mask))
        return bool(share > CUT_OUTSIDE) and have_one_edge(b0, dark)

    @cached_property
    def cut_volumes(self) -> tuple[int, ...]:
        """Volumes with tissue set to a constant that the others show; empty if it is in all."""
        if self.is_cut:
            return ()
        shares = np.array([constant_share(volume, self.mask) for volume in self.volumes()])
        suspects = np.flatnonzero(shares > np.median(shares) + CUT_OUT)
        cut = [v for v in suspects if cut_share(self.signal[..., v], self.mask) > CUT_SHARE]
        return tuple(map(int, cut))

    def volumes(self) -> Iterator[np.ndarray]:
        """Give the volumes one after the other, as they are kept."""
        return iter(np.moveaxis(self.signal, 3, 0))

    def select(self, volumes: np.ndarray | slice) -> DWI:
        """Keep some of the volumes."""
        return DWI(
            self.signal[..., volumes],
            self.affine,
            self.gradients.select(volumes),
            self.mask,
            self.source,
            self.repetition_time,
        )


def _contiguous(points: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(points, dtype=np.float64)


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
