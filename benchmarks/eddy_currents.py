# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields estimated together with the motion, on simulated and real series.

``python -m benchmarks.eddy_currents [--phantom TISSUE PEAKS] [--series NAME …] [--fields NAME …]
[--seeds SEED …] [--real DWI …]`` measures each combination, stores each row as soon as it is
complete, and resumes where it stopped. ``--render`` only writes
``docs/benchmarks/eddy-currents.md``.

On simulated series, after removing what is common to all diffusion-weighted volumes:

- RMSE of rotations (°, per axis), and of translations along the two other axes (mm, per axis);
- RMSE of the positions where points of the brain are recorded (mm), by motion and field together;
- RMS of the true field, the estimated field, and their difference (mm), over points of the brain;
- time (s), and its ratio to that without fields.

On real series: the share of the variance of the displacement of the centre along the
phase-encoding axis that follows the diffusion gradient; its range, and that of the rotations; and
the agreement of each volume with its prediction.
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
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

import eddymotion as em
from benchmarks import tables
from benchmarks.accuracy import ABCD, CENTER, OBLIQUE, SINGLE, TINY
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation import assess
from eddymotion.io.images import image_stem
from eddymotion.mapping.rigid import exp_rigid, log_rigid, rigid_parameters
from eddymotion.simulation import Grid, Phantom, acquire, procedural_head
from eddymotion.simulation.eddy_currents import simulate_eddy_currents
from eddymotion.simulation.motion import simulate_motion
from eddymotion.simulation.patterns import Pattern

SNR, COIL_BIAS, AMPLITUDE_MM = 20.0, 0.13, 1.15
"""An amplitude of 1.15 mm RMS over a ball of 80 mm displaces up to 3 mm at b=1000."""

VOXEL_MM = 2.5
EVERY_POINT = 97


@dataclass(frozen=True)
class Series:
    """What to simulate."""

    scheme: partial[Gradients]
    pattern: Pattern = "moderate"
    amplitude: float = AMPLITUDE_MM
    rotation: tuple[float, ...] = (0.0, 0.0, 0.0)
    dropout: float = 0.0

    def simulate(
        self, head: Phantom, voxel_mm: float, seed: int, n_threads: int
    ) -> tuple[DWI, em.Motion]:
        """Return the series and its truth."""
        gradients = self.scheme()
        truth = simulate_motion(self.pattern, len(gradients), CENTER, seed=seed)
        rotation = Rotation.from_rotvec(self.rotation).as_matrix()
        grid = Grid.covering(head, voxel_mm, "LAS", rotation)
        if self.amplitude:
            eddy = simulate_eddy_currents(
                gradients, grid, order="quadratic", amplitude=self.amplitude, seed=seed
            )
            truth = replace(truth, eddy_currents=eddy)
        dwi = acquire(head, gradients, truth, grid, snr=SNR, coil_bias=COIL_BIAS,
                      dropout=self.dropout, eddy=truth.eddy_currents, seed=seed,
                      n_threads=n_threads)  # fmt: skip
        return dwi, truth


SERIES = {
    "single": Series(SINGLE),
    "single, no field": Series(SINGLE, amplitude=0.0),
    "single, all": Series(SINGLE, "high", rotation=OBLIQUE, dropout=0.03),
    "abcd": Series(ABCD),
    "abcd, no field": Series(ABCD, amplitude=0.0),
    "tiny": Series(TINY),
    "tiny, no field": Series(TINY, amplitude=0.0),
}

FIELDS = ("none", "linear", "quadratic", "auto")

KEY = ("series", "fields", "seed")


