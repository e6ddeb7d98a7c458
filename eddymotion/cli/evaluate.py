# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-evaluate``: motion against the truth, landmarks, corrected series."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eddymotion import __version__
from eddymotion.cli.completion import PrintCompletion
from eddymotion.cli.console import messages, prepare_output_dir, run
from eddymotion.cli.converters import existing_file, not_negative, not_negative_integer
from eddymotion.cli.parser import Parser
from eddymotion.cli.results import print_written, refuse_folder
from eddymotion.errors import EddymotionError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from eddymotion.evaluation import MotionComparison, SliceComparisons
    from eddymotion.evaluation.landmarks import LandmarkErrors
    from eddymotion.evaluation.series import SeriesQuality
    from eddymotion.evaluation.summaries import Summary
    from eddymotion.evaluation.transforms import MotionFile
    from eddymotion.images.grid import Grid

log = logging.getLogger("eddymotion")

COMMANDS = ("motion", "landmarks", "series")

DESCRIPTION = """\
Measure how good a correction is: against known motion, against landmarks, or
from the corrected series alone. Prints a short table; with -o PREFIX also writes
PREFIX_*.tsv (one row per volume or landmark), PREFIX.json (the figures) and a plot."""

EXAMPLES = """\
examples:
  eddymotion-evaluate motion sub-01_desc-hmc_xfm.txt truth/sub-01_xfm.txt -o out/sub-01
  eddymotion-evaluate motion eddy.eddy_parameters truth/sub-01_xfm.txt --reference dwi.nii.gz
  eddymotion-evaluate landmarks fixed.fcsv moving.mrk.json --xfm xfm.txt --volume 12
  eddymotion-evaluate series raw_dwi.nii.gz desc-preproc_dwi.nii.gz -o out/sub-01

eddymotion-evaluate COMMAND --help lists the options of a command.
"""

MOTION = """\
Compare estimated with true transforms of the same volumes.

Each is an ITK text file or X5 with one transform per volume (reference to volume), or
a table with the columns trans_x trans_y trans_z (mm) rot_x rot_y rot_z (rad), such
as the confounds; translations in a table are those of the grid's centre, so give
that grid with --reference. A table that also has volume, slices and time has one
row per excitation, and each slice is judged at its own pose.

What other programs write is read as well, on the grid of --reference: FSL's
.eddy_parameters, .eddy_movement_over_time and MCFLIRT's .mat folder, AFNI's .1D of
3dvolreg, SPM's rp_*.txt, and the motion that SHARD exports (--format shard).

Errors are reported as the files give them, and without the constant rigid offset between
the two reference frames, which moves the whole corrected series and blurs nothing.
With b-values the main figures (and the offset) are of the volumes with b > 100."""

LANDMARKS = """\
Measure the distance between landmarks marked in two images, before and after a transform.

Each file is .fcsv or .mrk.json of 3D Slicer, or a .tsv with columns x y z [label] in
RAS+ mm. Landmarks are paired by label where all labels are unique in both, else by
order. The transform maps points of FIXED (the reference) to points of MOVING."""

SERIES = """\
Judge one series, or two that hold the same volumes on the same grid: before and after
a correction, or corrected by two programs. Each needs its .bval and .bvec next to it.

For each volume: the part of its variance that a model fitted to the other volumes
explains; its correlation with its neighbour in q-space (NDC); the smoothness of the
residual (FWHM), since smoothing raises both; and the correlation of the two series."""


