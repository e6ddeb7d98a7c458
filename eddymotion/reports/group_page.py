# SPDX-License-Identifier: Apache-2.0
"""The group's page: who stands out, how all are distributed, and one table to sort."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from eddymotion import __version__
from eddymotion.io.tsv import MISSING
from eddymotion.reports.group import DICTIONARY, TABLE, GroupRow, SeriesGroup
from eddymotion.reports.group_charts import TONES, distribution_chart, distributions
from eddymotion.reports.group_rule import DETAILS, MIN_SERIES, RULE, MetricComparison
from eddymotion.reports.layout import (
    Figure,
    Html,
    Section,
    details,
    embedded_json,
    join,
    table,
    tag,
    write_page,
)
from eddymotion.reports.metrics import METRICS, describe_metric, metric_parts
from eddymotion.reports.sections import errors_section

MANY = 25
"""More series that stand out are listed in the table only."""

N_WORDS = 4
"""Columns before the metrics: series, verdict, outlier, protocol."""

TEXTS = ("largest_motion", "verdict")

CAPTION = (
    "Each dot is a series, coloured by the verdict of its report; rings: series that stand out "
    "by the rule. Grey: the middle half; line: median; dashed: limit of the rule, where all "
    "series are compared. Look for dots far from the others. Raw and corrected: correction "
    "should lower residuals and raise correlation and CNR. Hover over a series to highlight it "
    "everywhere; click to open its report."
)


def write_group_page(
    path: Path,
    group: SeriesGroup,
    comparisons: Sequence[Mapping[str, MetricComparison]],
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Write the page of a group.

    Parameters
    ----------
    path : Path
    group : SeriesGroup
    comparisons : sequence of mapping
        Of each series, from :meth:`~eddymotion.reports.group.SeriesGroup.comparisons`.
    columns : mapping
        The table as it is on disk.
    """
    sections = [
        Section("outliers", "Suggested outliers", _outliers(group, comparisons)),
        Section("distributions", "Distributions", _distributions(group, comparisons)),
        Section("series", "All series", _series(group, comparisons, columns)),
        Section("columns", "What the columns mean", _dictionary(group)),
    ]
    if group.errors:
        sections.append(errors_section(group.errors))
    styles = ("report.css", "group.css")
    write_page(path, "Group report", _body(group, sections), script="group.js", styles=styles)


def link_of(row: GroupRow) -> str:
    """Return the address of a series in its participant's report; empty where there is none."""
    return f"{quote(os.fsencode(row.page))}#{row.part}" if row.page else ""


def _body(group: SeriesGroup, sections: Sequence[Section]) -> Html:
    by = f"Head-motion correction of diffusion MRI by eddymotion {__version__}"
    participants = len({row.participant for row in group.rows})
    counts = Counter(row.verdict for row in group.rows)
    pills = [
        tag("span", tag("b", str(counts[verdict])), f" {verdict.lower()}", class_=f"pill {tone}")
        for verdict, tone in TONES.items()
    ]
    head = f"{_number(len(group.rows), 'series', 'series')} of "
    failed = f"{_number(len(group.errors), 'series', 'series')} missing or failed"
    return join([
        tag("h1", "Group report"),
        tag("p", by, class_="by"),
        tag("p", head + _number(participants, "participant", "participants") + ": ", *pills,
            class_="counts"),
        tag("p", tag("a", failed, href="#errors"), class_="errors") if group.errors else None,
        *[section.html() for section in sections],
        tag("div", "", id="tip", role="status", hidden=True),
    ])  # fmt: skip


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _outliers(group: SeriesGroup, comparisons: Sequence[Mapping[str, MetricComparison]]) -> Html:
    found = [
        (max(comparison.score for comparison in standing), index, standing)
        for index, compared in enumerate(comparisons)
        if (standing := _standing_out(compared))
    ]
    found.sort(key=lambda item: (-item[0], item[1]))
    rule = join([tag("p", RULE, class_="note"), details("The rule in full", tag("p", DETAILS))])
    if not any(comparisons):
        few = f"None: fewer than {MIN_SERIES} comparable series. Look at the distributions."
        return join([tag("p", few), rule])
    if not found:
        return join([tag("p", "None by the rule."), rule])
    items = [
        tag("li", _name(group.rows[index]), ": ", _reasons(standing), data_row=index)
        for _, index, standing in found[:MANY]
    ]
    more = f"{len(found) - MANY} more are marked in the table." if len(found) > MANY else ""
    heading = f"{_number(len(found), 'series stands', 'series stand')} out, furthest first."
    return join([tag("p", heading), tag("ol", *items), tag("p", more), rule])


def _standing_out(compared: Mapping[str, MetricComparison]) -> list[MetricComparison]:
    return [comparison for comparison in compared.values() if comparison.is_outlier]


def _reasons(standing: Sequence[MetricComparison]) -> str:
    ordered = sorted(standing, key=lambda comparison: -comparison.score)
    return "; ".join(_reason(comparison) for comparison in ordered)


def _reason(found: MetricComparison) -> str:
    name = found.metric
    return f"{_heading(name)} {_shown(name, found.value)} (median {_shown(name, found.median)})"


