# SPDX-License-Identifier: Apache-2.0
"""Our registration next to digital image correlation (``spam.DIC.register``), on its known case.

``python -m benchmarks.registration_dic [--size N] [--seeds SEED …]`` moves speckled volumes by
t = (0, 3, 2.5) voxels and r = (3°, 0, 0) about their middle, with and without noise, recovers
that with each engine and prints a table: largest error of the three translations at the middle
(voxels), of the rotation vector (degrees), iterations, and seconds (the best of three runs).
The volumes are sums of Gaussians, so nothing is interpolated to make them.

``spam`` (``pip install spam``; its wheels need no compiler) is skipped where it cannot be
imported. It is measured as its authors advise, both volumes smoothed by one voxel first, and
also on the original volumes; rigid, the gradient updated. Ours gets the original volumes.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from eddymotion.registration import GaussNewton, Level
from eddymotion.registration.gauss_newton import COARSE_TO_FINE
from eddymotion.testing import KnownPair
from eddymotion.testing.pairs import speckled_pair

VOXELS, DEGREES = np.array([0.0, 3.0, 2.5]), np.array([3.0, 0.0, 0.0])
NOISES = (0.0, 0.05, 0.2)
"""Standard deviations; a speckle is 0.3 to 1 high."""

WIDE_BAND = Level(1.5, 60_000, highpass=6.0)
"""For two noisy volumes of the same object: nothing smooth differs between them."""

N_RUNS = 3

Engine = Callable[[KnownPair], tuple[np.ndarray, int]]
"""Pair → matrix on array indices, iterations."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=40, help="voxels along each edge")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    print("noise\tseed\tengine\tvoxels\tdegrees\titerations\tseconds")
    for noise in NOISES:
        for seed in options.seeds:
            size = (options.size,) * 3
            pair = speckled_pair(size, voxels=VOXELS, degrees=DEGREES, noise=noise, seed=seed)
            for name, engine in engines():
                print(noise, seed, name, *measure(pair, engine), sep="\t", flush=True)


def engines() -> Iterator[tuple[str, Engine]]:
    """Ours, both ways, one way and on a wider band; ``spam`` where it is installed."""
    yield "eddymotion", ours(GaussNewton())
    yield "eddymotion, one way", ours(GaussNewton(symmetric=False))
    yield "eddymotion, band 1.5-6", ours(GaussNewton(levels=(*COARSE_TO_FINE[:-1], WIDE_BAND)))
    try:
        import spam.DIC  # noqa: F401
    except ImportError:
        return
    yield "spam", theirs(smoothed=False)
    yield "spam, smoothed", theirs(smoothed=True)


def ours(registrar: GaussNewton) -> Engine:
    """Wrap our engine."""

    def register(pair: KnownPair) -> tuple[np.ndarray, int]:
        found = registrar.register(pair.fixed, pair.moving)
        return found.matrix, found.n_iterations

    return register


def theirs(smoothed: bool) -> Engine:
    """Wrap that of digital image correlation; its Φ is about the middle of the volume."""

    def register(pair: KnownPair) -> tuple[np.ndarray, int]:
        import spam.DIC

        volumes = [np.ascontiguousarray(image.data) for image in (pair.fixed, pair.moving)]
        if smoothed:
            volumes = [gaussian_filter(volume, 1.0) for volume in volumes]
        found = spam.DIC.register(*volumes, PhiRigid=True, margin=6, updateGradient=True)
        about = np.eye(4)
        about[:3, 3] = (np.array(volumes[0].shape) - 1) / 2
        return about @ found["Phi"] @ np.linalg.inv(about), found["iterations"]

    return register


def measure(pair: KnownPair, engine: Engine) -> tuple[str, str, int, str]:
    """Return errors in voxels and degrees, iterations and seconds of an engine."""
    seconds = []
    for _ in range(N_RUNS):
        start = time.perf_counter()
        matrix, n_iterations = engine(pair)
        seconds.append(time.perf_counter() - start)
    center = (np.array(pair.fixed.data.shape) - 1) / 2
    moved = apply_affine(matrix, center) - center
    turned = Rotation.from_matrix(matrix[:3, :3]).as_rotvec(degrees=True)
    voxels, degrees = np.abs(moved - VOXELS).max(), np.abs(turned - DEGREES).max()
    return f"{voxels:.4f}", f"{degrees:.4f}", n_iterations, f"{min(seconds):.2f}"


if __name__ == "__main__":
    main()
