# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-simulate DIR``: a BIDS dataset with known motion, and the truth beside it."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion import __version__
from eddymotion.cli.console import messages, prepare_output_dir, progress_for_console, run
from eddymotion.cli.converters import above_zero, existing_file, not_negative, positive, share
from eddymotion.cli.options import add_running_options
from eddymotion.cli.parser import Parser
from eddymotion.cli.results import RESULT
from eddymotion.machine.temporaries import remove_stale_temporaries
from eddymotion.simulation import COURSES, PATTERNS, SCHEMES
from eddymotion.wording import PE_AXES, option_of, shown

if TYPE_CHECKING:
    from eddymotion.simulation import KSpace, Recipe

log = logging.getLogger("eddymotion")

DESCRIPTION = """\
Simulate a diffusion series of a moving head, as a BIDS dataset.

The truth (motion, eddy currents, dropped slices) is written to DIR/truth.
The same options and seed give the same bytes."""

EXAMPLES = """\
examples:
  eddymotion-simulate sim/
  eddymotion-simulate sim/ --scheme abcd --motion swap30 --participant-label 02
  eddymotion-simulate sim/ --from sub-01_dwi.nii.gz --motion sub-01_desc-confounds_timeseries.tsv
  eddymotion-simulate sim/ --voxel-size 2.5 2.5 3 --oblique 10 0 5 --eddy-current quadratic
  eddymotion-simulate sim/ --motion nods --voxel-size 3 --multiband 3 --slice-profile 3
  eddymotion-simulate sim/ --head synthetic --random-seed 3 --acquisition kspace --cavity fluid
"""

DEFAULT_SNR, DEFAULT_CHI_COILS = 20.0, 8
DEFAULT_EDDY_MM, DEFAULT_PE_AXIS, DEFAULT_READOUT_S = 1.0, "j", 0.05
DEFAULT_REPETITION_S, DEFAULT_MULTIBAND = 4.0, 3
KSPACE_OPTIONS = ("oversampling", "coil_variation", "partial_fourier", "ghost")


def build_parser() -> Parser:
    """Return the parser of ``eddymotion-simulate``."""
    listing = "\n".join(
        [
            "schemes:", *(f"  {name:10} {each.description}" for name, each in SCHEMES.items()),
            "\nmotions:", *(f"  {name:11} {what}" for name, what in PATTERNS.items()),
            "\nmotion that continues while a volume is scanned, slice by slice:",
            *(f"  {name:11} {what}" for name, what in COURSES.items()),
        ]
    )  # fmt: skip
    parser = Parser(prog="eddymotion-simulate", description=DESCRIPTION,
                    epilog=f"{listing}\n\n{EXAMPLES}")  # fmt: skip
    parser.add_argument("output_dir", type=Path, metavar="DIR",
                        help="root of the dataset; other participants in it are kept")  # fmt: skip
    _add_scan_options(parser)
    _add_motion_options(parser)
    artefacts = parser.add_argument_group("artefacts other than motion")
    _add_noise_options(artefacts)
    _add_distortion_options(artefacts)
    _add_output_options(parser)
    add_running_options(parser, __version__, "motion, noise, dropout and eddy currents")
    return parser


