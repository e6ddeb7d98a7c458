# SPDX-License-Identifier: Apache-2.0
"""Figures of merit against analytic truth."""

import json

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.evaluation import (
    Landmarks,
    assess_series,
    compare_motion,
    compared_mask,
    constant_offset,
    correlation_between,
    landmark_errors,
    nearest_neighbours,
    pair_landmarks,
    read_grid,
    read_landmarks,
    read_motion,
    read_transform,
    refuse_different,
    smoothness,
)
from eddymotion.io.images import write_image
from eddymotion.io.itk import write_itk
from eddymotion.io.motion import write_x5
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters, target_registration_error
from eddymotion.simulation import shelled_scheme, simulate_motion

CENTER = np.array([4.0, -9.0, 13.0])
OFFSET = rigid_matrix(np.array([4.0, -3.0, 2.0]), np.array([0.1, -0.05, 0.2]), CENTER)


@pytest.fixture(scope="module")
def true():
    return simulate_motion("swap50", 40, CENTER, seed=3)


def noisy(motion, millimetres, radians, seed=0):
    random = np.random.default_rng(seed)
    shift = random.normal(scale=millimetres, size=(len(motion), 3))
    turn = random.normal(scale=radians, size=(len(motion), 3))
    return Motion(motion.matrices @ rigid_matrix(shift, turn, CENTER))


def test_a_constant_offset_of_the_reference_is_no_error(true):
    moved = Motion(true.matrices @ OFFSET)
    comparison = compare_motion(moved, true, center=CENTER)
    np.testing.assert_allclose(comparison.offset, OFFSET, atol=1e-9)
    free, given = comparison.score(), comparison.score(frame="given")
    assert free.rmse_translation_mm < 1e-9
    assert free.tre_max_mm < 1e-6
    assert free.slope_translation == pytest.approx(1)
    np.testing.assert_allclose(given.bias_translation_axes_mm, [4, -3, 2], atol=1e-9)
    np.testing.assert_allclose(given.bias_rotation_axes_deg, np.rad2deg([0.1, -0.05, 0.2]))
    assert given.rmse_translation_mm == pytest.approx(np.sqrt((16 + 9 + 4) / 3))


def test_an_offset_on_the_side_of_the_scanner_is_an_error(true):
    moved = Motion(OFFSET @ true.matrices)
    assert compare_motion(moved, true, center=CENTER).score().rmse_translation_mm > 0.1


def test_errors_do_not_depend_on_the_reference_volume(true):
    estimated = noisy(true, 0.2, 0.004)
    points = np.random.default_rng(1).normal(0, 40, (200, 3))
    plain = compare_motion(estimated, true, center=CENTER, points=points).score()
    for volume in (1, 17):
        other = compare_motion(
            estimated.relative_to(volume), true, center=CENTER, points=points
        ).score()
        assert other.rmse_translation_mm == pytest.approx(plain.rmse_translation_mm, rel=1e-8)
        assert other.tre_p95_mm == pytest.approx(plain.tre_p95_mm, rel=1e-5)
        both = compare_motion(
            estimated.relative_to(volume),
            true.relative_to(volume),
            center=apply_affine(true[volume], CENTER),
            points=apply_affine(true[volume], points),  # the same places of the head
        ).score()
        assert both.rmse_translation_mm == pytest.approx(plain.rmse_translation_mm, rel=1e-5)
        assert both.rmse_rotation_deg == pytest.approx(plain.rmse_rotation_deg, rel=1e-2)
        assert both.tre_max_mm == pytest.approx(plain.tre_max_mm, rel=1e-5)


def test_the_offset_is_the_least_squares_one(true):
    estimated = noisy(Motion(true.matrices @ OFFSET), 0.5, 0.01)
    best = constant_offset(estimated.matrices, true.matrices, CENTER)

    def cost(offset):
        left = np.linalg.inv(true.matrices) @ estimated.matrices @ np.linalg.inv(offset)
        return (rigid_parameters(left, CENTER)[:, :3] ** 2).sum()

    for axis in range(3):
        for step in (-0.02, 0.02):
            shift = rigid_matrix(step * np.eye(3)[axis], np.zeros(3), CENTER)
            assert cost(shift @ best) > cost(best)


