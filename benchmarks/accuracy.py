"""Error of the estimated motion on simulated series.

``python -m benchmarks.accuracy [--phantom TISSUE PEAKS] [--seeds N]`` prints one row a series and
seed: RMSE over the b>100 volumes of translation (mm) and rotation (°) at the head's centre, in the
frame of volume 0 and free of a constant offset; slope of estimated on true motion; and what doing
nothing would score.
"""

import argparse
import time

import numpy as np

import eddymotion as em
from eddymotion.geometry import exp_rigid, log_rigid, rigid_parameters
from eddymotion.gradients import Gradients
from eddymotion.simulation import Grid, Phantom, acquire, procedural_head, shelled_scheme
from eddymotion.simulation.motion import simulate_motion

CENTER = np.zeros(3)

SERIES = {
    "64×b1000, none": (shelled_scheme({1000.0: 64}, 6), "none"),
    "64×b1000, moderate": (shelled_scheme({1000.0: 64}, 6), "moderate"),
    "64×b1000, high": (shelled_scheme({1000.0: 64}, 6), "high"),
    "15×b1000 + 30×b3000, moderate": (shelled_scheme({1000.0: 15, 3000.0: 30}, 4), "moderate"),
    "12×b1000, 1 b=0, moderate": (shelled_scheme({1000.0: 12}, 1), "moderate"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--snr", type=float, default=20.0)
    parser.add_argument("--model", default="auto")
    options = parser.parse_args()
    phantom = Phantom.from_files(*options.phantom) if options.phantom else procedural_head(2.0)
    print(
        "| series | seed | volume 0's frame (mm / °) | offset-free (mm / °) | slope t / r "
        "| nothing (mm / °) | s |\n|---|---|---|---|---|---|---|"
    )
    for name, (gradients, pattern) in SERIES.items():
        for seed in range(options.seeds):
            truth = simulate_motion(pattern, len(gradients), CENTER, seed=seed)
            grid = Grid.covering(phantom, 2.0, orientation="LAS")
            dwi = acquire(phantom, gradients, truth, grid, snr=options.snr, seed=seed, n_threads=2)
            started = time.perf_counter()
            found = em.estimate_motion(dwi, model=options.model, n_threads=2)
            seconds = time.perf_counter() - started
            print(f"| {name} | {seed} | {report(gradients, truth, found)} | {seconds:.0f} |",
                  flush=True)  # fmt: skip


def report(gradients: Gradients, truth: em.Motion, found: em.Motion) -> str:
    """Return the cells of one row."""
    true, estimated = truth.matrices[gradients.dwis], found.matrices[gradients.dwis]
    offset = exp_rigid(log_rigid(np.linalg.inv(true) @ estimated, CENTER).mean(axis=0), CENTER)
    free = estimated @ np.linalg.inv(offset)
    still = np.tile(np.eye(4), (len(true), 1, 1))
    cells = [errors(true, estimated), errors(true, free), slopes(true, free), errors(true, still)]
    return " | ".join(f"{a:.3f} / {b:.3f}" for a, b in cells)


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


if __name__ == "__main__":
    main()
