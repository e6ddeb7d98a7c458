# SPDX-License-Identifier: Apache-2.0
"""A series in the space of another image: one interpolation of the originals, the right one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from t1w import anatomy

from eddymotion.cli import correct
from eddymotion.derivatives import Outputs
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.itk import read_itk
from eddymotion.io.series import load
from eddymotion.io.transforms import read_linear
from eddymotion.io.warps import read_displacements
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.pairs.measures import resampled_onto
from eddymotion.pipeline.output_space import space_of, write_output_space
from eddymotion.pipeline.output_space.pair import SpacePair, _better, coarsened
from eddymotion.pipeline.output_space.reference import (
    Reference,
    fractional_anisotropy,
    reference_image,
)
from eddymotion.pipeline.output_space.space import OutputSpace
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.target import Target
from eddymotion.registration import Registration, Warp
from eddymotion.resampling import Resampled
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion


@pytest.fixture(scope="module")
def series():
    """A moving head on an oblique LAS grid, away from the origin, and its true motion."""
    phantom = procedural_head(4.0)
    gradients = shelled_scheme({1000: 8}, 2)
    turn = Rotation.from_euler("xyz", [8, -5, 10], degrees=True).as_matrix()
    grid = Grid.covering(phantom, 5.0, "LAS", turn)
    motion = simulate_motion("moderate", len(gradients), np.zeros(3), seed=2)
    return acquire(phantom, gradients, motion, grid, snr=40), motion


def a_warp(shape, affine):
    """A smooth displacement of some millimetres, on a grid of its own."""
    random = np.random.default_rng(3)
    field = np.stack([gaussian_filter(random.normal(size=shape), 4) for _ in range(3)], axis=-1)
    field = (4.0 * field / np.abs(field).max()).astype(np.float32)
    return Warp(field, -field, affine)


def test_grid_point_to_original_voxel_in_one_interpolation(series):
    """Target → warp → affine → pose → voxel, and there the original is read once."""
    dwi, motion = series
    target = Image(np.zeros((24, 26, 20), np.float32),
                   from_matvec(np.diag([-6.0, 6.0, 6.5]), [75.0, -70.0, -55.0]))  # fmt: skip
    matrix = rigid_matrix([4.0, -6.0, 5.0], np.deg2rad([4, -7, 12]), np.zeros(3)) @ np.diag(
        [1.05, 0.96, 1.02, 1.0]
    )
    warp = a_warp((20, 20, 20), from_matvec(np.diag([9.0] * 3), [-85.0, -85.0, -85.0]))
    space = OutputSpace(target, Registration(matrix, True, ""), "syn", None)
    space = OutputSpace(target, Registration(matrix, True, "", warp=warp), "syn", None)
    resampled = Resampled.of(
        dwi, motion, grid=(target.data.shape, target.affine), space=space, engine="fast"
    )
    points = apply_affine(target.affine, np.indices(target.data.shape).reshape(3, -1).T)
    for index, volume in enumerate(resampled.volumes()):
        if index not in (1, 5):
            continue
        bent = points + np.stack(
            [map_coordinates(warp.forward[..., k],
                             apply_affine(np.linalg.inv(warp.affine), points).T, order=1)
             for k in range(3)], axis=-1,
        )  # fmt: skip
        scanner = apply_affine(motion[index] @ matrix, bent)
        voxels = apply_affine(np.linalg.inv(dwi.affine), scanner).T
        inside = np.all([(v > 1) & (v < n - 2) for v, n in zip(voxels, dwi.shape, strict=True)],
                        axis=0)  # fmt: skip
        once = map_coordinates(dwi.volume(index).data, voxels, order=3, mode="mirror")
        found = volume.reshape(-1)[inside]
        assert inside.mean() > 0.3
        assert np.abs(found - np.maximum(once[inside], 0)).max() < 1e-3 * dwi.signal.max()


def test_b_vectors_turn_with_motion_and_with_the_rotation_of_the_space(series):
    """Finite strain: of the affine only its rotation, in the direction of the volumes' own."""
    dwi, motion = series
    turn = Rotation.from_euler("xyz", [10, 20, -30], degrees=True).as_matrix()
    stretch = np.array([[1.1, 0.05, 0.0], [0.05, 0.9, 0.02], [0.0, 0.02, 1.0]])
    target = Image(np.zeros((20, 20, 20), np.float32), np.diag([8, 8, 8, 1.0]))
    target.affine[:3, 3] = -76
    space = OutputSpace(
        target, Registration(from_matvec(turn @ stretch, [1, 2, 3]), True, ""), "affine", None
    )
    np.testing.assert_allclose(space.rotation, turn, atol=1e-12)
    resampled = Resampled.of(dwi, motion, grid=((20, 20, 20), target.affine), space=space)
    expected = [(motion[i][:3, :3] @ turn).T @ dwi.gradients.bvecs[i] for i in dwi.gradients.dwis]
    np.testing.assert_allclose(resampled.gradients.bvecs[dwi.gradients.dwis], expected, atol=1e-6)


