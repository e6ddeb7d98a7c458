"""Series → motion, against the truth."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from eddymotion.errors import EddymotionError
from eddymotion.estimation import assess, estimate_motion
from eddymotion.estimation.frames import unite_frames
from eddymotion.geometry import Motion, rigid_matrix, rigid_parameters, rms_displacement
from eddymotion.models import GaussianProcessModel
from eddymotion.simulation import acquire, shelled_scheme

ORIGIN = np.zeros(3)


def pose(millimetres, degrees):
    return rigid_matrix(np.array(millimetres, float), np.deg2rad(degrees), ORIGIN)


def test_moderate_motion_is_recovered(moving, truth, estimated, motion_rmse):
    np.testing.assert_allclose(estimated[0], np.eye(4), atol=1e-12)
    millimetres, degrees = motion_rmse(estimated, truth, moving.center)
    assert millimetres < 0.4
    assert degrees < 0.35


def test_estimates_are_neither_shrunk_nor_stretched(moving, truth, estimated):
    found, true = (rigid_parameters(m.matrices, moving.center) for m in (estimated, truth))
    for part in (slice(0, 3), slice(3, 6)):
        slope = (found[:, part] * true[:, part]).sum() / (true[:, part] ** 2).sum()
        assert 0.95 < slope < 1.05


def test_no_motion_stays_none(still, motion_rmse):
    found = estimate_motion(still, n_threads=2)
    millimetres, degrees = motion_rmse(found, Motion.identity(len(still)), still.center)
    assert millimetres < 0.15
    assert degrees < 0.1


@pytest.mark.parametrize("n_b0", [2, 3])
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


def test_threads_do_not_change_a_bit_of_the_result(short):
    one, two = (estimate_motion(short, n_iterations=2, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.matrices, two.matrices)


def test_intensity_scale_does_not_matter(short, motion_rmse):
    plain = estimate_motion(short, n_iterations=2, n_threads=2)
    scaled = replace(short, signal=short.signal * np.float32(7.3))
    millimetres, degrees = motion_rmse(
        estimate_motion(scaled, n_iterations=2, n_threads=2), plain, short.center
    )
    assert millimetres < 0.01
    assert degrees < 0.01


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


def apart(dwi, found, truth):
    return rms_displacement(found.matrices, truth.matrices, dwi.brain_center).max()


def planted(dwi, truth):
    """The truth as the loop gives it: each group in a frame of its own."""
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    raw = truth.updated(b0s, truth.matrices[b0s] @ pose([3, 1, -2], [2, 4, -1]))
    return raw.updated(dwis, truth.matrices[dwis] @ pose([-2, 4, 1], [-3, 2, 5]))


def test_planted_frame_offset_of_a_resting_head_is_found_exactly(still):
    truth = Motion.identity(len(still))
    assert apart(still, unite_frames(still, planted(still, truth)), truth) < 1e-6


def test_planted_frame_offset_survives_jumps(still):
    jumps = Motion.identity(len(still))
    jumps = jumps.updated(np.arange(6, len(still)), pose([3, -2, 1], [2, 1, -3]))
    jumps = jumps.updated(np.arange(20, len(still)), pose([-2, 2, 3], [-1, 3, 2]))
    raw = planted(still, jumps)
    assert apart(still, unite_frames(still, raw), jumps) < 0.05
    assert apart(still, unite_frames(still, raw, align_shells=False), jumps) > 1


def test_dropout_is_found_where_it_was_planted(still):
    planted_at = {(4, 15), (4, 16), (13, 20)}
    signal = np.array(still.signal)
    assert not still.gradients.is_b0[[4, 13]].any()
    for volume, index in planted_at:
        signal[:, :, index, volume] *= 0.5
    quality = assess(
        replace(still, signal=signal), Motion.identity(len(still)), GaussianProcessModel()
    )
    flagged = {tuple(map(int, where)) for where in np.argwhere(quality.outliers.flagged)}
    assert planted_at <= flagged
    assert len(flagged - planted_at) <= 2
    clean = assess(still, Motion.identity(len(still)), GaussianProcessModel())
    assert clean.outliers.flagged.sum() <= 2


def test_correction_raises_the_agreement_with_the_prediction(moving, truth):
    model = GaussianProcessModel()
    before = assess(moving, Motion.identity(len(moving)), model)
    after = assess(moving, truth, model)
    dwis = moving.gradients.dwis
    assert after.correlation[dwis].mean() > before.correlation[dwis].mean() + 0.01
    assert after.r2[dwis].mean() > before.r2[dwis].mean() + 0.02


def test_series_and_its_arrays_stay_unchanged(short):
    before = short.signal.copy(), short.gradients.bvecs.copy()
    estimate_motion(short, n_iterations=1)
    np.testing.assert_array_equal(short.signal, before[0])
    np.testing.assert_array_equal(short.gradients.bvecs, before[1])


def test_unknown_settings_are_refused(short):
    with pytest.raises(EddymotionError, match="use one of"):
        estimate_motion(short, estimator="guess")
    with pytest.raises(EddymotionError, match="at least 1"):
        estimate_motion(short, n_iterations=0)
