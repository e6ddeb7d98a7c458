# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-correct`` with several images: what belongs together, and what is refused."""

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from runs import QUICK

from eddymotion.cli import correct
from eddymotion.io.images import read_image, write_image

ONCE = QUICK[:-1]
"""Options that make a run short."""


@pytest.fixture
def image_of_b0(series):
    """A single volume of the other polarity, without tables, beside the series."""
    signal, affine, _ = read_image(series)
    path = series.with_name("b0_PA.nii.gz")
    write_image(path, np.asarray(signal)[..., 0], affine)
    for image, axis in ((series, "j-"), (path, "j")):
        sidecar = {"PhaseEncodingDirection": axis, "TotalReadoutTime": 0.05}
        image.with_name(image.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return path


def test_a_b0_of_the_other_polarity_gives_a_field(series, image_of_b0, tmp_path, capsys):
    call = [str(series), str(image_of_b0), "-o", str(tmp_path), *ONCE]
    assert correct.main(call) == 0
    told = capsys.readouterr().out
    field = tmp_path / "fmap/dwi_fmapid-auto00000_desc-preproc_fieldmap.nii.gz"
    assert f"off-resonance field: {field}" in told
    sidecar = json.loads((tmp_path / "dwi_desc-preproc_dwi.json").read_text())
    assert sidecar["OffResonanceCorrected"]
    assert sidecar["Runs"] == ["dwi.nii.gz", "b0_PA.nii.gz"]
    hertz, _, _ = read_image(field)
    assert np.median(np.abs(hertz)) < 1.0  # both show the same head, undistorted
    assert not [*tmp_path.glob("b0_PA*"), *tmp_path.glob("work")]
    before = (tmp_path / "dwi_desc-preproc_dwi.nii.gz").stat().st_mtime_ns
    assert correct.main(call) == 0
    assert (tmp_path / "dwi_desc-preproc_dwi.nii.gz").stat().st_mtime_ns == before
    assert correct.main([*call, "--separate-all-dwis"]) == 0  # as warnings of runs advise
    assert not [*tmp_path.glob("fmap/*")]


@pytest.mark.slow
def test_what_a_call_in_another_order_wrote_does_not_stay(series, image_of_b0, tmp_path):
    def written(*images, options=("--distortion-group-merge", "concat")):
        assert correct.main([*map(str, images), "-o", str(tmp_path), *ONCE, *options]) == 0
        found = (tmp_path.glob(pattern) for pattern in ("*.html", "*merged*", "fmap/*"))
        return {path.name.split("_")[0].removesuffix(".html") for path in chain(*found)}

    (tmp_path / "in").mkdir()
    other = tmp_path / "in" / "other_dwi.nii.gz"
    for ending in (".nii.gz", ".bval", ".bvec"):
        shutil.copy(series.with_name(f"dwi{ending}"), tmp_path / "in" / f"other_dwi{ending}")
    shutil.copy(image_of_b0.with_name("b0_PA.json"), tmp_path / "in" / "other_dwi.json")
    assert written(series, other) == {"dwi"}
    assert written(other, series) == {"other"}
    written(other, options=())
    assert not [*tmp_path.glob("fmap/*")]


def write_unreadable(series):
    """Write images whose tables do not fit them, or have too little: short, other, single."""
    bvals, bvecs = (np.loadtxt(series.with_name(f"dwi.{table}")) for table in ("bval", "bvec"))
    signal, affine, _ = read_image(series)
    signal, one = np.asarray(signal), [int(np.argmax(bvals))]
    for name, volumes, rows, columns in (
        ("short", slice(None), slice(1, None), slice(None)),
        ("other", slice(None), slice(1, None), slice(1, None)),
        ("single", one, one, one),
    ):
        write_image(Path(f"{name}.nii.gz"), signal[..., volumes], affine)
        np.savetxt(f"{name}.bval", bvals[None, rows], fmt="%g")
        np.savetxt(f"{name}.bvec", bvecs[:, columns], fmt="%.6f")


@pytest.mark.parametrize(
    ("images", "options", "told"),
    [
        ("a.nii.gz ./a.nii.gz", "", "a.nii.gz: the same image twice; name each once"),
        ("a.nii.gz link.nii.gz", "", "a.nii.gz and link.nii.gz: the same image twice"),
        ("a.nii.gz x/a.nii.gz", "", "would have the same names"),
        ("a.nii.gz none.nii.gz", "", "none.nii.gz"),
        ("a.nii.gz b.nii.gz", "--mask mask.nii.gz", "--mask: one mask given for 2 series"),
        ("a.nii.gz b.nii.gz", "--pe-axis j", "whose sidecars say j and j-; leave it out"),
        ("a.nii.gz b.nii.gz", "--bval a.bval", "--bval: one table given for 2 series"),
        ("a.nii.gz untold.nii.gz", "", "untold.nii.gz: neither b-values nor b-vectors; add"),
        ("a.nii.gz", "--degibbs b.nii.gz", "b.nii.gz: name all images one after the other"),
        ("a.nii.gz a.bval", "", "a.bval: belongs to an image; give the image"),
        ("a.nii.gz noimage.nii.gz", "", "noimage.nii.gz: not a NIfTI image"),
        ("a.nii.gz short.nii.gz", "", "10 b-vectors for the 9 b-values of short.bval"),
        ("a.nii.gz other.nii.gz", "", "found 9 b-values for the 10 volumes of other.nii.gz"),
        ("a.nii.gz single.nii.gz", "", "found 1 diffusion-weighted volume(s)"),
        ("b0.nii.gz b1.nii.gz", "", "join single volumes into one 4-D file"),
        ("a.nii.gz b0.nii.gz", "--distortion-group-merge concat", "has no other runs"),
        ("a.nii.gz", "--separate-all-dwis", "a single series has no other runs"),
        ("a.nii.gz", "--distortion-group-merge concat", "a single series has no other runs"),
    ],
)
def test_what_cannot_go_together_is_refused(
    images, options, told, series, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for name in ("a", "b", "x/a"):
        for ending in (".nii.gz", ".bval", ".bvec"):
            shutil.copy(series.with_name(f"dwi{ending}"), f"{name}{ending}")
    for name, direction in (("a", "j-"), ("b", "j")):
        Path(f"{name}.json").write_text(json.dumps({"PhaseEncodingDirection": direction}))
    shutil.copy(series, "untold.nii.gz")
    Path("link.nii.gz").symlink_to("a.nii.gz")
    Path("noimage.nii.gz").write_text("no image")
    write_unreadable(series)
    signal, affine, _ = read_image(series)
    for name in ("b0", "b1", "mask"):
        write_image(tmp_path / f"{name}.nii.gz", np.asarray(signal)[..., 0], affine)
    there = sorted(tmp_path.rglob("*"))
    try:
        code = correct.main([*images.split(), *options.split(), *ONCE])
    except SystemExit as ended:
        code = ended.code
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert told in lines[0]
    assert sorted(tmp_path.rglob("*")) == there  # nothing is written