def _add_scan_options(parser: Parser) -> None:
    group = parser.add_argument_group("the head that is scanned (default: a built-in one)")
    group.add_argument("--phantom", nargs=2, type=existing_file, metavar=("TISSUE", "PEAKS"),
                       help="NIfTI maps: fractions of white matter, grey matter and fluid; "
                            "three fibre directions")  # fmt: skip
    group.add_argument("--from", dest="series", type=existing_file, metavar="DWI",
                       help="real series with .bval and .bvec next to it, to which a head (a "
                            "ball and a stick per voxel) is fitted after "
                            "motion correction")  # fmt: skip
    group.add_argument("--head", choices=("synthetic", "fitted"),
                       help="synthetic: from formulas, known at any point, a different one for "
                            "each --random-seed. fitted: to --from by spherical harmonics, its "
                            "volumes roughly aligned and joined by time, independently of the "
                            "motion estimation elsewhere")  # fmt: skip
    group.add_argument("--contrast", choices=("adult", "infant"),
                       help="tissue contrast of --head synthetic; infant: white matter as "
                            "bright as grey or brighter at b=0, more diffusion "
                            "(default: adult)")  # fmt: skip
    group.add_argument("--cavity", choices=("fluid", "empty"),
                       help="a cavity of 5 cm in the brain")  # fmt: skip
    group = parser.add_argument_group("how it is scanned")
    group.add_argument("--scheme", choices=tuple(SCHEMES), metavar="NAME",
                       help=f"{', '.join(SCHEMES)}; see below (default: single, or that of "
                            "--from)")  # fmt: skip
    group.add_argument("--bval", type=existing_file, metavar="FILE",
                       help="b-values, instead of a named scheme")  # fmt: skip
    group.add_argument("--bvec", type=existing_file, metavar="FILE",
                       help="b-vectors, along the axes of the simulated image")  # fmt: skip
    group.add_argument("--voxel-size", nargs="+", type=above_zero, metavar="MM",
                       help="one size, or three: right-left, anterior-posterior, "
                            "superior-inferior (default: 2, or those of --from)")  # fmt: skip
    group.add_argument("--orientation", type=_orientation, metavar="CODE",
                       help="orientation of the image axes, e.g. RAS, LPS, PSL (default: LAS; "
                            "--from keeps its grid unless one of these three "
                            "is given)")  # fmt: skip
    group.add_argument("--oblique", nargs=3, type=float, metavar=("RX", "RY", "RZ"),
                       help="turn the image about x, y and z, degrees")  # fmt: skip
    group.add_argument("--coverage", choices=("slab", "cropped"),
                       help="part of the brain: 42 mm of slices in its middle, or all but its "
                            "lowest 30 mm (default: all)")  # fmt: skip
    _add_slice_options(group)
    _add_kspace_options(parser)


def _add_slice_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--repetition-time", type=above_zero, metavar="S",
                       help="from volume to volume "
                            f"(default: {DEFAULT_REPETITION_S:g})")  # fmt: skip
    group.add_argument("--slice-order", choices=("interleaved", "sequential"),
                       help="order of the excitations, for motion within volumes; for other "
                            "motion, slice timing is written if this or --multiband is given "
                            "(default: interleaved)")  # fmt: skip
    group.add_argument("--multiband", type=positive, metavar="N",
                       help="number of slices excited together, likewise (default: "
                            f"{DEFAULT_MULTIBAND})")  # fmt: skip
    group.add_argument("--slice-profile", type=above_zero, metavar="MM",
                       help="Gaussian slice profile of this full width at half maximum "
                            "(default: rectangular)")  # fmt: skip


def _add_kspace_options(parser: Parser) -> None:
    group = parser.add_argument_group("how the image is made")
    group.add_argument("--acquisition", choices=("voxels", "kspace"), default="voxels",
                       help="voxels: mean of the head over each voxel. kspace: a finer head is "
                            "measured slice by slice with a coil array, with Gibbs ringing and "
                            "complex noise (default: %(default)s)")  # fmt: skip
    group.add_argument(
        "--oversampling",
        type=positive,
        metavar="N",
        help="sampling points along each axis of a voxel (default: 2)",
    )
    group.add_argument("--coil-variation", type=above_zero, metavar="RATIO",
                       help="largest over smallest sensitivity of the coil array in a head; 1.7 "
                            "to 3 in practice (default: 2)")  # fmt: skip
    group.add_argument("--partial-fourier", type=share, metavar="SHARE",
                       help="fraction of phase-encoding lines that are measured; the others are "
                            "zero (default: 1)")  # fmt: skip
    group.add_argument("--ghost", type=share, metavar="SHARE",
                       help="Nyquist ghost relative to the image (default: 0)")  # fmt: skip


def _add_motion_options(parser: Parser) -> None:
    group = parser.add_argument_group("motion")
    group.add_argument("--motion", type=_motion, default="moderate", metavar="NAME|FILE",
                       help=f"{', '.join((*PATTERNS, *COURSES))}; or a file to replay: a .tsv "
                            "with trans_x … rot_z (mm, rad) such as confounds or a slice "
                            "trajectory, or an ITK text file (default: %(default)s)")  # fmt: skip
    group.add_argument("--amplitude", type=above_zero, metavar="FACTOR",
                       help="multiply the motion (default: 1)")  # fmt: skip


