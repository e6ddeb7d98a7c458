# SPDX-License-Identifier: Apache-2.0
"""A run that sleeps keeps its lock; one that lost it writes nothing more."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest
from runs import QUICK, wait_for, write_two_participants

from eddymotion.cli import correct, participant
from eddymotion.errors import EddymotionError, LockLostError
from eddymotion.io.writing import replacing, write_text
from eddymotion.machine import locks, processes
from eddymotion.machine.locks import Holder, held, locked
from eddymotion.machine.processes import Process
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline import correct as steps

HOLD = (
    "import sys; from pathlib import Path; from eddymotion.machine.locks import locked\n"
    "with locked([Path(sys.argv[1])]): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    write_two_participants(root)
    return root


def make_old(path):
    long_ago = time.time() - locks.STALE_AFTER_S - 3600
    os.utime(path, (long_ago, long_ago))


def somebody(**changes):
    return replace(Holder.this_process(), **changes)


def put(lock, holder):
    lock.write_text(json.dumps(asdict(holder)))


def test_a_stopped_process_keeps_its_lock_and_a_killed_one_does_not(tmp_path):
    lock = tmp_path / ".a.lock"
    call = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGSTOP)
        make_old(lock)
        with pytest.raises(EddymotionError, match=f"process {process.pid} on"), locked([lock]):
            pass
        process.kill()
        wait_for(lambda: not Process(process.pid, "").is_alive, 5)  # a zombie until it is asked
        with locked([lock]):
            assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_neither_a_new_name_of_the_host_nor_a_hidden_process_costs_a_lock(tmp_path, monkeypatch):
    lock = tmp_path / ".a.lock"
    put(lock, somebody(host="laptop-at-home"))
    make_old(lock)
    with pytest.raises(EddymotionError, match="laptop-at-home"), locked([lock]):
        pass
    monkeypatch.setattr(processes, "_state_and_start", lambda pid: ("", ""))  # hidepid
    with pytest.raises(EddymotionError, match="laptop-at-home"), locked([lock]):
        pass


def test_a_lock_from_elsewhere_that_is_renewed_while_we_watch_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_EVERY_S", 0.2)
    lock = tmp_path / ".a.lock"
    put(lock, somebody(host="elsewhere", machine="x"))
    make_old(lock)
    renewal = threading.Timer(0.1, os.utime, [lock])
    renewal.start()
    with pytest.raises(EddymotionError, match="on elsewhere"), locked([lock]):
        pass
    renewal.join()
    make_old(lock)
    with locked([lock]):
        pass


@pytest.mark.parametrize("content", ["", "[" * 50_000, "[1]", None])
def test_a_lock_that_says_nothing_holds_as_long_as_it_is_young(content, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_EVERY_S", 0.02)
    lock = tmp_path / ".a.lock"
    lock.write_text(json.dumps(asdict(somebody(pid="x"))) if content is None else content)
    with pytest.raises(EddymotionError, match="another run"), locked([lock]):
        pass
    make_old(lock)
    with locked([lock]):
        pass


@pytest.mark.parametrize("other", [{"pid": 1, "host": "elsewhere"}, None])
def test_who_lost_a_lock_writes_nothing_more(other, tmp_path):
    lock = tmp_path / ".a.lock"
    (tmp_path / "a_one.txt").write_text("as it was")

    def write_and_lose():
        with replacing(tmp_path / "a_one.txt") as temporary:
            temporary.write_text("half")
            lock.unlink() if other is None else put(lock, somebody(**other))

    with locked([lock]) as taken:
        with pytest.raises(LockLostError, match=r"a: this run has lost its lock.*Run again"):
            write_and_lose()
        with pytest.raises(LockLostError):
            write_text(tmp_path / "figures" / "a_two.txt", "")
        write_text(tmp_path / "ab.txt", "not guarded")
    write_text(tmp_path / "a_three.txt", "no longer under a lock")
    with held(taken), pytest.raises(LockLostError):  # a worker's view
        write_text(tmp_path / "a_four.txt", "")
    assert (tmp_path / "a_one.txt").read_text() == "as it was"
    left = {".a.lock"} if other else set()
    assert {p.name for p in tmp_path.iterdir()} == {"a_one.txt", "a_three.txt", "ab.txt", *left}


def test_correct_locks_its_outputs_and_stops_when_it_loses_them(
    dataset, tmp_path, monkeypatch, capsys
):
    lock, image = tmp_path / ".sub-01.lock", dataset / "sub-01/dwi/sub-01_dwi.nii.gz"
    call = [str(image), "-o", str(tmp_path), "--nprocs", "1", *QUICK[:-1]]
    put(lock, somebody())
    make_old(lock)
    assert correct.main(call) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"process {os.getpid()}" in message
    lock.unlink()

    def find_motion(dwi, *others):
        put(lock, somebody(host="elsewhere", machine="x"))
        return Motion.identity(len(dwi))

    monkeypatch.setattr(steps, "find_motion", find_motion)
    assert correct.main(call) == 1
    assert capsys.readouterr().err.count("lost its lock") == 1
    assert {p.name for p in tmp_path.iterdir()} == {".sub-01.lock", "logs"}
    assert json.loads(lock.read_text())["host"] == "elsewhere"


def test_a_participant_that_is_lost_fails_and_the_others_go_on(
    dataset, tmp_path, monkeypatch, capsys
):
    written = []

    def correct_some(series, outputs, *others, **named):
        if outputs.src == "sub-01":
            put(tmp_path / ".sub-01.lock", somebody(host="elsewhere", machine="x"))
        write_text(outputs["dwi"], "")
        written.append(outputs.src)

    monkeypatch.setattr("eddymotion.pipeline.series_job.correct_series", correct_some)
    options = ("--nprocs", "1", *QUICK)
    assert participant.main([str(dataset), str(tmp_path), "participant", *options]) == 1
    printed = capsys.readouterr().err
    assert printed.count("lost its lock") == 1
    assert "1 of 2 series failed" in printed
    assert written == ["sub-02"]
    assert not (tmp_path / "sub-01").exists()
    assert not (tmp_path / "sub-01.html").exists()


def test_a_folder_in_place_of_a_lock_is_reported(tmp_path):
    path = tmp_path / ".sub-01.lock"
    path.mkdir()
    with (
        pytest.raises(EddymotionError, match="a folder with the name of the lock file; remove"),
        locked([path]),
    ):
        pass
