# SPDX-License-Identifier: Apache-2.0
"""The diffusion series: :class:`DWI`, all in memory, and what other series share with it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.gradients import Gradients, describe_volumes, in_thousands, unit_hint
from eddymotion.errors import EddymotionError, check_kind
from eddymotion.images.grid import grid_center, mask_center
from eddymotion.images.image import Image
from eddymotion.images.zeros import (
    CUT_OUTSIDE,
    CUT_SHARE,
    constant_share,
    cut_share,
    have_same_edges,
    solid_constants,
)
from eddymotion.wording import HtmlValue, format_sizes

KEPT_TYPES = tuple(np.dtype(name) for name in ("float32", "int8", "uint8", "int16", "uint16"))
"""Types in which a series keeps its signal: integers of scanners are half as large as float32."""

VOLUMES_TO_LOOK_AT = 4
"""Diffusion-weighted volumes in which tissue that was set to zero is looked for."""

CUT_OUT = 0.002
"""Solid constants in a brain, as a part of it and beyond the usual, that need a closer look."""


class Series(ABC):
    """A diffusion series, wherever its volumes come from.

    Attributes
    ----------
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    acquisition : Acquisition
        What the scanner did, the gradients among it.
    mask : (X, Y, Z) bool array
        The brain.
    source : Path, optional
        The file it came from.
    """

    affine: np.ndarray
    acquisition: Acquisition
    mask: np.ndarray
    source: Path | None

    @abstractmethod
    def volumes(self) -> Iterator[np.ndarray]:
        """Yield the volumes one after the other, (X, Y, Z) each."""

    @property
    def gradients(self) -> Gradients:
        """b-values, and b-vectors in RAS+."""
        return self.acquisition.gradients

    @property
    def repetition_time(self) -> float | None:
        """Seconds between volumes; None if not known."""
        return self.acquisition.repetition_time

    def __len__(self) -> int:
        return len(self.gradients)

    def __repr__(self) -> str:
        shape = format_sizes((*self.shape, len(self)))
        sizes = format_sizes(map(float, self.voxel_sizes))
        return f"{type(self).__name__}({shape}, {sizes} mm, {describe_volumes(self.gradients)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis of a volume."""
        x, y, z = self.mask.shape
        return x, y, z

    @property
    def n_slices(self) -> int:
        """Slices of a volume."""
        return self.shape[self.acquisition.slicing.axis]

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
        return mask_center(self.mask, self.affine)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class DWI(Series, HtmlValue):
    """A diffusion-weighted series: frozen, and valid once constructed.

    Parameters
    ----------
    signal : (X, Y, Z, N) array
        Finite. float32 and integers of at most 16 bits are used as they are, seen read-only, not
        copied (do not change them afterwards); anything else becomes float32.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    acquisition : Acquisition or Gradients
        What the scanner did: b=0 volumes included, in their place. Of gradients, in RAS+, nothing
        else is known.
    mask : (X, Y, Z) bool array
        The brain.
    source : Path, optional
        The file it came from: names the outputs.
    gradients : Gradients, optional
        Instead of those of `acquisition`.
    repetition_time : float, optional
        Deprecated; see :meth:`Acquisition.every
        <eddymotion.data.acquisition.Acquisition.every>`.

    Raises
    ------
    EddymotionError
        If the parts do not belong together or cannot be used, saying what to do.
    """

    signal: np.ndarray
    affine: np.ndarray
    acquisition: Acquisition
    mask: np.ndarray
    source: Path | None

    def __init__(
        self,
        signal: np.ndarray,
        affine: np.ndarray,
        acquisition: Acquisition | Gradients | None = None,
        mask: np.ndarray | None = None,
        source: Path | None = None,
        *,
        gradients: Gradients | None = None,
        repetition_time: float | None = None,
    ) -> None:
        name = source.name if source else "series"
        acquisition = _acquisition(name, acquisition, gradients, repetition_time)
        kept = _usable_signal(name, np.asarray(signal), len(acquisition.gradients))
        brain = _usable_mask(name, mask, kept.shape[:3])
        _refuse_unpredictable(name, kept, acquisition.gradients)
        affine = np.array(affine, dtype=float)
        if affine.shape != (4, 4) or not abs(np.linalg.det(np.nan_to_num(affine))) > 0:
            raise EddymotionError(f"{name}: the affine must be 4×4, finite and invertible")
        object.__setattr__(self, "signal", _frozen(kept))
        object.__setattr__(self, "affine", _frozen(affine))
        object.__setattr__(self, "acquisition", acquisition)
        object.__setattr__(self, "mask", _frozen(brain))
        object.__setattr__(self, "source", source)

    def volume(self, index: int) -> Image:
        """Return one volume, as float32."""
        return Image(np.asarray(self.signal[..., index], dtype=np.float32), self.affine)

    def volume_with_missing(self, index: int) -> Image:
        """Return one volume, for estimation: voxels set to a constant are marked as missing.

        The data keep the type of the signal: only a part cut out of them needs to be converted.
        """
        image = Image(self.signal[..., index], self.affine)
        is_cut = self.is_cut or index in self.cut_volumes
        return replace(image, missing=solid_constants(image.data)) if is_cut else image

    def evidence(self, index: int) -> Image:
        """Return :meth:`volume_with_missing`, under its former name."""
        warnings.warn(
            "DWI.evidence is now DWI.volume_with_missing; the old name will be removed in the "
            "next release",
            FutureWarning,
            stacklevel=2,
        )
        return self.volume_with_missing(index)

    @cached_property
    def is_cut(self) -> bool:
        """Whether tissue was set to zero, or another constant, in the volumes looked at."""
        b0s, dwis = self.gradients.b0s[:1], self.gradients.dwis
        if not len(dwis):
            return False
        weighted = dwis[:: max(1, len(dwis) // VOLUMES_TO_LOOK_AT)]
        shares = [cut_share(self.signal[..., volume], self.mask) for volume in weighted]
        if np.median(shares) > CUT_SHARE or not len(b0s):
            return bool(np.median(shares) > CUT_SHARE)
        # a cut outside the brain shows at b=0, where the rest of the head is bright
        b0, dark = (self.signal[..., volume] for volume in (b0s[0], weighted[0]))
        share = max(np.median(shares), cut_share(b0, self.mask))
        return bool(share > CUT_OUTSIDE) and have_same_edges(b0, dark)

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

    def with_gradients(self, gradients: Gradients) -> DWI:
        """Return the same series with another table."""
        return replace(self, acquisition=replace(self.acquisition, gradients=gradients))

    def select(self, volumes: np.ndarray | slice) -> DWI:
        """Keep some of the volumes."""
        return DWI(
            self.signal[..., volumes],
            self.affine,
            self.acquisition.select(volumes),
            self.mask,
            self.source,
        )

    def split(self, index: int) -> tuple[DWI, Image]:
        """Leave one volume out: the others, as a series, and the volume.

        Parameters
        ----------
        index : int
            Negative from the end.

        Raises
        ------
        IndexError
            If there is no such volume.
        """
        others = np.delete(np.arange(len(self)), index)
        return self.select(others), self.volume(index)


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _acquisition(
    name: str,
    given: Acquisition | Gradients | None,
    gradients: Gradients | None,
    repetition_time: float | None,
) -> Acquisition:
    """Gather what is known of the acquisition from the ways in which it may be given."""
    if isinstance(given, Gradients):
        given = Acquisition(given)
    if gradients is not None:
        same = given is not None and len(given.gradients) == len(gradients)
        given = replace(given, gradients=gradients) if given and same else Acquisition(gradients)
    if given is None:
        raise EddymotionError(f"{name}: no gradients; give an Acquisition, or Gradients")
    check_kind(given, Acquisition, "DWI")
    if repetition_time is not None:
        warnings.warn(
            "repetition_time of a DWI is deprecated and will be removed in the next release; "
            "give Acquisition.every(gradients, affine, repetition_time=...)",
            FutureWarning,
            stacklevel=3,
        )
        given = replace(given, start_times=np.arange(len(given.gradients)) * repetition_time)
    return given


def refuse_other_dimensions(name: str, shape: tuple[int, ...]) -> None:
    """Raise if an image is no series."""
    if len(shape) != 4:
        raise EddymotionError(
            f"{name}: found an image of shape {shape}, expected four dimensions "
            "(x, y, z, volumes); give the whole diffusion series"
        )


def _usable_signal(name: str, signal: np.ndarray, n_volumes: int) -> np.ndarray:
    """Return the signal as it is kept, or refuse it."""
    if signal.dtype.kind not in "iufb":
        raise EddymotionError(
            f"{name}: values of type {signal.dtype}, expected real numbers; give magnitudes"
        )
    refuse_other_dimensions(name, signal.shape)
    if signal.shape[3] != n_volumes:
        raise EddymotionError(
            f"{name}: {signal.shape[3]} volumes but {n_volumes} b-values; "
            "give the .bval and .bvec that belong to this image"
        )
    with np.errstate(over="ignore"):  # found below
        kept = signal if signal.dtype in KEPT_TYPES else signal.astype(np.float32)
    volumes = np.moveaxis(kept, 3, 0)  # one at a time: memory
    if kept.dtype.kind == "f" and not all(np.isfinite(volume).all() for volume in volumes):
        raise EddymotionError(
            f"{name}: the signal holds NaN or Inf, or values too large for single precision; "
            "set those voxels to zero"
        )
    return kept


def _usable_mask(name: str, given: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.nan_to_num(np.asarray(given, float if given is None else None)) > 0
    if mask.shape != shape:
        raise EddymotionError(
            f"{name}: the mask has shape {mask.shape}, the series {shape}; "
            "give a mask on the grid of the series"
        )
    if not mask.any():
        raise EddymotionError(f"{name}: the brain mask is empty; give one that marks the brain")
    return mask


def _refuse_unpredictable(name: str, signal: np.ndarray, gradients: Gradients) -> None:
    empty = np.flatnonzero([not volume.any() for volume in np.moveaxis(signal, 3, 0)])
    if len(empty):
        raise EddymotionError(
            f"{name}: all voxels of volume {', '.join(map(str, empty))} (counted from 0) are "
            "zero; remove it from the image, the .bval and the .bvec"
        )
    refuse_single(name, gradients)


def refuse_single(name: str, gradients: Gradients) -> None:
    """Raise if a single volume is diffusion-weighted, or none by the unit of the b-values."""
    if len(gradients.dwis) == 1 or (not len(gradients.dwis) and in_thousands(gradients.bvals)):
        raise EddymotionError(
            f"{name}: found {len(gradients.dwis)} diffusion-weighted volume(s) above "
            f"b={gradients.b0_threshold:g}, expected at least 2, since each is predicted "
            "from the others; check the .bval or lower --b0-threshold"
            + unit_hint(gradients.bvals, gradients.b0_threshold)
        )
