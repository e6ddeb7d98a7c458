# SPDX-License-Identifier: Apache-2.0
"""What ``eddymotion`` does with corrected series: writing their reports again, and the group's."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eddymotion.cli.choice import sorted_series
from eddymotion.cli.closing import log_failures
from eddymotion.cli.console import (
    logging_to,
    messages,
    prepare_output_dir,
    refuse_output_in_input,
)
from eddymotion.cli.results import RESULT
from eddymotion.errors import EddymotionError

if TYPE_CHECKING:
    from eddymotion.derivatives import Outputs

log = logging.getLogger("eddymotion")


def write_reports(options: argparse.Namespace) -> int:
    """Write the reports again, from the derivatives alone; 1 if a series has none."""
    from eddymotion.reports.participant import finished_outputs, write_participant_page
    from eddymotion.workflows.bids_app import sole_writer

    output_dir = options.output_dir.resolve()
    refuse_output_in_input(options.bids_dir.resolve(), output_dir)
    refuse_unknown_labels(options, output_dir)
    unfinished, skipped = unfinished_series(options, output_dir)
    labels = sorted({*labels_with_outputs(options, output_dir), *unfinished, *skipped})
    if not labels:
        which = f" of {', '.join(wanted_labels(options))}" if options.participant_label else ""
        raise EddymotionError(
            f"{output_dir}: no finished series{which} found; run without --reports-only"
        )
    prepare_output_dir(output_dir)
    with sole_writer(output_dir, labels), logging_to(output_dir / "logs", options.verbose) as file:
        failures: dict[str, str] = {}
        n_series = 0
        for label in labels:
            name, page = f"sub-{label}", output_dir / f"sub-{label}.html"
            finished, missing = finished_outputs(output_dir / name), unfinished.get(label, {})
            beside = skipped.get(label, {})
            failures |= write_participant_page(page, name, finished, missing, beside)
            n_series += len(finished) + len(missing)
            log.info("report: %s", page, extra=RESULT)
        log_failures(failures, n_series, file)
    return 1 if failures else 0


def wanted_labels(options: argparse.Namespace) -> list[str]:
    """Return the labels of the participants that were asked for."""
    return [label.removeprefix("sub-") for label in options.participant_label]


def labels_with_outputs(options: argparse.Namespace, output_dir: Path) -> Iterator[str]:
    """Find the participants with finished series; those that were asked for, if any were."""
    from eddymotion.reports.participant import finished_outputs

    wanted = wanted_labels(options)
    for folder in sorted(output_dir.glob("sub-*/")):
        label = folder.name.removeprefix("sub-")
        if (label in wanted or not wanted) and finished_outputs(folder):
            yield label


def gather_group(options: argparse.Namespace) -> int:
    """Write the table and the page of the group, from the derivatives; 1 if a series has none."""
    from eddymotion.reports.group import TABLE
    from eddymotion.reports.group_report import PAGE, build_group_report

    output_dir = options.output_dir.resolve()
    refuse_output_in_input(options.bids_dir.resolve(), output_dir)
    if options.bids_filter_file:
        raise EddymotionError(
            "--bids-filter-file: the group level uses all corrected series; select with "
            "--participant-label and --session-id, or select rows of its table"
        )
    if not output_dir.is_dir():
        raise EddymotionError(f"{output_dir}: no such folder; run the participant level first")
    refuse_unknown_labels(options, output_dir)
    missing, skipped = unfinished_series(options, output_dir)
    if skipped and not missing and not any(labels_with_outputs(options, output_dir)):
        with messages(options.verbose):
            log.info("group: nothing to collect, all series of these participants were skipped")
        return 0
    unfinished = {name: why for of_one in missing.values() for name, why in of_one.items()}
    prepare_output_dir(output_dir)
    with logging_to(output_dir / "logs", options.verbose) as file:
        labels, sessions = options.participant_label, options.session_id
        group = build_group_report(output_dir, labels, sessions, unfinished)
        if group.rows:
            log.info("group of %d series: %s, %s", len(group.rows), output_dir / TABLE,
                     output_dir / PAGE, extra=RESULT)  # fmt: skip
        log_failures(dict(group.errors), len(group.rows) + len(group.errors), file)
    return 1 if group.errors else 0


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
        with messages(options.verbose, logging.ERROR):  # the run has said it
            raw = sorted_series(options)
    except EddymotionError as error:
        log.debug("reports are written without the raw dataset: %s", error)
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
    return any(place["sidecar"].is_file() for place in (outputs, *outputs.elsewhere()))
