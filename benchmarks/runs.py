# SPDX-License-Identifier: Apache-2.0
"""Two runs of opposite polarity, from simulation to corrected series, against the truth.

``python -m benchmarks.runs [--cases CASE …] [--seeds SEED …]`` measures each case, stores each row
as soon as it is complete, and resumes where it stopped. ``--render`` only writes
``docs/benchmarks/runs.md``.

A synthetic head moves in a field of dipoles; each run is read out with its own polarity, signal
conserved. Corrected series are compared, voxel by voxel within the brain, with the head as it
would appear without distortion, motion and noise in the pose of the first b=0 of the first run,
each volume with its gradient in the frame of the head.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion

import eddymotion as em
from benchmarks import tables
from eddymotion.estimation.runs import join_runs
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.rigid import log_rigid
from eddymotion.pipeline.runs.one_series import averaged
from eddymotion.simulation import Recipe, acquire, shelled_scheme, simulate
from eddymotion.simulation.dataset import true_mask
from eddymotion.simulation.schemes import b0_scheme
from eddymotion.simulation.simulated import Simulation


@dataclass(frozen=True)
class Case:
    """A session to simulate; directions are those of the first run and of the second."""

    told: str
    n_directions: tuple[int, int] = (12, 12)
    voxel: float = 4.0
    strength: float = 0.7
    motion: str = "moderate"
    snr: float = 20.0
    changing: bool = False


CASES = {
    "both": Case("AP and PA, 12 directions each"),
    "b0": Case("AP with 24 directions, PA with b=0 alone", n_directions=(24, 0)),
    "still": Case("AP and PA, the head at rest", motion="none"),
    "strong": Case("AP and PA, strong field, 3 mm", voxel=3.0, strength=1.0),
    "changing": Case("AP and PA, a field that changes with the pose", changing=True),
    "none": Case("AP and PA, no field", strength=0.0),
}

READOUT_S = 0.045


def main() -> None:
    parser = tables.parser(__doc__, "build/runs.tsv", seeds=[0], n_threads=2)
    tables.run_cases(parser, CASES, measure, render)


@dataclass(frozen=True, eq=False)
class Session:
    """Two simulated runs and their truth."""

    runs: tuple[Simulation, Simulation]
    n_threads: int

    @classmethod
    def of(cls, case: Case, seed: int, n_threads: int) -> "Session":
        """Simulate the runs, the head the same."""
        recipe = Recipe(
            head="synthetic", random_seed=seed, voxel_size=(case.voxel,) * 3, motion=case.motion,
            snr=case.snr, coil_bias=0.0, susceptibility=case.strength, readout_time=READOUT_S,
            rigid_field=not case.changing,
        )  # fmt: skip
        both = zip(("AP", "PA"), ("j-", "j"), case.n_directions, strict=True)
        return cls(tuple(
            simulated(replace(recipe, direction=name, pe_axis=axis), n, seed + number, n_threads)
            for number, (name, axis, n) in enumerate(both)
        ), n_threads)  # fmt: skip

    @property
    def dwis(self) -> list[em.DWI]:
        """The series."""
        return [run.dwi for run in self.runs]

    def motion(self, run: int, frame: int) -> em.Motion:
        """Return the true motion in the frame of the first b=0 of a run."""
        at_rest = self.runs[frame].motion[0]
        return em.Motion(self.runs[run].motion.matrices @ np.linalg.inv(at_rest))

    def truth(self, run: int, frame: int) -> np.ndarray:
        """Scan the head as a run's volumes show it, at rest in the frame of a run."""
        made = self.runs[run]
        gradients = made.dwi.gradients.rotated(self.motion(run, frame).rotations)
        at_rest = np.tile(self.runs[frame].motion[0], (len(gradients), 1, 1))
        still = acquire(made.head, gradients, em.Motion(at_rest), made.grid, snr=None,
                        n_threads=self.n_threads)  # fmt: skip
        return still.signal

    def brain(self, frame: int) -> np.ndarray:
        """Return the brain at rest in the frame of a run, (X, Y, Z) bool."""
        made = self.runs[frame]
        to_head = np.linalg.inv(made.motion[0]) @ made.grid.affine
        return true_mask(replace(made, grid=replace(made.grid, affine=to_head))) > 0


