# SPDX-License-Identifier: Apache-2.0
"""b-vectors between files, scanner and head."""

import logging
from functools import cache

import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel as DipyTensor
from scipy.spatial.transform import Rotation

from eddymotion.data.gradients import Gradients, describe_volumes, from_fsl, in_thousands, to_fsl
from eddymotion.errors import EddymotionError
from eddymotion.estimation import Joint, estimate_motion
from eddymotion.images.axes import image_axes
from eddymotion.io.images import write_image
from eddymotion.io.series import load
from eddymotion.io.tables import read_numbers, write_gradient_table
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters
from eddymotion.resampling import resample
from eddymotion.simulation import Grid, acquire, shelled_scheme

OBLIQUE = Rotation.from_euler("xyz", [17, -11, 24], degrees=True).as_matrix()
ORIENTATIONS = {
    "RAS": {"voxel_sizes": 4.0},
    "LAS": {"voxel_sizes": 4.0, "orientation": "LAS"},
    "LPS": {"voxel_sizes": 4.0, "orientation": "LPS"},
    "sagittal": {"voxel_sizes": 4.0, "orientation": "PSL"},
    "oblique": {"voxel_sizes": 4.0, "orientation": "LAS", "rotation": OBLIQUE},
    "anisotropic": {"voxel_sizes": (3.5, 4.0, 4.5), "orientation": "LPS"},
}


OFTEN = ("oblique",)


@pytest.fixture(
    params=[
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in ORIENTATIONS
    ]
)
def orientation(request):
    return request.param


def test_fsl_components_round_trip(head, orientation, scheme):
    affine = Grid.covering(head, **ORIENTATIONS[orientation]).affine
    np.testing.assert_allclose(
        from_fsl(to_fsl(scheme.bvecs, affine), affine), scheme.bvecs, atol=1e-12
    )
    assert not np.allclose(to_fsl(scheme.bvecs, affine), scheme.bvecs)


