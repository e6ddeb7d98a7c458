# SPDX-License-Identifier: Apache-2.0
"""One interpolation, two engines."""

import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nitransforms.linear import Affine
from nitransforms.resampling import apply
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.resampling import Resampled, reading, resample
from eddymotion.resampling.engines import with_nitransforms
from eddymotion.resampling.masks import covered_mask
from eddymotion.simulation import Grid, acquire, simulate_eddy_currents

VOLUMES = np.array([0, 5, 14, 26])


@pytest.fixture(scope="module")
def short(moving, truth):
    return moving.select(VOLUMES), Motion(truth.matrices[VOLUMES])


@pytest.fixture(scope="module")
def fields(grid, scheme):
    """Fields of 3 mm at b=1000; none for the first volume, a b=0."""
    return simulate_eddy_currents(
        scheme.select(VOLUMES), grid, order="quadratic", amplitude=3.0, pe_axis="j-"
    )


@pytest.fixture(scope="module")
def distorted(head, grid, scheme, truth, fields):
    """A head that moves in those fields: the series and all that happened to it."""
    motion = Motion(truth.matrices[VOLUMES], eddy_currents=fields)
    series = acquire(head, scheme.select(VOLUMES), motion, grid, snr=None, eddy=fields)
    return series, motion


@pytest.fixture(scope="module")
def undistorted(head, grid, distorted):
    """The same head, at rest and without fields."""
    series, motion = distorted
    seen = series.gradients.rotated(motion.rotations)
    return acquire(head, seen, Motion.identity(len(VOLUMES)), grid, snr=None)


class Bent:
    """A turned and curved map of space."""

    rotation = Rotation.from_euler("xyz", [4, -7, 12], degrees=True).as_matrix()

    def __call__(self, points):
        return points @ self.rotation.T + 3.0 * np.sin(points[:, [1, 2, 0]] / 40.0)


def plain(dwi, motion, shape, affine, space=lambda points: points):
    """The twin: SciPy alone, all of a volume at once."""
    voxels = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    points = space(apply_affine(affine, voxels))
    for index in range(len(dwi)):
        scanner = apply_affine(motion[index], points)
        recorded = motion.recorded(index, points)
        stretch = motion.eddy_currents.stretch(index, scanner)
        positions = apply_affine(np.linalg.inv(dwi.affine), recorded)
        volume = np.asarray(dwi.signal[..., index], float)
        read = map_coordinates(volume, positions.T, order=3, mode="mirror") * stretch
        read[((positions < -0.5) | (positions > np.array(dwi.shape) - 0.5)).any(axis=1)] = 0.0
        yield np.maximum(read, 0.0).reshape(shape)


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


@pytest.mark.parametrize("other_grid", [False, True])
def test_slabs_are_what_nitransforms_makes_of_the_whole_grid(head, short, other_grid, monkeypatch):
    dwi, motion = short
    grid = Grid.covering(head, (5.0, 4.0, 3.0), "PSL") if other_grid else dwi
    monkeypatch.setattr(reading, "SLAB_POINTS", 1200)
    found = resample(dwi, motion, grid=(grid.shape, grid.affine)).signal
    reference = nib.Nifti1Image(np.zeros(grid.shape, np.float32), grid.affine)
    indices = np.moveaxis(np.indices(grid.shape), 0, -1)
    for index in range(len(dwi)):
        volume = nib.Nifti1Image(dwi.volume(index).data, dwi.affine)
        transform = Affine(motion[index], reference=reference)
        whole = apply(transform, volume, order=3, mode="mirror").get_fdata()
        voxels = apply_affine(np.linalg.inv(dwi.affine) @ motion[index] @ grid.affine, indices)
        inside = ((voxels >= -0.5) & (voxels <= np.array(dwi.shape) - 0.5)).all(axis=-1)
        expected = np.where(inside, np.maximum(whole, 0), 0)
        np.testing.assert_allclose(found[..., index], expected, atol=1e-5 * whole.max(), rtol=0)


def test_nitransforms_holds_few_copies_of_a_volume(short, monkeypatch):
    dwi, motion = short
    monkeypatch.setattr(reading, "SLAB_POINTS", 1200)
    where = Resampled.of(dwi, motion)._reading()(1)
    volume = dwi.volume(1).data
    with_nitransforms(volume, where)  # what is made once
    tracemalloc.start()
    with_nitransforms(volume, where)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 8 * volume.size  # all positions at once took seven times as much


def test_unknown_engines_are_refused_before_anything_is_read(short):
    with pytest.raises(EddymotionError, match="'fats' is unknown; use nitransforms or fast"):
        Resampled.of(short, Motion.identity(len(short)), engine="fats")


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


@pytest.mark.parametrize("engine", ["nitransforms", "fast"])
@pytest.mark.parametrize(("order", "other_grid", "space"), [
    ("quadratic", False, None), ("cubic", True, None), ("linear", True, Bent()),
])  # fmt: skip
def test_both_engines_equal_scipy_through_fields_and_space(
    head, distorted, engine, order, other_grid, space, monkeypatch
):
    dwi, motion = distorted
    more = motion.eddy_currents.of_order(order).coefficients.copy()
    more[1:, 9:] = np.random.default_rng(0).normal(size=more[1:, 9:].shape)
    motion = replace(motion, eddy_currents=replace(motion.eddy_currents, coefficients=more))
    target = (
        Grid.covering(head, (5.0, 4.0, 3.0), "PSL") if other_grid else Grid(dwi.shape, dwi.affine)
    )
    monkeypatch.setattr(reading, "SLAB_POINTS", 5000)
    found = resample(
        dwi, motion, engine=engine, grid=(target.shape, target.affine), space=space
    ).signal
    twin = plain(dwi, motion, target.shape, target.affine, space or (lambda points: points))
    for index, expected in enumerate(twin):
        assert 0 < (expected > 0).mean() < 1
        np.testing.assert_allclose(found[..., index], expected, atol=1e-5 * expected.max(), rtol=0)


