# SPDX-License-Identifier: Apache-2.0
"""Labels come from inside the dataset; all that is asked for holds at once."""

import json

import pytest

from eddymotion.bids.series import find_series
from eddymotion.errors import EddymotionError


def write(root, *stems):
    for stem in stems:
        participant, *session = [s for s in stem.split("_") if s.startswith(("sub-", "ses-"))]
        folder = root.joinpath(participant, *session, "dwi")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}_dwi.nii.gz").touch()
        (folder / f"{stem}_dwi.json").write_text(json.dumps({"EchoTime": 0.08}))


def names(root, **options):
    found = find_series(root, **options)
    return {label: [series.dwi.name.removesuffix("_dwi.nii.gz") for series in of]
            for label, of in found.items()}  # fmt: skip


@pytest.mark.parametrize("above", ["sub-99/ses-z/ds", "x_part-phase/derivatives/dwi", "acq-b_x/d"])
def test_folders_above_the_dataset_say_nothing(above, tmp_path):
    root = tmp_path / above
    write(root, "sub-01", "sub-02_ses-a", "sub-02_ses-b_acq-b")
    expected = {"01": ["sub-01"], "02": ["sub-02_ses-a", "sub-02_ses-b_acq-b"]}
    assert names(root) == expected
    assert names(root, database_dir=tmp_path / "index") == expected
    assert names(root, sessions=["b"]) == {"02": ["sub-02_ses-b_acq-b"]}
    assert find_series(root)["02"][0].uri == "bids:raw:sub-02/ses-a/dwi/sub-02_ses-a_dwi.nii.gz"


def test_images_that_are_no_magnitudes_are_left_out(tmp_path):
    write(
        tmp_path, "sub-01", *(f"sub-01_part-{part}" for part in ("mag", "phase", "real", "imag"))
    )
    assert names(tmp_path) == {"01": ["sub-01", "sub-01_part-mag"]}


FOUND_BY = {
    '{"subject": "02"}': ["sub-02_ses-a_run-01", "sub-02_ses-b_run-02"],
    '{"run": 1}': ["sub-02_ses-a_run-01"],
    '{"run": [2, 1], "session": "b"}': ["sub-02_ses-b_run-02"],
    '{"session": "*", "EchoTime": 0.08, "extension": "nii.gz"}': [
        "sub-02_ses-a_run-01", "sub-02_ses-b_run-02",
    ],
    '{"acquisition": "a+b"}': [],
    '{"EchoTime": 0.09}': [],
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), FOUND_BY.items())
def test_filter_and_labels_both_hold(content, expected, tmp_path):
    write(tmp_path, "sub-01_acq-a+b", "sub-02_ses-a_run-01", "sub-02_ses-b_run-02")
    (tmp_path / "filter.json").write_text(f'{{"dwi": {content}}}')
    options = {"filter_file": tmp_path / "filter.json", "participants": ["02"]}
    if not expected:
        with pytest.raises(EddymotionError, match=r"no diffusion series .* matches"):
            names(tmp_path, **options)
        return
    assert names(tmp_path, **options) == {"02": expected}
    with pytest.raises(EddymotionError, match=r"no diffusion series .* matches"):
        names(tmp_path, **options | {"participants": ["01"]})


def test_filter_that_names_nothing_is_refused(tmp_path):
    write(tmp_path, "sub-01")
    (tmp_path / "filter.json").write_text('{"dwi": {"sesion": "a"}}')
    with pytest.raises(EddymotionError, match=r"sesion is neither .*; did you mean session\?"):
        find_series(tmp_path, filter_file=tmp_path / "filter.json")
