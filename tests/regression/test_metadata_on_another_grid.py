# SPDX-License-Identifier: Apache-2.0
"""Sidecar, X5 domain and FLIRT matrices where the output lies on another grid."""

import json
from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import from_matvec
from nitransforms.io.x5 import from_filename
from scipy.spatial.transform import Rotation

from eddymotion.cli import correct
from eddymotion.derivatives import OnDemand, Outputs, write_outputs
from eddymotion.derivatives.grid_metadata import on_grid
from eddymotion.images.axes import phase_encoding_vector
from eddymotion.images.grid import fsl_coordinates
from eddymotion.io.images import write_image
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.pipeline.series_steps import write_found
from eddymotion.resampling import Resampled
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids

RAW = {
    "PhaseEncodingDirection": "j-",
    "PhaseEncodingAxis": "j",
    "TotalReadoutTime": 0.05,
    "EffectiveEchoSpacing": 0.0005,
    "MultibandAccelerationFactor": 3,
    "SliceTiming": [0.0, 0.5],
    "SliceEncodingDirection": "k",
    "EchoTime": 0.08,
}
STILL = np.eye(4)


class OnlyGrid:
    def __init__(self, shape, affine):
        self.shape, self.affine = shape, affine
        self.voxel_sizes = np.linalg.norm(affine[:3, :3], axis=0)


RAW_GRID = OnlyGrid((20, 24, 18), from_matvec(np.diag([-2.0, 2.0, 2.5]), [20, -24, -20]))


def grid(axes, sizes, shape, turn=STILL):
    """Build a grid whose axes point as `axes` tell, turned."""
    columns = {"L": [-1, 0, 0], "R": [1, 0, 0], "P": [0, -1, 0], "A": [0, 1, 0], "S": [0, 0, 1],
               "I": [0, 0, -1]}  # fmt: skip
    matrix = np.array([columns[axis] for axis in axes], float).T @ np.diag(sizes)
    return OnlyGrid(shape, turn @ from_matvec(matrix, [5, 6, 7]))


def about_x(degrees):
    return from_matvec(Rotation.from_euler("x", degrees, degrees=True).as_matrix(), [0, 0, 0])


@pytest.mark.parametrize(
    ("new", "to_reference", "expected"),
    [
        # flipped, and the same voxels: the lines are counted from the other end
        (grid("LPS", (2, 2, 2.5), (20, 24, 18)), STILL, ("j", "j", 0.05, 0.0005)),
        # anterior is the third axis; as many lines of the same length
        (grid("LSA", (2, 2.5, 2), (20, 18, 24)), STILL, ("k-", "k", 0.05, 0.0005)),
        # more lines: an echo spacing is one of so many
        (grid("RAS", (2, 2, 2), (30, 40, 30)), STILL, ("j-", "j", 0.05, None)),
        # other voxels: seconds that turn Hz into voxels do not hold
        (grid("RAS", (1, 1, 1), (60, 60, 60)), STILL, ("j-", "j", None, None)),
        (RAW_GRID, np.diag([1.0, 1.1, 1.0, 1.0]), ("j-", "j", None, None)),
        # an image of another head position: the direction follows the registration
        (grid("LPS", (2, 2, 2.5), (20, 24, 18), about_x(90)), about_x(-88),
         ("j", "j", 0.05, 0.0005)),
        (grid("RAS", (2, 2, 2), (9, 9, 9)), about_x(88), ("k", "k", 0.05, None)),
        # between two axes, or through a warp: no axis is the direction
        (grid("RAS", (2, 2, 2), (9, 9, 9), about_x(30)), STILL, (None,) * 4),
        (RAW_GRID, about_x(20), (None,) * 4),
        (RAW_GRID, None, (None,) * 4),
    ],
)  # fmt: skip
def test_fields_hold_on_the_new_grid_or_are_dropped(new, to_reference, expected):
    found = on_grid(RAW, RAW_GRID, new, to_reference)
    assert tuple(map(found.get, list(RAW)[:4])) == expected
    assert found["EchoTime"] == 0.08
    assert not {"SliceTiming", "SliceEncodingDirection", "MultibandAccelerationFactor"} & {*found}
    if expected[0]:
        in_target = phase_encoding_vector(new.affine, expected[0])
        before = phase_encoding_vector(RAW_GRID.affine, "j-")
        assert np.linalg.inv(to_reference[:3, :3]) @ before @ in_target > 0.9


