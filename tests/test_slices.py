# SPDX-License-Identifier: Apache-2.0
"""Stacks whose slices have poses of their own: how they are read, rebuilt, judged and written."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

import eddymotion as em
from eddymotion.cli import correct
from eddymotion.data.acquisition import Acquisition, Slicing
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.derivatives.fsl import write_fsl_eddy
from eddymotion.errors import EddymotionError
from eddymotion.estimation import choose_estimator
from eddymotion.estimation.maps import cnr_maps
from eddymotion.estimation.outliers import SliceOutliers
from eddymotion.estimation.replacement import Replaced
from eddymotion.images.grid import Grid, grid_points
from eddymotion.images.image import Image
from eddymotion.images.stack import KRIGING, REBUILDING, SlicesAtPoints, SliceStack
from eddymotion.images.stack_kernels import LEAST_WEIGHT, REACH
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.other_programs import read_poses
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.trajectory import read_trajectory, trajectory_descriptions
from eddymotion.io.tsv import Table
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance, SeriesField
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.models import AverageModel, get_model
from eddymotion.pipeline.series_steps import apply, estimate, measure
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import estimator_of
from eddymotion.reports.course_chart import course_chart
from eddymotion.resampling import Resampled
from eddymotion.simulation import (
    procedural_head,
    shelled_scheme,
    simulate_within_volumes,
    write_bids,
)
from eddymotion.simulation.timing import slice_metadata

SHAPE = (20, 22, 18)
AFFINE = np.array([[-3.0, 0.1, 0, 30], [0.1, 3, 0.2, -32], [0, -0.2, 3.0, -25], [0, 0, 0, 1]])
CENTER = apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)
WAVES = 2 * np.pi / np.array([[15.0, 60, 50], [70, 19, -60], [60, 44, 21]])
"""A head without an edge: waves of five voxels and more."""


def head(points):
    return 3.0 + np.cos(points @ WAVES.T).sum(axis=-1)


def nod(size=1.0):
    """Poses of the slices of one volume, interleaved: up to 3 mm and 2 degrees apart."""
    times = np.argsort(np.r_[0 : SHAPE[2] : 2, 1 : SHAPE[2] : 2]) / SHAPE[2]
    swing = size * np.sin(3 * times)[:, None]
    return exp_rigid(swing * np.array([0.5, 1.0, 2.5, 0.03, 0.01, -0.01]), CENTER)


def scanned(poses, shape=SHAPE, eddy=None, shift=0.0):
    """What a scanner records of the head, a point a voxel: slice k at its own pose."""
    recorded = grid_points(shape, AFFINE, order="F").reshape(shape[2], -1, 3)
    volume = np.empty((shape[2], shape[1] * shape[0]))
    for k, points in enumerate(recorded):
        origins, stretch = points - shift, 1.0
        if eddy is not None:
            origins, stretch = eddy.origin(0, origins)
        volume[k] = head(apply_affine(np.linalg.inv(poses[k]), origins)) / stretch
    return volume.reshape(shape[::-1]).T.astype(np.float32)


def still(n):
    return np.tile(np.eye(4), (n, SHAPE[2], 1, 1))


def series(volumes, n_b0=1):
    """A series of such volumes, its first ones b=0."""
    n = len(volumes)
    random = np.random.default_rng(0)
    bvecs = random.normal(size=(n, 3)) * (np.arange(n) >= n_b0)[:, None]
    bvecs /= np.maximum(np.linalg.norm(bvecs, axis=1), 1e-9)[:, None]
    gradients = Gradients(1000.0 * (np.arange(n) >= n_b0), bvecs)
    z = np.arange(SHAPE[2])
    timing = 0.2 * (z // 2 + 9 * (z % 2))
    slicing = Slicing.of({"SliceTiming": timing.tolist()}, SHAPE)
    acquisition = Acquisition.every(gradients, AFFINE, slicing=slicing, repetition_time=4.0)
    mask = np.zeros(SHAPE, bool)
    mask[3:-3, 3:-3, 3:-3] = True
    dwi = DWI(np.stack(volumes, axis=-1), AFFINE, gradients, mask)
    return replace(dwi, acquisition=acquisition)


def motion_of(poses, **others):
    matrices, trajectory = Trajectory.of_poses(poses, CENTER, AFFINE)
    return Motion(matrices, trajectory=trajectory, **others)


def twin(volume, poses, points, kriging):
    """Read by the definition, one point after the other: dense kriging, SciPy in the planes."""
    values = np.full(len(points), np.nan)
    last = len(poses) - 1
    for p, point in enumerate(points):
        at = np.array([apply_affine(np.linalg.inv(AFFINE) @ pose, point) for pose in poses])
        k = (last + 1) // 2
        for _ in range(6):
            height = at[k, 2]
            k = int(np.clip(np.floor(height + 0.5), 0, last))
        if not -0.5 <= height <= last + 0.5:
            continue
        distance = at[:, 2] - np.arange(len(poses))
        nodes = max(0, min(k - 3, last - 7)) + np.arange(8)
        nodes = nodes[np.abs(distance[nodes]) < REACH]
        inside = (at[nodes, :2] >= -0.5) & (at[nodes, :2] <= np.array(volume.shape[:2]) - 0.5)
        nodes = nodes[inside.all(axis=1)]
        if len(nodes) < 2 or np.abs(distance[nodes]).min() > kriging.nearest:
            continue
        d = distance[nodes]
        covariance = np.exp(-0.5 * ((d[:, None] - d) / kriging.length) ** 2)
        system = np.ones((len(d) + 1, len(d) + 1))
        system[:-1, :-1] = covariance + kriging.nugget * np.eye(len(d))
        system[-1, -1] = 0.0
        right = np.append(np.exp(-0.5 * (d / kriging.length) ** 2), 1.0)
        weights = np.linalg.solve(system, right)
        if 1.0 - weights @ right > kriging.most:
            continue
        values[p] = sum(
            weight * map_coordinates(volume[:, :, k], at[k, :2, None], order=3, mode="mirror")[0]
            for weight, k in zip(weights, nodes, strict=False)
        )
    return values


@pytest.mark.parametrize("kriging", [KRIGING, REBUILDING.filling])
def test_slices_are_read_as_the_twin_reads_them(kriging):
    volume = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    poses = nod(1.5)
    low, high = apply_affine(AFFINE, [(-1, -1, -1.5), np.add(SHAPE, 0.5)])
    points = np.random.default_rng(2).uniform(np.minimum(low, high), np.maximum(low, high),
                                              (500, 3))  # fmt: skip
    read = SliceStack.of(Image(volume, AFFINE)).read(points, poses, kriging=kriging)
    expected = twin(volume, poses, points, kriging)
    np.testing.assert_array_equal(np.isnan(read.values), np.isnan(expected))
    assert 200 < np.isfinite(expected).sum() < 480
    np.testing.assert_allclose(read.values, expected, atol=8 * LEAST_WEIGHT)
    alone = SliceStack.of(Image(volume, AFFINE)).values(points, poses, kriging=kriging)
    np.testing.assert_allclose(alone, expected, atol=8 * LEAST_WEIGHT)
    known = np.isfinite(read.values)
    np.testing.assert_allclose(read.weights[known].sum(axis=1), 1.0, atol=4 * LEAST_WEIGHT)


def test_slices_of_a_head_at_rest_are_read_as_those_of_any():
    """Also next to slices that are lost, and where few are within reach."""
    random = np.random.default_rng(4)
    image, lost = Image(random.random(SHAPE).astype(np.float32), AFFINE), np.zeros(18, bool)
    lost[[5, 9, 10]] = True
    points = apply_affine(AFFINE, random.uniform(-1, np.array(SHAPE), (2000, 3)))
    at_rest = still(1)[0]
    nearly = at_rest.copy()
    nearly[0, 0, 3] = 1e-9
    one, other = (SliceStack.of(image, lost=lost).read(points, p) for p in (at_rest, nearly))
    for name in ("values", "slopes", "weights", "first"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_what_belongs_to_slices_is_mixed_as_their_values_are():
    random = np.random.default_rng(5)
    points = apply_affine(AFFINE, random.uniform(-1, np.array(SHAPE), (300, 3)))
    stack = SliceStack.of(Image(np.ones(SHAPE, np.float32), AFFINE))
    reading, of_slices = stack.read(points, nod(1.5)), random.normal(size=(SHAPE[2], 5))
    whole = np.zeros((len(points), SHAPE[2] + 8))
    np.put_along_axis(whole, reading.first[:, None] + np.arange(8), reading.weights, axis=1)
    mixed = reading.mixed(of_slices)
    np.testing.assert_allclose(mixed, whole[:, : SHAPE[2]] @ of_slices, atol=1e-5)
    assert 100 < mixed.any(axis=1).sum() < 300


def test_slopes_are_those_of_the_values():
    poses, volume = nod(0.3), scanned(nod(0.3))
    stack = SliceStack.of(Image(volume, AFFINE))
    points = CENTER + np.random.default_rng(3).uniform(-15, 15, (300, 3))
    slopes = stack.read(points, poses).slopes
    step = 0.02
    differences = np.stack([
        (stack.read(points + e, poses).values - stack.read(points - e, poses).values) / (2 * step)
        for e in step * np.eye(3)
    ], axis=1)  # fmt: skip
    off = np.abs(slopes - differences).max(axis=1)
    assert np.quantile(off, 0.95) < 0.01 * np.abs(differences).max()  # a few gain or lose a slice


def test_gaps_are_found_and_filled_with_what_is_around():
    """The head jumps by two and a half slices in the middle of a sequential volume."""
    poses = still(1)[0]
    poses[9:, :3, 3] = 2.5 * AFFINE[:3, 2]
    indices = np.array([[10, 11, h] for h in (4.0, 6.2, 7.4, 8.0, 12.0, -0.7, 14.8)])
    points = apply_affine(AFFINE, indices)
    assert not SlicesAtPoints(SHAPE, AFFINE, 2, points, poses).gaps.any(), "the sixth is outside"
    gap = still(1)[0]
    gap[9:, :3, 3] = -2.5 * AFFINE[:3, 2]  # nothing shows heights from 8 to 11.5
    heights = np.array([8.0, 8.6, 9.75, 10.9, 11.5])
    points = apply_affine(AFFINE, np.array([[10, 11, h] for h in heights]))
    found = SlicesAtPoints(SHAPE, AFFINE, 2, points, gap)
    np.testing.assert_array_equal(found.gaps, [False, False, True, False, False])
    mapping = motion_of(gap[None]).mapping(0)
    image = Image(scanned(gap), AFFINE)
    read, filled = mapping.read(image, points), mapping.rebuild(image, points)
    assert np.isnan(read[2])
    assert np.isfinite(filled).all()
    ends = image.data[10, 11, 8:10]
    assert ends.min() - 1 < filled[2] < ends.max() + 1


@pytest.mark.parametrize("engine", ["fast", "nitransforms"])
def test_moved_volumes_are_rebuilt_and_the_others_are_as_ever(engine):
    poses = still(3)
    poses[1] = nod(2.0)
    poses[2] = exp_rigid(np.array([1.0, 2, -1, 0.02, 0, 0.03]), CENTER)
    dwi = series([scanned(one) for one in poses])
    motion = motion_of(poses)
    assert motion.moved_within.tolist() == [False, True, False]
    one_pose = replace(motion, trajectory=None)
    rebuilt = em.resample(dwi, motion, engine=engine).signal
    former = em.resample(dwi, one_pose, engine=engine).signal
    assert rebuilt[..., [0, 2]].tobytes() == former[..., [0, 2]].tobytes()
    truth = scanned(still(1)[0])
    inner = (slice(3, -3),) * 3
    artefact = (former[..., 1] - truth)[inner].ravel()
    left = (rebuilt[..., 1] - truth)[inner].ravel()
    assert artefact.std() > 0.2  # of 1.2
    assert left.std() < 0.35 * artefact.std()
    assert abs(left @ artefact / (artefact @ artefact)) < 0.15
    assert Resampled.of(dwi, motion).kernel_agrees
    np.testing.assert_array_equal(
        em.resample(dwi, motion, engine=engine).gradients.bvecs,
        em.resample(dwi, one_pose, engine=engine).gradients.bvecs,
    )


def test_fields_and_another_grid_are_heeded_in_the_same_interpolation():
    pe = np.array([0.0, 1, 0])
    eddy = EddyCurrents(np.array([[1.0, -3.0, 0.5]] * 3), pe, CENTER)
    lattice = np.diag([60.0, 60, 60, 1])
    lattice[:3, 3] = -90
    constant = OffResonance(np.full((4, 4, 4), 20.0), lattice)
    shift = np.array([0, 0.05, 0])  # a millimetre
    poses = np.stack([still(1)[0], still(1)[0], nod()])
    volumes = [scanned(one, eddy=eddy, shift=20 * shift) for one in poses]
    dwi = series(volumes)
    motion = motion_of(poses, eddy_currents=eddy,
                       off_resonance=SeriesField(constant, np.stack([shift] * 3)))  # fmt: skip
    grid = (16, 15, 14), AFFINE @ np.array([[1, 0, 0, 2.3], [0, 1, 0, 3.1], [0, 0, 1, 2.4],
                                            [0, 0, 0, 1]])  # fmt: skip
    read = em.resample(dwi, motion, engine="fast", grid=grid).signal
    truth = head(grid_points(*grid, order="F")).reshape(grid[0][::-1]).T
    errors = (read - truth[..., None]).reshape(-1, 3).std(axis=0)
    assert errors[1] < 0.03
    assert errors[2] < 0.06
    shifted = em.resample(dwi, motion, engine="fast", grid=grid,
                          space=lambda points: points).signal  # fmt: skip
    np.testing.assert_allclose(shifted, read, atol=2e-5 * read.max())


@pytest.fixture(scope="module")
def nods():
    gradients = shelled_scheme({1000.0: 12}, 2)
    dwi, truth = simulate_within_volumes(
        "nods", gradients=gradients, head=procedural_head(8.0), voxel_size=8.0, snr=60.0,
        slice_profile=8.0, amplitude=2.0, seed=1,
    )  # fmt: skip
    matrices, trajectory = Trajectory.of_poses(truth.poses, dwi.brain_center, dwi.affine)
    return dwi, Motion(matrices, trajectory=trajectory), truth


def test_predictions_and_outliers_read_slices_at_their_own_pose(nods):
    dwi, motion, _ = nods
    at_rest = replace(
        motion, trajectory=Trajectory(np.tile(np.eye(4), (len(dwi), dwi.n_slices, 1, 1)),
                                      dwi.affine)
    )  # fmt: skip
    one_pose = em.assess(dwi, replace(motion, trajectory=None))
    assert em.assess(dwi, at_rest).correlation.tobytes() == one_pose.correlation.tobytes()
    judged = em.assess(dwi, motion)
    moved = motion.moved_within & ~dwi.gradients.is_b0
    assert 2 <= moved.sum() <= 10
    gain = judged.correlation - one_pose.correlation
    assert gain[moved].mean() > 0.003
    assert not judged.outliers.flagged.any()
    volume = int(np.flatnonzero(moved)[0])
    signal = np.array(dwi.signal)
    signal[:, :, 9, volume] *= 0.3
    flagged = em.assess(replace(dwi, signal=signal), motion).outliers.flagged
    np.testing.assert_array_equal(np.argwhere(flagged), [[volume, 9]])


def test_gaps_of_the_corrected_series_show_predictions():
    n = 8
    poses = still(n)
    poses[5, 9:, :3, 3] = -2.6 * AFFINE[:3, 2]
    random = np.random.default_rng(0)
    volumes = [scanned(one) + random.normal(size=SHAPE).astype(np.float32) / 50 for one in poses]
    volumes[3][:, :, 8] *= 0.2
    dwi, motion = series(volumes, n_b0=2), motion_of(poses)
    z = np.zeros((n, SHAPE[2]))
    z[3, 8] = -30
    outliers = SliceOutliers(z, np.where(z < 0, 0.2, 1.0), slicing=dwi.acquisition.slicing)
    resampled = Resampled.of(dwi, motion, engine="fast")
    plain = np.stack(list(resampled.volumes()), axis=-1)
    gaps_only = Replaced.of(resampled, AverageModel(), outliers, lost=False)
    shown = np.stack(list(gaps_only.volumes()), axis=-1)
    changed = (shown != plain).any(axis=(0, 1, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), [5])
    where = shown[..., 5] != plain[..., 5]
    truth = head(grid_points(SHAPE, AFFINE, order="F")).reshape(SHAPE[::-1]).T
    inside = where & dwi.mask
    assert 100 < inside.sum() < 3 * SHAPE[0] * SHAPE[1]
    error = [np.abs((one[..., 5] - truth)[inside]).mean() for one in (plain, shown)]
    assert error[1] < 0.3 * error[0]
    both = np.stack(list(Replaced.of(resampled, AverageModel(), outliers).volumes()), axis=-1)
    np.testing.assert_array_equal(both[..., 5], shown[..., 5])
    assert (both[..., 3] != plain[..., 3]).any()
    maps = cnr_maps(resampled, AverageModel())
    assert np.isfinite(maps).all()


def test_a_course_survives_its_files(nods, tmp_path):
    dwi, motion, truth = nods
    n_groups = len(truth.groups)
    errors = np.random.default_rng(0).random((len(dwi), n_groups, 6))[:, truth.group_of_slice]
    errors[0] = np.nan
    course = replace(motion.trajectory, standard_errors=errors)
    told = replace(motion, trajectory=course, standard_errors=np.ones((len(dwi), 6)))
    write_motion(tmp_path / "xfm.txt", tmp_path / "xfm.json", told)
    again = read_written_motion(tmp_path / "xfm.txt", tmp_path / "xfm.json").trajectory
    assert again.within.tobytes() == course.within.tobytes()
    np.testing.assert_array_equal(again.standard_errors, errors)
    assert again.axis == 2
    np.testing.assert_array_equal(again.affine, dwi.affine)

    outputs = em.save(em.resample(dwi, told, engine="fast"), told, tmp_path)
    table = read_trajectory(outputs["trajectory"], dwi.center)
    np.testing.assert_allclose(table.poses, truth.poses, atol=2e-6)
    np.testing.assert_allclose(table.times, truth.times, atol=2e-6)
    described = trajectory_descriptions(table)
    assert list(described) == list(Table.read(outputs["trajectory"]).columns)
    confounds = Table.read(outputs["confounds"]).numbers("rms_within")
    np.testing.assert_array_equal(confounds > 0, motion.moved_within)
    assert confounds.max() > 2
    chart = course_chart(Table.read(outputs["trajectory"]), confounds, 3.0)
    assert f"{int((confounds > 3).sum())} of them" in chart
    assert chart.count("<polyline") == 6
    em.save(em.resample(dwi, told, engine="fast"), replace(told, trajectory=None), tmp_path)
    assert not outputs["trajectory"].exists()
    assert "rms_within" not in Table.read(outputs["confounds"]).columns

    written = write_fsl_eddy(tmp_path / "x", told, dwi, dwi)
    path = next(one for one in written if one.name.endswith(".eddy_movement_over_time"))
    read = read_poses(path, "eddy", Grid(dwi.shape, dwi.affine))
    np.testing.assert_allclose(read.reshape(truth.matrices.shape), truth.matrices, atol=1e-7)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--within-volume", "1"], "a whole number of at least 2"),
        (["--within-volume", "nods"], "auto, none, or"),
        (["--within-volume", "6", "--estimator", "lovo"], "--estimator joint only"),
    ],
)
def test_option_is_refused_where_it_cannot_be_heeded(given, words, tmp_path, capsys):
    image = tmp_path / "x_dwi.nii.gz"
    image.touch()
    with pytest.raises(SystemExit) as ending:
        raise SystemExit(correct.main([str(image), "-o", str(tmp_path / "out"), *given]))
    assert ending.value.code == 2
    assert words in capsys.readouterr().err


def test_option_reaches_the_estimator_and_the_fingerprint():
    gradients = shelled_scheme({1000.0: 12}, 2)
    chosen = estimator_of(Settings(within_volume="6"), get_model("auto", gradients), gradients)
    assert chosen.within_volume == 6
    assert choose_estimator("lovo", gradients=gradients, within_volume="none").name == "lovo"
    with pytest.raises(EddymotionError, match="only the estimator joint"):
        choose_estimator("lovo", gradients=gradients, within_volume=4)
    with pytest.raises(EddymotionError, match="of at least 2"):
        em.Joint(within_volume=True)
    assert Settings(within_volume="6").effective() != Settings().effective()


@pytest.mark.parametrize(
    ("timing", "why"),
    [
        (None, "no SliceTiming"),
        (np.zeros(SHAPE[2]), "1 different times"),
        (np.arange(SHAPE[2]) * 200.0, "a volume takes 4 s"),
        (np.arange(SHAPE[2]) * 0.2, ""),
    ],
)
def test_odd_slice_timing_is_not_used(timing, why):
    dwi = series([scanned(still(1)[0])] * 3)
    slicing = Slicing.of({} if timing is None else {"SliceTiming": timing.tolist()}, SHAPE)
    dwi = replace(dwi, acquisition=replace(dwi.acquisition, slicing=slicing))
    said = dwi.acquisition.why_untimed
    assert (why in said) if why else said == ""


@pytest.fixture
def nodding(tmp_path):
    """A series on disk, and how its head moved."""
    gradients = shelled_scheme({1000.0: 20}, 3)
    dwi, truth = simulate_within_volumes(
        "nods", gradients=gradients, voxel_size=5.0, slice_profile=5.0, amplitude=1.5, seed=1
    )
    write_bids(tmp_path / "bids", "01", dwi, truth.mean(dwi.center))
    folder = tmp_path / "bids" / "sub-01" / "dwi"
    sidecar = folder / "sub-01_dwi.json"
    told = json.loads(sidecar.read_text()) | slice_metadata(truth) | {"RepetitionTime": 4.0}
    sidecar.write_text(json.dumps(told))
    return folder / "sub-01_dwi.nii.gz", truth


@pytest.fixture
def known(nodding, monkeypatch):
    """The series, and an estimator that knows how its head moved."""
    image, truth = nodding

    def find(series, *_):
        matrices, course = Trajectory.of_poses(truth.poses, series.brain_center, series.affine)
        return Motion(matrices, np.full((len(matrices), 6), 0.01), trajectory=course)

    monkeypatch.setattr("eddymotion.pipeline.correct.find_motion", find)
    monkeypatch.setattr("eddymotion.pipeline.series_steps.find_motion", find)
    return image


@pytest.mark.slow
def test_command_follows_the_head_where_it_is_asked_to(nodding, tmp_path):
    """Poses of slices against the truth, with the help of nobody."""
    image, truth = nodding
    dwi = em.load(image)
    points = apply_affine(dwi.affine, np.argwhere(dwi.mask)[::50])
    errors = {}
    for option in ("none", "auto", "8"):
        out = tmp_path / option
        call = [str(image), "-o", str(out), "--nprocs", "1", "--within-volume", option]
        assert correct.main(call) == 0
        table = out / "sub-01_desc-hmc_trajectory.tsv"
        assert table.exists() == (option != "none")
        if option == "none":
            matrices = read_written_motion(next(out.glob("*_xfm.txt"))).matrices
            poses = np.repeat(matrices[:, None], dwi.n_slices, axis=1)
        else:
            poses = read_trajectory(table, dwi.center).poses
        moved = np.einsum("nzij,pj->nzpi", (poses - truth.poses)[..., :3, :3], points)
        moved += (poses - truth.poses)[..., None, :3, 3]
        errors[option] = np.sqrt((moved**2).sum(axis=-1).mean())
    assert errors["auto"] < 0.6 * errors["none"]
    assert errors["8"] < 0.8 * errors["none"]


@pytest.mark.slow
def test_command_writes_the_course_and_steps_hand_it_on(known, tmp_path, capsys):
    out = tmp_path / "out"
    call = [str(known), "-o", str(out), "--fsl-outputs", "--nprocs", "1"]
    assert correct.main(call) == 0
    said = capsys.readouterr()
    assert "rebuilt slice by slice" in said.out + said.err
    sidecar = json.loads((out / "sub-01_desc-preproc_dwi.json").read_text())
    moved = sidecar["MotionWithinVolumes"]["Volumes"]
    assert moved
    assert "slice by slice" in sidecar["MotionWithinVolumes"]["Resampling"]
    page = (out / "sub-01.html").read_text()
    assert "Motion within volumes" in page
    assert 'data-kind="within"' in page
    assert "Matheron" in page
    table = (out / "sub-01_desc-hmc_trajectory.tsv").read_text()
    rows = np.loadtxt(out / "sub-01_desc-preproc_dwi.eddy_movement_over_time")
    assert len(rows) == len(table.splitlines()) - 1

    image = (out / "sub-01_desc-preproc_dwi.nii.gz").read_bytes()
    corrected = np.asarray(nib.load(out / "sub-01_desc-preproc_dwi.nii.gz").dataobj)
    with pytest.MonkeyPatch.context() as patch:  # another run has the motion from the outputs
        patch.setattr("eddymotion.pipeline.correct.find_motion", None)
        assert correct.main([*call, "--cnr-maps"]) == 0
    assert (out / "sub-01_desc-hmc_trajectory.tsv").read_text() == table
    assert (out / "sub-01_desc-preproc_dwi.nii.gz").read_bytes() == image

    files, settings = SeriesFiles(known), Settings()
    found = estimate(files, settings, tmp_path / "estimate")
    handed = {"xfm_file": found["xfm_file"], "details_file": found["details_file"]}
    applied = apply(files, settings=settings, out_dir=tmp_path / "apply", **handed)
    np.testing.assert_array_equal(np.asarray(nib.load(applied["dwi_file"]).dataobj), corrected)
    measured = measure(files, settings=settings, out_dir=tmp_path / "measure", **handed)
    within = Table.read(measured["confounds_file"]).numbers("rms_within")
    np.testing.assert_array_equal(np.flatnonzero(within), moved)


@pytest.mark.parametrize("most", [0.1, 0.6])
def test_gaps_are_where_too_little_is_known_within_the_stack(most):
    """What the twin reads if the variance has no limit, and not if it has."""
    poses, kriging = nod(3.0), replace(REBUILDING, most=most)
    poses[9:, :3, 3] -= 2.5 * AFFINE[:3, 2]
    voxels = np.random.default_rng(6).uniform(4, np.array(SHAPE) - 5, (250, 3))
    points, ones = apply_affine(AFFINE, voxels), np.ones(SHAPE, np.float32)
    known, all_known = (
        np.isfinite(twin(ones, poses, points, k)) for k in (kriging, kriging.filling)
    )
    gaps = SlicesAtPoints(SHAPE, AFFINE, 2, points, poses, kriging=kriging).gaps
    np.testing.assert_array_equal(gaps, ~known)
    assert all_known.all()
    assert 5 < gaps.sum() < 220
