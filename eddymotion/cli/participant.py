# SPDX-License-Identifier: Apache-2.0
"""The BIDS-App, ``eddymotion BIDS_DIR OUTPUT_DIR {participant,group}``, and the demonstration."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eddymotion import __version__
from eddymotion.cli.console import (
    logging_to,
    messages,
    prepare_output_dir,
    refuse_output_in_input,
    run,
)
from eddymotion.cli.converters import above_zero, existing_file
from eddymotion.cli.options import (
    add_estimation_options,
    add_running_options,
    add_setting,
    add_settings,
    settings_from,
)
from eddymotion.cli.other_programs import NOT_NEEDED, OF_DATASETS, OF_ONE_SERIES
from eddymotion.cli.parser import Parser
from eddymotion.errors import EddymotionError
from eddymotion.pipeline.contradictions import refuse_joining_one, refuse_t1w
from eddymotion.wording import shown

if TYPE_CHECKING:
    from eddymotion.bids.series import Sorted
    from eddymotion.cli.board import Watch
    from eddymotion.workflows.bids_app import Run

log = logging.getLogger("eddymotion")

MEMORY_SHARE = 0.9
"""Of the machine's memory, for all series together."""

NOWHERE = Path()
"""Stands for no dataset."""

TOO_MUCH_MEMORY = 10.0
"""Times that of the machine: nobody means it."""

DESCRIPTION = """\
Correct head motion in the diffusion series of a BIDS dataset.

Each volume is aligned with its prediction from all others by a signal model; all
volumes are resampled once, with rotated b-vectors, into the frame of the first b=0.
For a series outside a BIDS dataset: eddymotion-correct."""

EXAMPLES = """\
examples:
  eddymotion bids/ out/ participant
  eddymotion bids/ out/ participant --participant-label 01 02 --nprocs 8
  eddymotion bids/ out/ group
  eddymotion --demo demo/
"""


def build_parser() -> Parser:
    """Return the parser of ``eddymotion``."""
    parser = Parser(
        prog="eddymotion", description=DESCRIPTION, epilog=EXAMPLES,
        not_needed={**NOT_NEEDED, **OF_ONE_SERIES},
    )  # fmt: skip
    parser.add_argument("bids_dir", type=Path, nargs="?", help="root of the BIDS dataset")
    parser.add_argument("output_dir", type=Path, nargs="?", help="folder for the derivatives")
    parser.add_argument("analysis_level", choices=("participant", "group"), nargs="?",
                        help="participant: correct every series; group: collect the quality "
                             "measures of the series corrected in OUTPUT_DIR")  # fmt: skip
    parser.add_argument("--demo", type=Path, metavar="DIR",
                        help="simulate a head with known motion in DIR, correct it, "
                             "and compare")  # fmt: skip
    parser.add_argument("--doctor", type=Path, metavar="BIDS_DIR", nargs="?", const=NOWHERE,
                        help="print versions, resources of the machine and problems of a "
                             "dataset, to paste into a bug report")  # fmt: skip
    _add_choosing_options(parser)
    add_estimation_options(parser)
    add_settings(parser, "runs of a session")
    add_running_options(parser, __version__)
    _add_workflow_options(parser)
    return parser


def _add_choosing_options(parser: Parser) -> None:
    group = parser.add_argument_group("selection of data")
    group.add_argument("--participant-label", "--participant_label", nargs="+", default=[],
                       metavar="LABEL", help="participants, with or without sub-")  # fmt: skip
    group.add_argument("--session-id", "--session-label", nargs="+", default=[],
                       metavar="LABEL", help="sessions, with or without ses-")  # fmt: skip
    group.add_argument("--bids-filter-file", type=existing_file, metavar="FILE",
                       help='JSON {"dwi": {entity: value}, "t1w": {…}}; null: absent, "*": '
                            "present")  # fmt: skip
    group.add_argument("--anat-derivatives", type=Path, metavar="DIR",
                       help="output folder of fMRIPrep or sMRIPrep, whose T1w images, brain "
                            "masks and white matter are used for --output-space T1w (default: "
                            "the T1w images of the dataset)")  # fmt: skip
    group.add_argument("--bids-database-dir", type=Path, metavar="DIR",
                       help="folder for PyBIDS' index of the dataset, made by the first call "
                            "and read by later ones (default: no index; folders are read "
                            "directly, which is fast on local disks)")  # fmt: skip
    group.add_argument("--skip-bids-validation", "--skip_bids_validator", action="store_true",
                       help="do not run the BIDS validator (which only logs what "
                            "it finds)")  # fmt: skip
    add_setting(group, "brain_mask",
                help="brain mask on the grid of the series, if a single series "
                     "is corrected")  # fmt: skip