def _add_noise_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--noise",
        choices=("rician", "chi", "none"),
        default="rician",
        help="chi: non-central chi, from several coils (default: %(default)s)",
    )
    group.add_argument("--snr", type=above_zero, metavar="RATIO",
                       help="b=0 signal of white matter divided by the noise of one channel "
                            f"(default: {DEFAULT_SNR:g})")  # fmt: skip
    group.add_argument(
        "--coils",
        type=positive,
        metavar="N",
        help=f"receive coils of --noise chi (default: {DEFAULT_CHI_COILS})",
    )
    group.add_argument("--coil-bias", type=not_negative, metavar="SLOPE",
                       help="receive sensitivity, fixed to the scanner: change of its logarithm "
                            "over 90 mm (default: 0.13, or 0 with --from or "
                            "in k-space)")  # fmt: skip
    group.add_argument("--dropout", type=share, default=0.0, metavar="SHARE",
                       help="fraction of the slices of diffusion-weighted volumes that lose "
                            "signal (default: %(default)g)")  # fmt: skip


def _add_distortion_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--eddy-current", "--eddy-currents", default="none",
                       choices=("none", "linear", "quadratic"),
                       help="displacement along the phase-encoding axis in proportion to the "
                            "diffusion gradient (default: %(default)s)")  # fmt: skip
    group.add_argument("--eddy-amplitude", type=above_zero, metavar="MM",
                       help="root-mean-square displacement over the head at b=1000 (default: "
                            f"{DEFAULT_EDDY_MM:g})")  # fmt: skip
    group.add_argument("--susceptibility", type=above_zero, metavar="STRENGTH",
                       help="strength of the off-resonance field of --head synthetic at 3 T, "
                            "which displaces along the phase-encoding axis; 1: as in tissue "
                            "(default: none)")  # fmt: skip
    group.add_argument("--readout-time", type=above_zero, metavar="S",
                       help="readout time of images with such a field, s (default: "
                            f"{DEFAULT_READOUT_S:g})")  # fmt: skip
    group.add_argument("--rigid-field", action="store_true",
                       help="the field moves with the head, but does not change as the head "
                            "turns in the main field")  # fmt: skip
    group.add_argument(
        "--pe-axis", choices=PE_AXES, help=f"phase-encoding direction (default: {DEFAULT_PE_AXIS})"
    )


