# SPDX-License-Identifier: Apache-2.0
"""Options that users of other programs know: what to write here for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

ANATOMY = "nothing of anatomy is needed but for --output-space T1w"
AXIS = "--pe-axis, where no sidecar has PhaseEncodingDirection"
BIAS = "bias is left to others, such as dwibiascorrect, afterwards"
EDDY_FILES = "--fsl-outputs; the report and the tables are always written"
FIELD = "field and corrected images are always written"
FREESURFER = "FreeSurfer is not needed"
OPPOSITE = "opposite phase encodings of a session are used where they are there"
OVERWRITE = "outputs of other settings or inputs are made again by themselves"
SEQUENCE = "SliceTiming of the sidecar is taken"
SMALL_STEPS = "it goes from coarse to fine by itself"

INSTEAD: Mapping[str, str] = {
    # any
    "--debug": "-v",
    "--jobs": "--nprocs",
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
    "--imain": "the image alone, as the first word",
    "--initrand": "--random-seed",
    "--mporder": "--within-volume",
    "--niter": "--n-iterations",
    "--nthr": "--nprocs",
    "--out": "--output-dir",
    "--outdir": "--output-dir",
    "--repol": "--replace-outliers",
    "--s2v-niter": "--within-volume",
    "--topup": "--fieldmap",
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
}
"""Option of another program → what to write in its place."""

NEEDLESS: Mapping[str, str] = {
    # any
    "--cuda": "no GPU is used",
    "--force": OVERWRITE,
    "--gpu": "no GPU is used",
    "--overwrite": OVERWRITE,
    # FSL
    "--data-is-shelled": "any scheme is taken",
    "--estimate-move-by-susceptibility": "the field follows the head",
    "--fout": FIELD,
    "--fwhm": SMALL_STEPS,
    "--index": "each series has one phase encoding",
    "--iout": FIELD,
    "--json": SEQUENCE,
    "--mb": SEQUENCE,
    "--nvoxhp": SMALL_STEPS,
    "--ol-nstd": "the limits of lost slices are fixed",
    "--ol-type": SEQUENCE,
    "--slm": "the model of the scheme regularises",
    "--slspec": SEQUENCE,
    # fMRIPrep, QSIPrep
    "--anat-only": ANATOMY,
    "--anat-modality": ANATOMY,
    "--boilerplate-only": "the text to cite is in logs/CITATION.md",
    "--b0-motion-corr-to": "all volumes are brought to the first b=0",
    "--b1-biascorrect-stage": BIAS,
    "--clean-workdir": "the work folder of a finished run is removed, unless it was named",
    "--dwi-denoise-window": "patches grow with the number of volumes",
    "--dwi-only": ANATOMY,
    "--dwi-no-biascorr": BIAS,
    "--eddy-config": "options take its place",
    "--fs-license-file": FREESURFER,
    "--fs-no-reconall": FREESURFER,
    "--fs-subjects-dir": FREESURFER,
    "--hmc-transform": "the motion is rigid, and eddy currents are apart (--eddy-current)",
    "--notrack": "nothing is sent anywhere",
    "--pepolar-method": OPPOSITE,
    "--use-syn-sdc": OPPOSITE,
    # MRtrix
    "-force": OVERWRITE,
    "-align-seepi": "the motion between the images is found",
    "-eddy-options": "its options are options here",
    "-eddy-slspec": SEQUENCE,
    "-nocleanup": "the work folder is kept where --work-dir names it",
    "-readout-time": "TotalReadoutTime of the sidecar is taken, where it matters",
    "-rpe-all": OPPOSITE,
    "-rpe-header": OPPOSITE,
    "-rpe-none": "one series needs no partner",
    "-rpe-pair": OPPOSITE,
    "-se-epi": OPPOSITE,
}
"""Option of another program → why commands that correct series have none."""


def advice(argument: str, known: Collection[str], needless: Mapping[str, str]) -> str | None:
    """Say what to do with an option of another program.

    Parameters
    ----------
    argument : str
    known : collection of str
        The options of the command: what it does not know is not recommended.
    needless : mapping
        Options that it has no need of → why.

    Returns
    -------
    str or None
        None where nothing is known of it.
    """
    name = argument.partition("=")[0].replace("_", "-")
    if name in needless:
        return f"leave it out: {needless[name]}"
    if name not in INSTEAD:
        return None
    option = INSTEAD[name].partition(" ")[0].rstrip(";,")
    is_ours = option in known or not option.startswith("-")
    return f"write {INSTEAD[name]}" if is_ours else None
