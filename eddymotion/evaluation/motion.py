# SPDX-License-Identifier: Apache-2.0
"""Estimated against true motion.

**Two frames.** The true matrix ``Tᵢ`` and the estimated one ``Eᵢ`` map reference points to points
of volume ``i``. Each has a reference of its own: if a point ``x`` of the estimate's reference lies
at ``C x`` in the true one, a perfect estimate is ``Eᵢ = Tᵢ C``, not ``Tᵢ``. ``C`` is the same for
all volumes and stands on the right, the side of the reference. It moves the corrected series as a
whole and blurs nothing, so errors are given with it ("given") and without it ("free").

**The error of a volume** is ``Dᵢ = Tᵢ⁻¹ Eᵢ``: where the estimate puts a point of the reference,
seen in the true reference. Its parameters (displacement of `center`, three angles) are the errors
in mm and radians; how far it moves points of the brain is the target registration error.

**The offset** is the rigid ``C`` that minimises ``Σᵢ |log(Dᵢ C⁻¹)|²``, with ``log`` the
displacement of `center` and the rotation vector. At the minimum the logarithms average to zero;
``C ← exp(mean log(Dᵢ C⁻¹)) C`` gets there in a few steps. Another reference of the estimate,
``Eᵢ → Eᵢ A``, gives ``C → C A`` and leaves ``Dᵢ C⁻¹`` untouched. Another reference of the truth,
``Tᵢ → Tᵢ A``, shows the same errors along other axes.

The mean is the least-squares answer: a volume that failed pulls at it by one part in N.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.gradients import MAX_SHELLS, Gradients
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import all_points
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import (
    JENKINSON_RADIUS_MM,
    exp_rigid,
    log_rigid,
    rigid_parameters,
    rms_displacement,
    target_registration_error,
)
from eddymotion.robust import Z_95
from eddymotion.wording import short_repr

DWI_THRESHOLD = 100.0
"""The main figures are those of volumes above this b-value (s/mm²), where b-values are known."""

ALL, ABOVE = "all", f"b>{DWI_THRESHOLD:g}"

MAX_STEPS = 30

NO_MOTION = 1e-9
"""Sum of squares (mm², rad²) of the true motion below which a slope has no meaning."""

BALL_SPACING_MM = 10.0

MAX_POINTS = 20_000
"""Points of the brain at which the target registration error is measured, at most."""

Axes = tuple[float, float, float]


@dataclass(frozen=True)
class MotionScore:
    """Errors of a group of volumes.

    ``axes``: along or about x, y, z (RAS+). Slopes are of estimated on true parameters about their
    means, NaN without motion; biases are mean errors (the length of the vector, and its
    components). ``rms_displacement``: Jenkinson's, over a sphere of 80 mm.
    ``tre``: target registration error, over volumes and points.
    """

    n_volumes: int
    rmse_translation_mm: float
    rmse_rotation_deg: float
    rmse_translation_axes_mm: Axes
    rmse_rotation_axes_deg: Axes
    max_translation_mm: float
    max_rotation_deg: float
    rms_displacement_mean_mm: float
    rms_displacement_max_mm: float
    tre_mean_mm: float
    tre_p95_mm: float
    tre_max_mm: float
    slope_translation: float
    slope_rotation: float
    slope_translation_axes: Axes
    slope_rotation_axes: Axes
    bias_translation_mm: float
    bias_rotation_deg: float
    bias_translation_axes_mm: Axes
    bias_rotation_axes_deg: Axes


@dataclass(frozen=True, eq=False)
class Deviation:
    """How a motion differs from the true one, volume by volume.

    Parameters
    ----------
    motion : Motion
    errors : (N, 6) array
        Parameters of ``true⁻¹ motion``: mm, rad.
    displacement : (N,) array
        RMS displacement over a sphere of 80 mm, mm.
    distances : (N, P) array
        Target registration error at each point, mm.
    """

    motion: Motion
    errors: np.ndarray
    displacement: np.ndarray
    distances: np.ndarray

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class MotionComparison:
    """Estimated against true motion.

    Parameters
    ----------
    true : Motion
    deviations : dict
        ``(method, frame)`` → :class:`Deviation`; methods ``estimated`` and ``nothing`` (the
        identity), frames ``given`` and ``free`` (of the constant offset).
    groups : dict
        Name → indices of volumes: ``all``, and with b-values ``b>100``, ``b=0`` and the shells.
    offset : (4, 4) array
        The constant offset ``C`` of the estimate.
    center : (3,) array
        Where translations are measured, RAS+ mm.
    coverage_percent : float
        Share of the parameters within 1.96 standard errors of the truth in the given frame,
        over the main group; NaN without standard errors.
    """

    true: Motion
    deviations: dict[tuple[str, str], Deviation]
    groups: dict[str, np.ndarray]
    offset: np.ndarray
    center: np.ndarray
    coverage_percent: float

    __repr__ = short_repr

    @property
    def main_group(self) -> str:
        """The group of the main figures and of the offset."""
        return ABOVE if ABOVE in self.groups else ALL

    def score(
        self, method: str = "estimated", frame: str = "free", group: str | None = None
    ) -> MotionScore:
        """Return the errors of a group of volumes, the main one when not named."""
        volumes = self.groups[group or self.main_group]
        return _score(self.deviations[method, frame], self.true, volumes, self.center)


def compare_motion(
    estimated: Motion,
    true: Motion,
    *,
    center: np.ndarray | None = None,
    points: np.ndarray | None = None,
    bvals: np.ndarray | None = None,
    grid_center: np.ndarray | None = None,
) -> MotionComparison:
    """Compare estimated with true motion.

    Parameters
    ----------
    estimated, true : Motion
        Reference → volume, of the same volumes.
    center : (3,) array, optional
        Where translations are measured, RAS+ mm: the middle of the head; the origin when not
        given.
    points : (P, 3) array, optional
        Where the target registration error is measured, RAS+ mm, in the true reference; a ball
        of 80 mm about `center` when not given.
    bvals : (N,) array, optional
        In s/mm². The main figures and the offset are then of the volumes above 100.
    grid_center : (3,) array, optional
        What the standard errors refer to, if not `center`.

    Returns
    -------
    MotionComparison
        Of the estimate and of no correction.

    Raises
    ------
    EddymotionError
        If the numbers of volumes differ.
    """
    _refuse_different_lengths(estimated, true, bvals)
    center = np.zeros(3) if center is None else np.asarray(center, float)
    points = ball_points(center) if points is None else points
    groups = volume_groups(len(true), bvals)
    main = groups.get(ABOVE, groups[ALL])
    deviations, offsets = {}, {}
    nothing = Motion.identity(len(true))
    for method, motion in (("estimated", estimated), ("nothing", nothing)):
        offset = constant_offset(motion.matrices[main], true.matrices[main], center)
        moved = motion.matrices @ np.linalg.inv(offset)  # errors are of the given frame
        free = replace(motion, matrices=moved, standard_errors=None)
        offsets[method] = offset
        for frame, seen in (("given", motion), ("free", free)):
            deviations[method, frame] = _deviation(seen, true, center, points)
    about = center if grid_center is None else grid_center
    coverage = coverage_percent(estimated, true, about, main)
    return MotionComparison(true, deviations, groups, offsets["estimated"], center, coverage)


def constant_offset(estimated: np.ndarray, true: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the rigid ``C`` with ``estimated ≈ true @ C``, by least squares.

    Parameters
    ----------
    estimated, true : (N, 4, 4) array
        Reference → volume, RAS+ mm.
    center : (3,) array
        Point whose displacement is taken together with the rotation vector, RAS+ mm.

    Returns
    -------
    (4, 4) array
        From the estimate's reference to the true one; see the module's text.
    """
    difference = np.linalg.inv(true) @ estimated
    offset = np.eye(4)
    for _ in range(MAX_STEPS):
        step = log_rigid(difference @ np.linalg.inv(offset), center).mean(axis=0)
        offset = exp_rigid(step, center) @ offset
        if np.abs(step).max() < 1e-12:
            break
    return offset


