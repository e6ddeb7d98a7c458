# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields on disk, and eddy's files decoded as FSL does."""

import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.gradients import from_fsl
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.eddy import write_displacement_fields, write_eddy
from eddymotion.derivatives.fsl import OutlierTables, write_fsl_eddy
from eddymotion.errors import EddymotionError
from eddymotion.images.axes import image_axes
from eddymotion.io.images import write_image
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tables import read_gradient_table, write_gradient_table
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.correct import correct_series
from eddymotion.pipeline.settings import Settings
from eddymotion.resampling import Resampled
from eddymotion.simulation import (
    Grid,
    acquire,
    procedural_head,
    shelled_scheme,
    simulate_motion,
)

TURN = Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix()


def series(orientation="RAS", rotation=None, order="quadratic", pe_axis="j"):
    """A series of eight volumes, its motion, fields and offsets."""
    head = procedural_head(10.0)
    grid = Grid.covering(head, (9.0, 10.0, 12.0), orientation, rotation)
    gradients = shelled_scheme({1000: 4, 2000: 2}, 2)
    dwi = acquire(head, gradients, Motion.identity(8), grid, snr=None)
    random = np.random.default_rng(3)
    pe = image_axes(grid.affine)[:, "ijk".index(pe_axis[0])] * (-1 if "-" in pe_axis else 1)
    coefficients = random.normal(size=(8, N_TERMS[order]))
    offsets = random.normal(scale=2.0, size=8)
    coefficients[gradients.is_b0], offsets[gradients.is_b0] = 0.0, 0.0
    eddy = EddyCurrents(coefficients, pe, grid.center, offsets, np.full(8, 0.1))
    motion = simulate_motion("high", 8, grid.center, seed=2)
    return dwi, replace(motion, eddy_currents=eddy)


@pytest.fixture(scope="module")
def plain_series():
    return series()


def write(folder, dwi, motion, **options):
    corrected = Resampled.of(dwi, replace(motion, eddy_currents=None), engine="fast")
    written = write_fsl_eddy(folder / "eddy", motion, dwi, corrected, **options)
    return {path.name.removeprefix("eddy.eddy_"): path for path in written}


def newimage(dwi):
    """RAS+ mm → FSL's: voxel times size, x from the other end if the determinant is positive."""
    sizes = np.linalg.norm(dwi.affine[:3, :3], axis=0)
    scale = np.diag([*sizes, 1.0])
    if np.linalg.det(dwi.affine[:3, :3]) > 0:
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = dwi.shape[0] - 1
        scale = scale @ flip
    return scale @ np.linalg.inv(dwi.affine), sizes


def about(axis, angle):
    """FSL's rotation about one axis, as its sources write it down."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([
        [[1, 0, 0], [0, c, s], [0, -s, c]],
        [[c, 0, -s], [0, 1, 0], [s, 0, c]],
        [[c, s, 0], [-s, c, 0], [0, 0, 1]],
    ][axis])  # fmt: skip


def hertz(x, y, z, ep):
    """Evaluate eddy's field at mm from the middle, term by term."""
    terms = [x, y, z]
    if len(ep) > 4:
        terms += [x * x, y * y, z * z, x * y, x * z, y * z]
    if len(ep) > 10:
        terms += [x**3, y**3, z**3, x * x * y, x * x * z, x * y * z,
                  x * y * y, y * y * z, x * z * z, y * z * z]  # fmt: skip
    return ep[-1] + sum(weight * term for weight, term in zip(ep, terms, strict=False))


def decoded(files, dwi, volume, points):
    """Where eddy's files say that points (RAS+ mm) of the reference are recorded."""
    to_fsl, sizes = newimage(dwi)
    row = np.loadtxt(files["parameters"])[volume]
    *vector, readout = np.loadtxt(files["acqparams.txt"])
    center = (np.array(dwi.shape) - 1) / 2 * sizes
    rotation = about(0, row[3]) @ about(1, row[4]) @ about(2, row[5])
    scan = (apply_affine(to_fsl, points) - center) @ rotation.T + center + row[:3]
    field = hertz(*(scan - center).T, row[6:])
    scan = scan + np.outer(field * readout, sizes * vector)
    return apply_affine(np.linalg.inv(to_fsl), scan)


