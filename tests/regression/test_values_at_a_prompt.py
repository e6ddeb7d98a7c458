# SPDX-License-Identifier: Apache-2.0
"""What a user sees and types in Python: short representations, paths given for values."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eddymotion as em
from eddymotion.evaluation import Landmarks, compare_motion, landmark_errors
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.registration import Warp
from eddymotion.registration import Registration
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme


@pytest.fixture(scope="module")
def dwi():
    phantom = procedural_head(10.0)
    gradients = shelled_scheme({1000.0: 6}, 1)
    return acquire(phantom, gradients, em.Motion.identity(7), Grid.covering(phantom, 10.0))


def test_representations_are_one_short_line(dwi):
    motion = em.Motion.identity(7)
    eddy = EddyCurrents.none(7, "quadratic", np.array([0.0, 1, 0]), np.zeros(3))
    whole = em.Motion(motion.matrices, np.zeros((7, 6)), eddy_currents=eddy)
    points = Landmarks(np.zeros((50, 3)), tuple(map(str, range(50))))
    field = np.zeros((9, 9, 9, 3), np.float32)
    values = {
        "Image": em.Image(np.zeros((10, 11, 12), np.float32), np.diag([2.0, 2.0, 2.5, 1.0])),
        "DWI": dwi,
        "Motion": whole,
        "Gradients": dwi.gradients,
        "EddyCurrents": eddy,
        "Registration": Registration(np.eye(4), True, "", warp=Warp(field, field, np.eye(4))),
        "Landmarks": points,
        "LandmarkErrors": landmark_errors(points, points, np.eye(4)),
        "MotionComparison": compare_motion(motion, motion),
        "Spline": dwi.volume(0).spline,
        "Quality": em.assess(dwi, motion, "average"),
    }
    for name, value in values.items():
        assert repr(value).startswith(name)
        assert "\n" not in repr(value)
        assert len(repr(value)) < 500, repr(value)
    assert repr(values["Image"]) == "Image(10×11×12, 2×2×2.5 mm, float32)"
    assert repr(whole) == "Motion(7 volumes, with standard errors, quadratic eddy-current fields)"
    assert repr(dwi.gradients) == "Gradients(1×b=0, 6×b=1000)"
    assert repr(replace(dwi.gradients, bvals=np.arange(0, 7000.0, 1000)))


def test_many_b_values_are_a_range():
    bvals = np.arange(0, 6000.0, 150)
    assert repr(em.Gradients(bvals, np.ones((40, 3)))) == "Gradients(1×b=0, 39×b=150…5850)"


@pytest.mark.parametrize("path", ["sub-01_dwi.nii.gz", Path("sub-01_dwi.nii.gz")])
def test_a_path_given_for_a_series_says_to_load_it(path, dwi, tmp_path):
    motion = em.Motion.identity(7)
    calls = {
        "estimate_motion": lambda: em.estimate_motion(path),
        "resample": lambda: em.resample(path, motion),
        "assess": lambda: em.assess(path, motion),
        "save": lambda: em.save(path, motion, tmp_path / "out"),
    }
    for who, call in calls.items():
        with pytest.raises(em.EddymotionError) as caught:
            call()
        assert str(caught.value) == (
            f"{who}: got a path, expected a DWI; load it first: "
            "eddymotion.load('sub-01_dwi.nii.gz')"
        )


def test_a_path_given_for_a_motion_says_to_read_it(dwi, tmp_path):
    for call in (
        lambda: em.resample(dwi, "xfm.txt"),
        lambda: em.assess(dwi, "xfm.txt"),
        lambda: em.save(dwi, "xfm.txt", tmp_path),
    ):
        with pytest.raises(em.EddymotionError, match=r"evaluation\.read_motion\('xfm\.txt'\)"):
            call()
    with pytest.raises(em.EddymotionError, match="got a ndarray, expected a DWI; load it first"):
        em.estimate_motion(dwi.signal)


def test_module_is_the_command():
    answer = subprocess.run(
        [sys.executable, "-m", "eddymotion", "--version"], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (0, f"eddymotion {em.__version__}\n")
    wrong = subprocess.run([sys.executable, "-m", "eddymotion"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("eddymotion: error: write: eddymotion BIDS_DIR OUTPUT_DIR")
