# SPDX-License-Identifier: Apache-2.0
"""A series without tables must not borrow those of another run."""

import shutil

import pytest

from eddymotion.bids.series import find_series
from eddymotion.errors import EddymotionError
from eddymotion.io.series import load
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids


def test_run_without_tables_fails_and_names_them(tmp_path):
    gradients = shelled_scheme({1000.0: 6}, 1)
    phantom = procedural_head(8.0)
    dwi = acquire(phantom, gradients, Motion.identity(7), Grid.covering(phantom, 8.0))
    folder = write_bids(tmp_path, "01", dwi, Motion.identity(7)).parent
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_dwi", "_run-1_dwi"))
    shutil.copy(folder / "sub-01_run-1_dwi.nii.gz", folder / "sub-01_run-2_dwi.nii.gz")
    first, second = find_series(tmp_path)["01"]
    assert first.bvec == folder / "sub-01_run-1_dwi.bvec"
    assert second.bvec is None
    with pytest.raises(EddymotionError, match=r"run-2_dwi\.bval: no such file"):
        load(second.dwi, bval=second.bval, bvec=second.bvec)


def test_table_at_the_root_is_inherited(tmp_path):
    gradients = shelled_scheme({1000.0: 6}, 1)
    phantom = procedural_head(8.0)
    dwi = acquire(phantom, gradients, Motion.identity(7), Grid.covering(phantom, 8.0))
    folder = write_bids(tmp_path, "01", dwi, Motion.identity(7)).parent
    for kind in ("bval", "bvec"):
        (folder / f"sub-01_dwi.{kind}").rename(tmp_path / f"dwi.{kind}")
    (series,) = find_series(tmp_path)["01"]
    assert series.bval == tmp_path / "dwi.bval"
