# SPDX-License-Identifier: Apache-2.0
"""Finished outputs are reused only as they were written; what is found is flushed and reported."""

import json
import os
import shutil

import pytest
from runs import QUICK, contents, write_two_participants

from eddymotion.cli import correct
from eddymotion.derivatives import Outputs
from eddymotion.io import writing
from eddymotion.io.writing import write_text
from eddymotion.pipeline import correct as steps
from eddymotion.pipeline.cache import finished_summary
from eddymotion.reports.series import SeriesReport


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    write_two_participants(root)
    return root / "sub-01/dwi/sub-01_dwi.nii.gz"


def run(image, folder, *options):
    return correct.main([str(image), "-o", str(folder), "--nprocs", "1", *QUICK[:-1], *options])


@pytest.fixture(scope="module")
def finished(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert run(image, folder) == 0
    return folder


@pytest.fixture
def outputs(finished, image, tmp_path):
    shutil.copytree(finished, tmp_path / "out")  # with the times
    return Outputs.in_folder(tmp_path / "out", image)


def print_of(outputs):
    return json.loads(outputs["sidecar"].read_text())["Fingerprint"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def empty(path):
    path.write_bytes(b"")


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def alter_unseen(path):
    """As a bad disk does: the time of modification stays."""
    before = path.stat()
    alter(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename_a_field(path):
    path.write_text(path.read_text().replace("Sources", "Origin"))


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("dwi", cut, "bytes, "),
        ("dwi", empty, "0 bytes"),
        ("dwi", alter, "its content was changed"),
        ("bvec", alter_unseen, "its content was changed"),
        ("mask", make_folder, "a folder"),
        ("xfm", lambda path: path.unlink(), "missing"),
        ("report_data", cut, "bytes, "),
        ("report_steps", empty, "cannot be read"),
        ("sidecar", cut, "its content was changed"),
        ("sidecar", rename_a_field, "its content was changed"),
    ],
)
def test_what_is_not_as_it_was_written_is_not_reused(kind, change, text, outputs, caplog):
    fingerprint = print_of(outputs)
    assert finished_summary(outputs, fingerprint) is not None
    change(outputs[kind])
    assert finished_summary(outputs, fingerprint, name="a series") is None
    (line,) = caplog.messages
    assert outputs[kind].name in line
    assert text in line
    assert "recomputed" in line


def test_a_touched_image_is_read_and_still_the_same(outputs):
    os.utime(outputs["dwi"])
    assert finished_summary(outputs, print_of(outputs)) is not None


def test_damaged_outputs_are_made_again_of_the_same_motion(
    outputs, finished, image, monkeypatch, capsys
):
    cut(outputs["dwi"])
    alter(outputs["bvec"])
    monkeypatch.setattr(steps, "find_motion", None)  # not to be found again
    assert run(image, outputs.folder) == 0
    printed = capsys.readouterr().err
    assert (
        "sub-01_desc-preproc_dwi.bvec (its content was changed); the outputs are recomputed"
        in printed
    )
    assert "motion found in an earlier run; reused" in printed
    assert contents(outputs.folder) == contents(finished)


def test_more_outputs_need_no_new_estimate_unless_the_motion_was_changed(
    outputs, image, monkeypatch, capsys
):
    def found_again(*given):
        raise AssertionError("estimated again")

    monkeypatch.setattr(steps, "find_motion", found_again)
    monkeypatch.setattr(steps, "draw_series", lambda *given, **named: None)
    assert run(image, outputs.folder, "--fsl-outputs") == 0
    assert outputs["dwi"].with_name("sub-01_desc-preproc_dwi.eddy_parameters").is_file()
    alter(outputs["xfm"])
    assert run(image, outputs.folder, "--fsl-outputs") == 1
    assert "estimated again" in capsys.readouterr().err


def test_a_folder_in_place_of_an_output_is_reported_before_the_work(outputs, image, capsys):
    make_folder(outputs["mask"])
    before = contents(outputs.folder)
    assert run(image, outputs.folder) == 2
    assert "is a folder" in capsys.readouterr().err.splitlines()[-1]
    assert contents(outputs.folder) == before


def test_a_page_that_calls_a_series_failed_is_no_success(outputs, image, monkeypatch, capsys):
    def fail(outputs):
        raise RuntimeError("what no table may hold")

    monkeypatch.setattr(SeriesReport, "load", fail)
    assert run(image, outputs.folder) == 1
    assert "1 series failed" in (outputs.folder / "sub-01.html").read_text()
    assert "what no table may hold" in capsys.readouterr().err


def test_files_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(
        writing.os, "fsync", lambda n: (fsync(n), done.append(os.readlink(f"/proc/self/fd/{n}")))
    )
    monkeypatch.setattr(writing.os, "replace", lambda a, b: (rename(a, b), done.append("renamed")))
    write_text(tmp_path / "a.txt", "content")
    temporary, renamed, folder = done
    assert temporary.startswith(str(tmp_path / ".eddymotion-"))
    assert (renamed, folder) == ("renamed", str(tmp_path))
