# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-register`` from outside: files, pictures, numbers, advice, messages."""

import json
import os
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from nibabel.affines import apply_affine, from_matvec
from nitransforms.linear import Affine
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from eddymotion.cli import register
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.transforms import FORMATS, read_linear, write_linear
from eddymotion.io.warps import read_displacements
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.pairs.advice import advise
from eddymotion.pairs.inputs import FilePair, read_volume
from eddymotion.pairs.measures import PairQuality, resampled_onto
from eddymotion.registration import Registration, Warp
from eddymotion.simulation import Grid

CONTRAST = np.array([1.0, 0.65, 0.25])
"""White matter, grey matter, fluid."""

TRUE = rigid_matrix([7.0, -9.0, 5.0], np.deg2rad([5, -4, 8]), np.zeros(3))
"""Fixed → moving."""

POINTS = np.array([[0.0, 0, 0], [30, 10, -12], [-25, 30, 8], [12, -40, 20], [-8, -20, -25]])
LABELS = ("AC", "right", "left", "back", "low")

TABLE_HEAD = "label\tfixed_x\tfixed_y\tfixed_z\tmoving_x\tmoving_y\tmoving_z"


def picture(head, grid, matrix, bend=None):
    """What a scanner sees on a grid of which a point x shows the head's matrix @ bend(x)."""
    points = apply_affine(grid.affine, np.indices(grid.shape).reshape(3, -1).T)
    seen = apply_affine(matrix, points if bend is None else bend(points))
    voxels = apply_affine(np.linalg.inv(head.affine), seen).T
    blurred = gaussian_filter((head.tissue @ CONTRAST).astype(np.float32), 0.5)
    noise = np.random.default_rng(grid.shape[0]).normal(scale=0.01, size=grid.shape)
    data = map_coordinates(blurred, voxels, order=1).reshape(grid.shape)
    return Image((100 * np.abs(data + noise)).astype(np.float32), grid.affine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, head):
    """A pair on unlike grids: oblique LAS, and RAS with its origin elsewhere."""
    root = tmp_path_factory.mktemp("register")
    turn = Rotation.from_euler("xyz", [9, -6, 11], degrees=True).as_matrix()
    fixed = picture(head, Grid.covering(head, (4.5, 4.0, 5.0), "LAS", turn), np.eye(4))
    moving = picture(head, Grid.covering(head, 4.0), np.linalg.inv(TRUE))
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(root / f"{name}.nii.gz", image.data, image.affine)
        write_image(root / f"{name}_mask.nii.gz", (image.data > 15).astype(np.uint8), image.affine)
    rows = np.hstack([POINTS, apply_affine(TRUE, POINTS)])
    lines = ("\t".join([name, *map(str, row)]) for name, row in zip(LABELS, rows, strict=True))
    (root / "landmarks.tsv").write_text("\n".join([TABLE_HEAD, *lines]) + "\n")
    return root


def call(folder, *arguments, fixed="fixed.nii.gz", moving="moving.nii.gz"):
    return register.main([str(folder / fixed), str(folder / moving), "--nprocs", "1",
                          *map(str, arguments)])  # fmt: skip


def images(folder):
    return tuple(read_volume(folder / f"{name}.nii.gz", name)[0] for name in ("fixed", "moving"))


def error_of(matrix):
    """Mean error (mm) at the landmarks."""
    return np.linalg.norm(apply_affine(matrix @ np.linalg.inv(TRUE),
                                       apply_affine(TRUE, POINTS))
                          - apply_affine(TRUE, POINTS), axis=1).mean()  # fmt: skip


@pytest.fixture(scope="module")
def rigid(folder):
    """The outputs of one run with everything."""
    prefix = folder / "rigid" / "new" / "pair"
    with redirect_stdout(StringIO()) as console:
        code = call(folder, "-o", prefix, "--landmarks", folder / "landmarks.tsv",
                    "--fixed-mask", folder / "fixed_mask.nii.gz",
                    "--moving-mask", folder / "moving_mask.nii.gz")  # fmt: skip
    assert code == 0
    (folder / "console.txt").write_text(console.getvalue())
    return prefix


def summary_at(prefix):
    return json.loads(prefix.with_name(prefix.name + ".json").read_text())