@pytest.mark.slow
def test_acquisition_parameters_have_the_axis_that_is_known(tmp_path, tiny):
    image = tmp_path / "dwi.nii.gz"
    write_image(image, np.asarray(tiny.signal), tiny.affine)
    write_gradient_table(tmp_path / "dwi.bval", tmp_path / "dwi.bvec", tiny.gradients, tiny.affine)
    series = SeriesFiles(image, metadata={"PhaseEncodingDirection": "i"})
    settings = Settings(model="average", eddy_current="none", n_iterations=1, fsl_outputs=True)
    for name, direction in (("told", None), ("asked", "j-")):
        outputs = Outputs.in_folder(tmp_path / name, image)
        correct_series(series, outputs, replace(settings, pe_axis=direction))
        (table,) = outputs.folder.glob("*.eddy_acqparams.txt")
        expected = {"told": [-1, 0, 0], "asked": [0, -1, 0]}[name]  # FSL flips x here
        np.testing.assert_allclose(np.loadtxt(table)[:3], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("orientation", "rotation", "order", "pe_axis", "readout_time"),
    [
        ("RAS", None, "quadratic", "j", None),
        ("LAS", None, "quadratic", "j-", 0.0712),
        ("RAS", TURN, "cubic", "i", 0.05),
        ("LPS", TURN, "linear", "i-", None),
        ("PIR", TURN, "cubic", "j", 0.1),
        ("LSA", None, "none", "j", None),
    ],
)
def test_parameters_lead_to_the_recorded_voxel(
    tmp_path, orientation, rotation, order, pe_axis, readout_time
):
    dwi, motion = series(orientation, rotation, order, pe_axis)
    acquisition = Acquisition.every(dwi.gradients, dwi.affine, readout_time=readout_time)
    files = write(tmp_path, replace(dwi, acquisition=acquisition), motion)
    columns = {"none": 16, "linear": 10, "quadratic": 16, "cubic": 26}[order]
    assert np.loadtxt(files["parameters"]).shape == (8, columns)
    points = np.random.default_rng(0).uniform(-70, 70, (40, 3)) + dwi.center
    for volume in range(8):
        found = decoded(files, dwi, volume, points)
        np.testing.assert_allclose(found, motion.recorded(volume, points), atol=1e-5)
    *_, readout = np.loadtxt(files["acqparams.txt"])
    assert readout == (readout_time or 0.05)
    said = "is TotalReadoutTime" if readout_time else "is not known"
    assert said in " ".join(files["conventions.txt"].read_text().split())
    assert (np.loadtxt(files["index.txt"], dtype=int) == np.ones(8)).all()


def test_offsets_are_a_field_and_not_movement(plain_series, tmp_path):
    dwi, motion = plain_series
    eddy = motion.eddy_currents
    columns = np.loadtxt(write(tmp_path, dwi, motion)["parameters"])
    without = replace(motion, eddy_currents=replace(eddy, offsets=None))
    other = np.loadtxt(write(tmp_path, dwi, without)["parameters"])
    np.testing.assert_allclose(columns[:, 1] - other[:, 1], eddy.offsets, atol=1e-8)
    dwis = dwi.gradients.dwis
    size = dwi.voxel_sizes[1] * 0.05
    hz = -(columns - other)[dwis, 15] * size
    np.testing.assert_allclose(hz, eddy.offsets[dwis], rtol=0.2, atol=0.2)
    assert not columns[dwi.gradients.b0s, 6:].any()


def test_movement_rms_is_that_of_the_brain(plain_series, tmp_path):
    dwi, motion = plain_series
    motion = replace(motion, eddy_currents=None)
    files = write(tmp_path, dwi, motion)
    brain = apply_affine(dwi.affine, np.argwhere(dwi.mask))
    moved = np.array([apply_affine(pose, brain) for pose in motion.matrices])

    def rms(displacement):
        return np.sqrt((displacement**2).sum(axis=-1).mean(axis=-1))

    found = np.loadtxt(files["movement_rms"])
    np.testing.assert_allclose(found[:, 0], rms(moved - brain), atol=1e-8)
    np.testing.assert_allclose(found[1:, 1], rms(np.diff(moved, axis=0)), atol=1e-8)
    assert found[0, 1] == 0
    shifted = motion.matrices.copy()
    shifted[:, 1, 3] += np.linspace(-9, 9, 8)  # along the phase encoding of a RAS grid
    files = write(tmp_path, dwi, Motion(shifted))
    assert np.abs(np.loadtxt(files["movement_rms"]) - found).max() > 1
    restricted = np.loadtxt(files["restricted_movement_rms"])
    middle = np.array([apply_affine(m, dwi.center) - dwi.center for m in motion.matrices])[:, 1]
    still = moved - np.outer(middle, [0, 1, 0])[:, None]
    np.testing.assert_allclose(restricted[:, 0], rms(still - brain), atol=1e-8)
    np.testing.assert_allclose(restricted[1:, 1], rms(np.diff(still, axis=0)), atol=1e-8)