def build_parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of ``eddymotion-evaluate`` and those of its commands."""
    parser = Parser(prog="eddymotion-evaluate", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--print-completion", action=PrintCompletion)
    parser.add_argument("--version", action="version", version=f"eddymotion {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add = commands.add_parser
    motion = add("motion", description=MOTION, help="estimated against true transforms")
    add_motion_arguments(motion)
    landmarks = add("landmarks", description=LANDMARKS, help="landmarks under a transform")
    add_landmark_arguments(landmarks)
    series = add("series", description=SERIES, help="one or two corrected series")
    add_series_arguments(series)
    parsers = {"motion": motion, "landmarks": landmarks, "series": series}
    for command in parsers.values():
        add_common_arguments(command)
    return parser, parsers


def add_motion_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``motion``."""
    parser.add_argument("estimated", type=Path, help="transforms to be judged")
    parser.add_argument("true", type=Path, help="true transforms")
    parser.add_argument(
        "--reference", type=existing_file, metavar="IMAGE",
        help="an image on the grid of the original series (default: that of --mask)",
    )  # fmt: skip
    parser.add_argument(
        "--mask", "--brain-mask", type=existing_file, metavar="FILE",
        help="brain mask in the reference: in which the target registration error is measured "
             "(default: a ball of 80 mm about the centre of the grid, or about the origin)",
    )  # fmt: skip
    parser.add_argument(
        "--bval", type=existing_file, metavar="FILE",
        help="b-values (default: the column bval of a table)",
    )  # fmt: skip
    parser.add_argument(
        "--relative-to", type=not_negative_integer, metavar="I",
        help="first express both in the frame of volume I, counted from 0",
    )  # fmt: skip
    add_format_arguments(parser)


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what files of other programs need."""
    parser.add_argument(
        "--format", choices=("auto", "eddy", "mcflirt", "afni", "spm", "shard"), default="auto",
        help="the program that wrote ESTIMATED (default: %(default)s, from the file name)",
    )  # fmt: skip
    parser.add_argument(
        "--acqp", type=existing_file, metavar="FILE",
        help="eddy's acquisition parameters: the constant of its field, which looks like a "
             "translation along the phase encoding, is counted as head motion (default: left "
             "out)",
    )  # fmt: skip
    parser.add_argument(
        "--index", type=existing_file, metavar="FILE",
        help="eddy's index into --acqp (default: its first row for all volumes)",
    )  # fmt: skip
    parser.add_argument(
        "--slice-axis", choices=("i", "j", "k"), default="k",
        help="the slice axis of the image (default: %(default)s)",
    )  # fmt: skip


def add_landmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``landmarks``."""
    parser.add_argument("fixed", type=Path, help="landmarks in the reference")
    parser.add_argument("moving", type=Path, help="the same landmarks in the other image")
    parser.add_argument(
        "--xfm", type=Path, metavar="FILE", help="ITK text or X5: points of FIXED to MOVING"
    )
    parser.add_argument(
        "--volume", type=not_negative_integer, metavar="I",
        help="which of several transforms in the file, counted from 0",
    )  # fmt: skip
    parser.add_argument("--by-order", action="store_true", help="pair by order, not by label")


