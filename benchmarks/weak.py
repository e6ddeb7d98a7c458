# SPDX-License-Identifier: Apache-2.0
"""Where it is weak: one table of the results of all benchmarks, and what the README says of them.

``python -m benchmarks.weak`` reads the numbers beside the pages (``docs/benchmarks/*.tsv``) and
writes the first table of ``docs/benchmarks/README.md`` and that of the README anew. Nothing in
them is written by hand: of each figure the row that lies worst against its bound is shown,
whichever that is. ``tests/test_benchmarks.py`` fails where a table is not that of the numbers.
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
"""The README quotes medians of rows that were measured so many times, and the worst of all."""

NO_BREAK = "\u00a0"

Named = Iterable[tuple[str, float]]


@dataclass(frozen=True)
class Figure:
    """A figure of merit of a benchmark, and the bound that it is to hold.

    Parameters
    ----------
    anchor : str
        Of its line in the table.
    page : str
        Whose numbers they are.
    what : str
        What is measured.
    unit : str
    bound : float
    values : callable
        Rows of the page → names of rows and values, one for each seed.
    least : bool
        Whether the bound is the least that a value may be.
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
    """The values of a figure: name of the row → one a seed."""

    figure: Figure
    values: dict[str, list[float]]

    def excess(self, value: float) -> float:
        """How far a value is beyond the bound, as a factor; at most 1 holds it."""
        bound = self.figure.bound
        return bound / max(value, 1e-9) if self.figure.least else value / bound

    def worst(self, name: str) -> float:
        """Return the worst seed of a row."""
        return max(self.values[name], key=self.excess)

    @property
    def weakest(self) -> str:
        """The row that lies worst against the bound."""
        return max(self.values, key=lambda name: self.excess(self.worst(name)))

    @property
    def holding(self) -> list[str]:
        """Rows of which every seed holds the bound."""
        return [name for name in self.values if self.excess(self.worst(name)) <= 1]

    @property
    def median(self) -> float:
        """Median of the rows' medians."""
        return statistics.median(statistics.median(values) for values in self.values.values())

    def with_seeds(self, n_seeds: int) -> "Result":
        """Return the rows that were measured so many times."""
        kept = {name: values for name, values in self.values.items() if len(values) >= n_seeds}
        return Result(self.figure, kept)


def column(name: str, *by: str, where: Callable[[Row], bool] = lambda row: True):
    """Return what reads a column; rows are named by others."""

    def values(rows: list[Row]) -> Named:
        for row in rows:
            value = row.get(name)
            if isinstance(value, int | float) and where(row):
                yield ", ".join(str(row[key]) for key in by), float(value)

    return values


def slope(*by: str):
    """Return what reads how far the slopes of a row are from 1, the farther of the two."""

    def values(rows: list[Row]) -> Named:
        for row in rows:
            away = [abs(row[name] - 1) for name in ("slope_t", "slope_r")]
            yield ", ".join(str(row[key]) for key in by), max(away)

    return values


def change(before: str, after: str, *by: str):
    """Return what reads how much larger one column is than another."""
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
    """Return what reads one column as a part of another, of the run of two where it is larger."""

    def values(rows: list[Row]) -> Named:
        for row in rows:
            parts = [row[f"{above}_{run}"] / row[f"{below}_{run}"] for run in (0, 1)]
            yield session(row), max(parts)

    return values


OURS = ("joint", "loop:gauss-newton")


def against_best(name: str):
    """Return what reads a column of our default as a multiple of the best of the other tools'."""

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
    """Offset-free translation of the loop, as a multiple of the best other tool's."""
    renamed = [{**row, "tool": {"joint": "", "loop:gauss-newton": "joint"}.get(row["tool"],
                row["tool"])} for row in rows if row["tool"] != "joint"]  # fmt: skip
    return against_best("free_mm")(renamed)


def between_states(name: str, after: str, beside: str):
    """Return what reads a distance of tensors in one state, as a part of that in another."""

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
    """Errors of slices' poses as multiples of their goals."""
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
    """Rows of simulated series with such fields estimated, with or without any in truth."""

    def chosen(row: Row) -> bool:
        true = row.get("true_field_mm")
        return row["fields"] == fields and isinstance(true, int | float) and (true > 0) is there

    return chosen


def is_lossy(row: Row) -> bool:
    """Whether slices of a series were made to lose signal."""
    return bool(row["lost"] > 0)


def overhead(rows: list[Row]) -> Named:
    """Processor time beyond that of what does the same without an engine, percent."""
    used = {row["case"]: row["processor"] for row in rows}
    beside = {"nipype": "library", "nipype-multiproc": "library", "pydra": "library",
              "app": "command"}  # fmt: skip
    for case, reference in beside.items():
        yield case, 100 * (used[case] / used[reference] - 1)


