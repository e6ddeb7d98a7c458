# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-register FIXED MOVING -o PREFIX``: one image onto another."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion import __version__
from eddymotion.cli.console import messages, prepare_output_dir, run
from eddymotion.cli.converters import existing_file, not_negative_integer
from eddymotion.cli.options import add_running_options
from eddymotion.cli.parser import Parser
from eddymotion.cli.results import named_values, print_written, refuse_folder
from eddymotion.errors import EddymotionError, absence

if TYPE_CHECKING:
    from eddymotion.pairs import PairPaths, PairSettings

FORMATS = ("itk", "x5", "fsl", "afni", "lta")

DESCRIPTION = """\
Register two images: find where points of FIXED lie in MOVING.

Writes the transform for ITK, ANTs and 3D Slicer (PREFIX.tfm), NiTransforms (.x5),
FSL (.mat), AFNI (.aff12.1D) and FreeSurfer (.lta); MOVING on the grid of FIXED
(PREFIX_resampled.nii.gz, one interpolation); pictures before and after
(PREFIX_overlay.png, _difference.png, _displacement.png); and PREFIX.json with all
figures. With --transform syn the whole transform is in PREFIX_warp.nii.gz and
PREFIX_inversewarp.nii.gz, and PREFIX_affine.* holds its linear part."""

EXAMPLES = """\
examples:
  eddymotion-register T1w.nii.gz dwiref.nii.gz -o out/dwiref-to-T1w --metric nmi
  eddymotion-register template.nii.gz T1w.nii.gz -o out/T1w-to-template \\
      --transform syn --initialize multi
  eddymotion-register dwi.nii.gz dwi.nii.gz -o out/pair --fixed-volume 0 --moving-volume 5
"""


