# SPDX-License-Identifier: Apache-2.0
"""The off-resonance field of susceptibility, and where it displaces the signal.

At the point ``x`` of the head the field is ``h(x)`` Hz. With the head at pose ``T``, what is at
``T x`` is recorded at ``T x + p a h(x)``: ``p`` is the unit vector of BIDS'
PhaseEncodingDirection in RAS+, ``a`` the readout time times the size of a voxel along it (mm per
Hz). As an echo-planar image conserves signal, what is recorded there is to be multiplied by the
stretch ``1 + a (Rᵀp) · ∇h``. Signs are those of sdcflows and FSL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from eddymotion.errors import EddymotionError
from eddymotion.images.axes import phase_encoding_vector
from eddymotion.images.grid import all_points, grid_points
from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import PADDING
from eddymotion.images.lattice import ON_THE_EDGE, Lattice, conjugate_gradients, separable
from eddymotion.machine.frozen import freeze, selected
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.wording import PE_AXES, short_repr, shown

NOMINAL_READOUT_S = 0.05
"""If unknown: hertz are then wrong by a factor, millimetres are not."""

LEAST_STRETCH = 0.05
"""Where more is squeezed together, or the image is folded, signal cannot be separated."""

FIT_KNOTS_MM = 5.0
"""Distance of the knots of a fitted map."""

FIT_STIFFNESS = 0.3
"""Weight of the bending energy of a fitted map, mm⁴: it smooths over about its fourth root, where
the map says something, and decides where it does not."""

COARSEST_MM = 40.0
"""Distance of the knots from which a fit starts."""

SAMPLES_A_KNOT = 4
"""Voxels between two knots that a coarse fit looks at, at least."""

FIT_TOLERANCE, FIT_WORK = 1e-6, 1_000_000
"""At which conjugate gradients end, relative to their first residual, and their most steps times
the coefficients: where nothing is known they are slow, and few coefficients are enough there."""

PARALLEL = 1e-6
"""Sine of the angle below which two axes are parallel."""


@dataclass(frozen=True, eq=False)
class Readout:
    """Where off-resonance displaces an echo-planar image, and how far.

    Parameters
    ----------
    direction : (3,) array
        Unit vector of the phase-encoding direction, RAS+.
    mm_per_hertz : float
        Readout time (s) times the size of a voxel along it (mm).
    """

    direction: np.ndarray
    mm_per_hertz: float

    __repr__ = short_repr

    def __post_init__(self) -> None:
        freeze(self, "readout", direction="3")

    @classmethod
    def of(cls, affine: np.ndarray, phase_encoding: str, readout_time: float) -> Readout:
        """Take what the sidecar of an image says.

        Parameters
        ----------
        affine : (4, 4) array
            Voxel indices → RAS+ mm.
        phase_encoding : {"i", "j", "k", "i-", "j-", "k-"}
            PhaseEncodingDirection of BIDS.
        readout_time : float
            TotalReadoutTime, s.

        Raises
        ------
        EddymotionError
            If the direction is none, or the time not above zero.
        """
        if phase_encoding not in PE_AXES:
            raise EddymotionError(
                f"phase encoding is {shown(phase_encoding)}, expected one of {', '.join(PE_AXES)}"
            )
        if not 0 < readout_time < np.inf:
            raise EddymotionError(
                f"readout time is {shown(readout_time)}, expected seconds, above zero"
            )
        size = voxel_sizes(affine)["ijk".index(phase_encoding[0])]
        return cls(phase_encoding_vector(affine, phase_encoding), float(readout_time * size))

    @classmethod
    def of_shift(cls, shift: np.ndarray) -> Readout:
        """Take where a spin that is off by one hertz is displaced, (3,), RAS+ mm."""
        length = float(np.linalg.norm(shift))
        return cls(shift / length, length)

    @property
    def shift(self) -> np.ndarray:
        """Where a spin that is off by one hertz is displaced, (3,), RAS+ mm."""
        return self.mm_per_hertz * self.direction

    def displaced(
        self, field: OffResonance, points: np.ndarray, pose: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return where points of the head are recorded, and the stretch there.

        Parameters
        ----------
        field : OffResonance
        points : (P, 3) array
            Of the reference frame, RAS+ mm.
        pose : (4, 4) array
            Reference → scanner.

        Returns
        -------
        recorded : (P, 3) array
            RAS+ mm.
        stretch : (P,) array
            Millimetres recorded for each millimetre along the phase encoding; what is recorded
            times this is what would be recorded without a field.
        """
        hertz, slopes = field.hertz_with_gradient(points)
        recorded = apply_affine(pose, points) + hertz[:, None] * self.shift
        return recorded, 1.0 + slopes @ (pose[:3, :3].T @ self.shift)


