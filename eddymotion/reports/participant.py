# SPDX-License-Identifier: Apache-2.0
"""The participant's page: one file for all series, from the derivatives alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from eddymotion import __version__
from eddymotion.derivatives.names import CORRECTED, Outputs
from eddymotion.errors import EddymotionError
from eddymotion.reports.layout import Html, contents, join, tag, write_page
from eddymotion.reports.sections import errors_section, series_sections, skipped_section
from eddymotion.reports.series import SeriesReport
from eddymotion.reports.viewer import series_data, volume_bar
from eddymotion.wording import why

log = logging.getLogger(__name__)

NO_ERRORS: Mapping[str, str] = {}


def write_report(
    output_dir: Path,
    participant: str,
    errors: Mapping[str, str] = NO_ERRORS,
    skipped: Mapping[str, str] = NO_ERRORS,
) -> dict[str, str]:
    """Write ``OUTPUT_DIR/sub-X.html`` from the derivatives of all finished series.

    Nothing is written without a finished series, errors, and skipped ones.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    participant : str
        Label, with or without ``sub-``.
    errors, skipped : mapping
        As of :func:`write_participant_page`.

    Returns
    -------
    dict
        All that the page calls failed.
    """
    name = f"sub-{participant.removeprefix('sub-')}"
    found = finished_outputs(output_dir / name)
    if not found and not errors and not skipped:
        return {}
    page = output_dir / f"{name}.html"
    return write_participant_page(page, name, found, errors, skipped)


def finished_outputs(folder: Path) -> list[Outputs]:
    """Find the finished series of a participant: those with a sidecar."""
    return [
        Outputs.of_sidecar(sidecar, folder / "figures")
        for sidecar in sorted(folder.rglob(f"dwi/*{CORRECTED}.json"))
    ]


def finished_sidecars(output_dir: Path) -> list[Path]:
    """Find the sidecars of all finished series of a derivative dataset."""
    folders = sorted(output_dir.glob("sub-*/"))
    return [outputs["sidecar"] for folder in folders for outputs in finished_outputs(folder)]


def write_participant_page(
    page: Path,
    title: str,
    all_outputs: Sequence[Outputs],
    errors: Mapping[str, str] = NO_ERRORS,
    skipped: Mapping[str, str] = NO_ERRORS,
) -> dict[str, str]:
    """Write the page of a participant, or of a series outside a BIDS dataset.

    A series whose files cannot be read is listed with the errors.

    Parameters
    ----------
    page : Path
    title : str
    all_outputs : sequence of Outputs
        One a series.
    errors, skipped : mapping
        Series that failed → what happened; series that were not corrected → why.

    Returns
    -------
    dict
        The errors, and those of the series that cannot be read.
    """
    failed = dict(errors)
    articles: list[Html] = []
    for outputs in all_outputs:
        try:
            series = SeriesReport.load(outputs)
            series.write_charts()
            named = len(all_outputs) > 1
            articles.append(_article(series, len(articles), page, named=named))
        except Exception as error:  # whatever is in its files, the others have a page
            log.debug("%s cannot be shown", outputs.src, exc_info=True)
            failed[outputs.src] = why_unreadable(outputs, error)
    names = [outputs.src for outputs in all_outputs if outputs.src not in failed]
    write_page(page, title, _body(title, names, articles, failed, skipped))
    return failed


def why_unreadable(outputs: Outputs, error: Exception) -> str:
    """Say why a series cannot be shown, and what to do."""
    if isinstance(error, EddymotionError):
        return str(error)
    return (
        f"{outputs['sidecar']} and the files beside it cannot be shown ({type(error).__name__}: "
        f"{why(error)}); correct the series again"
    )


def _article(series: SeriesReport, number: int, page: Path, *, named: bool) -> Html:
    prefix = f"s{number}"
    sections = series_sections(series, prefix, page)
    first, *rest = [section.html() for section in sections]
    heading = tag("h2", series.outputs.src, class_="series-name") if named else None
    data, bar = series_data(series, f"{prefix}-data"), volume_bar(series)
    return tag(
        "article", heading, contents(sections), data, first, bar, *rest, id=prefix, class_="series"
    )


def _body(
    title: str,
    names: Sequence[str],
    articles: Sequence[Html],
    failed: Mapping[str, str],
    skipped: Mapping[str, str],
) -> Html:
    by = f"Head-motion correction of diffusion MRI by eddymotion {__version__}"
    notice = tag("p", tag("a", f"{len(failed)} series failed", href="#errors"), class_="errors")
    tabs = [
        tag("button", name, type="button", role="tab", data_series=f"s{number}",
            aria_selected="true" if number == 0 else "false", aria_controls=f"s{number}")
        for number, name in enumerate(names)
    ]  # fmt: skip
    return join([
        tag("h1", names[0] if len(names) == 1 and names[0].startswith(title) else title),
        tag("p", by, class_="by"),
        notice if failed else None,
        tag("div", *tabs, class_="tabs", role="tablist") if len(tabs) > 1 else None,
        *articles,
        skipped_section(skipped).html() if skipped else None,
        errors_section(failed).html() if failed else None,
    ])  # fmt: skip
