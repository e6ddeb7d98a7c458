# SPDX-License-Identifier: Apache-2.0
"""Ties between the frames of several runs: a small network, solved by least squares.

Each run has two frames, that of its b=0 volumes and that of its diffusion-weighted ones. They are
the nodes; information relating two of them is an edge with a covariance:

*b=0 and diffusion-weighted volumes of a run*, by time and by a contrast of images
(:mod:`eddymotion.estimation.frames`). This is the weakest edge.

*b=0 volumes of two runs*, by their mean images (:mod:`eddymotion.estimation.runs`).

*Diffusion-weighted volumes of runs that share a shell*, by each other: all of them are volumes of
one model, whatever their directions, and the poses of whole runs are the unknowns of the same
Gauss-Newton steps that find the poses of volumes (:mod:`eddymotion.estimation.equations.coupled`).
They have one contrast, so that this edge is ten times as strong as the first; off-resonance has to
be known where runs are distorted differently.

With ``b_k`` and ``d_k`` the errors of the nodes, twists of the head in the frame of the first run,
and ``b_1 = 0``::

    d_k − b_k = 0 ± F_k,    b_k = 0 ± B_k,    d_k − d_1 = t_k ± T

Time is new in each run, but the contrast of one head misleads all of its runs alike: half of the
variance of ``F_k`` counts as shared. Where edges contradict each other beyond chance, ``F`` is
widened until they do not.

Runs of few directions predict their volumes poorly. Where all volumes of a run are shown, each
also moves by a twist of its own, to where all runs together predict it; their mean is zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.estimation.runs.ties.frame_tie import FrameTie
from eddymotion.estimation.runs.ties.network import Network, seen_from_first
from eddymotion.estimation.runs.ties.shell import (
    Brain,
    SharedShell,
    TiedShell,
    shared_shell,
    tie_shell,
)
from eddymotion.estimation.runs.ties.shown import ShownDiffusion
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.mapping.rigid import exp_rigid

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TiedFrames:
    """Result of a network for K runs.

    Parameters
    ----------
    poses : (K, 4, 4) array
        First run → frame of each.
    errors : (K, 6) array
        Their standard errors.
    ties : tuple of K FrameTie or None
        Additional displacement of the diffusion-weighted volumes.
    """

    poses: np.ndarray
    errors: np.ndarray
    ties: tuple[FrameTie | None, ...]


def tied_frames(
    shown: Sequence[ShownDiffusion | None],
    poses: np.ndarray,
    errors: np.ndarray,
    shifts: np.ndarray,
    field: OffResonance | None,
    brain: Brain,
    compute: Compute,
) -> TiedFrames | None:
    """Tie the frames of runs that share a shell; None where there are none.

    Parameters
    ----------
    shown : sequence of K ShownDiffusion or None
    poses : (K, 4, 4) array
        First run → frame of each, by images of b=0.
    errors : (K, 6) array
        Their standard errors, but for what a field leaves open; mm and rad about the centre.
    shifts : (K, 3) array
        As in :class:`SharedShell`.
    field : OffResonance, optional
    brain : Brain
    compute : Compute
    """
    shell = shared_shell(shown, poses, shifts)
    if shell is None:
        return None
    tied = tie_shell(shell, field, brain, compute)
    if not np.isfinite(tied.covariance).all():
        return None
    within = [
        None if one is None else seen_from_first(one.covariance, pose, one.center, brain.center)
        for one, pose in zip(shown, poses, strict=True)
    ]
    of_b0 = np.square(errors)[:, :, None] * np.eye(6)
    found, after, widened = Network(of_b0, within, shell.runs, tied.steps, tied.covariance).solve()
    of_runs, of_diffusion = np.split(exp_rigid(found, brain.center), 2)
    ties: list[FrameTie | None] = [None] * len(shown)
    for run, (one, own) in enumerate(zip(shown, within, strict=True)):
        if one is not None and own is not None:
            offset = np.linalg.inv(of_runs[run]) @ of_diffusion[run]
            if (twists := _twists_of_run(shell, tied, run)) is not None:
                offset = offset @ exp_rigid(twists, brain.center)
            left = _of_difference(after, run, len(shown))
            ties[run] = FrameTie(one.all_volumes, offset, own, left, brain.center)
            log.info("run %d, %s", run + 1, ties[run])
    log.info(
        "runs %s: their volumes with b=%.0f tie them within %.3f mm; the difference from "
        "each run alone is %.1f times the expected one",
        ", ".join(map(str, shell.runs + 1)), shell.gradients.bvals.mean(),
        np.sqrt(np.diag(tied.covariance).reshape(-1, 6)[:, :3].max()), np.sqrt(widened),
    )  # fmt: skip
    of_poses = np.diag(after)[: found.size // 2].reshape(-1, 6)
    return TiedFrames(poses @ of_runs, np.sqrt(np.maximum(of_poses, 0.0)), tuple(ties))


def _twists_of_run(shell: SharedShell, tied: TiedShell, run: int) -> np.ndarray | None:
    """Return the twists of the volumes of a run, (M, 6); None where none have their own."""
    number = int(np.searchsorted(shell.runs, run))
    if not (run in shell.runs and shell.shown[number].apart):
        return None
    return tied.twists[shell.of_volumes == number]


def _of_difference(covariance: np.ndarray, run: int, n_runs: int) -> np.ndarray:
    """Covariance (6, 6) of the two frames of a run against each other."""
    nodes = covariance.reshape(2 * n_runs, 6, 2 * n_runs, 6)
    one, other = run, n_runs + run
    across = nodes[one, :, other]
    return nodes[one, :, one] + nodes[other, :, other] - across - across.T
