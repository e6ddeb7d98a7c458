# SPDX-License-Identifier: Apache-2.0
"""Series → motion, against the truth."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.estimation import Joint, LeaveOneOut, assess, estimate_motion
from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.unknowns import Poses
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.fields.unknowns import UnknownFields
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.frames.course import merged
from eddymotion.estimation.lovo import register_unless_worse
from eddymotion.estimation.outlier_volumes import far_from_neighbours, recover_outlier_volumes
from eddymotion.images.image import Image, Spline
from eddymotion.images.pyramid import jittered_points, low_pass
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rigid_parameters, rms_displacement
from eddymotion.models import AverageModel, GaussianProcessModel, LegendreCovariance, TensorModel
from eddymotion.pipeline.sidecar import warnings_of
from eddymotion.registration import Registration
from eddymotion.simulation import acquire, shelled_scheme, simulate_motion
from eddymotion.testing.pairs import pose

ORIGIN = np.zeros(3)


def test_moderate_motion_is_recovered(moving, truth, estimated, motion_rmse):
    np.testing.assert_allclose(estimated[0], np.eye(4), atol=1e-12)
    millimetres, degrees = motion_rmse(estimated, truth, moving.center)
    assert millimetres < 0.4
    assert degrees < 0.35


def test_estimates_are_neither_shrunk_nor_stretched(moving, truth, estimated):
    dwis = moving.gradients.dwis
    found, true = (rigid_parameters(m.matrices[dwis], moving.center) for m in (estimated, truth))
    for part in (slice(0, 3), slice(3, 6)):
        f, t = (values[:, part] - values[:, part].mean(axis=0) for values in (found, true))
        slope = (f * t).sum() / (t**2).sum()  # a constant offset of the frame is no stretching
        assert 0.95 < slope < 1.05


def test_no_motion_stays_none(still, motion_rmse):
    found = estimate_motion(still, n_threads=2)
    millimetres, degrees = motion_rmse(found, Motion.identity(len(still)), still.center)
    assert millimetres < 0.15
    assert degrees < 0.1


@pytest.mark.parametrize("n_b0", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_moved_b0_volume_is_recovered_however_few_there_are(head, grid, n_b0):
    gradients = shelled_scheme({1000: 8}, n_b0)
    last = gradients.b0s[-1]
    jumped = np.arange(last, len(gradients))
    truth = Motion.identity(len(gradients)).updated(jumped, pose([2, 0, 0], [0, 0, 2]))
    found = estimate_motion(acquire(head, gradients, truth, grid, snr=30), n_threads=2)
    assert rms_displacement(found[last], truth[last], ORIGIN) < 0.4


@pytest.fixture(scope="module")
def short(moving):
    return moving.select(np.arange(9))


def test_threads_do_not_change_a_bit_of_the_result_and_nothing_the_series(short):
    before = short.signal.copy(), short.gradients.bvecs.copy()
    one, two = (estimate_motion(short, estimator=Joint(max_steps=2), n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.matrices, two.matrices)
    np.testing.assert_array_equal(short.signal, before[0])
    np.testing.assert_array_equal(short.gradients.bvecs, before[1])


@pytest.mark.slow
def test_intensity_scale_does_not_matter(short, motion_rmse):
    plain = estimate_motion(short, estimator=Joint(max_steps=2), n_threads=2)
    scaled = replace(short, signal=short.signal * np.float32(7.3))
    millimetres, degrees = motion_rmse(
        estimate_motion(scaled, estimator=Joint(max_steps=2), n_threads=2), plain, short.center
    )
    assert millimetres < 0.01
    assert degrees < 0.01


@pytest.mark.slow
def test_gain_of_single_volumes_does_not_matter(still, motion_rmse):
    gains = np.random.default_rng(0).uniform(0.9, 1.1, len(still)).astype(np.float32)
    found = estimate_motion(replace(still, signal=still.signal * gains), n_threads=2)
    millimetres, degrees = motion_rmse(found, Motion.identity(len(still)), still.center)
    assert millimetres < 0.15
    assert degrees < 0.1


def test_series_without_b0_takes_volume_0_as_reference(moving, truth, motion_rmse, caplog):
    dwis = moving.gradients.dwis
    with caplog.at_level(logging.WARNING):
        found = estimate_motion(moving.select(dwis), n_threads=2)
    assert "reference frame is that of volume 0" in caplog.text
    np.testing.assert_allclose(found[0], np.eye(4), atol=1e-12)
    true = Motion(truth.matrices[dwis]).relative_to(0)
    millimetres, degrees = motion_rmse(found, true, moving.center)
    assert millimetres < 0.4
    assert degrees < 0.35


def test_low_b_values_without_b0_lead_to_the_threshold(tiny, caplog):
    g = tiny.gradients
    low = Gradients(
        np.where(g.is_b0, 60, g.bvals), np.where(g.is_b0[:, None], [1.0, 0, 0], g.bvecs)
    )
    estimate_motion(tiny.with_gradients(low), estimator=LeaveOneOut("average", n_passes=1))
    assert "the lowest b-value is 60: if that is meant as b=0, write --b0-threshold" in caplog.text


def apart(dwi, found, truth):
    return rms_displacement(found.matrices, truth.matrices, dwi.brain_center).max()


def planted(dwi, truth):
    """The truth as the loop gives it: each group in a frame of its own."""
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    raw = truth.updated(b0s, truth.matrices[b0s] @ pose([3, 1, -2], [2, 4, -1]))
    return raw.updated(dwis, truth.matrices[dwis] @ pose([-2, 4, 1], [-3, 2, 5]))


def united_by_time(dwi, raw):
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    to_reference = np.linalg.inv(raw[dwi.reference])
    b0_matrices = raw.matrices[b0s] @ to_reference
    course = merged(b0s, b0_matrices, dwis, raw.matrices[dwis], dwi.brain_center)
    offset = course.offset(course.prior()).offset
    return raw.updated(b0s, b0_matrices).updated(dwis, raw.matrices[dwis] @ offset)


def with_jumps(n_volumes):
    jumps = Motion.identity(n_volumes)
    jumps = jumps.updated(np.arange(6, n_volumes), pose([3, -2, 1], [2, 1, -3]))
    return jumps.updated(np.arange(20, n_volumes), pose([-2, 2, 3], [-1, 3, 2]))


def test_time_finds_the_frame_offset_of_a_resting_head_exactly(still):
    truth = Motion.identity(len(still))
    assert apart(still, united_by_time(still, planted(still, truth)), truth) < 1e-6


def test_time_finds_the_frame_offset_in_spite_of_jumps(still):
    jumps = with_jumps(len(still))
    raw = planted(still, jumps)
    assert apart(still, united_by_time(still, raw), jumps) < 0.05
    assert apart(still, unite_frames(still, Estimate(raw), align_shells=False), jumps) > 1


@pytest.mark.slow
def test_images_find_the_frame_offset_where_time_tells_nothing(head, grid):
    """The head jumps right after the only b=0: time would put both frames together."""
    gradients = shelled_scheme({1000: 24}, 1)
    truth = Motion.identity(25).updated(np.arange(1, 25), pose([4, -3, 2], [3, 2, -4]))
    dwi = acquire(head, gradients, truth, grid, snr=20, coil_bias=0.13)
    raw = Motion.identity(25)
    assert apart(dwi, united_by_time(dwi, raw), truth) > 4
    assert apart(dwi, unite_frames(dwi, Estimate(raw), compute=Compute(2)), truth) < 0.5


def test_images_do_not_pull_where_time_is_certain(still):
    truth = Motion.identity(len(still))
    found = unite_frames(still, Estimate(planted(still, truth)), compute=Compute(2))
    assert apart(still, found, truth) < 0.1


def test_what_time_and_images_contradict_each_other_in_is_said(head, grid, caplog):
    """All b=0 volumes lie 2 mm away from their neighbours: no head does that by chance."""
    gradients = shelled_scheme({1000: 24}, 4)
    truth = Motion.identity(28).updated(gradients.dwis, pose([0, 2, 0], [0, 0, 0]))
    dwi = acquire(head, gradients, truth, grid, snr=20)
    found = unite_frames(dwi, Estimate(Motion.identity(28)), compute=Compute(2))
    assert "time and images give different frames" in caplog.text
    assert found.frame_error > 1
    assert found.frame_evidence.contradicted
    (text,) = [one["Text"] for one in warnings_of(dwi, found) if one["Subject"] == "frames"]
    assert "volumes with b=1000" in text
    assert apart(dwi, found, truth) < 1.96 * found.frame_error


def test_joint_step_equals_finite_differences_of_the_likelihood(short):
    """Without robust weights, the gradient of the normal equations is that of the cost."""
    rng = np.random.default_rng(0)
    dwis = short.gradients.dwis
    points = jittered_points(short.mask, short.affine, 2000, rng)
    problem = CoupledProblem(
        [Spline.of(low_pass(short.volume(v), 8.0)) for v in dwis],
        short.gradients.select(dwis),
        AverageModel(),
        points,
        short.brain_center,
    )
    fields = UnknownFields(problem.gradients, N_TERMS["quadratic"], short.center)
    problem = replace(problem, blocks=[Poses(short.brain_center), fields])
    P = problem.model.precision(problem.gradients)

    def moved(motion, step):
        matrices = motion.matrices @ exp_rigid(-step[:, :6], short.brain_center)
        eddy = replace(
            motion.eddy_currents, coefficients=motion.eddy_currents.coefficients - step[:, 6:]
        )
        return Motion(matrices, eddy_currents=eddy)

    def cost(motion):
        samples = problem.sample(motion)
        for volume, values in enumerate(samples.values):  # brightness is held
            values *= start.displaced(volume, problem.points)[1]
            values /= motion.displaced(volume, problem.points)[1]
        residual = problem.residuals(samples, P).values
        return 0.5 * float(np.einsum("nv,nv->", samples.values.astype(float), residual))

    center, pe = short.center, np.array([0.6, 0.8, 0.0])
    weak = rng.normal(scale=0.1, size=(len(dwis), N_TERMS["quadratic"]))
    start = Motion(
        np.tile(pose([1, 2, -1], [2, 1, 4]), (len(dwis), 1, 1)),
        eddy_currents=EddyCurrents(weak, pe, center),
    )
    samples = problem.sample(start)
    residual = problem.residuals(samples, P)
    raw_slopes = replace(residual, precision=np.zeros_like(P))
    jacobian = problem.jacobian(raw_slopes, slice(None))
    analytic = np.einsum("nkv,nv->nk", jacobian, residual.values)
    for volume, parameter in ((0, 0), (2, 1), (3, 4), (1, 6), (0, 9), (2, 12)):
        step = np.zeros((len(dwis), 6 + N_TERMS["quadratic"]))
        step[volume, parameter] = 1e-3 if 3 <= parameter < 6 else 1e-2
        change = [cost(moved(start, sign * step)) for sign in (1, -1)]
        slope = (change[1] - change[0]) / (2 * step[volume, parameter])
        np.testing.assert_allclose(analytic[volume, parameter], slope, rtol=0.02)


@pytest.mark.parametrize(("degrees", "kept"), [(70, True), (-8, False)])
def test_a_long_way_to_a_worse_fit_is_not_taken(still, degrees, kept):
    """The head of the moving image is turned by −8°; one engine says 70, the other is right."""
    volume = still.volume(0)
    turned = pose([0, 0, 0], [0, 0, -8])
    moving = Image(volume.data, turned @ volume.affine)

    class Says:
        def register(self, fixed, moving, *, fixed_mask, init, seed):
            return Registration(pose([0, 0, 0], [0, 0, degrees]), True, "sure")

    found = register_unless_worse(Says(), volume, moving, still.mask, np.eye(4), 0)
    assert np.array_equal(found.matrix, np.eye(4)) == kept
    assert ("kept there" in found.message) == kept
    assert found.converged != kept


def test_outlier_volumes_are_recovered_and_whoever_moved_stays(head, grid, moving, truth):
    def turned(motion, volume):
        return motion.updated(volume, motion[volume] @ pose([0, 0, 0], [70, 0, 20]))

    astray = turned(truth, 9)
    found = recover_outlier_volumes(moving, astray)
    assert rms_displacement(found[9], truth[9], moving.brain_center) < 5
    np.testing.assert_array_equal(found.updated(9, astray[9]).matrices, astray.matrices)

    jumped = truth.updated(9, pose([0, 12, 0], [20, 0, 10]))
    dwi = acquire(head, moving.gradients, jumped, grid, snr=20)
    assert 9 in far_from_neighbours(jumped, dwi.brain_center)[0]
    np.testing.assert_array_equal(recover_outlier_volumes(dwi, jumped).matrices, jumped.matrices)


@pytest.mark.slow
def test_joint_estimate_and_loop_agree(moving, estimated, motion_rmse):
    loop = estimate_motion(moving, estimator="lovo", n_threads=2)
    millimetres, degrees = motion_rmse(loop, estimated, moving.center)
    assert millimetres < 0.4
    assert degrees < 0.35
    assert loop.standard_errors is None


def test_standard_errors_are_of_the_size_of_the_errors(moving, truth, estimated):
    errors = rigid_parameters(estimated.matrices, moving.center)
    errors = errors - rigid_parameters(truth.matrices, moving.center)
    dwis = moving.gradients.dwis
    assert not estimated.standard_errors[0].any()
    ratio = errors[dwis] / estimated.standard_errors[dwis]
    assert 0.4 < np.sqrt((ratio**2).mean()) < 1.6


@pytest.mark.slow
def test_scattered_head_is_captured(head, grid):
    gradients = shelled_scheme({1000: 24}, 3)
    truth = simulate_motion("scattered", 27, ORIGIN, seed=3)
    dwi = acquire(head, gradients, truth, grid, snr=20)
    found = estimate_motion(dwi, n_threads=2)
    dwis = gradients.dwis
    offset = np.linalg.inv(truth[dwis[0]]) @ found[dwis[0]]
    free = Motion(found.matrices[dwis] @ np.linalg.inv(offset))
    assert apart(dwi, free, Motion(truth.matrices[dwis])) < 1.0


def test_dropout_is_found_where_it_was_planted(still):
    planted_at = {(4, 15), (4, 16), (13, 20)}
    signal = np.array(still.signal)
    assert not still.gradients.is_b0[[4, 13]].any()
    for volume, index in planted_at:
        signal[:, :, index, volume] *= 0.5
    quality = assess(
        replace(still, signal=signal),
        Motion.identity(len(still)),
        GaussianProcessModel(LegendreCovariance()),
    )
    flagged = {tuple(map(int, where)) for where in np.argwhere(quality.outliers.flagged)}
    assert planted_at <= flagged
    assert len(flagged - planted_at) <= 2
    clean = assess(still, Motion.identity(len(still)), GaussianProcessModel(LegendreCovariance()))
    assert clean.outliers.flagged.sum() <= 2


def test_correction_raises_the_agreement_with_the_prediction(moving, truth):
    model = GaussianProcessModel(LegendreCovariance())
    before = assess(moving, Motion.identity(len(moving)), model)
    after = assess(moving, truth, model)
    dwis = moving.gradients.dwis
    assert after.correlation[dwis].mean() > before.correlation[dwis].mean() + 0.01
    assert after.r2[dwis].mean() > before.r2[dwis].mean() + 0.02


def test_unknown_settings_are_refused(short):
    with pytest.raises(EddymotionError, match="use one of"):
        estimate_motion(short, estimator="guess")
    with pytest.raises(EddymotionError, match="use --estimator lovo"):
        estimate_motion(short, estimator="joint", model=TensorModel())
    with pytest.raises(EddymotionError, match="at least 1"):
        estimate_motion(short, estimator=Joint(max_steps=0))
