# SPDX-License-Identifier: Apache-2.0
"""What is registered: files and settings → two images, masks, landmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.evaluation.landmarks import Landmarks, pair_landmarks, read_landmarks
from eddymotion.images.gaps import filled_volume
from eddymotion.images.image import Image
from eddymotion.io import series as files
from eddymotion.io.given_tables import GivenTable
from eddymotion.io.images import read_image
from eddymotion.pairs.measures import PairOverlay
from eddymotion.registration import Registration
from eddymotion.registration.checks import MIN_THICKNESS
from eddymotion.registration.problem import head_of

MIN_MASK_VOXELS = 100
"""With fewer there is nothing to register."""

BACKENDS = {"syn": "dipy"}
"""What registers if nobody says; ``gauss-newton`` all else."""


@dataclass(frozen=True)
class PairPaths:
    """The files of a pair.

    Parameters
    ----------
    fixed, moving : Path
        NIfTI.
    fixed_mask, moving_mask : Path, optional
        On the grid of their image.
    init : Path, optional
        A linear transform, fixed → moving, in any format of :mod:`eddymotion.io.transforms`.
    landmarks : tuple of Path
        One table with points of both images, or one file each.
    """

    fixed: Path
    moving: Path
    fixed_mask: Path | None
    moving_mask: Path | None
    init: Path | None
    landmarks: tuple[Path, ...]

    def __iter__(self) -> Iterator[Path]:
        given = (self.fixed, self.moving, self.fixed_mask, self.moving_mask, self.init)
        return (path for path in (*given, *self.landmarks) if path is not None)


@dataclass(frozen=True)
class PairSettings:
    """How a pair is registered; names are those of the command-line options."""

    transform: str
    backend: str | None
    settings: Path | None
    metric: str | None
    initialize: str
    formats: tuple[str, ...]
    interpolation: str
    fixed_volume: int | None
    moving_volume: int | None
    ignore: tuple[str, ...]
    random_seed: int
    nprocs: int

    @property
    def engine(self) -> str:
        """The backend's name."""
        return self.backend or BACKENDS.get(self.transform, "gauss-newton")


@dataclass(frozen=True, eq=False)
class FilePair:
    """What the files hold, made fit for comparing.

    Parameters
    ----------
    fixed, moving : Image
        Finite.
    fixed_mask, moving_mask : (X, Y, Z) bool array, optional
    landmarks : pair of Landmarks, optional
        Of the fixed and of the moving image, paired.
    """

    fixed: Image
    moving: Image
    fixed_mask: np.ndarray | None = None
    moving_mask: np.ndarray | None = None
    landmarks: tuple[Landmarks, Landmarks] | None = None

    @classmethod
    def read(cls, paths: PairPaths, settings: PairSettings) -> FilePair:
        """Read all files of a pair.

        Raises
        ------
        EddymotionError
            If one is missing, damaged, or does not fit the others.
        """
        fixed, fixed_mask = cls._read_one(
            paths.fixed, paths.fixed_mask, "fixed", settings.fixed_volume, settings.ignore
        )
        moving, moving_mask = cls._read_one(
            paths.moving, paths.moving_mask, "moving", settings.moving_volume, settings.ignore
        )
        landmarks = read_paired_landmarks(paths.landmarks) if paths.landmarks else None
        return cls(fixed, moving, fixed_mask, moving_mask, landmarks)

    @staticmethod
    def _read_one(
        path: Path, mask: Path | None, name: str, volume: int | None, ignore: tuple[str, ...]
    ) -> tuple[Image, np.ndarray | None]:
        image, finite = read_volume(path, name, volume, ignore)
        return image, None if mask is None else read_mask(mask, path, image, finite, ignore)

    @cached_property
    def head(self) -> np.ndarray:
        """Where the fixed image counts: its mask, or where it shows something."""
        return head_of(self.fixed, self.fixed_mask)

    def compared(self, registration: Registration, order: int) -> PairOverlay:
        """Resample the moving image once, by splines of that order, and compare."""
        masks = (self.fixed_mask, self.moving_mask)
        return PairOverlay.of(self.fixed, self.moving, registration, self.head, order, masks)


