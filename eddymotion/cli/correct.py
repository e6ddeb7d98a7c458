# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-correct DWI``: one series, no BIDS needed; the same engine and outputs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from eddymotion import __version__
from eddymotion.cli.console import (
    logging_to,
    prepare_output_dir,
    refuse_output_in_input,
    run,
)
from eddymotion.cli.contradictions import refuse_t1w
from eddymotion.cli.options import (
    add_estimation_options,
    add_running_options,
    add_setting,
    settings_from,
)
from eddymotion.cli.other_programs import NOT_NEEDED, OF_DATASETS
from eddymotion.cli.parser import Parser
from eddymotion.cli.results import RESULT, tell
from eddymotion.errors import SERIES_WANTED, EddymotionError, absence
from eddymotion.io.ahead import decompressing_ahead
from eddymotion.machine.importing import importing

log = logging.getLogger("eddymotion")

DESCRIPTION = """\
Correct head motion in one diffusion series.

Finds .bval and .bvec beside the image. For a BIDS dataset: eddymotion."""

EXAMPLES = """\
examples:
  eddymotion-correct dwi.nii.gz
  eddymotion-correct scan.nii --bval table.bval --bvec table.bvec -o corrected/
"""


ONE_IMAGE = (
    "one image too many: join single volumes into one 4-D file (mrcat -axis 3, fslmerge -t); "
    "correct several series one call each, or as a BIDS dataset with eddymotion"
)
"""What to say of a second image."""


def build_parser() -> Parser:
    """Return the parser of ``eddymotion-correct``."""
    parser = Parser(
        prog="eddymotion-correct", description=DESCRIPTION, epilog=EXAMPLES, surplus=ONE_IMAGE,
        not_needed={**NOT_NEEDED, **OF_DATASETS},
    )  # fmt: skip
    parser.add_argument("dwi", type=Path, help="4-D NIfTI image")
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
    add_running_options(parser, __version__)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``eddymotion-correct``; return its exit code."""
    return run("eddymotion-correct", lambda: correct_one(build_parser().parse(arguments)))


def correct_one(options: argparse.Namespace) -> int:
    """Correct the series and write its report."""
    if not options.dwi.is_file():
        raise EddymotionError(absence(options.dwi, SERIES_WANTED))
    with decompressing_ahead(*[options.dwi] * (options.nprocs > 1)):
        return _corrected(options)


def _corrected(options: argparse.Namespace) -> int:
    with importing:
        from eddymotion.cli.board import alone
        from eddymotion.derivatives import Outputs
        from eddymotion.derivatives.dataset import write_citation
        from eddymotion.io.sidecars import SeriesFiles
        from eddymotion.machine.locks import locked
        from eddymotion.machine.temporaries import remove_stale_temporaries
        from eddymotion.pipeline.correct import correct_series
        from eddymotion.pipeline.series_job import reason_of
        from eddymotion.reports.participant import write_participant_page
        from eddymotion.reports.series import SeriesReport

    if dataset := raw_dataset_of(options.dwi.resolve()):
        refuse_output_in_input(dataset, options.output_dir.resolve())
    settings = settings_from(options)
    refuse_t1w(settings, "a single series has none")
    prepare_output_dir(options.output_dir)
    series = SeriesFiles(options.dwi, options.bval, options.bvec)
    outputs = Outputs.in_folder(options.output_dir, options.dwi)
    lock = options.output_dir / f".{outputs.src}.lock"
    with (
        locked([lock], str(options.output_dir / outputs.src)),
        logging_to(options.output_dir / "logs", options.verbose) as log_file,
    ):
        remove_stale_temporaries(outputs.figures)
        try:
            with alone(outputs.src, options.verbose) as progress:
                facts = correct_series(series, outputs, settings, progress)
        except (EddymotionError, OSError):
            raise
        except Exception as error:
            log.debug("%s failed", options.dwi, exc_info=True)
            log.error("%s failed: %s (log: %s)", options.dwi, reason_of(error), log_file)
            return 1
        finished = sorted(options.output_dir.glob("*_desc-preproc_dwi.json"))
        write_citation(options.output_dir, finished)
        report = options.output_dir / f"{outputs.src}.html"
        failed = write_participant_page(report, outputs.src, [outputs])
        if options.verbose == 0:  # with -v they were among the messages
            tell("\n".join(f"{label}: {value}" for label, value in facts.items()))
        log.info("corrected series: %s", outputs["dwi"], extra=RESULT)
        if not failed:
            log.info("verdict: %s", SeriesReport.load(outputs).verdict, extra=RESULT)
        log.info("report: %s", report, extra=RESULT)
        for why in failed.values():
            log.error("%s: cannot be shown in the report: %s", options.dwi, why)
    return 1 if failed else 0


def raw_dataset_of(image: Path) -> Path | None:
    """Return the root of the BIDS dataset that an image belongs to, if any."""
    return next(
        (folder for folder in image.parents if (folder / "dataset_description.json").is_file()),
        None,
    )
