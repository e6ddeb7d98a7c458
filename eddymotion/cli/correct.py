# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-correct DWI …``: no BIDS needed; the same engine and outputs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
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
    add_estimation_options,
    add_running_options,
    add_setting,
    add_settings,
    settings_from,
)
from eddymotion.cli.other_programs import NOT_NEEDED, OF_DATASETS
from eddymotion.cli.parser import Parser
from eddymotion.cli.results import RESULT, tell
from eddymotion.errors import SERIES_WANTED, EddymotionError, absence
from eddymotion.io.ahead import decompressing_ahead
from eddymotion.machine.importing import importing
from eddymotion.pipeline.contradictions import refuse_joining_one, refuse_t1w

if TYPE_CHECKING:
    from eddymotion.derivatives import Outputs
    from eddymotion.io.sidecars import SeriesFiles
    from eddymotion.pipeline.settings import Settings

log = logging.getLogger("eddymotion")

DESCRIPTION = """\
Correct head motion in a diffusion series, or in several of one head together.

Finds .bval, .bvec and .json beside each image. For a BIDS dataset: eddymotion."""

EXAMPLES = """\
examples:
  eddymotion-correct dwi.nii.gz
  eddymotion-correct scan.nii --bval table.bval --bvec table.bvec -o corrected/
  eddymotion-correct dwi_AP.nii.gz b0_PA.nii.gz
  eddymotion-correct dwi_AP.nii.gz dwi_PA.nii.gz --distortion-group-merge concat
"""


def build_parser() -> Parser:
    """Return the parser of ``eddymotion-correct``."""
    parser = Parser(
        prog="eddymotion-correct", description=DESCRIPTION, epilog=EXAMPLES,
        surplus="name all images one after the other, before the options",
        not_needed={**NOT_NEEDED, **OF_DATASETS},
    )  # fmt: skip
    parser.add_argument("dwi", type=Path, nargs="+", metavar="DWI",
                        help="4-D NIfTI image; of several, all lie in the frame of the first "
                             "that has b>0, and opposite phase encodings, also of b=0 alone, "
                             "determine the distortion")  # fmt: skip
    parser.add_argument(
        "--bval", type=Path, metavar="FILE", help="b-values (default: file next to DWI)"
    )
    parser.add_argument(
        "--bvec", type=Path, metavar="FILE", help="b-vectors (default: file next to DWI)"
    )
    add_setting(parser, "brain_mask", "--mask", "--brain-mask",
                help="brain mask (default: computed from the mean b=0)")  # fmt: skip
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("corrected"), metavar="DIR",
                        help="output folder (default: ./%(default)s)")  # fmt: skip
    add_estimation_options(parser)
    add_settings(parser, "runs of a session")
    add_running_options(parser, __version__)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion-correct``; return its exit code."""
    return run("eddymotion-correct", lambda: correct_given(build_parser().parse(arguments)))


def correct_given(options: argparse.Namespace) -> int:
    """Correct the series and write their report."""
    for image in options.dwi:
        if not image.is_file():
            raise EddymotionError(absence(image, SERIES_WANTED))
    with decompressing_ahead(*options.dwi[:1] * (options.nprocs > 1)):
        return _corrected(options)


def _corrected(options: argparse.Namespace) -> int:
    with importing:
        from eddymotion.cli.board import in_turn
        from eddymotion.derivatives import Outputs
        from eddymotion.machine.locks import locked
        from eddymotion.machine.temporaries import remove_stale_temporaries
        from eddymotion.pipeline.series_job import reason_of
        from eddymotion.pipeline.session import correct_session

    folder = options.output_dir
    for image in options.dwi:
        if dataset := raw_dataset_of(image.resolve()):
            refuse_output_in_input(dataset, folder.resolve())
    settings = settings_from(options)
    refuse_t1w(settings.given, "a series outside a dataset has none")
    given = _given_series(options, settings)
    prepare_output_dir(folder)
    runs = [(series, Outputs.in_folder(folder, series.dwi)) for series in given]
    every = [outputs for _, outputs in runs]
    names = [outputs.src for outputs in every]
    with (
        locked([folder / f".{name}.lock" for name in names], str(folder / ", ".join(names))),
        logging_to(folder / "logs", options.verbose) as log_file,
    ):
        remove_stale_temporaries(folder / "figures")
        try:
            with in_turn(names, options.verbose) as watcher:
                summaries = correct_session(
                    runs, settings, folder / "work",
                    lambda outputs: watcher.turned_to(outputs.src),
                )  # fmt: skip
        except (EddymotionError, OSError):
            raise
        except Exception as error:
            failed = ", ".join(str(series.dwi) for series in given)
            log.debug("%s failed", failed, exc_info=True)
            log.error("%s failed: %s (log: %s)", failed, reason_of(error), log_file)
            return 1
        if options.verbose == 0:  # with -v they were among the messages
            _tell_summaries(names, summaries)
        return _tell_outputs(folder, given, every)


def _given_series(options: argparse.Namespace, settings: Settings) -> list[SeriesFiles]:
    """Return the series that are corrected."""
    from eddymotion.io.sidecars import SeriesFiles

    if len(options.dwi) == 1:
        refuse_joining_one(settings.given)
        return [SeriesFiles(options.dwi[0], options.bval, options.bvec)]
    from eddymotion.cli.given_series import series_together

    with messages(options.verbose, logging.WARNING):
        return series_together(options, settings)


def _tell_summaries(names: Sequence[str], summaries: Sequence[Mapping[str, str]]) -> None:
    for name, summary in zip(names, summaries, strict=True):
        if len(names) > 1:
            tell(f"{name}:")
        tell("\n".join(f"{label}: {value}" for label, value in summary.items()))


def _tell_outputs(folder: Path, given: Sequence[SeriesFiles], every: Sequence[Outputs]) -> int:
    """Write the report and say where the outputs are; return the exit code."""
    from eddymotion.derivatives.dataset import write_citation
    from eddymotion.derivatives.session import SessionOutputs
    from eddymotion.reports.participant import write_participant_page
    from eddymotion.reports.series import SeriesReport

    write_citation(folder, sorted(folder.glob("*_desc-preproc_dwi.json")))
    session = SessionOutputs.of(every[0])
    who = session.who if len(every) > 1 else every[0].src
    report = folder / f"{who}.html"
    unreadable = write_participant_page(report, who, every)
    for earlier in {folder / f"{outputs.src}.html" for outputs in every} - {report}:
        earlier.unlink(missing_ok=True)  # of an earlier call that named it first
    for outputs in every:
        log.info("corrected series: %s", outputs["dwi"], extra=RESULT)
        if outputs.src not in unreadable:
            whose = f" of {outputs.src}" if len(every) > 1 else ""
            log.info("verdict%s: %s", whose, SeriesReport.load(outputs).verdict, extra=RESULT)
    if (field := session.field.path("preproc")).is_file() and given[0].runs:
        log.info("off-resonance field: %s", field, extra=RESULT)
    if (merged := session.merged(".nii.gz")).is_file():
        log.info("series of all runs: %s", merged, extra=RESULT)
    log.info("report: %s", report, extra=RESULT)
    for name, why in unreadable.items():
        log.error("%s: cannot be shown in the report: %s", name, why)
    return 1 if unreadable else 0


def raw_dataset_of(image: Path) -> Path | None:
    """Return the root of the BIDS dataset that an image belongs to, if any."""
    return next(
        (folder for folder in image.parents if (folder / "dataset_description.json").is_file()),
        None,
    )
