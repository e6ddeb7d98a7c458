"""Wall time and peak memory of the whole command, cold and warm.

``python -m benchmarks.speed`` simulates 96×96×60×64 voxels and runs ``eddymotion-correct`` on it:
once with an empty cache of compiled kernels (cold), then with it filled (warm, median of runs),
for both resampling engines.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--nprocs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = make_series(Path(folder))
        megabytes = 96 * 96 * 60 * 64 * 4 / 1e6
        print(f"96×96×60×64, float32 series {megabytes:.0f} MB, {options.nprocs} processes\n")
        print("| engine | cold (s) | warm (s) | peak memory (MB) | copies of the series |")
        print("|---|---|---|---|---|")
        for engine in ("nitransforms", "fast"):
            cache = Path(folder) / f"cache-{engine}"
            runs = [
                measure(image, Path(folder) / f"out-{engine}-{run}", cache, engine, options.nprocs)
                for run in range(options.runs + 1)
            ]
            warm = statistics.median(seconds for seconds, _ in runs[1:])
            peak = max(memory for _, memory in runs) / 1e6
            print(f"| {engine} | {runs[0][0]:.1f} | {warm:.1f} | {peak:.0f} "
                  f"| {peak / megabytes:.1f} |", flush=True)  # fmt: skip


def make_series(folder: Path) -> Path:
    """Simulate 96×96×60×64 voxels, 2 mm, 60 directions and 4 b=0."""
    phantom = procedural_head(2.0)
    gradients = shelled_scheme({1000.0: 60}, 4)
    affine = np.diag([2.0, 2.0, 2.4, 1.0])
    affine[:3, 3] = [-95.0, -95.0, -70.8]
    grid = Grid((96, 96, 60), affine)
    motion = simulate_motion("moderate", len(gradients), np.zeros(3))
    dwi = acquire(phantom, gradients, motion, grid, n_threads=2)
    return write_bids(folder / "bids", "speed", dwi, motion)


def measure(image: Path, out: Path, cache: Path, engine: str, nprocs: int) -> tuple[float, int]:
    """Run the command; return its seconds and peak memory in bytes (children included)."""
    command = [Path(sys.executable).parent / "eddymotion-correct", image, "-o", out]
    command += ["--resampling", engine, "--nprocs", str(nprocs)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        family = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                members = [family, *family.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in members))
            except psutil.NoSuchProcess:
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait() != 0:
        raise RuntimeError(f"{command} failed")
    watcher.join()
    return time.perf_counter() - started, peak


if __name__ == "__main__":
    main()
