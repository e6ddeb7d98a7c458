"""The BIDS-App: ``eddymotion BIDS_DIR OUTPUT_DIR participant``, and the demonstration."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from eddymotion import __version__
from eddymotion.cli.console import (
    logging_to,
    prepare_output_dir,
    progress_for_console,
    refuse_output_in_input,
    run,
)
from eddymotion.cli.options import (
    Parser,
    add_estimation_options,
    add_running_options,
    existing_file,
    settings_from,
)
from eddymotion.errors import EddymotionError

log = logging.getLogger("eddymotion")

DESCRIPTION = """\
Correct head motion in the diffusion series of a BIDS dataset.

Each volume is predicted from all others by a signal model and registered to its
prediction; all volumes are resampled once, with rotated b-vectors, into the frame
of the first b=0. For a series outside a BIDS dataset: eddymotion-correct."""

EXAMPLES = """\
examples:
  eddymotion bids/ out/ participant
  eddymotion bids/ out/ participant --participant-label 01 02 --nprocs 8
  eddymotion --demo demo/
"""


def build_parser() -> Parser:
    """Return the parser of ``eddymotion``."""
    parser = Parser(prog="eddymotion", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("bids_dir", type=Path, nargs="?", help="root of the BIDS dataset")
    parser.add_argument("output_dir", type=Path, nargs="?", help="where the derivatives go")
    parser.add_argument("analysis_level", choices=("participant",), nargs="?",
                        help="participant: correct every series")  # fmt: skip
    parser.add_argument("--demo", type=Path, metavar="DIR",
                        help="simulate a head with known motion in DIR, correct it, "
                             "and compare")  # fmt: skip
    group = parser.add_argument_group("what to process")
    group.add_argument("--participant-label", "--participant_label", nargs="+", default=[],
                       metavar="LABEL", help="participants, with or without sub-")  # fmt: skip
    group.add_argument("--session-id", "--session-label", nargs="+", default=[],
                       metavar="LABEL", help="sessions, with or without ses-")  # fmt: skip
    group.add_argument("--bids-filter-file", type=existing_file, metavar="FILE",
                       help='JSON {"dwi": {entity: value}}; null: absent, "*": '
                            "present")  # fmt: skip
    group.add_argument("--skip-bids-validation", "--skip_bids_validator", action="store_true",
                       help="do not run the BIDS validator (its findings are only "
                            "logged)")  # fmt: skip
    group.add_argument("--brain-mask", type=existing_file, metavar="FILE",
                       help="brain mask on the grid of the series, when there is just "
                            "one")  # fmt: skip
    add_estimation_options(parser)
    add_running_options(parser, __version__)
    parser.add_argument("--stop-on-first-crash", action="store_true",
                        help="stop when a series fails, instead of going on with the "
                             "next")  # fmt: skip
    parser.add_argument(
        "--reports-only", action="store_true", help="write the reports of finished series again"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion``; return its exit code."""
    parser = build_parser()
    options = parser.parse(arguments)
    given = [options.bids_dir, options.output_dir, options.analysis_level]
    if options.demo is not None:
        if any(given):
            parser.error("--demo DIR takes no BIDS_DIR, OUTPUT_DIR and level; leave them out")
        return run(parser.prog, lambda: demonstrate(options))
    if not all(given):
        parser.error("write: eddymotion BIDS_DIR OUTPUT_DIR participant, or eddymotion --demo DIR")
    return run(parser.prog, lambda: correct_dataset(options))


def demonstrate(options: argparse.Namespace) -> int:
    """Run the demonstration and print its table."""
    from eddymotion.demo import run_demo

    prepare_output_dir(options.demo)
    with logging_to(options.demo / "derivatives" / "logs", options.verbose):
        print(run_demo(options.demo, settings_from(options), progress_for_console()))
    return 0


def correct_dataset(options: argparse.Namespace) -> int:
    """Correct every series; 1 if some failed."""
    from eddymotion.bids import find_series, report_problems
    from eddymotion.derivatives.dataset import write_dataset_files

    bids_dir, output_dir = options.bids_dir.resolve(), options.output_dir.resolve()
    refuse_output_in_input(bids_dir, output_dir)
    participants = find_series(
        bids_dir,
        participants=options.participant_label,
        sessions=options.session_id,
        filter_file=options.bids_filter_file,
    )
    n_series = sum(map(len, participants.values()))
    if options.brain_mask and n_series > 1:
        raise EddymotionError(
            f"--brain-mask: {n_series} series match but one mask is given; choose one series with "
            "--participant-label, --session-id or --bids-filter-file"
        )
    prepare_output_dir(output_dir)
    with logging_to(output_dir / "logs", options.verbose) as log_file:
        log.info("eddymotion %s: %d series of %d participant(s)",
                 __version__, n_series, len(participants))  # fmt: skip
        if not options.skip_bids_validation:
            report_problems(bids_dir)
        write_dataset_files(output_dir, bids_dir)
        failures = _correct_all(participants, output_dir, options)
        if failures:
            log.error("%d of %d series failed (log: %s):", len(failures), n_series, log_file)
            for name, reason in failures.items():
                log.error("  %s: %s", name, reason)
    return 1 if failures else 0


def _correct_all(participants: dict, output_dir: Path, options: argparse.Namespace) -> dict:
    """Correct series by series; return the failures, name → reason."""
    from eddymotion.bids import outputs_of
    from eddymotion.steps import (
        correct_series,
        finished_series,
        finished_summary,
        write_report,
    )

    settings = settings_from(options)
    failures: dict[str, str] = {}
    for participant, all_series in participants.items():
        for series in all_series:
            outputs = outputs_of(series, participant, output_dir)
            try:
                if not options.reports_only:
                    correct_series(series, outputs, settings, progress_for_console())
                elif finished_summary(outputs) is None:
                    raise EddymotionError("no finished outputs; run without --reports-only")
            except EddymotionError as error:
                failures[series.dwi.name] = str(error)
            except Exception as error:  # one series must not take the others with it
                log.debug("%s failed", series.dwi.name, exc_info=True)
                failures[series.dwi.name] = f"{type(error).__name__}: {error}"
            if failures and options.stop_on_first_crash:
                break
        name = f"sub-{participant}"
        done = finished_series(output_dir / name, output_dir / name / "figures")
        if done:
            write_report(output_dir / f"{name}.html", name, done)
        if failures and options.stop_on_first_crash:
            break
    return failures
