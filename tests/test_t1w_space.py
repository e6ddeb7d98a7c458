# SPDX-License-Identifier: Apache-2.0
"""Each participant's own T1w as the output space."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from runs import QUICK
from scipy.spatial.transform import Rotation
from t1w import anatomy

from eddymotion.bids.anatomy import AnatomyFinder, with_anatomy
from eddymotion.bids.series import Sorted
from eddymotion.cli import correct, participant
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.session import SessionOutputs, remove_elsewhere
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid, grid_points, regridded, sizes_along
from eddymotion.images.image import Image
from eddymotion.io.images import read_image, write_image
from eddymotion.io.itk import write_itk
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tables import read_numbers
from eddymotion.io.transforms import read_linear, write_linear
from eddymotion.io.writing import write_json
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.pipeline.output_space import _found
from eddymotion.pipeline.output_space.pair import SpacePair
from eddymotion.pipeline.output_space.reference import Reference
from eddymotion.pipeline.runs.merging import _stretch_of
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.target import Target, read_white_matter
from eddymotion.registration import GaussNewton
from eddymotion.registration.checks import check_pair
from eddymotion.resampling import Resampled
from eddymotion.simulation import acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion

TURN = rigid_matrix([9.0, -14.0, 6.0], np.deg2rad([6.0, -9.0, 12.0]), np.zeros(3))


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def found(root, session=None, derivatives=None, filter_file=None):
    anatomy = AnatomyFinder.of(root, derivatives, filter_file).find("x", session)
    return anatomy and anatomy.t1w.name


def test_the_nearest_t1w_is_taken_session_before_participant_before_another_session(tmp_path):
    assert found(tmp_path, "b") is None
    touch(tmp_path, "sub-x/ses-a/anat/sub-x_ses-a_T1w.nii.gz")
    assert found(tmp_path, "b") == "sub-x_ses-a_T1w.nii.gz"
    touch(tmp_path, "sub-x/anat/sub-x_T1w.nii", "sub-x/anat/sub-x_T2w.nii")
    assert found(tmp_path, "b") == found(tmp_path) == "sub-x_T1w.nii"
    touch(tmp_path, "sub-x/ses-b/anat/sub-x_ses-b_T1w.nii.gz")
    assert found(tmp_path, "b") == "sub-x_ses-b_T1w.nii.gz"


def test_of_several_the_plainest_name_is_taken_and_said_and_a_filter_chooses(tmp_path, caplog):
    names = ("acq-b_run-1_T1w", "acq-c_T1w", "acq-b_T1w", "part-phase_T1w")
    touch(tmp_path, *(f"sub-x/anat/sub-x_{name}.nii.gz" for name in names))
    assert found(tmp_path) == "sub-x_acq-b_T1w.nii.gz"
    assert "sub-x_acq-c_T1w.nii.gz" in caplog.text
    assert "--bids-filter-file" in caplog.text
    chosen = tmp_path / "filter.json"
    chosen.write_text('{"dwi": {"run": 1}, "t1w": {"acquisition": "c"}}')
    assert found(tmp_path, filter_file=chosen) == "sub-x_acq-c_T1w.nii.gz"


def test_derivatives_have_the_layout_of_fmriprep(tmp_path):
    stem = "fmriprep/sub-x/ses-a/anat/sub-x_ses-a_run-1"
    touch(tmp_path, "bids/sub-x/anat/sub-x_T1w.nii.gz", f"{stem}_desc-preproc_T1w.nii.gz",
          f"{stem}_desc-brain_mask.nii.gz", f"{stem}_dseg.nii.gz",
          f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz",
          f"{stem}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")  # fmt: skip
    finder = AnatomyFinder.of(tmp_path / "bids", tmp_path / "fmriprep")
    anatomy = finder.find("x", "a")
    assert anatomy.t1w == tmp_path / f"{stem}_desc-preproc_T1w.nii.gz"
    assert anatomy.brain_mask == tmp_path / f"{stem}_desc-brain_mask.nii.gz"
    assert anatomy.white_matter == tmp_path / f"{stem}_dseg.nii.gz"
    touch(tmp_path, f"{stem}_label-WM_probseg.nii.gz")
    assert finder.find("x", "a").white_matter == tmp_path / f"{stem}_label-WM_probseg.nii.gz"
    settings = Settings(output_space="T1w").in_space_of(anatomy)
    assert (settings.output_space, settings.output_space_transform) == (anatomy.t1w, "rigid")
    assert settings.output_resolution == "native"
    with pytest.raises(EddymotionError, match="no such folder"):
        AnatomyFinder.of(tmp_path, tmp_path / "nowhere")


def test_who_has_no_t1w_is_listed_and_nobody_having_one_is_a_wrong_call(tmp_path):
    touch(tmp_path, "sub-x/anat/sub-x_T1w.nii.gz")
    series = {label: [SeriesFiles(tmp_path / f"sub-{label}/dwi/sub-{label}_dwi.nii.gz",
                                  uri=f"bids:raw:sub-{label}/dwi/sub-{label}_dwi.nii.gz")]
              for label in ("x", "y")}  # fmt: skip
    nothing = {label: {} for label in series}
    finder = AnatomyFinder.of(tmp_path)
    sorted_out = with_anatomy(Sorted(series, nothing, nothing), finder)
    assert [one.anatomy.uri for one in sorted_out.series["x"]] == [
        "bids:raw:sub-x/anat/sub-x_T1w.nii.gz"
    ]
    assert sorted_out.series["y"] == []
    assert "sub-y" in sorted_out.refused["y"]["sub-y/dwi/sub-y_dwi.nii.gz"]
    assert sorted_out.n_series == 2
    with pytest.raises(EddymotionError, match="no T1w image of sub-y"):
        with_anatomy(Sorted({"y": series["y"]}, {"y": {}}, {"y": {}}), finder)


def test_native_voxels_fill_the_box_of_the_t1w():
    """Sizes of the series along the nearest axes of the T1w; the box stays, to a voxel."""
    turn = Rotation.from_euler("xyz", [8, -5, 10], degrees=True).as_matrix()
    series = Grid.covering(procedural_head(8.0), (1.75, 2.0, 3.0), "PSL", turn)
    t1w = Image(np.zeros((160, 256, 240), np.float32),
                from_matvec(turn.T @ np.diag([-1.0, 0.9, 1.1]), [80, -90, -100]))  # fmt: skip
    np.testing.assert_allclose(sizes_along(t1w.affine, series.affine), [1.75, 2.0, 3.0])
    for resolution, sizes in (("native", [1.75, 2, 3]), (2.5, [2.5] * 3), (None, [1, 0.9, 1.1])):
        shape, affine = Target(t1w, resolution=resolution).grid_for(series)
        np.testing.assert_allclose(voxel_sizes(affine), sizes, atol=1e-6)
        axes = affine[:3, :3] / voxel_sizes(affine)
        np.testing.assert_allclose(axes, t1w.affine[:3, :3] / t1w.voxel_sizes, atol=1e-9)
        old, new = (
            apply_affine(a, [-0.5 * np.ones(3), np.array(n) - 0.5])
            for n, a in ((t1w.data.shape, t1w.affine), (shape, affine))
        )
        assert (np.abs(old - new) <= 0.5 * np.max(sizes) * np.sqrt(3)).all()
        np.testing.assert_allclose(old.mean(axis=0), new.mean(axis=0), atol=1e-6)
    assert regridded((10, 10, 10), np.eye(4), np.full(3, 1.0 + 1e-6))[0] == (10, 10, 10)
    with pytest.raises(EddymotionError, match="give larger voxels"):
        Target(t1w, resolution=0.1).grid_for(series)


class Space:
    """A rigid space, as one matrix or as a map of points."""

    def __init__(self, matrix, linear):
        self.matrix, self.rotation = matrix, matrix[:3, :3]
        self.linear = matrix if linear else None

    def __call__(self, points):
        return apply_affine(self.matrix, points)


def test_a_grid_that_is_too_large_is_refused_before_the_motion_is_sought(tmp_path):
    path = tmp_path / "target.nii.gz"
    write_image(path, np.arange(27, dtype=np.float32).reshape(3, 3, 3), np.diag([60, 60, 60, 1.0]))
    with pytest.raises(EddymotionError, match=r"0\.05×0\.05×0\.05 mm give a grid of"):
        Target.read(Settings(output_space=path, output_resolution=0.05))


def test_a_linear_space_is_read_as_its_points_would_be():
    """By both engines, through eddy-current fields, too; the b-vectors turn alike."""
    phantom = procedural_head(10.0)
    gradients = shelled_scheme({1000: 3}, 1)
    motion = simulate_motion("moderate", len(gradients), np.zeros(3), seed=2)
    coefficients = np.random.default_rng(1).normal(0, 1, (4, 3))
    fields = EddyCurrents(coefficients, np.array([0.0, 1.0, 0.0]), np.zeros(3))
    dwi = acquire(phantom, gradients, motion, Grid.covering(phantom, 10.0, "LAS"), snr=40)
    motion = replace(motion, eddy_currents=fields)
    grid = (24, 26, 22), from_matvec(np.diag([-6.0, 6.0, 6.5]), [75.0, -70.0, -70.0])
    for engine in ("fast", "nitransforms"):
        matrix, points = (
            Resampled.of(dwi, motion, engine=engine, grid=grid, space=Space(TURN, linear))
            for linear in (True, False)
        )
        assert matrix.points is None
        assert matrix.kernel_agrees
        np.testing.assert_array_equal(matrix.gradients.bvecs, points.gradients.bvecs)
        np.testing.assert_array_equal(matrix.mask, points.mask)
        for one, other in zip(matrix.volumes(), points.volumes(), strict=True):
            assert one.any()
            assert np.quantile(np.abs(one - other), 0.999) < 1e-3 * dwi.signal.max()


def test_probes_of_the_overlap_do_not_lie_in_one_plane():
    """Of 127 × 157 × 148 voxels every 148th is one plane; what they show in common counts."""
    ramp = np.broadcast_to(np.arange(148, dtype=np.float32), (127, 157, 148))
    mask = np.zeros((32, 40, 37), bool)
    mask[5:25, 5:32, 5:30] = True
    fixed, moving = Image(ramp, np.eye(4)), Image(ramp[::4, ::4, ::4], np.diag([4.0, 4, 4, 1]))
    assert check_pair(fixed, moving, None, mask, "rigid", "nmi", GaussNewton()) == "nmi"


def test_images_of_other_programs_with_such_names_stay(tmp_path):
    """In a folder of eddymotion-correct: what has no sidecar of ours is not ours."""
    for flat in (True, False):
        outputs = Outputs(tmp_path, "sub-x", tmp_path / "figures", flat=flat)
        theirs = replace(outputs, space="T1w")
        for kind in ("dwi", "sidecar"):
            touch(tmp_path, theirs[kind])
        remove_elsewhere(outputs)
        assert theirs["dwi"].exists() == theirs["sidecar"].exists() == flat


def test_runs_are_weighted_by_the_field_where_it_lies(tmp_path):
    """The stretch on the grid of a T1w is that of the points of the reference frame."""
    random = np.random.default_rng(2)
    affine = from_matvec(np.diag([30.0] * 3), [-105, -105, -105])
    field = OffResonance(random.normal(0, 40, (8, 8, 8)).astype(np.float32), affine)
    outputs = Outputs(tmp_path, "sub-x", tmp_path / "figures", space="T1w")
    grid = Image(np.ones((8, 9, 7), np.float32), from_matvec(np.diag([9.0] * 3), [-30, -30, -20]))
    b0 = Gradients([0.0], np.zeros((1, 3)))
    corrected = DWI(grid.data[..., None], grid.affine, b0, np.ones(grid.data.shape, bool))
    write_itk(outputs["xfm"], np.eye(4)[None])
    write_image(SessionOutputs.of(outputs).field.path("coeff"), field.coefficients, affine)
    write_linear(outputs["space"], TURN, grid, grid)
    shift = np.array([0.0, 0.03, 0.0])
    write_json(outputs["sidecar"], {"OffResonanceCorrected": True,
                                    "MillimetresPerHertz": shift.tolist()})  # fmt: skip
    stretch, _ = _stretch_of(outputs, SessionOutputs.of(outputs), corrected)
    points = apply_affine(TURN, grid_points(grid.data.shape, grid.affine))
    expected = 1 + field.hertz_with_gradient(points)[1] @ shift
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(stretch.ravel(), expected, atol=1e-4)


@pytest.mark.slow
def test_a_t1w_of_another_head_is_doubted():
    target = anatomy(5.0, TURN)
    for scale, expected in ((1.0, 0), (1.15, 1)):
        shown = anatomy(5.0, np.diag([scale] * 3 + [1.0]), contrast=np.array([0.7, 0.85, 1.5]))
        everywhere = shown.data > 0.3
        space = _found(SpacePair.of(target, None, Reference(shown, everywhere)), "rigid", 0)
        assert len(space.doubts) == expected
        assert space.transform == "rigid"


@pytest.mark.slow
def test_a_t1w_with_left_and_right_swapped_is_doubted():
    target = anatomy(4.0, TURN)
    shown = anatomy(4.0, np.eye(4), contrast=np.array([0.7, 0.85, 1.5]))
    swapped = replace(target, data=np.ascontiguousarray(target.data[::-1]))
    for image, words in ((target, ()), (swapped, ("left and right are swapped",))):
        pair = SpacePair.of(image, None, Reference(shown, shown.data > 0.3))
        doubts = _found(pair, "rigid", 0).doubts
        assert len(doubts) == len(words)
        assert all(word in doubt for word, doubt in zip(words, doubts, strict=True))


def test_white_matter_is_a_share_or_the_label_of_a_segmentation(tmp_path):
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[:3], labels[3:5] = 2, 1
    image = Image(labels.astype(np.float32), np.eye(4))
    owner = tmp_path / "sub-x_desc-preproc_T1w.nii.gz"
    write_image(tmp_path / "sub-x_dseg.nii.gz", labels, image.affine)
    np.testing.assert_array_equal(
        read_white_matter(tmp_path / "sub-x_dseg.nii.gz", owner, image), labels == 2
    )
    write_image(tmp_path / "wm.nii.gz", labels, image.affine)
    with pytest.raises(EddymotionError, match="values from 0 to 2"):
        read_white_matter(tmp_path / "wm.nii.gz", owner, image)
    write_image(tmp_path / "wm.nii.gz", labels[:3], image.affine)
    with pytest.raises(EddymotionError, match=r"wm\.nii\.gz"):
        read_white_matter(tmp_path / "wm.nii.gz", owner, image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output-space", "T1w"], "no T1w image of sub-x"),
        (["--output-space", "T1w", "--output-space-mask", "here.nii"], "of each participant"),
        (["--output-resolution", "2"], "without --output-space"),
        (["--output-space", "dwi", "--output-resolution", "native"], "without --output-space"),
        (["--output-space", "T1w", "--output-resolution", "0"], "above zero"),
        (["--output-space", "T2w"], "no such file"),
        (["--anat-derivatives", "."], "without --output-space T1w"),
        (["--output-space", "T1w", "--anat-derivatives", "nowhere"], "no such folder"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, monkeypatch, capsys, options, words):
    touch(tmp_path, "here.nii", *(f"sub-x/dwi/sub-x_dwi.{end}" for end in ("nii.gz", "bvec")))
    (tmp_path / "sub-x/dwi/sub-x_dwi.bval").write_text("0 1000 1000\n")
    monkeypatch.chdir(tmp_path)
    try:
        code = participant.main([".", "../out", "participant", *options])
    except SystemExit as stop:
        code = stop.code
    printed = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code == 2
    assert len(printed) == 1
    assert words in printed[0]
    assert not (tmp_path.parent / "out").exists()


def test_a_series_without_a_participant_has_no_t1w(tmp_path, capsys):
    touch(tmp_path, "dwi.nii.gz")
    call = [str(tmp_path / "dwi.nii.gz"), "-o", str(tmp_path / "out"), "--output-space", "T1w"]
    assert correct.main(call) == 2
    assert "give the image itself" in capsys.readouterr().err


MOVED = rigid_matrix(np.array([0.0, 4.0, -3.0]), np.deg2rad([2.0, 0.0, 5.0]), np.zeros(3))
"""Of the head between the runs of the session."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two runs of a session and a T1w, with derivatives; a participant without a T1w."""
    root, head = tmp_path_factory.mktemp("t1w"), procedural_head(6.0)
    grid = Grid.covering(head, 6.0)
    for label, run, pose in (("01", "a", np.eye(4)), ("01", "b", MOVED), ("02", "a", np.eye(4))):
        scheme = shelled_scheme({1000.0: 8}, 2, seed=ord(run))
        motion = simulate_motion("moderate", len(scheme), np.zeros(3), seed=ord(run))
        motion = Motion(motion.relative_to(0).matrices @ pose)
        dwi = acquire(head, scheme, motion, grid, seed=ord(run))
        write_bids(root / "bids", label, dwi, motion, direction=run)
    t1w, white = anatomy(3.0, TURN), anatomy(3.0, TURN, contrast=np.array([1.0, 0.0, 0.0]))
    write_image(root / "bids/sub-01/anat/sub-01_T1w.nii.gz", t1w.data, t1w.affine)
    for name, data in (
        ("desc-preproc_T1w", t1w.data),
        ("desc-brain_mask", (t1w.data > 0.4).astype(np.uint8)),
        ("label-WM_probseg", np.clip(white.data - 0.05, 0, 1)),
    ):
        write_image(root / f"fmriprep/sub-01/anat/sub-01_{name}.nii.gz", data, t1w.affine)
    return root


