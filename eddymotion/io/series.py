# SPDX-License-Identifier: Apache-2.0
"""Reading a diffusion series: image, gradient tables, sidecar and brain mask → :class:`DWI`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from nibabel.affines import voxel_sizes

from eddymotion.data.checks import refuse_wrong_tables
from eddymotion.data.gradients import B0_THRESHOLD, Gradients, from_fsl, reference_volumes
from eddymotion.data.series import DWI, refuse_other_dimensions, refuse_single
from eddymotion.errors import SERIES_WANTED, EddymotionError, absence
from eddymotion.images.gaps import fill_gaps, fill_missing, spikes, zero_specks
from eddymotion.images.grid import grid_distance, reoriented
from eddymotion.images.masking import brain_mask
from eddymotion.io.headers import (
    affine_of,
    read_header,
    refuse_other_formats,
    repetition_time_of,
    shape_of,
)
from eddymotion.io.images import read_image
from eddymotion.io.sidecars import acquisition_of, metadata_beside
from eddymotion.io.tables import read_gradient_table, table_beside
from eddymotion.wording import named_volumes

log = logging.getLogger(__name__)

MASK_TOLERANCE = 0.5
"""Largest distance (voxels) between the grids of an image and its mask."""


@overload
def load(path: str | Path, **options: Any) -> DWI: ...
@overload
def load(path: Sequence[str | Path], **options: Any) -> list[DWI]: ...
def load(  # type: ignore[misc]  # options by name
    path: str | Path | Sequence[str | Path],
    *,
    bval: str | Path | None = None,
    bvec: str | Path | None = None,
    mask: str | Path | None = None,
    b0_threshold: float = B0_THRESHOLD,
    ignore: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> DWI | list[DWI]:
    """Load a diffusion series, or runs that belong together.

    Parameters
    ----------
    path : path or sequence of paths
        4-D NIfTI, plain or gzipped. Several series are read with the tables and sidecars beside
        each.
    bval, bvec : path, optional
        FSL tables, 3×N or N×3. Searched beside `path` when not given.
    mask : path, optional
        Brain mask on the grid of the series; computed from the mean b=0 when not given.
    b0_threshold : float
        Volumes at or below this b-value count as b=0.
    ignore : sequence of {"sform", "qform", "tables"}
        ``sform`` or ``qform``: which of the two affines to disregard when they disagree.
        ``tables``: load the series even if its images contradict the b-values.
    metadata : mapping, optional
        BIDS metadata of the series: slice timing, phase encoding and readout time are used. The
        sidecar beside `path` when not given.

    Returns
    -------
    DWI, or list of DWI
        The mask leaves out voxels that are NaN, infinite or far too bright in any volume, or zero
        in all of them. Small groups of such voxels are filled from their surroundings; larger
        regions of NaN or infinite values become zero in all volumes.

    Raises
    ------
    EddymotionError
        If a file is missing, damaged or does not fit the others, or if the images contradict the
        b-values (:mod:`eddymotion.data.checks.tables`).
    """
    if isinstance(path, list | tuple):
        if bval or bvec or mask or metadata:
            raise EddymotionError(
                "load: one bval, bvec, mask or metadata for several series; load them one by one"
            )
        return [load(one, b0_threshold=b0_threshold, ignore=ignore) for one in path]
    path = _image_path(path)
    tables = _Tables.of(path, bval, bvec)
    signal, affine, header = read_image(path, ignore, keep_integers=True)
    gradients = tables.gradients_of(path, signal.shape, affine, b0_threshold)
    finite = _fill_missing(path, signal)
    finite &= ~_fill_spikes(path, signal)
    brain = _brain(mask, signal, gradients, affine, path.name)
    known = finite & ~_fill_zero_specks(path, signal, brain)
    metadata = metadata_beside(path) if metadata is None else metadata
    acquisition = acquisition_of(
        gradients, metadata, signal.shape[:3], affine, repetition_time_of(header), path.name
    )
    dwi = DWI(signal, affine, acquisition, brain & known, path)
    refuse_wrong_tables(dwi, np.linalg.norm(tables.bvecs, axis=1), ignore)
    return dwi


def refuse_unreadable(
    path: Path,
    bval: Path | None,
    bvec: Path | None,
    *,
    b0_threshold: float,
    ignore: Sequence[str],
) -> None:
    """Raise if header and tables of a series show that :func:`load` would refuse it.

    That takes no time: where several series are corrected, all are looked at before the first.
    """
    path = _image_path(path)
    tables, header = _Tables.of(path, bval, bvec), read_header(path)
    affine = affine_of(path, header, ignore)
    refuse_single(str(path), tables.gradients_of(path, shape_of(header), affine, b0_threshold))


@dataclass(frozen=True)
class _Tables:
    """The gradient tables of a series, as they were read.

    Parameters
    ----------
    bval, bvec : Path
    bvals : (N,) array
    bvecs : (N, 3) array
        Along the image axes, of any length.
    """

    bval: Path
    bvec: Path
    bvals: np.ndarray
    bvecs: np.ndarray

    @classmethod
    def of(cls, image: Path, bval: str | Path | None, bvec: str | Path | None) -> _Tables:
        """Read those that are given, or those beside the image."""
        bval = Path(bval) if bval else table_beside(image, "bval")
        bvec = Path(bvec) if bvec else table_beside(image, "bvec")
        return cls(bval, bvec, *read_gradient_table(bval, bvec))

    def gradients_of(
        self, image: Path, shape: tuple[int, ...], affine: np.ndarray, b0_threshold: float
    ) -> Gradients:
        """Return the gradients of the volumes of an image, if the tables fit it."""
        refuse_other_dimensions(str(image), shape)
        if shape[3] != len(self.bvals):
            raise EddymotionError(
                f"{self.bval}: found {len(self.bvals)} b-values for the {shape[3]} volumes of "
                f"{image.name}; give the table that belongs to it"
            )
        try:
            return Gradients(self.bvals, from_fsl(self.bvecs, affine), b0_threshold)
        except EddymotionError as error:
            raise EddymotionError(f"{self.bval}, {self.bvec.name}: {error}") from error


def _image_path(path: Any) -> Path:
    """Return the path of an image that is there; what cannot be one is refused."""
    if not isinstance(path, (str, os.PathLike)):
        raise EddymotionError(
            f"load: got a {type(path).__name__}, expected a path; make a series from arrays with "
            "eddymotion.DWI(signal, affine, eddymotion.Gradients(bvals, bvecs), mask)"
        )
    path = Path(path)
    if not path.is_file():
        raise EddymotionError(absence(path, SERIES_WANTED))
    refuse_other_formats(path)
    return path


def _brain(
    mask: str | Path | None,
    signal: np.ndarray,
    gradients: Gradients,
    affine: np.ndarray,
    owner: str,
) -> np.ndarray:
    """Read the brain mask, or compute it from the mean b=0."""
    if not mask:
        return brain_mask(mean_b0(signal, gradients))
    brain = read_mask(Path(mask), signal.shape[:3], affine, owner)
    if not brain.any():
        raise EddymotionError(f"{mask}: no voxel is above zero; give a mask that marks the brain")
    return brain


def _finite_voxels(path: Path, signal: np.ndarray) -> np.ndarray:
    """Say which voxels are finite in all volumes; a volume without any is an error."""
    finite = np.ones(signal.shape[:3], bool, order="F")
    if signal.dtype.kind != "f":
        return finite
    for index in range(signal.shape[3]):
        in_volume = np.isfinite(signal[..., index])
        if not in_volume.any():
            raise EddymotionError(
                f"{path}: volume {index} (counted from 0) holds no finite number; remove it from "
                "the image, the .bval and the .bvec"
            )
        finite &= in_volume
    return finite


def _fill_missing(path: Path, signal: np.ndarray) -> np.ndarray:
    """Fill voxels that are NaN or infinite in some volume; return which are not, (X, Y, Z)."""
    finite = _finite_voxels(path, signal)
    if not finite.all():
        log.warning(
            "%s: %d voxels are NaN or infinite in some volume; they are excluded from the mask "
            "and filled from their surroundings, or set to zero in large clusters",
            path.name, (~finite).sum(),
        )  # fmt: skip
        _give_numbers(signal)
    return finite


def _give_numbers(signal: np.ndarray) -> None:
    """Fill small groups of voxels without numbers; set larger regions to zero in all volumes.

    In all of them, even if one alone lacks numbers there: the region then counts as not imaged.
    """
    pieces = np.zeros(signal.shape[:3], bool)
    for volume in np.moveaxis(signal, 3, 0):
        pieces |= fill_missing(volume)
    signal[pieces] = 0.0


def _fill_spikes(path: Path, signal: np.ndarray) -> np.ndarray:
    """Fill voxels that are far too bright from around them, and say which they are."""
    found, volumes = np.zeros(signal.shape[:3], bool), []
    for index, volume in enumerate(np.moveaxis(signal, 3, 0)):
        if (bright := spikes(volume)) is not None:
            found |= bright
            volumes.append(index)
            fill_gaps(volume, bright)
    if n_found := int(found.sum()):
        log.warning(
            "%s: %d voxel%s far brighter than all others in %s; excluded from the mask and filled "
            "from what is around", path.name, n_found, "s" * (n_found > 1), named_volumes(volumes),
        )  # fmt: skip
    return found


def _fill_zero_specks(path: Path, signal: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Fill voxels that no volume shows from around them, and say which they are."""
    specks = zero_specks(np.moveaxis(signal, 3, 0), brain)
    if specks.any():
        log.warning(
            "%s: %d voxels of the brain are zero in all volumes; they are excluded from the "
            "mask and filled from their surroundings", path.name, specks.sum(),
        )  # fmt: skip
        for volume in np.moveaxis(signal, 3, 0):
            fill_gaps(volume, specks)
    return specks


