# SPDX-License-Identifier: Apache-2.0
"""Estimated against true motion within volumes: how far off is a slice's own part of the brain.

Slice ``k`` of volume ``i`` was recorded with the head at ``Tᵢₖ`` (reference → scanner); the
estimate says ``Eᵢₖ``. Where it puts the points of the brain that were in that slice, seen in the
true reference, is ``Dᵢₖ x`` with ``Dᵢₖ = Tᵢₖ⁻¹ Eᵢₖ``. The error of the slice is the root mean
square of ``|Dᵢₖ x − x|`` over those points: those within half a slice of its middle at ``Tᵢₖ``.

**Frames.** As in :mod:`eddymotion.evaluation.motion`, a rigid offset that all slices of a group of
volumes have in common blurs nothing: ``C`` of the b=0 volumes and another of the
diffusion-weighted ones are taken off (``D C⁻¹``) in the *free* figures. How far the two are apart
is the error of the frame. The *given* figures are of ``D`` as it is.

**Slices that count** hold at least a third of the points of the fullest one: the pose of a slice
that only touches the brain is known by none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.evaluation.motion import (
    ABOVE,
    ALL,
    constant_offset,
    percent_covered,
    root_mean_square,
    volume_groups,
)
from eddymotion.evaluation.transforms import MotionFile
from eddymotion.images.grid import Grid
from eddymotion.mapping.rigid import log_rigid, mean_pose, rigid_parameters
from eddymotion.wording import short_repr

LEAST_SHARE = 1 / 3
"""Of the points of the fullest slice, which a slice needs to count."""


@dataclass(frozen=True)
class TrajectoryScore:
    """Errors of the slices of a group of volumes.

    ``rms``, ``p95`` and ``worst`` are of the displacement of a slice's own part of the brain;
    ``rmse`` of the three translations of the middle of the brain and the three components of the
    rotation, slice by slice and for the means of the volumes.
    """

    n_slices: int
    rms_mm: float
    p95_mm: float
    worst_mm: float
    rmse_translation_mm: float
    rmse_rotation_deg: float
    volume_rmse_translation_mm: float
    volume_rmse_rotation_deg: float


@dataclass(frozen=True, eq=False)
class TrajectoryComparison:
    """Estimated against true poses of slices.

    Parameters
    ----------
    used : (N, Z) bool array
        Slices that hold enough of the brain.
    displacement : dict of (N, Z) arrays
        ``free`` and ``given`` → RMS displacement (mm); NaN for slices that are not used.
    errors : dict of (N, Z, 6) arrays
        ``free`` and ``given`` → displacement of `center` (mm) and rotation vector (rad).
    groups : dict
        Name → volumes, as of :class:`~eddymotion.evaluation.MotionComparison`.
    offsets : dict
        ``b=0`` and ``dwi`` → the constant offset (4, 4) of these volumes; of those there are.
    center : (3,) array
        Middle of the brain, RAS+ mm.
    """

    used: np.ndarray
    displacement: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    offsets: dict[str, np.ndarray]
    center: np.ndarray

    __repr__ = short_repr

    @property
    def main_group(self) -> str:
        """The diffusion-weighted volumes, where b-values are known; else all."""
        return ABOVE if ABOVE in self.groups else ALL

    @property
    def frame(self) -> tuple[float, float]:
        """How far apart (mm at `center`, degrees) the frames of b=0 and the others are.

        NaN where there is only one.
        """
        if len(self.offsets) < 2:
            return np.nan, np.nan
        apart = self.offsets["dwi"] @ np.linalg.inv(self.offsets["b=0"])
        twist = log_rigid(apart, self.center)
        length = np.linalg.norm(twist.reshape(2, 3), axis=1)
        return float(length[0]), float(np.rad2deg(length[1]))

    def score(self, frame: str = "free", group: str | None = None) -> TrajectoryScore:
        """Return the errors of a group of volumes, the main one when not named.

        Parameters
        ----------
        frame : {"free", "given"}
        group : str, optional
            Of `groups`.
        """
        volumes = self.groups[group or self.main_group]
        used = self.used[volumes]
        displacement = self.displacement[frame][volumes][used]
        errors = self.errors[frame][volumes]
        means = np.array([e[u].mean(axis=0) for e, u in zip(errors, used, strict=True) if u.any()])
        return TrajectoryScore(
            n_slices=int(used.sum()),
            rms_mm=root_mean_square(displacement),
            p95_mm=float(np.percentile(displacement, 95)),
            worst_mm=float(displacement.max()),
            rmse_translation_mm=root_mean_square(errors[used][:, :3]),
            rmse_rotation_deg=float(np.rad2deg(root_mean_square(errors[used][:, 3:]))),
            volume_rmse_translation_mm=root_mean_square(means[:, :3]),
            volume_rmse_rotation_deg=float(np.rad2deg(root_mean_square(means[:, 3:]))),
        )


def compare_trajectory(
    estimated: np.ndarray,
    true: np.ndarray,
    points: np.ndarray,
    grid: Grid,
    *,
    bvals: np.ndarray | None = None,
    axis: int = 2,
) -> TrajectoryComparison:
    """Compare estimated with true poses of slices.

    Parameters
    ----------
    estimated, true : (N, Z, 4, 4) array
        Reference → slice, RAS+ mm.
    points : (P, 3) array
        Of the brain in the true reference, RAS+ mm; see
        :func:`~eddymotion.evaluation.brain_points`.
    grid : Grid
        Of the series.
    bvals : (N,) array, optional
        In s/mm². b=0 and diffusion-weighted volumes then have a constant offset each.
    axis : int
        The image axis that counts the slices.

    Returns
    -------
    TrajectoryComparison

    Raises
    ------
    EddymotionError
        If the numbers of volumes or slices differ.
    """
    _refuse_different(estimated, true, grid, bvals, axis)
    center = points.mean(axis=0)
    counts, moments = _slice_moments(true, points - center, center, grid, axis)
    used = counts >= max(LEAST_SHARE * counts.max(), 1)
    given = np.linalg.inv(true) @ estimated
    groups = volume_groups(len(true), bvals)
    parts = {"dwi": groups.get(ABOVE, groups[ALL])}
    if others := sorted(set(groups[ALL]) - set(parts["dwi"])):
        parts = {"b=0": np.array(others), **parts}
    free, offsets = given.copy(), {}
    for name, volumes in parts.items():
        chosen = used[volumes]
        offset = constant_offset(estimated[volumes][chosen], true[volumes][chosen], center)
        offsets[name] = offset
        free[volumes] = given[volumes] @ np.linalg.inv(offset)
    frames = {"free": free, "given": given}
    return TrajectoryComparison(
        used,
        {name: _displacement(d, moments, center, used) for name, d in frames.items()},
        {name: log_rigid(d, center) for name, d in frames.items()},
        groups,
        offsets,
        center,
    )


@dataclass(frozen=True, eq=False)
class SliceComparisons:
    """A motion and its references, slice by slice against the truth.

    Parameters
    ----------
    methods : dict
        ``estimated``; ``mean poses``, the true mean of each volume for all of its slices; and
        ``nothing``.
    times : (N, Z) array
        Of the slices, seconds; NaN where they are not known.
    coverage_percent : float
        Share of the estimated parameters within 1.96 standard errors of the truth, in the given
        frame and over the main group; NaN without standard errors.
    """

    methods: dict[str, TrajectoryComparison]
    times: np.ndarray
    coverage_percent: float

    __repr__ = short_repr

    @property
    def estimated(self) -> TrajectoryComparison:
        """That of the estimate."""
        return self.methods["estimated"]


def compare_by_slices(
    estimated: MotionFile,
    true: MotionFile,
    points: np.ndarray,
    grid: Grid,
    *,
    bvals: np.ndarray | None = None,
    axis: int = 2,
) -> SliceComparisons:
    """Compare two motions, at least one of them of slices; one of volumes holds for all slices.

    Parameters
    ----------
    estimated, true : MotionFile
    points, grid, bvals, axis
        As of :func:`compare_trajectory`.

    Returns
    -------
    SliceComparisons
        Of the estimate, of the mean poses of the truth, and of no correction.

    Raises
    ------
    EddymotionError
        As of :func:`compare_trajectory`.
    """
    n_slices = grid.shape[axis]
    truth = _poses_of(true, n_slices)
    poses = {
        "estimated": _poses_of(estimated, n_slices),
        "mean poses": _of_slices(true.motion.matrices, n_slices),
        "nothing": np.broadcast_to(np.eye(4), truth.shape),
    }
    methods = {
        name: compare_trajectory(each, truth, points, grid, bvals=bvals, axis=axis)
        for name, each in poses.items()
    }
    found, own = methods["estimated"], estimated.slices
    coverage = np.nan
    if own and own.standard_errors is not None:
        main = np.isin(np.arange(len(truth)), found.groups[found.main_group])
        errors = own.standard_errors[:, own.group_of_slice]
        used = found.used & main[:, None]
        coverage = trajectory_coverage(poses["estimated"], errors, truth, grid.center, used)
    times = np.full(truth.shape[:2], np.nan)
    for slices in filter(None, (own, true.slices)):
        excited = slices.times[:, slices.group_of_slice]
        times = excited if np.isfinite(excited).all() else times
    return SliceComparisons(methods, times, coverage)


def motion_within(
    true: np.ndarray, points: np.ndarray, grid: Grid, *, bvals: np.ndarray | None = None,
    axis: int = 2,
) -> TrajectoryScore:  # fmt: skip
    """Measure the remaining motion when every volume has only its mean pose.

    Parameters as of :func:`compare_trajectory`; the errors of a perfect correction that knows
    nothing of motion within volumes.
    """
    mean = mean_pose(true, points.mean(axis=0))
    one_a_volume = _of_slices(mean, true.shape[1])
    return compare_trajectory(one_a_volume, true, points, grid, bvals=bvals, axis=axis).score()


def trajectory_coverage(
    estimated: np.ndarray,
    standard_errors: np.ndarray,
    true: np.ndarray,
    center: np.ndarray,
    used: np.ndarray,
) -> float:
    """Share (%) of the parameters within 1.96 standard errors of the truth; NaN without any.

    Parameters
    ----------
    estimated, true : (N, Z, 4, 4) array
        Reference → slice, RAS+ mm, as they are given.
    standard_errors : (N, Z, 6) array
    center : (3,) array
        What the standard errors refer to: the centre of the grid.
    used : (N, Z) bool array
        Slices that count.
    """
    apart = rigid_parameters(estimated[used], center) - rigid_parameters(true[used], center)
    return percent_covered(apart, standard_errors[used])


def _poses_of(file: MotionFile, n_slices: int) -> np.ndarray:
    if file.slices is None:
        return _of_slices(file.motion.matrices, n_slices)
    if file.slices.n_slices != n_slices:
        raise EddymotionError(
            f"motion of {file.slices.n_slices} slices, but the image has {n_slices} along its "
            "slice axis; give the matching image and --slice-axis"
        )
    return file.slices.poses


def _of_slices(matrices: np.ndarray, n_slices: int) -> np.ndarray:
    return np.repeat(matrices[:, None], n_slices, axis=1)


def _slice_moments(
    true: np.ndarray, offsets: np.ndarray, center: np.ndarray, grid: Grid, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the points in each slice, and average their products x xᵀ.

    `offsets` are from `center`; ``x`` has a fourth component of one.

    Returns
    -------
    counts : (N, Z) array
    moments : (N, Z, 4, 4) array
    """
    x = np.hstack([offsets, np.ones((len(offsets), 1))])
    products = np.einsum("pi,pj->pij", x, x).reshape(len(x), 16)
    to_index = np.linalg.inv(grid.affine)[axis]
    shift = np.eye(4)
    shift[:3, 3] = center
    slices = np.arange(true.shape[1])[:, None]
    counts, moments = [], []
    for poses in true:
        index = (to_index @ poses @ shift) @ x.T
        inside = (np.abs(index - slices) <= 0.5).astype(float)
        counts.append(inside.sum(axis=1))
        moments.append(inside @ products / np.maximum(counts[-1], 1)[:, None])
    return np.array(counts), np.array(moments).reshape(*true.shape[:2], 4, 4)


