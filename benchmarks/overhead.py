# SPDX-License-Identifier: Apache-2.0
"""Overhead of workflow engines, and scaling of the BIDS-App over processes.

``python -m benchmarks.overhead [--cases NAME …] [--runs N]`` simulates one series of 64 volumes
and corrects it in each *way*, in a process of its own, rounds alternating between the ways; then
it corrects several participants with one and with more processors. ``--cases array`` corrects many
participants by a job array of SLURM and by one process (on this host: ``tests/cluster/slurm run
python -m benchmarks.overhead --cases array``). ``--render`` only writes
``docs/benchmarks/overhead.md``. An interrupted run resumes where it stopped.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import tables

WAYS = {
    "library": "load, estimate_motion, resample, assess, save",
    "nipype": "init_dwi_hmc_wf, Nipype's Linear plugin",
    "nipype-multiproc": "init_dwi_hmc_wf, Nipype's MultiProc plugin, two processors",
    "pydra": "DwiHmc, Pydra's cf worker, two processes",
    "command": "eddymotion-correct",
    "app": "eddymotion, the BIDS-App, one series",
}
"""Name → description."""

COMPARED_WITH = {"nipype": "library", "nipype-multiproc": "library", "pydra": "library",
                 "app": "command"}  # fmt: skip

SERIES = (96, 96, 60, 64)
SMALL = (64, 64, 40, 24)
TINY = (32, 32, 20, 16)
N_PARTICIPANTS = 6
PROCESSORS = (1, 2, 4)
N_IN_ARRAY = 200

KEY = ("case",)


def main() -> None:
    options = parse()
    if options.way:
        WORK[options.way](Path(options.image), Path(options.folder), options.threads)
        return
    tables.run(options, KEY, measure_all, render, tables.versions(("nipype", "pydra")))


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/overhead.tsv")
    cases = ("overhead", "scaling", "array")
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases[:2], metavar="NAME",
                        help=f"{', '.join(cases)} (the first two)")  # fmt: skip
    parser.add_argument("--participants", type=int, default=N_IN_ARRAY, metavar="N",
                        help=f"of the array ({N_IN_ARRAY})")  # fmt: skip
    parser.add_argument("--size", nargs=4, type=int, default=SERIES, metavar="N",
                        help="of the series (96 96 60 64)")  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="rounds (5)")
    for hidden in ("--way", "--image", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if "overhead" in options.cases:
            measure_ways(rows, Path(folder), tuple(options.size), options.runs)
        if "scaling" in options.cases:
            measure_scaling(rows, Path(folder), options.runs)
        if "array" in options.cases:
            measure_array(rows, Path(folder), options.participants)


def measure_ways(
    rows: tables.Rows, folder: Path, size: tuple[int, int, int, int], runs: int
) -> None:
    """Time each way, one after another in each round."""
    missing = [way for way in WAYS if not rows.has(case=way)]
    if not missing:
        return
    needed = {*missing, *(COMPARED_WITH.get(way, way) for way in missing)}
    ways = [way for way in WAYS if way in needed]
    image = simulated(size, folder)
    warm_up(ways, folder)
    used = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            used[way].append(timed(way, image, folder, threads=2))
    for way in missing:
        rows.add({"case": way, "size": "×".join(map(str, size))} | summary(used[way]))


def warm_up(ways: Iterable[str], folder: Path) -> None:
    """Fill the caches of compiled kernels and modules."""
    image = simulated(TINY, folder)
    for way in ways:
        timed(way, image, folder, threads=2)


def simulated(size: tuple[int, int, int, int], folder: Path) -> Path:
    """Simulate a series; return the image."""
    from benchmarks.speed import Case, make_series

    return make_series(Case(size[:3], size[3]), folder)


def timed(way: str, image: Path, folder: Path, threads: int) -> tuple[float, float]:
    """Run one way in a process of its own: wall and processor seconds, children and start too."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        call = [sys.executable, "-m", "benchmarks.overhead", "--way", way, "--image", image,
                "--folder", out, "--threads", threads]  # fmt: skip
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        before = os.times()
        subprocess.run([str(part) for part in call], check=True, capture_output=True,
                       env=environment)  # fmt: skip
        after = os.times()
    processor = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    return after.elapsed - before.elapsed, processor


def summary(used: list[tuple[float, float]]) -> tables.Row:
    """Median and range of the wall seconds, median of the processor seconds."""
    wall, processor = zip(*used, strict=True)
    return {"seconds": statistics.median(wall), "fastest": min(wall), "slowest": max(wall),
            "processor": statistics.median(processor)}  # fmt: skip