def found_space(series, target, transform="auto"):
    settings = Settings(output_space=Path("t1w.nii.gz"), output_space_transform=transform)
    return space_of(*series, Target(target), settings)


@pytest.mark.slow
def test_t1w_of_the_same_head_is_found(series):
    dwi, _ = series
    true = rigid_matrix([9.0, -14.0, 6.0], np.deg2rad([6, -9, 12]), np.zeros(3))
    target = anatomy(4.0, true)
    space = found_space(series, target)
    assert space.transform == "rigid"
    assert brain_error(space, true, dwi) < 1.0
    assert space.quality.after.similarity > space.quality.before.similarity
    assert space.warnings == []


def brain_error(space, true, dwi):
    """Mean distance (mm) over the brain between where both put it."""
    points = apply_affine(np.linalg.inv(true) @ dwi.affine, np.argwhere(dwi.mask))
    return np.linalg.norm(space(points) - apply_affine(true, points), axis=1).mean()


def test_image_at_the_same_place_and_blank_grid_keep_the_world(series):
    assert found_space(series, anatomy(4.0, np.eye(4))) is None
    blank = Image(np.zeros((30, 30, 30), np.float32), np.diag([5, 5, 5, 1.0]))
    assert found_space(series, blank) is None
    assert found_space(series, blank, transform="none") is None


@pytest.mark.slow
def test_template_is_found_by_affine_and_warp(series):
    """The warp explains the template's shape better than the affine, and is written whole."""
    dwi, _ = series
    true = rigid_matrix([9.0, 4.0, -6.0], np.deg2rad([5, 4, -8]), np.zeros(3)) @ np.diag(
        [1.1, 0.9, 1.08, 1.0]
    )

    def bend(points):
        return points + 4.0 * np.sin(points[:, [1, 2, 0]] / 16.0)

    target = anatomy(4.0, true, "LAS", bend)
    points = apply_affine(np.linalg.inv(true) @ dwi.affine, np.argwhere(dwi.mask))
    expected = apply_affine(true, bend(points))
    errors = {}
    for transform in ("affine", "syn"):
        space = found_space(series, target, transform=transform)
        errors[transform] = np.linalg.norm(space(points) - expected, axis=1).mean()
    assert errors["syn"] < 0.7 * errors["affine"]
    assert errors["syn"] < 0.5 * dwi.voxel_sizes.min()
    assert found_space(series, target).transform == "syn"


def test_reference_gets_the_contrast_of_the_target(series):
    """Where a b=0 is bright and a T1w dark, the image that the warp compares is dark."""
    dwi, motion = series
    target = anatomy(4.0, np.eye(4))
    reference = reference_image(dwi, motion)
    still = Registration(np.eye(4), True, "")
    pair = SpacePair.of(target, None, Reference(reference, dwi.mask))
    alike = pair.in_contrast_of_target(still)
    shown, inside = resampled_onto(target, alike, still, 1)
    before, _ = resampled_onto(target, reference, still, 1)
    brain = inside & (target.data > 0.1)
    assert np.corrcoef(target.data[brain], before[brain])[0, 1] < 0
    assert np.corrcoef(target.data[brain], shown[brain])[0, 1] > 0.8


def test_a_warp_that_makes_it_worse_is_left_out():
    target, reference = anatomy(4.0, np.eye(4)), anatomy(5.0, np.eye(4))
    everywhere = np.ones(reference.data.shape, bool)
    pair = SpacePair.of(target, None, Reference(reference, everywhere))
    still = Registration(np.eye(4), True, "")
    astray = replace(still, warp=a_warp(target.data.shape, target.affine))
    linear = pair.space(still, "affine")
    assert _better(pair.space(astray, "syn"), linear).transform == "affine"
    assert _better(linear, pair.space(astray, "syn")) is linear


