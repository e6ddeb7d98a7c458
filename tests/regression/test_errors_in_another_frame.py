# SPDX-License-Identifier: Apache-2.0
"""Standard errors belong to a frame: with another reference they are others."""

import numpy as np
import pytest

from eddymotion.cli import evaluate
from eddymotion.evaluation.motion import compare_motion, coverage_percent
from eddymotion.io.images import write_image
from eddymotion.io.tsv import table_text
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import PARAMETERS, rigid_matrix

CENTER = np.array([12.0, -25.0, 40.0])
N_VOLUMES = 40


def simulated(seed, size=1.0):
    """Estimated and true motion, with errors of the sizes that are reported; volume 0 is known."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, size, (N_VOLUMES, 6)) * np.repeat([3.0, 0.06], 3)
    errors = rng.uniform(0.3, 1.5, (N_VOLUMES, 6)) * np.repeat([0.1, 0.002], 3)
    true[0] = errors[0] = 0.0
    found = true + rng.normal(0, 1, true.shape) * errors
    poses = [rigid_matrix(p[:, :3], p[:, 3:], CENTER) for p in (found, true)]
    return Motion(poses[0], errors, frame_error=0.05), Motion(poses[1])


@pytest.mark.parametrize(("volume", "size"), [(0, 1.0), (7, 1.0), (23, 4.0)])
def test_intervals_hold_the_truth_in_95_percent(volume, size):
    shares = []
    for seed in range(40):
        found, true = (m.relative_to(volume, CENTER) for m in simulated(seed, size))
        shares.append(coverage_percent(found, true, CENTER, np.arange(N_VOLUMES)))
    # the error of the new reference is shared by all volumes of a run: 40 · 6 of them are drawn
    assert np.mean(shares) == pytest.approx(95.0, abs=1.5)


def test_new_reference_is_known_the_former_one_is_not():
    found, _ = simulated(0)
    moved = found.relative_to(7, CENTER)
    assert (moved.standard_errors[7] == 0).all()
    np.testing.assert_allclose(moved.standard_errors[0], found.standard_errors[7], rtol=0.3)
    assert moved.frame_error == found.frame_error
    same = found.relative_to(0, CENTER)
    np.testing.assert_allclose(same.standard_errors, found.standard_errors, rtol=1e-6)
    assert Motion(found.matrices).relative_to(7).standard_errors is None


def test_unknown_errors_stay_unknown():
    found, _ = simulated(0)
    errors = found.standard_errors.copy()
    errors[5] = np.nan
    moved = Motion(found.matrices, errors)
    assert np.isnan(moved.relative_to(7).standard_errors).all(axis=1).tolist() == [
        volume == 5 for volume in range(N_VOLUMES)
    ]
    others = np.delete(moved.relative_to(5).standard_errors, 5, axis=0)
    assert np.isnan(others).all()


def test_errors_of_replaced_poses_and_of_a_freed_frame_are_dropped():
    found, true = simulated(1)
    changed = found.updated(np.array([3]), np.eye(4))
    assert np.isnan(changed.standard_errors[3]).all()
    assert np.isfinite(np.delete(changed.standard_errors, 3, axis=0)).all()
    free = compare_motion(found, true, center=CENTER).deviations["estimated", "free"]
    assert free.motion.standard_errors is None


def test_evaluate_relative_to_counts_with_them(tmp_path, capsys):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = CENTER - 9.0
    write_image(tmp_path / "dwi.nii.gz", np.ones((10, 10, 10), np.float32), affine)
    covered = []
    for seed in range(8):
        found, true = simulated(seed)
        for name, motion in (("found", found), ("true", true)):
            write_table(tmp_path / f"{name}.tsv", motion)
        call = ["motion", str(tmp_path / "found.tsv"), str(tmp_path / "true.tsv"),
                "--reference", str(tmp_path / "dwi.nii.gz"), "--relative-to", "7"]  # fmt: skip
        assert evaluate.main(call) == 0
        printed = capsys.readouterr().out.rpartition("95 % intervals that hold the truth: ")[2]
        covered.append(float(printed.split()[0]))
    assert np.mean(covered) > 91


def write_table(path, motion):
    from eddymotion.mapping.rigid import rigid_parameters

    columns = dict(zip(PARAMETERS, rigid_parameters(motion.matrices, CENTER).T, strict=True))
    if motion.standard_errors is not None:
        names = [f"{name}_se" for name in PARAMETERS]
        columns |= dict(zip(names, motion.standard_errors.T, strict=True))
    path.write_text(table_text(columns))
