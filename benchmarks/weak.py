# SPDX-License-Identifier: Apache-2.0
"""Where it is weak: one table of the results of all benchmarks, and the figures in the README.

``python -m benchmarks.weak`` reads the numbers stored with the pages (``docs/benchmarks/*.tsv``)
and regenerates the first table of ``docs/benchmarks/README.md`` and that of the README. Nothing in
them is written by hand: for each figure, the row that is worst relative to its bound is shown,
whichever that is. ``tests/test_evidence.py`` fails if a table does not match the numbers.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables
from benchmarks.runs import CASES as RUN_CASES
from benchmarks.susceptibility import CASES as FIELD_CASES
from benchmarks.tables import Row
from benchmarks.within_volumes import CASES as MOTION_CASES
from eddymotion.io.writing import write_text

ROOT = Path(__file__).resolve().parents[1]

BEGIN, END = "<!-- begin: python -m benchmarks.weak -->", "<!-- end -->"

SEEDS_TO_QUOTE = 3
"""The README quotes the median of rows with at least so many seeds, and the worst of all rows."""

NO_BREAK = "\u00a0"

Named = Iterable[tuple[str, float]]


@dataclass(frozen=True)
class Figure:
    """A figure of merit of a benchmark, and its bound.

    Parameters
    ----------
    anchor : str
        Of its line in the table.
    page : str
        Page that the numbers belong to.
    what : str
        Name of the measured quantity.
    unit : str
    bound : float
    values : callable
        Rows of the page → names of rows and values, one per seed.
    least : bool
        Whether the bound is a lower one.
    digits : int
    """

    anchor: str
    page: str
    what: str
    unit: str
    bound: float
    values: Callable[[list[Row]], Named]
    least: bool = False
    digits: int = 3

    def of(self, docs: Path) -> "Result":
        """Read the numbers of the page."""
        found: dict[str, list[float]] = {}
        for name, value in self.values(tables.read_tsv(docs / f"{self.page}.tsv")):
            if value == value:
                found.setdefault(name, []).append(value)
        return Result(self, found)

    def shown(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value:.{self.digits}f}{self.unit}".replace(" ", NO_BREAK)


@dataclass(frozen=True)
class Result:
    """The values of a figure: name of the row → one per seed."""

    figure: Figure
    values: dict[str, list[float]]

    def excess(self, value: float) -> float:
        """Return the ratio of a value to its bound; at most 1 where the bound is met."""
        bound = self.figure.bound
        return bound / max(value, 1e-9) if self.figure.least else value / bound

    def worst(self, name: str) -> float:
        """Return the worst seed of a row."""
        return max(self.values[name], key=self.excess)

    @property
    def weakest(self) -> str:
        """The row that is worst relative to the bound."""
        return max(self.values, key=lambda name: self.excess(self.worst(name)))

    @property
    def holding(self) -> list[str]:
        """Rows that meet the bound with every seed."""
        return [name for name in self.values if self.excess(self.worst(name)) <= 1]

    @property
    def median(self) -> float:
        """Median of the rows' medians."""
        return statistics.median(statistics.median(values) for values in self.values.values())

    def with_seeds(self, n_seeds: int) -> "Result":
        """Return the rows with at least so many seeds."""
        kept = {name: values for name, values in self.values.items() if len(values) >= n_seeds}
        return Result(self.figure, kept)


def column(name: str, *by: str, where: Callable[[Row], bool] = lambda row: True):
    """Return a reader of a column; other columns name the rows."""

    def values(rows: list[Row]) -> Named:
        for row in rows:
            value = row.get(name)
            if isinstance(value, int | float) and where(row):
                yield ", ".join(str(row[key]) for key in by), float(value)

    return values


def slope(*by: str):
    """Return a reader of the larger deviation from 1 of the two slopes of a row."""

    def values(rows: list[Row]) -> Named:
        for row in rows:
            away = [abs(row[name] - 1) for name in ("slope_t", "slope_r")]
            yield ", ".join(str(row[key]) for key in by), max(away)

    return values


def change(before: str, after: str, *by: str):
    """Return a reader of the difference of two columns."""
    return lambda rows: (
        (", ".join(str(row[key]) for key in by), row[after] - row[before])
        for row in rows if isinstance(row.get(after), int | float)
    )  # fmt: skip


def session(row: Row) -> str:
    case = RUN_CASES.get(row["case"])
    return case.told if case else str(row["case"])


def turned(rows: list[Row]) -> Named:
    for row in rows:
        yield session(row), row["turned_deg"]


def worse_run(above: str, below: str):
    """Return a reader of the ratio of two columns, the larger one over the two runs."""

    def values(rows: list[Row]) -> Named:
        for row in rows:
            parts = [row[f"{above}_{run}"] / row[f"{below}_{run}"] for run in (0, 1)]
            yield session(row), max(parts)

    return values


