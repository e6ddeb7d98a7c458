# SPDX-License-Identifier: Apache-2.0
"""The motion that other programs write: each convention moves one voxel, step by step.

What a program says is applied here to a voxel with nothing but sines, cosines and the headers of
the image; what is read from its file has to bring the voxel to the same place.
"""

import json
import re
from dataclasses import replace
from math import cos, radians, sin

import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.cli import evaluate
from eddymotion.derivatives.fsl import write_fsl_eddy
from eddymotion.errors import EddymotionError
from eddymotion.evaluation import read_motion
from eddymotion.evaluation.transforms import eddy_motion_with_offsets
from eddymotion.images.grid import Grid
from eddymotion.io.images import write_image
from eddymotion.io.itk import write_itk
from eddymotion.io.motion import write_fsl_matrices
from eddymotion.io.other_programs import eddy_offsets
from eddymotion.io.trajectory import read_trajectory, write_trajectory
from eddymotion.io.tsv import Table
from eddymotion.mapping.rigid import exp_rigid, rigid_matrix
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation import SliceTiming, simulate_course

VOXEL = np.array([7.0, 11.0, 3.0])
SHAPE = (20, 24, 12)
SIZES = np.array([2.0, 2.5, 4.0])
SMALL = np.array([1.5, -2.0, 0.75, 0.05, -0.08, 0.11])
"""Six numbers of a row; what they are is the program's."""


def grid_of(axes, oblique=(0, 0, 0)):
    """A grid whose axes point as named, turned by degrees, away from the origin."""
    turn = {"R": [1, 0, 0], "L": [-1, 0, 0], "A": [0, 1, 0], "P": [0, -1, 0], "S": [0, 0, 1],
            "I": [0, 0, -1]}  # fmt: skip
    linear = np.array([turn[axis] for axis in axes], float).T
    rotation = rigid_matrix(np.zeros(3), np.deg2rad(oblique), np.zeros(3))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ linear @ np.diag(SIZES)
    affine[:3, 3] = [13.0, -40.0, 22.0]
    return Grid(SHAPE, affine)


GRIDS = [grid_of("RAS"), grid_of("LAS"), grid_of("PSL"), grid_of("LPS", (12, -7, 20))]


def turned(axis, angle, point):
    """Turn a point right-handedly about an axis: x 0, y 1, z 2."""
    j, k = (axis + 1) % 3, (axis + 2) % 3
    moved = np.array(point, float)
    moved[j] = cos(angle) * point[j] - sin(angle) * point[k]
    moved[k] = sin(angle) * point[j] + cos(angle) * point[k]
    return moved


def in_fsl(grid, voxel):
    """FSL's coordinates of a voxel: times voxel sizes, x from the other end in RAS."""
    x, y, z = np.asarray(voxel, float)
    flipped = np.linalg.det(grid.affine[:3, :3]) > 0
    return np.array([(SHAPE[0] - 1 - x) if flipped else x, y, z]) * SIZES


def from_fsl(grid, millimetres):
    x, y, z = np.asarray(millimetres) / SIZES
    return np.array([SHAPE[0] - 1 - x if np.linalg.det(grid.affine[:3, :3]) > 0 else x, y, z])


def world(grid, voxel):
    return apply_affine(grid.affine, voxel)


def written(path, rows):
    path.write_text("\n".join(" ".join(f"{number:.10g}" for number in row) for row in rows) + "\n")
    return path


def there(matrix, grid, voxel):
    """Where a matrix says a voxel of the reference is, in voxels of the volume."""
    return apply_affine(np.linalg.inv(grid.affine) @ matrix @ grid.affine, voxel)


