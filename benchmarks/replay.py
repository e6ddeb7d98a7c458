# SPDX-License-Identifier: Apache-2.0
"""Known motion on real volumes.

``python -m benchmarks.replay SERIES …`` moves each volume of real series (files, or a BIDS
dataset) by a known pose, with one interpolation, and estimates the motion of the original and of
the moved series. It stores each row as soon as it is complete, and resumes where it stopped;
``--render`` only writes ``docs/benchmarks/replay.md``.

The true motion in a real series is unknown, but the expected result is not: with ``Eᵢ`` estimated
from the original series and ``Tᵢ`` applied to volume ``i``, the moved series has the motion
``Tᵢ Eᵢ``, up to one offset of the reference frame.

The volumes are moved by SciPy's quintic spline, not by the package's own interpolation. A few
slices at both ends are cut off both series, so that what moves into view is tissue that was
scanned. Where an eddy-current field is estimated, the pose is the rigid part of the map to where
points of the brain are recorded: field and head displace together, and the applied pose moved
both.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

import eddymotion as em
from benchmarks import tables
from eddymotion.bids.series import find_series
from eddymotion.data.acquisition import Slicing
from eddymotion.data.series import DWI
from eddymotion.evaluation import compare_motion
from eddymotion.evaluation.motion import brain_points
from eddymotion.images.masking import brain_mask
from eddymotion.io.images import image_stem
from eddymotion.io.series import mean_b0
from eddymotion.mapping.motion import Motion
from eddymotion.simulation.motion import simulate_motion

KEY = ("series", "pattern", "seed")

PATTERNS = ("moderate", "swap30")

CUT_SLICES = 4
"""At each end. Moderate motion brings up to three from beyond them into view."""

SPLINE_ORDER = 5

EVERY_POINT = 53


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/replay.tsv", seeds=[0, 1, 2], n_threads=1)
    parser.add_argument("series", nargs="+", type=Path, metavar="SERIES",
                        help="4-D NIfTI files, or the root of a BIDS dataset")  # fmt: skip
    parser.add_argument("--patterns", nargs="+", default=["moderate"], choices=PATTERNS)
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    for path in files_of(options.series):
        measure(path, options, rows)


def files_of(paths: list[Path]) -> Iterator[Path]:
    """Yield the series among files and datasets."""
    for path in paths:
        if path.is_dir():
            yield from (files.dwi for found in find_series(path).values() for files in found)
        else:
            yield path


def measure(path: Path, options: argparse.Namespace, rows: tables.Rows) -> None:
    """Estimate the motion of a series, and again for each motion that is applied to it."""
    name = image_stem(path).removesuffix("_dwi")
    keys = [{"series": name, "pattern": pattern, "seed": seed}
            for pattern in options.patterns for seed in options.seeds]  # fmt: skip
    if all(rows.has(**key) for key in keys):
        return
    whole = em.load(path)
    seen = with_volumes(whole, np.asarray(whole.signal[within(whole)]))
    before = rigid_parts(em.estimate_motion(seen, n_threads=options.n_threads), seen)
    for key in keys:
        if rows.has(**key):
            continue
        applied = simulate_motion(key["pattern"], len(whole), seen.center, seed=key["seed"])
        moved = with_volumes(whole, moved_volumes(whole, applied))
        started = time.process_time()
        motion = em.estimate_motion(moved, n_threads=options.n_threads)
        seconds = round(time.process_time() - started, 1)
        after = rigid_parts(motion, moved)
        rows.add({**key, "shape": "×".join(map(str, seen.signal.shape)),
                  **scores(seen, before, applied, after), "seconds": seconds})  # fmt: skip


def within(dwi: DWI) -> tuple[slice, ...]:
    """Return the voxels without the slices at both ends."""
    cut = [slice(None)] * 3
    axis = dwi.acquisition.slicing.axis
    cut[axis] = slice(CUT_SLICES, dwi.shape[axis] - CUT_SLICES)
    return tuple(cut)


def cut_affine(dwi: DWI) -> np.ndarray:
    """Return the affine of the voxels that are left."""
    start = [part.start or 0 for part in within(dwi)]
    affine = np.array(dwi.affine)
    affine[:3, 3] = apply_affine(affine, start)
    return affine


def with_volumes(dwi: DWI, signal: np.ndarray) -> DWI:
    """Return the series with other volumes, its mask as it would be found for them.

    The times of slices are dropped: tissue that was moved has those of other slices.
    """
    acquisition = replace(dwi.acquisition, slicing=Slicing(dwi.acquisition.slicing.axis))
    mask = brain_mask(mean_b0(signal, dwi.gradients))
    return DWI(signal, cut_affine(dwi), acquisition, mask, dwi.source)


def moved_volumes(dwi: DWI, applied: Motion) -> np.ndarray:
    """Move what each volume shows by a pose: what lay at p lies at ``T p``; RAS+ mm."""
    shape = tuple(
        len(range(*cut.indices(n))) for cut, n in zip(within(dwi), dwi.shape, strict=True)
    )
    moved = np.empty((*shape, len(dwi)), np.float32)
    to_voxels = np.linalg.inv(dwi.affine)
    for index, pose in enumerate(applied.matrices):
        matrix = to_voxels @ np.linalg.inv(pose) @ cut_affine(dwi)
        volume = np.asarray(dwi.signal[..., index], np.float32)
        moved[..., index] = affine_transform(volume, matrix[:3, :3], matrix[:3, 3], shape,
                                             order=SPLINE_ORDER, mode="nearest")  # fmt: skip
    return moved


def rigid_parts(motion: Motion, dwi: DWI) -> Motion:
    """Return the rigid part of where points of the brain are recorded, fields and all.

    Its standard errors are those of the poses, for want of any of the sum.
    """
    if motion.eddy_currents is None:
        return Motion(motion.matrices, standard_errors=motion.standard_errors)
    points = brain_points(dwi.mask, dwi.affine)[::EVERY_POINT]
    recorded = [
        best_rigid(points, motion.displaced(index, points)[0]) for index in range(len(motion))
    ]
    return Motion(np.stack(recorded), standard_errors=motion.standard_errors)


def best_rigid(points: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Return the rigid matrix that brings points nearest to where they are recorded."""
    here, there = points.mean(axis=0), recorded.mean(axis=0)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.align_vectors(recorded - there, points - here)[0].as_matrix()
    matrix[:3, 3] = there - matrix[:3, :3] @ here
    return matrix