@pytest.mark.parametrize("orientation", ["RAS", "LAS"])
def test_rotated_bvecs_are_those_of_the_corrected_series(tmp_path, orientation):
    dwi, motion = series(orientation)
    files = write(tmp_path, dwi, motion)
    (tmp_path / "bval").write_text(" ".join(map(str, dwi.gradients.bvals)))
    _, bvecs = read_gradient_table(tmp_path / "bval", files["rotated_bvecs"])
    expected = dwi.gradients.rotated(motion.rotations).bvecs
    np.testing.assert_allclose(from_fsl(bvecs, dwi.affine), expected, atol=1e-8)


@pytest.fixture
def outliers(plain_series):
    dwi, _ = plain_series
    random = np.random.default_rng(1)
    n_stdev, n_sqr = random.normal(size=(2, len(dwi), dwi.shape[2]))
    flagged = np.zeros(n_stdev.shape, bool)
    flagged[[2, 5, 0], [7, 3, 4]] = True
    n_stdev[2, 7], n_sqr[2, 7], n_stdev[:, 0] = -5.1209123, 2.5, np.nan
    assert dwi.gradients.is_b0[0]
    return OutlierTables(flagged, n_stdev, n_sqr)


def test_outliers_are_reported_as_eddy_does(plain_series, outliers, tmp_path):
    dwi, motion = plain_series
    files = write(tmp_path, dwi, motion, outliers=outliers)
    title, *rows = files["outlier_map"].read_text().splitlines()
    assert title == "One row per scan, one column per slice. Outlier: 1, Non-outlier: 0"
    assert set("".join(rows)) == {"0", "1", " "}
    found = np.genfromtxt(files["outlier_map"], dtype=int, delimiter=" ", skip_header=1)
    assert np.argwhere(found).tolist() == [[2, 7], [5, 3]]  # b=0 volumes are left out
    for name, table in (("n_stdev", outliers.n_stdev), ("n_sqr_stdev", outliers.n_sqr_stdev)):
        path = files[f"outlier_{name}_map"]
        assert path.read_text().startswith("One row per scan, one column per slice. b0s set to")
        found = np.genfromtxt(path, delimiter=" ", skip_header=1)
        expected = np.nan_to_num(table) * ~dwi.gradients.is_b0[:, None]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    pattern = (
        r"Slice (\d+) in scan (\d+) is an outlier with mean ([-\d.]+) standard deviations off, "
        r"and mean squared ([-\d.]+) standard deviations off\."
    )
    lines = files["outlier_report"].read_text().splitlines()
    parts = [re.fullmatch(pattern, line).groups() for line in lines]
    assert [(int(s), int(v)) for s, v, *_ in parts] == [(3, 5), (7, 2)]
    assert parts[1][2:] == ("-5.12091", "2.5")
    wrong = OutlierTables(*(table[:, 1:] for table in outliers))
    with pytest.raises(EddymotionError, match="expected \\(8"):
        write(tmp_path, dwi, motion, outliers=wrong)


def test_shells_are_compared_with_the_b0_beside(plain_series, tmp_path):
    dwi, motion = plain_series
    files = write(tmp_path, dwi, replace(motion, eddy_currents=None))
    text = files["post_eddy_shell_alignment_parameters"].read_text()
    columns = np.loadtxt(files["parameters"])[:, :6] * ([1] * 3 + [180 / np.pi] * 3)
    beside = {0: [], 1: []}
    for b0 in dwi.gradients.b0s:
        for volume in (b0 - 1, b0 + 1):
            for number, shell in enumerate(dwi.gradients.shells):
                if volume in shell:
                    beside[number].append(columns[volume] - columns[b0])
    for number, label in ((0, "1e+03"), (1, "2e+03")):
        found = re.search(rf"Shell {re.escape(label)} to b0-shell\n.*\n(.*)\n", text)
        assert (found is not None) == bool(beside[number])
        if found:
            expected = np.mean(beside[number], axis=0)
            np.testing.assert_allclose([*map(float, found[1].split())], expected, rtol=6e-3)
    assert beside[0]
    assert beside[1]


