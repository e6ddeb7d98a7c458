# SPDX-License-Identifier: Apache-2.0
"""Real series before and after correction, and scan against rescan.

``python -m benchmarks.real BIDS_DIR`` writes ``docs/benchmarks/real.md``: for every series of the
dataset the correlation of the held-out diffusion-weighted volumes with their prediction, the range
of the motion, and the time; for series whose second half repeats the directions of the first, the
distance between the tensors of the halves; for runs of one participant with the same number of
volumes and the same phase encoding, between which the head was turned, the distance between the
tensors of the runs. ``--render`` only writes the page.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np

import eddymotion as em
from benchmarks import tables
from eddymotion.bids.series import find_series
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation import assess
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import framewise_displacement, log_rigid, rigid_parameters

KEY = ("series", "state")

WHITE_MATTER_FA = 0.3
"""Principal directions are compared where the mean FA of the halves, corrected, exceeds it."""

STATES = {
    "before": "before",
    "interpolated": "interpolated equally, not aligned",
    "after": "after correction",
}

RESCANS = {
    "apart": "each run alone",
    "not turned": "one frame, b-vectors as in the tables",
    "turned": "one frame, b-vectors rotated",
}

LEAST_TURN_DEG = 5.0
"""Between two runs, for what the turning of b-vectors does to be seen."""


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/real.tsv", n_threads=1)
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    found = find_series(options.bids_dir)
    for files in (one for series in found.values() for one in series):
        measure(files, options, rows)
    for pair in (pair for series in found.values() for pair in combinations(series, 2)):
        measure_rescan(pair, options, rows)


def measure(files: SeriesFiles, options: argparse.Namespace, rows: tables.Rows) -> None:
    """Correct a series, judge it, compare its halves if they repeat each other."""
    name = name_of(files)
    if rows.has(series=name, state="motion"):
        return
    started = time.process_time()
    dwi = em.load(files.dwi, bval=files.bval, bvec=files.bvec)
    motion = em.estimate_motion(dwi, n_threads=options.n_threads)
    corrected = em.resample(dwi, motion, engine="fast", n_threads=options.n_threads)
    seconds = time.process_time() - started
    if (halves := repeated_halves(dwi)) is not None:
        for state, series in states(dwi, corrected, motion).items():
            if not rows.has(series=name, state=state):
                rows.add({"series": name, "state": state,
                          **tensor_distance(series, corrected, halves)})  # fmt: skip
    rows.add({"series": name, "state": "motion", "shape": "×".join(map(str, dwi.signal.shape)),
              "voxel": "×".join(f"{size:.3g}" for size in dwi.voxel_sizes),
              "seconds": round(seconds, 1), **judged(dwi, motion, options.n_threads)})  # fmt: skip


def name_of(files: SeriesFiles) -> str:
    return files.dwi.name.removesuffix(".nii.gz").removesuffix("_dwi")


def measure_rescan(
    pair: Sequence[SeriesFiles], options: argparse.Namespace, rows: tables.Rows
) -> None:
    """Compare the tensors of two runs of one polarity, between which the head was turned."""
    name = ", ".join(map(name_of, pair))
    if not same_polarity(pair) or rows.has(series=name, state="turned"):
        return
    runs = [em.load(files.dwi, bval=files.bval, bvec=files.bvec) for files in pair]
    motions = em.estimate_motion(runs, n_threads=options.n_threads)
    between = motions[1][runs[1].reference] @ np.linalg.inv(motions[0][runs[0].reference])
    turn = float(np.rad2deg(np.linalg.norm(log_rigid(between, np.zeros(3))[3:])))
    if turn < LEAST_TURN_DEG:
        return
    for state, both in rescanned(runs, motions, options.n_threads):
        whole = joined(both)
        halves = np.split(np.arange(len(whole)), [len(both[0])])
        rows.add({"series": name, "state": state, "turn_deg": turn,
                  **tensor_distance(whole, whole, halves)})  # fmt: skip


def same_polarity(pair: Sequence[SeriesFiles]) -> bool:
    """Whether two runs have as many volumes and the same ``dir-`` in their names."""
    polarities = [[e for e in name_of(files).split("_") if e.startswith("dir-")] for files in pair]
    shapes = [nib.load(files.dwi).shape for files in pair]
    return polarities[0] == polarities[1] != [] and shapes[0] == shapes[1]


def rescanned(
    runs: list[DWI], motions: list[Motion], n_threads: int
) -> Iterator[tuple[str, list[DWI]]]:
    """Yield the states of two runs, both on the grid of the first."""
    options = {"engine": "fast", "n_threads": n_threads}
    alone = [motion.relative_to(run.reference) for run, motion in zip(runs, motions, strict=True)]
    yield "apart", em.resample(runs, alone, **options)
    together = em.resample(runs, motions, **options)
    yield "not turned", [replace(made, acquisition=run.acquisition)
                         for made, run in zip(together, runs, strict=True)]  # fmt: skip
    yield "turned", together


def joined(runs: Sequence[DWI]) -> DWI:
    """Return runs on one grid as one series, with the mask of the first."""
    gradients = Gradients(np.concatenate([run.gradients.bvals for run in runs]),
                          np.concatenate([run.gradients.bvecs for run in runs]))  # fmt: skip
    signal = np.concatenate([run.signal for run in runs], axis=3)
    return DWI(signal, runs[0].affine, gradients, runs[0].mask)


def judged(dwi: DWI, motion: Motion, n_threads: int) -> tables.Row:
    """Return correlations with the prediction, before and after, and how far the head moved."""
    dwis = dwi.gradients.dwis
    row: tables.Row = {}
    for name, pose in (("before", Motion.identity(len(dwi))), ("after", motion)):
        quality = assess(dwi, pose, n_threads=n_threads)
        r = quality.correlation[dwis]
        row |= {f"{name}_mean": float(np.nanmean(r)), f"{name}_lowest": float(np.nanmin(r)),
                f"{name}_r2": float(np.nanmean(quality.r2[dwis]))}  # fmt: skip
    parameters = rigid_parameters(motion.matrices, dwi.center)
    reach = np.ptp(parameters, axis=0) * np.repeat([1.0, np.rad2deg(1.0)], 3)
    fd = framewise_displacement(parameters)[1:]
    names = ("range_x", "range_y", "range_z", "turn_x", "turn_y", "turn_z")
    row |= dict(zip(names, map(float, reach), strict=True))
    row |= {"fd_mean": float(fd.mean()), "fd_max": float(fd.max())}
    return row | (evidence(motion) if motion.frame_evidence else {})


def evidence(motion: Motion) -> tables.Row:
    """Return how b=0 and diffusion-weighted volumes were joined, of the group that fits least."""
    told = motion.frame_evidence
    assert told is not None
    return {"frame_bval": round(told.bval), "by_time": told.by_time, "by_images": told.by_images,
            "apart_mm": told.apart_mm, "apart_deg": told.apart_degrees,
            "contradicted": int(told.contradicted)}  # fmt: skip


def repeated_halves(dwi: DWI) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the volumes of two halves with the same gradients in the same order, or None."""
    n = len(dwi)
    g = dwi.gradients
    first, second = np.arange(n // 2), np.arange(n // 2, n)
    if n % 2 or not g.is_b0[first].any():
        return None
    same = np.allclose(g.bvals[first], g.bvals[second], atol=20)
    same &= np.allclose(g.bvecs[first], g.bvecs[second], atol=0.01)
    return (first, second) if same else None


def states(dwi: DWI, corrected: DWI, motion: Motion) -> dict[str, DWI]:
    """Return the series as it is, interpolated as much as the corrected one, and corrected.

    Interpolation smooths, and smoothing alone brings the tensors of two noisy halves nearer: the
    second, moved by the same fraction of a voxel in all volumes, shows how much.
    """
    shift = np.eye(4)
    shift[:3, 3] = dwi.affine[:3, :3] @ np.full(3, equal_smoothing(dwi, motion))
    everywhere = Motion(np.tile(shift, (len(dwi), 1, 1)))
    return {"before": dwi, "interpolated": em.resample(dwi, everywhere, engine="fast"),
            "after": corrected}  # fmt: skip


def equal_smoothing(dwi: DWI, motion: Motion) -> float:
    """Return the fraction of a voxel whose shift leaves noise as much variance as a motion does.

    Cubic B-spline interpolation of white noise; mean variance over the brain and the volumes.
    """
    noise = np.random.default_rng(0).normal(size=dwi.shape).astype(np.float32)
    repeated = np.broadcast_to(noise[..., None], dwi.signal.shape)

    def variance(series: DWI, matrices: np.ndarray) -> float:
        read = em.resample(series, Motion(matrices), engine="fast")
        return float(read.signal[dwi.mask].var())

    goal = variance(replace(dwi, signal=repeated), motion.matrices)
    pair = replace(dwi, signal=repeated[..., :3], gradients=dwi.gradients.select(slice(0, 3)))
    shifts = np.linspace(0.0, 0.5, 26)
    matrices = np.tile(np.eye(4), (len(shifts), 3, 1, 1))
    matrices[..., :3, 3] = shifts[:, None, None] * dwi.affine[:3, :3].sum(axis=1)
    left = np.array([variance(pair, poses) for poses in matrices])
    return float(shifts[np.abs(left - goal).argmin()])


def tensor_distance(series: DWI, corrected: DWI, halves) -> tables.Row:
    """Fit a tensor (weighted least squares) to each half, and compare them voxel by voxel."""
    mask = compared_mask(corrected, halves)
    a, b = (fit_tensor(series.select(half), mask) for half in halves)
    white = (a.fa + b.fa) / 2 > WHITE_MATTER_FA
    cosine = np.abs((a.evecs[..., 0] * b.evecs[..., 0]).sum(axis=-1)).clip(0, 1)
    angle = np.rad2deg(np.arccos(cosine[white]))
    difference = a.quadratic_form - b.quadratic_form
    return {
        "tensor_rms": float(np.sqrt((difference**2).sum(axis=(-2, -1)).mean()) * 1e3),
        "fa_rms": float(np.sqrt(((a.fa - b.fa) ** 2).mean())),
        "md_rms": float(np.sqrt(((a.md - b.md) ** 2).mean()) * 1e3),
        "angle_median": float(np.median(angle)),
        "angle_mean": float(angle.mean()),
        "voxels": int(mask.sum()),
        "white_voxels": int(white.sum()),
    }


def compared_mask(corrected: DWI, halves) -> np.ndarray:
    """Return the brain, eroded: its edge would measure the mask."""
    from scipy.ndimage import binary_erosion

    mask = binary_erosion(corrected.mask, iterations=2)
    return mask & (corrected.signal > 0).all(axis=3)


def fit_tensor(half: DWI, mask: np.ndarray):
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    table = gradient_table(half.gradients.bvals, bvecs=half.gradients.bvecs, b0_threshold=50)
    return TensorModel(table, fit_method="WLS", min_signal=1).fit(half.signal[mask])


def render(rows: list[tables.Row], provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page, the numbers and the plot."""
    motion = [row for row in rows if row["state"] == "motion"]
    parts = [INTRODUCTION, tables.provenance_lines(provenance), table_of_motion(motion),
             "![correlation before and after](real.png)\n"]  # fmt: skip
    for name in dict.fromkeys(row["series"] for row in rows if row["state"] in STATES):
        mine = {row["state"]: row for row in rows if row["series"] == name}
        parts += [f"## Scan against rescan: {name}\n", SCAN_RESCAN, table_of_halves(mine, STATES)]
    turned = dict.fromkeys(row["series"] for row in rows if row["state"] == "turned")
    parts += [TURNED] * bool(turned)
    for name in turned:
        mine = {row["state"]: row for row in rows if row["series"] == name}
        parts += [f"{name}, turned by {mine['turned']['turn_deg']:.1f}°:\n",
                  table_of_halves(mine, RESCANS)]  # fmt: skip
    if told := [row for row in motion if isinstance(row.get("by_time"), float)]:
        parts += [FRAMES, table_of_frames(told)]
    plot(motion, docs)
    tables.write_page("real", "\n".join(parts), rows, docs)


INTRODUCTION = """# Real series

Correlation (Pearson, over the brain) of each diffusion-weighted volume with what the model
predicts from all the others, before and after; r² is the share of its variance over the brain that
the prediction explains (mean over the volumes). The true motion is unknown here. A higher
correlation can also result from smoothing, so all volumes are sampled at the same random points
with the same spline, before and after. *CPU*: processor seconds of reading, estimating and
one resampling with the compiled kernel.

Displacements that alternate from volume to volume along one axis (xa30, sag, canon: the phase
axis) are eddy currents that appear as motion, not a moving head.
"""

SCAN_RESCAN = """The series contains each direction twice, in two halves with a b=0 each. All
volumes are corrected together, as one series, with the default settings; then the halves are
separated, a tensor is fitted to each (DIPY, weighted least squares, b-vectors rotated with the
volumes), and the two are compared voxel by voxel in the brain, two voxels away from its edge.
*tensor*: RMS of the Frobenius norm of the difference (10⁻³ mm²/s), *FA*, *MD* (10⁻³ mm²/s): RMS
difference, *angle* between the principal directions where the mean FA of the halves exceeds 0.3.

Interpolation alone smooths noise and so reduces the distance between the halves. In the middle row
all volumes are shifted by the same fraction of a voxel along all axes, chosen so that white noise
is reduced to the same variance as under the estimated motion: only a difference beyond that is due
to the correction.
"""


TURNED = """## Scan against rescan: a head that was turned

Two runs of one person with the same number of directions and the same phase encoding, between
which the head was turned, so that the gradient directions differ in the frame of the head. The
runs are aligned by their b=0 images, and their tensors are compared as above, with the same
columns. If the b-vectors were not rotated with the head, the principal directions would be wrong
by about its rotation (by less where it turned about them). Distortion along the phase encoding
differs between the runs, cannot be corrected without the opposite polarity, and is part of the
remaining difference.
"""

FRAMES = """## Offsets by time and by images

Standard errors (mm per axis) of the offset between b=0 and diffusion-weighted volumes as estimated
from time and from images alone, the difference of the two, and whether it is larger than expected
by chance, for the group of volumes that agrees least
([decision 0019](../decisions/0019-frame-by-course-and-place.md)).
"""


def table_of_motion(rows: list[tables.Row]) -> str:
    heads = ["series", "voxels", "mm", "mean r: before → after", "lowest r: before → after",
             "mean r²: before → after", "range x, y, z (mm)", "range x, y, z (°)",
             "FD mean, max (mm)", "CPU (s)"]  # fmt: skip
    lines = []
    for row in rows:
        arrows = (f"{row[f'before_{n}']:.3f} → {row[f'after_{n}']:.3f}"
                  for n in ("mean", "lowest", "r2"))  # fmt: skip
        ranges = (", ".join(f"{row[f'{kind}_{axis}']:.2f}" for axis in "xyz")
                  for kind in ("range", "turn"))  # fmt: skip
        fd = f"{row['fd_mean']:.2f}, {row['fd_max']:.2f}"
        lines.append([row["series"], row["shape"], row["voxel"], *arrows, *ranges, fd,
                      tables.number(row["seconds"], 1)])  # fmt: skip
    return tables.markdown(heads, lines)


def table_of_frames(rows: list[tables.Row]) -> str:
    heads = ["series", "b-value", "by time", "by images", "difference (mm)", "difference (°)",
             "contradicted"]  # fmt: skip
    lines = [
        [row["series"], str(row["frame_bval"]), tables.number(row["by_time"]),
         tables.number(row["by_images"]), tables.number(row["apart_mm"], 2),
         tables.number(row["apart_deg"], 2), "yes" if row["contradicted"] else "no"]
        for row in rows
    ]  # fmt: skip
    return tables.markdown(heads, lines)


def table_of_halves(rows: dict[str, tables.Row], states: dict[str, str]) -> str:
    heads = ["", "tensor", "FA", "MD", "angle: median (°)", "angle: mean (°)",
             "voxels, those with FA > 0.3"]  # fmt: skip
    lines = [
        [label, *(tables.number(rows[state][name], 4) for name in
                  ("tensor_rms", "fa_rms", "md_rms")),
         *(tables.number(rows[state][name], 2) for name in ("angle_median", "angle_mean")),
         f"{rows[state]['voxels']}, {rows[state]['white_voxels']}"]
        for state, label in states.items() if state in rows
    ]  # fmt: skip
    return tables.markdown(heads, lines)


def plot(rows: list[tables.Row], docs: Path) -> None:
    """Draw mean and lowest correlation, before and after, a line a series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(9, 1.2 + 0.36 * len(rows)), sharey=True, layout="constrained"
    )
    titles = {"mean": "mean over the volumes", "lowest": "lowest volume"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for place, row in enumerate(rows):
            before, after = row[f"before_{name}"], row[f"after_{name}"]
            axis.plot([before, after], [place, place], color="0.7", lw=2, zorder=1)
            axis.plot(before, place, "o", color="0.5", label="before" if not place else None)
            axis.plot(after, place, "o", color="tab:blue", label="after" if not place else None)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [row["series"] for row in rows], fontsize=9)
    axes[0].invert_yaxis()
    axes[1].legend(frameon=False, fontsize=9)
    figure.supxlabel("correlation of the held-out volumes with their prediction", fontsize=10)
    tables.save_plot(figure, "real", docs)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
