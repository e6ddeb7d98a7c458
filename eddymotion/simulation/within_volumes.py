# SPDX-License-Identifier: Apache-2.0
"""A series of a head that moves within volumes, in memory: for tests and trials."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from eddymotion.data.acquisition import Acquisition, Slicing
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.images.grid import Grid
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.acquisition import acquire
from eddymotion.simulation.base import Head
from eddymotion.simulation.courses import simulate_course
from eddymotion.simulation.motion import simulate_motion
from eddymotion.simulation.patterns import COURSES, Course, Pattern
from eddymotion.simulation.phantom import procedural_head
from eddymotion.simulation.schemes import shelled_scheme
from eddymotion.simulation.timing import SliceTiming, slice_metadata

SMALL_SHELLS, SMALL_B0S = {1000.0: 24}, 3
"""Of the scheme that is scanned when none is given."""


def simulate_within_volumes(
    motion: Course | Pattern = "nods",
    *,
    gradients: Gradients | None = None,
    timing: SliceTiming | None = None,
    head: Head | None = None,
    voxel_size: float = 4.0,
    snr: float | None = 20.0,
    slice_profile: float | None = None,
    amplitude: float = 1.0,
    seed: int = 0,
    n_threads: int = 1,
) -> tuple[DWI, SlicePoses]:
    """Scan a head whose every slice has a pose of its own.

    Parameters
    ----------
    motion : str
        A name of :data:`~eddymotion.simulation.patterns.COURSES`; or of ``PATTERNS``, which move
        between volumes only.
    gradients : Gradients, optional
        24 directions at b=1000 and three b=0 when not given.
    timing : SliceTiming, optional
        Interleaved, three slices together, 4 s a volume when not given.
    head : Head, optional
        The built-in one when not given.
    voxel_size : float
        mm, isotropic.
    snr, slice_profile : float, optional
        As in :func:`~eddymotion.simulation.acquire`.
    amplitude : float
        Factor on the motion of a course.
    seed : int
    n_threads : int

    Returns
    -------
    dwi : DWI
        Its acquisition has the slice timing.
    truth : SlicePoses
        ``truth.poses`` is (N, Z, 4, 4), reference → slice.
    """
    gradients = gradients or shelled_scheme(SMALL_SHELLS, SMALL_B0S)
    timing = timing or SliceTiming()
    head = head or procedural_head(min(voxel_size, 3.0))
    grid = Grid.covering(head, voxel_size)
    n, n_slices = len(gradients), grid.shape[2]
    if motion in COURSES:
        truth = simulate_course(motion, n, n_slices, timing, grid.center,
                                amplitude=amplitude, seed=seed)  # fmt: skip
    else:
        volumes = simulate_motion(cast(Pattern, motion), n, grid.center, seed=seed)
        times = timing.excitations(n, n_slices)
        truth = SlicePoses.of_volumes(volumes, timing.groups(n_slices), times)
    moved = truth if motion in COURSES else truth.mean(grid.center)
    dwi = acquire(head, gradients, moved, grid, snr=snr, slice_profile=slice_profile, seed=seed,
                  n_threads=n_threads)  # fmt: skip
    acquisition = Acquisition.every(
        gradients, grid.affine, repetition_time=timing.repetition_time,
        slicing=Slicing.of(slice_metadata(truth), grid.shape),
    )  # fmt: skip
    return replace(dwi, acquisition=acquisition), truth
