# SPDX-License-Identifier: Apache-2.0
"""Without /dev/shm nothing runs side by side, and all is done; BLAS keeps to its one thread."""

import errno
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from eddymotion.workflows.bids_app import Run, _resources
from threadpoolctl import threadpool_info, threadpool_limits

from eddymotion.io.sidecars import SeriesFiles
from eddymotion.machine.children import why_alone
from eddymotion.machine.parallel import parallel_iterate
from eddymotion.models.dipy import DipyModel, find_model
from eddymotion.pipeline.limits import Limits, Plugin
from eddymotion.pipeline.settings import Settings


@pytest.fixture
def without(monkeypatch):
    """As on a host that has no place for semaphores."""

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    context = type(multiprocessing.get_context())
    monkeypatch.setattr(context, "Lock", refuse)


def test_what_is_missing_is_said(without):
    assert why_alone() == (
        "no semaphore can be created (Read-only file system); check that /dev/shm exists, is "
        "writable and not full"
    )


@pytest.mark.parametrize("asked", [None, Plugin("MultiProc", {"n_procs": 2})])
def test_series_are_run_one_after_the_other(asked, without, tmp_path, caplog):
    run = Run(tmp_path, tmp_path / "work", Settings(), Limits(2, 8.0), asked)
    series = [SeriesFiles(Path(f"sub-{label}_dwi.nii.gz")) for label in ("01", "02")]
    with caplog.at_level(logging.WARNING):
        plugin, threads = _resources({"01": series[:1], "02": series[1:]}, run)
    assert (plugin, threads) == (Plugin("Linear"), 2)
    assert "/dev/shm" in caplog.text


def test_dipy_models_are_fitted_in_one_process(without, two_shells, caplog):
    voxels = two_shells.signal[two_shells.mask][:2]
    one, two = (
        DipyModel(find_model("TensorModel"), n_procs=n).leave_one_out(voxels, two_shells.gradients)
        for n in (1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert "/dev/shm" in caplog.text


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_keeps_to_one_thread_until_the_last_is_done():
    with threadpool_limits(2, user_api="blas"):
        first, second = parallel_iterate(abs, [1, 2]), parallel_iterate(abs, [3, 4])
        assert [next(first), next(second)] == [1, 3]
        assert list(first) == [2]
        assert blas_threads() == {1}
        assert list(second) == [4]
        assert blas_threads() == {2}