def test_slope_of_scaled_motion_and_the_errors_of_noise(true):
    parameters = 0.77 * rigid_parameters(true.matrices, CENTER)
    scaled = Motion(rigid_matrix(parameters[:, :3], parameters[:, 3:], CENTER))
    comparison = compare_motion(scaled, true, center=CENTER)
    for score in (comparison.score(frame="given"), comparison.score()):
        slopes = (score.slope_translation, score.slope_rotation, *score.slope_translation_axes)
        np.testing.assert_allclose(slopes, 0.77, atol=0.01)
    many = Motion.identity(2000)
    noise = noisy(many, 0.3, 0.002)
    score = compare_motion(noise, many, center=CENTER, points=CENTER[None]).score()
    assert score.rmse_translation_mm == pytest.approx(0.3, rel=0.03)
    assert score.rmse_rotation_deg == pytest.approx(np.rad2deg(0.002), rel=0.03)
    assert np.isnan(score.slope_rotation)


def test_groups_coverage_and_doing_nothing(true):
    bvals = np.r_[0, np.full(19, 1000.0), np.full(20, 2000.0)]
    errors = np.r_[np.zeros(20), np.full(20, 1.0)]
    estimated = true.matrices.copy()
    estimated[:, 0, 3] += errors
    ses = np.tile([1 / 1.9, 1, 1, 1, 1, 1], (40, 1))
    comparison = compare_motion(Motion(estimated, ses), true, center=CENTER, bvals=bvals)
    assert list(comparison.groups) == ["all", "b>100", "b=0", "b=1000", "b=2000"]
    given = comparison.score(frame="given", group="b=2000")
    assert given.n_volumes == 20
    assert given.rms_displacement_mean_mm == pytest.approx(1)
    assert given.tre_max_mm == pytest.approx(1)
    assert comparison.score(frame="given", group="b=1000").tre_max_mm < 1e-5
    assert comparison.coverage_percent == pytest.approx(100)
    tight = compare_motion(Motion(estimated, 0.9 * ses), true, center=CENTER, bvals=bvals)
    assert tight.coverage_percent == pytest.approx(100 * (1 - 20 / (6 * 39)))
    nothing = comparison.score("nothing", "given", "all")
    expected = rigid_parameters(np.linalg.inv(true.matrices), CENTER)[:, :3]
    assert nothing.rmse_translation_mm == pytest.approx(np.sqrt((expected**2).mean()))
    points = np.random.default_rng(0).normal(0, 50, (50, 3))
    scored = compare_motion(Motion.identity(40), true, center=CENTER, points=points)
    apart = target_registration_error(np.eye(4), true.matrices, points)
    assert scored.score(frame="given").tre_p95_mm == pytest.approx(np.percentile(apart, 95))
    with pytest.raises(EddymotionError, match="39 estimated transforms but 40"):
        compare_motion(Motion(estimated[1:]), true)


