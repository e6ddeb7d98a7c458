# SPDX-License-Identifier: Apache-2.0
"""Frames of several runs, tied by their diffusion-weighted volumes."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.linalg import block_diag

import eddymotion as em
from eddymotion.data.gradients import Gradients
from eddymotion.estimation.runs.ties import (
    Brain,
    FrameTie,
    Network,
    ShownDiffusion,
    seen_from_first,
    shared_shell,
    tie_shell,
    tied_frames,
)
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance, Readout
from eddymotion.mapping.rigid import exp_rigid, log_rigid, rigid_matrix
from eddymotion.simulation import Recipe, shelled_scheme, simulate

IN_MM = np.array([1.0] * 3 + [50.0] * 3)


def covariance(random, size):
    """Any, of translations (mm) and rotations (rad) of like size."""
    root = random.normal(size=(6, 6)) * size
    return root @ root.T / 6 / np.outer(IN_MM, IN_MM) + np.diag((size / 9 / IN_MM) ** 2)


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_a_network_is_solved_as_all_its_edges_together(shared, monkeypatch):
    """The plain twin: one least-squares problem whose rows are the edges."""
    monkeypatch.setattr("eddymotion.estimation.runs.ties.network.SHARED", shared)
    random = np.random.default_rng(0)
    within = [covariance(random, 0.1) for _ in range(3)]
    of_b0 = np.stack([np.zeros((6, 6)), *(covariance(random, 0.04) for _ in range(2))])
    noise = block_diag(*(covariance(random, 0.02) for _ in range(2)))
    steps = np.concatenate([np.zeros((1, 6)), random.normal(scale=0.05, size=(2, 6)) / IN_MM])
    tied = Network(of_b0, within, np.arange(3), steps, block_diag(np.zeros((6, 6)), noise))
    found, after, widened = tied.solve()
    assert widened == 1
    eye, none = np.eye(6), np.zeros((6, 6))
    edges = np.block([  # unknowns: b of runs 2 and 3, d of runs 1 to 3
        [none, none, eye, none, none], [-eye, none, none, eye, none],
        [none, -eye, none, none, eye], [eye, none, none, none, none],
        [none, eye, none, none, none], [none, none, -eye, eye, none],
        [none, none, -eye, none, eye],
    ])  # fmt: skip
    spread = block_diag(tied._within(), of_b0[1], of_b0[2], noise)
    normal = edges.T @ np.linalg.solve(spread, edges)
    told = np.concatenate([np.zeros(30), steps[1:].ravel()])
    expected = np.linalg.solve(normal, edges.T @ np.linalg.solve(spread, told))
    np.testing.assert_allclose(found[1:].ravel(), expected, atol=1e-9)
    np.testing.assert_allclose(after[6:, 6:], np.linalg.inv(normal), atol=1e-10)
    assert not found[0].any()
    one_by_one = tied._within()[:6, 6:12]
    assert np.allclose(one_by_one, 0) == (shared == 0)


def test_edges_that_contradict_each_other_widen_the_weakest():
    within = [np.diag((0.02 / IN_MM) ** 2)] * 2
    steps = np.stack([np.zeros(6), 0.3 / IN_MM])
    noise = block_diag(np.zeros((6, 6)), np.diag((0.01 / IN_MM) ** 2))
    found, after, widened = Network(
        np.zeros((2, 6, 6)), within, np.arange(2), steps, noise
    ).solve()
    assert widened > 100
    apart = found[3] - found[2]
    np.testing.assert_allclose(apart * IN_MM, 0.3, rtol=0.05)
    assert (np.sqrt(np.diag(after)[12:]) * np.tile(IN_MM, 2) > 0.1).all()


@pytest.mark.parametrize("alike", [True, False])
def test_a_tie_moves_its_volumes_alone(alike):
    """Be they moved alike or each its own way."""
    center, n = np.array([3.0, -5.0, 10.0]), 4
    random = np.random.default_rng(1)
    poses = exp_rigid(random.normal(size=(n, 6)) / IN_MM, center)
    before, after = covariance(random, 0.1), covariance(random, 0.02)
    errors = np.sqrt(np.full((n, 6), 0.03**2) / IN_MM**2 + np.diag(before).max())
    motion = Motion(poses, errors, 0.1, center=center, frame_covariance=before)
    offset = rigid_matrix(np.array([0.1, 0.2, -0.1]), np.array([0.01, 0, 0.02]), center)
    if not alike:
        offset = offset @ exp_rigid(random.normal(size=(2, 6)) / 20 / IN_MM, center)
    tie = FrameTie.of(FrameTie(np.array([1, 3]), offset, before, after, center).plain())
    moved = tie.applied(motion)
    np.testing.assert_allclose(moved.matrices[[0, 2]], poses[[0, 2]])
    np.testing.assert_allclose(moved.matrices[[1, 3]], poses[[1, 3]] @ offset)
    assert (moved.standard_errors[[1, 3]] < errors[[1, 3]]).all()
    np.testing.assert_allclose(moved.standard_errors[[0, 2]], errors[[0, 2]])
    assert moved.frame_error == pytest.approx(np.sqrt(np.diag(after)[:3].max()))
    np.testing.assert_allclose(moved.frame_covariance, after)


def test_a_covariance_is_seen_from_the_frame_of_the_first_run():
    """As what it is made of: twists of the run's frame, moved into the first."""
    random = np.random.default_rng(2)
    own, center = np.array([5.0, 10.0, -7.0]), np.zeros(3)
    pose = rigid_matrix(np.array([4.0, 12.0, -6.0]), np.array([0.3, -0.2, 0.5]), center)
    of_run = covariance(random, 0.1)
    twists = random.multivariate_normal(np.zeros(6), of_run, 4000)
    moved = log_rigid(np.linalg.inv(pose) @ exp_rigid(twists, own) @ pose, center)
    seen = seen_from_first(of_run, pose, own, center)
    ratio = np.diag(np.cov(moved.T)) / np.diag(seen)
    np.testing.assert_allclose(ratio, 1, atol=0.12)


