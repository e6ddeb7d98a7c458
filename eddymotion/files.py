# SPDX-License-Identifier: Apache-2.0
"""Files ⇄ values: images, gradient tables, transforms.

Everything is written under a temporary name beside its final one, flushed to the disk and then
renamed, so that a final name never holds half a file.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.affines import voxel_sizes
from nibabel.volumeutils import apply_read_scaling, array_from_file

from eddymotion.checks import refuse_contradictions
from eddymotion.dataset import DWI, KEPT_TYPES, Series
from eddymotion.errors import EddymotionError, absence, stand_in
from eddymotion.geometry import Motion, fsl_coordinates, grid_distance
from eddymotion.gradients import Gradients, from_fsl, to_fsl
from eddymotion.headers import (
    affine_of,
    header_of,
    opened,
    refusing,
    repetition_time_of,
    scaling_of,
    shape_of,
)
from eddymotion.locks import refuse_if_lost
from eddymotion.masking import brain_mask
from eddymotion.names import ESCAPED
from eddymotion.running import disk_error_in_words
from eddymotion.temporaries import temporary_name
from eddymotion.words import why

log = logging.getLogger(__name__)

CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)
"""What fsync says where a file system has nothing of the kind."""

VOXEL_OFFSET = 352
"""Bytes before the voxels of a NIfTI-1 file without extensions."""

MASK_TOLERANCE = 0.5
"""Largest distance (voxels) between the grids of an image and its mask."""


def load(
    path: str | Path,
    *,
    bval: str | Path | None = None,
    bvec: str | Path | None = None,
    mask: str | Path | None = None,
    b0_threshold: float = 50.0,
    ignore: Sequence[str] = (),
) -> DWI:
    """Load a diffusion series.

    Parameters
    ----------
    path : path
        4-D NIfTI, plain or gzipped.
    bval, bvec : path, optional
        FSL tables, 3×N or N×3. Searched beside `path` when not given.
    mask : path, optional
        Brain mask on the grid of the series; computed from the mean b=0 when not given.
    b0_threshold : float
        Volumes at or below this b-value count as b=0.
    ignore : sequence of {"sform", "qform", "tables"}
        Which of the two affines to disregard when they disagree; with ``tables``, that the images
        contradict the b-values.

    Returns
    -------
    DWI
        Voxels that are NaN or infinite in any volume are zero in all and outside the mask.

    Raises
    ------
    EddymotionError
        If a file is missing, damaged or does not fit the others, or if no head could look so with
        these b-values (:mod:`eddymotion.checks.tables`).
    """
    path = Path(path)
    if not path.is_file():
        raise EddymotionError(absence(path, "give a 4-D NIfTI image"))
    bval = Path(bval) if bval else _table_beside(path, "bval")
    bvec = Path(bvec) if bvec else _table_beside(path, "bvec")
    bvals, bvecs = read_gradient_table(bval, bvec)
    signal, affine, header = read_image(path, ignore, keep_integers=True)
    if signal.ndim != 4:
        raise EddymotionError(
            f"{path}: found an image of shape {signal.shape}, expected four dimensions "
            "(x, y, z, volumes); give the whole diffusion series"
        )
    if signal.shape[3] != len(bvals):
        raise EddymotionError(
            f"{bval}: found {len(bvals)} b-values for the {signal.shape[3]} volumes of "
            f"{path.name}; give the table that belongs to it"
        )
    try:
        gradients = Gradients(bvals, from_fsl(bvecs, affine), b0_threshold)
    except EddymotionError as error:
        raise EddymotionError(f"{bval}, {bvec.name}: {error}") from error
    finite = _finite_voxels(path, signal)
    if not finite.all():
        log.warning(
            "%s: %d voxels are NaN or infinite in some volume; they are set to zero and left out "
            "of the mask", path.name, (~finite).sum()
        )  # fmt: skip
        signal[~finite] = 0.0
    if mask:
        brain = read_mask(Path(mask), signal.shape[:3], affine, path.name)
        if not brain.any():
            raise EddymotionError(
                f"{mask}: no voxel is above zero; give a mask that marks the brain"
            )
    else:
        brain = brain_mask(mean_b0(signal, gradients))
    dwi = DWI(signal, affine, gradients, brain & finite, path, repetition_time_of(header))
    refuse_contradictions(dwi, np.linalg.norm(bvecs, axis=1), ignore)
    return dwi


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


def read_mask(
    path: Path,
    shape: tuple[int, ...],
    affine: np.ndarray,
    owner: str,
    ignore: Sequence[str] = (),
) -> np.ndarray:
    """Read a mask (X, Y, Z) and make sure that it lies on the grid of its image, the `owner`."""
    data, mask_affine, _ = read_image(path, ignore)
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    if data.shape != shape:
        raise EddymotionError(
            f"{path}: found shape {data.shape}, expected that of {owner}, {shape}; "
            "give a mask on the grid of its image"
        )
    apart = grid_distance(affine, mask_affine, shape)
    if apart > MASK_TOLERANCE * voxel_sizes(affine).min():
        raise EddymotionError(
            f"{path}: lies up to {apart:.3g} mm from the voxels of {owner}; "
            "give a mask with the orientation and position of its image"
        )
    return np.nan_to_num(data) > 0


def mean_b0(signal: np.ndarray, gradients: Gradients) -> np.ndarray:
    """Average the b=0 volumes, or without any those of the lowest shell."""
    mean = MeanB0(gradients)
    for volume in mean.averaged:
        mean.add(volume, signal[..., volume])
    return mean.image


class MeanB0:
    """The average of the b=0 volumes, or without any of the lowest shell, as they come."""

    def __init__(self, gradients: Gradients) -> None:
        self.averaged = gradients.b0s if len(gradients.b0s) else gradients.shells[0]
        self._total: np.ndarray | float = 0.0

    def add(self, index: int, volume: np.ndarray) -> None:
        """Take notice of a volume."""
        if index in self.averaged:
            self._total = self._total + volume.astype(float)

    def watching(self, volumes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass all volumes of a series through, and take notice of them."""
        for index, volume in enumerate(volumes):
            self.add(index, volume)
            yield volume

    @property
    def image(self) -> np.ndarray:
        """What has been averaged, (X, Y, Z) float32."""
        return np.asarray(self._total / len(self.averaged), dtype=np.float32)


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
    """Read a volume at a time: nibabel decodes, isal decompresses, one copy alone stays."""
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
        offset, size = header.get_data_offset(), stored_type.itemsize * math.prod(volume)
        source = cast(io.IOBase, stream)
        for index in range(n_volumes):
            where = offset + index * size
            raw = array_from_file(tuple(volume), stored_type, source, where, mmap=False)
            data[..., index] = raw if exact else apply_read_scaling(raw, *scaling)
    return data, header


