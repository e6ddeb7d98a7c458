# SPDX-License-Identifier: Apache-2.0
"""Fields that follow the head: found where they are there, and left out where they are not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.data.acquisition import Acquisition
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.fields.following import (
    NEGLECTED_PART,
    NEGLECTED_SHIFT,
    OF_TILTED,
    PoseResponse,
    covariances_by_ambiguity,
    covariances_by_neglect,
    covariances_by_tilt,
    follow_poses,
    pose_regressors,
    with_offsets_of_poses,
)
from eddymotion.estimation.fields.offsets import with_offsets
from eddymotion.estimation.fields.prior import NO_PRIOR, FieldPrior
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.joint.first_levels import with_cubic_fields
from eddymotion.estimation.joint.known_fields import KnownFields
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.simulation import (
    Grid,
    acquire,
    cartesian_scheme,
    procedural_head,
    shelled_scheme,
)

CENTER = np.array([3.0, -10.0, 20.0])
SCHEME = shelled_scheme({1000.0: 24}, 2, seed=3)


@pytest.fixture(scope="module")
def matrices():
    """A head that pitches, rolls and turns about the main field."""
    random = np.random.default_rng(2)
    walk = np.cumsum(random.normal(size=(len(SCHEME), 6)), axis=0)
    walk = (walk - walk[0]) / np.abs(walk - walk[0]).max(axis=0)
    return rigid_matrix(walk[:, :3] * 2.0, walk[:, 3:] * np.deg2rad([9.0, 4.0, 6.0]), CENTER)


@pytest.fixture(scope="module")
def response():
    return np.random.default_rng(4).normal(scale=[[0.05]] * 3 + [[0.3]] * 2, size=(5, 9))


def test_a_turn_about_the_main_field_changes_nothing():
    angles = np.array([[0, 0, 0], [0, 0, 0.2], [0.1, 0, 0], [0, 0.1, 0]])
    poses = pose_regressors(rigid_matrix(np.zeros((4, 3)), angles, CENTER), CENTER, 0)
    np.testing.assert_allclose(poses[:2], 0, atol=1e-12)
    np.testing.assert_allclose(poses[2:], [[0, 0, 0, 5, 0], [0, 0, 0, 0, 5]], atol=1e-12)


def test_what_follows_the_head_is_told_from_gradients_and_noise(matrices, response):
    random, n = np.random.default_rng(7), len(SCHEME)
    poses = pose_regressors(matrices, CENTER, 0)
    by_gradients = SCHEME.qvecs @ random.normal(size=(3, 9))
    noise = random.normal(scale=0.1, size=(n, 9))
    found = follow_poses(by_gradients + poses @ response + noise, SCHEME, poses)
    assert found.is_there
    np.testing.assert_allclose(poses @ found.response, poses @ response, atol=0.4)
    assert 0.08 < found.own_mm < 0.12
    assert not follow_poses(by_gradients + noise, SCHEME, poses).is_there
    little = follow_poses(by_gradients + 0.1 * poses @ response + 0.1 * noise, SCHEME, poses)
    assert little.p < 1e-6
    assert not little.is_there, "as a field that only turns with the head seems to"
    few = np.arange(12)
    assert follow_poses(noise[few], SCHEME.select(few), poses[few]) is None


def test_a_head_that_happens_to_move_with_the_b_value_has_no_fields_for_it(matrices, response):
    """What the model gets wrong follows the b-value: 1.3 mm and 1.5° off in random q-space."""
    random, scheme = np.random.default_rng(7), cartesian_scheme(28, 4000.0, 1, seed=2)
    b = scheme.bvals / 1000.0
    moves = 0.6 * np.outer(b - b.mean(), [0, 0, 0, 0, 1]) + random.normal(size=(len(b), 5))
    by_b_value = np.outer(b, random.normal(scale=0.5, size=9))
    noise = random.normal(scale=0.3, size=(len(b), 9))
    assert not follow_poses(by_b_value + noise, scheme, moves).is_shown
    fields = moves @ (2 * response)
    found = follow_poses(by_b_value + fields + noise, scheme, moves)
    assert found.is_there
    away = [poses - poses.mean(axis=0) for poses in (moves @ found.response, fields)]
    np.testing.assert_allclose(*away, atol=0.6)


def test_common_field_is_that_of_the_reference(matrices, response):
    """A field common to all volumes says nothing: it is none where the head was at first."""
    poses = pose_regressors(matrices, CENTER, 0)
    fields = SCHEME.qvecs @ np.ones((3, 9)) + poses @ response
    prior = FieldPrior(np.ones(9), poses)
    np.testing.assert_allclose(prior.centred(fields + 5.0, SCHEME), fields, atol=1e-6)
    some = np.arange(5, 26)
    np.testing.assert_allclose(
        prior.of_volumes(some).centred(fields[some] - 2.0, SCHEME.select(some)),
        fields[some], atol=1e-6,
    )  # fmt: skip


def test_poses_are_less_certain_along_the_phase_encoding(matrices, response):
    poses = pose_regressors(matrices, CENTER, 0)
    eddy = EddyCurrents(poses @ response, np.array([0.0, 1.0, 0.0]), CENTER)
    points = CENTER + np.random.default_rng(0).normal(scale=50, size=(200, 3))
    found = covariances_by_ambiguity(eddy, response, poses, points)
    assert not found[0].any()
    assert (found[5:, 1, 1] > 0).all()
    assert not found[:, [0, 2], [0, 2]].any()


def test_what_is_linear_in_fields_that_follow_the_head_is_none_in_the_middle(matrices, response):
    """The constant that goes with them; of the gradients' nothing is in it."""
    poses = pose_regressors(matrices, CENTER, 0)
    by_gradients = SCHEME.qvecs @ np.ones((3, 9))
    eddy = EddyCurrents(by_gradients + poses @ response, np.array([0.0, 1.0, 0.0]), CENTER)
    points = CENTER + np.random.default_rng(0).normal(scale=40, size=(500, 3)) + [0, 0, 20]
    found = with_offsets_of_poses(eddy, response, poses, matrices, points)
    assert found.offsets[0] == pytest.approx(0, abs=1e-9)
    assert np.abs(found.offsets).max() > 0.2
    for volume in (3, 11, 25):
        scanner = points @ matrices[volume, :3, :3].T + matrices[volume, :3, 3]
        displaced = eddy.terms(scanner) @ (poses[volume] @ response) + found.offsets[volume]
        linear = np.column_stack([np.ones(len(points)), scanner - CENTER])
        assert np.linalg.lstsq(linear, displaced)[0][0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("driven", "kept"), [(0.01, 0.3), (1.0, 0.9)])