def _add_workflow_options(parser: Parser) -> None:
    group = parser.add_argument_group("workflow")
    group.add_argument("-w", "--work-dir", type=Path, metavar="DIR",
                       help="folder for intermediate results, from which an interrupted run "
                            "resumes (default: OUTPUT_DIR/work, removed when all series are "
                            "done)")  # fmt: skip
    group.add_argument("--mem-gb", "--mem", type=gigabytes, metavar="GB",
                       help="memory limit for all series together, such as 16 or 16G (default: "
                            "90 %% of the machine's)")  # fmt: skip
    group.add_argument("--mem-mb", type=megabytes, dest="mem_gb", metavar="MB",
                       help="the same in MB")  # fmt: skip
    group.add_argument("--use-plugin", "--nipype-plugin-file", type=existing_file, metavar="FILE",
                       help="YAML or JSON with plugin and plugin_args, for Nipype to run nodes "
                            "with, e.g. SLURM (default: MultiProc)")  # fmt: skip
    group.add_argument("--write-graph", action="store_true",
                       help="draw the workflow graph to logs/graph.svg")  # fmt: skip
    group.add_argument("--stop-on-first-crash", action="store_true",
                       help="stop when a series fails, instead of continuing with "
                            "the others")  # fmt: skip
    group.add_argument(
        "--reports-only", action="store_true", help="only rewrite the reports of finished series"
    )


MEMORY_GB = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}
"""Unit of memory → GB."""


def gigabytes(text: str) -> float:
    """Convert an amount of memory, in GB where it has no unit, to GB."""
    number, unit = text.upper().removesuffix("B"), "G"
    if number[-1:] in MEMORY_GB:
        number, unit = number[:-1], number[-1]
    try:
        return above_zero(number) * MEMORY_GB[unit]
    except argparse.ArgumentTypeError as error:
        expected = "an amount of memory such as 16 or 16G"
        raise argparse.ArgumentTypeError(f"{shown(text)} given, expected {expected}") from error