def scores(dwi: DWI, before: Motion, applied: Motion, after: Motion) -> tables.Row:
    """Compare the motion after with the motion before and the applied motion.

    Slopes are those of the estimated applied motion, without the motion before.
    """
    about = {"center": dwi.center, "bvals": dwi.gradients.bvals, "grid_center": dwi.center}
    first = dwi.reference
    expected = Motion(applied.matrices @ before.matrices)
    estimated = replace(after.relative_to(first), standard_errors=of_both(before, after))
    compared = compare_motion(estimated, expected.relative_to(first), **about)
    free, frame = compared.score(), compared.score(frame="given")
    back = np.linalg.inv(before.matrices)
    found = Motion(after.matrices @ expected.matrices[first] @ back)
    added = compare_motion(found, applied, **about)
    nothing, slopes = added.score("nothing", "given"), added.score(frame="given")
    return {
        "nothing_mm": nothing.rmse_translation_mm, "nothing_deg": nothing.rmse_rotation_deg,
        "free_mm": free.rmse_translation_mm, "free_deg": free.rmse_rotation_deg,
        "frame_mm": frame.rmse_translation_mm, "frame_deg": frame.rmse_rotation_deg,
        "largest_mm": free.rms_displacement_max_mm,
        "slope_t": slopes.slope_translation, "slope_r": slopes.slope_rotation,
        "coverage_percent": compared.coverage_percent,
    }  # fmt: skip


def of_both(before: Motion, after: Motion) -> np.ndarray | None:
    """Return the standard errors (N, 6) of the difference of two estimates with errors apart."""
    if before.standard_errors is None or after.standard_errors is None:
        return None
    return np.hypot(before.standard_errors, after.standard_errors)


def render(rows: list[tables.Row], provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page and the numbers."""
    lines = []
    for name, pattern in dict.fromkeys((row["series"], row["pattern"]) for row in rows):
        mine = [row for row in rows if (row["series"], row["pattern"]) == (name, pattern)]
        middle, worst = (tables.over_rows(mine, over) for over in (np.median, np.max))
        slopes = [row[column] for row in mine for column in ("slope_t", "slope_r")]
        lines.append([
            name, mine[0]["shape"], pattern, str(len(mine)),
            tables.pair(middle["nothing_mm"], middle["nothing_deg"], 2),
            tables.pair(middle["free_mm"], middle["free_deg"]),
            tables.pair(worst["free_mm"], worst["free_deg"]),
            tables.pair(middle["frame_mm"], middle["frame_deg"]),
            tables.pair(worst["frame_mm"], worst["frame_deg"]),
            tables.number(worst["largest_mm"], 2), tables.pair(min(slopes), max(slopes)),
            tables.pair(middle["coverage_percent"],
                        min(row["coverage_percent"] for row in mine), 0),
        ])  # fmt: skip
    heads = ["series", "voxels", "applied", "seeds", "nothing", "offset-free: median", "worst",
             "volume 0's frame: median", "worst", "largest (mm)",
             "slopes: smallest / largest", "coverage (%): median / lowest"]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines)]
    tables.write_page("replay", "\n".join(parts), rows, docs)


INTRODUCTION = f"""# Known motion on real volumes

Each volume of a real series is moved by a known pose, with one interpolation (SciPy's quintic
spline, {CUT_SLICES} slices at each end cut off so that what moves into view was scanned). The
motion of the original and of the moved series is estimated, and the difference of the two
estimates is compared with the applied motion: RMSE (mm / °) over three axes and all volumes above
b=100. *Nothing*: the size of the applied motion. *Offset-free*: after removing a constant offset
of the reference frame. *Volume 0's frame*: with it. *Largest*: the worst displacement of a volume
over an 80 mm sphere, over all seeds, offset-free. *Slopes*: of estimated on applied motion.
*Coverage*: the share of parameters, in volume 0's frame, within 1.96 standard errors of the
difference, those of both estimates added in quadrature; where eddy currents are estimated, those
of the poses only.

moderate: drift with 3 jumps. swap30: 30 % of the volumes moved by up to 5 mm and 8°.

This shows the effect of real contrast, noise and distortion on the estimate, without a phantom. It
has limits:

- Both series have the same noise and the same errors of the model, which cancel in part in the
  difference. Coverage is therefore too high. Correcting poses that follow the gradient direction,
  by what time shows, gains nothing here, and counts as an error where time shows more for a head
  at rest than for the same head with jumps.
- Distortion along the phase encoding moves with the volume; in a scanner it would not.
- A moved volume is slightly smoother than one that was acquired in that pose.
"""


if __name__ == "__main__":
    main()
