# SPDX-License-Identifier: Apache-2.0
"""Runs that belong together: one frame, the off-resonance field, merged series."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion, gaussian_filter

import eddymotion as em
from eddymotion.data.acquisition import Acquisition
from eddymotion.data.gradients import Gradients
from eddymotion.derivatives.session import SessionOutputs
from eddymotion.estimation.off_resonance.measured import MapAgreement
from eddymotion.estimation.runs import join_runs
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.estimation.runs.readouts import (
    differ,
    readouts_of,
    tell_field,
    warn_of_readouts,
    without_times,
)
from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.images.grid import Grid, grid_points
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask
from eddymotion.io.images import write_image
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.sidecars import MeasuredFiles, SeriesFiles
from eddymotion.io.writing import read_json
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance, Readout
from eddymotion.mapping.rigid import log_rigid, rigid_matrix
from eddymotion.pipeline.runs import SessionRun, _is_usable
from eddymotion.pipeline.runs.account import issues_of
from eddymotion.pipeline.runs.b0s import load_b0s
from eddymotion.pipeline.runs.cache import digest_of, keep, recalled
from eddymotion.pipeline.runs.joining import _given_field, joined_of
from eddymotion.pipeline.runs.merging import write_as_one
from eddymotion.pipeline.runs.one_series import averaged, concatenated
from eddymotion.pipeline.settings import Settings
from eddymotion.simulation.off_resonance import Magnetised, echo_planar_image
from eddymotion.simulation.synthetic import SyntheticHead

READOUT_TIME = 0.045
SIZE = 5.0
QUARTER = np.diag([4.0, 4, 4, 1])
"""From a grid to one of every fourth voxel."""
SHIFTED = np.array([1.5, 0.0, -2.0])
TURNED = np.deg2rad([3.0, -2.0, 4.0])


@pytest.fixture(scope="module")
def head():
    return SyntheticHead()


@pytest.fixture(scope="module")
def grid(head):
    return Grid.covering(head, SIZE, "LAS", np.eye(3))


@pytest.fixture(scope="module")
def field(head):
    return Magnetised(head, strength=0.7, voxel_size=4.0).hertz()


def scan(head, grid, hertz, direction, pose, seed):
    """Two b=0 images of one run, the head at one pose."""
    readout = Readout.of(grid.affine, direction, READOUT_TIME)
    images = [
        echo_planar_image(head, grid, hertz, readout, pose=pose, snr=40.0, seed=seed + number).data
        for number in range(2)
    ]
    gradients = Gradients(np.zeros(2), np.zeros((2, 3)))
    acquisition = Acquisition.every(
        gradients, grid.affine, phase_encoding=direction, readout_time=READOUT_TIME
    )
    signal = np.stack(images, axis=-1)
    return em.DWI(signal, grid.affine, acquisition, brain_mask(signal.mean(axis=3)))


@pytest.fixture(scope="module")
def pose(grid):
    return rigid_matrix(SHIFTED, TURNED, grid.center)


@pytest.fixture(scope="module")
def opposed(head, grid, field, pose):
    """A run of each polarity; the head has moved between them."""
    return [
        scan(head, grid, field, "j-", np.eye(4), 10),
        scan(head, grid, field, "j", pose, 20),
    ]


@pytest.fixture(scope="module")
def motions(opposed):
    return em.estimate_motion(opposed, n_threads=2)


@pytest.fixture(scope="module")
def brain(head, grid):
    """The true one."""
    at = apply_affine(np.linalg.inv(head.affine), grid_points(grid.shape, grid.affine))
    nearest = at.round().astype(int)
    inside = ((nearest >= 0) & (nearest < head.shape)).all(axis=1)
    found = np.zeros(len(at), bool)
    found[inside] = head.brain[tuple(nearest[inside].T)]
    return binary_erosion(found.reshape(grid.shape))


def test_field_and_pose_of_b0_runs_are_found(opposed, motions, grid, field, pose, brain):
    found = motions[0].off_resonance.field.on_grid(grid.shape, grid.affine)[brain]
    true = field.spline.sample(grid_points(grid.shape, grid.affine))
    true = true.reshape(grid.shape)[brain]

    def spread(hertz):
        """Most of the brain is displaced so little from where it is on the whole, mm."""
        mm = hertz * READOUT_TIME * SIZE
        return np.percentile(np.abs(mm - np.median(mm)), 90)

    assert spread(found - true) < 0.35 * spread(true)
    assert spread(found - true) < 0.25 * SIZE
    for volume in range(2):
        wrong = log_rigid(np.linalg.inv(pose) @ motions[1][volume], grid.center)
        assert np.abs(wrong[[0, 2]]).max() < 0.3  # across the phase encoding
        assert np.rad2deg(np.abs(wrong[3:])).max() < 0.5


def test_corrected_runs_show_one_head(opposed, motions, brain):
    corrected = em.resample(opposed, motions, engine="fast")

    def agreement(runs):
        return np.corrcoef(*(run.signal[..., 0][brain] for run in runs))[0, 1]

    rigid = [replace(motion, off_resonance=None) for motion in motions]
    assert agreement(corrected) > 0.95
    assert agreement(corrected) > agreement(em.resample(opposed, rigid, engine="fast")) + 0.15


def test_runs_distorted_alike_lie_in_one_frame_without_a_field(head, grid, field, pose):
    runs = [scan(head, grid, field, "j-", where, seed)
            for where, seed in ((np.eye(4), 1), (pose, 5))]  # fmt: skip
    images = [RunImage.of(run, Motion.identity(2)) for run in runs]
    joined = join_runs(images)
    assert joined.field is None
    wrong = log_rigid(np.linalg.inv(pose) @ joined.poses[1], grid.center)
    assert np.abs(wrong[:3]).max() < 0.8
    assert np.rad2deg(np.abs(wrong[3:])).max() < 1.0
    assert not joined.errors[0].any()
    assert (joined.errors[1] > 0).all()


def inverted(image):
    """As an image of a diffusion-weighted shell: fluid is dark."""
    data = image.image.data
    dark = np.clip(1.1 * np.percentile(data[image.brain], 99) - data, 0, None) / 2
    shown = np.where(image.brain, dark, 0.1 * data).astype(np.float32)
    return replace(image, image=Image(shown, image.image.affine), is_b0=False)


def test_a_run_without_b0_is_placed_but_tells_neither_brain_nor_agreement(head, grid, field, pose):
    images = [RunImage.of(scan(head, grid, field, "j-", where, seed), Motion.identity(2))
              for where, seed in ((np.eye(4), 1), (pose, 5))]  # fmt: skip
    joined = join_runs([images[0], inverted(images[1])])
    wrong = log_rigid(np.linalg.inv(pose) @ joined.poses[1], grid.center)
    assert np.abs(wrong[:3]).max() < 0.8
    assert np.isnan(joined.similarity).all()
    np.testing.assert_array_equal(joined.mask, brain_mask(images[0].image.data))


@pytest.mark.slow
def test_the_field_is_told_by_runs_of_one_contrast(opposed, motions, grid, pose):
    images = [RunImage.of(run, Motion.identity(2)) for run in opposed]
    joined = join_runs([*images, inverted(images[1])])
    np.testing.assert_allclose(
        joined.field.coefficients, join_runs(images).field.coefficients, atol=1e-6
    )
    wrong = log_rigid(np.linalg.inv(pose) @ joined.poses[2], grid.center)
    assert np.abs(wrong[[0, 2]]).max() < 1.0


def test_runs_that_leave_the_field_unsought_are_named(opposed, caplog):
    images = [RunImage.of(run, Motion.identity(2)) for run in opposed]
    narrow = Image(images[1].image.data[:, 1:], images[1].image.affine)
    joined = join_runs([images[0], replace(images[1], readout_time=None, image=narrow)])
    assert joined.field is None
    assert "run 2 of 2: its sidecar has no TotalReadoutTime, so that" in caplog.text
    assert "the off-resonance field is not estimated" in caplog.text


def test_a_readout_time_holds_for_other_runs_of_the_grid(opposed, caplog):
    """A run without one left the field of both polarities unsought."""
    first, second = (RunImage.of(run, Motion.identity(2)) for run in opposed)
    runs = [first, replace(second, readout_time=None, name="pa.nii.gz")]
    readouts = readouts_of(runs)
    assert readouts[1].mm_per_hertz == readouts[0].mm_per_hertz
    assert tell_field(runs, readouts)
    warn_of_readouts(runs, readouts)
    assert f"pa.nii.gz: its sidecar has no TotalReadoutTime; {READOUT_TIME:g} s" in caplog.text
    third = replace(first, readout_time=2 * READOUT_TIME)
    assert readouts_of([*runs, third])[1] is None  # whose would it be?


@pytest.mark.slow
def test_a_field_that_makes_images_less_alike_is_not_used(opposed, caplog):
    """As where something else than an image of the same head is given."""
    first, second = (RunImage.of(run, Motion.identity(2)) for run in opposed)
    brightest, noise = (
        second.image.data.max(),
        np.random.default_rng(1).normal(size=first.image.data.shape),
    )
    other = (brightest * gaussian_filter(noise, 2) + second.image.data.mean()).astype(np.float32)
    joined = join_runs([first, replace(second, image=Image(other, second.image.affine))])
    assert joined.field is None
    assert joined.similarity[0] == joined.similarity[1]
    assert "it is not used; do they show the same head?" in caplog.text


def test_turned_slices_are_no_other_polarity(opposed):
    """What tells a field is another way of distortion, not a few degrees."""
    images = [RunImage.of(run, Motion.identity(2)) for run in opposed]
    turn = rigid_matrix(np.zeros(3), np.deg2rad([13.0, 0, 0]), np.zeros(3))[:3, :3]
    tilted = replace(images[0], encoding=turn @ images[0].encoding)
    assert not differ(readouts_of([images[0], tilted]))
    assert differ(readouts_of(images))


def test_readout_times_that_no_run_says_are_taken_as_equal(opposed, caplog):
    images = [replace(RunImage.of(run, Motion.identity(2)), readout_time=None) for run in opposed]
    readouts = readouts_of(images)
    np.testing.assert_allclose(readouts[0].shift, -readouts[1].shift)
    warn_of_readouts(images, readouts)
    assert "TotalReadoutTime is in no sidecar" in caplog.text
    caplog.clear()
    alike = [images[0], images[0]]  # of one polarity: no field is sought
    warn_of_readouts(alike, readouts_of(alike))
    assert not caplog.text
    assert without_times(images)
    assert not without_times([images[0], replace(images[1], readout_time=0.03)])


def test_a_field_in_hertz_is_refused_where_no_run_says_its_readout_time(opposed, field, tmp_path):
    """Nor may a nominal time stand for it, which images of opposite polarity alone can do with."""
    images = [replace(RunImage.of(run, Motion.identity(2)), readout_time=None) for run in opposed]
    write_image(tmp_path / "field.nii.gz", field.data[::4, ::4, ::4], field.affine @ QUARTER)
    with pytest.raises(em.EddymotionError, match=r"cannot be used without .*\{\"Phase.* \.json"):
        joined_of(images, MeasuredFiles(), Settings(fieldmap=tmp_path / "field.nii.gz"))


def test_a_field_that_is_given_is_not_sought(opposed, motions):
    field = motions[0].off_resonance.field
    joined = join_runs([RunImage.of(opposed[0], Motion.identity(2))], field=field)
    moved = joined.motion(0, Motion.identity(2))
    assert moved.off_resonance.field is field
    np.testing.assert_array_equal(moved.matrices, Motion.identity(2).matrices)


def test_images_of_no_use_are_left_out_and_named(opposed, tmp_path, caplog):
    signal, affine = np.array(opposed[0].signal), opposed[0].affine
    shown = {"blank": 0 * signal, "slice": signal[:, :, 10:11], "sound": signal}
    for name, data in shown.items():
        write_image(tmp_path / f"{name}.nii.gz", data, affine)
    (tmp_path / "pointer.nii.gz").write_text("../.git/annex/objects/x/y/MD5E-s10--z.nii.gz")
    for name in (*shown, "pointer"):
        run = SeriesFiles(tmp_path / f"{name}.nii.gz", is_b0=True)
        assert _is_usable(run, Settings(), tmp_path) == (name == "sound")
        assert (f"{name}.nii.gz: excluded from the runs" in caplog.text) == (name != "sound")
    signal[:3] = np.nan
    write_image(tmp_path / "nan.nii.gz", signal, affine)
    assert np.isfinite(load_b0s(SeriesFiles(tmp_path / "nan.nii.gz", metadata={})).signal).all()


def test_a_field_is_read_in_the_units_of_its_sidecar(opposed, field, tmp_path):
    image, given = RunImage.of(opposed[0], Motion.identity(2)), tmp_path / "field.nii.gz"
    coarse = field.affine @ QUARTER
    write_image(given, field.data[::4, ::4, ::4] * np.float32(2 * np.pi), coarse)
    settings = Settings(fieldmap=given)
    points = apply_affine(image.image.affine, np.argwhere(image.brain))
    in_hertz = _given_field(given, image).hertz(points)
    digest = digest_of([], MeasuredFiles(), settings)
    (tmp_path / "field.json").write_text('{"Units": "rad/s"}')
    found = _given_field(given, image)
    np.testing.assert_allclose(found.hertz(points), in_hertz / (2 * np.pi), rtol=1e-3, atol=0.05)
    assert digest_of([], MeasuredFiles(), settings) != digest
    away = coarse.copy()
    away[0, 3] += 400
    write_image(given, field.data[::4, ::4, ::4], away)
    with pytest.raises(em.EddymotionError, match="covers 0% of the brain"):
        _given_field(given, image)
    strong = join_runs([image], field=OffResonance(300 * found.coefficients, found.affine))
    (issue,) = issues_of(SessionRun(("a",), strong, 0))
    assert "check that the field is in Hz" in issue.text
    assert issue.severe


@pytest.mark.slow
def test_a_measured_map_is_compared_where_polarities_tell_the_field(opposed, field, tmp_path):
    images = [RunImage.of(run, Motion.identity(2)) for run in opposed]
    assert tell_field(images, readouts_of(images))
    assert not tell_field(images[:1], readouts_of(images[:1]))
    unknown = [*images, replace(inverted(images[1]), encoding=None)]
    assert not tell_field(unknown, readouts_of(unknown))
    files = MeasuredFiles({"fieldmap": tmp_path / "fieldmap.nii.gz"})
    write_image(files.files["fieldmap"], 40.0 + 1.1 * field.data, field.affine)
    (tmp_path / "fieldmap.json").write_text('{"Units": "Hz"}')
    joined = joined_of(images, files, Settings())
    without = joined_of(images, MeasuredFiles(), Settings())
    assert not joined.measured
    np.testing.assert_array_equal(joined.field.coefficients, without.field.coefficients)
    assert without.comparison is None
    found = joined.comparison
    assert found.correlation > 0.9
    assert 0.75 < found.slope < 1.05  # 1 / 1.1, less what knots leave out
    ignoring = joined_of(images, files, Settings(ignore=("fieldmaps",)))
    assert ignoring.field is None
    assert ignoring.beside is None
    keep(tmp_path / "kept", joined)
    again = recalled(tmp_path / "kept")
    np.testing.assert_array_equal(again.beside, joined.beside)
    assert again.comparison == found


def test_maps_are_compared_but_for_a_constant():
    random = np.random.default_rng(0)
    field = random.normal(size=(4, 5, 6)) * 20
    measured = 0.5 * field + 7.0
    measured[0] = np.nan
    found = MapAgreement.of(field, measured)
    np.testing.assert_allclose([found.correlation, found.slope], [1.0, 2.0])
    np.testing.assert_allclose(found.rms, 0.5 * field[1:].std())
    assert MapAgreement.of(field, np.full_like(field, np.nan)) is None


def corrected_pair():
    """Two runs of a constant head, squeezed at different places."""
    shape, random = (8, 9, 10), np.random.default_rng(0)
    truth = random.uniform(100, 200, (*shape, 3))
    stretch = random.uniform(0.3, 1.7, shape)
    table = Gradients([0, 1000, 1000], np.eye(3)[[0, 0, 1]])
    flipped = Gradients([0, 1001, 998], -np.eye(3)[[0, 1, 0]])
    noise = random.normal(scale=20, size=(2, *shape, 3))
    mask = np.ones(shape, bool)
    first = em.DWI(truth + noise[0] / stretch[..., None], np.eye(4), table, mask)
    other = truth[..., [0, 2, 1]] + noise[1] / (2 - stretch)[..., None]
    return truth, (first, em.DWI(other, np.eye(4), flipped, mask)), (stretch, 2 - stretch)


SHIFTS = np.array([[0, -0.1, 0], [0, 0.1, 0]])


def test_pairs_are_averaged_by_the_squares_of_their_stretch():
    truth, runs, stretches = corrected_pair()
    merged, pairs = averaged(runs, stretches, SHIFTS)
    assert (pairs, len(merged)) == (3, 3)
    np.testing.assert_allclose(merged.gradients.bvals, [0, 1000, 1000])
    weights = np.stack(stretches) ** 2
    partner = runs[1].signal[..., 2]  # of volume 1: the same axis, the other way
    total = weights[0] * runs[0].signal[..., 1] + weights[1] * partner
    np.testing.assert_allclose(merged.signal[..., 1], total / weights.sum(axis=0), rtol=1e-5)
    plain = (runs[0].signal[..., 1] + partner) / 2
    weighted, plain = (
        np.sqrt(np.mean((one - truth[..., 1]) ** 2)) for one in (merged.signal[..., 1], plain)
    )
    assert weighted < 0.8 * plain
    signal = np.array(runs[1].signal)
    signal[..., 0, :] = 0  # beyond the field of view of that run
    cut, _ = averaged((runs[0], replace(runs[1], signal=signal)), stretches, SHIFTS)
    np.testing.assert_allclose(cut.signal[..., 0, :], runs[0].signal[..., 0, :])
    np.testing.assert_array_equal(cut.signal[..., 1:, :], merged.signal[..., 1:, :])


def test_volumes_of_one_polarity_are_no_pairs():
    _, runs, stretches = corrected_pair()
    merged, pairs = averaged(runs, stretches, np.abs(SHIFTS))
    assert (pairs, len(merged)) == (0, 6)


def test_runs_are_put_one_after_the_other_if_their_grids_are_one():
    _, runs, _ = corrected_pair()
    merged = concatenated(runs)
    np.testing.assert_array_equal(merged.signal[..., 3:], runs[1].signal)
    moved = replace(runs[1], affine=apply_shift(runs[1].affine))
    with pytest.raises(em.EddymotionError, match="not on the grid of"):
        concatenated([runs[0], moved])


def apply_shift(affine):
    shifted = affine.copy()
    shifted[:3, 3] = apply_affine(affine, [0.5, 0, 0])
    return shifted


def test_mask_of_the_runs_lies_where_the_head_is(opposed):
    joined = join_runs([RunImage.of(run, Motion.identity(2)) for run in opposed[:1]])
    half = opposed[0].affine.copy()
    half[:3, 3] += 2.5
    moved = joined.mask_on(opposed[0].shape, half)
    expected = Image(joined.mask.astype(np.float32), joined.affine)
    there = expected.spline.sample(grid_points(opposed[0].shape, half))
    inside = np.isfinite(there)
    assert (moved.ravel()[inside] == (there[inside] > 0.5)).mean() > 0.97


def test_motion_in_the_frame_of_the_first_run_holds_that_of_its_own_run(pose, tmp_path):
    """To the last bit: what a finished run left serves another one with other settings."""
    errors = np.full((2, 6), 0.1)
    alone = replace(Motion(np.stack([np.eye(4), pose])), standard_errors=errors)
    joined = JoinedRuns(
        np.stack([np.eye(4), pose]), np.full((2, 6), 0.2), np.full((2, 3), np.nan), None,
        np.zeros((2, 2, 2)), np.ones((2, 2, 2), bool), np.eye(4),
    )  # fmt: skip
    moved = joined.motion(1, alone)
    np.testing.assert_allclose(moved.matrices, alone.matrices @ pose)
    np.testing.assert_allclose(moved.standard_errors, np.hypot(0.1, 0.2))
    files = tmp_path / "xfm.txt", tmp_path / "details.json"
    write_motion(*files, moved)
    back = read_written_motion(*files).alone
    np.testing.assert_array_equal(back.matrices, alone.matrices)
    np.testing.assert_array_equal(back.standard_errors, errors)


@pytest.mark.parametrize(("times", "merged"), [((2.5, 2.5), 2.5), ((2.5, 3.0), None)])
def test_a_merged_series_has_the_repetition_time_that_all_runs_have(tiny, tmp_path, times, merged):
    runs = [
        replace(
            tiny, acquisition=Acquisition.every(tiny.gradients, tiny.affine, repetition_time=time)
        )
        for time in times
    ]
    session = SessionOutputs(tmp_path, "sub-01", "")
    settings = Settings(distortion_group_merge="concat")
    write_as_one(session, runs, [], ["a", "b"], settings)
    assert read_json(session.merged(".json")).get("RepetitionTime") == merged
