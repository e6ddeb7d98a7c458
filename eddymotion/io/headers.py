# SPDX-License-Identifier: Apache-2.0
"""NIfTI headers, read with patience: what is sound in a file is used, whatever else is odd.

nibabel parses a header as a whole and gives up on any field that is wrong. Many of them do not
matter here (extensions, units, intents), or have a way out that NIfTI's reference implementation
takes, too: a quaternion longer than one is normalised, an undefined code above zero still says
that there is a matrix, an offset that is no number is none.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.quaternions import quat2mat
from nibabel.volumeutils import shape_zoom_affine

from eddymotion.errors import EddymotionError, absence, describe_pointer_file
from eddymotion.images.grid import grid_distance
from eddymotion.io.ahead import begun, is_gzipped
from eddymotion.wording import why

log = logging.getLogger(__name__)

SILENT = logging.Logger("nibabel")
"""What nibabel says of a header comes with its error, or does not matter."""
SILENT.addHandler(logging.NullHandler())

DAMAGED: tuple[type[Exception], ...] = (  # type: ignore[assignment]
    OSError,
    EOFError,
    zlib.error,
    IsalError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
)
"""What decoders raise on files that are cut short, garbled, or hold no real numbers."""

NIFTI2 = (540, 0x1C020000)
"""First four bytes of NIfTI-2, of either byte order; of NIfTI-1 they are others."""

MAX_AFFINE_DISAGREEMENT = 0.1
"""Largest distance (voxels) between sform and qform over the grid that counts as rounding."""

MAX_EXCESS = 1e-3
"""A quaternion that is longer than one by so little is rounded."""

TIME_UNITS = {16: 1e-3, 24: 1e-6}
"""NIfTI's codes of milliseconds and microseconds; all else is taken for seconds."""

TIME_MASK = 0x38


def read_header(path: Path) -> nib.Nifti1Header:
    """Read the header of a NIfTI image, not its voxels.

    Raises
    ------
    EddymotionError
        If the file is missing, damaged or not NIfTI.
    """
    with refusing(path), opened(path) as stream:
        return header_of(stream)


OTHER_FORMATS = {
    (".mif", ".mif.gz", ".mih"): "an MRtrix image; convert it to NIfTI with tables: mrconvert "
    "{name} dwi.nii.gz -export_grad_fsl dwi.bvec dwi.bval "
    "-json_export dwi.json",
    (".dcm", ".ima"): "DICOM; convert its folder with dcm2niix",
    (".hdr", ".img", ".hdr.gz", ".img.gz"): "one file of a pair; convert it to .nii.gz",
    (".nrrd", ".nhdr"): "an NRRD image; convert it to .nii.gz, .bval and .bvec",
    (".mgz", ".mgh"): "a FreeSurfer image; convert it with: mri_convert {name} dwi.nii.gz",
    (".head", ".brik", ".brik.gz"): "an AFNI image; convert it with: 3dAFNItoNIFTI {name}",
    (".bval", ".bvec", ".json"): "belongs to an image; give the image",
}
"""Endings of names of other formats than NIfTI → what it is, and what to do."""


