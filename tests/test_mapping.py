# SPDX-License-Identifier: Apache-2.0
"""Where a point of the head was recorded: pose, eddy currents and off-resonance together."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.mapping.eddy_currents import SCALE_MM, TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import (
    LEAST_STRETCH,
    OffResonance,
    Readout,
    SeriesField,
    undistorted,
)
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.resampling import Resampled, resample

SHAPE = (24, 26, 20)
AFFINE = np.diag([-4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (46.0, -50.0, -38.0)
READOUT = Readout.of(AFFINE, "j-", 0.05)


def off_resonance(points):
    """Hertz at points (P, 3), and its gradient, Hz/mm."""
    x, y, z = points.T / 30.0
    hertz = 40.0 * np.exp(-(x**2) - (y - 0.5) ** 2 - z**2)
    slopes = -2 * hertz[:, None] * np.stack([x, y - 0.5, z], axis=1) / 30.0
    return hertz, slopes


@pytest.fixture(scope="module")
def field():
    points = apply_affine(AFFINE, np.indices(SHAPE).reshape(3, -1).T)
    hertz = off_resonance(points)[0].reshape(SHAPE)
    return OffResonance.of_image(Image(hertz, AFFINE), knots=6.0, stiffness=1e-3)


@pytest.fixture(scope="module")
def series():
    random = np.random.default_rng(3)
    points = apply_affine(AFFINE, np.indices(SHAPE).reshape(3, -1).T)
    head = 800 * np.exp(-((points / 28.0) ** 2).sum(axis=1)) + 20 * np.cos(points / 9.0).sum(
        axis=1
    )
    signal = (head.reshape(SHAPE)[..., None] + random.uniform(0, 5, (*SHAPE, 4))).astype(
        np.float32
    )
    gradients = Gradients([0, 1000, 1000, 1000], np.eye(4, 3, k=-1))
    acquisition = Acquisition.every(gradients, AFFINE, phase_encoding="j-", readout_time=0.05)
    return DWI(np.maximum(signal, 0), AFFINE, acquisition, np.ones(SHAPE, bool))


@pytest.fixture(scope="module")
def motion(field):
    turns = np.deg2rad([[0, 0, 0], [9, 0, 0], [0, 4, -6], [-3, 2, 8]])
    moves = np.array([[0, 0, 0], [1, -2, 3], [0, 2, 0], [-2, 1, 1.0]])
    poses = rigid_matrix(moves, turns, np.zeros(3))
    random = np.random.default_rng(8)
    eddy = EddyCurrents(random.uniform(-2, 2, (4, 3)), READOUT.direction, np.zeros(3))
    return Motion(
        poses, eddy_currents=eddy,
        off_resonance=SeriesField(field, np.tile(READOUT.shift, (4, 1))),
    )  # fmt: skip


def test_displacements_of_both_fields_add_at_the_place_of_the_spin(motion):
    """A plain twin, from the definition: the field turns with the head, eddy currents do not."""
    points = np.random.default_rng(0).uniform(-25, 25, (50, 3))
    for volume in range(4):
        pose, shift = motion[volume], READOUT.shift
        hertz, slopes = off_resonance(points)
        scanner = points @ pose[:3, :3].T + pose[:3, 3]
        coefficients = motion.eddy_currents.coefficients[volume]
        eddy = scanner @ coefficients / SCALE_MM
        expected = scanner + hertz[:, None] * shift - eddy[:, None] * READOUT.direction
        recorded, factor = motion.displaced(volume, points)
        np.testing.assert_allclose(recorded, expected, atol=0.01)
        stretch = 1 + (slopes @ pose[:3, :3].T) @ shift
        stretch -= READOUT.direction @ coefficients / SCALE_MM
        np.testing.assert_allclose(factor, stretch, atol=0.01)
        by_definition = motion.mapping(volume).displaced_by_definition(points)
        np.testing.assert_allclose(by_definition[0], recorded, atol=1e-9)


@pytest.mark.parametrize("engine", ["fast", "nitransforms"])
def test_a_rigid_series_is_read_as_the_pair_of_a_field_is(series, motion, field, engine):
    without = replace(motion, eddy_currents=None)
    corrected = resample(series, without, engine=engine)
    for volume in range(4):
        alone, stretch = undistorted(
            series.volume(volume), READOUT, field, motion[volume], SHAPE, AFFINE
        )
        inside = np.isfinite(alone) & (stretch > 0.06)
        expected = np.maximum(alone[inside], 0)
        np.testing.assert_allclose(corrected.signal[inside, volume], expected, atol=0.05)
        assert (np.abs(corrected.signal[..., volume] - series.signal[..., volume]) > 5).any()


def test_engines_agree_where_all_fields_are_at_work(series, motion):
    assert Resampled.of(series, motion).kernel_agrees
    fast, plain = (resample(series, motion, engine=e).signal for e in ("fast", "nitransforms"))
    np.testing.assert_allclose(fast, plain, atol=2e-3 * plain.max())


def test_a_space_of_another_image_reads_the_same_field(series, motion):
    """Half a voxel away, told through `space` or through the grid."""
    moved = AFFINE.copy()
    moved[:3, 3] += 2.0
    grid = resample(series, motion, engine="fast", grid=(SHAPE, moved))
    space = resample(
        series, motion, engine="fast", grid=(SHAPE, AFFINE), space=lambda points: points + 2.0
    )
    np.testing.assert_allclose(space.signal, grid.signal, atol=1e-3 * grid.signal.max())


def test_fields_displace_slices_that_moved_as_they_displace_volumes(motion):
    """Every other slice a micrometre away: all is where it was, several millimetres by fields."""
    within = np.tile(np.eye(4), (4, SHAPE[2], 1, 1))
    within[:, ::2, 0, 3] = 1e-3
    points = np.random.default_rng(0).uniform(-25, 25, (50, 3))
    sliced = replace(motion, trajectory=Trajectory(within, AFFINE, 2))
    for volume in range(4):
        plain, factor = motion.displaced(volume, points)
        recorded, same = sliced.displaced(volume, points)
        np.testing.assert_allclose(recorded, plain, atol=2e-3)
        np.testing.assert_allclose(same, factor, atol=1e-6)
        assert np.abs(plain - apply_affine(motion[volume], points)).max() > 0.5


def test_a_field_for_another_number_of_volumes_is_refused(motion, field):
    with pytest.raises(ValueError, match="4 poses but an off-resonance field for 3 volumes"):
        replace(motion, off_resonance=SeriesField(field, np.zeros((3, 3))))


def test_where_fields_fold_the_image_the_signal_keeps_its_sign(series, motion, field):
    """However it is computed; the factor would be negative there."""
    strong = replace(motion, off_resonance=SeriesField(field, np.tile(25 * READOUT.shift, (4, 1))))
    points = np.random.default_rng(0).uniform(-40, 40, (500, 3))
    for volume in range(4):
        factors = [
            strong.displaced(volume, points)[1],
            strong.mapping(volume).displaced_by_definition(points)[1],
        ]
        np.testing.assert_allclose(*factors, atol=1e-4)
        assert factors[0].min() == pytest.approx(LEAST_STRETCH)
    readout = Readout.of(AFFINE, "j-", 25 * 0.05)
    alone, stretch = undistorted(series.volume(0), readout, field, np.eye(4), SHAPE, AFFINE)
    folded = np.isfinite(alone) & (stretch < 0)
    assert folded.any()
    assert (alone[folded] > -20).all()


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4), (2, 4, 3)])
def test_fields_of_no_order_are_refused(shape):
    with pytest.raises(EddymotionError, match=r"coefficients of shape .*, expected \(N, K\)"):
        EddyCurrents(np.zeros(shape), READOUT.direction, np.zeros(3))


def test_where_no_point_is_asked_for_none_is_displaced(motion):
    nowhere = np.zeros((0, 3))
    origins, stretch = motion.eddy_currents.origin(1, nowhere)
    assert origins.shape == (0, 3)
    assert stretch.shape == (0,)
    recorded, _ = motion.displaced(1, nowhere)
    assert recorded.shape == (0, 3)


def test_where_an_eddy_current_field_folds_the_image_no_origin_is_made_up():
    """A cubic that folds the far end alone; within, what is recorded leads back."""
    coefficients = np.zeros((1, 19))
    coefficients[0, TERMS.index("yyy")] = 60.0
    pe = np.array([0.0, 1.0, 0.0])
    eddy = EddyCurrents(coefficients, pe, np.zeros(3))
    points = np.zeros((7, 3))
    points[:, 1] = np.linspace(-30, 30, 7)
    origins, stretch = eddy.origin(0, eddy.recorded(0, points))
    np.testing.assert_allclose(origins, points, atol=1e-8)
    np.testing.assert_allclose(stretch, eddy.stretch(0, points), atol=1e-9)
    with pytest.raises(EddymotionError, match="volume 0 folds the image"):
        eddy.origin(0, np.vstack([points, [0.0, -150.0, 0.0]]))


@pytest.mark.parametrize("seconds", [0.0, -0.05, np.nan, np.inf])
def test_readout_times_that_none_can_be_are_refused(seconds):
    with pytest.raises(EddymotionError, match="readout time is"):
        Readout.of(AFFINE, "j-", seconds)


def test_a_map_without_weight_is_refused():
    hertz = Image(np.zeros(SHAPE), AFFINE)
    with pytest.raises(EddymotionError, match="no voxel of the map has a weight above 0"):
        OffResonance.of_image(hertz, weights=np.zeros(SHAPE), knots=6.0, stiffness=1e-3)