OURS = ("joint", "loop:gauss-newton")


def against_best(name: str):
    """Return a reader of a column: ours by default, relative to the best of the other tools."""

    def values(rows: list[Row]) -> Named:
        for series, seed in dict.fromkeys((row["series"], row["seed"]) for row in rows):
            mine = {row["tool"]: row[name] for row in rows
                    if (row["series"], row["seed"]) == (series, seed)
                    and isinstance(row["free_mm"], int | float)}  # fmt: skip
            others = {tool: v for tool, v in mine.items() if tool not in (*OURS, "nothing")}
            if "joint" in mine and others:
                yield series, mine["joint"] / min(others.values())

    return values


def loop_against_best(rows: list[Row]) -> Named:
    """Offset-free translation error of the loop, relative to the best other tool."""
    renamed = [{**row, "tool": {"joint": "", "loop:gauss-newton": "joint"}.get(row["tool"],
                row["tool"])} for row in rows if row["tool"] != "joint"]  # fmt: skip
    return against_best("free_mm")(renamed)


def between_states(name: str, after: str, beside: str):
    """Return a reader of the distance between tensors in one state, relative to another state."""

    def values(rows: list[Row]) -> Named:
        states = {(row["series"], row["state"]): row for row in rows}
        for (series, state), row in states.items():
            if state == after and (series, beside) in states:
                yield series, row[name] / states[series, beside][name]

    return values


FIELD_GOALS = {name: float(case.goal.split("/")[0]) for name, case in FIELD_CASES.items()
               if case.goal}  # fmt: skip
"""mm RMS over the brain."""


def field_errors(rows: list[Row]) -> Named:
    """Errors of off-resonance fields as multiples of their goals."""
    for row in rows:
        if row["case"] in FIELD_GOALS:
            yield FIELD_CASES[row["case"]].told, row["rms_mm"] / FIELD_GOALS[row["case"]]


WITHIN_GOALS = {"rest": 0.04, "between": 0.06, "fast": 0.12, "jumps": 0.14, "nods": 0.14,
                "profile": 0.14, "single": 0.20, "breathing": 0.30}  # fmt: skip
"""mm RMS of the slices."""

OTHER_WITHIN_GOAL = 0.20


def within_errors(rows: list[Row]) -> Named:
    """Errors of the poses of slices as multiples of their goals."""
    for row in rows:
        goal = WITHIN_GOALS.get(row["case"].removeprefix("other-"), OTHER_WITHIN_GOAL)
        yield motion_case(row), row["rms_auto"] / goal


def motion_case(row: Row) -> str:
    case = MOTION_CASES.get(row["case"])
    return case.told if case else str(row["case"])


def within_coverage(rows: list[Row]) -> Named:
    for row in rows:
        yield motion_case(row), row["covered_auto"]


def is_field(fields: str, *, there: bool) -> Callable[[Row], bool]:
    """Select simulated series by the estimated fields, and by whether there is a true one."""

    def chosen(row: Row) -> bool:
        true = row.get("true_field_mm")
        return row["fields"] == fields and isinstance(true, int | float) and (true > 0) is there

    return chosen


def is_lossy(row: Row) -> bool:
    """Whether slices with lost signal were simulated."""
    return bool(row["lost"] > 0)


def overhead(rows: list[Row]) -> Named:
    """Processor time in excess of the same work without an engine, percent."""
    used = {row["case"]: row["processor"] for row in rows}
    beside = {"nipype": "library", "nipype-multiproc": "library", "pydra": "library",
              "app": "command"}  # fmt: skip
    for case, reference in beside.items():
        yield case, 100 * (used[case] / used[reference] - 1)


def of_real_pair(name: str, case: str) -> Callable[[list[Row]], Named]:
    return column(name, "case", where=lambda row: row["case"] == case)


def errors_of_motion(page: str, words: str, by: tuple[str, ...] = ("series",)) -> Iterator[Figure]:
    """Yield the figures common to all pages on errors of poses."""
    kinds = (("free", "after removing a constant offset"), ("frame", "in the frame of volume 0"))
    for kind, words_of_kind in kinds:
        for unit, sign, of in (("mm", " mm", "translation"), ("deg", "°", "rotation")):
            yield Figure(f"{page}-{kind}-{unit}", page, f"{words}: {of} error, {words_of_kind}",
                         sign, 0.06, column(f"{kind}_{unit}", *by))  # fmt: skip
    yield Figure(f"{page}-slope", page, f"{words}: slope of estimated on true motion, deviation "
                 "from 1", "", 0.02, slope(*by))  # fmt: skip


def coverage(page: str, words: str) -> Figure:
    return Figure(f"{page}-coverage", page, f"{words}: coverage of 95 % intervals", " %",
                  90.0, column("coverage_percent", "series"), least=True, digits=0)  # fmt: skip