def main() -> None:
    tables.run(parse(), KEY, measure, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/eddy-currents.tsv", seeds=[0, 1, 2], n_threads=2)
    parser.add_argument("--phantom", nargs=2, metavar=("TISSUE", "PEAKS"), default=[])
    parser.add_argument("--series", nargs="*", choices=SERIES, default=list(SERIES))
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--real", nargs="+", type=Path, default=[], metavar="DWI")
    parser.add_argument("--voxel-size", type=float, default=VOXEL_MM)
    return parser.parse_args()


def measure(options: argparse.Namespace, rows: tables.Rows) -> None:
    measure_simulated(options, rows)
    measure_real(options, rows)


def measure_simulated(options: argparse.Namespace, rows: tables.Rows) -> None:
    head = Phantom.from_files(*options.phantom) if options.phantom else procedural_head()
    for seed, name in product(options.seeds, options.series):
        keys = [{"series": name, "fields": fields, "seed": seed} for fields in options.fields]
        if all(rows.has(**key) for key in keys):
            continue
        dwi, truth = SERIES[name].simulate(head, options.voxel_size, seed, options.n_threads)
        for key in keys:
            if not rows.has(**key):
                motion, seconds = estimate(dwi, key["fields"], options.n_threads)
                rows.add(key | compare(dwi, motion, truth) | {"s": round(seconds, 1)})


def measure_real(options: argparse.Namespace, rows: tables.Rows) -> None:
    for path, fields in product(options.real, ("none", "auto")):
        key = {"series": image_stem(path).removesuffix("_dwi"), "fields": fields, "seed": "real"}
        if not rows.has(**key):
            dwi = em.load(path)
            motion, seconds = estimate(dwi, fields, options.n_threads)
            rows.add(key | describe(dwi, motion) | {"s": round(seconds, 1)})


def estimate(dwi: DWI, fields: str, n_threads: int) -> tuple[em.Motion, float]:
    """Estimate the motion; return it and the processor time, which other load hardly changes."""
    start = time.process_time()
    motion = em.estimate_motion(dwi, eddy_currents=fields, n_threads=n_threads)
    return motion, time.process_time() - start


def compare(dwi: DWI, found: em.Motion, true: em.Motion) -> tables.Row:
    """Compare the estimate with the truth, after removing what is common to all volumes."""
    dwis, center = dwi.gradients.dwis, dwi.brain_center
    points = apply_affine(dwi.affine, np.argwhere(dwi.mask)[::EVERY_POINT])
    found, true, common = found.select(dwis), true.select(dwis), np.eye(4)
    for _ in range(5):
        apart = np.linalg.inv(found.matrices @ common) @ true.matrices
        twists = log_rigid(apart, center)
        common = common @ exp_rigid(twists.mean(axis=0), center)
    found = replace(found, matrices=found.matrices @ common)
    recorded = [found.recorded(v, points) - true.recorded(v, points) for v in range(len(dwis))]
    field, true_field = field_of(found, true, points), field_of(true, true, points)
    along = 1  # fields were simulated along the second axis
    others = np.delete(twists[:, :3] @ direction(dwi), along, axis=1)
    return {
        "deg": rms(np.rad2deg(twists[:, 3:])),
        "other_mm": rms(others),
        "recorded_mm": rms(np.linalg.norm(recorded, axis=2)),
        "true_field_mm": rms(true_field),
        "field_mm": rms(field),
        "field_error_mm": rms(field - true_field),
        "order": "none" if found.eddy_currents is None else found.eddy_currents.order,
    }


def direction(dwi: DWI) -> np.ndarray:
    """Return unit vectors of the image axes, in columns."""
    return dwi.affine[:3, :3] / dwi.voxel_sizes


def field_of(motion: em.Motion, true: em.Motion, points: np.ndarray) -> np.ndarray:
    """Displacements (mm) where the points of the head truly are, (N, P)."""
    eddy = motion.eddy_currents
    if eddy is None:
        return np.zeros((len(motion), len(points)))
    sign = 1.0 if true.eddy_currents is None else np.sign(eddy.pe @ true.eddy_currents.pe)
    return np.array(
        [sign * eddy.displacement(v, apply_affine(true[v], points)) for v in range(len(motion))]
    )


def describe(dwi: DWI, motion: em.Motion) -> tables.Row:
    """Return the figures of a real series."""
    dwis, eddy = dwi.gradients.dwis, motion.eddy_currents
    pe = direction(dwi)[:, 1] if eddy is None else eddy.pe
    parameters = rigid_parameters(motion.matrices, dwi.center)[dwis]
    shift = parameters[:, :3] @ pe
    columns = np.column_stack([np.ones(len(dwis)), dwi.gradients.qvecs[dwis]])
    left = shift - columns @ np.linalg.lstsq(columns, shift, rcond=None)[0]
    quality = assess(dwi, motion)
    head = rigid_parameters(motion.head, dwi.center)[dwis][:, :3] @ pe
    return {
        "shift_mm": round(float(np.ptp(shift)), 2),
        "head_shift_mm": round(float(np.ptp(head)), 2),
        "shift_r2": round(1 - left.var() / shift.var(), 3),
        "rotations_deg": round(float(np.rad2deg(np.ptp(parameters[:, 3:], axis=0)).max()), 2),
        "correlation": round(float(np.nanmedian(quality.correlation[dwis])), 4),
        "order": "none" if eddy is None else eddy.order,
    }


def rms(values: np.ndarray) -> float:
    return round(float(np.sqrt(np.mean(np.square(values)))), 4)


def render(rows: list[tables.Row], provenance: Path) -> None:
    """Write the page and the numbers."""
    simulated = [row for row in rows if row["seed"] != "real"]
    lines = []
    for key in dict.fromkeys((row["series"], row["fields"]) for row in simulated):
        mine = [row for row in simulated if (row["series"], row["fields"]) == key]
        alone = [row["s"] for row in simulated
                 if (row["series"], row["fields"]) == (key[0], "none")]  # fmt: skip
        lines.append(line_of(mine, float(np.median(alone)) if alone else np.nan))
    heads = ["series", "fields", "seeds", "° per axis", "other axes (mm)", "recorded at (mm)",
             "field: true / estimated / error (mm)", "order", "s", "× none"]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines)]
    real = [row for row in rows if row["seed"] == "real"]
    if real:
        heads = ["series", "fields", "shift (mm)", "of the head (mm)", "R² with the gradient",
                 "rotations (°)", "correlation", "order", "s"]  # fmt: skip
        lines = [
            [row["series"], row["fields"], tables.number(row["shift_mm"], 2),
             tables.number(row["head_shift_mm"], 2), tables.number(row["shift_r2"], 2),
             tables.number(row["rotations_deg"], 2), tables.number(row["correlation"], 4),
             str(row["order"]), tables.number(row["s"], 1)]
            for row in real
        ]  # fmt: skip
        parts += [REAL, tables.markdown(heads, lines)]
    tables.write_page("eddy-currents", "\n".join(parts), rows)


