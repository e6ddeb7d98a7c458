# SPDX-License-Identifier: Apache-2.0
"""Motion within volumes: how it is simulated, written and measured."""

import json
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.cli import simulate as command
from eddymotion.data.acquisition import Slicing
from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.evaluation import (
    compare_trajectory,
    motion_within,
    trajectory_coverage,
)
from eddymotion.images.grid import Grid
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.itk import read_itk
from eddymotion.io.series import load
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.trajectory import read_trajectory, write_trajectory
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import Readout
from eddymotion.mapping.rigid import exp_rigid, mean_pose, rigid_matrix
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation import (
    COURSES,
    Distortion,
    KSpace,
    SliceTiming,
    SyntheticHead,
    acquire,
    procedural_head,
    shelled_scheme,
    simulate_course,
    simulate_eddy_currents,
    simulate_within_volumes,
)
from eddymotion.simulation.courses import replayed_trajectory

TIMING = SliceTiming(multiband=3)
CENTER = np.array([2.0, -3.0, 5.0])


def course(name, n=8, n_slices=18, seed=3, timing=TIMING):
    return simulate_course(name, n, n_slices, timing, CENTER, seed=seed)


def a_field(pose):
    """Off-resonance (Hz) that bends along the head and changes with its pose."""
    _, y, z = np.indices((20, 24, 20)) - 10.0
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = -120
    return Image((30 * np.sin(y / 4) + 3 * z + 100 * pose[0, 2]).astype(np.float32), affine)


@pytest.mark.parametrize(
    "setting",
    ["voxels", "eddy", "kspace", "field", "synthetic"],
)
def test_each_slice_is_that_of_a_volume_at_its_pose(setting):
    """The twin scans whole volumes at the pose of one slice, and keeps that slice."""
    head = SyntheticHead(1) if setting == "synthetic" else procedural_head(8.0)
    grid = Grid.covering(head, 16.0)
    gradients = shelled_scheme({3000.0: 2}, 1)
    motion = simulate_course("fast-drift", 3, grid.shape[2], TIMING, grid.center, seed=2)
    options = {"snr": None}
    if setting == "eddy":
        options["eddy"] = simulate_eddy_currents(gradients, grid, order="quadratic", seed=1)
    if setting == "kspace":
        options["kspace"] = KSpace(ghost=0.02)
    if setting == "field":
        readout = Readout.of(grid.affine, "j", 0.05)
        options["distortion"] = Distortion(a_field, readout)
    scan = acquire(head, gradients, motion, grid, **options).signal
    for slice_ in (3, 4, 8):
        volumes = Motion(motion.poses[:, slice_])
        twin = acquire(head, gradients, volumes, grid, **options).signal[:, :, slice_]
        tolerance = 2e-3 if setting in ("voxels", "eddy", "kspace", "field") else 1e-5
        np.testing.assert_allclose(scan[:, :, slice_], twin, atol=tolerance * twin.max())
    apart = np.abs(scan[:, :, 4] - acquire(head, gradients, Motion(motion.poses[:, 3]), grid,
                                           **options).signal[:, :, 4])  # fmt: skip
    assert apart.max() > 0.02 * scan.max()


@pytest.mark.parametrize("name", list(COURSES))
def test_course_starts_at_the_reference_and_goes_on_smoothly(name):
    motion = course(name, 24, 36)
    np.testing.assert_allclose(motion.mean(CENTER)[0], np.eye(4), atol=1e-9)
    steps = (
        np.linalg.inv(motion.matrices.reshape(-1, 4, 4)[:-1])
        @ motion.matrices.reshape(-1, 4, 4)[1:]
    )
    points = CENTER + np.array([[60.0, 0, 0], [0, 70, 0], [0, 0, 50]])
    moved = np.array([np.abs(apply_affine(s, points) - points).max() for s in steps])
    assert moved.max() < 4  # in a third of a second
    assert np.count_nonzero(moved > 1e-6) > 5
    again = course(name, 24, 36)
    assert again.matrices.tobytes() == motion.matrices.tobytes()
    assert course(name, 24, 36, seed=4).matrices.tobytes() != motion.matrices.tobytes()


