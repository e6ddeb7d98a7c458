# SPDX-License-Identifier: Apache-2.0
"""The BIDS-App as a run: side by side, interrupted, resumed, locked, short of room."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from runs import QUICK, contents, start, wait_for, write_two_participants

from eddymotion.cli import participant
from eddymotion.errors import EddymotionError
from eddymotion.io.images import write_image
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.machine import locks
from eddymotion.machine.locks import Holder, locked
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline import series_job
from eddymotion.pipeline.cache import MotionCache
from eddymotion.pipeline.fingerprint import fingerprint_of
from eddymotion.pipeline.limits import Limits, memory_gb, read_plugin_file
from eddymotion.pipeline.settings import Settings
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two participants, very small heads."""
    root = tmp_path_factory.mktemp("bids")
    write_two_participants(root)
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def undisturbed(dataset, work, tmp_path_factory):
    """One series after the other, nothing happens to them."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert correct(dataset, output, "--nprocs", "1", "--write-graph", "-w", str(work)) == 0
    return output


def correct(dataset, output, *options):
    return participant.main([str(dataset), str(output), "participant", *QUICK, *options])


def test_side_by_side_is_as_one_by_one(dataset, undisturbed, tmp_path):
    assert correct(dataset, tmp_path, "--nprocs", "2", "--omp-nthreads", "1") == 0
    expected = contents(undisturbed)
    assert len(expected) > 2 * 12
    assert contents(tmp_path) == expected
    assert not (tmp_path / "work").exists()
    assert [path.name for path in tmp_path.rglob(".*")] == [".bidsignore"]


@pytest.mark.parametrize("nprocs", ["1", "2"])
def test_a_participant_is_finished_before_the_next_but_one_begins(
    nprocs, dataset, undisturbed, tmp_path, monkeypatch
):
    """Each series notes which reports there are when it begins, in whatever process."""
    raw, output, notes = (tmp_path / name for name in ("bids", "out", "notes"))
    labels = ("01", "02", "03", "04")
    for label in labels:
        copy_participant(dataset, raw, label)
    notes.mkdir()

    def copying(series, outputs, *others, **named):
        there = sorted(path.stem for path in output.glob("sub-*.html"))
        (notes / outputs.src).write_text(" ".join(there))
        copy_participant(undisturbed, output, outputs.src.removeprefix("sub-"))

    def counting(folder, label, *others):
        written.append(label)
        return write_report(folder, label, *others)

    written, write_report = [], series_job.write_report
    monkeypatch.setattr(series_job, "write_report", counting)
    monkeypatch.setattr(series_job, "correct_series", copying)
    assert correct(raw, output, "--nprocs", nprocs) == 0
    assert sorted(written) == list(labels), "once each, none again at the end"
    there = {path.name: path.read_text().split() for path in sorted(notes.iterdir())}
    assert list(there) == [f"sub-{label}" for label in labels]
    for number, reports in enumerate(there.values()):
        assert len(reports) >= number + 1 - int(nprocs), there


def copy_participant(of, to, label):
    """Copy sub-01 as another participant."""
    for path in (of / "sub-01").rglob("sub-01*"):
        name = str(path.relative_to(of)).replace("sub-01", f"sub-{label}")
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to / name)


def test_a_run_tells_what_it_did(undisturbed):
    (record,) = (undisturbed / "logs").glob("*.json")
    content = json.loads(record.read_text())
    assert [series["State"] for series in content["Series"]] == ["done"] * 2
    assert all(series["Steps"]["outputs"]["seconds"] > 0 for series in content["Series"])
    assert content["Settings"]["model"] == "average"
    assert {"nipype", "numpy", "eddymotion"} <= set(content["PackageVersions"])
    picture = (undisturbed / "logs" / "graph.svg").read_text()
    assert "correct" in picture


def test_other_outputs_are_made_of_the_motion_that_is_there(
    dataset, undisturbed, work, tmp_path, capsys
):
    options = ("-w", str(work), "--participant-label", "01", "--resampling", "fast")
    assert correct(dataset, tmp_path, *options) == 0
    assert "motion found in an earlier run; reused" in capsys.readouterr().err
    name = "sub-01/dwi/sub-01_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt"
    assert contents(tmp_path)[name] == contents(undisturbed)[name]
    series, settings = SeriesFiles(dataset / "sub-01/dwi/sub-01_dwi.nii.gz"), Settings()
    kept = MotionCache.of(series, settings, work)
    assert MotionCache.of(series, replace(settings, resampling="fast"), work) == kept
    assert MotionCache.of(series, replace(settings, random_seed=7), work) != kept
    one, other = (replace(series, metadata={"EchoTime": time}) for time in (0.08, 0.09))
    assert MotionCache.of(one, settings, work) == MotionCache.of(other, settings, work)
    assert fingerprint_of(one, settings) != fingerprint_of(other, settings)


def test_stop_on_first_crash(dataset, tmp_path, capsys):
    broken = tmp_path / "bids"
    shutil.copytree(dataset, broken)
    (broken / "sub-01" / "dwi" / "sub-01_dwi.bvec").unlink()
    options = ("--stop-on-first-crash", "--nprocs", "1")
    assert correct(broken, tmp_path / "out", *options) == 1
    printed = capsys.readouterr().err.split("series failed")[1]
    assert "sub-01_dwi.bvec" in printed
    assert "sub-02_dwi.nii.gz: not finished, since another" in printed
    assert "not finished, since another" in (tmp_path / "out" / "sub-02.html").read_text()


@pytest.mark.slow  # tests/regression/test_requests_to_end.py is quicker
@pytest.mark.parametrize("nprocs", ["1", "2"])
def test_on_request_it_ends_and_leaves_nothing_half_done(nprocs, dataset, undisturbed, tmp_path):
    run = start(dataset, tmp_path, "--nprocs", nprocs)
    wait_for(lambda: list(tmp_path.glob("work/motion/*")) or run.poll() is not None)
    run.send_signal(signal.SIGTERM)
    message = run.communicate(timeout=30)[1]
    assert run.returncode == 143
    assert message.splitlines()[-1].endswith("what is complete is kept")
    assert [path.name for path in tmp_path.rglob(".*")] == [".bidsignore"]
    assert correct(dataset, tmp_path, "--nprocs", "2") == 0
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.slow
def test_killed_ten_times_it_ends_as_if_nothing_had_happened(dataset, undisturbed, tmp_path):
    """SIGKILL and SIGTERM at random moments; each run goes on from what is there."""
    chance = random.Random(1)
    for round_ in range(10):
        for path in tmp_path.glob("sub-*/dwi/*_desc-preproc_dwi.json"):
            if chance.random() < 0.5:  # or the first rounds would do it all
                path.unlink()
        run = start(dataset, tmp_path, "--nprocs", "2")
        time.sleep(chance.uniform(1.0, 5.0))
        run.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        run.communicate(timeout=60)
        finished = list(tmp_path.glob("sub-*/dwi/*_desc-preproc_dwi.json"))
        assert all(json.loads(path.read_text())["Settings"] for path in finished), round_
    assert correct(dataset, tmp_path, "--nprocs", "2") == 0
    assert contents(tmp_path) == contents(undisturbed)
    assert [path.name for path in tmp_path.rglob(".*")] == [".bidsignore"]
    assert not (tmp_path / "work").exists()


def test_two_runs_on_one_participant(dataset, undisturbed, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    before = contents(output)
    n_logs = len(list((output / "logs").iterdir()))
    with locked([output / ".sub-01.lock"]):
        assert correct(dataset, output, "--participant-label", "01") == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert str(os.getpid()) in message
        assert ".sub-01.lock" in message
        assert len(list((output / "logs").iterdir())) == n_logs
        assert correct(dataset, output, "--participant-label", "02") == 0
    assert contents(output) == before


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_is_refused(dataset, undisturbed, tmp_path):
    runs = [start(dataset, tmp_path, "--nprocs", "1") for _ in range(2)]
    messages = [run.communicate(timeout=300)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], messages
    refused = messages[0 if runs[0].returncode else 1]
    assert "being written by process" in refused.splitlines()[-1]
    assert contents(tmp_path) == contents(undisturbed)


def dead_process():
    finished = subprocess.Popen(["true"])
    finished.wait()
    return finished.pid


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path):
    lock = tmp_path / "a.lock"
    lock.write_text(json.dumps(asdict(replace(Holder.this_process(), pid=dead_process()))))
    with locked([lock]):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_process_whose_number_was_given_away_is_taken_over(tmp_path):
    lock = tmp_path / "a.lock"
    lock.write_text(json.dumps(asdict(replace(Holder.this_process(), started="1"))))
    with locked([lock]):
        assert json.loads(lock.read_text())["started"] == Holder.this_process().started


def test_a_lock_from_another_host_holds_while_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_EVERY_S", 0.02)
    lock = tmp_path / "a.lock"
    other = replace(Holder.this_process(), host="elsewhere", machine="x", pid=dead_process())
    lock.write_text(json.dumps(asdict(other)))
    with pytest.raises(EddymotionError, match="on elsewhere"), locked([lock]):
        pass
    long_ago = time.time() - locks.STALE_AFTER_S - 5
    os.utime(lock, (long_ago, long_ago))
    with locked([lock]):
        assert json.loads(lock.read_text())["host"] == socket.gethostname()


def test_a_lock_is_renewed_and_all_are_taken_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_EVERY_S", 0.02)
    first, second = tmp_path / "1.lock", tmp_path / "2.lock"
    with locked([second]):
        before = second.stat().st_mtime_ns
        wait_for(lambda: second.stat().st_mtime_ns > before, 5)
        with pytest.raises(EddymotionError), locked([first, second]):
            pass
        assert not first.exists()


def test_work_folder_that_cannot_be_written(dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert correct(dataset, tmp_path / "out", "-w", str(tmp_path / "file" / "work")) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--work-dir" in message
    assert correct(dataset, tmp_path / "out", "-w", str(dataset / "sub-01")) == 2
    assert "where nothing is written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_one_message(dataset, tmp_path):
    script = (
        "mount -t tmpfs -o size=300k tmpfs $0 && "
        "exec $1 -c 'import sys; from eddymotion.cli.participant import main; sys.exit(main())' "
        '$2 $0/out participant --participant-label 01 "$3" "$4" "$5" "$6" "$7"'
    )
    call = ["unshare", "-rm", "sh", "-c", script, str(tmp_path), sys.executable, str(dataset)]
    if shutil.which("unshare") is None or subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False,
        capture_output=True,
    ).returncode:  # fmt: skip
        pytest.skip("a small disk cannot be made here (unshare, mount)")
    done = subprocess.run([*call, *QUICK], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("the disk is full") == 1
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("plugin: Linear\n", ("Linear", {})),
        ('{"plugin": "MultiProc", "plugin_args": {"n_procs": 2}}', ("MultiProc", {"n_procs": 2})),
        ("plugin: [", "cannot be read"),
        ("sbatch", "no plugin given"),
        ("plugin: SLURM\nsbatch_args: -p long\n", "unknown entry sbatch_args"),
        ("plugin: SLURM\nplugin_args: 3\n", "not a mapping"),
    ],
)
def test_plugin_files(content, expected, tmp_path):
    path = tmp_path / "plugin.yml"
    path.write_text(content)
    if isinstance(expected, str):
        with pytest.raises(EddymotionError, match=expected):
            read_plugin_file(path)
    else:
        plugin = read_plugin_file(path)
        assert (plugin.name, plugin.arguments) == expected


def test_an_unknown_plugin_is_refused_before_anything_is_written(dataset, tmp_path, capsys):
    (tmp_path / "p.yml").write_text("plugin: Slrm\n")
    assert correct(dataset, tmp_path / "out", "--use-plugin", str(tmp_path / "p.yml")) == 2
    assert "SLURM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_slurm_without_its_commands_is_refused(dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.yml").write_text("plugin: SLURM\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert correct(dataset, tmp_path / "out", "--use-plugin", str(tmp_path / "p.yml")) == 2
    assert "sbatch is not on the PATH" in capsys.readouterr().err


def test_processors_are_shared_among_series_that_fit(dataset):
    images = sorted(dataset.rglob("*_dwi.nii.gz"))
    need = memory_gb(images[0])
    assert Limits(8, 100.0).threads(images) == 4
    assert Limits(8, 1.5 * need).threads(images * 3) == 8
    assert Limits(9, 3.5 * need).threads(images * 3) == 3
    assert Limits(8, 100.0, series_threads=3).threads(images) == 3
    assert Limits(2, 100.0).threads(images * 3) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell")
def test_memory_is_estimated_honestly(tmp_path):
    """The peak lies below the estimate, where kernels are compiled and where they are loaded.

    Not by `getrusage`: what that tells of a child is no less than what its parent once held.
    """
    head = procedural_head(3.0)
    scheme = shelled_scheme({1000.0: 28}, 4)
    dwi = acquire(head, scheme, Motion.identity(32), Grid.covering(head, 2.0), snr=30)
    image = write_bids(tmp_path / "bids", "01", dwi, Motion.identity(32))
    code = (
        "import sys\nfrom pathlib import Path\nfrom eddymotion.cli.correct import main\n"
        "code = main()\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "sys.exit(code)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    for out in ("compiled", "loaded"):
        call = [sys.executable, "-c", code, str(image), "-o", str(tmp_path / out)]
        done = subprocess.run(
            [*call, "--nprocs", "1"], capture_output=True, text=True, check=True, env=environment
        )
        peak = int(done.stdout.splitlines()[-1]) * 1024 / 1e9
        assert 0.4 * memory_gb(image) < peak < memory_gb(image), out


def test_memory_of_what_is_no_image(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"hello")
    with pytest.raises(EddymotionError, match="not a NIfTI image"):
        memory_gb(tmp_path / "x.nii.gz")
    write_image(tmp_path / "small.nii", np.zeros((4, 4, 4), np.int16), np.eye(4))
    assert 0.4 < memory_gb(tmp_path / "small.nii") < 0.6
    assert memory_gb(str(tmp_path / "small.nii")) == memory_gb(tmp_path / "small.nii")