def add_series_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``series``."""
    parser.add_argument("a", type=Path, metavar="A", help="4-D NIfTI image")
    parser.add_argument("b", type=Path, metavar="B", nargs="?", help="another one")
    parser.add_argument(
        "--mask", "--brain-mask", type=existing_file, metavar="FILE",
        help="brain mask on the grid of the series (default: found in the mean b=0; in both)",
    )  # fmt: skip
    parser.add_argument(
        "--model", default="auto",
        help="model that predicts a volume from the others; names as in eddymotion-correct "
             "(default: %(default)s, by the scheme)",
    )  # fmt: skip
    parser.add_argument(
        "--b0-threshold", type=not_negative, default=50.0, metavar="B",
        help="volumes at or below this b-value (s/mm²) count as b=0 (default: %(default)g)",
    )  # fmt: skip


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of all commands."""
    group = parser.add_argument_group("outputs")
    group.add_argument("-o", "--output", type=Path, metavar="PREFIX",
                       help="write PREFIX_*.tsv, PREFIX.json and PREFIX.png")  # fmt: skip
    group.add_argument("--plot-format", choices=("png", "svg"), default="png",
                       help="format of the plot (default: %(default)s)")  # fmt: skip
    group.add_argument(
        "--random-seed", type=not_negative_integer, default=0, metavar="SEED",
        help="seed for drawing points from a large mask (default: %(default)d)",
    )  # fmt: skip
    group.add_argument("--version", action="version", version=f"eddymotion {__version__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion-evaluate``; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = f" {given[0]}" if given[:1] and given[0] in COMMANDS else ""
    return run(f"eddymotion-evaluate{command}", lambda: carry_out(given))


def carry_out(given: Sequence[str]) -> int:
    """Do what the options say."""
    parser, commands = build_parsers()
    if not given or given[0] not in commands:
        parser.parse(given)  # answers --help and --version, or says what is wrong
        parser.error("give a command first: " + ", ".join(commands))
    command = commands[given[0]]
    options = command.parse(given[1:])
    options.command = given[0]
    body = {"motion": evaluate_motion, "landmarks": evaluate_landmarks, "series": evaluate_series}
    with messages(0, logging.WARNING, "warning: %(message)s"):
        body[given[0]](options)
    return 0


def evaluate_motion(options: argparse.Namespace) -> None:
    """Compare two motions."""
    from eddymotion.evaluation import compare_motion, read_grid
    from eddymotion.evaluation.summaries import motion_summary, slices_summary

    prepare_outputs(options, (options.estimated, options.true))
    image = options.reference or options.mask
    grid = read_grid(image) if image else None
    estimated, true = read_motions(options, grid)
    bvals = bvals_of(options, estimated, true)
    points = head_points(options)
    center = grid.center if grid else None
    comparison = compare_motion(
        estimated.motion, true.motion, points=points, bvals=bvals, grid_center=center,
        center=center if points is None else points.mean(axis=0),
    )  # fmt: skip
    where = "ball of 80 mm about the centre" if points is None else "brain mask"
    summary, plot = motion_summary(comparison, where, bvals), partial(motion_plot, comparison)
    show(summary)
    if (coverage := summary.figures["coverage_percent"]) is not None:
        print(f"\n95 % intervals that hold the truth: {coverage:.1f} %")
    if grid and (estimated.slices or true.slices):
        by_slices = compare_slices(options, estimated, true, grid, points, bvals)
        slices, plot = slices_summary(by_slices), partial(slices_plot, by_slices)
        print()
        show(slices)
        summary = summary.joined(slices, "slices")
    if options.output:
        write(options, summary, plot)


def bvals_of(
    options: argparse.Namespace, estimated: MotionFile, true: MotionFile
) -> np.ndarray | None:
    """Return the b-values that were given, or those of a table."""
    from eddymotion.evaluation import read_bvals

    if options.bval:
        return read_bvals(options.bval)
    return true.bvals if estimated.bvals is None else estimated.bvals


def head_points(options: argparse.Namespace) -> np.ndarray | None:
    """Return points of the brain mask, if there is one."""
    from eddymotion.evaluation import brain_points, read_mask

    return brain_points(*read_mask(options.mask), options.random_seed) if options.mask else None


def compare_slices(
    options: argparse.Namespace,
    estimated: MotionFile,
    true: MotionFile,
    grid: Grid,
    points: np.ndarray | None,
    bvals: np.ndarray | None,
) -> SliceComparisons:
    """Compare two motions slice by slice, at points of the head or of a ball."""
    from eddymotion.evaluation import ball_points, compare_by_slices

    points = ball_points(grid.center) if points is None else points
    axis = "ijk".index(options.slice_axis)
    return compare_by_slices(estimated, true, points, grid, bvals=bvals, axis=axis)


def read_motions(options: argparse.Namespace, grid: Grid | None) -> tuple[MotionFile, MotionFile]:
    """Read the estimated and the true motion, both in the frame that is asked for."""
    from eddymotion.evaluation import read_motion

    true = read_motion(options.true, grid)
    estimated = read_estimated(options, grid, true)
    if options.relative_to is None:
        return estimated, true
    about = grid.center if grid else None
    first, second = (in_frame_of(options.relative_to, file, about) for file in (estimated, true))
    return first, second


def read_estimated(options: argparse.Namespace, grid: Grid | None, true: MotionFile) -> MotionFile:
    """Read the estimated motion, of as many volumes and excitations as the true one."""
    from dataclasses import replace

    from eddymotion.evaluation import read_motion
    from eddymotion.evaluation.transforms import eddy_motion_with_offsets
    from eddymotion.io.other_programs import program_of

    given = None if options.format == "auto" else options.format
    program = given or program_of(options.estimated)
    estimated = read_motion(
        options.estimated, grid, program=program,
        groups=true.slices.groups if true.slices else None, n_volumes=len(true.motion),
    )  # fmt: skip
    if options.index and not options.acqp:
        raise EddymotionError("--index selects rows of --acqp; add --acqp")
    if not options.acqp:
        return estimated
    if grid is None or estimated.slices or program != "eddy":
        raise EddymotionError("--acqp belongs to eddy's .eddy_parameters; leave it out")
    motion = eddy_motion_with_offsets(
        options.estimated, estimated.motion, grid, options.acqp, options.index
    )
    return replace(estimated, motion=motion)


def in_frame_of(volume: int, file: MotionFile, center: np.ndarray | None) -> MotionFile:
    """Express a motion in the frame of a volume that it has; `center` as in `relative_to`."""
    from dataclasses import replace

    import numpy as np

    if volume >= len(file.motion):
        raise EddymotionError(
            f"--relative-to {volume}: {len(file.motion)} volumes found; give one from 0 to "
            f"{len(file.motion) - 1}"
        )
    to_reference = np.linalg.inv(file.motion[volume])
    slices = file.slices.relative_to(to_reference) if file.slices else None
    return replace(file, motion=file.motion.relative_to(volume, center), slices=slices)


def slices_plot(found: SliceComparisons) -> Figure:
    """Draw the errors of slices in the order of time, free of the offsets."""
    from eddymotion.reports.comparison import slices_comparison_figure

    return slices_comparison_figure(
        found.times,
        {name: each.displacement["free"] for name, each in found.methods.items()},
        shaded=found.estimated.groups.get("b=0", []),
        title="Displacement of each slice's part of the brain, without the offsets of the frames",
    )


def motion_plot(comparison: MotionComparison) -> Figure:
    """Draw the errors free of the offset."""
    import numpy as np

    from eddymotion.mapping.rigid import rigid_parameters
    from eddymotion.reports.comparison import motion_comparison_figure

    free = comparison.deviations["estimated", "free"]
    nothing = comparison.deviations["nothing", "free"]
    in_units = np.array([1.0, 1.0, 1.0, *[180 / np.pi] * 3])
    true, estimated = (
        rigid_parameters(m.matrices, comparison.center) * in_units
        for m in (comparison.true, free.motion)
    )
    return motion_comparison_figure(
        true, estimated, free.errors * in_units,
        free.distances.mean(axis=1), nothing.distances.mean(axis=1),
        shaded=comparison.groups.get("b=0", []),
        title="Without the constant offset of the frames",
    )  # fmt: skip


def evaluate_landmarks(options: argparse.Namespace) -> None:
    """Measure landmarks."""
    from eddymotion.evaluation import (
        landmark_errors,
        pair_landmarks,
        read_landmarks,
        read_transform,
    )
    from eddymotion.evaluation.summaries import landmark_summary

    prepare_outputs(options, (options.fixed, options.moving, options.xfm))
    if options.volume is not None and not options.xfm:
        raise EddymotionError("--volume selects a transform of --xfm; add --xfm")
    matrix = read_transform(options.xfm, options.volume) if options.xfm else None
    fixed, moving = pair_landmarks(
        read_landmarks(options.fixed), read_landmarks(options.moving), by_order=options.by_order
    )
    errors = landmark_errors(fixed, moving, matrix)
    summary = landmark_summary(errors, matrix is not None)
    show(summary)
    warn_of_inverse(errors)
    if options.output:
        write(options, summary, partial(landmarks_plot, errors, matrix is not None))


def warn_of_inverse(errors: LandmarkErrors) -> None:
    """Warn where the inverse of a transform brings landmarks together, rather than itself."""
    if errors.inverse_mean_mm < 0.8 * min(errors.after.mean(), errors.before.mean()):
        log.warning(
            "the inverse of the transform leaves only %.3g mm on average; check that the "
            "transform maps points of FIXED to points of MOVING", errors.inverse_mean_mm
        )  # fmt: skip


def landmarks_plot(errors: LandmarkErrors, transformed: bool) -> Figure:
    """Draw how far landmarks are apart, before and after a transform if there is one."""
    from eddymotion.reports.comparison import landmarks_figure

    after = errors.after if transformed else None
    return landmarks_figure(errors.labels, errors.before, after, "Landmarks")


def evaluate_series(options: argparse.Namespace) -> None:
    """Judge one or two series."""
    from eddymotion.evaluation import (
        assess_series,
        compared_mask,
        correlation_between,
        refuse_different,
    )
    from eddymotion.evaluation.summaries import series_summary
    from eddymotion.io.series import load
    from eddymotion.models import get_model

    files = {"a": options.a} | ({"b": options.b} if options.b else {})
    prepare_outputs(options, files.values())
    series = {
        name: load(path, mask=options.mask, b0_threshold=options.b0_threshold, ignore=("tables",))
        for name, path in files.items()
    }
    first, last = series["a"], list(series.values())[-1]
    refuse_different(first, last)
    mask = compared_mask(*series.values())
    between = correlation_between(first, last, mask) if options.b else None
    model = get_model(options.model, first.gradients)
    qualities = {name: assess_series(dwi, mask, model) for name, dwi in series.items()}
    about = {
        "files": {name: path.name for name, path in files.items()},
        "n_voxels": int(mask.sum()),
        "model": type(model).__name__,
    }
    summary = series_summary(qualities, first.gradients, between, about)
    show(summary)
    if options.output:
        judged = [(files[name].name, quality) for name, quality in qualities.items()]
        write(options, summary, partial(series_plot, judged, between, first.gradients.b0s))


def series_plot(
    judged: Sequence[tuple[str, SeriesQuality]], between: np.ndarray | None, b0s: np.ndarray
) -> Figure:
    """Draw the figures of merit of files, named alike but for their folders perhaps."""
    from eddymotion.reports.comparison import series_figure

    names = [name.removesuffix(".gz").removesuffix(".nii") for name, _ in judged]
    if len(set(names)) < len(names):
        names = ["A", "B"]
    drawn = {
        name: {"loo_r2": quality.loo_r2, "ndc": quality.ndc, "fwhm_mm": quality.fwhm_mean_mm}
        for name, (_, quality) in zip(names, judged, strict=True)
    }
    return series_figure(drawn, between, shaded=b0s)


def show(summary: Summary) -> None:
    """Print the short table."""
    from eddymotion.evaluation.summaries import aligned

    print(aligned(summary.printed))


def written_files(options: argparse.Namespace) -> dict[str, Path]:
    """Return the paths of a command's outputs."""
    tables = {
        "motion": ("volumes", "scores", "slices"),
        "landmarks": ("landmarks",),
        "series": ("volumes",),
    }
    prefix = options.output

    def path(ending: str) -> Path:
        return prefix.with_name(prefix.name + ending)

    return {
        **{name: path(f"_{name}.tsv") for name in tables[options.command]},
        "figures": path(".json"),
        "plot": path(f".{options.plot_format}"),
    }


def prepare_outputs(options: argparse.Namespace, inputs: Iterable[Path | None]) -> None:
    """Make room for the outputs; raise if they would replace inputs or cannot be written."""
    from eddymotion.io.writing import refuse_overwriting

    if not options.output:
        return
    refuse_folder(options.output)
    refuse_overwriting(written_files(options).values(), inputs)
    prepare_output_dir(options.output.parent)


def write(options: argparse.Namespace, summary: Summary, plot: Callable[[], Figure]) -> None:
    """Write tables, figures and the plot, all or none."""
    from eddymotion.io.tsv import table_text
    from eddymotion.io.writing import together, write_json, write_text
    from eddymotion.reports import save_figure

    paths = written_files(options)
    with together():
        for name, columns in summary.tables.items():
            write_text(paths[name], table_text(columns))
        save_figure(plot(), paths["plot"])
        write_json(paths["figures"], summary.figures)
    print_written(paths[name] for name in (*summary.tables, "figures", "plot"))
