# SPDX-License-Identifier: Apache-2.0
"""Series of b=0 volumes only, such as those of reversed phase encoding, are skipped and named."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from runs import QUICK, write_two_participants

import eddymotion as em
from eddymotion.bids.series import Sorted, find_series, has_b0_only
from eddymotion.cli import correct, participant
from eddymotion.data.gradients import Gradients
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table
from eddymotion.pipeline.correct import SeriesFiles


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A participant with a series and one of b=0 only; another who has no other one."""
    root = tmp_path_factory.mktemp("raw")
    write_two_participants(root)
    (root / "sub-02/dwi/sub-02_dwi.bval").write_text("5 0 0 0 0 0 0 0 0 50\n")
    for path in list((root / "sub-02/dwi").iterdir()):
        name = path.name.replace("sub-02_dwi", "sub-01_dir-PA_dwi")
        shutil.copy(path, root / "sub-01" / "dwi" / name)
    return root


@pytest.mark.slow
def test_they_are_skipped_listed_and_no_failure(raw, tmp_path, capsys):
    output = tmp_path / "out"
    call = [str(raw), str(output), "participant", *QUICK, "--nprocs", "1"]
    assert participant.main(call) == 0
    *_, closing = capsys.readouterr().err.splitlines()
    assert closing.startswith(
        "2 series skipped: sub-01_dir-PA_dwi.nii.gz, sub-02_dwi.nii.gz: no b-"
    )
    assert len(list(output.rglob("*_desc-preproc_dwi.nii.gz"))) == 1
    (record,) = (output / "logs").glob("*.json")
    states = {one["Name"]: one["State"] for one in json.loads(record.read_text())["Series"]}
    assert states["sub-02_dwi.nii.gz"] == "skipped"
    for label, name in (("01", "sub-01_dir-PA_dwi.nii.gz"), ("02", "sub-02_dwi.nii.gz")):
        page = (output / f"sub-{label}.html").read_text()
        assert "Skipped series" in page
        assert name in page
        assert "failed" not in page.split("<body>")[1]
    pages = [output / f"sub-{label}.html" for label in ("01", "02")]
    before = [page.read_text() for page in pages]
    assert participant.main([*call, "--reports-only"]) == 0
    assert [page.read_text() for page in pages] == before
    assert participant.main([str(raw), str(output), "group"]) == 0
    assert "failed" not in capsys.readouterr().err
    assert participant.main([*call, "--participant-label", "02"]) == 0
    capsys.readouterr()
    only = [str(raw), str(output), "group", "--participant-label", "02"]
    assert participant.main(only) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("nothing to collect, all series of these participants were skipped")


def test_one_volume_without_tables_is_skipped_and_several_are_not(tmp_path):
    folder = tmp_path / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    for name, shape in (("LR", (4, 4, 4)), ("PA", (4, 4, 4, 1)), ("RL", (4, 4, 4, 2))):
        path = folder / f"sub-01_dir-{name}_dwi.nii.gz"
        nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_filename(path)
    (folder / "sub-01_dir-X_dwi.nii.gz").write_bytes(b"damaged")
    found = Sorted.of(find_series(tmp_path), 50.0)
    assert list(found.skipped["01"]) == ["sub-01_dir-LR_dwi.nii.gz", "sub-01_dir-PA_dwi.nii.gz"]
    assert "a single volume without b-values" in found.skipped["01"]["sub-01_dir-PA_dwi.nii.gz"]
    assert [series.dwi.name for series in found.series["01"]] == ["sub-01_dir-X_dwi.nii.gz"]
    (why,) = found.refused["01"].values()
    assert "add sub-01_dir-RL_dwi.bval and .bvec, or, if all volumes are b=0, a .bval of z" in why


@pytest.mark.parametrize(("bvals", "are_b0"), [
    ("0 0 0", True), ("5 0 5", True), ("0 5 10", True), ("0 1 1 1 1 1 1", False),
    ("0 0.7 2", False),
])  # fmt: skip
def test_thousandths_are_no_b0(tmp_path, bvals, are_b0):
    (tmp_path / "x.bval").write_text(bvals)
    series = SeriesFiles(tmp_path / "x.nii.gz", tmp_path / "x.bval")
    assert has_b0_only(series, 50) is are_b0


def test_a_run_of_b0_alone_is_read_and_registered_but_not_corrected(tmp_path, still, capsys):
    """It may tell the distortion of others; predictions it has none."""
    b0 = np.asarray(still.signal[..., still.gradients.b0s[:2]])
    gradients = Gradients(np.zeros(2), np.zeros((2, 3)))
    image = tmp_path / "sub-01_dwi.nii.gz"
    write_image(image, b0, still.affine)
    write_gradient_table(
        tmp_path / "sub-01_dwi.bval", tmp_path / "sub-01_dwi.bvec", gradients, still.affine
    )
    dwi = em.load(image)
    motion = em.estimate_motion(dwi)
    assert len(em.resample(dwi, motion, engine="fast")) == 2
    with pytest.raises(em.EddymotionError, match="no diffusion-weighted volume"):
        em.assess(dwi, motion)
    assert correct.main([str(image), "-o", str(tmp_path / "out")]) == 2
    assert "found 0 diffusion-weighted volume(s)" in capsys.readouterr().err