def megabytes(text: str) -> float:
    """Convert an amount of memory in MB to GB."""
    return gigabytes(f"{text}M" if text[-1:].isdigit() else text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion``; return its exit code."""
    return run("eddymotion", lambda: carry_out(arguments))


def carry_out(arguments: Sequence[str] | None) -> int:
    """Do what the options say."""
    parser = build_parser()
    options = parser.parse(arguments)
    given = [options.bids_dir, options.output_dir, options.analysis_level]
    if options.doctor is not None:
        return examine_here(options)
    if options.demo is not None:
        if any(given):
            parser.error("--demo DIR takes no BIDS_DIR, OUTPUT_DIR and level; leave them out")
        for name, why in OF_DATASETS.items():
            if name != "--demo" and parser.was_given(name):
                parser.error(f"--demo has no use for {name}; leave it out: {why}")
        return demonstrate(options)
    if not all(given):
        parser.error(parser.misplaced_choice(options) or "write: eddymotion BIDS_DIR OUTPUT_DIR "
                     "participant (or group), or eddymotion --demo DIR")  # fmt: skip
    if options.analysis_level == "participant" and not options.reports_only:
        return correct_dataset(options)
    from eddymotion.cli.finished import gather_group, write_reports

    return gather_group(options) if options.analysis_level == "group" else write_reports(options)


def examine_here(options: argparse.Namespace) -> int:
    """Print what the program sees here."""
    from eddymotion.cli.doctor import examine

    bids_dir = options.bids_dir if options.doctor == NOWHERE else options.doctor
    with messages(options.verbose, logging.WARNING):
        print(examine(bids_dir))
    return 0


def demonstrate(options: argparse.Namespace) -> int:
    """Run the demonstration and print its table."""
    from eddymotion.cli.board import alone
    from eddymotion.cli.demo import run_demo
    from eddymotion.workflows.bids_app import sole_writer

    settings = settings_from(options)
    refuse_t1w(settings.given, "the demonstration has no T1w")
    refuse_joining_one(settings.given)
    prepare_output_dir(options.demo)
    derivatives = options.demo / "derivatives"
    with (
        sole_writer(derivatives, ["demo"]),
        logging_to(derivatives / "logs", options.verbose),
    ):
        with alone("sub-demo", options.verbose) as progress:
            table = run_demo(options.demo, settings, progress)
        print(table)
    return 0


def correct_dataset(options: argparse.Namespace) -> int:
    """Correct every series; 1 if some failed."""
    from eddymotion.bids.series import warn_of_description
    from eddymotion.cli.board import Watch
    from eddymotion.cli.choice import refuse_shared_files, sorted_series
    from eddymotion.derivatives.dataset import refuse_foreign_dataset
    from eddymotion.workflows.bids_app import prepare_work_dir, sole_writer

    bids_dir, output_dir = options.bids_dir.resolve(), options.output_dir.resolve()
    refuse_output_in_input(bids_dir, output_dir)
    refuse_foreign_dataset(output_dir)
    if options.anat_derivatives is not None and options.output_space != "T1w":
        raise EddymotionError(
            "--anat-derivatives has no effect without --output-space T1w; add that, or leave "
            "--anat-derivatives out"
        )
    run_options = run_from(options, output_dir)
    with messages(options.verbose, logging.WARNING):
        found = sorted_series(options)
        warn_of_description(bids_dir)
    refuse_shared_files(options, found)
    prepare_output_dir(output_dir)
    with sole_writer(output_dir, list(found.series)) as locks:
        prepare_work_dir(run_options.work_dir)
        with logging_to(output_dir / "logs", options.verbose) as log_file:
            watch = Watch(options.verbose)
            run_options = replace(run_options, log_file=log_file, locks=locks, watched=watch)
            return _correct_found(found, run_options, watch, options)


def _correct_found(
    found: Sorted, run_options: Run, watch: Watch, options: argparse.Namespace
) -> int:
    """Correct the series that were found, and say how it ended; 1 if some failed."""
    from eddymotion.bids.series import report_problems
    from eddymotion.cli.closing import log_failures, log_skipped, rows_of, show_table
    from eddymotion.derivatives.dataset import write_citation, write_dataset_files
    from eddymotion.reports.participant import finished_sidecars
    from eddymotion.workflows.bids_app import correct_participants

    bids_dir, n_participants = options.bids_dir.resolve(), len(found.series)
    log.info("eddymotion %s: %d series of %d participant%s", __version__, found.n_series,
             n_participants, "s" * (n_participants > 1))  # fmt: skip
    if not options.skip_bids_validation:
        report_problems(bids_dir)
    write_dataset_files(run_options.output_dir, bids_dir, options.anat_derivatives)
    failures = correct_participants(found, run_options)
    write_citation(run_options.output_dir, finished_sidecars(run_options.output_dir))
    if watch.board is not None and options.verbose >= 0:
        show_table(rows_of(watch, failures), run_options.output_dir)
    log_skipped(found)
    log_failures(failures, found.n_series, run_options.log_file)
    return 1 if failures else 0


def run_from(options: argparse.Namespace, output_dir: Path) -> Run:
    """Collect how the run is to be carried out."""
    from eddymotion.machine.cgroups import available_memory_gb
    from eddymotion.pipeline.limits import Limits, read_plugin_file
    from eddymotion.workflows.bids_app import Run
    from eddymotion.workflows.execution import check_plugin

    plugin = read_plugin_file(options.use_plugin) if options.use_plugin else None
    if plugin is not None:
        check_plugin(plugin)
    work_dir = (options.work_dir or output_dir / "work").resolve()
    refuse_output_in_input(options.bids_dir.resolve(), work_dir)
    there = available_memory_gb()
    memory = options.mem_gb or MEMORY_SHARE * there
    if memory > TOO_MUCH_MEMORY * there and plugin is None:
        log.warning("--mem-gb %g: this machine has %.0f GB; if MB were meant, write --mem-mb %g",
                    memory, there, memory)  # fmt: skip
    return Run(
        output_dir=output_dir,
        work_dir=work_dir,
        settings=settings_from(options).with_absolute_paths(),
        limits=Limits(options.nprocs, memory, options.omp_nthreads),
        plugin=plugin,
        stop_on_first_crash=options.stop_on_first_crash,
        write_graph=options.write_graph,
        verbosity=options.verbose,
    )