@pytest.fixture(scope="module")
def session():
    """Two runs of one head without a field, of other directions, and their true motions."""
    recipe = Recipe(head="synthetic", random_seed=4, voxel_size=(5.0, 5.0, 5.0), motion="drift",
                    snr=25.0, coil_bias=0.0)  # fmt: skip
    made = [simulate(recipe, gradients=shelled_scheme({1000.0: 8}, 2, seed=run + 1))
            for run in range(2)]  # fmt: skip
    first = np.linalg.inv(made[0].motion[0])
    return [run.dwi for run in made], [run.motion.matrices @ first for run in made]


OFF = np.array([0.4, -0.3, 0.5, 0.006, -0.008, 0.005])
TOLD = np.diag((0.3 / IN_MM) ** 2)


def shown_of(session, off):
    """The runs at their true poses, the diffusion-weighted volumes of the second moved away."""
    dwis, true = session
    shown = []
    for dwi, poses, away in zip(dwis, true, (np.zeros(6), off), strict=True):
        motion = Motion(poses, frame_covariance=TOLD)
        volumes = dwi.gradients.dwis
        moved = motion.updated(volumes, poses[volumes] @ exp_rigid(-away, dwi.brain_center))
        shown.append(ShownDiffusion.of(dwi, replace(moved, frame_covariance=TOLD)))
    return shown


def test_runs_of_other_directions_tie_each_other(session):
    """Found against the truth, within what is told; a run beside them without partners stays."""
    dwis, _ = session
    shown, brain = shown_of(session, OFF), Brain(dwis[0].mask, dwis[0].affine)
    poses, unknown = np.tile(np.eye(4), (3, 1, 1)), np.full((3, 3), np.nan)
    shell = shared_shell([shown[0], None, shown[1]], poses, unknown)
    np.testing.assert_array_equal(shell.runs, [0, 2])
    tied = tie_shell(shell, None, brain, Compute(1, 0))
    errors = np.sqrt(np.diag(tied.covariance)).reshape(2, 6)
    assert not tied.steps[0].any()
    assert not errors[0].any()
    wrong = (tied.steps[1] - OFF) * IN_MM
    assert np.abs(wrong).max() < 0.12
    assert (np.abs(wrong) < 4 * errors[1] * IN_MM).all()
    assert (errors[1] * IN_MM < 0.15).all()


