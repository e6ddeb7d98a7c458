# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-fieldmap A [B …] -o DIR``: an off-resonance field, and the images it corrects."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion import __version__
from eddymotion.cli.console import messages, prepare_output_dir, run
from eddymotion.cli.converters import existing_file, not_negative
from eddymotion.cli.options import add_running_options
from eddymotion.cli.parser import Parser
from eddymotion.cli.results import named_values, print_written
from eddymotion.errors import EddymotionError, absence
from eddymotion.wording import PE_AXES

if TYPE_CHECKING:
    from eddymotion.fieldmaps import FieldmapPaths, FieldmapSettings

DESCRIPTION = """\
Find the off-resonance field that distorts echo-planar images, and correct them.

From images of opposite phase encoding (A and B; of a series the first b=0 volume),
which may differ in head position; or from a measured map: a phase difference,
the phases of two echoes, or a map in Hz, rad/s or T. Phase encoding, readout and
echo times come from the JSON sidecars next to the images. If both are given, the
field comes from the images and the map is compared with it.

Writes the field on the grid of A (_fmapid-auto00000_desc-preproc_fieldmap, Hz), its
spline coefficients (desc-coeff), all images as one (desc-epi), each image corrected
(_desc-preproc_epi), and a page that shows them before and after."""

EXAMPLES = """\
examples:
  eddymotion-fieldmap sub-01_dir-AP_epi.nii.gz sub-01_dir-PA_epi.nii.gz -o out/
  eddymotion-fieldmap ap.nii.gz pa.nii.gz --pe-axis j- j --readout-time 0.05 -o out/
  eddymotion-fieldmap sub-01_dwi.nii.gz --phasediff sub-01_phasediff.nii.gz \\
      --magnitude sub-01_magnitude1.nii.gz -o out/
"""


def build_parser() -> Parser:
    """Return the parser of ``eddymotion-fieldmap``."""
    parser = Parser(prog="eddymotion-fieldmap", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE",
        help="A, whose frame the field is in, and images of other phase encodings (NIfTI)",
    )  # fmt: skip
    parser.add_argument("-o", "--output-dir", type=Path, required=True, metavar="DIR",
                        help="output folder")  # fmt: skip
    group = parser.add_argument_group("images")
    group.add_argument(
        "--pe-axis", nargs="+", choices=PE_AXES, default=[], metavar="AXIS",
        help="PhaseEncodingDirection of each image as in BIDS, such as j- j (default: from the "
             "sidecars)",
    )  # fmt: skip
    group.add_argument(
        "--readout-time", nargs="+", type=not_negative, default=[], metavar="S",
        help="TotalReadoutTime, s: one for all images, or one each (default: from the sidecars)",
    )  # fmt: skip
    group.add_argument("--mask", "--brain-mask", type=existing_file, metavar="FILE",
                       help="brain mask on the grid of A (default: computed)")  # fmt: skip
    group.add_argument(
        "--ignore", nargs="+", choices=("sform", "qform"), default=[],
        help="affine to ignore where sform and qform disagree",
    )  # fmt: skip
    group = parser.add_argument_group("measured map")
    for name, words in (
        ("phasediff", "difference of the phases of two echoes"),
        ("phase1", "phase of the first echo"),
        ("phase2", "phase of the second echo"),
        ("fieldmap", "map in Hz, rad/s or T, such as the --fout of FSL's topup"),
        ("magnitude", "magnitude image of the map"),
    ):
        group.add_argument(f"--{name}", type=existing_file, metavar="FILE", help=words)
    group.add_argument(
        "--echo-times", nargs=2, type=not_negative, default=[], metavar="S",
        help="echo times of the two echoes, s (default: from the sidecars)",
    )  # fmt: skip
    group.add_argument("--units", metavar="UNITS",
                       help="units of --fieldmap: Hz, rad/s or T (default: from "
                            "the sidecar)")  # fmt: skip
    parser.add_argument_group("outputs").add_argument(
        "--fsl-outputs", action="store_true",
        help="also write the field as FSL's topup does, for --topup of eddy and applytopup: "
             "…_topup_fieldcoef.nii.gz, _movpar.txt, _acqparams.txt",
    )  # fmt: skip
    add_running_options(parser, __version__, "sampling points of the rigid registration")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion-fieldmap``; return its exit code."""
    return run("eddymotion-fieldmap", lambda: carry_out(arguments))


def carry_out(arguments: Sequence[str] | None) -> None:
    """Do what the options say."""
    options = build_parser().parse(arguments)
    with messages(options.verbose, logging.WARNING, "%(levelname)s: %(message)s"):
        make_field(options)


def make_field(options: argparse.Namespace) -> None:
    """Make the field, once all is checked, and print what came of it."""
    for path in options.images:
        if not path.is_file():
            raise EddymotionError(absence(path, "give a NIfTI image"))
    from eddymotion.fieldmaps import FieldmapOutputs, make_fieldmap
    from eddymotion.fieldmaps.inputs import refuse_settings

    paths, settings = paths_from(options), settings_from(options)
    refuse_settings(paths, settings)
    prepare_output_dir(options.output_dir)
    summary = make_fieldmap(paths, options.output_dir, settings)
    print(console_text(summary))
    print_written(FieldmapOutputs(options.output_dir, paths.images, options.fsl_outputs).all())


def paths_from(options: argparse.Namespace) -> FieldmapPaths:
    """Collect the files that were given."""
    from eddymotion.fieldmaps import FieldmapPaths

    return FieldmapPaths(
        tuple(options.images), options.phasediff, options.phase1, options.phase2,
        options.fieldmap, options.magnitude, options.mask,
    )  # fmt: skip


def settings_from(options: argparse.Namespace) -> FieldmapSettings:
    """Collect what else was given."""
    from eddymotion.fieldmaps import FieldmapSettings

    return FieldmapSettings(
        tuple(options.pe_axis), tuple(options.readout_time), tuple(options.echo_times),
        options.units, tuple(options.ignore), options.random_seed, options.fsl_outputs,
    )  # fmt: skip


def console_text(summary: dict[str, Any]) -> str:
    """Return the short text for the console."""
    low, high = (summary["FieldPercentiles"][q] for q in ("1", "99"))
    unit = "" if summary["ReadoutTimesKnown"] else " (scale unknown: no readout times)"
    lines = [
        ("field", f"{low:.1f} to {high:.1f} Hz (1st and 99th percentile in the brain){unit}"),
        ("made from", f"{summary['Method']}, {summary['Seconds']:.1f} s"),
        ("displacement", f"{summary['RMSDisplacement']:.2f} mm RMS in the brain"),
    ]
    if found := summary.get("Similarity"):
        lines.append(("correlation", f"{found['Before']:.3f} → {found['After']:.3f} between the "
                                     "images"))  # fmt: skip
    if found := summary.get("MeasuredComparison"):
        lines.append(("measured map", f"correlation {found['Correlation']:.3f}, slope "
                                      f"{found['Slope']:.2f}, {found['RMSDifference']:.2f} mm "
                                      "RMS apart"))  # fmt: skip
    return named_values(lines)


if __name__ == "__main__":
    raise SystemExit(main())