@pytest.mark.parametrize("engine", ["nitransforms", "fast"])
def test_true_motion_and_fields_bring_head_and_intensity_back(
    head, grid, distorted, undistorted, engine
):
    dwi, motion = distorted
    rigid = replace(motion, eddy_currents=None)
    moved = acquire(head, dwi.gradients, rigid, grid, snr=None)
    brain = undistorted.mask

    def apart(series):
        difference = series.signal[brain].astype(float) - undistorted.signal[brain]
        return np.sqrt((difference**2).mean(axis=0))[1:]

    corrected = resample(dwi, motion, engine=engine)
    assert (apart(corrected) < 1.1 * apart(resample(moved, rigid, engine=engine))).all()
    assert (apart(corrected) < 0.6 * apart(resample(dwi, rigid, engine=engine))).all()
    total = undistorted.signal[brain].sum(axis=0)
    np.testing.assert_allclose(corrected.signal[brain].sum(axis=0), total, rtol=0.01)
    points = apply_affine(dwi.affine, np.argwhere(brain))
    stretch = [
        motion.eddy_currents.stretch(index, apply_affine(motion[index], points))
        for index in range(len(dwi))
    ]
    unscaled = (corrected.signal[brain] / np.transpose(stretch)).sum(axis=0)
    assert np.abs(unscaled / total - 1).max() > 0.02


def test_bvecs_follow_the_rotations_alone_and_those_of_space(distorted):
    dwi, motion = distorted
    turned = dwi.gradients.rotated(motion.rotations)
    corrected = Resampled.of(dwi, motion, engine="fast")
    np.testing.assert_array_equal(corrected.gradients.bvecs, turned.bvecs)
    corrected = Resampled.of(dwi, motion, engine="fast", space=Bent())
    np.testing.assert_allclose(corrected.gradients.bvecs, turned.bvecs @ Bent.rotation, atol=1e-12)


@pytest.mark.parametrize("engine", ["nitransforms", "fast"])
def test_an_affine_space_is_another_grid(short, engine):
    dwi, motion = short
    affine = np.eye(4)
    affine[:3] = [[1.1, 0.1, 0, 4.0], [-0.1, 0.9, 0.05, -2], [0, 0, 1.05, 3]]
    through_space = resample(
        dwi, motion, engine=engine, space=lambda points: apply_affine(affine, points)
    )
    on_grid = resample(dwi, motion, engine=engine, grid=(dwi.shape, affine @ dwi.affine))
    np.testing.assert_allclose(
        through_space.signal, on_grid.signal, atol=1e-4 * on_grid.signal.max()
    )
    assert (through_space.mask != on_grid.mask).mean() < 1e-3


def test_opposite_phase_encodings_overlay_after_correction(head, grid, distorted, undistorted):
    forth, motion = distorted
    fields = replace(motion.eddy_currents, pe=-motion.eddy_currents.pe)
    opposed = replace(motion, eddy_currents=fields)
    back = acquire(head, forth.gradients, opposed, grid, snr=None, eddy=fields)
    brain = undistorted.mask

    def apart(a, b):
        difference = a.signal[brain].astype(float) - b.signal[brain]
        return np.sqrt((difference**2).mean(axis=0))[1:]

    corrected = [
        resample(series, moved, engine="fast")
        for series, moved in ((forth, motion), (back, opposed))
    ]
    assert (apart(*corrected) < 0.35 * apart(forth, back)).all()
    swapped = resample(back, motion, engine="fast")
    assert (apart(corrected[0], swapped) > 2 * apart(*corrected)).all()


def test_kernel_is_compared_where_the_field_displaces_most(distorted, monkeypatch):
    dwi, motion = distorted
    assert Resampled.of(dwi, motion).kernel_agrees
    polynomials = EddyCurrents.polynomials
    monkeypatch.setattr(
        EddyCurrents,
        "polynomials",
        lambda *field: (1.2 * polynomials(*field)[0], polynomials(*field)[1]),
    )
    assert Resampled.of(dwi, replace(motion, eddy_currents=None)).kernel_agrees
    assert not Resampled.of(dwi, motion).kernel_agrees


def test_covered_brain_is_what_the_fields_leave_in_the_image(moving):
    dwi = moving.select(VOLUMES)
    brain, still = Image(dwi.mask, dwi.affine), Motion.identity(len(dwi))
    np.testing.assert_array_equal(covered_mask(brain, still, dwi), dwi.mask)
    shear = np.zeros((len(dwi), N_TERMS["linear"]))
    shear[2, 2] = 80.0  # a millimetre along z for each one of height
    pe = np.array([0.0, 0.0, -1.0])
    stretched = replace(still, eddy_currents=EddyCurrents(shear, pe, dwi.center))
    covered = covered_mask(brain, stretched, dwi)
    height = apply_affine(dwi.affine, np.argwhere(dwi.mask))[:, 2] - dwi.center[2]
    reach = (dwi.shape[2] / 2) * 4.0
    np.testing.assert_array_equal(covered[dwi.mask], 2 * np.abs(height) <= reach)
    assert 0.5 < covered.sum() / dwi.mask.sum() < 0.98
    shear[2, 2] = 800.0
    away = replace(still, eddy_currents=EddyCurrents(shear, pe, dwi.center))
    np.testing.assert_array_equal(covered_mask(brain, away, dwi), dwi.mask)
