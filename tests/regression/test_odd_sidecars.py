# SPDX-License-Identifier: Apache-2.0
"""What is odd in a sidecar is reported and left aside; the rest of it holds."""

import json
import shutil

import pytest
from runs import QUICK, write_two_participants

from eddymotion.bids.series import find_series
from eddymotion.cli import participant
from eddymotion.data.acquisition import Slicing
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import FIELDS, acquisition_of, usable

ODD = (7, -1, "n/a", [], ["0", "1"], [None, 1], {"a": 1}, True, float("nan"), 10**400)
SOUND = {
    "number": (int, float), "number above zero": (int, float), "text": (str,),
    "list of numbers": (list,), "number or a list of numbers": (int, float, list),
    "text or a list of texts": (str, list),
}  # fmt: skip


def acquired(dwi, metadata):
    return acquisition_of(dwi.gradients, metadata, dwi.shape, dwi.affine, None, "sub-01")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:12])
def test_odd_values_are_left_aside_one_by_one(field, value, tiny, caplog):
    taken = usable({field: value}, field, owner="sub-01")
    message = [line for line in caplog.messages if f"sub-01: {field} is " in line]
    assert len(taken) + len(message) == 1
    assert all(len(line) < 250 for line in message)
    if taken:
        _, expected = FIELDS[field]
        assert type(value) in SOUND[expected.removeprefix("a ")]
    acquisition = acquired(tiny, {field: value})
    assert acquisition.slicing.groups == ()
    assert acquisition.phase_encoding is None


@pytest.mark.parametrize(
    "timing", [5, "n/a", ["0"] * 9, [0.0, 1.0], [float("nan")] * 9, {"a": 1}], ids=str
)
def test_slice_direction_outlives_a_timing_that_does_not_fit(timing, tiny, caplog):
    metadata = {"SliceTiming": timing, "SliceEncodingDirection": "i-"}
    slicing = acquired(tiny, metadata).slicing
    assert (slicing.axis, slicing.groups) == (0, ())
    assert "SliceTiming" in caplog.text
    with pytest.raises(EddymotionError, match="SliceTiming"):
        Slicing.of(metadata, tiny.shape)


def test_timing_along_an_axis_that_nobody_understands_is_not_used(tiny, caplog):
    metadata = {"SliceTiming": [0.0] * tiny.shape[2], "SliceEncodingDirection": "z"}
    slicing = acquired(tiny, metadata).slicing
    assert (slicing.axis, slicing.groups) == (2, ())
    assert "SliceEncodingDirection is 'z', expected one of i, j, k" in caplog.text


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "[" * 500 + "]" * 500 + "}"])
def test_deep_nesting_stops_nobody(content, tmp_path):
    folder = tmp_path / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    (folder / "sub-01_dwi.nii.gz").touch()
    (folder / "sub-01_dwi.json").write_text(content)
    (tmp_path / "dwi.json").write_text('{"EchoTime": 0.08}')
    (series,) = find_series(tmp_path)["01"]
    assert series.metadata == {"EchoTime": 0.08}


def test_a_run_goes_on_without_what_is_odd(tmp_path, capsys):
    raw, output = tmp_path / "raw", tmp_path / "out"
    write_two_participants(raw)
    shutil.rmtree(raw / "sub-02")
    nested = "[" * 500 + "]" * 500
    (raw / "sub-01/dwi/sub-01_dwi.json").write_text(
        f'{{"SliceTiming": {nested}, "MultibandAccelerationFactor": "two", "EchoTime": {nested}, '
        '"TotalReadoutTime": 0.05, "FlipAngle": null}'
    )
    assert participant.main([str(raw), str(output), "participant", *QUICK, "--nprocs", "1"]) == 0
    printed = capsys.readouterr().err
    for field in ("SliceTiming", "MultibandAccelerationFactor", "EchoTime"):
        assert f"{field} is " in printed
    sidecar = json.loads((output / "sub-01/dwi/sub-01_desc-preproc_dwi.json").read_text())
    assert sidecar["TotalReadoutTime"] == 0.05
    assert not {"EchoTime", "MultibandAccelerationFactor", "FlipAngle"} & set(sidecar)