def test_a_head_that_moves_far_is_not_taken_for_eddy_currents(matrices, response, driven, kept):
    """What its steps have of the gradients, by chance or not, if fields do not change so."""
    pe, poses = np.array([0.0, 1.0, 0.0]), pose_regressors(matrices, CENTER, 0)
    follows = SCHEME.qvecs @ np.array([0.5, -0.3, 0.6])
    moved = matrices.copy()
    moved[:, 1, 3] -= follows
    by_gradients = driven * SCHEME.qvecs @ np.random.default_rng(8).normal(size=(3, 9))
    by_turns = poses[:, 3:] @ response[3:]
    eddy = EddyCurrents(by_gradients + by_turns, pe, CENTER, np.zeros(len(SCHEME)))
    alone, known = (
        with_offsets(Motion(moved, eddy_currents=one), SCHEME).eddy_currents
        for one in (replace(eddy, offsets=None), eddy)
    )
    size = np.abs(known.offsets).max() / np.abs(alone.offsets).max()
    assert size < kept if driven < 0.1 else size > kept
    assert (known.offset_errors <= alone.offset_errors + 1e-12).all()


def test_fields_that_may_follow_a_head_that_moved_little_widen_the_errors(matrices, response):
    poses = 0.1 * pose_regressors(matrices, CENTER, 0)
    noise = np.random.default_rng(7).normal(scale=0.02, size=(len(SCHEME), 9))
    found = follow_poses(poses @ response + noise, SCHEME, poses)
    assert found.is_suspected
    assert not found.is_there
    assert not follow_poses(noise, SCHEME, poses).is_suspected
    eddy = EddyCurrents(poses @ response, np.array([0.0, 1.0, 0.0]), CENTER)
    points = CENTER + np.random.default_rng(0).normal(scale=50, size=(200, 3))
    moved = np.zeros((len(SCHEME), 6))
    covariances = covariances_by_neglect(eddy, response, poses, moved, points)
    displaced = [eddy.displacement(volume, points) for volume in range(len(SCHEME))]
    expected = NEGLECTED_SHIFT**2 * np.square(displaced).mean(axis=1)
    np.testing.assert_allclose(covariances[:, 1, 1], expected, rtol=1e-6)
    assert not covariances[0].any()
    assert not covariances[:, [0, 2, 4], [0, 2, 4]].any(), "displaced along y alone"
    np.testing.assert_allclose(50**2 * covariances[:, 3, 3], expected, rtol=1e-6)
    moved[3] = [0.1, 0.2, 0.0, 0.0, 0.03, 0.0]
    more = covariances_by_neglect(eddy, response, poses, moved, points) - covariances
    assert not more[:3].any()
    along = moved[3] / np.linalg.norm(moved[3])
    assert np.sqrt(along @ more[3] @ along) == pytest.approx(
        NEGLECTED_PART * np.linalg.norm(moved[3])
    )