def with_library(image: Path, folder: Path, threads: int) -> None:
    import eddymotion as em

    dwi = em.load(image)
    motion = em.estimate_motion(dwi, n_threads=threads)
    corrected = em.resample(dwi, motion, n_threads=threads)
    quality = em.assess(dwi, motion, n_threads=threads)
    em.save(corrected, motion, folder, quality=quality)


def with_nipype(image: Path, folder: Path, threads: int, plugin: str = "Linear") -> None:
    from eddymotion.workflows.execution import run_workflow
    from eddymotion.workflows.nipype import init_dwi_hmc_wf

    from eddymotion.pipeline.limits import Plugin

    workflow = init_dwi_hmc_wf(n_threads=threads)
    workflow.inputs.inputnode.dwi_file = image
    arguments = {"n_procs": threads} if plugin == "MultiProc" else {}
    run_workflow(workflow, Plugin(plugin, arguments), folder)


def with_multiproc(image: Path, folder: Path, threads: int) -> None:
    with_nipype(image, folder, threads, "MultiProc")


def with_pydra(image: Path, folder: Path, threads: int) -> None:
    from eddymotion.workflows.pydra import DwiHmc

    DwiHmc(dwi_file=image, n_threads=threads)(worker="cf", n_procs=2, cache_root=folder)


def with_command(image: Path, folder: Path, threads: int) -> None:
    from eddymotion.cli.correct import main as correct

    sys.exit(correct([str(image), "-o", str(folder), "--nprocs", str(threads)]))


def with_app(image: Path, folder: Path, threads: int) -> None:
    from eddymotion.cli.participant import main as app

    call = [str(image.parents[2]), str(folder), "participant", "--nprocs", str(threads)]
    sys.exit(app([*call, "--skip-bids-validation"]))


WORK = {
    "library": with_library,
    "nipype": with_nipype,
    "nipype-multiproc": with_multiproc,
    "pydra": with_pydra,
    "command": with_command,
    "app": with_app,
}


def measure_scaling(rows: tables.Rows, folder: Path, runs: int) -> None:
    """Correct some participants with an increasing number of processors, as far as available."""
    available = [n for n in PROCESSORS if n <= (os.cpu_count() or 1)]
    missing = [n for n in available if not rows.has(case=f"processors-{n}")]
    if not missing:
        return
    dataset = several_participants(simulated(SMALL, folder), folder / "several", N_PARTICIPANTS)
    warm_up(["app"], folder)
    used = {n: [] for n in available}
    for _ in range(runs):
        for n in available:
            used[n].append(timed("app", dataset, folder, threads=n))
    size = f"{N_PARTICIPANTS} participants, " + "×".join(map(str, SMALL))
    for n in missing:
        rows.add({"case": f"processors-{n}", "size": size} | summary(used[n]))


def several_participants(image: Path, root: Path, number: int) -> Path:
    """Copy a series under several labels; return the first image."""
    shutil.copytree(image.parents[2], root, ignore=shutil.ignore_patterns("sub-*", "truth"))
    labels = [f"sub-{n:03d}" for n in range(1, number + 1)]
    for label in labels:
        (root / label / "dwi").mkdir(parents=True)
        for path in image.parent.iterdir():
            name = label + path.name.removeprefix(image.parents[1].name)
            shutil.copy(path, root / label / "dwi" / name)
    return root / labels[0] / "dwi" / f"{labels[0]}_dwi.nii.gz"


def measure_array(rows: tables.Rows, folder: Path, number: int) -> None:
    """Correct many participants by one process, and by a job array with a job each."""
    if rows.has(case="array"):
        return
    warm_up(["app"], folder)
    image = several_participants(simulated(TINY, folder), folder / "many", number)
    size = f"{number} participants, " + "×".join(map(str, TINY))
    alone = timed("app", image, folder, threads=1)
    together = timed_array(image.parents[2], folder / "of_array", folder / "cache")
    for case, used in (("one-process", alone), ("array", together)):
        rows.add({"case": case, "size": size, "participants": number} | summary([used]))


def timed_array(dataset: Path, output: Path, cache: Path) -> tuple[float, float]:
    """Run the script of the how-to to its end: wall seconds, processor seconds of all jobs.

    Raises
    ------
    RuntimeError
        If a job failed.
    """
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(cache), "CPUS": "1", "MEM_GB": "1",
        "AT_ONCE": str(os.cpu_count() or 1),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    script = Path(__file__).resolve().parents[1] / "examples" / "slurm_array.sh"
    began = time.monotonic()
    said = _output_of([script, dataset, output], environment)
    numbers = re.search(r"array (\d+), then job (\d+)", said)
    assert numbers is not None, said
    jobs = ",".join(numbers.groups())
    while _output_of(["squeue", "--noheader", "--states=all", f"--jobs={jobs}",
                      "--format=%T"]).replace("COMPLETED", "").strip():  # fmt: skip
        time.sleep(0.5)
    wall = time.monotonic() - began
    return wall, sum(_processor_seconds(jobs))


