# SPDX-License-Identifier: Apache-2.0
"""Slices that lost signal: what is measured of a slice, how it is judged, what follows."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from eddymotion.data.acquisition import Acquisition, Slicing, multiband_groups
from eddymotion.derivatives.outlier_table import outlier_table
from eddymotion.errors import EddymotionError
from eddymotion.estimation import assess
from eddymotion.estimation.held_out import predict
from eddymotion.estimation.lovo import fill_lost, lost_voxels, register_volumes
from eddymotion.estimation.outliers import (
    SliceOutliers,
    correlation_left,
    describe_beyond_repair,
    describe_outliers,
    fit_slices,
    is_lost,
    percent_lost,
    rescaled,
    score_slices,
    spline_through,
    volumes_beyond_repair,
)
from eddymotion.estimation.outliers.volumes import VARIATION
from eddymotion.estimation.quality import assess_both
from eddymotion.images.image import Image
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rms_displacement
from eddymotion.models import get_model
from eddymotion.registration import GaussNewton

N_SLICES = 24


def scipy_spline(values, heights):
    return ndimage.map_coordinates(values, heights[None], order=3, mode="mirror")


@pytest.fixture(scope="module")
def slice_gains():
    gains = np.random.default_rng(2).uniform(0.2, 1.2, N_SLICES)
    heights = np.random.default_rng(3).uniform(-0.5, N_SLICES - 0.5, 20_000)
    return gains, heights


def test_values_of_slices_are_interpolated_as_scipy_does(slice_gains):
    gains, heights = slice_gains
    found = spline_through(np.stack([gains, gains**2], axis=1), heights)
    for column, values in zip(found.T, (gains, gains**2), strict=True):
        np.testing.assert_allclose(column, scipy_spline(values, heights), atol=1e-9)
    assert not spline_through(gains[:, None], np.array([-0.6, N_SLICES - 0.4])).any()


def test_gains_of_an_interpolated_volume_are_recovered_exactly(slice_gains):
    gains, heights = slice_gains
    predicted = np.random.default_rng(4).uniform(50, 150, len(heights))
    fit = fit_slices(scipy_spline(gains, heights) * predicted, predicted, heights, N_SLICES)
    np.testing.assert_allclose(fit.gain, gains, atol=1e-4)


def test_standard_errors_of_gains_are_their_scatter(slice_gains):
    gains, heights = slice_gains
    random = np.random.default_rng(5)
    predicted = random.uniform(50, 150, len(heights))
    truth = scipy_spline(gains, heights) * predicted
    drawn = [truth + random.normal(scale=30, size=truth.shape) for _ in range(60)]
    fits = [fit_slices(observed, predicted, heights, N_SLICES) for observed in drawn]
    scatter = np.std([fit.gain for fit in fits], axis=0)
    value = np.mean([fit.error for fit in fits], axis=0)
    np.testing.assert_allclose(np.median(value / scatter), 1.0, atol=0.1)
    np.testing.assert_allclose(value, scatter, rtol=0.4)


def test_unknown_points_do_not_count(slice_gains):
    gains, heights = slice_gains
    predicted = np.full(len(heights), 100.0)
    observed = scipy_spline(gains, heights) * predicted
    observed[::7], predicted[3::7] = np.nan, np.nan
    predicted[heights > N_SLICES - 1.5] = np.nan
    fit = fit_slices(observed, predicted, heights, N_SLICES)
    assert np.isnan(fit.gain[-1])
    assert fit.n_points[-1] == 0
    np.testing.assert_allclose(fit.gain[:-2], gains[:-2], atol=1e-3)


def test_lost_slices_spread_to_their_neighbours():
    flags = np.zeros(8, bool)
    flags[3] = True
    heights = np.array([1.4, 1.6, 3.0, 4.4, 4.6, -2.0, 11.0])
    assert is_lost(flags, heights).tolist() == [False, True, True, True, False, False, False]


@pytest.fixture(scope="module")
def dropped(moving):
    """Take signal from single slices of a moving head: series, which lost something."""
    random = np.random.default_rng(7)
    brain = np.flatnonzero(moving.mask.sum(axis=(0, 1)) > 100)
    signal, lost = np.array(moving.signal), np.zeros((len(moving), moving.shape[2]), bool)
    for volume in moving.gradients.dwis:
        for index in random.choice(brain, 2, replace=False):
            signal[:, :, index, volume] *= random.uniform(0.2, 0.6)
            lost[volume, index] = True
    return replace(moving, signal=signal), lost


@pytest.fixture(scope="module")
def judged(dropped, truth):
    return assess(dropped[0], truth)


def test_lost_slices_of_a_moving_head_are_found(dropped, judged, moving, truth):
    flagged, lost = judged.outliers.flagged, dropped[1]
    assert (flagged & lost).sum() > 0.95 * lost.sum()
    assert (flagged & lost).sum() > 0.95 * flagged.sum()
    assert assess(moving, truth).outliers.flagged.sum() <= 1


def test_a_slice_that_several_volumes_lost_does_not_spoil_their_predictions(moving, truth):
    """What the others kept of it is told as if nothing had been lost."""
    signal, losers = np.array(moving.signal), moving.gradients.dwis[[2, 5, 9]]
    whole = assess(moving, truth).outliers.ratio
    slices = np.argsort(moving.mask.sum(axis=(0, 1)))[-3:]
    signal[:, :, slices[:, None], losers] *= 0.2
    ratio = assess(replace(moving, signal=signal), truth).outliers.ratio
    others = np.setdiff1d(moving.gradients.dwis, losers)
    away = (ratio - whole)[np.ix_(others, slices)]
    assert np.sqrt(np.square(away).mean()) < 0.01
    assert (ratio[np.ix_(losers, slices)] < 0.5).all()


def test_before_and_after_are_read_in_one_pass_as_each_alone(dropped, judged, truth):
    dwi = dropped[0]
    before, after = assess_both(dwi, truth, get_model("auto", dwi.gradients), n_threads=2)
    np.testing.assert_array_equal(after.correlation, judged.correlation)
    np.testing.assert_array_equal(after.outliers.z, judged.outliers.z)
    assert np.nanmean(before.correlation) < np.nanmean(after.correlation)


def test_shares_that_slices_have_kept_are_reported(dropped, judged, moving):
    lost = dropped[1]
    whole = moving.signal.sum(axis=(0, 1)).T
    kept = dropped[0].signal.sum(axis=(0, 1)).T / whole
    hit = lost & judged.outliers.flagged
    np.testing.assert_allclose(judged.outliers.ratio[hit], kept[hit], atol=0.08)


def test_slices_along_any_axis_are_found(dropped, truth):
    dwi, lost = dropped
    turned = np.eye(4)[[2, 0, 1, 3]]  # new axes i, j, k are the old k, i, j
    signal = np.moveaxis(dwi.signal, 2, 0)
    sagittal = replace(dwi, signal=signal, affine=dwi.affine @ turned.T,
                       mask=np.moveaxis(dwi.mask, 2, 0))  # fmt: skip
    slicing = Slicing.of({"SliceEncodingDirection": "i"}, sagittal.shape)
    sagittal = replace(sagittal, acquisition=Acquisition(dwi.gradients, slicing))
    flagged = assess(sagittal, truth).outliers.flagged
    assert flagged.shape == lost.shape
    assert (flagged & lost).sum() > 0.95 * max(lost.sum(), flagged.sum())


def test_intensities_and_gains_of_volumes_do_not_matter(dropped, judged, truth):
    dwi, _ = dropped
    gains, darker = np.full(len(dwi), 1000.0, np.float32), dwi.gradients.dwis[[3, 11]]
    gains[darker] *= 0.75
    again = assess(replace(dwi, signal=dwi.signal * gains), truth, judged.model)
    assert (again.outliers.flagged != judged.outliers.flagged).sum() <= 1
    value = again.outliers.gain[darker] / judged.outliers.gain[darker]
    np.testing.assert_allclose(value, 0.75, atol=0.02)


def test_a_volume_that_lost_most_of_its_slices_is_named(moving, truth):
    signal = np.array(moving.signal)
    lost, weak, fine = moving.gradients.dwis[[2, 9, 15]]
    brain = np.flatnonzero(moving.mask.sum(axis=(0, 1)) > 100)
    signal[:, :, brain[: int(0.7 * len(brain))], lost] *= 0.3
    signal[..., weak] *= 0.3
    signal[:, :, brain[5], fine] *= 0.3
    outliers = assess(replace(moving, signal=signal), truth).outliers
    assert volumes_beyond_repair(outliers).tolist() == sorted([lost, weak])
    words = describe_beyond_repair(outliers)
    assert words is not None
    assert words.startswith(f"volumes {min(lost, weak)}, {max(lost, weak)} ")
    assert outliers.flagged[fine].sum() == 1


def whole_fits(noise):
    """Fits of slices that lost nothing, with the scatter that their errors tell."""
    random = np.random.default_rng(9)
    fits = []
    for _ in range(40):
        heights = random.uniform(-0.5, N_SLICES - 0.5, 6000)
        predicted = random.uniform(50, 150, 6000)
        observed = predicted + random.normal(scale=noise, size=6000)
        fits.append(fit_slices(observed, predicted, heights, N_SLICES))
    return fits


@pytest.fixture
def clean_fits():
    return whole_fits(noise=25)


def test_scores_of_whole_slices_are_standard_normal(clean_fits):
    outliers = score_slices(clean_fits)
    np.testing.assert_allclose(np.std(outliers.z), 1.0, atol=0.12)
    np.testing.assert_allclose(np.std(outliers.z_square), 1.0, atol=0.15)
    assert not outliers.flagged.any()
    assert describe_beyond_repair(outliers) is None
    assert describe_outliers(outliers) == f"0 of {40 * N_SLICES}"


def lowered(fits, volume, slices, loss):
    gain = fits[volume].gain.copy()
    gain[slices] -= loss
    return [*fits[:volume], fits[volume]._replace(gain=gain), *fits[volume + 1 :]]


def test_slices_excited_together_are_judged_together():
    fits, groups = whole_fits(noise=60), tuple(np.arange(shot, N_SLICES, 8) for shot in range(8))
    before = score_slices(fits)
    now, z = (11, groups[3]), np.array([-3.5, -3.3, -1.4])
    loss = (before.z[now] - z) * before.spread[now] * before.gain[11]
    fits = lowered(fits, 11, groups[3], loss)
    alone, together = score_slices(fits), score_slices(fits, Slicing(groups=groups))
    assert (alone.z[now] < -2).tolist() == [True, True, False]
    assert not alone.flagged[now].any()
    assert together.flagged[now].tolist() == [True, True, False]
    assert (together.flagged != alone.flagged).sum() <= 3


def test_the_slice_beside_a_worse_one_is_not_flagged(clean_fits):
    fits = lowered(clean_fits, 5, [9, 10], [0.7, 0.2])
    assert np.argwhere(score_slices(fits).flagged).tolist() == [[5, 9]]
    fits = lowered(clean_fits, 5, [9, 10], [0.7, 0.5])
    assert np.argwhere(score_slices(fits).flagged).tolist() == [[5, 9], [5, 10]]


def test_slices_that_half_of_the_volumes_lost_are_those_of_the_darker_half(clean_fits):
    """Predictions lie between: volumes that kept them are brighter, the others darker."""
    fits, random, slices = clean_fits[:24], np.random.default_rng(5), [7, 8, 9, 10]
    lost = np.arange(24) % 2 == 0
    for volume in range(24):
        share = random.uniform(0.2, 0.7, 4) if lost[volume] else random.uniform(1.05, 1.6, 4)
        fits = lowered(fits, volume, slices, 1 - share)
    flagged = score_slices(fits).flagged
    assert not flagged[~lost].any()
    assert flagged[lost][:, slices].sum() >= 20
    assert flagged.sum() == flagged[:, slices].sum()


def test_brighter_slices_are_not_flagged(clean_fits):
    outliers = score_slices(lowered(clean_fits, 5, [9], -0.6))
    assert outliers.z[5, 9] > 5
    assert not outliers.flagged.any()


def test_volumes_that_were_not_fitted_are_not_judged(clean_fits):
    outliers = score_slices([None, *lowered(clean_fits, 4, [7], 0.6)])
    assert not outliers.judged[0].any()
    assert percent_lost(outliers)[0] == 0
    assert percent_lost(outliers)[5] == pytest.approx(100 / N_SLICES)
    expected = f"1 of {40 * N_SLICES} (0.1 %) in 1 volume, most in volume 5 (4 %)"
    assert describe_outliers(outliers) == expected


def test_groups_come_from_slice_timing():
    timing = [0.0, 1.0, 0.5, 0.00002, 1.0, 0.5]
    groups = [group.tolist() for group in multiband_groups(timing, 2)]
    assert groups == [[0, 3], [2, 5], [1, 4]]
    slicing = Slicing.of({"SliceTiming": timing}, (10, 11, 6))
    assert [group.tolist() for group in slicing.groups] == groups
    reversed_ = Slicing.of({"SliceTiming": timing[:2] * 3, "SliceEncodingDirection": "k-"},
                           (10, 11, 6))  # fmt: skip
    assert [group.tolist() for group in reversed_.groups] == [[1, 3, 5], [0, 2, 4]]
    assert Slicing.of(None, (10, 11, 6)).groups == ()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"SliceTiming": [0.0, 0.1]}, "SliceTiming has 2 entries, the image 6 slices along k"),
        ({"SliceEncodingDirection": "z"}, "expected i, j or k"),
        ({"SliceTiming": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "MultibandAccelerationFactor": 2},
         "3 slices at one time, MultibandAccelerationFactor is 2"),
    ],
)  # fmt: skip
def test_contradictory_sidecars_are_refused(metadata, message):
    with pytest.raises(EddymotionError, match=message):
        Slicing.of(metadata, (10, 11, 6))


@pytest.fixture(scope="module")
def holed(still):
    """Take most signal of some slices of a head at rest: series, where it is lost."""
    signal, lost = np.array(still.signal), np.zeros((len(still), still.shape[2]), bool)
    brain = np.flatnonzero(still.mask.sum(axis=(0, 1)) > 100)
    random = np.random.default_rng(10)
    for volume in still.gradients.dwis[::2]:
        lost[volume, random.choice(brain, 6, replace=False)] = True
    signal *= np.where(lost.T, 0.2, 1.0).astype(np.float32)
    return replace(still, signal=signal), lost


def test_lost_slices_get_no_weight_in_the_predictions_of_the_loop(holed, still):
    dwi, model = holed[0], get_model("auto", still.gradients)
    where = lost_voxels(dwi, Motion.identity(len(dwi)), model, dwi)
    ideal = predict(still.signal, still.gradients, model)
    errors = []
    for known in (where, None):
        off = predict(fill_lost(dwi, model, known), dwi.gradients, model) - ideal
        errors.append(np.sqrt(np.nanmean(off[still.mask] ** 2)))
    assert errors[0] < 0.4 * errors[1]


@pytest.mark.slow
def test_lost_slices_get_no_weight_in_the_registrations_of_the_loop(holed, still):
    chosen = still.gradients.dwis[:6:2]
    dwi, nothing = holed[0], Motion.identity(len(chosen))
    few = replace(dwi, signal=dwi.signal[..., chosen], gradients=dwi.gradients.select(chosen))
    where = lost_voxels(dwi, Motion.identity(len(dwi)), get_model("auto", still.gradients), dwi)
    model = get_model("auto", still.gradients)
    predicted = predict(fill_lost(dwi, model, where), dwi.gradients, model)[..., chosen]
    errors = []
    for known in ([where[volume] for volume in chosen], None):
        found = register_volumes(
            few,
            predicted,
            GaussNewton(),
            init=nothing,
            brain=Image(few.mask, few.affine),
            lost=known,
        )
        displacements = rms_displacement(found.matrices, nothing.matrices, still.center)
        errors.append(np.sqrt((displacements**2).mean()))
    assert errors[0] < 0.6 * errors[1]


def test_what_is_left_of_lost_slices_is_amplified(dropped, judged, moving):
    (volume, index), *_ = np.argwhere(dropped[1] & judged.outliers.flagged)
    image = dropped[0].volume(int(volume))
    whole, before = moving.volume(int(volume)).data, image.data.copy()
    found = rescaled(image, judged.outliers, int(volume)).data
    ratio = found[:, :, index].sum() / whole[:, :, index].sum()
    assert ratio == pytest.approx(1.0, abs=0.15)
    others = ~judged.outliers.flagged[volume]
    np.testing.assert_array_equal(found[:, :, others], before[:, :, others])
    np.testing.assert_array_equal(image.data, before)


def test_table_lists_the_outliers():
    z = np.array([[0.5, -6.25, np.nan], [-9.0, -1.0, 0.0]])
    outliers = SliceOutliers(z, np.where(z < -5, 0.5, 1.0))
    lines = outlier_table(outliers, replaced=True).splitlines()
    assert lines == ["volume\tslice\tz_score\treplaced", "0\t1\t-6.25\ttrue", "1\t0\t-9\ttrue"]
    assert outlier_table(outliers).splitlines()[1].endswith("\tfalse")
    assert outlier_table(None).splitlines() == lines[:1]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_what_lost_slices_leave_of_a_correlation(share):
    random = np.random.default_rng(5)
    predicted = 1 + VARIATION * random.standard_normal(400_000)
    observed = predicted * (random.random(predicted.size) >= share)
    left = np.corrcoef(predicted, observed)[0, 1]
    assert correlation_left(np.array([share])) == pytest.approx([left], abs=0.005)
