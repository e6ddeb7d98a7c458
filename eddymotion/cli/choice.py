# SPDX-License-Identifier: Apache-2.0
"""Which series of a dataset the options of ``eddymotion`` choose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from eddymotion.cli.console import refuse_output_in_input
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import SeriesFiles, usable

if TYPE_CHECKING:
    from eddymotion.bids.series import Sorted


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


def refuse_one_axis(runs: Sequence[SeriesFiles], axis: str | None) -> None:
    """Raise if one phase encoding is given for runs whose sidecars say different ones."""
    key = "PhaseEncodingDirection"
    sidecars = [run.metadata or {} for run in runs if not run.is_b0]
    said = {direction for fields in sidecars for direction in usable(fields, key).values()}
    if axis is not None and len(said) > 1:
        raise EddymotionError(
            f"--pe-axis {axis}: given for runs of one session whose sidecars say "
            f"{' and '.join(sorted(said))}; leave it out, or give --separate-all-dwis"
        )


def refuse_shared_files(options: argparse.Namespace, found: Sorted) -> None:
    """Raise if a file that belongs to one head at one place is given for several."""
    choose = "with --participant-label, --session-id or --bids-filter-file"
    if options.brain_mask and found.n_series > 1:
        raise EddymotionError(
            f"--brain-mask: one mask given for {found.n_series} series; select one series {choose}"
        )
    for series in chain.from_iterable(found.series.values()):
        refuse_one_axis(series.runs, options.pe_axis)
    if options.fieldmap is None:
        return
    paths = [series.dwi for series in chain.from_iterable(found.series.values())]
    frames = {path if options.separate_all_dwis else path.parent for path in paths}
    if len(frames) > 1:
        what = "series, each in a frame of its own," if options.separate_all_dwis else "sessions"
        raise EddymotionError(
            f"--fieldmap: {len(frames)} {what} match, but one field is given; select one {choose}"
        )