@pytest.mark.parametrize("grid", GRIDS)
def test_eddy_moves_a_voxel_of_the_reference_into_the_volume(tmp_path, grid):
    field = [9.0] * 9 + [30.0]
    path = written(tmp_path / "x.eddy_parameters", [[0.0] * 16, [*SMALL, *field]])
    point, center = in_fsl(grid, VOXEL), in_fsl(grid, (np.array(SHAPE) - 1) / 2)
    for axis in (2, 1, 0):  # Rx Ry Rz: z first, and each turns the other way round
        point = turned(axis, -SMALL[3 + axis], point - center) + center
    point += SMALL[:3]
    found = read_motion(path, grid).motion
    np.testing.assert_allclose(there(found[1], grid, VOXEL), from_fsl(grid, point), atol=1e-6)
    np.testing.assert_allclose(found[0], np.eye(4), atol=1e-12)
    written(tmp_path / "acqp.txt", [[1, 0, 0, 0.03], [0, -1, 0, 0.05]])
    written(tmp_path / "index.txt", [[1, 2]])
    moved = eddy_motion_with_offsets(
        path, found, grid, tmp_path / "acqp.txt", tmp_path / "index.txt"
    )
    point[1] -= 30.0 * 0.05 * SIZES[1]  # recorded voxels further along the phase encoding
    np.testing.assert_allclose(there(moved[1], grid, VOXEL), from_fsl(grid, point), atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_mcflirt_moves_a_voxel_of_the_volume_into_the_reference(tmp_path, grid):
    folder = tmp_path / "x.mat"
    folder.mkdir()
    rotation = rigid_matrix(SMALL[:3], SMALL[3:], np.zeros(3))
    for number in range(11):  # the last has one digit more
        written(folder / f"MAT_{number}", rotation if number == 2 else np.eye(4))
    reference = from_fsl(grid, rotation[:3, :3] @ in_fsl(grid, VOXEL) + rotation[:3, 3])
    found = read_motion(folder, grid).motion
    assert len(found) == 11
    np.testing.assert_allclose(there(found[2], grid, reference), VOXEL, atol=1e-6)
    np.testing.assert_allclose(found[10], np.eye(4), atol=1e-12)


def in_afni(grid, voxel):
    """AFNI's DICOM coordinates: along the axes nearest to those of the grid, from its first voxel.

    Of an oblique grid (here about LPS), as if it were not.
    """
    straight = grid.affine.copy()
    nearest = np.round(straight[:3, :3] / SIZES)
    straight[:3, :3] = nearest * SIZES
    x, y, z = apply_affine(straight, voxel)
    return np.array([-x, -y, z])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns", [6, 9])
def test_afni_moves_a_voxel_of_the_volume_into_the_base(tmp_path, grid, columns):
    roll, pitch, yaw, up, left, back = 3.0, -2.0, 4.0, 0.5, -1.5, 2.5
    row = [roll, pitch, yaw, up, left, back]
    row = row if columns == 6 else [1, *row, 7.1, 3.2]
    path = written(tmp_path / "x.1D", [np.zeros(columns), row])
    path.write_text("# 3dvolreg\n" + path.read_text())
    center = in_afni(grid, (np.array(SHAPE) - 1) / 2)
    point = in_afni(grid, VOXEL) - center
    for axis, angle in ((2, roll), (0, pitch), (1, yaw)):  # about S, then L, then P
        point = turned(axis, radians(angle), point)
    point = point + center + [left, back, up]
    base = np.linalg.solve(
        np.array([in_afni(grid, unit) - in_afni(grid, (0, 0, 0)) for unit in np.eye(3)]).T,
        point - in_afni(grid, (0, 0, 0)),
    )
    found = read_motion(path, grid).motion
    np.testing.assert_allclose(there(found[1], grid, base), VOXEL, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_afni_matrices_move_a_voxel_of_the_base_into_the_volume(tmp_path, grid):
    matrix = rigid_matrix(SMALL[:3], SMALL[3:], np.zeros(3))
    path = written(tmp_path / "x.aff12.1D", [np.eye(4)[:3].ravel(), matrix[:3].ravel()])
    point = matrix[:3, :3] @ in_afni(grid, VOXEL) + matrix[:3, 3]
    volume = there(read_motion(path, grid).motion[1], grid, VOXEL)
    np.testing.assert_allclose(in_afni(grid, volume), point, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_spm_moves_a_voxel_of_the_volume_into_the_reference(tmp_path, grid):
    path = written(tmp_path / "rp_dwi.txt", [np.zeros(6), SMALL])
    pitch, roll, yaw = SMALL[3:]
    r1 = [[1, 0, 0], [0, cos(pitch), sin(pitch)], [0, -sin(pitch), cos(pitch)]]
    r2 = [[cos(roll), 0, sin(roll)], [0, 1, 0], [-sin(roll), 0, cos(roll)]]
    r3 = [[cos(yaw), sin(yaw), 0], [-sin(yaw), cos(yaw), 0], [0, 0, 1]]
    point = np.array(r1) @ r2 @ r3 @ world(grid, VOXEL) + SMALL[:3]
    found = read_motion(path, grid).motion
    np.testing.assert_allclose(apply_affine(found[1], point), world(grid, VOXEL), atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_shard_moves_a_voxel_of_the_slice_into_the_reference(tmp_path, grid):
    """The point flows along the field of the twist for one unit of time."""
    path = written(tmp_path / "motion.txt", [*np.zeros((4, 6)), SMALL, *np.zeros((3, 6))])
    point = world(grid, VOXEL)
    n = 300
    for _ in range(n):
        step = SMALL[:3] + np.cross(SMALL[3:], point)
        middle = point + step / (2 * n)
        point = point + (SMALL[:3] + np.cross(SMALL[3:], middle)) / n
    found = read_motion(path, grid, program="shard", n_volumes=2).slices
    assert [group.tolist() for group in found.groups] == [[g, g + 4, g + 8] for g in range(4)]
    for slice_ in (0, 4, 8):
        back = apply_affine(found.poses[1, slice_], point)
        np.testing.assert_allclose(back, world(grid, VOXEL), atol=1e-5)
    np.testing.assert_allclose(found.poses[1, 1], np.eye(4), atol=1e-12)


@pytest.mark.parametrize(
    ("index", "n_columns", "fits"),
    [
        ([1, 2, 2], 4, True),
        ([0, 1, 2], 4, False),  # eddy counts from 1
        ([1, 2, 3], 4, False),
        ([1, 2], 4, False),
        ([1, 2, 2], 3, False),
    ],
)
def test_acquisition_parameters_belong_to_the_volumes(index, n_columns, fits):
    """The constant of a field, Hz, times the readout time of its row, in voxels along y."""
    rows = np.zeros((3, 16))
    rows[:, -1] = [10.0, 20.0, 30.0]
    acquisition = np.array([[0, 1, 0, 0.05], [0, -1, 0, 0.1]])[:, :n_columns]
    grid = Grid((8, 8, 8), np.diag([-2.0, 3.0, 2.0, 1.0]))
    given = "x.eddy_parameters", rows, grid, acquisition, np.array(index)
    if fits:
        expected = 3.0 * np.array([0.5, -2.0, -3.0])
        np.testing.assert_allclose(eddy_offsets(*given)[:, 1], expected)
        return
    with pytest.raises(EddymotionError, match="acquisition parameters of shape"):
        eddy_offsets(*given)


def test_eddy_tells_of_slices_in_the_order_of_time(tmp_path):
    grid = GRIDS[1]
    timing = SliceTiming(multiband=3)
    rows = np.zeros((8, 6))
    rows[5] = SMALL  # second excitation of the second volume
    path = written(tmp_path / "x.eddy_movement_over_time", rows)
    found = read_motion(path, grid, groups=timing.groups(12), n_volumes=2).slices
    moved = [s for s in range(12) if np.abs(found.poses[1, s] - np.eye(4)).max() > 1e-9]
    assert moved == [2, 6, 10]  # interleaved: 0 4 8, then 2 6 10
    assert np.abs(found.poses[0] - np.eye(4)).max() < 1e-9
    with pytest.raises(EddymotionError, match="8 rows for 3 volumes"):
        read_motion(path, grid, groups=timing.groups(12), n_volumes=3)
    with pytest.raises(EddymotionError, match="an unknown number of excitations"):
        read_motion(path, grid, n_volumes=2)


def test_what_is_written_for_fsl_is_read_again(tmp_path, moving, truth):
    """Our own eddy and FLIRT files say what our transforms say."""
    grid = Grid(moving.shape, moving.affine)
    write_fsl_eddy(tmp_path / "x", truth, moving, moving)
    write_fsl_matrices(tmp_path / "x.mat", truth, moving, moving)
    for path in (tmp_path / "x.eddy_parameters", tmp_path / "x.mat"):
        np.testing.assert_allclose(read_motion(path, grid).motion.matrices, truth.matrices,
                                   atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("motion.txt", "0 0 0 0 0 0\n", "name the program that wrote them with --format"),
        ("x.eddy_parameters", "0 0 0 0 0 0 7\n", "rows of 7 numbers"),
        ("x.1D", "0 0 0 0 0\n", "rows of 5 numbers"),
        ("rp_x.txt", "0 0 0 0 0 nan\n", "finite"),
        ("rp_x.txt", "a b c\n", "not a table of numbers"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(EddymotionError, match=message):
        read_motion(tmp_path / name, GRIDS[0])


def test_folders_without_matrices_and_unknown_programs_are_refused(tmp_path):
    with pytest.raises(EddymotionError, match="MAT_0000"):
        read_motion(tmp_path, GRIDS[0], program="mcflirt")
    with pytest.raises(EddymotionError, match="a folder"):
        read_motion(tmp_path, GRIDS[0])
    with pytest.raises(EddymotionError, match="expected one of eddy"):
        read_motion(tmp_path, GRIDS[0], program="elastix")
    with pytest.raises(EddymotionError, match="--reference IMAGE"):
        read_motion(written(tmp_path / "rp_x.txt", [SMALL]))


@pytest.fixture
def trajectories(tmp_path):
    """True and estimated tables of one series, with errors and standard errors that fit."""
    grid = GRIDS[3]
    true = simulate_course("nods", 9, SHAPE[2], SliceTiming(multiband=2), grid.center, seed=1)
    sizes = np.repeat([0.05, 0.001], 3)
    errors = np.random.default_rng(0).normal(size=(9, 6, 6)) * sizes
    found = SlicePoses(
        true.matrices @ exp_rigid(errors, grid.center), true.groups, true.times,
        np.tile(sizes, (9, 6, 1)),
    )  # fmt: skip
    for name, motion in (("true", true), ("estimated", found)):
        write_trajectory(tmp_path / f"{name}.tsv", motion, grid.center)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:-2, 2:-2, 1:-1] = 1
    write_image(tmp_path / "mask.nii.gz", mask, grid.affine)
    write_itk(tmp_path / "mean.txt", true.mean(grid.center).matrices)
    (tmp_path / "dwi.bval").write_text("0 " + "1000 " * 8)
    for name, columns in (("rp_x.txt", 6), ("m.eddy_parameters", 6), ("f.eddy_parameters", 16)):
        written(tmp_path / name, np.zeros((9, columns)))
    return tmp_path


def call(folder, *arguments):
    named = [str(folder / a) if "." in a else a for a in arguments]
    return evaluate.main(["motion", *named, "--mask", str(folder / "mask.nii.gz")])


def test_tables_of_slices_are_scored(trajectories, capsys):
    arguments = ("estimated.tsv", "true.tsv", "--bval", "dwi.bval", "-o", "out.x")
    assert call(trajectories, *arguments) == 0
    printed = capsys.readouterr().out
    assert "mean poses" in printed
    assert "95 % intervals of slices that hold the truth: 9" in printed
    figures = json.loads((trajectories / "out.x.json").read_text())["slices"]
    scores = {(s["method"], s["frame"], s["volumes"]): s for s in figures["scores"]}
    mine = scores["estimated", "free", "b>100"]
    assert 0.04 < mine["rmse_translation_mm"] < 0.06
    assert mine["rms_mm"] < 0.3 * scores["mean poses", "free", "b>100"]["rms_mm"]
    assert 90 < figures["coverage_percent"] < 99
    header, *rows = (trajectories / "out.x_slices.tsv").read_text().splitlines()
    assert header.startswith("volume\tslice\ttime\tused\tgiven_displacement_mm")
    assert len(rows) == 9 * SHAPE[2]
    assert (trajectories / "out.x.png").read_bytes().startswith(b"\x89PNG")


def test_times_are_those_that_either_motion_knows(trajectories):
    center = GRIDS[3].center
    true = read_trajectory(trajectories / "true.tsv", center)
    untimed = replace(true, times=np.full(true.times.shape, np.nan))
    write_trajectory(trajectories / "untimed.tsv", untimed, center)
    assert call(trajectories, "estimated.tsv", "untimed.tsv", "-o", "out.x") == 0
    times = Table.read(trajectories / "out.x_slices.tsv").numbers("time")
    np.testing.assert_allclose(times, true.times[:, true.group_of_slice].ravel(), rtol=1e-5)
    assert call(trajectories, "untimed.tsv", "untimed.tsv", "-o", "out.y") == 0
    assert np.isnan(Table.read(trajectories / "out.y_slices.tsv").numbers("time")).all()


def test_one_pose_a_volume_is_scored_by_slices_and_shows_what_it_cannot_do(trajectories, capsys):
    assert call(trajectories, "mean.txt", "true.tsv", "--bval", "dwi.bval") == 0
    lines = capsys.readouterr().out.partition("\nslices")[2].splitlines()
    own, best = (next(line for line in lines if line.startswith(name)).split()[-7:]
                 for name in ("estimated", "mean poses"))  # fmt: skip
    assert own == best
    assert float(own[0]) > 0.2


def test_frame_of_a_volume_is_that_of_its_mean_pose(trajectories, capsys):
    grid = GRIDS[3]
    found = read_motion(trajectories / "estimated.tsv", grid).slices
    away = exp_rigid(np.array([5.0, -3, 2, 0.1, 0.05, -0.1]), grid.center)
    write_trajectory(trajectories / "moved.tsv", found.relative_to(away), grid.center)
    printed = []
    for name in ("estimated.tsv", "moved.tsv"):
        assert call(trajectories, name, "true.tsv", "--relative-to", "2") == 0
        text = capsys.readouterr().out
        printed.append([float(n) for n in re.findall(r"-?\d+\.\d+", text)])
    np.testing.assert_allclose(*printed, atol=0.03)  # means of large nods differ a little


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mean.txt", "true.tsv", "--index", "dwi.bval"), "add --acqp"),
        (("estimated.tsv", "true.tsv", "--acqp", "dwi.bval"), "belongs to eddy's"),
        (("rp_x.txt", "true.tsv", "--acqp", "dwi.bval"), "belongs to eddy's"),
        (("m.eddy_parameters", "true.tsv", "--acqp", "dwi.bval"), "holds no fields"),
        (("f.eddy_parameters", "true.tsv", "--acqp", "dwi.bval"), "expected rows of four"),
        (
            ("mean.txt", "true.tsv", "--slice-axis", "i"),
            "motion of 12 slices, but the image has 20",
        ),
        (("mean.txt", "true.tsv", "--format", "spm"), "not a table of numbers"),
    ],
)
def test_wrong_calls_are_one_line(trajectories, arguments, message, capsys):
    assert call(trajectories, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_incomplete_files_are_told_as_what_they_are(tmp_path):
    folder, grid = tmp_path / "x.mat", GRIDS[0]
    folder.mkdir()
    for volume in (0, 1, 3):
        np.savetxt(folder / f"MAT_{volume:04d}", np.eye(4))
    with pytest.raises(EddymotionError, match="MAT_0002 is missing, but later ones exist"):
        read_motion(folder, grid)
    np.savetxt(tmp_path / "x.par", np.zeros((4, 6)))
    with pytest.raises(EddymotionError, match=r"its \.par does not give the centre"):
        read_motion(tmp_path / "x.par", grid)
    rows = np.zeros((4, 16))
    rows[2, 5] = np.nan
    np.savetxt(tmp_path / "x.eddy_parameters", rows)
    with pytest.raises(EddymotionError, match="not all numbers of row 3 are finite"):
        read_motion(tmp_path / "x.eddy_parameters", grid)
