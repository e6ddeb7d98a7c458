# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of the whole command against size, processes and engine.

``python -m benchmarks.speed [--cases NAME …]`` simulates each series once, runs
``eddymotion-correct`` on it in a process of its own (first with an empty cache of compiled kernels
where *cold* is measured, then once to warm up, then ``--runs`` times), stores each row as soon as
it is complete, and resumes where it stopped. ``--render`` only writes
``docs/benchmarks/speed.md``.

The *floor* is the minimum for any motion correction: reading the series, one interpolation of each
volume with the compiled kernel, writing the result. It runs next to each run of the command, and
the ratio is the median over these pairs: of wall times, and of processor times (user and system),
which other load on the machine hardly changes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import eddymotion as em
from benchmarks import tables
from eddymotion.io.images import write_series
from eddymotion.io.itk import read_itk
from eddymotion.mapping.motion import Motion
from eddymotion.resampling import Resampled
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion

FIELD_OF_VIEW_MM = (192.0, 192.0, 144.0)


@dataclass(frozen=True)
class Case:
    """A series and how it is corrected."""

    shape: tuple[int, int, int]
    n_volumes: int
    engine: str = "fast"
    nprocs: int = 2
    cold: bool = False
    n_runs: int = 1

    @property
    def megabytes(self) -> float:
        """Of all series as float32."""
        return 4e-6 * self.n_runs * self.n_volumes * float(np.prod(self.shape))


SMALL, MIDDLE, LARGE, HCP = (64, 64, 40), (96, 96, 60), (128, 128, 80), (145, 174, 145)
TYPICAL = (80, 100, 80)

CASES = {
    "typical": Case(TYPICAL, 70),
    "typical-1": Case(TYPICAL, 70, nprocs=1),
    "typical-nitransforms": Case(TYPICAL, 70, "nitransforms"),
    "engine-nitransforms": Case(MIDDLE, 64, "nitransforms", cold=True),
    "engine-fast": Case(MIDDLE, 64, cold=True),
    "processes-1": Case(MIDDLE, 64, nprocs=1),
    "processes-2": Case(MIDDLE, 64, nprocs=2),
    "volumes-36": Case(SMALL, 36),
    "volumes-72": Case(SMALL, 72),
    "volumes-144": Case(SMALL, 144),
    "volumes-288": Case(SMALL, 288),
    "voxels-small": Case(SMALL, 64),
    "voxels-middle": Case(MIDDLE, 64),
    "voxels-large": Case(LARGE, 64),
    "hcp": Case(HCP, 288),
    "hcp-nitransforms": Case(HCP, 288, "nitransforms"),
    "hcp-550": Case(HCP, 550),
    "study": Case((84, 99, 80), 103, n_runs=2),
}

LONG = ("hcp", "hcp-nitransforms", "hcp-550", "study")
"""Cases that take minutes and gigabytes, or are simulated for long: only on request."""

STUDY = {"AP": "--pe-axis j- --motion nods", "PA": "--pe-axis j --motion moderate"}
"""Runs of a study, and how they differ."""

STUDIED = (
    "--head synthetic --scheme abcd --voxel-size 2 --susceptibility 0.7 "
    "--eddy-current quadratic --random-seed 5"
)
"""How they are simulated."""

STAGES = ("reading", "motion", "quality", "resampling and writing", "pictures")

KEY = ("case",)


