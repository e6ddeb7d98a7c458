"""Error of the estimated motion on simulated series.

``python -m benchmarks.accuracy [--phantom TISSUE PEAKS] [--series NAME …] [--seeds SEED …]``
prints one row a series and seed, and at the end the median and the worst over the seeds:

- RMSE over axes and b>100 volumes of translation (mm) and rotation (°) at the head's centre, in
  the frame of volume 0, and free of a constant offset;
- the largest RMS displacement of a volume over a sphere of 80 mm, free of the offset;
- slope of estimated on true motion;
- where the estimator gives standard errors: how many of the 95 % intervals hold the truth;
- what doing nothing would score.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

import eddymotion as em
from eddymotion.dataset import DWI
from eddymotion.geometry import exp_rigid, log_rigid, rigid_parameters, rms_displacement
from eddymotion.gradients import Gradients
from eddymotion.simulation import (
    Grid,
    Phantom,
    acquire,
    cartesian_scheme,
    procedural_head,
    shelled_scheme,
)
from eddymotion.simulation.motion import Pattern, simulate_motion

CENTER = np.zeros(3)

OBLIQUE = tuple(np.deg2rad(15) * np.array([2.0, -1.0, 2.0]) / 3)
"""Rotation vector of the oblique grid: 15° about no axis of the scanner."""

COLUMNS = {
    "frame": "volume 0's frame (mm / °)",
    "free": "offset-free (mm / °)",
    "largest": "largest (mm)",
    "slopes": "slope t / r",
    "coverage": "coverage (%)",
    "nothing": "nothing (mm / °)",
    "seconds": "s",
}


@dataclass(frozen=True)
class Series:
    """What to simulate."""

    scheme: partial[Gradients]
    pattern: Pattern
    voxel_sizes: float | tuple[float, float, float] = 2.0
    orientation: str = "LAS"
    rotation: tuple[float, ...] = (0.0, 0.0, 0.0)
    snr: float = 20.0
    coil_bias: float = 0.13
    dropout: float = 0.0

    def simulate(self, phantom: Phantom, seed: int, n_threads: int) -> tuple[DWI, em.Motion]:
        """Return the series and its truth."""
        gradients = self.scheme()
        truth = simulate_motion(self.pattern, len(gradients), CENTER, seed=seed)
        rotation = Rotation.from_rotvec(self.rotation).as_matrix()
        grid = Grid.covering(phantom, self.voxel_sizes, self.orientation, rotation)
        dwi = acquire(phantom, gradients, truth, grid, snr=self.snr, coil_bias=self.coil_bias,
                      dropout=self.dropout, seed=seed, n_threads=n_threads)  # fmt: skip
        return dwi, truth

    def digest(self, phantom: list[str]) -> str:
        """Return a short name that changes with the parameters and the phantom's files."""
        scheme = (self.scheme.func.__name__, self.scheme.args, self.scheme.keywords)
        code = hashlib.sha256(repr({**vars(self), "scheme": scheme}).encode())
        for file in phantom:
            code.update(Path(file).read_bytes())
        return code.hexdigest()[:10]


SINGLE = partial(shelled_scheme, {1000.0: 64}, 6)
ABCD = partial(shelled_scheme, {500.0: 6, 1000.0: 15, 2000.0: 15, 3000.0: 60}, 7)
HIGH = partial(shelled_scheme, {3000.0: 60}, 6)
MULTI = partial(shelled_scheme, {1000.0: 30, 2000.0: 30, 3000.0: 30}, 6)
DSI = partial(cartesian_scheme, 55, 5000.0, 3)
TINY = partial(shelled_scheme, {1000.0: 12}, 1)
COARSE = partial(shelled_scheme, {1000.0: 30}, 3)

SERIES = {
    "single-none": Series(SINGLE, "none"),
    "single-moderate": Series(SINGLE, "moderate"),
    "single-high": Series(SINGLE, "high"),
    "abcd-swap15": Series(ABCD, "swap15"),
    "abcd-swap30": Series(ABCD, "swap30"),
    "abcd-swap50": Series(ABCD, "swap50"),
    "abcd-none": Series(ABCD, "none"),
    "high-high": Series(HIGH, "high"),
    "high-none": Series(HIGH, "none"),
    "multi-high": Series(MULTI, "high"),
    "dsi-swap15": Series(DSI, "swap15"),
    "dsi-none": Series(DSI, "none"),
    "tiny-moderate": Series(TINY, "moderate"),
    "coarse-moderate": Series(COARSE, "moderate", voxel_sizes=(2.5, 2.5, 3.0), snr=10.0),
    "scattered": Series(SINGLE, "scattered"),
    "dropout": Series(SINGLE, "moderate", dropout=0.03),
    "oblique": Series(SINGLE, "moderate", orientation="PSL", rotation=OBLIQUE),
}


