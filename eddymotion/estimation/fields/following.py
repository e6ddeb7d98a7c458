# SPDX-License-Identifier: Apache-2.0
"""Fields that follow the head, and what they leave open of its poses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.fields.evidence import SIGNIFICANT
from eddymotion.estimation.fields.prior import nonlinear_part
from eddymotion.images.grid import transformed
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, rigid_parameters
from eddymotion.robust import TINY

FEWEST_FREE = 6
"""Least number of volumes, beyond that of the drivers, to test whether fields follow the poses."""

LEAST_MOTION_MM = 1.0
"""Root mean square of the motion (mm at 50 mm) that fields may follow. A field changes by a part
of it; of heads at rest, and of some that nodded within volumes, fields seemed to follow 0.1 to 0.3
mm of motion by 0.2 mm."""

LEAST_FOLLOWED = 0.1
"""Part of the motion (mm at 50 mm) by which fields follow it at least, mm at 80 mm. A field that
only turns with the head seems to follow it, too, since it displaces along a direction that turns
against the head: by 0.005 to 0.05 on simulated heads, where one that changes does by 0.147 to
0.31."""

FAR_AWAY = 4.0
"""Poses farther from the middle one than this factor times the median distance are not used:
volumes that went astray have fields that go with their wrong poses."""

LEAST_LEFT = 1e-3
"""Share of the squares of a column that earlier columns have to leave."""

AMBIGUOUS_SHIFT, AMBIGUOUS_TURN = 0.3, 0.02
"""Of fields that follow the head: the part of their displacement, and of the rotations of the
head, by which poses may be wrong, since no image shows it. On simulated heads 0.2 to 0.3, and 0.01
to 0.03."""

NEGLECTED_SHIFT, NEGLECTED_PART = 0.3, 0.2
"""Of fields that seem to follow a head which moved too little to be sure, so that nothing takes
them out: the part of their displacement, and of the head's own motion, by which poses may be
wrong. On three simulated heads that nodded, errors were 0.1 to 0.3 of the motion, in roll as well,
which does not lead along the phase encoding."""


LIKELY, LIKELY_FOLLOWED = 0.03, 0.25
"""Probability below which, and part of the motion above which fields follow the tilts of few
volumes, as far as errors are concerned. With 12 directions they were at most .02 and at least .31
in 15 simulated heads whose fields change; at least .04 and at most .2 in 24 others."""

OF_TILTED = 0.7, 0.35
"""Parts of the displacement by such fields that are errors of poses: along the phase encoding, and
of rotations about the axes across it at their radius. On 15 simulated heads .7 and .35 (root mean
square)."""


def pose_regressors(matrices: np.ndarray, center: np.ndarray, reference: int) -> np.ndarray:
    """Return the poses relative to a volume, as far as they change fields: (N, 5) mm.

    Translations of the centre (RAS+), pitch and roll at 50 mm. The rotation about the main field
    does not change the field of a head.

    Parameters
    ----------
    matrices : (N, 4, 4) array
        Frame of the head → scanner.
    center : (3,) array
        Of the brain, RAS+ mm.
    reference : int
        Volume whose pose is zero.
    """
    there = (matrices[reference] @ np.append(center, 1.0))[:3]
    moved = rigid_parameters(matrices @ np.linalg.inv(matrices[reference]), there)
    return moved[:, :5] * [1, 1, 1, ROTATION_RADIUS_MM, ROTATION_RADIUS_MM]


def usual_poses(poses: np.ndarray) -> np.ndarray:
    """Return which of the poses (N, 5) are not far from the others, (N,) bool."""
    away = np.linalg.norm(poses - np.median(poses, axis=0), axis=1)
    return away <= FAR_AWAY * np.median(away)


@dataclass(frozen=True, eq=False)
class PoseResponse:
    """How fields follow the poses of the head, beyond the gradients.

    Parameters
    ----------
    response : (5, K) array
        Coefficients (mm) for each of :func:`pose_regressors` (mm).
    moved_mm : float
        Root mean square of what follows the poses, mm at 80 mm.
    own_mm : float
        Root mean square of what follows neither poses nor gradients.
    pose_mm : float
        Root mean square of the poses.
    p : float
        Probability of such a response without any.
    """

    response: np.ndarray
    moved_mm: float
    own_mm: float
    pose_mm: float
    p: float

    @property
    def is_shown(self) -> bool:
        """Whether fields follow the poses beyond chance, and more than they change otherwise."""
        return self.p < SIGNIFICANT and self.moved_mm > self.own_mm

    @property
    def is_suspected(self) -> bool:
        """Whether they do, and by more than a field that only turns with the head seems to."""
        return self.is_shown and self.moved_mm > LEAST_FOLLOWED * self.pose_mm

    @property
    def is_likely(self) -> bool:
        """Whether fields seem to follow the poses; enough for standard errors."""
        return self.p < LIKELY and self.moved_mm > LIKELY_FOLLOWED * self.pose_mm

    @property
    def is_there(self) -> bool:
        """Whether they are suspected to, and the head moved enough to be sure."""
        return self.is_suspected and self.pose_mm > LEAST_MOTION_MM

    def __str__(self) -> str:
        return (
            f"fields follow the head by {self.moved_mm:.2f} mm for {self.pose_mm:.2f} mm of "
            f"motion (p = {self.p:.1g}), {self.own_mm:.2f} mm follow nothing"
        )


def follow_poses(
    coefficients: np.ndarray, gradients: Gradients, poses: np.ndarray
) -> PoseResponse | None:
    """Measure how fields follow the poses; None where there are too few volumes.

    Errors of the model that look like a field follow the b-value. A head that happens to move with
    the b-value is not their cause, so that only what the b-value does not explain counts.

    Parameters
    ----------
    coefficients : (N, K) array
        Estimated without a prior.
    gradients : Gradients
    poses : (N, 5) array
        From :func:`pose_regressors`.
    """
    without, free = (
        _beside(nonlinear_part(gradients, moved), gradients.bvals) for moved in (None, poses)
    )
    n_moved, n_own = np.trace(without - free), np.trace(free)
    if round(n_own) < FEWEST_FREE or n_moved < 0.5:
        return None
    own = (coefficients * (free @ coefficients)).sum()
    moved = max((coefficients * (without @ coefficients)).sum() - own, 0.0)
    n_terms, size = coefficients.shape[1], coefficients.size
    ratio = (moved / n_moved) / max(own / n_own, TINY)
    away = without @ poses
    response = np.linalg.lstsq(away, without @ coefficients, rcond=0.05)[0]
    centred = poses - poses.mean(axis=0)
    return PoseResponse(
        response,
        float(np.sqrt(max(moved - n_moved * own / n_own, 0.0) / size)),
        float(np.sqrt(own / n_own / n_terms)),
        float(np.sqrt((centred**2).sum(axis=1).mean())),
        float(scipy.special.fdtrc(n_moved, n_own, ratio)),  # terms are not independent: as one
    )


def _beside(projector: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Remove one more column (N,) from what a projector keeps, if something of it is left."""
    left = projector @ (column - column.mean())
    power = left @ left
    if power <= LEAST_LEFT * np.square(column).sum():
        return projector
    return projector - np.outer(left, left) / power


