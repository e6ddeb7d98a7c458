# SPDX-License-Identifier: Apache-2.0
"""The frame from time: heads that rest, drift, jump, go and come back."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import linalg

from eddymotion.estimation.frames.course import OffsetEstimate, merged
from eddymotion.estimation.frames.motion_prior import DRIFT_MEMORY, KnownSteps, MotionPrior
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.simulation import shelled_scheme
from eddymotion.simulation.motion import simulate_motion

CENTER = np.array([3.0, -2.0, 10.0])
IN_MM = np.array([1.0] * 3 + [50.0] * 3)
OFFSET = exp_rigid(np.array([0.5, -1.0, 0.3, 0.01, 0.02, -0.01]), CENTER)


def joined(poses, gradients, seed=0):
    """Poses with errors of 0.02 mm, each group in its frame, joined by time: error, its error."""
    error, covariance = joined_with(poses, gradients, seed)
    return error, np.sqrt(np.diag(covariance))


def joined_with(poses, gradients, seed):
    """The same, with the covariance of the error; mm."""
    random = np.random.default_rng(seed)
    errors = random.normal(size=(len(poses), 6)) * ([0.02] * 3 + [4e-4] * 3)
    poses = poses @ exp_rigid(errors, CENTER)
    b0s, dwis = gradients.b0s, gradients.dwis
    course = merged(b0s, poses[b0s], dwis, poses[dwis] @ np.linalg.inv(OFFSET), CENTER)
    found = course.offset(course.prior())
    error = course.apart(found.offset, OFFSET) * course.in_mm
    return error, found.covariance * np.outer(course.in_mm, course.in_mm)


@pytest.mark.parametrize(
    ("pattern", "n_b0s", "bound"),
    [("none", 4, 0.03), ("drift", 4, 0.05), ("moderate", 4, 0.06), ("high", 4, 0.09)],
)
@pytest.mark.slow
def test_several_b0s_tell_the_frame_of_a_head_in_motion(pattern, n_b0s, bound):
    gradients = shelled_scheme({1000: 24}, n_b0s)
    errors, sizes = zip(
        *(
            joined(simulate_motion(pattern, len(gradients), CENTER, seed=s).matrices, gradients, s)
            for s in range(12)
        ),
        strict=True,
    )
    assert np.sqrt(np.square(errors).mean()) < bound
    covered = (np.abs(errors) < 1.96 * np.array(sizes)).mean()
    assert covered > 0.85
    assert np.median(sizes) < bound  # and not by being wide


def test_a_drift_is_expected_to_go_on():
    """The first volume of a drifting head and one more tell the frame: it has not rested there."""
    gradients = shelled_scheme({1000: 12}, 2)
    errors, sizes = zip(
        *(
            joined(simulate_motion("drift", 14, CENTER, seed=s).matrices, gradients, s)
            for s in range(12)
        ),
        strict=True,
    )
    assert np.sqrt(np.square(errors).mean()) < 0.07
    assert (np.abs(errors) < 1.96 * np.array(sizes)).mean() > 0.85
    assert np.median(sizes) < 0.1


def drifting_one_way(seed, way, n_volumes=14):
    """A drift along a way (6,) in mm, ten times as far as along all others."""
    drift = simulate_motion("drift", n_volumes, CENTER, seed=seed).matrices
    steps = log_rigid(np.linalg.inv(drift[0]) @ drift, CENTER) * IN_MM
    along = np.outer(way, way) / (way @ way)
    return exp_rigid(steps @ (along + (np.eye(6) - along) / 10) / IN_MM, CENTER)


def test_a_drift_is_known_across_its_way_better_than_along():
    """One way only: what is claimed along it is not claimed across, and the other way round."""
    gradients, way = shelled_scheme({1000: 12}, 2), np.array([1.0, 0.0, 2.0, -1.0, 0.0, 1.0])
    way /= np.linalg.norm(way)
    along, across = [], []
    for seed in range(12):
        error, covariance = joined_with(drifting_one_way(seed, way), gradients, seed)
        along.append([error @ way, np.sqrt(way @ covariance @ way)])
        others = linalg.null_space(way[None])
        spread = np.sqrt(np.diag(others.T @ covariance @ others))
        across += list(zip(error @ others, spread, strict=True))
    for told in (along, across):
        errors, sizes = np.array(told).T
        assert (np.abs(errors) < 1.96 * sizes).mean() > 0.85
        assert np.sqrt(np.square(errors / sizes).mean()) > 0.4
    assert np.median(np.array(across)[:, 1]) < 0.8 * np.median(np.array(along)[:, 1])


def test_what_is_learnt_turns_with_the_axes():
    """Of translations as of rotations: no axis is known beforehand."""
    random = np.random.default_rng(2)
    turn = np.linalg.qr(random.normal(size=(6, 6)))[0]
    steps = np.cumsum(random.normal(scale=0.02, size=(20, 6)) * [9, 1, 1, 3, 1, 1], axis=0)
    steps[7] = np.nan
    one, other = (MotionPrior.learn(s, np.ones(20)) for s in (steps, steps @ turn))
    np.testing.assert_allclose(turn.T @ one.drift @ turn, other.drift, rtol=1e-6, atol=1e-9)
    assert one.drifts.max() > 4 * one.drifts.min()
    foreseen, turned = one.foresee(steps, np.ones(20)), other.foresee(steps @ turn, np.ones(20))
    np.testing.assert_allclose(foreseen.steps @ turn, turned.steps, atol=1e-6)
    np.testing.assert_allclose(foreseen.variances, turned.variances, rtol=1e-5)


def test_what_steps_tell_is_that_of_all_their_covariances():
    """Against the plain matrices of all steps, of which a few are not known."""
    random = np.random.default_rng(3)
    n, jitter, drifts = 9, 0.4, np.array([0.0, 0.1, 0.5, 1.0, 2.0, 9.0])
    steps, spread, gaps = random.normal(size=(n, 6)), random.uniform(0.1, 2, n), np.ones(n)
    gaps[2], steps[[3, 7, 8]] = 2.5, np.nan
    found = KnownSteps.of(steps, spread, gaps, drifts, jitter)
    middles = np.cumsum(gaps) - gaps / 2
    roots = gaps[:, None] * np.linalg.cholesky(
        np.exp(-np.abs(np.subtract.outer(middles, middles)) / DRIFT_MEMORY)
    )
    moments = np.eye(n, n + 1, k=1) - np.eye(n, n + 1)
    known = np.isfinite(steps[:, 0])
    lasting = drifts[:, None, None] * (roots @ roots.T) + jitter * moments @ moments.T
    inverse = np.linalg.inv((np.diag(spread) + lasting)[:, known][:, :, known])
    pulled = np.einsum("akl,la->ka", inverse, steps[known])
    np.testing.assert_allclose(found.pulled[known], pulled)
    across = lasting[:, :, known]
    np.testing.assert_allclose(found.lasting, np.einsum("ank,ka->na", across, pulled))
    left = lasting - across @ inverse @ across.transpose(0, 2, 1)
    np.testing.assert_allclose(found.uncertain, np.einsum("ann->na", left))
    of_each = np.einsum("akk->ka", inverse)
    for one, other in zip(found.others(), (pulled / of_each, 1 / of_each), strict=True):
        np.testing.assert_allclose(one[known], other)
    of_moments = jitter * moments[known].T
    squares = (of_moments @ pulled) ** 2 + jitter
    squares -= np.einsum("mk,akl,ml->ma", of_moments, inverse, of_moments)
    beside = (moments[known] != 0).any(axis=0)
    np.testing.assert_allclose(found.jitter_square(), squares[beside].mean())
    parts = roots[known][:, :7]  # what comes later is in no step that is known
    taken = drifts * (parts.T @ pulled)
    new = [7 * v - v**2 * np.trace(parts.T @ one @ parts) for v, one in
           zip(drifts, inverse, strict=True)]  # fmt: skip
    product, n_new = found.drift(drifts)
    assert n_new == 7
    np.testing.assert_allclose(product, (taken.T @ taken + np.diag(new)) / 7, atol=1e-12)


def test_a_head_that_walks_at_random_is_not_taken_to_drift():
    """What is foreseen of its steps is next to nothing."""
    random = np.random.default_rng(5)
    steps = random.normal(scale=0.1, size=(120, 6))
    prior = MotionPrior.learn(steps, np.ones(120))
    foreseen = prior.foresee(steps, np.ones(120))
    assert np.sqrt(np.square(foreseen.steps).mean()) < 0.035
    goes_on = MotionPrior.learn(steps + 0.3, np.ones(120))
    foreseen = goes_on.foresee(steps + 0.3, np.ones(120))
    np.testing.assert_allclose(foreseen.steps.mean(axis=0), 0.3, atol=0.06)


@pytest.mark.parametrize("pattern", ["drift", "scattered"])
def test_one_b0_at_the_start_is_not_believed_beyond_what_it_can_tell(pattern):
    """A drift adds to its only step, which may have been a jump.

    A head that is everywhere is never at rest, where its mode is: ± 3 mm was said of errors of 15.
    """
    gradients = shelled_scheme({1000: 12}, 1)
    errors, sizes = zip(
        *(
            joined(simulate_motion(pattern, 13, CENTER, seed=s).matrices, gradients, s)
            for s in range(12)
        ),
        strict=True,
    )
    assert (np.abs(errors) < 1.96 * np.array(sizes)).mean() > 0.85


def test_what_is_no_motion_is_left_to_the_images():
    """Fields displace by 0.4 mm along y: images see it, a head at rest tells all the rest."""
    gradients = shelled_scheme({1000: 24}, 4)
    poses = simulate_motion("none", len(gradients), CENTER).matrices
    tremble = 0.01 * np.random.default_rng(1).normal(size=(len(poses), 6)) / IN_MM
    poses = poses @ exp_rigid(tremble, CENTER)
    along = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    seen = exp_rigid(0.4 * along + 0.05 / IN_MM, CENTER)
    by_images = OffsetEstimate(seen, np.diag(np.square(0.05 / IN_MM)))
    b0s, dwis = gradients.b0s, gradients.dwis
    plain = merged(b0s, poses[b0s], dwis, poses[dwis], CENTER)
    course = replace(plain, displacement=0.3**2 * np.outer(along, along))
    prior = course.prior()
    found = course.offset(prior, by_images)
    twist = course.apart(np.eye(4), found.offset) * IN_MM
    assert 0.38 < twist[1] < 0.46
    assert np.abs(np.delete(twist, 1)).max() < 0.03
    size = np.sqrt(np.diag(found.covariance)) * IN_MM
    assert 0.04 < size[1] < 0.06
    assert np.delete(size, 1).max() < 0.02
    alone, before = (np.diag(one.offset(prior).covariance) for one in (course, plain))
    assert np.allclose(alone - before, 0.3**2 * along)


def test_two_steps_of_one_excursion_are_not_two_witnesses():
    """The head is away for one b=0 between volumes at rest, as it is for others of its volumes."""
    gradients = shelled_scheme({1000: 24}, 2)
    second = gradients.b0s[1]
    poses = np.tile(np.eye(4), (26, 1, 1))
    for volume in (second, 4, 18, 21):
        poses[volume] = exp_rigid(np.array([2.0, -3.0, 1.0, 0.03, 0.02, -0.05]), CENTER)
    error, _ = joined(poses, gradients)
    assert np.abs(error).max() < 0.1


@pytest.mark.parametrize(
    ("jitter", "at_least", "at_most"), [(0.08, 0.055, 0.09), (0.0, 0.0, 0.045)]
)
def test_jitter_is_told_from_drift(jitter, at_least, at_most):
    """A head that trembles turns back, one that drifts does not."""
    random = np.random.default_rng(3)
    drift = np.cumsum(random.normal(scale=0.05, size=(300, 6)), axis=0)
    seen = drift + random.normal(scale=jitter, size=drift.shape)
    prior = MotionPrior.learn(np.diff(seen, axis=0), np.ones(299))
    assert at_least <= np.sqrt(prior.jitter) <= at_most
    of_step = prior.variances[prior.shares.argmax()] + 2 * prior.jitter
    assert of_step == pytest.approx(0.05**2 + 2 * jitter**2, rel=0.5)


@pytest.mark.parametrize(
    ("size", "with_jumps", "bounds"), [(0.16, 0, (0.1, 0.25)), (0.06, 4, (0.02, 0.1))]
)
def test_trembling_is_learnt_from_few_volumes(size, with_jumps, bounds):
    """Its reversals are few: the start at which the others predict each step best counts.

    Taken for steps that last, a tremble of 0.16 mm seemed to be of 0.05 in a quarter of the heads;
    jumps are not taken for a tremble.
    """
    found = []
    b0s, dwis = np.arange(0, 12, 4), np.setdiff1d(np.arange(12), np.arange(0, 12, 4))
    for seed in range(16):
        random = np.random.default_rng(seed)
        course = random.normal(scale=size, size=(12, 6))
        for volume in random.choice(np.arange(1, 12), with_jumps, replace=False):
            course[volume:] += random.normal(scale=1.1, size=6)
        poses = exp_rigid(course / IN_MM, CENTER)
        found.append(np.sqrt(merged(b0s, poses[b0s], dwis, poses[dwis], CENTER).prior().jitter))
    least, most = np.quantile(found, [0.25, 0.9])
    assert bounds[0] < least < most < bounds[1]
