# SPDX-License-Identifier: Apache-2.0
"""SLURM for real, on this host: ``make test-cluster`` brings it up, runs this, takes it down."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eddymotion.workflows.pydra import DwiHmc
from pages import DOCS, ROOT, blocks
from runs import LABELS, QUICK, contents, start, wait_for, write_two_participants

import eddymotion as em
from eddymotion.cli import participant
from eddymotion.io.itk import read_itk

pytestmark = pytest.mark.cluster

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "slurm_array.sh"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """SLURM must answer: a test that is skipped tells nothing."""
    found = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True)
    assert found.stdout.strip() in ("idle", "mix", "alloc"), f"{found}; run make test-cluster"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    write_two_participants(root)
    return root


@pytest.fixture(scope="module")
def on_one_host(dataset, tmp_path_factory):
    """What a run without SLURM leaves."""
    output = tmp_path_factory.mktemp("one")
    assert participant.main([str(dataset), str(output), "participant", *QUICK]) == 0
    return contents(output)


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "plugin.yml"
    path.write_text('plugin: SLURM\nplugin_args: {sbatch_args: "--time=20"}\n')
    return path


def jobs(*options):
    """Jobs of ours in the queue: number → name."""
    call = ["squeue", "--me", "--noheader", "--format=%A %j", *options]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def accounted(field, *jobids):
    """Return a column of SLURM's accounting, a row a job."""
    call = ["sacct", "-n", "-X", "-P", "-j", ",".join(jobids), "-o", f"JobName%99,{field}"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return dict(line.rsplit("|", 1) for line in done.stdout.splitlines())


def run_record(output):
    (record,) = (output / "logs").glob("*.json")
    return json.loads(record.read_text())


def test_bids_app_on_slurm_is_as_on_one_host(dataset, on_one_host, plugin, tmp_path):
    output, work = tmp_path / "out", tmp_path / "work"
    call = (dataset, output, "--use-plugin", plugin, "-w", work, "--omp-nthreads", "2", "-v")
    run = start(*call)
    wait_for(lambda: len(list(work.glob("run-*/slurm-jobs.txt"))) == 1 or run.poll() is not None)
    (noted,) = work.glob("run-*/slurm-jobs.txt")
    seen = set()
    wait_for(lambda: seen.update(numbers(noted)) or run.poll() is not None, 300)
    assert run.wait() == 0, run.stderr.read()
    assert contents(output) == on_one_host
    assert len(seen) == len(LABELS)  # the pages are written here
    wait_for(lambda: len(accounted("ReqTRES", *seen)) == len(seen))  # accounts lag behind
    asked = accounted("ReqTRES", *seen)
    for name, resources in asked.items():
        assert "cpu=2," in resources, name
        assert "mem=1G" in resources or "mem=1000M" in resources, name
    content = run_record(output)
    assert content["Plugin"] == "SLURM"
    assert all(series["Steps"]["outputs"]["threads"] == 2 for series in content["Series"])
    assert not list(work.glob("run-*"))


def numbers(noted):
    return set(noted.read_text().split()) if noted.exists() else set()


def test_pydra_on_slurm_is_as_the_library(dataset, tmp_path):
    images = [dataset / f"sub-{label}" / "dwi" / f"sub-{label}_dwi.nii.gz" for label in LABELS]
    found = DwiHmc(model="average", n_iterations=1).split(
        dwi_file=[str(image) for image in images]
    )(worker="slurm", sbatch_args="--mem=1G --cpus-per-task=1", cache_root=tmp_path)
    for image, xfm_file, dwi_file in zip(images, found.xfm_file, found.dwi_file, strict=True):
        dwi = em.load(image)
        motion = em.estimate_motion(dwi, estimator=em.Joint("average", max_steps=1))
        np.testing.assert_array_equal(read_itk(xfm_file), motion.matrices)
        corrected = em.resample(dwi, motion)
        expected = em.save(corrected, motion, tmp_path / "library")["dwi"]
        assert Path(dwi_file).read_bytes() == expected.read_bytes()
    scripts = list(tmp_path.glob("slurm_scripts/*/batchscript_*.sh"))
    assert len(scripts) == 3 * len(LABELS), "not all tasks were jobs"


def test_an_array_with_a_job_a_participant(dataset, on_one_host, tmp_path):
    output = tmp_path / "out"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CPUS": "1", "MEM_GB": "2"}
    done = subprocess.run([SCRIPT, dataset, output, *QUICK], env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    array, last = re.search(r"array (\d+), then job (\d+)", done.stdout).groups()
    wait_for(lambda: not {array, last} & set(jobs()), 300)
    text = "".join(path.read_text() for path in (output / "logs" / "slurm").glob("*.txt"))
    assert contents(output) == on_one_host, text
    wait_for(lambda: set(accounted("State", array, last).values()) == {"COMPLETED"}, 20)
    assert all((output / f"sub-{label}.html").is_file() for label in LABELS)


def test_a_lost_job_is_reported_and_the_next_run_goes_on(dataset, on_one_host, plugin, tmp_path):
    output = tmp_path / "out"
    run = start(dataset, output, "--use-plugin", plugin)

    def of_first():
        return [n for n, name in jobs("--states=RUNNING").items() if "sub_01" in name]

    wait_for(of_first)
    (lost,) = of_first()
    subprocess.run(["scancel", lost], check=True)
    message = run.communicate(timeout=300)[1]
    assert run.returncode == 1, message
    text = message.split("1 of 2 series failed")[1]
    assert f"sub-01_dwi.nii.gz: SLURM job {lost} ended as CANCELLED" in text
    (record,) = re.findall(r"Its output: (\S+)", text)
    assert Path(record).is_file()
    assert (output / "sub-02" / "dwi" / "sub-02_desc-preproc_dwi.json").is_file()
    assert not (output / "sub-01" / "dwi" / "sub-01_desc-preproc_dwi.json").exists()
    assert participant.main([str(dataset), str(output), "participant", *QUICK]) == 0
    assert contents(output) == on_one_host


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_do_not_outlive_their_run(how, dataset, on_one_host, plugin, tmp_path):
    """SIGTERM cancels them at once; after SIGKILL the next run does, before it begins."""
    output, work = tmp_path / "out", tmp_path / "work"
    run = start(dataset, output, "--use-plugin", plugin, "-w", work)
    wait_for(lambda: len(jobs()) == 2)
    before = set(jobs())
    run.send_signal(how)
    run.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert run.returncode == 143
        wait_for(lambda: not before & set(jobs()), 40)
    else:
        assert before <= set(jobs())
    options = (str(dataset), str(output), "participant", *QUICK, "-w", str(work))
    assert participant.main(list(options)) == 0
    assert not before & set(jobs())
    assert contents(output) == on_one_host
    assert not list(work.glob("run-*"))


def test_the_page_is_followed_from_top_to_bottom(dataset, on_one_host, tmp_path, monkeypatch):
    """Commands, job files and the snippet of the how-to; its /shared is a folder of this host."""
    page = DOCS / "how-to" / "cluster.md"
    environment = tmp_path / "shared" / "eddymotion" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(SCRIPT.parent)
    Path("bids").symlink_to(dataset)
    ((_, plugin),) = blocks(page, "yaml")
    ((_, job),) = blocks(page, "sh")
    ((_, snippet),) = blocks(page, "python")
    Path("slurm.yml").write_text(plugin)
    Path("participant.sh").write_text(job)
    on_readme = [text for _, text in blocks(ROOT / "README.md", "bash") if "slurm" in text]
    assert on_readme
    for text in [text for _, text in blocks(page, "bash")] + on_readme:
        shutil.rmtree("out", ignore_errors=True)
        script = text.replace("/shared", str(tmp_path / "shared"))
        done = subprocess.run(["bash", "-euc", script], text=True, capture_output=True)
        assert done.returncode == 0, text + done.stderr
        wait_for(lambda: not jobs(), 300)
        names = set(contents(Path("out")))
        assert names >= set(on_one_host), text
    series = [str(path) for path in sorted(dataset.rglob("*_dwi.nii.gz"))]
    snippet = snippet.replace("[...]", repr(series)).replace("/shared", str(tmp_path / "shared"))
    found: dict = {}
    exec(compile(snippet, page.name, "exec"), found)
    assert len(found["outputs"].dwi_file) == len(series)
