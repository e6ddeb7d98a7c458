# SPDX-License-Identifier: Apache-2.0
"""Off-resonance fields: against simulated truth, a measured map, and volumes held out.

``python -m benchmarks.susceptibility [--cases CASE …] [--seeds SEED …] [--bids DIR]`` measures
each case, stores each row as soon as it is complete, and resumes where it stopped. ``--render``
only writes ``docs/benchmarks/susceptibility.md``.

Simulated: two b=0 images of opposite polarity of a synthetic head in a field of dipoles
(shimmed to second order), conserving signal, with the sensitivity of a coil. RMS and 95th
percentile of the error of the field over the true brain, mm along the phase encoding, after
removing a constant; the same over the brain two voxels inside its edge.

Real: `--bids` is a dataset with ``sub-xa30`` (both polarities and a measured map) and
``sub-canon``. Held out: diffusion-weighted volumes of both polarities, which were not used
for the field, corrected for motion, eddy currents and the field in one interpolation; the median
of the correlations of volumes of the same direction within the brain.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion, gaussian_filter1d

import eddymotion as em
from benchmarks import tables
from eddymotion.data.acquisition import Acquisition
from eddymotion.estimation.off_resonance import FieldEstimate, estimate_off_resonance
from eddymotion.estimation.off_resonance.images import Distorted
from eddymotion.estimation.off_resonance.measured import MeasuredMap, radians
from eddymotion.images.image import Image
from eddymotion.io.images import read_image
from eddymotion.mapping.off_resonance import OffResonance, Readout
from eddymotion.mapping.rigid import exp_rigid, log_rigid, rigid_matrix
from eddymotion.simulation import Grid, SyntheticHead, acquire, shelled_scheme
from eddymotion.simulation.off_resonance import Magnetised, OpposedPair, simulate_pair

INSIDE_VOXELS = 2
"""How far inside the brain a measured map is compared, and the second RMS computed."""

DWI_PAIRS = 20


@dataclass(frozen=True)
class Simulated:
    """A pair to simulate; move is mm along x, y, z and degrees about them."""

    told: str
    strength: float = 0.7
    voxel: float = 3.0
    readout: float = 0.045
    snr: float = 20.0
    move: tuple[float, ...] = (0.0,) * 6
    changing: bool = False
    goal: str = ""


CASES = {
    "still": Simulated("3 mm, 45 ms, SNR 20, still", goal=".25 / .40"),
    "snr10": Simulated("the same, SNR 10", snr=10.0),
    "moved5": Simulated(
        "5 mm and 5° between the two", move=(2, -3, 3.5, 3, -3, 2.5), goal=".30 / .50"
    ),
    "moved15": Simulated("15 mm and 15°", move=(6, -8, 11, 9, -9, 8), goal=".50"),
    "strong2": Simulated(
        "2 mm, 50 ms, strong field", strength=1.0, voxel=2.0, readout=0.05, goal=".30 / .40"
    ),
    "none": Simulated(
        "no field, 2 mm and 2°", strength=0.0, move=(1, 1, 1.4, 1, -1, 1.4), goal=".15"
    ),
    "pitch5": Simulated(
        "pitch of 5° with which the field changes", move=(0, 0, 0, 5, 0, 0), changing=True
    ),
}

PITCHING = {"pitch12": "28 directions, 3 mm, SNR 20, pitch of up to 12°"}
"""Series of a head that moves in a field that changes with it."""

ORDERS = ("none", "quadratic", "auto")
"""Of the fields that are estimated with the motion."""

NECK_MM = np.array([0.0, -20.0, -60.0])
"""From the middle of the grid to where the head nods about, RAS+."""

LARGEST = np.r_[1.5, 1.5, 2.0, np.deg2rad([12.0, 3.0, 4.0])]
"""Of its motion: mm, rad."""

REAL = {
    "xa30": "sub-xa30 against its measured map",
    "canon": "sub-canon, AP and PA",
    "canon-turned": "sub-canon, PA with the head turned by 13°",
}

KEY = ("case", "seed")


def main() -> None:
    tables.run(parse(), KEY, measure_all, render)


def parse() -> argparse.Namespace:
    parser = tables.parser(__doc__, "build/susceptibility.tsv", seeds=[0], n_threads=2)
    parser.add_argument(
        "--cases", nargs="*", choices=[*CASES, *PITCHING, *REAL], default=list(CASES)
    )
    parser.add_argument("--bids", type=Path, metavar="DIR", help="with sub-xa30 and sub-canon")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, rows: tables.Rows) -> None:
    for name in options.cases:
        for seed in [0] if name in REAL else options.seeds:
            if rows.has(case=name, seed=seed):
                continue
            if name in CASES:
                row = measure_simulated(CASES[name], seed)
            elif name in PITCHING:
                row = measure_pitching(seed, options.n_threads)
            elif options.bids is None:
                raise SystemExit(f"--cases {name} needs --bids")
            elif name == "xa30":
                row = measure_xa30(options.bids / "sub-xa30")
            else:
                row = measure_canon(options.bids / "sub-canon" / "dwi", name)
            rows.add({"case": name, "seed": seed, **row})


def measure_simulated(case: Simulated, seed: int) -> tables.Row:
    magnetised = Magnetised(SyntheticHead(seed), strength=case.strength)
    grid = Grid.covering(magnetised.head, case.voxel, "LAS")
    pose = exp_rigid(np.r_[case.move[:3], np.deg2rad(case.move[3:])], np.zeros(3))
    pair = simulate_pair(
        magnetised, grid, readout_time=case.readout, snr=case.snr, pose=pose,
        changing=case.changing, seed=seed,
    )  # fmt: skip
    images = [Distorted(*both) for both in zip(pair.images, pair.readouts, strict=True)]
    found, seconds = timed(images)
    before, after = found.similarity
    return {**errors(found, pair), "before": before, "after": after, "seconds": seconds,
            "folded": found.folded}  # fmt: skip


def timed(images: list[Distorted]) -> tuple[FieldEstimate, float]:
    """Estimate, and return the seconds of processor time."""
    start = time.process_time()
    found = estimate_off_resonance(images)
    return found, time.process_time() - start


def errors(found: FieldEstimate, pair: OpposedPair) -> tables.Row:
    """Return errors of the field (mm) and, off the phase-encoding axis, of the pose."""
    per_hertz = pair.readouts[0].mm_per_hertz
    truth = pair.truth_on_grid() * per_hertz
    wrong = found.hertz * per_hertz - truth
    inner = binary_erosion(pair.brain, iterations=INSIDE_VOXELS)
    wrong -= wrong[pair.brain].mean()
    left = np.linalg.inv(pair.pose) @ found.poses[1]
    middle = apply_affine(pair.images[0].affine, np.argwhere(pair.brain)).mean(axis=0)
    shift = left[:3, :3] @ middle + left[:3, 3] - middle
    direction = pair.readouts[0].direction
    shift -= (shift @ direction) * direction
    angle = np.arccos(np.clip((np.trace(left[:3, :3]) - 1) / 2, -1, 1))
    return {
        "none_mm": float(truth[pair.brain].std()),
        "rms_mm": float(np.sqrt(np.mean(wrong[pair.brain] ** 2))),
        "p95_mm": float(np.quantile(np.abs(wrong[pair.brain]), 0.95)),
        "inner_rms_mm": float(wrong[inner].std()),
        "pose_mm": float(np.linalg.norm(shift)),
        "pose_deg": float(np.rad2deg(angle)),
    }


def pitching_matrices(n_volumes: int, center: np.ndarray, seed: int) -> np.ndarray:
    """Draw a slow course of the head that nods far, (N, 4, 4)."""
    steps = np.random.default_rng(100 + seed).normal(size=(n_volumes, 6))
    course = gaussian_filter1d(np.cumsum(steps, axis=0), 1.0, axis=0)
    course -= course[0]
    course *= LARGEST / np.abs(course).max(axis=0)
    return rigid_matrix(course[:, :3], course[:, 3:], center + NECK_MM)


def measure_pitching(seed: int, n_threads: int) -> tables.Row:
    """Estimate the motion of a series in a field that changes, with fields of each order."""
    magnetised = Magnetised(SyntheticHead(seed), strength=0.7)
    grid, scheme = Grid.covering(magnetised.head, 3.0, "LAS"), shelled_scheme({1000.0: 28}, 4)
    matrices = pitching_matrices(len(scheme), grid.center, seed)
    readout = Readout.of(grid.affine, "j-", 0.045)
    dwi = acquire(
        magnetised.head, scheme, em.Motion(matrices), grid, coil_bias=0.13,
        distortion=magnetised.distortion(readout), seed=seed, n_threads=n_threads,
    )  # fmt: skip
    acquisition = Acquisition.every(scheme, grid.affine, phase_encoding="j-", readout_time=0.045)
    dwi = replace(dwi, acquisition=acquisition)
    head = magnetised.head
    points = apply_affine(head.affine, np.argwhere(head.brain)[::200])
    recorded = np.stack([
        apply_affine(pose, points)
        + magnetised.hertz(pose).spline.sample(points)[:, None] * readout.shift
        for pose in matrices
    ])  # fmt: skip
    row: tables.Row = {}
    for order in ORDERS:
        estimator = em.Joint(eddy_current=order)
        motion = em.estimate_motion(
            dwi, estimator=estimator, random_seed=seed, n_threads=n_threads
        )
        found = motion_errors(motion, dwi, matrices, points, recorded, readout.direction)
        row |= {f"{order}_{name}": value for name, value in found.items()}
    return row


def motion_errors(
    motion: em.Motion,
    dwi: em.DWI,
    matrices: np.ndarray,
    points: np.ndarray,
    recorded: np.ndarray,
    encoding: np.ndarray,
) -> tables.Row:
    """Return errors of diffusion-weighted volumes among themselves, and how many intervals hold.

    Rotations, translations across the phase encoding and along it; where points of the head are
    recorded, what is alike in all volumes removed: the field of the head at rest.
    """
    dwis = dwi.gradients.dwis
    wrong = log_rigid(np.linalg.inv(matrices[dwis]) @ motion.head[dwis], points.mean(axis=0))
    from_b0 = float(np.rad2deg(np.sqrt((wrong[:, 3:] ** 2).sum(axis=1).mean())))
    wrong -= wrong.mean(axis=0)
    shifts = np.einsum("nij,nj->ni", matrices[dwis, :3, :3], wrong[:, :3])
    along = shifts @ encoding
    across = shifts - along[:, None] * encoding
    there = np.stack([motion.recorded(volume, points) for volume in dwis]) - recorded[dwis]
    there -= there.mean(axis=0)
    off = motion.parameters(dwi.center, of_head=True) - em.Motion(matrices).parameters(dwi.center)
    held = np.abs(off[1:]) < 1.96 * motion.standard_errors[1:]
    return {
        "from_b0_deg": from_b0,
        "turned_deg": float(np.rad2deg(np.sqrt((wrong[:, 3:] ** 2).sum(axis=1).mean()))),
        "across_mm": float(np.sqrt((across**2).sum(axis=1).mean())),
        "along_mm": float(np.sqrt((along**2).mean())),
        "recorded_mm": float(np.sqrt((there**2).sum(axis=2).mean())),
        "held": float(held.mean()),
    }


def first_b0(dwi: em.DWI, direction: str, readout_time: float) -> Distorted:
    volume = np.asarray(dwi.signal[..., dwi.gradients.b0s[0]], np.float32)
    return Distorted(Image(volume, dwi.affine), Readout.of(dwi.affine, direction, readout_time))


def measure_xa30(folder: Path) -> tables.Row:
    runs = [em.load(folder / "dwi" / f"sub-xa30_dir-{name}_dwi.nii.gz") for name in ("AP", "PA")]
    images = [first_b0(run, direction, float(run.acquisition.common_readout_time or 0.0475693))
              for run, direction in zip(runs, ("j-", "j"), strict=True)]  # fmt: skip
    found, seconds = timed(images)
    before, after = found.similarity
    return {"before": before, "after": after, "seconds": seconds, "folded": found.folded,
            **against_map(found, folder / "fmap"), **held_out(found, images, runs)}  # fmt: skip


def against_map(found: FieldEstimate, folder: Path) -> tables.Row:
    """Compare with the measured map, inside the brain, a constant removed."""
    phase, magnitude = (
        Image(*read_image(folder / f"sub-xa30_{name}.nii.gz")[:2])
        for name in ("phasediff", "magnitude1")
    )
    wrapped = Image(radians(phase.data, "phasediff"), phase.affine)
    measured = MeasuredMap.of_phases(wrapped, magnitude, 0.01246 - 0.01)
    shape, affine = found.grid
    pose = measured.pose_for(Image(found.combined, affine), found.mask)
    inner = binary_erosion(found.mask, iterations=INSIDE_VOXELS)
    inner &= measured.known_on(shape, affine, pose)
    here, there = found.hertz[inner], measured.field(pose).on_grid(shape, affine)[inner]
    return {
        "map_r": float(np.corrcoef(here, there)[0, 1]),
        "map_slope": float(np.polyfit(there, here, 1)[0]),
        "map_rmse_mm": float((here - there).std() * found.images[0].readout.mm_per_hertz),
    }


def held_out(found: FieldEstimate, images: list[Distorted], runs: list[em.DWI]) -> tables.Row:
    """Correlate diffusion-weighted volumes of both polarities, with the field and without."""
    motions = [em.estimate_motion(run) for run in runs]
    points = apply_affine(found.grid[1], np.argwhere(found.mask))
    relative = []  # reference → the frame of each run: its first b=0 has the identity there
    for run, motion, pose in zip(runs, motions, found.poses, strict=True):
        relative.append(np.linalg.inv(motion[run.gradients.b0s[0]]) @ pose)
    correlations = {"field": [], "none": []}
    table = runs[0].gradients.bvecs @ runs[1].gradients.bvecs.T
    for volume in runs[0].gradients.dwis[:DWI_PAIRS]:
        other = int(np.abs(table[volume]).argmax())
        for name, field in (("field", found.field), ("none", OffResonance.none())):
            shown = [
                corrected_at(points, run, motion, index, pose, one.readout, field)
                for run, motion, index, pose, one in zip(
                    runs, motions, (volume, other), relative, images, strict=True
                )
            ]
            both = np.isfinite(shown[0]) & np.isfinite(shown[1])
            correlations[name].append(np.corrcoef(shown[0][both], shown[1][both])[0, 1])
    return {"held_out": float(np.median(correlations["field"])),
            "held_out_none": float(np.median(correlations["none"])),
            "n_held_out": len(correlations["field"])}  # fmt: skip


def corrected_at(
    points: np.ndarray,
    run: em.DWI,
    motion: em.Motion,
    volume: int,
    pose: np.ndarray,
    readout: Readout,
    field: OffResonance,
) -> np.ndarray:
    """Read a volume at points of the reference: motion, eddy currents and the field in one."""
    hertz, slopes = field.hertz_with_gradient(points)
    in_run = apply_affine(pose, points)
    whole = motion[volume] @ pose
    if motion.eddy_currents is None:
        recorded, stretch = apply_affine(motion[volume], in_run), np.ones(len(points))
    else:
        recorded, stretch = motion.displaced(volume, in_run)
    recorded = recorded + hertz[:, None] * readout.shift
    stretch = stretch + slopes @ (whole[:3, :3].T @ readout.shift)
    image = Image(np.asarray(run.signal[..., volume], np.float32), run.affine)
    return image.spline.sample(recorded) * stretch


def measure_canon(folder: Path, name: str) -> tables.Row:
    """No polarity is stored and no readout time: only what agrees counts."""
    other = "acq-PAortho_dir-PA" if name == "canon" else "acq-PAorthoHT_dir-PA"
    files = ("acq-APortho_dir-AP", other)
    runs = [em.load(folder / f"sub-canon_{file}_dwi.nii.gz") for file in files]
    images = [first_b0(run, direction, 0.03)
              for run, direction in zip(runs, ("j-", "j"), strict=True)]  # fmt: skip
    found, seconds = timed(images)
    before, after = found.similarity
    return {"before": before, "after": after, "seconds": seconds, "folded": found.folded}


def render(rows: list[tables.Row], provenance: Path) -> None:
    """Write the page and the numbers."""
    simulated = [row for row in rows if row["case"] in CASES]
    heads = ["case", "bound", "seed", "none", "RMS / 95 %", "RMS inside",
             "pose, except along the phase encoding (mm / °)",
             "correlation before → after", "s"]  # fmt: skip
    lines = [
        [
            CASES[row["case"]].told, CASES[row["case"]].goal or "–", str(row["seed"]),
            tables.number(row["none_mm"], 2), tables.pair(row["rms_mm"], row["p95_mm"], 2),
            tables.number(row["inner_rms_mm"], 2), tables.pair(row["pose_mm"], row["pose_deg"], 2),
            f"{row['before']:.3f} → {row['after']:.3f}", tables.number(row["seconds"], 1),
        ]
        for row in sorted(simulated, key=lambda row: (list(CASES).index(row["case"]), row["seed"]))
    ]  # fmt: skip
    parts = [INTRODUCTION, tables.provenance_lines(provenance), tables.markdown(heads, lines)]
    parts += pitching_table([row for row in rows if row["case"] in PITCHING])
    real = {row["case"]: row for row in rows if row["case"] in REAL}
    if real:
        parts.append("## Real images\n")
        parts.append(tables.markdown(
            ["", "bound", "correlation of the pair before → after", "s"],
            [[REAL[name], {"xa30": "–", "canon": "≥ .94", "canon-turned": "≥ .88"}[name],
              f"{row['before']:.3f} → {row['after']:.3f}", tables.number(row["seconds"], 1)]
             for name, row in real.items()],
        ))  # fmt: skip
    if "xa30" in real:
        row = real["xa30"]
        parts.append(tables.markdown(
            ["sub-xa30", "bound", "value"],
            [["correlation with its measured map", "≥ .95", tables.number(row["map_r"])],
             ["slope", "1.00–1.15", tables.number(row["map_slope"], 2)],
             ["RMS difference, mm", "≤ .70", tables.number(row["map_rmse_mm"], 2)],
             ["held-out diffusion-weighted pairs", "≥ .955",
              f"{row['held_out_none']:.3f} → {row['held_out']:.3f}"]],
        ))  # fmt: skip
    tables.write_page("susceptibility", "\n".join(parts), rows)


def pitching_table(rows: list[tables.Row]) -> list[str]:
    """Return the section of series whose field changes, if there are some."""
    if not rows:
        return []
    lines = [
        [PITCHING[row["case"]], str(row["seed"]), order,
         tables.number(row[f"{order}_turned_deg"]),
         tables.number(row.get(f"{order}_from_b0_deg") or np.nan),
         tables.number(row[f"{order}_across_mm"]), tables.number(row[f"{order}_along_mm"]),
         tables.number(row[f"{order}_recorded_mm"]),
         tables.number(row[f"{order}_held"], 2)]
        for row in rows for order in ORDERS
    ]  # fmt: skip
    heads = ["series", "seed", "fields", "rotation (°)", "from b=0 (°)", "across (mm)",
             "along (mm)", "recorded (mm)", "coverage"]  # fmt: skip
    return [PITCHED, tables.markdown(heads, lines)]


PITCHED = """## A field that changes with the pose

Motion of a series in a field that changes as the head nods, estimated with fields that may follow
it. Errors of the head in the diffusion-weighted volumes relative to each other: rotations, and
translations across and along the phase encoding, along which a constant of the change cannot be
distinguished from a translation; *from b=0*: rotations from the first b=0; *recorded*: error of
the positions where points of the brain are recorded, the field of the head at rest removed;
*coverage*: share of the 95 % intervals that contain the truth.
"""

INTRODUCTION = f"""# Off-resonance fields

Errors of fields from two b=0 images of opposite polarity, mm along the phase encoding over the
brain, after removing a constant (which no such pair determines): RMS and 95th percentile. *None*:
without any correction. *Inside*: the brain except {INSIDE_VOXELS} voxels at its edge. *s*:
processor seconds of one thread, including the rigid start and the brain mask. The head is
synthetic, its field that of dipoles with shims of second order, steepest above the sinuses and the
cells behind the ears.

*Measured map*: compared inside the brain, where both are known, after registration of its
magnitude. *Held out*: diffusion-weighted volumes of both polarities, corrected for motion, eddy
currents and the field of the b=0 images in one interpolation; median correlation within the brain.
"""


if __name__ == "__main__":
    main()
