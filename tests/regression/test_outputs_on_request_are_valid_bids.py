# SPDX-License-Identifier: Apache-2.0
"""Fields, merged runs, residuals and eddy's files are no errors for the BIDS validator."""

import nibabel as nib
import numpy as np

from eddymotion.derivatives.dataset import write_dataset_files

ALWAYS = {
    f"sub-01/ses-1/dwi/sub-01_ses-1_{name}"
    for name in ("desc-preproc_dwi.nii.gz", "desc-preproc_dwi.json", "desc-preproc_dwi.bval",
                 "desc-preproc_dwi.bvec", "from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt")
}  # fmt: skip

ON_REQUEST = {
    f"sub-01/ses-1/{name}"
    for name in (
        *(f"fmap/sub-01_ses-1_fmapid-auto00000_desc-{desc}_fieldmap.{ending}"
          for desc in ("preproc", "coeff", "epi") for ending in ("nii.gz", "json")),
        "fmap/sub-01_ses-1_fmapid-auto00000_topup_fieldcoef.nii.gz",
        "fmap/sub-01_ses-1_fmapid-auto00000_topup_movpar.txt",
        *(f"dwi/sub-01_ses-1_desc-merged_dwi.{ending}"
          for ending in ("nii.gz", "json", "bval", "bvec")),
        "dwi/sub-01_ses-1_desc-residuals_dwi.nii.gz",
        "dwi/sub-01_ses-1_desc-residuals_dwi.json",
        "dwi/sub-01_ses-1_desc-cnr_dwimap.nii.gz",
        "dwi/sub-01_ses-1_desc-eddy_xfm/vol0000.nii.gz",
        "dwi/sub-01_ses-1_desc-hmc_xfm.mat/MAT_0000",
        "dwi/sub-01_ses-1_desc-preproc_dwi.eddy_parameters",
    )
} | {"work/run-1/events/sub-01.jsonl"}  # fmt: skip


def test_no_output_is_an_error(tmp_path, bids_errors):
    raw, derivatives = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    derivatives.mkdir()
    write_dataset_files(derivatives, raw)
    for name in ALWAYS | ON_REQUEST:
        path = derivatives / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".nii.gz"):
            image = nib.Nifti1Image(np.ones((2, 2, 2, 1), np.float32), np.eye(4))
            image.header.set_xyzt_units("mm", "sec")
            nib.save(image, path)
        elif name.endswith(".json"):
            path.write_text('{"SkullStripped": false, "RepetitionTime": 1.0}')
        else:
            path.write_text("0\n0\n0\n" if name.endswith("bvec") else "0\n")
    assert [(one["code"], one["location"]) for one in bids_errors(derivatives)] == []