@pytest.fixture(scope="module")
def twelve(matrices, response):
    """Fields of a series of one b=0 and twelve directions, which follow its head, and noise."""
    some = np.r_[SCHEME.b0s[0], SCHEME.dwis[:12]]
    poses = pose_regressors(matrices[some], CENTER, 0)
    noise = np.random.default_rng(7).normal(scale=0.1, size=(13, 9))
    return SCHEME.select(some), matrices[some], noise, poses[:, 3:] @ response[3:]


def looked_at(twelve, coefficients):
    """What is known of fields once they were weighed; they are kept in no case."""
    gradients, poses, noise, _ = twelve
    mask = np.zeros((8, 9, 7), bool)
    mask[1:-1, 1:-1, 1:-1] = True
    affine = np.diag([20.0, 20.0, 20.0, 1.0])
    affine[:3, 3] = CENTER - 20 * (np.array(mask.shape) - 1) / 2
    known = KnownFields(SimpleNamespace(gradients=gradients, brain_center=CENTER, mask=mask,
                                        affine=affine))  # fmt: skip
    eddy = EddyCurrents(noise + coefficients, np.array([0.0, -1.0, 0.0]), CENTER)
    group = SimpleNamespace(volumes=gradients.dwis)
    motion = Motion(poses, eddy_currents=eddy)
    assert known._poses_followed(motion, group, known=False) is None
    return known, motion, group


def test_fields_of_few_volumes_show_how_they_change_with_the_tilt(twelve):
    """Six numbers are left by gradients and tilts of twelve volumes, and that is enough."""
    known, motion, _ = looked_at(twelve, twelve[3])
    tilts = known.poses(motion)[1:, 3:]
    points, away = known._brain, np.linalg.norm(tilts - tilts.mean(axis=0), axis=1) / 50
    displaced = motion.eddy_currents.terms(points) @ (twelve[3][1:] - twelve[3][1:].mean(axis=0)).T
    true = np.sqrt(displaced.var(axis=0).mean() / np.mean(away**2))
    np.testing.assert_allclose(known.a_radian, [0, true, 0], rtol=0.15)


def test_what_does_not_follow_the_tilt_is_no_changing_field(twelve):
    """Noise is not, nor a field that only turns with the head: neither changes any error."""
    for fields in (0.0, 0.05 * twelve[3] - 0.95 * twelve[2]):
        assert looked_at(twelve, fields)[0].a_radian is None
    known, motion, group = looked_at(twelve, twelve[3])
    still = replace(motion.eddy_currents, coefficients=twelve[2])
    known._look_at_tilts(replace(motion, eddy_currents=still), group)
    assert known.a_radian is None, "fields that were looked at before"


def test_a_field_that_changes_with_the_tilt_widens_the_errors_of_tilted_volumes():
    """Along the phase encoding and of turns about the axes across it, in the frame of the b=0."""
    angles = np.array([[0, 0, 0], [0, 0, 0.2], [0.03, 0, 0], [0.0, 0.06, 0]])
    poses = rigid_matrix(np.zeros((4, 3)), angles, CENTER)
    found = covariances_by_tilt(poses, np.array([0.0, 20.0, 0.0]))
    assert not found[:2].any()
    expected = 0.6 * np.array([0, OF_TILTED[0], 0, *np.array([1, 0, 1]) * OF_TILTED[1] / 50])
    np.testing.assert_allclose(found[2], np.diag(expected**2), rtol=1e-3)
    np.testing.assert_allclose(found[3], 4 * np.diag(expected**2), rtol=2e-3)


def test_such_errors_count_in_the_frame_of_the_first_b0(tiny):
    """From its tilt to that of each volume, b=0 or not."""
    n, first = len(tiny), tiny.reference
    angles = np.zeros((n, 3))
    angles[:, 0] = 0.01 * np.arange(n)
    estimate = Estimate(
        Motion(rigid_matrix(np.zeros((n, 3)), angles, tiny.brain_center)), np.zeros((n, 6, 6))
    )
    known = replace(estimate, a_radian=np.array([0.0, 20.0, 0.0]))
    before, after = (
        unite_frames(tiny, one, align_shells=False).standard_errors for one in (estimate, known)
    )
    assert not before.any()
    away = np.abs(np.arange(n) - first)
    np.testing.assert_allclose(after[:, 1], 0.2 * OF_TILTED[0] * away, rtol=0.02, atol=1e-9)