def read_volume(
    path: Path, name: str, volume: int | None = None, ignore: tuple[str, ...] = ()
) -> tuple[Image, np.ndarray]:
    """Read one volume; what is NaN or infinite is filled or becomes zero, with a warning.

    Parameters
    ----------
    path : path
    name : {"fixed", "moving"}
    volume : int, optional
        Of a series, counted from 0.
    ignore : sequence of {"sform", "qform"}
        Which of the two affines to disregard when they disagree.

    Returns
    -------
    Image
    finite : (X, Y, Z) bool array
    """
    data, affine, _ = read_image(path, ignore)
    if data.ndim == 4 and (volume is not None or data.shape[3] == 1):
        index = volume or 0
        if index >= data.shape[3]:
            raise EddymotionError(
                f"{path}: has {data.shape[3]} volumes, no volume {index}; give --{name}-volume "
                f"from 0 to {data.shape[3] - 1}"
            )
        data = np.array(data[..., index])
    elif volume:
        raise EddymotionError(
            f"{path}: has no volume {volume}, since its shape is {data.shape}; leave "
            f"--{name}-volume out"
        )
    if data.ndim != 3:
        hint = f"give one volume with --{name}-volume N" if data.ndim == 4 else "give one volume"
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape}, expected three dimensions; {hint}"
        )
    if min(data.shape) < MIN_THICKNESS:
        raise EddymotionError(
            f"{path}: found shape {data.shape}, expected at least {MIN_THICKNESS} voxels along "
            "each axis, since fewer do not show motion in 3-D; give the whole volume"
        )
    finite = np.isfinite(data)
    if not finite.any():
        raise EddymotionError(f"{path}: holds no finite number (all are NaN); check the file")
    data = filled_volume(data, path.name)
    if data.min() == data.max():
        raise EddymotionError(
            f"{path}: all voxels are {float(data.flat[0]):g}, so there is nothing to register; "
            "check the file"
        )
    return Image(data, affine), finite


def read_mask(
    path: Path, owner: Path, image: Image, finite: np.ndarray, ignore: tuple[str, ...] = ()
) -> np.ndarray:
    """Read a mask (X, Y, Z) and make sure that it lies on the grid of its image.

    Parameters
    ----------
    path, owner : path
        Of the mask and of its image.
    image : Image
    finite : (X, Y, Z) bool array
        Where the image can be used at all.
    ignore : sequence of {"sform", "qform"}
    """
    shape = image.data.shape
    mask = files.read_mask(path, shape, image.affine, owner.name, ignore) & finite
    if mask.sum() < MIN_MASK_VOXELS:
        raise EddymotionError(
            f"{path}: marks {mask.sum()} voxels of {owner.name}, expected at least "
            f"{MIN_MASK_VOXELS}; give a mask that is above zero where the image is to be compared"
        )
    return mask


def read_paired_landmarks(files: tuple[Path, ...]) -> tuple[Landmarks, Landmarks]:
    """Read landmarks of both images: from one file each, or from one table.

    The table has columns ``fixed_x fixed_y fixed_z moving_x moving_y moving_z`` (RAS+ mm, perhaps
    with ``_mm`` added) and perhaps ``label``.
    """
    if len(files) == 2:
        return pair_landmarks(read_landmarks(files[0]), read_landmarks(files[1]))
    (path,) = files
    if path.suffix.lower() not in (".tsv", ".csv"):
        raise EddymotionError(
            f"{path}: contains points of one image only; give those of the moving image in a "
            "second file, or a table (.tsv) with fixed_x … moving_z"
        )
    table = GivenTable.read(path).renamed(lambda name: name.removesuffix("_mm"))
    points = [
        table.numbers(*(f"{image}_{axis}" for axis in "xyz")) for image in ("fixed", "moving")
    ]
    if not np.isfinite(points).all():
        raise EddymotionError(f"{path}: some coordinates are not numbers; correct them")
    labels = tuple(table.columns.get("label", map(str, range(len(points[0])))))
    fixed, moving = (Landmarks(p, labels, str(path)) for p in points)
    return fixed, moving