def test_files_of_a_former_run_do_not_stay(plain_series, outliers, tmp_path):
    dwi, motion = plain_series
    cnr = np.random.default_rng(2).uniform(size=(*dwi.shape, 3))
    files = write(tmp_path, dwi, motion, outliers=outliers, cnr=cnr)
    image = nib.load(files["cnr_maps.nii.gz"])
    np.testing.assert_allclose(image.get_fdata(), cnr, rtol=1e-6)
    np.testing.assert_allclose(image.affine, dwi.affine)
    again = write(tmp_path, dwi, motion)
    assert {path.name for path in again.values()} == {p.name for p in tmp_path.iterdir()}
    assert {*files} - {*again} == {
        "cnr_maps.nii.gz", "outlier_map", "outlier_n_stdev_map", "outlier_n_sqr_stdev_map",
        "outlier_report",
    }  # fmt: skip


@pytest.mark.parametrize("order", N_TERMS)
def test_the_table_gives_the_field_by_the_formula_beside_it(tmp_path, order):
    """As somebody evaluates it who has nothing but the two files."""
    _, motion = series(order=order)
    eddy = motion.eddy_currents
    write_eddy(tmp_path / "eddy.tsv", tmp_path / "eddy.json", eddy)
    described = json.loads((tmp_path / "eddy.json").read_text())
    table = np.genfromtxt(tmp_path / "eddy.tsv", names=True)
    assert {*table.dtype.names, "EddyCurrents"} == {*described}
    model = described["EddyCurrents"]
    assert model["Order"] == order
    points = np.random.default_rng(0).uniform(-80, 80, (20, 3))
    units = dict(zip("xyz", (points - model["Center"]).T / model["Scale"], strict=True))
    pe = np.array(model["PhaseEncodingVector"])
    terms = [name for name in table.dtype.names if name.startswith("e_")]
    products = [np.prod([units[axis] for axis in name[2:]], axis=0) for name in terms]
    for volume, row in enumerate(table):
        displacement = np.zeros(len(points))
        for name, product in zip(terms, products, strict=True):
            displacement += row[name] * product
        expected = points - displacement[:, None] * pe
        np.testing.assert_allclose(eddy.recorded(volume, points), expected, atol=1e-6)
    np.testing.assert_allclose(table["offset"], eddy.offsets, rtol=1e-6)
    np.testing.assert_allclose(table["offset_se"], eddy.offset_errors, rtol=1e-6)


def test_offsets_that_are_not_known_are_not_made_up(tmp_path):
    eddy = replace(series()[1].eddy_currents, offsets=None, offset_errors=None)
    write_eddy(tmp_path / "eddy.tsv", tmp_path / "eddy.json", eddy)
    table = np.genfromtxt(tmp_path / "eddy.tsv", names=True, missing_values="n/a")
    assert np.isnan(table["offset"]).all()
    assert np.isnan(table["offset_se"]).all()


def test_displacement_fields_are_read_by_nitransforms(tmp_path):
    from nitransforms.io.itk import ITKDisplacementsField
    from nitransforms.linear import Affine
    from nitransforms.nonlinear import DenseFieldTransform

    dwi, motion = series("LAS", TURN)
    (tmp_path / "field_0099.nii.gz").touch()
    paths = write_displacement_fields(tmp_path, motion.eddy_currents, dwi)
    assert [path.name for path in paths] == [f"field_{i:04d}.nii.gz" for i in range(8)]
    assert sorted(tmp_path.iterdir()) == paths
    voxels = np.argwhere(np.ones(dwi.shape))
    reference = apply_affine(np.linalg.inv(motion[5]) @ dwi.affine, voxels)
    field = DenseFieldTransform(ITKDisplacementsField.from_filename(paths[5]))
    found = field.map(Affine(motion[5]).map(reference))
    np.testing.assert_allclose(found, motion.recorded(5, reference), atol=1e-4)
