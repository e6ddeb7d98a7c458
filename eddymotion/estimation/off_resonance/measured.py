# SPDX-License-Identifier: Apache-2.0
"""Off-resonance fields from measured maps: phases of two echoes, or a map in hertz.

The phase of a spin grows by 2π a period of its off-resonance, so that ``h = Δφ / (2π ΔTE)``; it is
known but for multiples of ``1 / ΔTE``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask, moved_mask
from eddymotion.mapping.off_resonance import OffResonance, Readout, undistorted
from eddymotion.registration.gauss_newton import GaussNewton
from eddymotion.wording import short_repr, shown

log = logging.getLogger(__name__)

HERTZ_A_UNIT = {
    "hz": 1.0,
    "rad/s": 1 / (2 * np.pi),
    "rads": 1 / (2 * np.pi),
    "t": 42.577478518e6,
    "tesla": 42.577478518e6,
}
"""Units of a map, small letters → Hz; of protons."""

FULL_TURN = 2 * np.pi
SLACK = 0.02
"""By which the range of a phase image may miss a full turn, or a power of two."""

RIM_VOXELS = 2
"""Of the brain of the magnitude image in which its phase is not trusted."""

AROUND_VOXELS = 3
"""Around the brain of the image to which the magnitude is registered: with the brain alone, of
other contrast and with other dropout, it was turned by 4° too much."""

ROUNDS = 2
"""Times the magnitude is registered to the image that the map corrects."""

SKIMAGE = "pip install 'eddymotion[fieldmaps]'"


@dataclass(frozen=True, eq=False)
class MeasuredMap:
    """A map of off-resonance as it was measured.

    Parameters
    ----------
    hertz : Image
    known : (X, Y, Z) bool array
        Where it says something.
    magnitude : Image, optional
        Of the same head at the same place.
    """

    hertz: Image
    known: np.ndarray
    magnitude: Image | None = None

    __repr__ = short_repr

    @classmethod
    def of_phases(
        cls, phases: Image, magnitude: Image | None, echo_distance: float
    ) -> MeasuredMap:
        """Unwrap the difference of the phases of two echoes.

        Parameters
        ----------
        phases : Image
            Radians, wrapped; of the later echo minus the earlier one.
        magnitude : Image, optional
            On the same grid: its brain is where phases are trusted, all of the image otherwise.
        echo_distance : float
            ΔTE, s.

        Raises
        ------
        EddymotionError
            If the distance of the echoes is not above zero, or scikit-image is not installed.
        """
        if not 0 < echo_distance < 1:
            raise EddymotionError(
                f"field map: the echoes are {shown(echo_distance)} s apart, expected more than 0 "
                "and less than 1 s; correct EchoTime1 and EchoTime2, which are in seconds"
            )
        known = trusted(phases, magnitude)
        hertz = unwrapped(phases.data, known) / (FULL_TURN * echo_distance)
        return cls(Image(hertz, phases.affine), known, magnitude).near_zero(1 / echo_distance)

    @classmethod
    def in_units(cls, values: Image, units: str, magnitude: Image | None = None) -> MeasuredMap:
        """Take a map that is in hertz, radians a second, or tesla.

        Raises
        ------
        EddymotionError
            If the units are none of these.
        """
        factor = HERTZ_A_UNIT.get(str(units).strip().lower())
        if factor is None:
            raise EddymotionError(
                f"field map: Units is {shown(units)}, expected Hz, rad/s or T; correct the sidecar"
            )
        hertz = Image(np.asarray(values.data, np.float32) * np.float32(factor), values.affine)
        return cls(hertz, trusted(hertz, magnitude), magnitude)

    def near_zero(self, period: float) -> MeasuredMap:
        """Take off the multiple of a period (Hz) that brings the median of what is known to 0."""
        turns = np.round(np.median(self.hertz.data[self.known]) / period)
        moved = self.hertz.data - np.float32(turns * period)
        return replace(self, hertz=Image(moved, self.hertz.affine))

    @cached_property
    def certainty(self) -> np.ndarray:
        """How much each voxel says, (X, Y, Z): 0 where nothing is known, 1 at most.

        Phases are as uncertain as their magnitude is small, so that they count by its square, up
        to its median.
        """
        if self.magnitude is None:
            return self.known.astype(float)
        points = apply_affine(self.hertz.affine, np.argwhere(self.known))
        shown = np.nan_to_num(self.magnitude.spline.sample(points).astype(float))
        relative = np.clip(shown / max(np.median(shown), np.finfo(float).tiny), 0, 1)
        weights = np.zeros(self.known.shape)
        weights[self.known] = relative**2
        return weights

    @cached_property
    def _fitted(self) -> OffResonance:
        """Splines through what is known; they go on beyond it."""
        return OffResonance.of_image(self.hertz, self.certainty)

    def field(self, pose: np.ndarray | None = None) -> OffResonance:
        """Return the field in the frame of the map, or of a reference.

        Parameters
        ----------
        pose : (4, 4) array, optional
            Reference → map, RAS+ mm.
        """
        if pose is None:
            return self._fitted
        return OffResonance(self._fitted.coefficients, np.linalg.inv(pose) @ self._fitted.affine)

    def known_on(
        self, shape: tuple[int, ...], affine: np.ndarray, pose: np.ndarray | None
    ) -> np.ndarray:
        """Return where the map is known, on a grid of the reference, (X, Y, Z) bool."""
        to_map = affine if pose is None else pose @ affine
        return moved_mask(self.known, np.linalg.inv(self.hertz.affine) @ to_map, shape)

    def pose_for(
        self, corrected: Image, mask: np.ndarray, init: np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray:
        """Register the magnitude to an image without distortion: reference → map, (4, 4).

        The identity where there is no magnitude.
        """
        if self.magnitude is None:
            return np.eye(4)
        head = scipy.ndimage.binary_dilation(mask, iterations=AROUND_VOXELS)
        found = GaussNewton(symmetric=False).register(
            corrected, self.magnitude, metric="cr", fixed_mask=head, init=init, seed=seed
        )
        log.debug("magnitude of the field map: %s", np.array2string(found.matrix, precision=3))
        return found.matrix

    def beside(self, corrected: Image, mask: np.ndarray, seed: int = 0) -> np.ndarray:
        """Return the map (Hz) on the grid of an image without distortion, (X, Y, Z).

        NaN outside the brain, and where the map says nothing.
        """
        pose = self.pose_for(corrected, mask, seed=seed)
        shape, affine = corrected.data.shape, corrected.affine
        known = mask & self.known_on(shape, affine, pose)
        return np.where(known, self.field(pose).on_grid(shape, affine), np.float32(np.nan))

    def field_for(
        self, image: Image, readout: Readout, mask: np.ndarray, seed: int
    ) -> OffResonance:
        """Return the field in the frame of an image that it distorts.

        The magnitude is registered to the image as the field corrects it.

        Parameters
        ----------
        image : Image
            Echo-planar.
        readout : Readout
            Of the image.
        mask : (X, Y, Z) bool array
            The brain of the image.
        seed : int
            Of the registration's points.
        """
        pose, shape = np.eye(4), image.data.shape
        for _ in range(ROUNDS if self.magnitude else 0):
            seen, _ = undistorted(image, readout, self.field(pose), np.eye(4), shape, image.affine)
            pose = self.pose_for(Image(np.nan_to_num(seen), image.affine), mask, pose, seed)
        return self.field(pose)


@dataclass(frozen=True)
class MapAgreement:
    """How a measured map agrees with a field found from images, apart from a constant.

    Parameters
    ----------
    correlation : float
    slope : float
        Of the field against the map.
    rms : float
        Of their difference, Hz.
    """

    correlation: float
    slope: float
    rms: float

    @classmethod
    def of(cls, field: np.ndarray, measured: np.ndarray) -> MapAgreement | None:
        """Compare maps (Hz) of one shape where the second is known; None if that is nowhere."""
        both = np.isfinite(measured)
        here, there = field[both].astype(float), measured[both].astype(float)
        if len(here) < 2 or not there.std() > 0:
            return None
        slope = float(np.polyfit(there, here, 1)[0])
        correlation = float(np.corrcoef(here, there)[0, 1])
        return cls(correlation, slope, float((here - there).std()))


def trusted(values: Image, magnitude: Image | None) -> np.ndarray:
    """Return where a map says something: in the brain of its magnitude, but for the rim."""
    finite = np.isfinite(values.data)
    if magnitude is None:
        return finite & (values.data != 0)
    brain = brain_mask(np.nan_to_num(magnitude.data))
    to_magnitude = np.linalg.inv(magnitude.affine) @ values.affine
    moved = moved_mask(brain, to_magnitude, values.data.shape)
    inner = scipy.ndimage.binary_erosion(moved, iterations=RIM_VOXELS)
    return finite & (inner if inner.any() else moved)


def unwrapped(phases: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Take the jumps by full turns out of phases (rad), where they are known: float32."""
    try:
        from skimage.restoration import unwrap_phase
    except ImportError:
        raise EddymotionError(
            f"phases are unwrapped by scikit-image, which is not installed; {SKIMAGE}"
        ) from None
    wrapped = np.ma.array(np.nan_to_num(phases).astype(float), mask=~known)
    return np.ma.filled(unwrap_phase(wrapped, rng=0), 0.0).astype(np.float32)


