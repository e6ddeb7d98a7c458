# SPDX-License-Identifier: Apache-2.0
"""The way to the first fine level: poses, coarse to fine, and then fields, if there are any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eddymotion.data.gradients import Gradients, forms_shells
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.fields.prior import NO_PRIOR
from eddymotion.estimation.joint.levels import COARSE, FINE
from eddymotion.estimation.joint.outlier_search import OutlierSearch
from eddymotion.estimation.joint.solver import JointSolver, group_motion
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.axes import image_axes, phase_encoding_vector
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion

log = logging.getLogger(__name__)

FEW_FOR_FIELDS = 6
"""With fewer diffusion-weighted volumes fields are not estimated."""

ENOUGH_FOR_QUADRATIC = 12
"""With fewer, ``auto`` estimates linear fields."""

CLEAR_GAIN = 1.2
"""If the phase-encoding axis is not known, fields along it must lower the cost by this factor more
than along any other axis. On simulated heads the factor was 1.4 to 6 with fields of 0.1 mm or
more, and 1.0 to 1.3 without fields."""

CONTRADICTING_GAIN = 2.0
"""If fields along another axis than the given one lower the cost by this factor more, the given
axis is wrong: 2.2 to 5.4 in three simulated series with a wrong axis. With the right one it was
1.0 in ten real series, and 1.0 to 2.1 in fourteen simulated ones without fields, where none are
kept."""

ALONG = 0.5
"""Cosine of the angle from which on two image axes are the same."""

VOLUMES_FOR_AXIS, VALUES_FOR_AXIS = 100, 400_000
"""Volumes from which the axis is found, at most, and about how many of their values at points."""

ENOUGH_FOR_CUBIC, MOST_FOR_CUBIC = 20, 150
"""With fewer or more volumes, fields that follow the head stay quadratic: fewer volumes do not
determine cubic terms, and normal equations grow with the square of the number of terms."""


def fields_are_sought(gradients: Gradients, eddy_currents: str) -> bool:
    """Whether fields are estimated at all, where they are asked for."""
    together = gradients.shells if forms_shells(gradients) else [gradients.dwis]
    return eddy_currents != "none" and max(map(len, together), default=0) >= FEW_FOR_FIELDS


def solve_first_levels(
    solver: JointSolver, search: OutlierSearch, groups: Sequence[VolumeGroup], eddy_currents: str
) -> tuple[Motion, list[Solution]]:
    """Solve from rest up to the first fine level.

    Parameters
    ----------
    solver : JointSolver
    search : OutlierSearch
    groups : sequence of VolumeGroup
        The last may have fields.
    eddy_currents : str
        As of :func:`eddymotion.estimation.joint.solve_jointly`.

    Returns
    -------
    motion : Motion
    solutions : list of Solution
        Of the groups.
    """
    motion = Motion.identity(len(solver.dwi))
    for level in COARSE:
        motion = solver.solve(level, groups, motion)[0]  # solutions would take memory
    motion = search.run(groups, motion)
    motion = with_first_fields(solver, groups, motion, eddy_currents)
    motion, solutions = solver.solve(FINE[0], groups, motion)
    if motion.eddy_currents is None:
        return motion, solutions
    auto = eddy_currents == "auto"
    motion = weighed(solver, groups[-1], motion, solutions[-1], by_evidence=auto)
    if motion.eddy_currents is None:
        return solver.solve(FINE[0], groups, motion)
    _warn_of_other_axis(solver.dwi, motion.eddy_currents)
    if auto and solver.fields.prior.poses is not None:
        return with_cubic_fields(solver, groups, motion, solutions)
    return motion, solutions


def with_first_fields(
    solver: JointSolver, groups: Sequence[VolumeGroup], motion: Motion, eddy_currents: str
) -> Motion:
    """Start the fields at the last coarse level."""
    dwi, group = solver.dwi, groups[-1]
    n_dwis = len(group.volumes)
    if eddy_currents == "none" or not group.has_fields or n_dwis < FEW_FOR_FIELDS:
        return motion
    pe = found_phase_encoding(solver, group, motion, clearly=eddy_currents == "auto")
    if pe is None:
        return motion
    eddy = EddyCurrents.none(len(dwi), "linear", pe, dwi.center)
    motion = solver.solve(COARSE[-1], groups, replace(motion, eddy_currents=eddy))[0]
    assert motion.eddy_currents is not None
    order = eddy_currents
    if order == "auto":
        order = "quadratic" if n_dwis >= ENOUGH_FOR_QUADRATIC else "linear"
    return replace(motion, eddy_currents=motion.eddy_currents.of_order(order))


def found_phase_encoding(
    solver: JointSolver, group: VolumeGroup, motion: Motion, *, clearly: bool
) -> np.ndarray | None:
    """Find the image axis along which fields explain most; None if it must be clear and is not.

    An axis that was given stays, unless the data clearly show another.
    """
    affine, told = solver.dwi.affine, solver.dwi.acquisition.common_phase_encoding
    gains = gains_of_fields(solver, group, motion)
    second, best = np.sort(gains)[1:]
    axis = "ijk"[int(np.argmax(gains))]
    if told is not None:
        along = int(np.abs(image_axes(affine).T @ told).argmax())
        if not best > CONTRADICTING_GAIN * gains[along]:
            return told
    elif clearly and not best > CLEAR_GAIN * second:
        log.info("eddy currents: none along any axis; the phase encoding is not told")
        return None
    else:
        log.info("phase-encoding axis: %s, found from the data", axis)
    return phase_encoding_vector(affine, axis)


def _warn_of_other_axis(dwi: DWI, eddy: EddyCurrents) -> None:
    """Warn if fields that the data show lie along another axis than the one that was given."""
    told, axes = dwi.acquisition.common_phase_encoding, image_axes(dwi.affine).T
    if told is None or abs(told @ eddy.pe) > ALONG:
        return
    named, found = ("ijk"[int(np.abs(axes @ pe).argmax())] for pe in (told, eddy.pe))
    log.warning(
        "phase encoding: the sidecar or --pe-axis says %s, but fields of eddy currents along %s "
        "explain the images more than twice as well, and are used; if the image was turned after "
        "it was acquired, correct PhaseEncodingDirection",
        named, found,
    )  # fmt: skip


def gains_of_fields(solver: JointSolver, group: VolumeGroup, motion: Motion) -> np.ndarray:
    """Decrease of the cost by linear fields along each image axis, (3,).

    Zero along the axis of the slices, unless phase encoding was said to lie along it: slices are
    selected along it, not encoded. A head that turned while they were acquired, whether or not it
    is known when, looks most like fields along it.
    """
    dwi, every = solver.dwi, -(-len(group.volumes) // VOLUMES_FOR_AXIS)
    group = replace(group, volumes=group.volumes[::every])
    state = solver.random.bit_generator.state  # so that an axis found gives the same as one given
    problem = solver.problem(COARSE[-1], group, motion)
    solver.random.bit_generator.state = state
    n_values = len(problem.points) * len(group.volumes)
    problem = problem.at(slice(None, None, -(-n_values // VALUES_FOR_AXIS)))
    seen = problem.look(group_motion(motion, group))
    if seen is None:
        return np.zeros(3)
    told, gains = dwi.acquisition.common_phase_encoding, np.zeros(3)
    for axis, pe in enumerate(image_axes(dwi.affine).T):
        if axis == dwi.acquisition.slicing.axis and (told is None or abs(told @ pe) < ALONG):
            continue
        eddy = EddyCurrents.none(len(dwi), "linear", pe, dwi.center)
        with_field = replace(motion, eddy_currents=eddy)
        shared = solver.blocks(group, with_field, design=problem.gradients.qvecs)
        there = seen.under(group_motion(with_field, group))
        gains[axis] = replace(problem, blocks=shared).equations(there, seen.weights).gain()
    log.debug("gain of fields along i, j, k: %.3g, %.3g, %.3g", *gains)
    return gains


def with_cubic_fields(
    solver: JointSolver,
    groups: Sequence[VolumeGroup],
    motion: Motion,
    solutions: list[Solution],
) -> tuple[Motion, list[Solution]]:
    """Go on with cubic fields, if their cubic terms follow the head and volumes are enough.

    Fields of eddy currents are smooth, but a head that pitches changes the field near its
    cavities. Quadratic fields leave a tenth of that change, and bias the poses.
    """
    eddy, group, fields = motion.eddy_currents, groups[-1], solver.fields
    if eddy is None or not ENOUGH_FOR_CUBIC <= len(group.volumes) <= MOST_FOR_CUBIC:
        return motion, solutions
    of_quadratic = fields.prior, solver.chance.copy()
    fields.prior = NO_PRIOR
    finer = replace(motion, eddy_currents=eddy.of_order("cubic"))
    finer, of_finer = solver.solve(FINE[0], groups, finer)
    found = fields.response(finer, group, slice(N_TERMS["quadratic"], None))
    if found is None or not found.is_shown:
        fields.prior, solver.chance = of_quadratic
        return motion, solutions
    finer = weighed(solver, group, finer, of_finer[-1], by_evidence=True, follow=True)
    return finer, of_finer


def weighed(
    solver: JointSolver,
    group: VolumeGroup,
    motion: Motion,
    solution: Solution,
    *,
    by_evidence: bool,
    follow: bool = False,
) -> Motion:
    """Leave out fields that the data do not show, and keep a prior of the others for later levels.

    Parameters as of :meth:`~eddymotion.estimation.joint.known_fields.KnownFields.weigh`.
    """
    points = solver.enough_points(group) / FINE[0].n_points
    return solver.fields.weigh(
        motion, solution, group, by_evidence=by_evidence, follow=follow, points=points
    )