def after(prefix, ending):
    return prefix.with_name(prefix.name + ending)


def test_summary_tells_the_truth_in_millimetres_and_degrees(folder, rigid):
    content = summary_at(rigid)
    fixed, _ = images(folder)
    center = apply_affine(fixed.affine, (np.array(fixed.data.shape) - 1) / 2)
    np.testing.assert_allclose(
        content["translation_mm"], apply_affine(TRUE, center) - center, atol=0.1
    )
    angles = Rotation.from_matrix(TRUE[:3, :3]).as_euler("xyz", degrees=True)
    np.testing.assert_allclose(content["rotation_deg"], angles, atol=0.1)
    assert content["converged"]
    assert content["cost"]["last"] <= content["cost"]["first"]
    assert content["seconds"] > 0
    assert content["n_iterations"] > 0
    assert content["share"]["after"] == 1
    for name in ("similarity", "correlation", "dice"):
        assert content[name]["after"] > content[name]["before"]
    assert content["dice"]["after"] > 0.9
    assert content["landmarks"]["tre_before"]["mean_mm"] == pytest.approx(
        np.linalg.norm(apply_affine(TRUE, POINTS) - POINTS, axis=1).mean(), abs=1e-3
    )
    assert content["landmarks"]["tre_after"]["mean_mm"] < 0.1
    assert content["advice"] == []
    assert sorted(content["outputs"] + ["pair.json"]) == sorted(
        path.name for path in rigid.parent.iterdir()
    )


def test_console_tells_it_in_words(folder, rigid):
    lines = [line for line in (folder / "console.txt").read_text().splitlines() if "  " in line]
    table = {name: value.strip() for name, value in (line.split("  ", 1) for line in lines)}
    assert list(table) == ["transform", "stopped", "translation", "rotation", "displacement",
                          "cost", "overlap", "Dice of masks", "similarity",
                          "landmarks"]  # fmt: skip
    assert table["stopped"].startswith("converged")
    assert "° in all" in table["rotation"]
    assert table["landmarks"].endswith("mm (mean error of 5)")


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_file_moves_a_voxel_to_the_same_place(folder, rigid, fmt):
    """Read by NiTransforms, and by us: the same voxel of the moving image as the matrix says."""
    fixed, moving = images(folder)
    path = after(rigid, FORMATS[fmt])
    theirs = Affine.from_filename(
        path, fmt="X5" if fmt == "x5" else fmt,
        reference=nib.load(folder / "fixed.nii.gz"), moving=nib.load(folder / "moving.nii.gz"),
    )  # fmt: skip
    voxel = np.array([[9, 20, 14]])
    expected = apply_affine(np.linalg.inv(moving.affine) @ np.array(summary_at(rigid)["matrix"])
                            @ fixed.affine, voxel)  # fmt: skip
    world = apply_affine(fixed.affine, voxel)
    for moved in (theirs.map(world), apply_affine(read_linear(path, fixed, moving), world)):
        found = apply_affine(np.linalg.inv(moving.affine), moved)
        assert np.abs(found - expected).max() < 1e-3
    true = apply_affine(np.linalg.inv(moving.affine) @ TRUE @ fixed.affine, voxel)
    assert np.abs(expected - true).max() < 0.15
    assert np.abs(voxel - true).max() > 1  # the grids are unlike


def test_resampled_image_is_the_moving_one_read_once(folder, rigid):
    fixed, moving = images(folder)
    written = nib.load(after(rigid, "_resampled.nii.gz"))
    np.testing.assert_allclose(written.affine, fixed.affine, atol=1e-5)
    assert written.shape == fixed.data.shape
    to_moving = np.linalg.inv(moving.affine) @ np.array(summary_at(rigid)["matrix"]) @ fixed.affine
    voxels = apply_affine(to_moving, np.indices(fixed.data.shape).reshape(3, -1).T).T
    once = map_coordinates(moving.data, voxels, order=3, mode="mirror").reshape(fixed.data.shape)
    inner = np.all([(v > 1) & (v < n - 2) for v, n in zip(voxels, moving.data.shape, strict=True)],
                   axis=0).reshape(fixed.data.shape)  # fmt: skip
    data = np.asarray(written.dataobj)
    assert np.abs(data - np.maximum(once, 0))[inner].max() < 1e-3 * moving.data.max()
    seen = fixed.data > 20
    assert np.corrcoef(data[seen], fixed.data[seen])[0, 1] > 0.95