def test_the_weaker_of_two_frames_follows(session):
    """Where only one run knows its frame, the other takes it over."""
    dwis, _ = session
    sure, unsure = shown_of(session, OFF)
    sure = replace(sure, covariance=TOLD / 100)
    poses, unknown = np.tile(np.eye(4), (2, 1, 1)), np.full((2, 3), np.nan)
    errors = np.stack([np.zeros(6), 0.02 / IN_MM])
    brain = Brain(dwis[0].mask, dwis[0].affine)
    tied = tied_frames([sure, unsure], poses, errors, unknown, None, brain, Compute(1, 0))
    first, second = (log_rigid(tie.offset, brain.center).mean(axis=0) * IN_MM for tie in tied.ties)
    assert np.abs(first).max() < 0.03
    assert np.abs(second - OFF * IN_MM).max() < 0.15
    assert (np.diag(tied.ties[1].after) < np.diag(TOLD) / 4).all()
    np.testing.assert_array_equal(tied.ties[1].volumes, dwis[1].gradients.dwis)


def scattered(session):
    """The runs at their true poses but for their diffusion-weighted volumes, each moved away."""
    random, shown, ways = np.random.default_rng(3), [], []
    for dwi, poses in zip(*session, strict=True):
        away = random.normal(scale=0.4, size=(len(dwi.gradients.dwis), 6)) / IN_MM
        ways.append(away - away.mean(axis=0))
        matrices = poses[dwi.gradients.dwis] @ exp_rigid(-ways[-1], dwi.brain_center)
        moved = Motion(poses).updated(dwi.gradients.dwis, matrices)
        shown.append(ShownDiffusion.of(dwi, replace(moved, frame_covariance=TOLD)))
    return shown, ways


def tied_at_rest(dwis, shown):
    """Tie the runs of a session whose frames are known."""
    poses, unknown = np.tile(np.eye(4), (2, 1, 1)), np.full((2, 3), np.nan)
    errors = np.stack([np.zeros(6), 0.02 / IN_MM])
    brain = Brain(dwis[0].mask, dwis[0].affine)
    return tied_frames(shown, poses, errors, unknown, None, brain, Compute(1, 0))


def test_volumes_of_all_runs_predict_each_other(session):
    """Volumes of either run are brought back to where they were seen, and the frame stays."""
    dwis, _ = session
    shown, ways = scattered(session)
    center = dwis[0].brain_center
    for tie, away in zip(tied_at_rest(dwis, shown).ties, ways, strict=True):
        found = log_rigid(tie.offset, center) * IN_MM
        own = found - found.mean(axis=0)
        left = own - away * IN_MM
        assert np.sqrt((left**2).mean()) < 0.15
        assert np.sqrt((left**2).mean()) < 0.4 * np.sqrt((own**2).mean())


def test_volumes_stay_where_their_run_has_them_if_not_all_of_them_are_shown(session):
    dwis, _ = session
    shown, _ = scattered(session)
    shown[0] = shown[0].select(np.arange(7))
    first, second = tied_at_rest(dwis, shown).ties
    assert first.offset.shape == (4, 4)
    assert second.offset.shape == (len(dwis[1].gradients.dwis), 4, 4)


def darkened(dwi):
    """Two slices of every other diffusion-weighted volume keep a fifth of their signal."""
    dark = dwi.signal.copy()
    for number, volume in enumerate(dwi.gradients.dwis[::2]):
        first = 12 + 2 * number
        dark[:, :, first : first + 2, volume] *= 0.2
    return replace(dwi, signal=dark)


def test_slices_without_signal_do_not_move_their_volumes(session):
    """Left out, darkness and all; with it the volumes go three times as far elsewhere."""
    whole, true = session
    spoilt, found = [darkened(dwi) for dwi in whole], []
    for dwis in (whole, spoilt):
        shown = [
            ShownDiffusion.of(dwi, Motion(poses, frame_covariance=TOLD))
            for dwi, poses in zip(dwis, true, strict=True)
        ]
        offsets = [tie.offset for tie in tied_at_rest(dwis, shown).ties]
        found.append(log_rigid(np.concatenate(offsets), dwis[0].brain_center) * IN_MM)
    assert [one.lost.flagged.sum() for one in shown] == [8, 8]
    assert np.sqrt(((found[1] - found[0]) ** 2).mean()) < 0.02


