# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a head with known motion, corrected and compared with the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eddymotion.bids.series import find_series, outputs_of
from eddymotion.data.series import DWI
from eddymotion.derivatives.dataset import (
    refuse_foreign_dataset,
    write_citation,
    write_dataset_files,
)
from eddymotion.errors import EddymotionError
from eddymotion.io.itk import read_itk
from eddymotion.io.series import load
from eddymotion.machine.parallel import Progress
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.pipeline.correct import correct_series
from eddymotion.pipeline.settings import Settings
from eddymotion.reports.participant import write_participant_page
from eddymotion.simulation import (
    Grid,
    acquire,
    procedural_head,
    shelled_scheme,
    simulate_motion,
    write_bids,
)
from eddymotion.simulation.dataset import refuse_unsimulated

VOXEL_SIZE_MM = 2.5
SHELLS, N_B0 = {1000.0: 30}, 3
SNR = 20.0


def run_demo(folder: Path, settings: Settings, progress: Progress) -> str:
    """Simulate, correct, compare.

    Parameters
    ----------
    folder : Path
        Holds ``bids/`` with the raw series and the truth, and ``derivatives/`` afterwards.
    settings : Settings
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    str
        A table of true against recovered motion, and where the pictures are.
    """
    bids_dir, output_dir = folder / "bids", folder / "derivatives"
    refuse_unsimulated(bids_dir)
    refuse_foreign_dataset(output_dir)
    if (folder / "motion.png").exists() and not bids_dir.exists():
        raise EddymotionError(
            f"{folder}: holds a motion.png but no demo; give an empty or new folder"
        )
    simulate_demo(bids_dir, settings.random_seed, settings.nprocs)
    write_dataset_files(output_dir, bids_dir.resolve())
    series = find_series(bids_dir)["demo"][0]
    outputs = outputs_of(series, "demo", output_dir)
    correct_series(series, outputs, settings, progress)
    write_citation(output_dir, [outputs["sidecar"]])
    report = output_dir / "sub-demo.html"
    for why in write_participant_page(report, "sub-demo", [outputs]).values():
        raise EddymotionError(why)
    dwi = load(series.dwi, mask=outputs["mask"])
    truth = Motion(read_itk(bids_dir / "truth" / "sub-demo_xfm.txt"))
    found = Motion(read_itk(outputs["xfm"]))
    _draw_truth(folder / "motion.png", dwi, found, truth)
    return (
        comparison_table(truth, found, dwi.center)
        + f"\n\ntrue and recovered motion  {folder / 'motion.png'}"
        + f"\nbefore and after           {outputs['before_after_figure']}"
        + f"\nreport                     {report}"
    )


def simulate_demo(bids_dir: Path, seed: int, n_threads: int) -> None:
    """Write the raw series and its truth."""
    phantom = procedural_head(2.0)
    gradients = shelled_scheme(SHELLS, N_B0, seed=seed)
    motion = simulate_motion("moderate", len(gradients), np.zeros(3), seed=seed)
    grid = Grid.covering(phantom, VOXEL_SIZE_MM, orientation="LAS")
    dwi = acquire(phantom, gradients, motion, grid, snr=SNR, seed=seed, n_threads=n_threads)
    write_bids(bids_dir, "demo", dwi, motion)


def comparison_table(truth: Motion, found: Motion, center: np.ndarray) -> str:
    """Format true and recovered parameters of every few volumes, and the errors over all."""
    true, recovered = (rigid_parameters(motion.matrices, center) for motion in (truth, found))
    true[:, 3:], recovered[:, 3:] = np.rad2deg(true[:, 3:]), np.rad2deg(recovered[:, 3:])
    lines = ["volume             translation x, y, z (mm)   rotation x, y, z (°)"]

    def cells(values: np.ndarray) -> str:
        return " ".join(f"{value:7.2f}" for value in np.round(values, 2) + 0.0)

    for volume in range(0, len(true), max(1, len(true) // 8)):
        for number, name, of in ((str(volume), "true", true), ("", "recovered", recovered)):
            values = of[volume]
            lines.append(f"{number:>6} {name:9} {cells(values[:3])}    {cells(values[3:])}")
    errors = np.sqrt(((recovered - true) ** 2).reshape(len(true), 2, 3).mean(axis=(0, 2)))
    motion = np.sqrt((true**2).reshape(len(true), 2, 3).mean(axis=(0, 2)))
    lines += [
        "",
        f"RMS of the true motion     {motion[0]:.2f} mm   {motion[1]:.2f}°",
        f"RMS error after correction {errors[0]:.3f} mm  {errors[1]:.3f}°",
    ]
    return "\n".join(lines)


def _draw_truth(path: Path, dwi: DWI, found: Motion, truth: Motion) -> None:
    from eddymotion.reports import save_figure
    from eddymotion.reports.figures import motion_figure

    save_figure(motion_figure(dwi, found, truth), path)
