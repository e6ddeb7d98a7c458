# SPDX-License-Identifier: Apache-2.0
"""Motion within volumes ⇄ a table, one row an excitation of a volume.

``volume``; ``slices``, comma-separated, 0-based along the slice axis; ``time``, seconds from the
start of the run, ``n/a`` where it is not known; ``trans_x`` … ``rot_z`` of that excitation's
matrix, with direction, centre and units of the confounds; ``trans_x_se`` … ``rot_z_se`` where they
are known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.io.tsv import MISSING, Table, table_text
from eddymotion.io.writing import write_text
from eddymotion.mapping.rigid import PARAMETERS, rigid_matrix, rigid_parameters
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.wording import shown

COLUMNS = ("volume", "slices", "time", *PARAMETERS)
"""That every such table has."""


def trajectory_columns(motion: SlicePoses, center: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of the table, one value an excitation of a volume each.

    Parameters
    ----------
    motion : SlicePoses
    center : (3,) array
        Of the original image grid, RAS+ mm.
    """
    n_groups = len(motion.groups)
    slices = [",".join(map(str, group)) for group in motion.groups]
    columns = {
        "volume": np.repeat(np.arange(len(motion)), n_groups),
        "slices": np.tile(slices, len(motion)),
        "time": motion.times.ravel(),
    }
    parameters = rigid_parameters(motion.matrices, center).reshape(-1, 6) + 0.0
    columns |= dict(zip(PARAMETERS, parameters.T, strict=True))
    if motion.standard_errors is not None:
        errors = motion.standard_errors.reshape(-1, 6).T
        columns |= {f"{name}_se": e for name, e in zip(PARAMETERS, errors, strict=True)}
    return columns


def write_trajectory(path: Path, motion: SlicePoses, center: np.ndarray) -> None:
    """Write the table; parameters as of :func:`trajectory_columns`."""
    write_text(path, table_text(trajectory_columns(motion, center)))


def trajectory_descriptions(motion: SlicePoses) -> dict[str, dict[str, str]]:
    """Describe the columns of the table, for its JSON sidecar."""
    found = {
        "volume": ("Volume, counted from 0", "1"),
        "slices": ("Slices that were excited together, counted from 0 along the slice axis of the "
                   "image, separated by commas", "1"),
        "time": ("Time of the excitation from the start of the run; n/a where it is not known",
                 "s"),
    }  # fmt: skip
    for name in PARAMETERS:
        kind, axis = name.split("_")
        words = f"Rotation about {axis} (RAS+): extrinsic x-y-z angle"
        if kind == "trans":
            words = (
                f"Translation along {axis} (RAS+): displacement of the centre of the image grid"
            )
        unit = "mm" if kind == "trans" else "rad"
        found[name] = (f"{words}, from the reference to where the slices were", unit)
    if motion.standard_errors is not None:
        found |= {f"{name}_se": (f"Standard error of {name}", found[name][1])
                  for name in PARAMETERS}  # fmt: skip
    return {name: {"Description": words, "Units": unit} for name, (words, unit) in found.items()}


def is_trajectory(path: Path) -> bool:
    """Whether a table has a row for each excitation, as its header says."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline().rstrip("\r\n").split("\t")
    return {"volume", "slices"} <= set(header)


def read_trajectory(path: Path, center: np.ndarray) -> SlicePoses:
    """Read the table that :func:`write_trajectory` writes.

    Parameters
    ----------
    path : Path
    center : (3,) array
        Of the original image grid, RAS+ mm.

    Raises
    ------
    EddymotionError
        If it cannot be read, or its rows are not the same excitations for each volume.
    """
    table = Table.read(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing or not len(table):
        raise EddymotionError(
            f"{path}: found {len(table)} rows and no column {', '.join(missing) or 'missing'}; "
            f"expected a row for each excitation with {' '.join(COLUMNS)}"
        )
    values = {name: table.numbers(name) for name in COLUMNS}
    parameters = np.stack([values[name] for name in PARAMETERS], axis=1)
    untimed = np.array(table.columns["time"]) == MISSING
    times = np.where(untimed, 0.0, values["time"])
    unknown = ~np.isfinite(np.column_stack([parameters, times, values["volume"]]))
    if unknown.any():
        raise EddymotionError(
            f"{path}: row {int(np.argmax(unknown.any(axis=1)))} (counted from 0) has no number "
            f"for some of volume, time, {', '.join(PARAMETERS)}; complete it"
        )
    groups = _groups(path, table, values["volume"])
    shape = (-1, len(groups))
    matrices = rigid_matrix(parameters[:, :3], parameters[:, 3:], center)
    errors = None
    if all(f"{name}_se" in table for name in PARAMETERS):
        errors = np.stack([table.numbers(f"{name}_se") for name in PARAMETERS], axis=1)
        errors = errors.reshape(*shape, 6)
    return SlicePoses(
        matrices.reshape(*shape, 4, 4), groups, values["time"].reshape(shape), errors
    )


def _groups(path: Path, table: Table, volumes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Slices of each excitation, which are the same in all volumes."""
    slices = table.columns["slices"]
    n_volumes = int(volumes[-1]) + 1
    n = len(slices) // max(n_volumes, 1)
    expected = np.repeat(np.arange(n_volumes), n)
    alike = np.array_equal(volumes, expected) and slices == slices[:n] * n_volumes
    try:
        groups = tuple(np.array(cell.split(","), int) for cell in slices[:n])
    except ValueError:
        groups = ()
    if not (alike and groups):
        raise EddymotionError(
            f"{path}: volumes and slices are not understood (the first row has slices "
            f"{shown(slices[0])}); expected the same excitations for each volume, from 0 on in "
            "the order of time, with slices as in 0,18,36"
        )
    return groups