def coverage_percent(
    estimated: Motion, true: Motion, center: np.ndarray, volumes: np.ndarray
) -> float:
    """Share (%) of the parameters within 1.96 standard errors of the truth; NaN without any."""
    if estimated.standard_errors is None:
        return np.nan
    found, wanted = (rigid_parameters(m.matrices[volumes], center) for m in (estimated, true))
    return percent_covered(found - wanted, estimated.standard_errors[volumes])


def percent_covered(errors: np.ndarray, standard_errors: np.ndarray) -> float:
    """Share (%) of errors within 1.96 standard errors; NaN where none of these is known."""
    bounds = Z_95 * np.asarray(standard_errors)
    known = np.isfinite(bounds) & (bounds > 0)  # zero: the reference, known by definition
    inside = np.abs(errors) <= bounds
    return float(100 * inside[known].mean()) if known.any() else np.nan


def volume_groups(n_volumes: int, bvals: np.ndarray | None) -> dict[str, np.ndarray]:
    """Group volumes by b-value: ``all``, ``b>100``, ``b=0``, and a few shells."""
    groups = {ALL: np.arange(n_volumes)}
    if bvals is None or not (bvals > DWI_THRESHOLD).any():
        return groups
    groups[ABOVE] = np.flatnonzero(bvals > DWI_THRESHOLD)
    gradients = Gradients(bvals, np.zeros((n_volumes, 3)))
    if len(gradients.b0s):
        groups["b=0"] = gradients.b0s
    if len(gradients.shells) <= MAX_SHELLS:
        for bval, shell in zip(gradients.shell_bvals, gradients.shells, strict=True):
            groups[f"b={bval:.0f}"] = shell
    return groups