def main() -> None:
    options = parse()
    cached = partial(load_or_simulate, options.cache, options.phantom or [])
    settings = {"estimator": options.estimator, "model": options.model}
    settings = {name: value for name, value in settings.items() if value}
    print_row(["series", "seed", *COLUMNS.values()])
    print_row(["---"] * (len(COLUMNS) + 2))
    measured: dict[str, list[dict[str, tuple[float, ...]]]] = {}
    for name in selected(options.series):
        for seed in options.seeds:
            dwi, truth = cached(name, seed, options.n_threads)
            started = time.perf_counter()
            found = em.estimate_motion(dwi, n_threads=options.n_threads, **settings)
            seconds = time.perf_counter() - started
            scores = {**score(dwi, truth, found), "seconds": (seconds,)}
            measured.setdefault(name, []).append(scores)
            print_row([name, str(seed), *map(cell, COLUMNS, scores.values())])
    print()
    summarize(measured)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"))
    parser.add_argument(
        "--series", nargs="+", metavar="NAME", default=list(SERIES),
        help=f"names, or what they begin with up to the dash: {', '.join(SERIES)}",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--estimator")
    parser.add_argument("--model")
    parser.add_argument("--cache", type=Path, help="folder that keeps the simulated series")
    parser.add_argument("--n-threads", type=int, default=2)
    options = parser.parse_args()
    unknown = [name for name in options.series if not list(selected([name]))]
    if unknown:
        parser.error(f"unknown series {', '.join(unknown)}; there are {', '.join(SERIES)}")
    return options


def selected(names: list[str]) -> Iterator[str]:
    """Yield the series with these names or families (``single`` for ``single-none`` …)."""
    return (name for name in SERIES if {name, name.split("-")[0]} & set(names))


def load_or_simulate(
    cache: Path | None, phantom: list[str], name: str, seed: int, n_threads: int
) -> tuple[DWI, em.Motion]:
    """Simulate a series, once if there is a folder to keep it in."""
    series = SERIES[name]
    if cache is None:
        return series.simulate(read_phantom(phantom), seed, n_threads)
    cache.mkdir(parents=True, exist_ok=True)
    stem = cache / f"{name}_seed-{seed}_{series.digest(phantom)}"
    parts, signal = Path(f"{stem}.npz"), Path(f"{stem}.npy")
    if not parts.is_file():  # written last
        dwi, truth = series.simulate(read_phantom(phantom), seed, n_threads)
        save_whole(signal, lambda file: np.save(file, dwi.signal))
        save_whole(parts, lambda file: np.savez(
            file, affine=dwi.affine, mask=dwi.mask, bvals=dwi.gradients.bvals,
            bvecs=dwi.gradients.bvecs, truth=truth.matrices))  # fmt: skip
    with np.load(parts) as kept:
        gradients = Gradients(kept["bvals"], kept["bvecs"])
        dwi = DWI(np.load(signal), kept["affine"], gradients, kept["mask"])
        return dwi, em.Motion(kept["truth"])


def read_phantom(files: list[str]) -> Phantom:
    return Phantom.from_files(*files) if files else procedural_head()


def save_whole(path: Path, write: Callable) -> None:
    """Write a file under another name first: nobody reads half of it."""
    partial_file = path.with_name(f"{path.name}.{os.getpid()}")
    with partial_file.open("wb") as file:
        write(file)
    partial_file.replace(path)


def score(dwi: DWI, truth: em.Motion, found: em.Motion) -> dict[str, tuple[float, ...]]:
    """Return the values of all columns but the seconds."""
    which = dwi.gradients.bvals > 100
    true, estimated = (m.relative_to(0).matrices[which] for m in (truth, found))
    offset = exp_rigid(log_rigid(np.linalg.inv(true) @ estimated, CENTER).mean(axis=0), CENTER)
    free = estimated @ np.linalg.inv(offset)
    se = None if found.standard_errors is None else found.standard_errors[which]
    return {
        "frame": errors(true, estimated),
        "free": errors(true, free),
        "largest": (float(rms_displacement(true, free, CENTER).max()),),
        "slopes": slopes(true, free),
        "coverage": (coverage(true, estimated, se, dwi.center),),
        "nothing": errors(true, np.tile(np.eye(4), (len(true), 1, 1))),
    }


def errors(true: np.ndarray, estimated: np.ndarray) -> tuple[float, float]:
    """RMSE over axes and volumes: mm, degrees."""
    p = rigid_parameters(np.linalg.inv(true) @ estimated, CENTER)
    mm, radians = (np.sqrt((part**2).mean()) for part in (p[:, :3], p[:, 3:]))
    return float(mm), float(np.rad2deg(radians))


def slopes(true: np.ndarray, estimated: np.ndarray) -> tuple[float, float]:
    """Slope of estimated on true parameters: translations, rotations; NaN without motion."""
    t, e = (rigid_parameters(m, CENTER) for m in (true, estimated))
    t, e = t - t.mean(axis=0), e - e.mean(axis=0)

    def slope(columns: slice) -> float:
        power = (t[:, columns] ** 2).sum()
        return float((t[:, columns] * e[:, columns]).sum() / power) if power > 1e-9 else np.nan

    return slope(slice(0, 3)), slope(slice(3, 6))


def coverage(
    true: np.ndarray, estimated: np.ndarray, se: np.ndarray | None, center: np.ndarray
) -> float:
    """Share (%) of the parameters within 1.96 standard errors of the truth; NaN without any."""
    if se is None:
        return np.nan
    error = rigid_parameters(estimated, center) - rigid_parameters(true, center)
    known = np.isfinite(se)
    return float(100 * (np.abs(error) <= 1.96 * se)[known].mean()) if known.any() else np.nan


def summarize(measured: dict[str, list[dict[str, tuple[float, ...]]]]) -> None:
    """Print median and worst over the seeds."""
    shown = [column for column in COLUMNS if column not in ("slopes", "nothing")]
    heads = [f"{COLUMNS[column]}: {what}" for column in shown for what in ("median", "worst")]
    print_row(["series", *heads])
    print_row(["---"] * (len(heads) + 1))
    for name, rows in measured.items():
        cells = []
        for column in shown:
            values = np.array([row[column] for row in rows])
            worst = values.min(axis=0) if column == "coverage" else values.max(axis=0)
            cells += [cell(column, np.median(values, axis=0)), cell(column, worst)]
        print_row([name, *cells])


def cell(column: str, values: tuple[float, ...] | np.ndarray) -> str:
    digits = {"coverage": 1, "seconds": 1}.get(column, 3)
    return " / ".join("–" if np.isnan(value) else f"{value:.{digits}f}" for value in values)


def print_row(cells: list[str]) -> None:
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