def colour(path):
    """Rows of a picture → how colourful each pixel is."""
    pixels = imread(path)[..., :3]
    return pixels.max(axis=-1) - pixels.min(axis=-1)


def test_pictures_show_before_and_after(rigid):
    """Two rows; outlines in both, in the second they lie on the head; and less is left over."""
    for ending in ("_overlay.png", "_difference.png"):
        strength = colour(after(rigid, ending))
        upper, lower = np.array_split(strength[:, : int(0.9 * strength.shape[1])], 2)
        assert (upper > 0.3).sum() > 200
        if ending == "_difference.png":
            assert lower.mean() < 0.5 * upper.mean()
        else:
            assert (lower > 0.3).sum() > 200
            assert np.abs(upper[-lower.shape[0] :] - lower[: upper.shape[0]]).mean() > 0.005
    arrows = colour(after(rigid, "_displacement.png"))
    assert (arrows[:, : int(0.9 * arrows.shape[1])] > 0.3).sum() > 500


def test_arrows_and_outlines_lie_where_they_should():
    """An LPS grid is drawn with x to the right: a point of the left stays left."""
    from eddymotion.reports.registration import Cuts, displacement_figure

    data = np.zeros((20, 24, 16), np.float32)
    data[14:17, 10:14, 6:10] = 1.0  # x runs to the left: this is left of the middle
    affine = from_matvec(np.diag([-2.0, -2.0, 2.0]), [19.0, 23.0, -15.0])
    view = Cuts.of(data, data > 0, affine)
    axial, coronal, sagittal = view.slices(data)
    assert axial.shape == (24, 20)
    assert coronal.shape == (16, 20)
    assert sagittal.shape == (16, 24)
    assert axial[:, :10].sum() == axial.sum() > 0
    forwards = np.array([0.0, 2.0, 0.0])
    figure = displacement_figure(data, data > 0, affine, lambda x: np.tile(forwards, (len(x), 1)))
    (arrows,) = [c for c in figure.axes[0].collections if hasattr(c, "V")]
    assert np.all(arrows.V > 0)
    assert np.allclose(arrows.U, 0)
    assert np.all(arrows.X < 20)


@pytest.mark.parametrize(
    "initialize",
    ["mass", *(pytest.param(name, marks=pytest.mark.slow) for name in ("multi", "axes"))],
)
def test_far_pairs_need_a_start_that_is_searched(folder, tmp_path, head, initialize):
    """Nothing in common where the files lie: refused as they lie, found by each search."""
    apart = from_matvec(np.eye(3), [250.0, -180.0, 90.0]) @ TRUE
    away = picture(head, Grid.covering(head, 4.0), np.linalg.inv(TRUE))
    write_image(tmp_path / "away.nii.gz", away.data,
                apart @ np.linalg.inv(TRUE) @ away.affine)  # fmt: skip
    far = {"moving": tmp_path / "away.nii.gz"}
    assert call(folder, "-o", tmp_path / "x", **far) == 2
    assert call(folder, "-o", tmp_path / "x", "--initialize", initialize, **far) == 0
    back = from_matvec(np.eye(3), [-250.0, 180.0, -90.0])
    assert error_of(back @ np.array(summary_at(tmp_path / "x")["matrix"])) < 0.6


def test_init_is_where_the_search_starts(folder, tmp_path):
    """With hardly a step to take, what comes out is near to what went in."""
    fixed, moving = images(folder)
    write_linear(tmp_path / "start.mat", TRUE, fixed, moving)
    level = '{"fwhm": 4, "n_points": 2000}'
    (tmp_path / "one.json").write_text(f'{{"max_iterations": 1, "levels": [{level}]}}')
    errors = []
    for start in (["--init", tmp_path / "start.mat"], []):
        options = ["-o", tmp_path / "x", "--settings", tmp_path / "one.json", "--formats", "itk"]
        assert call(folder, *options, *start) == 0
        errors.append(error_of(np.array(summary_at(tmp_path / "x")["matrix"])))
    assert errors[0] < 0.3
    assert errors[1] > 6


