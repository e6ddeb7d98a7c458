# SPDX-License-Identifier: Apache-2.0
"""Images ⇄ NIfTI files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.volumeutils import apply_read_scaling

from eddymotion.data.series import KEPT_TYPES, Series
from eddymotion.errors import EddymotionError
from eddymotion.io.headers import (
    affine_of,
    header_of,
    opened,
    refusing,
    scaling_of,
    shape_of,
)
from eddymotion.io.writing import replacing

VOXEL_OFFSET = 352
"""Bytes before the voxels of a NIfTI-1 file without extensions."""

IN_BETWEEN = 2**16
"""Bytes of extensions that are passed over at a time."""


def read_image(
    path: Path, ignore: Sequence[str] = (), *, keep_integers: bool = False
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    """Read a NIfTI image as float32, its affine and its header.

    With `keep_integers`, unscaled integers of at most 16 bits stay what they are.

    Raises
    ------
    EddymotionError
        If it is missing, damaged, not NIfTI, or its sform and qform disagree.
    """
    with refusing(path):
        data, header = _decode(path, keep_integers)
        return data, affine_of(path, header, ignore), header


def _decode(path: Path, keep_integers: bool) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Read a volume at a time; integers that are kept go where they stay."""
    with opened(path) as stream:
        header = header_of(stream)
        stored_type = header.get_data_dtype()
        if stored_type.kind not in "iuf":
            raise EddymotionError(
                f"{path}: voxels of type {stored_type}, expected real numbers; give the "
                "magnitude image"
            )
        kept, scaling = stored_type.newbyteorder("="), scaling_of(header)
        exact = keep_integers and kept in KEPT_TYPES and scaling == (1, 0)
        *volume, n_volumes = shape_of(header)
        data = np.empty((*volume, n_volumes), kept if exact else np.float32, order="F")
        _skip_to(stream, header.get_data_offset())
        for index in range(n_volumes):
            kept_here = data[..., index]
            raw = kept_here if exact else np.empty(volume, stored_type, order="F")
            _fill(raw, stream)
            if not exact:
                kept_here[...] = apply_read_scaling(raw, *scaling)
            elif not stored_type.isnative:
                raw.byteswap(inplace=True)
    return data, header


def _skip_to(stream: BinaryIO, offset: int) -> None:
    """Go to a byte that was not read yet."""
    while (left := offset - stream.tell()) > 0 and stream.read(min(left, IN_BETWEEN)):
        pass


def _fill(volume: np.ndarray, stream: BinaryIO) -> None:
    """Read all voxels of a volume, x fastest."""
    wanted, n_read = volume.T.reshape(-1).view(np.uint8).data, 0
    while n_read < len(wanted):
        n_more = cast(io.BufferedIOBase, stream).readinto(wanted[n_read:])
        if not n_more:
            raise EOFError(f"{n_read} of the {len(wanted)} bytes of a volume found")
        n_read += n_more


def image_stem(path: Path) -> str:
    """Return the name of a NIfTI file without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def write_image(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    repetition_time: float | None = None,
) -> None:
    """Write NIfTI-1, in the array's dtype, sform and qform alike; gzipped if `path` ends so."""
    volumes = np.moveaxis(data, 3, 0) if data.ndim == 4 else [data]
    header = new_header(data.shape, data.dtype, affine, repetition_time)
    write_volumes(path, header, volumes)


def write_series(path: Path, series: Series, volumes: Iterable[np.ndarray]) -> None:
    """Write the volumes of a series as float32, each as it comes."""
    shape = (*series.shape, len(series))
    header = new_header(shape, np.dtype(np.float32), series.affine, series.repetition_time)
    write_volumes(path, header, volumes)


def new_header(
    shape: tuple[int, ...],
    dtype: np.dtype,
    affine: np.ndarray,
    repetition_time: float | None = None,
) -> nib.Nifti1Header:
    """Return the header of a NIfTI-1 file, sform and qform alike."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    if not np.allclose(header.get_qform(), affine, atol=1e-4):  # a qform cannot hold shears
        header.set_qform(None, 0)
    header.set_xyzt_units("mm", "sec" if len(shape) == 4 else None)
    if len(shape) == 4:
        header["pixdim"][4] = repetition_time or 0.0  # zero: not known
    header.set_slope_inter(1.0, 0.0)
    header["magic"] = header.single_magic
    header["vox_offset"] = VOXEL_OFFSET
    return header


def write_volumes(path: Path, header: nib.Nifti1Header, volumes: Iterable[np.ndarray]) -> None:
    """Write volumes below a header, each as it comes."""
    shape = header.get_data_shape()
    with replacing(path) as temporary, _opened(temporary) as stream:
        header.write_to(stream)
        stream.write(bytes(VOXEL_OFFSET - stream.tell()))
        n_written = 0
        for volume in volumes:
            in_file_order = np.ascontiguousarray(volume.T, dtype=header.get_data_dtype())
            stream.write(in_file_order.data.cast("B"))
            n_written += 1
        if n_written != math.prod(shape[3:]):
            raise ValueError(f"{path}: {n_written} volumes for an image of shape {shape}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open for writing; in gzip's header neither name nor time: the same data, the same bytes."""
    with path.open("wb") as raw:
        if path.name.endswith(".gz"):
            with igzip.IGzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield raw
