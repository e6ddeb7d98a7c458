# SPDX-License-Identifier: Apache-2.0
"""One damaged series does not stop the pages of the others, whatever is in its files."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from report_cases import copy_series, write_series

from eddymotion.cli import participant
from eddymotion.derivatives.finished import recorded
from eddymotion.mapping.motion import Motion
from eddymotion.reports import data
from eddymotion.reports.data import ReportData
from eddymotion.reports.group import gather


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("finished")
    return write_series(folder, "01", tiny, Motion.identity(len(tiny)))


def npy(header, data=b""):
    """An array file with whatever header."""
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def with_member(name, content):
    """Damage one array of an archive."""

    def change(path):
        with zipfile.ZipFile(path) as old:
            members = {entry: old.read(entry) for entry in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for entry, data in (members | {name: content}).items():
                new.writestr(entry, data)

    return change


def bomb(path):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("z.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1250000,)}\n"))
        stream.write(bytes(10**7))


def array(value):
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


def make_folder(path):
    path.unlink()
    path.mkdir()


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,)}"
DAMAGES = {
    "bomb": ("report_data", bomb),
    "cut": ("report_data", lambda path: path.write_bytes(path.read_bytes()[:-200])),
    "token": ("report_data", with_member("z.npy", npy("{'descr': ("))),
    "huge": ("report_data", with_member("z.npy", npy(HUGE))),
    "long header": ("report_data", with_member("z.npy", npy("{" + " " * 60000))),
    "pickle": ("report_data", with_member("z.npy", array(np.array([{}], object)))),
    "pickled": ("report_data", lambda path: path.write_bytes(pickle.dumps({"z": 1}))),
    "words": ("report_data", with_member("bvals.npy", array(np.array(["a", "b"])))),
    "flat": ("report_data", with_member("z.npy", array(np.float32(1)))),
    "nested": ("report_data", with_member("rest.npy", array(
        np.frombuffer(b"[" * 100_000, np.uint8)))),
    "binary": ("confounds", lambda path: path.write_bytes(b"\x00\xff\xfe\n" * 9)),
    "empty": ("confounds", lambda path: path.write_text("")),
    "folder": ("report_data", make_folder),
    "folder of a table": ("outliers", make_folder),
    "sidecar": ("sidecar", lambda path: path.write_text("[" * 100_000)),
}  # fmt: skip


def pages(output, *options):
    call = [str(output / "no-dataset"), str(output), *options, "--nprocs", "1"]
    return participant.main(call)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_series_is_listed_and_the_other_is_gathered(damage, finished, tmp_path, capsys):
    good = copy_series(finished, tmp_path, "01", "sub-01")
    bad = copy_series(finished, tmp_path, "02", "sub-02")
    kind, change = DAMAGES[damage]
    change(bad[kind])
    assert pages(tmp_path, "group") == 1
    printed = capsys.readouterr().err
    assert printed.count("1 of 2 series failed") == 1
    assert "Traceback" not in printed
    assert printed.count("again") == 1  # what to do, said once
    assert len(printed) < 1500
    table = (tmp_path / "group_dwi.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in table[1:]] == ["sub-01"]
    assert "sub-02" in (tmp_path / "group_dwi.html").read_text()
    assert good["confounds"].is_file()


def no_volume(path):
    path.write_text("volume\tslice\tz_score\treplaced\nn/a\tinf\t1\tno\n")


@pytest.mark.parametrize(
    ("kind", "change"), [DAMAGES["token"], ("outliers", no_volume)], ids=["token", "no volume"]
)
def test_reports_only_writes_the_page_of_the_other(kind, change, finished, tmp_path, capsys):
    copy_series(finished, tmp_path, "01", "sub-01_run-1")
    bad = copy_series(finished, tmp_path, "01", "sub-01_run-2")
    change(bad[kind])
    assert pages(tmp_path, "participant", "--reports-only") == 1
    printed = capsys.readouterr().err
    assert printed.count("sub-01_run-2") < 4
    assert "Traceback" not in printed
    page = (tmp_path / "sub-01.html").read_text()
    assert "1 series failed" in page
    assert "sub-01_run-1" in page


def test_nothing_to_gather_is_said_once(tmp_path, capsys):
    image = tmp_path / "bids" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    (tmp_path / "bids" / "dataset_description.json").write_text(
        '{"Name": "x", "BIDSVersion": "1"}'
    )
    (tmp_path / "out").mkdir()
    assert participant.main([str(tmp_path / "bids"), str(tmp_path / "out"), "group"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("run the participant level") == 1
    assert printed.count("no finished") == 1


def test_a_bomb_is_not_unpacked(finished, tmp_path, monkeypatch):
    bad = copy_series(finished, tmp_path, "01", "sub-01")
    bomb(bad["report_data"])
    monkeypatch.setattr(np, "load", None)
    monkeypatch.setattr(data, "LARGEST", 10**6)
    with pytest.raises(ValueError, match=r"it would take 0\.01 GB of memory"):
        ReportData.load(bad["report_data"])


def test_the_group_compares_what_it_reads_with_the_record(finished, tmp_path):
    outputs = copy_series(finished, tmp_path, "01", finished.src)
    sidecar = json.loads(outputs["sidecar"].read_text())
    outputs["sidecar"].write_text(json.dumps(recorded(outputs, sidecar, {})))
    assert not gather(tmp_path).errors
    table = outputs["confounds"].read_text()
    outputs["confounds"].write_text(table.replace("0", "1", 1))
    (why,) = gather(tmp_path).errors.values()
    assert f"{outputs['confounds'].name} changed since the correction" in why