def main() -> None:
    options = parse()
    if options.floor:
        folder, *files = map(Path, options.floor)
        measure_floor(files[::2], files[1::2], folder)
        return
    tables.run(options, KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/speed.tsv")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="NAME",
                        default=[name for name in CASES if name not in LONG],
                        help=f"{', '.join(CASES)} (all but {', '.join(LONG)})")  # fmt: skip
    parser.add_argument("--runs", type=int, default=3, help="warm runs of each case (3)")
    parser.add_argument("--folder", type=Path, help="keeps the simulated series (a temporary one)")
    parser.add_argument("--floor", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.cases:
            if not rows.has(case=name):
                measured = measure_case(CASES[name], folder, options.runs)
                rows.add({"case": name} | measured)


def measure_case(case: Case, folder: Path, runs: int) -> tables.Row:
    """Simulate the series unless it is there, and run the command on it."""
    images = make_study(folder) if case.n_runs > 1 else [make_series(case, folder)]
    warm_cache = folder / "cache"
    row: tables.Row = {
        "shape": "×".join(map(str, (*case.shape, case.n_volumes))) + ", twice" * (case.n_runs > 1),
        "engine": case.engine,
        "nprocs": case.nprocs, "series_mb": round(case.megabytes),
    }  # fmt: skip
    if case.cold:
        with tempfile.TemporaryDirectory() as empty:
            row["cold_s"] = run(images, case, folder, Path(empty))["seconds"]
    run(images, case, folder, warm_cache)
    pairs = [
        (run(images, case, folder, warm_cache), run_floor(images, folder, warm_cache))
        for _ in range(runs)
    ]
    measured, floors = zip(*pairs, strict=True)
    for name in measured[0]:
        over = max if name == "peak_mb" else statistics.median
        row[name] = over(one[name] for one in measured)
    for name in ("seconds", "cpu_s"):
        row[f"floor_{name}"] = statistics.median(floor[name] for floor in floors)
        row[f"ratio_{name}"] = statistics.median(one[name] / floor[name] for one, floor in pairs)
    return row


def make_series(case: Case, folder: Path) -> Path:
    """Simulate directions and b=0 volumes in proportion 15 to 1."""
    name = "x".join(map(str, (*case.shape, case.n_volumes)))
    image = folder / name / f"sub-{name}" / "dwi" / f"sub-{name}_dwi.nii.gz"
    if image.is_file():
        return image
    sizes = np.array(FIELD_OF_VIEW_MM) / case.shape
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array(case.shape) - 1) / 2
    n_b0 = max(1, case.n_volumes // 16)
    gradients = shelled_scheme({1000.0: case.n_volumes - n_b0}, n_b0)
    motion = simulate_motion("moderate", len(gradients), np.zeros(3))
    grid = Grid(case.shape, affine)
    dwi = acquire(procedural_head(2.0), gradients, motion, grid, n_threads=os.cpu_count() or 1)
    return write_bids(folder / name, name, dwi, motion)


def make_study(folder: Path) -> list[Path]:
    """Simulate runs of opposite polarity, with a field, and with motion within volumes in one."""
    study = folder / "study"
    for run, differing in STUDY.items():
        command = [Path(sys.executable).parent / "eddymotion-simulate", study, *STUDIED.split()]
        command += ["--direction", run, *differing.split(), "--nprocs", os.cpu_count() or 1]
        if not (study / "truth" / f"sub-01_dir-{run}_xfm.txt").is_file():
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return [study / "sub-01" / "dwi" / f"sub-01_dir-{run}_dwi.nii.gz" for run in STUDY]


def run(images: list[Path], case: Case, folder: Path, cache: Path) -> tables.Row:
    """Run the command; return its seconds, those of its stages, and its peak memory."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [Path(sys.executable).parent / "eddymotion-correct", *images, "-o", out]
        command += ["--resampling", case.engine, "--nprocs", case.nprocs]
        row = watched([str(part) for part in command], cache)
        sidecars = Path(out).glob("*_desc-preproc_dwi.json")
        of_runs = [json.loads(one.read_text(encoding="utf-8"))["StageSeconds"] for one in sidecars]
    stages = {stage: sum(one.get(stage, 0.0) for one in of_runs) for stage in (*STAGES, "runs")}
    stages["motion"] += stages.pop("runs")
    return row | stages | {"rest": row["seconds"] - sum(stages.values())}


def watched(command: list[str], cache: Path) -> tables.Row:
    """Run a command; return its seconds, those of processors, and peak memory with children."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    family, ended = psutil.Process(process.pid), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            try:
                members = [family, *family.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in members))
            except psutil.NoSuchProcess:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"{command} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_s": cpu, "peak_mb": round(peak / 1e6)}


def environment(cache: Path) -> dict[str, str]:
    """Keep compiled kernels and modules in `cache`, as in an installation."""
    own = {
        "NUMBA_CACHE_DIR": str(cache / "kernels"),
        "PYTHONPYCACHEPREFIX": str(cache / "modules"),
    }
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | own


def run_floor(images: list[Path], folder: Path, cache: Path) -> tables.Row:
    """Measure the floor in a process of its own, its start not included."""
    command = [sys.executable, "-m", "benchmarks.speed", "--floor", folder]
    for image in images:
        name = image.name.removesuffix("_dwi.nii.gz") + "_xfm.txt"
        command += [image, image.parents[2] / "truth" / name]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True,
                          text=True, env=environment(cache))  # fmt: skip
    return json.loads(done.stdout)