def simulated(recipe: Recipe, n_directions: int, seed: int, n_threads: int) -> Simulation:
    """Simulate a run with two b=0 volumes and so many directions; without any, three b=0."""
    shelled = shelled_scheme({1000.0: n_directions}, 2, seed=seed) if n_directions else None
    return simulate(recipe, gradients=shelled or b0_scheme(3), n_threads=n_threads)


def measure(case: Case, seed: int, n_threads: int) -> tables.Row:
    session = Session.of(case, seed, n_threads)
    dwis, compute = session.dwis, Compute(n_threads, seed)
    alone = [em.estimate_motion(dwi, random_seed=seed, n_threads=n_threads) for dwi in dwis]
    images = [RunImage.of(*both, n_threads) for both in zip(dwis, alone, strict=True)]
    joined = join_runs(images, compute=compute)
    motions = [joined.motion(number, motion) for number, motion in enumerate(alone)]
    known = [replace(motion, matrices=session.motion(number, 0).matrices)
             for number, motion in enumerate(motions)]  # fmt: skip
    row: tables.Row = {}
    together = []
    for run, dwi in enumerate(dwis):
        own, brain = session.truth(run, run), session.brain(run)
        row[f"none_{run}"] = relative(dwi.signal, own, brain)
        row[f"alone_{run}"] = relative(resampled(dwi, alone[run]).signal, own, brain)
        shared, brain = session.truth(run, 0), session.brain(0)
        together.append(resampled(dwi, motions[run]))
        row[f"together_{run}"] = relative(together[-1].signal, shared, brain)
        row[f"true_poses_{run}"] = relative(resampled(dwi, known[run]).signal, shared, brain)
    if case.n_directions[0] == case.n_directions[1]:
        row |= merged(session, together, joined)
    row |= field_errors(session, joined)
    row |= pose_errors(session, motions, joined)
    before, after = joined.similarity
    return row | {"before": before, "after": after}


def resampled(dwi: em.DWI, motion: em.Motion) -> em.DWI:
    return em.resample(dwi, motion, engine="fast")


def relative(found: np.ndarray, true: np.ndarray, brain: np.ndarray) -> float:
    """Root-mean-square error over the brain and all volumes, relative to the truth's."""
    wrong = np.asarray(found, float)[brain] - true[brain]
    return float(np.sqrt((wrong**2).sum() / (true[brain].astype(float) ** 2).sum()))


def merged(session: Session, runs: Sequence[em.DWI], joined: JoinedRuns) -> tables.Row:
    """Compare the pairs of the runs with the mean of their truths."""
    stretches = [joined.stretch(run) for run in range(len(runs))]
    shifts = np.nan_to_num(joined.shifts)
    same = [replace(run, gradients=runs[0].gradients) for run in runs]
    made, pairs = averaged(same, stretches, shifts)
    truths = [replace(run, signal=session.truth(number, 0)) for number, run in enumerate(same)]
    ones = [np.ones_like(stretch) for stretch in stretches]
    true, _ = averaged(truths, ones, shifts)
    brain = session.brain(0)
    return {"merged": relative(made.signal, true.signal, brain), "pairs": pairs}


def field_errors(session: Session, joined: JoinedRuns) -> tables.Row:
    """Compare the field with the true one in the brain, mm; and by what constant it is off."""
    first = session.runs[0]
    brain = binary_erosion(session.brain(0))
    if joined.field is None or first.magnetised is None:
        return {"field_mm": np.nan, "constant_mm": np.nan, "displaced_mm": 0.0}
    points = apply_affine(first.grid.affine, np.argwhere(brain))
    in_head = apply_affine(np.linalg.inv(first.motion[0]), points)
    true = first.magnetised.hertz(first.motion[0]).spline.sample(in_head)
    if first.recipe.rigid_field:
        true = first.magnetised.hertz().spline.sample(in_head)
    mm = float(np.linalg.norm(joined.shifts[0]))
    wrong = (joined.field.hertz(points) - true) * mm
    return {"field_mm": float(wrong.std()), "constant_mm": float(wrong.mean()),
            "displaced_mm": float((true * mm).std())}  # fmt: skip


