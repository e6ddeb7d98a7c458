# SPDX-License-Identifier: Apache-2.0
"""Sprite sheets: three planes of all volumes as one small picture, so that scrubbing is instant.

A *frame* shows the sagittal, coronal and axial plane side by side, cropped to the brain, in
pixels of equal width and height. A *sheet* holds the frames of all volumes, row by row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eddymotion.reports.slices import PLANES, PlaneGrid, Slices

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MARGIN_MM = 12.0
"""What is shown around the brain: motion must be seen."""

GAP = 2
"""Pixels between the planes of a frame."""

MAX_PIXELS = 9_000_000
"""Of a sheet; frames of longer series are smaller."""

WHITE = 99.0
"""Percentile of the brain that is white, in the volumes of a shell together."""

QUALITY = 80
"""Of WebP."""

EFFORT = 2
"""Of its encoder: half the time of its default, 4, for 3 % more bytes."""


@dataclass(frozen=True)
class Sheet:
    """A sprite sheet as it is kept and embedded.

    Parameters
    ----------
    data : bytes
        WebP.
    width, height : int
        Of a frame, pixels.
    columns : int
        Frames in a row.
    """

    data: bytes
    width: int
    height: int
    columns: int


@dataclass(frozen=True, eq=False)
class Frames:
    """Where the planes are in a frame.

    Parameters
    ----------
    low, high : (3,) arrays of int
        The box that is shown, in voxels of a :class:`~eddymotion.reports.slices.PlaneGrid`.
    shape : (3,) array of int
        Its size in pixels.
    """

    low: np.ndarray
    high: np.ndarray
    shape: np.ndarray

    @classmethod
    def of(cls, grid: PlaneGrid, n_volumes: int) -> Frames:
        """Crop to the brain; choose pixels so that a sheet does not become too large."""
        brain = np.argwhere(grid.mask)
        margin = np.ceil(MARGIN_MM / grid.sizes).astype(int)
        low = np.maximum(brain.min(axis=0) - margin, 0)
        high = np.minimum(brain.max(axis=0) + 1 + margin, grid.mask.shape)
        extent = (high - low) * grid.sizes
        pixel = float(grid.sizes.min())
        wanted = n_volumes * float(extent[1] + 2 * extent[0]) * float(max(extent[1:])) / pixel**2
        pixel *= math.sqrt(max(1.0, wanted / MAX_PIXELS))
        return cls(low, high, np.maximum(np.rint(extent / pixel).astype(int), 1))

    @property
    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Left, top, width and height of each plane in a frame, pixels."""
        x, y, z = map(int, self.shape)
        tall = max(y, z)
        widths, heights = (y, x, x), (z, z, y)
        lefts = (0, y + GAP, y + x + 2 * GAP)
        return {
            name: (left, (tall - height) // 2, width, height)
            for name, left, width, height in zip(PLANES, lefts, widths, heights, strict=True)
        }

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame, pixels."""
        x, y, z = map(int, self.shape)
        return y + 2 * x + 2 * GAP, max(y, z)

    def picture(self, planes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Lay three planes (A, B) beside each other: (height, width) float32, upright."""
        from PIL import Image

        width, height = self.size
        frame = np.zeros((height, width), np.float32)
        for name, (left, top, w, h) in self.boxes.items():
            plane = np.ascontiguousarray(self._upright(planes[name], name), dtype=np.float32)
            resized = Image.fromarray(plane).resize((w, h), Image.Resampling.BILINEAR)
            frame[top : top + h, left : left + w] = np.asarray(resized)
        return frame

    def sheet(self, planes: Mapping[str, np.ndarray], white: np.ndarray) -> Sheet:
        """Draw a sheet.

        Parameters
        ----------
        planes : mapping
            As :attr:`~eddymotion.reports.slices.Slices.planes`.
        white : (N,) array
            The signal that is white in each volume.
        """
        from PIL import Image

        width, height = self.size
        n = len(white)
        columns = max(1, min(n, round(math.sqrt(n * height / width))))
        rows = -(-n // columns)
        canvas = np.zeros((rows * height, columns * width), np.uint8)
        for volume in range(n):
            of_volume = {name: np.nan_to_num(plane[..., volume]) for name, plane in planes.items()}
            grey = 255 * self.picture(of_volume) / white[volume]
            row, column = divmod(volume, columns)
            canvas[row * height :, column * width :][:height, :width] = np.clip(grey, 0, 255)
        return Sheet(encode(Image.fromarray(canvas)), width, height, columns)

    def outline(self, grid: PlaneGrid) -> list[list[float]]:
        """Trace the edge of the brain: line segments x0, y0, x1, y1 in pixels of a frame."""
        segments = []
        for name, (left, top, w, h) in self.boxes.items():
            mask = self._upright(grid.plane(name, grid.mask), name)
            scale = np.array([w / mask.shape[1], h / mask.shape[0]] * 2)
            segments += [
                [round(float(v), 1) for v in np.array(segment) * scale + [left, top] * 2]
                for segment in _edges(mask)
            ]
        return segments

    def _upright(self, plane: np.ndarray, name: str) -> np.ndarray:
        """Cut a plane (A, B) to the box of the head, rows from top to bottom."""
        a, b = (slice(self.low[k], self.high[k]) for k in range(3) if k != PLANES.index(name))
        return plane[a, b].T[::-1]


def _edges(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Borders between voxels inside and outside, as x0, y0, x1, y1."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = [(c, r, c + 1, r) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = [(c, r, c, r + 1) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
    return level + upright


def white_levels(slices: Slices) -> np.ndarray:
    """Return the signal that is white in each volume: one level for a shell, (N,)."""
    gradients = slices.gradients
    inside = np.concatenate([plane[slices.mask(name)] for name, plane in slices.planes.items()])
    groups = [gradients.b0s, *gradients.shells] if gradients.is_shelled else [
        np.array([volume]) for volume in range(len(gradients))
    ]  # fmt: skip
    white = np.ones(len(gradients))
    for group in groups:
        if len(group) and inside.size:
            white[group] = max(float(np.percentile(inside[:, group], WHITE)), 1e-6)
    return white


def encode(picture: Picture, quality: int = QUALITY) -> bytes:
    """Encode a picture as WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=EFFORT)
    return buffer.getvalue()