def _name(row: GroupRow) -> Html:
    address = link_of(row)
    return tag("a", row.series, href=address) if address else tag("span", row.series)


def _distributions(
    group: SeriesGroup, comparisons: Sequence[Mapping[str, MetricComparison]]
) -> Html:
    tones = [TONES.get(row.verdict, "unknown") for row in group.rows]
    rings = [bool(_standing_out(compared)) for compared in comparisons]
    charts = [
        Html(distribution_chart(panel, tones, rings))
        for panel in distributions(group, comparisons)
    ]
    legend = tag("p", *(tag("span", verdict, class_=f"pill {tone}")
                        for verdict, tone in TONES.items()), class_="counts")  # fmt: skip
    grid = tag("div", *charts, class_="distributions")
    return join([legend, Figure(grid, "Distributions", CAPTION).html()])


def _series(
    group: SeriesGroup,
    comparisons: Sequence[Mapping[str, MetricComparison]],
    columns: Mapping[str, Sequence[str]],
) -> Html:
    shown = [name for name in group.metrics if name != "verdict"]
    heads = [_head("series", "Name of the series"), _head("verdict", "Of the report"),
             _head("outlier", "Number of metrics by which it stands out"),
             _head("protocol", "Voxel size and b-values", class_="more")]  # fmt: skip
    heads += [
        _head(_heading(name), describe_metric(name)[0], _unit(name), class_=_column_class(name))
        for name in shown
    ]
    rows = [
        _row_html(index, row, shown, columns, comparisons[index])
        for index, row in enumerate(group.rows)
    ]
    numbers = {
        str(N_WORDS + place): _json_numbers(group.column(name))
        for place, name in enumerate(shown)
        if name not in TEXTS
    }
    body = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), id="table")
    files = tag("p", "As files: ", tag("a", TABLE, href=TABLE), ", ",
                tag("a", DICTIONARY, href=DICTIONARY), class_="note no-print")  # fmt: skip
    return join([_controls(), tag("div", body, class_="scroll"), files,
                 embedded_json("group-data", numbers)])  # fmt: skip


def _controls() -> Html:
    choices = [tag("option", "all verdicts", value=""),
               *(tag("option", verdict, value=verdict) for verdict in TONES)]  # fmt: skip
    return tag(
        "div",
        tag("input", type="search", id="wanted", placeholder="find a series",
            aria_label="find a series"),
        tag("select", *choices, id="verdict", aria_label="verdict"),
        tag("label", tag("input", type="checkbox", id="only"), "only suggested outliers"),
        tag("label", tag("input", type="checkbox", id="all"), "all columns"),
        tag("output", "", id="count"),
        class_="controls",
    )  # fmt: skip


def _head(name: str, words: str, unit: str = "", class_: str | None = None) -> Html:
    label = tag("button", name, type="button")
    inside = [label, tag("small", unit)] if unit else [label]
    return tag("th", *inside, scope="col", title=words, class_=class_, aria_sort="none")


def _row_html(
    index: int,
    row: GroupRow,
    shown: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    compared: Mapping[str, MetricComparison],
) -> Html:
    standing = {comparison.metric for comparison in _standing_out(compared)}
    n_standing = len(standing)
    standing |= {f"fd_head_{name[3:]}" for name in standing if name in ("fd_mean", "fd_max")}
    cells = [
        tag("td", _text(name, columns[name][index]),
            class_=" ".join(filter(None, [_column_class(name), "out" if name in standing else ""]))
            or None)
        for name in shown
    ]  # fmt: skip
    return tag(
        "tr",
        tag("th", _name(row), scope="row"),
        tag("td", row.verdict, class_=TONES.get(row.verdict, "unknown")),
        tag("td", MISSING if not compared else f"▲ {n_standing}" if n_standing else "",
            class_="out" if n_standing else None),
        tag("td", row.protocol, class_="more"),
        *cells,
        data_row=index,
    )  # fmt: skip


def _text(name: str, cell: str) -> str:
    """Round a cell of the table; what is not a number stays."""
    if name in TEXTS or cell == MISSING:
        return cell
    return _shown(name, float(cell), unit=False)


def _shown(name: str, value: float, *, unit: bool = True) -> str:
    words = f"{value:.{METRICS[metric_parts(name)[0]].digits}f}"
    return f"{words} {_unit(name)}".strip() if unit else words


def _unit(name: str) -> str:
    unit = describe_metric(name)[1]
    return "" if unit in ("1", "n/a") else unit


def _heading(name: str) -> str:
    base, detail, which = metric_parts(name)
    words = METRICS[base].column.format(detail=detail)
    return f"{words}, {which}" if which else words


def _column_class(name: str) -> str | None:
    base, _, which = metric_parts(name)
    return None if METRICS[base].shown and (which != "raw" or base == "ndc") else "more"


def _json_numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _dictionary(group: SeriesGroup) -> Html:
    rows = [
        (_heading(name), name, describe_metric(name)[0], _unit(name)) for name in group.metrics
    ]
    columns = table(rows, ("column", "in the table", "meaning", "unit"))
    return details("All columns", columns)