def _table_beside(path: Path, suffix: str) -> Path:
    candidate = path.parent / f"{image_stem(path)}.{suffix}"
    if not candidate.is_file():
        add = f"add it beside {path.name}, or name another one (in Python {suffix}=, "
        raise EddymotionError(absence(candidate, f"{add}in eddymotion-correct --{suffix})"))
    return candidate


def image_stem(path: Path) -> str:
    """Return the name of a NIfTI file without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read_gradient_table(bval: Path, bvec: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read FSL tables: b-values (N,) and image-axes b-vectors (N, 3), from 3×N or N×3 text."""
    bvals = read_numbers(bval).ravel()
    bvecs = read_numbers(bvec)
    if 3 not in bvecs.shape:
        raise EddymotionError(
            f"{bvec}: found {bvecs.shape[0]} rows of {bvecs.shape[1]} numbers, "
            "expected 3 rows (or 3 columns)"
        )
    if bvecs.shape[0] == 3:  # FSL's layout, a row an axis; so are three rows of three
        bvecs = bvecs.T
    if len(bvals) != len(bvecs):
        raise EddymotionError(
            f"{bvec}: found {len(bvecs)} b-vectors for the {len(bvals)} b-values of {bval.name}; "
            "give the pair that belongs together"
        )
    norms = np.linalg.norm(bvecs[np.isfinite(bvecs).all(axis=1)], axis=1)
    if ((norms > 1e-6) & (abs(norms - 1) > 0.05)).any():
        log.warning(
            "%s: some b-vectors are not of unit length; they are normalised and the b-values "
            "are taken as they are", bvec.name
        )  # fmt: skip
    return bvals, bvecs