def radians(phase: np.ndarray, owner: str) -> np.ndarray:
    """Scale a phase image as scanners write it to radians.

    What spans a full turn at most is in radians already; whole numbers span one from their least
    to their largest value. Where none is below zero, such as Siemens' 0 to 4095, their middle is
    the phase 0 (as FSL's ``fsl_prepare_fieldmap`` has it).

    Raises
    ------
    EddymotionError
        If the image is constant.
    """
    values = np.nan_to_num(np.asarray(phase, float))
    low, high = float(values.min()), float(values.max())
    span = high - low
    if not span > 0:
        raise EddymotionError(f"{owner}: all phases are {low:g}; check the file")
    if span <= FULL_TURN * (1 + SLACK) and max(abs(low), abs(high)) <= FULL_TURN * (1 + SLACK):
        return values.astype(np.float32)
    power = 2.0 ** np.round(np.log2(span))
    whole = power if abs(span / power - 1) < SLACK else span
    middle = whole / 2 if low >= 0 else 0.0
    return ((values - middle) * (FULL_TURN / whole)).astype(np.float32)


def phase_difference(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Subtract phases (rad) as complex numbers: within half a turn, float32."""
    return np.angle(np.exp(1j * (np.asarray(later, float) - earlier))).astype(np.float32)
