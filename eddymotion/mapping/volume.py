# SPDX-License-Identifier: Apache-2.0
"""Where points of the head were recorded in one volume, and by what factor the signal changed.

A point ``x`` of the head lies at ``s = T x`` in the scanner, ``T`` being the pose. Fields displace
the signal along the phase encoding. Each field offsets the frequency of the same spin, so that
their displacements at ``s`` simply add: nothing has to be composed or inverted. The signal that is
read is multiplied by the recorded length of a millimetre along the phase encoding. All code that
reads a volume in the frame of the head goes through this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.images.grid import grid_points, transformed
from eddymotion.images.image import Continuous, Image
from eddymotion.images.stack import KRIGING, REBUILDING, Kriging, SlicesAtPoints, SliceStack
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.off_resonance import LEAST_STRETCH, OffResonance
from eddymotion.mapping.trajectory import SlicesOfVolume

FieldThere = tuple[np.ndarray, np.ndarray]
"""Hertz (P,) and Hz/mm (P, 3) along the axes of the head, at points."""


@dataclass(frozen=True, eq=False)
class VolumeMapping:
    """The mapping from points of the head to positions in one volume.

    Parameters
    ----------
    pose : (4, 4) array
        Reference → scanner, RAS+ mm.
    eddy_currents : EddyCurrents, optional
        The field of this volume alone.
    off_resonance : OffResonance, optional
        The field that moves with the head.
    shift : (3,) array, optional
        Where a spin that is off by one hertz is displaced, mm, RAS+ of the scanner.
    modulated : bool
        Whether the stretch by that field multiplies the signal, too.
    slices : SlicesOfVolume, optional
        Poses of the slices, if the head moved within the volume. Fields are still evaluated at the
        pose of the volume: a millimetre of motion changes their displacement by a few hundredths.
    """

    pose: np.ndarray
    eddy_currents: EddyCurrents | None = None
    off_resonance: OffResonance | None = None
    shift: np.ndarray | None = None
    modulated: bool = True
    slices: SlicesOfVolume | None = None

    @property
    def is_rigid(self) -> bool:
        """Whether the pose alone describes the mapping."""
        return self.has_no_fields and self.slices is None

    @property
    def has_no_fields(self) -> bool:
        """Whether no field displaces the signal."""
        return self.eddy_currents is None and self.off_resonance is None

    @property
    def effective(self) -> VolumeMapping:
        """The same without fields that displace nothing."""
        eddy = self.eddy_currents
        if eddy is None or eddy.coefficients.any():
            return self
        return replace(self, eddy_currents=None)

    def displaced(
        self, points: np.ndarray, there: FieldThere | None = None
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """Return where points (P, 3) of the reference were recorded, and the factor of the signal.

        Parameters
        ----------
        points : (P, 3) array
            RAS+ mm.
        there : (P,) and (P, 3) array, optional
            The off-resonance field and its gradient at the points, if already computed: they are
            the same for all volumes.

        Returns
        -------
        recorded : (P, 3) array
            In the volume, RAS+ mm.
        factor : (P,) array, or 1
            Multiplies the recorded signal, to undo the effect of the fields.
        """
        if self.slices is not None:
            moved, factor = self.moved_by_fields(points, there)
            scanned = self.slices.scanned(points)
            return scanned if moved is None else scanned + moved, factor
        if self.eddy_currents is None:
            return self._off_resonant(points, transformed(self.pose, points), 1.0, there)
        by_eddy = self.eddy_currents.displaced(0, points, self.pose)
        return self._off_resonant(points, *by_eddy, there)

    def moved_by_fields(
        self, points: np.ndarray, there: FieldThere | None = None
    ) -> tuple[np.ndarray | None, np.ndarray | float]:
        """Return the displacement of points by fields at the pose of the volume, and the factor.

        The displacement is None if there are no fields.
        """
        if self.has_no_fields:
            return None, 1.0
        recorded, factor = replace(self, slices=None).displaced(points, there)
        return recorded - transformed(self.pose, points), factor

    def displaced_by_definition(
        self, points: np.ndarray, there: FieldThere | None = None
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """Return the same as :meth:`displaced` in plain NumPy: the reference of the kernels."""
        scanner, eddy = transformed(self.pose, points), self.eddy_currents
        if eddy is None:
            return self._off_resonant(points, scanner, 1.0, there)
        by_eddy = eddy.recorded(0, scanner), eddy.stretch(0, scanner)
        return self._off_resonant(points, *by_eddy, there)

    def _off_resonant(
        self,
        points: np.ndarray,
        recorded: np.ndarray,
        factor: np.ndarray | float,
        there: FieldThere | None,
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """Add the effect of the off-resonance field to that of the eddy currents."""
        if self.off_resonance is None or self.shift is None:
            return recorded, factor
        hertz, slopes = there or self.off_resonance.hertz_with_gradient(points)
        recorded = recorded + hertz[:, None] * self.shift
        if not self.modulated:
            return recorded, factor
        stretch = slopes @ (self.pose[:3, :3].T @ self.shift).astype(np.float32)
        return recorded, np.maximum(factor + stretch, LEAST_STRETCH)

    def recorded(self, points: np.ndarray) -> np.ndarray:
        """Where points (P, 3) of the reference are in the volume, RAS+ mm: (P, 3)."""
        return self.displaced(points)[0]

    def read(
        self,
        image: Image,
        points: np.ndarray,
        there: FieldThere | None = None,
        kriging: Kriging = KRIGING,
    ) -> np.ndarray:
        """Read an image at points (P, 3) of the head, fields undone; NaN outside: (P,).

        As :meth:`sample` does from its spline; or slice by slice, if the head moved within the
        volume, with NaN in gaps between slices, too.
        """
        if self.slices is None:
            recorded, factor = self.displaced(points, there)
            return image.spline.sample(recorded) * factor
        moved, factor = self.moved_by_fields(points, there)
        return self.slices.read(image, points, moved, kriging) * factor

    def rebuild(
        self,
        image: Image,
        points: np.ndarray,
        there: FieldThere | None = None,
        stack: SliceStack | None = None,
    ) -> np.ndarray:
        """Read as :meth:`read`, but fill gaps between slices: NaN only outside the image, (P,).

        Kriging fills a gap from the slices around it. Where no slice is near, the volume is read
        as one image, at the pose of the nearest slice.

        Parameters
        ----------
        image : Image
        points : (P, 3) array
        there
            As of :meth:`displaced`.
        stack : SliceStack, optional
            The slices of the image, if already prepared.
        """
        if self.slices is None:
            return self.read(image, points, there)
        moved, factor = self.moved_by_fields(points, there)
        stack = stack or SliceStack.of(image, self.slices.axis)
        read = stack.values(points, self.slices.poses, moved, REBUILDING.filling) * factor
        lone = np.isnan(read)
        if lone.any():
            there = None if there is None else (there[0][lone], there[1][lone])
            recorded, factor = self.displaced(points[lone], there)
            read[lone] = image.spline.sample(recorded) * factor
        return read

    def slices_at(
        self, points: np.ndarray, shape: tuple[int, ...], there: FieldThere | None = None
    ) -> SlicesAtPoints | None:
        """Say where points are in the slices, if the head moved within the volume.

        Parameters
        ----------
        points : (P, 3) array
            Of the reference, RAS+ mm.
        shape : (3,) tuple
            Of the volume.
        there
            As of :meth:`displaced`.
        """
        if self.slices is None:
            return None
        moved, _ = self.moved_by_fields(points, there)
        own = self.slices
        return SlicesAtPoints(shape, own.affine, own.axis, points, own.poses, moved)

    def sample(self, image: Continuous, points: np.ndarray) -> np.ndarray:
        """Read the signal at points (P, 3) of the head, fields undone; NaN outside: (P,)."""
        if self.is_rigid:
            return image.sample(points, self.pose)
        recorded, factor = self.displaced(points)
        values = image.sample(recorded)
        values *= factor
        return values

    def sample_with_gradient(
        self, image: Continuous, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read the signal (P,) at points of the head and its gradient (P, 3), as :meth:`sample`.

        The gradient is per mm along the axes of the head, and that of the recorded image at the
        recorded positions; that of the factor is left out.
        """
        if self.is_rigid:
            return image.sample_with_gradient(points, self.pose)
        recorded, factor = self.displaced(points)
        values, slopes = image.sample_with_gradient(recorded)
        values *= factor
        return values, (self.pose[:3, :3].T.astype(np.float32) @ slopes.T).T

    def undistorted(self, image: Image) -> Image:
        """Return what the image would be without fields, on its grid; missing where it ends.

        Filters belong after that. Where the stretch ``J`` changes along the phase encoding, one of
        variance ``σ²`` displaces what was recorded by about ``σ² J′ / J``, to opposite sides in
        runs of opposite polarity.
        """
        shape = image.data.shape
        there = transformed(np.linalg.inv(self.pose), grid_points(shape, image.affine))
        data = self.sample(image.spline, there).reshape(shape)
        missing = np.isnan(data)
        return Image(np.where(missing, np.float32(0), data), image.affine, missing)