def dip(shape, affine):
    """A field that curves as above a cavity: by 6 mm in front, low in the brain."""
    away = (grid_points(shape, affine) - [0.0, 35.0, -20.0]) / 30.0
    hertz = -200 * np.exp(-(away**2).sum(axis=1)).reshape(shape)
    return OffResonance.of_image(Image(hertz.astype(np.float32), affine))


def squeezed(dwi, poses, field, shift):
    """Record each volume through a field of the head: what is at ``y`` goes to ``y + d(y)``."""
    recorded = np.empty_like(dwi.signal)
    points = grid_points(dwi.shape, dwi.affine)
    for volume, pose in enumerate(poses):
        origins, to_head = points.copy(), np.linalg.inv(pose)
        for _ in range(30):
            origins = points - field.hertz(apply_affine(to_head, origins))[:, None] * shift
        readout = Readout.of_shift(shift)
        stretch = readout.displaced(field, apply_affine(to_head, origins), pose)[1]
        data = np.nan_to_num(dwi.volume(volume).spline.sample(origins)) / stretch
        recorded[..., volume] = data.reshape(dwi.shape)
    return replace(dwi, signal=recorded)


@pytest.mark.slow
def test_volumes_are_filtered_without_their_distortion(session):
    """Else runs of opposite polarity are moved against each other by where the field curves."""
    dwis, true = session
    field, along = dip(dwis[0].shape, dwis[0].affine), np.array([0.0, 0.03, 0.0])
    poses, shifts = np.tile(np.eye(4), (2, 1, 1)), np.stack([along, -along])
    brain, found = Brain(dwis[0].mask, dwis[0].affine), []
    for known in (None, field):
        runs = dwis if known is None else map(squeezed, dwis, true, [field] * 2, shifts)
        shown = [
            ShownDiffusion.of(dwi, Motion(own, frame_covariance=TOLD))
            for dwi, own in zip(runs, true, strict=True)
        ]
        tied = tie_shell(shared_shell(shown, poses, shifts), known, brain, Compute(1, 0))
        found.append(tied.steps[1] * IN_MM)
    assert np.abs(found[1] - found[0]).max() < 0.01


def test_runs_that_share_no_shell_are_not_tied(session):
    shown = shown_of(session, OFF)
    table = shown[1].gradients
    higher = replace(shown[1], gradients=Gradients(3 * table.bvals, table.bvecs))
    poses, unknown = np.tile(np.eye(4), (2, 1, 1)), np.full((2, 3), np.nan)
    assert shared_shell([shown[0], higher], poses, unknown) is None
    assert shared_shell([shown[0], None], poses, unknown) is None
    few = shown[1].select(np.arange(5))
    assert shared_shell([shown[0], few], poses, unknown) is None


def test_of_several_shells_that_with_the_most_directions_is_taken(session):
    """A few directions at a low b-value may lie in a frame of their own."""
    both = []
    for shown, low in zip(shown_of(session, OFF), ([0, 3], [1, 2]), strict=True):
        bvals = np.array(shown.gradients.bvals)
        bvals[low] = 400.0
        both.append(replace(shown, gradients=Gradients(bvals, shown.gradients.bvecs)))
    poses, unknown = np.tile(np.eye(4), (2, 1, 1)), np.full((2, 3), np.nan)
    chosen = shared_shell(both, poses, unknown)
    np.testing.assert_allclose(chosen.gradients.bvals, 1000)
    assert [len(one.images) for one in chosen.shown] == [6, 6]


def test_a_run_without_an_error_of_its_frame_is_not_shown(session):
    dwis, true = session
    assert ShownDiffusion.of(dwis[0], Motion(true[0])) is None


@pytest.mark.slow
def test_runs_estimated_together_agree_better_than_alone(session):
    dwis, true = session
    together = em.estimate_motion(dwis)
    alone = [em.estimate_motion(dwi) for dwi in dwis]
    center = dwis[0].brain_center

    def apart(motions):
        """How the two runs' diffusion-weighted frames lie to each other, beyond the truth."""
        wrong = [
            log_rigid(np.linalg.inv(poses) @ motion.matrices, center)[dwi.gradients.dwis].mean(0)
            for dwi, poses, motion in zip(dwis, true, motions, strict=True)
        ]
        return np.linalg.norm((wrong[1] - wrong[0]) * IN_MM)

    assert apart(together) < 0.15
    assert apart(together) < apart(alone)
    for motion in together:
        assert motion.frame_covariance is not None
