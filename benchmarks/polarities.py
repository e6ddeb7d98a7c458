# SPDX-License-Identifier: Apache-2.0
"""Real runs of opposite phase encoding, compared by volumes that were not used for the field.

``python -m benchmarks.polarities BIDS_DIR`` takes, for each participant, pairs of runs of opposite
polarity with the same number of volumes (``dir-AP`` and ``dir-PA``). They are corrected as by the
program: motion within each run, one frame for both, and the off-resonance field between them from
their b=0 images. Diffusion-weighted volumes of the two should then agree, since they show the same
head with the same diffusion gradient. It stores each row as soon as it is complete, and resumes
where it stopped; ``--render`` only writes ``docs/benchmarks/polarities.md``.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion

import eddymotion as em
from benchmarks import tables
from eddymotion.bids.series import find_series
from eddymotion.data.series import DWI
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.mapping.motion import Motion

KEY = ("first", "second")

STATES = {
    "acquired": "as acquired",
    "alone": "each run alone",
    "frame": "one frame, no field",
    "field": "one frame, field",
}

INSIDE_VOXELS = 1
"""How far inside the brain volumes are compared: the edge would reflect the mask."""

OPPOSITE = ("dir-AP", "dir-PA")

POLARITY = {"dir-AP": "j-", "dir-PA": "j"}
"""For sidecars without it."""

log = logging.getLogger(__name__)


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/polarities.tsv", n_threads=1)
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    for pair in opposite_pairs(options.bids_dir):
        key = dict(zip(KEY, map(name_of, pair), strict=True))
        if not rows.has(**key):
            rows.add({**key, **measure(pair, options.n_threads)})


def opposite_pairs(bids_dir: Path) -> Iterator[tuple[SeriesFiles, SeriesFiles]]:
    """Yield pairs of runs of one participant, of opposite polarity."""
    for found in find_series(bids_dir).values():
        for pair in combinations(found, 2):
            if {polarity_of(files) for files in pair} == set(OPPOSITE):
                yield pair


def polarity_of(files: SeriesFiles) -> str:
    return next((name for name in OPPOSITE if name in files.dwi.name), "")


def name_of(files: SeriesFiles) -> str:
    return files.dwi.name.removesuffix(".nii.gz").removesuffix("_dwi")


def load(files: SeriesFiles) -> DWI:
    """Load a run; the polarity is that of its name where the sidecar has none."""
    metadata = {"PhaseEncodingDirection": POLARITY[polarity_of(files)], **files.metadata}
    return em.load(files.dwi, bval=files.bval, bvec=files.bvec, metadata=metadata)


def measure(pair: Sequence[SeriesFiles], n_threads: int) -> tables.Row:
    """Correct two runs, and correlate their diffusion-weighted volumes in each state."""
    runs = [load(files) for files in pair]
    started = time.process_time()
    motions = em.estimate_motion(runs, n_threads=n_threads)
    seconds = round(time.process_time() - started, 1)
    alone = [motion.relative_to(run.reference) for run, motion in zip(runs, motions, strict=True)]
    shown = {
        "acquired": runs,
        "alone": resampled(runs, without_field(alone), n_threads),
        "frame": resampled(runs, without_field(motions), n_threads),
        "field": resampled(runs, motions, n_threads),
    }
    partners, angles = pairs_of_volumes(shown["field"])
    mask = compared_mask(shown)
    row: tables.Row = {"pairs": len(partners), "apart_deg": float(np.median(angles))}
    for state, both in shown.items():
        r = [np.corrcoef(*(run.signal[mask, volume] for run, volume in
                           zip(both, volumes, strict=True)))[0, 1]
             for volumes in partners]  # fmt: skip
        row |= {f"{state}_r": float(np.median(r)), f"{state}_lowest": float(np.min(r))}
    return row | {"voxels": int(mask.sum()), "seconds": seconds}


def without_field(motions: Sequence[Motion]) -> list[Motion]:
    return [replace(motion, off_resonance=None) for motion in motions]


def resampled(runs: list[DWI], motions: list[Motion], n_threads: int) -> list[DWI]:
    return em.resample(runs, motions, engine="fast", n_threads=n_threads)


def pairs_of_volumes(corrected: Sequence[DWI]) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pair each diffusion-weighted volume with that of the other run nearest in direction.

    Returns
    -------
    pairs : list of (first, second)
    angles : (P,) array
        Between the directions of a pair, in the frame of the head, degrees.
    """
    first, second = (run.gradients for run in corrected)
    cosine = np.abs(first.bvecs[first.dwis] @ second.bvecs[second.dwis].T).clip(0, 1)
    nearest = cosine.argmax(axis=1)
    pairs = list(zip(first.dwis.tolist(), second.dwis[nearest].tolist(), strict=True))
    return pairs, np.rad2deg(np.arccos(cosine.max(axis=1)))


def compared_mask(shown: dict[str, list[DWI]]) -> np.ndarray:
    """Return the brain of the first run, inside its edge, where all states have a signal."""
    mask = binary_erosion(shown["field"][0].mask, iterations=INSIDE_VOXELS)
    for both in shown.values():
        for run in both:
            mask &= (run.signal > 0).all(axis=3)
    return mask


def render(rows: list[tables.Row], provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page and the numbers."""
    heads = ["runs", "pairs", "directions apart (°)",
             *(f"{label}: median / lowest" for label in STATES.values()), "CPU (s)"]  # fmt: skip
    lines = [
        [f"{row['first']}, {row['second']}", str(row["pairs"]),
         tables.number(row["apart_deg"], 1),
         *(tables.pair(row[f"{state}_r"], row[f"{state}_lowest"]) for state in STATES),
         tables.number(row["seconds"], 1)]
        for row in rows
    ]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines)]
    tables.write_page("polarities", "\n".join(parts), rows, docs)


INTRODUCTION = f"""# Opposite polarities on real series

Two real runs of one participant, of opposite phase encoding, corrected as by the program:
motion and eddy-current fields within each run, one frame for both, and the off-resonance field
between them, from the b=0 images only. Diffusion-weighted volumes were not used for the field, and
those of one run not for the other: the table shows the correlation of pairs of them, over the
brain except {INSIDE_VOXELS} voxel at its edge. Median over the pairs / lowest pair. *Directions
apart*: angle between the b-vectors of a pair in the frame of the head; if the head was turned
between the runs, so are the directions.

The remaining differences are noise, different directions where the head was turned, signal
compressed by distortion, and errors of the field.
"""


if __name__ == "__main__":
    main()
