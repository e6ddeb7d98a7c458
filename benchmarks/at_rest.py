# SPDX-License-Identifier: Apache-2.0
"""Objects that did not move: any motion that is estimated in them is an error.

``python -m benchmarks.at_rest SERIES …`` measures scans of static objects, complete and reduced to
the b=0 volumes and one shell, with eddy-current fields chosen from the data and without. It stores
each row as soon as it is complete, and resumes where it stopped; ``--render`` only writes
``docs/benchmarks/at-rest.md``.

Along the phase encoding even an object at rest is displaced: by eddy currents and by the drift of
the scanner's frequency, which the estimate has to find. That axis is therefore reported
separately.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

import eddymotion as em
from benchmarks import tables
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.undetermined import describe_directions
from eddymotion.evaluation.motion import brain_points
from eddymotion.io.images import image_stem
from eddymotion.mapping.motion import Motion

KEY = ("object", "volumes", "fields")

FIELDS = ("auto", "none")

FEWEST = 6
"""Diffusion-weighted volumes of a shell that is measured separately."""


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/at-rest.tsv", n_threads=1)
    parser.add_argument("series", nargs="+", type=Path, metavar="SERIES", help="4-D NIfTI files")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    for path in options.series:
        name = image_stem(path).removesuffix("_dwi")
        for volumes, dwi in parts(em.load(path)):
            for fields in FIELDS:
                key = {"object": name, "volumes": volumes, "fields": fields}
                if not rows.has(**key):
                    rows.add({**key, **measure(dwi, fields, options.n_threads)})


def parts(dwi: DWI) -> Iterator[tuple[str, DWI]]:
    """Yield all volumes, and the b=0 volumes with one shell each, by name."""
    yield "all", dwi
    g = dwi.gradients
    for bval, shell in zip(g.shell_bvals, g.shells, strict=True):
        if len(g.b0s) and len(shell) >= FEWEST and len(g.shells) > 1:
            yield f"b=0, {bval:.0f}", dwi.select(np.union1d(g.b0s, shell))


def measure(dwi: DWI, fields: str, n_threads: int) -> tables.Row:
    started = time.process_time()
    motion = em.estimate_motion(dwi, estimator=em.Joint(eddy_current=fields), n_threads=n_threads)
    seconds = time.process_time() - started
    eddy = motion.eddy_currents
    errors = np.full((len(dwi), 6), np.nan)
    errors = errors if motion.standard_errors is None else motion.standard_errors
    told = np.nanmedian(errors[dwi.gradients.dwis][:, :3])
    return {
        "n": len(dwi), **displacements(motion, dwi),
        "fd_mm": float(np.nanmax(motion.framewise_displacement())),
        "turned_deg": float(np.rad2deg(np.abs(motion.parameters()[:, 3:]).max())),
        "told_mm": float(told), "order": "none" if eddy is None else eddy.order,
        "undetermined": describe_directions(motion.undetermined)
        if motion.undetermined is not None else "", "seconds": round(seconds, 1),
    }  # fmt: skip


def displacements(motion: Motion, dwi: DWI) -> tables.Row:
    """How far the points of the object are moved by the head's part of the motion, mm.

    RMS over points and volumes, and of the worst volume; all of it, and without the component
    along the phase encoding.
    """
    points = brain_points(dwi.mask, dwi.affine)
    pe = dwi.acquisition.phase_encoding
    away = np.stack([apply_affine(pose, points) - points for pose in motion.head])
    across = away if pe is None else away - (away @ pe[0])[..., None] * pe[0]
    found: tables.Row = {}
    for name, vectors in (("all", away), ("across", across)):
        squares = (vectors**2).sum(axis=2).mean(axis=1)
        found |= {f"{name}_mm": float(np.sqrt(squares.mean())),
                  f"{name}_largest_mm": float(np.sqrt(squares.max()))}  # fmt: skip
    return found


def render(rows: list[tables.Row], provenance: Path, docs: Path = tables.DOCS) -> None:
    """Write the page and the numbers."""
    heads = ["object", "volumes", "fields", "RMS (mm): all", "across", "worst volume: all",
             "across", "rotation (°)", "largest FD (mm)", "standard error (mm)", "fields found",
             "reported as undetermined", "CPU (s)"]  # fmt: skip
    lines = [
        [row["object"], f"{row['volumes']} ({row['n']})", row["fields"],
         *(tables.number(row[name]) for name in
           ("all_mm", "across_mm", "all_largest_mm", "across_largest_mm", "turned_deg", "fd_mm")),
         tables.number(row["told_mm"], 2), row["order"], row["undetermined"] or "–",
         tables.number(row["seconds"], 1)]
        for row in rows
    ]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines)]
    tables.write_page("at-rest", "\n".join(parts), rows, docs)


INTRODUCTION = """# Objects at rest

Scans of objects that did not move, so that any motion estimated in them is an error. *RMS*:
displacement of the points of the object over all volumes, without the offset of eddy-current
fields; *across*: without the component along the phase encoding, where eddy currents and the drift
of the scanner's frequency displace even an object at rest. *Standard error*: median, of a
translation. Directions of symmetry, such as the axis of a cylinder, are undetermined: no motion is
estimated along them, and they are reported.

oil: a cylinder of oil on a 3 T Siemens, 2.4 mm, b=0 to 2000 (Szczepankiewicz et al. 2019, Data in
Brief). It has no internal structure and no contrast that depends on direction: the images do not
relate b=0 and diffusion-weighted volumes to each other, only time does, which is why the standard
errors are so large.

Simulated heads at rest are in [accuracy](accuracy.md) (*single-none*, *abcd-none*, *high-none*,
*dsi-none*), slice by slice in [within-volumes](within-volumes.md).
"""


if __name__ == "__main__":
    main()
