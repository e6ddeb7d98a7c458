# SPDX-License-Identifier: Apache-2.0
"""The course of the head within volumes, as it is written."""

from __future__ import annotations

import numpy as np

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.series import Series
from eddymotion.derivatives.names import Outputs
from eddymotion.io.trajectory import trajectory_descriptions, write_trajectory
from eddymotion.io.writing import write_json
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.slice_poses import SlicePoses


def poses_of_excitations(motion: Motion, acquisition: Acquisition) -> SlicePoses | None:
    """Return where the head was at each excitation; None where it is at rest within volumes.

    Slices are taken one by one where it is not known which were excited together; times that are
    not known are NaN.
    """
    course, slicing, starts = motion.trajectory, acquisition.slicing, acquisition.start_times
    if course is None:
        return None
    groups = slicing.groups or tuple(np.arange(course.n_slices)[:, None])
    times = np.full(course.n_slices, np.nan) if slicing.times is None else slicing.times
    starts = np.full(len(motion), np.nan) if starts is None else starts
    first = [group[0] for group in groups]
    return SlicePoses.of_course(motion, groups, starts[:, None] + times[first])


def write_course(outputs: Outputs, motion: Motion, original: Series) -> None:
    """Write the table of the motion within volumes, or remove that of an earlier run.

    Parameters
    ----------
    outputs : Outputs
    motion : Motion
    original : Series
        Its acquisition says when slices were excited, its grid where the centre is.
    """
    poses = poses_of_excitations(motion, original.acquisition)
    if poses is not None:
        write_trajectory(outputs["trajectory"], poses, original.center)
        write_json(outputs["trajectory_sidecar"], trajectory_descriptions(poses))
        return
    outputs["trajectory"].unlink(missing_ok=True)
    outputs["trajectory_sidecar"].unlink(missing_ok=True)