def build_parser() -> Parser:
    """Return the parser of ``eddymotion-register``."""
    parser = Parser(prog="eddymotion-register", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument(
        "fixed", type=Path, metavar="FIXED", help="NIfTI image that stays in place"
    )
    parser.add_argument(
        "moving", type=Path, metavar="MOVING", help="NIfTI image that is aligned with FIXED"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PREFIX",
        help="prefix of all output names",
    )  # fmt: skip
    add_registration_options(parser)
    add_input_options(parser)
    add_output_options(parser)
    add_running_options(parser, __version__, "sampling points at which images are compared")
    return parser


def add_registration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how."""
    group = parser.add_argument_group("registration")
    group.add_argument(
        "--transform", choices=("rigid", "similarity", "affine", "syn"), default="rigid",
        help="6, 7 or 12 parameters, or affine followed by a displacement of each voxel "
             "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--backend", "--registration", metavar="NAME",
        help="gauss-newton (default), dipy (default for syn), ants, elastix, or a backend of "
             "another package",
    )  # fmt: skip
    group.add_argument(
        "--settings", "--registration-settings", type=existing_file, metavar="FILE",
        help="parameters of the backend (JSON; elastix: its own files, too)",
    )  # fmt: skip
    group.add_argument(
        "--metric", metavar="NAME",
        help="similarity metric: ssd (default), lncc, cr, mi or nmi with gauss-newton; use nmi "
             "for images of different contrast",
    )  # fmt: skip
    group.add_argument(
        "--initialize", choices=("header", "mass", "axes", "multi"),
        help="start of the search: positions in the headers (default), aligned centres of mass, "
             "aligned principal axes as well, or the best of many starts",
    )  # fmt: skip
    group.add_argument(
        "--init", type=existing_file, metavar="FILE",
        help="start from this transform: .tfm, .txt, .x5, .mat, .aff12.1D or .lta",
    )  # fmt: skip


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about the images."""
    group = parser.add_argument_group("images")
    for name in ("fixed", "moving"):
        group.add_argument(
            f"--{name}-mask", type=existing_file, metavar="FILE",
            help=f"mask of {name.upper()} on its grid: where it is compared",
        )  # fmt: skip
    for name in ("fixed", "moving"):
        group.add_argument(
            f"--{name}-volume", type=not_negative_integer, metavar="N",
            help=f"volume to use if {name.upper()} is a series, counted from 0",
        )  # fmt: skip
    group.add_argument(
        "--landmarks", type=existing_file, nargs="+", metavar="FILE",
        help="points of FIXED and the same points of MOVING (.fcsv or .mrk.json of 3D Slicer, "
             "or .tsv), or one table with fixed_x … moving_z: reports the target registration "
             "error",
    )  # fmt: skip
    group.add_argument(
        "--ignore", nargs="+", choices=("sform", "qform"), default=[],
        help="affine to ignore where sform and qform disagree",
    )  # fmt: skip


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about what is written."""
    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=list(FORMATS),
        help="formats of the linear transform (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--interpolation", choices=("nearest", "linear", "cubic"), default="cubic",
        help="interpolation of the resampled image; nearest for labels (default: %(default)s)",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion-register``; return its exit code."""
    return run("eddymotion-register", lambda: carry_out(arguments))


def carry_out(arguments: Sequence[str] | None) -> None:
    """Do what the options say."""
    options = build_parser().parse(arguments)
    with messages(options.verbose, logging.WARNING, "%(levelname)s: %(message)s"):
        register(options)


def register(options: argparse.Namespace) -> None:
    """Register the pair, once all is checked, and print what came of it."""
    check(options)
    from eddymotion.pairs import PairOutputs, register_pair

    summary = register_pair(paths_from(options), options.output, settings_from(options))
    print(console_text(summary))
    outputs = PairOutputs(options.output)
    images = [outputs.prefix.with_name(name) for name in summary["outputs"]]
    print_written([*images, outputs.summary])


def paths_from(options: argparse.Namespace) -> PairPaths:
    """Collect the files that were given."""
    from eddymotion.pairs import PairPaths

    return PairPaths(
        options.fixed, options.moving, options.fixed_mask, options.moving_mask, options.init,
        tuple(options.landmarks or ()),
    )  # fmt: skip


def settings_from(options: argparse.Namespace) -> PairSettings:
    """Collect what else was given."""
    from eddymotion.pairs import PairSettings

    return PairSettings(
        transform=options.transform,
        backend=options.backend,
        settings=options.settings,
        metric=options.metric,
        initialize=options.initialize or "header",
        formats=tuple(name for name in FORMATS if name in options.formats),
        interpolation=options.interpolation,
        fixed_volume=options.fixed_volume,
        moving_volume=options.moving_volume,
        ignore=tuple(options.ignore),
        random_seed=options.random_seed,
        nprocs=min(options.nprocs, options.omp_nthreads or options.nprocs),
    )


def check(options: argparse.Namespace) -> None:
    """Refuse, before anything is read, what contradicts itself or cannot be written."""
    for path in (options.fixed, options.moving):
        if not path.is_file():
            raise EddymotionError(absence(path, "give a NIfTI image"))
    if options.init and options.initialize:
        raise EddymotionError(
            "--init gives the start, --initialize searches for one; leave one of them out"
        )
    if options.landmarks and len(options.landmarks) > 2:
        raise EddymotionError(
            f"--landmarks: {len(options.landmarks)} files given, expected one for FIXED and one "
            "for MOVING, or one table with both"
        )
    refuse_folder(options.output)
    prepare_output_dir(options.output.parent)


def console_text(summary: dict[str, Any]) -> str:
    """Return the short text for the console."""
    lines = [
        ("transform", f"{summary['transform']} by {summary['backend']} ({summary['metric']}), "
                      f"{summary['seconds']:.1f} s"),
        ("stopped", summary["message"]),
        ("translation", "{:.3f}, {:.3f}, {:.3f} mm (x, y, z; centre of the fixed grid)".format(
            *summary["translation_mm"])),
        ("rotation", "{:.3f}, {:.3f}, {:.3f}° (x, y, z), ".format(*summary["rotation_deg"])
                     + f"{summary['angle_deg']:.3f}° in all"),
    ]  # fmt: skip
    if summary["transform"] != "rigid":
        lines += [
            ("scales", "{:.4f}, {:.4f}, {:.4f} (x, y, z)".format(*summary["scales"])),
            ("shears", "{:.4f}, {:.4f}, {:.4f} (xy, xz, yz)".format(*summary["shears"])),
        ]
    moved = summary["displacement_mm"]
    lines.append(("displacement", f"mean {moved['mean']:.3f} mm, max {moved['max']:.3f} mm"))
    if summary["transform"] == "syn":
        local = summary["jacobian"]
        lines.append(("local volume", f"× {local['min']:.2f} to {local['max']:.2f}"))
    lines.append(("cost", _change(summary["cost"] or {}, "first", "last", "{:.5g}")))
    lines.append(("overlap", _change(summary["share"], unit=" of the head in the other image")))
    if summary["dice"]["after"] is not None:
        lines.append(("Dice of masks", _change(summary["dice"])))
    lines.append(("similarity", _change(summary["similarity"], unit=" (normalised mutual "
                                                                    "information)")))  # fmt: skip
    if "landmarks" in summary:
        means = {when: summary["landmarks"][f"tre_{when}"]["mean_mm"]
                 for when in ("before", "after")}  # fmt: skip
        n = summary["landmarks"]["n_landmarks"]
        lines.append(("landmarks", _change(means, unit=f" mm (mean error of {n})")))
    advice = [f"\nadvice: {advice}" for advice in summary["advice"]]
    return "\n".join([named_values(lines), *advice])


def _change(
    values: dict[str, Any], first: str = "before", last: str = "after", number: str = "{:.3f}",
    unit: str = "",
) -> str:  # fmt: skip
    shown = [
        "–" if values.get(when) is None else number.format(values[when]) for when in (first, last)
    ]
    return " → ".join(shown) + unit


if __name__ == "__main__":
    raise SystemExit(main())