def ball_points(center: np.ndarray) -> np.ndarray:
    """Return points that fill Jenkinson's sphere of 80 mm about `center`, (P, 3), RAS+ mm."""
    steps = np.arange(-JENKINSON_RADIUS_MM, JENKINSON_RADIUS_MM + 1, BALL_SPACING_MM)
    cube = all_points([steps] * 3)
    inside = np.linalg.norm(cube, axis=1) <= JENKINSON_RADIUS_MM + 1e-9
    return cube[inside] + center


def brain_points(mask: np.ndarray, affine: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the centres of the voxels of a mask, or of 20 000 drawn from more: RAS+ mm.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    seed : int
        Of the draw.

    Returns
    -------
    (P, 3) array
    """
    voxels = np.argwhere(mask)
    if len(voxels) > MAX_POINTS:
        chosen = np.random.default_rng(seed).choice(len(voxels), MAX_POINTS, replace=False)
        voxels = voxels[np.sort(chosen)]
    return apply_affine(affine, voxels)


def _deviation(motion: Motion, true: Motion, center: np.ndarray, points: np.ndarray) -> Deviation:
    pairs = zip(motion.matrices, true.matrices, strict=True)
    return Deviation(
        motion,
        rigid_parameters(np.linalg.inv(true.matrices) @ motion.matrices, center),
        rms_displacement(motion.matrices, true.matrices, center),
        np.array([target_registration_error(m, t, points) for m, t in pairs], np.float32),
    )


def _score(
    deviation: Deviation, true: Motion, volumes: np.ndarray, center: np.ndarray
) -> MotionScore:
    millimetres = deviation.errors[volumes, :3]
    degrees = np.rad2deg(deviation.errors[volumes, 3:])
    distances, displacement = deviation.distances[volumes], deviation.displacement[volumes]
    pooled, single = slopes(true.matrices[volumes], deviation.motion.matrices[volumes], center)
    turned = log_rigid(np.linalg.inv(true.matrices) @ deviation.motion.matrices, center)
    angles = np.rad2deg(np.linalg.norm(turned[volumes, 3:], axis=1))
    return MotionScore(
        n_volumes=len(volumes),
        rmse_translation_mm=root_mean_square(millimetres),
        rmse_rotation_deg=root_mean_square(degrees),
        rmse_translation_axes_mm=_axes(root_mean_square(column) for column in millimetres.T),
        rmse_rotation_axes_deg=_axes(root_mean_square(column) for column in degrees.T),
        max_translation_mm=float(np.linalg.norm(millimetres, axis=1).max()),
        max_rotation_deg=float(angles.max()),
        rms_displacement_mean_mm=float(displacement.mean()),
        rms_displacement_max_mm=float(displacement.max()),
        tre_mean_mm=float(distances.mean(dtype=float)),
        tre_p95_mm=float(np.percentile(distances, 95)),
        tre_max_mm=float(distances.max()),
        slope_translation=pooled[0],
        slope_rotation=pooled[1],
        slope_translation_axes=_axes(single[:3]),
        slope_rotation_axes=_axes(single[3:]),
        bias_translation_mm=float(np.linalg.norm(millimetres.mean(axis=0))),
        bias_rotation_deg=float(np.linalg.norm(degrees.mean(axis=0))),
        bias_translation_axes_mm=_axes(millimetres.mean(axis=0)),
        bias_rotation_axes_deg=_axes(degrees.mean(axis=0)),
    )


def slopes(
    true: np.ndarray, estimated: np.ndarray, center: np.ndarray
) -> tuple[tuple[float, float], np.ndarray]:
    """Slopes of estimated on true parameters, each about its mean; NaN without motion.

    Returns
    -------
    pooled : (translations, rotations)
        All three axes on one line through the origin.
    single : (6,) array
        Axis by axis.
    """
    t, e = (rigid_parameters(matrices, center) for matrices in (true, estimated))
    t, e = t - t.mean(axis=0), e - e.mean(axis=0)
    power, shared = (t**2).sum(axis=0), (t * e).sum(axis=0)

    def slope(columns: slice) -> float:
        enough = power[columns].sum() > NO_MOTION
        return float(shared[columns].sum() / power[columns].sum()) if enough else np.nan

    single = np.array([slope(slice(axis, axis + 1)) for axis in range(6)])
    return (slope(slice(0, 3)), slope(slice(3, 6))), single


def root_mean_square(values: np.ndarray) -> float:
    """Return the root of the mean square of all values."""
    return float(np.sqrt((values**2).mean()))


def _axes(values: Iterable[float]) -> Axes:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _refuse_different_lengths(estimated: Motion, true: Motion, bvals: np.ndarray | None) -> None:
    if len(estimated) != len(true):
        raise EddymotionError(
            f"{len(estimated)} estimated transforms but {len(true)} true ones; expected one of "
            "each per volume: give both for the same series"
        )
    if bvals is not None and len(bvals) != len(true):
        raise EddymotionError(
            f"{len(bvals)} b-values for {len(true)} transforms; give the .bval of this series"
        )