def test_nods_and_jumps_leave_volumes_at_rest():
    still = {}
    for name in COURSES:
        motion = course(name, 36, 54)
        spread = np.abs(motion.matrices - motion.matrices[:, :1]).max(axis=(1, 2, 3))
        still[name] = np.mean(spread < 1e-9)
    assert 0.3 < still["nods"] < 0.8
    assert 0.5 < still["jumps"] < 0.95
    assert still["breathing"] == still["fast-drift"] == still["slow-drift"] == 0


def test_timing_is_what_a_sidecar_says():
    timing = SliceTiming("interleaved", 2, 3.0)
    groups = timing.groups(9)
    assert [group.tolist() for group in groups] == [[0, 5], [2, 7], [4], [1, 6], [3, 8]]
    np.testing.assert_allclose(timing.excitations(2, 9)[1], 3 + 0.6 * np.arange(5))
    assert [g.tolist() for g in SliceTiming("sequential", 1).groups(3)] == [[0], [1], [2]]
    dwi, truth = simulate_within_volumes(
        "nods", voxel_size=20.0, timing=timing, head=procedural_head(8.0)
    )
    for read, made in zip(dwi.acquisition.slicing.groups, truth.groups, strict=True):
        np.testing.assert_array_equal(read, made)
    np.testing.assert_allclose(np.diff(dwi.acquisition.start_times), 3.0)
    with pytest.raises(EddymotionError, match="multiband factor 0"):
        SliceTiming(multiband=0)


@dataclass(frozen=True)
class Sheet:
    """Matter in a plane across z, 4 mm wide (σ): a slice profile makes it wider."""

    white_signal = 1.0

    @property
    def shape(self):
        return 4, 4, 20

    @property
    def affine(self):
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[2, 3] = -38
        return affine

    @property
    def brain(self):
        return np.ones(self.shape, bool)

    def signal_at(self, points, bval, bvec):
        return (1000 * np.exp(-(points[:, 2] ** 2) / 32)).astype(np.float32)

    def signal(self, bval, bvec):
        raise NotImplementedError


def test_slice_profile_spreads_a_sheet_as_a_gaussian_does():
    head = Sheet()
    grid = Grid(head.shape, head.affine)
    gradients = Gradients(np.zeros(1), np.zeros((1, 3)))
    fwhm = 6.0
    image = acquire(head, gradients, Motion.identity(1), grid, snr=None, slice_profile=fwhm).signal
    z = grid.affine[2, 3] + 4.0 * np.arange(20)
    variance = 16 + fwhm**2 / (8 * np.log(2))
    expected = 1000 * np.sqrt(16 / variance) * np.exp(-(z**2) / 2 / variance)
    np.testing.assert_allclose(image[1, 1, :, 0], expected, atol=8)


@pytest.fixture(scope="module")
def scored():
    """Poses of slices on an oblique grid, points of a ball, and an estimate with errors."""
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    affine[:3, :3] = rigid_matrix(np.zeros(3), np.array([0.2, -0.1, 0.3]), np.zeros(3))[
        :3, :3
    ] @ np.diag([-4.0, 4.0, 5.0])
    grid = Grid((30, 30, 24), affine)
    affine[:3, 3] = CENTER - affine[:3, :3] @ (np.array(grid.shape) - 1) / 2
    random = np.random.default_rng(0)
    points = random.normal(size=(4000, 3))
    points *= (55 * random.uniform(size=(4000, 1)) ** (1 / 3)) / np.linalg.norm(
        points, axis=1, keepdims=True
    )
    points += CENTER + np.array([4.0, 0.0, -3.0])
    true = simulate_course("fast-drift", 6, 24, TIMING, CENTER, seed=1).poses
    noise = random.normal(size=(6, 24, 6)) * np.repeat([0.2, 0.004], 3)
    return grid, points, true, true @ exp_rigid(noise, points.mean(axis=0)), noise


BVALS = np.array([0, 1000, 1000, 0, 1000, 1000.0])
OFFSETS = exp_rigid(np.array([[3, -2, 1, 0.02, 0, 0.05], [-1, 4, 2, 0, 0.03, 0.0]]), CENTER)