def line_of(rows: list[tables.Row], alone: float) -> list[str]:
    """Take the median over the seeds."""
    names = ("deg", "other_mm", "recorded_mm", "true_field_mm", "field_mm", "field_error_mm", "s")
    median = {name: float(np.median([row[name] for row in rows])) for name in names}
    three = (median[name] for name in ("true_field_mm", "field_mm", "field_error_mm"))
    return [
        rows[0]["series"], rows[0]["fields"], str(len(rows)),
        tables.number(median["deg"]), tables.number(median["other_mm"]),
        tables.number(median["recorded_mm"]), " / ".join(tables.number(value) for value in three),
        ", ".join(dict.fromkeys(str(row["order"]) for row in rows)),
        tables.number(median["s"], 1), tables.number(median["s"] / alone, 2),
    ]  # fmt: skip


INTRODUCTION = f"""# Eddy-current fields

Fields that follow the diffusion gradient (√b times its direction), quadratic in space, up to 3 mm
at b=1000 ({AMPLITUDE_MM:g} mm RMS in a ball of 80 mm), moderate motion, SNR {SNR:g}, coil
sensitivity, {VOXEL_MM:g} mm voxels; medians over the seeds. Errors are those of
diffusion-weighted volumes, after removing what is common to all. *Recorded at*: error of the
positions where points of the brain are recorded, by motion and field together: this is what
resampling needs. *s*: processor time.

single: 64 directions at b=1000. single, all: also high motion, an oblique grid and 3 % dropout.
abcd: 6, 15, 15, 60 directions at b=500, 1000, 2000, 3000. tiny: 12 directions. auto is the
default: the order supported by the data.
"""

REAL = """
## Real series

*Shift*: range of the displacement of the centre along the phase-encoding axis; *of the head*: the
same after the part that follows the gradients is removed; *R²*: the share of the variance of the
shift that follows the gradient linearly. *Correlation*: of each volume with its prediction,
median.
"""


if __name__ == "__main__":
    main()
