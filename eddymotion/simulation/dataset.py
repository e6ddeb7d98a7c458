# SPDX-License-Identifier: Apache-2.0
"""A simulated series among others in a BIDS dataset, and its truth under ``truth/``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.io.images import write_image
from eddymotion.io.trajectory import write_trajectory
from eddymotion.io.writing import read_json, together, write_json
from eddymotion.mapping.eddy_currents import SCALE_MM
from eddymotion.mapping.motion import Motion
from eddymotion.simulation.acquisition import acquire, voxel_means
from eddymotion.simulation.eddy_currents import (
    write_eddy_table,
)
from eddymotion.simulation.output import (
    DATASET_NAME,
    DESCRIPTION,
    METADATA,
    image_path,
    integer_gain,
    truth_stem,
    write_bids,
    write_dataset_files,
    write_detailed_readme,
    write_dropped_table,
)
from eddymotion.simulation.recipe import Recipe
from eddymotion.simulation.simulated import Simulation, timing_metadata

OTHERS = ("_ses-", "_dir-")
"""How the names of other series of a participant go on."""


def write_simulation(
    folder: str | Path,
    name: str,
    made: Simulation,
    *,
    session: str | None = None,
    ideal: bool = False,
    n_threads: int = 1,
) -> Path:
    """Write a simulated series as BIDS, and the truth under ``truth/``.

    All files are written, or none. What an earlier series of that name left is removed; other
    participants stay.

    Parameters
    ----------
    folder : path
    name : str
        Participant label.
    made : Simulation
    session : str, optional
        Session label; that of the recipe when not given.
    ideal : bool
        Write the series of the head at rest, free of noise and artefacts, too.
    n_threads : int

    Returns
    -------
    Path
        The image.
    """
    folder, direction = Path(folder), made.recipe.direction
    session = session or made.recipe.session
    image = image_path(folder, name, session, direction)
    truth = truth_stem(folder, name, session, direction)
    gain = integer_gain(made.dwi.signal)
    metadata = METADATA | timing_metadata(made.recipe, made.trajectory)
    if made.eddy or made.recipe.kspace or made.magnetised:
        metadata["PhaseEncodingDirection"] = made.recipe.pe_axis
    if made.magnetised:
        metadata["TotalReadoutTime"] = made.recipe.readout_time
    write_dataset_files(folder, _description(made.recipe))
    with together() as written:
        _write_truth(truth, made, gain, ideal, n_threads)
        write_bids(folder, name, made.dwi, made.motion, session=session, direction=direction,
                   metadata=metadata, gain=gain)  # fmt: skip
    for old in truth.parent.glob(f"{truth.name}_[!_]*"):
        if old not in written and not old.name.removeprefix(truth.name).startswith(OTHERS):
            old.unlink()
    write_detailed_readme(folder)
    return image


def _write_truth(truth: Path, made: Simulation, gain: float, ideal: bool, n_threads: int) -> None:
    """Write the truth other than the motion."""

    def path(ending: str) -> Path:
        return truth.with_name(f"{truth.name}_{ending}")

    affine = made.grid.affine
    write_dropped_table(path("dropped.tsv"), made.kept)
    if made.trajectory:
        write_trajectory(path("trajectory.tsv"), made.trajectory, made.grid.center)
    if made.eddy:
        write_eddy_table(path("eddy.tsv"), made.eddy)
    if made.magnetised:
        write_image(path("fieldmap.nii.gz"), made.magnetised.hertz_on(made.grid), affine)
    write_image(path("mask.nii.gz"), true_mask(made), affine)
    if ideal:
        scaled = ideal_series(made, n_threads).signal * np.float32(gain)
        write_image(path("ideal_dwi.nii.gz"), scaled, affine)
    write_json(path("settings.json"), _settings(made, gain))


def ideal_series(made: Simulation, n_threads: int) -> DWI:
    """Scan the head at rest, with no noise, shading, dropout and eddy currents."""
    still = Motion.identity(len(made.motion))
    return acquire(made.head, made.dwi.gradients, still, made.grid, snr=None, n_threads=n_threads)


def true_mask(made: Simulation) -> np.ndarray:
    """Voxels of the grid that are brain when the head is at rest, (X, Y, Z) uint8."""
    to_head = np.linalg.inv(made.head.affine) @ made.grid.affine
    share = voxel_means(made.head.brain.astype(np.float32), to_head, made.grid.shape)
    return (share.T > 0.5).astype(np.uint8)


def refuse_unsimulated(folder: Path) -> None:
    """Raise if a folder holds a dataset of another kind."""
    description = folder / "dataset_description.json"
    if description.exists() and read_json(description).get("Name") != DATASET_NAME:
        raise EddymotionError(
            f"{folder}: contains a dataset that was not simulated; give another folder"
        )


def check_destination(folder: Path, image: Path, *, overwrite: bool) -> None:
    """Refuse to write over an image, or into a dataset of another kind.

    Raises
    ------
    EddymotionError
        Saying what to do instead.
    """
    refuse_unsimulated(folder)
    if image.exists() and not overwrite:
        raise EddymotionError(
            f"{image}: already exists; give another --participant-label, or --overwrite to "
            "replace it"
        )


def _description(recipe: Recipe) -> dict[str, Any]:
    """Describe the dataset; whose head it is decides on the licence."""
    mine = not (recipe.series or recipe.phantom)
    content = {key: value for key, value in DESCRIPTION.items() if mine or key != "License"}
    return content | {"GeneratedBy": [{"Name": "eddymotion-simulate", "Version": __version__}]}


def _settings(made: Simulation, gain: float) -> dict[str, Any]:
    """Return what made a series, JSON-ready."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(made.recipe).items()
    }
    settings["phantom"] = [str(path) for path in made.recipe.phantom or ()] or None
    settings["coil_bias"] = made.coil_bias
    if kspace := made.recipe.measurement:
        settings["kspace"] = asdict(kspace)
    snr = made.recipe.snr
    noise = 0.0 if snr is None else float(made.head.white_signal / snr)
    content: dict[str, Any] = {
        "summary": made.summary,
        "version": __version__,
        "settings": settings,
        "shape": list(made.grid.shape),
        "affine": made.grid.affine.tolist(),
        "noise_standard_deviation": noise * gain,
        "intensity_gain": gain,
    }
    if made.eddy:
        content["eddy_currents"] = {
            "convention": "with u = (s - center_mm) / scale_mm and d the sum of the coefficients "
            "times x, y, z (xx, yy, zz, xy, xz, yz) of u, a point at scanner position s (RAS+ mm) "
            "is recorded at s - pe * d",
            "pe": made.eddy.pe.tolist(),
            "center_mm": made.eddy.center.tolist(),
            "scale_mm": SCALE_MM,
        }
    return content
