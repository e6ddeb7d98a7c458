# SPDX-License-Identifier: Apache-2.0
"""The BIDS-App, ``eddymotion BIDS_DIR OUTPUT_DIR {participant,group}``, and the demonstration."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
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
from eddymotion.cli.options import (
    Parser,
    add_estimation_options,
    add_running_options,
    add_setting,
    add_settings,
    existing_file,
    not_negative,
    refuse_t1w,
    settings_from,
)
from eddymotion.errors import EddymotionError
from eddymotion.wording import shown

if TYPE_CHECKING:
    from eddymotion.bids.series import Sorted
    from eddymotion.derivatives import Outputs
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
    parser = Parser(prog="eddymotion", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("bids_dir", type=Path, nargs="?", help="root of the BIDS dataset")
    parser.add_argument("output_dir", type=Path, nargs="?", help="where the derivatives go")
    parser.add_argument("analysis_level", choices=("participant", "group"), nargs="?",
                        help="participant: correct every series; group: gather the quality of "
                             "what was corrected in OUTPUT_DIR")  # fmt: skip
    parser.add_argument("--demo", type=Path, metavar="DIR",
                        help="simulate a head with known motion in DIR, correct it, "
                             "and compare")  # fmt: skip
    parser.add_argument("--doctor", type=Path, metavar="BIDS_DIR", nargs="?", const=NOWHERE,
                        help="tell versions, what the machine gives, and the problems of a "
                             "dataset, to be pasted into a question")  # fmt: skip
    group = parser.add_argument_group("what to process")
    group.add_argument("--participant-label", "--participant_label", nargs="+", default=[],
                       metavar="LABEL", help="participants, with or without sub-")  # fmt: skip
    group.add_argument("--session-id", "--session-label", nargs="+", default=[],
                       metavar="LABEL", help="sessions, with or without ses-")  # fmt: skip
    group.add_argument("--bids-filter-file", type=existing_file, metavar="FILE",
                       help='JSON {"dwi": {entity: value}, "t1w": {…}}; null: absent, "*": '
                            "present")  # fmt: skip
    group.add_argument("--anat-derivatives", type=Path, metavar="DIR",
                       help="output folder of fMRIPrep or sMRIPrep: its T1w images, brain masks "
                            "and white matter are those of --output-space T1w (default: the T1w "
                            "images of the dataset)")  # fmt: skip
    group.add_argument("--bids-database-dir", type=Path, metavar="DIR",
                       help="where PyBIDS keeps its index of the dataset, made on the first call "
                            "and read by later ones (default: the folders of the participants "
                            "are read, which is fast on local disks)")  # fmt: skip
    group.add_argument("--skip-bids-validation", "--skip_bids_validator", action="store_true",
                       help="do not run the BIDS validator (its findings are only "
                            "logged)")  # fmt: skip
    add_setting(group, "brain_mask",
                help="brain mask on the grid of the series, when there is just one")  # fmt: skip
    add_estimation_options(parser)
    add_settings(parser, "runs of a session")
    add_running_options(parser, __version__)
    group = parser.add_argument_group("workflow")
    group.add_argument("-w", "--work-dir", type=Path, metavar="DIR",
                       help="where intermediate results are kept, so that an interrupted run goes "
                            "on where it stopped (default: OUTPUT_DIR/work, removed when all "
                            "series are done)")  # fmt: skip
    group.add_argument("--mem-gb", "--mem", type=gigabytes, metavar="GB",
                       help="memory that all series together may take, such as 16 or 16G "
                            "(default: nine tenths of the machine's)")  # fmt: skip
    group.add_argument("--mem-mb", type=megabytes, dest="mem_gb", metavar="MB",
                       help="the same in MB")  # fmt: skip
    group.add_argument("--use-plugin", "--nipype-plugin-file", type=existing_file, metavar="FILE",
                       help="YAML or JSON with plugin and plugin_args: who runs the nodes, e.g. "
                            "SLURM (default: MultiProc)")  # fmt: skip
    group.add_argument("--write-graph", action="store_true",
                       help="draw the workflow as logs/graph.svg")  # fmt: skip
    group.add_argument("--stop-on-first-crash", action="store_true",
                       help="stop when a series fails, instead of going on with the "
                            "others")  # fmt: skip
    group.add_argument(
        "--reports-only", action="store_true", help="write the reports of finished series again"
    )
    return parser


MEMORY_GB = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}
"""Unit of memory → GB."""


def gigabytes(text: str) -> float:
    """Convert an amount of memory, in GB where it has no unit, to GB."""
    number, unit = text.upper().removesuffix("B"), "G"
    if number[-1:] in MEMORY_GB:
        number, unit = number[:-1], number[-1]
    value = not_negative(number)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, expected memory above zero")
    return value * MEMORY_GB[unit]


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
        return demonstrate(options)
    if not all(given):
        parser.error(parser.misplaced_choice(options) or "write: eddymotion BIDS_DIR OUTPUT_DIR "
                     "participant (or group), or eddymotion --demo DIR")  # fmt: skip
    if options.analysis_level == "group":
        return gather_group(options)
    return write_reports(options) if options.reports_only else correct_dataset(options)


def examine_here(options: argparse.Namespace) -> int:
    """Tell what the program sees here."""
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
    refuse_t1w(settings, "the demonstration has no T1w")
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
    from eddymotion.bids.series import report_problems, warn_of_missing_description
    from eddymotion.cli.board import Watch
    from eddymotion.cli.closing import rows_of, show_table
    from eddymotion.derivatives.dataset import (
        refuse_foreign_dataset,
        write_citation,
        write_dataset_files,
    )
    from eddymotion.reports.participant import finished_sidecars
    from eddymotion.workflows.bids_app import prepare_work_dir, sole_writer

    bids_dir, output_dir = options.bids_dir.resolve(), options.output_dir.resolve()
    refuse_output_in_input(bids_dir, output_dir)
    refuse_foreign_dataset(output_dir)
    refuse_contradictions(options)
    run_options = run_from(options, output_dir)
    with messages(options.verbose, logging.WARNING):
        found = sorted_series(options)
        warn_of_missing_description(bids_dir)
    n_series = found.n_series
    refuse_shared_files(options, found)
    prepare_output_dir(output_dir)
    with sole_writer(output_dir, list(found.series)) as locks:
        prepare_work_dir(run_options.work_dir)
        with logging_to(output_dir / "logs", options.verbose) as log_file:
            n_participants = len(found.series)
            log.info("eddymotion %s: %d series of %d participant%s", __version__, n_series,
                     n_participants, "s" * (n_participants > 1))  # fmt: skip
            if not options.skip_bids_validation:
                report_problems(bids_dir)
            write_dataset_files(output_dir, bids_dir, options.anat_derivatives)
            watch = Watch(options.verbose)
            run_options = replace(run_options, log_file=log_file, locks=locks, watched=watch)
            failures = correct_all(found, run_options)
            write_citation(output_dir, finished_sidecars(output_dir))
            if watch.board is not None and options.verbose >= 0:
                show_table(rows_of(watch, failures), output_dir)
            log_skipped(found)
            log_failures(failures, n_series, log_file)
    return 1 if failures else 0


def refuse_shared_files(options: argparse.Namespace, found: Sorted) -> None:
    """Raise if a file that belongs to one head at one place is given for several."""
    choose = "with --participant-label, --session-id or --bids-filter-file"
    if options.brain_mask and found.n_series > 1:
        raise EddymotionError(
            f"--brain-mask: {found.n_series} series match but one mask is given; choose one "
            f"series {choose}"
        )
    if options.fieldmap is None:
        return
    series = [one for of_participant in found.series.values() for one in of_participant]
    frames = {one.dwi if options.separate_all_dwis else one.dwi.parent for one in series}
    if len(frames) > 1:
        what = "series, each in a frame of its own," if options.separate_all_dwis else "sessions"
        raise EddymotionError(
            f"--fieldmap: {len(frames)} {what} match but one field is given; choose one {choose}"
        )


def refuse_contradictions(options: argparse.Namespace) -> None:
    """Raise if an option asks for what another leaves out."""
    if options.separate_all_dwis and options.distortion_group_merge != "none":
        raise EddymotionError(
            "--separate-all-dwis leaves runs in frames of their own, and --distortion-group-merge "
            "wants them in one; leave one of them out"
        )
    if options.anat_derivatives is not None and options.output_space != "T1w":
        raise EddymotionError(
            "--anat-derivatives was given, but no --output-space T1w; add it, or leave it out"
        )


def sorted_series(options: argparse.Namespace) -> Sorted:
    """Find the series that the options choose, and set apart what is not corrected."""
    from eddymotion.bids.anatomy import AnatomyFinder, with_anatomy
    from eddymotion.bids.series import Sorted, find_series
    from eddymotion.bids.sessions import with_runs

    database_dir = options.bids_database_dir
    if database_dir is not None:
        database_dir = database_dir.resolve()
        if not database_dir.is_dir():
            refuse_output_in_input(options.bids_dir.resolve(), database_dir)
    found = find_series(
        options.bids_dir,
        participants=options.participant_label,
        sessions=options.session_id,
        filter_file=options.bids_filter_file,
        database_dir=database_dir,
    )
    sorted_out = Sorted.of(found, options.b0_threshold)
    if not options.separate_all_dwis:
        sorted_out = with_runs(sorted_out)
    if options.output_space != "T1w":
        return sorted_out
    derivatives, filter_file = options.anat_derivatives, options.bids_filter_file
    if derivatives is not None:
        derivatives = derivatives.resolve()
    return with_anatomy(sorted_out, AnatomyFinder.of(options.bids_dir, derivatives, filter_file))


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
        log.warning("--mem-gb %g: this machine has %.0f GB; were MB meant? write --mem-mb %g",
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


def correct_all(found: Sorted, run: Run) -> dict[str, str]:
    """Correct all series; return the failures, name → reason."""
    from eddymotion.workflows.bids_app import correct_participants

    return correct_participants(found, run)


def write_reports(options: argparse.Namespace) -> int:
    """Write the reports again, from the derivatives alone; 1 if a series has none."""
    from eddymotion.reports.participant import finished_outputs, write_participant_page
    from eddymotion.workflows.bids_app import sole_writer

    output_dir = options.output_dir.resolve()
    refuse_output_in_input(options.bids_dir.resolve(), output_dir)
    refuse_unknown_labels(options, output_dir)
    wanted = [label.removeprefix("sub-") for label in options.participant_label]
    found = [path.name.removeprefix("sub-") for path in sorted(output_dir.glob("sub-*/"))]
    labels = [
        label
        for label in found
        if label in (wanted or found) and finished_outputs(output_dir / f"sub-{label}")
    ]
    unfinished, skipped = unfinished_series(options, output_dir)
    if not labels and not unfinished and not skipped:
        which = f" of {', '.join(wanted)}" if wanted else ""
        raise EddymotionError(
            f"{output_dir}: no finished series{which}; run without --reports-only"
        )
    labels = sorted({*labels, *unfinished, *skipped})
    prepare_output_dir(output_dir)
    with sole_writer(output_dir, labels), logging_to(output_dir / "logs", options.verbose) as file:
        failures: dict[str, str] = {}
        n_series = 0
        for label in labels:
            name, missing = f"sub-{label}", unfinished.get(label, {})
            finished, page = finished_outputs(output_dir / name), output_dir / f"{name}.html"
            beside = skipped.get(label, {})
            failures |= write_participant_page(page, name, finished, missing, beside)
            n_series += len(finished) + len(missing)
            log.info("report: %s", page)
        log_failures(failures, n_series, file)
    return 1 if failures else 0


def gather_group(options: argparse.Namespace) -> int:
    """Write the table and the page of the group, from the derivatives; 1 if a series has none."""
    from eddymotion.reports.group import TABLE
    from eddymotion.reports.group_report import PAGE, build_group_report

    output_dir = options.output_dir.resolve()
    refuse_output_in_input(options.bids_dir.resolve(), output_dir)
    if options.bids_filter_file:
        raise EddymotionError(
            "--bids-filter-file: the group level takes all series that were corrected; choose "
            "with --participant-label and --session-id, or select rows of its table"
        )
    if not output_dir.is_dir():
        raise EddymotionError(f"{output_dir}: no such folder; run the participant level first")
    refuse_unknown_labels(options, output_dir)
    missing, skipped = unfinished_series(options, output_dir)
    if skipped and not missing and not has_finished(options, output_dir):
        with messages(options.verbose):
            log.info("group: nothing to gather, all series of these participants were skipped")
        return 0
    unfinished = {name: why for of_one in missing.values() for name, why in of_one.items()}
    prepare_output_dir(output_dir)
    with logging_to(output_dir / "logs", options.verbose) as file:
        labels, sessions = options.participant_label, options.session_id
        group = build_group_report(output_dir, labels, sessions, unfinished)
        if group.rows:
            log.info("group of %d series: %s, %s", len(group.rows), output_dir / TABLE,
                     output_dir / PAGE)  # fmt: skip
        log_failures(dict(group.errors), len(group.rows) + len(group.errors), file)
    return 1 if group.errors else 0


def has_finished(options: argparse.Namespace, output_dir: Path) -> bool:
    """Whether one of the participants that the options choose has a finished series."""
    from eddymotion.reports.participant import finished_outputs

    wanted = [label.removeprefix("sub-") for label in options.participant_label] or ["*"]
    folders = [folder for label in wanted for folder in output_dir.glob(f"sub-{label}/")]
    return any(finished_outputs(folder) for folder in folders)


def refuse_unknown_labels(options: argparse.Namespace, output_dir: Path) -> None:
    """Raise if a participant or session is neither among the outputs nor in the dataset."""
    from eddymotion.bids.series import labels_listed

    for option, prefix, pattern in (
        ("participant_label", "sub-", "sub-*"), ("session_id", "ses-", "sub-*/ses-*"),
    ):  # fmt: skip
        wanted = {label.removeprefix(prefix) for label in getattr(options, option)}
        known = {
            path.name.removeprefix(prefix)
            for folder in (output_dir, options.bids_dir)
            for path in folder.glob(pattern)
            if path.is_dir()
        }
        if missing := sorted(wanted - known):
            raise EddymotionError(
                f"--{option.replace('_', '-')}: no {prefix}{missing[0]} in {output_dir} or "
                f"{options.bids_dir}; there are {labels_listed(sorted(known))}"
            )


def unfinished_series(
    options: argparse.Namespace, output_dir: Path
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Find the series of each participant that have no outputs, with what to do; those skipped.

    None where the raw dataset is not there: reports do not need it.
    """
    from eddymotion.bids.series import outputs_of

    why = "no finished outputs; run the participant level"
    if options.reports_only:
        why += " without --reports-only"
    try:
        with messages(options.verbose, logging.ERROR):  # the run has told
            raw = sorted_series(options)
    except EddymotionError as error:
        log.debug("reports without the raw dataset: %s", error)
        return {}, {}
    unfinished = {
        label: {
            series.dwi.name: why
            for series in of_participant
            if not is_finished(outputs_of(series, label, output_dir))
        }
        | dict(raw.refused[label])
        for label, of_participant in raw.series.items()
    }
    skipped = {label: dict(names) for label, names in raw.skipped.items() if names}
    return {label: missing for label, missing in unfinished.items() if missing}, skipped


def is_finished(outputs: Outputs) -> bool:
    """Whether there are outputs of a series, in whatever space."""
    return any(one["sidecar"].is_file() for one in (outputs, *outputs.elsewhere()))


def log_skipped(found: Sorted) -> None:
    """List the series that were skipped, those with the same reason together."""
    from eddymotion.bids.series import flattened

    for reason, names in by_reason(flattened(found.skipped)).items():
        log.info("%d series skipped: %s: %s", len(names), ", ".join(names), reason)


def log_failures(failures: dict[str, str], n_series: int, log_file: Path) -> None:
    """List the series that failed, those with the same reason together."""
    if not failures:
        return
    log.error("%d of %d series failed (log: %s):", len(failures), n_series, log_file)
    for reason, names in by_reason(failures).items():
        log.error("  %s: %s", ", ".join(names), reason)


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Turn name → reason into reason → names."""
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    return grouped
