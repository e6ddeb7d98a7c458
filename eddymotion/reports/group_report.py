# SPDX-License-Identifier: Apache-2.0
"""The group level's files: a table, its dictionary and a page."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from eddymotion.errors import EddymotionError
from eddymotion.io.tsv import table_text
from eddymotion.io.writing import write_text
from eddymotion.reports.group import (
    DICTIONARY,
    PAGE,
    TABLE,
    SeriesGroup,
    data_dictionary,
    gather,
    table_columns,
)
from eddymotion.reports.group_page import write_group_page
from eddymotion.reports.participant import NO_ERRORS


def build_group_report(
    output_dir: Path,
    participants: Collection[str] = (),
    sessions: Collection[str] = (),
    errors: Mapping[str, str] = NO_ERRORS,
) -> SeriesGroup:
    """Write ``group_dwi.tsv``, ``.json`` and ``.html`` from what the participants' runs left.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    participants, sessions : collection of str
        Labels, with or without ``sub-`` and ``ses-``; all when empty.
    errors : mapping
        Series that are known to be missing → why.

    Returns
    -------
    SeriesGroup

    Raises
    ------
    EddymotionError
        If there is no finished series at all. If there are some and none can be read, the errors
        of the group say why, and nothing is written.
    """
    group = gather(output_dir, participants, sessions, errors)
    if not group.rows and set(group.errors) - set(errors):
        return group
    if not group.rows:
        of = f", of {len(errors)} that are wanted" if errors else ""
        raise EddymotionError(
            f"{output_dir}: no finished series to collect{of}; run the participant level first"
        )
    comparisons = group.comparisons()
    table = table_columns(group, comparisons)
    write_text(output_dir / TABLE, table_text(table))
    dictionary = json.dumps(data_dictionary(group), indent=2, ensure_ascii=False)
    write_text(output_dir / DICTIONARY, dictionary + "\n")
    write_group_page(output_dir / PAGE, group, comparisons, table)
    return group
