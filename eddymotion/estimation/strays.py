# SPDX-License-Identifier: Apache-2.0
"""Volumes that the leave-one-out loop has led astray, and the way back.

Against the blurred predictions of the first pass a registration may end far from the truth, at
high b-values above all, and what is predicted for the direction in which the volume then lies does
not lead it back. Where a volume lies far from its neighbours in time, their pose is tried: with
the direction that it has there, its prediction is another one, and the better fit tells.
"""

from __future__ import annotations

import logging

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.estimation.quality import assess
from eddymotion.geometry import Motion, rms_displacement
from eddymotion.models import get_model

log = logging.getLogger(__name__)

N_NEIGHBOURS = 6

FAR_MM = 15.0
"""Root-mean-square way over a head that a volume seldom lies apart from its neighbours."""


def far_from_neighbours(motion: Motion, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the volumes (K,) that lie far from their neighbours in time, and theirs (K, 4, 4)."""
    poses = neighbour_poses(motion, center)
    far = np.flatnonzero(rms_displacement(motion.matrices, poses, center) > FAR_MM)
    return far, poses[far]


def neighbour_poses(motion: Motion, center: np.ndarray) -> np.ndarray:
    """Return for each volume the most central of the poses of its neighbours in time, (N, 4, 4).

    One of theirs: no stray among them pulls at it.
    """
    volumes = np.arange(len(motion))
    poses = motion.matrices.copy()
    for volume in volumes if len(motion) > 2 else ():
        by_time = np.argsort(np.abs(volumes - volume), kind="stable")
        near = motion.matrices[by_time[1 : N_NEIGHBOURS + 1]]
        apart = rms_displacement(near[:, None], near, center)
        poses[volume] = near[apart.sum(axis=1).argmin()]
    return poses


def call_back(dwi: DWI, motion: Motion, *, seed: int = 0, n_threads: int = 1) -> Motion:
    """Give volumes that went astray the pose of their neighbours in time.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
    seed : int
    n_threads : int

    Returns
    -------
    Motion
        `motion` itself where none fits its prediction better at the pose of its neighbours.
    """
    far, poses = far_from_neighbours(motion, dwi.brain_center)
    if not len(far):
        return motion
    tried = motion.updated(far, poses)
    model = get_model("auto", dwi.gradients)
    here, there = (
        assess(dwi, one, model, seed=seed, n_threads=n_threads).correlation[far]
        for one in (motion, tried)
    )
    strays = far[there > here]
    if len(strays):
        log.debug("called back to the pose of their neighbours: volumes %s", strays.tolist())
    return motion.updated(strays, tried.matrices[strays])
