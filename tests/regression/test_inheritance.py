# SPDX-License-Identifier: Apache-2.0
"""A table or sidecar applies to an image only if the image has every entity of its name."""

import json

import pytest

from eddymotion.bids.series import find_series

DWI = "sub-01/dwi"


def write(root, *names, content=""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def found(root):
    return {series.dwi.name: series for of in find_series(root).values() for series in of}


ENTITIES = ("acq-x", "ce-x", "chunk-1", "desc-x", "dir-PA", "run-1", "rec-x", "never-heard")


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_series_has_its_own_tables_or_those_it_inherits(entity, tmp_path):
    for stem in ("sub-01", f"sub-01_{entity}"):
        write(tmp_path, *(f"{DWI}/{stem}_dwi.{kind}" for kind in ("nii.gz", "bval", "bvec")))
    for name, series in found(tmp_path).items():
        assert [series.bval.name, series.bvec.name] == [
            name.replace("nii.gz", kind) for kind in ("bval", "bvec")
        ]
        assert not series.problem
    for kind in ("bval", "bvec"):
        (tmp_path / f"{DWI}/sub-01_dwi.{kind}").unlink()
    plain = found(tmp_path)["sub-01_dwi.nii.gz"]
    assert (plain.bval, plain.bvec) == (None, None)


def test_the_nearest_folder_comes_first_and_then_most_entities(tmp_path):
    image = "sub-01_acq-a-b_dir-PA_run-1_dwi.nii.gz"
    write(tmp_path, f"{DWI}/{image}")
    names = (
        "dwi.bval", "acq-a-b_dir-PA_dwi.bval", "sub-01/sub-01_dwi.bval",
        "sub-01/sub-01_dir-PA_dwi.bval", f"{DWI}/sub-01_dwi.bval",
        f"{DWI}/sub-01_run-1_dir-PA_dwi.bval",
    )  # fmt: skip
    for name in names:
        write(tmp_path, name)
        assert found(tmp_path)[image].bval == tmp_path / name
    write(tmp_path, f"{DWI}/sub-01_acq-a_dir-PA_run-1_dwi.bval")
    assert found(tmp_path)[image].bval == tmp_path / names[-1]


def test_tables_that_apply_equally_are_named_and_stop_no_other(tmp_path):
    both = "sub-01_acq-x_dir-PA_dwi.nii.gz"
    write(tmp_path, f"{DWI}/{both}", f"{DWI}/sub-01_acq-x_dwi.nii.gz")
    write(tmp_path, f"{DWI}/sub-01_acq-x_dwi.bvec", f"{DWI}/sub-01_dir-PA_dwi.bvec")
    series = found(tmp_path)
    assert "sub-01_acq-x_dwi.bvec and " in series[both].problem
    assert "sub-01_dir-PA_dwi.bvec apply equally to" in series[both].problem
    assert not series["sub-01_acq-x_dwi.nii.gz"].problem


def test_sidecars_are_merged_field_by_field(tmp_path):
    image = "sub-01_acq-x_dir-PA_dwi.nii.gz"
    write(tmp_path, f"{DWI}/{image}")
    for name, content in {
        "dwi.json": {"EchoTime": 1, "RepetitionTime": 1, "FlipAngle": 1},
        "acq-x_dwi.json": {"RepetitionTime": 2, "FlipAngle": 2},
        f"{DWI}/sub-01_acq-x_dwi.json": {"FlipAngle": 3},
        f"{DWI}/sub-01_dir-PA_dwi.json": {"PhaseEncodingDirection": "j", "FlipAngle": 3},
        f"{DWI}/sub-01_dir-AP_dwi.json": {"PhaseEncodingDirection": "j-"},
    }.items():
        write(tmp_path, name, content=json.dumps(content))
    assert found(tmp_path)[image].metadata == {
        "EchoTime": 1, "RepetitionTime": 2, "FlipAngle": 3, "PhaseEncodingDirection": "j",
    }  # fmt: skip
    write(tmp_path, f"{DWI}/sub-01_dir-PA_dwi.json", content='{"FlipAngle": 4}')
    problem = found(tmp_path)[image].problem
    assert "sub-01_acq-x_dwi.json" in problem
    assert "sub-01_dir-PA_dwi.json apply equally" in problem
    assert "differ in FlipAngle" in problem
