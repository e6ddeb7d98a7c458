# SPDX-License-Identifier: Apache-2.0
"""A b=0 volume that is empty tells nothing, and one of another gain as much as any.

The empty one of two was registered to the other, 160 mm away, and the diffusion-weighted volumes
were told to be off by 37 mm against b=0. Beside one of twice the brightness, or a tenth, it was
2.4 to 85 mm, or the estimation failed.
"""

from dataclasses import replace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.data.checks import find_issues
from eddymotion.data.checks.b0_volumes import empty_b0s, with_equal_b0s
from eddymotion.data.gradients import reference_volumes
from eddymotion.estimation.frames.anchors import Anchors
from eddymotion.mapping.rigid import rms_displacement
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion


@pytest.fixture(scope="module")
def moved():
    """A series of two b=0 volumes, the first and one in the middle, of a head that moves."""
    head, gradients = procedural_head(5.0), shelled_scheme({1000: 14}, 2)
    truth = simulate_motion("moderate", len(gradients), np.zeros(3), seed=2)
    return acquire(head, gradients, truth, Grid.covering(head, 5.0), snr=20), truth


@pytest.fixture(scope="module")
def found(moved):
    return em.estimate_motion(moved[0])


def with_volume(dwi, volume, signal):
    every = np.array(dwi.signal, np.float32)
    every[..., volume] = signal
    return replace(dwi, signal=every)


def nothing(dwi, kind):
    random = np.random.default_rng(0)
    if kind == "few voxels":
        return random.random(dwi.shape) < 0.002
    return random.rayleigh(0.02 * dwi.signal.mean(), dwi.shape)


@pytest.mark.parametrize(("which", "kind"), [
    (0, "noise"),
    pytest.param(1, "noise", marks=pytest.mark.slow),
    pytest.param(1, "few voxels", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_rest_is_what_it_is_without_it(moved, which, kind):
    dwi, truth = moved
    volume = int(dwi.gradients.b0s[which])
    spoilt = with_volume(dwi, volume, nothing(dwi, kind))
    others = np.setdiff1d(np.arange(len(dwi)), [volume])
    without, estimated = em.estimate_motion(dwi.select(others)), em.estimate_motion(spoilt)
    assert np.flatnonzero(estimated.unplaced).tolist() == [volume]
    assert np.isnan(estimated.standard_errors[volume]).all()
    errors = estimated.standard_errors[others]
    assert np.isfinite(errors).all()
    assert errors[:, :3].max() < 1.0
    frame = 1 if which == 0 else 0  # where the first b=0 is empty, that of its neighbour
    np.testing.assert_allclose(estimated[frame], np.eye(4), atol=1e-9)
    for one, tolerance in ((without, 0.1), (truth.select(others), 0.5)):
        same = one.relative_to(int(np.flatnonzero(others == frame)[0])).matrices
        assert rms_displacement(estimated.matrices[others], same, dwi.center).max() < tolerance
    told = [issue.text for issue in find_issues(spoilt) if issue.kind == "b0"]
    assert len(told) == 1
    assert str(volume) in told[0]


@pytest.mark.parametrize(("which", "factor"), [
    (0, 2.0), (1, 0.1), pytest.param(1, 0.001, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_gain_changes_no_pose(moved, found, which, factor):
    dwi, _ = moved
    volume = int(dwi.gradients.b0s[which])
    spoilt = with_volume(dwi, volume, factor * dwi.signal[..., volume])
    estimated = em.estimate_motion(spoilt)
    assert estimated.unplaced is None
    assert rms_displacement(estimated.matrices, found.matrices, dwi.center).max() < 0.1
    assert (estimated.standard_errors <= 1.5 * found.standard_errors).all()


def test_sound_ones_are_left_alone(moved):
    dwi, _ = moved
    assert not len(empty_b0s(dwi))
    assert with_equal_b0s(dwi) is dwi


def test_several_of_many(moved):
    """Two of four, which noise that correlates with nothing has to be told from."""
    dwi, _ = moved
    first, second = dwi.gradients.b0s
    four = dwi.select(np.r_[first, first, second, second, dwi.gradients.dwis])
    for volume in (0, 3):
        four = with_volume(four, volume, nothing(dwi, "noise"))
    assert empty_b0s(four).tolist() == [0, 3]
    assert "volumes 0, 3" in next(issue.text for issue in find_issues(four) if issue.kind == "b0")


def test_means_leave_out_what_was_not_placed(moved):
    gradients = moved[0].gradients
    unplaced = np.arange(len(gradients)) == gradients.b0s[0]
    assert reference_volumes(gradients, unplaced).tolist() == gradients.b0s[1:].tolist()
    assert reference_volumes(gradients, gradients.is_b0).tolist() == gradients.b0s.tolist()


def test_volumes_are_sought_by_a_b0_that_shows_the_head(moved):
    dwi, truth = moved
    some = dwi.gradients.dwis[:2]
    spoilt = with_volume(dwi, 0, nothing(dwi, "noise"))
    by_second = truth.relative_to(int(dwi.gradients.b0s[1])).matrices[some]
    found = Anchors.of(spoilt, some).matrices
    assert rms_displacement(found, by_second, dwi.center).max() < 2.0