@pytest.fixture(scope="module")
def bent(folder, head):
    """A fixed image of another shape, and SyN between both; the prefix held a rigid run before."""

    def bend(points):
        return points + 5.0 * np.sin(points[:, [1, 2, 0]] / 25.0)

    image = picture(head, Grid.covering(head, 4.5, "LPS"), np.eye(4), bend)
    write_image(folder / "bent.nii.gz", image.data, image.affine)
    prefix = folder / "syn" / "x"
    prefix.parent.mkdir()
    for stale in (".tfm", ".mat", "_landmarks.tsv"):
        after(prefix, stale).write_text("of an earlier run\n")
    after(prefix, "_mine.txt").write_text("not of this command\n")
    (folder / "syn.json").write_text('{"syn_iterations": [60, 20]}')
    options = ("--transform", "syn", "--settings", folder / "syn.json")
    assert call(folder, "-o", prefix, *options, fixed="bent.nii.gz") == 0
    return prefix, image, lambda points: apply_affine(TRUE, bend(points))


@pytest.mark.slow
def test_warp_files_hold_the_whole_transform_both_ways(folder, bent):
    prefix, fixed, truth = bent
    _, moving = images(folder)
    forward, affine = read_displacements(after(prefix, "_warp.nii.gz"))
    backward, back_affine = read_displacements(after(prefix, "_inversewarp.nii.gz"))
    np.testing.assert_allclose(affine, fixed.affine, atol=1e-4)
    np.testing.assert_allclose(back_affine, moving.affine, atol=1e-4)
    voxels = np.argwhere(fixed.data > 25)
    points = apply_affine(affine, voxels)
    moved = points + forward[tuple(voxels.T)]
    errors = np.linalg.norm(moved - truth(points), axis=1)
    linear = read_linear(after(prefix, "_affine.tfm"), fixed, moving)
    of_linear = np.linalg.norm(apply_affine(linear, points) - truth(points), axis=1)
    assert errors.mean() < 0.7 * of_linear.mean()
    there = apply_affine(np.linalg.inv(back_affine), moved).T
    back = np.stack([map_coordinates(backward[..., k], there, order=1) for k in range(3)], -1)
    assert np.quantile(np.linalg.norm(moved + back - points, axis=1), 0.95) < 1.0


def test_nitransforms_resamples_with_the_warp_file_as_we_did(folder, bent):
    from nitransforms.nonlinear import DenseFieldTransform
    from nitransforms.resampling import apply

    prefix, fixed, _ = bent
    moving = nib.load(folder / "moving.nii.gz")
    theirs = DenseFieldTransform.from_filename(after(prefix, "_warp.nii.gz"), fmt="itk")
    data = apply(theirs, moving, order=3, mode="mirror").get_fdata()
    ours = nib.load(after(prefix, "_resampled.nii.gz")).get_fdata()
    seen = fixed.data > 25
    assert np.abs(data - ours)[seen].max() < 0.02 * ours.max()


def test_what_an_earlier_run_left_goes_what_is_the_users_stays(bent):
    prefix, *_ = bent
    names = {path.name for path in prefix.parent.iterdir()}
    assert "x.tfm" not in names
    assert "x.mat" not in names
    assert "x_landmarks.tsv" not in names
    assert {"x_mine.txt", "x_affine.tfm", "x_affine.lta", "x_warp.nii.gz"} <= names
    content = summary_at(prefix)
    assert content["transform"] == "syn"
    assert content["backend"] == "dipy"
    assert 0 < content["jacobian"]["min"] < 1 < content["jacobian"]["max"]
    assert names == {*content["outputs"], "x.json", "x_mine.txt"}


