# SPDX-License-Identifier: Apache-2.0
"""Other tools and ours on the same simulated series, in one run, alternating.

``python -m benchmarks.peers [--phantom TISSUE PEAKS] [--peers-python PYTHON]`` runs every tool as
a process of its own on the same files, with the same number of threads, and stores each row as
soon as it is complete; the same command resumes where it stopped. ``--render`` writes the page
``docs/benchmarks/peers.md`` from the rows. ANTs and NiFreeze run with PYTHON, an environment with
``benchmarks/peers-requirements.txt`` (``make benchmark-peers`` creates it); without it they are
skipped.

``--check`` runs all tools on a small series and fails if one of them reports motion in another
direction than the simulated one: a wrong convention would look like a poor tool.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import eddymotion as em
from benchmarks import tables
from benchmarks.accuracy import NAMES, SERIES, Series, Sources, row_of, score
from eddymotion.io.images import write_image
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.tables import write_gradient_table

TOOLS_FILE = Path(__file__).with_name("peer_tools.py")

PEER_PACKAGES = ("nifreeze", "antspyx", "nipype")

KEY = ("series", "voxel_mm", "seed", "tool")


@dataclass(frozen=True)
class Tool:
    """A tool, and its name in the table."""

    name: str
    label: str
    elsewhere: bool = False
    """Whether it runs in the environment of the other tools."""
    drops_b0: bool = False


TOOLS = (
    Tool("nothing", "do nothing"),
    Tool("dipy", "DIPY motion_correction, rigid"),
    Tool("ants", "ANTs rigid to the mean of the shell", elsewhere=True),
    Tool("nifreeze:avgdwi", "NiFreeze, average", elsewhere=True, drops_b0=True),
    Tool("nifreeze:avgdwi+dwi-to-dwi_level1", "NiFreeze, average, its settings dwi-to-dwi_level1",
         elsewhere=True, drops_b0=True),
    Tool("nifreeze:dti", "NiFreeze, DTI", elsewhere=True, drops_b0=True),
    Tool("nifreeze:gp", "NiFreeze, GP", elsewhere=True, drops_b0=True),
    Tool("loop:gauss-newton", "**eddymotion, loop, gauss-newton**"),
    Tool("joint", "**eddymotion, joint (default)**"),
)  # fmt: skip

CHECK = dataclasses.replace(
    SERIES["tiny-moderate"], pattern="swap50", voxel_sizes=4.0, snr=50.0, coil_bias=0.0
)

LEAST_SLOPE = 0.5
"""A tool that errs, but in the right direction, is above it; a transposed or inverted matrix not.
NiFreeze's DTI (which moves volumes at random) and what fails are only reported."""


