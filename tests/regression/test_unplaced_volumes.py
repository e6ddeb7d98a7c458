# SPDX-License-Identifier: Apache-2.0
"""A volume that agrees with its prediction nowhere has no pose of its own."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from eddymotion.derivatives.confounds import confounds
from eddymotion.estimation import assess, estimate_motion
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.outliers import describe_beyond_repair, volumes_beyond_repair
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.tsv import table_text
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rms_displacement
from eddymotion.models import get_model
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion

NOISE = 5


@pytest.fixture(scope="module")
def spoilt():
    """A moving series with a volume of noise, and a negated one: the second b=0 of three."""
    head, gradients = procedural_head(5.0), shelled_scheme({1000: 18}, 3)
    truth = simulate_motion("moderate", len(gradients), np.zeros(3), seed=1)
    dwi = acquire(head, gradients, truth, Grid.covering(head, 5.0), snr=20)
    signal = np.array(dwi.signal, np.float32)
    random = np.random.default_rng(0)
    signal[..., NOISE] = np.abs(random.normal(size=dwi.shape)) * signal[..., NOISE].std()
    negated = int(gradients.b0s[1])
    signal[..., negated] *= -1
    return replace(dwi, signal=signal), truth.relative_to(0), sorted([NOISE, negated])


@pytest.mark.slow
def test_volumes_that_fit_nowhere_get_the_pose_of_their_neighbours(spoilt, caplog, tmp_path):
    dwi, truth, bad = spoilt
    with caplog.at_level(logging.WARNING, "eddymotion"):
        found = estimate_motion(dwi)
    assert np.flatnonzero(found.unplaced).tolist() == bad
    assert f"volumes {bad[0]}, {bad[1]} " in caplog.text
    assert np.isnan(found.standard_errors[bad]).all()
    good = np.setdiff1d(np.arange(len(dwi)), bad)
    assert np.isfinite(found.standard_errors[good]).all()
    for volume in bad:
        assert any(np.allclose(found[volume], found[near]) for near in (volume - 1, volume + 1))
    off = rms_displacement(found.matrices, truth.matrices, dwi.center)
    assert off[good].max() < 0.7

    quality = assess(dwi, found, get_model("auto", dwi.gradients))
    assert set(bad) <= set(volumes_beyond_repair(quality.outliers))
    assert "it could not be placed" in describe_beyond_repair(quality.outliers)
    table = table_text(confounds(dwi.gradients, found, dwi.center, quality)).splitlines()
    column = table[0].split("\t").index("trans_x_se")
    assert [row.split("\t")[column] for row in table[1:]].count("n/a") == len(bad)
    write_motion(tmp_path / "xfm.txt", tmp_path / "details.json", found)
    again = read_written_motion(tmp_path / "xfm.txt", tmp_path / "details.json")
    np.testing.assert_array_equal(again.unplaced, found.unplaced)


def test_a_reference_that_could_not_be_placed_leaves_the_errors_of_others_known(spoilt):
    """The first b=0 is the frame of all; it lies where its neighbour does."""
    dwi, truth, _ = spoilt
    n = len(dwi)
    unplaced = np.arange(n) == dwi.reference
    covariances = np.tile(np.diag([0.02] * 3 + [4e-4] * 3) ** 2, (n, 1, 1))
    found = unite_frames(dwi, Estimate(truth, covariances, unplaced=unplaced), align_shells=False)
    np.testing.assert_allclose(found[dwi.reference], np.eye(4), atol=1e-9)
    assert np.isnan(found.standard_errors[dwi.reference]).all()
    assert np.isfinite(found.standard_errors[~unplaced]).all()


def test_a_sound_series_has_none(moving, estimated):
    assert estimated.unplaced is None
    judged = assess(moving, estimated, get_model("auto", moving.gradients))
    assert not len(volumes_beyond_repair(judged.outliers))


def test_the_mask_of_unplaced_volumes_fits_the_poses():
    with pytest.raises(ValueError, match=r"unplaced of shape \(2,\), expected \(3\)"):
        replace(Motion.identity(3), unplaced=np.zeros(2, bool))