def test_files_of_a_space_say_what_it_does(series, tmp_path):
    dwi, _ = series
    target = Image(np.zeros((16, 18, 14), np.float32),
                   from_matvec(np.diag([-8.0, 8.0, 9.0]), [60.0, -70.0, -60.0]))  # fmt: skip
    matrix = rigid_matrix([4.0, -6.0, 5.0], np.deg2rad([4, -7, 12]), np.zeros(3))
    found = Registration(matrix, True, "", warp=a_warp(target.data.shape, target.affine))
    space = OutputSpace(target, found, "syn", None)
    outputs = Outputs.in_folder(tmp_path, Path("x_dwi.nii.gz"))
    write_output_space(space, dwi, outputs)
    reference = Image(dwi.mask, dwi.affine)
    np.testing.assert_allclose(read_linear(outputs["space"], target, reference), matrix)
    field, affine = read_displacements(outputs["space_warp"])
    points = apply_affine(affine, np.indices(target.data.shape).reshape(3, -1).T)
    np.testing.assert_allclose(points + field.reshape(-1, 3), space(points), atol=1e-3)
    write_output_space(None, dwi, outputs)
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_voxels_keep_their_place():
    """A block's value lies in its middle, on a sheared grid as well."""
    shear = np.array([[2.0, 0.3, 0.0], [0.0, -1.0, 0.2], [0.1, 0.0, 1.5]])
    affine = from_matvec(shear, [5.0, -3.0, 70.0])
    world = apply_affine(affine, np.indices((9, 8, 7)).reshape(3, -1).T)
    ramp = Image((world @ [1.0, 2.0, -3.0]).reshape(9, 8, 7).astype(np.float32), affine)
    coarse, mask = coarsened(ramp, ramp.data > 0, np.array([2, 3, 1]))
    assert coarse.data.shape == (4, 2, 7)
    voxels = np.indices(coarse.data.shape).reshape(3, -1).T
    expected = apply_affine(coarse.affine, voxels) @ [1.0, 2.0, -3.0]
    np.testing.assert_allclose(coarse.data.ravel(), expected, rtol=1e-4, atol=1e-3)
    assert mask.shape == coarse.data.shape
    assert coarsened(ramp, None, np.ones(3, int)) == (ramp, None)


def test_fa_is_that_of_the_still_head(tmp_path):
    """Motion undone, b-vectors turned: FA of a moving head is that of the resting one."""
    phantom = procedural_head(5.0)
    gradients = shelled_scheme({1000: 20}, 2)
    grid = Grid.covering(phantom, 5.0)
    motion = simulate_motion("moderate", len(gradients), np.zeros(3), seed=4)
    still = Motion.identity(len(gradients))
    moving = acquire(phantom, gradients, motion, grid, snr=None)
    resting = acquire(phantom, gradients, still, grid, snr=None)
    inner = moving.mask & resting.mask
    expected = reference_image(resting, still, "fa").data[inner]
    found = reference_image(moving, motion, "fa").data[inner]
    blind = reference_image(moving, still, "fa").data[inner]
    assert expected.max() > 0.5
    assert np.abs(found - expected).mean() < 0.5 * np.abs(blind - expected).mean()


def test_fa_of_known_tensors():
    eigenvalues = np.array([[1.7, 0.3, 0.3], [1.0, 1.0, 1.0]])
    tensors = np.array([[a, 0, b, 0, 0, c] for a, b, c in eigenvalues]).T
    np.testing.assert_allclose(fractional_anisotropy(tensors), [0.799, 0.0], atol=1e-3)


@pytest.fixture(scope="module")
def corrected(series, tmp_path_factory):
    """A series (oblique, LAS) brought to a T1w whose origin lies far away, at the command line."""
    dwi, motion = series
    root = tmp_path_factory.mktemp("space")
    image = write_bids(root / "bids", "x", dwi, motion)
    true = rigid_matrix([210.0, -140.0, 60.0], np.deg2rad([6, -9, 12]), np.zeros(3))
    near = rigid_matrix([9.0, -14.0, 6.0], np.deg2rad([6, -9, 12]), np.zeros(3))
    t1w = anatomy(5.0, near)
    affine = np.linalg.inv(true) @ near @ t1w.affine
    write_image(root / "t1w.nii.gz", t1w.data, affine)
    call = [str(image), "-o", str(root / "out"), "--n-iterations", "3"]
    assert correct.main([*call, "--output-space", str(root / "t1w.nii.gz")]) == 0
    return root, call, Image(t1w.data, affine), true