def of_real_pair(name: str, case: str) -> Callable[[list[Row]], Named]:
    return column(name, "case", where=lambda row: row["case"] == case)


def errors_of_motion(page: str, words: str, by: tuple[str, ...] = ("series",)) -> Iterator[Figure]:
    """Yield the figures that all pages on errors of poses have."""
    for kind, told in (("free", "without one constant offset"), ("frame", "in volume 0's frame")):
        for unit, sign, of in (("mm", " mm", "translation"), ("deg", "°", "rotation")):
            yield Figure(f"{page}-{kind}-{unit}", page, f"{words}: error of {of}, {told}",
                         sign, 0.06, column(f"{kind}_{unit}", *by))  # fmt: skip
    yield Figure(f"{page}-slope", page, f"{words}: slope of found on true motion, away from 1",
                 "", 0.02, slope(*by))  # fmt: skip


def coverage(page: str, words: str) -> Figure:
    return Figure(f"{page}-coverage", page, f"{words}: 95 % intervals that hold the truth", " %",
                  90.0, column("coverage_percent", "series"), least=True, digits=0)  # fmt: skip


FIGURES = (
    *errors_of_motion("accuracy", "the simulated head it was tuned on, other seeds"),
    coverage("accuracy", "the simulated head it was tuned on, other seeds"),
    *errors_of_motion("other-heads", "simulated heads it was not tuned on"),
    coverage("other-heads", "simulated heads it was not tuned on"),
    *errors_of_motion("replay", "known motion on real volumes"),
    coverage("replay", "known motion on real volumes"),
    Figure("at-rest-all", "at-rest", "a static object: displacement that is found", " mm", 0.20,
           column("all_mm", "object", "volumes", where=lambda row: row["fields"] == "auto")),
    Figure("at-rest-worst", "at-rest", "a static object: its worst volume", " mm", 0.20,
           column("all_largest_mm", "object", "volumes",
                  where=lambda row: row["fields"] == "auto")),
    Figure("real-mean", "real", "real series: mean correlation with the prediction, gain", "",
           0.001, change("before_mean", "after_mean", "series"), least=True),
    Figure("real-lowest", "real", "real series: the same of the lowest volume", "", 0.001,
           change("before_lowest", "after_lowest", "series"), least=True),
    Figure("real-rescan-tensor", "real", "scan against rescan: distance of the tensors, of that "
           "after interpolation alone", "", 0.95,
           between_states("tensor_rms", "after", "interpolated"), digits=2),
    Figure("real-rescan-angle", "real", "scan against rescan: angle of the main directions, of "
           "that after interpolation alone", "", 0.95,
           between_states("angle_median", "after", "interpolated"), digits=2),
    Figure("real-turned-angle", "real", "a head turned between two scans: angle of the main "
           "directions, of that without turning the b-vectors", "", 0.95,
           between_states("angle_median", "turned", "not turned"), digits=2),
    Figure("polarities-field", "polarities", "real runs of opposite polarity: correlation of "
           "volumes kept out of the field", "", 0.955, column("field_r", "first", "second"),
           least=True),
    Figure("peers-free-mm", "peers", "translation without offset, of the best other tool's error",
           " ×", 1.0, against_best("free_mm"), digits=2),
    Figure("peers-frame-mm", "peers", "translation in volume 0's frame, of the best other tool's "
           "error", " ×", 1.0, against_best("frame_mm"), digits=2),
    Figure("peers-loop-mm", "peers", "the leave-one-out loop: translation without offset, of the "
           "best other tool's error", " ×", 1.0, loop_against_best, digits=2),
    Figure("peers-cpu", "peers", "processor time, of the fastest other tool's", " ×", 1.0,
           against_best("cpu_seconds"), digits=2),
    Figure("peers-memory", "peers", "memory, of the most frugal other tool's", " ×", 1.0,
           against_best("peak_mb"), digits=2),
    Figure("registrars-loop", "registrars", "the leave-one-out loop, any engine: error of "
           "translation", " mm", 0.06, column("free_mm", "series", "registrar",
                        where=lambda row: row["registrar"] != "joint")),
    Figure("cieslak-frame-mm", "cieslak", "the protocol of Cieslak et al.: error of translation",
           " mm", 0.06, column("frame_mm", "scheme", "percent_moved")),
    Figure("cieslak-frame-deg", "cieslak", "the protocol of Cieslak et al.: error of rotation",
           "°", 0.06, column("frame_deg", "scheme", "percent_moved")),
    Figure("eddy-currents-recorded", "eddy-currents", "eddy currents: where points are recorded",
           " mm", 0.10, column("recorded_mm", "series", where=is_field("auto", there=True))),
    Figure("eddy-currents-deg", "eddy-currents", "eddy currents: error of rotation", "°", 0.04,
           column("deg", "series", where=is_field("auto", there=True))),
    Figure("eddy-currents-none", "eddy-currents", "no eddy currents: field that is found", " mm",
           0.02, column("field_mm", "series", where=is_field("auto", there=False))),
    Figure("susceptibility-field", "susceptibility", "off-resonance field: error, of the goal",
           " ×", 1.0, field_errors, digits=2),
    Figure("susceptibility-map", "susceptibility", "off-resonance field: correlation with a "
           "measured map", "", 0.95, of_real_pair("map_r", "xa30"), least=True),
    Figure("runs-together", "runs", "two runs: error of the corrected series, of that with true "
           "poses", " ×", 1.05, worse_run("together", "true_poses"), digits=2),
    Figure("runs-turned", "runs", "two runs: rotation of the second against the first", "°", 0.10,
           turned, digits=2),
    Figure("within-volumes-error", "within-volumes", "motion within volumes: error of slices, of "
           "the goal", " ×", 1.0, within_errors, digits=2),
    Figure("within-volumes-coverage", "within-volumes", "motion within volumes: 95 % intervals "
           "that hold the truth", " %", 90.0, within_coverage, least=True, digits=0),
    Figure("dropout-recall", "dropout", "lost slices that are found", "", 0.95,
           column("recall", "series", "kind", "depth", "share", where=is_lossy), least=True),
    Figure("dropout-precision", "dropout", "found slices that were lost", "", 0.95,
           column("precision", "series", "kind", "depth", "share", where=is_lossy), least=True),
    Figure("dropout-motion", "dropout", "error of translation beside lost slices", " mm", 0.06,
           column("free_mm", "series", "kind", "depth", "share")),
    Figure("overhead-engines", "overhead", "processor time of workflow engines beyond the library",
           " %", 10.0, overhead, digits=0),
    Figure("speed-floor", "speed", "the whole command, of reading, one interpolation and writing",
           " ×", 4.0, column("ratio_seconds", "case"), digits=1),
)  # fmt: skip
"""What is asked of each benchmark. Bounds are goals; none was moved to be held."""

