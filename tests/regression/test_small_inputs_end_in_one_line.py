# SPDX-License-Identifier: Apache-2.0
"""Names and disks that cannot be written to: one line, and nothing half-written."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest

from eddymotion import simulation
from eddymotion.cli import correct, participant, register, simulate
from eddymotion.io import writing
from eddymotion.io.writing import together, write_json, write_text
from eddymotion.reports.participant import write_report
from eddymotion.simulation import Recipe
from eddymotion.simulation import simulate as simulate_series


@pytest.fixture(scope="module")
def made():
    """A simulated series."""
    recipe = Recipe(scheme="single", voxel_size=(16.0, 16.0, 16.0), motion="none")
    return simulate_series(recipe)


@pytest.fixture
def pair(tmp_path):
    """Two images that differ by a voxel."""
    rng = np.random.default_rng(0)
    data = np.zeros((16, 16, 16), np.float32)
    data[3:13, 4:12, 3:13] = rng.uniform(50, 100, (10, 8, 10))
    paths = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    for path, image in zip(paths, (data, np.roll(data, 1, axis=0)), strict=True):
        nib.Nifti1Image(image, np.diag([4.0, 4, 4, 1])).to_filename(path)
    return [str(path) for path in paths]


def one_line(capsys, expected):
    lines = capsys.readouterr().err.strip().splitlines()
    assert expected in lines[-1], lines
    assert not any("Traceback" in line for line in lines)


def fill_disk_after(monkeypatch, n_files):
    """Let the disk be full when so many files have been flushed."""
    left = iter(range(n_files))

    def fsync(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing.os, "fsync", fsync)


@pytest.mark.parametrize("ending", [".x5", "_resampled.nii.gz", "_overlay.png", ".json"])
def test_a_folder_with_the_name_of_an_output_of_a_pair(ending, pair, tmp_path, capsys):
    (tmp_path / f"out{ending}").mkdir()
    before = sorted(tmp_path.iterdir())
    assert register.main([*pair, "-o", str(tmp_path / "out"), "--nprocs", "1"]) == 2
    one_line(capsys, "is a folder")
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing_of_a_pair_and_all_of_the_last_one(
    pair, tmp_path, monkeypatch, capsys
):
    call = [*pair, "-o", str(tmp_path / "out"), "--nprocs", "1"]
    with monkeypatch.context() as full:
        fill_disk_after(full, 7)
        assert register.main(call) == 1
    one_line(capsys, "the disk is full")
    assert {path.name for path in tmp_path.iterdir()} == {"fixed.nii.gz", "moving.nii.gz"}


@pytest.mark.slow
def test_a_full_disk_leaves_the_simulated_series_that_was_there(
    made, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(simulation, "simulate", lambda *given, **named: made)
    call = [str(tmp_path / "sim")]
    assert simulate.main(call) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as full:
        fill_disk_after(full, 8)
        assert simulate.main([*call, "--overwrite"]) == 1
    one_line(capsys, "the disk is full")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    stale = tmp_path / "sim" / "truth" / "sub-01_eddy.tsv"
    stale.write_text("of another series")
    assert simulate.main([*call, "--overwrite"]) == 0
    assert not stale.exists()
    assert "motion none" in (tmp_path / "sim" / "README").read_text()


@pytest.mark.slow
def test_a_folder_with_the_name_of_a_simulated_file(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulation, "simulate", lambda *given, **named: made)
    (tmp_path / "truth" / "sub-01_xfm.txt").mkdir(parents=True)
    assert simulate.main([str(tmp_path)]) == 2
    one_line(capsys, "is a folder")
    assert not (tmp_path / "sub-01").exists()


LONG = "a" * 300


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (correct, [LONG]),
        (correct, ["fixed.nii.gz", "--bval", LONG, "--bvec", "moving.nii.gz"]),
        (correct, ["fixed.nii.gz", "--mask", LONG]),
        (correct, ["fixed.nii.gz", "-o", LONG]),
        (register, ["fixed.nii.gz", "moving.nii.gz", "-o", LONG]),
        (register, ["fixed.nii.gz", LONG, "-o", "out"]),
        (simulate, [LONG]),
        (simulate, ["out", "--motion", LONG]),
        (participant, [LONG, "out", "participant"]),
        (participant, [".", "out", "participant", "--config-file", LONG]),
    ],
)
def test_names_that_are_too_long(command, given, pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = command.main(given)
    except SystemExit as ended:  # the parser's own
        code = ended.code
    assert code == 2
    one_line(capsys, LONG[:30])  # a long value is shortened


def test_an_output_name_that_would_be_too_long_is_reported_before_the_work(tmp_path, capsys):
    image = tmp_path / f"{'a' * 220}_dwi.nii.gz"
    nib.Nifti1Image(np.zeros((4, 4, 4, 8), np.float32), np.eye(4)).to_filename(image)
    assert correct.main([str(image), "-o", str(tmp_path / "out"), "--nprocs", "1"]) == 2
    one_line(capsys, "give a shorter one")


def test_names_that_are_no_utf8_can_be_reported(tmp_path):
    name = os.fsdecode(b"sub-\xff")
    write_json(tmp_path / f"{name}.json", {"Sources": [name]})
    write_text(tmp_path / f"{name}.tsv", name)
    assert (tmp_path / f"{name}.json").read_text(encoding="utf-8").count(r"\udcff") == 1
    write_report(tmp_path, name, {name: "no b-values"})
    page = tmp_path / f"{name}.html"
    assert r"sub-\udcff" in page.read_text(encoding="utf-8")


def test_files_that_belong_together_come_together(tmp_path):
    (tmp_path / "one.txt").write_text("old")

    def write_and_fail():
        with together():
            write_text(tmp_path / "one.txt", "new")
            write_text(tmp_path / "two.txt", "new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert [path.name for path in tmp_path.iterdir()] == ["one.txt"]
    assert (tmp_path / "one.txt").read_text() == "old"