def _displacement(
    deviation: np.ndarray, moments: np.ndarray, center: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """RMS of |D x − x| over the points of each slice (N, Z): ``x ↦ A x`` has ``tr(A M Aᵀ)``."""
    shift = np.eye(4)
    shift[:3, 3] = center
    moved = ((deviation - np.eye(4)) @ shift)[..., :3, :]
    square = np.einsum("nzij,nzjk,nzik->nz", moved, moments, moved)
    return np.where(used, np.sqrt(np.maximum(square, 0.0)), np.nan)


def _refuse_different(
    estimated: np.ndarray, true: np.ndarray, grid: Grid, bvals: np.ndarray | None, axis: int
) -> None:
    if estimated.shape != true.shape:
        raise EddymotionError(
            f"estimated poses of {estimated.shape[:2]} volumes and slices, true ones of "
            f"{true.shape[:2]}; give both for the same series"
        )
    if true.shape[1] != grid.shape[axis]:
        raise EddymotionError(
            f"poses of {true.shape[1]} slices, an image of {grid.shape[axis]} along axis {axis}; "
            "give the image they belong to"
        )
    if bvals is not None and len(bvals) != len(true):
        raise EddymotionError(
            f"{len(bvals)} b-values for {len(true)} volumes; give the .bval of this series"
        )