CLAIMS = {
    "other-heads-free-mm": "error of translation, on simulated heads it was not tuned on",
    "other-heads-free-deg": "error of rotation, on those heads",
    "other-heads-frame-mm": "error of translation in the frame of the first b=0, on those heads",
    "other-heads-coverage": "95 % intervals that hold the truth, on those heads",
    "accuracy-free-mm": "error of translation, on the simulated head it was tuned on, other seeds",
    "accuracy-free-deg": "error of rotation, on that head",
    "replay-free-mm": "error of translation, known motion of real volumes",
    "replay-free-deg": "error of rotation, known motion of real volumes",
    "peers-free-mm": "error of translation, of the best other tool's error (DIPY, ANTs, NiFreeze)",
    "peers-cpu": "processor time, of the fastest other tool's",
}
"""Figures that the README quotes, in its words."""


def weak_table(docs: Path = tables.DOCS) -> str:
    """Return the table of all figures, the weakest first."""
    results = [figure.of(docs) for figure in FIGURES]
    results.sort(key=lambda one: -one.excess(one.worst(one.weakest)))
    heads = ["figure", "to hold", "rows that hold", "weakest row", "there"]
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
    """Return the figures that the README quotes, each with a link to its line."""
    lines = []
    for figure in FIGURES:
        if figure.anchor not in CLAIMS:
            continue
        whole = figure.of(docs)
        often = whole.with_seeds(SEEDS_TO_QUOTE)
        if not often.values:
            raise SystemExit(f"{figure.anchor}: no row of {figure.page}.tsv has {SEEDS_TO_QUOTE} "
                             "seeds; measure them, or do not quote it")  # fmt: skip
        link = f"docs/benchmarks/README.md#{figure.anchor}"
        counts = f"{len(often.values)} of {len(whole.values)}"
        lines.append((list(CLAIMS).index(figure.anchor), [
            f"[{CLAIMS[figure.anchor]}]({link})", figure.shown(often.median),
            figure.shown(whole.worst(whole.weakest)), counts,
        ]))  # fmt: skip
    heads = ["figure", "median", "worst of all", "series with three seeds"]
    return tables.markdown(heads, [line for _, line in sorted(lines)])


def with_block(text: str, table: str) -> str:
    """Return a page with another table between the marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n{END}{rest.split(END, 1)[1]}"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Return the pages with a table, as they have to be."""
    docs = root / "docs" / "benchmarks"
    made = {docs / "README.md": weak_table(docs), root / "README.md": claims_table(docs)}
    return {path: with_block(path.read_text(encoding="utf-8"), table)
            for path, table in made.items()}  # fmt: skip


def main() -> None:
    for path, text in pages().items():
        write_text(path, text)


if __name__ == "__main__":
    main()
