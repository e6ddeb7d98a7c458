# SPDX-License-Identifier: Apache-2.0
"""The offset between b=0 and diffusion-weighted frames, from the images.

The contrasts differ, but the tissue of a voxel determines both. In a voxel let ``m`` be the mean
of a diffusion-weighted shell and ``s`` its standard deviation over directions. Then the b=0 signal
is a smooth function of both, which is learnt from the data. The function depends on the position:
coils are more sensitive in some places, tissues differ, and with diffusion weighting a cavity is
as dark as fluid. With ``h`` hat functions and ``p`` the monomials of the place up to third order,
at points ``x`` of the diffusion-weighted frame and with ``A`` the offset sought, ::

    b₀(A x) ≈ Σ β_jk h_j(m) h_k(s) + Σ γ_jl h_j(m) p_l(x) + Σ δ_kl h_k(s) p_l(x)

is solved for the function and, by Gauss-Newton, for ``A`` together, so that the function cannot
take up a misplacement (variable projection). What keeps it unbiased:

- *A function that depends on the position.* With linear terms only, the error of the offset was
  0.1 to 3 mm in heads simulated with other physics, and the halves of a brain gave different
  offsets.
- *Points off the grid*, and ``m`` and ``s`` formed from the volumes at these very points: a mean
  image on a grid would lock ``A`` to its interpolation pattern.
- *Contrasts within clusters of points* instead of a band-pass: from each of four neighbouring
  points their mean is subtracted, on both sides. What is smooth in space drops out, and no image
  of any basis function is ever formed.
- *Points inside the brain*, at the finest width: the signal at its edge cannot be predicted from
  the contrast of the brain, in the same way in all halves of it, and fields compress signal there.
- *Evenly spaced knots*: between knots at quantiles the function is too stiff just where fluid
  begins, which displaced it by several tenths of a millimetre.

Image noise alone would cause an error of some hundredths of a millimetre in the offset. Signal
that does not depend on ``m`` and ``s`` causes a larger one, which is similar over wide regions, so
that resampling of points does not show it. Four comparisons do, and make up the covariance:

- *Halves.* Left, right, front, back, top and bottom of the brain each have an offset of their own.
- *Another equation.* Gauss-Newton requires the residual to be orthogonal to the gradient of the
  b=0 image. It should also be orthogonal to the gradient of its prediction, which has only
  structure that both contrasts share. If one of them has structure of its own, the two solutions
  differ.
- *Points deep inside the brain.* Tissue around the brain may displace all halves in the same way,
  but affects points near its edge most. The offset is moved half of the way to that of the others.
- *Another start* with another end. With three directions at a b-value at which fluid is as dark as
  tissue, one series in twenty ended 2 mm away, where the cost was slightly lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.estimation.frames.contrast.clusters import COARSE, FINE, FINE_NEAR, Clusters
from eddymotion.estimation.frames.contrast.equations import (
    FIRST_STEPS,
    INSIDE_FACTOR,
    INSIDE_SHARE,
    LAST_STEPS,
    ContrastEquations,
    SolvedContrast,
)
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid


def offset_from_images(
    dwi: DWI,
    b0_motion: Motion,
    volumes: np.ndarray,
    motion: Motion,
    start: np.ndarray,
    *,
    others: Sequence[np.ndarray] = (),
    near: bool = False,
    compute: Compute | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the frame offset at which the diffusion-weighted signal explains the b=0 signal best.

    Parameters
    ----------
    dwi : DWI
    b0_motion : Motion
        Of the n b=0 volumes, in their frame, with what fields do to them.
    volumes : (k,) index array
        Diffusion-weighted volumes of like b-value.
    motion : Motion
        Theirs, in their frame.
    start : (4, 4) array
        b=0 frame → frame of the diffusion-weighted volumes.
    others : sequence of (4, 4) array
        Further starts, for the finest width alone.
    near : bool
        Whether the error of the start is a fraction of a voxel, so that coarse widths add nothing
        and images little: fewer points and volumes are enough.
    compute : Compute, optional

    Returns
    -------
    offset : (4, 4) array
        b=0 frame → frame of the diffusion-weighted volumes.
    covariance : (6, 6) array
        Of the error ``δ`` in ``A = Â exp(δ)``, ``A`` the inverse of the offset, translation (mm)
        and rotation (rad) about the centre of the brain.

    None where too little of the head lies inside the volumes.
    """
    compute = compute or Compute()
    random, n_threads = np.random.default_rng(compute.seed), compute.n_threads
    series = (volumes, motion, b0_motion)
    coarse = [Clusters.draw(dwi, width, random, n_threads) for width in COARSE]
    width = FINE_NEAR if near else FINE
    finest = Clusters.draw(dwi, width, random, n_threads)  # the same whether `near` or not
    poses = [np.linalg.inv(start)]
    if not near:
        reached = _from_coarse(coarse, series, poses[0])
        if reached is None:
            return None
        poses.append(reached)  # coarse widths reach far, but err in some heads
    search = _FinestSearch.of(ContrastEquations.at(finest, width, *series), width.n_normals)
    begun = search.begun([*poses, *map(np.linalg.inv, others)])
    if not begun or (solved := search.finished(begun[0])) is None:
        return None
    covariance = solved.with_own_normals().covariance()
    elsewhere = [one for one in begun if finest.are_apart(one.to_b0, begun[0].to_b0)]
    rival = search.finished(elsewhere[0]) if elsewhere else None
    if rival is not None:
        covariance = covariance + solved.doubt(rival)
    deep = solved.offset_of_deep_points()
    to_b0 = solved.to_b0 @ exp_rigid(INSIDE_SHARE * deep, dwi.brain_center)
    return np.linalg.inv(to_b0), covariance + np.diag(np.square(INSIDE_FACTOR * deep))


def _from_coarse(
    clusters: Sequence[Clusters],
    series: tuple[np.ndarray, Motion, Motion],
    to_b0: np.ndarray,
) -> np.ndarray | None:
    """Solve at one width after the other, from a pose; None with too few points."""
    for width, drawn in zip(COARSE, clusters, strict=True):
        equations = ContrastEquations.at(drawn, width, *series)
        solved = equations.solve(to_b0, n_normals=width.n_normals)
        if solved is None:
            return None
        to_b0 = solved.to_b0
    return to_b0


@dataclass(frozen=True, eq=False)
class _FinestSearch:
    """Solves at the finest width, from several starts.

    Parameters
    ----------
    fine : ContrastEquations
    few : ContrastEquations
        Those of a part of the clusters, for the way there.
    n_normals : int
        Normal matrices on that way.
    """

    fine: ContrastEquations
    few: ContrastEquations
    n_normals: int

    @classmethod
    def of(cls, fine: ContrastEquations, n_normals: int) -> _FinestSearch:
        return cls(fine, fine.thinned(), n_normals)

    def begun(self, poses: Sequence[np.ndarray]) -> list[SolvedContrast]:
        """Take the first steps from each pose; what fits best comes first."""
        starts = [self.few.solve(pose, n_normals=1, n_steps=FIRST_STEPS) for pose in poses]
        return sorted((one for one in starts if one is not None), key=attrgetter("cost"))

    def finished(self, begun: SolvedContrast) -> SolvedContrast | None:
        """Continue from the first steps to the end; None with too few points."""
        solved = self.few.solve(begun.to_b0, begun.function, n_normals=self.n_normals)
        if solved is None:
            return None
        return self.fine.solve(solved.to_b0, solved.function, n_normals=1, n_steps=LAST_STEPS)