def read_mask(
    path: Path,
    shape: tuple[int, ...],
    affine: np.ndarray,
    owner: str,
    ignore: Sequence[str] = (),
) -> np.ndarray:
    """Read a mask (X, Y, Z) and make sure that it lies on the grid of its image, the `owner`.

    Its axes may be stored in another order or direction.
    """
    data, mask_affine, _ = read_image(path, ignore)
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    data, mask_affine = reoriented(data, mask_affine, affine)
    if data.shape != shape:
        raise EddymotionError(
            f"{path}: found shape {data.shape}, expected that of {owner}, {shape}; "
            "give a mask on the grid of its image, such as by: mrgrid MASK regrid -template DWI "
            "-interp nearest OUT"
        )
    apart = grid_distance(affine, mask_affine, shape)
    if apart > MASK_TOLERANCE * voxel_sizes(affine).min():
        raise EddymotionError(
            f"{path}: lies up to {apart:.3g} mm from the voxels of {owner}; give a mask aligned "
            "with its image"
        )
    return np.nan_to_num(data) > 0


def mean_b0(signal: np.ndarray, gradients: Gradients) -> np.ndarray:
    """Average the b=0 volumes, or without any those of the lowest shell."""
    mean = MeanB0(gradients)
    for volume in mean.averaged:
        mean.add(volume, signal[..., volume])
    return mean.image


class MeanB0:
    """The average of :func:`~eddymotion.data.gradients.reference_volumes`, one by one."""

    def __init__(self, gradients: Gradients, unplaced: np.ndarray | None = None) -> None:
        self.averaged = reference_volumes(gradients, unplaced)
        self._total: np.ndarray | float = 0.0

    def add(self, index: int, volume: np.ndarray) -> None:
        """Add a volume, if it is one of those that are averaged."""
        if index in self.averaged:
            self._total = self._total + volume.astype(float)

    def watching(self, volumes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield all volumes of a series unchanged, averaging on the way."""
        for index, volume in enumerate(volumes):
            self.add(index, volume)
            yield volume

    @property
    def image(self) -> np.ndarray:
        """The average so far, (X, Y, Z) float32."""
        return np.asarray(self._total / len(self.averaged), dtype=np.float32)