def naive_errors(estimated, true, points, grid):
    """Move each point of each slice."""
    index = np.linalg.inv(grid.affine)
    found, counts = np.full(true.shape[:2], np.nan), np.zeros(true.shape[:2])
    for volume, slice_ in np.ndindex(*true.shape[:2]):
        in_scanner = apply_affine(true[volume, slice_], points)
        there = np.abs(apply_affine(index, in_scanner)[:, 2] - slice_) <= 0.5
        counts[volume, slice_] = there.sum()
        if there.any():
            difference = np.linalg.inv(true[volume, slice_]) @ estimated[volume, slice_]
            moved = apply_affine(difference, points[there]) - points[there]
            found[volume, slice_] = np.sqrt((moved**2).sum(axis=1).mean())
    return found, counts


def test_measure_is_the_displacement_of_a_slices_own_points(scored):
    grid, points, true, estimated, _ = scored
    compared = compare_trajectory(estimated, true, points, grid, bvals=BVALS)
    naive, counts = naive_errors(estimated, true, points, grid)
    np.testing.assert_array_equal(compared.used, counts >= counts.max() / 3)
    used = compared.used
    np.testing.assert_allclose(compared.displacement["given"][used], naive[used], rtol=1e-6)
    score = compared.score("given")
    mine = naive[BVALS > 0][used[BVALS > 0]]
    assert score.n_slices == len(mine)
    assert score.rms_mm == pytest.approx(np.sqrt((mine**2).mean()))
    assert score.p95_mm == pytest.approx(np.percentile(mine, 95))
    assert score.worst_mm == pytest.approx(mine.max())
    assert score.rmse_translation_mm == pytest.approx(0.2, rel=0.15)
    assert score.rmse_rotation_deg == pytest.approx(np.rad2deg(0.004), rel=0.15)
    assert score.volume_rmse_translation_mm < 0.5 * score.rmse_translation_mm


def test_offsets_of_the_groups_blur_nothing_and_tell_the_frame(scored):
    grid, points, true, estimated, _ = scored
    moved = estimated.copy()
    moved[BVALS == 0] = moved[BVALS == 0] @ OFFSETS[0]
    moved[BVALS > 0] = moved[BVALS > 0] @ OFFSETS[1]
    plain = compare_trajectory(estimated, true, points, grid, bvals=BVALS)
    compared = compare_trajectory(moved, true, points, grid, bvals=BVALS)
    assert compared.score("given").rms_mm > 3
    assert compared.score().rms_mm == pytest.approx(plain.score().rms_mm, rel=1e-6)
    apart = OFFSETS[1] @ np.linalg.inv(OFFSETS[0])
    shift = apply_affine(apart, points.mean(axis=0)) - points.mean(axis=0)
    angle = np.arccos((np.trace(apart[:3, :3]) - 1) / 2)
    assert compared.frame == pytest.approx((np.linalg.norm(shift), np.rad2deg(angle)), abs=0.1)
    assert plain.frame[0] < 0.1
    alone = compare_trajectory(moved, true, points, grid)
    assert alone.score().rms_mm > 1  # one offset for all cannot take both off
    assert np.isnan(alone.frame).all()


def test_mean_poses_leave_the_motion_within_volumes(scored):
    grid, points, true, _, _ = scored
    left = motion_within(true, points, grid, bvals=BVALS)
    assert left.rms_mm > 0.2
    assert left.volume_rmse_translation_mm < 0.1 * left.rms_mm
    resting = np.repeat(mean_pose(true, CENTER)[:, None], 24, axis=1)
    assert motion_within(resting, points, grid).rms_mm < 1e-9


def test_coverage_counts_parameters_within_their_intervals(scored):
    _, points, true, estimated, _ = scored
    errors = np.tile(np.repeat([0.2, 0.004], 3), (6, 24, 1))
    used = np.ones((6, 24), bool)
    center = points.mean(axis=0)
    percent = trajectory_coverage(estimated, errors, true, center, used)
    assert 91 < percent < 98
    assert trajectory_coverage(estimated, errors / 2, true, center, used) < 75
    assert np.isnan(trajectory_coverage(estimated, 0 * errors, true, center, used))


def test_comparison_refuses_other_slices(scored):
    grid, points, true, estimated, _ = scored
    with pytest.raises(EddymotionError, match="24 slices, an image of 30"):
        compare_trajectory(estimated, true, points, grid, axis=0)
    with pytest.raises(EddymotionError, match="5 b-values"):
        compare_trajectory(estimated, true, points, grid, bvals=BVALS[:5])
    with pytest.raises(EddymotionError, match="same series"):
        compare_trajectory(estimated[:5], true, points, grid)