FIGURES = (
    *errors_of_motion("accuracy", "the simulated head it was tuned on, other seeds"),
    coverage("accuracy", "the simulated head it was tuned on, other seeds"),
    *errors_of_motion("other-heads", "simulated heads it was not tuned on"),
    coverage("other-heads", "simulated heads it was not tuned on"),
    *errors_of_motion("replay", "known motion on real volumes"),
    coverage("replay", "known motion on real volumes"),
    Figure("at-rest-all", "at-rest", "a static object: estimated displacement", " mm", 0.20,
           column("all_mm", "object", "volumes", where=lambda row: row["fields"] == "auto")),
    Figure("at-rest-worst", "at-rest", "a static object: estimated displacement, worst volume",
           " mm", 0.20,
           column("all_largest_mm", "object", "volumes",
                  where=lambda row: row["fields"] == "auto")),
    Figure("real-mean", "real", "real series: gain in mean correlation with the prediction", "",
           0.001, change("before_mean", "after_mean", "series"), least=True),
    Figure("real-lowest", "real", "real series: gain in the lowest correlation with the "
           "prediction", "", 0.001, change("before_lowest", "after_lowest", "series"), least=True),
    Figure("real-rescan-tensor", "real", "scan against rescan: distance between the tensors, "
           "relative to interpolation alone", "", 0.95,
           between_states("tensor_rms", "after", "interpolated"), digits=2),
    Figure("real-rescan-angle", "real", "scan against rescan: angle between principal "
           "directions, relative to interpolation alone", "", 0.95,
           between_states("angle_median", "after", "interpolated"), digits=2),
    Figure("real-turned-angle", "real", "a head turned between two scans: angle between "
           "principal directions, relative to b-vectors not rotated", "", 0.95,
           between_states("angle_median", "turned", "not turned"), digits=2),
    Figure("polarities-field", "polarities", "real runs of opposite polarity: correlation of "
           "volumes not used for the field", "", 0.955, column("field_r", "first", "second"),
           least=True),
    Figure("peers-free-mm", "peers", "translation error without offset, relative to the best "
           "other tool",
           " ×", 1.0, against_best("free_mm"), digits=2),
    Figure("peers-frame-mm", "peers", "translation error in the frame of volume 0, relative to "
           "the best other tool", " ×", 1.0, against_best("frame_mm"), digits=2),
    Figure("peers-loop-mm", "peers", "the leave-one-out loop: translation error without offset, "
           "relative to the best other tool", " ×", 1.0, loop_against_best, digits=2),
    Figure("peers-cpu", "peers", "processor time, relative to the fastest other tool", " ×", 1.0,
           against_best("cpu_seconds"), digits=2),
    Figure("peers-memory", "peers", "memory, relative to the other tool that needs least",
           " ×", 1.0, against_best("peak_mb"), digits=2),
    Figure("registrars-loop", "registrars", "the leave-one-out loop, any engine: translation "
           "error", " mm", 0.06, column("free_mm", "series", "registrar",
                        where=lambda row: row["registrar"] != "joint")),
    Figure("cieslak-frame-mm", "cieslak", "the protocol of Cieslak et al.: translation error",
           " mm", 0.06, column("frame_mm", "scheme", "percent_moved")),
    Figure("cieslak-frame-deg", "cieslak", "the protocol of Cieslak et al.: rotation error",
           "°", 0.06, column("frame_deg", "scheme", "percent_moved")),
    Figure("eddy-currents-recorded", "eddy-currents", "eddy currents: error of recorded positions",
           " mm", 0.10, column("recorded_mm", "series", where=is_field("auto", there=True))),
    Figure("eddy-currents-deg", "eddy-currents", "eddy currents: rotation error", "°", 0.04,
           column("deg", "series", where=is_field("auto", there=True))),
    Figure("eddy-currents-none", "eddy-currents", "no eddy currents: estimated field", " mm",
           0.02, column("field_mm", "series", where=is_field("auto", there=False))),
    Figure("susceptibility-field", "susceptibility", "off-resonance field: error relative to the "
           "goal", " ×", 1.0, field_errors, digits=2),
    Figure("susceptibility-map", "susceptibility", "off-resonance field: correlation with a "
           "measured map", "", 0.95, of_real_pair("map_r", "xa30"), least=True),
    Figure("runs-together", "runs", "two runs: error of the corrected series, relative to that "
           "with true poses", " ×", 1.05, worse_run("together", "true_poses"), digits=2),
    Figure("runs-turned", "runs", "two runs: rotation error of the second run", "°", 0.10,
           turned, digits=2),
    Figure("within-volumes-error", "within-volumes", "motion within volumes: error of slices "
           "relative to the goal", " ×", 1.0, within_errors, digits=2),
    Figure("within-volumes-coverage", "within-volumes", "motion within volumes: coverage of 95 % "
           "intervals", " %", 90.0, within_coverage, least=True, digits=0),
    Figure("dropout-recall", "dropout", "lost slices: recall", "", 0.95,
           column("recall", "series", "kind", "depth", "share", where=is_lossy), least=True),
    Figure("dropout-precision", "dropout", "lost slices: precision", "", 0.95,
           column("precision", "series", "kind", "depth", "share", where=is_lossy), least=True),
    Figure("dropout-motion", "dropout", "lost slices: translation error of the series",
           " mm", 0.06, column("free_mm", "series", "kind", "depth", "share")),
    Figure("overhead-engines", "overhead", "processor time of workflow engines in excess of the "
           "library", " %", 10.0, overhead, digits=0),
    Figure("speed-floor", "speed", "time of the command, relative to reading, one interpolation "
           "and writing",
           " ×", 4.0, column("ratio_seconds", "case", where=lambda row: row["case"] != "study"),
           digits=1),
    Figure("speed-study", "speed", "time of the command for a study of two runs, with field and "
           "motion within volumes",
           " s", 120.0, column("seconds", "case", where=lambda row: row["case"] == "study"),
           digits=0),
)  # fmt: skip
"""Figures of all benchmarks. Bounds are goals; none was relaxed in order to be met."""