def covariances_by_ambiguity(
    eddy: EddyCurrents, response: np.ndarray, poses: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Covariance of what fields that follow the head leave open of its poses, (N, 6, 6).

    The part of such a field that displaces all points alike is a translation along the phase
    encoding; a field that is turned against a distorted head looks like a rotation.

    Parameters
    ----------
    eddy : EddyCurrents
    response : (5, K) array
        Of :class:`PoseResponse`.
    poses : (N, 5) array
    points : (P, 3) array
        Of the brain, RAS+ mm.
    """
    displaced = eddy.terms(points) @ (poses @ response).T
    along = AMBIGUOUS_SHIFT**2 * (displaced**2).mean(axis=0)
    covariances = np.zeros((len(poses), 6, 6))
    covariances[:, :3, :3] = along[:, None, None] * np.outer(eddy.pe, eddy.pe)
    turned = AMBIGUOUS_TURN * poses[:, 3:] / ROTATION_RADIUS_MM
    covariances[:, [3, 4], [3, 4]] = turned**2
    return covariances


def with_offsets_of_poses(
    eddy: EddyCurrents,
    response: np.ndarray,
    poses: np.ndarray,
    matrices: np.ndarray,
    points: np.ndarray,
) -> EddyCurrents:
    """Attribute to fields that follow the head their part of the translations.

    A displacement of all points alike is in no image of one run. The terms have no constant, so
    that the poses contain the displacement of a field at the middle of the image, however curved
    the field is there. Shims, and the field of all that is far away, are nearly linear in place
    and zero in the middle. So the fields get the constant with which their linear part over the
    brain is zero in the middle. On ten simulated heads that nodded or rolled by 10 to 12° (none of
    them used to choose), the error of poses relative to each other was then .19 mm. It was .25
    with the terms as they are, .24 with a mean of zero over the brain, and .24 with a mean of zero
    over the middle of the head (true fields, root mean square).

    Parameters
    ----------
    eddy : EddyCurrents
    response : (5, K) array
        Of :class:`PoseResponse`.
    poses : (N, 5) array
    matrices : (N, 4, 4) array
        Frame of the head → scanner.
    points : (P, 3) array
        Of the brain, RAS+ mm.
    """
    offsets = np.empty(len(poses))
    for volume, (pose, coefficients) in enumerate(zip(matrices, poses @ response, strict=True)):
        terms = eddy.terms(transformed(pose, points))
        linear = np.column_stack([np.ones(len(points)), terms[:, :3]])
        offsets[volume] = -np.linalg.lstsq(linear, terms @ coefficients)[0][0]
    return replace(eddy, offsets=offsets)


def covariances_by_neglect(
    eddy: EddyCurrents,
    response: np.ndarray,
    poses: np.ndarray,
    moved: np.ndarray,
    points: np.ndarray,
) -> np.ndarray:
    """Covariance by fields that may follow the head and are left out, (N, 6, 6).

    A displacement along the phase encoding that is the same in all points is a translation; one
    that changes across the head is a rotation about the other two axes. A pattern that stays in
    the scanner while the head moves reduces all of the estimated motion.

    Parameters
    ----------
    eddy, response, poses, points
        As for :func:`covariances_by_ambiguity`.
    moved : (N, 6) array
        Twists of the poses against that of the reference.
    """
    displaced = eddy.terms(points) @ (poses @ response).T
    square = NEGLECTED_SHIFT**2 * (displaced**2).mean(axis=0)[:, None, None]
    along = np.outer(eddy.pe, eddy.pe)
    covariances = NEGLECTED_PART**2 * np.einsum("na,nb->nab", moved, moved)
    covariances[:, :3, :3] += square * along
    covariances[:, 3:, 3:] += square / ROTATION_RADIUS_MM**2 * (np.eye(3) - along)
    return covariances


def displaced_a_radian(
    eddy: EddyCurrents, tilts: np.ndarray, response: np.ndarray, points: np.ndarray
) -> float:
    """Return by how much fields that follow the tilts of a head displace its brain, mm a radian.

    Root mean square over volumes and points, without what is common to all points.

    Parameters
    ----------
    eddy : EddyCurrents
    tilts : (N, 2) array
        Pitch and roll at 50 mm.
    response : (2, K) array
        Of :class:`PoseResponse`, to these.
    points : (P, 3) array
        Of the brain, RAS+ mm.
    """
    terms, tilted = eddy.terms(points), tilts - tilts.mean(axis=0)
    displaced = (terms - terms.mean(axis=0)) @ (tilted @ response).T
    radians = np.linalg.norm(tilted, axis=1) / ROTATION_RADIUS_MM
    return float(np.sqrt(np.mean(displaced**2) / np.mean(radians**2)))


def covariances_by_tilt(poses: np.ndarray, a_radian: np.ndarray) -> np.ndarray:
    """Covariance by a field that changes with the tilt of the head and is left out, (N, 6, 6).

    Parameters
    ----------
    poses : (N, 4, 4) array
        Of the head, from the volume whose pose is exact.
    a_radian : (3,) array
        By how much the change displaces the brain, mm a radian of tilt, along the phase encoding.
    """
    of_along, of_turns = OF_TILTED
    across = np.sqrt(np.maximum(a_radian @ a_radian - a_radian**2, 0.0))
    errors = np.append(of_along * a_radian, of_turns / ROTATION_RADIUS_MM * across)
    squares = np.square(poses[:, 2, :2]).sum(axis=1)
    return squares[:, None, None] * np.diag(errors**2)