def measure_floor(images: list[Path], truths: list[Path], folder: Path) -> None:
    """Read, interpolate once, write; print the seconds."""
    started, busy = time.perf_counter(), time.process_time()
    for image, truth in zip(images, truths, strict=True):
        dwi = em.load(image)
        motion = Motion(read_itk(truth))
        corrected = Resampled.of(dwi, motion, engine="fast", n_threads=os.cpu_count() or 1)
        write_series(folder / "floor.nii.gz", corrected, corrected.volumes())
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    print(json.dumps({"seconds": seconds, "cpu_s": cpu}))


def render(rows: list[tables.Row], provenance: Path) -> None:
    """Write the page and the plot."""
    lines = []
    for row in sorted(rows, key=lambda row: list(CASES).index(row["case"])):
        shares = " / ".join(f"{100 * row[stage] / row['seconds']:.0f}" for stage in STAGES)
        lines.append([
            row["case"], row["shape"], row["engine"], str(row["nprocs"]),
            tables.number(row.get("cold_s") or float("nan"), 1), tables.number(row["seconds"], 1),
            tables.number(row["rest"], 1), tables.number(row["floor_seconds"], 1),
            tables.number(row["ratio_seconds"], 1), tables.number(row["ratio_cpu_s"], 1),
            str(row["peak_mb"]), tables.number(row["peak_mb"] / row["series_mb"], 1), shares,
        ])  # fmt: skip
    heads = ["case", "size", "resampling", "children", "cold (s)", "warm (s)", "rest (s)",
             "floor (s)", "ratio", "CPU ratio", "peak (MB)", "copies",
             "shares (%)"]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines),
             "![seconds and memory against volumes and voxels](speed.png)\n"]  # fmt: skip
    plot(rows)
    tables.write_page("speed", "\n".join(parts), rows)


INTRODUCTION = f"""# Speed and memory

The whole command `eddymotion-correct` on simulated series (b=1000, moderate motion, int16
.nii.gz), medians of the warm runs; *cold*: with an empty cache of compiled kernels. *Rest*: time
outside all stages, mostly the start of the process. *Floor*: one read, one interpolation with the
compiled kernel, one write, in a process that has started; it runs next to each run of the command.
*Ratio*: the median over these pairs, of wall times; *CPU ratio*: the same of processor times.
*Peak*: resident memory of the process, of which about 150 MB are the interpreter and its libraries
and about 80 MB compiled code; *copies*: peak in units of the series as float32.
*Shares*: {", ".join(STAGES)}; the motion with what joins runs.

Rows were measured on different days, and the machine was up to 1.5 times slower on some, as the
floors show: ratios compare, seconds do not.

*study*: two runs of opposite polarity in one command, each simulated with
`eddymotion-simulate {STUDIED}`: four shells to b=3000 and an off-resonance field, which in the
first run changes with the head, as it moves within 33 of the volumes; the second has no slice
timing.
"""


def plot(rows: list[tables.Row]) -> None:
    """Draw seconds and memory of the size sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    sweeps = {"volumes": "volumes, of 64×64×40 voxels", "voxels": "voxels (million), 64 volumes"}
    for axis, (family, label) in zip(axes, sweeps.items(), strict=True):
        mine = [row for row in rows if row["case"].startswith(family)]
        mine.sort(key=lambda row: row["series_mb"])
        case = [CASES[row["case"]] for row in mine]
        x = [c.n_volumes if family == "volumes" else np.prod(c.shape) / 1e6 for c in case]
        axis.plot(x, [row["seconds"] for row in mine], "o-", color="tab:blue", label="command (s)")
        axis.plot(x, [row["floor_seconds"] for row in mine], "s--", color="0.5", label="floor (s)")
        memory = axis.twinx()
        memory.plot(x, [row["peak_mb"] for row in mine], "^:", color="tab:red", label="peak (MB)")
        memory.plot(x, [row["series_mb"] for row in mine], ":", color="tab:red", alpha=0.5,
                    label="float32 series (MB)")  # fmt: skip
        axis.set(xlabel=label, ylabel="s", ylim=(0, None))
        memory.set(ylabel="MB", ylim=(0, None))
        axis.spines["top"].set_visible(False)
        memory.spines["top"].set_visible(False)
    handles = [line for axis in figure.axes[::2] for line in axis.get_lines()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    tables.save_plot(figure, "speed")
    plt.close(figure)


if __name__ == "__main__":
    main()
