# SPDX-License-Identifier: Apache-2.0
"""A call with the wrong folder, or words in an order that fails, is told what to write instead."""

import json

import pytest

from eddymotion.bids.series import find_series, warn_of_description
from eddymotion.cli import participant
from eddymotion.errors import EddymotionError


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "ds" / "sub-01" / "ses-a" / "dwi"
    folder.mkdir(parents=True)
    (folder / "sub-01_ses-a_dwi.nii.gz").touch()
    (tmp_path / "ds" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1"}')
    return tmp_path / "ds"


@pytest.mark.parametrize("inside", ["sub-01", "sub-01/ses-a", "sub-01/ses-a/dwi"])
def test_a_part_of_a_dataset_names_the_whole(inside, dataset):
    with pytest.raises(EddymotionError, match=f"give {dataset} and --participant-label 01$"):
        find_series(dataset / inside)


def test_a_folder_above_names_the_dataset(dataset):
    with pytest.raises(EddymotionError, match=f"did you mean {dataset}"):
        find_series(dataset.parent)


@pytest.mark.parametrize(("name", "content"), [("a/b/1.dcm", b""), ("a/1", bytes(128) + b"DICM")])
def test_dicom_files_are_to_be_converted(name, content, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EddymotionError, match="DICOM files; convert them to BIDS first"):
        find_series(tmp_path)


def test_a_dataset_without_description_is_read_and_reported(dataset, caplog):
    warn_of_description(dataset)
    assert not caplog.messages
    (dataset / "dataset_description.json").unlink()
    assert find_series(dataset)  # as reports and the group do: they have nothing to add
    assert not caplog.messages
    warn_of_description(dataset)
    (message,) = caplog.messages
    assert "no dataset_description.json" in message
    assert '"BIDSVersion"' in message


def test_derivatives_in_place_of_a_raw_dataset_are_warned_of(dataset, caplog):
    description = dataset / "dataset_description.json"
    content = json.loads(description.read_text()) | {"DatasetType": "derivative"}
    description.write_text(json.dumps(content))
    warn_of_description(dataset)
    (message,) = caplog.messages
    assert "DatasetType is derivative, expected raw" in message


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ("--participant-label 01 ds out participant",
         "eddymotion ds out participant --participant-label 01"),
        ("--session-label a b ds out group", "eddymotion ds out group --session-label a b"),
        ("-v --session-id a --participant-label 1 ds out participant --nprocs 1",
         "eddymotion ds out participant -v --session-id a --participant-label 1 --nprocs 1"),
        ("ds --participant-label 1 out group", "eddymotion ds out group --participant-label 1"),
        ("ds out --participant-label 01 02 participant", "eddymotion ds out participant "
                                                         "--participant-label 01 02"),
        ("ds --participant-label 01 02", "write: eddymotion BIDS_DIR OUTPUT_DIR participant"),
        ("--participant-label ds out group", "eddymotion ds out group --participant-label LABEL"),
        ("--ignore sform ds out participant", "takes all arguments that follow it: put other"),
    ],
)  # fmt: skip
def test_an_option_that_took_the_folders_says_so(call, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        participant.main(call.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert hint in line


def test_an_index_is_made_once_and_read_again(dataset, tmp_path):
    index = tmp_path / "index"
    first = find_series(dataset, database_dir=index)
    assert [path.name for path in index.iterdir()] == ["layout_index.sqlite"]
    written = (index / "layout_index.sqlite").stat().st_mtime_ns
    (dataset / "sub-01" / "ses-a" / "dwi" / "sub-01_ses-a_run-2_dwi.nii.gz").touch()
    assert find_series(dataset, database_dir=index) == first
    assert (index / "layout_index.sqlite").stat().st_mtime_ns == written
    other = tmp_path / "other" / "sub-01" / "dwi"
    other.mkdir(parents=True)
    with pytest.raises(EddymotionError, match=f"the index of {dataset}, not of .*/other; remove"):
        find_series(tmp_path / "other", database_dir=index)
    (index / "layout_index.sqlite").write_text("garbage")
    with pytest.raises(EddymotionError, match="cannot be read as an index of PyBIDS"):
        find_series(dataset, database_dir=index)


def test_one_participant_takes_no_look_at_the_others(dataset, monkeypatch):
    (dataset / "sub-02").mkdir()
    looked = []
    from eddymotion.bids import tree as bids_tree

    listing = bids_tree._files_in
    monkeypatch.setattr(
        bids_tree, "_files_in", lambda root, folder: looked.append(folder) or listing(root, folder)
    )
    find_series(dataset, participants=["01"])
    assert {folder.parts[0] for folder in looked if folder.parts} == {"sub-01"}
