# SPDX-License-Identifier: Apache-2.0
"""The image whose space and grid a corrected series gets."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from eddymotion.data.series import Series
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid, regridded, sizes_along
from eddymotion.images.image import Image
from eddymotion.io.images import read_image
from eddymotion.pairs.inputs import read_mask
from eddymotion.pipeline.settings import Settings
from eddymotion.wording import format_sizes, short_repr

DECIMALS = 3
"""Of a series' own voxel sizes, mm: headers round them."""

MOST_VOXELS = 512**3
"""Of the output grid: a volume of 0.5 GB."""

WHITE_LABEL = 2
"""Of white matter in a ``dseg``, by BIDS' common labels."""


@dataclass(frozen=True, eq=False)
class Target:
    """The image of ``--output-space``.

    Parameters
    ----------
    image : Image
    mask : (X, Y, Z) bool array, optional
        Its brain.
    white_matter : (X, Y, Z) float32 array, optional
        0 to 1.
    resolution : float, "native" or None
        Of the output, mm; None for that of the image.
    """

    image: Image
    mask: np.ndarray | None = None
    white_matter: np.ndarray | None = None
    resolution: float | str | None = None

    __repr__ = short_repr

    @classmethod
    def read(cls, settings: Settings) -> Target | None:
        """Read what the settings name; None without an output space.

        Raises
        ------
        EddymotionError
            If the image has not three dimensions, or what belongs to it lies on another grid.
        """
        path = settings.output_space
        if path is None:
            return None
        if not isinstance(path, Path):
            raise EddymotionError(
                f"output space {path}: the series has no participant; give the image itself"
            )
        image = read_target(path)
        if settings.output_space_transform not in ("auto", "none") and np.ptp(image.data) == 0:
            raise EddymotionError(
                f"{path}: all voxels have the same value, so there is nothing to register; give "
                "an image of a head, or --output-space-transform none for its grid alone"
            )
        if isinstance(settings.output_resolution, float):  # before the motion is sought
            x, y, z = image.data.shape
            grid_of(Grid((x, y, z), image.affine), settings.output_resolution, image.affine)
        finite, mask = np.isfinite(image.data), settings.output_space_mask
        return cls(
            image,
            None if mask is None else read_mask(mask, path, image, finite),
            read_white_matter(settings.output_space_white_matter, path, image),
            settings.output_resolution,
        )

    def grid_for(self, series: Series) -> tuple[tuple[int, int, int], np.ndarray]:
        """Return shape and affine of the output, as :func:`eddymotion.resample` takes them.

        With a resolution, voxels of that size fill the box of the image along its axes. The
        native one is that of the series along the nearest of its axes, cubic or not.
        """
        x, y, z = self.image.data.shape
        found = grid_of(Grid((x, y, z), self.image.affine), self.resolution, series.affine)
        return found.shape, found.affine


def grid_of(box: Grid, resolution: float | str | None, affine: np.ndarray) -> Grid:
    """Return the grid of the output in a box, as :meth:`Target.grid_for` does.

    Parameters
    ----------
    box : Grid
        Of the image of the output space.
    resolution : float, "native" or None
    affine : (4, 4) array
        Of the series.
    """
    if resolution is None:
        return box
    if isinstance(resolution, str):
        return _regridded(box, np.round(sizes_along(box.affine, affine), DECIMALS))
    return _regridded(box, np.full(3, float(resolution)))


def _regridded(box: Grid, sizes: np.ndarray) -> Grid:
    """Fill a box with voxels of some sizes (3,), mm."""
    shape, affine = regridded(box.shape, box.affine, sizes)
    if prod(shape) > MOST_VOXELS:
        raise EddymotionError(
            f"--output-resolution: voxels of {format_sizes(map(float, sizes))} mm give a grid of "
            f"{format_sizes(shape)}, which is too large; give larger voxels"
        )
    return Grid(shape, affine)


def read_target(path: Path) -> Image:
    """Read an image whose space is to be taken; the first volume of a series.

    Raises
    ------
    EddymotionError
        If it is no image in three dimensions.
    """
    data, affine, _ = read_image(path)
    if data.ndim == 4:
        data = data[..., 0]
    if data.ndim != 3:
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape}, expected three dimensions; give an "
            "image that defines the output space"
        )
    return Image(data, affine)


def read_white_matter(path: Path | None, owner: Path, image: Image) -> np.ndarray | None:
    """Read where an image shows white matter: its share, or the labels of a ``dseg``.

    Returns
    -------
    (X, Y, Z) float32 array, 0 to 1; None without a path

    Raises
    ------
    EddymotionError
        If it lies on another grid, or its values are neither.
    """
    if path is None:
        return None
    read_mask(path, owner, image, np.ones(image.data.shape, bool))
    data = np.nan_to_num(read_target(path).data)
    if path.name.partition(".")[0].endswith("dseg"):
        return (np.rint(data) == WHITE_LABEL).astype(np.float32)
    if data.min() < 0 or data.max() > 1.01:  # rounding of integers with a slope
        raise EddymotionError(
            f"{path}: found values from {data.min():g} to {data.max():g}, expected fractions of "
            "white matter, 0 to 1, or labels in a file named *_dseg"
        )
    return np.minimum(data, 1.0).astype(np.float32)
