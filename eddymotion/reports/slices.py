"""Slices of a series, kept while its volumes pass: all that pictures need of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from eddymotion.dataset import Series
from eddymotion.models.tensor import design_matrix

POINTS_FOR_MEAN = 20_000
"""About as many voxels of the brain give a volume's mean intensity."""


class Slices:
    """An axial and a sagittal slice of all volumes, with the axes closest to RAS+.

    Parameters
    ----------
    series : Series

    Attributes
    ----------
    axial_signal : (X, Y, N) float32 array
    sagittal_signal : (Y, Z, N) float32 array
    means : (N,) array
        Over the brain.
    sizes : (3,) array
        Of the voxels, mm.
    """

    def __init__(self, series: Series) -> None:
        turn = io_orientation(series.affine)
        self.gradients = series.gradients
        self._turn = turn
        self.mask = apply_orientation(series.mask, turn).astype(bool)
        self.sizes = series.voxel_sizes[np.argsort(turn[:, 0])]
        brain = np.argwhere(self.mask)
        low, high = brain.min(axis=0), brain.max(axis=0)
        self.sagittal = int(low[0] + 0.42 * (high[0] - low[0]))
        self.coronal = int(low[1] + 0.5 * (high[1] - low[1]))
        self.axial = int(low[2] + 0.58 * (high[2] - low[2]))
        self._points = tuple(brain[:: max(len(brain) // POINTS_FOR_MEAN, 1)].T)
        x, y, z = self.mask.shape
        self.axial_signal = np.zeros((x, y, len(series)), np.float32)
        self.sagittal_signal = np.zeros((y, z, len(series)), np.float32)
        self.means = np.zeros(len(series))

    @classmethod
    def of(cls, series: Series) -> Slices:
        """Keep the slices of all volumes."""
        slices = cls(series)
        for _ in slices.watching(series.volumes()):
            pass
        return slices

    def watching(self, volumes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass all volumes of the series through, and keep their slices."""
        for index, volume in enumerate(volumes):
            turned = apply_orientation(volume, self._turn)
            self.axial_signal[..., index] = turned[:, :, self.axial]
            self.sagittal_signal[..., index] = turned[self.sagittal]
            self.means[index] = turned[self._points].mean()
            yield volume

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """SD over the largest shell, each volume scaled to the same mean: both slices."""
        shell = max(self.gradients.shells, key=len)
        means = self.means[shell]
        gains = means.mean() / means
        axial, sagittal = self.axial_signal[..., shell], self.sagittal_signal[..., shell]
        return (axial * gains).std(axis=2), (sagittal * gains).std(axis=2)

    def bright(self, axial: np.ndarray, sagittal: np.ndarray) -> float:
        """Return what few voxels of the brain exceed in two slices, or all of them without any."""
        inside = axial[self.mask[:, :, self.axial]], sagittal[self.mask[self.sagittal]]
        values = np.concatenate(inside)
        return float(np.percentile(values if values.size else axial, 97))

    def color_fa(self) -> np.ndarray:
        """FA-weighted directions of the axial slice, (X, Y, 3), by a log-linear tensor fit."""
        mask = self.mask[:, :, self.axial]
        picture = np.zeros((*mask.shape, 3))
        try:
            design = design_matrix(self.gradients)
        except ValueError:
            return picture
        signal = self.axial_signal[mask].T
        floor = max(1e-4 * float(signal.max(initial=0.0)), 1e-6)
        fitted = np.linalg.pinv(design) @ np.log(np.maximum(signal, floor))
        xx, xy, yy, xz, yz, zz = fitted[:6]
        tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)
        values, vectors = np.linalg.eigh(tensors)
        values = np.clip(values, 0, None)
        mean = values.mean(axis=1, keepdims=True)
        power = np.sqrt((values**2).sum(axis=1)) + 1e-12
        fa = np.sqrt(1.5 * ((values - mean) ** 2).sum(axis=1)) / power
        colors = np.abs(vectors[:, :, 2]) * np.clip(fa, 0, 1)[:, None]
        picture[mask] = np.clip(1.4 * colors, 0, 1)
        return picture

    def profile(self) -> np.ndarray:
        """Signal along one line from bottom to top, a column a volume."""
        line = self.sagittal_signal[self.coronal][:, self.gradients.dwis]
        return line / np.maximum(line.mean(axis=0), 1e-6 * max(float(line.max()), 1e-6))
