# SPDX-License-Identifier: Apache-2.0
"""The files at the top of a derivative dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from eddymotion import __version__
from eddymotion.derivatives.citation import boilerplate_of_all, citation_text
from eddymotion.derivatives.names import CORRECTED
from eddymotion.errors import EddymotionError
from eddymotion.io.writing import read_json, write_json, write_text

log = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"

README = """\
# Head-motion corrected diffusion MRI

Made by eddymotion {version}. For each series, under `sub-X/[ses-Y/]dwi/`:

- `*_desc-preproc_dwi.{{nii.gz,bval,bvec,json}}`: the corrected series. One interpolation of the
  original data; all volumes in their original order; b-vectors rotated.
- `*_desc-hmc_dwiref.nii.gz`: the reference, mean of the corrected b=0 volumes.
- `*_desc-brain_mask.nii.gz`: the mask used.
- `*_from-orig_to-dwiref_mode-image_desc-hmc_xfm.{{txt,x5}}`: one rigid transform per volume.
  The matrix maps points of the reference to points of the original volume; ITK text is in LPS+.
  Further estimates (standard errors, eddy-current fields) are in the `.json` next to it.
- `*_desc-confounds_timeseries.{{tsv,json}}`: motion and quality, one row per volume.
- `*_desc-hmc_outliers.{{tsv,json}}`: slices with signal loss.
- `*_desc-exclude_volumes.txt`: volumes recommended for exclusion, counted from 0.
- `*_desc-hmc_qc.json`: quality measures, with their meaning.
- `*_desc-hmc_trajectory.{{tsv,json}}`: pose of the head at each excitation, if it moved within
  volumes.
- `*_desc-eddy_timeseries.{{tsv,json}}`: eddy-current fields, if they were estimated; on request
  as displacement fields in `*_desc-eddy_xfm/`.
- If the output is in the space of the participant's T1w, these images are named
  `*_space-T1w_desc-*`; `*_from-dwiref_to-T1w_mode-image_xfm.txt` maps points of the T1w to points
  of the reference frame, `*_from-T1w_to-dwiref_mode-image_xfm.txt` back.
- On request: `*_desc-cnr_dwimap.nii.gz`, signal- and contrast-to-noise ratios;
  `*_desc-residuals_dwi.nii.gz`; `*_desc-noise_dwimap.nii.gz`, removed noise;
  `*_desc-preproc_dwi.eddy_*`, FSL eddy's files.

Under `sub-X/[ses-Y/]fmap/`, if the off-resonance field was found from runs of the session or
a map: `*_desc-preproc_fieldmap.nii.gz`, the field in Hz; `*_desc-coeff_fieldmap.nii.gz`, its
spline coefficients; `*_desc-epi_fieldmap.nii.gz`, the mean b=0 without distortion.
`dwi/*_desc-merged_dwi.*` holds the runs of a session as one series, if requested.

`sub-X.html` is the report. `logs/` holds a log of each run and a citation text.
"""

BIDSIGNORE = """\
*.html
group_dwi.*
logs/
work
figures
*_xfm
*_xfm.*
*_fmapid-*
*.eddy_*
*_outliers.tsv
*_outliers.json
*_desc-hmc_qc.json
*_desc-exclude_volumes.txt
*_dwimap.nii.gz
*_dwimap.json
*_dwiref.nii.gz
*_timeseries.tsv
*_timeseries.json
*_desc-preproc_dwi.bval
*_desc-preproc_dwi.bvec
*_desc-merged_dwi.bval
*_desc-merged_dwi.bvec
*_desc-residuals_dwi.*
"""
"""What BIDS has no names for, or other rules; a folder with a slash would still be looked at."""


NAME = "eddymotion"


def refuse_foreign_dataset(output_dir: Path) -> None:
    """Raise if a folder holds a dataset of another program.

    Raises
    ------
    EddymotionError
        If it was made by another program, with its name.
    """
    path = output_dir / "dataset_description.json"
    if not path.is_file():
        return
    makers = read_json(path).get("GeneratedBy")
    names = [str(maker.get("Name")) for maker in makers or () if isinstance(maker, dict)]
    if NAME not in names:
        whose = f"made by {', '.join(names)}" if names else "that this program did not make"
        raise EddymotionError(f"{output_dir}: holds a dataset {whose}; give another output folder")


def write_dataset_files(output_dir: Path, bids_dir: Path, anat_dir: Path | None = None) -> None:
    """Write the top-level files of a derivative dataset; keep a README and .bidsignore of others.

    Call :func:`refuse_foreign_dataset` first. `anat_dir` holds anatomical derivatives, if any.
    """
    sources = {"raw": bids_dir} | ({"anat": anat_dir.resolve()} if anat_dir else {})
    links = {name: folder.as_uri() for name, folder in sources.items()}
    is_new = not (output_dir / "dataset_description.json").is_file()
    write_json(
        output_dir / "dataset_description.json",
        {
            "Name": "eddymotion: head-motion corrected diffusion MRI",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": NAME, "Version": __version__}],
            "SourceDatasets": [{"URL": url} for url in links.values()],
            "DatasetLinks": links,
        },
    )
    for name, text in (
        ("README", README.format(version=__version__)),
        (".bidsignore", BIDSIGNORE),
    ):
        if not (is_new and (output_dir / name).exists()):  # somebody's, there before us
            write_text(output_dir / name, text)


def write_citation(output_dir: Path, sidecars: Iterable[Path]) -> None:
    """Write the citation text of finished series under ``logs/``, and log it.

    Parameters
    ----------
    output_dir : Path
    sidecars : iterable of Path
        Of the corrected images; if there are none, nothing is written.
    """
    sidecars_of = {
        path.name.removesuffix(f"{CORRECTED}.json"): content
        for path in sidecars
        if (content := read_json(path))
    }
    if not sidecars_of:
        return
    path = output_dir / "logs" / "CITATION.md"
    write_text(path, citation_text(sidecars_of))
    log.debug("what to write in a paper (%s): %s", path, boilerplate_of_all(sidecars_of))