def test_poses_of_slices_are_nobody_elses_arrays():
    mine = course("nods")
    given = mine.matrices.copy()
    own = SlicePoses(given, mine.groups, mine.times)
    given[:] = np.nan
    np.testing.assert_array_equal(own.matrices, mine.matrices)
    with pytest.raises(ValueError, match="read-only"):
        own.matrices[0] = 0.0


def test_slices_of_heads_at_rest_have_the_pose_of_their_volume_and_its_errors():
    matrices = rigid_matrix(np.eye(3), 0.1 * np.eye(3), CENTER)
    motion = Motion(matrices, np.arange(18.0).reshape(3, 6))
    groups, times = [np.array([0, 2]), np.array([1, 3])], np.arange(6.0).reshape(3, 2)
    poses = SlicePoses.of_volumes(motion, groups, times)
    for group in range(2):
        np.testing.assert_array_equal(poses.matrices[:, group], matrices)
        np.testing.assert_array_equal(poses.standard_errors[:, group], motion.standard_errors)
    assert SlicePoses.of_volumes(Motion(matrices), groups, times).standard_errors is None


def test_table_gives_back_what_was_written(tmp_path):
    motion = course("nods")
    errors = np.random.default_rng(0).uniform(0.01, 1, (8, 6, 6))
    motion = SlicePoses(motion.matrices, motion.groups, motion.times, errors)
    path = tmp_path / "sub-01_trajectory.tsv"
    write_trajectory(path, motion, CENTER)
    header, first, *_ = path.read_text().splitlines()
    assert header.split("\t")[:4] == ["volume", "slices", "time", "trans_x"]
    assert first.split("\t")[:3] == ["0", "0,6,12", "0"]
    again = read_trajectory(path, CENTER)
    np.testing.assert_allclose(again.matrices, motion.matrices, atol=1e-6)
    np.testing.assert_allclose(again.standard_errors, errors, rtol=1e-6)
    np.testing.assert_allclose(again.times, motion.times, atol=1e-6)
    np.testing.assert_array_equal(again.group_of_slice, motion.group_of_slice)


def test_table_without_times_is_read_and_can_be_compared_but_not_replayed(tmp_path):
    motion = replace(course("nods"), times=np.full((8, 6), np.nan))
    path = tmp_path / "sub-01_trajectory.tsv"
    write_trajectory(path, motion, CENTER)
    assert path.read_text().splitlines()[1].split("\t")[2] == "n/a"
    again = read_trajectory(path, CENTER)
    np.testing.assert_allclose(again.matrices, motion.matrices, atol=1e-6)
    assert np.isnan(again.times).all()
    with pytest.raises(EddymotionError, match="column time has n/a"):
        replayed_trajectory(path, 8, 18, CENTER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "same excitations"),
        (lambda rows: [rows[0].replace("time", "when"), *rows[1:]], "no column time"),
        (lambda rows: [*rows[:-1], rows[-1].replace("\t0", "\tsoon", 1)], "no number"),
        (lambda rows: [*rows[:-1], "n/a".join(rows[-1].rsplit("0", 1))], "no number"),
        (
            lambda rows: [r.replace("0,6,12", "0,6") for r in rows],
            "expected each from 0 upwards once",
        ),
        (lambda rows: rows[:1], "0 rows"),
    ],
)
def test_damaged_table_is_refused_in_words(tmp_path, change, message):
    path = tmp_path / "table.tsv"
    motion = SlicePoses.of_volumes(Motion.identity(3), TIMING.groups(18), np.zeros((3, 6)))
    write_trajectory(path, motion, CENTER)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(EddymotionError, match=message):
        read_trajectory(path, CENTER)


