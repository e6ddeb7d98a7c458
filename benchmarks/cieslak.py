# SPDX-License-Identifier: Apache-2.0
"""The protocol of Cieslak et al. (2024): a random share of the volumes replaced by moved copies.

``python -m benchmarks.cieslak [--phantom TISSUE PEAKS] [--schemes NAME …] [--seeds SEED …]``
measures our estimators on each scheme, share and permutation (seed), stores each row as soon as it
is complete, and resumes where it stopped. ``--render`` only writes ``docs/benchmarks/cieslak.md``:
the medians next to the published figures (``benchmarks/cieslak2024.tsv``), which are of another
phantom.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

import eddymotion as em
from benchmarks import tables
from benchmarks.accuracy import ABCD, DSI, Series, read_phantom, row_of, score
from eddymotion.simulation import cartesian_scheme, shelled_scheme

PUBLISHED = Path(__file__).with_name("cieslak2024.tsv")

SCHEMES = {
    "ABCD": ABCD,
    "HCP-2shell": partial(shelled_scheme, {1000.0: 45, 3000.0: 45}, 9),
    "HASC55": DSI,
    "HCP": partial(shelled_scheme, {1000.0: 90, 2000.0: 90, 3000.0: 90}, 18),
    "DSIQ5": partial(cartesian_scheme, 257, 5000.0, 5),
}
"""Names as published; HCP-2shell is a part of HCP that takes a third of its time."""

SHARES = (15, 30, 50)

LIMITS = (0.01, 5.0)
"""Of the plot: mm, and degrees."""

METHODS = {"SHORELine": "SHORELine", "Eddy": "eddy", "Eddy-denoised": "eddy after dwidenoise"}
"""What is published, as it is called here."""

KEY = ("scheme", "percent_moved", "seed", "estimator")


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/cieslak.tsv", seeds=[0, 1, 2], n_threads=1)
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"), default=[])
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--shares", nargs="+", type=int, choices=SHARES, default=list(SHARES))
    parser.add_argument("--estimators", nargs="+", choices=("joint", "lovo"), default=["joint"])
    parser.add_argument("--voxel-size", type=float, default=2.0, help="mm (2)")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    for seed in options.seeds:
        for scheme in options.schemes:
            for share in options.shares:
                key = {"scheme": scheme, "percent_moved": share, "seed": seed}
                missing = [e for e in options.estimators if not rows.has(**key, estimator=e)]
                if missing:
                    measure(key, missing, options, rows)


def measure(key: tables.Row, estimators: list[str], options: argparse.Namespace, rows) -> None:
    """Simulate a series and estimate its motion."""
    series = Series(
        SCHEMES[key["scheme"]], f"swap{key['percent_moved']}", voxel_sizes=options.voxel_size
    )
    phantom = read_phantom(options.phantom)
    dwi, truth = series.simulate(phantom, key["seed"], options.n_threads)
    for estimator in estimators:
        started = time.process_time()
        found = em.estimate_motion(dwi, estimator=estimator, n_threads=options.n_threads)
        seconds = time.process_time() - started
        rows.add({
            **key, "estimator": estimator, "voxel_mm": f"{options.voxel_size:g}",
            "volumes": len(dwi), "seconds": round(seconds, 1),
            **row_of(score(dwi, truth, found)),
        })  # fmt: skip


def render(rows: list[tables.Row], provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page, the numbers and the plot."""
    published = tables.read_tsv(PUBLISHED)
    lines = []
    for scheme, share, estimator in cells(rows):
        mine = [r for r in rows if (r["scheme"], r["percent_moved"], r["estimator"])
                == (scheme, share, estimator)]  # fmt: skip
        m = {name: statistics.median(r[name] for r in mine)
             for name, value in mine[0].items() if isinstance(value, int | float)}  # fmt: skip
        worst = [max(row[name] for row in mine) for name in ("frame_mm", "frame_deg")]
        lines.append([
            scheme, f"{share} %", estimator, str(len(mine)),
            tables.pair(m["nothing_mm"], m["nothing_deg"], 2),
            tables.pair(m["frame_mm"], m["frame_deg"]), tables.pair(*worst),
            tables.pair(m["free_mm"], m["free_deg"]),
            tables.pair(m["slope_t"], m["slope_r"]), tables.number(m["seconds"], 0),
            *(quoted(published, scheme, share, method) for method in METHODS),
        ])  # fmt: skip
    heads = ["scheme", "moved", "estimator", "runs", "nothing", "**ours**", "ours, worst run",
             "ours, offset-free", "slope t / r", "CPU (s)",
             *(f"{name}, published" for name in METHODS.values())]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), sizes(rows),
             tables.markdown(heads, lines), "![errors against the share of moved volumes]"
             "(cieslak.png)\n"]  # fmt: skip
    plot(rows, published, docs)
    tables.write_page("cieslak", "\n".join(parts), rows, docs)