def run(dataset, *options):
    call = [dataset / "bids", dataset / "out", "participant", *QUICK, *options]
    return participant.main([str(part) for part in call])


@pytest.mark.slow
def test_runs_of_a_session_go_to_the_t1w_by_one_transform(dataset, capsys):
    assert run(dataset, "--output-space", "T1w", "--distortion-group-merge", "concat") == 1
    printed = capsys.readouterr().err
    assert "sub-02/dwi/sub-02_dir-a_dwi.nii.gz: --output-space T1w: no T1w image" in printed
    folder = dataset / "out/sub-01/dwi"
    outputs = [Outputs(folder.parent, f"sub-01_dir-{run}", folder, space="T1w") for run in "ab"]
    t1w, t1w_affine, _ = read_image(dataset / "bids/sub-01/anat/sub-01_T1w.nii.gz")
    raw, raw_affine, _ = read_image(dataset / "bids/sub-01/dwi/sub-01_dir-a_dwi.nii.gz")
    target, frame = Image(t1w, t1w_affine), Image(raw[..., 0], raw_affine)
    there, back = (
        {one[kind].read_text() for one in outputs} for kind in ("space", "space_inverse")
    )
    assert (len(there), len(back)) == (1, 1)
    assert outputs[0]["space"].name == "sub-01_dir-a_from-dwiref_to-T1w_mode-image_xfm.txt"
    matrix = read_linear(outputs[0]["space"], target, frame)
    inverse = read_linear(outputs[0]["space_inverse"], frame, target)
    np.testing.assert_allclose(matrix @ inverse, np.eye(4), atol=1e-9)
    brain = apply_affine(t1w_affine, np.argwhere(t1w > 0.4))
    apart = apply_affine(matrix, brain) - apply_affine(TURN, brain)
    assert np.linalg.norm(apart, axis=1).mean() < 1.5
    means, masks = [], []
    for one in outputs:
        mean, affine, _ = read_image(one["dwiref"])
        np.testing.assert_allclose(voxel_sizes(affine), 6.0, atol=1e-3)
        means.append(mean)
        masks.append(read_image(one["mask"])[0] > 0)
    assert np.corrcoef(*(mean[masks[0] & masks[1]] for mean in means))[0, 1] > 0.95
    names = {path.name for path in folder.glob("*_desc-preproc_dwi.*")}
    assert names == {f"sub-01_dir-{run}_space-T1w_desc-preproc_dwi.{end}" for run in "ab"
                     for end in ("nii.gz", "bval", "bvec", "json")}  # fmt: skip
    merged = folder / "sub-01_space-T1w_desc-merged_dwi.nii.gz"
    assert read_image(merged)[0].shape == (*means[0].shape, 20)
    sidecar = json.loads(outputs[1]["sidecar"].read_text())
    assert sidecar["SpatialReference"] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    assert sidecar["SpatialReference"] in sidecar["Sources"]
    assert "Output space" in (dataset / "out/sub-01.html").read_text()


