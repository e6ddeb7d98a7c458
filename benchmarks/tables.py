# SPDX-License-Identifier: Apache-2.0
"""Shared by the benchmarks: stored rows, tables with their provenance, plots."""

import argparse
import csv
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from eddymotion.io.writing import write_json, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"

PACKAGES = ("eddymotion", "numpy", "scipy", "numba", "dipy", "nibabel", "nitransforms")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip

Row = dict[str, Any]


class Rows:
    """Measurements in a TSV file: each row is stored once complete, and not measured again."""

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = path, key
        self.rows: list[Row] = read_tsv(path) if path.is_file() else []

    def __iter__(self):
        return iter(self.rows)

    def has(self, **values: Any) -> bool:
        """Whether the row with these values of the key is there."""
        wanted = tuple(str(values[name]) for name in self.key)
        return any(tuple(str(row[name]) for name in self.key) == wanted for row in self.rows)

    def add(self, row: Row) -> None:
        """Store a row with the measured commit, and print it."""
        row = {**row, "revision": revision()}
        self.rows.append(row)
        write_tsv(self.path, self.rows)
        print("\t".join(f"{name}={value}" for name, value in row.items()), flush=True)


def parser(
    documentation: str | None, rows: str, *, seeds: Iterable[int] = (), n_threads: int = 0
) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have.

    Parameters
    ----------
    documentation : str
        Of the benchmark's module.
    rows : str
        Default file for its rows.
    seeds : iterable of int
        By default; none for a benchmark without randomness.
    n_threads : int
        By default; none if the benchmark sets the threads itself.
    """
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if seeds := list(seeds):
        parser.add_argument("--seeds", nargs="+", type=int, default=seeds, metavar="SEED",
                            help="random seeds (default: %(default)s)")  # fmt: skip
    if n_threads:
        parser.add_argument("--n-threads", "--threads", type=int, default=n_threads, metavar="N",
                            help="(default: %(default)s)")  # fmt: skip
    parser.add_argument("--rows", type=Path, default=Path(rows), metavar="TSV",
                        help="file that stores the rows (default: %(default)s)")  # fmt: skip
    parser.add_argument("--render", action="store_true", help="only write the page")
    parser.add_argument("--no-page", action="store_true", help="only store the rows")
    return parser


def run(
    options: argparse.Namespace,
    key: tuple[str, ...],
    measure: Callable[[Any, Rows], None],
    render: Callable[[list[Row], Path], None],
    versions: dict[str, str] | None = None,
) -> None:
    """Measure the missing rows and write the page, according to ``--render`` and ``--no-page``.

    `versions` are those of programs that only this benchmark runs.
    """
    rows, provenance = Rows(options.rows, key), options.rows.with_suffix(".json")
    if not options.render:
        options.rows.parent.mkdir(parents=True, exist_ok=True)
        keep_provenance(provenance, versions)
        measure(options, rows)
    if options.render or not options.no_page:
        render(list(rows), provenance)


def run_cases(
    parser: argparse.ArgumentParser,
    cases: Mapping[str, Any],
    measure: Callable[[Any, int, int], Row],
    render: Callable[[list[Row], Path], None],
) -> None:
    """Run a benchmark that measures each case with each seed."""
    parser.add_argument("--cases", nargs="*", choices=cases, default=list(cases))

    def measure_all(options: argparse.Namespace, rows: Rows) -> None:
        for name, seed in product(options.cases, options.seeds):
            if not rows.has(case=name, seed=seed):
                found = measure(cases[name], seed, options.n_threads)
                rows.add({"case": name, "seed": seed, **found})

    run(parser.parse_args(), ("case", "seed"), measure_all, render)


def read_tsv(path: Path) -> list[Row]:
    """Read a table; numbers are converted, ``n/a`` and an empty cell become NaN."""
    with path.open(encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        return [
            {name: _number(text) for name, text in row.items()}
            for row in csv.DictReader(lines, delimiter="\t")
        ]


def _number(text: str) -> Any:
    if text in ("n/a", "nan"):
        return float("nan")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write_tsv(path: Path, rows: list[Row]) -> None:
    """Write a table; its columns are those of all rows, in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(names)]
    lines += ["\t".join(_text(row.get(name, "")) for name in names) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "n/a" if value != value else f"{value:.6g}"
    return " ".join(str(value).split())


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def over_rows(rows: list[Row], over: Callable[[list[float]], float]) -> dict[str, float]:
    """Return e.g. the median or the largest of each column of numbers, NaN apart."""
    columns = {
        name: [row[name] for row in rows if isinstance(row[name], int | float)]
        for name, value in rows[0].items()
        if isinstance(value, int | float)
    }
    known = {name: [v for v in values if v == v] for name, values in columns.items()}
    return {name: float(over(values)) if values else math.nan for name, values in known.items()}


def pair(first: float, second: float, digits: int = 3) -> str:
    """Return two numbers as one cell, a dash for NaN."""
    return " / ".join(number(value, digits) for value in (first, second))


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many digits, a dash for NaN."""
    return "–" if value != value else f"{value:.{digits}f}"


def keep_provenance(path: Path, extra: dict[str, str] | None = None) -> None:
    """Write the provenance of the rows next to them; commands of earlier runs are kept."""
    kept = provenance(extra)
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))["commands"]
        kept["commands"] = list(dict.fromkeys([*earlier, *kept["commands"]]))
    write_json(path, kept)


def provenance(extra: dict[str, str] | None = None) -> dict[str, Any]:
    """Return command, date, machine and versions; no paths, no names of machines."""
    return {
        "commands": [command()],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "revision": revision(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES), **(extra or {})},
    }


def command() -> str:
    """Return the command line, with file names in place of paths."""
    module = Path(sys.argv[0]).stem
    return " ".join(["python -m benchmarks." + module, *(Path(a).name for a in sys.argv[1:])])


@cache
def revision() -> str:
    """Return the measured commit, marked if there are changes on top of it."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions."""
    return {name: importlib.metadata.version(name) for name in packages}


def machine() -> str:
    """Describe the machine: processor, cores, memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        model = next((b.strip() for a, b in lines if a.strip() == "model name"), model)
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gibibytes:.0f} GiB of memory, {platform.system()}"


def provenance_lines(path: Path) -> str:
    """Return the provenance as a paragraph."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    stated = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    commands = ", then ".join(f"`{one}`" for one in kept["commands"])
    return (
        f"{commands}, {kept['date']}, revision {kept['revision']}. "
        f"Machine: {kept['machine']}. Versions: {stated}.\n"
    )


def write_page(name: str, text: str, rows: list[Row], docs: Path = DOCS) -> None:
    """Write a page and its numbers."""
    write_text(docs / f"{name}.md", text)
    write_tsv(docs / f"{name}.tsv", rows)


def save_plot(figure: Any, name: str, docs: Path = DOCS) -> None:
    """Write a figure as PNG and SVG."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "eddymotion"
    docs.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(docs / f"{name}.{suffix}", dpi=130, metadata=metadata)


def plain_log_scale(axis: Any, low: float, high: float) -> None:
    """Make an axis logarithmic from `low` to `high`, with plain numbers at its ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    steps = (1, 3) if high < 300 * low else (1,)
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    axis.set_major_locator(FixedLocator([step * decade for decade in decades for step in steps]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def limited_environment(n_cores: int) -> dict[str, str]:
    """Return the environment that makes a program use so many threads."""
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(n_cores))
