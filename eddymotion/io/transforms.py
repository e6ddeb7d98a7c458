# SPDX-License-Identifier: Apache-2.0
"""One linear transform ⇄ files of the programs that people use.

In memory a matrix maps points of the fixed image to points of the moving one, RAS+ mm. The files
say the same in their own ways:

``.tfm``, ``.txt``
    ITK, ANTs, 3D Slicer: fixed → moving, LPS+ mm.
``.x5``
    NiTransforms: fixed → moving, RAS+ mm.
``.mat``
    FSL's FLIRT: moving → fixed, in voxels times voxel sizes, x flipped where the determinant of
    the affine is positive. Both grids belong to its meaning. (ANTs' binary ``.mat`` is read, too.)
``.aff12.1D``
    AFNI: fixed → moving, LPS+ mm, in coordinates from which oblique grids have been turned back.
``.lta``
    FreeSurfer: moving → fixed, RAS+ mm.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, obliquity, voxel_sizes

from eddymotion.errors import EddymotionError, absence
from eddymotion.images.axes import image_axes
from eddymotion.images.grid import fsl_coordinates
from eddymotion.images.image import Image
from eddymotion.io.itk import LPS, linear_transform, read_itk, write_itk
from eddymotion.io.writing import replacing, write_text
from eddymotion.wording import cut, why

FORMATS = {"itk": ".tfm", "x5": ".x5", "fsl": ".mat", "afni": ".aff12.1D", "lta": ".lta"}
"""Names of the formats that are written → how their files end."""

READABLE = (
    "give ITK text (.tfm, .txt), X5 (.x5), FSL or ANTs (.mat), AFNI (.aff12.1D) or FreeSurfer "
    "(.lta) with one linear transform"
)

MAX_NUMBERS = 16_000_000
"""More are no list of matrices: a damaged file can claim any size."""

AFNI_OBLIQUE_DEG = 0.01
"""Grids that are less oblique are not, for AFNI."""


def write_linear(path: Path, matrix: np.ndarray, fixed: Image, moving: Image) -> None:
    """Write a transform in the format that the name of the file says.

    Parameters
    ----------
    path : path
        Ends as one of :data:`FORMATS`.
    matrix : (4, 4) array
        Fixed → moving, RAS+ mm.
    fixed, moving : Image
        Only their grids count.
    """
    _codec(path, _WRITERS)(path, np.asarray(matrix, float), fixed, moving)


def read_linear(path: str | Path, fixed: Image, moving: Image) -> np.ndarray:
    """Read a transform from any of the formats, by the end of its name.

    Parameters
    ----------
    path : path
    fixed, moving : Image
        Whose points it maps; only their grids count (FSL's and AFNI's files depend on them).

    Returns
    -------
    (4, 4) array
        Fixed → moving, RAS+ mm.

    Raises
    ------
    EddymotionError
        If the file is missing, damaged, of another kind, or holds several transforms or one that
        cannot be inverted.
    """
    path = Path(path)
    if not path.is_file():
        raise EddymotionError(absence(path, READABLE))
    reader = _codec(path, _READERS)
    try:
        matrix = np.asarray(reader(path, fixed, moving), float)
    except EddymotionError:
        raise
    except Exception as error:  # whatever a decoder raises
        raise EddymotionError(f"{path}: cannot be read ({why(error)}); {READABLE}") from error
    usable = (
        matrix.shape == (4, 4)
        and np.isfinite(matrix).all()
        and np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6)
        and abs(np.linalg.det(matrix[:3, :3])) > 1e-9
    )
    if not usable:
        raise EddymotionError(
            f"{path}: holds no affine matrix of finite numbers that can be inverted; {READABLE}"
        )
    return matrix


def _codec(path: Path, table: dict[str, Callable]) -> Callable:
    name = path.name.lower()
    for ending, function in table.items():
        if name.endswith(ending):
            return function
    raise EddymotionError(f"{path}: not a linear transform by its name; {READABLE}")


def _write_itk(path: Path, matrix: np.ndarray, fixed: Image, moving: Image) -> None:
    write_itk(path, matrix[None], "AffineTransform_double_3_3")


def _read_itk(path: Path, fixed: Image, moving: Image) -> np.ndarray:
    return _only_one(path, read_itk(path), "ITK")


def _only_one(path: Path, matrices: np.ndarray, kind: str) -> np.ndarray:
    if len(matrices) != 1:
        raise EddymotionError(
            f"{path}: holds {len(matrices)} transforms of {kind}, expected one; {READABLE}"
        )
    return matrices[0]


def _write_x5(path: Path, matrix: np.ndarray, fixed: Image, moving: Image) -> None:
    from nitransforms.linear import Affine

    with replacing(path) as temporary:
        Affine(matrix, reference=_grid(fixed)).to_filename(str(temporary), fmt="X5")


def _read_x5(path: Path, fixed: Image, moving: Image) -> np.ndarray:
    return _only_one(path, read_x5(path), "X5")


def read_x5(path: Path) -> np.ndarray:
    """Read the linear transforms of an X5 file, (N, 4, 4), RAS+ mm.

    Raises
    ------
    EddymotionError
        If it holds others.
    Exception
        Whatever HDF5's library raises on a damaged file.
    """
    import h5py

    matrices = []
    with h5py.File(path, "r") as stored:
        if stored.attrs.get("Format") != "X5":
            raise ValueError("HDF5 but not X5")
        for name in sorted(stored["TransformGroup"], key=int):
            node = stored["TransformGroup"][name]
            numbers, kind = node["Transform"], node.attrs["Type"]
            if kind != "linear":
                raise EddymotionError(f"{path}: holds a {cut(str(kind))} transform; {READABLE}")
            if numbers.size > MAX_NUMBERS or numbers.size % 16:
                raise ValueError(f"{numbers.size} numbers are not matrices")
            matrices.append(np.asarray(numbers, float).reshape(-1, 4, 4))
    return np.concatenate(matrices)


def _write_fsl(path: Path, matrix: np.ndarray, fixed: Image, moving: Image) -> None:
    from_moving = np.linalg.inv(fsl_coordinates(moving.data.shape, moving.affine))
    flirt = fsl_coordinates(fixed.data.shape, fixed.affine) @ np.linalg.inv(matrix) @ from_moving
    write_text(path, "".join(_row(row, "  ") + "\n" for row in flirt))


def _read_mat(path: Path, fixed: Image, moving: Image) -> np.ndarray:
    """Read FLIRT's text, or the binary file of ITK that ANTs writes."""
    content = path.read_bytes()
    if b"\0" in content:
        return _read_itk_binary(path)
    flirt = np.array(content.decode().split(), float).reshape(4, 4)
    to_moving = np.linalg.inv(fsl_coordinates(moving.data.shape, moving.affine))
    return to_moving @ np.linalg.inv(flirt) @ fsl_coordinates(fixed.data.shape, fixed.affine)