def test_a_series_gives_one_volume_and_formats_are_chosen(folder, tmp_path):
    _, moving = images(folder)
    stack = np.stack([moving.data[::-1], moving.data], axis=-1)
    write_image(tmp_path / "series.nii.gz", stack, moving.affine)
    assert call(folder, "-o", tmp_path / "x", "--moving-volume", 1, "--formats", "itk", "fsl",
                "--transform", "affine", moving=tmp_path / "series.nii.gz") == 0  # fmt: skip
    made = {path.name for path in tmp_path.iterdir()}
    assert {"x.tfm", "x.mat"} <= made
    assert not made & {"x.x5", "x.lta", "x.aff12.1D", "x_affine.tfm"}
    content = summary_at(tmp_path / "x")
    assert error_of(np.array(content["matrix"])) < 0.6
    np.testing.assert_allclose(content["scales"], 1, atol=0.02)


def test_some_nan_become_zero_with_a_warning(folder, tmp_path, capsys):
    _, moving = images(folder)
    holed = moving.data.copy()
    holed[:3] = np.nan
    nib.Nifti1Image(holed, moving.affine).to_filename(tmp_path / "holed.nii.gz")
    assert call(folder, "-o", tmp_path / "x", moving=tmp_path / "holed.nii.gz") == 0
    assert f"holed.nii.gz: {holed[:3].size} voxels are NaN" in capsys.readouterr().err
    assert np.isfinite(nib.load(tmp_path / "x_resampled.nii.gz").get_fdata()).all()
    assert error_of(np.array(summary_at(tmp_path / "x")["matrix"])) < 0.6


@pytest.fixture(scope="module")
def bad(folder):
    """Files that cannot be used, by name."""
    fixed, moving = images(folder)
    random = np.random.default_rng(0)
    affine = moving.affine
    bad = folder / "bad"
    bad.mkdir()
    arrays = {
        "constant": np.full(moving.data.shape, 3.0, np.float32),
        "series": np.stack([moving.data] * 2, axis=-1),
        "flat": moving.data[:, :, 10:11],
        "slice": moving.data[:, :, 10],
        "nan": np.full(moving.data.shape, np.nan, np.float32),
        "empty": np.zeros(moving.data.shape, np.uint8),
        "other": np.ones(fixed.data.shape, np.uint8),
        "noise": random.normal(size=moving.data.shape).astype(np.float32),
    }
    for name, data in arrays.items():
        nib.Nifti1Image(data, affine).to_filename(bad / f"{name}.nii.gz")
    away = affine.copy()
    away[:3, 3] += 900
    nib.Nifti1Image(moving.data, away).to_filename(bad / "away.nii.gz")
    nib.Nifti1Image(arrays["other"], away).to_filename(bad / "mask_away.nii.gz")
    (bad / "torn.nii.gz").write_bytes((folder / "moving.nii.gz").read_bytes()[:2000])
    (bad / "half.tfm").write_text("#Insight Transform File V1.0\n")
    (bad / "unknown.json").write_text('{"max_iteration": 3}')
    (bad / "list.json").write_text("[1, 2]")
    (bad / "a.tsv").write_text("label\tx\ty\tz\nA\t1\t2\t3\n")
    (bad / "b.tsv").write_text("label\tx\ty\tz\nB\t1\t2\t3\n")
    return bad


