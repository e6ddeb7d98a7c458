# SPDX-License-Identifier: Apache-2.0
"""A job that SLURM ended is recorded for its series, as the reason why it failed."""

import os
from pathlib import Path

import pytest
from eddymotion.workflows import execution
from eddymotion.workflows.nipype import init_run_wf

from eddymotion.derivatives import Outputs
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.pipeline.limits import Plugin
from eddymotion.pipeline.series_job import Job
from eddymotion.pipeline.settings import Settings

PROGRAMS = {
    "sbatch": "echo Submitted batch job 17",  # and it is lost
    "squeue": "",
    "scancel": "",
    "scontrol": "echo JobId=17 JobState=OUT_OF_MEMORY Reason=None",
}


@pytest.fixture
def slurm_that_loses_jobs(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(execution, "JOB_FINISHED_TIMEOUT_S", 0)


def test_the_series_tells_why(slurm_that_loses_jobs, tmp_path):
    series = SeriesFiles(Path("sub-01_dwi.nii.gz"))
    outputs = Outputs.in_folder(tmp_path / "out", series.dwi)
    job = Job(series, outputs, Settings(), tmp_path / "work", tmp_path / "record.json")
    workflow = init_run_wf({"01": [job]}, {"01": [1.0]})
    with pytest.raises(RuntimeError):
        execution.run_workflow(workflow, Plugin("SLURM", {}), tmp_path / "run")
    assert job.failure is not None
    assert job.failure.startswith(
        "SLURM job 17 ended as OUT_OF_MEMORY before it was done; give it"
    )
    assert "--mem in sbatch_args" in job.failure