def pose_errors(session: Session, motions: Sequence[em.Motion], joined: JoinedRuns) -> tables.Row:
    """Errors of the second run's poses: along the phase encoding, across (mm) and turned (°)."""
    first = session.runs[0]
    center = apply_affine(first.grid.affine, np.argwhere(session.brain(0)).mean(axis=0))
    pe = joined.shifts[0] / np.linalg.norm(joined.shifts[0])
    wrong = np.stack([
        log_rigid(np.linalg.inv(true) @ found, center)
        for true, found in zip(session.motion(1, 0).matrices, motions[1].matrices, strict=True)
    ])  # fmt: skip
    along = wrong[:, :3] @ pe
    across = wrong[:, :3] - along[:, None] * pe
    errors = motions[1].standard_errors
    told = np.nan if errors is None else float(np.nanmedian(errors[:, :3] @ np.abs(pe)))
    return {
        "along_mm": float(np.sqrt((along**2).mean())),
        "told_mm": told,
        "across_mm": float(np.sqrt((across**2).sum(axis=1).mean())),
        "turned_deg": float(np.rad2deg(np.sqrt((wrong[:, 3:] ** 2).sum(axis=1).mean()))),
    }


def render(rows: list[tables.Row], provenance: Path) -> None:
    """Write the page and the numbers."""
    ordered = sorted(rows, key=lambda row: (list(CASES).index(row["case"]), row["seed"]))
    errors = [
        [CASES[row["case"]].told, str(row["seed"]),
         *(tables.pair(row[f"{name}_0"], row[f"{name}_1"])
           for name in ("none", "alone", "together", "true_poses")),
         tables.number(row.get("merged") or np.nan)]
        for row in ordered
    ]  # fmt: skip
    found = [
        [CASES[row["case"]].told, str(row["seed"]), tables.number(row["displaced_mm"], 2),
         tables.number(row["field_mm"], 2), tables.number(row["constant_mm"], 2),
         f"{tables.number(row['along_mm'], 2)} ± {tables.number(row['told_mm'], 2)}",
         tables.number(row["across_mm"], 2), tables.number(row["turned_deg"], 2),
         f"{row['before']:.3f} → {row['after']:.3f}"]
        for row in ordered
    ]  # fmt: skip
    parts = [
        INTRODUCTION, tables.provenance_lines(provenance),
        tables.markdown(["session", "seed", "as acquired", "each alone", "together",
                         "true poses", "pairs averaged"], errors),
        FOUND,
        tables.markdown(["session", "seed", "field", "error", "constant", "along ± standard error",
                         "across", "rotation (°)", "correlation of b=0 images"], found),
    ]  # fmt: skip
    tables.write_page("runs", "\n".join(parts), rows)


INTRODUCTION = """# Runs of opposite polarity, end to end

Root-mean-square error of a corrected series over the brain and all volumes, relative to the truth:
the head as it would appear without distortion, motion and noise. First run / second run. *As
acquired* and *each alone* (motion corrected, no field) are compared in each run's own frame;
*together* in the frame of the first run, with the off-resonance field between the runs; *true
poses*: the same with the simulated poses; *pairs averaged*: `--distortion-group-merge
average`. The remaining error with true poses is noise (SNR 20), interpolation and the field.
"""

FOUND = """## Estimates

*Field*: standard deviation of its displacement in the brain; *error*: of the field, after removing
a constant; *constant*: that constant, which images of opposite polarity cannot distinguish from a
translation along the phase encoding; mm. The last columns are of the poses of the second run:
root-mean-square error along the phase encoding with the reported standard error, across it, and of
rotations.
"""


if __name__ == "__main__":
    main()