def test_files_of_motion_agree(true, tmp_path, still):
    image = tmp_path / "mask.nii.gz"
    write_image(image, still.mask.astype(np.uint8), still.affine)
    grid = read_grid(image)
    np.testing.assert_allclose(grid.center, still.center, atol=1e-5)
    write_itk(tmp_path / "a.txt", true.matrices)
    write_x5(tmp_path / "a.x5", true, still)
    parameters = rigid_parameters(true.matrices, still.center)
    names = "trans_x\ttrans_y\ttrans_z\trot_x\trot_y\trot_z"
    np.savetxt(tmp_path / "a.tsv", parameters, delimiter="\t", header=names, comments="")
    for name in ("a.txt", "a.x5", "a.tsv"):
        found = read_motion(tmp_path / name, grid).motion
        np.testing.assert_allclose(found.matrices, true.matrices, atol=1e-5)
    np.testing.assert_array_equal(read_transform(tmp_path / "a.txt", 7), true[7])
    for kind in ("Euler3DTransform", "BSplineTransform"):
        (tmp_path / f"{kind}.txt").write_text(
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}_double_3_3\n"
            "Parameters: 0 0 0 1 2 3\nFixedParameters: 0 0 0 0\n"
        )
    euler = read_transform(tmp_path / "Euler3DTransform.txt")
    np.testing.assert_array_equal(euler[:3, 3], [-1, -2, 3])
    write_itk(tmp_path / "affine.txt", np.diag([1.1, 1, 1, 1])[None])
    (tmp_path / "flirt.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    (tmp_path / "bytes.mat").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "short.tsv").write_text("trans_x\ttrans_y\n1\t2\n")
    for name, hint in {
        "BSplineTransform.txt": "^[^(]*holds ITK's BSplineTransform",
        "affine.txt": "scales or shears", "flirt.mat": "ITK text", "bytes.mat": "ITK text",
        "short.tsv": "no column trans_z", ".": "a folder", "none.x5": "no such file",
        "mask.nii.gz": "warp",
    }.items():  # fmt: skip
        with pytest.raises(EddymotionError, match=hint):
            read_motion(tmp_path / name, grid)


POINTS = np.random.default_rng(5).uniform(-60, 60, (6, 3))
LPS = np.array([-1, -1, 1])


def slicer_table(points, system, version="4.11", labels="ABCDEF"):
    columns = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
    lines = [f"# Markups fiducial file version = {version}", f"# CoordinateSystem = {system}",
             f"# columns = {columns}"]  # fmt: skip
    rows = zip(points.tolist(), labels, strict=True)
    lines += [f"7,{x},{y},{z},0,0,0,1,1,1,0,{name},," for (x, y, z), name in rows]
    return "\n".join(lines) + "\n"


def markups(points, system, labels="ABCDEF"):
    def control(point, label):
        return {"label": label, "position": list(point), "positionStatus": "defined"}

    rows = [control(*row) for row in zip(points, labels, strict=True)]
    unplaced = {"label": "Z", "position": [0, 0, 0], "positionStatus": "undefined"}
    lists = [rows[:2], [*rows[2:], unplaced]]
    return json.dumps(
        {"markups": [
            {"type": "Fiducial", "coordinateSystem": system, "controlPoints": points}
            for points in lists
        ]}
    )  # fmt: skip


def test_landmarks_in_all_formats_are_the_same_points(tmp_path):
    rows = [(name, *point) for name, point in zip("ABCDEF", POINTS.tolist(), strict=True)]
    slicer3 = "\n".join(f"{name},{x},{y},{z},1,1" for name, x, y, z in rows)
    table = "\n".join(f"{x}\t{y}\t{z}\t{name}" for name, x, y, z in rows)
    written = {
        "lps.fcsv": slicer_table(POINTS * LPS, "LPS"),
        "one.fcsv": slicer_table(POINTS * LPS, "1", "4.10"),
        "zero.fcsv": slicer_table(POINTS, "0", "4.6"),
        "old.fcsv": slicer3,
        "lps.mrk.json": markups(POINTS * LPS, "LPS"),
        "ras.mrk.json": markups(POINTS, "RAS"),
        "table.tsv": "x\ty\tz\tlabel\n" + table,
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
        found = read_landmarks(tmp_path / name)
        np.testing.assert_allclose(found.points, POINTS, err_msg=name)
        assert "".join(found.labels) == "ABCDEF"
    (tmp_path / "ijk.fcsv").write_text(slicer_table(POINTS, "2"))
    (tmp_path / "bad.mrk.json").write_text("{}")
    (tmp_path / "points.csvx").write_text("")
    for name, hint in {
        "ijk.fcsv": "IJK",
        "bad.mrk.json": "markups",
        "points.csvx": "fcsv",
    }.items():
        with pytest.raises(EddymotionError, match=hint):
            read_landmarks(tmp_path / name)


def test_landmarks_under_the_known_transform():
    fixed = Landmarks(POINTS, tuple("ABCDEF"))
    moving = Landmarks(apply_affine(OFFSET, POINTS)[::-1], tuple("FEDCBA"))
    paired = pair_landmarks(fixed, moving)
    errors = landmark_errors(*paired, OFFSET)
    assert errors.after.max() < 1e-12
    expected = np.linalg.norm(apply_affine(OFFSET, POINTS) - POINTS, axis=1)
    np.testing.assert_allclose(errors.before, expected)
    assert errors.inverse_mean_mm > expected.mean()
    fewer = Landmarks(POINTS[:2], ("A", "X"))
    assert pair_landmarks(fixed, fewer)[0].labels == ("A",)
    unnamed = Landmarks(POINTS, ("",) * 6)
    assert pair_landmarks(fixed, unnamed)[1].labels == tuple("ABCDEF")
    with pytest.raises(EddymotionError, match="--by-order"):
        pair_landmarks(fixed, Landmarks(POINTS, tuple("UVWXYZ")))
    with pytest.raises(EddymotionError, match="6 landmarks"):
        pair_landmarks(fixed, Landmarks(POINTS[:2], ("", "")))


@pytest.mark.parametrize("fwhm", [(4.0, 6.0, 8.0), (5.0, 5.0, 5.0)])
def test_smoothness_of_smoothed_white_noise(fwhm):
    sizes = np.array([2.0, 2.0, 3.0])
    sigma = np.array(fwhm) / np.sqrt(8 * np.log(2)) / sizes
    mask = np.zeros((60, 60, 60), bool)
    mask[5:55, 5:55, 5:55] = True
    noise = gaussian_filter(np.random.default_rng(0).normal(size=mask.shape), sigma)
    np.testing.assert_allclose(smoothness(noise[mask], mask, sizes), fwhm, rtol=0.05)


def test_identical_volumes_correlate_perfectly_and_white_noise_not_at_all():
    gradients = shelled_scheme({1000: 12}, 2)
    random = np.random.default_rng(0)
    head = 100 + 20 * random.normal(size=(12, 12, 12, 1))
    same = DWI(
        np.tile(head, (1, 1, 1, 14)), np.diag([2.0, 2, 2, 1]), gradients, np.ones((12,) * 3)
    )
    quality = assess_series(same, model="average")
    np.testing.assert_allclose(quality.ndc[gradients.dwis], 1, atol=1e-6)
    assert np.isnan(quality.ndc[gradients.b0s]).all()
    noise = DWI(100 + random.normal(size=same.signal.shape), same.affine, gradients, same.mask)
    white = assess_series(noise, model="average")
    assert np.abs(white.ndc[gradients.dwis]).max() < 0.15
    assert np.median(white.fwhm_mean_mm[gradients.dwis]) < 2.0
    np.testing.assert_allclose(correlation_between(noise, noise, noise.mask), 1)


def test_ndc_is_that_of_dipy(moving):
    from dipy.core.gradients import gradient_table
    from dipy.stats.qc import find_qspace_neighbors, neighboring_dwi_correlation

    gtab = gradient_table(moving.gradients.bvals, bvecs=moving.gradients.bvecs)
    nearest = nearest_neighbours(moving.gradients)
    assert [(i, nearest[i]) for i in moving.gradients.dwis] == find_qspace_neighbors(gtab)
    quality = assess_series(moving, moving.mask, "average")
    expected = neighboring_dwi_correlation(moving.signal, gtab, mask=moving.mask)
    assert np.nanmean(quality.ndc) == pytest.approx(expected, abs=1e-5)


def test_alignment_raises_all_and_blurring_shows_in_the_smoothness(still, moving):
    mask = compared_mask(still, moving)
    aligned, before = (assess_series(dwi, mask) for dwi in (still, moving))
    assert np.nanmean(aligned.loo_r2) > np.nanmean(before.loo_r2) + 0.05
    assert np.nanmean(aligned.ndc) > np.nanmean(before.ndc) + 0.05
    signal = np.asarray(gaussian_filter(moving.signal, (1.0, 1.0, 1.0, 0)))
    smooth = assess_series(DWI(signal, moving.affine, moving.gradients, moving.mask), mask)
    assert np.nanmean(smooth.ndc) > np.nanmean(before.ndc)
    assert np.nanmedian(smooth.fwhm_mean_mm) > np.nanmedian(before.fwhm_mean_mm) + 4


def test_series_of_other_voxels_or_volumes_are_refused(still):
    shifted = still.affine.copy()
    shifted[0, 3] += 3
    bvals = still.gradients.bvals.copy()
    bvals[-1] += 1000
    others = {
        "32×": DWI(still.signal[:32], still.affine, still.gradients, still.mask[:32]),
        "3 mm apart": DWI(still.signal, shifted, still.gradients, still.mask),
        "has 26; give": still.select(np.arange(26)),
        "volume 26": DWI(still.signal, still.affine, Gradients(bvals, still.gradients.bvecs),
                         still.mask),
    }  # fmt: skip
    for hint, other in others.items():
        with pytest.raises(EddymotionError, match=hint):
            refuse_different(still, other)
    refuse_different(still, still)