def _processor_seconds(jobs: str, waits_s: float = 60) -> list[float]:
    """Return what each job used, from SLURM's accounting, which lags behind."""
    call = ["sacct", "-n", "-P", f"--jobs={jobs}", "--format=JobID,State,TotalCPU"]
    ends = time.monotonic() + waits_s
    while True:
        rows = [line.split("|") for line in _output_of(call).splitlines()]
        if all(state == "COMPLETED" for _, state, _ in rows):
            return [_seconds(used) for step, _, used in rows if step.endswith(".batch")]
        if time.monotonic() > ends:
            raise RuntimeError(f"jobs {jobs}: {sorted({state for _, state, _ in rows})}")
        time.sleep(0.5)


def _seconds(text: str) -> float:
    """Read SLURM's [hours:]minutes:seconds."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _output_of(call: list[str | Path], environment: Mapping[str, str] | None = None) -> str:
    return subprocess.run(
        [str(part) for part in call], env=environment, check=True, capture_output=True, text=True
    ).stdout


INTRODUCTION = """# Overhead of workflow engines

Whole processes, including the start of Python and imports; medians over alternating rounds, with
compiled kernels cached. All use two threads and NiTransforms for resampling. *Overhead*: relative
to the library (for the BIDS-App: to `eddymotion-correct`), which does the same and writes the
same; in wall time and in processor time. Where the slowest run took much longer than the fastest,
the machine was busy with other work: only the processor time is meaningful then.
"""

NOTES = """
The BIDS-App finds the series, and one node corrects each. The three nodes of the Nipype and Pydra
workflows read the series three times.
"""


def render(rows: list[tables.Row], provenance: Path) -> None:
    """Write the page."""
    found = {row["case"]: row for row in rows}
    lines = []
    for way, what in WAYS.items():
        if way not in found:
            continue
        row, other = found[way], found.get(COMPARED_WITH.get(way, ""))
        more = [f"{100 * (row[kind] / other[kind] - 1):+.0f} %" if other else "–"
                for kind in ("seconds", "processor")]  # fmt: skip
        lines.append([way, what, row["size"], *times_of(row), *more])
    heads = ["way", "what", "size", *HEADS, "overhead (wall)", "overhead (processor)"]
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines)]
    parts.append(NOTES)
    scaling = [found[f"processors-{n}"] for n in PROCESSORS if f"processors-{n}" in found]
    if scaling:
        parts.append("## Several participants\n")
        one = scaling[0]["seconds"]
        cells = [
            [row["case"].removeprefix("processors-"), row["size"], *times_of(row),
             f"{one / row['seconds']:.2f}"] for row in scaling
        ]  # fmt: skip
        heads = ["processors", "size", *HEADS, "speed-up"]
        parts.append(tables.markdown(heads, cells))
    if "array" in found:
        parts += ["\n## Many participants by a job array\n", ARRAY, array_table(found)]
    tables.write_page("overhead", "\n".join(parts), rows)


ARRAY = """[One job per participant](../how-to/cluster.md#a-job-array), each with one processor, on
the SLURM of the cluster tests, compared with all participants in one process, one after the other.
*Overhead per participant*: processor seconds of the jobs, including the last one, which covers all
participants, in excess of those of the single process, divided by the number of participants.
"""


def array_table(found: Mapping[str, tables.Row]) -> str:
    """Compare the array with the one process."""
    one, array = found["one-process"], found["array"]
    number = array["participants"]
    lines = [
        [row["case"].replace("-", " "), row["size"], f"{row['seconds']:.0f}",
         f"{60 * number / row['seconds']:.1f}", f"{row['processor'] / number:.2f}",
         f"{(row['processor'] - one['processor']) / number:.2f}" if row is array else "–"]
        for row in (one, array)
    ]  # fmt: skip
    heads = ["way", "size", "wall s", "participants per minute", "processor s per participant",
             "overhead per participant"]  # fmt: skip
    return tables.markdown(heads, lines)


HEADS = ("wall s (fastest–slowest)", "processor s")


def times_of(row: tables.Row) -> tuple[str, str]:
    """Wall time with its range, and processor time."""
    wall = f"{row['seconds']:.1f} ({row['fastest']:.1f}–{row['slowest']:.1f})"
    return wall, f"{row['processor']:.1f}"


if __name__ == "__main__":
    main()