def _read_itk_binary(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    arrays = {key: np.ravel(value) for key, value in loadmat(path).items() if key[:2] != "__"}
    fixed = arrays.pop("fixed")
    if len(arrays) != 1:
        raise EddymotionError(f"{path}: holds {cut(', '.join(arrays))}; {READABLE}")
    ((name, numbers),) = arrays.items()
    return linear_transform(
        path, name.partition("_")[0], numbers.astype(float), fixed.astype(float)
    )


def _write_afni(path: Path, matrix: np.ndarray, fixed: Image, moving: Image) -> None:
    afni = afni_coordinates(moving.affine) @ matrix @ np.linalg.inv(afni_coordinates(fixed.affine))
    numbers = (LPS @ afni @ LPS)[:3].ravel()
    banner = "# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):"
    write_text(path, f"{banner}\n{_row(numbers, '  ')}\n")


def afni_coordinates(affine: np.ndarray) -> np.ndarray:
    """Return RAS+ mm → AFNI's coordinates of a grid, RAS+ mm, (4, 4).

    As if the axes of an oblique grid were those of the world next to them; its first voxel stays
    in place. The axes are next to each other as a whole, which NiTransforms takes one by one: two
    axes of a strongly oblique grid can have the same neighbour, and its matrix is singular then.
    """
    if np.rad2deg(obliquity(affine).max()) <= AFNI_OBLIQUE_DEG:
        return np.eye(4)
    axes = image_axes(affine)
    nearest = max(
        (np.eye(3)[list(order)] * signs for order in permutations(range(3))
         for signs in product((1.0, -1.0), repeat=3)),
        key=lambda cardinal: float(np.sum(cardinal * axes)),
    )  # fmt: skip
    sizes = np.round(voxel_sizes(affine), 4)  # as AFNI's headers
    return from_matvec(nearest * sizes, affine[:3, 3]) @ np.linalg.inv(affine)


def _read_afni(path: Path, fixed: Image, moving: Image) -> np.ndarray:
    text = path.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(rows) == 3:  # a matrix, not in one line
        rows = [" ".join(rows)]
    if len(rows) != 1:
        raise EddymotionError(f"{path}: holds {len(rows)} rows, expected one; {READABLE}")
    afni = np.vstack([np.array(rows[0].split(), float).reshape(3, 4), np.eye(4)[3]])
    to_moving = np.linalg.inv(afni_coordinates(moving.affine))
    return to_moving @ LPS @ afni @ LPS @ afni_coordinates(fixed.affine)


def _write_lta(path: Path, matrix: np.ndarray, fixed: Image, moving: Image) -> None:
    """Write FreeSurfer's file; its source is the moving image, its destination the fixed one.

    NiTransforms names them the other way round, which reading as RAS+ does not show.
    """
    from nitransforms.io.lta import FSLinearTransform

    struct = FSLinearTransform.from_ras(matrix, moving=_grid(fixed), reference=_grid(moving))
    write_text(path, struct.to_string() + "\n")


def _read_lta(path: Path, fixed: Image, moving: Image) -> np.ndarray:
    from nitransforms.io.lta import FSLinearTransform, FSLinearTransformArray

    text = path.read_text(encoding="utf-8")
    if "fscale" in text:
        several = FSLinearTransformArray.from_string(text)
        if several["nxforms"] != 1:
            raise EddymotionError(
                f"{path}: holds {several['nxforms']} transforms, expected one; {READABLE}"
            )
        return several.to_ras()[0]
    return FSLinearTransform.from_string(text).to_ras()


def _grid(image: Image) -> nib.Nifti1Image:
    """Return an image that says to NiTransforms where the voxels lie; it takes no memory."""
    nothing = np.broadcast_to(np.uint8(0), image.data.shape[:3])
    return nib.Nifti1Image(nothing, image.affine)


def _row(numbers: np.ndarray | list[float], separator: str = " ") -> str:
    return separator.join(repr(float(number) + 0.0) for number in numbers)


_WRITERS: dict[str, Callable[[Path, np.ndarray, Image, Image], None]] = {
    ".tfm": _write_itk,
    ".txt": _write_itk,
    ".x5": _write_x5,
    ".mat": _write_fsl,
    ".1d": _write_afni,
    ".lta": _write_lta,
}

_READERS: dict[str, Callable[[Path, Image, Image], np.ndarray]] = {
    ".tfm": _read_itk,
    ".txt": _read_itk,
    ".x5": _read_x5,
    ".mat": _read_mat,
    ".1d": _read_afni,
    ".lta": _read_lta,
}
