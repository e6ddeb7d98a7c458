# SPDX-License-Identifier: Apache-2.0
"""Small simulated series with known truth, made once, and the shared public data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation import estimate_motion
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.series import load
from eddymotion.io.tables import write_gradient_table
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
FIXTURES = {
    "multishell_2slices": ("b1k_b2k_example_slices_24_38.nii.gz", "b1k_b2k"),
    "ds000114_trunc": ("ds000114_sub-01_ses-test_desc-trunc_dwi.nii.gz", None),
}


@pytest.fixture(scope="session")
def public_series():
    """Load a public fixture by name, or skip."""

    def get(name: str) -> DWI:
        folder = SHARED / "fixtures" / name
        image, tables = FIXTURES[name]
        if not (folder / image).is_file():
            pytest.skip(f"shared/data/fixtures/{name} is not here")
        tables = tables or image.removesuffix(".nii.gz")
        return load(folder / image, bval=folder / f"{tables}.bval", bvec=folder / f"{tables}.bvec")

    return get


@pytest.fixture(scope="session")
def head():
    return procedural_head(3.0)


@pytest.fixture(scope="session")
def grid(head):
    return Grid.covering(head, 4.0)


@pytest.fixture(scope="session")
def scheme():
    return shelled_scheme({1000: 24}, 3)


@pytest.fixture(scope="session")
def truth(scheme):
    return simulate_motion("moderate", len(scheme), np.zeros(3), seed=1)


@pytest.fixture(scope="session")
def moving(head, grid, scheme, truth):
    return acquire(head, scheme, truth, grid, snr=20)


@pytest.fixture(scope="session")
def still(head, grid, scheme):
    return acquire(head, scheme, Motion.identity(len(scheme)), grid, snr=20)


@pytest.fixture(scope="session")
def estimated(moving):
    return estimate_motion(moving, n_threads=2)


@pytest.fixture(scope="session")
def two_shells():
    """A coarse two-shell series, enough for all models."""
    coarse = procedural_head(8.0)
    gradients = shelled_scheme({1000: 20, 2000: 20}, 4, seed=3)
    return acquire(
        coarse, gradients, Motion.identity(len(gradients)), Grid.covering(coarse, 8.0), snr=30
    )


@pytest.fixture(scope="session")
def tiny():
    """The smallest series that behaves like one."""
    coarse = procedural_head(8.0)
    gradients = shelled_scheme({1000: 8}, 2)
    return acquire(
        coarse, gradients, Motion.identity(len(gradients)), Grid.covering(coarse, 8.0), snr=30
    )


@pytest.fixture(scope="module")
def series(tiny, tmp_path_factory):
    """The smallest series, on disk."""
    folder = tmp_path_factory.mktemp("series")
    write_image(folder / "dwi.nii.gz", np.round(tiny.signal).astype(np.int16), tiny.affine, 3.0)
    tables = folder / "dwi.bval", folder / "dwi.bvec"
    write_gradient_table(*tables, tiny.gradients, tiny.affine)
    return folder / "dwi.nii.gz"


@pytest.fixture(scope="session")
def bids_errors():
    """What the BIDS validator calls errors in a dataset."""
    program = shutil.which("bids-validator-deno", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("bids-validator-deno is not installed")

    def of(dataset):
        finished = subprocess.run(
            [program, "--json", str(dataset)], capture_output=True, text=True, check=False
        )
        issues = json.loads(finished.stdout)["issues"]["issues"]
        return [issue for issue in issues if issue["severity"] == "error"]

    return of


@pytest.fixture(scope="session")
def b0_pair(head):
    """Scan a b=0 of the resting head on one grid, and of the moved head on another."""

    def scan(matrix, fixed_grid, moving_grid, snr=20.0):
        gradients = Gradients([0, 1000, 1000], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
        poses = Motion.identity(3)
        fixed = acquire(head, gradients, poses, fixed_grid, snr=snr, seed=11)
        poses = poses.updated(np.arange(3), matrix)
        moved = acquire(head, gradients, poses, moving_grid, snr=snr, seed=12)
        return (
            Image(fixed.signal[..., 0], fixed.affine),
            Image(moved.signal[..., 0], moved.affine),
            fixed.mask,
        )

    return scan


@pytest.fixture(scope="session")
def program():
    from browser import find_chromium

    found = find_chromium()
    if found is None:
        pytest.fail("no Chromium on the PATH; install Debian's chromium, or leave -m browser out")
    return found


@pytest.fixture(scope="session")
def motion_rmse():
    """Worst RMSE over the three translations (mm) and the three rotations (degrees)."""

    def rmse(found: Motion, true: Motion, center) -> tuple[float, float]:
        error = rigid_parameters(found.matrices, center) - rigid_parameters(true.matrices, center)
        root = np.sqrt((error**2).mean(axis=0))
        return root[:3].max(), np.rad2deg(root[3:].max())

    return rmse