@dataclass(frozen=True, eq=False)
class OffResonance:
    """An off-resonance field that moves with the head.

    Parameters
    ----------
    coefficients : (A, B, C) array
        Of cubic B-splines, Hz. The field lives between the second and the last but one along each
        axis, and is constant beyond.
    affine : (4, 4) array
        Lattice index → RAS+ mm of the reference frame.
    """

    coefficients: np.ndarray
    affine: np.ndarray

    __repr__ = short_repr

    def __post_init__(self) -> None:
        freeze(self, "off-resonance field", coefficients="X Y Z", affine="4 4")
        if min(self.coefficients.shape) < 4 or not np.isfinite(self.coefficients).all():
            raise EddymotionError(
                f"off-resonance field: coefficients of shape {self.coefficients.shape}, expected "
                "four or more along each axis, all of them finite"
            )

    @classmethod
    def none(cls) -> OffResonance:
        """No field."""
        return cls(np.zeros((4, 4, 4)), np.eye(4))

    @classmethod
    def of_image(
        cls,
        image: Image,
        weights: np.ndarray | None = None,
        *,
        knots: float = FIT_KNOTS_MM,
        stiffness: float = FIT_STIFFNESS,
    ) -> OffResonance:
        """Fit a map of hertz; where it says nothing, the field goes on as it bends least.

        Parameters
        ----------
        image : Image
            Hz, in the reference frame.
        weights : (X, Y, Z) array, optional
            How much a voxel says: 0 nothing, 1 all.
        knots : float
            Distance of the knots, mm.
        stiffness : float
            Of the bending energy, mm⁴.

        Raises
        ------
        EddymotionError
            If no voxel says anything.
        """
        data = np.nan_to_num(np.asarray(image.data, float))
        known = np.isfinite(image.data) * (1.0 if weights is None else np.asarray(weights, float))
        if image.missing is not None:
            known = known * ~image.missing
        if not (known > 0).any():
            raise EddymotionError("off-resonance field: no voxel of the map has a weight above 0")
        coarser = [knots * 2**n for n in range(int(np.log2(max(COARSEST_MM / knots, 1))), -1, -1)]
        found = cls.none()
        with one_blas_thread():  # from coarse to fine: what is far from all that is known settles
            for apart in coarser:
                lattice = Lattice.covering(data.shape, image.affine, apart)
                start = found.coefficients_on(lattice)
                steps = np.maximum(apart / SAMPLES_A_KNOT / image.voxel_sizes, 1).astype(int)
                some = tuple(slice(None, None, step) for step in steps)
                affine = image.affine @ np.diag([*steps, 1.0])
                fitted = _fitted(lattice, data[some], known[some], affine, stiffness, start)
                found = cls(fitted, lattice.affine)
        return found

    def coefficients_on(self, lattice: Lattice) -> np.ndarray:
        """Return the coefficients that show this field on another lattice, by least squares."""
        ends = [np.linspace(1, n - 2, 2 * n) for n in lattice.shape]
        hertz = self.hertz(apply_affine(lattice.affine, all_points(ends))).astype(float)
        matrices = lattice.matrices(ends)
        inverses = [np.linalg.solve(m.T @ m + 1e-4 * np.eye(m.shape[1]), m.T) for m in matrices]
        return separable(inverses, hertz.reshape([len(m) for m in matrices]))

    @cached_property
    def lattice(self) -> Lattice:
        """Where the knots lie."""
        x, y, z = self.coefficients.shape
        return Lattice((x, y, z), self.affine)

    @cached_property
    def _to_lattice(self) -> np.ndarray:
        """RAS+ mm → lattice index, (4, 4)."""
        return np.linalg.inv(self.affine)

    @cached_property
    def _spline(self) -> Spline:
        """The field as a function of lattice coordinates."""
        padded = np.pad(self.coefficients.T, PADDING)
        return Spline(np.ascontiguousarray(padded, np.float32), np.eye(4))

    def hertz(self, points: np.ndarray) -> np.ndarray:
        """Return the field (Hz) at points (P, 3) of the reference frame, RAS+ mm: (P,)."""
        return self._spline.sample(self._inside(points)[0])

    def hertz_with_gradient(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the field (P,) at points (P, 3), and its gradient (P, 3), Hz/mm along RAS+."""
        at, beyond = self._inside(points)
        hertz, slopes = self._spline.sample_with_gradient(at)
        slopes[beyond] = 0.0
        return hertz, slopes @ self._to_lattice[:3, :3].astype(np.float32)

    def _inside(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return lattice coordinates (P, 3) within the field, and which were beyond."""
        at = apply_affine(self._to_lattice, np.asarray(points, float))
        inside = np.clip(at, 1.0, np.array(self.coefficients.shape) - 2.0)
        return inside, np.abs(inside - at) > ON_THE_EDGE

    def on_grid(self, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Return the field (Hz) on a grid of the reference frame: (X, Y, Z) float32.

        Parameters
        ----------
        shape : (3,) sequence of int
        affine : (4, 4) array
            Voxel indices → RAS+ mm.
        """
        if not _is_parallel(self.affine, affine):
            return self._by_points(shape, affine)[..., 0]
        return self._by_axes(shape, affine, (0, 0, 0))

    def on_grid_with_gradient(
        self, shape: Sequence[int], affine: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`on_grid` and the gradient (X, Y, Z, 3), Hz/mm along RAS+; float32."""
        if not _is_parallel(self.affine, affine):
            both = self._by_points(shape, affine)
            return both[..., 0], both[..., 1:]
        slopes = [self._by_axes(shape, affine, tuple(orders)) for orders in np.eye(3, dtype=int)]
        to_world = self._to_lattice[:3, :3].astype(np.float32)
        return self.on_grid(shape, affine), np.stack(slopes, axis=-1) @ to_world

    def _by_axes(
        self, shape: Sequence[int], affine: np.ndarray, orders: tuple[int, ...]
    ) -> np.ndarray:
        """Evaluate on a grid whose axes are those of the lattice, or some derivative there."""
        positions, axes = _positions(self.lattice, shape, affine)
        matrices = self.lattice.matrices(positions, orders)
        values = separable([m.astype(np.float32) for m in matrices],
                           self.coefficients.astype(np.float32))  # fmt: skip
        return np.ascontiguousarray(values.transpose(axes))

    def _by_points(self, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Field and gradient on any grid, (X, Y, Z, 4) float32, plane by plane."""
        values = np.empty((*shape, 4), np.float32)
        for x, plane in enumerate(values):
            points = grid_points(shape, affine, slab=slice(x, x + 1), axis=0)
            hertz, slopes = self.hertz_with_gradient(points)
            plane[...] = np.column_stack([hertz, slopes]).reshape(plane.shape)
        return values


@dataclass(frozen=True, eq=False)
class SeriesField:
    """An off-resonance field, and how far it displaces in each volume of a series.

    Parameters
    ----------
    field : OffResonance
    shifts : (N, 3) array
        Where a spin that is off by one hertz is displaced, mm, RAS+ of the scanner: the readout
        time times the size of a voxel along the phase encoding, along its unit vector.
    modulated : bool
        Whether sampled values are multiplied by the stretch.
    """

    field: OffResonance
    shifts: np.ndarray
    modulated: bool = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        freeze(self, "off-resonance field", shifts="N 3")

    def __len__(self) -> int:
        return len(self.shifts)

    def select(self, volumes: np.ndarray | slice) -> SeriesField:
        """Keep some of the volumes."""
        return selected(self, volumes, "shifts")


def undistorted(
    image: Image,
    readout: Readout,
    field: OffResonance,
    pose: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Read an echo-planar image where the field put what belongs on a grid: one interpolation.

    Parameters
    ----------
    image : Image
    readout : Readout
        Of the image.
    field : OffResonance
    pose : (4, 4) array
        Reference → image, RAS+ mm.
    shape, affine
        Of the grid, in the reference frame.

    Returns
    -------
    corrected : (X, Y, Z) float32 array
        NaN where the image does not reach.
    stretch : (X, Y, Z) float32 array
        The signal is multiplied by it, or by :data:`LEAST_STRETCH` where it is less.
    """
    corrected, stretch = np.empty(tuple(shape), np.float32), np.empty(tuple(shape), np.float32)
    for x in range(shape[0]):
        points = grid_points(shape, affine, slab=slice(x, x + 1), axis=0)
        recorded, factor = readout.displaced(field, points, pose)
        values = image.spline.sample(recorded) * np.maximum(factor, LEAST_STRETCH)
        corrected[x], stretch[x] = values.reshape(shape[1:]), factor.reshape(shape[1:])
    return corrected, stretch


def _fitted(
    lattice: Lattice,
    data: np.ndarray,
    known: np.ndarray,
    affine: np.ndarray,
    stiffness: float,
    start: np.ndarray,
) -> np.ndarray:
    """Fit coefficients to known values on a grid, from a start."""
    matrices = lattice.matrices(_positions(lattice, data.shape, affine)[0])
    back = [m.T for m in matrices]
    volume = float(np.prod(voxel_sizes(affine)))

    def normal(x: np.ndarray) -> np.ndarray:
        c = x.reshape(lattice.shape)
        seen = separable(back, known * separable(matrices, c)) * volume
        return (seen + stiffness * lattice.bent(c)).ravel()

    right = separable(back, known * data).ravel() * volume
    solve = lattice.preconditioner(float(known.mean()), (0, 0, 0), stiffness)
    change = conjugate_gradients(
        normal,
        right - normal(start.ravel()),
        lambda x: solve(x.reshape(lattice.shape)).ravel(),
        tolerance=FIT_TOLERANCE,
        limit=max(FIT_WORK // start.size, 50),
    )
    return start + change.reshape(lattice.shape)


def _is_parallel(lattice: np.ndarray, grid: np.ndarray) -> bool:
    """Whether the axes of two affines are the same, in any order and direction."""
    linear = np.linalg.inv(lattice)[:3, :3] @ grid[:3, :3]
    strong = np.abs(linear) > PARALLEL * np.abs(linear).max(axis=0)
    return bool((strong.sum(axis=0) == 1).all() and (strong.sum(axis=1) == 1).all())


def _positions(
    lattice: Lattice, shape: Sequence[int], affine: np.ndarray
) -> tuple[list[np.ndarray], list[int]]:
    """Lattice coordinates of a parallel grid along each axis of the lattice, and their order.

    What is evaluated there, transposed by the order, lies as the grid does.
    """
    mapping = np.linalg.inv(lattice.affine) @ affine
    axes = [int(np.abs(mapping[:3, axis]).argmax()) for axis in range(3)]
    positions = [np.zeros(0)] * 3
    for axis, of_lattice in enumerate(axes):
        steps = mapping[of_lattice, axis] * np.arange(shape[axis])
        positions[of_lattice] = mapping[of_lattice, 3] + steps
    return positions, axes
