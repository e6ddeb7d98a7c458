# SPDX-License-Identifier: Apache-2.0
"""A scan of a head that moves between the excitations of a volume, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid, block_means
from eddymotion.images.image import Image
from eddymotion.mapping.rigid import rms_displacement
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.base import ContinuousHead, Head
from eddymotion.simulation.echo_planar import Distortion, pushed_means
from eddymotion.simulation.encoding import Encoding
from eddymotion.simulation.kspace import Scanner
from eddymotion.simulation.sampling import Points, SliceProfile, View, signal_function

SAME_GRADIENT_DEG = 0.05
"""A head on a grid is not seen anew for a gradient that has turned by less: at b=3000 that changes
the signal of a fibre bundle by three thousandths."""

SAME_FIELD_MM = 0.25
"""Nor is the off-resonance field for a head that has moved by less (RMS over 80 mm): it turns and
moves with the head in any case, and changes by about a hertz."""

IN_PLANE = 2
"""Points along each axis of a voxel within slices."""


@dataclass(frozen=True, eq=False)
class SliceScan:
    """What scans the volumes of a series slice by slice, each at its own pose.

    Parameters
    ----------
    head : Head
    gradients : Gradients
        Of the scanner, RAS+.
    motion : SlicePoses
    grid : Grid
        Slices lie along its third axis.
    profile : SliceProfile
    encoding : Encoding
        Phase is encoded within slices.

    Raises
    ------
    EddymotionError
        If the slices of the motion are not those of the grid, or phase is encoded across them.
    """

    head: Head
    gradients: Gradients
    motion: SlicePoses
    grid: Grid
    profile: SliceProfile
    encoding: Encoding

    def __post_init__(self) -> None:
        if self.motion.n_slices != self.grid.shape[2]:
            raise EddymotionError(
                f"slice by slice: the motion is of {self.motion.n_slices} slices, the grid has "
                f"{self.grid.shape[2]} along its third axis"
            )
        distortion, eddy = self.encoding.distortion, self.encoding.eddy
        directions = [distortion.readout.direction] if distortion else []
        directions += [eddy.pe] if eddy else []
        across = self.grid.affine[:3, 2] / np.linalg.norm(self.grid.affine[:3, 2])
        if any(abs(direction @ across) > 0.5 for direction in directions):
            raise EddymotionError(
                "slice by slice: phase is encoded across slices (k); expected i, i-, j or j-"
            )

    @cached_property
    def receive_fields(self) -> list[np.ndarray]:
        """Sensitivity at the points of each slice in k-space, (J, Y, X) each."""
        scanner = self.encoding.scanner
        assert scanner is not None
        slices = range(self.grid.shape[2])
        return [scanner.sensitivity(self._points_of(scanner, slice_)) for slice_ in slices]

    def means(self, index: int) -> np.ndarray:
        """Means over the voxels of a volume, (Z, Y, X) float32; in k-space its complex image."""
        slices = [np.empty(0)] * self.grid.shape[2]
        for slice_, view, hertz in self._views(index):
            slices[slice_] = self._slice(slice_, view, hertz)
        stacked = np.stack(slices)
        scanner = self.encoding.scanner
        return scanner.reconstructed(stacked) if scanner else stacked

    def _views(self, index: int) -> Iterator[tuple[int, View, Image | None]]:
        """Yield each slice of a volume, how it sees the head, and the off-resonance field."""
        bval = 0.0 if self.gradients.is_b0[index] else self.gradients.bvals[index]
        seen = _HeadSignals(self.head, bval)
        fields = _Fields(self.encoding.distortion, self.grid.center)
        for group, pose in zip(self.motion.groups, self.motion.matrices[index], strict=True):
            bvec = pose[:3, :3].T @ self.gradients.bvecs[index]
            signal = seen.with_gradient(bvec)
            view = View(bval, bvec, np.linalg.inv(pose), self.encoding.eddy, index, signal)
            hertz = fields.at(pose)
            for slice_ in group:
                yield slice_, view, hertz

    def _slice(self, slice_: int, view: View, hertz: Image | None) -> np.ndarray:
        """One slice (Y, X); in k-space finer, and weighed with the receive field."""
        scanner, distortion = self.encoding.scanner, self.encoding.distortion
        if scanner:
            layers = view.sampled(self.head, self._points_of(scanner, slice_))
            return self.profile.mean(layers * self.receive_fields[slice_])
        slab = self.profile.slab(self.grid, slice_)
        if hertz is not None and distortion:
            layers = pushed_means(self.head, view, slab, hertz, distortion.readout, layers=1).T
        else:
            fine = view.read(self.head, slab.refined((IN_PLANE, IN_PLANE, 1)))
            layers = block_means(fine, (1, IN_PLANE, IN_PLANE))
        return np.maximum(self.profile.mean(layers.astype(np.float32)), 0.0)

    def _points_of(self, scanner: Scanner, slice_: int) -> Grid:
        """Where a scanner that measures in k-space samples the head for a slice."""
        return scanner.refined(self.profile.slab(self.grid, slice_))


@dataclass
class _HeadSignals:
    """Signals of a head for the gradients of one volume, which turn with the head."""

    head: Head
    bval: float
    known: list[tuple[np.ndarray, Points]] = field(default_factory=list)

    def with_gradient(self, bvec: np.ndarray) -> Points:
        if isinstance(self.head, ContinuousHead):
            return signal_function(self.head, self.bval, bvec)
        apart = 2 * np.sin(np.deg2rad(SAME_GRADIENT_DEG) / 2)
        for known, signal in self.known:
            if np.linalg.norm(known - bvec) <= apart:
                return signal
        self.known.append((bvec, signal_function(self.head, self.bval, bvec)))
        return self.known[-1][1]


@dataclass
class _Fields:
    """Off-resonance fields for the poses of one volume."""

    distortion: Distortion | None
    center: np.ndarray
    known: list[tuple[np.ndarray, Image]] = field(default_factory=list)

    def at(self, pose: np.ndarray) -> Image | None:
        if self.distortion is None:
            return None
        for known, hertz in self.known:
            if rms_displacement(known, pose, self.center) <= SAME_FIELD_MM:
                return hertz
        self.known.append((pose, self.distortion.field(pose)))
        return self.known[-1][1]
