"""One interpolation, two engines."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.errors import EddymotionError
from eddymotion.geometry import Motion
from eddymotion.resampling import resample
from eddymotion.simulation import Grid, acquire


@pytest.fixture(scope="module")
def short(moving, truth):
    volumes = np.array([0, 5, 14, 26])
    return moving.select(volumes), Motion(truth.matrices[volumes])


@pytest.mark.parametrize("other_grid", [False, True])
def test_fast_engine_equals_nitransforms(head, short, other_grid):
    dwi, motion = short
    target = Grid.covering(head, (5.0, 4.0, 3.0), "PSL")
    grid = (target.shape, target.affine) if other_grid else None
    reference, fast = (
        resample(dwi, motion, engine=engine, grid=grid) for engine in ("nitransforms", "fast")
    )
    assert reference.signal.shape == (*(target.shape if other_grid else dwi.shape), len(dwi))
    assert np.abs(fast.signal - reference.signal).max() < 1e-3 * np.ptp(reference.signal)
    np.testing.assert_array_equal(fast.mask, reference.mask)


@pytest.mark.parametrize("engine", ["nitransforms", "fast"])
def test_no_motion_returns_the_original(short, engine):
    dwi, _ = short
    result = resample(dwi, Motion.identity(len(dwi)), engine=engine)
    np.testing.assert_allclose(result.signal, dwi.signal, atol=1e-3 * dwi.signal.max() * 0.01)
    np.testing.assert_array_equal(result.gradients.bvecs, dwi.gradients.bvecs)


@pytest.mark.parametrize("engine", ["nitransforms", "fast"])
def test_result_is_float32_not_negative_and_independent_of_threads(short, engine):
    dwi, motion = short
    signal = np.array(dwi.signal)
    signal[20, 24, 18] = 50 * signal.max()
    before = signal.copy()
    spiky = replace(dwi, signal=signal)
    one, two = (resample(spiky, motion, engine=engine, n_threads=n) for n in (1, 2))
    assert one.signal.dtype == np.float32
    assert one.signal.min() >= 0
    np.testing.assert_array_equal(one.signal, two.signal)
    np.testing.assert_array_equal(signal, before)


def test_negative_values_survive_where_the_series_has_them(short):
    dwi, motion = short
    shifted = replace(dwi, signal=dwi.signal - 100)
    assert resample(shifted, motion, engine="fast").signal.min() < 0


def test_true_motion_brings_the_head_back(head, grid, scheme, truth):
    volumes = np.array([0, 9, 26, 4])
    gradients, motion = scheme.select(volumes), Motion(truth.matrices[volumes])
    moved = acquire(head, gradients, motion, grid, snr=None)
    corrected = resample(moved, motion)
    still = acquire(head, gradients.rotated(motion.rotations), Motion.identity(4), grid, snr=None)
    inside = still.mask

    def distance(series):
        return np.sqrt(((series.signal - still.signal)[inside] ** 2).mean(axis=0))[1:]

    assert (distance(corrected) < 0.5 * distance(moved)).all()
    np.testing.assert_allclose(
        corrected.gradients.bvecs[1:],
        np.einsum("nji,nj->ni", motion.rotations, gradients.bvecs)[1:],
        atol=1e-12,
    )


def test_number_of_transforms_must_be_that_of_volumes(short):
    dwi, _ = short
    with pytest.raises(EddymotionError, match="3 transforms for 4 volumes"):
        resample(dwi, Motion.identity(3))


def test_grid_elsewhere_is_refused(short):
    dwi, motion = short
    away = dwi.affine.copy()
    away[:3, 3] += 5000
    with pytest.raises(EddymotionError, match="does not overlap"):
        resample(dwi, motion, engine="fast", grid=(dwi.shape, away))


def test_integers_as_stored_give_what_their_floats_give(short):
    dwi, motion = short
    whole = np.round(dwi.signal)
    stored = replace(dwi, signal=whole.astype(np.int16))
    assert stored.signal.dtype == np.int16
    one, two = (resample(replace(dwi, signal=s), motion, engine="fast")
                for s in (stored.signal, whole))  # fmt: skip
    np.testing.assert_array_equal(one.signal, two.signal)
