# SPDX-License-Identifier: Apache-2.0
"""How frames are joined, piece by piece: what is asked of each, in heads of any size."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.data.gradients import Gradients
from eddymotion.estimation import frames
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.frames import _misfit, _within_determined, unite_frames
from eddymotion.estimation.frames.course import Course, OffsetEstimate
from eddymotion.estimation.frames.errors import (
    FAR_MM,
    Z_95,
    affected_parameters,
    covariances_of_few,
)
from eddymotion.estimation.frames.offset import (
    JoinedFrame,
    _lowest_shell,
    confirms,
    contradicting,
    find_offset,
)
from eddymotion.mapping.motion import FrameEvidence, Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme

SMALLER = 1 / 8


@pytest.fixture(params=[1.0, SMALLER], ids=["man", "mouse"])
def sized(request, tiny):
    """A series of a large or of a small head, its size, and units of a twist in its lengths."""
    size = request.param
    dwi = replace(tiny, affine=np.diag([size] * 3 + [1.0]) @ tiny.affine)
    return dwi, size, np.repeat([size, 1.0], 3)


def poses_at(dwi, twists):
    return Motion(exp_rigid(np.array(twists, float), dwi.brain_center))


@pytest.mark.parametrize(("rotation", "nearest"), [(0.03, 4), (0.05, 2)])
def test_few_volumes_are_known_as_well_as_they_lie_near_a_neighbour(sized, rotation, nearest):
    """2 mm from the one before; from the one after by an angle that is 1.5 or 2.5 mm of a head."""
    dwi, size, unit = sized
    twists = np.zeros((len(dwi), 6))
    twists[:3, 0] = -2.0 * size
    twists[4:, 4] = rotation
    covariances = covariances_of_few(poses_at(dwi, twists), [np.array([3])], dwi)
    way = twists[nearest] / unit
    expected = np.diag((way / Z_95) ** 2)
    np.testing.assert_allclose(covariances[3] / np.outer(unit, unit), expected, atol=1e-9)
    assert not np.delete(covariances, 3, axis=0).any()
    enough = covariances_of_few(poses_at(dwi, twists), [np.arange(6)], dwi)
    assert not enough.any()


@pytest.mark.parametrize("groups", [None, [np.arange(1, 5)]], ids=["one frame", "groups"])
def test_few_directions_count_whether_or_not_a_model_shares_their_frame(groups):
    gradients = shelled_scheme({1000.0: 4}, 1)
    phantom = procedural_head(8.0)
    grid = Grid.covering(phantom, 8.0)
    dwi = acquire(phantom, gradients, Motion.identity(5), grid, snr=None)
    twists = np.zeros((5, 6))
    twists[2:, 1] = 1.5
    twists[3, 2] = 1.0  # a millimetre from both neighbours
    covariances = np.tile(1e-6 * np.eye(6), (5, 1, 1))
    estimate = Estimate(poses_at(dwi, twists), covariances, groups)
    errors = unite_frames(dwi, estimate, align_shells=False).standard_errors
    assert errors[3, 2] == pytest.approx(1 / Z_95, rel=0.01)
    assert errors[4, 1] < 0.01


@pytest.mark.parametrize("way", [0.9, 1.1])
def test_a_volume_far_from_both_neighbours_is_named(sized, way, caplog):
    dwi, size, _ = sized
    twists = np.zeros((len(dwi), 6))
    twists[3, 2] = way * FAR_MM * size
    covariances_of_few(poses_at(dwi, twists), [np.array([3])], dwi)
    assert ("volume 3 (counted from 0): away from both" in caplog.text) == (way > 1)


def test_an_offset_keeps_at_rest_what_is_not_determined(sized):
    """A head that may slide along z and turn about it: what is left of an offset is the rest."""
    dwi, _, unit = sized
    free = np.eye(6)[[2, 5]]
    twist = np.array([1.0, -2.0, 3.0, 0.02, 0.03, -0.01])
    offset = exp_rigid(twist * unit, dwi.brain_center)
    left = log_rigid(_within_determined(offset, free, dwi), dwi.brain_center) / unit
    np.testing.assert_allclose(left, twist * [1, 1, 0, 1, 1, 0], atol=1e-9)


def test_parameters_along_what_is_not_determined_are_not_known(sized):
    """A screw: 1 mm along z with an angle that is 1 mm of a head; the rest is known."""
    dwi, _, _ = sized
    screw = np.array([[0, 0, 1.0, 0, 0, 1.0]]) / np.sqrt(2)
    there = replace(dwi, mask=np.ones_like(dwi.mask))  # centre of the brain: that of the grid
    np.testing.assert_array_equal(affected_parameters(screw, there), [0, 0, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("image", "time", "rest", "expected"),
    [(9, 9, 9, ""), (99, 9, 99, "images"), (9, 99, 9, ""), (9, 9, 99, ""), (9, 99, 99, "time"),
     (99, 99, 99, "images time")],
)  # fmt: skip
def test_time_is_contradicted_by_the_images_and_by_the_rest_of_the_course(
    image, time, rest, expected
):
    """A jump between two volumes alone, or images alone, are no contradiction yet."""
    by_time, by_images = (
        SimpleNamespace(name=name, offset=name, covariance=np.eye(6))
        for name in ("time", "images")
    )
    both = SimpleNamespace(offset="both")
    course = SimpleNamespace(
        squared=lambda offset, _: {"both": image, "time": time}[offset],
        rest_misfit=lambda *_: rest,
    )
    found = contradicting(course, None, by_time, by_images, both)
    assert " ".join(one.name for one in found) == expected


@pytest.mark.parametrize(("ends_at", "expected"), [(0.0, False), (0.7, False), (0.8, True)])
def test_mean_images_confirm_a_jump_where_they_end_near_the_offset_by_images(ends_at, expected):
    """From the offset by time (0) towards that by images (1), 13° and some millimetres away."""
    course = Course(*[np.zeros(1)] * 2, *[np.eye(4)[None]] * 2, np.array([9.0, -5.0, 20.0]))
    twist = np.array([2.0, 1.0, -3.0, 0.1, 0.2, -0.05])
    by_time, registered, by_images = (
        exp_rigid(part * twist, course.center) for part in (0.0, ends_at, 1.0)
    )
    estimates = [OffsetEstimate(one, np.eye(6)) for one in (by_time, by_images)]
    assert confirms(course, registered, *estimates) == expected


@pytest.mark.parametrize("jumped_mm", [pytest.param(0.0, marks=pytest.mark.slow), 8.0])
def test_a_jump_at_the_only_change_of_contrast_is_known_as_well_as_images_show_it(jumped_mm):
    """Time alone contradicts it: .14° off, 7.8° were told."""
    scheme, head = shelled_scheme({1000.0: 9}, 1, seed=2), procedural_head(4.0)
    twists = np.random.default_rng(2).normal(scale=0.05, size=(10, 6)) / [1, 1, 1, 50, 50, 50]
    twists[1:] += np.array([-2.0, 1.0, 3.0, 0.08, -0.05, 0.1]) * jumped_mm / 8
    true = Motion(exp_rigid(twists, np.zeros(3)))
    dwi = acquire(head, scheme, true, Grid.covering(head, 4.0), snr=25.0, coil_bias=0.1, seed=2)
    found = em.estimate_motion(dwi)
    assert found.frame_doubt is None
    wrong = log_rigid(np.linalg.inv(true.relative_to(0).matrices) @ found.matrices,
                      dwi.brain_center)[1:] * [1, 1, 1, 50, 50, 50]  # fmt: skip
    told = found.standard_errors[1:] * [1, 1, 1, 50, 50, 50]
    assert np.abs(wrong).max() < 0.4
    assert told.max() < 0.4
    assert (np.abs(wrong) < 1.96 * told).mean() > 0.9


def test_images_are_asked_for_the_shell_whose_contrast_is_nearest():
    bvals = np.repeat([0.0, 500, 1000, 3000], [2, 4, 8, 10])
    vectors = np.random.default_rng(0).normal(size=(24, 3))
    dwi = SimpleNamespace(gradients=Gradients(bvals, vectors))
    group = dwi.gradients.dwis[::-1].copy()
    np.testing.assert_array_equal(np.unique(bvals[group[_lowest_shell(dwi, group)]]), [1000])
    few = group[bvals[group] < 1000]  # none has enough: the lowest
    np.testing.assert_array_equal(_lowest_shell(dwi, few), np.arange(4))
    scattered = SimpleNamespace(
        gradients=Gradients(np.r_[0.0, np.linspace(300, 5000, 23)], vectors)
    )
    lowest = _lowest_shell(scattered, np.arange(1, 24))
    np.testing.assert_array_equal(lowest, np.arange(23 // 3))


@pytest.mark.parametrize(
    ("b0s", "groups", "expected"),
    [
        ([0], [[1, 2, 3], [4, 5, 6, 7, 8, 9]], (1 + 4) ** 0.5),  # the second beside the first
        ([0, 4], [[1, 2, 3], [5, 6, 7, 8, 9]], 2.0),  # beside a b=0
        ([5], [[4], [3, 9]], (1 + 4) ** 0.5),  # its nearest volume counts, not its middle
    ],
)
def test_errors_of_frames_add_along_the_way_to_the_b0s(b0s, groups, expected, tiny, monkeypatch):
    """Joined with 1 mm² and 4 mm²: each group to the volume that is nearest in time."""
    bvals = np.where(np.isin(np.arange(10), b0s), 0.0, 1000.0)
    gradients = Gradients(bvals, np.random.default_rng(0).normal(size=(10, 3)))
    dwi = replace(tiny, acquisition=replace(tiny.acquisition, gradients=gradients))

    def join(_dwi, _b0_poses, group, *_, **__):
        evidence = FrameEvidence(1000.0, 0.1, np.nan, np.nan, np.nan, contradicted=False)
        variance = np.diag([1.0 if groups[0][0] in group else 4.0] * 3 + [0.0] * 3)
        return JoinedFrame(np.eye(4), variance, evidence)

    monkeypatch.setattr(frames, "find_offset", join)
    groups = [np.array(group) for group in groups]
    united = unite_frames(dwi, Estimate(Motion.identity(10), np.zeros((10, 6, 6)), groups))
    assert united.frame_error == pytest.approx(expected)
    errors = united.standard_errors[:, 0]
    np.testing.assert_allclose(errors[b0s], 0, atol=1e-9)
    np.testing.assert_allclose(errors[groups[1]], expected, rtol=1e-6)


def test_without_images_time_alone_is_told():
    """A head at rest is where it was; nobody contradicts, and images are not mentioned."""
    head, gradients = procedural_head(8.0), shelled_scheme({1000.0: 8}, 3)
    dwi = acquire(head, gradients, Motion.identity(11), Grid.covering(head, 8.0), snr=30)
    offset = exp_rigid(np.array([3.0, -1, 2, 0.04, 0.02, -0.03]), dwi.brain_center)
    own = Motion(np.tile(np.linalg.inv(offset), (8, 1, 1)))
    found = find_offset(dwi, Motion.identity(3), gradients.dwis, own, with_images=False)
    np.testing.assert_allclose(found.offset, offset, atol=1e-6)
    evidence = found.evidence
    assert not evidence.contradicted
    assert np.isfinite(evidence.by_time)
    assert np.isnan([evidence.by_images, evidence.apart_mm]).all()
    assert evidence.bval == pytest.approx(1000)
    assert str(evidence).endswith("the images tell nothing")


def test_of_several_frames_the_worst_is_told():
    """What contradicts itself first, then what lies farthest apart, last what time alone tells."""
    alone, near, far, contradicted = (
        FrameEvidence(1000.0, 0.1, 0.1, apart, 0.0, contradicted=doubt)
        for apart, doubt in ((np.nan, False), (0.1, False), (0.3, False), (0.2, True))
    )
    ranked = sorted((far, contradicted, alone, near), key=_misfit)
    assert ranked == [alone, near, far, contradicted]