def _add_output_options(parser: Parser) -> None:
    group = parser.add_argument_group("outputs")
    group.add_argument("--participant-label", "--participant_label", type=_label, default="01",
                       metavar="LABEL",
                       help="another participant needs another --random-seed, too (default: "
                            "%(default)s)")  # fmt: skip
    group.add_argument("--session-id", "--session-label", type=_label, dest="session",
                       metavar="LABEL",
                       help="session label, if any; another label makes another session of the "
                            "same head, with its own noise and motion")  # fmt: skip
    group.add_argument("--direction", type=_label, metavar="LABEL",
                       help="dir entity of the series, such as AP; another label makes another "
                            "run of the same head, likewise")  # fmt: skip
    group.add_argument("--write-ideal", action="store_true",
                       help="also write the head at rest without noise and artefacts "
                            "(in truth/)")  # fmt: skip
    group.add_argument("--overwrite", action="store_true",
                       help="replace an existing series of the participant")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion-simulate``; return its exit code."""
    return run("eddymotion-simulate", lambda: carry_out(arguments))


def carry_out(arguments: Sequence[str] | None) -> int:
    """Do what the options say."""
    parser = build_parser()
    options = parser.parse(arguments)
    if contradiction := find_contradiction(options):
        parser.error(contradiction)
    return simulate_one(options)


def find_contradiction(options: argparse.Namespace) -> str | None:
    """Say which options exclude each other, or None."""
    contradictions = chain(
        _about_head(options),
        _about_kspace(options),
        _about_sampling(options),
        _about_motion_and_noise(options),
        _about_eddy_currents(options),
        _about_susceptibility(options),
    )
    return next(contradictions, None)


def _about_head(options: argparse.Namespace) -> Iterator[str]:
    series = options.series
    if options.phantom and series:
        yield "--phantom and --from each give a head; give one of them"
    if options.head == "synthetic" and (options.phantom or series):
        yield "--head synthetic excludes --phantom and --from; give one of them"
    if options.head == "fitted" and not series:
        yield "--head fitted needs a real series; add --from DWI"
    if options.contrast and options.head != "synthetic":
        yield "--contrast applies to --head synthetic; add that"


def _about_kspace(options: argparse.Namespace) -> Iterator[str]:
    kspace, given = options.acquisition == "kspace", _given_of_kspace(options)
    if given and not kspace:
        yield f"{' '.join(map(option_of, given))} apply to k-space only; add --acquisition kspace"
    if kspace and (options.pe_axis or DEFAULT_PE_AXIS)[0] == "k":
        yield "--acquisition kspace goes slice by slice; give a --pe-axis of i, i-, j or j-"


def _about_sampling(options: argparse.Namespace) -> Iterator[str]:
    tables = options.bval, options.bvec
    if any(tables) and not all(tables):
        yield "--bval and --bvec belong together; give both"
    if options.scheme and any(tables):
        yield "--scheme and --bval each give a scheme; give one of them"
    if options.voxel_size and len(options.voxel_size) not in (1, 3):
        yield "--voxel-size takes one number or three"


def _about_motion_and_noise(options: argparse.Namespace) -> Iterator[str]:
    if options.amplitude and options.motion == "none":
        yield "--amplitude multiplies motion, but --motion none was given; leave one out"
    if options.snr and options.noise == "none":
        yield "--snr contradicts --noise none; leave one out"
    if options.coils and options.noise != "chi":
        yield "--coils applies to --noise chi; add that"


def _about_eddy_currents(options: argparse.Namespace) -> Iterator[str]:
    uses_pe_axis = options.acquisition == "kspace" or options.susceptibility
    unused = options.eddy_amplitude or (options.pe_axis and not uses_pe_axis)
    if unused and options.eddy_current == "none":
        yield "--eddy-amplitude and --pe-axis apply to --eddy-current; add --eddy-current linear"


def _about_susceptibility(options: argparse.Namespace) -> Iterator[str]:
    if not options.susceptibility:
        if options.readout_time or options.rigid_field:
            yield "--readout-time and --rigid-field apply to --susceptibility; add that"
        return
    if options.head != "synthetic" or options.cavity:
        yield "--susceptibility needs a head with known air cavities; add --head synthetic"
    if options.acquisition == "kspace":
        yield "--susceptibility is not simulated in k-space; leave one of them out"


def simulate_one(options: argparse.Namespace) -> int:
    """Simulate a series and write it with its truth."""
    from eddymotion.simulation import simulate, write_simulation
    from eddymotion.simulation.dataset import check_destination
    from eddymotion.simulation.output import image_path

    folder, name, session = options.output_dir, options.participant_label, options.session
    image = image_path(folder, name, session, options.direction)
    check_destination(folder, image, overwrite=options.overwrite)
    prepare_output_dir(folder)
    for used in (image.parent, folder / "truth"):
        remove_stale_temporaries(used)
    n_threads = min(options.nprocs, options.omp_nthreads or options.nprocs)
    with messages(options.verbose):
        made = simulate(recipe_from(options), n_threads=n_threads,
                        progress=progress_for_console(options.verbose))  # fmt: skip
        log.info("%s", made.summary, extra=RESULT)
        write_simulation(folder, name, made, ideal=options.write_ideal, n_threads=n_threads)
        log.info("series: %s; truth: %s; next: eddymotion %s OUTPUT_DIR participant",
                 image, folder / "truth", shlex.quote(str(folder)), extra=RESULT)  # fmt: skip
    return 0


def recipe_from(options: argparse.Namespace) -> Recipe:
    """Collect the options into a recipe, whose defaults hold where nothing was given."""
    from eddymotion.simulation import Recipe

    names = {entry.name for entry in fields(Recipe)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in names and value is not None
    }
    if len(given.get("voxel_size", ())) == 1:
        given["voxel_size"] *= 3
    if options.noise == "none":
        given["snr"] = None
    if options.noise == "chi":
        given.setdefault("coils", DEFAULT_CHI_COILS)
    return Recipe(**given, kspace=_kspace(options))


def _kspace(options: argparse.Namespace) -> KSpace | None:
    """Collect what is said about k-space."""
    from eddymotion.simulation import KSpace

    if options.acquisition != "kspace":
        return None
    return KSpace(**_given_of_kspace(options))


def _given_of_kspace(options: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in KSPACE_OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


def _motion(text: str) -> str | Path:
    """Convert to the name of a pattern or the path of a file."""
    if text in PATTERNS or text in COURSES:
        return text
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is neither a file nor one of {', '.join((*PATTERNS, *COURSES))}"
        )
    return Path(text)


def _orientation(text: str) -> str:
    code = text.upper()
    pairs = {frozenset(pair) for pair in ("RL", "AP", "SI")}
    if len(code) != 3 or {pair for pair in pairs if pair & set(code)} != pairs:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} given, expected three letters, one each of R or L, A or P, S or I"
        )
    return code


def _label(text: str) -> str:
    label = text.removeprefix("sub-").removeprefix("ses-")
    if not (label.isascii() and label.isalnum()):
        raise argparse.ArgumentTypeError(f"{shown(text)} given, expected letters and digits only")
    return label