def test_command_line_brings_a_series_to_a_t1w_far_away(series, corrected):
    dwi, _ = series
    root, _, t1w, true = corrected
    outputs = Outputs.in_folder(root / "out", Path("sub-x_dwi.nii.gz"))
    space = read_linear(outputs["space"], t1w, Image(dwi.mask, dwi.affine))
    brain = apply_affine(np.linalg.inv(true) @ dwi.affine, np.argwhere(dwi.mask))
    missed = apply_affine(space, brain) - apply_affine(true, brain)
    assert np.linalg.norm(missed, axis=1).mean() < 1.0
    assert not outputs["space_warp"].exists()
    assert outputs["space_figure"].stat().st_size > 10_000
    content = json.loads(outputs["sidecar"].read_text())["Summary"]["output space"]
    assert content.startswith("rigid: ")
    assert "Output space" in (root / "out" / "sub-x.html").read_text()


def test_originals_are_read_once_with_the_transforms_that_are_on_disk(series, corrected):
    """Voxel of the T1w → both files' matrices → voxel of the original volume."""
    dwi, _ = series
    root, _, t1w, _ = corrected
    outputs = Outputs.in_folder(root / "out", Path("sub-x_dwi.nii.gz"))
    after = load(outputs["dwi"], mask=outputs["mask"])
    assert after.shape == t1w.data.shape
    np.testing.assert_allclose(after.affine, t1w.affine, atol=1e-3)
    poses = read_itk(outputs["xfm"])
    space = read_linear(outputs["space"], t1w, Image(dwi.mask, dwi.affine))
    voxels = np.argwhere(after.mask)
    for index in (0, 3, 7):
        scanner = apply_affine(poses[index] @ space @ after.affine, voxels)
        there = apply_affine(np.linalg.inv(dwi.affine), scanner).T
        inner = np.all([(v > 1) & (v < n - 2) for v, n in zip(there, dwi.shape, strict=True)],
                       axis=0)  # fmt: skip
        once = map_coordinates(dwi.volume(index).data, there, order=3, mode="mirror")
        found = after.volume(index).data[tuple(voxels.T)]
        assert inner.mean() > 0.8
        assert np.abs(found - np.maximum(once, 0))[inner].max() < 1e-3 * dwi.signal.max()
        if dwi.gradients.bvals[index] > 50:
            turned = (poses[index][:3, :3] @ space[:3, :3]).T @ dwi.gradients.bvecs[index]
            np.testing.assert_allclose(after.gradients.bvecs[index], turned, atol=1e-3)


def test_another_space_is_computed_anew_and_leaves_nothing_old(corrected):
    root, call, *_ = corrected
    outputs = Outputs.in_folder(root / "out", Path("sub-x_dwi.nii.gz"))
    near = np.diag([6.0, 6.0, 6.0, 1.0])
    near[:3, 3] = [-85.0, -100.0, -75.0]
    write_image(root / "grid.nii.gz", np.zeros((28, 34, 26), np.uint8), near)
    assert correct.main([*call, "--output-space", str(root / "grid.nii.gz")]) == 0
    assert load(outputs["dwi"], mask=outputs["mask"]).shape == (28, 34, 26)
    assert not outputs["space"].exists()
    assert not outputs["space_figure"].exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output-space-transform", "syn"], "without --output-space"),
        (["--output-space", "flat.nii.gz"], "flat.nii.gz"),
        (["--output-space", "t1w.nii.gz", "--output-space-mask", "flat.nii.gz"], "flat.nii.gz"),
        (["--output-space", "t1w.nii.gz", "--output-space-transform", "none",
          "--output-space-contrast", "fa"], "leave --output-space-contrast out"),
        (["--output-space", "nowhere.nii.gz"], "no such file"),
        (["--output-space", "t1w.nii.gz", "--output-space-transform", "none"], "does not overlap"),
    ],
)  # fmt: skip
def test_wrong_output_space_is_one_line(corrected, tmp_path, capsys, monkeypatch, options, words):
    root, call, t1w, _ = corrected
    write_image(root / "flat.nii.gz", t1w.data[:, :, 0], t1w.affine)
    monkeypatch.chdir(root)
    call = [call[0], "-o", str(tmp_path / "out"), *call[3:]]
    try:
        code = correct.main([*call, *options])
    except SystemExit as stop:
        code = stop.code
    printed = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code == 2
    assert len(printed) == 1
    assert words in printed[0]
    assert not list(tmp_path.rglob("*_dwi.nii.gz"))
