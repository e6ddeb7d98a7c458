# SPDX-License-Identifier: Apache-2.0
"""Compare what containers wrote with the truth and with results outside; for ``docker/check``.

``pair DEMO VOLUME XFM``: a registration of a volume to the first one against the true motion.
``demos INSIDE OUTSIDE``: the transforms of two runs of the demo.
``shown``: print the calls of the image in the README and in the how-to, each once.
"""

import sys
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.io.itk import read_itk

HEAD_MM = 70.0
"""Radius of the sphere whose points are compared."""

MAX_ERROR_MM = 0.5
"""Root mean square for one pair of noisy volumes with voxels of 2.5 mm."""

SAME_MM = 1e-6
"""The same kernels on the same data; what is left is rounding."""


def distances_mm(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how far apart two transforms take each of the points on a sphere."""
    directions = np.random.default_rng(0).normal(size=(1000, 3))
    points = HEAD_MM * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.linalg.norm(apply_affine(one, points) - apply_affine(other, points), axis=1)


def check_pair(demo: str, volume: str, xfm: str) -> None:
    """Refuse a transform far from the true one, or not much nearer to it than none."""
    truth = read_itk(Path(demo) / "bids" / "truth" / "sub-demo_xfm.txt")
    true = truth[int(volume)] @ np.linalg.inv(truth[0])
    found = read_itk(Path(xfm))[0]
    moved, error = (
        float(np.sqrt((distances_mm(true, other) ** 2).mean())) for other in (np.eye(4), found)
    )
    print(f"  {Path(xfm).stem}: moved by {moved:.2f} mm, error {error:.3f} mm (root mean square)")
    assert error < min(MAX_ERROR_MM, moved / 3)


def check_demos(inside: str, outside: str) -> None:
    """Refuse two runs that did not find the same motion."""
    name = "derivatives/sub-demo/dwi/sub-demo_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt"
    one, other = (read_itk(Path(folder) / name) for folder in (inside, outside))
    assert len(one) == len(other)
    largest = max(distances_mm(*pair).max() for pair in zip(one, other, strict=True))
    print(f"  {len(one)} transforms, inside and outside at most {largest:.1e} mm apart")
    assert largest < SAME_MM


def print_shown() -> None:
    """Print what a reader types to run the image."""
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root / "tests"))
    from pages import command_lines

    lines = [
        " ".join(line.split())
        for page in (root / "README.md", root / "docs" / "how-to" / "containers.md")
        for line in command_lines(page)
    ]
    calls = dict.fromkeys(line for line in lines if line.startswith("docker run"))
    assert calls, "no docker run on the pages"
    print(*calls, sep="\n")


if __name__ == "__main__":
    commands = {"pair": check_pair, "demos": check_demos, "shown": print_shown}
    commands[sys.argv[1]](*sys.argv[2:])