class Solved:
    """A solver whose cubic fields are known."""

    def __init__(self, dwi, coefficients):
        self.coefficients, self.chance = coefficients, {"b>0": 0.02}
        self.fields = WeighedFields(dwi, FieldPrior(np.ones(9)))

    def solve(self, level, groups, motion):
        assert motion.eddy_currents.order == "cubic"
        assert self.fields.prior is NO_PRIOR
        self.chance["b>0"] = 0.04
        eddy = replace(motion.eddy_currents, coefficients=self.coefficients)
        return replace(motion, eddy_currents=eddy), ["cubic"]

    def enough_points(self, group):
        return 12_000


class WeighedFields(KnownFields):
    weighed = False

    def weigh(self, motion, solution, group, *, by_evidence, points, follow):
        assert by_evidence
        assert points == 1
        self.weighed = follow
        return motion


@pytest.mark.parametrize(("size", "n_dwis", "order"), [
    (1.0, 24, "cubic"), (0.0, 24, "quadratic"), (1.0, 18, "quadratic"),
])  # fmt: skip
def test_cubic_fields_are_for_those_that_follow_the_head(matrices, response, size, n_dwis, order):
    random, n = np.random.default_rng(6), len(SCHEME)
    poses = pose_regressors(matrices, CENTER, 0)
    cubic = size * poses @ random.normal(scale=[[0.02]] * 3 + [[0.3]] * 2, size=(5, 10))
    fields = np.hstack([poses @ response, cubic + random.normal(scale=0.3, size=(n, 10))])
    dwi = SimpleNamespace(gradients=SCHEME, brain_center=CENTER)
    solver, pe = Solved(dwi, fields), np.array([0.0, 1.0, 0.0])
    known, groups = solver.fields.prior, [SimpleNamespace(volumes=SCHEME.dwis[:n_dwis])]
    motion = em.Motion(matrices, eddy_currents=EddyCurrents(fields[:, :9], pe, CENTER))
    found, problems = with_cubic_fields(solver, groups, motion, ["quadratic"])
    assert found.eddy_currents.order == order
    assert problems == [order]
    assert solver.fields.weighed == (order == "cubic")
    assert order == "cubic" or solver.fields.prior is known
    assert solver.chance["b>0"] == (0.04 if solver.fields.weighed else 0.02)


@pytest.mark.slow
def test_a_series_whose_field_changes_with_the_head_is_corrected(matrices, response):
    """b=0 volumes, too; fields that only follow the gradients could not."""
    head = procedural_head(4.0)
    grid = Grid.covering(head, 4.0, "LAS")
    motion = em.Motion(matrices)
    poses = pose_regressors(matrices, grid.center, 0)
    eddy = EddyCurrents(poses @ response, grid.affine[:3, 1] / 4.0, grid.center)
    for fields, there in ((eddy, True), (None, False)):
        dwi = acquire(head, SCHEME, motion, grid, snr=30, eddy=fields, n_threads=2)
        acquisition = Acquisition.every(SCHEME, grid.affine, phase_encoding="j")
        found = em.estimate_motion(replace(dwi, acquisition=acquisition), n_threads=2)
        assert (found.eddy_currents is not None) == there
        if not there:
            continue
        points = dwi.brain_center + np.random.default_rng(1).normal(scale=35, size=(300, 3))
        errors, without = [], []
        for volume in range(len(dwi)):
            true = eddy.displaced(volume, points, matrices[volume])[0]
            errors.append(found.displaced(volume, points)[0] - true)
            without.append(points @ matrices[volume][:3, :3].T + matrices[volume][:3, 3] - true)
        rms, before = (np.sqrt((np.array(a) ** 2).sum(axis=2).mean(axis=1))
                       for a in (errors, without))  # fmt: skip
        b0 = int(dwi.gradients.b0s[1])
        assert rms.mean() < 0.4 * before.mean()
        assert rms[b0] < 0.5 * before[b0]


def test_nothing_follows_a_head_that_hardly_moved():
    """What seemed to, of a head at rest and of one that nodded within volumes."""
    for moved, own, pose in ((0.17, 0.08, 0.13), (0.15, 0.10, 0.34)):
        seeming = PoseResponse(np.zeros((5, 9)), moved, own, pose, 1e-8)
        assert seeming.is_shown
        assert not seeming.is_there
    assert PoseResponse(np.zeros((5, 9)), 1.0, 0.1, 3.0, 1e-8).is_there