@pytest.mark.slow
def test_gradients_are_those_of_the_head_in_the_t1w(dataset):
    """b-vectors of a moved head, in its own frame: turned by the motion and into the T1w."""
    folder = dataset / "out/sub-01/dwi"
    raw = dataset / "bids/sub-01/dwi/sub-01_dir-b_dwi"
    before, after = (
        read_numbers(Path(f"{stem}.bvec")).reshape(3, -1)
        for stem in (raw, folder / "sub-01_dir-b_space-T1w_desc-preproc_dwi")
    )
    flip = np.array([-1.0, 1.0, 1.0])[:, None]  # both grids are RAS
    truth = simulate_motion("moderate", 10, np.zeros(3), seed=ord("b")).relative_to(0)
    for volume in np.flatnonzero(np.linalg.norm(before, axis=0) > 0.5):
        turn = (truth.matrices[volume] @ MOVED @ TURN)[:3, :3]
        expected = turn.T @ (flip * before)[:, volume]
        angle = np.arccos(abs(expected @ (flip * after)[:, volume]))
        assert np.rad2deg(angle) < 3.0


@pytest.mark.slow
def test_derivatives_and_another_space_replace_what_was_there(dataset):
    """The motion is reused; nothing of the former space is left beside the new one."""
    options = ("--output-space", "T1w", "--output-resolution", "5", "--participant-label", "01",
               "--anat-derivatives", str(dataset / "fmriprep"))  # fmt: skip
    assert run(dataset, *options) == 0
    folder = dataset / "out/sub-01/dwi"
    path = folder / "sub-01_dir-a_space-T1w_desc-preproc_dwi.nii.gz"
    np.testing.assert_allclose(voxel_sizes(read_image(path)[1]), 5.0, atol=1e-3)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["SpatialReference"] == "bids:anat:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    links = json.loads((dataset / "out/dataset_description.json").read_text())["DatasetLinks"]
    assert links["anat"] == (dataset / "fmriprep").as_uri()
    assert run(dataset, "--participant-label", "01") == 0
    assert not list(folder.glob("*T1w*"))
    assert (folder / "sub-01_dir-a_desc-preproc_dwi.nii.gz").is_file()
    newest = sorted((dataset / "out/logs").glob("*.log"))[-1]
    assert "reused" in newest.read_text()