BAD_CALLS = {
    "no such file": ({"moving": "bad/nothing.nii.gz"}, "", ["nothing.nii.gz", "no such file"]),
    "damaged": ({"moving": "bad/torn.nii.gz"}, "", ["torn.nii.gz"]),
    "no overlap": ({"moving": "bad/away.nii.gz"}, "",
                   ["away.nii.gz", "does not overlap", "mm apart", "--initialize mass"]),
    "constant": ({"moving": "bad/constant.nii.gz"}, "", ["constant.nii.gz", "all voxels are 3"]),
    "dimensions": ({"moving": "bad/series.nii.gz"}, "",
                   ["series.nii.gz", "three dimensions", "--moving-volume N"]),
    "one slice": ({"moving": "bad/slice.nii.gz"}, "", ["slice.nii.gz", "three dimensions"]),
    "thin": ({"moving": "bad/flat.nii.gz"}, "", ["flat.nii.gz", "at least 3 voxels"]),
    "thin, fixed": ({"fixed": "bad/flat.nii.gz"}, "", ["flat.nii.gz", "at least 3 voxels"]),
    "nan": ({"fixed": "bad/nan.nii.gz"}, "", ["nan.nii.gz", "NaN"]),
    "no such volume": ({"moving": "bad/series.nii.gz"}, "--moving-volume 7",
                       ["has 2 volumes", "0 to 1"]),
    "mask of another grid": ({}, "--moving-mask bad/other.nii.gz", ["other.nii.gz", "shape"]),
    "mask elsewhere": ({}, "--fixed-mask bad/mask_away.nii.gz", ["mask_away.nii.gz", "mm from"]),
    "empty mask": ({}, "--moving-mask bad/empty.nii.gz", ["empty.nii.gz", "marks 0 voxels"]),
    "unknown key": ({}, "--settings bad/unknown.json",
                    ["unknown.json", "max_iteration", "did you mean 'max_iterations'"]),
    "no object": ({}, "--settings bad/list.json", ["list.json", "JSON object"]),
    "unknown backend": ({}, "--backend antz", ["antz", "did you mean 'ants'"]),
    "unknown metric": ({}, "--metric ncc", ["ncc", "lncc"]),
    "unknown transform": ({}, "--transform rigd", ["rigd", "rigid"]),
    "transform of another": ({}, "--transform syn --backend gauss-newton",
                             ["--transform syn", "gauss-newton offers rigid", "--backend"]),
    "torn start": ({}, "--init bad/half.tfm", ["half.tfm", "holds 0 transforms"]),
    "two starts": ({}, "--init bad/half.tfm --initialize mass", ["--init", "leave one"]),
    "other landmarks": ({}, "--landmarks bad/a.tsv bad/b.tsv", ["no label in common"]),
    "points of one image": ({}, "--landmarks bad/a.tsv", ["a.tsv", "fixed_x"]),
    "three lists": ({}, "--landmarks bad/a.tsv bad/a.tsv bad/b.tsv", ["3 files"]),
    "misspelt": ({}, "--fixed-maks bad/a.tsv", ["--fixed-mask"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_line_and_leaves_nothing(
    folder, bad, tmp_path, capsys, case, monkeypatch
):
    monkeypatch.chdir(folder)
    pair, options, words = BAD_CALLS[case]
    try:
        code = call(folder, "-o", tmp_path / "x", *options.split(), **pair)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert len(printed.strip().splitlines()) == 1
    for word in words:
        assert word in printed
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_overwritten(folder, tmp_path, capsys):
    content = (folder / "moving.nii.gz").read_bytes()
    named = tmp_path / "x_resampled.nii.gz"
    named.write_bytes(content)
    assert call(folder, "-o", tmp_path / "x", moving=named) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert named.read_bytes() == content
    assert call(folder, "-o", tmp_path) == 2
    assert "add a file prefix" in capsys.readouterr().err


def test_backend_that_is_not_installed_says_what_to_install(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("eddymotion.registration.engines.external.find_spec", lambda name: None)
    assert call(folder, "-o", tmp_path / "x", "--backend", "ants") == 2
    assert "pip install 'eddymotion[ants]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_crash_of_an_engine_shows_what_it_said(folder, tmp_path, capsys, monkeypatch):
    """The program stands first on PATH; what it wrote before the crash is no result."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "antsRegistration"
    program.write_text(
        "#!/bin/sh\necho 'out of luck in stage 2' >&2\ntouch 0GenericAffine.mat\nkill -SEGV $$\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(programs)
    (tmp_path / "out").mkdir()
    assert call(folder, "-o", tmp_path / "out" / "x", "--backend", "ants") in (1, 2)
    printed = capsys.readouterr().err
    assert "out of luck in stage 2" in printed
    assert "SIGSEGV" in printed
    assert list((tmp_path / "out").iterdir()) == []


def quality_of(folder, registration):
    """Measure a registration of the pair that nobody ran."""
    pair = FilePair(*images(folder))
    before, found = (
        pair.compared(one, 1).agreement
        for one in (Registration(np.eye(4), True, ""), registration)
    )
    return PairQuality.of(registration, pair.fixed, pair.head, before, found)


def advice_for(folder, registration, **how):
    known = {"transform": "rigid", "metric": "nmi", "started": "header"}
    return [str(advice) for advice in advise(quality_of(folder, registration), **(known | how))]


def test_advice_where_it_looks_wrong(folder):
    good = Registration(TRUE, True, "converged")
    assert advice_for(folder, good) == []
    limit = replace(good, converged=False, message="stopped at the iteration limit")
    assert "iteration limit: allow more" in advice_for(folder, limit)[0]
    away = from_matvec(np.eye(3), [90.0, 60.0, 0.0])
    advice = " ".join(advice_for(folder, Registration(away, True, "converged")))
    assert "within the moving image" in advice
    assert "agree less than before" in advice
    assert "lay far apart (108 mm, 0°)" in advice
    over = rigid_matrix([0, 0, 0], np.deg2rad([0, 0, 175]), np.zeros(3))
    advice = " ".join(advice_for(folder, Registration(over, True, "converged"), started="multi"))
    assert "turned by 175°" in advice
    assert "do not use this" in advice
    flat = TRUE @ np.diag([1.0, 1.0, 0.6, 1.0])
    assert any("more than heads differ" in line
               for line in advice_for(folder, Registration(flat, True, ""),
                                      transform="affine"))  # fmt: skip
    fixed, _ = images(folder)
    field = np.zeros((*fixed.data.shape, 3), np.float32)
    field[10:14, 10:30, 8:24, 0] = 30.0
    folded = Registration(TRUE, True, "", warp=Warp(field, -field, fixed.affine))
    assert any("the warp folds in" in line
               for line in advice_for(folder, folded, transform="syn"))  # fmt: skip


def test_advice_about_a_warp_that_went_astray(folder):
    fixed, _ = images(folder)
    random = np.random.default_rng(1)
    field = np.stack([gaussian_filter(random.normal(size=fixed.data.shape), 3) for _ in "xyz"], -1)
    field = (20.0 * field / np.abs(field).max()).astype(np.float32)
    astray = Registration(TRUE, True, "", warp=Warp(field, -field, fixed.affine))
    quality = quality_of(folder, astray)
    linear = quality_of(folder, replace(astray, warp=None)).after
    advice = advise(
        replace(quality, linear=linear), transform="syn", metric="cc", started="header"
    )
    assert any("agree less with the warp than with its linear part" in str(one) for one in advice)
    torn = replace(quality.displacements, jacobian=(0.01, 59.0))
    advice = advise(
        replace(quality, displacements=torn), transform="syn", metric="cc", started="header"
    )
    assert any("locally by × 0.01 to 59" in str(one) for one in advice)


@pytest.mark.slow
def test_opposite_contrasts_are_told_from_alike(folder, tmp_path, capsys):
    """Squared differences between T1w and T2w: found or not, the advice names the right metric."""
    _, moving = images(folder)
    negative = np.where(moving.data > 15, 120 - moving.data, 0).astype(np.float32)
    write_image(tmp_path / "t2.nii.gz", negative, moving.affine)
    fixed, _ = images(folder)
    write_linear(tmp_path / "start.tfm", TRUE, fixed, moving)
    inside = ("--fixed-mask", folder / "fixed_mask.nii.gz", "--init", tmp_path / "start.tfm")
    call(folder, "-o", tmp_path / "x", *inside, moving=tmp_path / "t2.nii.gz")
    assert "use --metric nmi" in capsys.readouterr().out
    assert call(folder, "-o", tmp_path / "x", *inside, "--metric", "nmi",
                moving=tmp_path / "t2.nii.gz") == 0  # fmt: skip
    assert "advice" not in capsys.readouterr().out
    assert error_of(np.array(summary_at(tmp_path / "x")["matrix"])) < 0.6


def test_edges_are_inside_and_nothing_is_invented_outside():
    """Half a voxel beyond the outermost centres is the image's; beyond it is zero."""
    bright = Image(np.full((6, 6, 6), 5.0, np.float32), np.eye(4))
    shift = from_matvec(np.eye(3), [0.4, 0.0, 0.0])
    shown, _ = resampled_onto(bright, bright, Registration(shift, True, ""), 3)
    np.testing.assert_allclose(shown, 5.0, atol=1e-5)
    shift[0, 3] = 0.6
    shown, inside = resampled_onto(bright, bright, Registration(shift, True, ""), 3)
    assert not inside[5].any()
    assert np.all(shown[5] == 0)
    assert inside[:5].all()