def read_numbers(path: Path) -> np.ndarray:
    """Read numbers separated by blanks: (rows, columns).

    Raises
    ------
    EddymotionError
        If the file is missing, empty, or holds anything else.
    """
    if not path.is_file():
        raise EddymotionError(absence(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the file is empty: told below
            numbers = np.loadtxt(path, ndmin=2)
    except Exception as error:  # whatever a decoder raises: it unpacks by the name
        raise EddymotionError(
            stand_in(path)
            or f"{path}: not a table of numbers ({why(error)}); "
            "expected text with numbers separated by blanks"
        ) from error
    if numbers.size == 0:
        raise EddymotionError(f"{path}: empty; expected one entry a volume")
    return numbers


_waiting: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("_waiting", default=None)
"""Temporary and final names of what is given its name together with others."""


@contextmanager
def together() -> Iterator[set[Path]]:
    """Give all files that are written inside their final names at the end, or none of them.

    Yields the final names, which are complete then.
    """
    waiting: list[tuple[Path, Path]] = []
    written: set[Path] = set()
    token = _waiting.set(waiting)
    try:
        yield written
        for _, path in waiting:
            refuse_name(path)
        while waiting:
            _rename(*waiting[0])
            written.add(waiting.pop(0)[1])
        for folder in {path.parent for path in written}:
            _flush_folder(folder)
    finally:
        _waiting.reset(token)
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` if the block succeeds.

    What was written is on the disk before it gets its name.

    Raises
    ------
    EddymotionError
        If `path` is a folder, or its name too long.
    LockLostError
        If another run has taken over the outputs.
    """
    refuse_name(path)
    refuse_if_lost(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    temporary = path.with_name(temporary_name(suffix))
    waiting = _waiting.get()
    kept = False
    try:
        yield temporary
        _flush(temporary)
        if waiting is None:
            _rename(temporary, path)
            _flush_folder(path.parent)
        else:
            waiting.append((temporary, path))
            kept = True
    except OSError as error:
        if error.errno is not None:  # people know the final name
            error.filename = os.fspath(path)
        raise
    finally:
        if not kept:
            temporary.unlink(missing_ok=True)


def refuse_name(path: Path) -> None:
    """Raise if a file cannot have this name: it is too long, or that of a folder."""
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise EddymotionError(disk_error_in_words(error)) from error
    if is_folder:
        raise EddymotionError(
            f"{path}: is a folder, and a file of this name is to be written; move it away"
        )


def _rename(temporary: Path, path: Path) -> None:
    refuse_if_lost(path)
    os.replace(temporary, path)


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot; the names are there anyway
        _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def write_image(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    repetition_time: float | None = None,
) -> None:
    """Write NIfTI-1, in the array's dtype, sform and qform alike; gzipped if `path` ends so."""
    volumes = np.moveaxis(data, 3, 0) if data.ndim == 4 else [data]
    header = _header(data.shape, data.dtype, affine, repetition_time)
    _write_volumes(path, header, volumes)


def write_series(path: Path, series: Series, volumes: Iterable[np.ndarray]) -> None:
    """Write the volumes of a series as float32, each as it comes."""
    shape = (*series.shape, len(series))
    header = _header(shape, np.dtype(np.float32), series.affine, series.repetition_time)
    _write_volumes(path, header, volumes)


def _header(
    shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, repetition_time: float | None
) -> nib.Nifti1Header:
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


def _write_volumes(path: Path, header: nib.Nifti1Header, volumes: Iterable[np.ndarray]) -> None:
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


def write_gradient_table(bval: Path, bvec: Path, gradients: Gradients, affine: np.ndarray) -> None:
    """Write FSL tables: a row of b-values, three rows of image-axes components."""
    write_text(bval, " ".join(f"{value:g}" for value in gradients.bvals) + "\n")
    rows = to_fsl(gradients.bvecs, affine).T + 0.0  # no negative zeros
    write_text(bvec, "".join(" ".join(f"{value:.8f}" for value in row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=ESCAPED)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_x5(path: Path, motion: Motion, original: Series) -> None:
    """Write the motion as X5 (HDF5), with NiTransforms.

    The domain is where the transforms start from, the reference frame: on the grid of the original
    series, since the corrected one may lie in the space of another image.
    """
    from nitransforms.linear import LinearTransformsMapping

    reference = nib.Nifti1Image(np.empty(original.shape, np.uint8), original.affine)
    mapping = LinearTransformsMapping(motion.matrices, reference=reference)
    with replacing(path) as temporary:
        mapping.to_filename(str(temporary), fmt="X5")


def write_fsl_matrices(folder: Path, motion: Motion, original: Series, reference: Series) -> None:
    """Write one FLIRT matrix a volume (``MAT_0000`` …), original volume → reference.

    FLIRT's coordinates depend on the grids at both ends; both lie in the scanner's coordinates.
    """
    from_original = np.linalg.inv(fsl_coordinates(original.shape, original.affine))
    to_reference = fsl_coordinates(reference.shape, reference.affine)
    with together():
        for index, matrix in enumerate(motion.matrices):
            flirt = to_reference @ np.linalg.inv(matrix) @ from_original
            rows = ("  ".join(repr(float(value)) for value in row) for row in flirt)
            write_text(folder / f"MAT_{index:04d}", "\n".join(rows) + "\n")
