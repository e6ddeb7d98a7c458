# SPDX-License-Identifier: Apache-2.0
"""Precision and recall of the detection of slices with signal loss, on simulated series.

``python -m benchmarks.dropout [--phantom TISSUE PEAKS] [--series NAME …] [--shares SHARE …]
[--kinds KIND …] [--depths DEPTH …] [--seeds SEED …]`` measures each combination, stores each
row as soon as it is complete, and resumes where it stopped. ``--render`` only writes
``docs/benchmarks/dropout.md``.

A share of the slices of the diffusion-weighted volumes loses signal before noise is added:
single slices, or whole groups of slices excited together. Motion and outliers are then estimated
with default settings. A lost slice counts if it contains enough brain to be judged.

- precision: the share of detected slices that are lost;
- recall: the share of lost slices that are detected;
- RMSE of translation (mm) and rotation (°), after removing a constant offset;
- error of the replaced voxels: RMS difference of the corrected series from the series without
  dropout under the same motion, over the replaced voxels, relative to the mean signal there; and
  the same without replacement.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

import eddymotion as em
from benchmarks import tables
from eddymotion.data.acquisition import Slicing
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation import Quality, assess
from eddymotion.estimation.outliers import MIN_POINTS_IN_SLICE
from eddymotion.estimation.quality import N_POINTS
from eddymotion.estimation.replacement import Replaced
from eddymotion.evaluation import compare_motion
from eddymotion.io.images import image_stem
from eddymotion.models import get_model
from eddymotion.resampling import Resampled
from eddymotion.simulation import Grid, Phantom, acquire, procedural_head, shelled_scheme
from eddymotion.simulation.motion import simulate_motion
from eddymotion.simulation.patterns import Pattern

SNR = 20.0
COIL_BIAS = 0.13
VOXEL_MM = 2.5
MULTIBAND = 3


@dataclass(frozen=True)
class Series:
    """What to simulate, and its description."""

    label: str
    scheme: partial[Gradients]
    pattern: Pattern = "moderate"

    def simulate(
        self, head: Phantom, grid: Grid, seed: int, n_threads: int
    ) -> tuple[DWI, em.Motion]:
        """Return the series without noise, and its motion."""
        gradients = self.scheme()
        truth = simulate_motion(self.pattern, len(gradients), np.zeros(3), seed=seed)
        dwi = acquire(head, gradients, truth, grid, snr=None, coil_bias=COIL_BIAS,
                      n_threads=n_threads)  # fmt: skip
        return dwi, truth


SERIES = {
    "single": Series("64 directions at b=1000", partial(shelled_scheme, {1000.0: 64}, 6)),
    "single-high": Series(
        "the same with high motion", partial(shelled_scheme, {1000.0: 64}, 6), "high"
    ),
    "multi": Series(
        "30 directions each at b=1000, 2000, 3000",
        partial(shelled_scheme, {1000.0: 30, 2000.0: 30, 3000.0: 30}, 6),
    ),
    "tiny": Series("12 directions, one b=0", partial(shelled_scheme, {1000.0: 12}, 1)),
}

DEPTHS = {"deep": (0.1, 0.5), "shallow": (0.5, 0.8)}
"""Least and largest share of its signal that a lost slice keeps."""

WHOLE = (1.0, 1.0)

KINDS = ("slices", "groups")

KEY = ("series", "kind", "depth", "share", "seed")


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/dropout.tsv", seeds=[0], n_threads=2)
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"), default=[])
    parser.add_argument("--series", nargs="*", choices=SERIES, default=list(SERIES))
    parser.add_argument("--real", nargs="+", type=Path, default=[], metavar="DWI",
                        help="real series to plant dropout in")  # fmt: skip
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.03, 0.1])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--depths", nargs="+", choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument("--voxel-size", type=float, default=VOXEL_MM)
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    head = Phantom.from_files(*options.phantom) if options.phantom else procedural_head()
    grid = Grid.covering(head, options.voxel_size)
    real = {image_stem(path).removesuffix("_dwi"): path for path in options.real}
    for seed, name in product(options.seeds, [*options.series, *real]):
        wanted = [
            {"series": name, "kind": kind, "depth": depth, "share": share, "seed": seed}
            for kind, depth, share in product(options.kinds, options.depths, options.shares)
        ]
        whole = {"series": name, "kind": "none", "depth": "none", "share": 0.0, "seed": seed}
        wanted = [key for key in [whole, *wanted] if not rows.has(**key)]
        if not wanted:
            continue
        if name in real:
            clean, sigma = em.load(real[name]), 0.0
            truth = em.estimate_motion(clean, n_threads=options.n_threads)
        else:
            series, sigma = SERIES[name], head.white_signal / SNR
            clean, truth = series.simulate(head, grid, seed, options.n_threads)
        for key in wanted:
            rows.add(key | measure(clean, truth, sigma, key, options.n_threads))


def measure(
    clean: DWI, truth: em.Motion, sigma: float, key: tables.Row, n_threads: int
) -> tables.Row:
    """Plant dropout, add noise of deviation `sigma`, search, and compare."""
    slicing = Slicing(groups=multiband(clean.shape[2]) if key["kind"] == "groups" else ())
    kept = dropped(clean.gradients, clean.shape[2], slicing, DEPTHS.get(key["depth"], WHOLE),
                   key["share"], key["seed"])  # fmt: skip
    clean = replace(clean, acquisition=replace(clean.acquisition, slicing=slicing))
    dwi = noisy(clean, kept, sigma, key["seed"])
    started = time.perf_counter()
    found = em.estimate_motion(dwi, n_threads=n_threads)
    seconds = time.perf_counter() - started
    model = get_model("auto", dwi.gradients)
    quality = assess(dwi, found, model, n_threads=n_threads)
    compared = compare_motion(
        found.relative_to(0), truth.relative_to(0), bvals=dwi.gradients.bvals,
        grid_center=dwi.center,
    ).score()  # fmt: skip
    whole = noisy(clean, np.ones_like(kept), sigma, key["seed"])
    return (
        counts(quality, kept < 1, dwi)
        | {"free_mm": compared.rmse_translation_mm, "free_deg": compared.rmse_rotation_deg}
        | replacement_error(dwi, whole, found, quality, n_threads)
        | {"seconds": round(seconds, 1)}
    )


def multiband(n_slices: int) -> tuple[np.ndarray, ...]:
    """Slices that are excited together, a third of the brain apart."""
    shots = -(-n_slices // MULTIBAND)
    return tuple(np.arange(shot, n_slices, shots) for shot in range(shots))


def dropped(
    gradients: Gradients, n_slices: int, slicing: Slicing, depth: tuple[float, float],
    share: float, seed: int,
) -> np.ndarray:  # fmt: skip
    """Draw what each slice keeps of its signal, (N, Z): b=0 volumes keep all."""
    random = np.random.default_rng([seed, 7])
    groups = slicing.groups or tuple(np.arange(n_slices)[:, None])
    n_groups, kept = len(groups), np.ones((len(gradients), n_slices), np.float32)
    n_pairs = len(gradients.dwis) * n_groups
    for pair in random.choice(n_pairs, round(share * n_pairs), replace=False):
        volume, group = divmod(int(pair), n_groups)
        kept[gradients.dwis[volume], groups[group]] = random.uniform(*depth)
    return kept


def noisy(clean: DWI, kept: np.ndarray, sigma: float, seed: int) -> DWI:
    """Take signal away from slices, then add Rician noise."""
    random = np.random.default_rng([seed, 8])
    signal = np.empty_like(clean.signal)
    for volume in range(len(clean)):
        noise = random.normal(scale=sigma, size=(2, *clean.shape)).astype(np.float32)
        signal[..., volume] = np.hypot(clean.signal[..., volume] * kept[volume] + noise[0],
                                       noise[1])  # fmt: skip
    return replace(clean, signal=signal)


def counts(quality: Quality, lost: np.ndarray, dwi: DWI) -> tables.Row:
    """Count slices found and lost."""
    brain = dwi.mask.sum(axis=(0, 1))
    enough = MIN_POINTS_IN_SLICE * dwi.mask.sum() / N_POINTS
    flagged = quality.outliers.flagged
    lost = lost & (brain > enough)
    hits = int((flagged & lost).sum())
    return {
        "lost": int(lost.sum()), "found": int(flagged.sum()), "hits": hits,
        "judged": int(quality.outliers.judged.sum()),
        "precision": hits / flagged.sum() if flagged.any() else np.nan,
        "recall": hits / lost.sum() if lost.any() else np.nan,
    }  # fmt: skip


def replacement_error(
    dwi: DWI, whole: DWI, motion: em.Motion, quality: Quality, n_threads: int
) -> tables.Row:
    """Compare the voxels that are replaced with those of the series that lost nothing."""
    plain, ideal = (
        Resampled.of(series, motion, engine="fast", n_threads=n_threads) for series in (dwi, whole)
    )
    assert quality.model is not None
    repaired = Replaced.of(plain, quality.model, quality.outliers, n_threads=n_threads)
    squares, total, n = np.zeros(2), 0.0, 0
    for before, after, true in zip(
        plain.volumes(), repaired.volumes(), ideal.volumes(), strict=True
    ):
        where = (before != after) & dwi.mask
        squares += [((image - true)[where] ** 2).sum() for image in (before, after)]
        total += true[where].sum()
        n += int(where.sum())
    if not n:
        return {"lost_error": np.nan, "replaced_error": np.nan}
    before_error, after_error = np.sqrt(squares / n) / (total / n)
    return {"lost_error": float(before_error), "replaced_error": float(after_error)}


def render(rows: list[tables.Row], provenance: Path) -> None:
    """Write the page and the numbers."""
    order = [*product(("none", *KINDS), ("none", *DEPTHS), sorted({row["share"] for row in rows}))]
    lines = []
    for series, rest in product(dict.fromkeys(row["series"] for row in rows), order):
        mine = [row for row in rows if tuple(row[name] for name in KEY[:-1]) == (series, *rest)]
        if mine:
            lines.append(line_of(mine))
    heads = ["series", "lost", "signal kept", "%", "seeds", "lost slices", "precision", "recall",
             "false per 1000", "offset-free (mm / °)",
             "error: as acquired / replaced"]  # fmt: skip
    shown = {row["series"] for row in rows}
    legend = [f"{name}: {one.label}." for name, one in SERIES.items() if name in shown]
    parts = [INTRODUCTION, " ".join(legend) + "\n", tables.provenance_lines(provenance),
             tables.markdown(heads, lines)]  # fmt: skip
    tables.write_page("dropout", "\n".join(parts), rows)


def line_of(rows: list[tables.Row]) -> list[str]:
    """Sum the counts over the seeds, take the median of the rest."""
    lost, found, hits, judged = (sum(row[name] for row in rows)
                                 for name in ("lost", "found", "hits", "judged"))  # fmt: skip
    names = ("free_mm", "free_deg", "lost_error", "replaced_error")
    median = {name: float(np.median([row[name] for row in rows])) for name in names}
    low, high = DEPTHS.get(rows[0]["depth"], WHOLE)
    kept = f"{100 * low:.0f}–{100 * high:.0f} %" if low < high else "all"
    return [
        rows[0]["series"], rows[0]["kind"], kept,
        f"{100 * rows[0]['share']:g}", str(len(rows)), str(lost),
        tables.number(hits / found if found and lost else np.nan),
        tables.number(hits / lost if lost else np.nan),
        tables.number(1000 * (found - hits) / judged, 2),
        tables.pair(median["free_mm"], median["free_deg"]),
        tables.pair(median["lost_error"], median["replaced_error"]),
    ]  # fmt: skip


INTRODUCTION = f"""# Slices with signal loss

A share of the slices of the diffusion-weighted volumes of a simulated series keeps only part of
its signal: single slices, or groups of {MULTIBAND} that are excited together (slice timing known).
{VOXEL_MM:g} mm, SNR {SNR:g}, coil sensitivity, default settings; the motion is estimated.
*Precision*: the share of detected slices that are lost. *Recall*: the share of lost slices that
are detected, of those with enough brain to be judged ({MIN_POINTS_IN_SLICE} of {N_POINTS} points).
*False per 1000*: false detections per 1000 judged slices. *Error*: RMS difference of the replaced
voxels from the same series without dropout, noise included, relative to the mean signal there.

Under the true motion, all slices missed in single at 10 % (10–50 % kept) lie within two slices of
the ends of the brain, where few voxels contribute.

Motion is moderate unless stated otherwise. sub-…: dropout simulated in a real series; the motion
is compared with that estimated without it. Slices detected in the original series may really be
lost.
"""


if __name__ == "__main__":
    main()
