# SPDX-License-Identifier: Apache-2.0
"""The registration engines in the leave-one-out loop: errors and processor time, side by side.

``python -m benchmarks.registrars [--series NAME …] [--seeds SEED …] [--registrars NAME …]``
simulates small series, estimates their motion with each engine that is installed, stores each row
as soon as it is complete, and resumes where it stopped. ``--render`` only writes
``docs/benchmarks/registrars.md``.

Model and passes are the same for all engines. *joint* aligns all volumes at once and needs none.
"""

import argparse
import importlib.metadata
import shutil
import statistics
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

import eddymotion as em
from benchmarks import tables
from benchmarks.accuracy import Series, read_phantom, row_of, score
from eddymotion.errors import EddymotionError
from eddymotion.registration import Registrar, get_registrar
from eddymotion.simulation import shelled_scheme

SERIES = {
    "b1000": Series(partial(shelled_scheme, {1000.0: 24}, 3), "moderate", voxel_sizes=3.0),
    "b3000": Series(partial(shelled_scheme, {3000.0: 24}, 3), "moderate", voxel_sizes=3.0),
    "b1000-high": Series(partial(shelled_scheme, {1000.0: 24}, 3), "high", voxel_sizes=3.0),
}
"""24 directions and three b=0 volumes, 3 mm, SNR 20."""

REGISTRARS = (
    "joint", "gauss-newton", "dipy", "ants", "ants:motion", "elastix", "elastix:motion",
)  # fmt: skip
"""Engines, with a preset after a colon."""

KEY = ("series", "seed", "registrar")


def main() -> None:
    tables.run(parse(), KEY, measure_all, render, engine_versions())


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/registrars.tsv", seeds=[0, 1], n_threads=2)
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"), default=[])
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--registrars", nargs="+", choices=REGISTRARS, default=list(REGISTRARS))
    return parser.parse_args()


def engine_versions() -> dict[str, str]:
    """Return the versions of the installed engines."""
    found = {}
    for name in ("nipype", "antspyx", "itk-elastix"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for program in ("antsRegistration", "elastix"):
        if shutil.which(program):
            said = subprocess.run([program, "--version"], capture_output=True, text=True)
            found[program] = said.stdout.splitlines()[0].split()[-1]
    return found


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    for seed in options.seeds:
        for name in options.series:
            missing = [r for r in options.registrars
                       if not rows.has(series=name, seed=seed, registrar=r)]  # fmt: skip
            if not missing:
                continue
            phantom = read_phantom(options.phantom)
            dwi, truth = SERIES[name].simulate(phantom, seed, options.n_threads)
            for registrar in missing:
                found, used = estimate(dwi, registrar, options.n_threads)
                rows.add({
                    "series": name, "seed": seed, "registrar": registrar, "volumes": len(dwi),
                    "grid": "×".join(map(str, dwi.shape)), **used,
                    **row_of(score(dwi, truth, found)),
                })  # fmt: skip


def estimate(dwi: em.DWI, name: str, n_threads: int) -> tuple[em.Motion, dict[str, float]]:
    """Estimate the motion; return it, and the seconds and processor seconds that it took."""
    before = processor_seconds()
    started = time.perf_counter()
    if name == "joint":
        found = em.estimate_motion(dwi, estimator="joint", n_threads=n_threads)
    else:
        engine = engine_of(name)
        found = em.estimate_motion(dwi, estimator="lovo", registrar=engine, n_threads=n_threads)
    used = {"seconds": time.perf_counter() - started, "cpu_seconds": processor_seconds() - before}
    return found, used


def engine_of(name: str) -> Registrar:
    """Return an engine, with the preset in its name."""
    engine, _, preset = name.partition(":")
    try:
        registrar = get_registrar(engine)
    except EddymotionError as error:
        raise SystemExit(f"{error}; or leave it out with --registrars") from error
    return replace(registrar, preset=preset) if preset else registrar


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it has started."""
    here = psutil.Process()
    family = (here, *here.children(recursive=True))
    times = [process.cpu_times() for process in family]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def render(rows: list[tables.Row], provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page and the numbers."""
    lines = []
    for series in SERIES:
        for registrar in REGISTRARS:
            mine = [r for r in rows if (r["series"], r["registrar"]) == (series, registrar)]
            if not mine:
                continue
            m = {name: statistics.median(row[name] for row in mine)
                 for name, value in mine[0].items() if isinstance(value, int | float)}  # fmt: skip
            lines.append([
                series, f"**{registrar}**" if registrar == "joint" else registrar, str(len(mine)),
                tables.pair(m["nothing_mm"], m["nothing_deg"], 2),
                tables.pair(m["free_mm"], m["free_deg"]),
                tables.pair(m["frame_mm"], m["frame_deg"]),
                tables.number(max(row["largest_mm"] for row in mine)),
                tables.pair(m["slope_t"], m["slope_r"]),
                tables.number(m["cpu_seconds"], 0), tables.number(m["seconds"], 0),
            ])  # fmt: skip
    heads = ["series", "engine", "seeds", "nothing", "offset-free", "volume 0's frame",
             "largest (mm)", "slope t / r", "CPU (s)", "s"]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), sizes(rows),
             tables.markdown(heads, lines)]  # fmt: skip
    tables.write_page("registrars", "\n".join(parts), rows, docs)


INTRODUCTION = """# Registration engines in the leave-one-out loop

The same loop (model, passes, order) with each engine of `--registration` on a simulated head:
default settings, or the preset named after a colon (`--registration-settings` with
`{"preset": "motion"}`). For comparison the default estimator, *joint*, which aligns all volumes at
once. RMSE (mm / °) over three axes and all volumes above b=100, medians over the seeds.
*Offset-free*: after removing a constant rigid offset. *Volume 0's frame*: the absolute error.
*Largest*: the worst displacement of a volume over an 80 mm sphere, over all seeds. *CPU*:
processor seconds of the estimation, other programs included. *s*: wall time, which means little on
a machine with other load.

gauss-newton compares squared differences after a linear fit, the others their mutual information.

At b3000, with 24 directions and SNR 20, registrations to the blurred mean of the first pass
misalign single volumes (by 51 to 80°; with dipy most). Each pass begins by recovering them: a
volume that is far from its neighbours in time is tried at their pose, where its direction, and so
its prediction, is different (`eddymotion/estimation/outlier_volumes.py`). ANTs and elastix were
not run at b3000.
"""


def sizes(rows: list[tables.Row]) -> str:
    return f"{rows[0]['volumes']} volumes of {rows[0]['grid']} voxels of 3 mm.\n"


if __name__ == "__main__":
    main()