@pytest.mark.parametrize(
    ("orientation", "along_right", "along_front", "along_up"),
    [
        ("RAS", (-1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("LAS", (-1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("LPS", (1, 0, 0), (0, -1, 0), (0, 0, 1)),
        ("PSL", (0, 0, -1), (1, 0, 0), (0, 1, 0)),
    ],
)
def test_fsl_components_of_the_main_directions(
    head, orientation, along_right, along_front, along_up
):
    affine = Grid.covering(head, (2.0, 3.0, 4.0), orientation).affine
    np.testing.assert_allclose(
        to_fsl(np.eye(3), affine), [along_right, along_front, along_up], atol=1e-12
    )


def test_image_axes_survive_anisotropic_oblique_voxels():
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([0.9, 2.0, 5.0])
    np.testing.assert_allclose(image_axes(affine), OBLIQUE, atol=1e-12)


def test_table_is_normalised_and_special_rows_kept():
    gradients = Gradients(
        [0, 5, 1000, 1000, 1000, 1000, 2000, 2000, 2000, 2000],
        [[0, 0, 0], [1, 0, 0], [0, 0, 2], [0, 0, 0]] + [[0.6, 0, 0.8]] * 6,
    )
    np.testing.assert_array_equal(gradients.b0s, [0, 1])
    np.testing.assert_array_equal(gradients.bvecs[[1, 2]], [[0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(np.flatnonzero(gradients.is_trace), [3])
    np.testing.assert_array_equal(gradients.shell_bvals, [1000, 2000])
    np.testing.assert_allclose(np.linalg.norm(gradients.qvecs[6]), np.sqrt(2))
    with pytest.raises(EddymotionError, match="not finite"):
        Gradients([1000, 1000], [[np.nan, 0, 0], [1, 0, 0]])
    for wrong, said in ((-5, "-5"), (np.inf, "inf")):
        with pytest.raises(EddymotionError, match=f"volume 1 .counted from 0. is {said}, expect"):
            Gradients([0, wrong, 1000], np.eye(3))


def test_tables_that_editors_have_touched_are_read(tmp_path):
    path = tmp_path / "dwi.bval"
    path.write_bytes("\ufeff0\t1000  2000   \r\n\r\n  \r\n".encode())
    np.testing.assert_array_equal(read_numbers(path), [[0, 1000, 2000]])
    path.write_bytes("0,5 1000\n".encode("utf-16"))
    with pytest.raises(EddymotionError, match="not a table of numbers"):
        read_numbers(path)


def principal_directions(series, brain):
    """FA and principal directions in RAS+, by DIPY, from what a user would read."""
    table = gradient_table(series.gradients.bvals, bvecs=series.gradients.bvecs)
    fit = DipyTensor(table).fit(series.signal[brain])
    return fit.fa, fit.evecs[..., 0]


def median_angle(a, b):
    return np.rad2deg(np.median(np.arccos(np.clip(np.abs((a * b).sum(axis=1)), 0, 1))))


@pytest.fixture(scope="module")
def scans(head, tmp_path_factory):
    """The same moving head, written and read in an orientation, then corrected; each once."""
    folder = tmp_path_factory.mktemp("orientations")
    gradients = shelled_scheme({1000: 14}, 1, seed=5)
    steps = np.zeros((len(gradients), 6))
    steps[5:] = [1.5, -2.0, 1.0, *np.deg2rad([2.0, -1.5, 3.0])]
    steps[10:] = [-1.0, 1.0, 2.0, *np.deg2rad([-3.0, 2.0, -4.0])]
    truth = Motion(rigid_matrix(steps[:, :3], steps[:, 3:], np.zeros(3)))
    common = Grid.covering(head, 4.0)

    @cache
    def scan_in(name):
        options = ORIENTATIONS[name]
        scan = acquire(head, gradients, truth, Grid.covering(head, **options), snr=60)
        image = folder / f"{name}_dwi.nii"
        write_image(image, scan.signal, scan.affine)
        write_gradient_table(
            image.with_suffix(".bval"), image.with_suffix(".bvec"), scan.gradients, scan.affine
        )
        dwi = load(image)
        motion = estimate_motion(dwi, estimator=Joint(max_steps=3), n_threads=2)
        corrected = resample(dwi, motion, engine="fast", grid=(common.shape, common.affine))
        return dwi, motion, corrected

    return gradients, truth, scan_in


def test_same_head_has_the_same_ras_bvecs_in_every_orientation(scans, orientation):
    gradients, _, scan_in = scans
    np.testing.assert_allclose(scan_in(orientation)[0].gradients.bvecs, gradients.bvecs, atol=1e-6)


def test_same_head_has_the_same_motion_in_every_orientation(scans, orientation, motion_rmse):
    _, truth, scan_in = scans
    motion = scan_in(orientation)[1]
    assert np.ptp(rigid_parameters(truth.matrices, np.zeros(3))[:, 0]) > 2
    millimetres, degrees = motion_rmse(motion, scan_in("RAS")[1], np.zeros(3))
    assert millimetres < 0.1
    assert degrees < 0.1
    millimetres, degrees = motion_rmse(motion, truth, np.zeros(3))
    assert millimetres < 0.4
    assert degrees < 0.35


def test_same_head_has_the_same_fibres_in_every_orientation(scans, head, orientation):
    gradients, _, scan_in = scans
    common = Grid.covering(head, 4.0)
    rest = acquire(head, gradients, Motion.identity(len(gradients)), common, snr=None)
    fa, directions = principal_directions(rest, rest.mask)
    white = fa > 0.35
    assert white.sum() > 300
    _, recovered = principal_directions(scan_in(orientation)[2], rest.mask)
    _, of_ras = principal_directions(scan_in("RAS")[2], rest.mask)
    assert median_angle(recovered[white], directions[white]) < 5
    assert median_angle(recovered[white], of_ras[white]) < 5


def test_bvecs_turn_with_the_head_and_in_the_right_sense(head, grid, caplog):
    gradients = shelled_scheme({1000: 30}, 2, seed=2)
    angles = np.zeros((len(gradients), 3))
    angles[10:] = np.deg2rad([8, -10, 18])
    angles[22:] = np.deg2rad([-12, 9, -15])
    truth = Motion(rigid_matrix(np.zeros_like(angles), angles, np.zeros(3)))
    rest = acquire(head, gradients, Motion.identity(len(gradients)), grid, snr=None)
    moved = acquire(head, gradients, truth, grid, snr=None)
    corrected = resample(moved, truth, engine="fast")
    fa, directions = principal_directions(rest, rest.mask)
    white = fa > 0.35

    def disagreement(bvecs):
        table = Gradients(gradients.bvals, bvecs)
        signal = corrected.signal[rest.mask]
        fit = DipyTensor(gradient_table(table.bvals, bvecs=table.bvecs)).fit(signal)
        return (
            median_angle(fit.evecs[white][:, :, 0], directions[white]),
            np.median(np.abs(fit.fa[white] - fa[white])),
        )

    right = disagreement(corrected.gradients.bvecs)
    left_alone = disagreement(gradients.bvecs)
    wrong_sense = disagreement(np.einsum("nij,nj->ni", truth.rotations, gradients.bvecs))
    assert right[0] < 3
    assert right[1] < 0.02
    for wrong in (left_alone, wrong_sense):
        assert wrong[0] > 2 * right[0]
        assert wrong[1] > 1.5 * right[1]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("n_bvalues", "n_each", "said", "shelled"),
    [
        (8, 4, "1×b=0, 4×b=1000, 4×b=1300, ", True),
        (8, 3, "1×b=0, 3×b=1000, 3×b=1300, ", False),  # too few directions each
        (9, 4, "1×b=0, 36×b=1000…3400", False),  # too many b-values
        (1, 2, "1×b=0, 2×b=1000", True),
    ],
)
def test_shells_are_few_and_well_filled(n_bvalues, n_each, said, shelled):
    bvals = np.r_[0.0, np.repeat(1000.0 + 300.0 * np.arange(n_bvalues), n_each)]
    vectors = np.random.default_rng(0).normal(size=(len(bvals), 3))
    table = Gradients(bvals, vectors)
    assert table.is_shelled == shelled
    assert describe_volumes(table).startswith(said)


@pytest.mark.parametrize(
    ("bvals", "expected"),
    [
        ([0, 1, 1, 1], False),  # s/mm²: hardly any weighting
        ([0, 1, 1, 1, 1, 1, 1], True),  # so many of one value are a shell
        ([0, 0.7, 2.5], True),  # a fraction of s/mm² is nobody's
        ([0, 0.7, 35], False),
        ([5, 5, 10], False),
        ([0, 0, 0], False),
    ],
)
def test_bvalues_in_thousands_are_told_from_those_of_b0_volumes(bvals, expected):
    assert in_thousands(np.array(bvals, float)) == expected
