# SPDX-License-Identifier: Apache-2.0
"""A wrong call destroys nothing; an input is never overwritten; masks lie where they claim."""

import nibabel as nib
import numpy as np
import pytest

import eddymotion as em
from eddymotion.cli import correct
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids


@pytest.fixture
def image(tmp_path):
    gradients = shelled_scheme({1000.0: 8}, 2)
    phantom = procedural_head(6.0)
    grid = Grid.covering(phantom, 6.0, orientation="LAS")
    dwi = acquire(phantom, gradients, Motion.identity(10), grid)
    return write_bids(tmp_path / "bids", "01", dwi, Motion.identity(10))


def test_wrong_call_keeps_finished_outputs_and_mask_is_not_overwritten(image, tmp_path, capsys):
    output = tmp_path / "out"
    call = [str(image), "-o", str(output), "--n-iterations", "1"]
    assert correct.main(call) == 0
    finished = {path: path.read_bytes() for path in output.rglob("sub-01*") if path.is_file()}
    assert correct.main([*call, "--model", "tensr"]) == 2
    mask = output / "sub-01_desc-brain_mask.nii.gz"
    assert correct.main([*call, "--mask", str(mask)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished} == finished


def test_raw_dataset_is_not_written_to(image, capsys):
    assert correct.main([str(image), "-o", str(image.parent)]) == 2
    assert "inside the input" in capsys.readouterr().err


def test_mirrored_mask_is_refused(image, tmp_path):
    dwi = em.load(image)
    mirrored = dwi.affine @ np.diag([-1.0, 1, 1, 1])
    path = tmp_path / "mask.nii.gz"
    nib.Nifti1Image(dwi.mask.astype(np.uint8), mirrored).to_filename(path)
    with pytest.raises(em.EddymotionError, match="aligned with its image"):
        em.load(image, mask=path)


def test_sheared_affine_and_units_survive_a_round_trip(tmp_path):
    gradients = shelled_scheme({1000.0: 3}, 1)
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 1] = 0.2
    signal = np.random.default_rng(0).uniform(1, 9, (8, 8, 8, 4)).astype(np.float32)
    dwi = em.DWI(signal, affine, gradients, np.ones((8, 8, 8), bool), repetition_time=4.5)
    em.save(dwi, Motion.identity(4), tmp_path)
    again = em.load(tmp_path / "dwi_desc-preproc_dwi.nii.gz", mask=None)
    np.testing.assert_allclose(again.affine, affine, atol=1e-6)
    assert again.repetition_time == 4.5
    header = nib.load(tmp_path / "dwi_desc-preproc_dwi.nii.gz").header
    header.set_xyzt_units("mm", "msec")
    header["pixdim"][4] = 4500
    nib.Nifti1Image(signal, None, header).to_filename(tmp_path / "ms.nii")
    for kind in ("bval", "bvec"):
        (tmp_path / f"dwi_desc-preproc_dwi.{kind}").rename(tmp_path / f"ms.{kind}")
    assert em.load(tmp_path / "ms.nii").repetition_time == 4.5