def test_everything_holds_on_the_same_grid():
    assert on_grid(RAW, RAW_GRID, RAW_GRID, STILL) == RAW


def test_readout_time_without_a_direction_is_dropped_and_odd_values_do_no_harm():
    new = grid("RAS", (2, 2, 2), (9, 9, 9))
    assert on_grid({"TotalReadoutTime": 0.05}, RAW_GRID, new, STILL) == {}
    assert on_grid({"PhaseEncodingDirection": ["j"]}, RAW_GRID, new, STILL) == {}


@pytest.fixture(scope="module")
def series():
    gradients = shelled_scheme({1000.0: 6}, 1)
    phantom = procedural_head(8.0)
    rng = np.random.default_rng(0)
    poses = rigid_matrix(rng.normal(0, 1, (7, 3)), rng.normal(0, 0.03, (7, 3)), np.zeros(3))
    truth = Motion(poses).relative_to(0)
    return acquire(phantom, gradients, truth, Grid.covering(phantom, 8.0)), truth


def test_transforms_lie_in_the_reference_frame_however_they_are_written(series, tmp_path):
    dwi, motion = series
    away = rigid_matrix([90.0, -40.0, 30.0], np.deg2rad([20, -10, 30]), np.zeros(3))
    shape, affine = (18, 20, 22), np.linalg.inv(away) @ dwi.affine @ np.diag([1.2, 0.9, 1, 1])
    corrected = Resampled.of(
        dwi, motion, engine="fast", grid=(shape, affine),
        space=lambda points: points @ away[:3, :3].T + away[:3, 3],
    )  # fmt: skip
    written = [Outputs.in_folder(tmp_path / name, tmp_path / "x_dwi.nii.gz") for name in "ab"]
    wanted = OnDemand(fsl=True, in_frame=False)
    write_outputs(corrected, motion, written[0], original=dwi, on_demand=wanted)
    write_found(dwi, motion, written[1])
    for outputs in written:
        (node,) = from_filename(outputs["x5"])
        np.testing.assert_array_equal(node.domain.size, dwi.shape)
        np.testing.assert_allclose(node.domain.mapping, dwi.affine)
        np.testing.assert_allclose(node.transform, motion.matrices)
    flirt = np.loadtxt(written[0]["fsl_matrices"] / "MAT_0003")
    to_fsl = fsl_coordinates(dwi.shape, dwi.affine)
    np.testing.assert_allclose(np.linalg.inv(to_fsl) @ flirt @ to_fsl @ motion[3], STILL,
                               atol=1e-6)  # fmt: skip


def test_command_writes_the_axes_of_its_output(series, tmp_path):
    dwi, truth = series
    image = write_bids(tmp_path / "bids", "x", replace(dwi, repetition_time=3.0), truth)
    metadata = RAW | {"SliceTiming": [0.1 * k for k in range(dwi.shape[2])]}
    image.with_name("sub-x_dwi.json").write_text(json.dumps(metadata))
    turned = dwi.affine[:, [2, 1, 0, 3]] @ from_matvec(np.diag([1, -1, 1]), [0, 0, 0])
    turned[:3, 3] += dwi.affine[:3, 1] * (dwi.shape[1] - 1)
    x, y, z = dwi.shape
    write_image(tmp_path / "grid.nii.gz", np.zeros((z, y, x), np.uint8), turned)
    call = [str(image), "-o", str(tmp_path / "out"), "--model", "average", "--nprocs", "1",
            "--eddy-current", "none", "--output-space", str(tmp_path / "grid.nii.gz")]  # fmt: skip
    assert correct.main(call) == 0
    outputs = Outputs.in_folder(tmp_path / "out", image)
    sidecar = json.loads(outputs["sidecar"].read_text())
    assert (sidecar["PhaseEncodingDirection"], sidecar["TotalReadoutTime"]) == ("j", 0.05)
    assert "MultibandAccelerationFactor" not in sidecar
    (node,) = from_filename(outputs["x5"])
    np.testing.assert_array_equal(node.domain.size, dwi.shape)
