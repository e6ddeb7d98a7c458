# SPDX-License-Identifier: Apache-2.0
"""A head of exact geometry: formulas give its signal at any point, for any gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from eddymotion.images.grid import grid_points

Contrast = Literal["adult", "infant"]
"""Of grey and white matter; see :func:`draw_tissue`."""

BOX_MM = np.array([[-84.0, 84.0], [-102.0, 96.0], [-72.0, 88.0]])
"""The box of a synthetic head, RAS+; the neck goes on below it."""

BRAIN_BOTTOM_MM = -58.0
"""Where the brain stem becomes the cord, which is no brain."""

VOXEL_MM = 2.0
"""Of the grid on which :meth:`SyntheticHead.signal` returns the signal."""

EDGE_MM = 1.8
"""From one tissue to all of the next."""

LEAST_BONE_MM, LEAST_COVER_MM = 3.0, 8.0
"""Between the brain and air: 2 mm of fluid and the thinnest bone, above the ear; and what covers
the skull besides."""

POINTS_AT_A_TIME = 32768

N_WAVES = 9
"""Plane waves from which everything that varies slowly in space is mixed."""

WAVE_LENGTHS_MM = (80.0, 200.0)
"""Of these waves: the least and the largest."""

VARIATION = 0.1
"""Standard deviation of signals and diffusivities within a tissue, relative to their mean: T2 of
white matter alone, from 60 to 90 ms, makes as much."""

SLOW = (
    "warp_x", "warp_y", "warp_z", "thickness", "sulcal_depth", "skull", "scalp",
    "white", "grey", "fluid", "skin", "white_diffusivity", "grey_diffusivity", "anisotropy",
    "callosal", "lateral", "tilt",
)  # fmt: skip
"""What varies slowly in space; each a mixture of the waves with a mean square of one."""

N_FOLDS, FOLD_LENGTHS_MM = 5, (20.0, 30.0)
"""Waves whose common zeros are the sulci, and their lengths: the least and the largest."""

FLUID_DIFFUSIVITY = 3.0e-3
VITREOUS_DIFFUSIVITY = 2.4e-3
MUSCLE_DIFFUSIVITY = 1.5e-3

BUNDLE_SHAPE, GREY_SHAPE = 2.2, 3.5
"""Shape κ of the gamma distributions of diffusivities: signals ``(1 + b d / κ)^-κ``, so falling
ever more slowly (Yablonskiy et al. 2003)."""


@dataclass(frozen=True)
class Tissue:
    """Values of the tissues, about which they vary in space.

    Signals at b=0 are T2-weighted, arbitrary units; diffusivities in mm²/s.
    """

    white: float
    grey: float
    deep_grey: float
    fluid: float
    muscle: float
    skin: float
    fat: float
    along: float
    across: float
    grey_diffusivity: float


def draw_tissue(contrast: Contrast, random: np.random.Generator) -> Tissue:
    """Draw the tissue values of a head.

    Adults: grey matter is brighter than white at b=0. Infants, before myelin: white matter is
    as bright or brighter, and all diffuses more and less anisotropically (Neil et al. 1998).
    """
    infant = contrast == "infant"
    draw = random.uniform
    grey = draw(780, 920)
    return Tissue(
        white=grey * draw(1.02, 1.15) if infant else draw(0.72, 0.82) * grey,
        grey=grey,
        deep_grey=grey * (draw(0.95, 1.0) if infant else draw(0.68, 0.8)),
        fluid=draw(1500, 2000),
        muscle=draw(180, 320),
        skin=draw(350, 550),
        fat=draw(120, 260),
        along=draw(1.9e-3, 2.1e-3) if infant else draw(1.5e-3, 1.8e-3),
        across=draw(1.0e-3, 1.2e-3) if infant else draw(0.3e-3, 0.45e-3),
        grey_diffusivity=draw(1.15e-3, 1.3e-3) if infant else draw(0.75e-3, 0.9e-3),
    )


class Parts(NamedTuple):
    """What is where, (P,) each: shares of a point, of which the rest is dark."""

    white: np.ndarray
    grey: np.ndarray
    deep_grey: np.ndarray
    fluid: np.ndarray
    vitreous: np.ndarray
    muscle: np.ndarray
    skin: np.ndarray
    fat: np.ndarray


@dataclass(frozen=True, eq=False)
class SyntheticHead:
    """A head from formulas, continuous in space: other seeds give other heads.

    Two hemispheres with a folded cortical ribbon, a fissure between them, callosum, ventricles and
    deep nuclei; cerebellum with folia, brain stem; fluid around them, the dark skull, muscle, fat
    and skin, eyes and air-filled sinuses. All is bent by a slow warp, so nothing is symmetric;
    thicknesses, b=0 signals, diffusivities and anisotropy vary slowly in space. White matter has
    three crossing bundles: callosal arcs, a fan that spreads from the brain stem and turns to the
    cortex, and association fibres around each hemisphere.

    Edges are :data:`EDGE_MM` wide. Nothing is interpolated: a moved head is the same function of
    moved points. Partial volume comes from averaging many points of a voxel.

    Parameters
    ----------
    seed : int
    contrast : {"adult", "infant"}
        See :func:`draw_tissue`.
    """

    seed: int = 0
    contrast: Contrast = "adult"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis of the head's own grid."""
        x, y, z = np.ceil(np.ptp(BOX_MM, axis=1) / VOXEL_MM).astype(int).tolist()
        return x, y, z

    @property
    def affine(self) -> np.ndarray:
        """Indices of the head's own grid → RAS+ mm, (4, 4)."""
        affine = np.diag([VOXEL_MM] * 3 + [1.0])
        affine[:3, 3] = BOX_MM.mean(axis=1) - (np.array(self.shape) - 1) * VOXEL_MM / 2
        return affine

    @cached_property
    def tissue(self) -> Tissue:
        """Values of the tissues."""
        return draw_tissue(self.contrast, self._random(0))

    @cached_property
    def brain(self) -> np.ndarray:
        """Where there is white or grey matter, (X, Y, Z) bool."""
        points = grid_points(self.shape, self.affine)
        shares = []
        for x, y, z in _portions(points):
            parts = self._place(x, y, z).parts
            shares.append(parts.white + parts.grey + parts.deep_grey)
        tissue = np.concatenate(shares) > 0.5
        return (tissue & (points[:, 2] > BRAIN_BOTTOM_MM)).reshape(self.shape)

    @property
    def white_signal(self) -> float:
        """Mean b=0 signal of white matter."""
        return self.tissue.white

    def signal(self, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal on the head's own grid; see :class:`eddymotion.simulation.Head`."""
        points = grid_points(self.shape, self.affine)
        return self.signal_at(points, bval, bvec).reshape(self.shape)

    def signal_at(self, points: np.ndarray, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal at any points.

        Parameters
        ----------
        points : (P, 3) array
            RAS+ mm, in the head's frame.
        bval : float
            s/mm²
        bvec : (3,) array
            RAS+ in the head's frame; unit length, or zero for b=0.

        Returns
        -------
        (P,) float32 array
        """
        gradient = np.asarray(bvec, np.float32)
        parts = [self._signal(xyz, np.float32(bval), gradient) for xyz in _portions(points)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def matter_at(self, points: np.ndarray) -> np.ndarray:
        """Share of a point that is the head, and not the air around it or in its cavities.

        Parameters
        ----------
        points : (P, 3) array
            RAS+ mm, in the head's frame.

        Returns
        -------
        (P,) float32 array
        """
        parts = [self._place(*xyz).matter for xyz in _portions(points)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _random(self, purpose: int) -> np.random.Generator:
        """Return a stream of random numbers of its own for each purpose."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(7, purpose)))

    @cached_property
    def _waves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Wave vectors (N, 3) in rad/mm, phases (N, 1), and the mixtures (len(SLOW), N)."""
        random = self._random(1)
        vectors = _wave_vectors(N_WAVES, WAVE_LENGTHS_MM, random)
        phases = random.uniform(0, 2 * np.pi, (N_WAVES, 1))
        mixtures = random.normal(size=(len(SLOW), N_WAVES))
        mixtures *= np.sqrt(2) / np.linalg.norm(mixtures, axis=1, keepdims=True)
        return vectors, phases.astype(np.float32), mixtures.astype(np.float32)

    @cached_property
    def _folds(self) -> tuple[np.ndarray, np.ndarray]:
        """Wave vectors (N, 3) in rad/mm and phases (N, 1) of the sulci."""
        random = self._random(2)
        vectors = _wave_vectors(N_FOLDS, FOLD_LENGTHS_MM, random)
        return vectors, random.uniform(0, 2 * np.pi, (N_FOLDS, 1)).astype(np.float32)

    def _place(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Place:
        """Find where points are in the head's anatomy."""
        vectors, phases, mixtures = self._waves
        waves = np.sin(vectors @ np.stack([x, y, z]) + phases)
        slow = dict(zip(SLOW, mixtures @ waves, strict=True))
        warped = (x + 3 * slow["warp_x"], y + 3 * slow["warp_y"], z + 3 * slow["warp_z"])
        return Place(*warped, slow, self._folds)

    def _signal(self, points: np.ndarray, bval: np.float32, bvec: np.ndarray) -> np.ndarray:
        """Signal at a portion of the points, (3, P)."""
        x, y, z = points
        signal = np.zeros(len(x), np.float32)
        near = np.flatnonzero((x / 96) ** 2 + (y / 112) ** 2 + (np.maximum(z, 0) / 98) ** 2 < 1)
        if not len(near):
            return signal
        place = self._place(x[near], y[near], z[near])
        tissue, parts, slow = self.tissue, place.parts, place.slow
        fluid = parts.fluid * (tissue.fluid * (1 + VARIATION * slow["fluid"]))
        grey = (tissue.grey * parts.grey + tissue.deep_grey * parts.deep_grey) * (
            1 + VARIATION * slow["grey"]
        )
        white = parts.white * tissue.white * (1 + VARIATION * slow["white"])
        skin = parts.skin * tissue.skin * (1 + 0.15 * slow["skin"])
        total = fluid * np.exp(-bval * np.float32(FLUID_DIFFUSIVITY))
        total += parts.vitreous * np.float32(
            tissue.fluid * np.exp(-bval * np.float32(VITREOUS_DIFFUSIVITY))
        )
        total += (skin + parts.muscle * tissue.muscle) * np.exp(
            -bval * np.float32(MUSCLE_DIFFUSIVITY)
        )
        total += parts.fat * tissue.fat
        if bval == 0:
            total += grey + white
        else:
            diffusivity = tissue.grey_diffusivity * (1 + VARIATION * slow["grey_diffusivity"])
            total += grey * _gamma_decay(bval * diffusivity, GREY_SHAPE)
            inside = np.flatnonzero(white > 0)
            total[inside] += white[inside] * self._white_decay(place, inside, bval, bvec)
        signal[near] = total
        return signal

    def _white_decay(
        self, place: Place, inside: np.ndarray, bval: np.float32, bvec: np.ndarray
    ) -> np.ndarray:
        """Signal of white matter relative to b=0, at the points `inside`."""
        tissue = self.tissue
        slow = {name: place.slow[name][inside] for name in SLOW}
        scale = 1 + VARIATION * slow["white_diffusivity"]
        across = tissue.across * (1 - 0.2 * slow["anisotropy"]) * scale
        along = tissue.along * (1 + VARIATION * slow["anisotropy"]) * scale
        decay = np.zeros(len(inside), np.float32)
        for weight, direction in place.bundles(inside, slow):
            squared = sum(g * v for g, v in zip(bvec, direction, strict=True)) ** 2
            decay += weight * _gamma_decay(
                bval * (across + (along - across) * squared), BUNDLE_SHAPE
            )
        return decay


class Place:
    """Where points lie in the anatomy, (P,) arrays of float32.

    Parameters
    ----------
    x, y, z : (P,) arrays
        Warped coordinates, mm.
    slow : dict of (P,) arrays
        See :data:`SLOW`.
    folds : tuple
        Wave vectors and phases of the sulci.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        z: np.ndarray,
        slow: dict[str, np.ndarray],
        folds: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self.x, self.y, self.z, self.slow = x, y, z, slow
        self.side = np.abs(x)
        self._folds = folds

    @cached_property
    def sulci(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the sheets of the sulci (mm, roughly), and their normals (3, P)."""
        vectors, phases = self._folds
        angles = vectors @ np.stack([self.x, self.y, self.z]) + phases
        field = np.sin(angles).sum(axis=0)
        slope = vectors.T @ np.cos(angles)
        steepness = np.sqrt((slope**2).sum(axis=0) + np.float32(0.08) ** 2)
        return np.abs(field) / steepness, slope / steepness

    @cached_property
    def hemispheres(self) -> np.ndarray:
        """Depth below the surface of the cerebrum, mm."""
        x, y, z = self.side, self.y, self.z
        main = _depth(_soft_positive(x - 18, 12), y + 4, z - 14, (46, 78, 54))
        main = _soft_least(main, z + 16 + 0.1 * y, 6)  # its base
        temporal = _depth(x - 42, y + 2, z + 16, (23, 40, 20))
        return _soft_most(main, temporal, 4)

    @cached_property
    def cerebellum(self) -> np.ndarray:
        """Depth below the surface of the cerebellum, mm."""
        return _depth(_soft_abs(self.x) - 20, self.y + 52, self.z + 36, (30, 27, 19))

    @cached_property
    def stem(self) -> np.ndarray:
        """Depth below the surface of the brain stem, mm."""
        radius = 9 + 5 * np.exp(-(((self.z + 28) / 13) ** 2))
        middle = -15 + 0.24 * (self.z + 8)
        return np.minimum(radius - np.hypot(self.x, 0.9 * (self.y - middle)), 2 - self.z)

    @cached_property
    def brain(self) -> np.ndarray:
        """Depth below the surface of the brain's outline, mm."""
        return _soft_most(_soft_most(self.hemispheres, self.cerebellum, 3), self.stem, 3)

    @cached_property
    def outline(self) -> np.ndarray:
        """Depth below the skin, mm."""
        x, y, z = self.x, self.y, self.z
        skull = _depth(x, y + 4, z - 8, (78, 95, 77))
        face = _depth(x, y - 30, z + 45, (60, 58, 62))
        neck = np.minimum(56 - np.hypot(x, 0.9 * (y + 22)), -z)
        return _soft_most(_soft_most(skull, face, 10), neck, 10)

    @property
    def matter(self) -> np.ndarray:
        """Share that is no air; the cells behind the ears are half bone.

        Air stays away from the brain: :data:`LEAST_BONE_MM`, :data:`LEAST_COVER_MM`.
        """
        sinus, ear = self._cavities
        cavity = np.maximum(sinus, ear / 2) * (1 - within(self.brain + LEAST_BONE_MM))
        return within(np.maximum(self.outline, self.brain + LEAST_COVER_MM)) * (1 - cavity)

    @cached_property
    def cortex(self) -> np.ndarray:
        """Distance from the fluid into the cerebrum, mm: the ribbon is where it is small."""
        depth = self.hemispheres
        reach = 17 + 4 * self.slow["sulcal_depth"]
        sulcus = np.hypot(self.sulci[0], np.maximum(depth - reach, 0))
        around = np.sqrt(((self.y + 4) / 44) ** 2 + ((self.z - 4) / 25) ** 2)
        fissure = np.hypot(self.side, np.maximum(1 - around, 0) * 25)
        return np.minimum(np.minimum(depth - 0.8, sulcus - 0.7), fissure - 0.8)

    @cached_property
    def callosum(self) -> np.ndarray:
        """Depth inside the callosum, mm."""
        around = np.sqrt(((self.y + 4) / 38) ** 2 + ((self.z - 4) / 20) ** 2)
        ring = 3.2 - np.abs(around - 1) * 22
        return np.minimum(np.minimum(ring, 16 - self.side), self.z + 2)

    @cached_property
    def parts(self) -> Parts:
        """What is where."""
        dark = np.zeros(len(self.x), np.float32)
        head = within(self.outline)
        inside = np.flatnonzero(self.brain > -5 - EDGE_MM)
        scalp = 6 + 1.2 * self.slow["scalp"]
        deep = within(self.outline - scalp)
        skin_depth = within(self.outline - 0.4 * scalp)
        bone = within(self.brain + 10 + 1.5 * self.slow["skull"])
        muscle = deep * (1 - bone)
        skin, fat = head * (1 - skin_depth), head * skin_depth * (1 - deep)
        vitreous, orbit, air = self._face
        muscle = muscle * (1 - orbit) * (1 - air)
        fat = fat * (1 - orbit) + (orbit - vitreous) * 0.7 * head
        parts = Parts(dark, dark.copy(), dark.copy(), dark.copy(), vitreous * head, muscle,
                      skin * (1 - vitreous), fat)  # fmt: skip
        if len(inside):
            found = self._at(inside)._intracranial
            for name, share in found.items():
                getattr(parts, name)[inside] = share
        return parts

    def _at(self, some: np.ndarray) -> Place:
        """Return some of the points, with what is known about them."""
        slow = {name: values[some] for name, values in self.slow.items()}
        place = Place(self.x[some], self.y[some], self.z[some], slow, self._folds)
        for known in ("hemispheres", "cerebellum", "stem", "brain"):
            place.__dict__[known] = getattr(self, known)[some]
        return place

    @cached_property
    def _face(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shares of eyeballs, of orbits and of air in sinuses and ears."""
        x, y, z = self.side, self.y, self.z
        ball = _depth(x - 31, y - 68, z + 24, (12, 12, 12))
        orbit = _depth(x - 29, y - 60, z + 24, (17, 22, 16))
        air = np.maximum(*self._cavities)
        return within(ball), np.maximum(within(ball), within(orbit)), air

    @cached_property
    def _cavities(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares of sinuses and of ears."""
        sinus = _depth(self.x, self.y - 66, self.z + 40, (13, 17, 18))
        ear = _depth(self.side - 58, self.y + 22, self.z + 42, (13, 14, 14))
        return within(sinus), within(ear)

    @cached_property
    def _intracranial(self) -> dict[str, np.ndarray]:
        """Shares of white matter, grey matter, nuclei and fluid inside the skull."""
        x, y, z = self.side, self.y, self.z
        cavity = within(self.brain + 2.0 + 0.8 * self.slow["thickness"])  # bounded by the skull
        thickness = 2.9 + 0.5 * self.slow["thickness"]
        pia, white = within(self.cortex), within(self.cortex - thickness)
        band = within(self.callosum)
        pia, white = np.maximum(pia, band), np.maximum(white, band)
        folia = self.cerebellum
        spacing = np.float32(8 / np.pi)
        leaf = np.abs(np.sin((0.8 * z + 0.6 * y + 0.1 * x) / spacing)) * spacing
        leaf = np.minimum(folia - 1.0, np.hypot(leaf, np.maximum(folia - 8, 0)) - 0.3)
        pia = np.maximum(pia, within(leaf))
        white = np.maximum(white, within(np.minimum(leaf - 2.2, folia - 5)))
        stem = within(self.stem)
        pia, white = np.maximum(pia, stem), np.maximum(white, stem)
        caudate = _depth(x - 13, y - 12, z - 12, (5, 15, 8))
        putamen = _depth(x - 26, y - 3, z - 1, (6.5, 17, 10))
        thalamus = _depth(x - 10, y + 15, z - 5, (8.5, 14, 9))
        nuclei = within(np.maximum(np.maximum(caudate, putamen), thalamus))
        horns = _depth(x - 7 - 0.1 * (y - 8), y - 6, z - 15 + 0.1 * y, (5, 29, 7))
        atria = _depth(x - 22, y + 38, z - 8, (6.5, 17, 9))
        third = _depth(self.x, y + 8, z - 1, (2.6, 14, 9))
        fourth = _depth(self.x, y + 36, z + 36, (6, 6, 8))
        wet = np.maximum(np.maximum(horns, atria), np.maximum(third, fourth))
        wet = within(wet) * (1 - band)
        solid = pia * (1 - wet) * cavity
        return {
            "white": solid * white * (1 - nuclei),
            "grey": solid * (1 - white) * (1 - nuclei),
            "deep_grey": solid * nuclei,
            "fluid": cavity - solid,
        }

    def bundles(
        self, some: np.ndarray, slow: dict[str, np.ndarray]
    ) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        """Yield the share and the unit direction of each bundle at some of the points."""
        x, y, z = self.x[some], self.y[some], self.z[some]
        depth = self.hemispheres[some]
        stem = within(self.stem[some])
        side = self.side[some]
        callosal = np.exp(-(((z - 22) / 20) ** 2) - (x / 34) ** 2)
        callosal += 4 * within(self.callosum[some]) * np.exp(-((x / 13) ** 2))
        callosal *= (1 - stem) * (1 + 0.25 * np.tanh(slow["callosal"]))
        lateral = np.exp(-(((side - 40) / 9) ** 2) - ((z - 8) / 24) ** 2)
        around = np.sqrt(((y + 4) / 46) ** 2 + ((z - 4) / 29) ** 2)
        lateral += 1.5 * np.exp(-(((side - 9) / 5) ** 2) - ((around - 1) / 0.13) ** 2)
        lateral *= (1 - stem) * (1 + 0.25 * np.tanh(slow["lateral"]))
        fan = np.exp(-(((side - 24) / 12) ** 2)) + 0.2 + stem
        callosal, lateral, fan = callosal**2, lateral**2, fan**2
        total = callosal + lateral + fan
        tilt = 0.15 * np.tanh(slow["tilt"])
        yield callosal / total, _unit(55 - z, 0.012 * x * y + 8 * tilt, x)
        yield lateral / total, _unit(-y / 61 - tilt, x / 44, -0.25 * y / 78 * np.tanh(x / 8))
        fx, fy, fz = _unit(0.9 * x, 0.8 * (y + 18), np.maximum(z + 72, 8) + 20 * stem)
        normal = self.sulci[1][:, some]
        ox, oy, oz = x / 64, (y + 4) / 78, (z - 8) / 60  # outwards,
        across = ox * normal[0] + oy * normal[1] + oz * normal[2]
        ox, oy, oz = _unit(
            ox - across * normal[0], oy - across * normal[1], oz - across * normal[2]
        )
        alike = fx * ox + fy * oy + fz * oz
        turn = np.exp(-((np.maximum(depth, 0) / 16) ** 2)) * (1 - stem)  # along the gyral blades
        turn *= alike / np.sqrt(alike**2 + np.float32(0.05))  # directions have no sign
        keep = 1 - np.abs(turn)
        turned = (keep * f + turn * o for f, o in zip((fx, fy, fz), (ox, oy, oz), strict=True))
        yield fan / total, _unit(*turned)


def _portions(points: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the coordinates (3, P) of some points after the others, float32."""
    for start in range(0, len(points), POINTS_AT_A_TIME):
        some = points[start : start + POINTS_AT_A_TIME]
        yield np.ascontiguousarray(some.T, dtype=np.float32)


def _wave_vectors(n: int, lengths: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    """Wave vectors in all directions, (N, 3) rad/mm."""
    vectors = random.normal(size=(n, 3))
    vectors *= 2 * np.pi / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / random.uniform(*lengths, size=(n, 1))).astype(np.float32)


def _gamma_decay(attenuation: np.ndarray, shape: float) -> np.ndarray:
    """Mean of exp(-b d) over gamma-distributed diffusivities d of mean `attenuation` / b."""
    return np.exp(-shape * np.log1p(attenuation / shape))


def _depth(x: np.ndarray, y: np.ndarray, z: np.ndarray, axes: tuple[float, ...]) -> np.ndarray:
    """Depth below the surface of an ellipsoid (mm, to first order); negative outside."""
    u, v, w = x / axes[0], y / axes[1], z / axes[2]
    radius = np.sqrt(u * u + v * v + w * w)
    slope = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (w / axes[2]) ** 2)
    return radius * (1 - radius) / np.maximum(slope, 1e-6)


def within(depth: np.ndarray) -> np.ndarray:
    """Share of a part at a depth below its surface: an edge of :data:`EDGE_MM`."""
    t = np.clip(0.5 + depth / EDGE_MM, 0, 1)
    return t * t * (3 - 2 * t)


def _soft_most(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Larger of two depths, rounded where they are equal."""
    overlap = np.maximum(width - np.abs(a - b), 0)
    return np.maximum(a, b) + overlap * overlap / (4 * width)


def _soft_least(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    return -_soft_most(-a, -b, width)


def _soft_positive(x: np.ndarray, width: float) -> np.ndarray:
    return _soft_most(x, np.zeros_like(x), width)


def _soft_abs(x: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + 16)


def _unit(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scale vectors to unit length."""
    scale = 1 / np.sqrt(x * x + y * y + z * z + np.float32(1e-8))
    return x * scale, y * scale, z * scale