INTRODUCTION = """# The protocol of Cieslak et al. (2024)

A head at rest, of which a random 15, 30 or 50 % of the volumes are replaced by copies moved by up
to 5 mm and 8° along and about each axis. RMSE (mm / °) over three axes and all volumes above
b=100; *ours* and *nothing* in the frame of volume 0, medians over the permutations.
*CPU*: processor time of the estimation.

**The phantom is not the published one.** Ours is a simulated head of tissue fractions and fibre
directions at SNR 20 with a coil sensitivity fixed to the scanner; the published series have
different anatomy, noise, distortions and motion parameters. The published columns
(SHORELine rigid, eddy quadratic, means over 30 runs) show the order of magnitude reached there,
not which is better here: neither program was run on our series. "–": not published, or, for
eddy, not possible with that scheme.
"""


def sizes(rows: list[tables.Row]) -> str:
    volumes = {row["scheme"]: row["volumes"] for row in rows}
    stated = ", ".join(f"{name} {n} volumes" for name, n in volumes.items())
    return f"Voxels of {rows[0]['voxel_mm']} mm. Schemes: {stated}.\n"


def cells(rows: list[tables.Row]) -> list[tuple[str, int, str]]:
    """Return scheme, share and estimator of every line, in the order of the schemes."""
    known = {(row["scheme"], row["percent_moved"], row["estimator"]) for row in rows}
    order = list(SCHEMES)
    return sorted(known, key=lambda cell: (order.index(cell[0]), cell[1], cell[2]))


def quoted(published: list[tables.Row], scheme: str, share: int, method: str) -> str:
    found = [row for row in published if (row["scheme"], row["percent_moved"], row["method"])
             == (scheme, share, method)]  # fmt: skip
    if not found:
        return "–"
    return tables.pair(found[0]["translation_rmse_mm"], found[0]["rotation_rmse_deg"], 2)


def plot(rows: list[tables.Row], published: list[tables.Row], docs: Path) -> None:
    """Draw the errors against the share of moved volumes, a column a scheme."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    schemes = [name for name in SCHEMES if any(row["scheme"] == name for row in rows)]
    figure, axes = plt.subplots(
        2, len(schemes), figsize=(1.2 + 2.3 * len(schemes), 5), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    units = (("mm", "translation_rmse_mm", "translation RMSE (mm)"),
             ("deg", "rotation_rmse_deg", "rotation RMSE (°)"))  # fmt: skip
    for row_of_axes, (unit, column, title) in zip(axes, units, strict=True):
        row_of_axes[0].set_ylabel(title)
        for axis, scheme in zip(row_of_axes, schemes, strict=True):
            mine = [row for row in rows if row["scheme"] == scheme]
            theirs = [row for row in published if row["scheme"] == scheme]
            draw(axis, mine, theirs, unit, column)
    for axis, scheme in zip(axes[0], schemes, strict=True):
        axis.set_title(scheme, fontsize=10)
    for axis in axes[1]:
        axis.set_xlabel("moved volumes (%)")
        axis.set_xticks(SHARES)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()
             if not line.get_label().startswith("_")}  # fmt: skip
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
    tables.save_plot(figure, "cieslak", docs)
    plt.close(figure)


def draw(axis, mine: list[tables.Row], theirs: list[tables.Row], unit: str, column: str) -> None:
    def line(rows, name, by, **style):
        shares = sorted({row["percent_moved"] for row in rows})
        values = [statistics.median(r[name] for r in rows if r["percent_moved"] == s)
                  for s in shares]  # fmt: skip
        axis.plot(shares, values, label=by, **style)

    joint = [row for row in mine if row["estimator"] == "joint"] or mine
    line(joint, f"nothing_{unit}", "do nothing", color="0.6", ls="--")
    line(joint, f"frame_{unit}", "eddymotion", color="tab:blue", marker="o")
    shares, values = np.array([[r["percent_moved"], r[f"frame_{unit}"]] for r in joint]).T
    axis.plot(shares, values, ".", color="tab:blue", alpha=0.5)
    styles = (("tab:orange", "s"), ("tab:red", "^"), ("tab:purple", "v"))
    for (method, name), (colour, marker) in zip(METHODS.items(), styles, strict=True):
        rows = [row for row in theirs if row["method"] == method]
        if rows:
            by = f"{name} (published, other phantom)"
            line(rows, column, by, color=colour, marker=marker, mfc="none", ls=":")
    tables.plain_log_scale(axis.yaxis, *LIMITS)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
