# SPDX-License-Identifier: Apache-2.0
"""Options of other programs, and what to write instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

ANATOMY = "anatomical images are only needed for --output-space T1w"
ARRIVED = "the poses of b=0 and other volumes are estimated together"
AXIS = "--pe-axis, if no sidecar has PhaseEncodingDirection"
BIAS = "bias is not corrected here; run dwibiascorrect or similar afterwards"
EDDY_FILES = "--fsl-outputs; the report and the tables are always written"
FIELD = "the field and the corrected images are always written"
FREESURFER = "FreeSurfer is not needed"
JUDGED = "the thresholds for lost slices are fixed"
NONLINEAR = "gradient nonlinearity is not corrected here"
OPPOSITE = (
    "opposite phase encodings are used automatically: those of a session, or images that "
    "eddymotion-correct is given after the series"
)
OVERWRITE = "outputs are recomputed automatically when settings or inputs change"
READOUT = "TotalReadoutTime is read from the sidecar where it matters"
SEQUENCE = "SliceTiming is read from the sidecar"
SMALL_STEPS = "the estimation goes from coarse to fine automatically"
SMOOTHED = "the signal model regularises"
WHOLE = "the whole image is written, with the mask next to it"

AXES = "j is the second image axis; if it points to the front, AP is j- and PA is j"
"""Explains --pe-axis to users of other notations."""

INSTEAD: Mapping[str, str] = {
    # any
    "--anat": "--output-space FILE",
    "--debug": "-v",
    "--dry-run": "--doctor BIDS_DIR, which lists what can be corrected",
    "--jobs": "--nprocs",
    "--mask": "--brain-mask",
    "--t1": "--output-space FILE",
    "--t1w": "--output-space FILE",
    "--threads": "--nprocs",
    "-j": "--nprocs",
    "-n": "--nprocs",
    # FSL
    "--acqp": AXIS,
    "--bvals": "--bval",
    "--bvecs": "--bvec",
    "--datain": AXIS,
    "--dfields": "--eddy-fields",
    "--dont-peas": "--no-shell-alignment",
    "--dont-sep-offs-move": "--no-shell-alignment",
    "--field": "--fieldmap",
    "--flm": "--eddy-current",
    "--imain": "the image as the first argument, without an option",
    "--initrand": "--random-seed",
    "--mporder": "--within-volume",
    "--niter": "--n-iterations",
    "--nthr": "--nprocs",
    "--out": "--output-dir",
    "--outdir": "--output-dir",
    "--repol": "--replace-outliers",
    "--s2v-niter": "--within-volume",
    "--topup": "--fieldmap",
    "--very-verbose": "-v",
    # fMRIPrep, QSIPrep
    "--denoise-method": "--denoise",
    "--hmc-model": "--model, and --estimator lovo for a loop over the volumes",
    "--low-mem": "--mem-gb",
    "--n-jobs": "--nprocs",
    "--n-procs": "--nprocs",
    "--output-spaces": "--output-space",
    "--shoreline-iters": "--n-iterations",
    "--unringing-method": "--degibbs",
    # MRtrix
    "-eddy-mask": "--brain-mask",
    "-eddyqc-all": EDDY_FILES,
    "-eddyqc-text": EDDY_FILES,
    "-fslgrad": "--bvec and --bval",
    "-grad": "--bvec and --bval",
    "-noise": "--denoise mppca",
    "-nthreads": "--nprocs",
    "-pe-dir": "--pe-axis",
    "-scratch": "-w",
    "-topup-files": "--fieldmap",
    # TORTOISE
    "--correction-mode": "--eddy-current",
    "--denoising": "--denoise mppca",
    "--gibbs": "--degibbs",
    "--output": "--output-dir",
    "--output-data-combination": "--distortion-group-merge",
    "--output-orientation": "--output-space FILE",
    "--output-res": "--output-resolution",
    "--output-voxels": "--output-space FILE",
    "--reorientation": "--output-space FILE",
    "--s2v": "--within-volume",
    "--structural": "--output-space FILE",
    "--temp-folder": "-w",
    "--ub": "--bval",
    "--up-data": "the image as the first argument, without an option",
    "--uv": "--bvec",
}
"""Option of another program → what to write in its place."""

NOT_NEEDED: Mapping[str, str] = {
    # any
    "--cuda": "no GPU is used",
    "--force": OVERWRITE,
    "--gpu": "no GPU is used",
    "--overwrite": OVERWRITE,
    # FSL
    "--b0-flm": "only the fields of the diffusion gradients are estimated",
    "--b0-peas": ARRIVED,
    "--data-is-shelled": "any scheme is accepted",
    "--dont-mask-output": WHOLE,
    "--estimate-move-by-susceptibility": "the field always follows the head",
    "--fout": FIELD,
    "--fwhm": SMALL_STEPS,
    "--index": "each series has one phase encoding",
    "--iout": FIELD,
    "--json": SEQUENCE,
    "--mb": SEQUENCE,
    "--nvoxhp": SMALL_STEPS,
    "--ol-ec": JUDGED,
    "--ol-nstd": JUDGED,
    "--ol-nvox": JUDGED,
    "--ol-pos": JUDGED,
    "--ol-sqr": JUDGED,
    "--ol-type": SEQUENCE,
    "--s2v-lambda": "the motion over time regularises",
    "--slm": SMOOTHED,
    "--slspec": SEQUENCE,
    # fMRIPrep, QSIPrep
    "--anat-only": ANATOMY,
    "--anat-modality": ANATOMY,
    "--boilerplate-only": "the citation text is in logs/CITATION.md",
    "--b0-motion-corr-to": "all volumes are aligned with the first b=0",
    "--b1-biascorrect-stage": BIAS,
    "--clean-workdir": "the work folder is removed after a complete run, unless --work-dir was "
    "given",
    "--dwi-denoise-window": "the patch size is chosen from the number of volumes",
    "--dwi-only": ANATOMY,
    "--dwi-no-biascorr": BIAS,
    "--eddy-config": "its settings are options here",
    "--fs-license-file": FREESURFER,
    "--fs-no-reconall": FREESURFER,
    "--fs-subjects-dir": FREESURFER,
    "--hmc-transform": "motion is rigid; eddy currents have their own option (--eddy-current)",
    "--notrack": "nothing is sent anywhere",
    "--pepolar-method": OPPOSITE,
    "--readout-time": READOUT,
    "--use-syn-sdc": OPPOSITE,
    # MRtrix
    "-force": OVERWRITE,
    "-align-seepi": "motion between the images is always estimated",
    "-eddy-options": "its settings are options here",
    "-eddy-slspec": SEQUENCE,
    "-nocleanup": "the work folder is kept if --work-dir is given",
    "-readout-time": READOUT,
    "-rpe-all": OPPOSITE,
    "-rpe-header": OPPOSITE,
    "-rpe-none": "a series can be corrected without an opposite phase encoding",
    "-rpe-pair": OPPOSITE,
    "-se-epi": OPPOSITE,
    # TORTOISE
    "--b0-id": "all volumes are aligned with the first b=0",
    "--denoising-kernel-size": "the patch size is chosen from the number of volumes",
    "--do-QC": "the report is always written",
    "--down-data": OPPOSITE,
    "--drift": "signal drift is not corrected here",
    "--epi": OPPOSITE,
    "--grad-nonlin": NONLINEAR,
    "--is-human-brain": "heads of any size are corrected with the same settings",
    "--outlier-frac": JUDGED,
    "--outlier-prob": JUDGED,
    "--output-gradnonlin-Bmtxt-type": NONLINEAR,
    "--remove-temp": "the work folder is removed after a complete run, unless --work-dir was "
    "given",
    "--rot-eddy-center": "a matrix holds for any centre",
    "--step": "finished steps are reused automatically",
}
"""Option of another program → why commands that correct series have none."""

CHOSEN = "it selects from a dataset: eddymotion BIDS_DIR OUTPUT_DIR participant"
DATASET = "it is for a dataset: eddymotion BIDS_DIR OUTPUT_DIR participant"
NO_BIDS = "nothing is validated, since a single series needs no BIDS"
NO_GRAPH = "a single series is corrected without a workflow engine"
KEPT = "intermediate results are in the output folder, and are removed at the end"
SHARED = "it divides memory among series that run at the same time"
TABLES = "in a dataset the tables are next to the images; eddymotion-correct accepts others"
SECOND = "the second word of the call is OUTPUT_DIR"

OF_DATASETS: Mapping[str, str] = {
    "--anat-derivatives": "--output-space FILE names the T1w of a single series",
    "--bids-database-dir": DATASET,
    "--bids-filter-file": CHOSEN,
    "--demo": "eddymotion --demo DIR is the demonstration",
    "--doctor": "eddymotion --doctor describes the machine",
    "--nipype-plugin-file": NO_GRAPH,
    "--participant-label": CHOSEN,
    "--reports-only": DATASET,
    "--session-id": CHOSEN,
    "--session-label": CHOSEN,
    "--mem": SHARED,
    "--mem-gb": SHARED,
    "--mem-mb": SHARED,
    "--low-mem": SHARED,
    "--skip-bids-validation": NO_BIDS,
    "--skip-bids-validator": NO_BIDS,
    "--stop-on-first-crash": "there is one series only",
    "--use-plugin": NO_GRAPH,
    "--work-dir": KEPT,
    "--write-graph": NO_GRAPH,
    "--temp-folder": KEPT,
    "-nocleanup": KEPT,
    "-scratch": KEPT,
    "-w": KEPT,
}
"""Option of ``eddymotion`` → why ``eddymotion-correct`` has none."""

OF_ONE_SERIES: Mapping[str, str] = {
    "--bval": TABLES,
    "--bvals": TABLES,
    "--bvec": TABLES,
    "--bvecs": TABLES,
    "--out": SECOND,
    "--outdir": SECOND,
    "--output": SECOND,
    "--output-dir": SECOND,
    "--ub": TABLES,
    "--uv": TABLES,
    "-fslgrad": TABLES,
    "-grad": TABLES,
    "-o": SECOND,
}
"""Option of ``eddymotion-correct`` → why ``eddymotion`` has none."""


def advice(argument: str, known: Collection[str], not_needed: Mapping[str, str]) -> str | None:
    """Say what to do with an option of another program.

    Parameters
    ----------
    argument : str
    known : collection of str
        Options of the command; no others are recommended.
    not_needed : mapping
        Options that it does not need → why.

    Returns
    -------
    str or None
        None where nothing is known of it.
    """
    name = argument.partition("=")[0].replace("_", "-")
    if name not in not_needed and name not in INSTEAD:
        name = name.removeprefix("-")  # MRtrix takes its options with two dashes as well
    if name in not_needed:
        return f"leave it out: {not_needed[name]}"
    if name not in INSTEAD:
        return None
    option = INSTEAD[name].partition(" ")[0].rstrip(";,")
    is_ours = option in known or not option.startswith("-")
    return f"write {INSTEAD[name]}" if is_ours else None