CLAIMS = {
    "other-heads-free-mm": "translation error, simulated heads that it was not tuned on",
    "other-heads-free-deg": "rotation error, same heads",
    "other-heads-frame-mm": "translation error in the frame of the first b=0, same heads",
    "other-heads-coverage": "coverage of 95 % intervals, same heads",
    "accuracy-free-mm": "translation error, the simulated head it was tuned on, other seeds",
    "accuracy-free-deg": "rotation error, same head",
    "replay-free-mm": "translation error, known motion of real volumes",
    "replay-free-deg": "rotation error, known motion of real volumes",
    "peers-free-mm": "translation error, relative to the best other tool (DIPY, ANTs, NiFreeze)",
    "peers-cpu": "processor time, relative to the fastest other tool",
}
"""Figures quoted in the README, with their names there."""


def weak_table(docs: Path = tables.DOCS) -> str:
    """Return the table of all figures, the weakest first."""
    results = [figure.of(docs) for figure in FIGURES]
    results.sort(key=lambda one: -one.excess(one.worst(one.weakest)))
    heads = ["figure", "bound", "rows that meet it", "weakest row", "value there"]
    return tables.markdown(heads, map(weak_line, results))


def weak_line(result: Result) -> list[str]:
    figure, name = result.figure, result.weakest
    values = result.values[name]
    found = figure.shown(result.worst(name))
    held = f"{len(result.holding)} of {len(result.values)}"
    if len(result.holding) < len(result.values):
        found, held = f"**{found}**", f"**{held}**"
    if len(values) > 1:
        found += f", median {figure.shown(statistics.median(values))} of {len(values)}"
    return [
        f'<a id="{figure.anchor}"></a>[{figure.what}]({figure.page}.md)',
        f"{'≥' if figure.least else '≤'}{NO_BREAK}{figure.shown(figure.bound)}", held, name, found,
    ]  # fmt: skip


def claims_table(docs: Path = tables.DOCS) -> str:
    """Return the table of figures quoted in the README, each with a link to its line."""
    lines = []
    for figure in FIGURES:
        if figure.anchor not in CLAIMS:
            continue
        whole = figure.of(docs)
        often = whole.with_seeds(SEEDS_TO_QUOTE)
        if not often.values:
            raise SystemExit(f"{figure.anchor}: no row of {figure.page}.tsv has {SEEDS_TO_QUOTE} "
                             "seeds; measure more, or do not quote it")  # fmt: skip
        link = f"docs/benchmarks/README.md#{figure.anchor}"
        counts = f"{len(often.values)} of {len(whole.values)}"
        lines.append((list(CLAIMS).index(figure.anchor), [
            f"[{CLAIMS[figure.anchor]}]({link})", figure.shown(often.median),
            figure.shown(whole.worst(whole.weakest)), counts,
        ]))  # fmt: skip
    heads = ["figure", "median", "worst", "series with three seeds"]
    return tables.markdown(heads, [line for _, line in sorted(lines)])


def with_block(text: str, table: str) -> str:
    """Return a page with the table between the marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n{END}{rest.split(END, 1)[1]}"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Return the text that each page with a table should have."""
    docs = root / "docs" / "benchmarks"
    made = {docs / "README.md": weak_table(docs), root / "README.md": claims_table(docs)}
    return {path: with_block(path.read_text(encoding="utf-8"), table)
            for path, table in made.items()}  # fmt: skip


def main() -> None:
    for path, text in pages().items():
        write_text(path, text)


if __name__ == "__main__":
    main()