@pytest.fixture
def small(tmp_path):
    """Options for four volumes of a coarse head."""
    head, names = procedural_head(10.0), ("tissue.nii.gz", "peaks.nii.gz", "t.bval", "t.bvec")
    tissue, peaks, bval, bvec = (tmp_path / name for name in names)
    write_image(tissue, head.tissue.astype(np.float32), head.affine)
    fibres = head.fibres.reshape(*head.shape, 9)
    write_image(peaks, fibres.astype(np.float32), head.affine)
    write_gradient_table(bval, bvec, shelled_scheme({1000.0: 3}, 1), np.eye(4))
    return ["--phantom", str(tissue), str(peaks), "--bval", str(bval), "--bvec", str(bvec),
            "--voxel-size", "12", "--nprocs", "1"]  # fmt: skip


def test_command_moves_slices_and_tells_when(tmp_path, small):
    root = tmp_path / "bids"
    options = ["--motion", "jumps", "--multiband", "2", "--repetition-time", "8",
               "--slice-order", "sequential", "--slice-profile", "12"]  # fmt: skip
    assert command.main([str(root), *small, *options]) == 0
    sidecar = json.loads((root / "sub-01" / "dwi" / "sub-01_dwi.json").read_text())
    assert sidecar["RepetitionTime"] == 8
    assert sidecar["MultibandAccelerationFactor"] == 2
    image = nib.load(root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    grid = Grid(image.shape[:3], image.affine)
    timing = SliceTiming("sequential", 2, 8.0)
    truth = simulate_course("jumps", 4, grid.shape[2], timing, grid.center)
    told = Slicing.of(sidecar, grid.shape)
    assert [g.tolist() for g in told.groups] == [g.tolist() for g in truth.groups]
    table = root / "truth" / "sub-01_trajectory.tsv"
    written = read_trajectory(table, grid.center)
    np.testing.assert_allclose(written.poses, truth.poses, atol=1e-6)
    volumes = read_itk(root / "truth" / "sub-01_xfm.txt")
    np.testing.assert_allclose(volumes, mean_pose(truth.matrices, grid.center), atol=1e-6)
    assert np.abs(written.poses - volumes[:, None]).max() > 0.2
    again = tmp_path / "again"
    assert command.main([str(again), *small, "--motion", str(table), "--slice-profile", "12"]) == 0
    replayed = read_trajectory(again / "truth" / "sub-01_trajectory.tsv", grid.center)
    np.testing.assert_allclose(replayed.poses, written.poses, atol=1e-6)
    for name in ("dwi.json", "dwi.bval"):
        files = [folder / "sub-01" / "dwi" / f"sub-01_{name}" for folder in (root, again)]
        assert files[0].read_text() == files[1].read_text()


def test_timing_of_a_head_that_rests_within_volumes_changes_no_voxel(tmp_path, small):
    root = tmp_path / "bids"
    assert command.main([str(root), *small, "--motion", "high", "--participant-label", "a"]) == 0
    timed = ["--motion", "high", "--participant-label", "b", "--multiband", "2"]
    assert command.main([str(root), *small, *timed]) == 0
    paths = [root / f"sub-{label}" / "dwi" / f"sub-{label}_dwi" for label in "ab"]
    assert (
        paths[0].with_suffix(".nii.gz").read_bytes()
        == paths[1].with_suffix(".nii.gz").read_bytes()
    )
    told = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert "SliceTiming" not in told[0]
    assert len(told[1]["SliceTiming"]) == 13
    center = load(paths[1].with_suffix(".nii.gz")).center
    poses = read_trajectory(root / "truth" / "sub-b_trajectory.tsv", center).poses
    volumes = read_itk(root / "truth" / "sub-a_xfm.txt")
    np.testing.assert_allclose(poses, np.repeat(volumes[:, None], 13, axis=1), atol=1e-6)
    assert np.abs(volumes[-1] - np.eye(4)).max() > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--motion", "nods", "--eddy-currents", "linear", "--pe-axis", "k"], "across slices"),
        (["--motion", "table", "--multiband", "2"], "has its own slice timing"),
        (["--motion", "table", "--voxel-size", "20"], "18 slices, the scan has"),
    ],
)
def test_contradictions_end_in_one_line(tmp_path, small, options, message, capsys):
    table = tmp_path / "t.tsv"
    motion = SlicePoses.of_volumes(Motion.identity(4), TIMING.groups(18), np.zeros((4, 6)))
    write_trajectory(table, motion, CENTER)
    options = [str(table) if option == "table" else option for option in options]
    assert command.main([str(tmp_path / "bids"), *small, *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
