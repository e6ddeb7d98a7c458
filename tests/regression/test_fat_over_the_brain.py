# SPDX-License-Identifier: Apache-2.0
"""Fat that was not suppressed stays shifted as the head turns: it pulled the poses, untold."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy

from eddymotion.data.checks import find_issues
from eddymotion.data.checks.fat import (
    _attenuation,
    _high,
    _least_moved,
    _mean,
    fat_over_brain,
)
from eddymotion.data.series import DWI
from eddymotion.estimation import Joint, estimate_motion
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rms_displacement
from eddymotion.simulation import Phantom, acquire, shelled_scheme

SHIFT_MM, FROM_MM, TO_MM = 16.0, 4.0, 9.0


@dataclass(frozen=True, eq=False)
class Scalp:
    """Fat around a head, brighter than white matter, which hardly diffuses."""

    head: Phantom

    def __getattr__(self, name):
        return getattr(self.head, name)

    def signal(self, bval, bvec):
        size = np.linalg.norm(self.head.affine[:3, 0])
        outside = scipy.ndimage.distance_transform_edt(self.head.tissue.sum(axis=3) < 0.5) * size
        ring = (outside > FROM_MM) & (outside < TO_MM)
        return (1.2 * self.head.white_signal * np.exp(-5e-5 * bval) * ring).astype(np.float32)


@pytest.fixture(scope="module")
def nods(scheme):
    """Turns about the axis from left to right, 4° to each side."""
    twists = np.zeros((len(scheme), 6))
    twists[:, 3] = np.radians(4) * np.sin(np.linspace(0, 4 * np.pi, len(scheme)))
    return Motion(exp_rigid(twists, np.zeros(3)))


@pytest.fixture(scope="module")
def fatty(head, grid, scheme, nods):
    return with_fat(head, grid, scheme, nods)


def with_fat(head, grid, scheme, motion):
    """Measure a head with a shifted ring of fat."""
    padded = replace(grid, shape=tuple(n + 8 for n in grid.shape), affine=_wider(grid.affine, 4))
    shifted = np.array(motion.matrices)
    shifted[:, 1, 3] += SHIFT_MM
    wide = replace(
        head,
        tissue=np.pad(head.tissue, [(6, 6)] * 3 + [(0, 0)]),
        fibres=np.pad(head.fibres, [(6, 6)] * 3 + [(0, 0), (0, 0)]),
        affine=_wider(head.affine, 6),
    )
    fat = acquire(Scalp(wide), scheme, Motion(shifted), padded, snr=None)
    dwi = acquire(wide, scheme, motion, padded, snr=20)
    return replace(dwi, signal=dwi.signal + fat.signal)


def turned_once(n_volumes, degrees, axis):
    """A head that turns, and slides, after the first volume."""
    twists = np.zeros((n_volumes, 6))
    twists[1:, [1, axis]] = degrees / 3, np.radians(degrees)
    return Motion(exp_rigid(twists, np.zeros(3)))


def _wider(affine, n_voxels):
    moved = np.array(affine)
    moved[:3, 3] -= moved[:3, :3] @ np.full(3, n_voxels)
    return moved


@pytest.mark.slow
def test_fat_that_is_shifted_does_not_pull_the_poses(fatty, nods):
    found = estimate_motion(fatty, estimator=Joint(eddy_current="none"), n_threads=2)
    errors = rms_displacement(found.matrices, nods.matrices, fatty.brain_center)
    assert np.sqrt(np.mean(errors**2)) < 0.25
    assert "fat" in [issue.kind for issue in find_issues(fatty)]


def test_suppressed_fat_leaves_all_of_the_brain(moving):
    assert not fat_over_brain(moving).any()
    assert "fat" not in [issue.kind for issue in find_issues(moving)]


@pytest.mark.parametrize(("degrees", "axis"), [(14, 3), (14, 5), (20, 3), (20, 4), (20, 5)])
def test_tissue_that_was_not_there_at_b0_is_no_fat(head, grid, degrees, axis):
    scheme = shelled_scheme({700: 8}, 1)
    dwi = acquire(head, scheme, turned_once(len(scheme), degrees, axis), grid, snr=25)
    assert not fat_over_brain(dwi).any()


@pytest.mark.parametrize("axis", [3, 5])
@pytest.mark.slow
def test_fat_of_a_head_that_turned_is_found(head, grid, axis):
    scheme = shelled_scheme({700: 8}, 1)
    assert fat_over_brain(with_fat(head, grid, scheme, turned_once(len(scheme), 14, axis))).any()


def test_a_noise_floor_is_no_fat(head, grid):
    scheme = shelled_scheme({2500: 12}, 2)
    dwi = acquire(head, scheme, Motion.identity(len(scheme)), grid, snr=3, coils=8)
    assert not fat_over_brain(dwi).any()


def test_fibres_that_one_high_b_value_runs_across_are_no_fat():
    """A ball with a bundle that only directions along it attenuate; one volume has a higher b."""
    scheme = shelled_scheme({1000.0: 12}, 1, seed=2)
    i, j, k = np.indices((24, 24, 24)) - 11.5
    ball, bundle = i**2 + j**2 + k**2 < 100, (np.abs(i) < 4) & (np.abs(j) < 3) & (np.abs(k) < 8)
    signal = np.full((24, 24, 24, len(scheme)), 1.0, np.float32)
    signal[ball] = 1000.0
    for volume in scheme.dwis:
        along = scheme.bvecs[volume, 2] ** 2
        signal[..., volume] *= np.where(bundle, np.exp(-0.1 - 2.0 * along), 0.45)
    bvals = scheme.bvals.copy()
    bvals[scheme.dwis[np.argmin(np.abs(scheme.bvecs[scheme.dwis, 2]))]] = 3000.0
    for table in (scheme, replace(scheme, bvals=bvals)):
        assert not fat_over_brain(DWI(signal, np.diag([2.0, 2.0, 2.0, 1.0]), table, ball)).any()


def test_what_takes_most_of_the_brain_is_no_fat():
    """A ball, of which only the core is attenuated: without its rind no points would be left."""
    scheme = shelled_scheme({1000.0: 6}, 1)
    radius = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
    ball, core = radius < 10, radius < 7.5
    signal = np.full((24, 24, 24, len(scheme)), 1.0, np.float32)
    signal[ball] = 1000.0
    signal[..., scheme.dwis] *= np.where(core, 0.4, 1.0)[..., None]
    dwi = DWI(signal, np.diag([2.0, 2.0, 2.0, 1.0]), scheme, ball)
    assert not fat_over_brain(dwi).any()
    assert "fat" not in {issue.kind for issue in find_issues(dwi)}


@pytest.mark.slow
def test_where_fat_seems_to_flood_the_brain_what_is_certain_is_left_out(fatty, monkeypatch):
    """Nothing was left out then, though poses of such series need it."""
    whole = fat_over_brain(fatty)
    too_much = (whole & fatty.mask).sum() / fatty.mask.sum()
    monkeypatch.setattr("eddymotion.data.checks.fat.MOST_SHARE", too_much)
    certain = fat_over_brain(replace(fatty))
    assert 0.2 * whole.sum() < certain.sum() < whole.sum()
    assert not (certain & ~whole).any()


def ball_in(around, n_b0s=1):
    """A ball that loses half of its signal, in what does not diffuse: signal, brain, table."""
    scheme = shelled_scheme({1000.0: 12}, n_b0s)
    radius = np.linalg.norm(np.indices((32, 32, 32)) - 15.5, axis=0)
    ball = radius < 10
    signal = np.full((*ball.shape, len(scheme)), 1.0, np.float32)
    signal[around(radius) & ~ball] = 400.0
    signal[ball] = 1000.0
    signal[ball] *= np.where(scheme.bvals > 50, 0.45, 1.0).astype(np.float32)
    return DWI(signal, np.diag([2.0, 2.0, 2.0, 1.0]), scheme, ball)


def test_a_head_that_turned_in_the_middle_of_the_series_has_no_fat():
    """Where the skull was at b=0 there is tissue in half of the volumes."""
    dwi = ball_in(lambda radius: radius < 0)
    radius = np.linalg.norm(np.indices(dwi.shape) - 15.5, axis=0)
    signal = np.array(dwi.signal)
    skull = (radius >= 10) & (radius < 13)
    signal[skull] = np.where(dwi.gradients.bvals > 50, 90.0, 200.0)
    turned = dwi.gradients.dwis[6:]
    signal[..., turned] = np.roll(signal[..., turned], 3, axis=1)
    assert not fat_over_brain(replace(dwi, signal=signal)).any()


@pytest.mark.parametrize("away", [0, 3])
def test_a_lesion_that_hardly_diffuses_is_no_fat(away):
    """A stroke: it lies inside the brain, where fat gets from outside alone."""
    dwi = ball_in(lambda radius: radius < 0)
    i, j, k = np.indices(dwi.shape) - 15.5
    lesion = (i**2 + (j - away) ** 2 + k**2 < 3.5**2) & dwi.mask
    signal = np.array(dwi.signal)
    signal[lesion] = np.where(dwi.gradients.bvals > 50, 900.0, 1000.0)
    assert not fat_over_brain(replace(dwi, signal=signal)).any()


def test_fat_over_fluid_is_left_out_with_the_fat_beside_it():
    """It is attenuated as tissue is, and as bright as tissue at b=0; the fluid alone is dark."""
    dwi = ball_in(lambda radius: radius < 0)
    radius, (_, y, _) = np.linalg.norm(np.indices(dwi.shape) - 15.5, axis=0), np.indices(dwi.shape)
    fluid = (radius > 6) & (radius < 10) & (y > 10)
    fat = (radius > 7) & (radius < 12) & (y > 17)
    weighted, signal = dwi.gradients.bvals > 50, np.array(dwi.signal)
    signal[fluid] = np.where(weighted, 100.0, 2200.0)
    signal[fat] += 1500.0
    found = fat_over_brain(replace(dwi, signal=signal))
    assert found[fat].all()
    assert not found[fluid & (y < 14)].any()


@pytest.mark.parametrize(("gap", "shift", "told"), [(1.5, 0, False), (1.5, 4, True)])
def test_fat_that_lies_beside_the_brain_is_left_out_and_not_told(gap, shift, told):
    dwi = ball_in(lambda radius: radius < 0)
    radius = np.linalg.norm(np.indices(dwi.shape) - 15.5, axis=0)
    ring = np.roll((radius > 10 + gap) & (radius < 12 + gap), shift, axis=1)
    dwi = replace(dwi, signal=dwi.signal + 400.0 * ring[..., None].astype(np.float32))
    assert fat_over_brain(dwi)[dwi.mask].any()
    assert ("fat" in {issue.kind for issue in find_issues(dwi)}) == told


def test_a_medium_that_does_not_diffuse_is_no_fat():
    assert fat_over_brain(ball_in(lambda radius: (radius < 12) & (radius > 10))).any()
    assert not fat_over_brain(ball_in(lambda radius: radius < 20)).any()


@pytest.mark.parametrize("gain", [0.4, 0.6, 0.75, 1.3])
def test_another_gain_at_b0_makes_and_hides_no_fat(moving, fatty, gain):
    for dwi, has_some in ((moving, False), (fatty, True)):
        gains = np.where(dwi.gradients.is_b0, gain, 1.0).astype(np.float32)
        found = fat_over_brain(replace(dwi, signal=dwi.signal * gains))
        assert found.any() == has_some


def test_fat_is_found_where_tissue_is_hardly_darker_than_at_b0():
    """At low b-values tissue is as bright as fat over fluid: it hid the fat beside it."""
    dwi = ball_in(lambda radius: radius < 0)
    radius = np.linalg.norm(np.indices(dwi.shape) - 15.5, axis=0)
    weighted, signal = dwi.gradients.bvals > 50, np.array(dwi.signal)
    signal[(radius > 10) & (radius < 12.5) & (np.indices(dwi.shape)[1] > 15)] = 700.0
    signal[radius < 10] = np.where(weighted, 640.0, 1000.0)
    signal[(radius > 6.3) & (radius < 10)] = np.where(weighted, 725.0, 1000.0)
    found = fat_over_brain(replace(dwi, signal=signal))
    assert found.any()
    assert (found & dwi.mask).sum() < 0.5 * dwi.mask.sum()


def test_fat_of_volumes_that_moved_is_left_out_with_the_rest():
    """Fat on one side shows in all volumes, and on the other in those alone that moved."""
    dwi = ball_in(lambda radius: (radius < 12) & (radius > 10))
    radius, (_, y, _) = np.linalg.norm(np.indices(dwi.shape) - 15.5, axis=0), np.indices(dwi.shape)
    signal, moved = np.array(dwi.signal), dwi.gradients.dwis[::2]
    ring = (radius < 12) & (radius > 10)
    in_all, in_moved, moved_in = (
        ring & (y > 17), ring & (y < 14), (radius > 13.5) & (radius < 15) & (y > 28)
    )  # fmt: skip
    signal[in_moved] *= np.where(dwi.gradients.bvals > 50, 0.45, 1.0).astype(np.float32)
    signal[..., moved] = np.where(in_moved[..., None], 440.0, signal[..., moved])
    signal[..., moved] = np.where(moved_in[..., None], 800.0, signal[..., moved])
    found = fat_over_brain(replace(dwi, signal=signal))
    assert found[in_all].all()
    assert found[in_moved].all()


@pytest.mark.parametrize(("n_volumes", "n_chosen"), [(8, 6), (20, 10)])
def test_half_of_the_volumes_or_six_are_those_that_moved_least(n_volumes, n_chosen):
    scheme, order = shelled_scheme({1000.0: n_volumes}, 1), np.random.default_rng(1)
    ball = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0) < 8
    ways = 0.5 + 2 * order.permutation(n_volumes) / n_volumes  # voxels
    volumes = [ball, *(scipy.ndimage.shift(0.5 * ball, [way, 0, 0], order=1) for way in ways)]
    signal = 1.0 + 999.0 * np.stack(volumes, axis=3)
    dwi = DWI(signal.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), scheme, ball)
    around = scipy.ndimage.binary_dilation(ball, iterations=5)
    chosen = _least_moved(dwi, scheme.dwis, _mean(dwi, scheme.b0s), around)
    assert sorted(chosen) == sorted(scheme.dwis[np.argsort(ways)[:n_chosen]])


@pytest.mark.parametrize(
    ("numbers", "least"),
    [
        ({200.0: 10, 1000.0: 3}, 1000.0),
        ({300.0: 12}, np.inf),
        ({700.0: 12, 3000.0: 1}, 700.0),
        ({500.0: 6, 1000.0: 15, 3000.0: 30}, 3000.0),
        ({600.0: 12, 1000.0: 12}, 600.0),
    ],
)
def test_fat_is_looked_for_where_tissue_is_attenuated(numbers, least):
    scheme = shelled_scheme(numbers, 1)
    np.testing.assert_array_equal(_high(scheme), np.flatnonzero(scheme.bvals >= least))


@pytest.mark.parametrize(
    ("bval", "usual", "unit"),
    [(1000.0, 0.9, 0.9), (1000.0, 0.3, 0.6), (1000.0, -0.2, 0.6), (3000.0, 0.9, 1.2)],
)
def test_attenuation_is_in_units_of_that_of_a_brain(bval, usual, unit):
    """Another gain at b=0 does not make differences between tissues larger."""
    lost = usual + np.array([-0.2, -0.1, 0.0, 0.1, 0.5])
    found = _attenuation(np.exp(lost), np.ones(5), np.ones(5, bool), bval)
    np.testing.assert_allclose(found, 1 + (lost - usual) / unit, atol=1e-6)