def main() -> int:
    options = parse()
    if options.check:
        return check(options)
    rows = tables.Rows(options.rows, KEY)
    if not options.render:
        keep_provenance(options)
        measure_all(options, rows)
    if not options.no_page:
        render(rows, options.rows.with_suffix(".json"))
    return 0


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/peers/peers.tsv", seeds=[0, 1, 2], n_threads=1)
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"), default=[])
    parser.add_argument("--real", type=Path, metavar="BIDS_DIR",
                        help="real series to which heads are fitted")  # fmt: skip
    parser.add_argument("--series", nargs="+", metavar="NAME", default=["single-moderate"],
                        help="of those of benchmarks.accuracy")  # fmt: skip
    parser.add_argument("--voxel-size", type=float, default=3.0, help="mm (3)")
    parser.add_argument("--tools", nargs="+", default=[tool.name for tool in TOOLS])
    parser.add_argument("--timeout", type=float, default=7200,
                        help="time limit per tool, seconds (7200)")  # fmt: skip
    parser.add_argument("--peers-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="series are kept")
    parser.add_argument("--check", action="store_true", help="only check the conventions")
    options = parser.parse_args()
    tools = [tool.name for tool in TOOLS]
    for given, known in ((options.series, list(SERIES)), (options.tools, tools)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; use any of {', '.join(known)}")
    return options


def keep_provenance(options: argparse.Namespace) -> None:
    versions = {}
    if options.peers_python.is_file():
        code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
        found = subprocess.run(
            [options.peers_python, "-c", code, *PEER_PACKAGES],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        versions = dict(zip(PEER_PACKAGES, found.stdout.split(), strict=True))
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    tables.keep_provenance(options.rows.with_suffix(".json"), versions)


def selected(options: argparse.Namespace) -> list[Tool]:
    here = [tool for tool in TOOLS if tool.name in options.tools]
    if options.peers_python.is_file():
        return here
    print(f"{options.peers_python}: not found; ANTs and NiFreeze are skipped", file=sys.stderr)
    return [tool for tool in here if not tool.elsewhere]


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    """Run all tools on one series after another: slow changes of the machine affect them all."""
    voxel = f"{options.voxel_size:g}"
    for seed in options.seeds:
        for name in options.series:
            series = dataclasses.replace(SERIES[name], voxel_sizes=options.voxel_size)
            sources = Sources(options.phantom, options.real)
            folder = options.work / f"{name}_{seed}_{series.digest(sources.files(series))}"
            write_series(folder, series, sources, seed, options.n_threads)
            for tool in selected(options):
                key = {"series": name, "voxel_mm": voxel, "seed": seed, "tool": tool.name}
                if not rows.has(**key):
                    rows.add({**key, **measure(tool, folder, options)})


def write_series(folder: Path, series: Series, sources: Sources, seed: int, n: int) -> None:
    """Simulate the series as a scanner would store it, with the truth next to it."""
    if (folder / "truth.txt").is_file():  # written last
        return
    dwi, truth = series.simulate(sources.head(series, seed), seed, n)
    signal = np.round(dwi.signal).astype(np.int16)
    write_image(folder / "dwi.nii.gz", signal, dwi.affine)
    write_image(folder / "mask.nii.gz", dwi.mask.astype(np.uint8), dwi.affine)
    write_gradient_table(folder / "dwi.bval", folder / "dwi.bvec", dwi.gradients, dwi.affine)
    write_itk(folder / "truth.txt", truth.matrices)


def measure(tool: Tool, folder: Path, options: argparse.Namespace) -> tables.Row:
    """Run a tool, score its result."""
    python = options.peers_python if tool.elsewhere else Path(sys.executable)
    output = folder / f"found-{os.getpid()}.npy"
    output.unlink(missing_ok=True)
    command = [python.absolute(), TOOLS_FILE, tool.name, folder.absolute(), output.absolute()]
    used, error = run_measured([str(part) for part in command], options)
    dwi = em.load(folder / "dwi.nii.gz")
    size = {"shape": "×".join(map(str, dwi.signal.shape)), "threads": options.n_threads}
    if not output.is_file():
        return {**size, **used, "error": error}
    found = np.load(output)
    output.unlink()
    return {**size, **used, **scores(dwi, em.Motion(read_itk(folder / "truth.txt")), found)}


def scores(dwi, truth: em.Motion, found: np.ndarray) -> tables.Row:
    kinds = ("free", "frame", "largest", "slopes")
    row = row_of(score(dwi, truth, em.Motion(found)))
    return {name: row[name] for kind in kinds for name in NAMES[kind]}


def run_measured(command: list[str], options: argparse.Namespace) -> tuple[tables.Row, str]:
    """Run a program; return its wall and processor time, peak memory, and last output."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=tables.limited_environment(options.n_threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    watch = Watch(process.pid, options.timeout)
    _, words = process.communicate()
    seconds = time.perf_counter() - started
    watch.stop()
    used = {"seconds": round(seconds, 2), "cpu_seconds": round(watch.cpu_seconds, 2),
            "peak_mb": round(watch.peak / 1e6)}  # fmt: skip
    said = [line.strip() for line in words.splitlines() if line.strip()]
    if watch.killed:
        return used, f"stopped after {options.timeout:g} s"
    return used, said[-1][:200] if process.returncode and said else ""


class Watch(threading.Thread):
    """Sample a process and its children 20 times a second: total memory, processor time."""

    def __init__(self, pid: int, timeout: float):
        super().__init__(daemon=True)
        self.pid, self.until = pid, time.monotonic() + timeout
        self.peak, self.killed, self.ended = 0, False, threading.Event()
        self.before = os.times()
        self.start()

    def run(self) -> None:
        """Sample until stopped, or until the time is over."""
        try:
            family = psutil.Process(self.pid)
            while not self.ended.wait(0.05):
                members = [family, *family.children(recursive=True)]
                self.peak = max(self.peak, sum(resident(member) for member in members))
                if time.monotonic() > self.until:
                    self.killed = True
                    for member in members:
                        member.kill()
        except psutil.Error:
            return

    def stop(self) -> None:
        """Stop looking."""
        self.ended.set()
        self.join()

    @property
    def cpu_seconds(self) -> float:
        """User and system time of the children that have ended since the start."""
        now = os.times()
        return (now.children_user - self.before.children_user) + (
            now.children_system - self.before.children_system
        )


def resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has ended
        return 0


def check(options: argparse.Namespace) -> int:
    """Compare every tool's directions with the simulated ones on a small series."""
    folder = options.work / "check"
    write_series(folder, CHECK, Sources([]), 1, options.n_threads)
    wrong = []
    for tool in selected(options):
        row = measure(tool, folder, options)
        print(tool.name, json.dumps(row), flush=True)
        reported = tool.name in ("nothing", "nifreeze:dti") or "free_mm" not in row
        if not reported and min(row["slope_t"], row["slope_r"]) < LEAST_SLOPE:
            wrong.append(tool.name)
    if wrong:
        print(f"motion in another direction than simulated: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def render(rows: tables.Rows, provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page, the numbers and the plot."""
    parts = [INTRODUCTION, tables.provenance_lines(provenance)]
    groups = list(dict.fromkeys((row["series"], row["voxel_mm"]) for row in rows))
    for series, voxel in groups:
        members = [row for row in rows if (row["series"], row["voxel_mm"]) == (series, voxel)]
        seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in members}))
        parts.append(
            f"## {series}, {voxel} mm\n\n{members[0]['shape']} voxels, seeds {seeds}, "
            f"{members[0]['threads']} thread{'s' * (members[0]['threads'] != 1)} for every tool.\n"
        )
        parts.append(table(members))
        plot(members, f"peers-{series}-{voxel}mm".replace(".", "p"), docs)
        name = f"peers-{series}-{voxel}mm".replace(".", "p")
        parts.append(f"![errors and seconds of the tools]({name}.png)\n")
    tables.write_page("peers", "\n".join(parts), list(rows), docs)


INTRODUCTION = """# Other tools on the same series

Simulated series with known motion, stored as int16 NIfTI with FSL tables; every tool reads the
same files in a process of its own, one tool after another on each series, then the next series.
Figures are medians over the series (seeds). Series are those of [accuracy](accuracy.md) and
[other heads](other-heads.md); the heads there share nothing with the phantom on which our
estimator was tuned.

- *offset-free*: RMSE over axes and the volumes above b=100, after removing a constant rigid
  offset. This is the figure to compare with tools that drop the b=0 volumes (†), which cannot know
  the frame of volume 0.
- *volume 0's frame*: the same without removing anything: the error of the corrected series.
- *slope*: of estimated on true motion, translations / rotations; ideally 1.
- *wall*: seconds from the start of the process to its end, including imports, reading and loading
  of compiled kernels. *CPU*: processor seconds of the process and its children, which other work
  on the machine disturbs less. *peak*: largest resident memory, children included.

Tools are used as shipped: DIPY with its default optimiser, without the affine stage (which would
not help, since the truth is rigid). ANTs' `Rigid` of antspyx once to the unaligned mean of the
shell, the b=0 volumes to theirs: nothing aligns the frames of the shells with each other. NiFreeze
0.1.0's `Estimator`, one pass, its default ANTs settings unless stated; its antsRegistration is
that of antspyx, loaded without the imports of the package, which would cost it two more seconds
per volume. A tool that fails is listed with its error. A series with large known motion serves to
check that the matrices of every tool are read in the right direction (`python -m benchmarks.peers
--check`).

FSL's `eddy` is not included. The only build available to this project is of third-party sources
that had to be fixed first. Its results on other series, why they should not be quoted as those of
Oxford's program, and how to run the comparison with your own build are described in
[how to compare](../how-to/compare.md#what-to-be-fair-about).
"""


def table(rows: list[tables.Row]) -> str:
    """Return the table of one series: medians over the seeds."""
    heads = ["tool", "runs", "offset-free (mm / °)", "volume 0's frame (mm / °)", "slope t / r",
             "wall (s)", "CPU (s)", "peak (MB)"]  # fmt: skip
    lines = []
    for tool in TOOLS:
        mine = [row for row in rows if row["tool"] == tool.name]
        if not mine:
            continue
        label = tool.label + (" †" if tool.drops_b0 else "")
        done = [row for row in mine if succeeded(row)]
        if not done:
            lines.append([label, f"0 of {len(mine)}", f"fails: `{mine[0]['error']}`", *["–"] * 5])
            continue
        m = medians(done)
        runs = f"{len(done)} of {len(mine)}" if len(done) < len(mine) else str(len(done))
        cost = ("–",) * 3 if tool.name == "nothing" else (
            tables.number(m["seconds"], 1), tables.number(m["cpu_seconds"], 1),
            tables.number(m["peak_mb"], 0))  # fmt: skip
        lines.append([
            label, runs, tables.pair(m["free_mm"], m["free_deg"]),
            tables.pair(m["frame_mm"], m["frame_deg"]),
            tables.pair(m["slope_t"], m["slope_r"], 2), *cost,
        ])  # fmt: skip
    return tables.markdown(heads, lines)


def succeeded(row: tables.Row) -> bool:
    return isinstance(row.get("free_mm"), int | float)


def medians(rows: list[tables.Row]) -> dict[str, float]:
    return {
        name: statistics.median(row[name] for row in rows)
        for name, value in rows[0].items()
        if isinstance(value, int | float)
    }


def plot(rows: list[tables.Row], name: str, docs: Path) -> None:
    """Draw the errors of every tool (small dots: seeds, large: medians) and its seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tools = [
        tool for tool in TOOLS if any(row["tool"] == tool.name and succeeded(row) for row in rows)
    ]
    columns = {"free_mm": "offset-free error (mm)", "free_deg": "offset-free error (°)",
               "cpu_seconds": "processor time (s)"}  # fmt: skip
    height = 1.1 + 0.36 * len(tools)
    figure, axes = plt.subplots(1, 3, figsize=(11, height), sharey=True, layout="constrained")
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        shown = []
        for place, tool in enumerate(tools):
            if column == "cpu_seconds" and tool.name == "nothing":
                continue
            values = [row[column] for row in rows if row["tool"] == tool.name and succeeded(row)]
            draw_tool(axis, place, values, "tab:blue" if "eddymotion" in tool.label else "0.4")
            shown += values
        tables.plain_log_scale(axis.xaxis, min(shown) / 1.6, max(shown) * 3)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    labels = [tool.label.replace("**", "") for tool in tools]
    axes[0].set_yticks(range(len(tools)), labels, fontsize=9)
    axes[0].set_ylim(len(tools) - 0.4, -0.6)
    tables.save_plot(figure, name, docs)
    plt.close(figure)


def draw_tool(axis, place: int, values: list[float], colour: str) -> None:
    """Draw one line of the plot."""
    median = statistics.median(values)
    axis.plot(values, [place] * len(values), ".", color=colour, alpha=0.6, markersize=5)
    axis.plot(median, place, "o", color=colour, markersize=8)
    axis.annotate(f"{median:.3g}", (max(values), place), (8, 0), textcoords="offset points",
                  va="center", fontsize=8, color=colour)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