def refuse_other_formats(path: Path) -> None:
    """Raise if the name says that it is no NIfTI file.

    Raises
    ------
    EddymotionError
        Saying how to make one of it.
    """
    for ends, advice in OTHER_FORMATS.items():
        if path.name.lower().endswith(ends):
            raise EddymotionError(f"{path}: {advice.format(name=path.name)}")


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what decoders raise into one line about `path`."""
    if not path.is_file():
        raise EddymotionError(absence(path, "give a NIfTI image"))
    refuse_other_formats(path)
    try:
        yield
    except EddymotionError:
        raise
    except DAMAGED as error:
        raise EddymotionError(
            describe_pointer_file(path)
            or f"{path}: cannot be read as NIfTI ({why(error)}); it may be truncated: "
            "copy or convert it again"
        ) from error
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        raise EddymotionError(
            describe_pointer_file(path)
            or f"{path}: not a NIfTI image ({why(error)}); convert it to .nii.gz"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open an image to be read from front to back; if gzipped says its content, not its name."""
    if (ahead := begun(path)) is not None:
        with ahead:
            yield ahead
    elif is_gzipped(path):
        with igzip.open(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    else:
        with path.open("rb") as stream:
            yield stream


def header_of(stream: BinaryIO) -> nib.Nifti1Header:
    """Read a header without its extensions, and repair what nibabel can repair."""
    magic = stream.read(4)
    is_second = int.from_bytes(magic, "little") in NIFTI2
    kind = nib.Nifti2Header if is_second else nib.Nifti1Header
    header = kind(magic + stream.read(kind.template_dtype.itemsize - len(magic)), check=False)
    given = {name: header[name].copy() for name in ("qform_code", "sform_code", "pixdim")}
    header.check_fix(SILENT)
    for name, value in given.items():  # the repair of these is a guess: see `affine_of`
        header[name] = value
    return header


def shape_of(header: nib.Nifti1Header) -> tuple[int, ...]:
    """Return the shape, with axes of length one left out where there are more than four.

    Volumes are along the fourth axis, or the fifth where the fourth has a length of one, as in
    vector images of ITK.
    """
    shape = tuple(map(int, header.get_data_shape()))
    return shape if len(shape) <= 4 else _volumes_fourth(shape)


def _volumes_fourth(shape: tuple[int, ...]) -> tuple[int, ...]:
    longer = tuple(length for length in shape[3:] if length > 1)
    return (*shape[:3], *(longer or (1,)))


def scaling_of(header: nib.Nifti1Header) -> tuple[float, float]:
    """Return what stored numbers are multiplied by, and what is added; 1 and 0 where unknown."""
    slope, inter = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def repetition_time_of(header: nib.Nifti1Header) -> float | None:
    """Return the seconds between volumes, if the header has them."""
    if len(header.get_data_shape()) < 4 or shape_of(header)[3] != header["dim"][4]:
        return None  # no axis of time
    time = float(header["pixdim"][4]) * TIME_UNITS.get(int(header["xyzt_units"]) & TIME_MASK, 1.0)
    return time if np.isfinite(time) and time > 0 else None


def affine_of(
    path: Path, header: nib.Nifti1Header, ignore: Sequence[str] = (), *, strict: bool = True
) -> np.ndarray:
    """Return the sform or the qform, (4, 4), and refuse to guess when they disagree.

    Parameters
    ----------
    path : Path
        For messages.
    header : nibabel header
    ignore : sequence of {"sform", "qform"}
        Which to disregard where both are there.
    strict : bool
        Whether to raise where they disagree; otherwise the sform is taken, as by FSL and nibabel.

    Raises
    ------
    EddymotionError
        If they disagree, or none can be inverted.
    """
    known = _known_forms(header)
    wanted = {name: form for name, form in known.items() if name not in ignore} or known
    usable = {name: form for name, form in wanted.items() if _is_invertible(form)}
    if not usable:
        raise EddymotionError(
            f"{path}: the affine cannot be inverted; set sform or qform, or convert it again"
        )
    if len(usable) < len(wanted):
        (bad,), (good,) = {*wanted} - {*usable}, usable
        log.warning("%s: its %s cannot be inverted; the %s is used", path.name, bad, good)
    if len(usable) == 2 and strict:
        _refuse_disagreement(path, **usable, shape=header.get_data_shape())
    if "sform" in usable:
        return usable["sform"]
    _warn_of_assumptions(path, header)
    return usable.popitem()[1]


def _known_forms(header: nib.Nifti1Header) -> dict[str, np.ndarray]:
    """Return what the header says of the affine: sform, qform or both; else the mere grid."""
    sizes = _voxel_sizes(header)
    forms = {"sform": header.get_sform(), "qform": _qform(header, sizes)}
    known = {name: form for name, form in forms.items() if header[f"{name}_code"] > 0}
    return known or {"grid": shape_zoom_affine(header.get_data_shape()[:3], sizes)}


def _refuse_disagreement(
    path: Path, sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Raise where the two put voxels of a grid to different places."""
    apart = grid_distance(sform, qform, shape)
    if apart > MAX_AFFINE_DISAGREEMENT * np.linalg.norm(sform[:3, :3], axis=0).min():
        raise EddymotionError(
            f"{path}: sform and qform disagree by up to {apart:.3g} mm, expected the same "
            "orientation from both; say which one to ignore with '--ignore qform' (what FSL and "
            "nibabel do) or '--ignore sform'"
        )


def _warn_of_assumptions(path: Path, header: nib.Nifti1Header) -> None:
    """Warn of what is made up where there is no sform."""
    if (header["pixdim"][1:4] == 0).any():
        log.warning("%s: voxels of length zero in the header; 1 mm is assumed", path.name)
    length = float(np.linalg.norm(_quaternion(header)))
    if header["qform_code"] > 0 and length > 1 + MAX_EXCESS:
        log.warning("%s: the quaternion of the qform has length %.3g, expected at most 1; it is "
                    "normalised", path.name, length)  # fmt: skip


def _voxel_sizes(header: nib.Nifti1Header) -> np.ndarray:
    sizes = np.abs(np.array(header["pixdim"][1:4], dtype=float))
    return np.where(sizes == 0, 1.0, sizes)


def _quaternion(header: nib.Nifti1Header) -> np.ndarray:
    """Return the three components that are stored."""
    return np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])


def _qform(header: nib.Nifti1Header, sizes: np.ndarray) -> np.ndarray:
    """Build the qform from any quaternion, as NIfTI's reference implementation does."""
    vector = _quaternion(header)
    rest = 1.0 - vector @ vector
    real = np.sqrt(rest) if rest > header.quaternion_threshold else 0.0
    qform = np.eye(4)
    with np.errstate(invalid="ignore"):  # a quaternion that is not finite: no form
        qform[:3, :3] = quat2mat([real, *vector]) * sizes
    if header["pixdim"][0] < 0:
        qform[:3, 2] *= -1
    qform[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return qform


def _is_invertible(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12)
